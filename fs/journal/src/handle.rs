//! Transactions in the making, and handles: one file-system operation's part in a transaction.

use crate::buffer::{Buffer, Content, WriteGuard, zeroes};
use crate::journal::{Journal, Tid};
use abi::{Errno, Result};
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};
use sync::{LockClass, SpinLock};

static LISTS: LockClass = LockClass::new("transaction lists", sync::rank::SPIN + 42);

/// Data that must be on the medium before the transaction that refers to it (ext4's `data=ordered`).
pub trait OrderedData: Send + Sync {
    /// Writes the data and waits for it; no flush is needed. Called by the committing thread, once, without locks of the
    /// journal; it must not start a handle. An error aborts the journal.
    fn write_and_wait(&self) -> Result<()>;
}

/// What a transaction consists of.
#[derive(Default)]
pub(crate) struct Lists {
    pub buffers: Vec<Arc<Buffer>>,
    pub revoked: BTreeSet<u64>,
    pub ordered: Vec<Arc<dyn OrderedData>>,
}

/// A transaction that is running or being committed.
pub(crate) struct Transaction {
    pub tid: Tid,
    pub born_ns: u64,
    pub lists: SpinLock<Lists>,
    revokes: AtomicUsize,
    revoke_room: usize,
}

impl Transaction {
    pub fn new(tid: Tid, revoke_room: usize) -> Self {
        Transaction {
            tid,
            born_ns: platform::monotonic_ns(),
            lists: SpinLock::new(&LISTS, Lists::default()),
            revokes: AtomicUsize::new(0),
            revoke_room,
        }
    }

    /// Whether another handle's revoke records are welcome.
    pub fn has_room(&self) -> bool {
        self.revokes.load(Ordering::Relaxed) < self.revoke_room
    }
}

/// A change in progress. All blocks that it writes reach the medium together, and with them those of all other handles of
/// the transaction. Dropping it ends the change; nothing waits for the medium then.
#[must_use]
pub struct Handle {
    journal: Arc<Journal>,
    transaction: Option<Arc<Transaction>>,
    credits: Cell<u32>,
    /// Blocks that came in, which stay counted in the transaction.
    open: Cell<bool>,
}

impl Handle {
    pub(crate) fn new(journal: Arc<Journal>, transaction: Option<Arc<Transaction>>, credits: u32) -> Self {
        Handle { journal, transaction, credits: Cell::new(credits), open: Cell::new(true) }
    }

    /// The transaction's number; 0 without a journal.
    pub fn tid(&self) -> Tid {
        self.transaction.as_ref().map_or(0, |t| t.tid)
    }

    /// How many more blocks it may change.
    pub fn credits(&self) -> u32 {
        self.credits.get()
    }

    /// The journal.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Access to change `buffer`, whose content is valid. The first change of a block in a transaction takes a credit.
    /// Sleeps while others hold the buffer's guards. `EROFS` after an abort, `ENOSPC` without credit where the transaction
    /// is full too, `ENOMEM`, `EIO` for a buffer without content.
    pub fn write<'a>(&'a self, buffer: &'a Arc<Buffer>) -> Result<WriteGuard<'a>> {
        let mut content = buffer.content.write_nested();
        if !buffer.is_uptodate() {
            return Err(Errno::EIO);
        }
        self.take(buffer, &mut content)?;
        content.make_unique()?;
        Ok(WriteGuard::new(content))
    }

    /// The buffer of `block`, filled with zeroes and part of this transaction: for a block just allocated, whatever is on
    /// the medium. Errors as for [`Handle::write`].
    pub fn create(&self, block: u64) -> Result<Arc<Buffer>> {
        let buffer = self.journal.cache().get(block)?;
        let mut content = buffer.content.write_nested();
        self.take(&buffer, &mut content)?;
        match Arc::get_mut(&mut content.data) {
            Some(data) => data.fill(0),
            None => content.data = zeroes(self.journal.cache().block_size())?,
        }
        buffer.set_uptodate(false);
        buffer.set_uptodate(true);
        drop(content);
        Ok(buffer)
    }

    /// Frees metadata block `block`: its content is of no interest any more. If this transaction commits, recovery does
    /// not bring back copies from earlier ones, and no checkpoint writes it. Takes no credit.
    pub fn forget(&self, block: u64) -> Result<()> {
        if self.journal.is_dead() {
            return Err(Errno::EROFS);
        }
        let cached = self.journal.cache().peek(block);
        let Some(t) = &self.transaction else {
            self.journal.cache().invalidate(block);
            return Ok(());
        };
        // Under the buffer's lock, as in `take`, so that the list and the buffer agree.
        let content = cached.as_ref().map(|b| (b, b.content.write_nested()));
        if t.lists.lock().revoked.insert(block) {
            t.revokes.fetch_add(1, Ordering::Relaxed);
        }
        if let Some((buffer, mut content)) = content {
            if content.joined == t.tid {
                content.forgotten = true;
            }
            buffer.set_uptodate(false);
        }
        Ok(())
    }

    /// Has `data` written before this transaction commits.
    pub fn order(&self, data: Arc<dyn OrderedData>) {
        if let Some(t) = &self.transaction {
            t.lists.lock().ordered.push(data);
        }
    }

    /// Asks for `more` credits. `EAGAIN` if the transaction has no room: finish what must be atomic, then
    /// [`Handle::restart`].
    pub fn extend(&self, more: u32) -> Result<()> {
        if self.transaction.is_some() {
            let mut s = self.journal.state.lock();
            if s.reserved.saturating_add(more) > self.journal.max_credits() {
                return Err(Errno::EAGAIN);
            }
            s.reserved += more;
        }
        self.credits.set(self.credits.get().saturating_add(more));
        Ok(())
    }

    /// Ends this part of the change and begins the next with `credits`, maybe in another transaction; the file system is
    /// consistent in between. Waits and fails as [`Journal::start`]; after an error the handle only remains to be dropped.
    pub fn restart(&mut self, credits: u32) -> Result<()> {
        self.leave();
        self.transaction = None;
        self.transaction = self.journal.join(credits)?;
        self.credits.set(credits);
        self.open.set(true);
        Ok(())
    }

    /// Ends the change and waits until it is durable: [`Journal::sync`].
    pub fn sync(self) -> Result<()> {
        let (journal, tid) = (self.journal.clone(), self.tid());
        drop(self);
        journal.sync(tid)
    }

    /// Brings the buffer into the transaction, if it is not yet part of it. Its content is locked.
    fn take(&self, buffer: &Arc<Buffer>, content: &mut Content) -> Result<()> {
        if self.journal.is_dead() || !self.open.get() {
            return Err(Errno::EROFS);
        }
        let Some(t) = &self.transaction else {
            buffer.set_dirty();
            return Ok(());
        };
        if content.joined == t.tid {
            if content.forgotten {
                t.lists.lock().revoked.remove(&buffer.block());
                content.forgotten = false;
            }
            return Ok(());
        }
        self.pay()?;
        let mut lists = t.lists.lock();
        lists.revoked.remove(&buffer.block());
        lists.buffers.push(buffer.clone());
        drop(lists);
        content.joined = t.tid;
        content.forgotten = false;
        Ok(())
    }

    fn pay(&self) -> Result<()> {
        match self.credits.get().checked_sub(1) {
            Some(left) => self.credits.set(left),
            None => {
                self.extend(1).map_err(|_| Errno::ENOSPC)?;
                self.credits.set(self.credits.get() - 1);
            }
        }
        Ok(())
    }

    /// Leaves the transaction: unused credits go back.
    fn leave(&self) {
        if !self.open.replace(false) || self.transaction.is_none() {
            return;
        }
        let mut s = self.journal.state.lock();
        s.updates -= 1;
        s.reserved = s.reserved.saturating_sub(self.credits.replace(0));
        let last = s.updates == 0 && s.locked;
        drop(s);
        if last {
            self.journal.drained.wake_all();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.leave();
    }
}

impl core::fmt::Debug for Handle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Handle").field("tid", &self.tid()).field("credits", &self.credits).finish_non_exhaustive()
    }
}
