//! The sleeping mutual-exclusion lock.

use crate::order::{self, LockClass};
use crate::wait::WaitQueue;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};
use platform::ParkOptions;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// A lock whose holder may sleep. Taking it may sleep (uninterruptibly), so it is for threads without spin locks.
pub struct Mutex<T: ?Sized> {
    class: &'static LockClass,
    state: AtomicU32,
    waiters: WaitQueue,
    value: UnsafeCell<T>,
}

// SAFETY: the lock gives one thread at a time access to the value.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// An unlocked mutex of `class` around `value`.
    pub const fn new(class: &'static LockClass, value: T) -> Self {
        Mutex { class, state: AtomicU32::new(FREE), waiters: WaitQueue::new(), value: UnsafeCell::new(value) }
    }

    /// The value, taken out of its lock.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the lock; sleeps while another thread holds it.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.lock_checked(false)
    }

    /// As `lock`, where a lock of the same class is already held in an order that the caller keeps.
    #[inline]
    #[track_caller]
    pub fn lock_nested(&self) -> MutexGuard<'_, T> {
        self.lock_checked(true)
    }

    #[inline]
    #[track_caller]
    fn lock_checked(&self, nested: bool) -> MutexGuard<'_, T> {
        debug_assert!(platform::may_sleep(), "sleeping lock {} in atomic context", self.class.name);
        order::acquire(self.class, nested);
        if self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.lock_slow();
        }
        MutexGuard { lock: self, not_send: PhantomData }
    }

    #[cold]
    #[inline(never)]
    fn lock_slow(&self) {
        for _ in 0..32 {
            if self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return;
            }
            platform::relax();
        }
        // A thread that has waited takes the lock as contended, so that its unlock wakes the next.
        let take = || (self.state.swap(CONTENDED, Ordering::Acquire) == FREE).then_some(());
        while self.waiters.wait_until(ParkOptions::default(), take).is_err() {}
    }

    /// Takes the lock if it is free. Never sleeps.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).ok()?;
        order::acquired_by_try(self.class);
        Some(MutexGuard { lock: self, not_send: PhantomData })
    }

    /// The value, which exclusive access makes safe to reach without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").field("class", &self.class.name).finish_non_exhaustive()
    }
}

/// Access to a [`Mutex`]'s value; dropping it unlocks.
#[must_use]
pub struct MutexGuard<'a, T: ?Sized> {
    lock: &'a Mutex<T>,
    not_send: PhantomData<*mut ()>,
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, and is itself borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        order::release(self.lock.class);
        if self.lock.state.swap(FREE, Ordering::Release) == CONTENDED {
            self.lock.waiters.wake_one();
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
