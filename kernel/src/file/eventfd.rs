//! Event counters (eventfd(2)).
//!
//! The counter is one atomic word, changed by compare-and-swap; sleepers wait on one queue for it to become non-zero or to
//! have room. Nothing is locked.

use super::anonymous_attr;
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use platform::{ParkOptions, ReadSink, SharedBytes, SharedBytesMut, WriteSource};
use sync::WaitQueue;
use vfs::{Attr, File, Io, PollEvents, Poller};

/// The highest value of a counter.
const MAX: u64 = u64::MAX - 1;

const INTERRUPTIBLE: ParkOptions = ParkOptions { interruptible: true, deadline_ns: None };

/// An event counter.
#[derive(Debug)]
pub struct EventFd {
    count: AtomicU64,
    /// Reads take one, not all.
    semaphore: bool,
    waiters: Arc<WaitQueue>,
}

impl EventFd {
    /// A counter that starts at `count`.
    pub fn new(count: u32, semaphore: bool) -> Arc<EventFd> {
        Arc::new(EventFd { count: AtomicU64::new(count.into()), semaphore, waiters: Arc::new(WaitQueue::new()) })
    }

    /// Takes from the counter, if it is not zero.
    fn take(&self) -> Option<u64> {
        let left = |n: u64| if self.semaphore { n.checked_sub(1) } else { (n > 0).then_some(0) };
        let old = self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, left).ok()?;
        Some(if self.semaphore { 1 } else { old })
    }

    /// Adds to the counter, if it fits.
    fn add(&self, n: u64) -> Option<()> {
        let sum = |old: u64| old.checked_add(n).filter(|&s| s <= MAX);
        self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, sum).ok().map(|_| ())
    }

    /// Tries `attempt` until it works or the call must end.
    fn until<R>(&self, nonblock: bool, mut attempt: impl FnMut() -> Option<R>) -> Result<R> {
        match attempt() {
            Some(r) => Ok(r),
            None if nonblock => Err(Errno::EAGAIN),
            None => self.waiters.wait_until(INTERRUPTIBLE, attempt).map_err(|_| Errno::ERESTARTSYS),
        }
    }
}

impl File for EventFd {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        if sink.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let n = self.until(io.nonblock, || self.take())?;
        self.waiters.wake();
        match sink.put(SharedBytes::from(&n.to_ne_bytes()[..])) {
            Ok(8) => Ok(8),
            _ => Err(Errno::EFAULT),
        }
    }

    fn write(&self, io: Io, source: &mut dyn WriteSource) -> Result<usize> {
        let mut bytes = [0; 8];
        if source.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        if source.get(SharedBytesMut::from(&mut bytes[..])) != Ok(8) {
            return Err(Errno::EFAULT);
        }
        let n = u64::from_ne_bytes(bytes);
        if n > MAX {
            return Err(Errno::EINVAL);
        }
        self.until(io.nonblock, || self.add(n))?;
        self.waiters.wake();
        Ok(8)
    }

    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        if let Some(p) = poller {
            p.register(&self.waiters);
        }
        let n = self.count.load(Ordering::Acquire);
        PollEvents::POLLIN.when(n > 0).and(PollEvents::POLLOUT.when(n < MAX))
    }

    fn getattr(&self) -> Result<Attr> {
        Ok(anonymous_attr())
    }

    fn name(&self) -> Vec<u8> {
        b"anon_inode:[eventfd]".to_vec()
    }
}
