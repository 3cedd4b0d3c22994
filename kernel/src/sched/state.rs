//! What the scheduler keeps in each thread.

use crate::mm::AddressSpace;
use crate::task::Thread;
use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Running or queued.
pub const RUNNABLE: u32 = 0;
/// Asleep.
pub const PARKED: u32 = 1;
/// Running or queued, and the next park returns at once.
pub const TOKEN: u32 = 2;
/// Exited.
pub const DEAD: u32 = 3;

/// A thread's scheduling state.
#[derive(Debug)]
pub struct SchedState {
    /// One of the constants above.
    pub(super) state: AtomicU32,
    /// Whether a CPU is on its stack.
    pub(super) on_cpu: AtomicBool,
    /// The CPU it runs on, is queued on, or last ran on.
    pub(super) cpu: AtomicU32,
    /// Its user address space, or null. Set by the thread itself (exec, exit) or before it first runs.
    pub mm: AtomicPtr<AddressSpace>,
    /// The CPUs it may run on (bit per CPU).
    pub affinity: AtomicU64,
    /// CPU time used, in nanoseconds.
    pub runtime_ns: AtomicU64,
    /// Under the lock of the queue it is on or runs from.
    pub(super) entity: UnsafeCell<Entity>,
    /// The next thread on the same queue. Under that queue's lock.
    next: Cell<*const Thread>,
}

// SAFETY: `entity` is under a queue lock as stated; the rest is atomic.
unsafe impl Sync for SchedState {}
// SAFETY: as above.
unsafe impl Send for SchedState {}

/// A scheduling policy with its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Fair share by nice value; `batch` threads do not preempt on waking.
    Fair {
        /// -20 to 19.
        nice: i8,
        /// SCHED_BATCH.
        batch: bool,
    },
    /// First in, first out at a priority of 1 to 99.
    Fifo(u8),
    /// Round robin at a priority of 1 to 99.
    RoundRobin(u8),
    /// Only when nothing else runs.
    Idle,
}

/// The policy's view of a thread.
#[derive(Clone, Copy, Debug)]
pub struct Entity {
    /// How it is scheduled.
    pub policy: Policy,
    /// Virtual run time, in weighted nanoseconds.
    pub vruntime: u64,
    /// Virtual deadline.
    pub deadline: u64,
    /// When it last started to run or was charged.
    pub since: u64,
    /// What is left of a round-robin slice, in nanoseconds.
    pub rr_left: u64,
}

impl SchedState {
    /// A normal thread that may run anywhere.
    pub fn new() -> Self {
        SchedState {
            state: AtomicU32::new(PARKED),
            on_cpu: AtomicBool::new(false),
            cpu: AtomicU32::new(0),
            mm: AtomicPtr::new(core::ptr::null_mut()),
            affinity: AtomicU64::new(u64::MAX),
            runtime_ns: AtomicU64::new(0),
            entity: UnsafeCell::new(Entity {
                policy: Policy::Fair { nice: 0, batch: false },
                vruntime: 0,
                deadline: 0,
                since: 0,
                rr_left: super::queue::RR_SLICE_NS,
            }),
            next: Cell::new(core::ptr::null()),
        }
    }

    /// As a child of `self` starts: same policy and affinity.
    pub fn inherit(&self) -> Self {
        let child = Self::new();
        child.affinity.store(self.affinity.load(Ordering::Relaxed), Ordering::Relaxed);
        child.cpu.store(self.cpu.load(Ordering::Relaxed), Ordering::Relaxed);
        // SAFETY: `self` is the running thread; only it and the holder of its queue's lock change the policy, and a torn
        // read of a policy that another is just setting cannot happen within one aligned word.
        unsafe { (*child.entity.get()).policy = (*self.entity.get()).policy };
        child
    }

    pub(super) fn next(&self) -> *const Thread {
        self.next.get()
    }

    pub(super) fn set_next(&self, next: *const Thread) {
        self.next.set(next);
    }

    /// Uses up a token.
    pub(super) fn take_token(&self) -> bool {
        self.state.compare_exchange(TOKEN, RUNNABLE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether it is asleep (a snapshot, for /proc).
    pub fn is_parked(&self) -> bool {
        self.state.load(Ordering::Relaxed) == PARKED
    }

    /// The CPU that it last ran on.
    pub fn last_cpu(&self) -> usize {
        self.cpu.load(Ordering::Relaxed) as usize
    }
}

impl Default for SchedState {
    fn default() -> Self {
        Self::new()
    }
}
