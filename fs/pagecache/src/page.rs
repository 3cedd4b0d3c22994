//! One cached page and its flags.

use crate::cache::PageCache;
use crate::file::FileCache;
use abi::Errno;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use platform::{Page, ParkOptions};
use vfs::ErrSeq;

/// The content is the file's.
pub(crate) const UPTODATE: u32 = 1;
/// Changed since it was last handed to the file system. Changes only under the index lock.
pub(crate) const DIRTY: u32 = 2;
/// Handed to the file system for writing.
pub(crate) const WRITEBACK: u32 = 4;
/// Handed to the file system for reading.
pub(crate) const READING: u32 = 8;
/// No longer in the index.
pub(crate) const GONE: u32 = 0x10;
/// On the active list.
pub(crate) const ACTIVE: u32 = 0x20;
/// Using it starts the next readahead.
pub(crate) const MARK: u32 = 0x40;
/// Uses since it was last judged; the count stops at two but for races.
const USED: u32 = 0x100;
const USED_MASK: u32 = 0xff00;
/// Why reading failed.
const ERROR_SHIFT: u32 = 16;

/// What the pages of one file share with it: ends of I/O need no more than this.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) cache: Arc<PageCache>,
    pub(crate) file: Weak<FileCache>,
    pub(crate) errors: ErrSeq,
    /// The file system's, for syncfs.
    pub(crate) fs_errors: Option<Arc<ErrSeq>>,
    /// Dirty pages; changes under the index lock.
    pub(crate) dirty: AtomicUsize,
    /// Pages under write-back.
    pub(crate) writeback: AtomicUsize,
}

/// A page of a file in the cache.
#[derive(Debug)]
pub struct CachePage {
    page: Page,
    index: u64,
    state: AtomicU32,
    pub(crate) owner: Arc<Owner>,
}

impl CachePage {
    pub(crate) fn new(owner: &Arc<Owner>, index: u64, page: Page, state: u32) -> Arc<CachePage> {
        Arc::new(CachePage { page, index, state: AtomicU32::new(state), owner: owner.clone() })
    }

    /// The frame.
    pub fn page(&self) -> &Page {
        &self.page
    }

    /// The page's number in its file.
    pub fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn state(&self) -> u32 {
        self.state.load(Ordering::Acquire)
    }

    pub(crate) fn has(&self, flags: u32) -> bool {
        self.state() & flags != 0
    }

    /// Sets flags; returns the former state.
    pub(crate) fn set(&self, flags: u32) -> u32 {
        self.state.fetch_or(flags, Ordering::AcqRel)
    }

    /// Clears flags; returns the former state.
    pub(crate) fn clear(&self, flags: u32) -> u32 {
        self.state.fetch_and(!flags, Ordering::AcqRel)
    }

    /// Counts a use.
    pub(crate) fn touch(&self) {
        if self.state.load(Ordering::Relaxed) & USED_MASK < 2 * USED {
            self.state.fetch_add(USED, Ordering::Relaxed);
        }
    }

    /// How often it was used since this was last asked.
    pub(crate) fn take_uses(&self) -> u32 {
        (self.state.fetch_and(!USED_MASK, Ordering::Relaxed) & USED_MASK) / USED
    }

    pub(crate) fn uses(&self) -> u32 {
        (self.state.load(Ordering::Relaxed) & USED_MASK) / USED
    }

    /// Takes the readahead mark, if it has one.
    #[inline]
    pub(crate) fn take_mark(&self) -> bool {
        self.state.load(Ordering::Relaxed) & MARK != 0 && self.clear(MARK) & MARK != 0
    }

    fn queue(&self) -> &sync::WaitQueue {
        self.owner.cache.queue(self)
    }

    /// Reading ended.
    pub(crate) fn end_read(&self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.set(UPTODATE),
            Err(e) => self.set((e.raw() as u32) << ERROR_SHIFT),
        };
        self.clear(READING);
        self.queue().wake_all();
    }

    /// Waits until it is not being read; why it could not be read, if it is not up to date then.
    pub(crate) fn wait_read(&self) -> Result<(), Errno> {
        if self.has(READING) {
            let done = || (!self.has(READING)).then_some(());
            while self.queue().wait_until(ParkOptions::default(), done).is_err() {}
        }
        let state = self.state();
        if state & UPTODATE != 0 {
            return Ok(());
        }
        Err(Errno::from_raw((state >> ERROR_SHIFT) as i32).unwrap_or(Errno::EIO))
    }

    /// Writing ended.
    pub(crate) fn end_write(&self, result: Result<(), Errno>) {
        let owner = &*self.owner;
        if let Err(e) = result {
            owner.errors.set(e);
            if let Some(fs) = &owner.fs_errors {
                fs.set(e);
            }
        }
        self.clear(WRITEBACK);
        owner.writeback.fetch_sub(1, Ordering::Release);
        self.queue().wake_all();
        owner.cache.written(1);
    }

    /// Waits until it is not under write-back.
    pub(crate) fn wait_writeback(&self) {
        if self.has(WRITEBACK) {
            let done = || (!self.has(WRITEBACK)).then_some(());
            while self.queue().wait_until(ParkOptions::default(), done).is_err() {}
        }
    }
}
