//! What must hold of the command-line reader.
use boot_formats::cmdline::{Cmdline, ForInit, PanicAction, WxPolicy};
use proptest::prelude::*;

#[test]
fn words_are_read_as_on_linux() {
    let line = b"console=tty0 console=ttyAMA0,115200  quiet init=/bin/sh maxcpus=2 dyn.debug=\"file a b +p\" \"x=1 2\" -- -c \"a b\" quiet\0junk";
    let c = Cmdline::new(line);
    assert_eq!(c.consoles().collect::<Vec<_>>(), [("tty0", ""), ("ttyAMA0", "115200")]);
    assert_eq!((c.init(), c.rdinit(), c.maxcpus()), (Some(&b"/bin/sh"[..]), &b"/init"[..], Some(2)));
    assert_eq!(c.text("dyn.debug"), Some("file a b +p"));
    assert_eq!((c.text("x"), c.get("c"), c.text("a")), (Some("1 2"), None, None));
    assert_eq!((c.loglevel(), c.flag("quiet"), c.flag("debug")), (4, true, false));
    let init: Vec<_> = c.for_init().collect();
    assert_eq!(
        init,
        [
            ForInit::Environment(b"x", b"1 2"),
            ForInit::Argument(b"-c"),
            ForInit::Argument(b"a b"),
            ForInit::Argument(b"quiet")
        ]
    );
}

#[test]
fn the_last_word_wins_and_dashes_are_underscores() {
    let c = Cmdline::new(b"a_b=1 a-b=2 n=0x10 m=3M bad=12q neg=-1 huge=99999999999999999999G flag no=off");
    assert_eq!(
        (c.number("a-b"), c.number("a_b"), c.number("n"), c.number("m")),
        (Some(2), Some(2), Some(16), Some(3 << 20))
    );
    assert_eq!((c.number("bad"), c.number("neg"), c.number("huge"), c.number("flag")), (None, None, None, None));
    assert_eq!((c.flag("flag"), c.flag("no"), c.flag("absent")), (true, false, false));
}

#[test]
fn the_kernels_own_settings_have_meanings() {
    let of = |line: &'static str| Cmdline::new(line.as_bytes());
    assert_eq!(of("").loglevel(), 7);
    assert_eq!((of("loglevel=3").loglevel(), of("quiet loglevel=x").loglevel(), of("debug").loglevel()), (3, 4, 10));
    assert_eq!((of("").panic_action(), of("panic=0").panic_action()), (PanicAction::Halt, PanicAction::Halt));
    assert_eq!(
        (of("panic=-1").panic_action(), of("panic=5").panic_action()),
        (PanicAction::ResetNow, PanicAction::ResetAfter(5))
    );
    assert_eq!((of("maxcpus=0").maxcpus(), of("nosmp").maxcpus(), of("").maxcpus()), (Some(1), Some(1), None));
    assert_eq!((of("wx=log").wx(), of("wx=1").wx(), of("").wx()), (WxPolicy::Log, WxPolicy::Deny, WxPolicy::Deny));
    let c = of("berth.sabotage=ipi,wx berth.sabotage=cow");
    assert!(c.lists("berth.sabotage", "wx") && c.lists("berth.sabotage", "cow") && !c.lists("berth.sabotage", "w"));
    assert_eq!(c.get("berth.sabotage").and_then(|p| p.text()), Some("cow"));
    assert_eq!(of("rdinit= init=").rdinit(), b"/init");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_line_can_be_asked_anything(line in prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), "[a-c =\"-]{0,60}".prop_map(String::into_bytes)]) {
        let c = Cmdline::new(&line);
        let _ = (c.loglevel(), c.maxcpus(), c.panic_action(), c.wx(), c.init(), c.rdinit(), c.number("a"), c.flag("b"));
        let total: usize = c.params().map(|p| p.key.len() + p.value.map_or(0, <[u8]>::len)).sum();
        prop_assert!(total <= line.len());
        prop_assert!(c.for_init().count() <= line.len() && c.consoles().count() <= line.len());
    }

    #[test]
    fn simple_words_come_back(words in proptest::collection::vec(("[a-z][a-z0-9.]{0,9}", proptest::option::of("[a-z0-9,/=]{0,9}")), 0..12)) {
        let line: Vec<String> = words.iter().map(|(key, value)| value.as_ref().map_or(key.clone(), |v| format!("{key}={v}"))).collect();
        let line = line.join(" ");
        let got: Vec<_> = Cmdline::new(line.as_bytes()).params().map(|p| (String::from_utf8(p.key.into()).unwrap(), p.value.map(|v| String::from_utf8(v.into()).unwrap()))).collect();
        prop_assert_eq!(got, words);
    }
}
