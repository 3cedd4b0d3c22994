//! A binary heap of queue entries in storage that was reserved beforehand.
//!
//! `std`'s heap does not do: its order is a property of the element, and the fair queue keeps the same entries in two
//! orders, by deadline and by virtual run time. Entries are compared by wrapping subtraction, so keys may pass the end
//! of their range. The root sits at index 0; with one or two entries every operation is a handful of instructions.

use alloc::vec::Vec;
use core::marker::PhantomData;

/// A queued fair thread.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    /// Virtual time by which the request is to be served.
    pub(crate) deadline: i64,
    /// Virtual time that the thread has used.
    pub(crate) vruntime: i64,
    pub(crate) task: T,
    pub(crate) weight: u32,
    pub(crate) inverse: u32,
}

/// What a heap is ordered by.
pub(crate) trait Order {
    fn key<T>(entry: &Entry<T>) -> i64;
}

/// Earliest deadline first.
#[derive(Debug)]
pub(crate) struct ByDeadline;
/// Least virtual run time first.
#[derive(Debug)]
pub(crate) struct ByVruntime;

impl Order for ByDeadline {
    #[inline]
    fn key<T>(entry: &Entry<T>) -> i64 {
        entry.deadline
    }
}

impl Order for ByVruntime {
    #[inline]
    fn key<T>(entry: &Entry<T>) -> i64 {
        entry.vruntime
    }
}

#[derive(Debug)]
pub(crate) struct Heap<T, O> {
    entries: Vec<Entry<T>>,
    order: PhantomData<O>,
}

impl<T, O: Order> Heap<T, O> {
    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new(), order: PhantomData }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entries in heap order: the first is the least, later ones roughly rise.
    pub(crate) fn entries(&self) -> &[Entry<T>] {
        &self.entries
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<&Entry<T>> {
        self.entries.first()
    }

    #[inline]
    fn before(&self, a: usize, b: usize) -> bool {
        O::key(&self.entries[a]).wrapping_sub(O::key(&self.entries[b])) < 0
    }

    #[inline]
    pub(crate) fn push(&mut self, entry: Entry<T>) {
        self.entries.push(entry);
        let last = self.entries.len() - 1;
        if last != 0 {
            self.sift_up(last);
        }
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Entry<T>> {
        if self.entries.len() <= 1 { self.entries.pop() } else { Some(self.remove(0)) }
    }

    /// Takes out the entry at `index`, which must be in range.
    pub(crate) fn remove(&mut self, index: usize) -> Entry<T> {
        let entry = self.entries.swap_remove(index);
        if index < self.entries.len() {
            self.sift_down(index);
            self.sift_up(index);
        }
        entry
    }

    fn sift_up(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if !self.before(at, parent) {
                break;
            }
            self.entries.swap(at, parent);
            at = parent;
        }
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let mut least = 2 * at + 1;
            if least >= self.entries.len() {
                break;
            }
            if least + 1 < self.entries.len() && self.before(least + 1, least) {
                least += 1;
            }
            if !self.before(least, at) {
                break;
            }
            self.entries.swap(at, least);
            at = least;
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    /// Moves the entries into `storage` (empty, at least as large) and hands back the old storage.
    pub(crate) fn replace_storage(&mut self, mut storage: Vec<Entry<T>>) -> Vec<Entry<T>> {
        storage.append(&mut self.entries);
        core::mem::replace(&mut self.entries, storage)
    }
}
