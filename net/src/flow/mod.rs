//! One TCP connection: a smoltcp interface with one socket, under one lock.
//!
//! # Ideas
//! Whatever happens to a connection (a segment, a deadline, a call of its owner) is one step ([`Flow::drive`]): under the
//! lock smoltcp takes the segment and says what to send and when to be called again; after the lock is released, sleepers
//! are woken, segments go out and the deadline is entered. smoltcp is asked for the protocol only; giving up is decided
//! here (it knows one time-out for everything), as Linux does: 127 s without an answer to a SYN, 924 s without progress
//! of data (or `TCP_USER_TIMEOUT`), keep-alive by idle time, interval and count, 60 s for the last half of a connection
//! that its owner has closed.
//!
//! # Memory
//! Rings have the size that the owner asked for (`SO_RCVBUF`, `SO_SNDBUF`), else they are small at first and grow with what
//! goes through them ([`resize`]), as far as the stack's limit has room. A connection in TIME_WAIT that nobody holds is a record of a few words without rings.

mod cork;
mod inner;
mod port;
mod resize;

use crate::config::Hop;
use crate::packet::{Packet, Tuple};
use crate::tcp::TcpOptions;
use crate::timers::Target;
use crate::{Stack, tcp};
use abi::{Errno, Result};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use inner::{Inner, Seen};
use smoltcp::socket::tcp::Socket;
pub use smoltcp::socket::tcp::State;
use smoltcp::time::Duration;
use sync::{LockClass, SpinLock, WaitQueue};

static CLASS: LockClass = LockClass::new("flow", 545);

/// The ring for sending, before anything larger is sent.
const FIRST_SNDBUF: usize = 4 << 10;
const SEC: u64 = 1_000_000_000;
const SYN_TIMEOUT: u64 = 127 * SEC;
const DATA_TIMEOUT: u64 = 924 * SEC;
const ORPHAN_TIMEOUT: u64 = 60 * SEC;

/// A connection.
pub struct Flow {
    /// Who talks to whom.
    pub tuple: Tuple,
    me: Weak<Flow>,
    inner: SpinLock<Inner>,
    /// Woken when there may be something to read, or an end.
    pub readable: Arc<WaitQueue>,
    /// Woken when there may be room to write, or an end.
    pub writable: Arc<WaitQueue>,
    /// The deadline that it is entered for.
    armed: AtomicU64,
    charged: Charge,
}

/// Memory counted against the stack's limit.
struct Charge {
    stack: Weak<Stack>,
    bytes: AtomicUsize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(stack) = self.stack.upgrade() {
            stack.buffered.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// A connection's state for reports, and what may be done with it.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// TCP's state.
    pub state: State,
    /// Bytes to read.
    pub readable: usize,
    /// Bytes of room to write.
    pub room: usize,
    /// Bytes not acknowledged yet.
    pub unsent: usize,
    /// No more bytes will come.
    pub ended: bool,
    /// An error is pending.
    pub error: bool,
    /// Capacity for sending.
    pub capacity: usize,
}

impl Status {
    /// Whether the handshake is over.
    pub fn is_connecting(&self) -> bool {
        matches!(self.state, State::SynSent | State::SynReceived)
    }
}

impl Flow {
    /// A new connection, closed yet. `ENOBUFS`: the stack's limit is reached.
    fn new(stack: &Stack, tuple: Tuple, options: &TcpOptions, mtu: usize, seed: u64, rcv: usize) -> Result<Arc<Flow>> {
        // A packet with its headroom fits a kept buffer.
        let mtu = mtu.min(crate::pool::SIZE - crate::packet::HEADROOM);
        let snd = options.sndbuf.unwrap_or(FIRST_SNDBUF);
        let bytes = rcv + snd + core::mem::size_of::<Flow>() + 512;
        let charged = Charge { stack: stack.me.clone(), bytes: AtomicUsize::new(0) };
        if stack.buffered.fetch_add(bytes, Ordering::Relaxed) + bytes > stack.limits.buffers {
            stack.buffered.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Errno::ENOBUFS);
        }
        charged.bytes.store(bytes, Ordering::Relaxed);
        let now = stack.env.now_ns();
        let (iface, sockets, handle) = Inner::fresh(tuple, options, mtu, seed, now, [rcv, snd])?;
        let inner = Inner {
            iface,
            sockets,
            handle,
            error: None,
            options: options.clone(),
            seen: Seen::default(),
            tuple,
            mtu,
            orphan: false,
            deaf: false,
            owed_since: None,
            last_rx: now,
            taken: 0,
            filled: 0,
            draining: false,
            held: Vec::new(),
            held_since: None,
            probing: false,
            hop: None,
            gone: false,
        };
        let fresh = || [Arc::new(WaitQueue::new()), Arc::new(WaitQueue::new())];
        let [readable, writable] = options.queues.clone().unwrap_or_else(fresh);
        Ok(Arc::new_cyclic(|me| Flow {
            tuple,
            me: me.clone(),
            inner: SpinLock::new(&CLASS, inner),
            readable,
            writable,
            armed: AtomicU64::new(u64::MAX),
            charged,
        }))
    }

    /// Begins to connect. `EADDRNOTAVAIL`: the tuple is in use.
    pub(crate) fn connect(stack: &Stack, tuple: Tuple, options: &TcpOptions, mtu: usize) -> Result<Arc<Flow>> {
        let rcv = options.rcvbuf.unwrap_or_else(|| stack.default_buffer());
        let flow = Flow::new(stack, tuple, options, mtu, stack.env.random(), rcv)?;
        {
            let mut inner = flow.inner.lock();
            let inner = &mut *inner;
            let socket: &mut Socket<'static> = inner.sockets.get_mut(inner.handle);
            let r = socket.connect(inner.iface.context(), tuple.remote, tuple.local);
            r.map_err(|_| Errno::EADDRNOTAVAIL)?;
        }
        if !stack.tcp.insert(&flow) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        flow.drive(stack);
        Ok(flow)
    }

    /// A connection whose handshake a listener has made: `syn` is the peer's first segment as an IP packet, `seed` gives
    /// the first sequence number that it was answered with, `rcv` the window that it was told.
    pub(crate) fn accepted(
        stack: &Stack,
        tuple: Tuple,
        options: &TcpOptions,
        mtu: usize,
        seed: u64,
        rcv: usize,
        syn: &[u8],
    ) -> Result<Arc<Flow>> {
        let flow = Flow::new(stack, tuple, options, mtu, seed, rcv)?;
        {
            let mut inner = flow.inner.lock();
            let now = stack.env.now_ns();
            inner.socket().listen(tuple.local.1).map_err(|_| Errno::EINVAL)?;
            // The answer was sent long ago; this one is for nobody.
            let mut out = Vec::new();
            inner.take(syn, now, &mut out);
            inner.poll(now, &mut out);
            if inner.socket().state() != State::SynReceived {
                return Err(Errno::EINVAL);
            }
            inner.begin(syn);
        }
        if !stack.tcp.insert(&flow) {
            return Err(Errno::EADDRINUSE);
        }
        Ok(flow)
    }

    /// One step; see the module.
    fn drive(&self, stack: &Stack) {
        self.step(stack, |_, _| ());
    }

    /// One step with segments, as IP packets, in the order in which they came. One look at what is to be sent and one wake-up
    /// serve all of them, so that one acknowledgement does. Returns how many were taken: those behind the connection's
    /// end are no longer for it.
    pub(crate) fn segments<'a>(&self, stack: &Stack, all: impl Iterator<Item = &'a [u8]>) -> usize {
        let now = stack.env.now_ns();
        self.step(stack, |inner, out| {
            let mut taken = 0;
            for segment in all {
                inner.take(segment, now, out);
                taken += 1;
                if matches!(inner.socket().state(), State::Closed | State::TimeWait) {
                    break;
                }
            }
            taken
        })
    }

    fn step<R>(&self, stack: &Stack, act: impl FnOnce(&mut Inner, &mut Vec<Packet>) -> R) -> R {
        let now = stack.env.now_ns();
        let mut out = Vec::new();
        let mut inner = self.inner.lock();
        let before = inner.status();
        let r = act(&mut inner, &mut out);
        let corked = inner.uncork_late(now);
        inner.poll(now, &mut out);
        let (mut deadline, again) = inner.patience(now);
        if again || inner.socket().state() == State::Closed {
            inner.poll(now, &mut out);
        }
        let after = inner.status();
        let fin = inner.seen;
        let dead = after.state == State::Closed && !inner.gone;
        let waits = inner.orphan && after.state == State::TimeWait && !inner.gone;
        inner.gone |= dead || waits;
        if !inner.gone
            && let Some(at) = inner.next_deadline(now)
        {
            deadline = Some(deadline.map_or(at, |d: u64| d.min(at)));
        }
        deadline = [deadline, corked].into_iter().flatten().min();
        let hop = if out.is_empty() { None } else { self.hop(stack, &mut inner) };
        let mtu = inner.mtu;
        drop(inner);

        if dead {
            stack.tcp.remove(&self.tuple);
            if after.error && before.state != State::Closed {
                stack.count(|c| &c.timeouts);
            }
        }
        if waits {
            stack.tcp.time_wait(stack, self.tuple, fin.snd_nxt, fin.fin.unwrap_or(fin.ack), fin.ack);
        }
        if let Some(at) = deadline.filter(|_| !dead && !waits) {
            self.arm(stack, at);
        }
        let changed = before.state != after.state || before.error != after.error;
        if changed || after.readable > before.readable || after.ended != before.ended {
            self.readable.wake();
        }
        if changed || (after.room > before.room && after.room >= after.capacity / 3) {
            self.writable.wake();
        }
        if changed {
            self.readable.wake_all();
            self.writable.wake_all();
        }
        tcp::send_segments(stack, out, hop.as_ref(), mtu);
        r
    }

    /// The way to the peer, looked up again when something has changed. None also while this host may not use its own address:
    /// it is being checked again, or another has it.
    fn hop(&self, stack: &Stack, inner: &mut Inner) -> Option<Hop> {
        let generation = stack.generation();
        if let Some((g, hop)) = &inner.hop
            && *g == generation
        {
            return Some(hop.clone());
        }
        let config = stack.config();
        let hop = config.route(self.tuple.remote.0, inner.options.bound).ok()?;
        if self.tuple.local.0.is_ipv6() && !config.is_local(self.tuple.local.0) {
            return None;
        }
        inner.hop = Some((generation, hop.clone()));
        Some(hop)
    }

    fn arm(&self, stack: &Stack, at: u64) {
        if self.armed.fetch_min(at, Ordering::AcqRel) > at {
            stack.timers.arm(&*stack.env, at, Target::Flow(self.me.clone()));
        }
    }

    /// An entry of its deadlines came up.
    pub(crate) fn timer(&self, stack: &Stack) {
        let now = stack.env.now_ns();
        // Entries for later ones stay; they find nothing to do.
        if self.armed.load(Ordering::Acquire) <= now {
            self.armed.store(u64::MAX, Ordering::Release);
        }
        self.drive(stack);
    }

    pub(crate) fn icmp_error(&self, stack: &Stack, seq: Option<u32>, errno: Errno) {
        self.step(stack, |inner, _| {
            let connecting = inner.socket().state() == State::SynSent;
            if connecting && errno != Errno::EMSGSIZE && seq.is_none_or(|s| s.wrapping_add(1) == inner.seen.snd_nxt) {
                inner.error = Some(errno);
                inner.socket().close();
            }
        });
    }

    /// The path carries at most `mtu` bytes from now on.
    pub(crate) fn path_mtu(&self, mtu: usize) {
        let mut inner = self.inner.lock();
        let least = if self.tuple.local.0.is_ipv4() { 552 } else { 1280 };
        inner.mtu = inner.mtu.min(mtu.max(least));
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        self.inner.lock().status()
    }

    /// Takes the pending error.
    pub fn take_error(&self) -> Option<Errno> {
        self.inner.lock().error.take()
    }

    /// Sends bytes; how many fitted. `EAGAIN`, `EPIPE`, or the pending error.
    pub fn send(&self, stack: &Stack, data: &[u8]) -> Result<usize> {
        self.send_of(stack, data, data.len(), false)
    }

    /// As [`Flow::send`]; `whole` says how many bytes the owner has in all, these included, and `more` that others follow soon
    /// (`MSG_MORE`).
    pub fn send_of(&self, stack: &Stack, data: &[u8], whole: usize, more: bool) -> Result<usize> {
        let now = stack.env.now_ns();
        self.step(stack, |inner, _| {
            if let Some(e) = inner.error.take() {
                return Err(e);
            }
            match inner.socket().state() {
                State::SynSent | State::SynReceived => return Err(Errno::EAGAIN),
                State::Established | State::CloseWait => {}
                _ => return Err(Errno::EPIPE),
            }
            self.grow_for_sending(stack, inner, whole);
            if inner.draining {
                return Err(Errno::EAGAIN);
            }
            let hold = more || inner.options.cork;
            let sent = inner.put(data, hold, now);
            self.note_full(stack, inner);
            match sent {
                Some(0) if !data.is_empty() => Err(Errno::EAGAIN),
                Some(n) => Ok(n),
                None => Err(Errno::EPIPE),
            }
        })
    }

    /// Receives bytes into `buf`; 0 at the end. `EAGAIN`, or the pending error.
    pub fn recv(&self, stack: &Stack, buf: &mut [u8], peek: bool) -> Result<usize> {
        let mut out = Vec::new();
        let mut take = |inner: &mut Inner| {
            let status = inner.status();
            if status.readable > 0 {
                let s = inner.socket();
                let n = if peek { s.peek_slice(buf) } else { s.recv_slice(buf) }.map_err(|_| Errno::EAGAIN)?;
                if !peek {
                    inner.seen.unread = inner.seen.unread.wrapping_add(n as u32);
                    inner.taken += n;
                    self.grow_for_receiving(stack, inner, &mut out);
                }
                return Ok(n);
            }
            match inner.error.take() {
                Some(e) => Err(e),
                None if status.ended => Ok(0),
                None => Err(Errno::EAGAIN),
            }
        };
        if peek {
            return take(&mut self.inner.lock());
        }
        let r = self.step(stack, |inner, _| take(inner));
        for p in out {
            let _ = stack.output(p);
        }
        r
    }

    /// No more bytes will be sent: those queued are, then FIN. `ENOTCONN`.
    pub fn shutdown_write(&self, stack: &Stack) -> Result<()> {
        self.step(stack, |inner, _| match inner.socket().state() {
            State::SynSent | State::Closed | State::Listen => Err(Errno::ENOTCONN),
            _ => {
                inner.uncork();
                inner.socket().close();
                Ok(())
            }
        })
    }

    /// No more bytes will be read.
    pub fn shutdown_read(&self) {
        self.inner.lock().deaf = true;
        self.readable.wake_all();
    }

    /// The owner goes. With `reset`, or when bytes were not read, the peer is told so by RST.
    pub fn close(&self, stack: &Stack, reset: bool) {
        self.step(stack, |inner, _| {
            inner.orphan = true;
            inner.owed_since = None;
            if reset || inner.socket().recv_queue() > 0 {
                inner.socket().abort();
            } else {
                inner.uncork();
                inner.socket().close();
            }
        });
    }

    /// Changes options.
    pub fn set_options(&self, stack: &Stack, options: &TcpOptions) {
        self.step(stack, |inner, _| {
            inner.options = options.clone();
            if !options.cork {
                inner.uncork();
            }
            let (nagle, quick) = (!options.nodelay, options.quickack);
            let s = inner.socket();
            s.set_nagle_enabled(nagle);
            s.set_ack_delay(if quick { None } else { Some(Duration::from_millis(10)) });
            if let Some(ttl) = options.ttl.filter(|t| *t > 0) {
                s.set_hop_limit(Some(ttl));
            }
        });
    }

    /// Bytes of memory that it counts for.
    pub fn memory(&self) -> usize {
        self.charged.bytes.load(Ordering::Relaxed)
    }
}

impl Stack {
    /// A connection's receive buffer at its beginning when nobody said how large: by how much of the limit is left. Most of
    /// it is left to the smallest, so that ten thousand idle connections fit where a few busy ones do.
    pub(crate) fn default_buffer(&self) -> usize {
        match self.pressure() {
            0..2 => 32 << 10,
            2..4 => 16 << 10,
            4..6 => 8 << 10,
            _ => 4 << 10,
        }
    }

    /// How large a connection's buffers may grow now.
    pub(crate) fn largest_buffer(&self) -> usize {
        match self.pressure() {
            0..2 => 1 << 20,
            2..4 => 256 << 10,
            4..8 => 64 << 10,
            8..12 => 16 << 10,
            _ => 8 << 10,
        }
    }

    /// Sixteenths of the limit that are in use.
    fn pressure(&self) -> usize {
        self.buffered.load(Ordering::Relaxed) * 16 / self.limits.buffers.max(1)
    }

    /// Bytes of connections' buffers now.
    pub fn buffered(&self) -> usize {
        self.buffered.load(Ordering::Relaxed)
    }
}
