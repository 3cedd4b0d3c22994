//! Which ports are bound, and to whom they may still be bound (socket(7), SO_REUSEADDR and SO_REUSEPORT).

use crate::hash::Key;
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::{AtomicBool, Ordering};
use hashbrown::HashMap;
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("ports", 520);

/// A claim on a port, until dropped.
pub struct Lease {
    ports: Arc<Table>,
    proto: u8,
    claim: Arc<Claim>,
}

struct Claim {
    addr: IpAddr,
    port: u16,
    v6only: bool,
    reuse_addr: bool,
    reuse_port: bool,
    uid: u32,
    listening: AtomicBool,
}

type Table = SpinLock<HashMap<(u8, u16), Vec<Arc<Claim>>, Key>>;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// TCP or UDP.
    pub proto: u8,
    /// The address, perhaps unspecified.
    pub addr: IpAddr,
    /// The port; 0: any.
    pub port: u16,
    /// An unspecified IPv6 address does not stand for IPv4 also.
    pub v6only: bool,
    /// `SO_REUSEADDR`.
    pub reuse_addr: bool,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
    /// Whose it is (ports are shared within one user).
    pub uid: u32,
}

/// All claims.
pub struct Ports {
    table: Arc<Table>,
}

impl Claim {
    fn overlaps(&self, w: &Want) -> bool {
        let wild = |a: IpAddr, v6only: bool, other: IpAddr| {
            a.is_unspecified() && (a.is_ipv4() == other.is_ipv4() || (a.is_ipv6() && !v6only))
        };
        self.addr == w.addr || wild(self.addr, self.v6only, w.addr) || wild(w.addr, w.v6only, self.addr)
    }

    fn refuses(&self, w: &Want) -> bool {
        let share_port = self.reuse_port && w.reuse_port && self.uid == w.uid;
        let stream = w.proto == crate::packet::TCP;
        let share_addr = self.reuse_addr && w.reuse_addr && !(stream && self.listening.load(Ordering::Relaxed));
        self.overlaps(w) && !share_port && !share_addr
    }
}

impl Ports {
    pub(crate) fn new(key: Key) -> Self {
        Ports { table: Arc::new(SpinLock::new(&CLASS, HashMap::with_hasher(key))) }
    }

    /// Claims a port. `EADDRINUSE`.
    pub fn claim(&self, want: Want, range: (u16, u16), random: u64) -> Result<Lease> {
        let mut table = self.table.lock();
        let free = |table: &HashMap<(u8, u16), Vec<Arc<Claim>>, Key>, port: u16| {
            table.get(&(want.proto, port)).is_none_or(|all| !all.iter().any(|c| c.refuses(&want)))
        };
        let port = if want.port != 0 {
            free(&table, want.port).then_some(want.port)
        } else {
            // A random start, then on by an odd step: every port is tried once at most, in an order nobody can guess.
            let count = u32::from(range.1 - range.0) + 1;
            let start = (random as u32) % count;
            let unused =
                |p: &u16| table.get(&(want.proto, *p)).is_none_or(|all| !all.iter().any(|c| c.overlaps(&want)));
            (0..count).map(|i| range.0 + ((start + i) % count) as u16).find(unused)
        };
        let port = port.ok_or(Errno::EADDRINUSE)?;
        let claim = Arc::new(Claim {
            addr: want.addr,
            port,
            v6only: want.v6only,
            reuse_addr: want.reuse_addr,
            reuse_port: want.reuse_port,
            uid: want.uid,
            listening: AtomicBool::new(false),
        });
        table.entry((want.proto, port)).or_default().push(claim.clone());
        Ok(Lease { ports: self.table.clone(), proto: want.proto, claim })
    }
}

impl Lease {
    /// The port.
    pub fn port(&self) -> u16 {
        self.claim.port
    }

    /// From now on nobody shares it by `SO_REUSEADDR`. `EADDRINUSE` if another listens on it already.
    pub fn listen(&self) -> Result<()> {
        let table = self.ports.lock();
        let others = table.get(&(self.proto, self.claim.port)).into_iter().flatten();
        for c in others.filter(|c| !Arc::ptr_eq(c, &self.claim)) {
            let want = Want {
                proto: self.proto,
                addr: self.claim.addr,
                port: self.claim.port,
                v6only: self.claim.v6only,
                reuse_addr: self.claim.reuse_addr,
                reuse_port: self.claim.reuse_port,
                uid: self.claim.uid,
            };
            if c.listening.load(Ordering::Relaxed) && c.refuses(&want) {
                return Err(Errno::EADDRINUSE);
            }
        }
        self.claim.listening.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut table = self.ports.lock();
        let key = (self.proto, self.claim.port);
        if let Some(all) = table.get_mut(&key) {
            all.retain(|c| !Arc::ptr_eq(c, &self.claim));
            if all.is_empty() {
                table.remove(&key);
            }
        }
    }
}
