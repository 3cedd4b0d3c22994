//! A small program whose every field can be set.

use alloc::vec;
use alloc::vec::Vec;

/// `mov x0, #0; mov x8, #94 (exit_group); svc #0; b .`
const CODE: [u32; 4] = [0xd280_0000, 0xd280_0bc8, 0xd400_0001, 0x1400_0000];
/// Where in the file the code is.
const CODE_AT: u64 = 0x800;

/// A program header.
#[derive(Clone, Copy, Debug)]
pub struct Phdr {
    /// `p_type`
    pub kind: u32,
    /// `p_flags`
    pub flags: u32,
    /// `p_offset`
    pub offset: u64,
    /// `p_vaddr`
    pub vaddr: u64,
    /// `p_filesz`
    pub file_len: u64,
    /// `p_memsz`
    pub mem_len: u64,
    /// `p_align`
    pub align: u64,
}

/// A program under construction.
#[derive(Clone, Debug)]
pub struct Image {
    /// The first 24 bytes: identification, type, machine, version.
    pub ident: [u8; 24],
    /// `e_entry`
    pub entry: u64,
    /// `e_phoff`
    pub phoff: u64,
    /// `e_phentsize`
    pub phentsize: u16,
    /// `e_phnum`; `None`: as many as there are.
    pub phnum: Option<u16>,
    /// The headers.
    pub phdrs: Vec<Phdr>,
    /// Bytes put at offsets.
    pub patches: Vec<(usize, Vec<u8>)>,
    /// Length of the file.
    pub len: usize,
}

impl Image {
    /// A program of one segment that exits with 0: ET_EXEC (2) or ET_DYN (3).
    pub fn new(kind: u8) -> Self {
        let base = if kind == 2 { 0x40_0000 } else { 0 };
        let mut ident = [0; 24];
        ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        (ident[16], ident[18], ident[20]) = (kind, 183, 1);
        let text = Phdr { kind: 1, flags: 5, offset: 0, vaddr: base, file_len: 0x1000, mem_len: 0x1000, align: 0x1000 };
        Self {
            ident,
            entry: base + CODE_AT,
            phoff: 64,
            phentsize: 56,
            phnum: None,
            phdrs: vec![text],
            patches: vec![],
            len: 0x1000,
        }
    }

    /// The same with another header behind the first.
    #[must_use]
    pub fn with(mut self, phdr: Phdr) -> Self {
        self.phdrs.push(phdr);
        self
    }

    /// The same with `change` made to it.
    #[must_use]
    pub fn but(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The same with `change` made to its first segment.
    #[must_use]
    pub fn but_text(self, change: impl FnOnce(&mut Phdr)) -> Self {
        self.but(|image| {
            if let Some(first) = image.phdrs.first_mut() {
                change(first);
            }
        })
    }

    /// The same with `bytes` at `offset`.
    #[must_use]
    pub fn patch(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.patches.push((offset, bytes.into()));
        self
    }

    /// The file's bytes.
    pub fn finish(&self) -> Vec<u8> {
        let mut file = vec![0; self.len];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in file.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0, &self.ident);
        put(24, &self.entry.to_le_bytes());
        put(32, &self.phoff.to_le_bytes());
        let phnum = self.phnum.unwrap_or(self.phdrs.len() as u16);
        for (i, field) in [64, self.phentsize, phnum, 64, 0, 0].iter().enumerate() {
            put(52 + i * 2, &field.to_le_bytes());
        }
        let table = usize::try_from(self.phoff).unwrap_or(usize::MAX);
        for (i, p) in self.phdrs.iter().enumerate() {
            let at = table.saturating_add(i * 56);
            put(at, &p.kind.to_le_bytes());
            put(at.saturating_add(4), &p.flags.to_le_bytes());
            for (j, field) in [p.offset, p.vaddr, p.vaddr, p.file_len, p.mem_len, p.align].iter().enumerate() {
                put(at.saturating_add(8 + j * 8), &field.to_le_bytes());
            }
        }
        for (i, word) in CODE.iter().enumerate() {
            put(CODE_AT as usize + i * 4, &word.to_le_bytes());
        }
        for (at, bytes) in &self.patches {
            put(*at, bytes);
        }
        file
    }
}
