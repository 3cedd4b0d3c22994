//! Interfaces, addresses and routes.
//!
//! All of it is one immutable [`Config`]; a change makes a new one and raises the generation, by which cached routes
//! know that they are stale.

use crate::dad::Dad;
use crate::device::NetDevice;
use crate::{Counters, Stack};
use abi::{Errno, Result};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use sync::{LockClass, SpinLock};

static CHANGE: LockClass = LockClass::new("net config change", 559);
static CLASS: LockClass = LockClass::new("net config", 560);

/// Index of the loopback interface.
pub const LOOPBACK: u32 = 1;
/// The loopback interface's largest packet.
pub const LOOPBACK_MTU: usize = 65535;

/// An interface's counters, as `/proc/net/dev` shows them.
#[derive(Debug, Default)]
pub struct IfCounters {
    /// Packets and bytes received.
    pub rx: [AtomicU64; 2],
    /// Packets and bytes sent.
    pub tx: [AtomicU64; 2],
    /// Received and not understood.
    pub rx_errors: AtomicU64,
    /// Received, and nobody wanted it.
    pub rx_dropped: AtomicU64,
    /// Not sent.
    pub tx_dropped: AtomicU64,
}

impl IfCounters {
    /// Counts a packet.
    pub fn count(pair: &[AtomicU64; 2], bytes: usize) {
        pair[0].fetch_add(1, Ordering::Relaxed);
        pair[1].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// An interface.
pub struct NetIf {
    /// Its number, from 1.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The device; `None` for loopback.
    pub device: Option<Arc<dyn NetDevice>>,
    /// What its largest packet was set to; 0: what the device carries.
    pub(crate) mtu: AtomicUsize,
    /// Counters.
    pub counters: IfCounters,
}

impl NetIf {
    /// The largest IP packet.
    pub fn mtu(&self) -> usize {
        match self.mtu.load(Ordering::Relaxed) {
            0 => self.device.as_ref().map_or(LOOPBACK_MTU, |d| d.mtu()),
            n => n,
        }
    }
    /// Sends what its device holds back.
    pub(crate) fn flush(&self) {
        if let Some(device) = &self.device {
            device.flush();
        }
    }
    /// The link-layer address.
    pub fn mac(&self) -> [u8; 6] {
        self.device.as_ref().map_or([0; 6], |d| d.mac())
    }
}

/// An interface in a configuration.
#[derive(Clone)]
pub struct IfConfig {
    /// Which.
    pub netif: Arc<NetIf>,
    /// Whether it is up.
    pub up: bool,
    /// Addresses with prefix lengths.
    pub addrs: Vec<(IpAddr, u8)>,
    /// Those of IPv6 of which more is to be said than that they are ours.
    pub dad: Vec<(Ipv6Addr, Dad)>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// To where.
    pub dst: IpAddr,
    /// How many of its bits count.
    pub prefix: u8,
    /// Through whom; `None`: on the link.
    pub gateway: Option<IpAddr>,
    /// By which interface.
    pub index: u32,
    /// Lower is better, among equally long prefixes.
    pub metric: u32,
    /// Where it comes from (`RTPROT_*`).
    pub origin: u8,
}

impl Route {
    /// `RTPROT_KERNEL`: of an address that was configured.
    pub const KERNEL: u8 = 2;
    /// `RTPROT_BOOT`: by hand.
    pub const BOOT: u8 = 3;
    /// `RTPROT_RA`: advertised.
    pub const RA: u8 = 9;

    /// Whether it is the route to that network.
    pub fn covers(&self, dst: IpAddr, prefix: u8) -> bool {
        self.prefix == prefix && matches(self.dst, dst, prefix)
    }
}

/// The network's address: `addr` without the bits behind `prefix`.
pub fn network(addr: IpAddr, prefix: u8) -> IpAddr {
    match addr {
        IpAddr::V4(a) => {
            Ipv4Addr::from(u32::from(a) & u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)).into()
        }
        IpAddr::V6(a) => {
            Ipv6Addr::from(u128::from(a) & u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0)).into()
        }
    }
}

/// Everything configured.
#[derive(Clone, Default)]
pub struct Config {
    /// Interfaces by rising index.
    pub interfaces: Vec<IfConfig>,
    /// Routes.
    pub routes: Vec<Route>,
}

/// Whether `a` and `b` agree in the first `prefix` bits.
pub fn matches(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            (u32::from(a) ^ u32::from(b)) & mask == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            (u128::from(a) ^ u128::from(b)) & mask == 0
        }
        _ => false,
    }
}

/// The directed broadcast address of a network.
pub fn broadcast(addr: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(addr) | u32::MAX.checked_shr(prefix.into()).unwrap_or(0))
}

pub(crate) fn is_link_local(a: Ipv6Addr) -> bool {
    a.segments()[0] & 0xffc0 == 0xfe80
}

/// Where a packet goes.
#[derive(Clone)]
pub struct Hop {
    /// By which interface.
    pub netif: Arc<NetIf>,
    /// To whom on the link.
    pub next: IpAddr,
    /// The address that the packet comes from if its sender does not care.
    pub source: IpAddr,
}

impl Config {
    /// An interface by number.
    pub fn interface(&self, index: u32) -> Option<&IfConfig> {
        self.interfaces.iter().find(|i| i.netif.index == index)
    }

    /// An interface by name.
    pub fn by_name(&self, name: &str) -> Option<&IfConfig> {
        self.interfaces.iter().find(|i| i.netif.name == name)
    }

    /// Whether `addr` is this host's (and not tentative).
    pub fn is_local(&self, addr: IpAddr) -> bool {
        let has = |i: &IfConfig| i.addrs.iter().any(|a| a.0 == addr) && i.is_usable(addr);
        addr.is_loopback() || self.interfaces.iter().any(has)
    }

    /// Whether `addr` is a broadcast address on `index` (any interface if 0).
    pub fn is_broadcast(&self, addr: IpAddr, index: u32) -> bool {
        let IpAddr::V4(a) = addr else { return false };
        a.is_broadcast()
            || self.interfaces.iter().filter(|i| index == 0 || i.netif.index == index).any(|i| {
                i.addrs.iter().any(|&(own, p)| match own {
                    IpAddr::V4(own) => p < 31 && p > 0 && broadcast(own, p) == a,
                    IpAddr::V6(_) => false,
                })
            })
    }

    /// The address to send from by `i` to `dst`: on its network, else of its scope, else any of its family.
    fn source(&self, i: &IfConfig, dst: IpAddr) -> Option<IpAddr> {
        let family = || i.addrs.iter().filter(|a| a.0.is_ipv4() == dst.is_ipv4() && i.is_usable(a.0));
        let scope = |a: IpAddr| matches!(a, IpAddr::V6(a) if is_link_local(a));
        let found = family().find(|a| matches(a.0, dst, a.1)).or_else(|| family().find(|a| scope(a.0) == scope(dst)));
        found.or_else(|| family().next()).map(|a| a.0)
    }

    /// The way to `dst`, by interface `bound` if that is not 0. `ENETUNREACH`, `EADDRNOTAVAIL` (no usable address
    /// of that family), `ENODEV`, `ENETDOWN`.
    pub fn route(&self, dst: IpAddr, bound: u32) -> Result<Hop> {
        if self.is_local(dst) {
            let i = self.interface(LOOPBACK).ok_or(Errno::ENETUNREACH)?;
            return Ok(Hop { netif: i.netif.clone(), next: dst, source: dst });
        }
        let multicast = dst.is_multicast() || dst == IpAddr::V4(Ipv4Addr::BROADCAST);
        let link_local = matches!(dst, IpAddr::V6(a) if is_link_local(a));
        if bound != 0 || multicast || link_local {
            let i = if bound != 0 {
                self.interface(bound).ok_or(Errno::ENODEV)?
            } else {
                let usable = |i: &&IfConfig| i.up && i.netif.index != LOOPBACK;
                self.interfaces.iter().find(usable).ok_or(Errno::ENETUNREACH)?
            };
            if !i.up {
                return Err(Errno::ENETDOWN);
            }
            let on_link = multicast || link_local || i.addrs.iter().any(|a| matches(a.0, dst, a.1));
            let gateway = self.best(dst, i.netif.index).and_then(|r| r.gateway);
            let next = if on_link { dst } else { gateway.unwrap_or(dst) };
            // Of IPv4 something may be sent before there is an address (DHCP); of IPv6 nothing that a route is looked up for.
            let any = dst.is_ipv4().then_some(Ipv4Addr::UNSPECIFIED.into());
            let source = self.source(i, dst).or(any).ok_or(Errno::EADDRNOTAVAIL)?;
            return Ok(Hop { netif: i.netif.clone(), next, source });
        }
        let route = self.best(dst, 0).ok_or(Errno::ENETUNREACH)?;
        let i = self.interface(route.index).ok_or(Errno::ENETUNREACH)?;
        let source = self.source(i, route.gateway.unwrap_or(dst)).ok_or(Errno::EADDRNOTAVAIL)?;
        Ok(Hop { netif: i.netif.clone(), next: route.gateway.unwrap_or(dst), source })
    }

    fn best(&self, dst: IpAddr, bound: u32) -> Option<&Route> {
        let up = |r: &&Route| self.interface(r.index).is_some_and(|i| i.up) && (bound == 0 || r.index == bound);
        let fits = self.routes.iter().filter(|r| matches(r.dst, dst, r.prefix)).filter(up);
        fits.max_by_key(|r| (r.prefix, core::cmp::Reverse(r.metric)))
    }
}

/// CPUs' copies of the configuration.
const SHARDS: usize = 16;

/// The current configuration. Every CPU reads a copy of its own, so that packets on two CPUs share neither a lock nor a
/// reference count; a change, under `change`, replaces them one after the other.
pub(crate) struct Shared {
    current: [SpinLock<Arc<Config>>; SHARDS],
    change: SpinLock<()>,
    generation: AtomicU64,
}

impl Shared {
    pub fn new(config: Config) -> Shared {
        let copy = |_| SpinLock::new(&CLASS, Arc::new(config.clone()));
        Shared {
            current: core::array::from_fn(copy),
            change: SpinLock::new(&CHANGE, ()),
            generation: AtomicU64::new(1),
        }
    }
}

impl Stack {
    /// The configuration now.
    pub fn config(&self) -> Arc<Config> {
        self.shared.current[platform::cpu_id() % SHARDS].lock().clone()
    }

    /// Rises with every change of configuration or neighbours.
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    pub(crate) fn bump(&self) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes the configuration.
    pub fn configure<R>(&self, change: impl FnOnce(&mut Config) -> Result<R>) -> Result<R> {
        let changing = self.shared.change.lock();
        let before = self.config();
        let mut next = Config::clone(&before);
        let r = change(&mut next)?;
        for copy in &self.shared.current {
            let new = Arc::new(next.clone());
            let old = core::mem::replace(&mut *copy.lock(), new);
            drop(old);
        }
        self.bump();
        drop(changing);
        self.tell_changes(&before, &next);
        Ok(r)
    }

    /// Adds an interface, down and without addresses but for IPv6's link-local one; its number.
    pub fn add_interface(&self, name: &str, device: Arc<dyn NetDevice>) -> Result<Arc<NetIf>> {
        let m = device.mac();
        let host = [m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]];
        let mut octets = [0; 16];
        (octets[0], octets[1]) = (0xfe, 0x80);
        octets[8..].copy_from_slice(&host);
        self.configure(|c| {
            let index = c.interfaces.iter().map(|i| i.netif.index).max().unwrap_or(0) + 1;
            let counters = IfCounters::default();
            let netif =
                Arc::new(NetIf { index, name: name.into(), device: Some(device), mtu: AtomicUsize::new(0), counters });
            c.interfaces.push(IfConfig {
                netif: netif.clone(),
                up: false,
                addrs: alloc::vec![(Ipv6Addr::from(octets).into(), 64)],
                dad: Vec::new(),
            });
            Ok(netif)
        })
    }

    /// Takes an interface up or down. `ENODEV`.
    pub fn set_up(&self, index: u32, up: bool) -> Result<()> {
        let now = self.env.now_ns();
        self.configure(|c| {
            let i = c.interfaces.iter_mut().find(|i| i.netif.index == index).ok_or(Errno::ENODEV)?;
            let risen = up && !i.up;
            i.up = up;
            if risen {
                i.doubt(None, now);
            }
            let netif = i.netif.clone();
            if !up {
                c.routes.retain(|r| r.index != index || r.gateway.is_none());
            }
            Ok((risen && netif.device.is_some()).then_some(netif))
        })
        .map(|risen| {
            if !up {
                self.forget_routers(index);
            }
            if let Some(netif) = risen {
                self.announce(&netif);
                self.ask_for_addresses(&netif, None);
                self.solicit_routers(&netif, 1);
            }
        })
    }

    /// Gives an interface an address and the route to its network. `ENODEV`, `EEXIST`, `EINVAL`.
    pub fn add_address(&self, index: u32, addr: IpAddr, prefix: u8) -> Result<()> {
        self.add_address_checked(index, addr, prefix, true)
    }

    /// As [`Stack::add_address`]; without `check` no duplicate is looked for ([`crate::dad`]).
    pub fn add_address_checked(&self, index: u32, addr: IpAddr, prefix: u8, check: bool) -> Result<()> {
        if addr.is_multicast() || addr.is_unspecified() || prefix > if addr.is_ipv4() { 32 } else { 128 } {
            return Err(Errno::EINVAL);
        }
        let now = self.env.now_ns();
        let netif = self.configure(|c| {
            let i = c.interfaces.iter_mut().find(|i| i.netif.index == index).ok_or(Errno::ENODEV)?;
            if i.addrs.iter().any(|a| a.0 == addr) {
                return Err(Errno::EEXIST);
            }
            // A global address stands before the link-local one.
            let at = i.addrs.iter().position(|a| matches!(a.0, IpAddr::V6(x) if is_link_local(x)));
            i.addrs.insert(at.unwrap_or(i.addrs.len()), (addr, prefix));
            if let IpAddr::V6(a) = addr {
                if check {
                    i.doubt(Some(a), now);
                } else {
                    i.dad.push((a, Dad::Never));
                }
            }
            let netif = i.netif.clone();
            c.routes.push(Route { dst: addr, prefix, gateway: None, index, metric: 0, origin: Route::KERNEL });
            Ok(netif)
        })?;
        if let IpAddr::V6(a) = addr {
            self.ask_for_addresses(&netif, Some(a));
        }
        Ok(())
    }

    /// Takes an address and its route away. `ENODEV`, `EADDRNOTAVAIL`.
    pub fn remove_address(&self, index: u32, addr: IpAddr) -> Result<()> {
        self.configure(|c| {
            let i = c.interfaces.iter_mut().find(|i| i.netif.index == index).ok_or(Errno::ENODEV)?;
            let at = i.addrs.iter().position(|a| a.0 == addr).ok_or(Errno::EADDRNOTAVAIL)?;
            let (_, prefix) = i.addrs.remove(at);
            i.dad.retain(|d| IpAddr::V6(d.0) != addr);
            let own = |r: &Route| r.index == index && r.gateway.is_none() && r.origin == Route::KERNEL;
            c.routes.retain(|r| !(own(r) && r.dst == addr && r.prefix == prefix));
            Ok(())
        })
    }

    /// Adds a route. `EEXIST`, `ENODEV`.
    pub fn add_route(&self, route: Route) -> Result<()> {
        self.configure(|c| {
            c.interface(route.index).ok_or(Errno::ENODEV)?;
            if c.routes.contains(&route) {
                return Err(Errno::EEXIST);
            }
            c.routes.push(route);
            Ok(())
        })
    }

    /// Takes the first route away that `which` accepts. `ESRCH`.
    pub fn remove_route(&self, which: impl Fn(&Route) -> bool) -> Result<()> {
        self.configure(|c| {
            let at = c.routes.iter().position(which).ok_or(Errno::ESRCH)?;
            c.routes.remove(at);
            Ok(())
        })
    }

    /// Sets the largest packet of an interface. `EINVAL`, `ENODEV`.
    pub fn set_mtu(&self, index: u32, mtu: usize) -> Result<()> {
        let config = self.config();
        let netif = &config.interface(index).ok_or(Errno::ENODEV)?.netif;
        let most = netif.device.as_ref().map_or(LOOPBACK_MTU, |d| d.mtu());
        if !(68..=most).contains(&mtu) {
            return Err(Errno::EINVAL);
        }
        netif.mtu.store(mtu, Ordering::Relaxed);
        self.bump();
        if let Some(i) = config.interface(index) {
            self.tell_link(i);
        }
        Ok(())
    }

    /// Counts something that happened to the whole stack.
    pub(crate) fn count(&self, which: impl FnOnce(&Counters) -> &AtomicU64) {
        which(&self.counters).fetch_add(1, Ordering::Relaxed);
    }
}
