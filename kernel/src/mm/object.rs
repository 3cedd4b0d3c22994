//! What mappings are backed by.

use abi::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use platform::Page;
use sync::{LockClass, Mutex, rank};

/// Something whose pages can be mapped: a file's contents, shared anonymous memory. All calls may sleep; they come with
/// the address space's map locked for reading, so they take only locks of higher rank and touch no user memory.
pub trait Mappable: Send + Sync {
    /// The page with this index, read in if need be. `write` says that it is about to be written through a shared mapping:
    /// the object makes room for it and marks it dirty. Errors: whatever reading gives; past the end `ENXIO` (the
    /// program sees `SIGBUS`).
    fn page_for(&self, index: u64, write: bool) -> Result<Page>;

    /// Hands out those of the pages `first..first + count` that are in memory already, without sleeping for any.
    fn for_cached(&self, first: u64, count: u64, each: &mut dyn FnMut(u64, Page)) {
        let _ = (first, count, each);
    }

    /// Whether the object must learn which pages are written (by write-protecting them first).
    fn tracks_dirty(&self) -> bool {
        true
    }

    /// Writes the pages `first..first + count` back (`msync`).
    fn sync(&self, first: u64, count: u64) -> Result<()> {
        let _ = (first, count);
        Ok(())
    }

    /// (device number, inode number), for `/proc/PID/maps`.
    fn identity(&self) -> (u64, u64) {
        (0, 0)
    }

    /// The path, for `/proc/PID/maps`.
    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

static CLASS: LockClass = LockClass::new("shared anonymous memory", rank::PAGE_CACHE);

/// Shared anonymous memory: pages made when first touched, alive while anyone maps them.
pub struct SharedAnon {
    pages: Mutex<BTreeMap<u64, Page>>,
    count: u64,
}

impl SharedAnon {
    /// `count` pages.
    pub fn new(count: u64) -> Self {
        SharedAnon { pages: Mutex::new(&CLASS, BTreeMap::new()), count }
    }
}

impl fmt::Debug for SharedAnon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedAnon({} pages)", self.count)
    }
}

impl Mappable for SharedAnon {
    fn page_for(&self, index: u64, _write: bool) -> Result<Page> {
        if index >= self.count {
            return Err(Errno::ENXIO);
        }
        let mut pages = self.pages.lock();
        if let Some(p) = pages.get(&index) {
            return Ok(p.clone());
        }
        let page = Page::zeroed().ok_or(Errno::ENOMEM)?;
        pages.insert(index, page.clone());
        Ok(page)
    }

    fn for_cached(&self, first: u64, count: u64, each: &mut dyn FnMut(u64, Page)) {
        for (&i, p) in self.pages.lock().range(first..first + count) {
            each(i, p.clone());
        }
    }

    fn tracks_dirty(&self) -> bool {
        false
    }

    fn name(&self) -> Vec<u8> {
        b"/dev/zero (deleted)".to_vec()
    }
}
