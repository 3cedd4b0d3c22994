//! Asking another CPU to look at its run queue, and counting each step of it.
//!
//! A CPU has one word of requests. Who sets its first bit sends the interrupt; later ones find the word set and need
//! none, since the interrupt that is under way will see their bits too. So there is exactly one interrupt for each
//! request that is counted: requested = sent = taken = acknowledged once the machine is at rest. A step that is lost
//! shows as a difference (gate s3; `berth.sabotage=resched-ipi` loses the second on purpose).

use crate::arch::context::{self, NEED_RESCHED};
use crate::arch::gic::{self, Sgi};
use crate::arch::percpu::{self, Counter, MAX_CPUS};
use core::sync::atomic::{AtomicU32, Ordering};

/// Choose again who runs.
pub(super) const SWITCH: u32 = 1;
/// Set the slice timer again.
pub(super) const LOOK: u32 = 2;
/// Compare the two ways to know the CPU.
pub(super) const IDENTITY: u32 = 4;
/// The CPU looks at the word without being interrupted.
const POLLING: u32 = 8;

static ASKED: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// Interrupts taken and not yet followed by a look at the queue. The CPU's own.
static UNACKNOWLEDGED: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Makes CPU `target` look at its queue soon. False, and nothing changed or counted, if there is no such CPU online.
/// Context: any.
pub fn resched(target: usize) -> bool {
    if target >= percpu::listed() || !percpu::of(target).online.load(Ordering::Acquire) {
        return false;
    }
    if target == percpu::id() {
        context::current().flags.fetch_or(NEED_RESCHED, Ordering::Relaxed);
    } else {
        ask(target, SWITCH);
    }
    true
}

/// Sets `what` in the requests of `target`, an online CPU other than this one.
pub(super) fn ask(target: usize, what: u32) {
    if ASKED[target].fetch_or(what, Ordering::AcqRel) != 0 {
        return;
    }
    percpu::count_on(target, Counter::ReschedRequest);
    // Counted before, or the target could show the interrupt as taken first.
    percpu::count_on(target, Counter::ReschedSent);
    if super::sabotage::loses_sgi() || !gic::send(target, Sgi::Reschedule) {
        percpu::uncount_on(target, Counter::ReschedSent);
        ASKED[target].store(0, Ordering::Release);
    }
}

/// Lets every other CPU compare its identities ([`percpu::check_identity_here`]).
pub fn ask_identity(cpu: usize) {
    ask(cpu, IDENTITY);
}

/// The reschedule interrupt. Interrupts masked.
pub(super) fn interrupt(cpu: usize) {
    UNACKNOWLEDGED[cpu].fetch_add(1, Ordering::Relaxed);
    serve(cpu);
}

/// Does what the word of requests asks for, and clears it. Interrupts masked.
fn serve(cpu: usize) {
    let asked = ASKED[cpu].swap(0, Ordering::AcqRel);
    if asked & IDENTITY != 0 {
        percpu::check_identity_here();
    }
    if asked & SWITCH != 0 {
        context::current().flags.fetch_or(NEED_RESCHED, Ordering::Relaxed);
        return;
    }
    acknowledge(cpu);
    if asked & LOOK != 0 {
        super::timer::look(cpu, crate::arch::time::now_ns());
    }
}

/// Waits for a request to the calling CPU, which is idle, without needing an interrupt for it, for at most `ns`; other
/// interrupts are taken meanwhile. Interrupts masked, also on return.
pub(super) fn poll(cpu: usize, ns: u64) {
    let word = &ASKED[cpu];
    if word.fetch_or(POLLING, Ordering::AcqRel) == 0 {
        let until = crate::arch::time::now_ns() + ns;
        let me = context::current();
        let flags = &me.flags;
        // An interrupt must not switch threads from here: the word would go on saying that this CPU looks at it.
        me.preempt.set(me.preempt.get() + 1);
        crate::arch::irq_enable();
        'wait: while crate::arch::time::now_ns() < until {
            for _ in 0..32 {
                if word.load(Ordering::Relaxed) != POLLING || flags.load(Ordering::Relaxed) & NEED_RESCHED != 0 {
                    break 'wait;
                }
                core::hint::spin_loop();
            }
        }
        crate::arch::irq_save();
        me.preempt.set(me.preempt.get() - 1);
    }
    super::lazy_mm::serve(cpu);
    serve(cpu);
}

/// The queue is about to be looked at. Interrupts masked.
#[inline]
pub(super) fn acknowledge(cpu: usize) {
    let taken = &UNACKNOWLEDGED[cpu];
    let n = taken.load(Ordering::Relaxed);
    if n != 0 {
        taken.store(0, Ordering::Relaxed);
        percpu::count_many(Counter::ReschedAcked, n as u64);
    }
}
