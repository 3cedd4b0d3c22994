//! What the scheduler keeps in each thread.

use super::timer::Slot;
use crate::mm::AddressSpace;
use crate::task::Thread;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicI8, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use sched_policy::{CpuId, CpuMask, Entity, Nice, Policy, QosClass, Reservation, Task};

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
    /// The policy's part; written under the lock of the queue that the thread belongs to.
    pub(super) entity: Entity,
    /// Its place among the timers while it sleeps with a deadline.
    pub(super) timer: Slot,
    /// Its user address space, or null. Set by the thread itself (exec, exit) or before it first runs.
    pub mm: AtomicPtr<AddressSpace>,
    /// CPU time used up to the last time that it left a CPU, in nanoseconds. [`super::account::runtime_ns`] adds what
    /// has run since.
    pub runtime_ns: AtomicU64,
    /// Samples that found it in user mode.
    pub(super) user_samples: AtomicU64,
    /// Samples that found it in the kernel.
    pub(super) system_samples: AtomicU64,
    /// What was last reported as user time, which must not fall.
    pub(super) user_reported: AtomicU64,
    /// The nice value, kept while a real-time policy hides it.
    pub(super) nice: AtomicI8,
    /// What it inherits from who waits for it, and its own policy meanwhile; see [`super::policy::set_boost`].
    pub(super) boost: super::policy::Boost,
    /// Children start with the default policy (`SCHED_RESET_ON_FORK`).
    pub(super) reset_on_fork: AtomicBool,
    /// How late timed sleeps may end, in nanoseconds (`PR_SET_TIMERSLACK`); `u64::MAX`: as the QoS class says.
    pub slack_ns: AtomicU64,
    /// Its place in the run queues. Written before it first runs.
    reservation: UnsafeCell<Option<Reservation<'static>>>,
}

// SAFETY: `reservation` is written before the thread is shared with the scheduler, as `reserve` demands, and only read
// from then on; the rest is atomic.
unsafe impl Sync for SchedState {}
// SAFETY: as above.
unsafe impl Send for SchedState {}

impl SchedState {
    /// A normal thread that may run anywhere.
    pub fn new() -> Self {
        Self::with(Policy::Fair(Nice::ZERO), QosClass::Normal, CpuMask::ALL, CpuId::BOOT)
    }

    fn with(policy: Policy, qos: QosClass, affinity: CpuMask, cpu: CpuId) -> Self {
        SchedState {
            state: AtomicU32::new(PARKED),
            on_cpu: AtomicBool::new(false),
            entity: Entity::new(policy, qos, affinity, cpu),
            timer: Slot::new(),
            mm: AtomicPtr::new(core::ptr::null_mut()),
            runtime_ns: AtomicU64::new(0),
            user_samples: AtomicU64::new(0),
            system_samples: AtomicU64::new(0),
            user_reported: AtomicU64::new(0),
            nice: AtomicI8::new(0),
            boost: super::policy::Boost::default(),
            reset_on_fork: AtomicBool::new(false),
            slack_ns: AtomicU64::new(u64::MAX),
            reservation: UnsafeCell::new(None),
        }
    }

    /// As a child of `self` starts: same policy, nice value, QoS class and affinity, unless `self` asked that children
    /// start afresh (then a real-time policy becomes the normal one and a negative nice value 0; sched(7)).
    pub fn inherit(&self) -> Self {
        // What it inherits for a while is not its children's.
        let own = self.boost.own(self.entity.policy());
        let (mut policy, mut nice) = (own, self.nice.load(Ordering::Relaxed));
        let reset = self.reset_on_fork.load(Ordering::Relaxed);
        if reset {
            if nice < 0 {
                nice = 0;
            }
            policy = match policy {
                Policy::Batch(_) => Policy::Batch(Nice::clamped(nice as i32)),
                Policy::Idle => Policy::Idle,
                _ => Policy::Fair(Nice::clamped(nice as i32)),
            };
        }
        let child = Self::with(policy, self.entity.qos(), self.entity.affinity(), self.entity.cpu());
        child.nice.store(nice, Ordering::Relaxed);
        child.slack_ns.store(self.slack_ns.load(Ordering::Relaxed), Ordering::Relaxed);
        child
    }

    /// Gives the thread its place in the run queues. Only before [`super::spawn`], by whoever makes the thread.
    ///
    /// # Safety
    /// Nobody else reaches the thread yet.
    pub unsafe fn reserve(&self, place: Reservation<'static>) {
        // SAFETY: by contract.
        unsafe { *self.reservation.get() = Some(place) };
    }

    /// Its place in the run queues, from [`super::spawn`] on.
    pub(super) fn reservation(&self) -> Option<&Reservation<'static>> {
        // SAFETY: not written any more once shared.
        unsafe { (*self.reservation.get()).as_ref() }
    }

    /// Uses up a token.
    #[inline]
    pub(super) fn take_token(&self) -> bool {
        self.state.load(Ordering::Relaxed) == TOKEN
            && self.state.compare_exchange(TOKEN, RUNNABLE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether it is asleep (a snapshot, for /proc).
    pub fn is_parked(&self) -> bool {
        self.state.load(Ordering::Relaxed) == PARKED
    }

    /// The CPU that it last ran on or is queued on.
    pub fn last_cpu(&self) -> usize {
        self.entity.cpu().index()
    }

    /// The nice value.
    pub fn nice(&self) -> i32 {
        self.nice.load(Ordering::Relaxed) as i32
    }
}

impl Default for SchedState {
    fn default() -> Self {
        Self::new()
    }
}

/// How run queues know a thread. The scheduler's reference keeps it alive while it is queued or runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle(pub &'static Thread);

impl Task for Handle {
    #[inline(always)]
    fn entity(&self) -> &Entity {
        &self.0.sched.entity
    }
}
