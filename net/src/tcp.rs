//! TCP around its connections: the table of 4-tuples, TIME_WAIT, segments for nobody, connecting.

use crate::batch::Batch;
use crate::config::Hop;
use crate::flow::Flow;
use crate::hash::Key;
use crate::input::Arrival;
use crate::listen::Listener;
use crate::packet::{self, ACK, Packet, RST, SYN, Tcp as Header, Tuple, put16, put32};
use crate::ports::{Lease, Want};
use crate::timers::Target;
use crate::{Sabotage, Stack};
use abi::{Errno, Result};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use hashbrown::HashMap;
use sync::{LockClass, SpinLock};

static BUCKET: LockClass = LockClass::new("flow bucket", 540);
static LISTENERS: LockClass = LockClass::new("listeners", 525);
static WAITING: LockClass = LockClass::new("time-wait list", 541);
const BUCKETS: usize = 256;
const TIME_WAIT_NS: u64 = 60_000_000_000;

/// Keep-alive (tcp(7)), in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// After so much silence.
    pub idle: u64,
    /// Every so often.
    pub interval: u64,
    /// So many times.
    pub count: u32,
}

/// A connection's options.
#[derive(Clone, Debug, Default)]
pub struct TcpOptions {
    /// `TCP_NODELAY`.
    pub nodelay: bool,
    /// `TCP_CORK`.
    pub cork: bool,
    /// `TCP_QUICKACK`.
    pub quickack: bool,
    /// `SO_KEEPALIVE` with its times.
    pub keepalive: Option<KeepAlive>,
    /// `TCP_USER_TIMEOUT` in nanoseconds.
    pub user_timeout: Option<u64>,
    /// `SO_RCVBUF`; takes effect for connections made afterwards.
    pub rcvbuf: Option<usize>,
    /// `SO_SNDBUF`; likewise.
    pub sndbuf: Option<usize>,
    /// `IP_TTL`.
    pub ttl: Option<u8>,
    /// The interface that it is bound to; 0: any.
    pub bound: u32,
    /// The queues to wake (readers, writers), where somebody watches already. Not taken over by accepted connections.
    pub queues: Option<[Arc<sync::WaitQueue>; 2]>,
}

/// A connection of which only the memory is left that keeps old segments from meaning something to a new one.
#[derive(Clone, Copy, Debug)]
struct TimeWait {
    snd_nxt: u32,
    rcv_nxt: u32,
    since: u64,
}

enum Entry {
    Flow(Arc<Flow>),
    TimeWait(TimeWait),
}

type Bucket = SpinLock<HashMap<Tuple, Entry, Key>>;

/// All connections and listeners.
pub struct Tcp {
    key: Key,
    buckets: Vec<Bucket>,
    listeners: SpinLock<HashMap<u16, Vec<Arc<Listener>>, Key>>,
    waiting: SpinLock<VecDeque<(u64, Tuple)>>,
}

impl Tcp {
    pub(crate) fn new(key: Key) -> Self {
        Tcp {
            key,
            buckets: (0..BUCKETS).map(|_| SpinLock::new(&BUCKET, HashMap::with_hasher(key))).collect(),
            listeners: SpinLock::new(&LISTENERS, HashMap::with_hasher(key)),
            waiting: SpinLock::new(&WAITING, VecDeque::new()),
        }
    }

    fn bucket(&self, t: &Tuple) -> &Bucket {
        &self.buckets[self.key.hash(&t.words()) as usize % BUCKETS]
    }

    /// The connection of that tuple.
    pub fn flow(&self, t: &Tuple) -> Option<Arc<Flow>> {
        match self.bucket(t).lock().get(t)? {
            Entry::Flow(f) => Some(f.clone()),
            Entry::TimeWait(_) => None,
        }
    }

    /// Puts a connection where segments find it; false if there is one.
    pub(crate) fn insert(&self, flow: &Arc<Flow>) -> bool {
        let mut bucket = self.bucket(&flow.tuple).lock();
        if bucket.contains_key(&flow.tuple) {
            return false;
        }
        bucket.insert(flow.tuple, Entry::Flow(flow.clone()));
        true
    }

    pub(crate) fn remove(&self, t: &Tuple) {
        let gone = self.bucket(t).lock().remove(t);
        drop(gone);
    }

    fn contains(&self, t: &Tuple) -> bool {
        self.bucket(t).lock().contains_key(t)
    }

    /// Turns a connection into a record. `acked`: the acknowledgement that was sent last.
    pub(crate) fn time_wait(&self, stack: &Stack, t: Tuple, snd_nxt: u32, rcv_nxt: u32, acked: u32) {
        let since = stack.env.now_ns();
        let old = self.bucket(&t).lock().insert(t, Entry::TimeWait(TimeWait { snd_nxt, rcv_nxt, since }));
        drop(old);
        let mut waiting = self.waiting.lock();
        waiting.push_back((since, t));
        let first = waiting.len() == 1;
        let oldest = (waiting.len() > stack.limits.time_wait).then(|| waiting.pop_front()).flatten();
        drop(waiting);
        if let Some((at, t)) = oldest {
            self.forget(at, &t);
        }
        if first {
            stack.timers.arm(&*stack.env, since + TIME_WAIT_NS, Target::TimeWait);
        }
        if acked != rcv_nxt {
            stack.send_bare(&t, snd_nxt, rcv_nxt, ACK);
        }
    }

    fn forget(&self, since: u64, t: &Tuple) {
        let mut bucket = self.bucket(t).lock();
        if matches!(bucket.get(t), Some(Entry::TimeWait(w)) if w.since == since) {
            bucket.remove(t);
        }
    }

    /// Forgets records that are old enough.
    pub(crate) fn expire(&self, stack: &Stack) {
        let now = stack.env.now_ns();
        loop {
            let mut waiting = self.waiting.lock();
            let Some(&(since, t)) = waiting.front() else { return };
            if since + TIME_WAIT_NS > now {
                drop(waiting);
                stack.timers.arm(&*stack.env, since + TIME_WAIT_NS, Target::TimeWait);
                return;
            }
            waiting.pop_front();
            drop(waiting);
            self.forget(since, &t);
        }
    }

    /// How many connections and how many records there are.
    pub fn counts(&self) -> (usize, usize) {
        let all = self.buckets.iter().map(|b| b.lock().len()).sum::<usize>();
        let waiting = self.waiting.lock().len();
        (all.saturating_sub(waiting), waiting)
    }

    /// All connections, for `/proc/net/tcp`.
    pub fn list(&self) -> Vec<Arc<Flow>> {
        let mut all = Vec::new();
        for b in &self.buckets {
            all.extend(b.lock().values().filter_map(|e| match e {
                Entry::Flow(f) => Some(f.clone()),
                Entry::TimeWait(_) => None,
            }));
        }
        all
    }

    /// TIME_WAIT's tuples.
    pub fn list_waiting(&self) -> Vec<Tuple> {
        self.waiting.lock().iter().map(|w| w.1).collect()
    }

    /// All listeners.
    pub fn list_listeners(&self) -> Vec<Arc<Listener>> {
        self.listeners.lock().values().flatten().cloned().collect()
    }

    pub(crate) fn add_listener(&self, l: Arc<Listener>) {
        self.listeners.lock().entry(l.local.1).or_default().push(l);
    }

    pub(crate) fn remove_listener(&self, l: &Arc<Listener>) {
        let mut all = self.listeners.lock();
        if let Some(same) = all.get_mut(&l.local.1) {
            same.retain(|o| !Arc::ptr_eq(o, l));
            if same.is_empty() {
                all.remove(&l.local.1);
            }
        }
    }

    /// Who listens there; the sender's hash chooses among equals.
    fn listener(&self, t: &Tuple, index: u32) -> Option<Arc<Listener>> {
        let all = self.listeners.lock();
        let same = all.get(&t.local.1)?;
        let score = |l: &Listener| l.score(t.local.0, index);
        let best = same.iter().map(|l| score(l)).max().filter(|s| *s > 0)?;
        let equal = || same.iter().filter(|l| score(l) == best);
        let n = equal().count() as u64;
        equal().nth((self.key.hash(&t.words()) % n) as usize).cloned()
    }
}

/// Sends segments of a connection, in this order; without a way they are lost.
pub(crate) fn send_segments(stack: &Stack, mut all: Vec<Packet>, hop: Option<&Hop>, mtu: usize) {
    if stack.sabotaged(Sabotage::ACKS) {
        all.retain(|p| !is_bare_ack(p));
    }
    let Some(last) = all.len().checked_sub(1) else { return };
    let Some(hop) = hop else { return stack.count(|c| &c.unreachable) };
    // Of pieces, too, all but the last are held.
    let mut held = last > 0;
    // The sender may come to another CPU in between.
    let cpu = platform::cpu_id();
    for (i, mut p) in all.into_iter().enumerate() {
        p.more = i < last;
        p.cpu = Some(cpu);
        held |= p.bytes().len() > mtu;
        send_segment(stack, p, hop, mtu);
    }
    if held {
        hop.netif.flush();
    }
}

fn is_bare_ack(p: &Packet) -> bool {
    packet::parse_ip(p.bytes()).is_some_and(|ip| {
        packet::parse_tcp(&p.bytes()[ip.header..]).is_some_and(|t| t.flags == ACK && ip.header + t.header == ip.total)
    })
}

/// Sends a segment of a connection. A path that carries less than the segment was made for gets it in pieces.
fn send_segment(stack: &Stack, p: Packet, hop: &Hop, mtu: usize) {
    let Some(ip) = packet::parse_ip(p.bytes()) else { return };
    if p.bytes().len() <= mtu || stack.sabotaged(Sabotage::PATH_MTU) {
        let _ = stack.output_by(p, &ip, hop);
        return;
    }
    let t = &p.bytes()[ip.header..ip.total];
    let Some(head) = packet::parse_tcp(t) else { return };
    let payload = &t[head.header..];
    let step = mtu.saturating_sub(ip.header + head.header).max(8);
    for (i, part) in payload.chunks(step).enumerate() {
        let len = head.header + part.len();
        let Some((mut q, at)) = packet::build_ip(ip.src, ip.dst, packet::TCP, ip.ttl, ip.tos, len) else { return };
        let b = &mut q.bytes_mut()[at..];
        b[..head.header].copy_from_slice(&t[..head.header]);
        b[head.header..].copy_from_slice(part);
        put32(b, 4, head.seq.wrapping_add((i * step) as u32));
        if (i + 1) * step < payload.len() {
            b[13] &= !(packet::FIN | 8);
        }
        q.cpu = p.cpu;
        q.more = p.more || (i + 1) * step < payload.len();
        let Some(ip) = packet::parse_ip(q.bytes()) else { return };
        let _ = stack.output_by(q, &ip, hop);
    }
}

/// A segment without payload.
pub(crate) fn bare(t: &Tuple, seq: u32, ack: u32, flags: u8, window: u16, options: &[u8]) -> Option<Packet> {
    let len = 20 + options.len();
    let (mut p, at) = packet::build_ip(t.local.0, t.remote.0, packet::TCP, 64, 0, len)?;
    let b = &mut p.bytes_mut()[at..];
    put16(b, 0, t.local.1);
    put16(b, 2, t.remote.1);
    put32(b, 4, seq);
    put32(b, 8, ack);
    b[12] = (len << 2) as u8;
    b[13] = flags;
    put16(b, 14, window);
    b[20..].copy_from_slice(options);
    Some(p)
}

impl Stack {
    pub(crate) fn send_bare(&self, t: &Tuple, seq: u32, ack: u32, flags: u8) {
        if let Some(p) = bare(t, seq, ack, flags, 0, &[]) {
            let _ = self.output(p);
        }
    }

    /// A TCP segment came; in a `batch`, a connection gets it when that is finished.
    pub(crate) fn tcp_input<'a>(&self, a: &Arrival<'a>, batch: Option<&mut Batch<'a>>) -> Option<()> {
        let seg = a.payload();
        let t = packet::parse_tcp(seg)?;
        if !a.sum_ok() {
            self.count(|c| &c.bad_checksum);
            return None;
        }
        let tuple = Tuple { local: (a.ip.dst, t.dst), remote: (a.ip.src, t.src) };
        let mut batch = batch;
        if batch.as_mut().is_some_and(|b| b.add(&tuple, a)) {
            return Some(());
        }
        let found = match self.tcp.bucket(&tuple).lock().get(&tuple) {
            Some(Entry::Flow(f)) => Some(Ok(f.clone())),
            Some(Entry::TimeWait(w)) => Some(Err(*w)),
            None => None,
        };
        match found {
            Some(Ok(flow)) => {
                match batch {
                    Some(b) => b.begin(self, flow, a),
                    None => _ = flow.segments(self, core::iter::once(a.bytes)),
                }
                return Some(());
            }
            Some(Err(w)) if !self.reopens(&t, &w) => {
                if t.flags & RST == 0 {
                    self.send_bare(&tuple, w.snd_nxt, w.rcv_nxt, ACK);
                }
                return Some(());
            }
            Some(Err(w)) => self.tcp.forget(w.since, &tuple),
            None => {}
        }
        if let Some(listener) = self.tcp.listener(&tuple, a.netif.index)
            && self.config().is_local(a.ip.dst)
            && !self.config().is_broadcast(a.ip.src, 0)
        {
            listener.segment(self, a, &t, tuple);
            return Some(());
        }
        self.refuse(a, &t, &tuple);
        Some(())
    }

    /// Whether a segment may begin a new connection where one is in TIME_WAIT (RFC 1122, 4.2.2.13).
    fn reopens(&self, t: &Header, w: &TimeWait) -> bool {
        t.flags & (SYN | RST | ACK) == SYN && (t.seq.wrapping_sub(w.rcv_nxt) as i32) > 0
    }

    /// Answers a segment that belongs to no connection with RST (RFC 9293, 3.10.7.1).
    pub(crate) fn refuse(&self, a: &Arrival<'_>, t: &Header, tuple: &Tuple) {
        self.count(|c| &c.no_port);
        if t.flags & RST != 0 || !self.config().is_local(a.ip.dst) || a.ip.src.is_unspecified() {
            return;
        }
        self.count(|c| &c.resets_sent);
        if t.flags & ACK != 0 {
            self.send_bare(tuple, t.ack, 0, RST);
        } else {
            let len = (a.payload().len() - t.header) as u32 + u32::from(t.flags & 1) + u32::from(t.flags >> 1 & 1);
            self.send_bare(tuple, 0, t.seq.wrapping_add(len), RST | ACK);
        }
    }

    /// Begins a connection to `remote` from `local`, or from a free port of the address that the route gives. Errors of
    /// routing, `EADDRNOTAVAIL`, `ENOBUFS`.
    pub fn connect(
        &self,
        local: Option<(IpAddr, u16)>,
        remote: (IpAddr, u16),
        options: &TcpOptions,
    ) -> Result<Arc<Flow>> {
        if remote.0.is_multicast() || self.config().is_broadcast(remote.0, 0) {
            return Err(Errno::ENETUNREACH);
        }
        let hop = self.config().route(remote.0, options.bound)?;
        let mtu = hop.netif.mtu();
        let addr = local.map(|l| l.0).filter(|a| !a.is_unspecified()).unwrap_or(hop.source);
        if addr.is_ipv4() != remote.0.is_ipv4() {
            return Err(Errno::EINVAL);
        }
        if addr.is_unspecified() {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if let Some(port) = local.map(|l| l.1).filter(|p| *p != 0) {
            let tuple = Tuple { local: (addr, port), remote };
            if self.tcp.contains(&tuple) {
                return Err(Errno::EADDRNOTAVAIL);
            }
            return Flow::connect(self, tuple, options, mtu);
        }
        // Random ports (RFC 6056): the same port serves many peers, so what must be free is the tuple.
        let (first, last) = self.limits.ephemeral;
        let count = u32::from(last - first) + 1;
        let start = self.env.random() as u32 % count;
        for i in 0..count {
            let port = first + ((start + i) % count) as u16;
            let tuple = Tuple { local: (addr, port), remote };
            if self.tcp.contains(&tuple) || self.tcp.listeners.lock().contains_key(&port) {
                continue;
            }
            match Flow::connect(self, tuple, options, mtu) {
                Err(Errno::EADDRNOTAVAIL) => {}
                other => return other,
            }
        }
        Err(Errno::EADDRNOTAVAIL)
    }

    /// Listens with a lease on the port.
    pub fn listen(
        &self,
        addr: IpAddr,
        lease: &Lease,
        v6only: bool,
        backlog: usize,
        options: &TcpOptions,
    ) -> Result<Arc<Listener>> {
        lease.listen()?;
        let l = Listener::new(self, (addr, lease.port()), v6only, backlog, options);
        self.tcp.add_listener(l.clone());
        Ok(l)
    }

    /// Claims a port.
    pub fn bind(&self, want: Want) -> Result<Lease> {
        self.ports.claim(want, self.limits.ephemeral, self.env.random())
    }

    /// A path turned out to carry less.
    pub(crate) fn path_mtu(&self, ip: &packet::Ip, t: &[u8], mtu: usize) {
        if ip.proto == packet::TCP
            && let (Some(from), Some(to)) = (packet::be16(t, 0), packet::be16(t, 2))
            && let Some(flow) = self.tcp.flow(&Tuple { local: (ip.src, from), remote: (ip.dst, to) })
        {
            flow.path_mtu(mtu);
        }
    }
}
