//! The scheduler: who runs where, and sleeping and waking.
//!
//! # Ideas
//! Each CPU has a run queue ([`queue::RunQueue`]) under an interrupt-safe lock, an idle thread, and a one-shot timer. A
//! thread is in exactly one of these places: running on a CPU, queued on one CPU, or parked. Parking and unparking go
//! through one atomic word per thread ([`state::SchedState`]), so that a wake-up that comes between a sleeper's last check
//! and its sleep is kept as a token and never lost.
//!
//! # Ownership and locking
//! - A queue's content and the entity of a queued or running thread belong to that CPU's queue lock.
//! - The lock is held across the switch: the thread that runs next releases it ([`finish_switch`]), which is what makes a
//!   thread's saved registers complete before any other CPU can pick it.
//! - At most one queue lock is held at a time; stealing locks the victim's, takes one thread, unlocks, and only then
//!   locks the thief's.
//! - The scheduler owns one reference to each thread from [`spawn`] until the thread has exited and left its stack.
//!
//! # Preemption
//! The running thread's `NEED_RESCHED` flag asks for a switch. It is looked at on the way back to user mode, when
//! `preempt_enable` reaches zero, and at the end of an interrupt taken in preemptible kernel code.
//!
//! # Address spaces
//! A CPU keeps the last user address space loaded while kernel threads and idle run ("lazy"), since changing it costs TLB
//! refills. Who destroys an address space first calls [`retire_mm`], which makes every CPU let go of it.
//!
//! # What fails
//! Nothing in here allocates or fails after [`spawn`]; admission (the bound on threads) is checked there.

pub mod cpu_select;
pub mod idle;
pub mod queue;
pub mod state;
pub mod timer;

use crate::arch::context::{self, NEED_RESCHED, SIGNAL_PENDING, ThreadContext};
use crate::arch::gic::{self, Sgi};
use crate::arch::percpu::{self, Counter, MAX_CPUS};
use crate::mm::AddressSpace;
use crate::task::Thread;
use alloc::sync::Arc;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use platform::{ParkOptions, Wake};
use queue::RunQueue;
pub use state::SchedState;
use state::{PARKED, RUNNABLE, TOKEN};
use sync::{IrqLock, LockClass};

static RQ_CLASS: LockClass = LockClass::new("run queue", sync::rank::RUNQUEUE);

/// One CPU's scheduling state.
struct Cpu {
    queue: IrqLock<RunQueue>,
    /// The thread that was switched away from, until `finish_switch`. The CPU's own.
    previous: Cell<*const Thread>,
    /// The address space that is loaded.
    active_mm: AtomicPtr<AddressSpace>,
    /// Asked to let go of it.
    leave_mm: AtomicBool,
    /// Reschedule interrupts taken and not yet acknowledged by a look at the queue.
    unacknowledged: AtomicU32,
    /// Whether the idle thread runs and nothing is queued.
    idle: AtomicBool,
    /// Threads queued or running, for placement (a hint).
    load: AtomicU32,
    /// Nanoseconds spent idle.
    idle_ns: AtomicU64,
}

// SAFETY: `previous` is touched by its own CPU with interrupts masked.
unsafe impl Sync for Cpu {}

static CPUS: [Cpu; MAX_CPUS] = [const {
    Cpu {
        queue: IrqLock::new(&RQ_CLASS, RunQueue::new()),
        previous: Cell::new(core::ptr::null()),
        active_mm: AtomicPtr::new(core::ptr::null_mut()),
        leave_mm: AtomicBool::new(false),
        unacknowledged: AtomicU32::new(0),
        idle: AtomicBool::new(false),
        load: AtomicU32::new(0),
        idle_ns: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// The running thread. It lives at least as long as it runs, so the reference is good for whatever the thread does; it
/// must not be handed to others (clone an [`Arc`] with [`current_arc`]).
#[inline(always)]
pub fn current() -> &'static Thread {
    // SAFETY: ThreadContext is the first field of every Thread (repr(C)), and SP_EL0 holds the running one.
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

/// Lets `thread`, which never ran, run.
pub fn spawn(thread: Arc<Thread>) {
    let t: &'static Thread = {
        // SAFETY: the reference is leaked to the scheduler, which gives it back in `finish_switch` after exit.
        unsafe { &*Arc::into_raw(thread) }
    };
    t.sched.state.store(RUNNABLE, Ordering::Relaxed);
    let irq = crate::arch::irq_save();
    let here = percpu::id();
    let target = cpu_select::for_fork(t, here);
    place(t, target, queue::Why::New);
    crate::arch::irq_restore(irq);
}

/// Queues `t` on `target` and asks that CPU to look if it should. Interrupts masked.
fn place(t: &'static Thread, target: usize, why: queue::Why) {
    let cpu = &CPUS[target];
    if t.sched.cpu.swap(target as u32, Ordering::Relaxed) != target as u32 {
        percpu::count(Counter::Migrations);
    }
    let preempt = {
        let mut q = cpu.queue.lock();
        let preempt = q.enqueue(t, why, crate::arch::time::now_ns());
        cpu.load.store(q.len() as u32, Ordering::Relaxed);
        preempt
    };
    let was_idle = cpu.idle.swap(false, Ordering::AcqRel);
    if preempt || was_idle {
        resched(target);
    } else {
        timer::slice_may_start(target);
    }
}

/// Makes CPU `target` look at its queue soon. Counted at every step.
pub fn resched(target: usize) {
    if target == percpu::id() {
        context::current().flags.fetch_or(NEED_RESCHED, Ordering::Relaxed);
        return;
    }
    percpu::count_on(target, Counter::ReschedRequest);
    if gic::send(target, Sgi::Reschedule) {
        percpu::count_on(target, Counter::ReschedSent);
    }
}

/// The reschedule interrupt. Interrupts masked.
pub fn resched_interrupt() {
    let cpu = &CPUS[percpu::id()];
    // The request may be older than what the CPU runs by now: a space whose thread runs here stays.
    if cpu.leave_mm.swap(false, Ordering::AcqRel)
        && current().sched.mm.load(Ordering::Relaxed) != cpu.active_mm.load(Ordering::Relaxed)
    {
        leave_mm();
    }
    cpu.unacknowledged.fetch_add(1, Ordering::Relaxed);
    context::current().flags.fetch_or(NEED_RESCHED, Ordering::Relaxed);
}

/// The timer interrupt. Interrupts masked.
pub fn timer_interrupt() {
    timer::expire();
}

/// Sleeps until [`unpark`], a deadline or a signal, as `options` say; may return for no reason.
pub fn park(options: ParkOptions) -> Wake {
    let me = current();
    if me.sched.take_token() {
        return Wake::Unparked;
    }
    let flags = me.arch.flags.load(Ordering::Acquire);
    if options.interruptible && flags & SIGNAL_PENDING != 0 {
        return Wake::Interrupted;
    }
    debug_assert!(platform::may_sleep(), "sleeping in atomic context");
    let timer = match options.deadline_ns {
        None => None,
        Some(at) if at <= crate::arch::time::now_ns() => return Wake::TimedOut,
        Some(u64::MAX) => None,
        Some(at) => Some(timer::arm_wake(at, me)),
    };
    let irq = crate::arch::irq_save();
    schedule(true);
    crate::arch::irq_restore(irq);
    let timed_out = timer.is_some_and(|t| !timer::cancel(t));
    me.sched.take_token();
    if options.interruptible && me.arch.flags.load(Ordering::Acquire) & SIGNAL_PENDING != 0 {
        return Wake::Interrupted;
    }
    if timed_out { Wake::TimedOut } else { Wake::Unparked }
}

/// Wakes `t` if it is parked, else leaves it a token. `sync`: the caller is about to sleep. Any context.
pub fn unpark(t: &Thread, sync: bool) {
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
    let last = t.sched.cpu.load(Ordering::Relaxed) as usize;
    while t.sched.on_cpu.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let target = cpu_select::for_wake(t, last, here, sync);
    place(t, target, queue::Why::Woken);
    crate::arch::irq_restore(irq);
}

/// Gives the CPU to whoever else wants it.
pub fn yield_now() {
    let irq = crate::arch::irq_save();
    {
        let mut q = CPUS[percpu::id()].queue.lock();
        q.yielded();
    }
    schedule(false);
    crate::arch::irq_restore(irq);
}

/// A switch asked for by NEED_RESCHED, on the way back to user mode.
pub fn preempt_user() {
    let irq = crate::arch::irq_save();
    schedule(false);
    crate::arch::irq_restore(irq);
}

/// A switch asked for by NEED_RESCHED, at the end of an interrupt in preemptible kernel code. Interrupts masked.
pub fn preempt_kernel() {
    schedule(false);
}

/// The running thread's end: it never runs again. Its reference goes once its stack is left. Dropping a [`Thread`] must
/// not sleep.
pub fn exit_current() -> ! {
    crate::arch::irq_save();
    let me = current();
    me.sched.state.store(state::DEAD, Ordering::Release);
    schedule(true);
    unreachable!("a dead thread ran")
}

/// Picks the next thread and switches to it. `leaving`: the current thread parks or exits (unless a token says
/// otherwise). Interrupts masked.
fn schedule(leaving: bool) {
    let me = current();
    let ctx = &me.arch;
    ctx.flags.fetch_and(!NEED_RESCHED, Ordering::Relaxed);
    let this = percpu::id();
    let cpu = &CPUS[this];
    let acks = cpu.unacknowledged.swap(0, Ordering::Relaxed);
    for _ in 0..acks {
        percpu::count(Counter::ReschedAcked);
    }
    let mut q = cpu.queue.lock();
    let now = crate::arch::time::now_ns();
    if leaving {
        if me.sched.state.load(Ordering::Relaxed) != state::DEAD
            && me.sched.state.compare_exchange(RUNNABLE, PARKED, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            // A token came: do not sleep.
            me.sched.state.store(RUNNABLE, Ordering::Relaxed);
            return;
        }
        q.leave(now);
    }
    let next = match q.pick(me, leaving, now) {
        Some(next) => next,
        None => {
            // Nothing here: the idle thread steals or sleeps.
            idle::thread(this)
        }
    };
    cpu.load.store(q.len() as u32, Ordering::Relaxed);
    timer::slice_starts(&q, next, now);
    if core::ptr::eq(next, me) {
        return;
    }
    next.sched.on_cpu.store(true, Ordering::Relaxed);
    next.sched.cpu.store(this as u32, Ordering::Relaxed);
    cpu.previous.set(me);
    // The lock stays held over the switch: `finish_switch` releases it.
    core::mem::forget(q);
    switch_mm_to(next.sched.mm.load(Ordering::Relaxed));
    #[cfg(debug_assertions)]
    let preempt = ctx.preempt.get();
    // SAFETY: interrupts are masked, `me` runs, `next` is runnable and nowhere else since we hold the queue that had it.
    unsafe { context::switch(&me.arch, &next.arch) };
    #[cfg(debug_assertions)]
    debug_assert_eq!(preempt, current().arch.preempt.get());
    finish_switch_inner();
}

/// The first thing that a new thread does; called by the vectors. A new thread starts as if inside the scheduler, with
/// preemption disabled once.
pub fn finish_switch() {
    finish_switch_inner();
    context::current().preempt.set(0);
}

fn finish_switch_inner() {
    let cpu = &CPUS[percpu::id()];
    let previous = cpu.previous.replace(core::ptr::null());
    // SAFETY: `schedule` locked it on this CPU and forgot the guard; interrupts are masked.
    unsafe { cpu.queue.force_unlock() };
    if !previous.is_null() {
        // SAFETY: the scheduler's reference keeps it alive until below.
        let p = unsafe { &*previous };
        let dead = p.sched.state.load(Ordering::Acquire) == state::DEAD;
        p.sched.on_cpu.store(false, Ordering::Release);
        if dead {
            // SAFETY: the reference that `spawn` leaked; nobody else gives it back.
            drop(unsafe { Arc::from_raw(previous) });
        }
    }
}

/// Loads `mm` on this CPU if it is a user's and not loaded. Interrupts masked.
fn switch_mm_to(mm: *mut AddressSpace) {
    let cpu = &CPUS[percpu::id()];
    if mm.is_null() || cpu.active_mm.load(Ordering::Relaxed) == mm {
        return;
    }
    cpu.active_mm.store(mm, Ordering::Relaxed);
    // SAFETY: a thread's address space lives as long as a thread that uses it has not exited.
    unsafe { (*mm).activate() };
}

/// Loads the running thread's address space after it was changed (exec), or none.
pub fn reload_mm() {
    let irq = crate::arch::irq_save();
    let mm = current().sched.mm.load(Ordering::Relaxed);
    if mm.is_null() {
        leave_mm()
    } else {
        switch_mm_to(mm)
    }
    crate::arch::irq_restore(irq);
}

/// Lets this CPU go of whatever is loaded. Interrupts masked.
fn leave_mm() {
    let cpu = &CPUS[percpu::id()];
    if !cpu.active_mm.swap(core::ptr::null_mut(), Ordering::AcqRel).is_null() {
        crate::arch::mmu::unload_user();
    }
}

/// Makes every CPU let go of `mm`, which no thread uses any more (the caller has already pointed itself elsewhere).
/// Bounded: the others run idle or kernel threads, and take the interrupt.
pub fn retire_mm(mm: *const AddressSpace) {
    let mm = mm.cast_mut();
    for (i, cpu) in CPUS.iter().enumerate().take(percpu::listed()) {
        if cpu.active_mm.load(Ordering::Acquire) != mm {
            continue;
        }
        let irq = crate::arch::irq_save();
        if percpu::id() == i {
            leave_mm();
            crate::arch::irq_restore(irq);
            continue;
        }
        crate::arch::irq_restore(irq);
        cpu.leave_mm.store(true, Ordering::Release);
        resched(i);
        let limit = crate::arch::time::now_ns() + 5_000_000_000;
        while cpu.active_mm.load(Ordering::Acquire) == mm {
            core::hint::spin_loop();
            if crate::arch::time::now_ns() > limit {
                panic!("cpu{i} does not let go of an address space");
            }
        }
    }
}

/// Nanoseconds that CPU `cpu` was idle since boot.
pub fn idle_ns(cpu: usize) -> u64 {
    CPUS[cpu].idle_ns.load(Ordering::Relaxed)
}

/// How many threads are runnable or running now, over all CPUs (for the load average).
pub fn runnable() -> usize {
    CPUS[..percpu::listed()].iter().map(|c| c.load.load(Ordering::Relaxed) as usize).sum()
}

/// What the boot CPU runs as until it has a thread.
pub static BOOT_CONTEXT: ThreadContext = ThreadContext::boot();

/// Turns the boot CPU's thread of control into a real thread: it goes on as `thread`'s life, on the boot stack, and
/// becomes CPU 0's idle thread.
pub fn init_boot_cpu() {
    let idle = crate::task::kernel_thread_for_boot(0);
    idle::set_thread(0, idle);
    let t = idle::thread(0);
    t.sched.on_cpu.store(true, Ordering::Relaxed);
    t.arch.preempt.set(context::current().preempt.get());
    // SAFETY: the idle thread lives for ever; the boot context is left for good.
    unsafe { context::adopt(&t.arch) };
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
    unsafe { context::adopt(&idle::thread(cpu).arch) };
}
