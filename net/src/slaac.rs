//! Stateless configuration (RFC 4862): routers are asked for when an interface comes up, and what they advertise gives
//! it addresses and a default route, for as long as they say.
//!
//! # Rules
//! - Solicitations: three, four seconds apart, until an advertisement comes (RFC 4861, 6.3.7).
//! - An address is the prefix and the modified EUI-64 of the interface; [`MAX`] of them on all interfaces, as many routers.
//! - An advertisement cannot shorten what is left of an address to less than two hours (RFC 4862, 5.5.3).
//!
//! Not done: privacy addresses, route preferences, preferred lifetimes (an address is used until it ends).

use crate::Stack;
use crate::config::{NetIf, Route, is_link_local};
use crate::input::Arrival;
use crate::packet::{self, be16, be32, put16};
use crate::timers::Target;
use abi::Errno;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr};
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("net autoconfiguration", 515);

/// Most addresses and routers that strangers give this host.
pub const MAX: usize = 16;
const SEC: u64 = 1_000_000_000;
const TWO_HOURS: u64 = 7200;
const SOLICITATIONS: u8 = 3;

/// What was advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    Address(u32, IpAddr),
    Router(u32, IpAddr),
}

/// What was advertised, and until when it holds.
pub(crate) struct Autoconf {
    leases: SpinLock<Vec<(Lease, u64)>>,
}

fn router_route(index: u32, gateway: IpAddr) -> Route {
    Route {
        dst: Ipv6Addr::UNSPECIFIED.into(),
        prefix: 0,
        gateway: Some(gateway),
        index,
        metric: 1024,
        origin: Route::RA,
    }
}

impl Autoconf {
    pub fn new() -> Self {
        Autoconf { leases: SpinLock::new(&CLASS, Vec::new()) }
    }

    /// Enters or renews; false when there is no room. `seconds` of `u32::MAX` are for ever.
    fn hold(&self, lease: Lease, seconds: u32, now: u64) -> bool {
        let until = if seconds == u32::MAX { u64::MAX } else { now + u64::from(seconds) * SEC };
        let mut all = self.leases.lock();
        if let Some(known) = all.iter_mut().find(|l| l.0 == lease) {
            let least = if matches!(lease, Lease::Address(..)) { known.1.min(now + TWO_HOURS * SEC) } else { 0 };
            known.1 = until.max(least);
            return true;
        }
        let room = all.len() < 2 * MAX && seconds > 0;
        if room {
            all.push((lease, until));
        }
        room
    }
}

impl Stack {
    /// The link of an interface came or went: neighbours and ways are looked for anew.
    pub fn link_changed(&self, index: u32, up: bool) {
        self.forget_neighbours(index);
        self.bump();
        let config = self.config();
        if let Some(i) = config.interface(index) {
            self.tell_link(i);
        }
        let Some(i) = config.interface(index).filter(|i| up && i.up) else { return };
        self.announce(&i.netif);
        self.ask_again(&i.netif);
        self.solicit_routers(&i.netif, 1);
    }

    /// Tells the link of this host's addresses (gratuitous ARP), so that switches and neighbours find it.
    pub(crate) fn announce(&self, netif: &Arc<NetIf>) {
        let config = self.config();
        for (addr, _) in config.interface(netif.index).map(|i| &i.addrs[..]).unwrap_or_default() {
            if let IpAddr::V4(a) = addr {
                self.send_arp(netif, 1, [0xff; 6], [0; 6], *a, *a);
            }
        }
    }

    /// Asks for routers for the `attempt`th time.
    pub(crate) fn solicit_routers(&self, netif: &Arc<NetIf>, attempt: u8) {
        let config = self.config();
        let Some(i) = config.interface(netif.index).filter(|i| i.up && i.netif.device.is_some()) else { return };
        if self.autoconf.leases.lock().iter().any(|l| matches!(l.0, Lease::Router(n, _) if n == netif.index)) {
            return;
        }
        let own = i.addrs.iter().find_map(|x| match x.0 {
            IpAddr::V6(a) if is_link_local(a) && i.is_usable(x.0) => Some(a),
            _ => None,
        });
        // While it is tentative the check's end asks.
        let Some(own) = own else { return };
        let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        let Some((mut p, at)) = packet::build_ip(own.into(), routers.into(), packet::ICMPV6, 255, 0, 16) else {
            return;
        };
        let b = &mut p.bytes_mut()[at..];
        b[0] = 133;
        (b[8], b[9]) = (1, 1);
        b[10..16].copy_from_slice(&netif.mac());
        let c = packet::checksum(own.into(), routers.into(), packet::ICMPV6, b);
        put16(b, 2, c);
        self.send_ether(netif, [0x33, 0x33, 0, 0, 0, 2], 0x86dd, p);
        if attempt < SOLICITATIONS {
            let at = self.env.now_ns() + 4 * SEC;
            self.timers.arm(&*self.env, at, Target::Routers(netif.clone(), attempt + 1));
        }
    }

    /// The interface went down, and with it its ways: routers are asked for anew when it comes up.
    pub(crate) fn forget_routers(&self, index: u32) {
        self.autoconf.leases.lock().retain(|l| !matches!(l.0, Lease::Router(n, _) if n == index));
    }

    /// Takes prefixes and the router from an advertisement; `m` is the message.
    pub(crate) fn router_advertisement(&self, a: &Arrival<'_>, m: &[u8]) -> Option<()> {
        let IpAddr::V6(router) = a.ip.src else { return None };
        let index = a.netif.index;
        let config = self.config();
        let interface = config.interface(index)?;
        if !is_link_local(router) || !interface.up {
            return None;
        }
        let now = self.env.now_ns();
        let mut options = m.get(16..)?;
        while let [kind, len, ..] = options {
            let len = usize::from(*len) * 8;
            if len == 0 || len > options.len() {
                return None;
            }
            let valid = be32(options, 4).unwrap_or(0);
            if *kind == 3 && len == 32 && options[2] == 64 && options[3] & 0x40 != 0 {
                let prefix = packet::v6(options, 16)?;
                let own = interface.addrs.iter().find_map(|x| match x.0 {
                    IpAddr::V6(x) if is_link_local(x) => Some(x.octets()),
                    _ => None,
                });
                if let Some(own) = own.filter(|_| !is_link_local(prefix) && !prefix.is_multicast()) {
                    let mut octets = prefix.octets();
                    octets[8..].copy_from_slice(&own[8..]);
                    let addr: IpAddr = Ipv6Addr::from(octets).into();
                    if self.autoconf.hold(Lease::Address(index, addr), valid, now) {
                        let _ = self.add_address(index, addr, 64);
                    }
                }
            } else if *kind == 1 && len == 8 {
                self.learn(a.netif, router.into(), options[2..8].try_into().ok()?, true);
            }
            options = &options[len..];
        }
        let lifetime = u32::from(be16(m, 6)?);
        if self.autoconf.hold(Lease::Router(index, router.into()), lifetime, now) && lifetime > 0 {
            let _ = self.add_route(router_route(index, router.into()));
        }
        self.autoconf_expire();
        Some(())
    }

    /// Takes back what has ended, and enters the next deadline.
    pub(crate) fn autoconf_expire(&self) {
        let now = self.env.now_ns();
        let (mut ended, mut next) = (Vec::new(), u64::MAX);
        self.autoconf.leases.lock().retain(|(lease, until)| {
            if *until <= now {
                ended.push(*lease);
            } else {
                next = next.min(*until);
            }
            *until > now
        });
        for lease in ended {
            match lease {
                Lease::Address(index, addr) => {
                    let _ = self.remove_address(index, addr);
                }
                Lease::Router(index, gateway) => {
                    let _ = self.configure(|c| {
                        let route = router_route(index, gateway);
                        let before = c.routes.len();
                        c.routes.retain(|r| *r != route);
                        if c.routes.len() == before { Err(Errno::ESRCH) } else { Ok(()) }
                    });
                }
            }
        }
        if next != u64::MAX {
            self.timers.arm(&*self.env, next, Target::Autoconf);
        }
    }
}
