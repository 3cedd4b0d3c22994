extern crate std;
use super::*;
use std::vec::Vec;

fn phdr(kind: u32, flags: u32, offset: u64, vaddr: u64, file: u64, mem: u64, align: u64) -> Vec<u8> {
    let mut b = Vec::new();
    b.extend(kind.to_le_bytes());
    b.extend(flags.to_le_bytes());
    for v in [offset, vaddr, vaddr, file, mem, align] {
        b.extend(v.to_le_bytes());
    }
    b
}

fn elf(etype: u16, phdrs: &[Vec<u8>]) -> Vec<u8> {
    let mut b = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    b.extend(etype.to_le_bytes());
    b.extend(183u16.to_le_bytes());
    b.extend(1u32.to_le_bytes());
    b.extend(0x40_1000u64.to_le_bytes());
    b.extend(64u64.to_le_bytes());
    b.extend(0u64.to_le_bytes());
    b.extend(0u32.to_le_bytes());
    for v in [64u16, 56, phdrs.len() as u16, 64, 0, 0] {
        b.extend(v.to_le_bytes());
    }
    phdrs.iter().for_each(|p| b.extend(p));
    b.resize(4096, 0);
    b
}

fn plan(b: &[u8]) -> Result<Plan, ElfError> {
    parse(b, |_, _| false)
}

#[test]
fn a_plain_program_is_understood() {
    let b =
        elf(2, &[phdr(1, 5, 0, 0x40_0000, 0x1000, 0x1000, 0x1000), phdr(1, 6, 0x1000, 0x40_2000, 16, 0x3000, 0x1000)]);
    let p = plan(&b).unwrap();
    assert_eq!((p.span, p.phdr_vaddr, p.segments.len()), ((0x40_0000, 0x40_5000), Some(0x40_0040), 2));
}

#[test]
fn contradictions_are_refused() {
    let good = || phdr(1, 5, 0, 0x40_0000, 0x1000, 0x1000, 0x1000);
    let bad = [
        elf(1, &[good()]),
        elf(2, &[]),
        elf(2, &[phdr(1, 5, 0, 0x40_0000, 0x2000, 0x1000, 0x1000)]),
        elf(2, &[phdr(1, 5, 0, u64::MAX - 5, 0, 0x1000, 0x1000)]),
        elf(2, &[phdr(1, 5, 1, 0x40_0000, 0x1000, 0x1000, 0x1000)]),
        elf(2, &[phdr(1, 5, 0, 0x40_0000, 0x1000, 0x1000, 3)]),
        elf(2, &[good(), good()]),
        elf(2, &[phdr(1, 5, 0, 0, 0x1000, 0x1000, 0x1000)]),
        elf(2, &[good(), phdr(3, 4, 0x2000_0000, 0, 20, 20, 1)]),
        elf(2, &[good(), phdr(3, 4, 0, 0, 1, 1, 1)]),
        elf(2, &[phdr(1, 5, u64::MAX - 0xfff, 0x40_0000, 0x1000, 0x1000, 0x1000)]),
    ];
    for (i, b) in bad.iter().enumerate() {
        assert!(plan(b).is_err(), "case {i}");
    }
}

#[test]
fn no_prefix_and_no_flipped_bit_panics() {
    let b = elf(3, &[phdr(1, 5, 0, 0, 0x1000, 0x1000, 0x1000), phdr(3, 4, 300, 0, 20, 20, 1)]);
    for n in 0..b.len().min(600) {
        let _ = plan(&b[..n]);
    }
    for bit in 0..400 * 8 {
        let mut c = b.clone();
        c[bit / 8] ^= 1 << (bit % 8);
        let _ = plan(&c);
    }
}
