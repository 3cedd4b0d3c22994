//! The scheduler tried on its own machine at boot, with kernel threads: `berth.selftest=sched`.
//!
//! Each test prints one line, `selftest sched: ok NAME ...` or `selftest sched: FAILED NAME ...`. What is tried: that no
//! wake-up is lost between threads on all CPUs, that spinning threads share CPUs fairly, that locks exclude, and that
//! the reschedule chain's counters agree afterwards.

use super::{account, current_arc, exit_current, idle, park, percpu, policy, spawn, unpark, yield_now};
use crate::arch::percpu::Counter;
use crate::arch::time::now_ns;
use crate::task::Thread;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use platform::ParkOptions;
use sched_policy::CpuMask;
use sync::{LockClass, Mutex, SpinLock};

/// Starts the tests if the command line asks for them; they end by powering the machine off.
pub fn run() {
    let asked = crate::machine::option("berth.selftest") == Some(b"sched");
    if asked && start(tests, 0).is_none() {
        crate::error!("selftest sched: FAILED start: no memory");
    }
    if asked {
        crate::arch::irq_enable();
        idle::run();
    }
}

fn start(entry: extern "C" fn(usize), arg: usize) -> Option<Arc<Thread>> {
    let t = Thread::new_kernel("selftest", entry, arg)?;
    spawn(t.clone()).ok()?;
    Some(t)
}

static FINISHED: AtomicUsize = AtomicUsize::new(0);

fn finish() -> ! {
    FINISHED.fetch_add(1, Ordering::Release);
    exit_current()
}

/// Waits until `n` threads have finished; false after `seconds`.
fn wait_finished(n: usize, seconds: u64) -> bool {
    let limit = now_ns() + seconds * 1_000_000_000;
    while FINISHED.load(Ordering::Acquire) < n {
        if now_ns() > limit {
            return false;
        }
        park(ParkOptions { deadline_ns: Some(now_ns() + 5_000_000), ..Default::default() });
    }
    true
}

fn report(name: &str, ok: bool, what: core::fmt::Arguments<'_>) {
    let word = if ok { "ok" } else { "FAILED" };
    crate::info!("selftest sched: {word} {name}: {what}");
}

extern "C" fn tests(_: usize) {
    ping_pong();
    fairness();
    contention();
    affinity();
    sleeps();
    chain();
    crate::info!("selftest sched: done");
    crate::start::stop("selftest is over");
}

const ROUNDS: usize = 100_000;

struct Pair {
    turn: AtomicUsize,
    threads: [SpinLock<Option<Arc<Thread>>>; 2],
}
static PAIR_CLASS: LockClass = LockClass::new("selftest pair", sync::rank::SPIN);
static PAIRS: [Pair; 8] = [const {
    Pair { turn: AtomicUsize::new(0), threads: [SpinLock::new(&PAIR_CLASS, None), SpinLock::new(&PAIR_CLASS, None)] }
}; 8];
static GO: AtomicBool = AtomicBool::new(false);

extern "C" fn player(arg: usize) {
    let (pair, side) = (&PAIRS[arg / 2], arg % 2);
    while !GO.load(Ordering::Acquire) {
        yield_now();
    }
    let Some(other) = pair.threads[1 - side].lock().clone() else { finish() };
    for round in 0..ROUNDS / 2 {
        while pair.turn.load(Ordering::Acquire) != round * 2 + side {
            park(ParkOptions::default());
        }
        pair.turn.fetch_add(1, Ordering::AcqRel);
        unpark(&other, true);
    }
    drop(other);
    finish();
}

/// Pairs of threads hand a turn to and fro; the two of a pair are pinned to different CPUs in every second pair.
fn ping_pong() {
    let cpus = percpu::listed();
    let pairs = cpus.clamp(1, 4);
    FINISHED.store(0, Ordering::Relaxed);
    for arg in 0..pairs * 2 {
        let (pair, side) = (arg / 2, arg % 2);
        let Some(t) = start(player, arg) else { return report("ping-pong", false, format_args!("no memory")) };
        if pair % 2 == 1 {
            let mask = CpuMask::one(super::cpu_id((pair + side) % cpus));
            let _ = policy::set_affinity(&t, &mask, &ANY);
        }
        *PAIRS[pair].threads[side].lock() = Some(t);
    }
    let begin = now_ns();
    GO.store(true, Ordering::Release);
    let done = wait_finished(pairs * 2, 60);
    let turns: usize = PAIRS[..pairs].iter().map(|p| p.turn.load(Ordering::Relaxed)).sum();
    let ns = (now_ns() - begin) / (ROUNDS as u64);
    report("ping-pong", done && turns == pairs * ROUNDS, format_args!("{pairs} pairs, {turns} turns, {ns} ns each"));
    for side in PAIRS.iter().flat_map(|p| &p.threads) {
        *side.lock() = None;
    }
}

const ANY: policy::Authority = policy::Authority { owner: true, sys_nice: true, rtprio_limit: 0, nice_limit: 0 };

static STOP: AtomicBool = AtomicBool::new(false);
static SPUN: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

extern "C" fn spinner(arg: usize) {
    let me = current_arc();
    let before = account::runtime_ns(&me);
    while !STOP.load(Ordering::Relaxed) {
        core::hint::spin_loop();
    }
    SPUN[arg].store(account::runtime_ns(&me) - before, Ordering::Relaxed);
    drop(me);
    finish();
}

fn fairness() {
    let cpus = percpu::listed();
    let n = (cpus * 3 / 2 + 1).min(16);
    FINISHED.store(0, Ordering::Relaxed);
    for arg in 0..n {
        if start(spinner, arg).is_none() {
            return report("fairness", false, format_args!("no memory"));
        }
    }
    let begin = now_ns();
    while now_ns() < begin + 5_000_000_000 {
        park(ParkOptions { deadline_ns: Some(begin + 5_000_000_000), ..Default::default() });
    }
    STOP.store(true, Ordering::Relaxed);
    let elapsed = now_ns() - begin;
    let done = wait_finished(n, 10);
    let share = elapsed * cpus.min(n) as u64 / n as u64;
    let times: Vec<u64> = SPUN[..n].iter().map(|s| s.load(Ordering::Relaxed) * 100 / share).collect();
    let fair = times.iter().all(|&p| (90..=110).contains(&p));
    report("fairness", done && fair, format_args!("{n} spinners, percent of a fair share: {times:?}"));
}

static SPIN_CLASS: LockClass = LockClass::new("selftest spin", sync::rank::SPIN);
static MUTEX_CLASS: LockClass = LockClass::new("selftest mutex", 10);
static SPIN: SpinLock<u64> = SpinLock::new(&SPIN_CLASS, 0);
static MUTEX: Mutex<u64> = Mutex::new(&MUTEX_CLASS, 0);
const ADDS: u64 = 20_000;

extern "C" fn adder(_: usize) {
    for _ in 0..ADDS {
        *SPIN.lock() += 1;
        *MUTEX.lock() += 1;
    }
    finish();
}

fn contention() {
    let n = percpu::listed() * 2;
    FINISHED.store(0, Ordering::Relaxed);
    for arg in 0..n {
        if start(adder, arg).is_none() {
            return report("contention", false, format_args!("no memory"));
        }
    }
    let done = wait_finished(n, 60);
    let spin = *SPIN.lock();
    let mutex = *MUTEX.lock();
    let want = n as u64 * ADDS;
    let ok = done && spin == want && mutex == want;
    report("contention", ok, format_args!("{n} threads, spin lock {spin}, mutex {mutex}, expected {want}"));
}

static WRONG: AtomicU64 = AtomicU64::new(0);
static WANTED: AtomicUsize = AtomicUsize::new(0);
static AT: AtomicUsize = AtomicUsize::new(usize::MAX);

extern "C" fn wanderer(_: usize) {
    loop {
        let wanted = WANTED.load(Ordering::Acquire);
        if wanted == usize::MAX {
            finish();
        }
        let irq = crate::arch::irq_save();
        let here = percpu::id();
        crate::arch::irq_restore(irq);
        AT.store(here, Ordering::Release);
    }
}

/// A running thread is moved round the CPUs; each move must take effect within a second.
fn affinity() {
    let cpus = percpu::listed();
    FINISHED.store(0, Ordering::Relaxed);
    let Some(t) = start(wanderer, 0) else { return report("affinity", false, format_args!("no memory")) };
    let moves = 200;
    for i in 0..moves {
        let to = i % cpus;
        let _ = policy::set_affinity(&t, &CpuMask::one(super::cpu_id(to)), &ANY);
        let limit = now_ns() + 1_000_000_000;
        while AT.load(Ordering::Acquire) != to {
            if now_ns() > limit {
                WRONG.fetch_add(1, Ordering::Relaxed);
                break;
            }
            yield_now();
        }
    }
    WANTED.store(usize::MAX, Ordering::Release);
    let done = wait_finished(1, 5);
    let wrong = WRONG.load(Ordering::Relaxed);
    report("affinity", done && wrong == 0, format_args!("{moves} moves, {wrong} without effect"));
}

/// Sleeps end no earlier than asked, and not much later on an idle machine.
fn sleeps() {
    let mut worst = 0;
    let mut early = 0;
    for ms in 1..20 {
        let until = now_ns() + ms * 1_000_000;
        while now_ns() < until {
            let wake = park(ParkOptions { deadline_ns: Some(until), ..Default::default() });
            if wake == platform::Wake::TimedOut && now_ns() < until {
                early += 1;
            }
        }
        worst = worst.max(now_ns() - until);
    }
    report("sleeps", early == 0 && worst < 50_000_000, format_args!("{early} early, worst {} us late", worst / 1000));
}

/// With the machine at rest, every reschedule asked for was sent, taken and followed by a look.
fn chain() {
    let until = now_ns() + 50_000_000;
    while now_ns() < until {
        park(ParkOptions { deadline_ns: Some(until), ..Default::default() });
    }
    let sum = |what| (0..percpu::listed()).map(|c| percpu::counter(c, what)).sum::<u64>();
    let asked = sum(Counter::ReschedRequest);
    let [sent, taken, seen] = [Counter::ReschedSent, Counter::ReschedTaken, Counter::ReschedAcked].map(sum);
    let ok = asked == sent && sent == taken && taken == seen;
    report("chain", ok, format_args!("asked {asked}, sent {sent}, taken {taken}, acknowledged {seen}"));
    let bad = percpu::identity_check().iter().filter(|&&(cpu, fast, slow)| fast != cpu || slow != cpu).count();
    report("identity", bad == 0, format_args!("{bad} CPUs of {} disagree with themselves", percpu::listed()));
    let (offline, none) = (super::resched(percpu::listed()), super::resched(usize::MAX));
    let unchanged = sum(Counter::ReschedRequest) >= asked;
    report("refusals", !offline && !none && unchanged, format_args!("no such CPU: {offline} {none}"));
}
