//! Policies, priorities, affinity, QoS: what the system calls about scheduling do (sched(7)).
//!
//! The functions take the target and what the caller may do ([`Authority`], which the caller derives from credentials
//! and limits); finding the target and copying from and to user memory is their callers' business. A refusal changes
//! nothing. All changes of one kind or another are under one lock, `CHANGE`, so that policy, nice value, QoS class and
//! affinity of a thread each change as a whole.

use super::state::Handle;
use super::{CPUS, ONLINE, act, cpu_id, current, place, place_new, resched, yield_now};
use crate::arch::percpu;
use crate::task::Thread;
use abi::{Errno, Result, linux};
use core::sync::atomic::{AtomicU32, Ordering, fence};
use sched_policy::{
    Arrival, CpuMask, Nice, Policy, QosClass, QosError, QosTarget, RR_QUANTUM_NS, RtPriority, RunState,
    authorize_entity_qos,
};
use sync::{IrqLock, LockClass};

static CHANGE_CLASS: LockClass = LockClass::new("scheduling parameters", sync::rank::RUNQUEUE - 5);
static CHANGE: IrqLock<()> = IrqLock::new(&CHANGE_CLASS, ());

/// What a caller may do to a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The caller's effective user is the target's real or effective user.
    pub owner: bool,
    /// `CAP_SYS_NICE`.
    pub sys_nice: bool,
    /// The target's soft `RLIMIT_RTPRIO`.
    pub rtprio_limit: u64,
    /// The target's soft `RLIMIT_NICE` (20 - the lowest nice value).
    pub nice_limit: u64,
}

impl Authority {
    fn may_nice(&self, from: i32, to: i32) -> bool {
        to >= from || self.sys_nice || (20 - to) as u64 <= self.nice_limit
    }
}

/// The numbers of `struct sched_attr` that mean something here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// `SCHED_*` without flags.
    pub policy: u32,
    /// `SCHED_FLAG_*`: only reset-on-fork, keep-policy and keep-params are known.
    pub flags: u64,
    /// Nice value of the fair policies.
    pub nice: i32,
    /// Priority of the real-time ones.
    pub priority: u32,
}

/// `struct sched_attr` of version 0 has this size; `sched_setattr` takes larger ones whose rest is zero.
pub const ATTR_SIZE: usize = 48;

impl Attr {
    /// From the first bytes of `struct sched_attr`.
    pub fn from_bytes(b: &[u8; ATTR_SIZE]) -> Attr {
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        Attr {
            policy: word(4),
            flags: word(8) as u64 | (word(12) as u64) << 32,
            nice: word(16) as i32,
            priority: word(20),
        }
    }

    /// As the first bytes of `struct sched_attr`.
    pub fn to_bytes(self) -> [u8; ATTR_SIZE] {
        let mut b = [0; ATTR_SIZE];
        b[..4].copy_from_slice(&(ATTR_SIZE as u32).to_le_bytes());
        b[4..8].copy_from_slice(&self.policy.to_le_bytes());
        b[8..16].copy_from_slice(&self.flags.to_le_bytes());
        b[16..20].copy_from_slice(&self.nice.to_le_bytes());
        b[20..24].copy_from_slice(&self.priority.to_le_bytes());
        b
    }
}

/// `sched_get_priority_max(2)`; `EINVAL` for an unknown policy.
pub fn priority_max(policy: u32) -> Result<usize> {
    match policy {
        linux::SCHED_FIFO | linux::SCHED_RR => Ok(99),
        linux::SCHED_NORMAL | linux::SCHED_BATCH | linux::SCHED_IDLE | linux::SCHED_DEADLINE => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// `sched_get_priority_min(2)`; `EINVAL` for an unknown policy.
pub fn priority_min(policy: u32) -> Result<usize> {
    priority_max(policy).map(|max| max.min(1))
}

/// `sched_rr_get_interval(2)`, in nanoseconds.
pub fn rr_interval_ns(t: &Thread) -> u64 {
    match t.sched.entity.policy() {
        Policy::Rr(_) => RR_QUANTUM_NS as u64,
        Policy::Fifo(_) => 0,
        _ => t.sched.entity.qos().slice_ns() as u64,
    }
}

/// A policy in a word; 0: none.
#[derive(Debug, Default)]
struct Kept(AtomicU32);

impl Kept {
    fn get(&self) -> Option<Policy> {
        let word = self.0.load(Ordering::Relaxed);
        if word == 0 {
            return None;
        }
        let low = (word & 0xff) as i32;
        let kind = word >> 8 & 0xff;
        // The low byte is a priority, or a nice value plus 20.
        make_policy(kind, low as u32, 0)
            .ok()
            .filter(|p| p.is_realtime())
            .or_else(|| make_policy(kind, 0, low - 20).ok())
    }

    fn set(&self, to: Option<Policy>) {
        let word = |p: Policy| {
            let low = match p {
                Policy::Fair(n) | Policy::Batch(n) => (n.get() + 20) as u32,
                Policy::Idle => 0,
                Policy::Fifo(p) | Policy::Rr(p) => p.get() as u32,
            };
            1 << 16 | number(p).0 << 8 | low
        };
        self.0.store(to.map_or(0, word), Ordering::Relaxed);
    }
}

/// Priority inheritance: a thread that holds what another waits for runs with that one's policy while it is the stronger
/// one. Written under `CHANGE`.
#[derive(Debug, Default)]
pub struct Boost {
    /// What it inherits.
    inherited: Kept,
    /// Its own policy, while it inherits.
    own: Kept,
}

impl Boost {
    /// The thread's own policy, if `now` is the one it runs with.
    pub fn own(&self, now: Policy) -> Policy {
        self.own.get().unwrap_or(now)
    }
}

/// How strong a policy is: the order of inheritance. Real-time by priority, then fair ones by nice value, then idle.
fn rank(policy: Policy) -> u32 {
    match policy {
        Policy::Fifo(p) | Policy::Rr(p) => 100 + u32::from(p.get()),
        Policy::Fair(n) | Policy::Batch(n) => (40 - n.get()) as u32,
        Policy::Idle => 1,
    }
}

/// The policy that `t` runs with, inherited or its own.
pub fn effective(t: &Thread) -> Policy {
    t.sched.entity.policy()
}

/// The priority that `/proc` shows (proc(5)), inherited or its own: -2 to -100 for real-time ones, 0 to 39 for the others.
pub fn shown_priority(t: &Thread) -> i32 {
    match effective(t) {
        Policy::Fifo(p) | Policy::Rr(p) => -1 - i32::from(p.get()),
        Policy::Fair(n) | Policy::Batch(n) => 20 + n.get(),
        Policy::Idle => 20 + t.sched.nice(),
    }
}

/// [`effective`] as a number, larger for stronger.
pub fn effective_rank(t: &Thread) -> u32 {
    rank(effective(t))
}

/// Has `t` inherit `from` (or nothing more) while that is stronger than its own policy; whether that changed what it runs
/// with. Context: any.
pub fn set_boost(t: &Thread, from: Option<Policy>) -> bool {
    let _change = CHANGE.lock();
    let before = effective(t);
    let own = t.sched.boost.own(before);
    t.sched.boost.inherited.set(from);
    run_with(t, own);
    effective(t) != before
}

/// Makes `own` the policy of `t`, which runs with that or with what it inherits. Under `CHANGE`.
fn run_with(t: &Thread, own: Policy) {
    let inherited = t.sched.boost.inherited.get().filter(|&p| rank(p) > rank(own));
    t.sched.boost.own.set(inherited.map(|_| own));
    let to = inherited.unwrap_or(own);
    if to != effective(t) {
        apply(t, to, t.sched.entity.qos());
    }
}

/// The policy that `t` has by itself.
fn own_policy(t: &Thread) -> Policy {
    t.sched.boost.own(effective(t))
}

fn number(policy: Policy) -> (u32, u32) {
    match policy {
        Policy::Fair(_) => (linux::SCHED_NORMAL, 0),
        Policy::Batch(_) => (linux::SCHED_BATCH, 0),
        Policy::Idle => (linux::SCHED_IDLE, 0),
        Policy::Fifo(p) => (linux::SCHED_FIFO, p.get() as u32),
        Policy::Rr(p) => (linux::SCHED_RR, p.get() as u32),
    }
}

/// `sched_getscheduler(2)`: the policy, with `SCHED_RESET_ON_FORK` if that is set.
pub fn get_scheduler(t: &Thread) -> u32 {
    let reset = t.sched.reset_on_fork.load(Ordering::Relaxed);
    number(own_policy(t)).0 | if reset { linux::SCHED_RESET_ON_FORK } else { 0 }
}

/// `sched_getparam(2)`: the real-time priority, 0 for other policies.
pub fn get_priority(t: &Thread) -> u32 {
    number(own_policy(t)).1
}

/// `sched_getattr(2)`.
pub fn get_attr(t: &Thread) -> Attr {
    let (policy, priority) = number(own_policy(t));
    let reset = t.sched.reset_on_fork.load(Ordering::Relaxed);
    let flags = if reset { linux::SCHED_FLAG_RESET_ON_FORK as u64 } else { 0 };
    Attr { policy, flags, nice: if priority == 0 { t.sched.nice() } else { 0 }, priority }
}

/// `sched_setscheduler(2)`: `policy` may carry `SCHED_RESET_ON_FORK`.
pub fn set_scheduler(t: &Thread, policy: u32, priority: i32, by: &Authority) -> Result<()> {
    let reset = policy & linux::SCHED_RESET_ON_FORK != 0;
    let priority = u32::try_from(priority).map_err(|_| Errno::EINVAL)?;
    let policy = policy & !linux::SCHED_RESET_ON_FORK;
    let flags = if reset { linux::SCHED_FLAG_RESET_ON_FORK as u64 } else { 0 };
    set_attr(t, &Attr { policy, flags, nice: t.sched.nice(), priority }, by)
}

/// `sched_setparam(2)`.
pub fn set_param(t: &Thread, priority: i32, by: &Authority) -> Result<()> {
    set_scheduler(t, get_scheduler(t), priority, by)
}

/// `sched_setattr(2)`. `EINVAL`: unknown policy or flag, priority out of range; `EPERM` by the rules of sched(7).
pub fn set_attr(t: &Thread, attr: &Attr, by: &Authority) -> Result<()> {
    let known =
        (linux::SCHED_FLAG_RESET_ON_FORK | linux::SCHED_FLAG_KEEP_POLICY | linux::SCHED_FLAG_KEEP_PARAMS) as u64;
    if attr.flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let _change = CHANGE.lock();
    let old = own_policy(t);
    let (old_number, old_priority) = number(old);
    let keeps = |flag: u32| attr.flags & flag as u64 != 0;
    let kind = if keeps(linux::SCHED_FLAG_KEEP_POLICY) { old_number } else { attr.policy };
    let (priority, nice) =
        if keeps(linux::SCHED_FLAG_KEEP_PARAMS) { (old_priority, t.sched.nice()) } else { (attr.priority, attr.nice) };
    let new = make_policy(kind, priority, nice)?;
    check_permission(t, old, new, nice, by)?;
    let reset = keeps(linux::SCHED_FLAG_RESET_ON_FORK);
    if !reset && t.sched.reset_on_fork.load(Ordering::Relaxed) && !by.sys_nice {
        return Err(Errno::EPERM);
    }
    t.sched.reset_on_fork.store(reset, Ordering::Relaxed);
    if !new.is_realtime() {
        t.sched.nice.store(nice as i8, Ordering::Relaxed);
    }
    run_with(t, new);
    Ok(())
}

fn make_policy(kind: u32, priority: u32, nice: i32) -> Result<Policy> {
    let rt = || RtPriority::new(i32::try_from(priority).unwrap_or(-1)).ok_or(Errno::EINVAL);
    let fair = || if priority == 0 { Nice::new(nice).ok_or(Errno::EINVAL) } else { Err(Errno::EINVAL) };
    Ok(match kind {
        linux::SCHED_NORMAL => Policy::Fair(fair()?),
        linux::SCHED_BATCH => Policy::Batch(fair()?),
        linux::SCHED_IDLE => {
            fair()?;
            Policy::Idle
        }
        linux::SCHED_FIFO => Policy::Fifo(rt()?),
        linux::SCHED_RR => Policy::Rr(rt()?),
        _ => return Err(Errno::EINVAL),
    })
}

fn check_permission(t: &Thread, old: Policy, new: Policy, nice: i32, by: &Authority) -> Result<()> {
    if by.sys_nice {
        return Ok(());
    }
    if !by.owner {
        return Err(Errno::EPERM);
    }
    let (old_kind, old_priority) = number(old);
    let (new_kind, new_priority) = number(new);
    let allowed = if new.is_realtime() {
        // Within the limit anything goes; without one a thread may lower its priority under the same policy.
        let limit = by.rtprio_limit;
        (limit > 0 || new_kind == old_kind) && (new_priority <= old_priority || new_priority as u64 <= limit)
    } else {
        by.may_nice(t.sched.nice(), nice)
            && (old != Policy::Idle || new == Policy::Idle || by.may_nice(20, t.sched.nice()))
    };
    if allowed { Ok(()) } else { Err(Errno::EPERM) }
}

/// The target part of `setpriority(2)`: sets the nice value (out-of-range ones are forced into range). `EPERM`: not the
/// caller's thread; `EACCES`: lower than the caller may.
pub fn set_nice(t: &Thread, nice: i32, by: &Authority) -> Result<()> {
    let nice = Nice::clamped(nice);
    if !by.owner && !by.sys_nice {
        return Err(Errno::EPERM);
    }
    let _change = CHANGE.lock();
    if !by.may_nice(t.sched.nice(), nice.get()) {
        return Err(Errno::EACCES);
    }
    t.sched.nice.store(nice.get() as i8, Ordering::Relaxed);
    let new = match own_policy(t) {
        Policy::Fair(_) => Policy::Fair(nice),
        Policy::Batch(_) => Policy::Batch(nice),
        _ => return Ok(()),
    };
    run_with(t, new);
    Ok(())
}

/// The QoS class of `t`.
pub fn get_qos(t: &Thread) -> QosClass {
    t.sched.entity.qos()
}

/// Sets the QoS class of `t` to the one numbered `raw`. `EINVAL`: no such class; `EPERM`: a higher one, or another's
/// thread, without authority (`CAP_SYS_NICE`); `EAGAIN`: no place left in that class. A refusal changes nothing.
pub fn set_qos(t: &Thread, raw: u64, by: &Authority) -> Result<()> {
    let _change = CHANGE.lock();
    let whose = if core::ptr::eq(t, current()) { QosTarget::Caller } else { QosTarget::Other };
    let class = authorize_entity_qos(whose, &t.sched.entity, raw, by.sys_nice).map_err(|e| match e {
        QosError::InvalidClass => Errno::EINVAL,
        QosError::NotPermitted => Errno::EPERM,
    })?;
    if let Some(place) = t.sched.reservation() {
        place.change_class(class).map_err(|_| Errno::EAGAIN)?;
    }
    apply(t, t.sched.entity.policy(), class);
    Ok(())
}

/// A reference that the scheduler may keep as long as the thread has not exited; used here only to name it to a queue.
fn handle(t: &Thread) -> Handle {
    // SAFETY: a queue keeps a handle only of a thread that it already had one of.
    Handle(unsafe { &*core::ptr::from_ref(t) })
}

/// Tells the queue that `t` belongs to. Under `CHANGE`.
fn apply(t: &Thread, policy: Policy, qos: QosClass) {
    loop {
        let cpu = t.sched.entity.cpu().index();
        let mut q = CPUS[cpu].queue.lock();
        if t.sched.entity.cpu().index() != cpu {
            continue;
        }
        let now = crate::arch::time::now_ns();
        let kick = q.set_params(&handle(t), policy, qos, now);
        drop(q);
        act(cpu, kick, now);
        return;
    }
}

/// The CPUs that `t` may run on and that are online, as `sched_getaffinity(2)` shows them.
pub fn affinity(t: &Thread) -> CpuMask {
    t.sched.entity.affinity().and(&ONLINE.load())
}

/// How many bytes a mask takes that names every CPU the kernel knows: the least buffer for `sched_getaffinity(2)`, and
/// what it returns.
pub fn mask_bytes() -> usize {
    percpu::listed().div_ceil(64) * 8
}

/// A mask from the bytes that `sched_setaffinity(2)` got; what is beyond the known CPUs is ignored.
pub fn mask_from_bytes(bytes: &[u8]) -> CpuMask {
    let mut words = [0u64; 4];
    for (i, &b) in bytes.iter().take(32).enumerate() {
        words[i / 8] |= (b as u64) << (i % 8 * 8);
    }
    CpuMask::from_words(words)
}

/// `sched_setaffinity(2)`. `EPERM`: not the caller's thread; `EINVAL`: no CPU of the mask is online. When it returns, a
/// thread that was queued has moved, one that runs elsewhere has been told to, and the caller itself runs where it may.
pub fn set_affinity(t: &Thread, mask: &CpuMask, by: &Authority) -> Result<()> {
    if !by.owner && !by.sys_nice {
        return Err(Errno::EPERM);
    }
    if mask.and(&ONLINE.load()).is_empty() {
        return Err(Errno::EINVAL);
    }
    {
        let _change = CHANGE.lock();
        t.sched.entity.set_affinity(mask);
        // Between the mask and the look at where the thread is; pairs with the one in `place`.
        fence(Ordering::SeqCst);
        move_off(t);
    }
    if core::ptr::eq(t, current()) {
        let irq = crate::arch::irq_save();
        let leave = !mask.contains(cpu_id(percpu::id()));
        crate::arch::irq_restore(irq);
        if leave {
            yield_now();
        }
    }
    Ok(())
}

/// Moves `t` if it is where it may not be. Under `CHANGE`.
fn move_off(t: &Thread) {
    let e = &t.sched.entity;
    loop {
        let cpu = e.cpu();
        let mut q = CPUS[cpu.index()].queue.lock();
        if e.cpu() != cpu {
            continue;
        }
        if e.allows(cpu) {
            return;
        }
        match e.state() {
            // Whoever queues it looks at the mask.
            RunState::Off => return,
            RunState::Running => {
                drop(q);
                resched(cpu.index());
                return;
            }
            RunState::Queued => {
                let taken = q.detach(&handle(t), crate::arch::time::now_ns());
                CPUS[cpu.index()].load.store(q.runnable() as u32, Ordering::Relaxed);
                drop(q);
                if let Some(Handle(t)) = taken {
                    place(t, place_new(t, percpu::id()), Arrival::Migrated);
                }
                return;
            }
        }
    }
}
