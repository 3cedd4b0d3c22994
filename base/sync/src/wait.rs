//! Wait queues: where threads sleep until something they look at may have changed.
//!
//! A sleeper links a node that lives on its own stack, checks its condition, and parks; a waker changes the condition and
//! then wakes. Because the node is linked before the last check, no wake-up is lost. Nodes are unlinked either by the
//! waker (under the queue's lock) or by the sleeper itself, and the sleeper does not return before its node is unlinked,
//! which is what makes nodes on the stack sound.
//!
//! A node can also carry a [`Notify`] instead of a thread: that is how poll and epoll watch many objects.

use crate::order::LockClass;
use crate::spin::IrqLock;
use core::cell::UnsafeCell;
use core::marker::PhantomPinned;
use core::pin::Pin;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use platform::{ParkOptions, Waiter, Wake};

static CLASS: LockClass = LockClass::new("wait queue", crate::rank::WAIT);

/// What a node tells when its queue is woken. Called under the queue's lock with interrupts masked: it must be short,
/// must not sleep, and may only take locks of higher rank than wait queues.
pub trait Notify: Send + Sync {
    /// The queue that the node is on was woken.
    fn notify(&self);
}

enum Target {
    Thread(Waiter),
    Notify(*const dyn Notify),
}

/// A place in a queue.
pub struct WaitNode {
    links: UnsafeCell<Links>,
    target: Target,
    exclusive: bool,
    /// Stays linked when woken (for [`Notify`] nodes).
    sticky: bool,
    linked: AtomicBool,
    _pin: PhantomPinned,
}

struct Links {
    next: *const WaitNode,
    prev: *const WaitNode,
}

// SAFETY: links are touched only under the queue's lock; the target is Send and Sync by its constructors.
unsafe impl Send for WaitNode {}
// SAFETY: as above.
unsafe impl Sync for WaitNode {}

impl core::fmt::Debug for WaitNode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("WaitNode").field("linked", &self.linked).finish_non_exhaustive()
    }
}

impl WaitNode {
    const fn make(target: Target, exclusive: bool, sticky: bool) -> Self {
        WaitNode {
            links: UnsafeCell::new(Links { next: ptr::null(), prev: ptr::null() }),
            target,
            exclusive,
            sticky,
            linked: AtomicBool::new(false),
            _pin: PhantomPinned,
        }
    }

    /// A node for the calling thread.
    pub fn current() -> Self {
        Self::make(Target::Thread(Waiter::current()), false, false)
    }

    /// A node that stays linked and calls `notify` at every wake-up.
    ///
    /// # Safety
    /// `notify` outlives the time that the node is linked.
    pub unsafe fn notifying(notify: *const dyn Notify) -> Self {
        Self::make(Target::Notify(notify), false, true)
    }

    /// Whether it still stands in a queue.
    pub fn is_linked(&self) -> bool {
        self.linked.load(Ordering::Acquire)
    }
}

struct List {
    head: *const WaitNode,
    tail: *const WaitNode,
}

// SAFETY: the pointers are followed only under the queue's lock.
unsafe impl Send for List {}

impl List {
    /// # Safety
    /// `node` is alive until unlinked, and in no queue.
    unsafe fn push_back(&mut self, node: *const WaitNode) {
        // SAFETY: alive by contract; links belong to the queue's lock, which the caller holds.
        unsafe {
            *(*node).links.get() = Links { next: ptr::null(), prev: self.tail };
            if self.tail.is_null() {
                self.head = node;
            } else {
                (*(*self.tail).links.get()).next = node;
            }
        }
        self.tail = node;
    }

    /// # Safety
    /// As for `push_back`.
    unsafe fn push_front(&mut self, node: *const WaitNode) {
        // SAFETY: as in `push_back`.
        unsafe {
            *(*node).links.get() = Links { next: self.head, prev: ptr::null() };
            if self.head.is_null() {
                self.tail = node;
            } else {
                (*(*self.head).links.get()).prev = node;
            }
        }
        self.head = node;
    }

    /// # Safety
    /// `node` is linked in this list.
    unsafe fn unlink(&mut self, node: *const WaitNode) {
        // SAFETY: neighbours of a linked node are linked, hence alive.
        unsafe {
            let Links { next, prev } = *(*node).links.get();
            if prev.is_null() {
                self.head = next;
            } else {
                (*(*prev).links.get()).next = next;
            }
            if next.is_null() {
                self.tail = prev;
            } else {
                (*(*next).links.get()).prev = prev;
            }
        }
    }
}

/// A queue of sleeping threads. Its lock is a spin lock with interrupts masked, so waking is allowed anywhere.
#[derive(Debug)]
pub struct WaitQueue {
    list: IrqLock<List>,
    /// A copy of the list's head, so that waking an empty queue takes no lock.
    hint: AtomicPtr<WaitNode>,
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        WaitQueue {
            list: IrqLock::new(&CLASS, List { head: ptr::null(), tail: ptr::null() }),
            hint: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Whether nobody waits (a snapshot, ordered after the caller's earlier writes).
    #[inline]
    pub fn is_empty(&self) -> bool {
        // Pairs with the fence in `add`: either we see the node, or the sleeper sees what we wrote before.
        core::sync::atomic::fence(Ordering::SeqCst);
        self.hint.load(Ordering::Relaxed).is_null()
    }

    /// Links `node`. It must be unlinked with [`WaitQueue::remove`] before it is dropped.
    ///
    /// # Safety
    /// The caller keeps `node` and this queue alive until `remove` was called.
    pub unsafe fn add(&self, node: Pin<&WaitNode>) {
        let node: *const WaitNode = node.get_ref();
        let mut list = self.list.lock();
        // SAFETY: alive and unlinked by contract.
        unsafe {
            (*node).linked.store(true, Ordering::Relaxed);
            // Watchers stand before the sleepers, so that a wake-up which ends at a sleeper has told them all.
            if (*node).sticky {
                list.push_front(node);
            } else {
                list.push_back(node);
            }
        }
        self.hint.store(list.head.cast_mut(), Ordering::Relaxed);
        drop(list);
        core::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Unlinks `node` if a waker has not done so.
    pub fn remove(&self, node: Pin<&WaitNode>) {
        if !node.linked.load(Ordering::Acquire) {
            return;
        }
        let mut list = self.list.lock();
        if node.linked.load(Ordering::Relaxed) {
            // SAFETY: linked here, checked under the lock.
            unsafe { list.unlink(node.get_ref()) };
            node.linked.store(false, Ordering::Relaxed);
            self.hint.store(list.head.cast_mut(), Ordering::Relaxed);
        }
    }

    /// Sleeps until `condition` gives a value; returns why not when `options` end the sleep first. `condition` runs in
    /// the caller, never under the queue's lock. Context: thread, may sleep.
    pub fn wait_until<R>(&self, options: ParkOptions, condition: impl FnMut() -> Option<R>) -> Result<R, Wake> {
        self.wait_node(WaitNode::make(Target::Thread(Waiter::current()), false, false), options, condition)
    }

    /// As [`WaitQueue::wait_until`], but of several such sleepers [`WaitQueue::wake`] wakes one.
    pub fn wait_exclusive<R>(&self, options: ParkOptions, condition: impl FnMut() -> Option<R>) -> Result<R, Wake> {
        self.wait_node(WaitNode::make(Target::Thread(Waiter::current()), true, false), options, condition)
    }

    fn wait_node<R>(
        &self,
        node: WaitNode,
        options: ParkOptions,
        mut condition: impl FnMut() -> Option<R>,
    ) -> Result<R, Wake> {
        let node = core::pin::pin!(node);
        let node = node.as_ref();
        loop {
            // SAFETY: the node is removed below before it goes out of scope; `condition` must not unwind (panics abort).
            unsafe { self.add(node) };
            if let Some(r) = condition() {
                self.finish(node);
                return Ok(r);
            }
            let why = platform::park(options);
            let taken = !node.is_linked();
            self.remove(node);
            if let Some(r) = condition() {
                return Ok(r);
            }
            if why != Wake::Unparked {
                if taken && node.exclusive {
                    self.wake();
                }
                return Err(why);
            }
        }
    }

    /// Unlinks; passes on a wake-up that came although it was not needed.
    fn finish(&self, node: Pin<&WaitNode>) {
        let taken = !node.is_linked();
        self.remove(node);
        if taken && node.exclusive {
            self.wake();
        }
    }

    /// Wakes everybody who waits without exclusion, and the first who waits exclusively. Context: any.
    #[inline]
    pub fn wake(&self) {
        if !self.is_empty() {
            self.wake_some(1, usize::MAX, false);
        }
    }

    /// As [`WaitQueue::wake`], with the hint that the caller is about to sleep.
    #[inline]
    pub fn wake_sync(&self) {
        if !self.is_empty() {
            self.wake_some(1, usize::MAX, true);
        }
    }

    /// Wakes everybody. Context: any.
    #[inline]
    pub fn wake_all(&self) {
        if !self.is_empty() {
            self.wake_some(usize::MAX, usize::MAX, false);
        }
    }

    /// Wakes the first sleeper, whichever kind. Context: any.
    #[inline]
    pub fn wake_one(&self) {
        if !self.is_empty() {
            self.wake_some(usize::MAX, 1, false);
        }
    }

    /// Wakes at most `exclusive` exclusive sleepers and `total` in all; returns how many it woke.
    #[inline(never)]
    pub fn wake_some(&self, exclusive: usize, total: usize, sync: bool) -> usize {
        self.wake_locked(self.list.lock(), exclusive, total, sync)
    }

    /// As [`WaitQueue::wake`], from within [`Notify::notify`]. The caller keeps the relation "wakes" between queues free
    /// of cycles, which orders their locks.
    pub fn wake_nested(&self) {
        if !self.is_empty() {
            self.wake_locked(self.list.lock_nested(), 1, usize::MAX, false);
        }
    }

    fn wake_locked(
        &self,
        mut list: crate::spin::IrqGuard<'_, List>,
        mut exclusive: usize,
        mut total: usize,
        sync: bool,
    ) -> usize {
        let mut woken = 0;
        let mut at = list.head;
        while !at.is_null() && total > 0 && exclusive > 0 {
            // SAFETY: linked nodes are alive while we hold the lock.
            let node = unsafe { &*at };
            // SAFETY: links are under the lock.
            let next = unsafe { (*node.links.get()).next };
            match &node.target {
                Target::Thread(w) if sync => w.unpark_sync(),
                Target::Thread(w) => w.unpark(),
                // SAFETY: the constructor's contract: it lives while the node is linked.
                Target::Notify(n) => unsafe { (**n).notify() },
            }
            if !node.sticky {
                woken += 1;
                total -= 1;
                exclusive -= usize::from(node.exclusive);
                // SAFETY: linked, under the lock. The store comes last: the sleeper may then free the node.
                unsafe { list.unlink(at) };
                node.linked.store(false, Ordering::Release);
            }
            at = next;
        }
        self.hint.store(list.head.cast_mut(), Ordering::Relaxed);
        woken
    }
}

mod watch;
pub use watch::Watch;

#[cfg(test)]
mod tests;
