//! The way out: checksum, route, fragments, neighbour, device.

use crate::config::{Hop, IfCounters, NetIf};
use crate::packet::{self, Packet, put16};
use crate::stack::LANES;
use crate::{Features, Stack};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::Ordering;

/// Packets that loopback takes in together.
const AT_ONCE: usize = 32;

impl Stack {
    /// Hands a frame to an interface's device.
    pub(crate) fn transmit(&self, netif: &Arc<NetIf>, frame: Packet) {
        let Some(device) = &netif.device else { return };
        let len = frame.bytes().len();
        if device.transmit(frame) {
            IfCounters::count(&netif.counters.tx, len);
        } else {
            netif.counters.tx_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends an IP packet whose transport checksum is missing, by the way that its destination has. `EMSGSIZE` if it is
    /// too long and must not be fragmented; errors of [`crate::config::Config::route`].
    pub(crate) fn output(&self, packet: Packet) -> Result<()> {
        let Some(ip) = packet::parse_ip(packet.bytes()) else { return Err(Errno::EINVAL) };
        let hop = self.config().route(ip.dst, 0).inspect_err(|_| self.count(|c| &c.unreachable))?;
        self.output_by(packet, &ip, &hop)
    }

    /// As [`Stack::output`], by a way already found.
    pub(crate) fn output_by(&self, mut packet: Packet, ip: &packet::Ip, hop: &Hop) -> Result<()> {
        let Some(device) = &hop.netif.device else {
            self.loopback(packet, ip);
            return Ok(());
        };
        if packet.bytes().len() > hop.netif.mtu() {
            finish_checksum(&mut packet, ip, false);
            return self.fragment(&packet, ip, hop);
        }
        finish_checksum(&mut packet, ip, device.features().contains(Features::TX_CSUM));
        let broadcast = ip.dst.is_ipv4() && self.config().is_broadcast(ip.dst, hop.netif.index);
        self.link_output(hop, packet, broadcast);
        Ok(())
    }

    /// Cuts a packet to the interface's size.
    fn fragment(&self, packet: &Packet, ip: &packet::Ip, hop: &Hop) -> Result<()> {
        let mtu = hop.netif.mtu();
        let all = packet.bytes();
        let payload = &all[ip.header..ip.total];
        let id = self.env.random() as u32;
        let extra = if ip.dst.is_ipv4() { 0 } else { 8 };
        let step = mtu.checked_sub(ip.header + extra).map_or(0, |n| n & !7);
        if step == 0 {
            return Err(Errno::EMSGSIZE);
        }
        let mut at = 0;
        while at < payload.len() {
            let part = &payload[at..(at + step).min(payload.len())];
            let more = at + part.len() < payload.len();
            let mut p = Packet::new(ip.header + extra + part.len());
            p.cpu = packet.cpu;
            let b = p.bytes_mut();
            b[..ip.header].copy_from_slice(&all[..ip.header]);
            if ip.dst.is_ipv4() {
                put16(b, 2, (ip.header + part.len()) as u16);
                put16(b, 4, id as u16);
                put16(b, 6, (at / 8) as u16 | if more { 0x2000 } else { 0 });
                packet::finish_v4(b);
            } else {
                put16(b, 4, (part.len() + 8) as u16);
                b[6] = 44;
                b[40] = ip.proto;
                put16(b, 42, at as u16 | u16::from(more));
                packet::put32(b, 44, id);
            }
            b[ip.header + extra..].copy_from_slice(part);
            self.link_output(hop, p, self.config().is_broadcast(ip.dst, hop.netif.index));
            at += part.len();
        }
        Ok(())
    }

    /// Loops a packet back. It is queued, never handed over at once: the sender may be in the middle of receiving. A lane
    /// is drained by whoever finds it idle; both directions of a connection take the same lane, so they stay in order.
    fn loopback(&self, packet: Packet, ip: &packet::Ip) {
        if let Ok(lo) = self.config().interface(crate::config::LOOPBACK).map(|i| i.netif.clone()).ok_or(()) {
            IfCounters::count(&lo.counters.tx, packet.bytes().len());
            IfCounters::count(&lo.counters.rx, packet.bytes().len());
        }
        let more = packet.more;
        let t = &packet.bytes()[ip.header..];
        let ports = packet::be16(t, 0).unwrap_or(0) ^ packet::be16(t, 2).unwrap_or(0);
        let lane = &self.lanes[usize::from(ports) % LANES];
        {
            let mut queue = lane.queue.lock();
            // Bounded as a device's ring is: transports recover from what is dropped.
            if queue.len() < 4096 {
                queue.push_back(packet);
            }
        }
        if more {
            return;
        }
        while !lane.draining.swap(true, Ordering::Acquire) {
            loop {
                let mut queue = lane.queue.lock();
                let Some(first) = queue.pop_front() else { break };
                if queue.is_empty() {
                    drop(queue);
                    self.loopback_input(&[first]);
                    continue;
                }
                let count = queue.len().min(AT_ONCE);
                let next: Vec<Packet> = core::iter::once(first).chain(queue.drain(..count)).collect();
                drop(queue);
                self.loopback_input(&next);
            }
            lane.draining.store(false, Ordering::Release);
            // Who queued between our last look and the store has left it to us.
            if lane.queue.lock().is_empty() {
                break;
            }
        }
    }

    /// A packet that this host sent could not be delivered on the link: tells the sender.
    pub(crate) fn unreachable(&self, packet: &[u8]) {
        self.count(|c| &c.unreachable);
        let Some(ip) = packet::parse_ip(packet) else { return };
        if ip.fragment.is_none_or(|f| f.offset == 0) {
            let payload = &packet[ip.header..ip.total];
            self.transport_error(ip.src, ip.dst, ip.proto, payload, Errno::EHOSTUNREACH, false);
        }
    }
}

/// Fills in the transport's checksum, or what a device needs to do that.
fn finish_checksum(packet: &mut Packet, ip: &packet::Ip, offload: bool) {
    let (src, dst, proto, header, total): (IpAddr, IpAddr, _, _, _) = (ip.src, ip.dst, ip.proto, ip.header, ip.total);
    let Some(at) = packet::csum_offset(proto).filter(|_| proto == packet::TCP || proto == packet::UDP) else { return };
    let segment = &mut packet.bytes_mut()[header..total];
    if segment.len() < at + 2 {
        return;
    }
    if offload {
        let partial = packet::fold(packet::pseudo(src, dst, proto, segment.len()));
        put16(segment, at, partial);
        packet.csum = Some((header as u16, at as u16));
        return;
    }
    put16(segment, at, 0);
    let sum = packet::checksum(src, dst, proto, segment);
    put16(segment, at, if sum == 0 && proto == packet::UDP { 0xffff } else { sum });
}
