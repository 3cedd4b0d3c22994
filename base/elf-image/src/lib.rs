//! What an AArch64 ELF64 program asks of the kernel that starts it, and what a `#!` line says.
//!
//! The input is a stranger's file. [`parse`] takes its first bytes and a callback that reads more, checks what Linux's
//! `load_elf_binary` checks, and returns a fixed-size [`Plan`]. It never panics, never allocates, and does no more work
//! than the at most [`MAX_PHDRS`] program headers ask for; these are read a few at a time, so little stack is used.
//!
//! **What is refused, and how.** What is no program of this machine is [`ElfError::NotExec`] (`ENOEXEC`), one that
//! contradicts itself is [`ElfError::Invalid`] (`EINVAL`). Linux notices contradictions between segments after the old
//! program is gone, and kills the process; here they are noticed before, and execve(2) returns. An interpreter's path or
//! a note that lies behind the file's end is a contradiction too (Linux says `EIO`).
//!
//! **What is taken as on Linux.** Segments in any order, even ones that overlap: a later one replaces pages of an
//! earlier ([`Plan::overlap`]). Alignments that are no power of two are ignored. Of several PT_INTERP the first counts,
//! of several PT_GNU_STACK the last. PT_TLS, PT_DYNAMIC, PT_PHDR and others are the program's own affair. Versions, flags
//! and section headers are not looked at.
//!
//! **Stricter than Linux.** Class and byte order must be right (Linux on arm64 goes by the machine number alone). Nothing
//! may be mapped below [`MIN_ADDRESS`] or on user space's last page. At most [`MAX_SEGMENTS`] segments, and interpreter paths below [`MAX_INTERP`]:
//! real programs have about five and thirty bytes, and the plan stays small. Whether the file is as long as its segments
//! say is not checked, for it may change at any time: touching a page behind its end is a SIGBUS, then as later.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "corpus"))]
extern crate alloc;

#[cfg(any(test, feature = "corpus"))]
pub mod corpus;
mod file;
mod property;
pub mod script;
#[cfg(test)]
mod tests;

pub use file::{parse, parse_into};

use arrayvec::ArrayVec;

/// The most program headers: what fits in 64 KiB, as on Linux.
pub const MAX_PHDRS: usize = 65536 / 56;
/// The most loadable segments.
pub const MAX_SEGMENTS: usize = 32;
/// Longest interpreter path, its NUL included.
pub const MAX_INTERP: usize = 256;
/// User space ends here.
pub const USER_END: u64 = 1 << 48;
/// User space starts here (`vm.mmap_min_addr`).
pub const MIN_ADDRESS: u64 = 0x1_0000;
const PAGE: u64 = 4096;

/// Why a file cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not an executable of this machine: `ENOEXEC`.
    NotExec,
    /// Its headers contradict themselves: `EINVAL`.
    Invalid,
}

/// Fixed addresses or free ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ET_EXEC.
    Fixed,
    /// ET_DYN: a PIE, or a dynamic linker.
    Relocatable,
}

/// One PT_LOAD with something in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address (before relocation).
    pub vaddr: u64,
    /// Offset in the file, congruent to `vaddr` modulo the page size if `file_len` is not 0.
    pub offset: u64,
    /// Bytes from the file; at most `mem_len`.
    pub file_len: u64,
    /// Bytes in memory, not 0; what exceeds `file_len` is zero.
    pub mem_len: u64,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
}

impl Segment {
    /// The first byte behind it. Never overflows for a segment out of [`parse`].
    pub const fn end(&self) -> u64 {
        self.vaddr.saturating_add(self.mem_len)
    }
}

/// What to do to start the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Fixed or free.
    pub kind: Kind,
    /// Where it starts (before relocation); inside user space unless there is an interpreter.
    pub entry: u64,
    /// Number of program headers.
    pub phnum: u16,
    /// Where the program headers are in memory (before relocation), if a segment holds their start.
    pub phdr_vaddr: Option<u64>,
    /// Segments in the file's order; at least one.
    pub segments: ArrayVec<Segment, MAX_SEGMENTS>,
    /// The interpreter's path, without its NUL; not empty.
    pub interp: Option<ArrayVec<u8, MAX_INTERP>>,
    /// PT_GNU_STACK asks for an executable stack.
    pub exec_stack: bool,
    /// A segment is writable and executable.
    pub wx: bool,
    /// A note says that all indirect branches land on `bti` instructions, so its pages may be guarded.
    pub bti: bool,
    /// Two segments share a page: map them in order, later ones in place of earlier.
    pub overlap: bool,
    /// The largest alignment of a segment, a power of two of at least a page and at most 1 GiB.
    pub align: u64,
    /// First and last address of all segments (whole pages, before relocation).
    pub span: (u64, u64),
}
