//! Signals that wait to be delivered.

use super::info::SigInfo;
use super::{SIGRTMIN, bit};
use alloc::collections::VecDeque;

/// A set with what each signal says. Standard signals wait at most once, real-time signals queue.
#[derive(Debug)]
pub struct Pending {
    set: u64,
    queue: VecDeque<SigInfo>,
}

/// Signals that come from the thread's own instructions and are delivered first.
const SYNCHRONOUS: u64 = bit(4) | bit(5) | bit(7) | bit(8) | bit(11) | bit(31);

impl Pending {
    /// None.
    pub const fn new() -> Self {
        Pending { set: 0, queue: VecDeque::new() }
    }

    /// The signals that wait.
    #[inline(always)]
    pub fn set(&self) -> u64 {
        self.set
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Adds a signal. A standard signal that waits already is dropped.
    pub fn push(&mut self, info: SigInfo) {
        let b = bit(info.signo);
        if self.set & b != 0 && info.signo < SIGRTMIN {
            return;
        }
        self.set |= b;
        self.queue.push_back(info);
    }

    /// Takes the next signal of those in `wanted`: synchronous ones first, then the lowest number, the oldest of it.
    pub fn take(&mut self, wanted: u64) -> Option<SigInfo> {
        let mut ready = self.set & wanted;
        if ready == 0 {
            return None;
        }
        if ready & SYNCHRONOUS != 0 {
            ready &= SYNCHRONOUS;
        }
        let signo = ready.trailing_zeros() + 1;
        let at = self.queue.iter().position(|i| i.signo == signo)?;
        let info = self.queue.remove(at)?;
        if signo < SIGRTMIN || !self.queue.iter().any(|i| i.signo == signo) {
            self.set &= !bit(signo);
        }
        Some(info)
    }

    /// Drops every signal in `set`.
    pub fn discard(&mut self, set: u64) {
        if self.set & set != 0 {
            self.set &= !set;
            self.queue.retain(|i| bit(i.signo) & set == 0);
        }
    }
}
