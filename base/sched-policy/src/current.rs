//! The running thread as its queue sees it, and what a thread keeps when it leaves.
//!
//! All that a charge or a preemption decision needs of the running thread is copied here when it starts to run, so that
//! neither follows a pointer. Virtual run time and deadline mean nothing outside one queue; across a sleep or a move a
//! thread keeps its *lag*, bounded to two requests either way.

use crate::entity::{Entity, RunState, Task};
use crate::fair::{FairRun, lag_limit};
use crate::heap::Entry;
use crate::params::{Params, kind, virtual_ns};
use crate::qos::QosClass;

/// A thread that has run this long gives way to an eligible thread that wakes.
pub const WAKEUP_GRANULARITY_NS: u64 = 1_000_000;

/// Which class the running thread is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Running {
    Nothing,
    Fair,
    Realtime,
}

/// The running thread's accounts.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) class: Running,
    pub(crate) params: Params,
    pub(crate) fair: FairRun,
    /// Charged up to here.
    pub(crate) charged_at: u64,
    /// Run time not yet added to the entity.
    pub(crate) exec_ns: u64,
    /// Run time since the thread was chosen last.
    pub(crate) since_pick: u64,
    pub(crate) rr_left: u32,
    /// Its request or quantum is used up.
    pub(crate) expired: bool,
    /// A thread that should run instead has come.
    pub(crate) preempt: bool,
    /// One has come that should run instead when the running one has run for [`WAKEUP_GRANULARITY_NS`].
    pub(crate) cut: bool,
}

/// What a fair thread that has come may claim from the running one.
pub(crate) enum Claim {
    /// To run in its place now.
    Now,
    /// To run in its place when that has run for [`WAKEUP_GRANULARITY_NS`].
    Soon,
    /// No more than its place in the queue.
    Wait,
}

impl Current {
    /// The CPU is idle.
    pub(crate) const NOBODY: Self = Self {
        class: Running::Nothing,
        params: Params(0),
        fair: FairRun::NONE,
        charged_at: 0,
        exec_ns: 0,
        since_pick: 0,
        rr_left: 0,
        expired: false,
        preempt: false,
        cut: false,
    };

    /// What `entry` may claim from the running fair thread. A claim is a deadline just before the running thread's: who
    /// wants to run soon asks for less. The deadline never falls below the thread's own virtual time, which follows the
    /// clock, so that threads which wake each other all the time cannot hold off others whose deadlines come up.
    #[inline]
    pub(crate) fn claim<T>(&self, entry: &mut Entry<T>, new: Params, owed: bool) -> Claim {
        let old = self.params;
        if new.kind() != kind::FAIR || old.kind() == kind::IDLE {
            // Batch and idle threads preempt nobody but idle ones, and an idle thread not even those.
            if old.kind() != kind::IDLE || new.kind() == kind::IDLE {
                return Claim::Wait;
            }
        } else if !owed || (new.qos() == QosClass::Idle && old.qos() > QosClass::Idle) {
            return Claim::Wait;
        }
        let sooner = entry.deadline.wrapping_sub(self.fair.deadline) < 0;
        if !sooner {
            let before = self.fair.deadline.wrapping_sub(1);
            if before.wrapping_sub(entry.vruntime) <= 0 {
                return Claim::Wait;
            }
            entry.deadline = before;
        }
        let at_once =
            sooner || new.qos() > old.qos() || old.kind() == kind::IDLE || self.since_pick >= WAKEUP_GRANULARITY_NS;
        if at_once { Claim::Now } else { Claim::Soon }
    }
}

/// Notes what a thread that leaves is owed or owes, within bounds.
#[inline]
pub(crate) fn keep_lag(entity: &Entity, lag: i64, now: u64) {
    let limit = lag_limit(entity.slice_ns(), entity.inverse());
    entity.set_lag(lag.clamp(-limit, limit));
    entity.set_left_at(now);
}

/// A fair thread has been taken out of the queue whose clock stood at `clock`.
pub(crate) fn left_fair<T: Task>(entry: Entry<T>, clock: i64, now: u64) -> T {
    let entity = entry.task.entity();
    keep_lag(entity, clock.wrapping_sub(entry.vruntime), now);
    entity.set_state(RunState::Off);
    entry.task
}

/// The lag of a thread that wakes. What it was owed it still gets; what it owed is forgiven as fast as it would have
/// been paid by waiting.
#[inline]
pub(crate) fn lag_after_sleep(entity: &Entity, now: u64) -> i64 {
    let lag = entity.lag();
    if lag >= 0 {
        return lag;
    }
    let slept = now.saturating_sub(entity.left_at());
    lag.saturating_add(virtual_ns(slept, entity.inverse())).min(0)
}

/// The same debt in real time at another weight.
pub(crate) fn scale_lag(lag: i64, old_weight: u32, new_weight: u32) -> i64 {
    (i128::from(lag) * i128::from(old_weight) / i128::from(new_weight.max(1))) as i64
}
