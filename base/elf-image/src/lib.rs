//! What an AArch64 ELF64 program asks of the kernel that starts it, and what a `#!` line says.
//!
//! The input is a stranger's file. [`parse`] reads the file header and the program headers (through a callback, so that
//! nothing is read by a count that the file names before the count is bounded), checks what Linux's loader checks, and
//! returns a fixed-size [`Plan`]. It never panics and never allocates.
//!
//! Checked: magic, class, byte order, version, machine, type, header sizes; at most [`MAX_PHDRS`] program headers; at
//! least one loadable segment; sizes and addresses that neither overflow nor leave user space; file offset and address
//! congruent modulo the page size; segments in rising order that do not overlap; a NUL-terminated interpreter path. What
//! breaks a rule is `ENOEXEC` ([`ElfError::NotExec`]) or `EINVAL` ([`ElfError::Invalid`]), as on Linux.
#![no_std]
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;

pub mod script;

/// The most program headers that are looked at: one page of them.
pub const MAX_PHDRS: usize = 64;
/// The most loadable segments.
pub const MAX_SEGMENTS: usize = 32;
/// Longest interpreter path, its NUL included (Linux: PATH_MAX; Berth: what a header page can hold).
pub const MAX_INTERP: usize = 256;
const PAGE: u64 = 4096;
/// User space ends here.
pub const USER_END: u64 = 1 << 48;

/// Why a file cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not an executable of this machine: `ENOEXEC`.
    NotExec,
    /// Its headers contradict themselves: `EINVAL`.
    Invalid,
    /// Reading it failed: `EIO`.
    Io,
}

/// Fixed addresses or free ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ET_EXEC.
    Fixed,
    /// ET_DYN: a PIE, or a dynamic linker.
    Relocatable,
}

/// One PT_LOAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address (before relocation).
    pub vaddr: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes from the file.
    pub file_len: u64,
    /// Bytes in memory; what exceeds `file_len` is zero.
    pub mem_len: u64,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
}

/// What to do to start the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Fixed or free.
    pub kind: Kind,
    /// Where it starts (before relocation).
    pub entry: u64,
    /// Number of program headers.
    pub phnum: u16,
    /// Where the program headers are in memory (before relocation), if a segment holds them.
    pub phdr_vaddr: Option<u64>,
    /// Segments in rising order.
    pub segments: ArrayVec<Segment, MAX_SEGMENTS>,
    /// The interpreter's path, without its NUL.
    pub interp: Option<ArrayVec<u8, MAX_INTERP>>,
    /// PT_GNU_STACK asks for an executable stack (refused by W^X; told so that it can be logged).
    pub exec_stack: bool,
    /// The largest alignment of a segment, a power of two of at least a page.
    pub align: u64,
    /// First and last address of all segments (whole pages, before relocation).
    pub span: (u64, u64),
}

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_AARCH64: u16 = 183;
const PHDR_LEN: usize = 56;

fn u16_at(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2).map_or(0, |s| u16::from_le_bytes([s[0], s[1]]))
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).map_or(0, |s| u32::from_le_bytes([s[0], s[1], s[2], s[3]]))
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    u32_at(b, at) as u64 | (u32_at(b, at + 4) as u64) << 32
}

/// Reads a file's headers. `head` is the file's start (a page, or the whole of a shorter file); `read_at(offset, buf)`
/// fills `buf` from the file and says false where the file is too short or cannot be read.
pub fn parse(head: &[u8], mut read_at: impl FnMut(u64, &mut [u8]) -> bool) -> Result<Plan, ElfError> {
    if head.len() < 64 || head[..4] != *b"\x7fELF" || head[4] != 2 || head[5] != 1 || head[6] != 1 {
        return Err(ElfError::NotExec);
    }
    let kind = match u16_at(head, 16) {
        ET_EXEC => Kind::Fixed,
        ET_DYN => Kind::Relocatable,
        _ => return Err(ElfError::NotExec),
    };
    let phnum = u16_at(head, 56);
    if u16_at(head, 18) != EM_AARCH64
        || u32_at(head, 20) != 1
        || u16_at(head, 54) as usize != PHDR_LEN
        || phnum == 0
        || phnum as usize > MAX_PHDRS
    {
        return Err(ElfError::NotExec);
    }
    let phoff = u64_at(head, 32);
    let table_len = phnum as usize * PHDR_LEN;
    let mut table = [0u8; MAX_PHDRS * PHDR_LEN];
    let table = &mut table[..table_len];
    let end = phoff.checked_add(table_len as u64).ok_or(ElfError::NotExec)?;
    if let Some(here) = usize::try_from(phoff).ok().zip(usize::try_from(end).ok()).and_then(|(s, e)| head.get(s..e)) {
        table.copy_from_slice(here);
    } else if !read_at(phoff, table) {
        return Err(ElfError::NotExec);
    }
    let mut plan = Plan {
        kind,
        entry: u64_at(head, 24),
        phnum,
        phdr_vaddr: None,
        segments: ArrayVec::new(),
        interp: None,
        exec_stack: false,
        align: PAGE,
        span: (0, 0),
    };
    for ph in table.chunks_exact(PHDR_LEN) {
        take_header(&mut plan, ph, head, &mut read_at)?;
    }
    finish(plan, phoff, end)
}

fn take_header(
    plan: &mut Plan,
    ph: &[u8],
    head: &[u8],
    read_at: &mut impl FnMut(u64, &mut [u8]) -> bool,
) -> Result<(), ElfError> {
    let (flags, offset, vaddr) = (u32_at(ph, 4), u64_at(ph, 8), u64_at(ph, 16));
    let (file_len, mem_len, align) = (u64_at(ph, 32), u64_at(ph, 40), u64_at(ph, 48));
    match u32_at(ph, 0) {
        PT_LOAD => {
            if mem_len == 0 {
                return Ok(());
            }
            if file_len > mem_len || offset.checked_add(file_len).is_none_or(|e| e > i64::MAX as u64) {
                return Err(ElfError::Invalid);
            }
            let end = vaddr.checked_add(mem_len).filter(|&e| e <= USER_END - PAGE).ok_or(ElfError::Invalid)?;
            if file_len > 0 && offset % PAGE != vaddr % PAGE {
                return Err(ElfError::Invalid);
            }
            if align > 1 && !align.is_power_of_two() {
                return Err(ElfError::Invalid);
            }
            if let Some(last) = plan.segments.last() {
                // Two segments may not share a page: their protections would fight.
                let last_end = (last.vaddr + last.mem_len).next_multiple_of(PAGE);
                if vaddr - vaddr % PAGE < last_end {
                    return Err(ElfError::Invalid);
                }
            }
            plan.align = plan.align.max(align.min(1 << 30));
            let segment = Segment {
                vaddr,
                offset,
                file_len,
                mem_len,
                read: flags & 4 != 0,
                write: flags & 2 != 0,
                exec: flags & 1 != 0,
            };
            plan.segments.try_push(segment).map_err(|_| ElfError::NotExec)?;
            plan.span.1 = end.next_multiple_of(PAGE);
        }
        PT_INTERP if plan.interp.is_none() => {
            let len = usize::try_from(file_len).map_err(|_| ElfError::NotExec)?;
            if !(2..=MAX_INTERP).contains(&len) {
                return Err(ElfError::NotExec);
            }
            let mut path = ArrayVec::<u8, MAX_INTERP>::new();
            let mut buf = [0u8; MAX_INTERP];
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            match start.checked_add(len).and_then(|e| head.get(start..e)) {
                Some(here) => buf[..len].copy_from_slice(here),
                None if read_at(offset, &mut buf[..len]) => {}
                None => return Err(ElfError::Io),
            }
            if buf[len - 1] != 0 {
                return Err(ElfError::NotExec);
            }
            path.extend(buf[..len].iter().copied().take_while(|&c| c != 0));
            plan.interp = Some(path);
        }
        PT_PHDR => plan.phdr_vaddr = Some(vaddr),
        PT_GNU_STACK => plan.exec_stack = flags & 1 != 0,
        _ => {}
    }
    Ok(())
}

fn finish(mut plan: Plan, phoff: u64, phend: u64) -> Result<Plan, ElfError> {
    let Some(first) = plan.segments.first() else { return Err(ElfError::NotExec) };
    plan.span.0 = first.vaddr - first.vaddr % PAGE;
    // AT_PHDR: what PT_PHDR says if a segment really holds it there, else wherever a segment holds the table.
    plan.phdr_vaddr = plan
        .segments
        .iter()
        .find(|s| s.offset <= phoff && phend <= s.offset + s.file_len)
        .map(|s| s.vaddr + (phoff - s.offset));
    if plan.kind == Kind::Fixed && plan.span.0 < PAGE {
        return Err(ElfError::Invalid);
    }
    Ok(plan)
}

#[cfg(test)]
mod tests;
