//! Raw endpoints: IP packets of one protocol (`SOCK_RAW`), ICMP echo by identifier (`SOCK_DGRAM` with `IPPROTO_ICMP`), and
//! whole frames (`AF_PACKET`).

use crate::config::NetIf;
use crate::input::Arrival;
use crate::packet::{self, be16};
use crate::udp::{Datagram, Queue};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};
use core::sync::atomic::{AtomicUsize, Ordering};
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("raw endpoints", 552);

/// What an endpoint wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Packets of a protocol over IPv4 (with header) or IPv6 (without).
    Ip {
        /// Over IPv6.
        v6: bool,
        /// Which protocol.
        proto: u8,
    },
    /// Echo replies with this identifier.
    Echo {
        /// ICMPv6.
        v6: bool,
        /// The identifier.
        id: u16,
    },
    /// Frames of this type (`ETH_P_ALL`: 3), on this interface (0: any).
    Frames {
        /// The EtherType.
        ethertype: u16,
        /// Which interface.
        index: u32,
        /// Without the link-layer header.
        cooked: bool,
    },
}

/// An endpoint.
pub struct Raw {
    /// What it wants.
    pub want: Want,
    /// Only from here.
    pub remote: Option<IpAddr>,
    /// Only to here.
    pub local: Option<IpAddr>,
    /// What came.
    pub queue: Arc<Queue>,
}

/// All of them. There are few, so they are looked through; when there are none that costs one load.
pub struct Raws {
    all: SpinLock<Vec<Arc<Raw>>>,
    count: AtomicUsize,
}

impl Raws {
    pub(crate) fn new() -> Self {
        Raws { all: SpinLock::new(&CLASS, Vec::new()), count: AtomicUsize::new(0) }
    }

    /// Adds one. For [`Want::Echo`] with identifier taken: false.
    pub fn insert(&self, raw: Arc<Raw>) -> bool {
        let mut all = self.all.lock();
        if matches!(raw.want, Want::Echo { .. }) && all.iter().any(|r| r.want == raw.want) {
            return false;
        }
        all.push(raw);
        self.count.store(all.len(), Ordering::Release);
        true
    }

    /// Takes one out.
    pub fn remove(&self, raw: &Arc<Raw>) {
        let mut all = self.all.lock();
        all.retain(|r| !Arc::ptr_eq(r, raw));
        self.count.store(all.len(), Ordering::Release);
    }

    fn matching(&self, wants: impl Fn(&Raw) -> bool) -> Vec<Arc<Raw>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        self.all.lock().iter().filter(|r| wants(r)).cloned().collect()
    }

    /// Hands an IP packet to those who want it; whether there was one.
    pub(crate) fn input(&self, a: &Arrival<'_>) -> bool {
        let ip = &a.ip;
        let p = a.payload();
        let reply = match ip.proto {
            packet::ICMP => p.first() == Some(&0),
            packet::ICMPV6 => p.first() == Some(&129),
            _ => false,
        };
        let wanted = self.matching(|r| {
            let kind = match r.want {
                Want::Ip { v6, proto } => v6 == ip.dst.is_ipv6() && (proto == ip.proto || proto == 255),
                Want::Echo { v6, id } => reply && v6 == ip.dst.is_ipv6() && be16(p, 4) == Some(id),
                Want::Frames { .. } => false,
            };
            kind && r.remote.is_none_or(|x| x == ip.src) && r.local.is_none_or(|x| x == ip.dst)
        });
        for r in &wanted {
            let whole = matches!(r.want, Want::Ip { v6: false, .. });
            let data = if whole { a.bytes } else { p };
            r.queue.push(datagram(ip.src, ip.dst, a.netif, ip.ttl, data, 0));
        }
        !wanted.is_empty()
    }

    /// Hands a frame to those who want it.
    pub(crate) fn packet_input(&self, netif: &Arc<NetIf>, frame: &[u8], ethertype: u16) {
        let wanted = self.matching(|r| {
            matches!(r.want, Want::Frames { ethertype: t, index: i, .. }
                if (t == ethertype || t == 3) && (i == 0 || i == netif.index))
        });
        for r in wanted {
            let cooked = matches!(r.want, Want::Frames { cooked: true, .. });
            let data = if cooked { &frame[14..] } else { frame };
            let none = Ipv4Addr::UNSPECIFIED.into();
            r.queue.push(datagram(none, none, netif, 0, data, ethertype));
        }
    }
}

fn datagram(src: IpAddr, dst: IpAddr, netif: &Arc<NetIf>, ttl: u8, data: &[u8], port: u16) -> Datagram {
    let at = platform::realtime_ns();
    Datagram { from: (src, port), to: dst, index: netif.index, ttl, tos: 0, data: data.to_vec(), at }
}
