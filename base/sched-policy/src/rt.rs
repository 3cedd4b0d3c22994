//! The real-time class: one list per priority, and a bit for each list that is not empty.
//!
//! The highest non-empty list's head runs (POSIX, "Scheduling Policies"). A thread that becomes runnable, yields, or has
//! used up its round-robin quantum goes to the tail of its list; one that was preempted, or whose priority was lowered,
//! goes to the head. The lists are linked through one array of nodes, so that no operation allocates.

use alloc::vec::Vec;

const NIL: u32 = u32::MAX;
const LEVELS: usize = 100;

#[derive(Debug)]
pub(crate) struct Node<T> {
    task: Option<T>,
    prev: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

#[derive(Debug)]
pub(crate) struct RtQueue<T> {
    occupied: u128,
    lists: [List; LEVELS],
    nodes: Vec<Node<T>>,
    free: u32,
    len: usize,
}

impl<T> RtQueue<T> {
    pub(crate) const fn new() -> Self {
        Self { occupied: 0, lists: [List { head: NIL, tail: NIL }; LEVELS], nodes: Vec::new(), free: NIL, len: 0 }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    /// The highest priority that waits; 0 if none does.
    #[inline]
    pub(crate) fn highest(&self) -> u8 {
        if self.occupied == 0 { 0 } else { 127 - self.occupied.leading_zeros() as u8 }
    }

    /// Does a thread wait at this priority?
    #[inline]
    pub(crate) fn has(&self, priority: u8) -> bool {
        self.occupied >> priority & 1 != 0
    }

    fn allocate(&mut self, task: T) -> u32 {
        self.len += 1;
        if self.free == NIL {
            self.nodes.push(Node { task: Some(task), prev: NIL, next: NIL });
            return (self.nodes.len() - 1) as u32;
        }
        let index = self.free;
        let node = &mut self.nodes[index as usize];
        self.free = node.next;
        *node = Node { task: Some(task), prev: NIL, next: NIL };
        index
    }

    pub(crate) fn push_back(&mut self, priority: u8, task: T) {
        let index = self.allocate(task);
        let tail = self.lists[priority as usize].tail;
        self.nodes[index as usize].prev = tail;
        if tail == NIL {
            self.lists[priority as usize].head = index;
        } else {
            self.nodes[tail as usize].next = index;
        }
        self.lists[priority as usize].tail = index;
        self.occupied |= 1 << priority;
    }

    pub(crate) fn push_front(&mut self, priority: u8, task: T) {
        let index = self.allocate(task);
        let head = self.lists[priority as usize].head;
        self.nodes[index as usize].next = head;
        if head == NIL {
            self.lists[priority as usize].tail = index;
        } else {
            self.nodes[head as usize].prev = index;
        }
        self.lists[priority as usize].head = index;
        self.occupied |= 1 << priority;
    }

    fn unlink(&mut self, priority: u8, index: u32) -> Option<T> {
        let Node { prev, next, .. } = self.nodes[index as usize];
        let list = &mut self.lists[priority as usize];
        if prev == NIL {
            list.head = next;
        } else {
            self.nodes[prev as usize].next = next;
        }
        if next == NIL {
            list.tail = prev;
        } else {
            self.nodes[next as usize].prev = prev;
        }
        if list.head == NIL {
            self.occupied &= !(1 << priority);
        }
        let node = &mut self.nodes[index as usize];
        node.next = self.free;
        self.free = index;
        self.len -= 1;
        node.task.take()
    }

    /// Takes the head of the highest list.
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.occupied == 0 {
            return None;
        }
        let priority = self.highest();
        self.unlink(priority, self.lists[priority as usize].head)
    }

    /// Takes the first thread at `priority` that `wanted` accepts. The others keep their places.
    pub(crate) fn take_at(&mut self, priority: u8, mut wanted: impl FnMut(&T) -> bool) -> Option<T> {
        let mut index = self.lists[priority as usize].head;
        while index != NIL {
            let node = &self.nodes[index as usize];
            if node.task.as_ref().is_some_and(&mut wanted) {
                return self.unlink(priority, index);
            }
            index = node.next;
        }
        None
    }

    /// Takes the first thread, highest priority first, that `wanted` accepts. The others keep their places.
    pub(crate) fn take_first(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Option<T> {
        let mut left = self.occupied;
        while left != 0 {
            let priority = 127 - left.leading_zeros() as u8;
            left &= !(1 << priority);
            if let Some(task) = self.take_at(priority, &mut wanted) {
                return Some(task);
            }
        }
        None
    }

    /// Calls `f` with every queued thread.
    pub(crate) fn for_each(&self, f: impl FnMut(&T)) {
        self.nodes.iter().filter_map(|node| node.task.as_ref()).for_each(f);
    }

    pub(crate) fn capacity(&self) -> usize {
        self.nodes.capacity()
    }

    /// Moves the nodes into `storage` (empty, at least as large) and hands back the old storage.
    pub(crate) fn replace_storage(&mut self, mut storage: Vec<Node<T>>) -> Vec<Node<T>> {
        storage.append(&mut self.nodes);
        core::mem::replace(&mut self.nodes, storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_first_and_first_come_first_served_within() {
        let mut queue = RtQueue::new();
        queue.push_back(10, 'c');
        queue.push_back(10, 'd');
        queue.push_back(99, 'a');
        queue.push_front(10, 'b');
        queue.push_back(1, 'e');
        assert_eq!(queue.take_at(10, |&t| t == 'c'), Some('c'));
        queue.push_back(10, 'f');
        let order: Vec<char> = core::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ['a', 'b', 'd', 'f', 'e']);
        assert!(queue.is_empty() && queue.highest() == 0);
        assert!(queue.nodes.len() <= 5, "nodes are used again");
    }
}
