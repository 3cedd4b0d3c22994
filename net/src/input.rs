//! The way in: from a frame to the transport that it is for.

use crate::batch::Batch;
use crate::config::{IfCounters, LOOPBACK, NetIf};
use crate::packet::{self, Ip, Packet, be16};
use crate::{Features, RxMeta, Sabotage, Stack};
use alloc::sync::Arc;
use core::net::IpAddr;
use core::sync::atomic::Ordering;

/// A packet that arrived, with what is known of it.
#[derive(Clone, Copy)]
pub(crate) struct Arrival<'a> {
    pub ip: Ip,
    /// The IP packet, cut to its length.
    pub bytes: &'a [u8],
    pub netif: &'a Arc<NetIf>,
    /// Its transport checksum needs no check.
    pub trusted: bool,
    /// The link-layer sender.
    pub mac: [u8; 6],
}

impl Arrival<'_> {
    /// What follows the IP header.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.ip.header..]
    }

    /// Whether the transport's checksum is right.
    pub fn sum_ok(&self) -> bool {
        self.trusted || {
            let p = self.payload();
            packet::fold(packet::sum(p, packet::pseudo(self.ip.src, self.ip.dst, self.ip.proto, p.len()))) == 0xffff
        }
    }
}

impl Stack {
    /// A frame arrived at `netif`. Context: thread, no lock of the stack held.
    pub fn receive(&self, netif: &Arc<NetIf>, frame: &[u8], meta: RxMeta) {
        self.receive_one(netif, frame, meta, None);
    }

    /// Frames arrived at `netif` together: as [`Stack::receive`] for each, but cheaper ([`crate::batch`]).
    pub fn receive_all(&self, netif: &Arc<NetIf>, frames: &[(&[u8], RxMeta)]) {
        if let [(frame, meta)] = frames {
            return self.receive(netif, frame, *meta);
        }
        let mut batch = Batch::new(frames.len());
        for (frame, meta) in frames {
            self.receive_one(netif, frame, *meta, Some(&mut batch));
        }
        batch.finish(self);
    }

    fn receive_one<'a>(&self, netif: &'a Arc<NetIf>, frame: &'a [u8], meta: RxMeta, batch: Option<&mut Batch<'a>>) {
        IfCounters::count(&netif.counters.rx, frame.len());
        let no_link = netif.device.as_ref().is_some_and(|d| d.features().contains(Features::NO_LINK));
        let ok = if no_link {
            self.ip_input(netif, frame, [0; 6], meta.csum_ok, batch, false)
        } else {
            self.ethernet_input(netif, frame, meta, batch)
        };
        if ok.is_none() {
            netif.counters.rx_errors.fetch_add(1, Ordering::Relaxed);
            self.count(|c| &c.malformed);
        }
    }

    fn ethernet_input<'a>(
        &self,
        netif: &'a Arc<NetIf>,
        frame: &'a [u8],
        meta: RxMeta,
        batch: Option<&mut Batch<'a>>,
    ) -> Option<()> {
        let to: [u8; 6] = frame.get(..6)?.try_into().ok()?;
        let from: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
        let ethertype = be16(frame, 12)?;
        self.raw.packet_input(netif, frame, ethertype);
        if to[0] & 1 == 0 && to != netif.mac() {
            return Some(());
        }
        match ethertype {
            0x0800 | 0x86dd => self.ip_input(netif, &frame[14..], from, meta.csum_ok, batch, false),
            0x0806 => self.arp_input(netif, &frame[14..]),
            _ => {
                netif.counters.rx_dropped.fetch_add(1, Ordering::Relaxed);
                Some(())
            }
        }
    }

    /// Packets came out of loopback.
    pub(crate) fn loopback_input(&self, packets: &[Packet]) {
        let config = self.config();
        if let Some(lo) = config.interface(LOOPBACK) {
            if let [p] = packets {
                let _ = self.ip_input(&lo.netif, p.bytes(), [0; 6], true, None, false);
                return;
            }
            let mut batch = Batch::new(packets.len());
            for p in packets {
                let _ = self.ip_input(&lo.netif, p.bytes(), [0; 6], true, Some(&mut batch), false);
            }
            batch.finish(self);
        }
    }

    /// An IP packet; `whole`: put together from fragments.
    fn ip_input<'a>(
        &self,
        netif: &'a Arc<NetIf>,
        b: &'a [u8],
        mac: [u8; 6],
        trusted: bool,
        batch: Option<&mut Batch<'a>>,
        whole: bool,
    ) -> Option<()> {
        let ip = packet::parse_ip(b)?;
        let looped = netif.index == LOOPBACK;
        // Nobody outside speaks for us or for groups (RFC 1122, 3.2.1.3).
        if ip.src.is_multicast() || (ip.src.is_loopback() || ip.dst.is_loopback()) && !looped {
            return None;
        }
        let bytes = &b[..ip.total];
        let trusted = trusted || self.sabotaged(Sabotage::CHECKSUM);
        let a = Arrival { ip, bytes, netif, trusted, mac };
        if let Some(f) = ip.fragment {
            if whole {
                return None;
            }
            let whole = self.reassembly.add(self, &ip, f, bytes)?;
            return match whole {
                Some(whole) => self.ip_input(netif, &whole, mac, false, None, true),
                None => Some(()),
            };
        }
        // A known connection needs no look at addresses: it was made for one of ours.
        if ip.proto == packet::TCP && !ip.dst.is_multicast() {
            return self.tcp_input(&a, batch);
        }
        let config = self.config();
        let group = ip.dst.is_multicast() || config.is_broadcast(ip.dst, netif.index);
        if !group && !config.is_local(ip.dst) && !self.configuring(netif, &ip) {
            netif.counters.rx_dropped.fetch_add(1, Ordering::Relaxed);
            return Some(());
        }
        let raw = self.raw.input(&a);
        match (ip.proto, ip.dst) {
            (packet::UDP, _) => self.udp_input(&a, group),
            (packet::ICMP, IpAddr::V4(_)) => self.icmp_input(&a, group),
            (packet::ICMPV6, IpAddr::V6(_)) => self.icmpv6_input(&a, group),
            _ if raw || group => Some(()),
            _ => {
                self.send_unreachable(&a, 2);
                Some(())
            }
        }
    }

    /// Whether it may be an answer of DHCP to an interface that has no address yet.
    fn configuring(&self, netif: &Arc<NetIf>, ip: &Ip) -> bool {
        ip.proto == packet::UDP
            && ip.dst.is_ipv4()
            && self.config().interface(netif.index).is_some_and(|i| !i.addrs.iter().any(|a| a.0.is_ipv4()))
    }
}
