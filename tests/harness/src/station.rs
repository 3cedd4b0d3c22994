//! A host on the other end of a machine's cable, played by the harness: it answers ARP and neighbour solicitations, makes TCP
//! connections, sends any frame at all, and can be the router that knows name servers.
//!
//! It is `-netdev dgram` over socket files, as in `wire`. A thread takes what the machine sends, answers it and repeats what was
//! not acknowledged; whoever uses the station waits on its condition. Its TCP is the least that a lossless cable needs: bytes in
//! order, everything acknowledged at once, all that is unacknowledged sent again after a while. Its addresses are 10.5.0.1,
//! fd05::1 and fe80::1, the machine's 10.5.0.2, fd05::2 if it was given that, and fe80::5054:ff:fe00:2.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Failure, Outcome, check};
use crate::frames::{Ends, Mac, Segment, arp, flag, icmp, tcp, udp};
use crate::vm::VmConfig;

/// The station's Ethernet address.
pub const OURS: Mac = [0x52, 0x54, 0, 0, 0, 1];
/// The machine's.
pub const THEIRS: Mac = [0x52, 0x54, 0, 0, 0, 2];
/// The station's addresses.
pub const FOUR: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 1);
/// The station's global address of version 6.
pub const SIX: Ipv6Addr = Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 1);
/// And its link-local one.
pub const LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The machine's address.
pub const MACHINE_FOUR: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 2);
/// The machine's global address of version 6, where the gate gives it one.
pub const MACHINE_SIX: Ipv6Addr = Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 2);
/// Its link-local one.
pub const MACHINE_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 2);

/// What is not acknowledged for this long is sent again.
const AGAIN: Duration = Duration::from_millis(400);
/// How long the thread waits for a frame.
const TURN: Duration = Duration::from_millis(20);

/// What the station says as a router and as a DHCPv6 server.
#[derive(Debug, Clone, Default)]
pub struct Router {
    /// Name servers in advertisements (RFC 8106).
    pub servers: Vec<Ipv6Addr>,
    /// The domain in advertisements.
    pub domain: Option<&'static str>,
    /// Advertisements say that a DHCPv6 server has more to say.
    pub other: bool,
    /// Name servers that the DHCPv6 server answers with; none: it stays silent.
    pub by_dhcp: Vec<Ipv6Addr>,
}

/// A TCP connection's state here.
#[derive(Debug, Clone, Default)]
struct Flow {
    to: Option<IpAddr>,
    port: u16,
    /// The first number that is not acknowledged, and what follows it.
    una: u32,
    unacked: Vec<u8>,
    /// The SYN is on its way.
    opening: bool,
    next: u32,
    sent: Option<Instant>,
    got: Vec<u8>,
    closed: bool,
    reset: bool,
}

/// What came from the machine.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Ports that answered a SYN of no connection of ours.
    pub open: BTreeSet<u16>,
    /// Ports that refused one.
    pub refused: BTreeSet<u16>,
    /// Messages that a port is closed, of either version.
    pub unreachable: u64,
    /// Router solicitations.
    pub solicitations: u64,
    /// Requests to the DHCPv6 server.
    pub requests: u64,
}

#[derive(Debug, Default)]
struct State {
    flows: BTreeMap<u16, Flow>,
    seen: Seen,
    router: Option<Router>,
}

struct Shared {
    socket: UnixDatagram,
    there: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

/// The host. Dropping it takes it away.
pub struct Station {
    dir: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    next_port: u16,
}

/// A connection that the station made: its own port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conn(u16);

impl Station {
    /// A host with a loose cable.
    pub fn new() -> Outcome<Self> {
        // Socket files have short names: the case's own directory may lie too deep.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("station-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let socket = UnixDatagram::bind(dir.join("h"))?;
        socket.set_read_timeout(Some(TURN))?;
        // A machine that takes nothing any more must not hold the harness.
        socket.set_write_timeout(Some(Duration::from_secs(60)))?;
        let shared = Arc::new(Shared {
            socket,
            there: dir.join("q"),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let worker = shared.clone();
        let thread = Some(std::thread::spawn(move || worker.run()));
        Ok(Self { dir, shared, thread, next_port: 10_000 })
    }

    /// Puts the other end into a machine.
    pub fn attach(&self, config: &mut VmConfig) {
        let at = |end: &str| self.dir.join(end).display().to_string();
        config.extra.extend([
            "-netdev".into(),
            format!("dgram,id=n0,local.type=unix,local.path={},remote.type=unix,remote.path={}", at("q"), at("h")),
            "-device".into(),
            "virtio-net-device,netdev=n0,mac=52:54:00:00:00:02".into(),
        ]);
    }

    /// From now on it is a router, or another one.
    pub fn route(&self, router: Router) {
        self.shared.lock().router = Some(router);
        self.shared.advertise();
    }

    /// Sends a frame of any kind; false if the machine did not take it for a minute.
    pub fn throw(&self, frame: &[u8]) -> bool {
        self.shared.socket.send_to(frame, &self.shared.there).is_ok()
    }

    /// What came so far.
    pub fn seen(&self) -> Seen {
        self.shared.lock().seen.clone()
    }

    /// Connects to a port of the machine, as the assertion `what`.
    pub fn connect(&mut self, what: &str, to: IpAddr, port: u16, limit: Duration) -> Outcome<Conn> {
        let conn = self.begin(to, port);
        self.until(what, conn, limit, |f| !f.opening)?;
        Ok(conn)
    }

    /// Makes `count` connections to a port of the machine, as the assertion `what`; each may take `limit`.
    pub fn connect_many(
        &mut self,
        what: &str,
        to: IpAddr,
        port: u16,
        count: usize,
        limit: Duration,
    ) -> Outcome<Vec<Conn>> {
        let mut all = Vec::new();
        // So many at once that no backlog is full.
        while all.len() < count {
            let some: Vec<Conn> = (0..100.min(count - all.len())).map(|_| self.begin(to, port)).collect();
            for conn in &some {
                self.until(what, *conn, limit, |f| !f.opening)?;
            }
            all.extend(some);
        }
        Ok(all)
    }

    fn begin(&mut self, to: IpAddr, port: u16) -> Conn {
        let ours = self.next_port;
        self.next_port += 1;
        let first = u32::from(ours).wrapping_mul(0x9e37_79b1);
        let flow = Flow { to: Some(to), port, una: first, opening: true, ..Flow::default() };
        self.shared.lock().flows.insert(ours, flow);
        self.shared.transmit(ours);
        Conn(ours)
    }

    /// How many of `all` the machine has not ended.
    pub fn alive(&self, all: &[Conn]) -> usize {
        let state = self.shared.lock();
        all.iter().filter(|c| state.flows.get(&c.0).is_some_and(|f| !f.opening && !f.closed && !f.reset)).count()
    }

    /// Sends on each of `all` what is not acknowledged, or nothing but an acknowledgement: the machine may have lost one.
    pub fn nudge(&self, all: &[Conn]) {
        all.iter().for_each(|c| self.shared.transmit(c.0));
    }

    /// Sends `bytes` and waits until what came since satisfies `right`, as the assertion `what`; that is taken and returned.
    pub fn exchange(
        &self,
        what: &str,
        conn: Conn,
        bytes: &[u8],
        limit: Duration,
        right: impl Fn(&[u8]) -> bool,
    ) -> Outcome<Vec<u8>> {
        if let Some(f) = self.shared.lock().flows.get_mut(&conn.0) {
            f.unacked.extend(bytes);
        }
        self.shared.transmit(conn.0);
        self.until(what, conn, limit, |f| right(&f.got))?;
        Ok(self.shared.lock().flows.get_mut(&conn.0).map(|f| std::mem::take(&mut f.got)).unwrap_or_default())
    }

    /// Asks an HTTP server on `conn`, which stays open; the answer must be 200.
    pub fn ask(&self, what: &str, conn: Conn, path: &str, limit: Duration) -> Outcome {
        let request = format!("GET {path} HTTP/1.1\r\nHost: machine\r\n\r\n");
        let whole = |got: &[u8]| {
            let text = String::from_utf8_lossy(got);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
            length.is_some_and(|n| body.len() >= n)
        };
        let answer = self.exchange(what, conn, request.as_bytes(), limit, whole)?;
        let answer = String::from_utf8_lossy(&answer);
        check(answer.starts_with("HTTP/1.1 200 "), what, || answer.to_string())
    }

    /// Forgets a connection; the machine is told by a reset.
    pub fn drop_conn(&self, conn: Conn) {
        let flow = self.shared.lock().flows.remove(&conn.0);
        if let Some(Flow { to: Some(to), port, una, .. }) = flow {
            self.throw(&tcp(
                &to_machine(to),
                &Segment { from: conn.0, to: port, seq: una, flags: flag::RST, ..Segment::default() },
            ));
        }
    }

    /// What a stranger on the cable cannot know but a test does: addresses and numbers of a connection, as the next segment
    /// to the machine would have them.
    pub fn spy(&self, conn: Conn) -> Option<(Ends, Segment<'static>)> {
        let state = self.shared.lock();
        let f = state.flows.get(&conn.0)?;
        Some((to_machine(f.to?), Segment { from: conn.0, to: f.port, seq: f.una, ack: f.next, ..Segment::default() }))
    }

    fn until(&self, what: &str, conn: Conn, limit: Duration, right: impl Fn(&Flow) -> bool) -> Outcome {
        let end = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            let Some(f) = state.flows.get(&conn.0) else { return Err(Failure::new(what, "no such connection")) };
            if right(f) {
                return Ok(());
            }
            let now = Instant::now();
            if f.closed || f.reset || now >= end {
                let got = String::from_utf8_lossy(&f.got);
                let short: String = got.chars().take(300).collect();
                let why = format!("to {:?} port {}, within {limit:?}: {f:?}, got {short:?}", f.to, f.port);
                return Err(Failure::new(what, why));
            }
            let wait = self.shared.changed.wait_timeout(state, end - now);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until what came satisfies `right`, as the assertion `what`.
    pub fn until_seen(&self, what: &str, limit: Duration, right: impl Fn(&Seen) -> bool) -> Outcome {
        let end = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !right(&state.seen) {
            let now = Instant::now();
            check(now < end, what, || format!("within {limit:?}: {:?}", state.seen))?;
            let wait = self.shared.changed.wait_timeout(state, end - now);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// From the station to the machine's address `to`.
pub fn to_machine(to: IpAddr) -> Ends {
    let from = match to {
        IpAddr::V4(_) => IpAddr::V4(FOUR),
        IpAddr::V6(a) if a.segments()[0] == 0xfe80 => IpAddr::V6(LINK),
        IpAddr::V6(_) => IpAddr::V6(SIX),
    };
    Ends { from_mac: OURS, to_mac: THEIRS, from, to }
}

fn be16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

fn be32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn six(b: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(<[u8; 16]>::try_from(b.get(at..at + 16)?).ok()?.into())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, frame: &[u8]) {
        // Lost if the machine is gone, as on any cable.
        let _ = self.socket.send_to(frame, &self.there);
    }

    fn run(&self) {
        let mut buf = vec![0; 70_000];
        let mut looked = Instant::now();
        while !self.stop.load(Ordering::SeqCst) {
            if let Ok(n) = self.socket.recv(&mut buf) {
                // What is broken is not for us.
                let _ = self.frame(&buf[..n]);
                self.changed.notify_all();
            }
            // There may be many thousands.
            if looked.elapsed() > AGAIN / 4 {
                looked = Instant::now();
                self.again();
            }
        }
    }

    /// Sends a connection's segment with all that is not acknowledged.
    fn transmit(&self, ours: u16) {
        let mut state = self.lock();
        let Some(f) = state.flows.get_mut(&ours) else { return };
        let Some(to) = f.to else { return };
        f.sent = Some(Instant::now());
        let flow = f.clone();
        drop(state);
        let segment = if flow.opening {
            Segment {
                from: ours,
                to: flow.port,
                seq: flow.una,
                flags: flag::SYN,
                options: &[2, 4, 5, 0xa0],
                ..Segment::default()
            }
        } else {
            let data = &flow.unacked[..flow.unacked.len().min(1200)];
            Segment { from: ours, to: flow.port, seq: flow.una, ack: flow.next, flags: flag::ACK, options: &[], data }
        };
        self.send(&tcp(&to_machine(to), &segment));
    }

    fn again(&self) {
        let due = |f: &Flow| {
            (f.opening || !f.unacked.is_empty())
                && !(f.closed || f.reset)
                && f.sent.is_none_or(|at| at.elapsed() > AGAIN)
        };
        let due: Vec<u16> = self.lock().flows.iter().filter(|(_, f)| due(f)).map(|(n, _)| *n).collect();
        due.into_iter().for_each(|n| self.transmit(n));
    }

    fn frame(&self, frame: &[u8]) -> Option<()> {
        let (head, rest) = frame.split_at_checked(14)?;
        let theirs: Mac = head[6..12].try_into().ok()?;
        match be16(head, 12)? {
            0x0806 if be16(rest, 6)? == 1 && rest.get(24..28)? == FOUR.octets() => {
                let sender = Ipv4Addr::from(be32(rest, 14)?);
                self.send(&arp(theirs, 2, (OURS, FOUR), (theirs, sender)));
            }
            0x0800 => {
                let length = usize::from(rest.first()? & 15) * 4;
                let from = IpAddr::V4(be32(rest, 12)?.into());
                let payload = rest.get(length..usize::from(be16(rest, 2)?))?;
                match rest.get(9)? {
                    6 if be32(rest, 16)? == u32::from(FOUR) => self.segment(from, payload)?,
                    6 => self.stranger(payload)?,
                    1 if payload.first() == Some(&3) => self.lock().seen.unreachable += 1,
                    _ => {}
                }
            }
            0x86dd => {
                let from = six(rest, 8)?;
                let payload = rest.get(40..40 + usize::from(be16(rest, 4)?))?;
                match rest.get(6)? {
                    6 if [SIX, LINK].contains(&six(rest, 24)?) => self.segment(IpAddr::V6(from), payload)?,
                    6 => self.stranger(payload)?,
                    17 if be16(payload, 2)? == 547 => self.dhcp(from, payload.get(8..)?)?,
                    58 => self.icmp(from, theirs, payload)?,
                    _ => {}
                }
            }
            _ => {}
        }
        Some(())
    }

    /// A segment to somebody who does not exist: an answer to a flood.
    fn stranger(&self, s: &[u8]) -> Option<()> {
        let (port, flags) = (be16(s, 0)?, *s.get(13)?);
        if flags & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK {
            self.lock().seen.open.insert(port);
        }
        Some(())
    }

    fn segment(&self, from: IpAddr, s: &[u8]) -> Option<()> {
        let (port, ours, seq, ack) = (be16(s, 0)?, be16(s, 2)?, be32(s, 4)?, be32(s, 8)?);
        let (flags, data) = (*s.get(13)?, s.get(usize::from(s.get(12)? >> 4) * 4..)?);
        let mut state = self.lock();
        let State { flows, seen, .. } = &mut *state;
        let Some(f) = flows.get_mut(&ours).filter(|f| f.to == Some(from) && f.port == port) else {
            if flags & flag::RST != 0 {
                seen.refused.insert(port);
            } else if flags & flag::SYN != 0 {
                seen.open.insert(port);
            }
            return Some(());
        };
        let mut answer = false;
        if flags & flag::RST != 0 {
            // Only what is in order: others may send resets on the cable's behalf.
            f.reset |= if f.opening { ack == f.una.wrapping_add(1) } else { seq == f.next };
        } else if f.opening {
            if flags & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK && ack == f.una.wrapping_add(1) {
                (f.opening, f.una, f.next) = (false, ack, seq.wrapping_add(1));
                answer = true;
            }
        } else {
            let done = ack.wrapping_sub(f.una) as usize;
            if flags & flag::ACK != 0 && done <= f.unacked.len() {
                f.unacked.drain(..done);
                f.una = ack;
                answer |= done > 0 && !f.unacked.is_empty();
            }
            if seq == f.next {
                f.got.extend(data);
                f.next = f.next.wrapping_add(data.len() as u32);
                if flags & flag::FIN != 0 {
                    f.next = f.next.wrapping_add(1);
                    f.closed = true;
                }
            }
            answer |= !data.is_empty() || flags & (flag::FIN | flag::SYN) != 0;
        }
        drop(state);
        if answer {
            self.transmit(ours);
        }
        Some(())
    }

    fn icmp(&self, from: Ipv6Addr, theirs: Mac, message: &[u8]) -> Option<()> {
        match message.first()? {
            1 => self.lock().seen.unreachable += 1,
            133 => {
                self.lock().seen.solicitations += 1;
                self.advertise();
            }
            135 => {
                let target = six(message, 8)?;
                if [SIX, LINK].contains(&target) {
                    let ends = Ends { from_mac: OURS, to_mac: theirs, from: target.into(), to: from.into() };
                    // Router, solicited, override; the target, and its Ethernet address.
                    let body = [&[0xe0, 0, 0, 0][..], &target.octets(), &[2, 1], &OURS].concat();
                    self.send(&icmp(&ends, 136, 0, &body));
                }
            }
            _ => {}
        }
        Some(())
    }

    /// Tells everybody what the router knows, if it is one.
    fn advertise(&self) {
        let Some(router) = self.lock().router.clone() else { return };
        let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let ends = Ends { from_mac: OURS, to_mac: [0x33, 0x33, 0, 0, 0, 1], from: LINK.into(), to: all.into() };
        let mut body = vec![64, if router.other { 0x40 } else { 0 }, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        body.extend([&[1, 1][..], &OURS].concat());
        // The prefix fd05::/64: on the link, and to make addresses of.
        body.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
        body.extend(Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 0).octets());
        if !router.servers.is_empty() {
            body.extend([25, 1 + 2 * router.servers.len() as u8, 0, 0, 0, 0, 7, 8]);
            router.servers.iter().for_each(|s| body.extend(s.octets()));
        }
        if let Some(domain) = router.domain {
            let mut name = wire_name(domain);
            name.resize(name.len().next_multiple_of(8), 0);
            body.extend([31, 1 + (name.len() / 8) as u8, 0, 0, 0, 0, 7, 8]);
            body.extend(name);
        }
        self.send(&icmp(&ends, 134, 0, &body));
    }

    /// An information-request (RFC 8415) is answered with name servers.
    fn dhcp(&self, from: Ipv6Addr, request: &[u8]) -> Option<()> {
        const INFORMATION_REQUEST: u8 = 11;
        let mut state = self.lock();
        state.seen.requests += 1;
        let servers = state.router.as_ref()?.by_dhcp.clone();
        drop(state);
        if request.first() != Some(&INFORMATION_REQUEST) || servers.is_empty() {
            return None;
        }
        let mut answer = vec![7];
        answer.extend(request.get(1..4)?);
        let mut options = request.get(4..)?;
        // Its own identity comes back, beside ours.
        while let (Some(kind), Some(length)) = (be16(options, 0), be16(options, 2)) {
            let (option, rest) = options.split_at_checked(4 + usize::from(length))?;
            if kind == 1 {
                answer.extend(option);
            }
            options = rest;
        }
        answer.extend([&[0, 2, 0, 10, 0, 3, 0, 1][..], &OURS].concat());
        answer.extend([0, 23]);
        answer.extend((16 * servers.len() as u16).to_be_bytes());
        servers.iter().for_each(|s| answer.extend(s.octets()));
        let ends = Ends { from_mac: OURS, to_mac: THEIRS, from: LINK.into(), to: from.into() };
        self.send(&udp(&ends, 547, 546, &answer));
        Some(())
    }
}

/// A name as DNS writes it.
fn wire_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}
