//! Neighbours: which link-layer address an IP address has, by ARP (RFC 826) and NDP (RFC 4861).
//!
//! # Rules
//! - An entry is made only when this host asks, or when somebody asks for this host's address: no stranger fills the
//!   table. It is bounded ([`MAX`]); when full, the stalest goes.
//! - At most [`QUEUE`] packets wait for an answer, [`WAITING`] in all; older ones make room. Three requests, a second
//!   apart; then the packets are dropped and reported to their senders as unreachable hosts.
//! - An answer is trusted for 60 s, then asked for again while the old one stays in use.
//! - What was set by hand stays until it is removed.
//!
//! # Many CPUs
//! The table has one lock. Every CPU keeps copies of the answers that it used last, each good until the entry is no longer
//! trusted or the stack's generation changes, so that packets of two flows on two CPUs share no lock.

use crate::config::{Hop, NetIf};
use crate::hash::Key;
use crate::packet::{self, Packet, be16, put16};
use crate::timers::Target;
use crate::{Features, Sabotage, Stack};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use hashbrown::HashMap;
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("neighbours", 565);
static COPIES: LockClass = LockClass::new("neighbours of a CPU", 566);

/// Most entries.
pub const MAX: usize = 1024;
/// Most packets that wait for one answer.
pub const QUEUE: usize = 16;
/// Most packets that wait for all answers.
pub const WAITING: usize = 1024;
const PROBES: u8 = 3;
const PROBE_NS: u64 = 1_000_000_000;
const TRUST_NS: u64 = 60_000_000_000;
/// CPUs' copies.
const SHARDS: usize = 16;
const COPIES_MAX: usize = 64;

#[derive(Debug, Default)]
struct Entry {
    mac: Option<[u8; 6]>,
    waiting: Vec<Packet>,
    /// When the answer came, or the last request went.
    at: u64,
    probes: u8,
    /// When the last request went while the old answer was in use.
    asked: u64,
    permanent: bool,
}

/// An entry that was taken out.
type Gone = ((u32, IpAddr), Entry);

struct Table {
    entries: HashMap<(u32, IpAddr), Entry, Key>,
    waiting: usize,
}

impl Table {
    fn remove(&mut self, key: &(u32, IpAddr)) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.waiting -= entry.waiting.len();
        Some(entry)
    }

    /// Makes room for one more; what had to go.
    fn make_room(&mut self) -> Option<Gone> {
        if self.entries.len() < MAX {
            return None;
        }
        let stalest = self.entries.iter().filter(|e| !e.1.permanent).min_by_key(|e| e.1.at).map(|e| *e.0)?;
        Some((stalest, self.remove(&stalest)?))
    }

    /// Lets a packet wait; which one had to go for it.
    fn wait(&mut self, key: (u32, IpAddr), packet: Packet) -> Option<Packet> {
        let full = self.waiting >= WAITING;
        let entry = self.entries.get_mut(&key)?;
        if full && entry.waiting.is_empty() {
            return Some(packet);
        }
        let out = (full || entry.waiting.len() >= QUEUE).then(|| entry.waiting.remove(0));
        entry.waiting.push(packet);
        self.waiting += usize::from(out.is_none());
        out
    }
}

type Copies = HashMap<(u32, IpAddr), Copy, Key>;

#[derive(Clone, Copy)]
struct Copy {
    mac: [u8; 6],
    until: u64,
    generation: u64,
}

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was asked for and has not answered.
    Incomplete,
    /// It answered.
    Reachable,
    /// It answered long ago.
    Stale,
    /// Set by hand.
    Permanent,
}

/// A neighbour, for `/proc/net/arp`.
#[derive(Clone, Copy, Debug)]
pub struct Neighbour {
    /// On which interface.
    pub index: u32,
    /// Its IP address.
    pub addr: IpAddr,
    /// Its link-layer address, once it has answered.
    pub mac: Option<[u8; 6]>,
    /// What is known of it.
    pub state: State,
}

/// The table.
pub struct Neighbours {
    table: SpinLock<Table>,
    copies: [SpinLock<Copies>; SHARDS],
}

impl Neighbours {
    pub(crate) fn new(key: Key) -> Self {
        let table = Table { entries: HashMap::with_hasher(key), waiting: 0 };
        let copies = core::array::from_fn(|_| SpinLock::new(&COPIES, HashMap::with_hasher(key)));
        Neighbours { table: SpinLock::new(&CLASS, table), copies }
    }

    /// All of them; `now` in nanoseconds tells which are stale.
    pub fn list(&self, now: u64) -> Vec<Neighbour> {
        let table = self.table.lock();
        let state = |e: &Entry| match e.mac {
            _ if e.permanent => State::Permanent,
            None => State::Incomplete,
            Some(_) if now > e.at + TRUST_NS => State::Stale,
            Some(_) => State::Reachable,
        };
        table.entries.iter().map(|(k, e)| Neighbour { index: k.0, addr: k.1, mac: e.mac, state: state(e) }).collect()
    }

    /// Whether its address is known.
    fn knows(&self, index: u32, addr: IpAddr) -> bool {
        self.table.lock().entries.get(&(index, addr)).is_some_and(|e| e.mac.is_some())
    }

    fn copy(&self, key: &(u32, IpAddr), now: u64, generation: u64) -> Option<[u8; 6]> {
        let copies = self.copies[platform::cpu_id() % SHARDS].lock();
        copies.get(key).filter(|c| c.generation == generation && now < c.until).map(|c| c.mac)
    }

    fn keep_copy(&self, key: (u32, IpAddr), copy: Copy) {
        let mut copies = self.copies[platform::cpu_id() % SHARDS].lock();
        if copies.len() >= COPIES_MAX {
            copies.clear();
        }
        copies.insert(key, copy);
    }
}

/// The link-layer address of a group.
fn group_mac(addr: IpAddr) -> Option<[u8; 6]> {
    match addr {
        IpAddr::V4(a) if a.is_multicast() => {
            let o = a.octets();
            Some([1, 0, 0x5e, o[1] & 0x7f, o[2], o[3]])
        }
        IpAddr::V6(a) if a.is_multicast() => {
            let o = a.octets();
            Some([0x33, 0x33, o[12], o[13], o[14], o[15]])
        }
        _ => None,
    }
}

/// A neighbour's solicited-node group.
pub(crate) fn solicited(a: Ipv6Addr) -> Ipv6Addr {
    let o = a.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(o[13]), u16::from(o[14]) << 8 | u16::from(o[15]))
}

impl Stack {
    /// Sends an IP packet by `hop`: finds the neighbour's address, asking for it if need be.
    pub(crate) fn link_output(&self, hop: &Hop, mut packet: Packet, broadcast: bool) {
        let Some(device) = &hop.netif.device else { return };
        if device.features().contains(Features::NO_LINK) {
            return self.transmit(&hop.netif, packet);
        }
        let mac = if broadcast { Some([0xff; 6]) } else { group_mac(hop.next) };
        if let Some(mac) = mac {
            return self.send_frame(&hop.netif, mac, packet);
        }
        let now = self.env.now_ns();
        let generation = self.generation();
        let key = (hop.netif.index, hop.next);
        if let Some(mac) = self.neighbours.copy(&key, now, generation) {
            return self.send_frame(&hop.netif, mac, packet);
        }
        let mut table = self.neighbours.table.lock();
        let evicted = if table.entries.contains_key(&key) { None } else { table.make_room() };
        let entry = table.entries.entry(key).or_default();
        let mut ask = false;
        let mut dropped = None;
        if let Some(mac) = entry.mac {
            let until = if entry.permanent { u64::MAX } else { entry.at + TRUST_NS };
            // A second apart also after a long rest: a burst must not use up all requests at once.
            if now > until && (entry.probes == 0 || now > entry.asked + PROBE_NS) {
                entry.probes += 1;
                entry.asked = now;
                ask = true;
                if entry.probes > PROBES {
                    (entry.mac, entry.probes, entry.at) = (None, 1, now);
                }
            }
            drop(table);
            if now < until {
                self.neighbours.keep_copy(key, Copy { mac, until, generation });
            }
            self.send_frame(&hop.netif, mac, packet);
        } else {
            if entry.probes == 0 {
                (entry.probes, entry.at) = (1, now);
                ask = true;
            }
            // Who sends it then has nothing to follow.
            packet.more = false;
            dropped = table.wait(key, packet);
            drop(table);
        }
        drop(dropped);
        if let Some(gone) = evicted {
            self.tell_gone(&gone);
        }
        if ask {
            self.solicit(&hop.netif, hop.next, hop.source);
            self.timers.arm(&*self.env, now + PROBE_NS, Target::Neighbour(hop.netif.clone(), hop.next));
        }
    }

    /// A request went unanswered for a second.
    pub(crate) fn neighbour_timer(&self, netif: &Arc<NetIf>, addr: IpAddr) {
        let now = self.env.now_ns();
        let mut table = self.neighbours.table.lock();
        let key = (netif.index, addr);
        let Some(entry) = table.entries.get_mut(&key).filter(|e| e.mac.is_none()) else { return };
        if entry.probes < PROBES {
            entry.probes += 1;
            entry.at = now;
            drop(table);
            if let Ok(hop) = self.config().route(addr, netif.index) {
                self.solicit(netif, addr, hop.source);
            }
            self.timers.arm(&*self.env, now + PROBE_NS, Target::Neighbour(netif.clone(), addr));
            return;
        }
        let lost = table.remove(&key);
        drop(table);
        let Some(lost) = lost.map(|e| (key, e)) else { return };
        self.tell_gone(&lost);
        for p in lost.1.waiting {
            self.unreachable(p.bytes());
        }
    }

    /// Tells that a neighbour was forgotten.
    fn tell_gone(&self, ((index, addr), e): &Gone) {
        let state = if e.mac.is_some() { State::Stale } else { State::Incomplete };
        self.tell_neighbour(&Neighbour { index: *index, addr: *addr, mac: e.mac, state }, true);
    }

    /// Forgets neighbours of an interface that were not set by hand.
    pub(crate) fn forget_neighbours(&self, index: u32) {
        let mut table = self.neighbours.table.lock();
        let own = table.entries.iter().filter(|e| e.0.0 == index && !e.1.permanent);
        let keys: Vec<_> = own.map(|e| *e.0).collect();
        let gone: Vec<Gone> = keys.iter().filter_map(|k| Some((*k, table.remove(k)?))).collect();
        drop(table);
        for g in &gone {
            self.tell_gone(g);
        }
    }

    /// Learns an address: always if it is asked for, else only if `create`.
    pub(crate) fn learn(&self, netif: &Arc<NetIf>, addr: IpAddr, mac: [u8; 6], create: bool) {
        if addr.is_unspecified() || addr.is_multicast() || mac[0] & 1 != 0 {
            return;
        }
        self.learn_as(netif, addr, mac, create, None);
    }

    /// As [`Stack::learn`]; `by_hand` says whether somebody has set it, and for ever.
    fn learn_as(&self, netif: &Arc<NetIf>, addr: IpAddr, mac: [u8; 6], create: bool, by_hand: Option<bool>) {
        let now = self.env.now_ns();
        let mut table = self.neighbours.table.lock();
        let key = (netif.index, addr);
        let known = table.entries.contains_key(&key);
        if !known && (!create || table.entries.len() >= MAX) {
            return;
        }
        let entry = table.entries.entry(key).or_default();
        if entry.permanent && by_hand.is_none() {
            return;
        }
        let permanent = by_hand.unwrap_or(false);
        let moved = entry.mac != Some(mac) || entry.permanent != permanent;
        let waiting = core::mem::take(&mut entry.waiting);
        *entry = Entry { mac: Some(mac), at: now, permanent, ..Entry::default() };
        table.waiting -= waiting.len();
        drop(table);
        if moved && known {
            self.bump();
        }
        if moved {
            let state = if permanent { State::Permanent } else { State::Reachable };
            let n = Neighbour { index: netif.index, addr, mac: Some(mac), state };
            self.tell_neighbour(&n, false);
        }
        for p in waiting {
            self.send_frame(netif, mac, p);
        }
    }

    /// Sets a neighbour's address by hand; one that is not `permanent` is asked for again when its time has come.
    pub fn set_neighbour_address(&self, netif: &Arc<NetIf>, addr: IpAddr, mac: [u8; 6], permanent: bool) -> Result<()> {
        if addr.is_multicast() || addr.is_unspecified() || netif.device.is_none() {
            return Err(Errno::EINVAL);
        }
        let mut table = self.neighbours.table.lock();
        let key = (netif.index, addr);
        let gone = if table.entries.contains_key(&key) { None } else { table.make_room() };
        if table.entries.len() > MAX {
            return Err(Errno::ENOBUFS);
        }
        table.entries.entry(key).or_default();
        drop(table);
        if let Some(gone) = gone {
            self.tell_gone(&gone);
        }
        self.learn_as(netif, addr, mac, true, Some(permanent));
        self.bump();
        Ok(())
    }

    /// Forgets a neighbour. `ENOENT`.
    pub fn remove_neighbour(&self, index: u32, addr: IpAddr) -> Result<()> {
        let gone = self.neighbours.table.lock().remove(&(index, addr));
        self.bump();
        if let Some(e) = &gone {
            self.tell_neighbour(&Neighbour { index, addr, mac: e.mac, state: State::Stale }, true);
        }
        gone.map(drop).ok_or(Errno::ENOENT)
    }

    fn solicit(&self, netif: &Arc<NetIf>, addr: IpAddr, source: IpAddr) {
        match (addr, source) {
            (IpAddr::V4(a), IpAddr::V4(s)) => self.send_arp(netif, 1, [0xff; 6], [0; 6], s, a),
            // Asked from no address it would be the check whether the neighbour's is free.
            (IpAddr::V6(a), IpAddr::V6(s)) if !s.is_unspecified() => self.send_nd(netif, 135, s, solicited(a), a, None),
            _ => {}
        }
    }

    pub(crate) fn send_arp(
        &self,
        netif: &Arc<NetIf>,
        op: u16,
        to: [u8; 6],
        target_mac: [u8; 6],
        source: Ipv4Addr,
        target: Ipv4Addr,
    ) {
        let mut p = Packet::new(28);
        let b = p.bytes_mut();
        b[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        put16(b, 6, op);
        b[8..14].copy_from_slice(&netif.mac());
        b[14..18].copy_from_slice(&source.octets());
        b[18..24].copy_from_slice(&target_mac);
        b[24..28].copy_from_slice(&target.octets());
        self.send_ether(netif, to, 0x0806, p);
    }

    /// An NDP message: solicitation (135) or advertisement (136) for `target`; `mac`: to whom, if not the group.
    pub(crate) fn send_nd(
        &self,
        netif: &Arc<NetIf>,
        kind: u8,
        source: Ipv6Addr,
        to: Ipv6Addr,
        target: Ipv6Addr,
        mac: Option<[u8; 6]>,
    ) {
        let with_link = !source.is_unspecified();
        let len = if with_link { 32 } else { 24 };
        let Some((mut p, at)) = packet::build_ip(source.into(), to.into(), packet::ICMPV6, 255, 0, len) else { return };
        let b = &mut p.bytes_mut()[at..];
        b[0] = kind;
        if kind == 136 {
            b[4] = if to.is_multicast() { 0x20 } else { 0x60 };
        }
        b[8..24].copy_from_slice(&target.octets());
        if with_link {
            (b[24], b[25]) = (if kind == 135 { 1 } else { 2 }, 1);
            b[26..32].copy_from_slice(&netif.mac());
        }
        let c = packet::checksum(source.into(), to.into(), packet::ICMPV6, b);
        put16(b, 2, c);
        let mac = mac.or_else(|| group_mac(to.into()));
        self.send_frame(netif, mac.unwrap_or([0xff; 6]), p);
    }

    /// An ARP packet came.
    pub(crate) fn arp_input(&self, netif: &Arc<NetIf>, b: &[u8]) -> Option<()> {
        if b.get(..6)? != [0, 1, 8, 0, 6, 4] || b.len() < 28 {
            return None;
        }
        let sender_mac: [u8; 6] = b[8..14].try_into().ok()?;
        let (sender, target) = (packet::v4(b, 14)?, packet::v4(b, 24)?);
        let config = self.config();
        let own = &config.interface(netif.index)?.addrs;
        let for_us = own.iter().any(|a| a.0 == IpAddr::V4(target));
        let known = own.iter().any(|a| crate::config::matches(a.0, sender.into(), a.1));
        if own.iter().any(|a| a.0 == IpAddr::V4(sender)) {
            return Some(());
        }
        self.learn(netif, sender.into(), sender_mac, for_us && known);
        if be16(b, 6)? == 1 && for_us && !self.sabotaged(Sabotage::ARP) {
            self.send_arp(netif, 2, sender_mac, sender_mac, target, sender);
        }
        Some(())
    }

    /// A neighbour solicitation or advertisement came; `m` is the ICMPv6 message (its checksum was right).
    pub(crate) fn nd_input(&self, netif: &Arc<NetIf>, src: Ipv6Addr, m: &[u8], frame_mac: [u8; 6]) -> Option<()> {
        let target = packet::v6(m, 8)?;
        let mut options = m.get(24..)?;
        let mut link = None;
        while let [kind, len, ..] = options {
            let len = usize::from(*len) * 8;
            if len == 0 || len > options.len() {
                return None;
            }
            if (*kind == 1 || *kind == 2) && len == 8 {
                link = options[2..8].try_into().ok();
            }
            options = &options[len..];
        }
        let config = self.config();
        let doubted =
            |i: &crate::config::IfConfig| matches!(i.dad_of(target.into()), Some(crate::dad::Dad::Tentative(_)));
        if config.interface(netif.index).is_some_and(doubted) {
            // Asked of a neighbour it is not for us yet; offered, or wanted by another in the same way, it is not ours.
            if (m[0] == 136 || src.is_unspecified()) && frame_mac != netif.mac() {
                self.duplicate(netif, target);
            }
            return Some(());
        }
        if m[0] == 136 {
            // Without the override flag it only confirms (RFC 4861, 7.2.5).
            let over = m[4] & 0x20 != 0 || !self.neighbours.knows(netif.index, target.into());
            if over {
                self.learn(netif, target.into(), link?, false);
            }
            return Some(());
        }
        let i = config.interface(netif.index)?;
        if !i.addrs.iter().any(|a| a.0 == IpAddr::V6(target)) || !i.is_usable(target.into()) {
            return Some(());
        }
        if src.is_unspecified() {
            // Somebody checks whether the address is free: it is not (RFC 4862, 5.4).
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            self.send_nd(netif, 136, target, all, target, None);
            return Some(());
        }
        if let Some(mac) = link {
            self.learn(netif, src.into(), mac, true);
        }
        self.send_nd(netif, 136, target, src, target, Some(link.unwrap_or(frame_mac)));
        Some(())
    }

    fn send_frame(&self, netif: &Arc<NetIf>, to: [u8; 6], packet: Packet) {
        let ethertype = if packet.bytes().first().is_some_and(|b| b >> 4 == 6) { 0x86dd } else { 0x0800 };
        self.send_ether(netif, to, ethertype, packet);
    }

    /// Puts an Ethernet header before `packet` and sends it.
    pub fn send_ether(&self, netif: &Arc<NetIf>, to: [u8; 6], ethertype: u16, mut packet: Packet) {
        let mut header = [0; 14];
        header[..6].copy_from_slice(&to);
        header[6..12].copy_from_slice(&netif.mac());
        put16(&mut header, 12, ethertype);
        if packet.push(&header) {
            self.transmit(netif, packet);
        }
    }
}
