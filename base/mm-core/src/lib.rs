//! Memory management that needs no machine, so that it can be tested on the host.
//!
//! | module | what |
//! | --- | --- |
//! | [`frame`] | the memory map (one [`frame::PageInfo`] a frame) and the buddy allocator over it |
//! | [`slab`] | size classes, and slabs of equal objects in single frames |
//! | [`vma`] | ordered maps of address ranges: find, insert with merge, split, remove, gaps |
//! | [`pte`] | AArch64 stage 1 descriptors as types |
//! | [`table`] | four-level page tables over any [`table::PhysMem`] |
//!
//! Nothing here locks: the kernel's `mm` says which lock guards which value. Page-table entries are the exception, they
//! are atomic words that several CPUs may change at once.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod frame;
pub mod pte;
pub mod slab;
pub mod table;
pub mod vma;

/// log2 of the page size.
pub const PAGE_SHIFT: usize = 12;
/// Bytes in a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// `x` rounded up to whole pages, or `None` if that overflows.
#[inline]
pub const fn page_up(x: usize) -> Option<usize> {
    match x.checked_add(PAGE_SIZE - 1) {
        Some(x) => Some(x & !(PAGE_SIZE - 1)),
        None => None,
    }
}

/// `x` rounded down to a page boundary.
#[inline]
pub const fn page_down(x: usize) -> usize {
    x & !(PAGE_SIZE - 1)
}
