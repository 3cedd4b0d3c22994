//! Ways to break the scheduler on purpose (`berth.sabotage=`), so that gates can show that they would notice:
//!
//! - `one-runqueue`: all threads are queued on CPU 0, none is stolen or moved;
//! - `no-preempt`: the end of a thread's time is hardly ever acted upon;
//! - `lost-wakeup`: of the wake-ups of sleeping threads one in some thousands never happens;
//! - `resched-ipi`: of the reschedule interrupts that programs called `smp` ask for, one in fifty is not sent.
//!
//! Each costs the hot path that it is in one load of a word that is otherwise only read.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

static ONE_QUEUE: AtomicBool = AtomicBool::new(false);
static NO_PREEMPT: AtomicBool = AtomicBool::new(false);
static LOSE: AtomicBool = AtomicBool::new(false);
/// Slices that ended; of so many one is acted upon, or the machine would stand still.
static SLICES: AtomicU32 = AtomicU32::new(0);
const END_ONE_IN: u32 = 300;
static WAKEUPS: AtomicU32 = AtomicU32::new(0);
/// One wake-up in this many is lost: enough of them work for the machine to boot.
const LOSE_ONE_IN: u32 = 5000;

static LOSE_SGI: AtomicBool = AtomicBool::new(false);
static SGIS: AtomicU32 = AtomicU32::new(0);
const LOSE_SGI_ONE_IN: u32 = 50;

/// Reads the command line; on the boot CPU, before there are threads.
pub(super) fn init() {
    let asked = crate::machine::sabotaged;
    ONE_QUEUE.store(asked("one-runqueue") || crate::arch::percpu::listed() == 1, Ordering::Relaxed);
    NO_PREEMPT.store(asked("no-preempt"), Ordering::Relaxed);
    LOSE.store(asked("lost-wakeup"), Ordering::Relaxed);
    LOSE_SGI.store(asked("resched-ipi"), Ordering::Relaxed);
}

/// Whether CPU 0's is the only queue in use: there is no other CPU, or they are to stay unused.
#[inline]
pub(super) fn one_queue() -> bool {
    ONE_QUEUE.load(Ordering::Relaxed)
}

/// Whether this end of a slice is to be ignored.
#[inline]
pub(super) fn no_preempt() -> bool {
    NO_PREEMPT.load(Ordering::Relaxed) && !SLICES.fetch_add(1, Ordering::Relaxed).is_multiple_of(END_ONE_IN)
}

/// Whether this wake-up is to be lost.
#[inline]
pub(super) fn loses_wakeup() -> bool {
    LOSE.load(Ordering::Relaxed) && WAKEUPS.fetch_add(1, Ordering::Relaxed) % LOSE_ONE_IN == LOSE_ONE_IN - 1
}

/// Whether the reschedule interrupt that the running thread asks for is not to be sent.
#[inline]
pub(super) fn loses_sgi() -> bool {
    LOSE_SGI.load(Ordering::Relaxed)
        && super::current().name_str().as_str() == "smp"
        && SGIS.fetch_add(1, Ordering::Relaxed) % LOSE_SGI_ONE_IN == LOSE_SGI_ONE_IN - 1
}
