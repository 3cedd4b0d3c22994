//! When memory is exhausted.
//!
//! A failed allocation first asks the registered shrinkers (page caches) to give back what they can; then, for user memory,
//! a process is killed: the one with the largest resident set, weighted by its adjustment, and the log says which and why.
//! Kernel allocations simply fail (`ENOMEM`); the reserve in [`super::frames`] keeps the small ones going meanwhile.
//!
//! The process table is not mm's: whoever has it registers [`Processes`].

use crate::arch::percpu::{self, Counter};
use core::sync::atomic::{AtomicUsize, Ordering};
use sync::{LockClass, Mutex, Once, rank};

/// A process as the killer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Process number.
    pub pid: u32,
    /// Command name.
    pub name: &'a str,
    /// Resident pages, page tables included.
    pub rss: usize,
    /// `/proc/PID/oom_score_adj`, -1000 (never) to 1000.
    pub adjust: i32,
    /// It is being killed already: memory will come back without another victim.
    pub dying: bool,
}

/// Access to all processes.
#[derive(Clone, Copy, Debug)]
pub struct Processes {
    /// Shows each process (not init) to the callback.
    #[allow(clippy::type_complexity)]
    pub for_each: fn(&mut dyn FnMut(Candidate<'_>)),
    /// Sends `SIGKILL`; whether the process was still there.
    pub kill: fn(u32) -> bool,
}

static PROCESSES: Once<Processes> = Once::new();
const SHRINKERS: usize = 8;
/// Frees up to so many pages, says how many.
type Shrinker = fn(usize) -> usize;
static SHRINKER: [Once<Shrinker>; SHRINKERS] = [const { Once::new() }; SHRINKERS];

static CLASS: LockClass = LockClass::new("oom", rank::SPIN - 1);
static KILLER: Mutex<()> = Mutex::new(&CLASS, ());

/// Registers the process table. Once, at boot.
pub fn register_processes(processes: Processes) {
    let _ = PROCESSES.set(processes);
}

/// Registers a shrinker: asked for a number of pages, it frees what it can and says how many. It may be called while the
/// caller holds page-cache locks, so it must only try to take its own. May be called in any thread context.
pub fn register_shrinker(shrink: Shrinker) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let at = NEXT.fetch_add(1, Ordering::Relaxed);
    if let Some(slot) = SHRINKER.get(at) {
        let _ = slot.set(shrink);
    }
}

/// Asks the shrinkers for memory; whether any came.
pub fn reclaim() -> bool {
    let got: usize = SHRINKER.iter().filter_map(|s| s.get()).map(|shrink| shrink(64)).sum();
    got > 0
}

/// What came of running out of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Try again: something was freed, or somebody is dying.
    Retry,
    /// There is nobody to kill.
    Hopeless,
}

/// User memory could not be allocated. Context: thread that holds no locks; may sleep.
pub fn out_of_memory() -> Outcome {
    if reclaim() || super::reclaim::wait_for_write_back() {
        return Outcome::Retry;
    }
    let _one = KILLER.lock();
    // What other CPUs keep may be all that is needed.
    super::frames::drain();
    if super::frames::free_count() > 2 * super::frames::reserve() {
        return Outcome::Retry;
    }
    let Some(processes) = PROCESSES.get() else { return Outcome::Hopeless };
    let mut victim: Option<(i64, u32, usize, [u8; 16])> = None;
    let mut dying = false;
    let total = super::frames::total() as i64;
    (processes.for_each)(&mut |c| {
        dying |= c.dying;
        if c.dying || c.adjust <= -1000 {
            return;
        }
        let score = c.rss as i64 + c.adjust as i64 * total / 1000;
        if victim.as_ref().is_none_or(|v| score > v.0) {
            let mut name = [0; 16];
            let n = c.name.len().min(15);
            name[..n].copy_from_slice(&c.name.as_bytes()[..n]);
            victim = Some((score, c.pid, c.rss, name));
        }
    });
    if dying {
        // Its memory comes back when it has run to its end.
        platform::park(platform::ParkOptions {
            interruptible: true,
            deadline_ns: Some(platform::monotonic_ns() + 2_000_000),
        });
        return Outcome::Retry;
    }
    let Some((_, pid, rss, name)) = victim else { return Outcome::Hopeless };
    let name = core::str::from_utf8(&name).unwrap_or("?").trim_end_matches('\0');
    crate::error!(
        "out of memory: {} of {} frames free; killing process {pid} ({name}), the largest: {rss} pages resident",
        super::frames::free_count(),
        total
    );
    percpu::count(Counter::OomKills);
    if (processes.kill)(pid) { Outcome::Retry } else { Outcome::Hopeless }
}
