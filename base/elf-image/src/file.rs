//! The headers (ELF-64 Object File Format 1.5; System V ABI, chapter 5; ELF for the Arm 64-bit Architecture).

use crate::{ElfError, Kind, MAX_INTERP, MAX_PHDRS, MIN_ADDRESS, PAGE, Plan, Segment, USER_END, property};
use arrayvec::ArrayVec;

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_GNU_STACK: u32 = 0x6474_e551;
const PT_GNU_PROPERTY: u32 = 0x6474_e553;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_AARCH64: u16 = 183;
const HEADER_LEN: usize = 64;
const PHDR_LEN: usize = 56;
/// Program headers that are read at once.
const BATCH: usize = 8;
/// The largest alignment that is honoured.
const MAX_ALIGN: u64 = 1 << 30;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u16::from_le_bytes(*chunk))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// The file: what is in memory of it, and how to read the rest.
pub(crate) struct File<'a, R> {
    head: &'a [u8],
    read_at: R,
}

impl<R: FnMut(u64, &mut [u8]) -> bool> File<'_, R> {
    /// Fills `buf` from `offset`; whether that worked.
    pub(crate) fn read(&mut self, offset: u64, buf: &mut [u8]) -> bool {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match start.checked_add(buf.len()).and_then(|end| self.head.get(start..end)) {
            Some(here) => buf.copy_from_slice(here),
            None if offset.checked_add(buf.len() as u64).is_none() => return false,
            None => return (self.read_at)(offset, buf),
        }
        true
    }
}

/// A program header.
struct Phdr {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    file_len: u64,
    mem_len: u64,
    align: u64,
}

impl Phdr {
    fn new(bytes: &[u8]) -> Self {
        Self {
            kind: u32_at(bytes, 0),
            flags: u32_at(bytes, 4),
            offset: u64_at(bytes, 8),
            vaddr: u64_at(bytes, 16),
            file_len: u64_at(bytes, 32),
            mem_len: u64_at(bytes, 40),
            align: u64_at(bytes, 48),
        }
    }
}

/// Reads a file's headers. `head` is the file's start: its first page or less, but at least 64 bytes of a longer file.
/// `read_at(offset, buf)` fills `buf` from the file and says false where the file is too short; a caller whose reads can
/// fail otherwise remembers how, and says false.
pub fn parse(head: &[u8], read_at: impl FnMut(u64, &mut [u8]) -> bool) -> Result<Plan, ElfError> {
    let mut plan = Plan::empty();
    parse_into(&mut plan, head, read_at)?;
    Ok(plan)
}

/// As [`parse`], for callers with little stack: fills `plan`, which is empty. After an error its content means nothing.
pub fn parse_into(plan: &mut Plan, head: &[u8], read_at: impl FnMut(u64, &mut [u8]) -> bool) -> Result<(), ElfError> {
    let phoff = read_header(plan, head)?;
    let mut file = File { head, read_at };
    let mut buffer = [0_u8; BATCH * PHDR_LEN];
    let mut offset = phoff;
    let mut left = usize::from(plan.phnum);
    while left > 0 {
        let count = left.min(BATCH);
        let batch = &mut buffer[..count * PHDR_LEN];
        if !file.read(offset, batch) {
            return Err(ElfError::NotExec);
        }
        for bytes in batch.chunks_exact(PHDR_LEN) {
            plan.take(&Phdr::new(bytes), phoff, &mut file)?;
        }
        // Cannot overflow: the bytes up to there were just read.
        offset = offset.saturating_add((count * PHDR_LEN) as u64);
        left -= count;
    }
    plan.finish()
}

/// Where the program headers are.
fn read_header(plan: &mut Plan, head: &[u8]) -> Result<u64, ElfError> {
    // Magic, 64-bit, little-endian.
    if head.len() < HEADER_LEN || !head.starts_with(b"\x7fELF\x02\x01") || u16_at(head, 18) != EM_AARCH64 {
        return Err(ElfError::NotExec);
    }
    plan.kind = match u16_at(head, 16) {
        ET_EXEC => Kind::Fixed,
        ET_DYN => Kind::Relocatable,
        _ => return Err(ElfError::NotExec),
    };
    let phnum = u16_at(head, 56);
    if usize::from(u16_at(head, 54)) != PHDR_LEN || phnum == 0 || usize::from(phnum) > MAX_PHDRS {
        return Err(ElfError::NotExec);
    }
    plan.entry = u64_at(head, 24);
    plan.phnum = phnum;
    Ok(u64_at(head, 32))
}

impl Plan {
    /// A plan of no file yet.
    pub const fn empty() -> Plan {
        Plan {
            kind: Kind::Fixed,
            entry: 0,
            phnum: 0,
            phdr_vaddr: None,
            segments: ArrayVec::new_const(),
            interp: None,
            exec_stack: false,
            wx: false,
            bti: false,
            overlap: false,
            align: PAGE,
            span: (u64::MAX, 0),
        }
    }

    fn take<R: FnMut(u64, &mut [u8]) -> bool>(
        &mut self,
        phdr: &Phdr,
        phoff: u64,
        file: &mut File<'_, R>,
    ) -> Result<(), ElfError> {
        match phdr.kind {
            PT_LOAD => self.take_segment(phdr, phoff)?,
            PT_INTERP if self.interp.is_none() => self.interp = Some(read_interp(phdr, file)?),
            PT_GNU_STACK => self.exec_stack = phdr.flags & PF_X != 0,
            PT_GNU_PROPERTY => self.bti = property::wants_bti(phdr.offset, phdr.file_len, file)?,
            _ => {}
        }
        Ok(())
    }

    fn take_segment(&mut self, phdr: &Phdr, phoff: u64) -> Result<(), ElfError> {
        if phdr.file_len > phdr.mem_len {
            return Err(ElfError::Invalid);
        }
        if phdr.mem_len == 0 {
            return Ok(());
        }
        let end =
            phdr.vaddr.checked_add(phdr.mem_len).filter(|end| *end <= USER_END - PAGE).ok_or(ElfError::Invalid)?;
        if phdr.file_len > 0 {
            let congruent = phdr.offset % PAGE == phdr.vaddr % PAGE;
            let file_end = phdr.offset.checked_add(phdr.file_len).filter(|end| *end <= i64::MAX as u64 - PAGE);
            if !congruent || file_end.is_none() {
                return Err(ElfError::Invalid);
            }
            if phdr.offset <= phoff && phoff - phdr.offset < phdr.file_len {
                self.phdr_vaddr = Some(phdr.vaddr + (phoff - phdr.offset));
            }
        }
        if phdr.align.is_power_of_two() {
            self.align = self.align.max(phdr.align.min(MAX_ALIGN));
        }
        let (first, last) = (phdr.vaddr - phdr.vaddr % PAGE, end.next_multiple_of(PAGE));
        self.overlap |=
            self.segments.iter().any(|other| first < other.end().next_multiple_of(PAGE) && other.vaddr < last);
        self.span = (self.span.0.min(first), self.span.1.max(last));
        let segment = Segment {
            vaddr: phdr.vaddr,
            offset: phdr.offset,
            file_len: phdr.file_len,
            mem_len: phdr.mem_len,
            read: phdr.flags & PF_R != 0,
            write: phdr.flags & PF_W != 0,
            exec: phdr.flags & PF_X != 0,
        };
        self.wx |= segment.write && segment.exec;
        self.segments.try_push(segment).map_err(|_| ElfError::NotExec)
    }

    fn finish(&self) -> Result<(), ElfError> {
        let below = self.kind == Kind::Fixed && self.span.0 < MIN_ADDRESS;
        let lost = self.interp.is_none() && self.entry >= USER_END;
        // A span that is larger than half of user space finds no place; Linux finds that out by trying.
        let huge = self.kind == Kind::Relocatable && self.span.1.saturating_sub(self.span.0) > USER_END / 2;
        if self.segments.is_empty() || below || lost || huge { Err(ElfError::Invalid) } else { Ok(()) }
    }
}

fn read_interp<R: FnMut(u64, &mut [u8]) -> bool>(
    phdr: &Phdr,
    file: &mut File<'_, R>,
) -> Result<ArrayVec<u8, MAX_INTERP>, ElfError> {
    let len = usize::try_from(phdr.file_len).unwrap_or(usize::MAX);
    if !(2..=MAX_INTERP).contains(&len) {
        return Err(ElfError::NotExec);
    }
    let mut path = ArrayVec::from([0_u8; MAX_INTERP]);
    path.truncate(len);
    if !file.read(phdr.offset, &mut path) {
        return Err(ElfError::Invalid);
    }
    if path.last() != Some(&0) || path.first() == Some(&0) {
        return Err(ElfError::NotExec);
    }
    let text = path.iter().position(|byte| *byte == 0).unwrap_or(0);
    path.truncate(text);
    Ok(path)
}
