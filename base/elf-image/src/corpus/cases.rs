//! The cases.

use super::{Case, Image, Phdr, Verdict};
use crate::{ElfError, USER_END};
use alloc::vec::Vec;

const NOEXEC: Verdict = Verdict::Refused(ElfError::NotExec);
const INVAL: Verdict = Verdict::Refused(ElfError::Invalid);
const INTERP_AT: u64 = 0x900;
const NOTE_AT: u64 = 0xa00;

fn exec() -> Image {
    Image::new(2)
}

fn pie() -> Image {
    Image::new(3)
}

fn load(flags: u32, offset: u64, vaddr: u64, file_len: u64, mem_len: u64) -> Phdr {
    Phdr { kind: 1, flags, offset, vaddr, file_len, mem_len, align: 0x1000 }
}

/// A header of another kind with `len` bytes at `offset`.
fn other(kind: u32, offset: u64, len: u64) -> Phdr {
    Phdr { kind, flags: 4, offset, vaddr: 0, file_len: len, mem_len: len, align: 8 }
}

fn interp(len: u64) -> Phdr {
    other(3, INTERP_AT, len)
}

fn note(words: &[u32]) -> Image {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    exec().with(other(0x6474_e553, NOTE_AT, bytes.len() as u64)).patch(NOTE_AT as usize, &bytes)
}

/// Header of a property note whose description has `len` bytes.
const fn note_head(len: u32) -> [u32; 4] {
    [4, len, 5, u32::from_le_bytes(*b"GNU\0")]
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for list in [good(), headers(), tables(), segments(), interpreters(), notes()] {
        all.extend(list.into_iter().map(|(name, image, verdict)| Case { name, bytes: image.finish(), verdict }));
    }
    all.extend(files());
    all
}

type Row = (&'static str, Image, Verdict);

fn good() -> Vec<Row> {
    let bss = load(6, 0, 0x41_0000, 0, 0x3000);
    Vec::from([
        ("good-exec", exec(), Verdict::Runs),
        ("good-pie", pie(), Verdict::Runs),
        ("good-bss", exec().with(bss), Verdict::Runs),
        ("good-empty-segment", exec().with(load(4, 5, 0x30, 0, 0)), Verdict::Runs),
        ("good-wrong-order", exec().but(|i| i.phdrs.insert(0, load(6, 0, 0x50_0000, 0, 0x1000))), Verdict::Runs),
        ("good-odd-align", exec().but_text(|t| t.align = 3), Verdict::Runs),
        ("good-unknown-phdrs", exec().with(other(0x7000_1234, u64::MAX, u64::MAX)), Verdict::Runs),
        ("good-version-9", exec().but(|i| (i.ident[6], i.ident[20]) = (9, 9)), Verdict::Runs),
        ("good-bti", note(&[note_head(16), [0xc000_0000, 4, 1, 0]].concat()), Verdict::Runs),
        ("good-many-phdrs", many_phdrs(73), Verdict::Runs),
    ])
}

fn many_phdrs(count: usize) -> Image {
    exec().but(|i| {
        i.phoff = 0x1000;
        i.phdrs.resize(count, other(0, 0, 0));
        i.len = 0x1000 + count * 56;
    })
}

fn headers() -> Vec<Row> {
    let ident = |at: usize, value: u8| exec().but(|i| i.ident[at] = value);
    Vec::from([
        ("bad-magic", ident(3, b'G'), NOEXEC),
        ("class-32", ident(4, 1), NOEXEC),
        ("class-0", ident(4, 0), NOEXEC),
        ("big-endian", ident(5, 2), NOEXEC),
        ("type-none", ident(16, 0), NOEXEC),
        ("type-rel", ident(16, 1), NOEXEC),
        ("type-core", ident(16, 4), NOEXEC),
        ("type-high-byte", ident(17, 2), NOEXEC),
        ("machine-x86-64", ident(18, 62), NOEXEC),
        ("machine-arm32", ident(18, 40), NOEXEC),
        ("entry-kernel", exec().but(|i| i.entry = 0xffff_0000_0000_0000), INVAL),
        ("entry-at-user-end", exec().but(|i| i.entry = USER_END), INVAL),
        ("entry-unmapped", exec().but(|i| i.entry = 0x7000_0000), Verdict::MayDie),
        ("entry-null", exec().but(|i| i.entry = 0), Verdict::MayDie),
        ("entry-odd", exec().but(|i| i.entry += 1), Verdict::MayDie),
    ])
}

fn tables() -> Vec<Row> {
    let phoff = |at: u64| exec().but(|i| i.phoff = at);
    Vec::from([
        ("phentsize-0", exec().but(|i| i.phentsize = 0), NOEXEC),
        ("phentsize-55", exec().but(|i| i.phentsize = 55), NOEXEC),
        ("phentsize-huge", exec().but(|i| i.phentsize = 0xffff), NOEXEC),
        ("phnum-0", exec().but(|i| i.phnum = Some(0)), NOEXEC),
        ("phnum-1171", many_phdrs(1171), NOEXEC),
        ("phnum-ffff", exec().but(|i| i.phnum = Some(0xffff)), NOEXEC),
        ("phnum-beyond-end", exec().but(|i| i.phnum = Some(1000)), NOEXEC),
        ("phoff-beyond-end", phoff(0x10_0000), NOEXEC),
        ("phoff-at-end", phoff(0x1000 - 8), NOEXEC),
        ("phoff-max", phoff(u64::MAX), NOEXEC),
        ("phoff-negative", phoff(1 << 63), NOEXEC),
        ("phoff-wraps", phoff(u64::MAX - 55), NOEXEC),
        ("phoff-at-code", phoff(0x800), INVAL),
        ("no-load", exec().but_text(|t| t.kind = 4), INVAL),
        ("only-empty-load", exec().but_text(|t| (t.file_len, t.mem_len) = (0, 0)), INVAL),
    ])
}

fn segments() -> Vec<Row> {
    let more = |p: Phdr| exec().with(p);
    let shared = load(5, 0, 0x40_0000, 0x1000, 0x1000);
    Vec::from([
        ("filesz-over-memsz", more(load(6, 0, 0x50_0000, 0x1000, 0xfff)), INVAL),
        ("filesz-over-empty", more(load(6, 0, 0x50_0000, 1, 0)), INVAL),
        ("memsz-max", more(load(6, 0, 0x50_0000, 0, u64::MAX)), INVAL),
        ("memsz-wraps-to-0", more(load(6, 0, 0x50_0000, 0, 0x50_0000_u64.wrapping_neg())), INVAL),
        ("memsz-user-space", more(load(6, 0, 0x50_0000, 0, USER_END)), INVAL),
        ("vaddr-kernel", more(load(6, 0, 0xffff_0000_0000_0000, 0, 0x1000)), INVAL),
        ("vaddr-user-end", more(load(6, 0, USER_END - 0x1000, 0, 0x1000)), INVAL),
        ("vaddr-last-page", more(load(6, 0, u64::MAX - 0xfff, 0, 0xfff)), INVAL),
        ("vaddr-null", exec().but_text(|t| t.vaddr = 0), INVAL),
        ("vaddr-below-minimum", exec().but_text(|t| t.vaddr = 0xf000), INVAL),
        ("offset-not-congruent", exec().but_text(|t| t.offset = 8), INVAL),
        ("vaddr-not-congruent", exec().but_text(|t| t.vaddr += 0x10), INVAL),
        ("offset-max", more(load(4, u64::MAX - 0xfff, 0x50_0000, 0x1000, 0x1000)), INVAL),
        ("offset-negative", more(load(4, 1 << 63, 0x50_0000, 0x1000, 0x1000)), INVAL),
        ("filesz-huge", more(load(4, 0, 0x50_0000, 1 << 62, 1 << 62)), INVAL),
        ("pie-span-huge", pie().with(load(6, 0, USER_END - 0x10_0000, 0, 0x1000)), INVAL),
        ("33-segments", exec().but(|i| i.phdrs.resize(33, shared)), NOEXEC),
        ("exec-memory-huge", more(load(6, 0, 0x50_0000, 0, USER_END / 2)), Verdict::MayDie),
        ("beyond-file-end", exec().but_text(|t| t.offset = 0x10_0000), Verdict::MayDie),
        ("not-executable", exec().but_text(|t| t.flags = 4), Verdict::MayDie),
        ("no-rights", exec().but_text(|t| t.flags = 0), Verdict::MayDie),
        ("writable-code", exec().but_text(|t| t.flags = 7), Verdict::MayDie),
        ("overlap", more(load(4, 0, 0x40_0000, 0x1000, 0x2000)), Verdict::MayDie),
        ("over-its-own-stack", more(load(6, 0, USER_END - 0x10_0000, 0, 0xf_0000)), Verdict::MayDie),
        ("align-max", pie().but_text(|t| t.align = 1 << 63), Verdict::MayDie),
    ])
}

fn interpreters() -> Vec<Row> {
    let named = |path: &[u8], len: u64| exec().with(interp(len)).patch(INTERP_AT as usize, path);
    let absent = |at: u64| exec().with(other(3, at, 16));
    Vec::from([
        ("interp-0", named(b"", 0), NOEXEC),
        ("interp-1", named(b"", 1), NOEXEC),
        ("interp-empty", named(b"\0\0\0", 3), NOEXEC),
        ("interp-unterminated", named(b"/lib/ld.so", 10), NOEXEC),
        ("interp-too-long", named(b"/lib/ld.so", 5000), NOEXEC),
        ("interp-max", named(b"/lib/ld.so", u64::MAX), NOEXEC),
        ("interp-beyond-end", absent(0x10_0000), INVAL),
        ("interp-offset-max", absent(u64::MAX), INVAL),
        ("interp-over-end", absent(0x1000 - 8), INVAL),
        ("interp-absent", named(b"/no/such/file\0", 14), Verdict::MayDie),
        ("interp-is-directory", named(b"/\0", 2), Verdict::MayDie),
        ("interp-is-device", named(b"/dev/zero\0", 10), Verdict::MayDie),
    ])
}

fn notes() -> Vec<Row> {
    let property = [0xc000_0000, 4, 1, 0];
    Vec::from([
        ("note-short", note(&[4, 0]), NOEXEC),
        ("note-long", exec().with(other(0x6474_e553, 0, 1025)), NOEXEC),
        ("note-type", note(&[4, 0, 6, u32::from_le_bytes(*b"GNU\0")]), NOEXEC),
        ("note-name", note(&[4, 0, 5, 0]), NOEXEC),
        ("note-desc-beyond", note(&note_head(1000)), NOEXEC),
        ("note-half-property", note(&[&note_head(4)[..], &[0xc000_0000]].concat()), NOEXEC),
        ("note-data-beyond", note(&[note_head(16), [0xc000_0000, u32::MAX, 1, 0]].concat()), NOEXEC),
        ("note-feature-size", note(&[note_head(16), [0xc000_0000, 8, 1, 0]].concat()), NOEXEC),
        ("note-unordered", note(&[&note_head(32)[..], &property, &property].concat()), NOEXEC),
        ("note-beyond-end", exec().with(other(0x6474_e553, 0x10_0000, 32)), INVAL),
    ])
}

/// Cases that aren't images.
fn files() -> Vec<Case> {
    let whole = exec().finish();
    let cut = |name, len: usize, verdict| Case { name, bytes: whole[..len].into(), verdict };
    let text = |name, bytes: &[u8], verdict| Case { name, bytes: bytes.into(), verdict };
    Vec::from([
        cut("empty", 0, NOEXEC),
        cut("only-magic", 4, NOEXEC),
        cut("half-header", 32, NOEXEC),
        cut("only-header", 64, NOEXEC),
        cut("half-phdr", 100, NOEXEC),
        cut("cut-before-code", 0x700, Verdict::MayDie),
        text("zeros", &[0; 4096], NOEXEC),
        text("ones", &[0xff; 4096], NOEXEC),
        text("script-empty", b"#!\n", NOEXEC),
        text("script-blank", b"#!   \t\n", NOEXEC),
        text("script-itself", b"#!script-itself\n", Verdict::MayDie),
        text("script-nul", b"#!\0/bin/sh\n", NOEXEC),
        text("script-long", &[&b"#!/"[..], &[b'a'; 5000]].concat(), NOEXEC),
    ])
}
