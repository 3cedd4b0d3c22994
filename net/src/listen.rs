//! Listeners: half-open connections, SYN cookies, the accept queue.
//!
//! # Policy
//! - A SYN costs a record of a few words, no buffers. There are at most `max(backlog, 16)` of them, to 4096; each is
//!   answered five times in 31 s and forgotten after 63 s.
//! - When the records are full, SYNs are answered with cookies (no state at all; segment sizes are kept in four steps,
//!   window scaling and SACK are lost) and the listener takes cookies for two minutes.
//! - When the accept queue is full, SYNs are dropped, and a third segment is dropped too: its sender repeats it (Linux's
//!   `tcp_abort_on_overflow=0`). Nobody who asked properly is reset.
//!
//! # How a handshake is made without smoltcp
//! smoltcp draws a connection's first sequence number from a generator that its interface is seeded with. So the listener
//! chooses a seed, computes the number as smoltcp will ([`first_number`], checked by a test), answers the SYN itself, and
//! when the third segment comes makes the connection and shows it the SYN again.

use crate::Stack;
use crate::flow::{Flow, State};
use crate::hash::Key;
use crate::input::Arrival;
use crate::packet::{self, ACK, RST, SYN, SynOptions, Tcp as Header, Tuple};
use crate::tcp::{TcpOptions, bare};
use crate::timers::Target;
use abi::{Errno, Result};
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::IpAddr;
use hashbrown::HashMap;
use sync::{LockClass, SpinLock, WaitQueue};

static CLASS: LockClass = LockClass::new("listener", 535);
const SEC: u64 = 1_000_000_000;
const MAX_SYNS: usize = 4096;
/// The steps of segment size that a cookie can hold.
const COOKIE_MSS: [u16; 4] = [536, 1220, 1440, 1460];
const COOKIE_PERIOD: u64 = 64 * SEC;

struct Syn {
    isn: u32,
    options: SynOptions,
    seed: u64,
    rcv: usize,
    mtu: usize,
    sent: u32,
    next: u64,
}

struct Inner {
    syns: HashMap<Tuple, Syn, Key>,
    accepted: VecDeque<Arc<Flow>>,
    backlog: usize,
    options: TcpOptions,
    overflowed: Option<u64>,
    armed: bool,
    closed: bool,
}

/// A listening endpoint.
pub struct Listener {
    /// Its address (perhaps unspecified) and port.
    pub local: (IpAddr, u16),
    v6only: bool,
    bound: u32,
    inner: SpinLock<Inner>,
    /// Woken when somebody can be accepted.
    pub readable: Arc<WaitQueue>,
    me: Weak<Listener>,
}

/// Of smoltcp's generator.
const MULTIPLIER: u64 = 0xbb2e_fcec_3c39_611d;
const INCREMENT: u64 = 0x7590_ef39;

/// The first sequence number of a smoltcp interface seeded with `seed`: an output of its sPCG32 generator, after the one
/// (or more, were it zero) that becomes the interface's first IPv4 identification.
pub(crate) fn first_number(seed: u64) -> u32 {
    let mut s = seed;
    let mut draw = || {
        s = s.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
        (s >> (29 - (s >> 61))) as u32
    };
    loop {
        let n = draw();
        if n as u16 != (n >> 16) as u16 {
            return draw();
        }
    }
}

/// By how much the windows of all connections are scaled: a ring may grow to 8 MiB.
pub(crate) const SCALE: u8 = 7;

/// Puts `scale` into the options of a SYN, if they have such.
pub(crate) fn set_scale(mut o: &mut [u8], scale: u8) {
    while let [kind, rest @ ..] = o {
        o = match (*kind, rest.first().copied().unwrap_or(0)) {
            (1, _) => rest,
            (3, 3) if rest.len() > 1 => {
                rest[1] = scale;
                return;
            }
            (2.., len @ 2..) if usize::from(len) <= rest.len() => &mut rest[usize::from(len) - 1..],
            _ => return,
        };
    }
}

/// The seed with which smoltcp's first number is `first`: the inverse of [`first_number`].
pub(crate) fn seed_for(first: u32) -> u64 {
    // The multiplier's inverse modulo 2^64, by Newton's iteration: each doubles the right bits.
    let mut inverse = MULTIPLIER;
    for _ in 0..6 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(MULTIPLIER.wrapping_mul(inverse)));
    }
    let before = |state: u64| state.wrapping_sub(INCREMENT).wrapping_mul(inverse);
    // With its upper three bits clear the state is shifted by 29; the lower bits are free, and such are taken that the number
    // drawn before is one that is kept.
    let seeds = (0..1 << 29).map(|low| before(before(u64::from(first) << 29 | low)));
    seeds.into_iter().find(|seed| first_number(*seed) == first).unwrap_or(0)
}

fn cookie_seed(key: Key, t: &Tuple, isn: u32, period: u64, mss: usize) -> u64 {
    let w = t.words();
    key.hash(&[w[0], w[1], w[2], w[3], w[4], u64::from(isn) << 2 | mss as u64, period, 0x0c00_c1e5])
}

impl Listener {
    pub(crate) fn new(
        stack: &Stack,
        local: (IpAddr, u16),
        v6only: bool,
        backlog: usize,
        options: &TcpOptions,
    ) -> Arc<Self> {
        let inner = Inner {
            syns: HashMap::with_hasher(stack.key),
            accepted: VecDeque::new(),
            backlog: backlog.max(1),
            options: TcpOptions { queues: None, ..options.clone() },
            overflowed: None,
            armed: false,
            closed: false,
        };
        Arc::new_cyclic(|me| Listener {
            local,
            v6only,
            bound: options.bound,
            inner: SpinLock::new(&CLASS, inner),
            readable: options.queues.as_ref().map_or_else(|| Arc::new(WaitQueue::new()), |q| q[0].clone()),
            me: me.clone(),
        })
    }

    /// How well it fits a SYN to `addr`; 0: not at all.
    pub(crate) fn score(&self, addr: IpAddr, index: u32) -> u32 {
        let own = self.local.0;
        let any = own.is_unspecified() && (own.is_ipv4() == addr.is_ipv4() || (addr.is_ipv4() && !self.v6only));
        if !(any || own == addr) || (self.bound != 0 && self.bound != index) {
            return 0;
        }
        1 + u32::from(own.is_ipv4() == addr.is_ipv4()) + 2 * u32::from(!any) + 4 * u32::from(self.bound != 0)
    }

    /// Changes how many may wait to be accepted.
    pub fn set_backlog(&self, backlog: usize) {
        self.inner.lock().backlog = backlog.max(1);
    }

    /// Changes the options of connections to come.
    pub fn set_options(&self, options: &TcpOptions) {
        self.inner.lock().options = TcpOptions { queues: None, ..options.clone() };
    }

    /// How many can be accepted, and how many are half open.
    pub fn queued(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.accepted.len(), inner.syns.len())
    }

    /// Takes a connection. `EAGAIN`; `EINVAL` once closed.
    pub fn accept(&self) -> Result<Arc<Flow>> {
        let mut inner = self.inner.lock();
        match inner.accepted.pop_front() {
            Some(flow) => Ok(flow),
            None if inner.closed => Err(Errno::EINVAL),
            None => Err(Errno::EAGAIN),
        }
    }

    /// Stops listening: who was not accepted is reset.
    pub fn close(&self, stack: &Stack) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.syns.clear();
        let rest = core::mem::take(&mut inner.accepted);
        drop(inner);
        if let Some(me) = self.me.upgrade() {
            stack.tcp.remove_listener(&me);
        }
        for flow in rest {
            flow.close(stack, true);
        }
        self.readable.wake_all();
    }

    /// A segment that belongs to no connection yet.
    pub(crate) fn segment(&self, stack: &Stack, a: &Arrival<'_>, t: &Header, tuple: Tuple) {
        match t.flags & (SYN | ACK | RST) {
            SYN => self.syn(stack, a, t, tuple),
            ACK => self.third(stack, a, t, tuple),
            f if f & RST != 0 => {
                let mut inner = self.inner.lock();
                if inner.syns.get(&tuple).is_some_and(|s| t.seq == s.isn.wrapping_add(1)) {
                    inner.syns.remove(&tuple);
                }
            }
            _ => stack.refuse(a, t, &tuple),
        }
    }

    fn syn(&self, stack: &Stack, a: &Arrival<'_>, t: &Header, tuple: Tuple) {
        let offered = packet::parse_syn_options(&a.payload()[20..t.header]);
        let mtu = stack.config().route(tuple.remote.0, self.bound).map_or(a.netif.mtu(), |h| h.netif.mtu());
        let now = stack.env.now_ns();
        let random = stack.env.random();
        let mut inner = self.inner.lock();
        if inner.closed {
            return;
        }
        if inner.accepted.len() >= inner.backlog {
            drop(inner);
            return stack.count(|c| &c.listen_overflows);
        }
        let rcv = inner.options.rcvbuf.unwrap_or_else(|| stack.default_buffer());
        let full = inner.syns.len() >= inner.backlog.clamp(16, MAX_SYNS) && !inner.syns.contains_key(&tuple);
        if full {
            inner.overflowed = Some(now);
            drop(inner);
            if stack.sabotaged(crate::stack::Sabotage::COOKIES) {
                return;
            }
            stack.count(|c| &c.cookies_sent);
            let mss = offered.mss.unwrap_or(536);
            let step = COOKIE_MSS.iter().rposition(|m| *m <= mss).unwrap_or(0);
            let seed = cookie_seed(stack.key, &tuple, t.seq, now / COOKIE_PERIOD, step);
            return answer(stack, &tuple, t.seq, seed, rcv, mtu, SynOptions { mss: Some(mss), ..Default::default() });
        }
        let known = inner.syns.get(&tuple).filter(|s| s.isn == t.seq).map(|s| (s.seed, s.rcv, s.mtu));
        let (seed, rcv, mtu) = known.unwrap_or((random, rcv, mtu));
        if known.is_none() {
            let syn = Syn { isn: t.seq, options: offered, seed, rcv, mtu, sent: 1, next: now + SEC };
            inner.syns.insert(tuple, syn);
        }
        let arm = !inner.armed;
        inner.armed = true;
        drop(inner);
        if arm {
            stack.timers.arm(&*stack.env, now + SEC, Target::Listener(self.me.clone()));
        }
        answer(stack, &tuple, t.seq, seed, rcv, mtu, offered);
    }

    /// Answers that were not answered are repeated.
    pub(crate) fn timer(&self, stack: &Stack) {
        let now = stack.env.now_ns();
        let mut again = Vec::new();
        let mut inner = self.inner.lock();
        inner.syns.retain(|tuple, s| {
            if now >= s.next {
                if s.sent > 5 {
                    return false;
                }
                s.next = now + (SEC << s.sent);
                s.sent += 1;
                if s.sent <= 6 {
                    again.push((*tuple, s.isn, s.seed, s.rcv, s.mtu, s.options));
                }
            }
            true
        });
        let next = inner.syns.values().map(|s| s.next).min();
        inner.armed = next.is_some();
        drop(inner);
        if let Some(at) = next {
            // Under a flood every record has a time of its own, and each look goes through all of them.
            let at = at.max(now + SEC / 10);
            stack.timers.arm(&*stack.env, at, Target::Listener(self.me.clone()));
        }
        for (tuple, isn, seed, rcv, mtu, options) in again {
            answer(stack, &tuple, isn, seed, rcv, mtu, options);
        }
    }

    /// The third segment of a handshake, or something else.
    fn third(&self, stack: &Stack, a: &Arrival<'_>, t: &Header, tuple: Tuple) {
        let now = stack.env.now_ns();
        let isn = t.seq.wrapping_sub(1);
        let mut inner = self.inner.lock();
        if inner.closed {
            return;
        }
        let full = inner.accepted.len() >= inner.backlog;
        let record = inner.syns.get(&tuple);
        let found = match record {
            Some(s) if t.ack == first_number(s.seed).wrapping_add(1) => Some((s.isn, s.seed, s.rcv, s.mtu, s.options)),
            Some(_) => None,
            None => {
                let recent = inner.overflowed.is_some_and(|at| now < at + 2 * COOKIE_PERIOD);
                recent.then(|| self.cookie(stack, a, t, &tuple, isn, now)).flatten()
            }
        };
        let options = inner.options.clone();
        let Some((isn, seed, rcv, mtu, offered)) = found else {
            drop(inner);
            return stack.refuse(a, t, &tuple);
        };
        if full {
            drop(inner);
            return stack.count(|c| &c.listen_overflows);
        }
        // Whoever takes the record out makes the connection: two CPUs may hold copies of the segment.
        let record = inner.syns.remove(&tuple);
        drop(inner);
        if record.is_none() {
            stack.count(|c| &c.cookies_ok);
        }
        let Some(syn) = synthesize(&tuple, isn, offered) else { return };
        let flow = match Flow::accepted(stack, tuple, &options, mtu, seed, rcv, syn.bytes()) {
            Ok(flow) => flow,
            Err(Errno::ENOBUFS) => return self.put_back(stack, tuple, record),
            Err(_) => return,
        };
        flow.segments(stack, core::iter::once(a.bytes));
        if matches!(flow.status().state, State::SynReceived | State::Listen) {
            // smoltcp did not take what we took: forget it all.
            stack.tcp.remove(&tuple);
            return;
        }
        let mut inner = self.inner.lock();
        if inner.closed {
            drop(inner);
            return flow.close(stack, true);
        }
        inner.accepted.push_back(flow);
        drop(inner);
        self.readable.wake();
    }

    /// There is no room for the connection just now: its half-open record waits on, and the answer to its SYN is repeated.
    fn put_back(&self, stack: &Stack, tuple: Tuple, record: Option<Syn>) {
        stack.count(|c| &c.listen_overflows);
        let Some(record) = record else { return };
        let at = record.next.max(stack.env.now_ns() + SEC / 10);
        let mut inner = self.inner.lock();
        if inner.closed {
            return;
        }
        inner.syns.insert(tuple, record);
        let arm = !inner.armed;
        inner.armed = true;
        drop(inner);
        if arm {
            stack.timers.arm(&*stack.env, at, Target::Listener(self.me.clone()));
        }
    }

    fn cookie(
        &self,
        stack: &Stack,
        a: &Arrival<'_>,
        t: &Header,
        tuple: &Tuple,
        isn: u32,
        now: u64,
    ) -> Option<(u32, u64, usize, usize, SynOptions)> {
        let period = now / COOKIE_PERIOD;
        for p in [period, period.wrapping_sub(1)] {
            for (step, mss) in COOKIE_MSS.iter().enumerate() {
                let seed = cookie_seed(stack.key, tuple, isn, p, step);
                if first_number(seed).wrapping_add(1) == t.ack {
                    let options = SynOptions { mss: Some(*mss), scale: None, sack: false };
                    return Some((isn, seed, stack.default_buffer(), a.netif.mtu(), options));
                }
            }
        }
        None
    }
}

fn header_len(addr: IpAddr) -> usize {
    if addr.is_ipv4() { 40 } else { 60 }
}

/// Answers a SYN.
fn answer(stack: &Stack, tuple: &Tuple, isn: u32, seed: u64, rcv: usize, mtu: usize, offered: SynOptions) {
    let mss = (mtu - header_len(tuple.local.0)).min(65495) as u16;
    let mut options = Vec::with_capacity(12);
    options.extend([2, 4, (mss >> 8) as u8, mss as u8]);
    if offered.scale.is_some() {
        options.extend([3, 3, SCALE, 1]);
    }
    if offered.sack {
        options.extend([4, 2, 1, 1]);
    }
    let window = rcv.min(65535) as u16;
    if let Some(p) = bare(tuple, first_number(seed), isn.wrapping_add(1), SYN | ACK, window, &options) {
        let _ = stack.output(p);
    }
}

/// The peer's SYN, for smoltcp.
pub(crate) fn synthesize(tuple: &Tuple, isn: u32, offered: SynOptions) -> Option<packet::Packet> {
    let mut options = Vec::with_capacity(12);
    let mss = offered.mss.unwrap_or(536);
    options.extend([2, 4, (mss >> 8) as u8, mss as u8]);
    if let Some(scale) = offered.scale {
        options.extend([3, 3, scale, 1]);
    }
    if offered.sack {
        options.extend([4, 2, 1, 1]);
    }
    bare(&tuple.flipped(), isn, 0, SYN, 65535, &options)
}
