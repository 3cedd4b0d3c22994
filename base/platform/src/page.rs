//! Reference-counted page frames.

use crate::bytes::{SharedBytes, SharedBytesMut};
use crate::imp;

/// log2 of the page size.
pub const PAGE_SHIFT: usize = 12;
/// The size of a page: 4 KiB.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// One counted reference to a page frame. Its bytes may at any time be read and written by user mappings, so they are
/// reached only as [`SharedBytes`], never as a Rust slice.
#[derive(Debug)]
pub struct Page(usize);

impl Page {
    /// A frame of zeroes, or `None` when memory is exhausted. May reclaim memory, so it may sleep.
    #[inline]
    pub fn zeroed() -> Option<Page> {
        Self::from_alloc(imp::page_alloc(true))
    }

    /// A frame of undefined content, which the caller must fill before anyone else can see it. May sleep.
    #[inline]
    pub fn uninit() -> Option<Page> {
        Self::from_alloc(imp::page_alloc(false))
    }

    fn from_alloc(raw: usize) -> Option<Page> {
        // Lazily: a `Page` of nothing must not be made, as dropping it would count.
        (raw != 0).then(|| Page(raw))
    }

    /// How many references there are (a snapshot).
    #[inline]
    pub fn refs(&self) -> usize {
        imp::page_refs(self.0)
    }

    /// The frame's number in the kernel (physical address >> 12), without its count; an opaque number on the host.
    #[inline]
    pub fn raw(&self) -> usize {
        self.0
    }

    /// Gives the reference away as a number.
    #[inline]
    pub fn into_raw(self) -> usize {
        let raw = self.0;
        core::mem::forget(self);
        raw
    }

    /// Takes back what [`Page::into_raw`] gave.
    ///
    /// # Safety
    /// `raw` came from [`Page::into_raw`] and is taken back once.
    #[inline]
    pub unsafe fn from_raw(raw: usize) -> Page {
        Page(raw)
    }

    /// `len` bytes from `offset`, cut at the page's end.
    #[inline]
    pub fn bytes(&self, offset: usize, len: usize) -> SharedBytes<'_> {
        let offset = offset.min(PAGE_SIZE);
        let len = len.min(PAGE_SIZE - offset);
        // SAFETY: the frame is PAGE_SIZE bytes and lives as long as this reference; the range was cut to it.
        unsafe { SharedBytes::new(imp::page_data(self.0).add(offset), len) }
    }

    /// As [`Page::bytes`], writable.
    #[inline]
    pub fn bytes_mut(&self, offset: usize, len: usize) -> SharedBytesMut<'_> {
        let offset = offset.min(PAGE_SIZE);
        let len = len.min(PAGE_SIZE - offset);
        // SAFETY: as for `bytes`; frames are writable memory.
        unsafe { SharedBytesMut::new(imp::page_data(self.0).add(offset), len) }
    }

    /// Copies all of `from` into this frame.
    pub fn copy_from(&self, from: &Page) {
        self.bytes_mut(0, PAGE_SIZE).copy_from(from.bytes(0, PAGE_SIZE));
    }
}

impl Clone for Page {
    #[inline]
    fn clone(&self) -> Self {
        imp::page_ref(self.0);
        Page(self.0)
    }
}

impl Drop for Page {
    #[inline]
    fn drop(&mut self) {
        imp::page_unref(self.0);
    }
}
