//! Lists that are read without a lock.
//!
//! # Ideas
//! A reader opens a *section* ([`read_section`]), follows the list, and closes it. Sections are short: preemption is
//! disabled in them, and they take no lock. A writer holds the list's own lock, links and unlinks nodes with single
//! stores, and hands what it unlinked to [`Retired`], whose drop first waits until every section that was open at that
//! moment has been closed ([`synchronize`]): no reader can still see the node then. So a reader writes only its own CPU's
//! word, and what is removed is gone when the remover goes on: nothing is deferred, unlike in schemes that collect
//! garbage, where a removed file would keep its blocks for a while.
//!
//! A section that is opened after the unlinking store cannot find the node. That a writer sees each section that might
//! have found it is the store-buffer pattern: the reader writes its word and then reads the list, the writer writes the
//! list and then reads the words, with a full fence between the two on both sides, so that one sees the other.
//!
//! # Locking
//! Waiting is bounded by the length of sections, as a spin lock's is. The waiter must not be in a section itself, and may
//! hold locks, since readers need none. Not for interrupt handlers, on either side.
//!
//! # What was not done
//! Nested sections (the inner one would end the outer) and sleeping in one: debug builds panic.

use crate::LockClass;
use crate::spin::{SpinGuard, SpinLock};
use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};

/// The most CPUs (on hosts: threads) that read.
const READERS: usize = 64;

#[repr(align(128))]
struct Word(AtomicU32);

/// Odd while the CPU is in a section; grows with each.
static WORDS: [Word; READERS] = [const { Word(AtomicU32::new(0)) }; READERS];
/// How many of them are used.
static USED: AtomicUsize = AtomicUsize::new(READERS);

/// Says that only the first `cpus` CPUs ever read, which makes [`synchronize`] faster. Before there is a second one.
pub fn set_readers(cpus: usize) {
    USED.store(cpus.clamp(1, READERS), Ordering::Relaxed);
}

/// An open section. What is borrowed from it lives until it is dropped.
#[derive(Debug)]
pub struct ReadSection {
    word: &'static AtomicU32,
    not_send: PhantomData<*mut ()>,
}

/// The word of the calling CPU; preemption is disabled.
#[cfg(target_os = "none")]
#[inline(always)]
fn own_word() -> &'static AtomicU32 {
    &WORDS[platform::cpu_id() % READERS].0
}

/// On hosts threads are not kept on a CPU, so each takes a word of its own.
#[cfg(not(target_os = "none"))]
fn own_word() -> &'static AtomicU32 {
    static TAKEN: [AtomicUsize; READERS] = [const { AtomicUsize::new(0) }; READERS];
    struct Mine(usize);
    impl Drop for Mine {
        fn drop(&mut self) {
            TAKEN[self.0].store(0, Ordering::Release);
        }
    }
    std::thread_local! {
        static MINE: Mine = Mine(loop {
            let free = |t: &AtomicUsize| t.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if let Some(i) = TAKEN.iter().position(free) {
                break i;
            }
            std::thread::yield_now();
        });
    }
    MINE.with(|m| &WORDS[m.0].0)
}

/// Opens a section on the calling CPU. Context: thread, not in a section; preemption is disabled until it is dropped.
#[inline]
pub fn read_section() -> ReadSection {
    platform::preempt_disable();
    let word = own_word();
    let was = word.load(Ordering::Relaxed);
    debug_assert!(was & 1 == 0, "a read section in another");
    word.store(was.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::SeqCst);
    ReadSection { word, not_send: PhantomData }
}

impl Drop for ReadSection {
    #[inline]
    fn drop(&mut self) {
        self.word.store(self.word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        platform::preempt_enable();
    }
}

/// Returns when every section that is open now has been closed. Context: thread, not in a section.
pub fn synchronize() {
    fence(Ordering::SeqCst);
    for Word(word) in &WORDS[..USED.load(Ordering::Relaxed)] {
        let seen = word.load(Ordering::Acquire);
        if seen & 1 == 0 {
            continue;
        }
        while word.load(Ordering::Acquire) == seen {
            platform::relax();
            #[cfg(not(target_os = "none"))]
            std::thread::yield_now();
        }
    }
}

struct Node<T> {
    /// Under the writers' lock; a node that was unlinked keeps it, for the readers that are at it.
    next: AtomicPtr<Node<T>>,
    /// The next in a [`Retired`]; its owner's.
    gone: *mut Node<T>,
    value: T,
}

impl<T> core::fmt::Debug for Node<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Node")
    }
}

/// A list of values that readers follow without a lock, with the lock that writers take.
#[derive(Debug)]
pub struct ReadList<T> {
    head: AtomicPtr<Node<T>>,
    writers: SpinLock<()>,
    owns: PhantomData<T>,
}

// SAFETY: readers share values between threads (Sync), and writers move them out to theirs (Send).
unsafe impl<T: Send + Sync> Sync for ReadList<T> {}
// SAFETY: the list owns its values.
unsafe impl<T: Send> Send for ReadList<T> {}

impl<T> ReadList<T> {
    /// An empty list, whose writers' lock is of `class`.
    pub const fn new(class: &'static LockClass) -> Self {
        ReadList { head: AtomicPtr::new(ptr::null_mut()), writers: SpinLock::new(class, ()), owns: PhantomData }
    }

    /// The values, newest first; what is linked or unlinked meanwhile may show or not.
    #[inline]
    pub fn iter<'a>(&'a self, section: &'a ReadSection) -> Iter<'a, T> {
        let _ = section;
        // Pairs with the release in `push`. What lies behind a node was linked before it, under the same lock, so the
        // links themselves need no order.
        Iter { at: self.head.load(Ordering::Acquire), list: PhantomData }
    }

    /// Takes the writers' lock.
    pub fn write(&self) -> Writer<'_, T> {
        Writer { list: self, _lock: self.writers.lock() }
    }
}

impl<T> Drop for ReadList<T> {
    fn drop(&mut self) {
        let mut at = *self.head.get_mut();
        while !at.is_null() {
            // SAFETY: nobody else knows the list any more, and it owns its nodes.
            let mut node = unsafe { Box::from_raw(at) };
            at = *node.next.get_mut();
        }
    }
}

/// The values of a [`ReadList`].
#[derive(Debug)]
pub struct Iter<'a, T> {
    at: *const Node<T>,
    list: PhantomData<&'a T>,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    #[inline]
    fn next(&mut self) -> Option<&'a T> {
        // SAFETY: a node that is found linked in a section (or under the writers' lock) is not freed before that ends, even
        // if it is unlinked meanwhile, and neither is the one that its link leads to.
        let node = unsafe { self.at.as_ref() }?;
        self.at = node.next.load(Ordering::Relaxed);
        Some(&node.value)
    }
}

/// A list with its writers' lock held.
#[derive(Debug)]
pub struct Writer<'a, T> {
    list: &'a ReadList<T>,
    _lock: SpinGuard<'a, ()>,
}

impl<T> Writer<'_, T> {
    /// The values, newest first.
    pub fn values(&self) -> Iter<'_, T> {
        Iter { at: self.list.head.load(Ordering::Relaxed), list: PhantomData }
    }

    /// Links `node` in front.
    pub fn push(&mut self, node: NewNode<T>) {
        let node = Box::into_raw(node.0);
        // SAFETY: not linked yet, so nobody else knows it.
        unsafe { (*node).next.store(self.list.head.load(Ordering::Relaxed), Ordering::Relaxed) };
        self.list.head.store(node, Ordering::Release);
    }

    /// Moves the values that `wanted` accepts to `to`; returns how many.
    pub fn remove(&mut self, to: &mut Retired<T>, mut wanted: impl FnMut(&T) -> bool) -> usize {
        let mut count = 0;
        let mut link: *const AtomicPtr<Node<T>> = &raw const self.list.head;
        loop {
            // SAFETY: the list's head, or the link of a linked node, which stays while the writers' lock is held.
            let at = unsafe { (*link).load(Ordering::Relaxed) };
            if at.is_null() {
                return count;
            }
            // SAFETY: as above. Only `gone` is ever written besides atomics, and only here, after unlinking.
            unsafe {
                if wanted(&(*at).value) {
                    (*link).store((*at).next.load(Ordering::Relaxed), Ordering::Release);
                    (&raw mut (*at).gone).write(to.first);
                    to.first = at;
                    count += 1;
                } else {
                    link = &raw const (*at).next;
                }
            }
        }
    }
}

/// A node that is linked nowhere yet; making it may allocate, so it is made before the lock is taken.
#[derive(Debug)]
pub struct NewNode<T>(Box<Node<T>>);

impl<T> NewNode<T> {
    /// Around `value`.
    pub fn new(value: T) -> Self {
        NewNode(Box::new(Node { next: AtomicPtr::new(ptr::null_mut()), gone: ptr::null_mut(), value }))
    }
}

/// Values that were unlinked. Dropping it waits for the readers ([`synchronize`]), then drops the values; so it is dropped
/// without the locks that must not be held over either.
#[derive(Debug)]
pub struct Retired<T> {
    first: *mut Node<T>,
}

// SAFETY: it owns its values.
unsafe impl<T: Send> Send for Retired<T> {}

impl<T> Default for Retired<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Retired<T> {
    /// None.
    pub const fn new() -> Self {
        Retired { first: ptr::null_mut() }
    }
}

impl<T> Drop for Retired<T> {
    fn drop(&mut self) {
        if self.first.is_null() {
            return;
        }
        synchronize();
        while !self.first.is_null() {
            // SAFETY: unlinked, so owned here, and no reader is left.
            let node = unsafe { Box::from_raw(self.first) };
            self.first = node.gone;
        }
    }
}

#[cfg(test)]
mod tests;
