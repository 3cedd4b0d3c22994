//! Futexes with priority inheritance (futex(2), "Priority-inheritance futexes").
//!
//! The word holds the owner's thread number; a locker that finds one waits here, and while it waits the owner runs with at
//! least its priority ([`crate::sched::policy::set_boost`]), and so does whoever the owner waits for. An unlock hands the
//! lock to the waiter of the highest priority, by writing that one's number into the word.
//!
//! # State
//! A waiter's [`Node`] lies on its stack and stands in one list of all waiters of the machine, under one spin lock, in the
//! order of arrival. A node says which lock it waits for and who owns that (all nodes of one lock agree): there is no
//! other record of a lock, so a lock without waiters costs nothing and nothing can be left over. What is asked (the first
//! waiter of a lock, what a thread is to inherit) is found by a walk over the list: there are few such waiters at a time.
//!
//! The word is changed under the lock, with page faults off; on a fault the lock is dropped, the page touched, and the step
//! tried again. An owner that exits leaves its locks ownerless (owner 0): the first waiter then takes the lock over,
//! with `FUTEX_OWNER_DIED` in the word, in its own address space.

use super::{Key, key_of};
use crate::arch::uaccess::{UserAddr, cmpxchg_user_u32, get_user_u32};
use crate::sched::policy;
use crate::task::Thread;
use crate::task::ids::Pid;
use crate::task::tree::TREE;
use abi::{Errno, Result};
use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};
use platform::{ParkOptions, Waiter, Wake};
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("PI futexes", sync::rank::SPIN + 96);
static WAITERS: SpinLock<List> = SpinLock::new(&CLASS, List { head: ptr::null() });

/// Bits of a PI futex's word.
pub(super) const HAS_WAITERS: u32 = 0x8000_0000;
pub(super) const OWNER_DIED: u32 = 0x4000_0000;
pub(super) const TID_MASK: u32 = 0x3fff_ffff;
/// How many owners that wait in turn are followed; a longer chain is taken for a deadlock (Linux: 1024).
const CHAIN: usize = 1024;

/// A thread that waits for a lock.
pub(super) struct Node {
    key: Key,
    thread: *const Thread,
    tid: u32,
    /// The owner's number; 0 if it died.
    owner: Cell<u32>,
    /// Whether it stands in the list.
    queued: Cell<bool>,
    next: Cell<*const Node>,
    granted: AtomicBool,
    waiter: Waiter,
}

impl Node {
    /// A node for the calling thread, to wait for the lock `key`.
    pub(super) fn new(key: Key) -> Node {
        let me = crate::sched::current();
        Node {
            key,
            thread: me,
            tid: me.tid().0,
            owner: Cell::new(0),
            queued: Cell::new(false),
            next: Cell::new(ptr::null()),
            granted: AtomicBool::new(false),
            waiter: Waiter::current(),
        }
    }

    /// Whether the lock has been given to the thread.
    pub(super) fn is_granted(&self) -> bool {
        self.granted.load(Ordering::Acquire)
    }

    /// Whether it waits for the lock: it, or [`Node::is_granted`], holds once it was moved here. For its own thread, with
    /// the bucket's lock taken since.
    pub(super) fn is_queued(&self) -> bool {
        let _list = WAITERS.lock();
        self.queued.get()
    }

    /// The lock it is for.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    fn rank(&self) -> u32 {
        // SAFETY: a queued node's thread is asleep in the call that owns the node.
        policy::effective_rank(unsafe { &*self.thread })
    }
}

pub(super) struct List {
    head: *const Node,
}

// SAFETY: nodes are followed, and their cells touched, only under the list's lock; a node leaves it before it dies.
unsafe impl Send for List {}

impl List {
    fn iter(&self) -> impl Iterator<Item = &Node> {
        // SAFETY: queued nodes are alive.
        let node = |p: *const Node| unsafe { p.as_ref() };
        core::iter::successors(node(self.head), move |n| node(n.next.get()))
    }

    fn of(&self, key: Key) -> impl Iterator<Item = &Node> {
        self.iter().filter(move |n| n.key == key)
    }

    /// Who gets the lock next: the highest priority, of those the first to come.
    fn top(&self, key: Key) -> Option<&Node> {
        self.of(key)
            .fold(None, |best: Option<&Node>, n| if best.is_none_or(|b| n.rank() > b.rank()) { Some(n) } else { best })
    }

    fn push(&mut self, node: &Node) {
        node.next.set(ptr::null());
        node.queued.set(true);
        match self.iter().last() {
            Some(last) => last.next.set(node),
            None => self.head = node,
        }
    }

    fn remove(&mut self, node: &Node) {
        node.queued.set(false);
        if ptr::eq(self.head, node) {
            self.head = node.next.get();
        } else if let Some(before) = self.iter().find(|n| ptr::eq(n.next.get(), node)) {
            before.next.set(node.next.get());
        }
    }

    /// Gives thread `tid` the priority that it is to inherit now, and whoever it waits for, and so on.
    fn inherit(&self, mut tid: u32) {
        for _ in 0..CHAIN {
            let heir = self.iter().filter(|n| n.owner.get() == tid).max_by_key(|n| n.rank());
            // SAFETY: as in `Node::rank`.
            let boost = heir.map(|n| policy::effective(unsafe { &*n.thread }));
            let tree = TREE.lock();
            let Some(t) = tree.thread(Pid(tid)) else { return };
            let changed = policy::set_boost(t, boost);
            drop(tree);
            match self.iter().find(|n| n.tid == tid) {
                Some(n) if changed && n.owner.get() != 0 => tid = n.owner.get(),
                _ => return,
            }
        }
    }

    /// Whether `me`, if it waited for `owner`, would wait for itself.
    fn would_deadlock(&self, me: u32, mut owner: u32) -> bool {
        for _ in 0..CHAIN {
            if owner == me {
                return true;
            }
            match self.iter().find(|n| n.tid == owner) {
                Some(n) if n.owner.get() != 0 => owner = n.owner.get(),
                _ => return false,
            }
        }
        true
    }

    /// Makes `owner` the owner of the lock `key` in the eyes of those who wait for it.
    fn set_owner(&self, key: Key, owner: u32) {
        self.of(key).for_each(|n| n.owner.set(owner));
    }
}

/// What one step under the lock came to.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// The lock is the thread's.
    Taken,
    /// Its node is queued.
    Queued,
    /// The word could not be reached with page faults off, or changed meanwhile.
    Again,
}

fn exists(tid: u32) -> bool {
    TREE.lock().thread(Pid(tid)).is_some()
}

/// Takes the lock at `addr` for `node`'s thread or, with `wait`, queues the node. `EAGAIN` (without `wait`), `EDEADLK`,
/// `ESRCH` (the word names no thread).
pub(super) fn step(list: &mut List, addr: UserAddr, node: &Node, wait: bool) -> Result<Step> {
    let Ok(word) = get_user_u32(addr) else { return Ok(Step::Again) };
    let swap = |to: u32| cmpxchg_user_u32(addr, word, to).is_ok_and(|seen| seen == word);
    let (holder, waited_for) = (word & TID_MASK, list.of(node.key).next().map(|n| n.owner.get()));
    if holder == node.tid {
        return Err(Errno::EDEADLK);
    }
    if holder == 0 && waited_for.is_none() {
        return Ok(if swap(node.tid | word & OWNER_DIED) { Step::Taken } else { Step::Again });
    }
    if !wait {
        return Err(Errno::EAGAIN);
    }
    // Where others wait already the kernel knows the owner, whatever the word says.
    let owner = waited_for.unwrap_or(holder);
    if owner != 0 && list.would_deadlock(node.tid, owner) {
        return Err(Errno::EDEADLK);
    }
    if waited_for.is_none() && !exists(owner) {
        return if get_user_u32(addr).is_ok_and(|now| now == word) { Err(Errno::ESRCH) } else { Ok(Step::Again) };
    }
    if word & HAS_WAITERS == 0 && !swap(word | HAS_WAITERS) {
        return Ok(Step::Again);
    }
    node.owner.set(owner);
    list.push(node);
    list.inherit(owner);
    Ok(Step::Queued)
}

/// [`step`] for a lock, as [`super::Bucket`]'s holder takes it (FUTEX_CMP_REQUEUE_PI).
pub(super) fn step_for(addr: UserAddr, node: &Node) -> Result<Step> {
    step(&mut WAITERS.lock(), addr, node, true)
}

/// Wakes a thread that has got its lock; the node may be gone after.
pub(super) fn grant(node: &Node) {
    let waiter = node.waiter.clone();
    node.granted.store(true, Ordering::Release);
    waiter.unpark();
}

/// Brings the page of the word in, writable. `EINVAL` (not aligned), `EFAULT`.
pub(super) fn touch(addr: UserAddr) -> Result<()> {
    if addr.0 & 3 != 0 {
        return Err(Errno::EINVAL);
    }
    let v = get_user_u32(addr).map_err(|_| Errno::EFAULT)?;
    cmpxchg_user_u32(addr, v, v).map(|_| ()).map_err(|_| Errno::EFAULT)
}

/// FUTEX_LOCK_PI, and without `wait` FUTEX_TRYLOCK_PI. `EAGAIN`, `EDEADLK`, `ESRCH`, `ETIMEDOUT`, `EFAULT`.
pub(super) fn lock(addr: UserAddr, private: bool, deadline_ns: Option<u64>, wait: bool) -> Result<()> {
    touch(addr)?;
    let (key, _page) = key_of(addr, private)?;
    let node = Node::new(key);
    loop {
        let now = step(&mut WAITERS.lock(), addr, &node, wait)?;
        match now {
            Step::Taken => return Ok(()),
            Step::Queued => break,
            Step::Again => touch(addr)?,
        }
    }
    wait_for(addr, &node, deadline_ns).map_err(|e| if e == Errno::EINTR { Errno::ERESTARTNOINTR } else { e })
}

/// Sleeps until `node`, which is queued, has got its lock. `ETIMEDOUT`, `EINTR`, `EFAULT`.
pub(super) fn wait_for(addr: UserAddr, node: &Node, deadline_ns: Option<u64>) -> Result<()> {
    let mut why = Wake::Unparked;
    loop {
        if node.is_granted() || inherit_from_dead(addr, node)? {
            return Ok(());
        }
        if why != Wake::Unparked {
            let late = if why == Wake::TimedOut { Errno::ETIMEDOUT } else { Errno::EINTR };
            return if cancel(node) { Ok(()) } else { Err(late) };
        }
        why = platform::park(ParkOptions { interruptible: true, deadline_ns });
    }
}

/// Takes the lock over if its owner died and `node` is next.
fn inherit_from_dead(addr: UserAddr, node: &Node) -> Result<bool> {
    loop {
        {
            let mut list = WAITERS.lock();
            if node.owner.get() != 0 || !node.queued.get() || !list.top(node.key).is_some_and(|n| ptr::eq(n, node)) {
                return Ok(node.is_granted());
            }
            let more = if list.of(node.key).nth(1).is_some() { HAS_WAITERS } else { 0 };
            if let Ok(word) = get_user_u32(addr)
                && cmpxchg_user_u32(addr, word, node.tid | OWNER_DIED | more).is_ok_and(|seen| seen == word)
            {
                list.remove(node);
                list.set_owner(node.key, node.tid);
                list.inherit(node.tid);
                return Ok(true);
            }
        }
        if let Err(e) = touch(addr) {
            return if cancel(node) { Ok(true) } else { Err(e) };
        }
    }
}

/// Takes `node` out of the list; true if it has got its lock meanwhile.
pub(super) fn cancel(node: &Node) -> bool {
    let mut list = WAITERS.lock();
    if node.is_granted() {
        return true;
    }
    if node.queued.get() {
        list.remove(node);
        match node.owner.get() {
            // The next one has to take over what nobody owns.
            0 => list.top(node.key).into_iter().for_each(|n| n.waiter.unpark()),
            owner => list.inherit(owner),
        }
    }
    false
}

/// FUTEX_UNLOCK_PI. `EPERM`: the lock is another's. `EFAULT`.
pub(super) fn unlock(addr: UserAddr, private: bool) -> Result<()> {
    touch(addr)?;
    let (key, _page) = key_of(addr, private)?;
    let me = crate::sched::current().tid().0;
    loop {
        {
            let mut list = WAITERS.lock();
            let word = get_user_u32(addr);
            if word.is_ok_and(|w| w & TID_MASK != me) {
                return Err(Errno::EPERM);
            }
            let next = list.top(key).map(ptr::from_ref);
            let more = if list.of(key).nth(1).is_some() { HAS_WAITERS } else { 0 };
            // SAFETY: queued, so alive until it is granted the lock below.
            let next = next.map(|n| unsafe { &*n });
            let to = next.map_or(0, |n| n.tid | more);
            if let Ok(word) = word
                && cmpxchg_user_u32(addr, word, to).is_ok_and(|seen| seen == word)
            {
                if let Some(n) = next {
                    let heir = n.tid;
                    list.remove(n);
                    list.set_owner(key, heir);
                    grant(n);
                    list.inherit(me);
                    list.inherit(heir);
                }
                return Ok(());
            }
        }
        touch(addr)?;
    }
}

/// The thread `tid` exits: who waits for locks of its takes them over. Context: thread, in the dying thread's memory.
pub fn owner_exits(tid: u32) {
    let list = WAITERS.lock();
    for n in list.iter().filter(|n| n.owner.get() == tid) {
        n.owner.set(0);
    }
    for n in list.iter().filter(|n| n.owner.get() == 0) {
        n.waiter.unpark();
    }
}
