//! What mappings are backed by: whatever implements the file layer's [`Mappable`], and shared anonymous memory, here.
//!
//! Calls come with the address space's map locked for reading, so an object takes only locks of higher rank and touches no
//! user memory. `ENOMEM` from `page_for` makes the fault wait for memory; any other error is `SIGBUS`.

use abi::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use platform::Page;
use sync::{LockClass, Mutex, rank};
pub use vfs::Mappable;

static CLASS: LockClass = LockClass::new("shared anonymous memory", rank::PAGE_CACHE);

/// An object as one mapping holds it. The object is told of each that is made and dropped, so that it can count mappings
/// apart from other references.
pub struct Mapped(Arc<dyn Mappable>);

impl Mapped {
    /// For a mapping of `object`.
    pub fn new(object: Arc<dyn Mappable>) -> Mapped {
        object.mapped();
        Mapped(object)
    }

    /// The object: a clone of this is no mapping.
    #[inline]
    pub fn object(&self) -> &Arc<dyn Mappable> {
        &self.0
    }
}

impl Clone for Mapped {
    fn clone(&self) -> Self {
        Mapped::new(self.0.clone())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.0.unmapped();
    }
}

impl core::ops::Deref for Mapped {
    type Target = dyn Mappable;

    #[inline]
    fn deref(&self) -> &(dyn Mappable + 'static) {
        &*self.0
    }
}

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

    fn len(&self) -> u64 {
        self.count * super::PAGE_SIZE as u64
    }

    fn name(&self) -> Vec<u8> {
        b"/dev/zero (deleted)".to_vec()
    }
}
