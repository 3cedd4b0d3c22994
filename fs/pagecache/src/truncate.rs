//! Pages that leave the cache: truncation, holes, invalidation; and pages taken out of mappings.

use crate::PAGE;
use crate::file::FileCache;
use crate::index::Tag;
use crate::page::{CachePage, DIRTY, GONE, READING, UPTODATE, WRITEBACK};
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use core::ops::Range;
use core::sync::atomic::Ordering;
use platform::PAGE_SIZE;
use vfs::rmap::{self, Change};

const BATCH: usize = 32;

impl FileCache {
    /// Sets the size. Pages behind a smaller size are dropped, written or not; writes of them that are in progress are waited
    /// for, so that their blocks may be freed afterwards. What the last page holds behind the end is cleared in memory (not
    /// made dirty: [`FileCache::zero`] does that). The caller keeps writers out and holds no lock of rank `ADDRESS_SPACE` or
    /// above. May sleep.
    pub fn truncate(&self, size: u64) {
        if size > self.size() {
            self.zero_behind_end();
        }
        let old = self.size.swap(size, Ordering::SeqCst);
        if size >= old {
            return;
        }
        self.drop_range(size.div_ceil(PAGE)..u64::MAX);
        if !size.is_multiple_of(PAGE)
            && let Some(page) = self.find(size / PAGE).filter(|p| p.has(UPTODATE))
        {
            page.page().bytes_mut((size % PAGE) as usize, PAGE_SIZE).fill(0);
        }
    }

    /// Drops `pages`, written or not, and takes them out of all mappings: they are a hole now. As for
    /// [`FileCache::truncate`]. The next need reads them anew from the file system.
    pub fn drop_range(&self, pages: Range<u64>) {
        self.drop_pages(pages.clone());
        if self.is_mapped() {
            rmap::change(self.identity(), pages, Change::Truncated);
        }
        self.unlist_if_clean();
    }

    /// Drops everything unwritten and leaves the list of dirty files: the file is being deleted.
    pub fn discard(&self) {
        self.drop_pages(0..u64::MAX);
        self.unlist_if_clean();
    }

    /// Takes pages out of the index whatever their state, and waits for writes in progress.
    pub(crate) fn drop_pages(&self, pages: Range<u64>) {
        let host = self.host().ok();
        loop {
            let mut gone: ArrayVec<(Arc<CachePage>, bool), BATCH> = ArrayVec::new();
            let mut index = self.index().lock();
            while !gone.is_full() {
                let Some(at) = index.next(pages.clone(), Tag::Present).map(|p| p.index()) else { break };
                let Some((page, dirty)) = index.remove(at) else { break };
                if dirty {
                    page.clear(DIRTY);
                }
                page.set(GONE);
                gone.push((page, dirty));
            }
            let dirty = gone.iter().filter(|g| g.1).count();
            self.owner.dirty.fetch_sub(dirty, Ordering::SeqCst);
            drop(index);
            self.cache().count_pages(-(gone.len() as isize));
            self.cache().count_clean(dirty);
            for (page, was_dirty) in &gone {
                if let (true, Some(h)) = (*was_dirty, &host) {
                    h.cancel_dirty(page.index(), 1);
                }
                if host.is_some() {
                    page.wait_writeback();
                }
            }
            if !gone.is_full() {
                return;
            }
        }
    }

    /// Drops the clean pages of `pages` that nobody uses; returns how many remain.
    pub fn invalidate(&self, pages: Range<u64>) -> usize {
        if self.is_mapped() {
            rmap::change(self.identity(), pages.clone(), Change::Reclaim);
        }
        let mut at = pages.start;
        let mut left = 0;
        loop {
            let next = self.index().lock().next(at..pages.end, Tag::Present).cloned();
            let Some(page) = next else { return left };
            at = page.index() + 1;
            if page.has(DIRTY | WRITEBACK | READING) || !self.evict(&page) {
                left += 1;
            }
        }
    }

    /// Takes pages out of mappings, so that reclaim sees whether anybody needs them.
    pub(crate) fn unmap_for_reclaim(&self, pages: Range<u64>) {
        rmap::change(self.identity(), pages, Change::Reclaim);
    }
}
