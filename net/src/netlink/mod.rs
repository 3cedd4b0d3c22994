//! `AF_NETLINK` with `NETLINK_ROUTE` (rtnetlink(7)): interfaces, addresses, routes and neighbours, as `ip`, and the C libraries'
//! `getifaddrs` and `getaddrinfo`, ask for and change them.
//!
//! A request is carried out when it is sent, and its answers wait in the socket's queue: dumps in portions that fit a
//! page, closed by `NLMSG_DONE`; errors and acknowledgements by `NLMSG_ERROR`. Changing anything needs `CAP_NET_ADMIN`.
//!
//! Not done: strict checking, rules, traffic classes, and kinds of interfaces that would have to be made (`docs/limits.md`).

mod config;
mod dump;
mod notify;
mod wire;

pub use dump::flags;
pub(crate) use notify::Members;

use crate::Stack;
use crate::socket::{Caller, Common, RecvMsg, SendMsg, SockAddr, Socket, family, give, kind, msg, ready, take, wait};
use crate::udp::{Datagram, Queue};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::sync::atomic::{AtomicU32, Ordering};
use notify::Member;
use platform::{ReadSink, WriteSource};
use sync::{LockClass, SpinLock, WaitQueue};
use wire::{Answer, Request};

static CLASS: LockClass = LockClass::new("netlink socket", 501);
const LIMIT: usize = 1 << 20;

/// `RTM_*`.
mod rtm {
    pub const NEWLINK: u16 = 16;
    pub const GETLINK: u16 = 18;
    pub const SETLINK: u16 = 19;
    pub const NEWADDR: u16 = 20;
    pub const DELADDR: u16 = 21;
    pub const GETADDR: u16 = 22;
    pub const NEWROUTE: u16 = 24;
    pub const DELROUTE: u16 = 25;
    pub const GETROUTE: u16 = 26;
    pub const NEWNEIGH: u16 = 28;
    pub const DELNEIGH: u16 = 29;
    pub const GETNEIGH: u16 = 30;
}

/// A netlink socket.
pub struct Netlink {
    stack: Arc<Stack>,
    kind: u32,
    port: AtomicU32,
    member: Arc<Member>,
    common: SpinLock<Common>,
    queue: Arc<Queue>,
    writable: Arc<WaitQueue>,
}

impl Netlink {
    /// An unbound socket.
    pub fn new(stack: &Arc<Stack>, kind: u32) -> Self {
        let queue = Arc::new(Queue::new(LIMIT));
        Netlink {
            stack: stack.clone(),
            kind,
            port: AtomicU32::new(0),
            member: Arc::new(Member { queue: queue.clone(), groups: AtomicU32::new(0) }),
            common: SpinLock::new(&CLASS, Common::default()),
            queue,
            writable: Arc::new(WaitQueue::new()),
        }
    }

    /// Its number, chosen when first needed: nobody but the kernel talks to it, so it need only differ from others.
    fn port(&self) -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(0xc000_0001);
        if self.port.load(Ordering::Relaxed) == 0 {
            let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
            let _ = self.port.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.port.load(Ordering::Relaxed)
    }

    /// Joins (`NETLINK_ADD_MEMBERSHIP`) or leaves a group by its number. `EINVAL`: there is none of that number.
    fn membership(&self, name: u32, value: &[u8]) -> Result<()> {
        if name != 1 && name != 2 {
            return Ok(());
        }
        let number = value.get(..4).and_then(|v| v.try_into().ok()).map(u32::from_ne_bytes).ok_or(Errno::EINVAL)?;
        // RTNLGRP_* of today end there; of those beyond 32 nothing is ever told.
        if !(1..=37).contains(&number) {
            return Err(Errno::EINVAL);
        }
        let bit = 1u32.checked_shl(number - 1).unwrap_or(0);
        let old = self.member.groups.load(Ordering::Relaxed);
        self.stack.members.join(&self.member, if name == 1 { old | bit } else { old & !bit });
        Ok(())
    }

    /// Carries out one request; its answers go into the queue. `ENOBUFS` when they do not fit.
    fn request(&self, r: &Request<'_>, who: &Caller) -> Result<()> {
        if r.flags & wire::REQUEST == 0 || r.kind < rtm::NEWLINK {
            return Ok(());
        }
        let flags = if r.is_dump() { wire::MULTI } else { 0 };
        let mut answer = Answer::new(r.seq, self.port(), flags);
        let done = match r.kind {
            rtm::GETLINK | rtm::GETADDR | rtm::GETROUTE | rtm::GETNEIGH => self.stack.netlink_get(r, &mut answer),
            _ if !who.admin => Err(Errno::EPERM),
            _ => self.stack.netlink_set(r),
        };
        match done {
            Ok(()) if r.is_dump() && matches!(r.kind & 3, 2) => answer.begin(wire::DONE, &0i32.to_ne_bytes()),
            Ok(()) if r.flags & wire::ACK == 0 => {}
            result => {
                let code = result.err().map_or(0, |e| -(e.raw()));
                answer.set_flags(0);
                let mut fixed = code.to_ne_bytes().to_vec();
                // All of a refused request is quoted, of an accepted one the header.
                fixed.extend(if code == 0 { &r.bytes[..wire::HEADER] } else { r.bytes });
                answer.begin(wire::ERROR, &fixed);
            }
        }
        for data in answer.finish() {
            let none = Ipv4Addr::UNSPECIFIED.into();
            let d = Datagram { from: (none, 0), to: none, index: 0, ttl: 0, tos: 0, data, at: 0 };
            if !self.queue.push(d) {
                return Err(Errno::ENOBUFS);
            }
        }
        Ok(())
    }
}

impl Socket for Netlink {
    fn family(&self) -> u16 {
        family::NETLINK
    }
    fn kind(&self) -> u32 {
        self.kind
    }
    fn protocol(&self) -> u32 {
        0
    }

    fn bind(&self, addr: &SockAddr, who: &Caller) -> Result<()> {
        let SockAddr::Netlink(port, groups) = addr else { return Err(Errno::EINVAL) };
        let old = self.port.load(Ordering::Relaxed);
        if old != 0 && *port != 0 && old != *port {
            return Err(Errno::EINVAL);
        }
        if *port != 0 {
            // A number of its own choice is its process's, as libraries do; others could be somebody else's.
            if *port != who.cred.pid && !who.admin {
                return Err(Errno::EPERM);
            }
            self.port.store(*port, Ordering::Relaxed);
        }
        self.stack.members.join(&self.member, *groups);
        self.port();
        Ok(())
    }

    fn connect(&self, addr: &SockAddr, _who: &Caller) -> Result<()> {
        match addr {
            SockAddr::Unspecified | SockAddr::Netlink(0, _) => Ok(()),
            SockAddr::Netlink(..) => Err(Errno::EPERM),
            _ => Err(Errno::EINVAL),
        }
    }

    fn local(&self) -> SockAddr {
        SockAddr::Netlink(self.port.load(Ordering::Relaxed), self.member.groups.load(Ordering::Relaxed))
    }

    fn peer(&self) -> Result<SockAddr> {
        Ok(SockAddr::Netlink(0, 0))
    }

    fn send(&self, source: &mut dyn WriteSource, message: &mut SendMsg, who: &Caller) -> Result<usize> {
        match &message.to {
            None | Some(SockAddr::Netlink(0, _)) => {}
            Some(SockAddr::Netlink(..)) => return Err(Errno::ECONNREFUSED),
            Some(_) => return Err(Errno::EINVAL),
        }
        let len = source.remaining();
        if len > 65536 {
            return Err(Errno::EMSGSIZE);
        }
        let bytes = take(source, len)?;
        for r in wire::requests(&bytes) {
            if self.request(&r, who).is_err() {
                self.queue.set_error(Errno::ENOBUFS);
            }
        }
        Ok(bytes.len())
    }

    fn recv(&self, sink: &mut dyn ReadSink, message: &mut RecvMsg, who: &Caller) -> Result<usize> {
        if message.flags & msg::OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let timeout = self.common.lock().rcv_timeout;
        let peek = message.flags & msg::PEEK != 0;
        let nonblock = who.nonblock || message.flags & msg::DONTWAIT != 0;
        let d = wait(&self.queue.readable, nonblock, timeout, || self.queue.pop(peek))?;
        let put = give(sink, &d.data)?;
        if put < d.data.len() {
            message.out |= msg::TRUNC;
        }
        message.from = Some(SockAddr::Netlink(0, d.index));
        Ok(if message.flags & msg::TRUNC != 0 { d.data.len() } else { put })
    }

    fn shutdown(&self, _read: bool, _write: bool) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn set_option(&self, level: u32, name: u32, value: &[u8], who: &Caller) -> Result<()> {
        // SOL_NETLINK; reporting of more than errors is accepted.
        if level == 270 {
            return self.membership(name, value);
        }
        let mut common = self.common.lock();
        common.set(level, name, value, who)?;
        self.queue.set_limit(common.rcvbuf.unwrap_or(LIMIT));
        Ok(())
    }

    fn option(&self, level: u32, name: u32) -> Result<Vec<u8>> {
        let number = |n: u32| Ok(n.to_ne_bytes().to_vec());
        match (level, name) {
            (1, 3) => number(self.kind),
            (1, 38) => number(0),
            (1, 39) => number(family::NETLINK.into()),
            (1, 4) => number(self.queue.take_error().map_or(0, |e| e.raw() as u32)),
            (1, 7 | 8) => number(LIMIT as u32),
            (270, _) => number(0),
            _ => self.common.lock().get(level, name),
        }
    }

    fn ready(&self) -> u32 {
        ready::OUT | self.queue.ready()
    }

    fn queues(&self) -> [Arc<WaitQueue>; 2] {
        [self.queue.readable.clone(), self.writable.clone()]
    }

    fn pending(&self) -> (usize, usize) {
        (self.queue.first_len().unwrap_or(0), 0)
    }

    fn close(&self, _who: &Caller) {}
}

/// Makes a netlink socket. `EPROTONOSUPPORT` for other protocols than routing, `ESOCKTNOSUPPORT`.
pub(crate) fn create(stack: &Arc<Stack>, kind: u32, protocol: u32) -> Result<Arc<dyn Socket>> {
    match (kind, protocol) {
        (kind::RAW | kind::DGRAM, 0) => Ok(Arc::new(Netlink::new(stack, kind))),
        (kind::RAW | kind::DGRAM, _) => Err(Errno::EPROTONOSUPPORT),
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}
