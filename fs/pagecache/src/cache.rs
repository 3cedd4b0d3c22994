//! The machine's cache: counts, limits, the list of dirty files.

use crate::file::FileCache;
use crate::lru::Ages;
use crate::{Backing, PAGE};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, AtomicUsize, Ordering};
use sync::{LockClass, Once, SpinLock, WaitQueue, rank};

static DIRTY_CLASS: LockClass = LockClass::new("dirty files", rank::SPIN + 46);

const QUEUES: usize = 64;
/// Even with hardly any memory so many pages may be dirty, and under write-back.
const LEAST_DIRTY: usize = 64;

/// When dirty pages are written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// With more dirty pages than this, write-back threads write until there are fewer.
    pub background: usize,
    /// With more dirty pages and pages under write-back than this, writers wait.
    pub hard: usize,
    /// A file dirty for so long is written, in nanoseconds.
    pub expire_ns: u64,
}

impl Limits {
    /// Linux' defaults (`vm.dirty_background_ratio` 10, `vm.dirty_ratio` 20, 30 s) for `pages` of memory.
    pub fn for_memory(pages: usize) -> Limits {
        Limits { background: (pages / 10).max(32), hard: (pages / 5).max(64), expire_ns: 30_000_000_000 }
    }
}

/// What the cache asks of the machine, in pages.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Free pages. Called often, with no lock held.
    pub free: fn() -> usize,
    /// With fewer free pages than this, nothing is read ahead.
    pub tight: usize,
}

/// What the cache holds and did, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// In the cache.
    pub cached: usize,
    /// Of these, changed and not yet handed to the file system.
    pub dirty: usize,
    /// Under write-back.
    pub writeback: usize,
    /// On the inactive and active lists.
    pub inactive: usize,
    /// See `inactive`.
    pub active: usize,
    /// Read in since boot.
    pub read: u64,
    /// Written since boot.
    pub written: u64,
    /// Reclaimed since boot.
    pub reclaimed: u64,
}

/// A file with dirty pages. The references keep it alive until it is written.
#[derive(Clone)]
pub(crate) struct DirtyFile {
    pub(crate) file: Arc<FileCache>,
    pub(crate) host: Arc<dyn Backing>,
    /// When it became dirty.
    pub(crate) since_ns: u64,
}

/// The files with dirty pages, in the order in which their turn comes.
#[derive(Default)]
pub(crate) struct DirtyFiles {
    pub(crate) map: BTreeMap<u64, DirtyFile>,
    last_key: u64,
}

impl DirtyFiles {
    /// A key behind all others.
    pub(crate) fn next_key(&mut self) -> u64 {
        self.last_key += 1;
        self.last_key
    }
}

/// The page cache. One for the machine; tests make their own.
pub struct PageCache {
    pub(crate) ages: Ages,
    queues: [WaitQueue; QUEUES],
    cached: AtomicIsize,
    dirty: AtomicUsize,
    writeback: AtomicUsize,
    read: AtomicU64,
    written: AtomicU64,
    reclaimed: AtomicU64,
    background: AtomicUsize,
    hard: AtomicUsize,
    memory: Once<Memory>,
    pub(crate) expire_ns: AtomicU64,
    pub(crate) files: SpinLock<DirtyFiles>,
    /// Write-back threads sleep here.
    pub(crate) work: WaitQueue,
    pub(crate) kicked: AtomicBool,
    /// How many write-back threads there are.
    pub(crate) flushers: AtomicUsize,
    /// Writers over the limit, and reclaim, wait here for writes to end.
    progress: WaitQueue,
}

impl core::fmt::Debug for PageCache {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.stats().fmt(f)
    }
}

impl PageCache {
    /// An empty cache.
    pub fn new(limits: Limits) -> Arc<PageCache> {
        let cache = PageCache {
            ages: Ages::new(),
            queues: [const { WaitQueue::new() }; QUEUES],
            cached: AtomicIsize::new(0),
            dirty: AtomicUsize::new(0),
            writeback: AtomicUsize::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
            background: AtomicUsize::new(0),
            hard: AtomicUsize::new(0),
            memory: Once::new(),
            expire_ns: AtomicU64::new(0),
            files: SpinLock::new(&DIRTY_CLASS, DirtyFiles::default()),
            work: WaitQueue::new(),
            kicked: AtomicBool::new(false),
            flushers: AtomicUsize::new(0),
            progress: WaitQueue::new(),
        };
        cache.set_limits(limits);
        Arc::new(cache)
    }

    /// Changes the limits.
    pub fn set_limits(&self, limits: Limits) {
        self.background.store(limits.background, Ordering::Relaxed);
        self.hard.store(limits.hard.max(limits.background), Ordering::Relaxed);
        self.expire_ns.store(limits.expire_ns, Ordering::Relaxed);
    }

    /// Tells where to look for free memory; once. The limits then shrink with the memory that is not somebody's own.
    pub fn set_memory(&self, memory: Memory) {
        let _ = self.memory.set(memory);
    }

    /// Whether memory is so short that only what is needed now should be brought in.
    pub(crate) fn is_tight(&self) -> bool {
        self.memory.get().is_some_and(|m| (m.free)() < m.tight)
    }

    /// `limit`, or that part of the pages which may become dirty at all: those cached and those free (as Linux has it). A
    /// limit that programs' own memory counted for would let the cache that they leave be dirty all through, with nothing to
    /// reclaim.
    fn scaled(&self, limit: usize, divisor: usize) -> usize {
        let Some(m) = self.memory.get() else { return limit };
        let dirtyable = (m.free)() + self.cached.load(Ordering::Relaxed).max(0) as usize;
        limit.min((dirtyable / divisor).max(LEAST_DIRTY))
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        Limits {
            background: self.background.load(Ordering::Relaxed),
            hard: self.hard.load(Ordering::Relaxed),
            expire_ns: self.expire_ns.load(Ordering::Relaxed),
        }
    }

    /// Counts, each a snapshot.
    pub fn stats(&self) -> Stats {
        let cached = self.cached.load(Ordering::Relaxed).max(0) as usize;
        let (mut inactive, mut active) = self.ages.len();
        let listed = inactive + active;
        if listed > cached {
            // Entries of pages that are gone, in the same proportion on both lists.
            active = active * cached / listed;
            inactive = cached - active;
        }
        Stats {
            cached,
            dirty: self.dirty_pages(),
            writeback: self.writeback.load(Ordering::Relaxed),
            inactive,
            active,
            read: self.read.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
            reclaimed: self.reclaimed.load(Ordering::Relaxed),
        }
    }

    /// Where those wait who wait for something to happen to the object at this address.
    pub(crate) fn queue<T>(&self, of: *const T) -> &WaitQueue {
        &self.queues[(of as usize >> 6) % QUEUES]
    }

    pub(crate) fn dirty_pages(&self) -> usize {
        self.dirty.load(Ordering::Relaxed)
    }

    pub(crate) fn over_background(&self) -> bool {
        let dirty = self.dirty_pages();
        dirty > LEAST_DIRTY / 2 && dirty > self.scaled(self.background.load(Ordering::Relaxed), 10)
    }

    fn over_hard(&self) -> bool {
        let unwritten = self.dirty_pages() + self.writeback.load(Ordering::Relaxed);
        unwritten > LEAST_DIRTY && unwritten > self.scaled(self.hard.load(Ordering::Relaxed), 5)
    }

    pub(crate) fn count_pages(&self, change: isize) {
        let now = self.cached.fetch_add(change, Ordering::Relaxed) + change;
        if change > 0 && now & 0xfff < change {
            let (inactive, active) = self.ages.len();
            if (inactive + active) as isize > 2 * now + 4096 {
                self.ages.sweep();
            }
        }
    }

    pub(crate) fn count_read(&self, pages: usize) {
        self.read.fetch_add(pages as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_reclaimed(&self, pages: usize) {
        self.reclaimed.fetch_add(pages as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_dirty(&self, more: usize) {
        self.dirty.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn count_clean(&self, fewer: usize) {
        if fewer > 0 {
            self.dirty.fetch_sub(fewer, Ordering::Relaxed);
            self.progress.wake_all();
        }
    }

    /// `count` pages go from dirty to under write-back.
    pub(crate) fn claimed(&self, count: usize) {
        self.writeback.fetch_add(count, Ordering::Relaxed);
        self.dirty.fetch_sub(count, Ordering::Relaxed);
    }

    /// Writes ended. Context: any.
    pub(crate) fn written(&self, count: usize) {
        self.written.fetch_add(count as u64, Ordering::Relaxed);
        self.writeback.fetch_sub(count, Ordering::Relaxed);
        self.progress.wake_all();
    }

    /// A writer made pages dirty: wakes the write-back threads, and makes the writer wait while far too much is dirty. Without
    /// write-back threads the writer writes itself.
    pub(crate) fn balance(&self) {
        if !self.over_background() {
            return;
        }
        self.wake_flusher();
        while self.over_hard() {
            if self.flushers.load(Ordering::Relaxed) == 0 {
                self.write_some();
                return;
            }
            self.wait_progress(100_000_000);
        }
    }

    /// As the end of a write: for who made pages dirty through a mapping. Context: thread that holds no locks.
    pub fn throttle(&self) {
        self.balance();
    }

    /// Pages written since boot.
    pub fn pages_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until a write ends (true), at most for `ns`. True at once if nothing is dirty or being written any more.
    pub fn wait_progress(&self, ns: u64) -> bool {
        let before = self.written.load(Ordering::Relaxed);
        let options = platform::ParkOptions {
            interruptible: false,
            deadline_ns: Some(platform::monotonic_ns().saturating_add(ns)),
        };
        let moved = || {
            let idle = self.dirty_pages() == 0 && self.writeback.load(Ordering::Relaxed) == 0;
            (idle || self.written.load(Ordering::Relaxed) != before).then_some(())
        };
        self.progress.wait_until(options, moved).is_ok()
    }

    /// Bytes that are dirty or under write-back.
    pub fn unwritten_bytes(&self) -> u64 {
        (self.dirty_pages() + self.writeback.load(Ordering::Relaxed)) as u64 * PAGE
    }
}
