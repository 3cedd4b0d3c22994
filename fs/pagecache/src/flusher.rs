//! Write-back threads: when what is written.
//!
//! Dirty files stand in a list in the order in which they became dirty. A write-back thread takes the oldest, hands its
//! dirty pages to the file system and puts it to the end, for two reasons: the file is older than the limit, or there is
//! too much dirty in the machine. A file leaves the list when nothing of it is dirty or under write-back; until then the list
//! keeps it alive. With nothing dirty the threads sleep without a timer.

use crate::cache::{DirtyFile, PageCache};
use crate::file::FileCache;
use abi::Result;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use platform::ParkOptions;

/// How many pages of one file are written before the next one's turn.
const TURN: usize = 2048;

/// What a look at the list's front found.
enum Turn {
    Write(DirtyFile),
    /// Nothing before this time.
    Until(u64),
    Empty,
}

impl PageCache {
    /// Asks the write-back threads to look. Context: any.
    pub fn wake_flusher(&self) {
        if !self.kicked.swap(true, Ordering::AcqRel) {
            self.work.wake();
        }
    }

    pub(crate) fn add_dirty_file(&self, entry: DirtyFile) {
        let file = entry.file.clone();
        let mut files = self.files.lock();
        let key = files.next_key();
        file.list_key.store(key, Ordering::Relaxed);
        let first = files.map.is_empty();
        files.map.insert(key, entry);
        drop(files);
        if first {
            self.work.wake();
        }
    }

    /// The next file to write: the oldest, moved to the list's end. Clean files at the front leave.
    fn next_turn(&self, everything: bool) -> Turn {
        let now = platform::monotonic_ns();
        loop {
            let mut files = self.files.lock();
            let Some((key, entry)) = files.map.pop_first() else { return Turn::Empty };
            if entry.file.leaves_list() {
                drop(files);
                drop(entry);
                continue;
            }
            let due = entry.since_ns.saturating_add(self.expire_ns.load(Ordering::Relaxed));
            if due > now && !everything {
                files.map.insert(key, entry);
                return Turn::Until(due);
            }
            let key = files.next_key();
            entry.file.list_key.store(key, Ordering::Relaxed);
            files.map.insert(key, DirtyFile { since_ns: now, ..entry.clone() });
            return Turn::Write(entry);
        }
    }

    /// Writes of files in turn while there is too much dirty, and of those that are old. Returns when to look again.
    pub(crate) fn write_some(&self) -> Option<u64> {
        let mut idle = 0;
        loop {
            let over = self.over_background();
            let entry = match self.next_turn(over) {
                Turn::Write(e) => e,
                Turn::Until(t) => return Some(t),
                Turn::Empty => return None,
            };
            if entry.host.is_doomed(2) {
                entry.file.discard();
                continue;
            }
            let written = entry.file.write_pages(0..u64::MAX, false, TURN);
            entry.file.unlist_if_clean();
            idle = if written > 0 { 0 } else { idle + 1 };
            let listed = self.files.lock().map.len();
            if idle > listed {
                // All that is listed is under write-back already.
                self.wait_progress(1_000_000_000);
                idle = 0;
            }
        }
    }

    /// The life of a write-back thread: returns when `stop` is set (and [`PageCache::wake_flusher`] called). Several may run.
    pub fn flush_until(&self, stop: &AtomicBool) {
        self.flushers.fetch_add(1, Ordering::Relaxed);
        let mut deadline = None;
        while !stop.load(Ordering::Acquire) {
            let options = ParkOptions { interruptible: false, deadline_ns: deadline };
            let work = || {
                let asked = self.kicked.swap(false, Ordering::AcqRel);
                let new = deadline.is_none() && !self.files.lock().map.is_empty();
                (asked || new || stop.load(Ordering::Acquire)).then_some(())
            };
            // An end by the deadline is as good as a wake-up.
            let _ = self.work.wait_until(options, work);
            deadline = self.write_some();
        }
        self.flushers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Writes all dirty pages of the files of a device (of all, with `None`) and waits; errors are recorded where fsync and
    /// syncfs look. May sleep.
    pub fn sync_device(&self, device: Option<u64>) -> Result<()> {
        let ours = |e: &&DirtyFile| device.is_none_or(|d| e.file.identity().0 == d);
        let files: Vec<DirtyFile> = self.files.lock().map.values().filter(ours).cloned().collect();
        for e in &files {
            e.file.write_pages(0..u64::MAX, false, usize::MAX);
        }
        let mut result = Ok(());
        for e in &files {
            result = result.and(e.file.sync());
        }
        result
    }

    /// How many files have pages that are dirty or under write-back.
    pub fn dirty_files(&self) -> usize {
        self.files.lock().map.len()
    }
}

impl FileCache {
    /// Decides, with the list locked and the file taken out, whether it stays out.
    fn leaves_list(&self) -> bool {
        self.listed.store(false, Ordering::SeqCst);
        let clean = self.owner.dirty.load(Ordering::SeqCst) == 0 && self.owner.writeback.load(Ordering::SeqCst) == 0;
        // Whoever made a page dirty since then and found the file not listed puts it in again himself.
        clean || self.listed.swap(true, Ordering::SeqCst)
    }

    /// Leaves the list of dirty files if there is no reason to be on it.
    pub(crate) fn unlist_if_clean(&self) {
        let busy = || self.owner.dirty.load(Ordering::SeqCst) + self.owner.writeback.load(Ordering::SeqCst) > 0;
        if busy() || !self.listed.load(Ordering::SeqCst) {
            return;
        }
        let mut files = self.cache().files.lock();
        let key = self.list_key.load(Ordering::Relaxed);
        let ours = files.map.get(&key).is_some_and(|e| core::ptr::eq(&*e.file, self));
        if !ours {
            return;
        }
        let entry = files.map.remove(&key);
        if let Some(e) = &entry
            && !e.file.leaves_list()
        {
            files.map.insert(key, e.clone());
        }
        drop(files);
        drop(entry);
    }
}
