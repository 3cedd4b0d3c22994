//! On which CPU a thread that wakes or is born should run.
//!
//! Waking on an idle CPU needs an interrupt to it and finds caches cold; waking behind a busy thread costs that thread's
//! slice. So: a waker that says it is about to sleep (`sync`: a pipe's writer that waits for the answer, a futex
//! handed over) gets the thread on its own CPU if nobody else waits there; else the thread's last CPU if that is idle;
//! else the waker's, which is idle if an interrupt woke it and needs no message; else any idle one, the search starting
//! next to the last CPU; and if the whole machine is busy, the shorter queue of the last and the waker's.
//!
//! The answers are hints: masks and loads are read without locks and may be stale. Affinity is honoured always; if it
//! changes at the same moment, whoever changed it moves the thread.

use crate::cpumask::{CpuId, CpuMask};

/// A wake-up to be placed.
#[derive(Clone, Copy, Debug)]
pub struct WakeRequest {
    /// Where the thread ran last.
    pub prev: CpuId,
    /// The CPU that wakes it.
    pub waker: CpuId,
    /// The waker is about to sleep.
    pub sync: bool,
    /// The CPUs that the thread may run on and that are online. Must not be empty.
    pub allowed: CpuMask,
}

/// Chooses the CPU for a wake-up. `idle` are the CPUs that run nothing, `runnable(cpu)` is how many threads run or wait
/// there.
#[inline]
pub fn select_cpu(wake: &WakeRequest, idle: &CpuMask, runnable: impl Fn(CpuId) -> usize) -> CpuId {
    let WakeRequest { prev, waker, allowed, .. } = *wake;
    let waker_allowed = allowed.contains(waker);
    if wake.sync && waker_allowed && runnable(waker) <= 1 {
        return waker;
    }
    let prev_allowed = allowed.contains(prev);
    if prev_allowed && idle.contains(prev) {
        return prev;
    }
    if waker_allowed && idle.contains(waker) {
        return waker;
    }
    if let Some(cpu) = idle.and(&allowed).first_wrapping(prev.index() + 1) {
        return cpu;
    }
    match (prev_allowed, waker_allowed) {
        (true, true) if runnable(waker) < runnable(prev) => waker,
        (true, _) => prev,
        (false, true) => waker,
        (false, false) => least_loaded(&allowed, prev, runnable),
    }
}

/// Chooses the CPU for a new thread: an idle one, starting next to its creator's, or else the shortest queue.
pub fn select_cpu_new(creator: CpuId, allowed: &CpuMask, idle: &CpuMask, runnable: impl Fn(CpuId) -> usize) -> CpuId {
    match idle.and(allowed).first_wrapping(creator.index() + 1) {
        Some(cpu) => cpu,
        None => least_loaded(allowed, creator, runnable),
    }
}

/// The CPU of `allowed` with the fewest runnable threads; of equals the first from `start` on, or `start` itself if
/// nothing is allowed.
fn least_loaded(allowed: &CpuMask, start: CpuId, runnable: impl Fn(CpuId) -> usize) -> CpuId {
    allowed.iter_wrapping(start.index()).min_by_key(|&cpu| runnable(cpu)).unwrap_or(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(n: usize) -> CpuId {
        CpuId::new(n).unwrap()
    }

    fn mask(cpus: &[usize]) -> CpuMask {
        cpus.iter().map(|&n| cpu(n)).collect()
    }

    fn wake(prev: usize, waker: usize, sync: bool, allowed: &[usize]) -> WakeRequest {
        WakeRequest { prev: cpu(prev), waker: cpu(waker), sync, allowed: mask(allowed) }
    }

    #[test]
    fn the_last_cpu_if_idle() {
        let got = select_cpu(&wake(2, 0, false, &[0, 1, 2, 3]), &mask(&[1, 2, 3]), |_| 1);
        assert_eq!(got, cpu(2));
    }

    #[test]
    fn a_sync_waker_keeps_the_thread_unless_others_wait_there() {
        let request = wake(2, 0, true, &[0, 1, 2, 3]);
        assert_eq!(select_cpu(&request, &mask(&[2]), |_| 1), cpu(0));
        assert_eq!(select_cpu(&request, &mask(&[2]), |_| 2), cpu(2));
    }

    #[test]
    fn any_idle_cpu_before_a_busy_one_but_never_a_forbidden_one() {
        assert_eq!(select_cpu(&wake(1, 0, false, &[0, 1, 3]), &mask(&[2, 3]), |_| 1), cpu(3));
        assert_eq!(select_cpu(&wake(1, 0, false, &[3]), &mask(&[2]), |_| 1), cpu(3));
    }

    #[test]
    fn the_shorter_queue_when_all_are_busy() {
        let load = |c: CpuId| [1, 5, 9, 9][c.index()];
        assert_eq!(select_cpu(&wake(1, 0, false, &[0, 1, 2, 3]), &CpuMask::EMPTY, load), cpu(0));
        assert_eq!(select_cpu(&wake(0, 1, false, &[0, 1, 2, 3]), &CpuMask::EMPTY, load), cpu(0));
        assert_eq!(select_cpu_new(cpu(2), &mask(&[1, 2, 3]), &CpuMask::EMPTY, load), cpu(1));
    }
}
