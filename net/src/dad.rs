//! Duplicate address detection (RFC 4862, 5.4): whether another on the link has an address before this host uses it.
//!
//! # Ideas
//! An address of IPv6 that comes to an interface with a link layer, or is there when the interface comes up, is *tentative*: listed,
//! but not this host's yet ([`crate::config::Config::is_local`]), so nothing is sent from it, taken for it or bound to it. Connections and
//! sockets that have it from before send nothing meanwhile ([`crate::flow`]).
//! One solicitation asks for it, from no address. If for a second nobody answers, and nobody else asks in the same way, it is
//! ours; else it has *failed* and stays listed, unused, until it is taken away or the interface comes up again. While the link is
//! down nothing is decided; the question is repeated when it comes back.
//!
//! Routers are asked for only when the link-local address is ours. An address may be added without all this
//! (`IFA_F_NODAD`).
//!
//! As on Linux one solicitation is sent; unlike there it is sent at once, not after up to a second drawn by lot, and a failed
//! address that a router's prefix gave is listed until that prefix ends.
//!
//! # Locking
//! The states are part of the configuration and change with it.

use crate::config::{Config, IfConfig, NetIf, is_link_local};
use crate::neigh::solicited;
use crate::timers::Target;
use crate::{Features, Stack};
use abi::Errno;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr};

/// Silence after which an address is free: `RetransTimer` (RFC 4861, 10), in nanoseconds.
const WAIT_NS: u64 = 1_000_000_000;

/// What is known of an address that is not simply ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dad {
    /// It is ours, and whoever gave it wants no check.
    Never,
    /// Asked for since then (nanoseconds).
    Tentative(u64),
    /// Another has it.
    Failed,
}

/// Whether addresses of `netif` are checked at all.
fn has_neighbours(netif: &NetIf) -> bool {
    netif.device.as_ref().is_some_and(|d| !d.features().contains(Features::NO_LINK))
}

impl IfConfig {
    /// Whether `addr`, one of the interface's, may be used.
    pub fn is_usable(&self, addr: IpAddr) -> bool {
        matches!(self.dad_of(addr), None | Some(Dad::Never))
    }

    /// What the check of `addr` has come to; `None`: it is ours.
    pub fn dad_of(&self, addr: IpAddr) -> Option<Dad> {
        let IpAddr::V6(a) = addr else { return None };
        self.dad.iter().find(|d| d.0 == a).map(|d| d.1)
    }

    fn set_dad(&mut self, addr: Ipv6Addr, state: Dad) {
        self.dad.retain(|d| d.0 != addr);
        self.dad.push((addr, state));
    }

    /// Makes one address, or all that are to be checked, tentative.
    pub(crate) fn doubt(&mut self, only: Option<Ipv6Addr>, now: u64) {
        if !self.up || !has_neighbours(&self.netif) {
            return;
        }
        let six = |a: &(IpAddr, u8)| match a.0 {
            IpAddr::V6(a) => Some(a).filter(|a| only.is_none_or(|o| o == *a)),
            IpAddr::V4(_) => None,
        };
        for a in self.addrs.iter().filter_map(six).collect::<Vec<_>>() {
            if self.dad_of(a.into()) != Some(Dad::Never) {
                self.set_dad(a, Dad::Tentative(now));
            }
        }
    }
}

fn of(c: &mut Config, index: u32) -> Result<&mut IfConfig, Errno> {
    c.interfaces.iter_mut().find(|i| i.netif.index == index).ok_or(Errno::ENODEV)
}

impl Stack {
    /// Asks for the tentative addresses of an interface: for `only`, or for all.
    pub(crate) fn ask_for_addresses(&self, netif: &Arc<NetIf>, only: Option<Ipv6Addr>) {
        let config = self.config();
        let Some(i) = config.interface(netif.index) else { return };
        let mut asked = false;
        for (addr, state) in &i.dad {
            if matches!(state, Dad::Tentative(_)) && only.is_none_or(|o| o == *addr) {
                self.send_nd(netif, 135, Ipv6Addr::UNSPECIFIED, solicited(*addr), *addr, None);
                asked = true;
            }
        }
        if asked {
            self.timers.arm(&*self.env, self.env.now_ns() + WAIT_NS, Target::Dad(netif.clone()));
        }
    }

    /// The link came back: what was asked while it was down nobody heard.
    pub(crate) fn ask_again(&self, netif: &Arc<NetIf>) {
        let now = self.env.now_ns();
        let begun = self.configure(|c| {
            let i = of(c, netif.index)?;
            let open = i.dad.iter_mut().filter(|d| matches!(d.1, Dad::Tentative(_)));
            let count = open.map(|d| d.1 = Dad::Tentative(now)).count();
            if count == 0 { Err(Errno::ENOENT) } else { Ok(()) }
        });
        if begun.is_ok() {
            self.ask_for_addresses(netif, None);
        }
    }

    /// A second went by.
    pub(crate) fn dad_timer(&self, netif: &Arc<NetIf>) {
        let now = self.env.now_ns();
        let over = |d: &Dad| matches!(d, Dad::Tentative(since) if now >= since + WAIT_NS);
        if !netif.device.as_ref().is_some_and(|d| d.link_up()) {
            return;
        }
        let ours = self.configure(|c| {
            let i = of(c, netif.index)?;
            let ours: Vec<_> = i.dad.iter().filter(|d| i.up && over(&d.1)).map(|d| d.0).collect();
            i.dad.retain(|d| !ours.contains(&d.0));
            if ours.is_empty() { Err(Errno::ENOENT) } else { Ok(ours) }
        });
        if ours.is_ok_and(|all| all.into_iter().any(is_link_local)) {
            self.solicit_routers(netif, 1);
        }
    }

    /// Somebody else showed that `addr` is theirs, or that they want it too.
    pub(crate) fn duplicate(&self, netif: &Arc<NetIf>, addr: Ipv6Addr) {
        let _ = self.configure(|c| {
            let i = of(c, netif.index)?;
            match i.dad_of(addr.into()) {
                Some(Dad::Tentative(_)) => {
                    i.set_dad(addr, Dad::Failed);
                    Ok(())
                }
                _ => Err(Errno::ENOENT),
            }
        });
    }
}
