//! What the scheduler keeps in every thread.
//!
//! The kernel embeds one [`Entity`] in each thread. Its fields are written only under the lock of the run queue that the
//! thread belongs to ([`Entity::cpu`]), by this crate; they are atomics with relaxed order, plain loads and stores in
//! the machine, so that anybody may read them without the lock as a hint or for a report (`/proc`, `getpriority(2)`),
//! and so that no unsafe code is needed to reach them. Virtual run time and deadline are not here: they live in the
//! queue while the thread is queued or runs, and mean nothing outside it; what outlives a queue is the lag.

use core::sync::atomic::{AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::cpumask::{AtomicCpuMask, CpuId, CpuMask};
use crate::params::{Params, Policy, RR_QUANTUM_NS, inverse_weight};
use crate::qos::QosClass;

/// A handle by which a run queue knows a thread: cheap to move (a counted pointer), never copied by this crate.
pub trait Task {
    /// The scheduler's part of the thread; the same one for as long as the thread lives.
    fn entity(&self) -> &Entity;
}

/// Where a thread is, as its run queue sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RunState {
    /// In no run queue: it sleeps, is on its way between two queues, or has not started.
    Off = 0,
    /// In the queue of [`Entity::cpu`].
    Queued = 1,
    /// Running on [`Entity::cpu`].
    Running = 2,
}

/// The scheduler's part of a thread.
#[derive(Debug)]
pub struct Entity {
    params: AtomicU32,
    weight: AtomicU32,
    inverse: AtomicU32,
    slice_ns: AtomicU32,
    lag: AtomicI64,
    left_at: AtomicU64,
    exec_ns: AtomicU64,
    rr_left: AtomicU32,
    cpu: AtomicU16,
    state: AtomicU8,
    affinity: AtomicCpuMask,
}

impl Entity {
    /// A thread that has not run yet. It belongs to `cpu`, which `affinity` should contain.
    pub fn new(policy: Policy, qos: QosClass, affinity: CpuMask, cpu: CpuId) -> Self {
        let weight = policy.weight();
        Self {
            params: AtomicU32::new(Params::new(policy, qos).0),
            weight: AtomicU32::new(weight),
            inverse: AtomicU32::new(inverse_weight(weight)),
            slice_ns: AtomicU32::new(qos.slice_ns()),
            lag: AtomicI64::new(0),
            left_at: AtomicU64::new(0),
            exec_ns: AtomicU64::new(0),
            rr_left: AtomicU32::new(RR_QUANTUM_NS),
            cpu: AtomicU16::new(cpu.index() as u16),
            state: AtomicU8::new(RunState::Off as u8),
            affinity: AtomicCpuMask::new(affinity),
        }
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.params().policy()
    }

    /// The QoS class.
    #[inline]
    pub fn qos(&self) -> QosClass {
        self.params().qos()
    }

    /// CPU time used, in ns, up to the last time that the thread left a CPU.
    #[inline]
    pub fn exec_ns(&self) -> u64 {
        self.exec_ns.load(Relaxed)
    }

    /// The CPU whose run queue the thread is in, or was in last.
    #[inline]
    pub fn cpu(&self) -> CpuId {
        CpuId::new(self.cpu.load(Relaxed) as usize).unwrap_or(CpuId::BOOT)
    }

    /// Where the thread is. Stable only under the lock of the queue of [`Self::cpu`].
    #[inline]
    pub fn state(&self) -> RunState {
        match self.state.load(Relaxed) {
            0 => RunState::Off,
            1 => RunState::Queued,
            _ => RunState::Running,
        }
    }

    /// May the thread run on `cpu`?
    #[inline]
    pub fn allows(&self, cpu: CpuId) -> bool {
        self.affinity.contains(cpu)
    }

    /// The CPUs that the thread may run on.
    pub fn affinity(&self) -> CpuMask {
        self.affinity.load()
    }

    /// Replaces the CPUs that the thread may run on. Under the lock of the thread's run queue; the caller moves the thread
    /// away if it is queued or runs on a CPU that is now forbidden.
    pub fn set_affinity(&self, mask: &CpuMask) {
        self.affinity.store(mask);
    }

    #[inline]
    pub(crate) fn params(&self) -> Params {
        Params(self.params.load(Relaxed))
    }

    pub(crate) fn set_params(&self, policy: Policy, qos: QosClass) {
        let weight = policy.weight();
        self.params.store(Params::new(policy, qos).0, Relaxed);
        self.weight.store(weight, Relaxed);
        self.inverse.store(inverse_weight(weight), Relaxed);
        self.slice_ns.store(qos.slice_ns(), Relaxed);
    }

    #[inline]
    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    #[inline]
    pub(crate) fn inverse(&self) -> u32 {
        self.inverse.load(Relaxed)
    }

    #[inline]
    pub(crate) fn slice_ns(&self) -> u32 {
        self.slice_ns.load(Relaxed)
    }

    #[inline]
    pub(crate) fn lag(&self) -> i64 {
        self.lag.load(Relaxed)
    }

    #[inline]
    pub(crate) fn set_lag(&self, lag: i64) {
        self.lag.store(lag, Relaxed);
    }

    /// When the thread left its queue with a debt (ns).
    #[inline]
    pub(crate) fn left_at(&self) -> u64 {
        self.left_at.load(Relaxed)
    }

    #[inline]
    pub(crate) fn set_left_at(&self, now: u64) {
        self.left_at.store(now, Relaxed);
    }

    #[inline]
    pub(crate) fn add_exec(&self, ns: u64) {
        self.exec_ns.store(self.exec_ns.load(Relaxed).wrapping_add(ns), Relaxed);
    }

    #[inline]
    pub(crate) fn rr_left(&self) -> u32 {
        self.rr_left.load(Relaxed)
    }

    #[inline]
    pub(crate) fn set_rr_left(&self, ns: u32) {
        self.rr_left.store(ns, Relaxed);
    }

    #[inline]
    pub(crate) fn set_state(&self, state: RunState) {
        self.state.store(state as u8, Relaxed);
    }

    #[inline]
    pub(crate) fn set_cpu(&self, cpu: CpuId) {
        self.cpu.store(cpu.index() as u16, Relaxed);
    }
}
