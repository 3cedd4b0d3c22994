//! One CPU's run queue.
//!
//! The queue owns the handles of the threads that wait; the kernel owns the handle of the one that runs, while the queue
//! keeps its accounts in itself, so that charging it touches no memory of the thread. Every call that takes `now`
//! (monotonic ns, the same clock on every CPU) first charges the running thread up to then.
//!
//! ```text
//!             enqueue                 next / switch_*
//!    off  ─────────────────► queued ──────────────────► running
//!     ▲                        │ ▲                        │  │
//!     └── detach, steal ───────┘ └──── switch_runnable ───┘  │
//!     └───────────────────────────────── switch_away ────────┘
//! ```
//!
//! Locking: the caller holds the queue's lock, with interrupts masked, around every call. Nothing here blocks, and
//! nothing allocates as long as no more threads are queued than [`RunQueue::capacity`], which [`crate::admission`]
//! guarantees; if it were broken the storage would grow rather than a thread be lost.
//!
//! Real-time threads run before fair ones, but not for ever: when fair threads wait, real-time threads get at most
//! [`RT_RUNTIME_NS`] of each [`RT_PERIOD_NS`], so that a runaway one can still be killed from a shell.

use alloc::vec::Vec;

use crate::cpumask::CpuId;
use crate::current::{Claim, Current, Running, WAKEUP_GRANULARITY_NS, keep_lag, lag_after_sleep, left_fair, scale_lag};
use crate::entity::{Entity, RunState, Task};
use crate::fair::{FairQueue, FairRun};
use crate::heap::Entry;
use crate::params::{Params, Policy, RR_QUANTUM_NS, kind, virtual_ns};
use crate::qos::QosClass;
use crate::rt::{Node, RtQueue};

/// The window over which real-time run time is bounded.
pub const RT_PERIOD_NS: u64 = 1_000_000_000;
/// Real-time run time per window while fair threads wait.
pub const RT_RUNTIME_NS: u64 = 950_000_000;
/// The shortest time that a slice timer is set for.
pub const MIN_TIMER_NS: u64 = 50_000;

/// What the CPU of a queue has to do after a thread has come to it.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// Nothing.
    Nothing,
    /// Set the slice timer again: the running thread is no longer alone.
    SetTimer,
    /// Reschedule: the new thread should run at once.
    Resched,
}

/// Why a thread comes to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It starts its life: it is owed nothing, and its first request is half a slice.
    New,
    /// It slept.
    Wakeup,
    /// It comes from another CPU's queue.
    Migrated,
}

/// Why a runnable thread gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveWay {
    /// The scheduler asked for it.
    Preempted,
    /// `sched_yield(2)`.
    Yielded,
}

/// Storage for a queue, made where allocation is allowed and swapped in under the lock; also what comes back, to be
/// dropped after the lock has been released.
#[derive(Debug)]
pub struct Storage<T> {
    fair: [Vec<Entry<T>>; 2],
    rt: Vec<Node<T>>,
}

impl<T> Storage<T> {
    /// Room for `threads` threads, or `None` if there is no memory. Context: may allocate.
    pub fn new(threads: usize) -> Option<Self> {
        let mut storage = Self { fair: [Vec::new(), Vec::new()], rt: Vec::new() };
        for half in &mut storage.fair {
            half.try_reserve_exact(threads).ok()?;
        }
        storage.rt.try_reserve_exact(threads).ok()?;
        Some(storage)
    }

    fn capacity(&self) -> usize {
        self.fair[0].capacity().min(self.fair[1].capacity()).min(self.rt.capacity())
    }
}

/// One CPU's run queue.
#[derive(Debug)]
pub struct RunQueue<T> {
    cpu: CpuId,
    pub(crate) current: Current,
    pub(crate) fair: FairQueue<T>,
    pub(crate) rt: RtQueue<T>,
    rt_window: u64,
    rt_used: u64,
    /// What is added to the fair clock to make it comparable with other CPUs'.
    pub(crate) bias: i64,
}

impl<T: Task> RunQueue<T> {
    /// An empty queue without storage; [`Self::grow`] it before use.
    pub const fn new(cpu: CpuId) -> Self {
        Self {
            cpu,
            current: Current::NOBODY,
            fair: FairQueue::new(),
            rt: RtQueue::new(),
            rt_window: 0,
            rt_used: 0,
            bias: 0,
        }
    }

    /// The CPU that this is the queue of.
    #[inline]
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }

    /// How many threads wait.
    #[inline]
    pub fn queued(&self) -> usize {
        self.fair.len() + self.rt.len()
    }

    /// How many threads wait or run.
    #[inline]
    pub fn runnable(&self) -> usize {
        self.queued() + usize::from(self.current.class != Running::Nothing)
    }

    /// How many threads can wait without an allocation.
    pub fn capacity(&self) -> usize {
        self.fair.capacity().min(self.rt.capacity())
    }

    /// Swaps in larger storage and hands back what is no longer needed, to be dropped after the lock has been released.
    /// Storage that is not larger comes back unused.
    #[must_use = "to be dropped outside the lock"]
    pub fn grow(&mut self, storage: Storage<T>) -> Storage<T> {
        if storage.capacity() <= self.capacity() {
            return storage;
        }
        Storage { fair: self.fair.replace_storage(storage.fair), rt: self.rt.replace_storage(storage.rt) }
    }

    /// Charges the running thread for the time up to `now`; true if it is to give way: its
    /// request or quantum is used up, or somebody more urgent has come. The slice timer
    /// calls this and reschedules if so.
    #[inline]
    pub fn charge(&mut self, now: u64) -> bool {
        let current = &mut self.current;
        let ns = now.saturating_sub(current.charged_at);
        if ns == 0 {
            return current.expired || current.preempt;
        }
        current.charged_at = now;
        match current.class {
            Running::Nothing => return false,
            Running::Fair => current.expired |= current.fair.charge(ns),
            Running::Realtime => {
                if current.params.kind() == kind::RR {
                    current.rr_left = u64::from(current.rr_left).saturating_sub(ns) as u32;
                    current.expired |= current.rr_left == 0;
                }
                self.rt_used += ns;
            }
        }
        current.exec_ns += ns;
        current.since_pick += ns;
        if current.cut && current.since_pick >= WAKEUP_GRANULARITY_NS {
            current.cut = false;
            current.preempt = true;
        }
        let expired = current.expired || current.preempt;
        if self.current.class == Running::Realtime && self.rt_throttled(now) && !self.fair.is_empty() {
            return true;
        }
        expired
    }

    /// For how long the running thread may go on if nothing else happens, in ns; `None` if no timer is needed, as when
    /// it is alone.
    #[inline]
    pub fn time_slice_left(&self) -> Option<u64> {
        let current = &self.current;
        match current.class {
            Running::Nothing => None,
            Running::Fair => {
                let window = || (self.rt_window + RT_PERIOD_NS).saturating_sub(current.charged_at);
                let own = (!self.fair.is_empty()).then(|| current.fair.left_ns().max(0) as u64);
                let cut = current.cut.then(|| WAKEUP_GRANULARITY_NS.saturating_sub(current.since_pick));
                let rt = (!self.rt.is_empty()).then(window);
                own.into_iter().chain(cut).chain(rt).min().map(|ns| ns.max(MIN_TIMER_NS))
            }
            Running::Realtime => {
                let shared = current.params.kind() == kind::RR && self.rt.has(current.params.priority());
                let own = shared.then_some(u64::from(current.rr_left));
                let fair = (!self.fair.is_empty()).then(|| RT_RUNTIME_NS.saturating_sub(self.rt_used));
                own.into_iter().chain(fair).min().map(|ns| ns.max(MIN_TIMER_NS))
            }
        }
    }

    /// CPU time of the running thread that its entity does not show yet, in ns.
    #[inline]
    pub fn current_exec_ns(&self) -> u64 {
        self.current.exec_ns
    }

    /// Has the real-time class used up its part of the window? Starts a new window when the old one is over.
    #[inline]
    fn rt_throttled(&mut self, now: u64) -> bool {
        if now.saturating_sub(self.rt_window) >= RT_PERIOD_NS {
            self.rt_window = now;
            self.rt_used = 0;
        }
        self.rt_used >= RT_RUNTIME_NS
    }

    /// Is a real-time thread to run next rather than a fair one?
    #[inline]
    fn rt_is_next(&mut self, now: u64) -> bool {
        !self.rt.is_empty() && (self.fair.is_empty() || !self.rt_throttled(now))
    }

    #[inline]
    pub(crate) fn running_fair(&self) -> Option<&FairRun> {
        if self.current.class == Running::Fair { Some(&self.current.fair) } else { None }
    }

    /// Takes in a thread and says what this CPU has to do about it. Never fails.
    #[inline]
    pub fn enqueue(&mut self, task: T, arrival: Arrival, now: u64) -> Kick {
        self.charge(now);
        let entity = task.entity();
        entity.set_cpu(self.cpu);
        entity.set_state(RunState::Queued);
        let params = entity.params();
        if params.is_realtime() {
            self.rt.push_back(params.priority(), task);
            return self.kick_for_rt(params.priority());
        }
        let lag = match arrival {
            Arrival::New => 0,
            Arrival::Wakeup => lag_after_sleep(entity, now),
            Arrival::Migrated => entity.lag(),
        };
        let mut entry = self.entry_for(task, lag);
        if arrival == Arrival::New {
            entry.deadline = entry.vruntime.wrapping_add(entry.deadline.wrapping_sub(entry.vruntime) / 2);
        }
        self.push_fair(entry, params, lag >= 0)
    }

    /// An entry for a fair thread that joins with `lag`.
    #[inline]
    fn entry_for(&self, task: T, lag: i64) -> Entry<T> {
        let entity = task.entity();
        let (weight, inverse) = (entity.weight(), entity.inverse());
        let request = virtual_ns(u64::from(entity.slice_ns()), inverse);
        let running = if self.current.class == Running::Fair { Some(&self.current.fair) } else { None };
        let vruntime = self.fair.place(lag, weight, running);
        Entry { deadline: vruntime.wrapping_add(request), vruntime, weight, inverse, task }
    }

    #[inline]
    fn push_fair(&mut self, mut entry: Entry<T>, params: Params, owed: bool) -> Kick {
        let was_alone = self.queued() == 0;
        let current = &mut self.current;
        let kick = match current.class {
            Running::Nothing => Kick::Resched,
            Running::Realtime => Kick::SetTimer,
            Running::Fair => match current.claim(&mut entry, params, owed) {
                Claim::Now => {
                    current.preempt = true;
                    Kick::Resched
                }
                Claim::Soon if !current.cut => {
                    current.cut = true;
                    Kick::SetTimer
                }
                _ if was_alone => Kick::SetTimer,
                _ => Kick::Nothing,
            },
        };
        let running = if self.current.class == Running::Fair { Some(&self.current.fair) } else { None };
        self.fair.push(entry, running);
        kick
    }

    fn kick_for_rt(&mut self, priority: u8) -> Kick {
        let current = &mut self.current;
        match current.class {
            Running::Realtime if priority < current.params.priority() => Kick::Nothing,
            Running::Realtime if priority == current.params.priority() => Kick::SetTimer,
            _ => {
                current.preempt = true;
                Kick::Resched
            }
        }
    }

    /// Chooses a thread for a CPU that runs nothing; `None` leaves it idle.
    #[inline]
    pub fn next(&mut self, now: u64) -> Option<T> {
        let task = if self.rt_is_next(now) {
            let task = self.rt.pop()?;
            self.start(task.entity(), Running::Realtime, now);
            task
        } else {
            let entry = self.fair.pick(None)?;
            self.start_fair(entry, now)
        };
        Some(task)
    }

    /// The running thread `task` leaves: it sleeps, exits or is to move to another queue. Chooses the next; `None` leaves
    /// the CPU idle.
    #[inline]
    pub fn switch_away(&mut self, task: &T, now: u64) -> Option<T> {
        self.stop(task, now);
        self.next(now)
    }

    /// Ends the account of the running thread, which leaves this queue.
    #[inline]
    fn stop(&mut self, task: &T, now: u64) {
        self.charge(now);
        let entity = task.entity();
        if self.current.class == Running::Fair {
            let run = self.current.fair;
            if self.fair.is_empty() {
                entity.set_lag(0);
                self.fair.set_clock_if_empty(run.vruntime);
            } else {
                let lag = self.fair.clock(Some(&run)).wrapping_sub(run.vruntime);
                keep_lag(entity, lag, now);
            }
        }
        self.save_current(entity, RunState::Off);
        self.current.class = Running::Nothing;
    }

    /// The running thread gives way but stays runnable. Hands back the thread to run, which may be `task` itself.
    #[inline]
    pub fn switch_runnable(&mut self, task: T, why: GiveWay, now: u64) -> T {
        self.charge(now);
        let rt_is_next = self.rt_is_next(now);
        let next = match self.current.class {
            Running::Nothing => return task,
            Running::Fair if rt_is_next => self.switch_to_rt(),
            Running::Fair => self.switch_fair(why),
            Running::Realtime => return self.switch_from_rt(task, why, rt_is_next, now),
        };
        match next {
            None => {
                self.current.preempt = false;
                self.current.cut = false;
                self.current.expired = false;
                self.current.since_pick = 0;
                task
            }
            Some(next) => {
                self.requeue_fair(task);
                self.start_chosen(next, now)
            }
        }
    }

    fn switch_to_rt(&mut self) -> Option<Chosen<T>> {
        self.rt.pop().map(Chosen::Realtime)
    }

    /// The fair thread to run instead of the running fair one, if any.
    #[inline]
    fn switch_fair(&mut self, why: GiveWay) -> Option<Chosen<T>> {
        let Self { current, fair, .. } = self;
        if fair.is_empty() {
            return None;
        }
        let entry = match why {
            GiveWay::Yielded => {
                let picked = fair.pick_other(&current.fair);
                current.fair.renew();
                picked
            }
            // A request is served to its end unless somebody more urgent came.
            GiveWay::Preempted if !current.expired && !current.preempt => None,
            GiveWay::Preempted => fair.pick(Some(&current.fair)),
        };
        entry.map(Chosen::Fair)
    }

    #[inline]
    fn requeue_fair(&mut self, task: T) {
        let run = self.current.fair;
        self.save_current(task.entity(), RunState::Queued);
        self.current.class = Running::Nothing;
        let entry =
            Entry { deadline: run.deadline, vruntime: run.vruntime, weight: run.weight, inverse: run.inverse, task };
        self.fair.push(entry, None);
    }

    fn switch_from_rt(&mut self, task: T, why: GiveWay, rt_is_next: bool, now: u64) -> T {
        let priority = self.current.params.priority();
        let throttled = !self.fair.is_empty() && self.rt_throttled(now);
        let peers = rt_is_next && self.rt.has(priority);
        let higher = rt_is_next && self.rt.highest() > priority;
        let expired = self.current.expired;
        if expired {
            self.current.rr_left = RR_QUANTUM_NS;
            self.current.expired = false;
        }
        let to_tail = expired || why == GiveWay::Yielded;
        self.current.preempt = false;
        if !(throttled || higher || peers && to_tail) {
            return task;
        }
        let next = if throttled { self.fair.pick(None).map(Chosen::Fair) } else { self.switch_to_rt() };
        let Some(next) = next else { return task };
        self.save_current(task.entity(), RunState::Queued);
        if to_tail {
            self.rt.push_back(priority, task);
        } else {
            self.rt.push_front(priority, task);
        }
        self.start_chosen(next, now)
    }

    #[inline]
    fn start_chosen(&mut self, chosen: Chosen<T>, now: u64) -> T {
        match chosen {
            Chosen::Fair(entry) => self.start_fair(entry, now),
            Chosen::Realtime(task) => {
                self.start(task.entity(), Running::Realtime, now);
                task
            }
        }
    }

    #[inline]
    fn save_current(&mut self, entity: &Entity, state: RunState) {
        entity.add_exec(self.current.exec_ns);
        if self.current.class == Running::Realtime {
            entity.set_rr_left(self.current.rr_left);
        }
        entity.set_state(state);
        self.current.exec_ns = 0;
    }

    #[inline]
    fn start_fair(&mut self, entry: Entry<T>, now: u64) -> T {
        let entity = entry.task.entity();
        self.current.fair = FairRun {
            vruntime: entry.vruntime,
            deadline: entry.deadline,
            weight: entry.weight,
            inverse: entry.inverse,
            slice_ns: entity.slice_ns(),
        };
        self.start(entity, Running::Fair, now);
        entry.task
    }

    #[inline]
    fn start(&mut self, entity: &Entity, class: Running, now: u64) {
        entity.set_state(RunState::Running);
        let current = &mut self.current;
        current.class = class;
        current.params = entity.params();
        current.charged_at = now;
        current.exec_ns = 0;
        current.since_pick = 0;
        current.expired = false;
        current.preempt = false;
        current.cut = false;
        if class == Running::Realtime {
            current.rr_left = entity.rr_left();
        }
    }

    /// Takes a queued thread out, for a change of affinity or the end of its life; `None` if it is not queued here.
    pub fn detach(&mut self, task: &T, now: u64) -> Option<T> {
        let entity = task.entity();
        if entity.state() != RunState::Queued || entity.cpu() != self.cpu {
            return None;
        }
        self.charge(now);
        let is_it = |other: &T| core::ptr::eq(other.entity(), entity);
        let params = entity.params();
        if params.is_realtime() {
            let found = self.rt.take_at(params.priority(), is_it)?;
            entity.set_state(RunState::Off);
            return Some(found);
        }
        let clock = self.fair.clock(self.running_fair());
        let entry = self.fair.take_first(|entry| is_it(&entry.task))?;
        Some(left_fair(entry, clock, now))
    }

    /// Changes policy and QoS class of a thread that belongs to this queue, wherever it is, by the rules of `sched(7)`:
    /// a real-time thread whose priority falls goes to the head of its new list, one whose priority rises to the tail,
    /// one whose priority stays keeps its place.
    pub fn set_params(&mut self, task: &T, policy: Policy, qos: QosClass, now: u64) -> Kick {
        let entity = task.entity();
        let (old, new) = (entity.params(), Params::new(policy, qos));
        if entity.state() == RunState::Running && entity.cpu() == self.cpu {
            return self.set_running_params(entity, policy, qos, now);
        }
        if old.is_realtime() && new.is_realtime() && old.priority() == new.priority() {
            entity.set_params(policy, qos);
            return Kick::Nothing;
        }
        let old_weight = entity.weight();
        let Some(task) = self.detach(task, now) else {
            entity.set_params(policy, qos);
            return Kick::Nothing;
        };
        let entity = task.entity();
        entity.set_params(policy, qos);
        entity.set_state(RunState::Queued);
        if new.is_realtime() {
            if old.is_realtime() && new.priority() < old.priority() {
                self.rt.push_front(new.priority(), task);
            } else {
                entity.set_rr_left(RR_QUANTUM_NS);
                self.rt.push_back(new.priority(), task);
            }
            return self.kick_for_rt(new.priority());
        }
        let lag = if old.is_realtime() { 0 } else { scale_lag(entity.lag(), old_weight, entity.weight()) };
        let entry = self.entry_for(task, lag);
        self.push_fair(entry, new, lag >= 0)
    }

    fn set_running_params(&mut self, entity: &Entity, policy: Policy, qos: QosClass, now: u64) -> Kick {
        self.charge(now);
        let was = self.current.class;
        let old = self.current.fair;
        let clock = self.fair.clock(self.running_fair());
        entity.set_params(policy, qos);
        self.current.params = entity.params();
        self.current.preempt = true;
        if policy.is_realtime() {
            if was != Running::Realtime {
                self.fair.set_clock_if_empty(old.vruntime);
                self.current.rr_left = RR_QUANTUM_NS;
                self.current.expired = false;
            }
            self.current.class = Running::Realtime;
            return Kick::Resched;
        }
        let (weight, inverse) = (entity.weight(), entity.inverse());
        let lag =
            if was == Running::Fair { scale_lag(clock.wrapping_sub(old.vruntime), old.weight, weight) } else { 0 };
        let vruntime = clock.wrapping_sub(lag);
        self.current.fair = FairRun { vruntime, deadline: vruntime, weight, inverse, slice_ns: entity.slice_ns() };
        self.current.fair.renew();
        self.current.class = Running::Fair;
        Kick::Resched
    }

    /// Calls `f` with every waiting thread, in no particular order: for tests and reports.
    pub fn for_each_queued(&self, mut f: impl FnMut(&T)) {
        self.rt.for_each(&mut f);
        self.fair.for_each(|entry| f(&entry.task));
    }
}

enum Chosen<T> {
    Fair(Entry<T>),
    Realtime(T),
}
