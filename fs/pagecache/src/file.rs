//! One file's part of the cache: finding pages, reading, faults.

use crate::cache::PageCache;
use crate::index::{Index, Tag};
use crate::page::{CachePage, MARK, Owner, READING, UPTODATE};
use crate::readahead::{Mode, Plan, Streams};
use crate::run::{MAX_RUN, ReadRun};
use crate::{Backing, PAGE};
use abi::{Errno, Result};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use platform::{PAGE_SIZE, Page, ReadSink};
use sync::{LockClass, SpinLock, rank};
use vfs::{Advice, ErrSeq};

static INDEX: LockClass = LockClass::new("page cache index", rank::SPIN + 45);
static STREAMS: LockClass = LockClass::new("readahead streams", rank::SPIN + 48);

/// How many pages a reader looks up at a time.
const GANG: usize = 16;

/// What a file's cache is made with.
#[derive(Debug, Default)]
pub struct Settings {
    /// Device and inode number, as [`vfs::Mappable::identity`] gives them.
    pub identity: (u64, u64),
    /// The file's size in bytes.
    pub size: u64,
    /// Where write errors of the whole file system are recorded as well, for `syncfs`.
    pub fs_errors: Option<Arc<ErrSeq>>,
}

/// A file's pages.
pub struct FileCache {
    pub(crate) owner: Arc<Owner>,
    host: Weak<dyn Backing>,
    identity: (u64, u64),
    pub(crate) size: AtomicU64,
    index: SpinLock<Index>,
    streams: SpinLock<Streams>,
    /// The page that was read last, so that small reads of one page count as one use.
    last_read: AtomicU64,
    /// Pages were handed out for mapping, and for writable shared mapping.
    mapped: AtomicBool,
    pub(crate) mapped_writable: AtomicBool,
    /// Stands in the list of dirty files (or is about to), and its key there.
    pub(crate) listed: AtomicBool,
    pub(crate) list_key: AtomicU64,
}

impl core::fmt::Debug for FileCache {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FileCache({:?}, {} bytes)", self.identity, self.size())
    }
}

impl FileCache {
    /// An empty cache for the file of `host`, which the file system builds with `Arc::new_cyclic`.
    pub fn new(cache: &Arc<PageCache>, host: Weak<dyn Backing>, settings: Settings) -> Arc<FileCache> {
        Arc::new_cyclic(|file| FileCache {
            owner: Arc::new(Owner {
                cache: cache.clone(),
                file: file.clone(),
                errors: ErrSeq::new(),
                fs_errors: settings.fs_errors,
                dirty: 0.into(),
                writeback: 0.into(),
            }),
            host,
            identity: settings.identity,
            size: AtomicU64::new(settings.size),
            index: SpinLock::new(&INDEX, Index::default()),
            streams: SpinLock::new(&STREAMS, Streams::default()),
            last_read: AtomicU64::new(u64::MAX),
            mapped: AtomicBool::new(false),
            mapped_writable: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            list_key: AtomicU64::new(0),
        })
    }

    /// The file's size in bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Device and inode number.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// The file's write errors, for [`vfs::Inode::write_errors`].
    pub fn errors(&self) -> &ErrSeq {
        &self.owner.errors
    }

    /// How many pages are cached, and how many of these are dirty.
    pub fn pages(&self) -> (usize, usize) {
        let index = self.index.lock();
        (index.len(), index.dirty())
    }

    pub(crate) fn index(&self) -> &SpinLock<Index> {
        &self.index
    }

    pub(crate) fn cache(&self) -> &PageCache {
        &self.owner.cache
    }

    pub(crate) fn host(&self) -> Result<Arc<dyn Backing>> {
        self.host.upgrade().ok_or(Errno::EIO)
    }

    /// The page `index`, if it is in the cache (up to date or not).
    pub(crate) fn find(&self, index: u64) -> Option<Arc<CachePage>> {
        self.index.lock().get(index).cloned()
    }

    /// Up to [`GANG`] consecutive pages from `index` on that are up to date; fewer at the end of a leaf of the index.
    fn gang(&self, index: u64, count: usize) -> ArrayVec<Arc<CachePage>, GANG> {
        let map = self.index.lock();
        map.stretch(index, count.min(GANG)).take_while(|p| p.has(UPTODATE)).cloned().collect()
    }

    /// Reads from `offset` until `sink` is full or the file ends; for [`vfs::Inode::read_at`]. A fault or an error after
    /// something was read is a short count. May sleep; no lock that a page fault takes may be held.
    pub fn read(&self, offset: u64, sink: &mut dyn ReadSink) -> Result<usize> {
        let mut at = offset;
        let mut done = 0;
        loop {
            let left = self.size().saturating_sub(at).min(sink.remaining() as u64);
            if left == 0 {
                return Ok(done);
            }
            match self.read_step(at, left, sink) {
                Ok(0) => {}
                Ok(n) => {
                    at += n.unsigned_abs() as u64;
                    done += n.unsigned_abs();
                    if n < 0 {
                        return Ok(done);
                    }
                }
                Err(_) if done > 0 => return Ok(done),
                Err(e) => return Err(e),
            }
        }
    }

    /// One step of a read: how much was copied, negated where the sink took less than it was offered; 0 if it must be tried
    /// again.
    fn read_step(&self, at: u64, left: u64, sink: &mut dyn ReadSink) -> Result<isize> {
        let (index, within) = (at / PAGE, at % PAGE);
        let wanted = (within + left).div_ceil(PAGE);
        let pages = self.gang(index, wanted as usize);
        if pages.is_empty() {
            let page = self.obtain(index, wanted, false)?;
            self.count_use(&page);
            return self.copy_out(&page, at, left, sink);
        }
        let mut done = 0;
        for page in &pages {
            if page.take_mark() {
                self.read_ahead(page.index());
            }
            self.count_use(page);
            let n = self.copy_out(page, at + done as u64, left - done as u64, sink);
            match n {
                Ok(n) if n > 0 => done += n,
                Ok(n) => return Ok(n - done),
                Err(e) => return if done > 0 { Ok(-done) } else { Err(e) },
            }
        }
        Ok(done)
    }

    fn copy_out(&self, page: &CachePage, at: u64, left: u64, sink: &mut dyn ReadSink) -> Result<isize> {
        // Truncated meanwhile?
        let left = left.min(self.size().saturating_sub(at));
        let within = (at % PAGE) as usize;
        let want = left.min((PAGE_SIZE - within) as u64) as usize;
        let n = sink.put(page.page().bytes(within, want)).map_err(|_| Errno::EFAULT)?;
        Ok(if n < want || n == 0 { -(n as isize) } else { n as isize })
    }

    fn count_use(&self, page: &CachePage) {
        if self.last_read.swap(page.index(), Ordering::Relaxed) != page.index() {
            page.touch();
        }
    }

    /// The page `index`, up to date: from the cache, or read in with what should be read ahead. `wanted`: how many pages the
    /// caller will need from there.
    pub(crate) fn obtain(&self, index: u64, wanted: u64, mapped: bool) -> Result<Arc<CachePage>> {
        loop {
            if let Some(page) = self.find(index) {
                match page.wait_read() {
                    Ok(()) => {
                        if page.take_mark() {
                            self.read_ahead(index);
                        }
                        return Ok(page);
                    }
                    Err(e) => {
                        self.forget_failed(&page);
                        return Err(e);
                    }
                }
            }
            if index >= self.size().div_ceil(PAGE) {
                return Err(Errno::ENXIO);
            }
            let plan = self.streams.lock().miss(index, wanted, mapped);
            self.fill(plan, Some(index))?;
        }
    }

    fn read_ahead(&self, index: u64) {
        let plan = self.streams.lock().ahead(index);
        if let Some(p) = plan {
            // What cannot be read ahead will be read when it is needed.
            let _ = self.fill(p, None);
        }
    }

    /// Starts reading those pages of `plan` that are not in the cache. Fails only if `must` is among them and cannot be
    /// allocated.
    fn fill(&self, plan: Plan, must: Option<u64>) -> Result<()> {
        let size = self.size();
        let end = (plan.start.saturating_add(plan.count)).min(size.div_ceil(PAGE));
        let host = self.host()?;
        let mut at = plan.start;
        while at < end {
            let hole = {
                let index = self.index.lock();
                let mut from = at;
                while from < end && index.get(from).is_some() {
                    from += 1;
                }
                from..index.next_hole_end(from, end)
            };
            if hole.is_empty() {
                return Ok(());
            }
            at = hole.end;
            for first in hole.clone().step_by(MAX_RUN) {
                let part = first..(first + MAX_RUN as u64).min(hole.end);
                let pages = self.insert_reading(part.clone(), plan.mark)?;
                let short = pages.len() as u64 != part.end - part.start;
                if short && must.is_some_and(|m| part.contains(&m)) && !pages.iter().any(|p| Some(p.index()) == must) {
                    self.submit(&*host, pages, size);
                    // Another may have brought it in.
                    return if must.is_some_and(|m| self.find(m).is_some()) { Ok(()) } else { Err(Errno::ENOMEM) };
                }
                self.submit(&*host, pages, size);
                if short && must.is_none() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Puts pages to be read into those of the places `range` that are vacant, as far as memory goes.
    fn insert_reading(&self, range: Range<u64>, mark: Option<u64>) -> Result<Vec<Arc<CachePage>>> {
        let mut fresh: Vec<Arc<CachePage>> = Vec::new();
        fresh.try_reserve((range.end - range.start) as usize).map_err(|_| Errno::ENOMEM)?;
        for i in range {
            if !fresh.is_empty() && self.cache().is_tight() {
                break;
            }
            let Some(frame) = Page::uninit() else { break };
            let flags = if mark == Some(i) { READING | MARK } else { READING };
            fresh.push(CachePage::new(&self.owner, i, frame, flags));
        }
        let mut index = self.index.lock();
        let end = self.size().div_ceil(PAGE);
        fresh.retain(|p| {
            let vacant = p.index() < end && index.get(p.index()).is_none();
            if vacant {
                index.insert(p.clone());
            }
            vacant
        });
        drop(index);
        self.cache().count_pages(fresh.len() as isize);
        self.cache().ages.add(&fresh);
        Ok(fresh)
    }

    /// Has `pages` read, a run for each stretch without gap.
    fn submit(&self, host: &dyn Backing, pages: Vec<Arc<CachePage>>, size: u64) {
        self.cache().count_read(pages.len());
        let mut run: Vec<Arc<CachePage>> = Vec::with_capacity(pages.len());
        for p in pages {
            if run.last().is_some_and(|l| l.index() + 1 != p.index()) {
                host.read_pages(ReadRun::new(core::mem::take(&mut run), size));
            }
            run.push(p);
        }
        if !run.is_empty() {
            host.read_pages(ReadRun::new(run, size));
        }
    }

    /// Takes a page that could not be read out of the index, so that the next need tries again.
    fn forget_failed(&self, page: &Arc<CachePage>) {
        let mut index = self.index.lock();
        let ours = index.get(page.index()).is_some_and(|p| Arc::ptr_eq(p, page));
        if ours && !page.has(UPTODATE | READING) {
            let gone = index.remove(page.index());
            page.set(crate::page::GONE);
            drop(index);
            self.cache().count_pages(-1);
            drop(gone);
        }
    }

    /// For [`vfs::Mappable::page_for`]: the page for a mapping; with `write` it is made dirty. Errors: `ENXIO` beyond the end,
    /// what the file system says, `ENOMEM`.
    pub fn fault(&self, index: u64, write: bool) -> Result<Page> {
        self.mapped.store(true, Ordering::Relaxed);
        if write {
            self.mapped_writable.store(true, Ordering::Relaxed);
        }
        core::sync::atomic::fence(Ordering::SeqCst);
        loop {
            let page = self.obtain(index, 1, true)?;
            page.touch();
            if index >= self.size().div_ceil(PAGE) {
                return Err(Errno::ENXIO);
            }
            if !write || self.dirty_for_fault(&page)? {
                return Ok(page.page().clone());
            }
        }
    }

    /// For [`vfs::Mappable::for_cached`].
    pub fn for_cached(&self, first: u64, count: u64, each: &mut dyn FnMut(u64, Page)) {
        self.mapped.store(true, Ordering::Relaxed);
        core::sync::atomic::fence(Ordering::SeqCst);
        let end = first.saturating_add(count).min(self.size().div_ceil(PAGE));
        let mut at = first;
        while at < end {
            let mut found: ArrayVec<(u64, Page), GANG> = ArrayVec::new();
            let mut index = self.index.lock();
            while !found.is_full() {
                let Some(p) = index.next(at..end, Tag::Present) else {
                    at = end;
                    break;
                };
                at = p.index() + 1;
                if p.has(UPTODATE) {
                    found.push((p.index(), p.page().clone()));
                }
            }
            drop(index);
            for (i, p) in found {
                each(i, p);
            }
        }
    }

    /// For [`vfs::Inode::sync_range`].
    pub fn sync_steps(&self, range: Range<u64>, steps: (bool, bool, bool)) -> Result<()> {
        if steps.0 {
            self.wait_writeback(range.clone());
        }
        if steps.1 {
            self.start_writeback(range.clone());
        }
        if steps.2 {
            self.wait_writeback(range);
        }
        Ok(())
    }

    /// Whether pages may be mapped anywhere.
    pub(crate) fn is_mapped(&self) -> bool {
        self.mapped.load(Ordering::SeqCst)
    }

    /// `posix_fadvise(2)` and `readahead(2)` for `range` (bytes). Starts reads, does not wait for them.
    pub fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
        match advice {
            Advice::Normal => self.streams.lock().mode = Mode::Normal,
            Advice::Sequential => self.streams.lock().mode = Mode::Sequential,
            Advice::Random => self.streams.lock().mode = Mode::Random,
            Advice::WillNeed => {
                let (start, end) = (range.start / PAGE, range.end.min(self.size()).div_ceil(PAGE));
                let count = end.saturating_sub(start).min(2048);
                self.fill(Plan { start, count, mark: None }, None)?;
            }
            Advice::DontNeed => {
                self.start_writeback(range.clone());
                self.invalidate(range.start.div_ceil(PAGE)..range.end / PAGE);
            }
        }
        Ok(())
    }
}

impl Drop for FileCache {
    fn drop(&mut self) {
        self.drop_pages(0..u64::MAX);
    }
}
