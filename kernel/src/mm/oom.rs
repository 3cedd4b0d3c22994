//! When memory is exhausted.
//!
//! A failed allocation first asks the registered shrinkers (page caches) to give back what they can; then, for user memory,
//! a process is killed: the one with the largest resident set, weighted by its adjustment, and the log says which and why.
//! Small kernel allocations use the reserve in [`super::frames`] meanwhile, and when that is gone too they wait.
//!
//! Who waits for memory holds no address space's lock: write-back protects mappings, and reclaim empties them. A fault
//! allocates under its map's lock, so there allocations fail at once ([`NoWait`]), and the fault starts over after the wait;
//! fork does the same. Locks of file systems may be held (a write that copies from user memory): nobody who writes back needs
//! them, and whoever is killed while it waits for one is given up after a while and another one is killed.
//!
//! The process table is not mm's: whoever has it registers [`Processes`].

use crate::arch::context;
use crate::arch::percpu::{self, Counter};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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
    /// Descriptors that its table has room for.
    pub files: usize,
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

/// While it lives, this thread's allocations of pages fail rather than wait: it holds a lock that write-back, or who is to be
/// killed, may need. It then drops the lock, calls [`out_of_memory`], and tries again.
#[derive(Debug)]
pub struct NoWait(());

impl NoWait {
    /// From now on.
    #[inline]
    pub fn new() -> NoWait {
        let depth = &context::current().no_wait;
        depth.set(depth.get() + 1);
        NoWait(())
    }
}

impl Drop for NoWait {
    #[inline]
    fn drop(&mut self) {
        let depth = &context::current().no_wait;
        depth.set(depth.get() - 1);
    }
}

/// Whether the calling thread is to be killed, so that it need not wait for memory and may use the reserve.
pub fn is_doomed() -> bool {
    context::current().is_user() && crate::task::exit::must_die(crate::sched::current())
}

/// Whether the calling thread is process 1's.
pub fn is_init() -> bool {
    context::current().is_user() && crate::sched::current().process.pid.0 == 1
}

/// Repeats `attempt` until it gets its memory, and does what can be done for that in between. `None` if nothing helps, the
/// thread is to be killed, or it may not sleep. Context: thread that holds no address space's lock.
#[inline]
pub fn insist<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        if let Some(got) = attempt() {
            return Some(got);
        }
        if !platform::may_sleep() || is_doomed() || out_of_memory() == Outcome::Hopeless {
            return None;
        }
    }
}

/// A victim that has not ended after so long is held up by somebody who waits for memory: another one is chosen.
const VICTIM_NS: u64 = 5_000_000_000;
/// For so long after a kill nobody else is, whether the victim is still seen or not.
const LEAVING_NS: u64 = 1_000_000_000;
static KILLED: AtomicU64 = AtomicU64::new(0);

/// User memory could not be allocated. Context: thread that holds no address space's lock; may sleep.
pub fn out_of_memory() -> Outcome {
    if reclaim() || super::reclaim::wait_for_write_back() {
        return Outcome::Retry;
    }
    let _one = KILLER.lock();
    // What other CPUs keep may be all that is needed.
    super::frames::drain();
    if super::frames::has_room(64) || super::reclaim::last_resort() {
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
        // What is open costs kernel memory: a pipe about half a page for each end, with nothing in it.
        let score = c.rss as i64 + (c.files / 2) as i64 + c.adjust as i64 * total / 1000;
        if victim.as_ref().is_none_or(|v| score > v.0) {
            let mut name = [0; 16];
            let n = c.name.len().min(15);
            name[..n].copy_from_slice(&c.name.as_bytes()[..n]);
            victim = Some((score, c.pid, c.rss, name));
        }
    });
    let now = platform::monotonic_ns();
    let ago = now.saturating_sub(KILLED.load(Ordering::Relaxed));
    if dying && ago < VICTIM_NS || ago < LEAVING_NS {
        // Its memory comes back when it has run to its end, which is after others see it for the last time.
        return rest(now);
    }
    let Some((_, pid, rss, name)) = victim else { return Outcome::Hopeless };
    let name = core::str::from_utf8(&name).unwrap_or("?").trim_end_matches('\0');
    crate::error!(
        "out of memory: {} of {} frames free; killing process {pid} ({name}), the largest: {rss} pages resident",
        super::frames::free_count(),
        total
    );
    percpu::count(Counter::OomKills);
    KILLED.store(now, Ordering::Relaxed);
    if (processes.kill)(pid) { Outcome::Retry } else { Outcome::Hopeless }
}

fn rest(now: u64) -> Outcome {
    platform::park(platform::ParkOptions { interruptible: false, deadline_ns: Some(now + 2_000_000) });
    Outcome::Retry
}
