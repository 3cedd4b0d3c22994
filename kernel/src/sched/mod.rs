//! The scheduler: who runs where, and sleeping and waking.
//!
//! # Ideas
//! Each CPU has a run queue (`sched_policy::RunQueue`, which holds the policy) under an interrupt-safe lock, an idle
//! thread, and a one-shot timer. A thread is in exactly one of these places: running on a CPU, queued on one CPU, parked,
//! or in the hands of whoever moves it between two of them. Parking and unparking go through one atomic word per thread
//! ([`state::SchedState`]), so that a wake-up that comes between a sleeper's last check and its sleep is kept as a token
//! and never lost.
//!
//! # Ownership and locking
//! - A queue's content and the entity of a queued or running thread belong to that CPU's queue lock.
//! - The lock is held across the switch: the thread that runs next releases it ([`finish_switch`]), which is what makes a
//!   thread's saved registers complete before any other CPU can pick it.
//! - At most one queue lock is held at a time, but for balancing, which only tries the second; stealing locks the
//!   victim's, takes one thread, unlocks, and only then locks the thief's.
//! - The scheduler owns one reference to each thread from [`spawn`] until the thread has exited and left its stack.
//!
//! # Affinity
//! Whoever queues a thread looks at its mask again afterwards, and whoever changes the mask looks where the thread is
//! afterwards; so at least one of two that race sees the other, and moves it. A running thread that may not stay is asked
//! to switch, and is queued elsewhere by the thread that runs after it.
//!
//! # Preemption
//! The running thread's `NEED_RESCHED` flag asks for a switch. It is looked at on the way back to user mode, when
//! `preempt_enable` reaches zero, and at the end of an interrupt taken in preemptible kernel code.
//!
//! # What fails
//! Only admission ([`admission::admit`], [`spawn`]): nothing allocates or fails after it, except that a sleep with a deadline may
//! return early when there is no memory for its timer's first entry.

pub mod account;
pub mod admission;
pub mod idle;
mod lazy_mm;
pub mod policy;
mod resched;
mod sabotage;
mod selftest;
pub mod state;
pub mod timer;

use crate::arch::context::{self, NEED_RESCHED, SIGNAL_PENDING, ThreadContext};
use crate::arch::percpu::{self, Counter, MAX_CPUS};
use crate::task::Thread;
pub use account::{cpu_times, load_average, runtime_ns};
use alloc::sync::Arc;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering, fence};
pub use lazy_mm::{lingers_elsewhere, reload_mm, retire_mm};
use platform::{ParkOptions, Wake};
pub use resched::{ask_identity, resched};
use sched_policy::{
    Arrival, AtomicCpuMask, CpuId, CpuMask, GiveWay, Kick, RunQueue, WakeRequest, coalesced_expiry_ns, select_cpu,
    select_cpu_new, timer_window_ns,
};
pub use selftest::run as selftest;
use state::Handle;
pub use state::SchedState;
use state::{PARKED, RUNNABLE, TOKEN};
use sync::{IrqLock, LockClass};

static RQ_CLASS: LockClass = LockClass::new("run queue", sync::rank::RUNQUEUE);

/// One CPU's scheduling state.
struct Cpu {
    queue: IrqLock<RunQueue<Handle>>,
    /// The thread that was switched away from, until `finish_switch`. The CPU's own.
    previous: Cell<*const Thread>,
    /// What is to happen to it then. The CPU's own.
    previous_fate: Cell<Fate>,
    loaded: lazy_mm::Loaded,
    /// Threads queued or running, for placement (a hint).
    load: AtomicU32,
    account: account::CpuAccount,
}

/// What becomes of a thread that was switched away from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is queued here, or parked.
    Stays,
    /// It may not run here: queue it elsewhere.
    Moves,
    /// It has exited.
    Ends,
}

/// Why the running thread leaves its CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// It sleeps, unless a token says otherwise.
    Parks,
    /// It has exited.
    Exits,
    /// Somebody else may want the CPU.
    Preempted,
    /// It gives the CPU up.
    Yields,
}

// SAFETY: the cells are touched by their own CPU with interrupts masked.
unsafe impl Sync for Cpu {}

static CPUS: [Cpu; MAX_CPUS] = [const {
    Cpu {
        // `init_boot_cpu` gives each queue its own number.
        queue: IrqLock::new(&RQ_CLASS, RunQueue::new(CpuId::BOOT)),
        previous: Cell::new(core::ptr::null()),
        previous_fate: Cell::new(Fate::Stays),
        loaded: lazy_mm::Loaded::new(),
        load: AtomicU32::new(0),
        account: account::CpuAccount::new(),
    }
}; MAX_CPUS];

/// CPUs that schedule.
static ONLINE: AtomicCpuMask = AtomicCpuMask::new(CpuMask::EMPTY);
/// CPUs that sleep in their idle thread.
static IDLE_CPUS: AtomicCpuMask = AtomicCpuMask::new(CpuMask::EMPTY);

/// CPU `n` as the policy names it; `n` is below [`MAX_CPUS`], which is below the policy's bound.
#[inline]
fn cpu_id(n: usize) -> CpuId {
    CpuId::new(n).unwrap_or(CpuId::BOOT)
}

/// The running thread. It lives at least as long as it runs, so the reference is good for whatever the thread does; it
/// must not be handed to others (clone an [`Arc`] with [`current_arc`]).
#[inline(always)]
pub fn current() -> &'static Thread {
    // SAFETY: ThreadContext is the first field of every Thread (repr(C)), and TPIDR_EL1 holds the running one.
    unsafe { &*core::ptr::from_ref::<ThreadContext>(context::current()).cast::<Thread>() }
}

/// A counted reference to the running thread.
pub fn current_arc() -> Arc<Thread> {
    arc_of(current())
}

fn arc_of(t: &Thread) -> Arc<Thread> {
    // SAFETY: every Thread lives in an Arc, of which the scheduler owns one reference until the thread has exited.
    unsafe {
        Arc::increment_strong_count(t);
        Arc::from_raw(t)
    }
}

/// Lets `thread`, which never ran, run. `EAGAIN`, and the thread never runs, if it has no place in the run queues yet
/// ([`admission::admit`]) and there is none. Context: may allocate if there is no place yet.
pub fn spawn(thread: Arc<Thread>) -> abi::Result<()> {
    if thread.sched.reservation().is_none() {
        let place = admission::admit_class(thread.sched.entity.qos())?;
        // SAFETY: the thread is new: its maker, who calls this, is the only one that knows it as a thread.
        unsafe { thread.sched.reserve(place) };
    }
    let t: &'static Thread = {
        // SAFETY: the reference is leaked to the scheduler, which gives it back in `finish_switch` after exit.
        unsafe { &*Arc::into_raw(thread) }
    };
    t.sched.state.store(RUNNABLE, Ordering::Relaxed);
    let irq = crate::arch::irq_save();
    let here = percpu::id();
    let target = place_new(t, here);
    place(t, target, Arrival::New);
    crate::arch::irq_restore(irq);
    Ok(())
}

fn load(cpu: CpuId) -> usize {
    CPUS[cpu.index()].load.load(Ordering::Relaxed) as usize
}

fn place_new(t: &Thread, here: usize) -> usize {
    if sabotage::one_queue() {
        return 0;
    }
    let allowed = t.sched.entity.affinity().and(&ONLINE.load());
    select_cpu_new(cpu_id(here), &allowed, &IDLE_CPUS.load(), load).index()
}

#[inline]
fn place_woken(t: &Thread, here: usize, sync: bool) -> usize {
    if sabotage::one_queue() {
        return 0;
    }
    let e = &t.sched.entity;
    // An interrupt of an idle CPU, such as the end of a transfer: the CPU is awake, and another would have to be woken.
    let me = cpu_id(here);
    if core::ptr::eq(current(), idle::thread(here)) && load(me) == 0 && e.allows(me) {
        return here;
    }
    let request = WakeRequest { prev: e.cpu(), waker: cpu_id(here), sync, allowed: e.affinity().and(&ONLINE.load()) };
    select_cpu(&request, &IDLE_CPUS.load(), load).index()
}

/// Queues `t`, which is in no queue, on `target` (or elsewhere if it may not run there) and asks that CPU to look if it
/// should. Interrupts masked; no queue lock held.
#[inline]
fn place(t: &'static Thread, target: usize, arrival: Arrival) {
    let (mut target, mut arrival) = (target, arrival);
    let e = &t.sched.entity;
    loop {
        let cpu = &CPUS[target];
        let moved = e.cpu().index() != target;
        let mut q = cpu.queue.lock();
        let now = crate::arch::time::about_now_ns();
        let kick = q.enqueue(Handle(t), arrival, now);
        if moved {
            percpu::count(Counter::Migrations);
            // Between naming the new CPU and looking at the mask; pairs with the one in `policy::set_affinity`.
            fence(Ordering::SeqCst);
        }
        if !e.allows(cpu_id(target)) && q.detach(&Handle(t), now).is_some() {
            drop(q);
            target = place_new(t, percpu::id());
            arrival = Arrival::Migrated;
            if e.allows(cpu_id(target)) {
                continue;
            }
            // No CPU of its mask is online, which `set_affinity` excludes; it runs somewhere rather than nowhere.
            target = 0;
            let mut q = CPUS[0].queue.lock();
            let kick = q.enqueue(Handle(t), arrival, now);
            drop(q);
            act(target, kick, now);
            return;
        }
        cpu.load.store(q.runnable() as u32, Ordering::Relaxed);
        let kick = if kick == Kick::SetTimer && target == percpu::id() {
            timer::slice_changed_here(target, &q, now);
            Kick::Nothing
        } else {
            kick
        };
        drop(q);
        IDLE_CPUS.remove(cpu_id(target));
        act(target, kick, now);
        return;
    }
}

/// Does on `target` what its queue asked for. Interrupts masked.
#[inline]
fn act(target: usize, kick: Kick, now: u64) {
    match kick {
        Kick::Nothing => {}
        Kick::SetTimer => timer::slice_changed(target, now),
        Kick::Resched => {
            resched(target);
        }
    }
}

/// The reschedule interrupt. Interrupts masked.
pub fn resched_interrupt() {
    let cpu = percpu::id();
    lazy_mm::serve(cpu);
    resched::interrupt(cpu);
}

/// The timer interrupt. Interrupts masked.
pub fn timer_interrupt() {
    // An interrupt of kernel code has raised the count.
    timer::expire(context::current().preempt.get() == 0);
}

/// Sleeps until [`unpark`], a deadline or a signal, as `options` say; may return for no reason.
pub fn park(options: ParkOptions) -> Wake {
    let me = current();
    if me.sched.take_token() {
        return Wake::Unparked;
    }
    let flags = &me.arch.flags;
    if options.interruptible && flags.load(Ordering::Acquire) & SIGNAL_PENDING != 0 {
        return Wake::Interrupted;
    }
    debug_assert!(platform::may_sleep(), "sleeping in atomic context");
    let timed = match options.deadline_ns {
        None | Some(u64::MAX) => false,
        Some(at) => {
            let now = crate::arch::time::now_ns();
            if at <= now {
                return Wake::TimedOut;
            }
            let slack = me.sched.slack_ns.load(Ordering::Relaxed);
            let window = timer_window_ns(&me.sched.entity, (slack != u64::MAX).then_some(slack), at - now);
            if !timer::arm_wake(at, coalesced_expiry_ns(at, window), me) {
                yield_now();
                return Wake::Unparked;
            }
            true
        }
    };
    let irq = crate::arch::irq_save();
    schedule(Leave::Parks);
    crate::arch::irq_restore(irq);
    let timed_out = timed && !timer::cancel_wake(me);
    me.sched.take_token();
    if options.interruptible && flags.load(Ordering::Acquire) & SIGNAL_PENDING != 0 {
        return Wake::Interrupted;
    }
    if timed_out { Wake::TimedOut } else { Wake::Unparked }
}

/// Wakes `t` if it is parked, else leaves it a token. `sync`: the caller is about to sleep. Any context.
pub fn unpark(t: &Thread, sync: bool) {
    if sabotage::loses_wakeup() {
        return;
    }
    let state = &t.sched.state;
    let mut seen = state.load(Ordering::Relaxed);
    loop {
        let new = match seen {
            RUNNABLE => TOKEN,
            PARKED => RUNNABLE,
            _ => return,
        };
        match state.compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) if seen == PARKED => break,
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
    // SAFETY: the scheduler holds a reference to every thread that has not exited, and a parked one has not.
    let t: &'static Thread = unsafe { &*core::ptr::from_ref(t) };
    let irq = crate::arch::irq_save();
    let here = percpu::id();
    // It may still be on its way off its CPU; its registers are complete when `on_cpu` is clear. That CPU needs nothing
    // from us to get there, unless it is this one - and then it is not running this code.
    while t.sched.on_cpu.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let target = place_woken(t, here, sync);
    place(t, target, Arrival::Wakeup);
    crate::arch::irq_restore(irq);
}

/// Gives the CPU to whoever else wants it.
pub fn yield_now() {
    let irq = crate::arch::irq_save();
    schedule(Leave::Yields);
    crate::arch::irq_restore(irq);
}

/// [`yield_now`] for `sched_yield(2)`, which most often finds nobody to yield to: then it only looks. Interrupts masked.
#[inline]
pub fn yield_if_wanted() {
    // Who comes to the queue from now on comes after the call.
    let others = CPUS[percpu::id()].load.load(Ordering::Relaxed) > 1;
    if others || context::current().flags.load(Ordering::Relaxed) & NEED_RESCHED != 0 {
        yield_now();
    }
}

/// A switch asked for by NEED_RESCHED, on the way back to user mode.
pub fn preempt_user() {
    let irq = crate::arch::irq_save();
    schedule(Leave::Preempted);
    crate::arch::irq_restore(irq);
}

/// A switch asked for by NEED_RESCHED, at the end of an interrupt in preemptible kernel code. Interrupts masked.
pub fn preempt_kernel() {
    schedule(Leave::Preempted);
}

/// The running thread's end: it never runs again. Its reference goes once its stack is left. Dropping a [`Thread`] must
/// not sleep.
pub fn exit_current() -> ! {
    crate::arch::irq_save();
    schedule(Leave::Exits);
    unreachable!("a dead thread ran")
}

/// Picks the next thread and switches to it. Interrupts masked.
fn schedule(why: Leave) {
    let me = current();
    let ctx = &me.arch;
    let mut why = why;
    let asked = ctx.flags.load(Ordering::Relaxed) & NEED_RESCHED != 0;
    if asked {
        ctx.flags.fetch_and(!NEED_RESCHED, Ordering::Relaxed);
    }
    let this = percpu::id();
    let cpu = &CPUS[this];
    let idle = idle::thread(this);
    resched::acknowledge(this);
    let mut q = cpu.queue.lock();
    let mut fate = Fate::Stays;
    match why {
        Leave::Parks => {
            let state = &me.sched.state;
            if state.compare_exchange(RUNNABLE, PARKED, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                // A token came: do not sleep.
                state.store(RUNNABLE, Ordering::Relaxed);
                if !asked {
                    return;
                }
                why = Leave::Preempted;
            }
        }
        Leave::Exits => fate = Fate::Ends,
        Leave::Preempted | Leave::Yields => {
            if !me.sched.entity.allows(cpu_id(this)) && !core::ptr::eq(me, idle) {
                fate = Fate::Moves;
            }
        }
    }
    let now = crate::arch::time::about_now_ns();
    let next = choose(&mut q, me, idle, why, fate, now);
    cpu.load.store(q.runnable() as u32, Ordering::Relaxed);
    timer::slice_starts(this, &q, core::ptr::eq(next, idle), now);
    if core::ptr::eq(next, me) {
        return;
    }
    me.sched.runtime_ns.store(me.sched.entity.exec_ns(), Ordering::Relaxed);
    next.sched.on_cpu.store(true, Ordering::Relaxed);
    cpu.previous.set(me);
    cpu.previous_fate.set(fate);
    // The lock stays held over the switch: `finish_switch` releases it.
    core::mem::forget(q);
    lazy_mm::switch_to(next.sched.mm.load(Ordering::Relaxed));
    #[cfg(debug_assertions)]
    let preempt = ctx.preempt.get();
    // SAFETY: interrupts are masked, `me` runs, `next` is runnable and nowhere else since we hold the queue that had it.
    unsafe { context::switch(&me.arch, &next.arch) };
    #[cfg(debug_assertions)]
    debug_assert_eq!(preempt, current().arch.preempt.get());
    finish_switch_inner();
}

#[inline]
fn choose(
    q: &mut RunQueue<Handle>,
    me: &'static Thread,
    idle: &'static Thread,
    why: Leave,
    fate: Fate,
    now: u64,
) -> &'static Thread {
    let next = if core::ptr::eq(me, idle) {
        q.next(now)
    } else if fate != Fate::Stays || why == Leave::Parks {
        q.switch_away(&Handle(me), now)
    } else {
        let way = if why == Leave::Yields { GiveWay::Yielded } else { GiveWay::Preempted };
        Some(q.switch_runnable(Handle(me), way, now))
    };
    next.map_or(idle, |h| h.0)
}

/// The first thing that a new thread does; called by the vectors. A new thread starts as if inside the scheduler, with
/// preemption disabled once.
pub fn finish_switch() {
    finish_switch_inner();
    context::current().preempt.set(0);
}

#[inline]
fn finish_switch_inner() {
    let cpu = &CPUS[percpu::id()];
    let previous = cpu.previous.replace(core::ptr::null());
    let fate = cpu.previous_fate.replace(Fate::Stays);
    if !previous.is_null() {
        // SAFETY: the scheduler's reference keeps it alive; from here on others may run it.
        unsafe { (*previous).sched.on_cpu.store(false, Ordering::Release) };
    }
    // SAFETY: `schedule` locked it on this CPU and forgot the guard; interrupts are masked.
    unsafe { cpu.queue.force_unlock() };
    if fate != Fate::Stays {
        end_or_move(previous, fate);
    }
}

#[cold]
fn end_or_move(previous: *const Thread, fate: Fate) {
    if previous.is_null() {
        return;
    }
    // SAFETY: it is in no queue and runs nowhere, so it is this function's alone.
    let t = unsafe { &*previous };
    if fate == Fate::Moves {
        let target = place_new(t, percpu::id());
        place(t, target, Arrival::Migrated);
        return;
    }
    t.sched.state.store(state::DEAD, Ordering::Release);
    // SAFETY: the reference that `spawn` leaked; nobody else gives it back.
    drop(unsafe { Arc::from_raw(previous) });
}

/// Nanoseconds that CPU `cpu` was idle since boot.
pub fn idle_ns(cpu: usize) -> u64 {
    account::cpu_times(cpu).idle_ns
}

/// How many threads are runnable or running now, over all CPUs (for the load average).
pub fn runnable() -> usize {
    CPUS[..percpu::listed()].iter().map(|c| c.load.load(Ordering::Relaxed) as usize).sum()
}

/// What the boot CPU runs as until it has a thread.
pub static BOOT_CONTEXT: ThreadContext = ThreadContext::boot();

/// Turns the boot CPU's thread of control into a real thread: it goes on as `thread`'s life, on the boot stack, and
/// becomes CPU 0's idle thread. Sets up every CPU's queue.
pub fn init_boot_cpu() {
    for (i, cpu) in CPUS.iter().enumerate().take(percpu::listed()) {
        *cpu.queue.lock() = RunQueue::new(cpu_id(i));
    }
    if !admission::provide() {
        crate::start::stop("no memory for the run queues");
    }
    ONLINE.insert(CpuId::BOOT);
    sabotage::init();
    let idle = crate::task::kernel_thread_for_boot(0);
    idle::set_thread(0, idle);
    let t = idle::thread(0);
    t.sched.on_cpu.store(true, Ordering::Relaxed);
    t.arch.preempt.set(context::current().preempt.get());
    // SAFETY: the idle thread lives for ever; the boot context is left for good.
    unsafe { context::adopt(&t.arch, 0) };
}

/// Makes CPU `cpu`'s idle thread; returns the top of its stack.
pub fn prepare_secondary(cpu: usize) -> usize {
    let idle = crate::task::kernel_thread_for_boot(cpu);
    let top = idle.stack_top();
    idle.sched.on_cpu.store(true, Ordering::Relaxed);
    idle::set_thread(cpu, idle);
    top
}

/// The secondary `cpu` becomes its idle thread.
pub fn adopt_secondary(cpu: usize) {
    // SAFETY: first thing on this CPU; idle threads live for ever.
    unsafe { context::adopt(&idle::thread(cpu).arch, cpu) };
}
