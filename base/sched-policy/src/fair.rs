//! The fair class: earliest eligible virtual deadline first.
//!
//! Every thread owns a share of the CPU by weight `w`. Its *virtual run time* advances by `ns * 1024 / w` while it runs.
//! The queue's *virtual clock* `V` is the weighted mean of the virtual run times of all runnable threads, the running one
//! included: the service that each would have had in an ideal machine. A thread's *lag* is `V - vruntime`: what it is
//! owed. A thread is *eligible* if it is owed something or nothing (lag >= 0). It asks for service in requests of one
//! slice, and each request has a deadline, `vruntime + slice * 1024 / w`; of the eligible threads the one with the
//! earliest deadline runs. Lags sum to zero, so somebody is always eligible, and no thread gets ahead or behind by more
//! than about a slice (Stoica, Abdel-Wahab: Earliest Eligible Virtual Deadline First, 1995).
//!
//! `V` is never divided out for a decision. The queue keeps `sum` = Σ (v - base) * w and `load` = Σ w over the queued
//! threads; `v` is eligible if and only if (v - base) * load <= sum. `base` follows `V` closely enough that no product
//! leaves 64 bits: it is moved as soon as somebody is 2^32 virtual ns away from it.
//!
//! Queued threads are in two heaps: `ready`, ordered by deadline, was eligible when last looked at; `early`, ordered by
//! virtual run time, was not. A pick first moves over whoever has become eligible and sends back the head of `ready` if
//! the clock has gone back below it: the answer is exact, and each operation is O(log n).

use alloc::vec::Vec;

use crate::heap::{ByDeadline, ByVruntime, Entry, Heap};
use crate::params::{real_ns, virtual_ns};

/// Beyond this distance from `base` the sums are rebased.
const REBASE_DISTANCE: u64 = 1 << 32;

/// The fair part of the running thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FairRun {
    pub(crate) vruntime: i64,
    pub(crate) deadline: i64,
    pub(crate) weight: u32,
    pub(crate) inverse: u32,
    pub(crate) slice_ns: u32,
}

impl FairRun {
    pub(crate) const NONE: Self = Self { vruntime: 0, deadline: 0, weight: 0, inverse: 0, slice_ns: 0 };

    /// Accounts `ns` of run time; true if the request has been served, and the next one has begun.
    #[inline]
    pub(crate) fn charge(&mut self, ns: u64) -> bool {
        self.vruntime = self.vruntime.wrapping_add(virtual_ns(ns, self.inverse));
        let served = self.vruntime.wrapping_sub(self.deadline) >= 0;
        if served {
            self.renew();
        }
        served
    }

    /// Starts a new request here.
    #[inline]
    pub(crate) fn renew(&mut self) {
        self.deadline = self.vruntime.wrapping_add(virtual_ns(u64::from(self.slice_ns), self.inverse));
    }

    /// Run time left of the request, in ns.
    #[inline]
    pub(crate) fn left_ns(&self) -> i64 {
        real_ns(self.deadline.wrapping_sub(self.vruntime), self.weight)
    }
}

/// The most that a thread may be owed or owe when it leaves the queue: two requests, in virtual time.
#[inline]
pub(crate) const fn lag_limit(slice_ns: u32, inverse: u32) -> i64 {
    virtual_ns(2 * slice_ns as u64, inverse)
}

#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    ready: Heap<T, ByDeadline>,
    early: Heap<T, ByVruntime>,
    base: i64,
    sum: i64,
    load: i64,
}

impl<T> FairQueue<T> {
    pub(crate) const fn new() -> Self {
        Self { ready: Heap::new(), early: Heap::new(), base: 0, sum: 0, load: 0 }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.ready.len() + self.early.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.load == 0
    }

    /// Weight of all queued threads.
    #[inline]
    pub(crate) fn load(&self) -> i64 {
        self.load
    }

    /// `sum` and `load` with the running thread.
    #[inline]
    fn totals(&self, running: Option<&FairRun>) -> (i64, i64) {
        match running {
            Some(run) => {
                let weight = i64::from(run.weight);
                (self.sum + run.vruntime.wrapping_sub(self.base) * weight, self.load + weight)
            }
            None => (self.sum, self.load),
        }
    }

    /// The virtual clock.
    #[inline]
    pub(crate) fn clock(&self, running: Option<&FairRun>) -> i64 {
        match running {
            Some(run) if self.load == 0 => run.vruntime,
            _ => {
                let (sum, load) = self.totals(running);
                if load == 0 { self.base } else { self.base.wrapping_add(sum / load) }
            }
        }
    }

    /// Would a thread at `vruntime` be eligible?
    #[inline]
    pub(crate) fn is_eligible(&self, vruntime: i64, running: Option<&FairRun>) -> bool {
        let (sum, load) = self.totals(running);
        self.eligible_in(vruntime, sum, load)
    }

    #[inline]
    fn eligible_in(&self, vruntime: i64, sum: i64, load: i64) -> bool {
        vruntime.wrapping_sub(self.base).saturating_mul(load) <= sum
    }

    /// Keeps the clock where a thread leaves an otherwise empty queue, so that the next to come starts there.
    #[inline]
    pub(crate) fn set_clock_if_empty(&mut self, clock: i64) {
        if self.load == 0 {
            self.base = clock;
        }
    }

    /// Where a thread of `weight` that is owed `lag` joins. Its arrival moves the clock towards it, so the distance is
    /// stretched until the lag is `lag` again once it is in.
    #[inline]
    pub(crate) fn place(&self, lag: i64, weight: u32, running: Option<&FairRun>) -> i64 {
        let clock = self.clock(running);
        if lag == 0 {
            return clock;
        }
        let load = self.load + running.map_or(0, |run| i64::from(run.weight));
        if load == 0 {
            return clock;
        }
        clock.wrapping_sub(lag.saturating_mul(load + i64::from(weight)) / load)
    }

    /// Queues an entry. `running` is the running thread if it stays runnable beside the queue.
    #[inline]
    pub(crate) fn push(&mut self, entry: Entry<T>, running: Option<&FairRun>) {
        if self.load == 0 {
            self.base = entry.vruntime;
            self.sum = 0;
        } else if entry.vruntime.wrapping_sub(self.base).unsigned_abs() >= REBASE_DISTANCE {
            self.rebase(running);
        }
        let weight = i64::from(entry.weight);
        self.sum += entry.vruntime.wrapping_sub(self.base) * weight;
        self.load += weight;
        if self.is_eligible(entry.vruntime, running) {
            self.ready.push(entry);
        } else {
            self.early.push(entry);
        }
    }

    #[cold]
    fn rebase(&mut self, running: Option<&FairRun>) {
        let shift = self.clock(running).wrapping_sub(self.base);
        self.base = self.base.wrapping_add(shift);
        self.sum = self.sum.wrapping_sub(shift.wrapping_mul(self.load));
    }

    /// Accounts for an entry that has left a heap.
    #[inline]
    fn left(&mut self, entry: Option<Entry<T>>) -> Option<Entry<T>> {
        if let Some(entry) = &entry {
            let weight = i64::from(entry.weight);
            self.load -= weight;
            if self.load == 0 {
                self.base = entry.vruntime;
                self.sum = 0;
            } else {
                self.sum -= entry.vruntime.wrapping_sub(self.base) * weight;
            }
        }
        entry
    }

    /// Takes the thread to run next. With a running thread that could go on: only one that should run instead of it.
    #[inline]
    pub(crate) fn pick(&mut self, running: Option<&FairRun>) -> Option<Entry<T>> {
        if running.is_none() && self.len() == 1 {
            return self.pick_only();
        }
        let (sum, load) = self.totals(running);
        self.settle(sum, load);
        let picked = match (self.ready.peek(), running) {
            (Some(best), Some(run)) => {
                let goes_on =
                    self.eligible_in(run.vruntime, sum, load) && run.deadline.wrapping_sub(best.deadline) <= 0;
                if goes_on { None } else { self.ready.pop() }
            }
            (Some(_), None) => self.ready.pop(),
            (None, None) => self.early.pop(),
            (None, Some(_)) => None,
        };
        self.left(picked)
    }

    /// Takes the best queued thread, whatever the running one, which yields to it.
    pub(crate) fn pick_other(&mut self, running: &FairRun) -> Option<Entry<T>> {
        let (sum, load) = self.totals(Some(running));
        self.settle(sum, load);
        let picked = self.ready.pop().or_else(|| self.early.pop());
        self.left(picked)
    }

    #[inline]
    fn pick_only(&mut self) -> Option<Entry<T>> {
        let picked = if self.ready.len() == 1 { self.ready.pop() } else { self.early.pop() };
        self.left(picked)
    }

    /// Brings the two heaps in line with the clock as far as the next pick needs: every eligible thread is in `ready`,
    /// and the head of `ready` is eligible.
    #[inline]
    fn settle(&mut self, sum: i64, load: i64) {
        while let Some(first) = self.early.peek() {
            if !self.eligible_in(first.vruntime, sum, load) {
                break;
            }
            let Some(entry) = self.early.pop() else { break };
            self.ready.push(entry);
        }
        while let Some(best) = self.ready.peek() {
            if self.eligible_in(best.vruntime, sum, load) {
                break;
            }
            let Some(entry) = self.ready.pop() else { break };
            self.early.push(entry);
        }
    }

    /// Takes the first entry, in heap order and those due first before the others, that `wanted` accepts. The others keep
    /// their places.
    pub(crate) fn take_first(&mut self, mut wanted: impl FnMut(&Entry<T>) -> bool) -> Option<Entry<T>> {
        let picked = if let Some(index) = self.ready.entries().iter().position(&mut wanted) {
            Some(self.ready.remove(index))
        } else {
            let index = self.early.entries().iter().position(wanted)?;
            Some(self.early.remove(index))
        };
        self.left(picked)
    }

    /// Calls `f` with every queued thread.
    pub(crate) fn for_each(&self, f: impl FnMut(&Entry<T>)) {
        self.ready.entries().iter().chain(self.early.entries()).for_each(f);
    }

    pub(crate) fn capacity(&self) -> usize {
        self.ready.capacity().min(self.early.capacity())
    }

    /// Swaps in larger storage (for `ready`, for `early`), both empty, and hands back the old.
    pub(crate) fn replace_storage(&mut self, storage: [Vec<Entry<T>>; 2]) -> [Vec<Entry<T>>; 2] {
        let [ready, early] = storage;
        [self.ready.replace_storage(ready), self.early.replace_storage(early)]
    }
}
