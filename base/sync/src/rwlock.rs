//! The sleeping readers-writer lock.
//!
//! One word holds the number of readers, a writer bit and a waiting bit. A waiting writer keeps new readers out (the
//! waiting bit sends them to sleep), so writers are not starved; a thread must therefore not take a read lock twice.

use crate::order::{self, LockClass};
use crate::wait::WaitQueue;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};
use platform::ParkOptions;

const WRITER: u32 = 1 << 31;
const WAITING: u32 = 1 << 30;
const READERS: u32 = WAITING - 1;

/// A lock that many readers or one writer hold; holders may sleep. For threads without spin locks.
pub struct RwLock<T: ?Sized> {
    class: &'static LockClass,
    state: AtomicU32,
    waiters: WaitQueue,
    value: UnsafeCell<T>,
}

// SAFETY: writers are alone, readers share.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}
// SAFETY: as above; readers on several threads need `T: Sync`.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    /// An unlocked lock of `class` around `value`.
    pub const fn new(class: &'static LockClass, value: T) -> Self {
        RwLock { class, state: AtomicU32::new(0), waiters: WaitQueue::new(), value: UnsafeCell::new(value) }
    }

    /// The value, taken out of its lock.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Takes the lock for reading; sleeps while a writer holds it or waits for it.
    #[inline]
    #[track_caller]
    pub fn read(&self) -> RwReadGuard<'_, T> {
        self.read_checked(false)
    }

    /// As `read`, where a lock of the same class is already held in an order that the caller keeps.
    #[inline]
    #[track_caller]
    pub fn read_nested(&self) -> RwReadGuard<'_, T> {
        self.read_checked(true)
    }

    #[inline]
    #[track_caller]
    fn read_checked(&self, nested: bool) -> RwReadGuard<'_, T> {
        debug_assert!(platform::may_sleep(), "sleeping lock {} in atomic context", self.class.name);
        order::acquire(self.class, nested);
        if !self.try_read_raw() {
            self.wait(|| self.try_read_raw());
        }
        RwReadGuard { lock: self, not_send: PhantomData }
    }

    /// Takes the lock for writing; sleeps while anyone holds it.
    #[inline]
    #[track_caller]
    pub fn write(&self) -> RwWriteGuard<'_, T> {
        self.write_checked(false)
    }

    /// As `write`, where a lock of the same class is already held in an order that the caller keeps.
    #[inline]
    #[track_caller]
    pub fn write_nested(&self) -> RwWriteGuard<'_, T> {
        self.write_checked(true)
    }

    #[inline]
    #[track_caller]
    fn write_checked(&self, nested: bool) -> RwWriteGuard<'_, T> {
        debug_assert!(platform::may_sleep(), "sleeping lock {} in atomic context", self.class.name);
        order::acquire(self.class, nested);
        if self.state.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.wait(|| self.try_write_raw());
        }
        RwWriteGuard { lock: self, not_send: PhantomData }
    }

    #[inline]
    fn try_read_raw(&self) -> bool {
        let mut s = self.state.load(Ordering::Relaxed);
        while s & (WRITER | WAITING) == 0 {
            match self.state.compare_exchange_weak(s, s + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => s = now,
            }
        }
        false
    }

    fn try_write_raw(&self) -> bool {
        let mut s = self.state.load(Ordering::Relaxed);
        while s & (WRITER | READERS) == 0 {
            match self.state.compare_exchange_weak(s, s | WRITER, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => s = now,
            }
        }
        false
    }

    /// Sleeps until `take` succeeds. The waiting bit is set while anyone sleeps: the release that finds it clears it and
    /// wakes all, and whoever still fails sets it again.
    #[cold]
    #[inline(never)]
    fn wait(&self, take: impl Fn() -> bool) {
        for _ in 0..32 {
            if take() {
                return;
            }
            platform::relax();
        }
        let attempt = || {
            if take() {
                return Some(());
            }
            self.state.fetch_or(WAITING, Ordering::Relaxed);
            // The holder may have gone between the two: then nobody would clear the bit.
            if self.state.load(Ordering::Relaxed) & (WRITER | READERS) == 0 {
                self.state.fetch_and(!WAITING, Ordering::Relaxed);
                self.waiters.wake_all();
                if take() {
                    return Some(());
                }
            }
            None
        };
        while self.waiters.wait_until(ParkOptions::default(), attempt).is_err() {}
    }

    #[cold]
    #[inline(never)]
    fn wake(&self) {
        self.state.fetch_and(!WAITING, Ordering::Relaxed);
        self.waiters.wake_all();
    }

    /// Takes the lock for reading if that needs no sleep.
    pub fn try_read(&self) -> Option<RwReadGuard<'_, T>> {
        if !self.try_read_raw() {
            return None;
        }
        order::acquired_by_try(self.class);
        Some(RwReadGuard { lock: self, not_send: PhantomData })
    }

    /// Takes the lock for writing if that needs no sleep.
    pub fn try_write(&self) -> Option<RwWriteGuard<'_, T>> {
        if !self.try_write_raw() {
            return None;
        }
        order::acquired_by_try(self.class);
        Some(RwWriteGuard { lock: self, not_send: PhantomData })
    }

    /// The value, which exclusive access makes safe to reach without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: ?Sized> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").field("class", &self.class.name).finish_non_exhaustive()
    }
}

/// Shared access to a [`RwLock`]'s value.
#[must_use]
pub struct RwReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    not_send: PhantomData<*mut ()>,
}

impl<T: ?Sized> Deref for RwReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard is one of the readers.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for RwReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        order::release(self.lock.class);
        let s = self.lock.state.fetch_sub(1, Ordering::Release);
        if s & WAITING != 0 && s & READERS == 1 {
            self.lock.wake();
        }
    }
}

/// Exclusive access to a [`RwLock`]'s value.
#[must_use]
pub struct RwWriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    not_send: PhantomData<*mut ()>,
}

impl<T: ?Sized> Deref for RwWriteGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard is the writer.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for RwWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard is the writer, and is itself borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for RwWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        order::release(self.lock.class);
        let s = self.lock.state.fetch_and(!WRITER, Ordering::Release);
        if s & WAITING != 0 {
            self.lock.wake();
        }
    }
}
