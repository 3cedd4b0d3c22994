//! CPU time: of threads, of CPUs, and the load average.
//!
//! Run time is exact: run queues charge it at every switch. Its split into user and system time is by samples, one at
//! each timer interrupt (a busy CPU has one at least every tick), since reading a clock at every system call would cost
//! more than the call of many. A thread's split is its run time in the ratio of its samples; a CPU's busy time since the
//! last sample goes to the mode that the sample finds.
//!
//! The load average is Linux's: runnable threads, averaged exponentially over 1, 5 and 15 minutes, sampled every five
//! seconds. Sleeps that cannot be interrupted are not counted. It is brought up to date by busy CPUs' timers and by
//! whoever reads it, so that an idle machine need not wake for it.

use super::{CPUS, current};
use crate::task::Thread;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use sched_policy::RunState;

/// One CPU's account, written by itself.
pub(super) struct CpuAccount {
    user_ns: AtomicU64,
    system_ns: AtomicU64,
    idle_ns: AtomicU64,
    /// When the present idle period began, or 0.
    idle_since: AtomicU64,
    /// When the CPU came online.
    start: AtomicU64,
    last_mode_user: AtomicBool,
}

impl CpuAccount {
    pub(super) const fn new() -> Self {
        CpuAccount {
            user_ns: AtomicU64::new(0),
            system_ns: AtomicU64::new(0),
            idle_ns: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            start: AtomicU64::new(0),
            last_mode_user: AtomicBool::new(false),
        }
    }

    pub(super) fn starts(&self, now: u64) {
        self.start.store(now, Relaxed);
    }

    pub(super) fn idle_begins(&self, now: u64) {
        self.idle_since.store(now, Relaxed);
    }

    pub(super) fn idle_ends(&self, now: u64) {
        let since = self.idle_since.swap(0, Relaxed);
        self.idle_ns.store(self.idle_ns.load(Relaxed) + now.saturating_sub(since), Relaxed);
    }
}

/// Where a CPU's time went, in nanoseconds since it came online.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_field_names, reason = "units belong to names")]
pub struct CpuTimes {
    /// In user mode.
    pub user_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
    /// With nothing to do.
    pub idle_ns: u64,
}

/// CPU `cpu`'s times, for /proc/stat. Zeroes for one that never came online.
pub fn cpu_times(cpu: usize) -> CpuTimes {
    let Some(c) = CPUS.get(cpu) else { return CpuTimes::default() };
    let a = &c.account;
    let since = a.idle_since.load(Relaxed);
    let now_idle = if since == 0 { 0 } else { crate::arch::time::now_ns().saturating_sub(since) };
    CpuTimes {
        user_ns: a.user_ns.load(Relaxed),
        system_ns: a.system_ns.load(Relaxed),
        idle_ns: a.idle_ns.load(Relaxed) + now_idle,
    }
}

/// A timer interrupt on `cpu` at `now`. Interrupts masked.
pub(super) fn sample(cpu: usize, user: bool, now: u64) {
    let a = &CPUS[cpu].account;
    let idle = core::ptr::eq(current(), super::idle::thread(cpu));
    let user = if idle { a.last_mode_user.load(Relaxed) } else { user };
    a.last_mode_user.store(user, Relaxed);
    let known = a.user_ns.load(Relaxed) + a.system_ns.load(Relaxed) + a.idle_ns.load(Relaxed) + a.start.load(Relaxed);
    let busy = now.saturating_sub(known);
    let to = if user { &a.user_ns } else { &a.system_ns };
    to.store(to.load(Relaxed) + busy, Relaxed);
    if !idle {
        let s = &current().sched;
        let to = if user { &s.user_samples } else { &s.system_samples };
        to.store(to.load(Relaxed) + 1, Relaxed);
    }
    load::update(now);
}

/// CPU time that `t` has used up to now, in nanoseconds. Context: any without a run queue's lock.
pub fn runtime_ns(t: &Thread) -> u64 {
    let e = &t.sched.entity;
    for _ in 0..4 {
        let cpu = e.cpu().index();
        let mut q = CPUS[cpu].queue.lock();
        if e.cpu().index() != cpu {
            continue;
        }
        if e.state() != RunState::Running {
            return e.exec_ns();
        }
        q.charge(crate::arch::time::now_ns());
        return e.exec_ns() + q.current_exec_ns();
    }
    e.exec_ns()
}

/// User and system time of `t` up to now, in nanoseconds; their sum is [`runtime_ns`], and neither ever falls by much.
pub fn thread_times(t: &Thread) -> (u64, u64) {
    let total = runtime_ns(t);
    let s = &t.sched;
    let (user, system) = (s.user_samples.load(Relaxed), s.system_samples.load(Relaxed));
    let share = match (user, system) {
        (_, 0) => total,
        (0, _) => 0,
        _ => (total as u128 * user as u128 / (user + system) as u128) as u64,
    };
    let before = s.user_reported.fetch_max(share, Relaxed);
    let user_ns = share.max(before).min(total);
    (user_ns, total - user_ns)
}

/// The load average over 1, 5 and 15 minutes, in hundredths.
pub fn load_average() -> [u64; 3] {
    load::update(crate::arch::time::now_ns());
    // Rounded as /proc/loadavg does.
    load::read().map(|v| (v * 100 + 1023) / 2048)
}

/// The load average times 65536, as `sysinfo(2)` wants it.
pub fn load_average_scaled() -> [u64; 3] {
    load::update(crate::arch::time::now_ns());
    load::read().map(|v| v << 5)
}

mod load {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

    const INTERVAL_NS: u64 = 5_000_000_000;
    const ONE: u64 = 2048;
    /// 2048 / e^(5 s / 1, 5, 15 min).
    const DECAY: [u64; 3] = [1884, 2014, 2037];
    static NEXT: AtomicU64 = AtomicU64::new(INTERVAL_NS);
    static AVERAGE: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

    pub fn read() -> [u64; 3] {
        [0, 1, 2].map(|i| AVERAGE[i].load(Relaxed))
    }

    pub fn update(now: u64) {
        let due = NEXT.load(Relaxed);
        if now < due {
            return;
        }
        let periods = (now - due) / INTERVAL_NS + 1;
        // One of several that come here does it.
        if NEXT.compare_exchange(due, due + periods * INTERVAL_NS, Relaxed, Relaxed).is_err() {
            return;
        }
        let active = super::super::runnable() as u64 * ONE;
        for (average, decay) in AVERAGE.iter().zip(DECAY) {
            let mut value = average.load(Relaxed);
            // Beyond an hour the oldest value no longer matters.
            for _ in 0..periods.min(720) {
                let grow = if active >= value { ONE - 1 } else { 0 };
                value = (value * decay + active * (ONE - decay) + grow) / ONE;
            }
            average.store(value, Relaxed);
        }
    }
}
