//! What a CPU does with nothing to do: take one thread from a busier CPU, else sleep until an interrupt. A CPU whose last
//! idle period was short first polls for as long as waking it from sleep might take: threads that hand work to and fro
//! between CPUs then wait neither for an interrupt nor for the CPU (or the host's thread behind a virtual one) to start.
//! A period that outlasts the polling ends it until periods are short again, so an idle machine does not spin. And what a busy
//! CPU does at its tick for the others: wake an idle one to steal, move one thread to a less loaded one.

use super::state::Handle;
use super::{CPUS, IDLE_CPUS, ONLINE, cpu_id};
use crate::arch::context::NEED_RESCHED;
use crate::arch::percpu::{self, Counter, MAX_CPUS};
use crate::task::Thread;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use sched_policy::{Arrival, QosClass, StealRequest, victim_order};
use sync::Once;

static IDLE: [Once<Arc<Thread>>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];
/// When each CPU may balance again.
static BALANCE_AT: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// The least time between two attempts of one CPU to balance.
const BALANCE_NS: u64 = 20_000_000;
/// How long an idle CPU polls at most.
const POLL_NS: u64 = 50_000;
/// An idle period up to this long lets the next one begin with polling.
const SHORT_IDLE_NS: u64 = 200_000;

/// Makes `thread` CPU `cpu`'s idle thread, before that CPU schedules.
pub fn set_thread(cpu: usize, thread: Arc<Thread>) {
    super::timer::prepare(cpu);
    thread.sched.state.store(super::state::RUNNABLE, Ordering::Relaxed);
    let _ = IDLE[cpu].set(thread);
}

/// CPU `cpu`'s idle thread.
#[inline]
pub fn thread(cpu: usize) -> &'static Thread {
    match IDLE[cpu].get() {
        Some(t) => t,
        None => panic!("cpu{cpu} schedules without an idle thread"),
    }
}

/// The idle loop. Runs on the idle thread, never returns.
pub fn run() -> ! {
    let this = percpu::id();
    let cpu = &CPUS[this];
    let ctx = &thread(this).arch;
    let me = cpu_id(this);
    ONLINE.insert(me);
    if this != 0 {
        cpu.account.starts(crate::arch::time::now_ns());
    }
    super::admission::ADMISSION.set_cpus(ONLINE.load().len() as u32);
    super::timer::first_tick(this);
    let several = percpu::listed() > 1;
    let mut poll_next = false;
    let nothing = || ctx.flags.load(Ordering::Relaxed) & NEED_RESCHED == 0 && cpu.queue.lock().queued() == 0;
    loop {
        crate::arch::irq_save();
        if nothing() && !steal(this) {
            IDLE_CPUS.insert(me);
            core::sync::atomic::fence(Ordering::SeqCst);
            // A thread may have been queued before the mask said idle. Look again.
            if nothing() {
                super::resched::acknowledge(this);
                percpu::count(Counter::Idles);
                let began = crate::arch::time::now_ns();
                cpu.account.idle_begins(began);
                if poll_next {
                    super::resched::poll(this, POLL_NS);
                }
                if !poll_next || nothing() {
                    crate::arch::wait_for_interrupt();
                }
                let ended = crate::arch::time::now_ns();
                cpu.account.idle_ends(ended);
                poll_next = several && ended - began < SHORT_IDLE_NS;
            }
            IDLE_CPUS.remove(me);
            // The interrupt is taken here.
            crate::arch::irq_enable();
            core::hint::spin_loop();
            crate::arch::irq_save();
        }
        super::schedule(super::Leave::Preempted);
        crate::arch::irq_enable();
    }
}

/// Takes at most one thread from the first CPU, in rising order from ours, that has one waiting. Interrupts masked.
fn steal(this: usize) -> bool {
    if super::sabotage::one_queue() {
        return false;
    }
    let request = StealRequest::one(&*CPUS[this].queue.lock(), QosClass::PerfBurst);
    for victim in victim_order(cpu_id(this), &ONLINE.load()).map(|c| c.index()) {
        if CPUS[victim].load.load(Ordering::Relaxed) < 2 {
            continue;
        }
        let Some(mut q) = CPUS[victim].queue.try_lock() else { continue };
        let taken = q.steal(&request, crate::arch::time::now_ns());
        CPUS[victim].load.store(q.runnable() as u32, Ordering::Relaxed);
        drop(q);
        if let Ok(Handle(t)) = taken {
            percpu::count(Counter::Steals);
            super::place(t, this, Arrival::Migrated);
            return true;
        }
    }
    false
}

/// At a busy CPU's tick. Interrupts masked, no lock held.
pub(super) fn tick_balance(this: usize, now: u64) {
    if CPUS[this].load.load(Ordering::Relaxed) < 2 || super::sabotage::one_queue() {
        return;
    }
    if let Some(idle) = IDLE_CPUS.load().lowest() {
        super::resched(idle.index());
        return;
    }
    if now < BALANCE_AT[this].load(Ordering::Relaxed) {
        return;
    }
    BALANCE_AT[this].store(now + BALANCE_NS, Ordering::Relaxed);
    for to in victim_order(cpu_id(this), &ONLINE.load()).map(|c| c.index()) {
        // The second of two queue locks is only tried, so their order does not matter.
        let mut from = CPUS[this].queue.lock();
        let Some(mut target) = CPUS[to].queue.try_lock() else { continue };
        let moved = sched_policy::balance(&mut from, &mut target, now);
        CPUS[this].load.store(from.runnable() as u32, Ordering::Relaxed);
        CPUS[to].load.store(target.runnable() as u32, Ordering::Relaxed);
        drop(target);
        drop(from);
        if let Some(kick) = moved {
            percpu::count_on(to, Counter::Migrations);
            super::act(to, kick, now);
            return;
        }
    }
}
