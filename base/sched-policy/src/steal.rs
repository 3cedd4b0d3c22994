//! Moving waiting threads between CPUs.
//!
//! *Stealing*: a CPU that has gone idle takes one waiting thread from another. At most one an attempt, never one of a
//! higher QoS class than it asked for, and none that may not run there: such a thread is stepped over and keeps its
//! place. Victims are tried in a fixed order, round from the thief. A refusal leaves both queues as they were.
//!
//! *Balancing*: when every CPU is busy nobody steals, yet three spinners on two CPUs should get two thirds each. The
//! queues' fair clocks tell who is badly served: with more load a clock runs slower. When a lightly loaded queue's clock
//! is ahead of a heavily loaded one's by [`BALANCE_THRESHOLD`], one thread moves over and takes the difference with it
//! as lag, so that it catches up in its new place. Clocks that drifted apart for a reason that no move can mend
//! (affinity, one CPU long idle) are declared equal again.
//!
//! A thread that moves is in the hands of the caller between two queues only in [`RunQueue::steal`]; the kernel holds
//! the thief's lock, and the thread's state is [`crate::RunState::Off`] there. [`balance`] holds both locks.

use crate::cpumask::{CpuId, CpuMask};
use crate::current::{Running, left_fair};
use crate::entity::{RunState, Task};
use crate::qos::QosClass;
use crate::runqueue::{Arrival, Kick, RunQueue};

/// How many threads one attempt may take.
pub const STEAL_BOUND: usize = 1;
/// Fair clocks nearer than this (virtual ns) count as equal.
pub const BALANCE_THRESHOLD: i64 = 8_000_000;
/// Fair clocks farther apart than this (virtual ns) cannot be mended by moving threads.
pub const BALANCE_RESYNC: i64 = 200_000_000;

/// What a thief asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StealRequest {
    /// The CPU that wants work.
    pub thief: CpuId,
    /// The highest class that it may take.
    pub max_qos: QosClass,
    /// How many threads; more than [`STEAL_BOUND`] is refused.
    pub count: usize,
    /// How many more threads the thief's queue has room for.
    pub room: usize,
}

impl StealRequest {
    /// The usual request: one thread of any class up to `max_qos`, for the CPU of `thief`.
    pub fn one<T: Task>(thief: &RunQueue<T>, max_qos: QosClass) -> Self {
        let room = thief.capacity().saturating_sub(thief.queued());
        Self { thief: thief.cpu(), max_qos, count: 1, room }
    }
}

/// Why a steal took nothing. Both queues are as they were.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StealRefusal {
    /// More than [`STEAL_BOUND`] threads were asked for, or more than the thief has room for.
    AboveBound,
    /// Nobody waits, or only the thread that the victim's idle CPU is about to run.
    Empty,
    /// Every waiting thread that could run there is of a higher class.
    HigherQos,
    /// No waiting thread may run on the thief's CPU.
    Affinity,
}

impl<T: Task> RunQueue<T> {
    /// Lets another CPU take one waiting thread, the next in line of those it may have. The thread belongs to no queue
    /// until the caller enqueues it as [`Arrival::Migrated`].
    pub fn steal(&mut self, request: &StealRequest, now: u64) -> Result<T, StealRefusal> {
        if request.count > STEAL_BOUND || request.count > request.room {
            return Err(StealRefusal::AboveBound);
        }
        let about_to_run = usize::from(self.current.class == Running::Nothing);
        if request.count == 0 || self.queued() <= about_to_run {
            return Err(StealRefusal::Empty);
        }
        let mut refusal = StealRefusal::Affinity;
        let mut wanted = |task: &T| {
            let entity = task.entity();
            let allowed = entity.allows(request.thief);
            if allowed && entity.qos() > request.max_qos {
                refusal = StealRefusal::HigherQos;
                return false;
            }
            allowed
        };
        if let Some(task) = self.rt.take_first(&mut wanted) {
            task.entity().set_state(RunState::Off);
            return Ok(task);
        }
        let clock = self.fair.clock(self.running_fair());
        match self.fair.take_first(|entry| wanted(&entry.task)) {
            Some(entry) => Ok(left_fair(entry, clock, now)),
            None => Err(refusal),
        }
    }

    /// The fair clock, comparable between CPUs.
    fn machine_clock(&self) -> i64 {
        self.fair.clock(self.running_fair()).wrapping_add(self.bias)
    }

    /// Weight of all fair threads that wait or run.
    pub fn fair_load(&self) -> i64 {
        self.fair.load() + self.running_fair().map_or(0, |run| i64::from(run.weight))
    }
}

/// Evens out service between two busy CPUs: moves at most one waiting fair thread from `from` to `to` if `to` is less
/// loaded and its threads are ahead. `Some` if one moved, with what `to`'s CPU has to do. The caller holds both locks.
pub fn balance<T: Task>(from: &mut RunQueue<T>, to: &mut RunQueue<T>, now: u64) -> Option<Kick> {
    from.charge(now);
    to.charge(now);
    if from.fair.is_empty() || to.current.class != Running::Fair {
        return None;
    }
    let ahead = to.machine_clock().wrapping_sub(from.machine_clock());
    if ahead.abs() > BALANCE_RESYNC {
        // The one behind catches up, so that of many that compare in pairs all end at the same clock.
        let behind = if ahead > 0 { from } else { to };
        behind.bias = behind.bias.wrapping_add(ahead.abs());
        return None;
    }
    let surplus = from.fair_load() - to.fair_load();
    if ahead < BALANCE_THRESHOLD || surplus <= 0 || to.capacity() <= to.queued() {
        return None;
    }
    let clock = from.fair.clock(from.running_fair());
    let target = to.cpu();
    let entry =
        from.fair.take_first(|entry| i64::from(entry.weight) <= surplus && entry.task.entity().allows(target))?;
    // A move changes nothing about what the thread is owed, so its lag is not cut to the bound for sleepers: a CPU that
    // was away for long (a virtual one) leaves large lags behind, which many moves would otherwise lose.
    let lag = clock.wrapping_sub(entry.vruntime).clamp(-BALANCE_RESYNC, BALANCE_RESYNC);
    let task = left_fair(entry, clock, now);
    let entity = task.entity();
    entity.set_lag(lag.saturating_add(ahead));
    Some(to.enqueue(task, Arrival::Migrated, now))
}

/// The order in which a thief tries its victims: the CPUs of `online` from the one after the thief, round to the one
/// before it.
pub fn victim_order(thief: CpuId, online: &CpuMask) -> impl Iterator<Item = CpuId> + use<> {
    let mut others = *online;
    others.remove(thief);
    others.iter_wrapping(thief.index() + 1)
}
