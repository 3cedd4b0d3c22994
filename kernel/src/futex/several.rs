//! Waiting for several futexes at once (futex_waitv).
//!
//! One node for each word, all of the same thread, each in the bucket of its word: any waker wakes the thread, which then
//! takes the others out and says which one it was.

use super::{Node, enqueue, key_of, unqueue};
use crate::arch::uaccess::{UserAddr, read_user};
use abi::{Errno, Result, Timespec};
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::Ordering;
use platform::{Page, ParkOptions, Wake};
use zerocopy::{FromBytes, IntoBytes};

/// The most words in one call.
const MAX: u32 = 128;
/// `FUTEX2_SIZE_U32`: the size that there is.
const SIZE_U32: u32 = 2;
/// `FUTEX2_PRIVATE`.
const PRIVATE: u32 = 128;

/// `struct futex_waitv`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes)]
struct Word {
    value: u64,
    addr: u64,
    flags: u32,
    reserved: u32,
}

/// The system call: words, how many, flags (none), a time by `clock` at which to give up. Returns the index of a word
/// that was woken. `EAGAIN`: one does not hold its value; `ETIMEDOUT`, `ERESTARTSYS`, `EINVAL`, `EFAULT`.
pub fn sys_futex_waitv(words: UserAddr, count: u32, flags: u32, timeout: UserAddr, clock: i32) -> Result<usize> {
    if flags != 0 || count == 0 || count > MAX {
        return Err(Errno::EINVAL);
    }
    let mut deadline_ns = None;
    if !timeout.is_null() {
        let [sec, nsec]: [i64; 2] = read_user(timeout).map_err(|_| Errno::EFAULT)?;
        let ns = Timespec { sec, nsec }.to_ns()?;
        deadline_ns = Some(match clock {
            0 => ns.saturating_sub_signed(crate::clock::offset()),
            1 => ns,
            _ => return Err(Errno::EINVAL),
        });
    }
    let mut nodes: Vec<(Node, Word, Option<Page>)> = Vec::new();
    nodes.try_reserve_exact(count as usize).map_err(|_| Errno::ENOMEM)?;
    for i in 0..count {
        let w: Word = read_user(words.offset(u64::from(i) * size_of::<Word>() as u64)).map_err(|_| Errno::EFAULT)?;
        if w.flags & !PRIVATE != SIZE_U32 || w.reserved != 0 || w.value > u64::from(u32::MAX) {
            return Err(Errno::EINVAL);
        }
        let (key, page) = key_of(UserAddr(w.addr), w.flags & PRIVATE != 0)?;
        nodes.push((Node::new(key, u32::MAX, ptr::null()), w, page));
    }
    // From here on the nodes stay where they are.
    wait(&nodes, deadline_ns)
}

fn wait(nodes: &[(Node, Word, Option<Page>)], deadline_ns: Option<u64>) -> Result<usize> {
    let mut end = Ok(());
    let mut queued = nodes.len();
    for (i, (node, word, _)) in nodes.iter().enumerate() {
        if let Err(e) = enqueue(node, UserAddr(word.addr), word.value as u32) {
            (end, queued) = (Err(e), i);
            break;
        }
    }
    let woken = || nodes[..queued].iter().any(|n| n.0.woken.load(Ordering::Acquire));
    while end.is_ok() && !woken() {
        match platform::park(ParkOptions { interruptible: true, deadline_ns }) {
            Wake::Unparked => {}
            Wake::TimedOut => end = Err(Errno::ETIMEDOUT),
            Wake::Interrupted => end = Err(Errno::ERESTARTSYS),
        }
    }
    for (node, ..) in &nodes[..queued] {
        unqueue(node);
    }
    // A wake-up counts, whatever else ended the wait.
    match nodes[..queued].iter().rposition(|n| n.0.woken.load(Ordering::Acquire)) {
        Some(i) => Ok(i),
        None => end.map(|()| 0),
    }
}
