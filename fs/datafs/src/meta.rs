//! Metadata blocks and transactions: the journal as the rest of this crate uses it.
//!
//! A [`Buf`] is one block. Readers look at it through [`Look::with`]; whoever changes it does so through a [`Tx`], which
//! makes the change part of a transaction. While one block is looked at or changed, no other is.

use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use journal::{Handle, Journal, Tid};

pub(crate) use journal::Buffer as Buf;

/// The content was checked since it came from the disk.
const VERIFIED: u32 = 1;

/// Looking at a block.
pub(crate) trait Look {
    /// Runs `f` on the content. No other buffer may be looked at or changed within.
    fn with<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R;

    /// A copy of the content.
    fn copy(&self) -> Vec<u8> {
        self.with(<[u8]>::to_vec)
    }

    /// Runs `check` on the content unless that was done since it came from the disk.
    fn verify(&self, check: impl FnOnce(&[u8]) -> Result<()>) -> Result<()>;
}

impl Look for Arc<Buf> {
    fn with<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        f(&self.read())
    }

    fn verify(&self, check: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        if self.flags() & VERIFIED == 0 {
            self.with(check)?;
            self.set_flags(VERIFIED);
        }
        Ok(())
    }
}

/// The metadata blocks of one file system, and its journal.
pub(crate) struct Store {
    pub journal: Arc<Journal>,
    count: u64,
}

impl Store {
    /// Of a file system of `count` blocks.
    pub fn new(journal: Arc<Journal>, count: u64) -> Store {
        Store { journal, count }
    }

    /// The block with this number. `EUCLEAN` if there is none, `EIO`.
    pub fn read(&self, number: u64) -> Result<Arc<Buf>> {
        if number >= self.count {
            return Err(Errno::EUCLEAN);
        }
        self.journal.cache().read(number)
    }

    /// Whether there is a journal.
    pub fn has_journal(&self) -> bool {
        self.journal.has_log()
    }

    /// Makes everything durable.
    pub fn commit_all(&self) -> Result<()> {
        self.journal.force()
    }

    /// Makes the transaction durable, and all data that was written before.
    pub fn commit(&self, tid: Tid) -> Result<()> {
        self.journal.sync(tid)
    }

    /// The last transaction that is durable. Without a journal nothing waits for anything.
    pub fn committed(&self) -> Tid {
        if self.journal.has_log() { self.journal.committed_tid() } else { Tid::MAX }
    }

    /// Begins a group of changes that take effect together, of at most `credits` blocks.
    pub fn begin(&self, credits: usize) -> Result<Tx> {
        Ok(Tx { handle: self.journal.start(credits as u32)?, count: self.count })
    }
}

/// Changes that take effect together; dropping it ends them.
pub(crate) struct Tx {
    handle: Handle,
    count: u64,
}

impl Tx {
    /// The transaction's number.
    pub fn tid(&self) -> Tid {
        self.handle.tid()
    }

    /// Changes a block.
    pub fn write<R>(&self, buf: &Arc<Buf>, f: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        Ok(f(&mut self.handle.write(buf)?))
    }

    /// A block that is newly in use as metadata, zeroed.
    pub fn create(&self, number: u64) -> Result<Arc<Buf>> {
        if number >= self.count {
            return Err(Errno::EUCLEAN);
        }
        let buf = self.handle.create(number)?;
        buf.set_flags(VERIFIED);
        Ok(buf)
    }

    /// The block is no metadata any more: its changes need not, and must not, reach the disk.
    pub fn forget(&self, number: u64) -> Result<()> {
        self.handle.forget(number)
    }
}
