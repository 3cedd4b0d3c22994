//! A value that one thread owns and others may copy.
//!
//! A thread reads its own file table, directory context and credentials at every system call, so that must cost no lock;
//! others (`/proc`, permission checks, `CLONE_FILES`) look rarely and take a short lock. Only the owner replaces the
//! value, under that lock.

use core::cell::UnsafeCell;
use core::fmt;
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("thread's own", sync::rank::SPIN + 60);

/// See the module.
pub struct Owned<T> {
    value: UnsafeCell<T>,
    lock: SpinLock<()>,
}

// SAFETY: the owner reads without the lock and is the only writer, under it; others read under it.
unsafe impl<T: Send + Sync> Sync for Owned<T> {}

impl<T> Owned<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Owned { value: UnsafeCell::new(value), lock: SpinLock::new(&CLASS, ()) }
    }

    /// The value, for its owner.
    ///
    /// # Safety
    /// The caller is the owning thread (or nobody else can reach the value yet), and drops the reference before it calls
    /// [`Owned::replace`].
    #[inline(always)]
    pub unsafe fn own(&self) -> &T {
        // SAFETY: only the owner writes.
        unsafe { &*self.value.get() }
    }

    /// A copy, for anybody.
    pub fn copy(&self) -> T
    where
        T: Clone,
    {
        self.look(T::clone)
    }

    /// What `look` finds in the value, for anybody; under a spin lock.
    pub fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        let _held = self.lock.lock();
        // SAFETY: writers hold the lock.
        look(unsafe { &*self.value.get() })
    }

    /// Puts `value` in place; returns the former.
    ///
    /// # Safety
    /// The caller is the owner and holds no reference from [`Owned::own`].
    pub unsafe fn replace(&self, value: T) -> T {
        let _held = self.lock.lock();
        // SAFETY: the only writer, under the lock.
        unsafe { core::mem::replace(&mut *self.value.get(), value) }
    }
}

impl<T> fmt::Debug for Owned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owned(..)")
    }
}
