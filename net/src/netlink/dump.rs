//! What there is: answers to `RTM_GET*`.

use super::rtm;
use super::wire::{Answer, Request};
use crate::Stack;
use crate::config::{IfConfig, LOOPBACK, Route, is_link_local, network};
use crate::dad::Dad;
use crate::neigh::{Neighbour, State};
use abi::{Errno, Result};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::Ordering::Relaxed;

pub(super) const INET: u8 = 2;
pub(super) const INET6: u8 = 10;

/// `RT_SCOPE_*`.
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;

fn family(a: IpAddr) -> u8 {
    if a.is_ipv4() { INET } else { INET6 }
}

fn octets(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The address in an attribute of that family.
pub(super) fn address(b: &[u8]) -> Option<IpAddr> {
    match b.len() {
        4 => <[u8; 4]>::try_from(b).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(b).ok().map(IpAddr::from),
        _ => None,
    }
}

impl Stack {
    /// Answers a question. `ENODEV`, `EOPNOTSUPP`, errors of routing.
    pub(super) fn netlink_get(&self, r: &Request<'_>, out: &mut Answer) -> Result<()> {
        let config = self.config();
        let wanted = |f: u8| r.byte(0) == 0 || r.byte(0) == f;
        match (r.kind, r.is_dump()) {
            (rtm::GETLINK, true) => config.interfaces.iter().for_each(|i| link(i, out)),
            (rtm::GETLINK, false) => {
                let found = match r.name(16, 3) {
                    Some(name) if r.word(4) == 0 => config.by_name(name),
                    _ => config.interface(r.word(4)),
                };
                link(found.ok_or(Errno::ENODEV)?, out);
            }
            (rtm::GETADDR, true) => {
                for i in &config.interfaces {
                    i.addrs.iter().filter(|a| wanted(family(a.0))).for_each(|a| addr(i, *a, rtm::NEWADDR, out));
                }
            }
            (rtm::GETROUTE, true) => {
                // The local table is not kept as routes; programs ask for it to see the main one.
                let table = r.byte(4);
                if table == 0 || table == 254 {
                    config.routes.iter().filter(|x| wanted(family(x.dst))).for_each(|x| route(x, rtm::NEWROUTE, out));
                }
            }
            (rtm::GETROUTE, false) => {
                let dst = r.attribute(12, 1).and_then(address).ok_or(Errno::EINVAL)?;
                let hop = config.route(dst, r.number(12, 4).unwrap_or(0))?;
                let len = if dst.is_ipv4() { 32 } else { 128 };
                let kind = if config.is_local(dst) { 2 } else { 1 };
                out.begin(rtm::NEWROUTE, &[family(dst), len, 0, 0, 254, 0, SCOPE_UNIVERSE, kind, 0, 2, 0, 0]);
                out.attribute(1, &octets(dst));
                if hop.next != dst {
                    out.attribute(5, &octets(hop.next));
                }
                out.number(4, hop.netif.index);
                out.attribute(7, &octets(hop.source));
            }
            (rtm::GETNEIGH, true) => {
                let index = r.word(4);
                let all = self.neighbours.list(self.env.now_ns());
                let shown = |n: &&Neighbour| wanted(family(n.addr)) && (index == 0 || n.index == index);
                all.iter().filter(shown).for_each(|n| neighbour(n, rtm::NEWNEIGH, out));
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Ok(())
    }
}

/// An interface's `IFF_*` flags (netdevice(7)).
pub fn flags(i: &IfConfig) -> u32 {
    let loopback = i.netif.index == LOOPBACK;
    let link = i.netif.device.as_ref().is_none_or(|d| d.link_up());
    let mut flags = if loopback { 8 } else { 0x1002 };
    if i.up {
        flags |= 1 | if link { 0x1_0040 } else { 0 };
    }
    flags
}

pub(super) fn link(i: &IfConfig, out: &mut Answer) {
    let netif = &i.netif;
    let loopback = netif.index == LOOPBACK;
    let kind: u16 = if loopback { 772 } else { 1 };
    let mut fixed = Vec::from([0, 0]);
    fixed.extend(kind.to_ne_bytes());
    fixed.extend(netif.index.to_ne_bytes());
    let flags = flags(i);
    fixed.extend(flags.to_ne_bytes());
    fixed.extend([0; 4]);
    out.begin(rtm::NEWLINK, &fixed);
    out.name(3, &netif.name);
    out.number(13, 1000);
    let running = flags & 0x40 != 0;
    out.attribute(
        16,
        &[if loopback {
            0
        } else if running {
            6
        } else {
            2
        }],
    );
    out.attribute(17, &[0]);
    out.number(4, netif.mtu() as u32);
    out.attribute(1, &netif.mac());
    out.attribute(2, &if loopback { [0; 6] } else { [0xff; 6] });
    out.name(6, if loopback { "noqueue" } else { "fifo" });
    out.attribute(33, &[u8::from(running)]);
    let c = &netif.counters;
    let mut stats = [0u64; 24];
    stats[0] = c.rx[0].load(Relaxed);
    stats[1] = c.tx[0].load(Relaxed);
    stats[2] = c.rx[1].load(Relaxed);
    stats[3] = c.tx[1].load(Relaxed);
    stats[4] = c.rx_errors.load(Relaxed);
    stats[6] = c.rx_dropped.load(Relaxed);
    stats[7] = c.tx_dropped.load(Relaxed);
    out.attribute(7, &stats.map(|n| (n as u32).to_ne_bytes()).concat());
    out.attribute(23, &stats.map(u64::to_ne_bytes).concat());
}

pub(super) fn addr(i: &IfConfig, (a, prefix): (IpAddr, u8), kind: u16, out: &mut Answer) {
    let scope = match a {
        _ if a.is_loopback() => SCOPE_HOST,
        IpAddr::V6(a) if is_link_local(a) => SCOPE_LINK,
        _ => SCOPE_UNIVERSE,
    };
    // `IFA_F_*`: permanent, tentative, failed, not to be checked.
    let flags = match i.dad_of(a) {
        None => 0x80,
        Some(Dad::Never) => 0x82,
        Some(Dad::Tentative(_)) => 0xc0,
        Some(Dad::Failed) => 0xc8,
    };
    let mut fixed = Vec::from([family(a), prefix, flags, scope]);
    fixed.extend(i.netif.index.to_ne_bytes());
    out.begin(kind, &fixed);
    out.attribute(1, &octets(a));
    out.attribute(2, &octets(a));
    if let IpAddr::V4(a) = a {
        if i.netif.index != LOOPBACK {
            out.attribute(4, &crate::config::broadcast(a, prefix).octets());
        }
        out.name(3, &i.netif.name);
    }
    // For ever.
    out.attribute(6, &[[0xff; 4], [0xff; 4], [0; 4], [0; 4]].concat());
    out.number(8, flags.into());
}

pub(super) fn route(r: &Route, kind: u16, out: &mut Answer) {
    let scope = if r.gateway.is_none() && r.dst.is_ipv4() { SCOPE_LINK } else { SCOPE_UNIVERSE };
    out.begin(kind, &[family(r.dst), r.prefix, 0, 0, 254, r.origin, scope, 1, 0, 0, 0, 0]);
    out.number(15, 254);
    if r.prefix > 0 {
        out.attribute(1, &octets(network(r.dst, r.prefix)));
    }
    if let Some(g) = r.gateway {
        out.attribute(5, &octets(g));
    }
    out.number(4, r.index);
    // A connected network's route holds the address that it came with.
    if r.origin == Route::KERNEL && r.gateway.is_none() && r.dst.is_ipv4() {
        out.attribute(7, &octets(r.dst));
    }
    if r.metric > 0 {
        out.number(6, r.metric);
    }
}

pub(super) fn neighbour(n: &Neighbour, kind: u16, out: &mut Answer) {
    let state: u16 = match n.state {
        State::Incomplete => 1,
        State::Reachable => 2,
        State::Stale => 4,
        State::Permanent => 0x80,
    };
    let mut fixed = Vec::from([family(n.addr), 0, 0, 0]);
    fixed.extend(n.index.to_ne_bytes());
    fixed.extend(state.to_ne_bytes());
    fixed.extend([0, 1]);
    out.begin(kind, &fixed);
    out.attribute(1, &octets(n.addr));
    if let Some(mac) = n.mac {
        out.attribute(2, &mac);
    }
}
