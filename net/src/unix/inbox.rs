//! What a unix socket receives into.

use crate::socket::{Cred, Passed};
use abi::{Errno, Result};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use sync::{LockClass, SpinLock, WaitQueue};

static INBOX: LockClass = LockClass::new("unix inbox", 515);
/// Bytes that an inbox holds.
pub(super) const LIMIT: usize = 212_992;
/// What each record costs of that.
pub(super) const OVERHEAD: usize = 64;

pub(super) struct Record {
    pub(super) data: Vec<u8>,
    pub(super) at: usize,
    pub(super) files: Vec<Passed>,
    pub(super) cred: Cred,
    pub(super) from: Vec<u8>,
}

#[derive(Default)]
pub(super) struct InboxInner {
    pub(super) records: VecDeque<Record>,
    pub(super) bytes: usize,
    /// Nobody will send any more.
    pub(super) ended: bool,
    /// Nobody will receive any more.
    pub(super) refused: bool,
    pub(super) error: Option<Errno>,
    /// The peer's writers' queue.
    pub(super) writer: Option<Arc<WaitQueue>>,
}

pub(super) struct Inbox {
    pub(super) inner: SpinLock<InboxInner>,
    pub(super) readable: Arc<WaitQueue>,
    pub(super) room: WaitQueue,
}

impl Inbox {
    /// An empty one whose receivers wait at `readable`.
    pub(super) fn new(readable: Arc<WaitQueue>) -> Inbox {
        Inbox { inner: SpinLock::new(&INBOX, InboxInner::default()), readable, room: WaitQueue::new() }
    }

    pub(super) fn woken_writers(&self, inner: &InboxInner) -> Option<Arc<WaitQueue>> {
        inner.writer.clone()
    }

    /// Puts a record in. Gives it back when there is no room. `EPIPE`.
    pub(super) fn push(&self, record: Record, merge: bool) -> Result<core::result::Result<(), Record>> {
        let mut inner = self.inner.lock();
        if inner.refused {
            drop(inner);
            return Err(Errno::EPIPE);
        }
        let size = record.data.len() + OVERHEAD;
        // A stream's chunk, for which some room was seen, may go over the limit: it cannot be given back to its sender.
        let needs = if merge { OVERHEAD } else { size };
        if inner.bytes > 0 && inner.bytes + needs > LIMIT {
            return Ok(Err(record));
        }
        match inner.records.back_mut() {
            Some(last)
                if merge
                    && last.files.is_empty()
                    && record.files.is_empty()
                    && last.cred == record.cred
                    && last.data.len() + record.data.len() <= 4096 =>
            {
                last.data.extend_from_slice(&record.data);
                inner.bytes += record.data.len();
            }
            _ => {
                inner.bytes += size;
                inner.records.push_back(record);
            }
        }
        drop(inner);
        self.readable.wake();
        Ok(Ok(()))
    }

    /// No more will be sent here; `error` tells the receiver why.
    pub(super) fn end(&self, error: Option<Errno>) {
        let mut inner = self.inner.lock();
        inner.ended = true;
        if error.is_some() {
            inner.error = error;
        }
        drop(inner);
        self.readable.wake_all();
    }

    /// No more will be received; what was not is given back for dropping.
    pub(super) fn refuse(&self) -> VecDeque<Record> {
        let mut inner = self.inner.lock();
        inner.refused = true;
        inner.bytes = 0;
        let rest = core::mem::take(&mut inner.records);
        let writer = self.woken_writers(&inner);
        drop(inner);
        self.readable.wake_all();
        self.room.wake_all();
        if let Some(w) = writer {
            w.wake_all();
        }
        rest
    }
}
