//! The log's space: which transactions it holds, and checkpoints, which write blocks home so that space comes back.
//!
//! For each block that a committed transaction changed there is one pending write, of its last committed version. A later
//! commit of the block takes over the write; a revoke cancels it. When a transaction at the tail has no pending writes left
//! its space can go: after a flush (the writes are on the medium) and a new superblock (recovery begins later). Only
//! then may the log's head run over it.

use crate::commit::Version;
use crate::io::Writer;
use crate::journal::{Journal, Log};
use crate::recovery::write_superblock;
use crate::superblock::Superblock;
use abi::{Errno, Result};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

/// A transaction in the log.
struct Logged {
    sequence: u32,
    /// Its first block and how many it has.
    start: u32,
    blocks: u32,
    /// The homes that it changed; those that a later one has taken over are no longer its own.
    homes: Vec<u64>,
    /// How many are still to be written.
    pending: usize,
}

struct Pending {
    sequence: u32,
    version: Version,
}

/// What of the log changes; under its lock.
pub(crate) struct LogInner {
    sb: Superblock,
    /// The next block to write, and the next transaction's sequence.
    pub head: u32,
    pub sequence: u32,
    /// Blocks between tail and head.
    used: u32,
    logged: VecDeque<Logged>,
    pending: BTreeMap<u64, Pending>,
    closed: bool,
}

impl Log {
    /// The block after `at`, round the end.
    pub fn next(&self, at: u32) -> u32 {
        if at + 1 >= self.len { self.first } else { at + 1 }
    }

    fn capacity(&self) -> u32 {
        // One block stays free, so that head and tail differ.
        self.len - self.first - 1
    }
}

impl LogInner {
    pub fn new(sb: Superblock, head: u32, sequence: u32) -> Self {
        LogInner { sb, head, sequence, used: 0, logged: VecDeque::new(), pending: BTreeMap::new(), closed: true }
    }

    /// A transaction of `blocks` blocks has been written; `head` is the block behind it.
    pub fn advance(&mut self, _log: &Log, blocks: u32, head: u32) {
        let start = self.head;
        self.logged.push_back(Logged { sequence: self.sequence, start, blocks, homes: Vec::new(), pending: 0 });
        self.used += blocks;
        self.head = head;
        self.sequence = self.sequence.wrapping_add(1);
    }

    /// Takes over the content of the transaction just written: its blocks are to be written home; those it revoked
    /// are not.
    pub fn committed(&mut self, versions: Vec<Version>, revoked: &BTreeSet<u64>) {
        let sequence = self.sequence.wrapping_sub(1);
        for block in revoked {
            if let Some(old) = self.pending.remove(block) {
                self.settle(old.sequence);
            }
        }
        let homes: Vec<u64> = versions.iter().map(|v| v.buffer.block()).collect();
        let count = versions.len();
        for version in versions {
            let block = version.buffer.block();
            if let Some(old) = self.pending.insert(block, Pending { sequence, version }) {
                self.settle(old.sequence);
            }
        }
        if let Some(last) = self.logged.back_mut() {
            last.homes = homes;
            last.pending = count;
        }
    }

    /// One pending write of transaction `sequence` is gone.
    fn settle(&mut self, sequence: u32) {
        let Some(front) = self.logged.front() else { return };
        let index = sequence.wrapping_sub(front.sequence) as usize;
        if let Some(t) = self.logged.get_mut(index) {
            t.pending = t.pending.saturating_sub(1);
        }
    }

    /// How many blocks at the tail belong to transactions without pending writes.
    fn settled(&self) -> u32 {
        self.logged.iter().take_while(|t| t.pending == 0).map(|t| t.blocks).sum()
    }
}

impl Journal {
    /// Makes `need` blocks at the log's head free.
    pub(crate) fn make_room(&self, log: &Log, inner: &mut LogInner, need: u32) -> Result<()> {
        if need > log.capacity() {
            return Err(Errno::ENOSPC);
        }
        if log.capacity() - inner.used >= need {
            return Ok(());
        }
        // A quarter of the log at once, so that not every commit pays for a flush.
        let free = need.max(log.capacity() / 4);
        self.write_home(log, inner, free)?;
        self.move_tail(log, inner)
    }

    /// Writes home what transactions at the tail have pending, until with them `free` blocks would be free.
    fn write_home(&self, log: &Log, inner: &mut LogInner, free: u32) -> Result<()> {
        let mut blocks = BTreeSet::new();
        let mut freed = log.capacity() - inner.used;
        for t in &inner.logged {
            if freed >= free {
                break;
            }
            freed += t.blocks;
            let own = |b: &&u64| inner.pending.get(*b).is_some_and(|p| p.sequence == t.sequence);
            blocks.extend(t.homes.iter().filter(own));
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let mut writer = Writer::new(&**self.cache.device(), log.layout.block_size);
        for block in &blocks {
            if let Some(p) = inner.pending.get(block) {
                writer.put(*block, &p.version.data)?;
            }
        }
        writer.finish()?;
        self.counters.checkpointed.fetch_add(blocks.len() as u64, Ordering::Relaxed);
        for block in &blocks {
            if let Some(p) = inner.pending.remove(block) {
                inner.settle(p.sequence);
            }
        }
        Ok(())
    }

    /// Gives back the space of transactions at the tail that have nothing pending.
    fn move_tail(&self, log: &Log, inner: &mut LogInner) -> Result<()> {
        let device = &**self.cache.device();
        let freed = inner.settled();
        if freed == 0 {
            return Ok(());
        }
        block::flush(device)?;
        let keep = inner.logged.iter().position(|t| t.pending > 0).unwrap_or(inner.logged.len());
        let (sequence, start) = inner.logged.get(keep).map_or((inner.sequence, inner.head), |t| (t.sequence, t.start));
        inner.sb.set_tail(sequence, start);
        write_superblock(device, log.layout.block_size, &log.map, &mut inner.sb)?;
        inner.logged.drain(..keep);
        inner.used -= freed;
        Ok(())
    }

    /// Checkpoints if the log is half full. An error aborts the journal.
    pub(crate) fn checkpoint_some(&self) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        if self.is_dead() {
            return Err(Errno::EIO);
        }
        let mut inner = log.inner.lock();
        let result = if inner.used > log.capacity() / 2 {
            let free = log.capacity() - log.capacity() / 4;
            self.write_home(log, &mut inner, free).and_then(|()| self.move_tail(log, &mut inner))
        } else {
            Ok(())
        };
        drop(inner);
        result.inspect_err(|e| self.abort(*e))
    }

    /// Writes everything home that is committed; with `close`, marks the journal empty for good.
    pub(crate) fn checkpoint_all(&self, close: bool) -> Result<()> {
        let Some(log) = &self.log else { return self.cache.sync() };
        if self.is_dead() {
            return Err(Errno::EIO);
        }
        let mut inner = log.inner.lock();
        let result = self.write_home(log, &mut inner, u32::MAX).and_then(|()| self.move_tail(log, &mut inner));
        let result = result.and_then(|()| {
            if !close || inner.closed {
                return Ok(());
            }
            inner.closed = true;
            let next = inner.sequence;
            inner.sb.set_tail(next, 0);
            write_superblock(&**self.cache.device(), log.layout.block_size, &log.map, &mut inner.sb)
        });
        drop(inner);
        result.inspect_err(|e| self.abort(*e))
    }

    /// Marks a closed log as in use: one whose first block does not carry the sequence is empty all the same.
    pub(crate) fn open_log(&self) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let mut inner = log.inner.lock();
        if !inner.closed {
            return Ok(());
        }
        let (sequence, head) = (inner.sequence, inner.head);
        inner.sb.set_errno(0);
        inner.sb.set_tail(sequence, head);
        write_superblock(&**self.cache.device(), log.layout.block_size, &log.map, &mut inner.sb)?;
        inner.closed = false;
        Ok(())
    }

    /// Notes the abort in the journal's superblock, as far as the device still takes it. The tail stays: recovery is due.
    pub(crate) fn note_error(&self, error: Errno) {
        let Some(log) = &self.log else { return };
        // The committer may hold the lock itself: then the note is left out.
        let Some(mut inner) = log.inner.try_lock() else { return };
        if !inner.closed {
            inner.sb.set_errno(-error.raw());
            let _ = write_superblock(&**self.cache.device(), log.layout.block_size, &log.map, &mut inner.sb);
        }
    }
}
