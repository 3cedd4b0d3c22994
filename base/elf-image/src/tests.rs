extern crate std;

use crate::corpus::{Case, Image, Phdr, Verdict, cases};
use crate::{ElfError, Kind, MIN_ADDRESS, PAGE, Plan, USER_END, parse, script};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

/// As a kernel does: the first bytes at hand, the rest by reading.
fn plan_with(file: &[u8], head: usize) -> Result<Plan, ElfError> {
    let mut calls = 0;
    let plan = parse(&file[..file.len().min(head)], |offset, buf| {
        calls += 1;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(bytes) = start.checked_add(buf.len()).and_then(|end| file.get(start..end)) else { return false };
        buf.copy_from_slice(bytes);
        true
    });
    assert!(calls <= 147 + 2 * 1170, "{calls} reads");
    if let Ok(plan) = &plan {
        check(plan);
    }
    plan
}

fn plan(file: &[u8]) -> Result<Plan, ElfError> {
    let whole = plan_with(file, 4096);
    assert_eq!(whole, plan_with(file, 64), "how much is at hand makes no difference");
    whole
}

/// What a kernel relies on.
fn check(plan: &Plan) {
    assert!(!plan.segments.is_empty());
    assert!(plan.span.0.is_multiple_of(PAGE) && plan.span.1.is_multiple_of(PAGE) && plan.span.1 < USER_END);
    assert!(plan.align.is_power_of_two() && (PAGE..=1 << 30).contains(&plan.align));
    assert!(plan.kind == Kind::Relocatable || plan.span.0 >= MIN_ADDRESS);
    assert!(plan.interp.as_ref().is_none_or(|path| !path.is_empty() && !path.contains(&0)));
    let mut pages: Vec<(u64, u64)> = vec![];
    for s in &plan.segments {
        assert!(s.mem_len > 0 && s.file_len <= s.mem_len);
        assert!(plan.span.0 <= s.vaddr && s.vaddr.checked_add(s.mem_len).unwrap() <= plan.span.1);
        assert!(s.file_len == 0 || s.offset % PAGE == s.vaddr % PAGE);
        assert!(s.file_len == 0 || s.offset + s.file_len.next_multiple_of(PAGE) + PAGE <= 1 << 63);
        pages.push((s.vaddr / PAGE, s.end().div_ceil(PAGE)));
    }
    pages.sort_unstable();
    assert_eq!(plan.overlap, pages.windows(2).any(|w| w[1].0 < w[0].1));
    assert_eq!(plan.wx, plan.segments.iter().any(|s| s.write && s.exec));
}

#[test]
fn the_corpus_gets_its_verdicts() {
    let all = cases();
    let names: BTreeSet<_> = all.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), all.len(), "names are unique");
    assert!(all.iter().filter(|case| matches!(case.verdict, Verdict::Refused(_))).count() >= 60);
    for Case { name, bytes, verdict } in &all {
        let got = plan(bytes);
        if bytes.starts_with(b"#!") {
            assert_eq!(script::parse(bytes).is_some(), *verdict == Verdict::MayDie, "{name}");
            continue;
        }
        match verdict {
            Verdict::Refused(error) => assert_eq!(got, Err(*error), "{name}"),
            Verdict::Runs | Verdict::MayDie => assert!(got.is_ok(), "{name}: {got:?}"),
        }
    }
}

#[test]
fn a_plain_program_is_understood() {
    let data =
        Phdr { kind: 1, flags: 6, offset: 0x1010, vaddr: 0x41_0010, file_len: 16, mem_len: 0x3000, align: 0x10000 };
    let path = b"/lib/ld-musl-aarch64.so.1\0";
    let interp = Phdr { kind: 3, flags: 4, offset: 0xf00, vaddr: 0, file_len: path.len() as u64, mem_len: 0, align: 1 };
    let stack = Phdr { kind: 0x6474_e551, flags: 7, offset: 0, vaddr: 0, file_len: 0, mem_len: 0, align: 16 };
    let file = Image::new(2).with(data).with(interp).with(stack).patch(0xf00, path).finish();
    let p = plan(&file).unwrap();
    assert_eq!((p.kind, p.span, p.phdr_vaddr), (Kind::Fixed, (0x40_0000, 0x41_4000), Some(0x40_0040)));
    assert_eq!((p.entry, p.phnum, p.align, p.overlap), (0x40_0800, 4, 0x10000, false));
    assert_eq!((p.exec_stack, p.wx, p.bti), (true, false, false));
    assert_eq!(p.interp.unwrap().as_slice(), b"/lib/ld-musl-aarch64.so.1");
    assert_eq!(
        p.segments.iter().map(|s| (s.read, s.write, s.exec)).collect::<Vec<_>>(),
        [(true, false, true), (true, true, false)]
    );
}

#[test]
fn flags_of_the_program_are_told() {
    let named = |name: &str| plan(&cases().into_iter().find(|case| case.name == name).unwrap().bytes).unwrap();
    assert!(named("good-bti").bti && !named("good-exec").bti);
    assert!(named("writable-code").wx && named("overlap").overlap);
    assert_eq!(named("align-max").align, 1 << 30);
}

#[test]
fn program_headers_are_read_up_to_64_kib() {
    let with = |count: usize| {
        let mut image = Image::new(2);
        (image.phoff, image.len) = (0x1000, 0x1000 + count * 56);
        image.phdrs.resize(count, Phdr { kind: 0, ..image.phdrs[0] });
        plan(&image.finish()).map(|plan| plan.phnum)
    };
    assert_eq!((with(1170), with(1171)), (Ok(1170), Err(ElfError::NotExec)));
}

#[test]
fn every_truncation_and_flipped_bit_is_survived() {
    for case in cases().iter().filter(|case| case.bytes.len() >= 64) {
        for len in 0..case.bytes.len().min(400) {
            let _ = plan(&case.bytes[..len]);
        }
        let mut file = case.bytes.clone();
        for bit in 0..file.len().min(200) * 8 {
            file[bit / 8] ^= 1 << (bit % 8);
            let _ = plan(&file);
            file[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn mutated_programs_never_panic() {
    let all = cases();
    let mut random = 0x1234_5678_9abc_def1_u64;
    let mut step = || {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        random >> 32
    };
    let start = std::time::Instant::now();
    while start.elapsed().as_millis() < 1500 {
        let mut file = all[step() as usize % all.len()].bytes.clone();
        if file.is_empty() {
            continue;
        }
        for _ in 0..=step() % 5 {
            let at = step() as usize % file.len().min(400);
            file[at] = [0, 1, 0x7f, 0x80, 0xff, step() as u8][step() as usize % 6];
        }
        let _ = plan(&file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_headers_never_break_a_promise(
        kind in 2..4_u8,
        phdrs in proptest::collection::vec((prop_oneof![Just(1_u32), Just(3), Just(0x6474_e551), Just(0x6474_e553)], 0..8_u32, number(), number(), number(), number(), number()), 0..40),
        entry in number(), phoff in prop_oneof![Just(64), number()],
    ) {
        let mut image = Image::new(kind);
        (image.entry, image.phoff) = (entry, phoff);
        for (kind, flags, offset, vaddr, file_len, mem_len, align) in phdrs {
            image.phdrs.push(Phdr { kind, flags, offset, vaddr, file_len, mem_len, align });
        }
        let _ = plan(&image.finish());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = plan(&bytes);
        let _ = plan(&[&b"\x7fELF\x02\x01\x01"[..], &bytes].concat());
        let _ = script::parse(&bytes);
        let _ = script::parse(&[&b"#!"[..], &bytes].concat());
    }
}

/// Numbers near what matters.
fn number() -> impl Strategy<Value = u64> {
    let edge = prop_oneof![
        Just(0_u64),
        Just(0x1000),
        Just(0x10000),
        Just(0x40_0000),
        Just(USER_END),
        Just(1 << 63),
        Just(u64::MAX)
    ];
    (edge, -3..4_i64, any::<bool>())
        .prop_map(|(edge, by, pages)| edge.wrapping_add_signed(if pages { by * 4096 } else { by }))
}
