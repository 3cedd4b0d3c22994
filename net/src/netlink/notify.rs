//! Multicast groups: what changes is told to the sockets that joined (rtnetlink(7), `RTMGRP_*`), as `ip monitor` shows it.
//!
//! Changes of the configuration are found by comparing it before and after ([`Stack::configure`]), so that whatever changes it is told;
//! neighbours tell theirs themselves. Each message goes to each member's queue after the locks of what changed are
//! released: of two changes at the same time either may be told first. A member whose queue is full finds `ENOBUFS`.

use super::dump;
use super::rtm;
use super::wire::Answer;
use crate::Stack;
use crate::config::{Config, IfConfig};
use crate::neigh::Neighbour;
use crate::udp::{Datagram, Queue};
use abi::Errno;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};
use core::sync::atomic::{AtomicU32, Ordering};
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("netlink members", 502);

/// Groups, as bits of `sockaddr_nl`'s mask.
mod group {
    pub const LINK: u32 = 1;
    pub const NEIGH: u32 = 1 << 2;
    pub const IPV4_IFADDR: u32 = 1 << 4;
    pub const IPV4_ROUTE: u32 = 1 << 6;
    pub const IPV6_IFADDR: u32 = 1 << 8;
    pub const IPV6_ROUTE: u32 = 1 << 10;
}

/// A socket as the groups see it.
pub(super) struct Member {
    pub(super) queue: Arc<Queue>,
    pub(super) groups: AtomicU32,
}

/// All that ever joined a group and are still there.
pub(crate) struct Members {
    all: SpinLock<Vec<Weak<Member>>>,
    /// Groups that somebody joined, once: nothing is put together for the others.
    wanted: AtomicU32,
}

impl Members {
    pub fn new() -> Self {
        Members { all: SpinLock::new(&CLASS, Vec::new()), wanted: AtomicU32::new(0) }
    }

    /// A socket's groups are now these.
    pub(super) fn join(&self, member: &Arc<Member>, groups: u32) {
        member.groups.store(groups, Ordering::Release);
        if groups == 0 {
            return;
        }
        self.wanted.fetch_or(groups, Ordering::AcqRel);
        let mut all = self.all.lock();
        all.retain(|m| m.strong_count() > 0);
        if !all.iter().any(|m| core::ptr::eq(m.as_ptr(), Arc::as_ptr(member))) {
            all.push(Arc::downgrade(member));
        }
    }

    fn are_wanted(&self, groups: u32) -> bool {
        self.wanted.load(Ordering::Acquire) & groups != 0
    }

    fn tell(&self, group: u32, put: impl FnOnce(&mut Answer)) {
        if !self.are_wanted(group) {
            return;
        }
        let members: Vec<_> = self.all.lock().iter().filter_map(Weak::upgrade).collect();
        let mut answer = Answer::new(0, 0, 0);
        put(&mut answer);
        let none: IpAddr = Ipv4Addr::UNSPECIFIED.into();
        for data in answer.finish() {
            for m in members.iter().filter(|m| m.groups.load(Ordering::Acquire) & group != 0) {
                let d = Datagram { from: (none, 0), to: none, index: group, ttl: 0, tos: 0, data: data.clone(), at: 0 };
                if !m.queue.push(d) {
                    m.queue.set_error(Errno::ENOBUFS);
                }
            }
        }
    }
}

fn either(a: IpAddr, four: u32, six: u32) -> u32 {
    if a.is_ipv4() { four } else { six }
}

impl Stack {
    /// Tells what a change of the configuration changed.
    pub(crate) fn tell_changes(&self, old: &Config, new: &Config) {
        const ANY: u32 = group::LINK | group::IPV4_IFADDR | group::IPV6_IFADDR | group::IPV4_ROUTE | group::IPV6_ROUTE;
        if !self.members.are_wanted(ANY) {
            return;
        }
        for i in &new.interfaces {
            let before = old.interface(i.netif.index);
            if before.is_none_or(|b| b.up != i.up) {
                self.tell_link(i);
            }
            self.tell_addresses(before, i);
        }
        for (from, to, kind) in [(old, new, rtm::DELROUTE), (new, old, rtm::NEWROUTE)] {
            for r in from.routes.iter().filter(|r| !to.routes.contains(r)) {
                let group = either(r.dst, group::IPV4_ROUTE, group::IPV6_ROUTE);
                self.members.tell(group, |out| dump::route(r, kind, out));
            }
        }
    }

    fn tell_addresses(&self, before: Option<&IfConfig>, now: &IfConfig) {
        let tell = |i: &IfConfig, a: (IpAddr, u8), kind: u16| {
            let group = either(a.0, group::IPV4_IFADDR, group::IPV6_IFADDR);
            self.members.tell(group, |out| dump::addr(i, a, kind, out));
        };
        for a in before.iter().flat_map(|b| &b.addrs).filter(|a| !now.addrs.contains(a)) {
            tell(before.unwrap_or(now), *a, rtm::DELADDR);
        }
        for a in &now.addrs {
            let same = before.is_some_and(|b| b.addrs.contains(a) && b.is_usable(a.0) == now.is_usable(a.0));
            let failed = |i: &IfConfig| i.dad_of(a.0) == Some(crate::dad::Dad::Failed);
            if !same || before.is_some_and(|b| failed(b) != failed(now)) {
                tell(now, *a, rtm::NEWADDR);
            }
        }
    }

    /// Tells an interface's state.
    pub(crate) fn tell_link(&self, i: &IfConfig) {
        self.members.tell(group::LINK, |out| dump::link(i, out));
    }

    /// Tells that a neighbour was learned, or forgotten.
    pub(crate) fn tell_neighbour(&self, n: &Neighbour, gone: bool) {
        let kind = if gone { rtm::DELNEIGH } else { rtm::NEWNEIGH };
        self.members.tell(group::NEIGH, |out| dump::neighbour(n, kind, out));
    }
}
