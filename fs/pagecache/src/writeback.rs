//! Handing dirty pages to the file system, and waiting for them.

use crate::file::FileCache;
use crate::index::Tag;
use crate::page::{CachePage, DIRTY, WRITEBACK};
use crate::run::{MAX_RUN, WriteRun};
use crate::{Backing, PAGE};
use abi::Result;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;
use vfs::rmap::{self, Change};

/// Pages and runs that are handed to the file system at once, at most: 4 MiB, or what fills a disk's queue.
const MAX_TAKEN: usize = 4 * MAX_RUN;
const MAX_RUNS: usize = 256;

/// Scattered pages make short runs: only long ones grow.
const RUN_ROOM: usize = 4;

/// Runs that are under write-back and not handed over yet.
#[derive(Default)]
struct Taken {
    runs: Vec<Vec<Arc<CachePage>>>,
    pages: usize,
}

/// What a look for dirty pages found.
enum Claim {
    /// These, which are now under write-back.
    Run(Vec<Arc<CachePage>>),
    /// The next dirty page is still being written as it was before.
    Busy(Arc<CachePage>),
    Nothing,
}

impl FileCache {
    /// Takes the next stretch of dirty pages in `pages`.
    fn claim(&self, pages: Range<u64>) -> Claim {
        let mut run = Vec::with_capacity(RUN_ROOM);
        let mut index = self.index().lock();
        let mut at = match index.next(pages.clone(), Tag::Dirty) {
            Some(p) if p.has(WRITEBACK) => return Claim::Busy(p.clone()),
            Some(p) => p.index(),
            None => return Claim::Nothing,
        };
        while at < pages.end && run.len() < MAX_RUN {
            let Some(page) = index.get(at).cloned() else { break };
            if !page.has(DIRTY) || page.has(WRITEBACK) {
                break;
            }
            page.set(WRITEBACK);
            page.clear(DIRTY);
            index.mark_dirty(at, false);
            index.mark_writeback(at);
            run.push(page);
            at += 1;
        }
        self.owner.writeback.fetch_add(run.len(), Ordering::SeqCst);
        self.owner.dirty.fetch_sub(run.len(), Ordering::SeqCst);
        drop(index);
        self.cache().claimed(run.len());
        Claim::Run(run)
    }

    /// Hands the dirty pages in `pages` to the file system, at most about `budget`. Pages that are still being written as they
    /// were before are waited for with `wait`, else left dirty. Returns how many pages were handed over.
    pub(crate) fn write_pages(&self, pages: Range<u64>, wait: bool, budget: usize) -> usize {
        let Ok(host) = self.host() else { return 0 };
        let mut at = pages.start;
        let mut done = 0;
        let mut taken = Taken::default();
        while at < pages.end && done < budget {
            match self.claim(at..pages.end) {
                Claim::Nothing => break,
                Claim::Busy(page) if wait => {
                    // Never while holding pages that somebody may wait for.
                    self.hand_over(&*host, &mut taken);
                    page.wait_writeback();
                    at = page.index();
                }
                Claim::Busy(page) => at = page.index() + 1,
                Claim::Run(run) => {
                    at = run.last().map_or(at, |p| p.index()) + 1;
                    done += run.len();
                    taken.pages += run.len();
                    taken.runs.push(run);
                    if taken.pages >= MAX_TAKEN || taken.runs.len() >= MAX_RUNS {
                        self.hand_over(&*host, &mut taken);
                    }
                }
            }
        }
        self.hand_over(&*host, &mut taken);
        done
    }

    /// Lets the file system write what was taken.
    fn hand_over(&self, host: &dyn Backing, taken: &mut Taken) {
        let Taken { mut runs, .. } = core::mem::take(taken);
        let first = runs.first().and_then(|r| r.first()).map(|p| p.index());
        let (Some(first), Some(last)) = (first, runs.last().and_then(|r| r.last()).map(|p| p.index())) else { return };
        if self.mapped_writable.load(Ordering::SeqCst) {
            // One walk and one invalidation for all; a page between them that is dirty or clean only faults once more.
            rmap::change(self.identity(), first..last + 1, Change::Protect);
        }
        let size = self.size();
        match runs.pop() {
            Some(run) if runs.is_empty() => host.write_pages(WriteRun::new(run, size)),
            Some(run) => {
                runs.push(run);
                host.write_runs(runs.into_iter().map(|r| WriteRun::new(r, size)).collect());
            }
            None => {}
        }
    }

    /// Waits until no page in `pages` is being written that was so when this was called.
    fn wait_pages(&self, pages: Range<u64>) {
        let mut at = pages.start;
        while self.owner.writeback.load(Ordering::Acquire) > 0 {
            let next = self.index().lock().next(at..pages.end, Tag::Writeback).cloned();
            let Some(page) = next else { return };
            page.wait_writeback();
            at = page.index() + 1;
        }
    }

    /// Starts writing the dirty pages that touch the bytes `range`, without waiting (`SYNC_FILE_RANGE_WRITE`).
    pub fn start_writeback(&self, range: Range<u64>) {
        self.write_pages(range.start / PAGE..range.end.div_ceil(PAGE), false, usize::MAX);
    }

    /// Waits for writes in progress of pages that touch the bytes `range` (`SYNC_FILE_RANGE_WAIT_BEFORE`).
    pub fn wait_writeback(&self, range: Range<u64>) {
        self.wait_pages(range.start / PAGE..range.end.div_ceil(PAGE));
    }

    /// Writes all dirty pages that touch the bytes `range` and waits for the writes to end. Errors are in
    /// [`FileCache::errors`]; the medium's own cache is the file system's to flush. Pages that become dirty meanwhile may or may
    /// not be written.
    pub fn sync_range(&self, range: Range<u64>) -> Result<()> {
        let pages = range.start / PAGE..range.end.div_ceil(PAGE);
        if self.owner.dirty.load(Ordering::SeqCst) > 0 {
            self.host()?;
            self.write_pages(pages.clone(), true, usize::MAX);
        }
        self.wait_pages(pages);
        self.unlist_if_clean();
        Ok(())
    }

    /// [`FileCache::sync_range`] of everything.
    pub fn sync(&self) -> Result<()> {
        self.sync_range(0..u64::MAX)
    }
}
