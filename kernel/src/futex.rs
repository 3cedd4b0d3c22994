//! Futexes (futex(2), futex(7)): sleeping until a word in user memory changes hands.
//!
//! A waiter stands in a bucket, chosen by hashing its key: for a private futex the address space and address, for a
//! shared one the page frame and the offset in it, so that two processes that map one page meet. The value check and the
//! queueing happen under the bucket's lock, and wakers take the same lock, so no wake-up falls between them.
//!
//! # Ownership and locking
//! Nodes live on their sleepers' stacks. Links, key and bucket of a queued node are guarded by its bucket's lock (a spin
//! lock, class `futex`). Requeueing locks two buckets in the order of their addresses. User memory is read under the lock
//! with page faults disabled (preemption is off, so the copy fails instead of sleeping); on a fault the lock is dropped,
//! the page touched, and everything tried again.
//!
//! # Priority inheritance
//! [`pi`] has the locks; a waiter of FUTEX_WAIT_REQUEUE_PI stands in a bucket with the node by which it waits for the lock
//! beside, and is moved from the one to the other under both locks.

use crate::arch::uaccess::{self, UserAddr};
use crate::sched;
use crate::task::thread::Restart;
use abi::{Errno, Result, Timespec};
use core::cell::{Cell, UnsafeCell};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use platform::{Page, ParkOptions, Waiter, Wake};
use sync::{LockClass, SpinLock};

pub mod pi;
pub mod several;

static CLASS: LockClass = LockClass::new("futex", sync::rank::SPIN + 94);
const BUCKETS: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    /// Address space or frame number, told apart by bit 0 of `at` (words are aligned to four).
    space: usize,
    at: u64,
}

struct Node {
    key: UnsafeCell<Key>,
    next: UnsafeCell<*const Node>,
    bucket: AtomicUsize,
    bitset: u32,
    waiter: Waiter,
    woken: AtomicBool,
    /// With FUTEX_WAIT_REQUEUE_PI: how it waits for the lock.
    pi: *const pi::Node,
}

impl Node {
    fn new(key: Key, bitset: u32, pi: *const pi::Node) -> Node {
        Node {
            key: UnsafeCell::new(key),
            next: UnsafeCell::new(ptr::null()),
            bucket: AtomicUsize::new(bucket_of(key)),
            bitset,
            waiter: Waiter::current(),
            woken: AtomicBool::new(false),
            pi,
        }
    }
}

struct Bucket {
    head: *const Node,
}

// SAFETY: the list is followed only under the bucket's lock, and nodes are unlinked before they die.
unsafe impl Send for Bucket {}

static TABLE: [SpinLock<Bucket>; BUCKETS] = [const { SpinLock::new(&CLASS, Bucket { head: ptr::null() }) }; BUCKETS];

fn bucket_of(key: Key) -> usize {
    let h = (key.space as u64 ^ key.at.rotate_left(17)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (h >> 56) as usize % BUCKETS
}

impl Bucket {
    fn push(&mut self, node: &Node) {
        // To the end: wake-ups come in the order of waiting.
        let mut at: *mut *const Node = &mut self.head;
        // SAFETY: linked nodes are alive and their links belong to this lock.
        unsafe {
            while !(*at).is_null() {
                at = (**at).next.get();
            }
            *node.next.get() = ptr::null();
            *at = node;
        }
    }

    /// Takes out the nodes for which `want` holds, in order, and gives each to `f`.
    fn drain(&mut self, mut want: impl FnMut(&Node) -> bool, mut f: impl FnMut(&Node)) {
        let mut at: *mut *const Node = &mut self.head;
        // SAFETY: as in `push`; `f` may free the node by waking its sleeper, so its link is read first.
        unsafe {
            while !(*at).is_null() {
                let node = &**at;
                if want(node) {
                    *at = *node.next.get();
                    f(node);
                } else {
                    at = node.next.get();
                }
            }
        }
    }
}

/// The key of a word, and for a shared one the page, which must be held while the key is used.
fn key_of(addr: UserAddr, private: bool) -> Result<(Key, Option<Page>)> {
    if addr.0 & 3 != 0 {
        return Err(Errno::EINVAL);
    }
    if addr.0 >= crate::arch::mmu::USER_END {
        return Err(Errno::EFAULT);
    }
    let mm = sched::current().sched.mm.load(Ordering::Relaxed);
    if private {
        return Ok((Key { space: mm as usize, at: addr.0 }, None));
    }
    uaccess::get_user_u32(addr).map_err(|_| Errno::EFAULT)?;
    // SAFETY: the running thread's address space lives while it runs.
    let space = unsafe { mm.as_ref() }.ok_or(Errno::EFAULT)?;
    Ok(match space.shared_page_at(addr.0 as usize)? {
        Some(page) => (Key { space: page.raw(), at: (addr.0 & 0xfff) | 1 }, Some(page)),
        // Private memory: its page may change (copy-on-write) while its address does not.
        None => (Key { space: mm as usize, at: addr.0 }, None),
    })
}

/// Locks a node's bucket, which may change until it is locked.
fn unqueue(node: &Node) {
    loop {
        let index = node.bucket.load(Ordering::Acquire);
        let mut b = TABLE[index].lock();
        if node.bucket.load(Ordering::Relaxed) == index {
            b.drain(|n| ptr::eq(n, node), |_| {});
            return;
        }
    }
}

/// [`wait`] as the call: with a deadline, one that a stop interrupted goes on to the same deadline (`restart_syscall`), and
/// one that a handler interrupted ends with `EINTR` (futex(2)).
pub fn resumable_wait(addr: UserAddr, private: bool, value: u32, bitset: u32, until: Option<u64>) -> Result<i64> {
    match (wait(addr, private, value, bitset, until), until) {
        (Err(Errno::ERESTARTSYS), Some(deadline)) => {
            let rest = Restart::Futex { addr: addr.0, value, bitset, private, deadline };
            crate::sched::current().restart.set(rest);
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        (r, _) => r.map(|()| 0),
    }
}

/// Queues `node` if the word holds `expected`. `EAGAIN` if not, `EFAULT`.
fn enqueue(node: &Node, addr: UserAddr, expected: u32) -> Result<()> {
    loop {
        let mut b = TABLE[node.bucket.load(Ordering::Relaxed)].lock();
        match uaccess::get_user_u32(addr) {
            Ok(v) if v != expected => return Err(Errno::EAGAIN),
            Ok(_) => {
                b.push(node);
                return Ok(());
            }
            Err(_) => {
                drop(b);
                uaccess::get_user_u32(addr).map_err(|_| Errno::EFAULT)?;
            }
        }
    }
}

/// FUTEX_WAIT and FUTEX_WAIT_BITSET. `EAGAIN` if the word is not `expected`, `ETIMEDOUT`, `ERESTARTSYS`, `EFAULT`.
pub fn wait(addr: UserAddr, private: bool, expected: u32, bitset: u32, deadline_ns: Option<u64>) -> Result<()> {
    if bitset == 0 {
        return Err(Errno::EINVAL);
    }
    let (key, _page) = key_of(addr, private)?;
    let node = Node::new(key, bitset, ptr::null());
    enqueue(&node, addr, expected)?;
    loop {
        let why = platform::park(ParkOptions { interruptible: true, deadline_ns });
        if node.woken.load(Ordering::Acquire) {
            return Ok(());
        }
        if why == Wake::Unparked {
            continue;
        }
        unqueue(&node);
        // A waker may have been faster than we.
        if node.woken.load(Ordering::Acquire) {
            return Ok(());
        }
        return Err(if why == Wake::TimedOut { Errno::ETIMEDOUT } else { Errno::ERESTARTSYS });
    }
}

/// Wakes `node`'s sleeper, which then frees the node.
fn release(node: &Node) {
    let waiter = node.waiter.clone();
    node.woken.store(true, Ordering::Release);
    waiter.unpark();
}

fn wake_key(key: Key, count: u32, bitset: u32) -> u32 {
    let mut woken = 0;
    let mut b = TABLE[bucket_of(key)].lock();
    if b.head.is_null() {
        return 0;
    }
    b.drain(
        |n| {
            // SAFETY: the key of a queued node is under the bucket's lock.
            let hit = woken < count && unsafe { *n.key.get() } == key && n.bitset & bitset != 0 && n.pi.is_null();
            woken += u32::from(hit);
            hit
        },
        release,
    );
    woken
}

/// FUTEX_WAKE and FUTEX_WAKE_BITSET: how many were woken.
pub fn wake(addr: UserAddr, private: bool, count: u32, bitset: u32) -> Result<u32> {
    if bitset == 0 {
        return Err(Errno::EINVAL);
    }
    let (key, _page) = key_of(addr, private)?;
    Ok(wake_key(key, count, bitset))
}

/// FUTEX_REQUEUE and, with `expected`, FUTEX_CMP_REQUEUE: wakes `wake` waiters of `from` and moves up to `requeue` others
/// to `to`. Returns how many were woken or moved.
pub fn requeue(
    from: UserAddr,
    to: UserAddr,
    private: bool,
    wake: u32,
    requeue: u32,
    expected: Option<u32>,
) -> Result<u32> {
    if (wake as i32) < 0 || (requeue as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let (from_key, _p) = key_of(from, private)?;
    let (to_key, _q) = key_of(to, private)?;
    let (a, z) = (bucket_of(from_key), bucket_of(to_key));
    loop {
        // In the order of indices, whichever is which.
        let mut low = TABLE[a.min(z)].lock();
        let mut high = (a != z).then(|| TABLE[a.max(z)].lock_nested());
        if let Some(want) = expected {
            match uaccess::get_user_u32(from) {
                Ok(v) if v != want => return Err(Errno::EAGAIN),
                Ok(_) => {}
                Err(_) => {
                    drop(high);
                    drop(low);
                    uaccess::get_user_u32(from).map_err(|_| Errno::EFAULT)?;
                    continue;
                }
            }
        }
        let (mut woken, mut moved) = (0, 0);
        let mut movers: *const Node = ptr::null();
        let mut movers_end: *const Node = ptr::null();
        let source = if a <= z { &mut *low } else { high.as_deref_mut().unwrap_or(&mut *low) };
        let mut take = |n: &Node| {
            // SAFETY: as in `wake_key`.
            if unsafe { *n.key.get() } != from_key || !n.pi.is_null() {
                return false;
            }
            woken + moved < wake.saturating_add(requeue) && {
                if woken < wake {
                    woken += 1;
                } else {
                    moved += 1;
                }
                true
            }
        };
        let mut given = 0;
        source.drain(&mut take, |n| {
            given += 1;
            if given <= wake {
                release(n);
                return;
            }
            // SAFETY: both buckets are locked; the node is in neither list and its sleeper waits for a lock to leave.
            unsafe {
                *n.key.get() = to_key;
                n.bucket.store(z, Ordering::Release);
                *n.next.get() = ptr::null();
                if movers_end.is_null() {
                    movers = n;
                } else {
                    *(*movers_end).next.get() = n;
                }
                movers_end = n;
            }
        });
        let target = if a < z { high.as_deref_mut().unwrap_or(&mut *low) } else { &mut *low };
        while !movers.is_null() {
            // SAFETY: the private list built above, both locks still held.
            unsafe {
                let n = &*movers;
                movers = *n.next.get();
                target.push(n);
            }
        }
        return Ok(woken + moved);
    }
}

/// FUTEX_WAKE_OP: changes the second word, wakes waiters of the first, and of the second if its old value compares.
pub fn wake_op(a: UserAddr, b: UserAddr, private: bool, wake: u32, wake2: u32, op: u32) -> Result<u32> {
    let (key_a, _p) = key_of(a, private)?;
    let (key_b, _q) = key_of(b, private)?;
    let sign = |v: u32| ((v << 20) as i32 >> 20) as u32;
    let (kind, compare) = ((op >> 28) & 7, (op >> 24) & 15);
    let (mut arg, against) = (sign((op >> 12) & 0xfff), sign(op & 0xfff));
    if op >> 31 != 0 {
        arg = 1 << (arg & 31);
    }
    let mut old = uaccess::get_user_u32(b).map_err(|_| Errno::EFAULT)?;
    loop {
        let new = match kind {
            0 => arg,
            1 => old.wrapping_add(arg),
            2 => old | arg,
            3 => old & !arg,
            4 => old ^ arg,
            _ => return Err(Errno::ENOSYS),
        };
        let seen = uaccess::cmpxchg_user_u32(b, old, new).map_err(|_| Errno::EFAULT)?;
        if seen == old {
            break;
        }
        old = seen;
    }
    let (x, y) = (old as i32, against as i32);
    let hit = match compare {
        0 => x == y,
        1 => x != y,
        2 => x < y,
        3 => x <= y,
        4 => x > y,
        5 => x >= y,
        _ => return Err(Errno::ENOSYS),
    };
    let woken = wake_key(key_a, wake, u32::MAX);
    Ok(woken + if hit { wake_key(key_b, wake2, u32::MAX) } else { 0 })
}

/// The word of `set_tid_address(2)` of a thread that ends, and those who sleep on it. It outlives the thread's hold on the
/// memory: so a joiner that it wakes finds the thread gone from the process and from the address space.
#[must_use]
pub struct LastWord {
    private: Option<Key>,
    shared: Option<(Key, Option<Page>)>,
}

impl LastWord {
    /// Writes 0 to the word at `addr` of the running thread's memory. Whoever sleeps on it is woken by [`LastWord::wake`],
    /// and only then. A bad address has nobody to wake.
    pub fn clear(addr: UserAddr) -> LastWord {
        if addr.0 == 0 || uaccess::put_user_u32(addr, 0).is_err() {
            return LastWord { private: None, shared: None };
        }
        LastWord { private: key_of(addr, true).ok().map(|(key, _)| key), shared: key_of(addr, false).ok() }
    }

    /// Wakes one who sleeps on the word as a private futex, and one who sleeps on it as a shared one (joiners use either). The
    /// private key may by now be that of a new address space: its sleeper is woken for nothing, as futex(2) allows.
    pub fn wake(self) {
        for key in self.private.into_iter().chain(self.shared.as_ref().map(|(key, _)| *key)) {
            wake_key(key, 1, u32::MAX);
        }
    }
}

mod op {
    pub const WAIT: u32 = 0;
    pub const WAKE: u32 = 1;
    pub const REQUEUE: u32 = 3;
    pub const CMP_REQUEUE: u32 = 4;
    pub const WAKE_OP: u32 = 5;
    pub const LOCK_PI: u32 = 6;
    pub const UNLOCK_PI: u32 = 7;
    pub const TRYLOCK_PI: u32 = 8;
    pub const WAIT_BITSET: u32 = 9;
    pub const WAKE_BITSET: u32 = 10;
    pub const WAIT_REQUEUE_PI: u32 = 11;
    pub const CMP_REQUEUE_PI: u32 = 12;
    pub const LOCK_PI2: u32 = 13;
    pub const PRIVATE: u32 = 128;
    pub const CLOCK_REALTIME: u32 = 256;
}

fn deadline(timeout: UserAddr, absolute: bool, realtime: bool) -> Result<Option<u64>> {
    if timeout.is_null() {
        return Ok(None);
    }
    let sec = uaccess::get_user_u64(timeout).map_err(|_| Errno::EFAULT)? as i64;
    let nsec = uaccess::get_user_u64(timeout.offset(8)).map_err(|_| Errno::EFAULT)? as i64;
    let ns = Timespec { sec, nsec }.to_ns()?;
    if !absolute {
        return Ok(Some(platform::monotonic_ns().saturating_add(ns)));
    }
    Ok(Some(if realtime { ns.saturating_sub_signed(crate::clock::offset()) } else { ns }))
}

/// The system call: uaddr, op, val, timeout or val2, uaddr2, val3.
pub fn sys_futex(a: [u64; 6]) -> Result<i64> {
    let (addr, flags, val) = (UserAddr(a[0]), a[1] as u32, a[2] as u32);
    let (val2, addr2, val3) = (a[3] as u32, UserAddr(a[4]), a[5] as u32);
    let private = flags & op::PRIVATE != 0;
    let realtime = flags & op::CLOCK_REALTIME != 0;
    let command = flags & !(op::PRIVATE | op::CLOCK_REALTIME);
    if realtime && !matches!(command, op::WAIT_BITSET | op::WAIT_REQUEUE_PI | op::LOCK_PI2) {
        return Err(Errno::ENOSYS);
    }
    match command {
        op::WAIT => resumable_wait(addr, private, val, u32::MAX, deadline(UserAddr(a[3]), false, false)?),
        op::WAIT_BITSET => resumable_wait(addr, private, val, val3, deadline(UserAddr(a[3]), true, realtime)?),
        op::WAKE => wake(addr, private, val, u32::MAX).map(i64::from),
        op::WAKE_BITSET => wake(addr, private, val, val3).map(i64::from),
        op::REQUEUE => requeue(addr, addr2, private, val, val2, None).map(i64::from),
        op::CMP_REQUEUE => requeue(addr, addr2, private, val, val2, Some(val3)).map(i64::from),
        op::WAKE_OP => wake_op(addr, addr2, private, val, val2, val3).map(i64::from),
        // Its limit is a time of the wall clock, always.
        op::LOCK_PI => pi::lock(addr, private, deadline(UserAddr(a[3]), true, true)?, true).map(|()| 0),
        op::LOCK_PI2 => pi::lock(addr, private, deadline(UserAddr(a[3]), true, realtime)?, true).map(|()| 0),
        op::TRYLOCK_PI => pi::lock(addr, private, None, false).map(|()| 0),
        op::UNLOCK_PI => pi::unlock(addr, private).map(|()| 0),
        op::WAIT_REQUEUE_PI => wait_requeue_pi(addr, private, val, deadline(UserAddr(a[3]), true, realtime)?, addr2),
        op::CMP_REQUEUE_PI => requeue_pi(addr, addr2, private, val, val2, val3).map(i64::from),
        _ => Err(Errno::ENOSYS),
    }
}

/// FUTEX_WAIT_REQUEUE_PI: waits on `addr` until FUTEX_CMP_REQUEUE_PI has moved the caller to the lock at `lock` and the
/// lock is its own. `EAGAIN` if the word is not `expected` (or a signal came too late to wait again), `ETIMEDOUT`.
fn wait_requeue_pi(
    addr: UserAddr,
    private: bool,
    expected: u32,
    deadline_ns: Option<u64>,
    lock: UserAddr,
) -> Result<i64> {
    if addr.0 == lock.0 {
        return Err(Errno::EINVAL);
    }
    pi::touch(lock)?;
    let (key, _page) = key_of(addr, private)?;
    let (lock_key, _lock_page) = key_of(lock, private)?;
    let owner = pi::Node::new(lock_key);
    let node = Node::new(key, u32::MAX, &raw const owner);
    enqueue(&node, addr, expected)?;
    loop {
        let why = platform::park(ParkOptions { interruptible: true, deadline_ns });
        if owner.is_granted() {
            return Ok(0);
        }
        if why == Wake::Unparked && !owner.is_queued() {
            continue;
        }
        unqueue(&node);
        if owner.is_granted() {
            return Ok(0);
        }
        if owner.is_queued() {
            // Moved: from here on it is a wait for the lock.
            let interrupted = |e| if e == Errno::EINTR { Errno::EAGAIN } else { e };
            return match why {
                Wake::Unparked => pi::wait_for(lock, &owner, deadline_ns).map(|()| 0).map_err(interrupted),
                _ if pi::cancel(&owner) => Ok(0),
                Wake::TimedOut => Err(Errno::ETIMEDOUT),
                Wake::Interrupted => Err(Errno::EAGAIN),
            };
        }
        return Err(if why == Wake::TimedOut { Errno::ETIMEDOUT } else { Errno::ERESTARTNOINTR });
    }
}

/// FUTEX_CMP_REQUEUE_PI: gives the lock at `to` to the first of those who wait for it at `from`, and moves up to
/// `count` others to wait for it. How many were given it or moved. `EINVAL`: one of them waits for another lock.
fn requeue_pi(from: UserAddr, to: UserAddr, private: bool, wake: u32, count: u32, expected: u32) -> Result<u32> {
    if wake != 1 || (count as i32) < 0 || from.0 == to.0 {
        return Err(Errno::EINVAL);
    }
    let (key, _p) = key_of(from, private)?;
    let (lock_key, _q) = key_of(to, private)?;
    let mut done = 0;
    while done <= count {
        let (result, mut found) = (Cell::new(Ok(pi::Step::Queued)), false);
        {
            let mut b = TABLE[bucket_of(key)].lock();
            match uaccess::get_user_u32(from) {
                // Only before the first: what happens to the word after is what the woken ones do.
                Ok(v) if v != expected && done == 0 => return Err(Errno::EAGAIN),
                Ok(_) => b.drain(
                    |n| {
                        // SAFETY: the key of a queued node is under the bucket's lock.
                        if found || unsafe { *n.key.get() } != key {
                            return false;
                        }
                        found = true;
                        // SAFETY: it lies beside the queued node, on the same stack.
                        let owner = unsafe { n.pi.as_ref() }.filter(|o| o.key() == lock_key);
                        result.set(owner.map_or(Err(Errno::EINVAL), |o| pi::step_for(to, o)));
                        matches!(result.get(), Ok(pi::Step::Taken | pi::Step::Queued))
                    },
                    |n| {
                        // SAFETY: as above; granting it is the last use of either node.
                        if let (Ok(pi::Step::Taken), Some(owner)) = (result.get(), unsafe { n.pi.as_ref() }) {
                            pi::grant(owner);
                        }
                    },
                ),
                Err(_) => result.set(Ok(pi::Step::Again)),
            }
        }
        let result = result.get();
        match result {
            Err(e) => return if done > 0 { Ok(done) } else { Err(e) },
            Ok(pi::Step::Again) => {
                uaccess::get_user_u32(from).map_err(|_| Errno::EFAULT)?;
                pi::touch(to)?;
            }
            Ok(_) if !found => break,
            Ok(_) => done += 1,
        }
    }
    Ok(done)
}

/// Walks the robust list of the exiting thread `tid` (get_robust_list(2)): each lock that it still holds is marked
/// FUTEX_OWNER_DIED and one waiter is woken. Bounded at 2048 entries, as on Linux; bad pointers end it.
/// `berth.sabotage=robust`: nothing is walked, which gate m6 must notice.
pub fn exit_robust_list(head: UserAddr, tid: u32) {
    if crate::machine::sabotaged("robust") {
        return;
    }
    const WAITERS: u32 = 0x8000_0000;
    const OWNER_DIED: u32 = 0x4000_0000;
    const TID_MASK: u32 = 0x3fff_ffff;
    // Bit 0 marks a lock with priority inheritance: its waiters take it over by themselves.
    let died = |entry: u64, offset: u64| {
        let addr = UserAddr((entry & !1).wrapping_add(offset));
        let Ok(mut old) = uaccess::get_user_u32(addr) else { return };
        while old & TID_MASK == tid {
            match uaccess::cmpxchg_user_u32(addr, old, old & WAITERS | OWNER_DIED) {
                Ok(seen) if seen == old => {
                    if old & WAITERS != 0 && entry & 1 == 0 {
                        let _ = wake(addr, false, 1, u32::MAX);
                        let _ = wake(addr, true, 1, u32::MAX);
                    }
                    return;
                }
                Ok(seen) => old = seen,
                Err(_) => return,
            }
        }
    };
    let (Ok(mut entry), Ok(offset), Ok(pending)) =
        (uaccess::get_user_u64(head), uaccess::get_user_u64(head.offset(8)), uaccess::get_user_u64(head.offset(16)))
    else {
        return;
    };
    for _ in 0..2048 {
        if entry & !1 == head.0 {
            break;
        }
        let next = uaccess::get_user_u64(UserAddr(entry & !1));
        if entry & !1 != pending & !1 {
            died(entry, offset);
        }
        match next {
            Ok(n) => entry = n,
            Err(_) => break,
        }
    }
    if pending & !1 != 0 {
        died(pending, offset);
    }
}
