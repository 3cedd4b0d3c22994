//! How pages age: two lists, in shards, of weak references.
//!
//! A page that leaves its file is not searched for here: its entry turns into nothing and is dropped when it comes up, or in
//! a sweep when such entries outnumber the pages. Entries lie in chunks, so that long lists move no memory when they grow.

use crate::cache::PageCache;
use crate::file::FileCache;
use crate::page::{ACTIVE, CachePage, DIRTY, GONE, READING, UPTODATE, WRITEBACK};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use sync::{LockClass, SpinLock, rank};

static CLASS: LockClass = LockClass::new("page ageing", rank::SPIN + 47);

const SHARDS: usize = 8;
const CHUNK: usize = 62;
/// How many pages one step of reclaim takes from a list.
pub(crate) const BATCH: usize = 32;

type Entry = Weak<CachePage>;
type Batch = ArrayVec<Entry, BATCH>;

#[derive(Debug, Default)]
struct List {
    chunks: VecDeque<Box<ArrayVec<Entry, CHUNK>>>,
    /// What is taken next, newest first, so that taking is popping.
    front: Vec<Entry>,
    len: usize,
}

impl List {
    fn push(&mut self, entry: Entry) {
        if self.chunks.back().is_none_or(|c| c.is_full()) {
            self.chunks.push_back(Box::default());
        }
        if let Some(c) = self.chunks.back_mut() {
            c.push(entry);
            self.len += 1;
        }
    }

    fn pop(&mut self) -> Option<Entry> {
        if self.front.is_empty() {
            let chunk = self.chunks.pop_front()?;
            self.front.extend(chunk.into_iter().rev());
        }
        let e = self.front.pop()?;
        self.len -= 1;
        Some(e)
    }

    fn take(&mut self, count: usize) -> Batch {
        let mut batch = Batch::new();
        while batch.len() < count.min(BATCH) {
            let Some(e) = self.pop() else { break };
            batch.push(e);
        }
        batch
    }
}

#[derive(Debug, Default)]
struct Shard {
    inactive: List,
    active: List,
}

/// The ageing lists.
#[derive(Debug)]
pub(crate) struct Ages {
    shards: [SpinLock<Shard>; SHARDS],
}

impl Ages {
    pub(crate) fn new() -> Self {
        Ages { shards: core::array::from_fn(|_| SpinLock::new(&CLASS, Shard::default())) }
    }

    fn here(&self) -> &SpinLock<Shard> {
        &self.shards[platform::cpu_id() % SHARDS]
    }

    /// New pages, used not at all so far.
    pub(crate) fn add(&self, pages: &[Arc<CachePage>]) {
        let mut shard = self.here().lock();
        for p in pages {
            shard.inactive.push(Arc::downgrade(p));
        }
    }

    /// Entries on the lists: (inactive, active), dead ones included.
    pub(crate) fn len(&self) -> (usize, usize) {
        self.shards.iter().fold((0, 0), |(i, a), s| {
            let s = s.lock();
            (i + s.inactive.len, a + s.active.len)
        })
    }

    /// Drops dead entries.
    pub(crate) fn sweep(&self) {
        for shard in &self.shards {
            for active in [false, true] {
                let mut left = {
                    let s = shard.lock();
                    if active { s.active.len } else { s.inactive.len }
                };
                while left > 0 {
                    let mut s = shard.lock();
                    let list = if active { &mut s.active } else { &mut s.inactive };
                    let batch = list.take(left);
                    left = if batch.is_empty() { 0 } else { left - batch.len() };
                    let (alive, dead): (Batch, Batch) = batch.into_iter().partition(|e| e.strong_count() > 0);
                    alive.into_iter().for_each(|e| list.push(e));
                    drop(s);
                    drop(dead);
                }
            }
        }
    }
}

/// How to reclaim.
#[derive(Clone, Copy, Debug)]
pub struct Shrink {
    /// How many pages to free.
    pub target: usize,
    /// How many pages to look at, at most. Those that stay go to the list's end, so the next call looks at others.
    pub scan: usize,
    /// Take mapped pages out of their mappings first. The caller holds no lock of rank `ADDRESS_SPACE` or above then.
    pub unmap: bool,
    /// Take whatever can be taken, however often it was used (`drop_caches`).
    pub all: bool,
}

/// What is to be done with a page that reclaim looked at.
enum Verdict {
    Forget,
    Inactive,
    Active,
    Unmap,
    Evict,
}

impl PageCache {
    /// Frees up to `how.target` pages that can be had without writing; returns how many. If dirty pages stand in the way the
    /// write-back threads are told. Takes only spin locks, and with `how.unmap` those of address spaces; may be called from
    /// any thread that holds no spin lock.
    pub fn shrink(&self, how: Shrink) -> usize {
        let mut freed = 0;
        let mut scan = how.scan;
        // From the caller's own shard on, so that several do not all look at the same pages.
        let first = platform::cpu_id();
        for shard in (first..first + SHARDS).map(|s| s % SHARDS) {
            if freed >= how.target || scan == 0 {
                break;
            }
            self.balance_lists(shard, how.all);
            // Each page is looked at once: what comes back goes to the list's end.
            let mut left = self.ages.shards[shard].lock().inactive.len;
            while left > 0 && freed < how.target && scan > 0 {
                let batch = self.ages.shards[shard].lock().inactive.take(left.min(scan));
                if batch.is_empty() {
                    break;
                }
                left -= batch.len();
                scan -= batch.len();
                freed += self.shrink_batch(shard, batch, how);
            }
        }
        if freed < how.target && self.dirty_pages() > 0 {
            self.wake_flusher();
        }
        freed
    }

    /// Moves pages from the active to the inactive list until that is the longer one; those used meanwhile stay.
    fn balance_lists(&self, shard: usize, all: bool) {
        let mut looked = 0;
        loop {
            let mut s = self.ages.shards[shard].lock();
            let Shard { inactive, active } = &mut *s;
            if active.len == 0 || looked >= active.len + BATCH || (!all && active.len <= inactive.len) {
                return;
            }
            let batch = active.take(BATCH);
            looked += batch.len();
            let mut dead = Batch::new();
            for e in batch {
                match e.upgrade() {
                    Some(p) if !all && p.take_uses() > 0 => active.push(e),
                    Some(p) => {
                        p.clear(ACTIVE);
                        inactive.push(e);
                    }
                    None => dead.push(e),
                }
            }
            drop(s);
            drop(dead);
        }
    }

    fn shrink_batch(&self, shard: usize, batch: Batch, how: Shrink) -> usize {
        let mut back = Batch::new();
        let mut up = Batch::new();
        let mut unmap: ArrayVec<Arc<CachePage>, BATCH> = ArrayVec::new();
        let mut freed = 0;
        for entry in batch {
            let Some(page) = entry.upgrade() else { continue };
            match judge(&page, how) {
                Verdict::Forget => {}
                Verdict::Inactive => back.push(entry),
                Verdict::Active => {
                    page.set(ACTIVE);
                    up.push(entry);
                }
                Verdict::Unmap => unmap.push(page),
                Verdict::Evict => {
                    if page.owner.file.upgrade().is_some_and(|f| f.evict(&page)) {
                        freed += 1;
                    } else if !page.has(GONE) {
                        back.push(entry);
                    }
                }
            }
        }
        if !unmap.is_empty() {
            unmap.sort_unstable_by_key(|p| (Arc::as_ptr(&p.owner) as usize, p.index()));
            unmap_runs(&unmap);
            for page in unmap {
                let entry = Arc::downgrade(&page);
                // With everything to go there is no second look.
                if how.all && page.owner.file.upgrade().is_some_and(|f| f.evict(&page)) {
                    freed += 1;
                } else {
                    back.push(entry);
                }
            }
        }
        let mut s = self.ages.shards[shard].lock();
        back.into_iter().for_each(|e| s.inactive.push(e));
        up.into_iter().for_each(|e| s.active.push(e));
        drop(s);
        self.count_reclaimed(freed);
        freed
    }
}

fn judge(page: &Arc<CachePage>, how: Shrink) -> Verdict {
    let state = page.state();
    if state & GONE != 0 {
        return Verdict::Forget;
    }
    if state & (READING | DIRTY | WRITEBACK) != 0 || state & UPTODATE == 0 {
        return if page.uses() >= 2 && !how.all { promote(page) } else { Verdict::Inactive };
    }
    if how.all {
        return match page.page().refs() {
            1 => Verdict::Evict,
            _ if how.unmap => Verdict::Unmap,
            _ => Verdict::Inactive,
        };
    }
    if page.page().refs() > 1 {
        // Mapped: faults count as uses. The first use brought it in.
        return match page.take_uses() {
            0 | 1 if how.unmap => Verdict::Unmap,
            0 | 1 => Verdict::Inactive,
            _ => Verdict::Active,
        };
    }
    if page.uses() >= 2 { promote(page) } else { Verdict::Evict }
}

fn promote(page: &CachePage) -> Verdict {
    page.take_uses();
    Verdict::Active
}

/// Takes neighbouring pages of one file out of mappings with one call.
fn unmap_runs(pages: &[Arc<CachePage>]) {
    let mut at = 0;
    while let Some(first) = pages.get(at) {
        let next =
            |n: usize, p: &Arc<CachePage>| Arc::ptr_eq(&p.owner, &first.owner) && p.index() == first.index() + n as u64;
        let n = pages[at..].iter().enumerate().take_while(|(n, p)| next(*n, p)).count().max(1);
        if let Some(file) = first.owner.file.upgrade() {
            file.unmap_for_reclaim(first.index()..first.index() + n as u64);
        }
        at += n;
    }
}

impl FileCache {
    /// Drops `page` from the cache if nobody but the caller needs it.
    pub(crate) fn evict(&self, page: &Arc<CachePage>) -> bool {
        let mut index = self.index().lock();
        let ours = index.get(page.index()).is_some_and(|p| Arc::ptr_eq(p, page));
        // Nobody can find it while the lock is held: two references are the index's and the caller's.
        let busy = Arc::strong_count(page) > 2 || page.page().refs() > 1 || page.has(DIRTY | WRITEBACK | READING);
        if !ours || busy {
            return false;
        }
        let gone = index.remove(page.index());
        page.set(GONE);
        drop(index);
        self.cache().count_pages(-1);
        drop(gone);
        true
    }
}
