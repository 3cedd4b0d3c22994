//! One CPU's queue of runnable threads, and the policy that picks among them.
//!
//! Threads wait in an intrusive list (no allocation, since queues change with interrupts masked). Real-time threads come
//! first by priority, then fair ones by virtual deadline among those that are eligible (their virtual run time is not
//! ahead of the queue's average), then idle-policy ones.

use super::state::{Entity, Policy};
use crate::task::Thread;
use core::ptr;

/// A fair thread's slice.
pub const SLICE_NS: u64 = 3_000_000;
/// A round-robin slice, as Linux's default.
pub const RR_SLICE_NS: u64 = 100_000_000;

/// Linux's table of weights by nice value: each step is 1.25 times.
const WEIGHTS: [u32; 40] = [
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906, 3121, 2501,
    1991, 1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
];

/// Why a thread is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It never ran.
    New,
    /// It slept.
    Woken,
    /// It comes from another queue.
    Moved,
}

/// The threads that wait on one CPU, and the one that runs.
pub struct RunQueue {
    head: *const Thread,
    len: usize,
    /// The running thread, unless idle.
    current: *const Thread,
    /// A monotonic floor of the virtual run times here.
    min_vruntime: u64,
}

// SAFETY: threads on the queue are kept alive by the scheduler's reference, and all access is under the queue's lock.
unsafe impl Send for RunQueue {}

fn weight(p: Policy) -> u64 {
    match p {
        Policy::Fair { nice, .. } => WEIGHTS[(nice as i32 + 20).clamp(0, 39) as usize] as u64,
        _ => 3,
    }
}

/// Larger is picked first; fair threads share one class.
fn class(p: Policy) -> u32 {
    match p {
        Policy::Fifo(prio) | Policy::RoundRobin(prio) => 100 + prio as u32,
        Policy::Fair { .. } => 1,
        Policy::Idle => 0,
    }
}

#[allow(clippy::mut_from_ref)]
fn entity(t: &Thread) -> &mut Entity {
    // SAFETY: callers hold the lock of the queue that `t` is on or runs from, and keep one reference at a time.
    unsafe { &mut *t.sched.entity.get() }
}

impl RunQueue {
    /// Empty.
    pub const fn new() -> Self {
        RunQueue { head: ptr::null(), len: 0, current: ptr::null(), min_vruntime: 0 }
    }

    /// Threads queued or running here.
    pub fn len(&self) -> usize {
        self.len + usize::from(!self.current.is_null())
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn current(&self) -> Option<&'static Thread> {
        // SAFETY: the running thread is alive.
        unsafe { self.current.as_ref() }
    }

    /// Adds `t`. True if it should run before the current thread.
    pub fn enqueue(&mut self, t: &'static Thread, why: Why, now: u64) -> bool {
        self.charge(now);
        let e = entity(t);
        let slice = SLICE_NS * 1024 / weight(e.policy);
        match why {
            // A sleeper keeps at most one slice of credit.
            Why::Woken => e.vruntime = e.vruntime.max(self.min_vruntime.saturating_sub(slice)),
            Why::New | Why::Moved => e.vruntime = self.min_vruntime,
        }
        e.deadline = e.vruntime + slice;
        self.push(t);
        let Some(current) = self.current() else { return true };
        let c = entity(current);
        match class(e.policy).cmp(&class(c.policy)) {
            core::cmp::Ordering::Greater => true,
            core::cmp::Ordering::Less => false,
            core::cmp::Ordering::Equal => {
                why == Why::Woken
                    && matches!(e.policy, Policy::Fair { batch: false, .. })
                    && e.vruntime < c.vruntime
                    && e.deadline < c.deadline
            }
        }
    }

    fn push(&mut self, t: &'static Thread) {
        t.sched.set_next(self.head);
        self.head = t;
        self.len += 1;
    }

    fn remove(&mut self, t: &Thread) {
        if ptr::eq(self.head, t) {
            self.head = t.sched.next();
        } else {
            let mut at = self.head;
            // SAFETY: threads on the list are alive.
            while let Some(p) = unsafe { at.as_ref() } {
                if ptr::eq(p.sched.next(), t) {
                    p.sched.set_next(t.sched.next());
                    break;
                }
                at = p.sched.next();
            }
        }
        self.len -= 1;
    }

    fn iter(&self) -> impl Iterator<Item = &'static Thread> {
        // SAFETY: threads on the list are alive.
        let mut at = unsafe { self.head.as_ref() };
        core::iter::from_fn(move || {
            let t = at?;
            // SAFETY: as above.
            at = unsafe { t.sched.next().as_ref() };
            Some(t)
        })
    }

    /// Adds the time since the last look to the running thread.
    fn charge(&mut self, now: u64) {
        let Some(t) = self.current() else { return };
        let e = entity(t);
        let ran = now.saturating_sub(e.since);
        e.since = now;
        t.sched.runtime_ns.fetch_add(ran, core::sync::atomic::Ordering::Relaxed);
        match e.policy {
            Policy::RoundRobin(_) => e.rr_left = e.rr_left.saturating_sub(ran),
            Policy::Fifo(_) => {}
            Policy::Fair { .. } | Policy::Idle => {
                e.vruntime += ran * 1024 / weight(e.policy);
                let floor = e.vruntime;
                let lowest = self.iter().filter(|t| class(entity(t).policy) <= 1).map(|t| entity(t).vruntime).min();
                self.min_vruntime = self.min_vruntime.max(lowest.map_or(floor, |l| l.min(floor)));
            }
        }
    }

    /// The running thread sleeps or exits.
    pub fn leave(&mut self, now: u64) {
        self.charge(now);
    }

    /// The running thread gives way: its slice counts as used.
    pub fn yielded(&mut self) {
        if let Some(t) = self.current() {
            let e = entity(t);
            match e.policy {
                Policy::RoundRobin(_) => e.rr_left = 0,
                Policy::Fair { .. } | Policy::Idle => {
                    let last = self.iter().map(|t| entity(t).vruntime).max().unwrap_or(0);
                    e.vruntime = e.vruntime.max(last + 1);
                    e.deadline = e.vruntime + SLICE_NS * 1024 / weight(e.policy);
                }
                Policy::Fifo(_) => {}
            }
        }
    }

    /// Chooses who runs next in place of `me`, which stays runnable unless `leaving`. `None`: nobody; run idle.
    pub fn pick(&mut self, me: &'static Thread, leaving: bool, now: u64) -> Option<&'static Thread> {
        self.charge(now);
        let staying = !leaving && ptr::eq(self.current, me);
        if staying {
            let e = entity(me);
            let slice = SLICE_NS * 1024 / weight(e.policy);
            if e.vruntime >= e.deadline {
                e.deadline = e.vruntime + slice;
            }
            if self.len == 0 {
                if e.rr_left == 0 {
                    e.rr_left = RR_SLICE_NS;
                }
                return Some(me);
            }
        }
        let candidates = self.iter();
        let mine = staying.then_some(me);
        let best = candidates.chain(mine).min_by_key(|t| {
            let e = entity(t);
            let tie = match e.policy {
                // Among equals the running one stays, unless its slice is used up.
                Policy::Fifo(_) => u64::from(!ptr::eq(*t, me)),
                Policy::RoundRobin(_) => {
                    if ptr::eq(*t, me) {
                        if e.rr_left == 0 { 2 } else { 0 }
                    } else {
                        1
                    }
                }
                _ => e
                    .vruntime
                    .max(self.min_vruntime)
                    .saturating_add(SLICE_NS * 1024 / weight(e.policy))
                    .min(e.deadline.max(e.vruntime)),
            };
            (u32::MAX - class(e.policy), tie)
        });
        if let Some(next) = best {
            if !ptr::eq(next, me) || !staying {
                self.remove(next);
                if staying {
                    if let Policy::RoundRobin(_) = entity(me).policy
                        && entity(me).rr_left == 0
                    {
                        entity(me).rr_left = RR_SLICE_NS;
                    }
                    self.push(me);
                }
            }
            entity(next).since = now;
            self.current = next;
        } else {
            self.current = ptr::null();
        }
        best
    }

    /// How long `next` may run before somebody else should; `None`: for as long as it likes.
    pub fn slice_ns(&self, next: &Thread) -> Option<u64> {
        if self.len == 0 || !ptr::eq(self.current, next) {
            return None;
        }
        match entity(next).policy {
            Policy::Fifo(_) => None,
            Policy::RoundRobin(_) => Some(entity(next).rr_left.max(1)),
            Policy::Fair { .. } | Policy::Idle => Some(SLICE_NS),
        }
    }

    /// Gives away one waiting thread that may run on CPU `thief`: the one that waits longest.
    pub fn steal(&mut self, thief: usize) -> Option<&'static Thread> {
        let t = self
            .iter()
            .filter(|t| {
                t.sched.affinity.load(core::sync::atomic::Ordering::Relaxed) & (1 << thief) != 0
                    && !t.sched.on_cpu.load(core::sync::atomic::Ordering::Acquire)
            })
            .last()?;
        self.remove(t);
        Some(t)
    }

    /// Changes a thread's policy. The caller holds this queue's lock and `t` is on it, runs from it, or last was.
    pub fn set_policy(&mut self, t: &Thread, policy: Policy) {
        let e = entity(t);
        e.policy = policy;
        e.rr_left = RR_SLICE_NS;
        e.deadline = e.vruntime + SLICE_NS * 1024 / weight(policy);
    }

    /// A thread's policy.
    pub fn policy(&self, t: &Thread) -> Policy {
        entity(t).policy
    }
}
