//! Sockets of datagrams: UDP, ICMP echo, raw IP, and frames.

use super::options::level;
use super::{CLASS, Caller, Common, RecvMsg, SendMsg, SockAddr, Socket, family, give, kind, msg, ready, take, wait};
use crate::Stack;
use crate::config::Hop;
use crate::packet::{self, ICMP, ICMPV6, Packet, UDP, put16};
use crate::ports::{Lease, Want};
use crate::raw::{Raw, Want as RawWant};
use crate::udp::{Datagram, Endpoint, Queue};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use platform::{ReadSink, WriteSource};
use sync::{SpinLock, WaitQueue};

const DEFAULT_BUFFER: usize = 212_992;

enum Place {
    Nowhere,
    Udp(Arc<Endpoint>),
    Raw(Arc<Raw>),
}

struct Inner {
    common: Common,
    place: Place,
    lease: Option<Arc<Lease>>,
    local: Option<(IpAddr, u16)>,
    remote: Option<(IpAddr, u16)>,
    read_closed: bool,
    write_closed: bool,
}

/// A socket of datagrams.
pub struct Datagrams {
    stack: Arc<Stack>,
    family: u16,
    kind: u32,
    protocol: u32,
    inner: SpinLock<Inner>,
    queue: Arc<Queue>,
    writable: Arc<WaitQueue>,
}

impl Datagrams {
    /// An unbound socket; one of `SOCK_RAW` or `AF_PACKET` receives at once.
    pub fn new(stack: &Arc<Stack>, family: u16, kind: u32, protocol: u32) -> Self {
        let inner = Inner {
            common: Common::default(),
            place: Place::Nowhere,
            lease: None,
            local: None,
            remote: None,
            read_closed: false,
            write_closed: false,
        };
        let s = Datagrams {
            stack: stack.clone(),
            family,
            kind,
            protocol,
            inner: SpinLock::new(&CLASS, inner),
            queue: Arc::new(Queue::new(DEFAULT_BUFFER)),
            writable: Arc::new(WaitQueue::new()),
        };
        if family == family::PACKET {
            // The protocol is in network order, as in sockaddr_ll.
            let ethertype = (protocol as u16).swap_bytes();
            if ethertype != 0 {
                let _ = s.enter_raw(RawWant::Frames { ethertype, index: 0, cooked: kind == kind::DGRAM }, None, None);
            }
        } else if kind == kind::RAW {
            let want = RawWant::Ip { v6: family == family::INET6, proto: protocol as u8 };
            let _ = s.enter_raw(want, None, None);
        }
        s
    }

    fn is_udp(&self) -> bool {
        self.kind == kind::DGRAM && self.protocol == u32::from(UDP) && self.family != family::PACKET
    }

    fn is_echo(&self) -> bool {
        self.kind == kind::DGRAM && !self.is_udp() && self.family != family::PACKET
    }

    /// Leaves the place where packets find it now.
    fn leave(&self) {
        let old = core::mem::replace(&mut self.inner.lock().place, Place::Nowhere);
        match old {
            Place::Nowhere => {}
            Place::Udp(e) => self.stack.udp.remove(&e),
            Place::Raw(r) => self.stack.raw.remove(&r),
        }
    }

    fn enter_raw(&self, want: RawWant, local: Option<IpAddr>, remote: Option<IpAddr>) -> Result<()> {
        self.leave();
        let raw = Arc::new(Raw { want, remote, local, queue: self.queue.clone() });
        if !self.stack.raw.insert(raw.clone()) {
            return Err(Errno::EADDRINUSE);
        }
        self.inner.lock().place = Place::Raw(raw);
        Ok(())
    }

    /// Receives at the current addresses.
    fn enter(&self) -> Result<()> {
        let (local, remote, common) = {
            let inner = self.inner.lock();
            (inner.local, inner.remote, inner.common.clone())
        };
        let any = SockAddr::any(self.family).to_inet(self.family)?.0;
        let local = local.unwrap_or((any, 0));
        let address = Some(local.0).filter(|a| !a.is_unspecified());
        if self.is_echo() {
            let want = RawWant::Echo { v6: self.family == family::INET6, id: local.1 };
            return self.enter_raw(want, address, remote.map(|r| r.0));
        }
        if self.kind == kind::RAW {
            let want = RawWant::Ip { v6: self.family == family::INET6, proto: self.protocol as u8 };
            return self.enter_raw(want, address, remote.map(|r| r.0));
        }
        self.leave();
        let v6only = common.v6only || self.family == family::INET;
        let e = Arc::new(Endpoint { local, remote, v6only, bound: common.bound, queue: self.queue.clone() });
        self.stack.udp.insert(e.clone());
        self.inner.lock().place = Place::Udp(e);
        Ok(())
    }

    /// Gives it an address.
    fn claim(&self, addr: IpAddr, port: u16, who: &Caller) -> Result<()> {
        let common = self.inner.lock().common.clone();
        if self.is_udp() {
            let want = Want {
                proto: UDP,
                addr,
                port,
                v6only: common.v6only || self.family == family::INET,
                reuse_addr: common.reuse_addr,
                reuse_port: common.reuse_port,
                uid: who.cred.uid,
            };
            let lease = self.stack.bind(want)?;
            let mut inner = self.inner.lock();
            inner.local = Some((addr, lease.port()));
            inner.lease = Some(Arc::new(lease));
        } else {
            let id = if port != 0 || !self.is_echo() { port } else { (platform::random_u64() as u16).max(1) };
            self.inner.lock().local = Some((addr, id));
        }
        self.enter()
    }

    fn ensure_bound(&self, who: &Caller) -> Result<()> {
        if self.kind == kind::RAW || self.inner.lock().local.is_some() {
            return Ok(());
        }
        self.claim(SockAddr::any(self.family).to_inet(self.family)?.0, 0, who)
    }

    fn send_frame(&self, source: &mut dyn WriteSource, message: &SendMsg) -> Result<usize> {
        let bound = match &self.inner.lock().place {
            Place::Raw(r) => match r.want {
                RawWant::Frames { index, ethertype, .. } => (index, ethertype),
                _ => (0, 0),
            },
            _ => (0, 0),
        };
        let (ethertype, index, mac) = match &message.to {
            Some(SockAddr::Packet(t, i, m)) => (if *t == 0 { bound.1 } else { *t }, *i, *m),
            Some(_) => return Err(Errno::EINVAL),
            None => (bound.1, bound.0, [0xff; 6]),
        };
        let netif = self.stack.interface(if index == 0 { bound.0 } else { index }).ok_or(Errno::ENXIO)?;
        let bytes = take(source, 65536)?;
        if bytes.len() > netif.mtu() + 14 {
            return Err(Errno::EMSGSIZE);
        }
        let p = Packet::from_slice(&bytes);
        if self.kind == kind::RAW {
            if bytes.len() < 14 {
                return Err(Errno::EINVAL);
            }
            self.stack.transmit(&netif, p);
        } else {
            self.stack.send_ether(&netif, mac, ethertype, p);
        }
        Ok(bytes.len())
    }

    fn send_raw(&self, hop: &Hop, source: IpAddr, to: IpAddr, bytes: &[u8], common: &Common) -> Result<()> {
        let ttl = common.hops(to);
        let (p, at) = if common.header_included {
            let mut p = Packet::from_slice(bytes);
            let b = p.bytes_mut();
            if b.len() < 20 || b[0] != 0x45 {
                return Err(Errno::EINVAL);
            }
            let len = b.len() as u16;
            put16(b, 2, len);
            if b[12..16] == [0; 4]
                && let IpAddr::V4(s) = source
            {
                b[12..16].copy_from_slice(&s.octets());
            }
            packet::finish_v4(b);
            (p, 20)
        } else {
            let built = packet::build_ip(source, to, self.protocol as u8, ttl, common.tos, bytes.len());
            let (mut p, at) = built.ok_or(Errno::EMSGSIZE)?;
            p.bytes_mut()[at..].copy_from_slice(bytes);
            (p, at)
        };
        let mut p = p;
        let echo = self.is_echo();
        let id = self.inner.lock().local.map_or(0, |l| l.1);
        let b = &mut p.bytes_mut()[at..];
        if echo {
            let request = if self.protocol == u32::from(ICMP) { 8 } else { 128 };
            if b.len() < 8 || b[0] != request || b[1] != 0 {
                return Err(Errno::EINVAL);
            }
            put16(b, 4, id);
        }
        if self.protocol == u32::from(ICMPV6) && b.len() >= 4 {
            put16(b, 2, 0);
            let c = packet::checksum(source, to, ICMPV6, b);
            put16(b, 2, c);
        } else if echo {
            put16(b, 2, 0);
            let c = !packet::fold(packet::sum(b, 0));
            put16(b, 2, c);
        }
        let ip = packet::parse_ip(p.bytes()).ok_or(Errno::EINVAL)?;
        self.stack.output_by(p, &ip, hop)
    }

    fn describe(&self, d: &Datagram, common: &Common, message: &mut RecvMsg) {
        message.from = Some(if self.family == family::PACKET {
            let mac = d.data.get(6..12).and_then(|m| m.try_into().ok()).unwrap_or([0; 6]);
            SockAddr::Packet(d.from.1, d.index, if self.kind == kind::RAW { mac } else { [0; 6] })
        } else {
            SockAddr::inet(self.family, if self.is_udp() { d.from } else { (d.from.0, 0) })
        });
        if common.pktinfo {
            match (d.to, self.family) {
                (IpAddr::V4(a), family::INET) => {
                    let b = [&d.index.to_ne_bytes()[..], &a.octets(), &a.octets()].concat();
                    message.control.push((level::IP, 8, b));
                }
                (to, _) => {
                    let v6 = match to {
                        IpAddr::V4(a) => a.to_ipv6_mapped(),
                        IpAddr::V6(a) => a,
                    };
                    message.control.push((level::IPV6, 50, [&v6.octets()[..], &d.index.to_ne_bytes()].concat()));
                }
            }
        }
        if common.recv_ttl_old && d.to.is_ipv6() {
            message.control.push((level::IPV6, 8, u32::from(d.ttl).to_ne_bytes().to_vec()));
        }
        if common.recv_ttl {
            let what = if self.family == family::INET { (level::IP, 2) } else { (level::IPV6, 52) };
            message.control.push((what.0, what.1, u32::from(d.ttl).to_ne_bytes().to_vec()));
        }
        if common.timestamp {
            let time = [(d.at / 1_000_000_000).to_ne_bytes(), (d.at % 1_000_000_000 / 1000).to_ne_bytes()];
            message.control.push((level::SOCKET, 29, time.concat()));
        }
    }
}

impl Socket for Datagrams {
    fn family(&self) -> u16 {
        self.family
    }
    fn kind(&self) -> u32 {
        self.kind
    }
    fn protocol(&self) -> u32 {
        self.protocol
    }

    fn bind(&self, addr: &SockAddr, who: &Caller) -> Result<()> {
        if self.family == family::PACKET {
            let SockAddr::Packet(ethertype, index, _) = addr else { return Err(Errno::EINVAL) };
            if *index != 0 {
                self.stack.interface(*index).ok_or(Errno::ENODEV)?;
            }
            let old = (self.protocol as u16).swap_bytes();
            let ethertype = if *ethertype == 0 { old } else { *ethertype };
            let want = RawWant::Frames { ethertype, index: *index, cooked: self.kind == kind::DGRAM };
            return self.enter_raw(want, None, None);
        }
        let (ip, port) = match addr {
            SockAddr::Unspecified if self.family == family::INET => SockAddr::any(self.family).to_inet(self.family)?,
            a => a.to_inet(self.family)?,
        };
        if self.inner.lock().lease.is_some() {
            return Err(Errno::EINVAL);
        }
        if self.is_udp() && port != 0 && port < 1024 && !who.privileged {
            return Err(Errno::EACCES);
        }
        let config = self.stack.config();
        let group = ip.is_multicast() || config.is_broadcast(ip, 0);
        if !ip.is_unspecified() && !group && !config.is_local(ip) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        self.claim(ip, port, who)
    }

    fn connect(&self, addr: &SockAddr, who: &Caller) -> Result<()> {
        if self.family == family::PACKET {
            return Err(Errno::EOPNOTSUPP);
        }
        if *addr == SockAddr::Unspecified {
            self.inner.lock().remote = None;
            return self.enter();
        }
        let mut remote = addr.to_inet(self.family)?;
        let bound = self.inner.lock().common.bound;
        let hop = self.stack.config().route(remote.0, bound)?;
        if self.stack.config().is_broadcast(remote.0, 0) && !self.inner.lock().common.broadcast {
            return Err(Errno::EACCES);
        }
        if remote.0.is_unspecified() {
            remote.0 = hop.source;
        }
        self.ensure_bound(who)?;
        {
            let mut inner = self.inner.lock();
            if let Some(local) = inner.local.as_mut().filter(|l| l.0.is_unspecified()) {
                local.0 = hop.source;
            }
            inner.remote = Some(remote);
        }
        self.enter()
    }

    fn local(&self) -> SockAddr {
        let inner = self.inner.lock();
        match (&inner.place, inner.local) {
            (Place::Raw(r), _) if self.family == family::PACKET => match r.want {
                RawWant::Frames { ethertype, index, .. } => {
                    let mac = self.stack.interface(index).map_or([0; 6], |i| i.mac());
                    SockAddr::Packet(ethertype, index, mac)
                }
                _ => SockAddr::Packet(0, 0, [0; 6]),
            },
            (_, Some(l)) => SockAddr::inet(self.family, l),
            _ if self.family == family::PACKET => SockAddr::Packet(0, 0, [0; 6]),
            _ => SockAddr::any(self.family),
        }
    }

    fn peer(&self) -> Result<SockAddr> {
        let remote = self.inner.lock().remote.ok_or(Errno::ENOTCONN)?;
        Ok(SockAddr::inet(self.family, remote))
    }

    fn send(&self, source: &mut dyn WriteSource, message: &mut SendMsg, who: &Caller) -> Result<usize> {
        if self.inner.lock().write_closed {
            return Err(Errno::EPIPE);
        }
        if message.flags & msg::OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.family == family::PACKET {
            return self.send_frame(source, message);
        }
        if let Some(e) = self.queue.take_error() {
            return Err(e);
        }
        let (common, connected) = {
            let inner = self.inner.lock();
            (inner.common.clone(), inner.remote)
        };
        let mut scope = common.bound;
        let mut to = match &message.to {
            Some(a) => {
                if let (SockAddr::Inet(_, _, s), 0) = (a, scope) {
                    scope = *s;
                }
                a.to_inet(self.family).map_err(|_| Errno::EAFNOSUPPORT)?
            }
            None => connected.ok_or(Errno::EDESTADDRREQ)?,
        };
        if self.is_udp() && to.1 == 0 {
            return Err(Errno::EINVAL);
        }
        let len = source.remaining();
        if len > 65535 {
            return Err(Errno::EMSGSIZE);
        }
        let bytes = take(source, len)?;
        let config = self.stack.config();
        if config.is_broadcast(to.0, 0) && !common.broadcast {
            return Err(Errno::EACCES);
        }
        if to.0.is_unspecified() {
            to.0 =
                if to.0.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]) };
        }
        if scope == 0 && to.0.is_ipv6() && to.0.is_multicast() {
            scope = common.multicast_interface();
        }
        let hop = config.route(to.0, scope)?;
        self.ensure_bound(who)?;
        let local = self.inner.lock().local;
        let port = local.map_or(0, |l| l.1);
        let from =
            local.map(|l| l.0).filter(|a| !a.is_unspecified() && !a.is_multicast() && !config.is_broadcast(*a, 0));
        let from = from.unwrap_or(hop.source);
        if from.is_ipv4() != to.0.is_ipv4() {
            return Err(Errno::ENETUNREACH);
        }
        if from.is_ipv6() && !config.is_local(from) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if self.is_udp() {
            self.stack.udp_send(&hop, (from, port), to, &bytes, common.hops(to.0), common.tos)?;
        } else {
            self.send_raw(&hop, from, to.0, &bytes, &common)?;
        }
        Ok(bytes.len())
    }

    fn recv(&self, sink: &mut dyn ReadSink, message: &mut RecvMsg, who: &Caller) -> Result<usize> {
        if message.flags & msg::OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if message.flags & msg::ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        let common = self.inner.lock().common.clone();
        let peek = message.flags & msg::PEEK != 0;
        let nonblock = who.nonblock || message.flags & msg::DONTWAIT != 0;
        let next = || match self.queue.pop(peek) {
            Err(Errno::EAGAIN) if self.inner.lock().read_closed => Ok(None),
            r => r.map(Some),
        };
        let Some(d) = wait(&self.queue.readable, nonblock, common.rcv_timeout, next)? else { return Ok(0) };
        let put = give(sink, &d.data)?;
        if put < d.data.len() {
            message.out |= msg::TRUNC;
        }
        self.describe(&d, &common, message);
        Ok(if message.flags & msg::TRUNC != 0 { d.data.len() } else { put })
    }

    fn shutdown(&self, read: bool, write: bool) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.read_closed |= read;
        inner.write_closed |= write;
        let connected = inner.remote.is_some();
        drop(inner);
        self.queue.readable.wake_all();
        if connected { Ok(()) } else { Err(Errno::ENOTCONN) }
    }

    fn set_option(&self, level: u32, name: u32, value: &[u8], who: &Caller) -> Result<()> {
        if level == level::TCP {
            return Err(Errno::ENOPROTOOPT);
        }
        // Filters of raw ICMP sockets and checksums of raw IPv6 are accepted: everything is let through.
        if (level == 255 || level == 58 || (level == level::SOCKET && matches!(name, 26 | 27))) && !self.is_udp() {
            return Ok(());
        }
        if level == 263 && self.family == family::PACKET {
            return Ok(());
        }
        let mut inner = self.inner.lock();
        if level == level::SOCKET && name == 25 {
            inner.common.bound = self.stack.device_option(value)?;
            let bound = inner.local.is_some();
            drop(inner);
            return if bound { self.enter() } else { Ok(()) };
        }
        inner.common.set(level, name, value, who)?;
        self.queue.set_limit(inner.common.rcvbuf.unwrap_or(DEFAULT_BUFFER));
        Ok(())
    }

    fn option(&self, level: u32, name: u32) -> Result<Vec<u8>> {
        let number = |n: u32| Ok(n.to_ne_bytes().to_vec());
        match (level, name) {
            (level::SOCKET, 3) => number(self.kind),
            (level::SOCKET, 38) => number(self.protocol),
            (level::SOCKET, 39) => number(self.family.into()),
            (level::SOCKET, 30) => number(0),
            (level::SOCKET, 4) => number(self.queue.take_error().map_or(0, |e| e.raw() as u32)),
            (level::SOCKET, 7 | 8) => {
                let c = self.inner.lock().common.clone();
                number((if name == 7 { c.sndbuf } else { c.rcvbuf }).unwrap_or(DEFAULT_BUFFER) as u32)
            }
            (level::TCP, _) => Err(Errno::EOPNOTSUPP),
            _ => self.inner.lock().common.get(level, name),
        }
    }

    fn ready(&self) -> u32 {
        let inner = self.inner.lock();
        let mut now = ready::OUT | ready::WRBAND;
        if inner.read_closed {
            now |= ready::IN | ready::RDHUP;
        }
        if inner.read_closed && inner.write_closed {
            now |= ready::HUP;
        }
        drop(inner);
        now | self.queue.ready()
    }

    fn queues(&self) -> [Arc<WaitQueue>; 2] {
        [self.queue.readable.clone(), self.writable.clone()]
    }

    fn pending(&self) -> (usize, usize) {
        (self.queue.first_len().unwrap_or(0), 0)
    }

    fn close(&self, _who: &Caller) {
        self.leave();
        self.inner.lock().lease = None;
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Stack {
    /// `SO_BINDTODEVICE`: an interface's name; none for an empty one. `ENODEV`.
    pub(crate) fn device_option(&self, value: &[u8]) -> Result<u32> {
        let name = value.split(|c| *c == 0).next().unwrap_or(&[]);
        if name.is_empty() {
            return Ok(0);
        }
        let name = core::str::from_utf8(name).map_err(|_| Errno::ENODEV)?;
        self.config().by_name(name).map(|i| i.netif.index).ok_or(Errno::ENODEV)
    }
}
