//! What is to change: `RTM_NEW*`, `RTM_DEL*`, `RTM_SETLINK`.

use super::dump::{INET, INET6, address};
use super::rtm;
use super::wire::{self, Request};
use crate::Stack;
use crate::config::Route;
use abi::{Errno, Result};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

impl Stack {
    /// Carries out a change. `EINVAL`, `ENODEV`, `EEXIST`, `ESRCH`, `EADDRNOTAVAIL`, `EOPNOTSUPP`.
    pub(super) fn netlink_set(&self, r: &Request<'_>) -> Result<()> {
        match r.kind {
            rtm::NEWLINK | rtm::SETLINK => self.set_link(r),
            rtm::NEWADDR => self.new_addr(r),
            rtm::DELADDR => {
                let (a, _) = addr_of(r)?;
                self.remove_address(r.word(4), a)
            }
            rtm::NEWROUTE => self.new_route(r),
            rtm::DELROUTE => {
                let (dst, prefix) = dst_of(r)?;
                let gateway = r.attribute(12, 5).and_then(address);
                let (index, metric) = (r.number(12, 4), r.number(12, 6));
                self.remove_route(|x| {
                    x.covers(dst, prefix)
                        && gateway.is_none_or(|g| x.gateway == Some(g))
                        && index.is_none_or(|i| x.index == i)
                        && metric.is_none_or(|m| x.metric == m)
                })
            }
            rtm::NEWNEIGH | rtm::DELNEIGH => self.set_neighbour(r),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn set_link(&self, r: &Request<'_>) -> Result<()> {
        let config = self.config();
        let found = match r.name(16, 3) {
            Some(name) if r.word(4) == 0 => config.by_name(name),
            _ => config.interface(r.word(4)),
        };
        let i = match found {
            Some(i) => i,
            // Nothing but what hardware brings can be made.
            None if r.kind == rtm::NEWLINK && r.word(4) == 0 => return Err(Errno::EOPNOTSUPP),
            None => return Err(Errno::ENODEV),
        };
        let index = i.netif.index;
        let renamed = r.name(16, 3).is_some_and(|n| n != i.netif.name);
        if renamed || r.attribute(16, 1).is_some_and(|m| m != i.netif.mac()) {
            return Err(Errno::EOPNOTSUPP);
        }
        if let Some(mtu) = r.number(16, 4) {
            self.set_mtu(index, mtu as usize)?;
        }
        let (flags, change) = (r.word(8), r.word(12));
        let change = if change == 0 { flags & 1 } else { change };
        if change & 1 != 0 { self.set_up(index, flags & 1 != 0) } else { Ok(()) }
    }

    fn new_addr(&self, r: &Request<'_>) -> Result<()> {
        let (a, prefix) = addr_of(r)?;
        let index = r.word(4);
        // `IFA_F_NODAD`.
        let check = (r.number(8, 8).unwrap_or(0) | u32::from(r.byte(2))) & 2 == 0;
        match self.add_address_checked(index, a, prefix, check) {
            Err(Errno::EEXIST) if r.flags & wire::REPLACE != 0 => Ok(()),
            done => done,
        }
    }

    fn new_route(&self, r: &Request<'_>) -> Result<()> {
        let (dst, prefix) = dst_of(r)?;
        // Unicast, in the main table.
        if !matches!(r.byte(7), 0 | 1) || !matches!(r.byte(4), 0 | 254) {
            return Err(Errno::EOPNOTSUPP);
        }
        let gateway = r.attribute(12, 5).map(|g| address(g).ok_or(Errno::EINVAL)).transpose()?;
        let config = self.config();
        let index = match (r.number(12, 4), gateway) {
            (Some(i), _) => config.interface(i).ok_or(Errno::ENODEV)?.netif.index,
            (None, Some(g)) => config.route(g, 0)?.netif.index,
            (None, None) => return Err(Errno::ENODEV),
        };
        if gateway.is_some_and(|g| g.is_ipv4() != dst.is_ipv4()) {
            return Err(Errno::EINVAL);
        }
        let metric = r.number(12, 6).unwrap_or(if dst.is_ipv4() { 0 } else { 1024 });
        let route = Route { dst, prefix, gateway, index, metric, origin: r.byte(5) };
        if r.flags & wire::REPLACE != 0 {
            let _ = self.remove_route(|x| x.covers(dst, prefix) && x.metric == metric);
        } else if r.flags & wire::EXCL != 0 && config.routes.iter().any(|x| x.covers(dst, prefix) && x.metric == metric)
        {
            return Err(Errno::EEXIST);
        }
        self.add_route(route)
    }

    fn set_neighbour(&self, r: &Request<'_>) -> Result<()> {
        let index = r.word(4);
        let config = self.config();
        let netif = &config.interface(index).ok_or(Errno::ENODEV)?.netif;
        let addr = r.attribute(12, 1).and_then(address).ok_or(Errno::EINVAL)?;
        if r.kind == rtm::DELNEIGH {
            return self.remove_neighbour(index, addr);
        }
        let mac = r.attribute(12, 2).and_then(|m| m.try_into().ok()).ok_or(Errno::EINVAL)?;
        let state = r.word(8) as u16;
        self.set_neighbour_address(netif, addr, mac, state & 0xc0 != 0)
    }
}

fn addr_of(r: &Request<'_>) -> Result<(IpAddr, u8)> {
    let a = r.attribute(8, 2).or_else(|| r.attribute(8, 1)).and_then(address).ok_or(Errno::EINVAL)?;
    if (r.byte(0) == INET) != a.is_ipv4() {
        return Err(Errno::EINVAL);
    }
    Ok((a, r.byte(1)))
}

/// The network that a request is about.
fn dst_of(r: &Request<'_>) -> Result<(IpAddr, u8)> {
    let any: IpAddr = match r.byte(0) {
        INET => Ipv4Addr::UNSPECIFIED.into(),
        INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    let dst = r.attribute(12, 1).map_or(Some(any), address).ok_or(Errno::EINVAL)?;
    if dst.is_ipv4() != any.is_ipv4() || r.byte(1) > if any.is_ipv4() { 32 } else { 128 } {
        return Err(Errno::EINVAL);
    }
    Ok((dst, r.byte(1)))
}
