//! Timers: one ordered set per CPU, and the CPU's one-shot timer set to the earliest of them and of the next look at the
//! running thread (end of its slice, at most a tick away).
//!
//! # Ideas
//! The set is a binary heap whose entries know their owner and whose owners know their index, so that arming and
//! cancelling are O(log n) and allocate nothing: a thread has one [`Slot`] in itself, since it sleeps on one deadline at
//! a time, and calls have theirs in a table of the set. Storage grows by doubling, outside the lock.
//!
//! Each entry has two times: it may fire from `soft` on, and the hardware is set for `hard`; what else is due by then
//! fires in the same interrupt (coalescing; see `sched_policy::timer_window_ns`).
//!
//! The hardware is set only when the new time is earlier than what it is set to. A time that is no longer needed leads
//! to one interrupt that finds nothing and sets the next: cheaper than touching the hardware at each switch.
//!
//! # Ownership and locking
//! Each set is under its own interrupt-safe lock, locked after wait queues and before run queues. A timer is armed on
//! the calling CPU and fires there with interrupts masked and no lock held. An entry for a thread is removed by the
//! firing or by the thread itself before it returns from its sleep, so the pointer in it is good.

use super::{CPUS, account, arc_of, resched, state::Handle};
use crate::arch::context::{self, NEED_RESCHED};
use crate::arch::percpu::{self, MAX_CPUS};
use crate::task::Thread;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use sched_policy::{RunQueue, WAKEUP_GRANULARITY_NS};
use sync::{IrqGuard, IrqLock, LockClass};

static CLASS: LockClass = LockClass::new("timers", sync::rank::TIMER);

/// How long a thread runs at most before the timer looks at it, in nanoseconds.
pub(super) const TICK_NS: u64 = 10_000_000;
const NOT_ARMED: usize = usize::MAX;

/// What a timer calls. Interrupts are masked and no lock of the timers is held; it must be short and must not sleep.
pub trait TimerCallback: Send + Sync {
    /// The deadline passed.
    fn fire(&self);
}

/// A thread's place in a set.
#[derive(Debug)]
pub struct Slot {
    cpu: AtomicU32,
    index: AtomicUsize,
}

impl Slot {
    pub(super) const fn new() -> Self {
        Slot { cpu: AtomicU32::new(0), index: AtomicUsize::new(NOT_ARMED) }
    }
}

#[derive(Clone, Copy)]
enum Owner {
    Thread(*const Thread),
    Call(u32),
}

struct Entry {
    hard: u64,
    soft: u64,
    owner: Owner,
}

struct Call {
    generation: u32,
    index: usize,
    callback: Option<Arc<dyn TimerCallback>>,
}

struct Set {
    heap: Vec<Entry>,
    calls: Vec<Call>,
    free: Vec<u32>,
}

// SAFETY: the thread pointers are good while their entries exist (see the module's text).
unsafe impl Send for Set {}

static SETS: [IrqLock<Set>; MAX_CPUS] =
    [const { IrqLock::new(&CLASS, Set { heap: Vec::new(), calls: Vec::new(), free: Vec::new() }) }; MAX_CPUS];
/// When to look at the running thread (u64::MAX: never), per CPU.
static LOOK_AT: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];
/// What the hardware timer is set to, per CPU.
static PROGRAMMED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];

/// Names an armed call.
#[derive(Clone, Copy, Debug)]
pub struct TimerId {
    cpu: usize,
    call: u32,
    generation: u32,
}

impl Set {
    fn set_index(&mut self, owner: Owner, index: usize) {
        match owner {
            // SAFETY: the entry exists, so the thread does.
            Owner::Thread(t) => unsafe { (*t).sched.timer.index.store(index, Ordering::Release) },
            Owner::Call(c) => self.calls[c as usize].index = index,
        }
    }

    fn up(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.heap[parent].hard <= self.heap[at].hard {
                break;
            }
            self.heap.swap(parent, at);
            self.set_index(self.heap[at].owner, at);
            at = parent;
        }
        self.set_index(self.heap[at].owner, at);
    }

    fn down(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let mut least = at;
            for child in [left, right] {
                if child < self.heap.len() && self.heap[child].hard < self.heap[least].hard {
                    least = child;
                }
            }
            if least == at {
                break;
            }
            self.heap.swap(least, at);
            self.set_index(self.heap[at].owner, at);
            at = least;
        }
        self.set_index(self.heap[at].owner, at);
    }

    /// Adds an entry; the caller has made room.
    fn insert(&mut self, entry: Entry) {
        self.heap.push(entry);
        self.up(self.heap.len() - 1);
    }

    fn remove(&mut self, at: usize) -> Entry {
        let entry = self.heap.swap_remove(at);
        if at < self.heap.len() {
            self.up(at);
            self.down(at);
        }
        self.set_index(entry.owner, NOT_ARMED);
        entry
    }

    /// Takes a call's function, which frees its place in the table.
    fn end_call(&mut self, call: u32) -> Option<Arc<dyn TimerCallback>> {
        let c = &mut self.calls[call as usize];
        c.generation = c.generation.wrapping_add(1);
        let callback = c.callback.take();
        self.free.push(call);
        callback
    }

    fn first(&self) -> u64 {
        self.heap.first().map_or(u64::MAX, |e| e.hard)
    }

    fn has_room(&self) -> bool {
        self.heap.len() < self.heap.capacity() && (!self.free.is_empty() || self.calls.len() < self.calls.capacity())
    }
}

/// Locks the set of `cpu` with room for one more of each kind; `None`: no memory. Nothing is allocated under the lock.
fn lock_with_room(cpu: usize) -> Option<IrqGuard<'static, Set>> {
    loop {
        let set = SETS[cpu].lock();
        if set.has_room() {
            return Some(set);
        }
        let wanted = (set.heap.capacity().max(set.calls.capacity()) * 2).max(32);
        drop(set);
        let (mut heap, mut calls, mut free) = (Vec::new(), Vec::new(), Vec::new());
        heap.try_reserve_exact(wanted).ok()?;
        calls.try_reserve_exact(wanted).ok()?;
        free.try_reserve_exact(wanted).ok()?;
        let mut set = SETS[cpu].lock();
        if set.heap.capacity() < wanted {
            heap.append(&mut set.heap);
            calls.append(&mut set.calls);
            free.append(&mut set.free);
            core::mem::swap(&mut set.heap, &mut heap);
            core::mem::swap(&mut set.calls, &mut calls);
            core::mem::swap(&mut set.free, &mut free);
        }
        drop(set);
    }
}

/// Gets a CPU's first storage, so that it is not the first timers that take it.
pub(super) fn prepare(cpu: usize) {
    drop(lock_with_room(cpu));
}

fn sooner(cpu: usize, deadline: u64) {
    if deadline < PROGRAMMED[cpu].load(Ordering::Relaxed) {
        program(cpu, deadline);
    }
}

/// Calls `callback` at `deadline` (monotonic nanoseconds). Without memory for it, at once. Context: any that may
/// allocate.
pub fn arm_call(deadline: u64, callback: Arc<dyn TimerCallback>) -> TimerId {
    let irq = crate::arch::irq_save();
    let cpu = percpu::id();
    let mut id = TimerId { cpu, call: u32::MAX, generation: 0 };
    let unarmed = match lock_with_room(cpu) {
        Some(mut set) => {
            let call = match set.free.pop() {
                Some(c) => c,
                None => {
                    set.calls.push(Call { generation: 0, index: NOT_ARMED, callback: None });
                    set.calls.len() as u32 - 1
                }
            };
            set.calls[call as usize].callback = Some(callback);
            id.call = call;
            id.generation = set.calls[call as usize].generation;
            set.insert(Entry { hard: deadline, soft: deadline, owner: Owner::Call(call) });
            None
        }
        None => Some(callback),
    };
    sooner(cpu, deadline);
    crate::arch::irq_restore(irq);
    if let Some(callback) = unarmed {
        crate::warn!("no memory for a timer: it fires at once");
        callback.fire();
    }
    id
}

/// Disarms; false if it has fired (or is just firing).
pub fn cancel(t: TimerId) -> bool {
    let callback = {
        let mut set = SETS[t.cpu].lock();
        match set.calls.get(t.call as usize) {
            Some(c) if c.generation == t.generation && c.index != NOT_ARMED => {
                let index = c.index;
                set.remove(index);
                set.end_call(t.call)
            }
            _ => None,
        }
    };
    callback.is_some()
}

/// Unparks the running thread at `hard`, or from `soft` on if the CPU is interrupted then. False: no memory.
pub(super) fn arm_wake(soft: u64, hard: u64, me: &Thread) -> bool {
    let irq = crate::arch::irq_save();
    let cpu = percpu::id();
    let armed = match lock_with_room(cpu) {
        Some(mut set) => {
            me.sched.timer.cpu.store(cpu as u32, Ordering::Relaxed);
            set.insert(Entry { hard, soft, owner: Owner::Thread(me) });
            true
        }
        None => false,
    };
    sooner(cpu, hard);
    crate::arch::irq_restore(irq);
    armed
}

/// Disarms the running thread's wake-up; false if it has fired.
pub(super) fn cancel_wake(me: &Thread) -> bool {
    let slot = &me.sched.timer;
    if slot.index.load(Ordering::Acquire) == NOT_ARMED {
        return false;
    }
    let mut set = SETS[slot.cpu.load(Ordering::Relaxed) as usize].lock();
    let index = slot.index.load(Ordering::Relaxed);
    if index == NOT_ARMED {
        return false;
    }
    set.remove(index);
    true
}

fn program(cpu: usize, deadline: u64) {
    PROGRAMMED[cpu].store(deadline, Ordering::Relaxed);
    if deadline == u64::MAX {
        crate::arch::time::stop();
    } else {
        crate::arch::time::set_oneshot(deadline);
    }
}

enum Due {
    Wake(Arc<Thread>),
    Call(Option<Arc<dyn TimerCallback>>),
}

fn take_due(cpu: usize, now: u64) -> Option<Due> {
    let mut set = SETS[cpu].lock();
    if set.heap.first()?.soft > now {
        return None;
    }
    let entry = set.remove(0);
    Some(match entry.owner {
        // SAFETY: the thread waits until its entry is gone, and is still inside the wait while this lock is held; the
        // reference taken here keeps it from then on.
        Owner::Thread(t) => Due::Wake(arc_of(unsafe { &*t })),
        Owner::Call(c) => Due::Call(set.end_call(c)),
    })
}

/// The timer interrupt: fires what is due and looks at the running thread. `from_user`: what was interrupted. Interrupts
/// masked.
pub(super) fn expire(from_user: bool) {
    let cpu = percpu::id();
    PROGRAMMED[cpu].store(u64::MAX, Ordering::Relaxed);
    let now = crate::arch::time::now_ns();
    account::sample(cpu, from_user, now);
    while let Some(due) = take_due(cpu, now) {
        match due {
            Due::Wake(t) => super::unpark(&t, false),
            Due::Call(Some(c)) => c.fire(),
            Due::Call(None) => {}
        }
    }
    if LOOK_AT[cpu].load(Ordering::Relaxed) <= now {
        look(cpu, now);
        super::idle::tick_balance(cpu, now);
    }
    let first = SETS[cpu].lock().first();
    program(cpu, first.min(LOOK_AT[cpu].load(Ordering::Relaxed)));
}

/// Charges the running thread and asks for a switch if its time is over. Interrupts masked.
pub(super) fn look(cpu: usize, now: u64) {
    let mut q = CPUS[cpu].queue.lock();
    if q.charge(now) && !super::sabotage::no_preempt() {
        LOOK_AT[cpu].store(now + TICK_NS, Ordering::Relaxed);
        context::current().flags.fetch_or(NEED_RESCHED, Ordering::Relaxed);
    } else {
        let idle = q.runnable() == q.queued();
        set_look(cpu, &q, idle, now);
    }
    drop(q);
    sooner(cpu, LOOK_AT[cpu].load(Ordering::Relaxed));
}

fn set_look(cpu: usize, q: &RunQueue<Handle>, idle: bool, now: u64) {
    let end = if idle { u64::MAX } else { now + q.time_slice_left().map_or(TICK_NS, |ns| ns.min(TICK_NS)) };
    LOOK_AT[cpu].store(end, Ordering::Relaxed);
}

/// A thread, or idle, is about to run on this CPU. Interrupts masked, the queue locked.
#[inline]
pub(super) fn slice_starts(cpu: usize, q: &RunQueue<Handle>, idle: bool, now: u64) {
    set_look(cpu, q, idle, now);
    if !idle {
        sooner(cpu, LOOK_AT[cpu].load(Ordering::Relaxed));
    }
}

/// A thread was queued behind the one that runs on `cpu`, the calling one, in its queue `q`. Interrupts masked.
#[inline]
pub(super) fn slice_changed_here(cpu: usize, q: &RunQueue<Handle>, now: u64) {
    set_look(cpu, q, q.runnable() == q.queued(), now);
    sooner(cpu, LOOK_AT[cpu].load(Ordering::Relaxed));
}

/// A thread was queued behind the one that runs on `cpu`, whose slice must end. Interrupts masked.
pub(super) fn slice_changed(cpu: usize, now: u64) {
    if cpu == percpu::id() {
        slice_changed_here(cpu, &CPUS[cpu].queue.lock(), now);
    } else if LOOK_AT[cpu].load(Ordering::Relaxed) > now + WAKEUP_GRANULARITY_NS {
        // Only that CPU can set its timer.
        resched::ask(cpu, resched::LOOK);
    }
}

/// Lets the calling CPU's timer fire once, a tick from now, whatever it does: each CPU shows so that it has one.
pub(super) fn first_tick(cpu: usize) {
    let irq = crate::arch::irq_save();
    sooner(cpu, crate::arch::time::now_ns() + TICK_NS);
    crate::arch::irq_restore(irq);
}
