//! Deadlines of flows, listeners and neighbours.
//!
//! A flow's deadline moves with nearly every packet, so it is not moved here: a flow is entered when its deadline comes
//! before the one that it is entered for, and when an entry comes up the flow looks whether its time has come and enters
//! itself again if not. An idle connection has no entry. Entries are spread over buckets by what they are for.

use crate::config::NetIf;
use crate::env::Env;
use crate::flow::Flow;
use crate::listen::Listener;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU64, Ordering};
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("net timers", 575);
const BUCKETS: usize = 16;

/// Whose deadline it is.
pub(crate) enum Target {
    Flow(Weak<Flow>),
    Listener(Weak<Listener>),
    Neighbour(Arc<NetIf>, IpAddr),
    Dad(Arc<NetIf>),
    Routers(Arc<NetIf>, u8),
    Autoconf,
    TimeWait,
    Reassembly,
}

#[derive(Default)]
struct Bucket {
    /// By deadline and a number that makes entries unique.
    entries: BTreeMap<(u64, u64), Target>,
    next: u64,
}

/// All deadlines.
pub(crate) struct Timers {
    buckets: [SpinLock<Bucket>; BUCKETS],
    /// The earliest that [`Env::timer`] was told of.
    told: AtomicU64,
}

impl Timers {
    pub fn new() -> Self {
        let buckets = core::array::from_fn(|_| SpinLock::new(&CLASS, Bucket::default()));
        Timers { buckets, told: AtomicU64::new(u64::MAX) }
    }

    /// Enters a deadline.
    pub fn arm(&self, env: &dyn Env, at: u64, target: Target) {
        let which = match &target {
            Target::Flow(w) => w.as_ptr() as usize >> 8,
            Target::Listener(w) => w.as_ptr() as usize >> 8,
            _ => 0,
        };
        let mut bucket = self.buckets[which % BUCKETS].lock();
        let n = bucket.next;
        bucket.next += 1;
        bucket.entries.insert((at, n), target);
        drop(bucket);
        if self.told.fetch_min(at, Ordering::AcqRel) > at {
            env.timer(at);
        }
    }

    /// Takes out what is due, and the earliest deadline of the rest (also told to `env` from now on).
    pub fn due(&self, now: u64) -> (Vec<Target>, Option<u64>) {
        let mut due = Vec::new();
        // From here on, whoever arms tells `env` (again): nothing is missed between the scan and its end.
        self.told.store(u64::MAX, Ordering::Release);
        let mut next = None;
        for bucket in &self.buckets {
            let mut bucket = bucket.lock();
            let later = bucket.entries.split_off(&(now + 1, 0));
            let ready = core::mem::replace(&mut bucket.entries, later);
            due.extend(ready.into_values());
            let first = bucket.entries.first_key_value().map(|(k, _)| k.0);
            next = match (next, first) {
                (Some(a), Some(b)) => Some(core::cmp::min::<u64>(a, b)),
                (a, b) => a.or(b),
            };
        }
        if let Some(at) = next {
            self.told.fetch_min(at, Ordering::AcqRel);
        }
        (due, next)
    }
}
