//! The journal: its state, waiting, and the background work.

use crate::cache::BufferCache;
use crate::checkpoint::LogInner;
use crate::format::{Checksums, Layout};
use crate::handle::{Handle, Transaction};
use crate::map::Map;
use crate::recovery::{Refusal, Report, read_superblock, recover};
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use platform::ParkOptions;
use sync::{LockClass, Mutex, SpinLock, WaitQueue};

static STATE: LockClass = LockClass::new("journal state", sync::rank::SPIN + 40);
static LOG: LockClass = LockClass::new("journal log", sync::rank::PAGE_CACHE + 35);

/// A transaction's number: rising from 1 while the file system is mounted. Not the sequence in the log.
pub type Tid = u64;

/// How a journal works.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Flush the device around commit blocks. Without it a power cut may damage the file system (mount option `nobarrier`).
    pub barrier: bool,
    /// The age at which [`Journal::run`] commits a transaction, in nanoseconds (mount option `commit=`).
    pub interval_ns: u64,
    /// Block numbers in the log have 64 bits: for file systems with the feature `64bit`.
    pub wide: bool,
    /// How log blocks are checked: V3 for file systems with `metadata_csum`, else none.
    pub checksums: Checksums,
}

impl Default for Options {
    fn default() -> Self {
        Options { barrier: true, interval_ns: 5_000_000_000, wide: true, checksums: Checksums::V3 }
    }
}

/// Who is in the running transaction, and who commits.
#[derive(Default)]
pub(crate) struct State {
    pub running: Option<Arc<Transaction>>,
    /// The running transaction takes no more handles.
    pub locked: bool,
    /// Open handles.
    pub updates: u32,
    /// Blocks in the running transaction plus what open handles may still add.
    pub reserved: u32,
    /// The last transaction that was begun.
    pub last: Tid,
    /// The last that is durable.
    pub committed: Tid,
    /// Somebody commits.
    pub committing: bool,
    /// A commit of this was asked of the background.
    pub requested: Tid,
    /// Flushes before commit blocks: sent, and done (they are one after the other).
    pub flushes_sent: u64,
    pub flushes_done: u64,
    pub aborted: Option<Errno>,
    pub closed: bool,
}

/// What a journal has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Handles started.
    pub handles: u64,
    /// Transactions written to the log.
    pub commits: u64,
    /// Blocks copied into the log.
    pub logged: u64,
    /// Blocks written home.
    pub checkpointed: u64,
    /// Revoke records written.
    pub revoked: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub handles: AtomicU64,
    pub commits: AtomicU64,
    pub logged: AtomicU64,
    pub checkpointed: AtomicU64,
    pub revoked: AtomicU64,
}

/// The log's fixed properties and its changing part.
pub(crate) struct Log {
    pub map: Map,
    pub layout: Layout,
    pub barrier: bool,
    pub first: u32,
    pub len: u32,
    pub inner: Mutex<LogInner>,
}

/// A file system's journal. Without a log ([`Journal::none`]) handles only mark buffers dirty and a commit writes them.
pub struct Journal {
    pub(crate) cache: Arc<BufferCache>,
    pub(crate) log: Option<Log>,
    max_transaction: u32,
    interval_ns: AtomicU64,
    pub(crate) state: SpinLock<State>,
    /// A copy of the state's `committed`, for who asks under a lock of its own.
    pub(crate) committed: AtomicU64,
    pub(crate) dead: AtomicBool,
    /// Waiters for a commit, or for the turn to do one.
    pub(crate) done: WaitQueue,
    /// Waiters for the lock on new handles to go.
    pub(crate) unlocked: WaitQueue,
    /// The committer, waiting for open handles.
    pub(crate) drained: WaitQueue,
    /// The background thread.
    pub(crate) work: WaitQueue,
    pub(crate) counters: Counters,
}

impl Journal {
    fn make(cache: Arc<BufferCache>, log: Option<Log>, max_transaction: u32, interval_ns: u64) -> Arc<Self> {
        Arc::new(Journal {
            cache,
            log,
            max_transaction,
            interval_ns: AtomicU64::new(interval_ns),
            state: SpinLock::new(&STATE, State::default()),
            committed: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            done: WaitQueue::new(),
            unlocked: WaitQueue::new(),
            drained: WaitQueue::new(),
            work: WaitQueue::new(),
            counters: Counters::default(),
        })
    }

    /// No journal: the same interface for a file system that has none. A power cut leaves it to e2fsck.
    pub fn none(cache: Arc<BufferCache>) -> Arc<Self> {
        Self::make(cache, None, u32::MAX, Options::default().interval_ns)
    }

    /// Opens the journal that `map` locates for writing, after recovering from it if it is not empty; `uuid` is the file
    /// system's. Cached content that recovery may have changed is dropped, so the caller holds no buffers. May sleep.
    pub fn load(
        cache: Arc<BufferCache>,
        map: Map,
        uuid: &[u8; 16],
        options: Options,
    ) -> core::result::Result<(Arc<Self>, Report), Refusal> {
        let device = cache.device().clone();
        let size = cache.block_size();
        let report = recover(&*device, size, &map, uuid)?;
        if report.replayed > 0 {
            cache.drop_clean();
        }
        let journal = Self::closed(cache, map, uuid, options)?;
        journal.reopen()?;
        Ok((journal, report))
    }

    /// The journal that `map` locates as [`Journal::close`] leaves one: nothing is written, and [`Journal::reopen`] begins. A log
    /// that is not empty is not replayed: the file system says that it needs none, so somebody else has dealt with it. For a file system that is mounted read-only, so far. May sleep.
    pub fn closed(
        cache: Arc<BufferCache>,
        map: Map,
        uuid: &[u8; 16],
        options: Options,
    ) -> core::result::Result<Arc<Self>, Refusal> {
        let mut sb = read_superblock(&**cache.device(), cache.block_size(), &map, uuid)?;
        sb.set_features(options.wide, options.checksums);
        // What is left in such a log must never look like a part of what follows.
        let skip = if sb.start() == 0 { 0 } else { sb.len() };
        let (first, sequence) = (sb.first(), sb.sequence().wrapping_add(skip));
        let len = sb.len();
        let log = Log {
            map,
            layout: sb.layout(),
            barrier: options.barrier,
            first,
            len,
            inner: Mutex::new(&LOG, LogInner::new(sb, first, sequence)),
        };
        let max = ((len - first) / 4).max(1);
        let journal = Self::make(cache, Some(log), max, options.interval_ns);
        journal.state.lock().closed = true;
        Ok(journal)
    }

    /// Opens a closed journal for writing. `EROFS` after an abort. May sleep.
    pub fn reopen(&self) -> Result<()> {
        if self.is_dead() {
            return Err(Errno::EROFS);
        }
        self.open_log()?;
        self.state.lock().closed = false;
        Ok(())
    }

    /// Whether handles can be had, as far as that depends on [`Journal::close`].
    pub fn is_open(&self) -> bool {
        !self.state.lock().closed
    }

    /// The buffers below.
    pub fn cache(&self) -> &Arc<BufferCache> {
        &self.cache
    }

    /// Whether there is a log.
    pub fn has_log(&self) -> bool {
        self.log.is_some()
    }

    /// The most credits that a handle can have.
    pub fn max_credits(&self) -> u32 {
        self.max_transaction
    }

    /// Sets the age at which transactions are committed.
    pub fn set_interval_ns(&self, ns: u64) {
        self.interval_ns.store(ns, Ordering::Relaxed);
    }

    /// Begins a change of up to `credits` blocks. Waits while the running transaction is being locked, or until one that
    /// is full has committed. `ENOSPC` if no transaction can be that large, `EROFS` after an abort or close. Context: thread,
    /// without a handle of this journal and without buffer guards.
    pub fn start(self: &Arc<Self>, credits: u32) -> Result<Handle> {
        let transaction = self.join(credits)?;
        self.counters.handles.fetch_add(1, Ordering::Relaxed);
        Ok(Handle::new(self.clone(), transaction, credits))
    }

    /// Enters the running transaction; `None` without a log.
    pub(crate) fn join(&self, credits: u32) -> Result<Option<Arc<Transaction>>> {
        if self.log.is_none() {
            return if self.is_dead() { Err(Errno::EROFS) } else { Ok(None) };
        }
        if credits > self.max_transaction {
            return Err(Errno::ENOSPC);
        }
        loop {
            let mut s = self.state.lock();
            if s.aborted.is_some() || s.closed {
                return Err(Errno::EROFS);
            }
            if s.locked {
                drop(s);
                let _ = self.unlocked.wait_until(ParkOptions::default(), || (!self.state.lock().locked).then_some(()));
                continue;
            }
            if let Some(t) = s.running.clone() {
                if s.reserved + credits <= self.max_transaction && t.has_room() {
                    s.updates += 1;
                    s.reserved += credits;
                    return Ok(Some(t));
                }
                drop(s);
                // EIO here means that the journal was aborted: the next round says so.
                let _ = self.commit_and_wait(t.tid);
                continue;
            }
            s.last += 1;
            let t = Arc::new(Transaction::new(s.last, self.revoke_room()));
            s.running = Some(t.clone());
            s.updates = 1;
            s.reserved = credits;
            return Ok(Some(t));
        }
    }

    /// How many revoke records a transaction may have before it is committed: an eighth of the log.
    fn revoke_room(&self) -> usize {
        self.log.as_ref().map_or(usize::MAX, |l| ((l.len - l.first) as usize / 8).max(1) * l.layout.revokes_per_block())
    }

    /// Whether the journal was aborted, and by what.
    pub fn aborted(&self) -> Option<Errno> {
        if self.is_dead() { self.state.lock().aborted } else { None }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Ends all writing because of `error`: for a file system that found itself damaged (mount option `errors=`). Waiters
    /// get `EIO`.
    pub fn abort(&self, error: Errno) {
        let mut s = self.state.lock();
        if s.aborted.is_some() {
            return;
        }
        s.aborted = Some(error);
        self.dead.store(true, Ordering::Release);
        drop(s);
        self.done.wake_all();
        self.unlocked.wake_all();
        self.work.wake_all();
        self.note_error(error);
    }

    /// The running transaction, if there is one.
    pub fn running_tid(&self) -> Option<Tid> {
        self.state.lock().running.as_ref().map(|t| t.tid)
    }

    /// The last transaction that was begun, whether it runs, commits or is durable; 0 if there was none. What is found in
    /// memory or on the medium now is no younger.
    pub fn last_tid(&self) -> Tid {
        self.state.lock().last
    }

    /// The last transaction that is durable. What an earlier or equal one freed may be given out again.
    /// Takes no lock.
    pub fn committed_tid(&self) -> Tid {
        self.committed.load(Ordering::Acquire)
    }

    /// Returns when transaction `tid` is durable, committing it if nobody does. `EIO` if the journal was aborted before
    /// that. Context: thread, without a handle of this journal and without buffer guards.
    pub fn commit_and_wait(&self, tid: Tid) -> Result<()> {
        if self.log.is_none() {
            return self.cache.sync();
        }
        loop {
            let mut s = self.state.lock();
            if s.committed >= tid.min(s.last) {
                return Ok(());
            }
            if s.aborted.is_some() {
                return Err(Errno::EIO);
            }
            if !s.committing {
                s.committing = true;
                drop(s);
                self.commit_running();
                self.state.lock().committing = false;
                self.done.wake_all();
                continue;
            }
            drop(s);
            let _ = self.done.wait_until(ParkOptions::default(), || {
                let s = self.state.lock();
                (!s.committing || s.committed >= tid || s.aborted.is_some()).then_some(())
            });
        }
    }

    /// What fsync needs: transaction `tid` is durable when this returns, and so is every data write that had completed before
    /// the call (a commit's flush does for both; else the device is flushed). Errors and context as for
    /// [`Journal::commit_and_wait`].
    pub fn sync(&self, tid: Tid) -> Result<()> {
        let Some(log) = &self.log else { return self.cache.sync() };
        let sent = self.state.lock().flushes_sent;
        self.commit_and_wait(tid)?;
        if self.state.lock().flushes_done > sent || !log.barrier {
            return Ok(());
        }
        block::flush(&**self.cache.device())
    }

    /// Commits whatever is running and flushes the device: sync(2). Errors and context as for
    /// [`Journal::commit_and_wait`].
    pub fn force(&self) -> Result<()> {
        let last = self.state.lock().last;
        self.sync(last)
    }

    /// Asks the background thread to commit `tid` soon. Context: any thread.
    pub fn request(&self, tid: Tid) {
        let mut s = self.state.lock();
        s.requested = s.requested.max(tid);
        drop(s);
        self.work.wake_all();
    }

    /// Commits, writes everything home, and marks the journal empty. Afterwards [`Journal::start`] gives `EROFS`, until
    /// [`Journal::reopen`]. For unmount and remounting read-only; the file system's superblock is then written by its owner. May sleep.
    pub fn close(&self) -> Result<()> {
        self.state.lock().closed = true;
        let result = self.force().and_then(|()| self.checkpoint_all(true));
        self.work.wake_all();
        result
    }

    /// Commits, and writes everything home (the log becomes empty, the journal stays open). May sleep.
    pub fn checkpoint(&self) -> Result<()> {
        self.force()?;
        self.checkpoint_all(false)
    }

    /// One round of background work: commits a transaction that is old enough or was asked for, and checkpoints if
    /// the log is half full. Returns the monotonic time at which to come back.
    pub fn background(&self) -> u64 {
        let now = platform::monotonic_ns();
        let interval = self.interval_ns.load(Ordering::Relaxed).max(1_000_000);
        let (due, next) = {
            let s = self.state.lock();
            match &s.running {
                Some(t) if s.requested >= t.tid || now >= t.born_ns.saturating_add(interval) => (Some(t.tid), now),
                Some(t) => (None, t.born_ns.saturating_add(interval)),
                None => (None, now + interval),
            }
        };
        if let Some(tid) = due {
            let _ = self.commit_and_wait(tid);
        }
        let _ = self.checkpoint_some();
        // A transaction that begins meanwhile is seen after a fifth of the interval at the latest.
        next.min(now + interval / 5).max(now + 1_000_000)
    }

    /// The background thread's life: [`Journal::background`] until the journal is closed or aborted, or `stop` is set
    /// (followed by [`Journal::request`]).
    pub fn run(&self, stop: &AtomicBool) {
        loop {
            let over = || {
                let s = self.state.lock();
                stop.load(Ordering::Acquire) || s.closed || s.aborted.is_some()
            };
            if over() {
                return;
            }
            let deadline_ns = Some(self.background());
            let options = ParkOptions { deadline_ns, ..ParkOptions::default() };
            let _ = self.work.wait_until(options, || {
                let asked = {
                    let s = self.state.lock();
                    s.running.as_ref().is_some_and(|t| s.requested >= t.tid)
                };
                (asked || over()).then_some(())
            });
        }
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        let c = &self.counters;
        Stats {
            handles: c.handles.load(Ordering::Relaxed),
            commits: c.commits.load(Ordering::Relaxed),
            logged: c.logged.load(Ordering::Relaxed),
            checkpointed: c.checkpointed.load(Ordering::Relaxed),
            revoked: c.revoked.load(Ordering::Relaxed),
        }
    }
}

impl core::fmt::Debug for Journal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Journal").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
