//! Writing into the cache, and making pages dirty.

use crate::PAGE;
use crate::cache::DirtyFile;
use crate::file::FileCache;
use crate::page::{CachePage, DIRTY, GONE, UPTODATE};
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use platform::{PAGE_SIZE, Page, WriteSource};
use vfs::MAX_OFFSET;

/// How many pages are written between looks at the dirty limits.
const BALANCE: usize = 32;

/// What came of making a page dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marked {
    Newly,
    Already,
    /// It is the file's no longer.
    Gone,
}

/// Whether the page is dirty and the file's. A write that finds it so is ordered before the end of that by this
/// read-modify-write.
fn is_dirty(page: &CachePage) -> bool {
    page.set(0) & (DIRTY | GONE) == DIRTY
}

impl FileCache {
    /// Makes a page dirty. Its promise was given.
    pub(crate) fn mark_dirty(&self, page: &Arc<CachePage>) -> Marked {
        if is_dirty(page) {
            return Marked::Already;
        }
        let mut index = self.index().lock();
        if page.has(GONE) {
            return Marked::Gone;
        }
        if page.set(DIRTY) & DIRTY != 0 {
            return Marked::Already;
        }
        index.mark_dirty(page.index(), true);
        self.owner.dirty.fetch_add(1, Ordering::SeqCst);
        drop(index);
        self.cache().count_dirty(1);
        self.enlist();
        Marked::Newly
    }

    /// Puts the file on the list of dirty files, unless it is there.
    fn enlist(&self) {
        if self.listed.load(Ordering::SeqCst) || self.listed.swap(true, Ordering::SeqCst) {
            return;
        }
        if let (Some(file), Ok(host)) = (self.owner.file.upgrade(), self.host()) {
            self.cache().add_dirty_file(DirtyFile { file, host, since_ns: platform::monotonic_ns() });
        }
    }

    /// Promises space and makes the page dirty, for a write (`mapped`: fault). False if the page is the file's no longer.
    fn promise_and_mark(&self, page: &Arc<CachePage>, mapped: bool) -> Result<bool> {
        // Only a look: were it marked here, after a write-back that came in between, it would be dirty with no promise.
        if is_dirty(page) {
            return Ok(true);
        }
        let host = self.host()?;
        host.prepare_dirty(page.index(), mapped)?;
        let marked = self.mark_dirty(page);
        if marked != Marked::Newly {
            host.cancel_dirty(page.index(), 1);
        }
        Ok(marked != Marked::Gone)
    }

    /// A write fault: as [`Self::promise_and_mark`], telling the write-back threads.
    pub(crate) fn dirty_for_fault(&self, page: &Arc<CachePage>) -> Result<bool> {
        let done = self.promise_and_mark(page, true)?;
        if done && self.cache().over_background() {
            self.cache().wake_flusher();
        }
        Ok(done)
    }

    /// Writes at `offset` until `source` is empty; returns the offset behind what was written and how much that is. The size
    /// grows with it. An error or a fault after something was written is a short count. The caller keeps other writers and
    /// truncation out, and holds no lock that a page fault takes. May sleep, for write-back too.
    pub fn write(&self, offset: u64, source: &mut dyn WriteSource) -> Result<(u64, usize)> {
        if source.remaining() == 0 {
            return Ok((offset, 0));
        }
        if offset >= MAX_OFFSET {
            return Err(Errno::EFBIG);
        }
        if offset.saturating_add(source.remaining() as u64) > self.size() {
            self.zero_behind_end();
        }
        let mut at = offset;
        let mut result = Ok(());
        let mut pages = 0;
        while source.remaining() > 0 && at < MAX_OFFSET {
            let want = (PAGE_SIZE - (at % PAGE) as usize).min(source.remaining()).min((MAX_OFFSET - at) as usize);
            match self.write_page(at, want, source) {
                Ok(n) => {
                    at += n as u64;
                    if n < want {
                        break;
                    }
                }
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
            pages += 1;
            if pages % BALANCE == 0 {
                self.cache().balance();
            }
        }
        self.cache().balance();
        if at > offset { Ok((at, (at - offset) as usize)) } else { result.map(|()| (at, 0)) }
    }

    /// Writes up to `want` bytes into one page.
    fn write_page(&self, at: u64, want: usize, source: &mut dyn WriteSource) -> Result<usize> {
        let (index, within) = (at / PAGE, (at % PAGE) as usize);
        let size = self.size();
        // Whether nothing of the old content remains, or there is none.
        let covers = want == PAGE_SIZE || index * PAGE >= size || (within == 0 && at + want as u64 >= size);
        if covers && self.find(index).is_none() {
            return self.write_fresh(at, want, source);
        }
        let page = self.obtain(index, 1, false)?;
        page.touch();
        if page.has(DIRTY) {
            let n = source.get(page.page().bytes_mut(within, want)).map_err(|_| Errno::EFAULT)?;
            self.grow(at + n as u64);
            // It may have been written back during the copy.
            self.promise_and_mark(&page, false)?;
            return Ok(n);
        }
        // Promised before anything is copied: ENOSPC must leave the content as it was.
        let host = self.host()?;
        host.prepare_dirty(index, false)?;
        let copied = source.get(page.page().bytes_mut(within, want));
        let n = copied.unwrap_or(0);
        let marked = if n > 0 { self.grow_and_mark(&page, at + n as u64) } else { Marked::Already };
        if marked != Marked::Newly {
            host.cancel_dirty(index, 1);
        }
        copied.map_err(|_| Errno::EFAULT)
    }

    fn grow(&self, end: u64) {
        self.size.fetch_max(end, Ordering::AcqRel);
    }

    fn grow_and_mark(&self, page: &Arc<CachePage>, end: u64) -> Marked {
        self.grow(end);
        self.mark_dirty(page)
    }

    /// Writes into a page that need not be read first. Nobody sees it before it is filled.
    fn write_fresh(&self, at: u64, want: usize, source: &mut dyn WriteSource) -> Result<usize> {
        let (index, within) = (at / PAGE, (at % PAGE) as usize);
        let host = self.host()?;
        let frame = Page::uninit().ok_or(Errno::ENOMEM)?;
        host.prepare_dirty(index, false)?;
        let copied = source.get(frame.bytes_mut(within, want));
        let n = copied.unwrap_or(0);
        let old = self.size();
        if n == 0 {
            host.cancel_dirty(index, 1);
            return copied.map_err(|_| Errno::EFAULT);
        }
        let whole = n == PAGE_SIZE || index * PAGE >= old || (within == 0 && at + n as u64 >= old);
        if whole {
            frame.bytes_mut(0, within).fill(0);
            frame.bytes_mut(within + n, PAGE_SIZE).fill(0);
            self.grow(at + n as u64);
            let page = CachePage::new(&self.owner, index, frame.clone(), UPTODATE);
            if self.install(&page) {
                page.touch();
                self.cache().count_pages(1);
                self.cache().ages.add(core::slice::from_ref(&page));
                if self.mark_dirty(&page) != Marked::Newly {
                    host.cancel_dirty(index, 1);
                }
                return Ok(n);
            }
        }
        // Another brought the page in meanwhile, or the source faulted midway over old content: the bytes go there.
        let page = match self.obtain(index, 1, false) {
            Ok(p) => p,
            Err(e) => {
                host.cancel_dirty(index, 1);
                return Err(e);
            }
        };
        page.page().bytes_mut(within, n).copy_from(frame.bytes(within, n));
        if self.grow_and_mark(&page, at + n as u64) != Marked::Newly {
            host.cancel_dirty(index, 1);
        }
        Ok(n)
    }

    /// Puts a page into a vacant place; false if it is taken.
    fn install(&self, page: &Arc<CachePage>) -> bool {
        let mut index = self.index().lock();
        let vacant = index.get(page.index()).is_none();
        if vacant {
            index.insert(page.clone());
        }
        vacant
    }

    /// Zeroes `len` bytes at `offset`, within one page and within the size, and makes the page dirty: what a file system does
    /// at the edges of a hole it punches, and before it cuts a file within a block. The caller keeps writers out.
    pub fn zero(&self, offset: u64, len: usize) -> Result<()> {
        let (index, within) = (offset / PAGE, (offset % PAGE) as usize);
        loop {
            let page = self.obtain(index, 1, false)?;
            if self.promise_and_mark(&page, false)? {
                page.page().bytes_mut(within, len).fill(0);
                // Had it been written back before the zeroes came, they would stay behind.
                if self.promise_and_mark(&page, false)? {
                    return Ok(());
                }
            }
        }
    }

    /// Before the file grows: clears what a mapping may have left behind the end in the last page.
    pub(crate) fn zero_behind_end(&self) {
        let size = self.size();
        let within = (size % PAGE) as usize;
        if within != 0
            && self.is_mapped()
            && let Some(page) = self.find(size / PAGE).filter(|p| p.has(UPTODATE))
        {
            page.page().bytes_mut(within, PAGE_SIZE).fill(0);
        }
    }
}
