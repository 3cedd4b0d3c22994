//! m3: W^X. Berth refuses what Linux allows, walks its own live page tables, and knows programs marked as exceptions.

use super::programs::{PROGRAM_LIMIT, checked, control, on_each};
use crate::cpio::Entry;
use crate::error::{Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{COMMAND_LIMIT, Shell};

/// The gate.
pub const GATE: Gate = Gate {
    name: "m3",
    title: "nothing writable and executable, in user or kernel; the marked exception; jumps into data die",
    cases,
};

fn cases(o: &Options) -> Vec<Case> {
    let programs: &'static [&'static str] = if o.linux {
        &[
            "wx write_then_execute_works writable_shared_twice stack_heap_data_die text_is_read_only kernel_code_cannot_be_jumped_to",
        ]
    } else {
        &["wx"]
    };
    let mut cases = on_each(&o.smp, programs, if o.linux { |_, _| Ok(()) } else { exception });
    cases.push(checked(4, &["wx"]));
    cases.push(Case::new("under load", under_load).berth());
    cases.push(control("wx=log allows", 1, "wx=log", &["wx both_at_once_refused"], "wx.both_at_once_refused"));
    cases.push(control("a page that is both", 1, "berth.sabotage=wx", &["wx live_tables"], "wx.live_tables"));
    cases.push(Case::new("wx=log logs", logged).berth());
    cases
}

/// A program whose file is marked (extended attribute user.berth.wx = 1) may have both; an unmarked copy may not.
fn exception(sh: &mut Shell, _: &Context<'_>) -> Outcome {
    sh.ok("cp /usr/lib/berth-tests/wx /tmp/plain; cp /usr/lib/berth-tests/wx /tmp/marked; /usr/lib/berth-tests/setxattr /tmp/marked security.berth.wx 1")?;
    let plain = sh.run("/tmp/plain jit", COMMAND_LIMIT)?;
    check(plain.status == 1 && plain.output.contains("Permission denied"), "wx.unmarked", || format!("{plain:?}"))?;
    let marked = sh.run("/tmp/marked jit", COMMAND_LIMIT)?;
    check(marked.status == 0 && marked.output.contains("jit: 42"), "wx.marked", || format!("{marked:?}"))?;
    let log = sh.run("dmesg | grep -i 'wx' | grep marked", COMMAND_LIMIT)?;
    check(log.output.contains("marked"), "wx.exception_logged", || format!("{log:?}"))
}

/// The live tables while many programs come and go.
fn under_load(c: &mut Context<'_>) -> Outcome {
    let config = c.config(4);
    let mut sh = c.boot(&config)?;
    sh.ok(
        "for i in 1 2 3 4; do (while [ ! -e /tmp/stop ]; do ls -l /bin | sort | md5sum; done >/dev/null 2>&1 &) ; done",
    )?;
    for _ in 0..5 {
        sh.program("wx live_tables", PROGRAM_LIMIT)?;
    }
    sh.ok("touch /tmp/stop")?;
    sh.poweroff()
}

fn logged(c: &mut Context<'_>) -> Outcome {
    let mut config = c.config(1);
    config.append.push_str(" wx=log");
    config.initrd = Some(c.overlay(&[Entry::File("etc/wx-gate", 0o644, b"")])?);
    let mut sh = c.boot(&config)?;
    let out = sh.run("/usr/lib/berth-tests/wx jit", COMMAND_LIMIT)?;
    check(out.status == 0 && out.output.contains("jit: 42"), "wx.log_allows", || format!("{out:?}"))?;
    let log = sh.run("dmesg | grep -i wx", COMMAND_LIMIT)?;
    check(!log.output.is_empty(), "wx.logged", || "nothing about it in dmesg".into())?;
    sh.poweroff()
}
