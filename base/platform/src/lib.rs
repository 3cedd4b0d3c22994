//! What a library of the house may ask of the machine it runs on.
//!
//! The crates under `base/`, `fs/` and `net/` are built twice: for the kernel (`target_os = "none"`) and for the host,
//! where their tests run. Whatever they need from below (the current thread, preemption, interrupts, time, random
//! numbers, page frames) they take from this crate. On the kernel target each function is a direct call of a symbol that
//! the kernel defines (see `kernel/src/platform_impl.rs`); on the host [`host`] implements the same with `std`.
//!
//! A trait object would do as well; link-time symbols were chosen because preemption and interrupt control stand on the
//! path of every lock and must inline to a few instructions under link-time optimisation.
//!
//! # Invariants
//! - Frames handed out by [`page`] are exactly [`PAGE_SIZE`] bytes, aligned to it.
//! - A [`Waiter`] keeps its thread's memory alive; unparking a thread that has exited does nothing.
//! - `park` may return spuriously: every sleeper re-checks its condition.
#![cfg_attr(target_os = "none", no_std)]

#[cfg(not(target_os = "none"))]
pub mod host;
#[cfg(not(target_os = "none"))]
use host as imp;
#[cfg(target_os = "none")]
mod kernel_hooks;
#[cfg(target_os = "none")]
use kernel_hooks as imp;

pub mod bytes;
pub mod page;

pub use bytes::{ReadSink, SharedBytes, SharedBytesMut, SliceSink, SliceSource, WriteSource};
pub use page::{PAGE_SHIFT, PAGE_SIZE, Page};

/// Disables preemption of the calling thread; nests. Context: any.
#[inline(always)]
pub fn preempt_disable() {
    imp::preempt_disable();
}

/// Undoes one [`preempt_disable`]; at the outermost one, switches threads if that was asked for meanwhile (so it may
/// switch, never sleep). Context: any.
#[inline(always)]
pub fn preempt_enable() {
    imp::preempt_enable();
}

/// Masks interrupts on this CPU and returns the former state for [`irq_restore`]. Context: any.
#[inline(always)]
pub fn irq_save() -> usize {
    imp::irq_save()
}

/// Restores the interrupt mask that [`irq_save`] returned.
#[inline(always)]
pub fn irq_restore(state: usize) {
    imp::irq_restore(state);
}

/// A hint to the CPU that it spins.
#[inline(always)]
pub fn relax() {
    core::hint::spin_loop();
}

/// Whether the caller may sleep: preemption is enabled and interrupts are on.
#[inline]
pub fn may_sleep() -> bool {
    imp::may_sleep()
}

/// The calling CPU's index. Meaningful only while preemption is disabled.
#[inline(always)]
pub fn cpu_id() -> usize {
    imp::cpu_id()
}

/// Nanoseconds since boot (`CLOCK_MONOTONIC`). Context: any.
#[inline]
pub fn monotonic_ns() -> u64 {
    imp::monotonic_ns()
}

/// Nanoseconds since 1970 (`CLOCK_REALTIME`). Context: any.
#[inline]
pub fn realtime_ns() -> u64 {
    imp::realtime_ns()
}

/// 64 bits from the kernel's CSPRNG. Context: any.
pub fn random_u64() -> u64 {
    imp::random_u64()
}

/// A reference to a thread that can be woken. Cloning counts references.
#[derive(Debug)]
pub struct Waiter(usize);

impl Waiter {
    /// The calling thread. Context: thread.
    #[inline]
    pub fn current() -> Self {
        Waiter(imp::waiter_current())
    }

    /// Makes the thread runnable if it is parked; otherwise its next [`park`] returns at once. Context: any.
    #[inline]
    pub fn unpark(&self) {
        imp::waiter_unpark(self.0, false);
    }

    /// As [`Waiter::unpark`], with the hint that the caller is about to sleep: the woken thread may as well run on this
    /// CPU.
    #[inline]
    pub fn unpark_sync(&self) {
        imp::waiter_unpark(self.0, true);
    }

    /// Whether both name the same thread.
    #[inline]
    pub fn same(&self, other: &Waiter) -> bool {
        self.0 == other.0
    }

    /// The reference as a number, leaving its count with the number. Undone by [`Waiter::from_raw`].
    #[inline]
    pub fn into_raw(self) -> usize {
        let raw = self.0;
        core::mem::forget(self);
        raw
    }

    /// Takes back what [`Waiter::into_raw`] gave.
    ///
    /// # Safety
    /// `raw` came from [`Waiter::into_raw`] and is taken back once.
    #[inline]
    pub unsafe fn from_raw(raw: usize) -> Self {
        Waiter(raw)
    }
}

impl Clone for Waiter {
    #[inline]
    fn clone(&self) -> Self {
        imp::waiter_ref(self.0);
        Waiter(self.0)
    }
}

impl Drop for Waiter {
    #[inline]
    fn drop(&mut self) {
        imp::waiter_unref(self.0);
    }
}

/// Why [`park`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Unparked, or for no reason at all.
    Unparked,
    /// The deadline passed.
    TimedOut,
    /// A signal is pending (only where the park was interruptible).
    Interrupted,
}

/// How [`park`] sleeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct ParkOptions {
    /// Return [`Wake::Interrupted`] when a signal is pending for the thread.
    pub interruptible: bool,
    /// Return [`Wake::TimedOut`] at this time on the monotonic clock, in nanoseconds.
    pub deadline_ns: Option<u64>,
}

/// Sleeps until unparked. The protocol is: publish a [`Waiter`], check the condition, park, check again. An unpark
/// between the check and the park is not lost (the park returns at once). Context: thread, may sleep.
#[inline]
pub fn park(options: ParkOptions) -> Wake {
    imp::park(options)
}

/// Storage for the debug build's record of the locks that the current context holds; see the crate `sync`.
#[cfg(debug_assertions)]
pub fn held_locks() -> *mut HeldLocks {
    imp::held_locks()
}

/// The locks that one thread of control holds, innermost last (debug builds).
#[derive(Debug)]
pub struct HeldLocks {
    /// Number of entries in use.
    pub len: usize,
    /// `(rank, name)` of each.
    pub entries: [(u16, &'static str); 24],
}

impl HeldLocks {
    /// None held.
    pub const fn new() -> Self {
        HeldLocks { len: 0, entries: [(0, ""); 24] }
    }
}

impl Default for HeldLocks {
    fn default() -> Self {
        Self::new()
    }
}
