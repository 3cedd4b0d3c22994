//! Connections: who is idle, who makes way, and whether bytes move.
//!
//! Every connection has a [`Slot`]. It is idle from the moment it is accepted until its first request, and between requests.
//! [`Slots`] keeps the idle ones in the order in which they became so; when there are as many connections as allowed (or
//! descriptors run out) the first of them is told to end. So ten thousand idle connections hold at most the limit, and a
//! new client always finds room unless all connections are busy, in which case it waits in the listener's backlog.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use crate::metrics::{COUNTERS, OPEN, count};

/// All connections.
pub struct Slots {
    limit: usize,
    open: AtomicU64,
    serial: AtomicU64,
    idle: Mutex<BTreeMap<u64, Arc<Slot>>>,
    /// A connection has ended.
    freed: Notify,
    /// The server ends: connections go as soon as they are idle.
    pub draining: AtomicBool,
}

/// One connection.
pub struct Slot {
    slots: Arc<Slots>,
    /// The key among the idle ones, 0 while busy.
    rank: AtomicU64,
    requests: AtomicU32,
    since: Mutex<Instant>,
    /// It shall end.
    pub kicked: Notify,
}

impl Slots {
    /// Room for `limit` connections.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open: AtomicU64::new(0),
            serial: AtomicU64::new(1),
            idle: Mutex::new(BTreeMap::new()),
            freed: Notify::new(),
            draining: AtomicBool::new(false),
        })
    }

    fn idle(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Slot>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for one more; idle connections make way.
    pub async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if (self.open.load(Ordering::Acquire) as usize) < self.limit {
                return;
            }
            self.evict();
            // The timeout covers a connection that takes long to end; then the next one is told.
            let _ = tokio::time::timeout(Duration::from_millis(200), freed).await;
        }
    }

    /// Tells the connection that is idle the longest to end.
    pub fn evict(&self) {
        if let Some((_, slot)) = self.idle().pop_first() {
            slot.rank.store(0, Ordering::Release);
            count(&COUNTERS.evicted);
            slot.kicked.notify_one();
        }
    }

    /// The end: every idle connection goes now, the others after the requests that they are at.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        for slot in std::mem::take(&mut *self.idle()).into_values() {
            slot.kicked.notify_one();
        }
        self.freed.notify_waiters();
    }

    /// How many connections there are.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Acquire)
    }

    /// A new connection, idle.
    pub fn enter(self: &Arc<Self>) -> Guard {
        self.open.fetch_add(1, Ordering::AcqRel);
        OPEN.fetch_add(1, Ordering::Relaxed);
        count(&COUNTERS.connections);
        let slot = Arc::new(Slot {
            slots: self.clone(),
            rank: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            since: Mutex::new(Instant::now()),
            kicked: Notify::new(),
        });
        slot.rest();
        Guard(slot)
    }
}

/// A connection's life.
pub struct Guard(pub Arc<Slot>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.wake();
        let slots = &self.0.slots;
        slots.open.fetch_sub(1, Ordering::AcqRel);
        OPEN.fetch_sub(1, Ordering::Relaxed);
        slots.freed.notify_one();
    }
}

impl Slot {
    fn rest(self: &Arc<Self>) {
        let rank = self.slots.serial.fetch_add(1, Ordering::Relaxed);
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let mut idle = self.slots.idle();
        self.rank.store(rank, Ordering::Release);
        idle.insert(rank, self.clone());
    }

    fn wake(&self) {
        let mut idle = self.slots.idle();
        let rank = self.rank.swap(0, Ordering::AcqRel);
        if rank != 0 {
            idle.remove(&rank);
        }
    }

    /// How long it has been idle; none while it is busy.
    pub fn idle_for(&self) -> Option<Duration> {
        let idle = self.requests.load(Ordering::Acquire) == 0;
        idle.then(|| self.since.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }

    /// A request begins; it is over when the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        if self.requests.fetch_add(1, Ordering::AcqRel) == 0 {
            self.wake();
        }
        Busy(self.clone())
    }
}

/// A request in progress.
pub struct Busy(Arc<Slot>);

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.requests.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.rest();
            if self.0.slots.draining.load(Ordering::Acquire) {
                self.0.kicked.notify_one();
            }
        }
    }
}

/// A stream whose writes must make progress: a client that never reads is cut off after `limit`.
pub struct Moving<S> {
    inner: S,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Moving<S> {
    /// `inner`, with writes that may stand still for `limit`.
    pub fn new(inner: S, limit: Duration) -> Self {
        Self { inner, limit, waiting: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = None;
            return result;
        }
        let limit = self.limit;
        let sleep = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if sleep.as_mut().poll(cx).is_ready() {
            count(&COUNTERS.stalled);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Moving<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Moving<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_makes_way_and_the_busy_stay() {
        let slots = Slots::new(3);
        let (a, b, c) = (slots.enter(), slots.enter(), slots.enter());
        let busy = a.0.begin();
        assert!(a.0.idle_for().is_none() && b.0.idle_for().is_some());
        slots.evict();
        assert_eq!(slots.idle().values().map(|s| Arc::ptr_eq(s, &c.0)).collect::<Vec<_>>(), [true]);
        drop(busy);
        assert_eq!(slots.idle().len(), 2);
        drop((a, b, c));
        assert_eq!((slots.idle().len(), slots.open()), (0, 0));
    }
}
