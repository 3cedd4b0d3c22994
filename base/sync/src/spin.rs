//! Spin locks: [`SpinLock`] disables preemption, [`IrqLock`] masks interrupts.
//!
//! Both are test-and-test-and-set. A queued lock would be fairer, but Berth runs on virtual CPUs that the host may
//! deschedule, and a queue of waiters behind a descheduled one stops everybody. Sections are short by rule.

use crate::order::{self, LockClass};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug)]
pub(crate) struct RawSpin(AtomicBool);

impl RawSpin {
    pub(crate) const fn new() -> Self {
        RawSpin(AtomicBool::new(false))
    }

    #[inline(always)]
    pub(crate) fn lock(&self) {
        if self.0.swap(true, Ordering::Acquire) {
            self.lock_slow();
        }
    }

    #[cold]
    #[inline(never)]
    fn lock_slow(&self) {
        loop {
            while self.0.load(Ordering::Relaxed) {
                platform::relax();
                #[cfg(not(target_os = "none"))]
                std::thread::yield_now();
            }
            if !self.0.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }

    #[inline(always)]
    pub(crate) fn try_lock(&self) -> bool {
        !self.0.load(Ordering::Relaxed) && !self.0.swap(true, Ordering::Acquire)
    }

    #[inline(always)]
    pub(crate) fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! spin_type {
    ($Lock:ident, $Guard:ident, $State:ty, $enter:expr, $leave:expr, $doc:literal) => {
        #[doc = $doc]
        pub struct $Lock<T: ?Sized> {
            class: &'static LockClass,
            raw: RawSpin,
            value: UnsafeCell<T>,
        }

        // SAFETY: the lock gives one context at a time access to the value.
        unsafe impl<T: ?Sized + Send> Send for $Lock<T> {}
        // SAFETY: as above.
        unsafe impl<T: ?Sized + Send> Sync for $Lock<T> {}

        impl<T> $Lock<T> {
            /// An unlocked lock of `class` around `value`.
            pub const fn new(class: &'static LockClass, value: T) -> Self {
                $Lock { class, raw: RawSpin::new(), value: UnsafeCell::new(value) }
            }

            /// The value, taken out of its lock.
            pub fn into_inner(self) -> T {
                self.value.into_inner()
            }
        }

        impl<T: ?Sized> $Lock<T> {
            /// Takes the lock, spinning while another holds it.
            #[inline(always)]
            #[track_caller]
            pub fn lock(&self) -> $Guard<'_, T> {
                self.lock_checked(false)
            }

            /// As `lock`, where a lock of the same class is already held in an order that the caller keeps (state it at
            /// the call).
            #[inline(always)]
            #[track_caller]
            pub fn lock_nested(&self) -> $Guard<'_, T> {
                self.lock_checked(true)
            }

            #[inline(always)]
            #[track_caller]
            fn lock_checked(&self, nested: bool) -> $Guard<'_, T> {
                let state: $State = $enter();
                order::acquire(self.class, nested);
                self.raw.lock();
                $Guard { lock: self, state, not_send: PhantomData }
            }

            /// Takes the lock if it is free.
            #[inline]
            pub fn try_lock(&self) -> Option<$Guard<'_, T>> {
                let state: $State = $enter();
                if self.raw.try_lock() {
                    order::acquired_by_try(self.class);
                    Some($Guard { lock: self, state, not_send: PhantomData })
                } else {
                    $leave(state);
                    None
                }
            }

            /// Unlocks what a forgotten guard had locked; the interrupt mask or preemption count stays as it is.
            ///
            /// # Safety
            /// The lock is held by the calling CPU, and its guard was forgotten.
            #[inline]
            pub unsafe fn force_unlock(&self) {
                self.raw.unlock();
                order::release(self.class);
            }

            /// Whether somebody holds it (a snapshot, for reports).
            pub fn is_locked(&self) -> bool {
                self.raw.is_locked()
            }

            /// The value, which exclusive access makes safe to reach without locking.
            pub fn get_mut(&mut self) -> &mut T {
                self.value.get_mut()
            }

            /// Where the value is, for a panic that must look at it whoever holds the lock.
            pub fn as_ptr(&self) -> *mut T {
                self.value.get()
            }
        }

        impl<T: ?Sized> fmt::Debug for $Lock<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($Lock)).field("class", &self.class.name).finish_non_exhaustive()
            }
        }

        /// Access to the locked value; dropping it unlocks.
        #[must_use]
        pub struct $Guard<'a, T: ?Sized> {
            lock: &'a $Lock<T>,
            state: $State,
            not_send: PhantomData<*mut ()>,
        }

        impl<T: ?Sized> Deref for $Guard<'_, T> {
            type Target = T;
            #[inline(always)]
            fn deref(&self) -> &T {
                // SAFETY: the guard holds the lock.
                unsafe { &*self.lock.value.get() }
            }
        }

        impl<T: ?Sized> DerefMut for $Guard<'_, T> {
            #[inline(always)]
            fn deref_mut(&mut self) -> &mut T {
                // SAFETY: the guard holds the lock, and is itself borrowed exclusively.
                unsafe { &mut *self.lock.value.get() }
            }
        }

        impl<T: ?Sized> Drop for $Guard<'_, T> {
            #[inline(always)]
            fn drop(&mut self) {
                self.lock.raw.unlock();
                order::release(self.lock.class);
                $leave(self.state);
            }
        }

        impl<T: ?Sized + fmt::Debug> fmt::Debug for $Guard<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (**self).fmt(f)
            }
        }
    };
}

#[inline(always)]
fn enter_preempt() {
    platform::preempt_disable();
}
#[inline(always)]
fn leave_preempt(_: ()) {
    platform::preempt_enable();
}

spin_type!(
    SpinLock,
    SpinGuard,
    (),
    enter_preempt,
    leave_preempt,
    "A spin lock that disables preemption while held. Not for data that interrupt handlers touch."
);
spin_type!(
    IrqLock,
    IrqGuard,
    usize,
    platform::irq_save,
    platform::irq_restore,
    "A spin lock that masks interrupts on the holding CPU. May be taken anywhere."
);
