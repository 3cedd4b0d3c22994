//! Where a thread goes when it becomes runnable.

use super::CPUS;
use crate::arch::percpu;
use crate::task::Thread;
use core::sync::atomic::Ordering;

fn allowed(t: &Thread, cpu: usize) -> bool {
    t.sched.affinity.load(Ordering::Relaxed) & (1 << cpu) != 0 && percpu::of(cpu).online.load(Ordering::Relaxed)
}

fn is_idle(cpu: usize) -> bool {
    CPUS[cpu].idle.load(Ordering::Relaxed)
}

fn find_idle(t: &Thread) -> Option<usize> {
    (0..percpu::listed()).find(|&c| is_idle(c) && allowed(t, c))
}

fn least_loaded(t: &Thread, otherwise: usize) -> usize {
    (0..percpu::listed())
        .filter(|&c| allowed(t, c))
        .min_by_key(|&c| CPUS[c].load.load(Ordering::Relaxed))
        .unwrap_or(otherwise)
}

/// For a new thread: an idle CPU, else the least loaded; this one among equals, since its caches are warm.
pub fn for_fork(t: &Thread, here: usize) -> usize {
    if percpu::listed() == 1 {
        return 0;
    }
    match find_idle(t) {
        Some(c) => c,
        None => {
            let least = least_loaded(t, here);
            let (a, b) = (&CPUS[here].load, &CPUS[least].load);
            if allowed(t, here) && a.load(Ordering::Relaxed) <= b.load(Ordering::Relaxed) { here } else { least }
        }
    }
}

/// For a woken thread. A waker that is about to sleep (`sync`) and is alone on its CPU takes it: the hand-over then costs
/// no interrupt. Else its last CPU if idle, else any idle one, else its last.
pub fn for_wake(t: &Thread, last: usize, here: usize, sync: bool) -> usize {
    if percpu::listed() == 1 {
        return 0;
    }
    if sync && allowed(t, here) && CPUS[here].load.load(Ordering::Relaxed) <= 1 {
        return here;
    }
    if allowed(t, last) {
        if is_idle(last) {
            return last;
        }
        return find_idle(t).unwrap_or(last);
    }
    find_idle(t).unwrap_or_else(|| least_loaded(t, here))
}
