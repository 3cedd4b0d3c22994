//! Resource limits of a process (getrlimit(2)): soft and hard, read without a lock.

use abi::{Errno, Result};
use core::sync::atomic::{AtomicU64, Ordering};

/// No limit.
pub const INFINITY: u64 = u64::MAX;
/// How many kinds there are.
pub const COUNT: usize = 16;

/// Kinds of limits, as numbered on AArch64.
pub mod kind {
    #![allow(missing_docs, dead_code)] // the list is whole
    pub const CPU: usize = 0;
    pub const FSIZE: usize = 1;
    pub const DATA: usize = 2;
    pub const STACK: usize = 3;
    pub const CORE: usize = 4;
    pub const RSS: usize = 5;
    pub const NPROC: usize = 6;
    pub const NOFILE: usize = 7;
    pub const MEMLOCK: usize = 8;
    pub const AS: usize = 9;
    pub const LOCKS: usize = 10;
    pub const SIGPENDING: usize = 11;
    pub const MSGQUEUE: usize = 12;
    pub const NICE: usize = 13;
    pub const RTPRIO: usize = 14;
    pub const RTTIME: usize = 15;
}

/// The limits of one process. Soft and hard of one kind are changed together under the process's owner only in the sense
/// that each is one word: a reader may see a new soft with an old hard limit, which no decision depends on.
#[derive(Debug)]
pub struct Limits {
    soft: [AtomicU64; COUNT],
    hard: [AtomicU64; COUNT],
}

impl Limits {
    /// What init starts with; `processes` bounds threads per user.
    pub fn initial(processes: u64) -> Self {
        let l = Limits {
            soft: [const { AtomicU64::new(INFINITY) }; COUNT],
            hard: [const { AtomicU64::new(INFINITY) }; COUNT],
        };
        let set = |k: usize, soft, hard| {
            l.soft[k].store(soft, Ordering::Relaxed);
            l.hard[k].store(hard, Ordering::Relaxed);
        };
        set(kind::STACK, 8 << 20, INFINITY);
        set(kind::CORE, 0, INFINITY);
        set(kind::NPROC, processes, processes);
        set(kind::NOFILE, 1024, 4096);
        set(kind::MEMLOCK, 8 << 20, 8 << 20);
        set(kind::SIGPENDING, processes, processes);
        set(kind::MSGQUEUE, 819_200, 819_200);
        set(kind::NICE, 0, 0);
        set(kind::RTPRIO, 0, 0);
        l
    }

    /// A child's copy.
    pub fn inherit(&self) -> Self {
        Limits {
            soft: core::array::from_fn(|i| AtomicU64::new(self.soft[i].load(Ordering::Relaxed))),
            hard: core::array::from_fn(|i| AtomicU64::new(self.hard[i].load(Ordering::Relaxed))),
        }
    }

    /// The soft limit of `kind`.
    #[inline]
    pub fn soft(&self, kind: usize) -> u64 {
        self.soft[kind].load(Ordering::Relaxed)
    }

    /// The hard limit of `kind`.
    pub fn hard(&self, kind: usize) -> u64 {
        self.hard[kind].load(Ordering::Relaxed)
    }

    /// Sets both. `EINVAL` if soft exceeds hard or the kind does not exist, `EPERM` if the hard limit would rise without
    /// `privileged`.
    pub fn set(&self, kind: usize, soft: u64, hard: u64, privileged: bool) -> Result<()> {
        if kind >= COUNT || soft > hard {
            return Err(Errno::EINVAL);
        }
        if hard > self.hard(kind) && !privileged {
            return Err(Errno::EPERM);
        }
        self.soft[kind].store(soft, Ordering::Relaxed);
        self.hard[kind].store(hard, Ordering::Relaxed);
        Ok(())
    }
}
