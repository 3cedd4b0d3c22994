//! A full memory barrier on every CPU, for membarrier(2): each other CPU is interrupted and counts the interrupts it took.
//! Any interrupt that a CPU takes after the caller's own barrier will do, whoever asked for it, so requests need no
//! queue.

use crate::arch::gic::{self, Sgi};
use crate::arch::percpu::{self, MAX_CPUS};
use core::sync::atomic::{AtomicU64, Ordering, fence};

#[repr(align(64))]
struct Taken(AtomicU64);
static TAKEN: [Taken; MAX_CPUS] = [const { Taken(AtomicU64::new(0)) }; MAX_CPUS];

/// Returns when every online CPU has executed a full barrier since the call. Context: thread with interrupts on. Bounded by
/// the longest time for which a CPU masks interrupts.
pub fn barrier_everywhere() {
    fence(Ordering::SeqCst);
    let mut before = [0u64; MAX_CPUS];
    let mut asked = 0u64;
    platform::preempt_disable();
    let here = platform::cpu_id();
    for cpu in (0..percpu::listed().min(MAX_CPUS)).filter(|&c| c != here) {
        before[cpu] = TAKEN[cpu].0.load(Ordering::SeqCst);
        if gic::send(cpu, Sgi::Barrier) {
            asked |= 1 << cpu;
        }
    }
    platform::preempt_enable();
    for cpu in (0..MAX_CPUS).filter(|&c| asked & 1 << c != 0) {
        while TAKEN[cpu].0.load(Ordering::SeqCst) == before[cpu] {
            platform::relax();
        }
    }
    fence(Ordering::SeqCst);
}

/// The interrupt.
pub fn interrupt() {
    fence(Ordering::SeqCst);
    TAKEN[percpu::id()].0.fetch_add(1, Ordering::SeqCst);
}
