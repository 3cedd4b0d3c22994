//! Timers: one ordered set per CPU, and the CPU's one-shot timer set to the earliest of them and of the end of the running
//! thread's slice.
//!
//! A timer is armed on the calling CPU and fires there, with interrupts masked. It wakes a thread or calls a function; the
//! function must be short. Ownership: each set under its own interrupt-safe lock; lock order: timers are locked after wait
//! queues and before run queues, and never while firing.

use super::queue::RunQueue;

use crate::arch::context::{self, NEED_RESCHED};
use crate::arch::percpu::{self, MAX_CPUS};
use crate::task::Thread;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use sync::{IrqLock, LockClass};

static CLASS: LockClass = LockClass::new("timers", sync::rank::TIMER);

enum Action {
    Wake(Arc<Thread>),
    Call(Arc<dyn TimerCallback>),
}

/// What a timer calls. Interrupts are masked: it must be short, must not sleep, and may take only locks ranked after
/// timers... it is called with none held.
pub trait TimerCallback: Send + Sync {
    /// The deadline passed.
    fn fire(&self);
}

struct Set {
    armed: BTreeMap<(u64, u64), Action>,
    next_id: u64,
}

static SETS: [IrqLock<Set>; MAX_CPUS] =
    [const { IrqLock::new(&CLASS, Set { armed: BTreeMap::new(), next_id: 0 }) }; MAX_CPUS];
/// When the running thread's slice ends (u64::MAX: never), per CPU.
static SLICE_END: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];
/// What the hardware timer is set to, per CPU.
static PROGRAMMED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];

/// Names an armed timer.
#[derive(Clone, Copy, Debug)]
pub struct TimerId {
    cpu: usize,
    deadline: u64,
    id: u64,
}

fn arm(deadline: u64, action: Action) -> TimerId {
    let irq = crate::arch::irq_save();
    let cpu = percpu::id();
    let id = {
        let mut set = SETS[cpu].lock();
        set.next_id += 1;
        let id = set.next_id;
        set.armed.insert((deadline, id), action);
        id
    };
    if deadline < PROGRAMMED[cpu].load(Ordering::Relaxed) {
        program(cpu, deadline);
    }
    crate::arch::irq_restore(irq);
    TimerId { cpu, deadline, id }
}

/// Calls `callback` at `deadline` (monotonic nanoseconds).
pub fn arm_call(deadline: u64, callback: Arc<dyn TimerCallback>) -> TimerId {
    arm(deadline, Action::Call(callback))
}

/// Unparks the running thread at `deadline`.
pub(super) fn arm_wake(deadline: u64, me: &Thread) -> TimerId {
    arm(deadline, Action::Wake(super::arc_of(me)))
}

/// Disarms; false if it has fired (or is just firing).
pub fn cancel(t: TimerId) -> bool {
    let action = SETS[t.cpu].lock().armed.remove(&(t.deadline, t.id));
    action.is_some()
}

fn program(cpu: usize, deadline: u64) {
    PROGRAMMED[cpu].store(deadline, Ordering::Relaxed);
    if deadline == u64::MAX {
        crate::arch::time::stop();
    } else {
        crate::arch::time::set_oneshot(deadline);
    }
}

fn program_next(cpu: usize) {
    let first = SETS[cpu].lock().armed.first_key_value().map_or(u64::MAX, |(k, _)| k.0);
    program(cpu, first.min(SLICE_END[cpu].load(Ordering::Relaxed)));
}

/// The timer interrupt: fires what is due. Interrupts masked.
pub(super) fn expire() {
    let cpu = percpu::id();
    PROGRAMMED[cpu].store(u64::MAX, Ordering::Relaxed);
    let now = crate::arch::time::now_ns();
    loop {
        let due = {
            let mut set = SETS[cpu].lock();
            match set.armed.first_entry() {
                Some(e) if e.key().0 <= now => Some(e.remove()),
                _ => None,
            }
        };
        match due {
            Some(Action::Wake(t)) => super::unpark(&t, false),
            Some(Action::Call(c)) => c.fire(),
            None => break,
        }
    }
    if SLICE_END[cpu].load(Ordering::Relaxed) <= now {
        SLICE_END[cpu].store(u64::MAX, Ordering::Relaxed);
        context::current().flags.fetch_or(NEED_RESCHED, Ordering::Relaxed);
    }
    program_next(cpu);
}

/// `next` is about to run: its slice ends only if somebody waits. Interrupts masked, the queue locked.
pub(super) fn slice_starts(q: &RunQueue, next: &Thread, now: u64) {
    let cpu = percpu::id();
    let end = match q.slice_ns(next) {
        Some(ns) => now + ns,
        None => u64::MAX,
    };
    SLICE_END[cpu].store(end, Ordering::Relaxed);
    if end < PROGRAMMED[cpu].load(Ordering::Relaxed) {
        program(cpu, end);
    }
}

/// A thread was queued on `cpu` behind the one that runs there: its slice must end.
pub(super) fn slice_may_start(cpu: usize) {
    if cpu == percpu::id() {
        if SLICE_END[cpu].load(Ordering::Relaxed) == u64::MAX {
            let end = crate::arch::time::now_ns() + super::queue::SLICE_NS;
            SLICE_END[cpu].store(end, Ordering::Relaxed);
            if end < PROGRAMMED[cpu].load(Ordering::Relaxed) {
                program(cpu, end);
            }
        }
    } else if SLICE_END[cpu].load(Ordering::Relaxed) == u64::MAX {
        // Only that CPU can set its timer.
        super::resched(cpu);
    }
}

/// The CPU goes idle: only real timers count. Interrupts masked.
pub(super) fn program_idle() {
    let cpu = percpu::id();
    SLICE_END[cpu].store(u64::MAX, Ordering::Relaxed);
    program_next(cpu);
}
