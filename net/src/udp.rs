//! UDP (RFC 768).
//!
//! Endpoints stand in 64 buckets by local port; a datagram looks at one. The most specific endpoint gets it (connected to
//! the sender, then bound to the address, then to any); among equals of `SO_REUSEPORT` the sender's hash chooses.

use crate::Stack;
use crate::config::NetIf;
use crate::input::Arrival;
use crate::packet::{self, Tuple, be16, put16};
use crate::socket::ready;
use abi::{Errno, Result};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::{AtomicUsize, Ordering};
use sync::{LockClass, SpinLock, WaitQueue};

static BUCKET: LockClass = LockClass::new("udp bucket", 550);
static QUEUE: LockClass = LockClass::new("udp endpoint", 555);

/// A datagram in a queue.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// From whom.
    pub from: (IpAddr, u16),
    /// To which of our addresses.
    pub to: IpAddr,
    /// By which interface.
    pub index: u32,
    /// Hops it had left.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Its bytes.
    pub data: Vec<u8>,
    /// When it came, on the real-time clock.
    pub at: u64,
}

/// What each datagram costs of a queue's limit beside its bytes.
const OVERHEAD: usize = 256;

/// Datagrams that wait to be received, bounded in bytes.
pub struct Queue {
    inner: SpinLock<QueueInner>,
    limit: AtomicUsize,
    /// Woken when something comes.
    pub readable: Arc<WaitQueue>,
}

#[derive(Default)]
struct QueueInner {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    error: Option<Errno>,
    drops: u64,
}

impl Queue {
    /// An empty queue of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let inner = SpinLock::new(&QUEUE, QueueInner::default());
        Queue { inner, limit: AtomicUsize::new(limit), readable: Arc::new(WaitQueue::new()) }
    }

    /// Sets the limit.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// Puts a datagram in, unless it is full.
    pub fn push(&self, d: Datagram) -> bool {
        let mut q = self.inner.lock();
        let size = d.data.len() + OVERHEAD;
        if q.bytes + size > self.limit.load(Ordering::Relaxed) {
            q.drops += 1;
            return false;
        }
        q.bytes += size;
        q.datagrams.push_back(d);
        drop(q);
        self.readable.wake();
        true
    }

    /// Takes the first out, or copies it. `EAGAIN`, or an error that was reported to the endpoint.
    pub fn pop(&self, peek: bool) -> Result<Datagram> {
        let mut q = self.inner.lock();
        if let Some(e) = q.error.take() {
            return Err(e);
        }
        if peek {
            return q.datagrams.front().cloned().ok_or(Errno::EAGAIN);
        }
        let d = q.datagrams.pop_front().ok_or(Errno::EAGAIN)?;
        q.bytes -= d.data.len() + OVERHEAD;
        Ok(d)
    }

    /// The first one's length.
    pub fn first_len(&self) -> Option<usize> {
        self.inner.lock().datagrams.front().map(|d| d.data.len())
    }

    /// Bytes in the queue, for `/proc/net/udp`.
    pub fn len(&self) -> usize {
        self.inner.lock().bytes
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.inner.lock().datagrams.is_empty()
    }

    /// How many datagrams found it full.
    pub fn drops(&self) -> u64 {
        self.inner.lock().drops
    }

    /// Sets the pending error (`SO_ERROR`).
    pub fn set_error(&self, e: Errno) {
        self.inner.lock().error = Some(e);
        self.readable.wake_all();
    }

    /// Takes the pending error.
    pub fn take_error(&self) -> Option<Errno> {
        self.inner.lock().error.take()
    }

    /// Whether an error is pending.
    pub fn has_error(&self) -> bool {
        self.inner.lock().error.is_some()
    }

    /// poll(2)'s bits for what is in it ([`ready`]).
    pub fn ready(&self) -> u32 {
        let data = if self.is_empty() { 0 } else { ready::IN };
        data | if self.has_error() { ready::ERR } else { 0 }
    }
}

/// A bound endpoint.
pub struct Endpoint {
    /// Its address (perhaps unspecified) and port.
    pub local: (IpAddr, u16),
    /// To whom it is connected.
    pub remote: Option<(IpAddr, u16)>,
    /// IPv6 only.
    pub v6only: bool,
    /// The interface it is bound to; 0: any.
    pub bound: u32,
    /// What came.
    pub queue: Arc<Queue>,
}

const BUCKETS: usize = 64;

/// All endpoints.
pub struct Udp {
    buckets: [SpinLock<Vec<Arc<Endpoint>>>; BUCKETS],
}

impl Endpoint {
    /// How well it fits a datagram; 0: not at all.
    fn score(&self, to: IpAddr, from: (IpAddr, u16), index: u32) -> u32 {
        let any =
            self.local.0.is_unspecified() && (self.local.0.is_ipv4() == to.is_ipv4() || (to.is_ipv4() && !self.v6only));
        if (self.bound != 0 && self.bound != index) || !(any || self.local.0 == to) {
            return 0;
        }
        match self.remote {
            Some(r) if r != from => 0,
            r => 1 + u32::from(!any) + 2 * u32::from(self.bound != 0) + 4 * u32::from(r.is_some()),
        }
    }
}

impl Udp {
    pub(crate) fn new() -> Self {
        Udp { buckets: core::array::from_fn(|_| SpinLock::new(&BUCKET, Vec::new())) }
    }

    /// Puts an endpoint where datagrams find it.
    pub fn insert(&self, e: Arc<Endpoint>) {
        self.buckets[usize::from(e.local.1) % BUCKETS].lock().push(e);
    }

    /// Takes it out.
    pub fn remove(&self, e: &Arc<Endpoint>) {
        self.buckets[usize::from(e.local.1) % BUCKETS].lock().retain(|o| !Arc::ptr_eq(o, e));
    }

    /// All of them, for `/proc/net/udp`.
    pub fn list(&self) -> Vec<Arc<Endpoint>> {
        self.buckets.iter().flat_map(|b| b.lock().clone()).collect()
    }

    /// Who is to get a datagram: one, or for groups all that fit.
    fn find(&self, to: (IpAddr, u16), from: (IpAddr, u16), index: u32, group: bool, hash: u64) -> Vec<Arc<Endpoint>> {
        let bucket = self.buckets[usize::from(to.1) % BUCKETS].lock();
        let score = |e: &Endpoint| {
            if e.local.1 != to.1 {
                return 0;
            }
            if group && e.local.0.is_unspecified() && e.local.0.is_ipv4() == to.0.is_ipv4() {
                return u32::from(e.remote.is_none_or(|r| r == from));
            }
            e.score(to.0, from, index)
        };
        if group {
            return bucket.iter().filter(|e| score(e) > 0).cloned().collect();
        }
        let best = bucket.iter().map(|e| score(e)).max().unwrap_or(0);
        if best == 0 {
            return Vec::new();
        }
        let equal = || bucket.iter().filter(|e| score(e) == best);
        let n = equal().count();
        equal().nth((hash % n as u64) as usize).cloned().into_iter().collect()
    }

    /// A datagram that was sent along `tuple` did not arrive.
    pub(crate) fn error(&self, tuple: &Tuple, errno: Errno, hard: bool) {
        for e in self.find(tuple.local, tuple.remote, 0, false, 0) {
            // As Linux without IP_RECVERR: connected endpoints hear of hard errors.
            if e.remote.is_some() && hard {
                e.queue.set_error(errno);
            }
        }
    }
}

impl Stack {
    pub(crate) fn udp_input(&self, a: &Arrival<'_>, group: bool) -> Option<()> {
        let u = a.payload();
        let len = usize::from(be16(u, 4)?);
        if len < 8 || len > u.len() {
            return None;
        }
        // No checksum is allowed over IPv4 only.
        if be16(u, 6)? == 0 && !a.trusted {
            if a.ip.dst.is_ipv6() {
                return None;
            }
        } else if !a.sum_ok() {
            self.count(|c| &c.bad_checksum);
            return None;
        }
        let from = (a.ip.src, be16(u, 0)?);
        let to = (a.ip.dst, be16(u, 2)?);
        let hash = self.key.hash(&Tuple { local: to, remote: from }.words());
        let found = self.udp.find(to, from, a.netif.index, group, hash);
        if found.is_empty() {
            self.count(|c| &c.no_port);
            if !group {
                self.send_unreachable(a, 3);
            }
            return Some(());
        }
        for e in found {
            let d = Datagram {
                from,
                to: a.ip.dst,
                index: a.netif.index,
                ttl: a.ip.ttl,
                tos: a.ip.tos,
                data: u[8..len].to_vec(),
                at: platform::realtime_ns(),
            };
            if !e.queue.push(d) {
                self.count(|c| &c.queue_full);
            }
        }
        Some(())
    }

    /// Sends a datagram by `hop`. `EMSGSIZE`, `EINVAL`.
    pub fn udp_send(
        &self,
        hop: &crate::config::Hop,
        from: (IpAddr, u16),
        to: (IpAddr, u16),
        data: &[u8],
        ttl: u8,
        tos: u8,
    ) -> Result<()> {
        let len = u16::try_from(data.len() + 8).map_err(|_| Errno::EMSGSIZE)?;
        let built = packet::build_ip(from.0, to.0, packet::UDP, ttl, tos, len.into());
        let (mut p, at) = built.ok_or(Errno::EMSGSIZE)?;
        let b = &mut p.bytes_mut()[at..];
        put16(b, 0, from.1);
        put16(b, 2, to.1);
        put16(b, 4, len);
        b[8..].copy_from_slice(data);
        let ip = packet::parse_ip(p.bytes()).ok_or(Errno::EINVAL)?;
        self.output_by(p, &ip, hop)
    }

    /// The interface that a datagram came by, for callers that know its number.
    pub fn interface(&self, index: u32) -> Option<Arc<NetIf>> {
        self.config().interface(index).map(|i| i.netif.clone())
    }
}
