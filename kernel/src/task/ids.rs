//! Identifiers of processes, threads, groups and sessions, and values that the tree's lock guards.

use super::tree::Tree;
use core::cell::UnsafeCell;
use core::fmt;

/// A process, thread, process group or session number: they share one space, as in Linux. Zero is the kernel's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pid(pub u32);

impl Pid {
    /// From a system call's argument; `None` for zero and negative numbers.
    pub fn from_arg(n: i32) -> Option<Pid> {
        (n > 0).then_some(Pid(n as u32))
    }

    /// As a system call returns it.
    pub fn ret(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A value that is read and written only under [`TREE`](super::tree::TREE).
pub struct InTree<T>(UnsafeCell<T>);

// SAFETY: access needs the one tree's lock.
unsafe impl<T: Send> Sync for InTree<T> {}

impl<T> InTree<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        InTree(UnsafeCell::new(value))
    }

    /// Reads it. There is only one `Tree`, so a reference to it proves that its lock is held.
    #[inline(always)]
    pub fn get<'a>(&'a self, _proof: &'a Tree) -> &'a T {
        // SAFETY: writers need `&mut Tree`, which cannot exist beside the caller's `&Tree`.
        unsafe { &*self.0.get() }
    }

    /// Writes it.
    #[inline(always)]
    pub fn get_mut<'a>(&'a self, _proof: &'a mut Tree) -> &'a mut T {
        // SAFETY: as for `get`; the borrow of the tree is exclusive for as long.
        unsafe { &mut *self.0.get() }
    }
}

impl<T> fmt::Debug for InTree<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InTree(..)")
    }
}
