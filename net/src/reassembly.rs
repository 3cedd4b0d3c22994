//! Fragments put together again (RFC 791, RFC 8200, RFC 5722).
//!
//! Bounded: [`MAX`] packets at a time, the oldest makes room; a packet lives 30 s. Overlapping fragments discard the whole
//! packet: no honest sender makes them.

use crate::Stack;
use crate::packet::{self, Fragment, Ip, put16};
use crate::timers::Target;
use alloc::vec::Vec;
use core::net::IpAddr;
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("reassembly", 573);
const MAX: usize = 64;
const LIFE_NS: u64 = 30_000_000_000;

struct Partial {
    key: (IpAddr, IpAddr, u8, u32),
    since: u64,
    header: Vec<u8>,
    /// Parts by where they begin, in order, without overlap.
    parts: Vec<(usize, Vec<u8>)>,
    total: Option<usize>,
    bad: bool,
}

pub(crate) struct Reassembly {
    partial: SpinLock<Vec<Partial>>,
}

impl Reassembly {
    pub fn new() -> Self {
        Reassembly { partial: SpinLock::new(&CLASS, Vec::new()) }
    }

    /// Adds a fragment; the whole packet if it is now complete. `None`: malformed.
    #[expect(clippy::option_option, reason = "malformed, incomplete and complete are three answers")]
    pub fn add(&self, stack: &Stack, ip: &Ip, f: Fragment, bytes: &[u8]) -> Option<Option<Vec<u8>>> {
        let part = &bytes[ip.header..];
        if part.is_empty() || (f.more && !part.len().is_multiple_of(8)) || f.offset + part.len() > 65535 {
            return None;
        }
        let now = stack.env.now_ns();
        let key = (ip.src, ip.dst, ip.proto, f.id);
        let mut all = self.partial.lock();
        let at = all.iter().position(|p| p.key == key).unwrap_or_else(|| {
            if all.len() >= MAX {
                all.remove(0);
            }
            all.push(Partial { key, since: now, header: Vec::new(), parts: Vec::new(), total: None, bad: false });
            all.len() - 1
        });
        let fresh = all[at].parts.is_empty() && !all[at].bad;
        let done = all[at].add(ip, f, bytes, part).then(|| all.remove(at));
        drop(all);
        if fresh {
            stack.timers.arm(&*stack.env, now + LIFE_NS, Target::Reassembly);
        }
        Some(done.and_then(|p| p.whole(ip)))
    }

    pub fn expire(&self, stack: &Stack) {
        let now = stack.env.now_ns();
        self.partial.lock().retain(|p| now < p.since + LIFE_NS);
    }
}

impl Partial {
    /// Whether it is complete now.
    fn add(&mut self, ip: &Ip, f: Fragment, bytes: &[u8], part: &[u8]) -> bool {
        if self.bad {
            return false;
        }
        let end = f.offset + part.len();
        let at = self.parts.partition_point(|p| p.0 < f.offset);
        let before = at.checked_sub(1).and_then(|i| self.parts.get(i));
        let after = self.parts.get(at);
        if after.is_some_and(|p| p.0 == f.offset && p.1 == part) {
            return false;
        }
        let overlaps = before.is_some_and(|p| p.0 + p.1.len() > f.offset) || after.is_some_and(|p| p.0 < end);
        let beyond = self.total.is_some_and(|t| end > t || (!f.more && end != t))
            || !f.more && self.parts.last().is_some_and(|p| p.0 + p.1.len() > end);
        if overlaps || beyond {
            self.bad = true;
            self.parts.clear();
            return false;
        }
        if f.offset == 0 {
            let fixed = if ip.dst.is_ipv4() { ip.header } else { 40 };
            self.header = bytes[..fixed].to_vec();
        }
        if !f.more {
            self.total = Some(end);
        }
        self.parts.insert(at, (f.offset, part.to_vec()));
        let have: usize = self.parts.iter().map(|p| p.1.len()).sum();
        self.total == Some(have) && !self.header.is_empty()
    }

    fn whole(self, ip: &Ip) -> Option<Vec<u8>> {
        let total = self.total?;
        let (mut p, at) = packet::build_ip(ip.src, ip.dst, ip.proto, ip.ttl, ip.tos, total)?;
        let b = &mut p.bytes_mut()[at..];
        for (offset, part) in &self.parts {
            b[*offset..*offset + part.len()].copy_from_slice(part);
        }
        if ip.dst.is_ipv4() {
            let b = p.bytes_mut();
            put16(b, 6, 0);
            packet::finish_v4(b);
        }
        Some(p.bytes().to_vec())
    }
}
