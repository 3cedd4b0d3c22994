//! Sending signals.

use super::info::{SigInfo, code};
use super::number::*;
use super::state::SignalState;
use super::{KERNEL_ONLY, SIGRTMIN, STOPPING, bit};
use crate::arch::context::SIGNAL_PENDING;
use crate::arch::trap::FaultSignal;
use crate::task::cred::cap;
use crate::task::ids::Pid;
use crate::task::process::Process;
use crate::task::rlimit::kind;
use crate::task::thread::Thread;
use crate::task::tree::{ProcessGroup, TREE, Tree};
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use platform::{ParkOptions, Wake};

/// Makes `t`, a thread of a process whose signal lock the caller holds, look at its flags: out of an interruptible sleep,
/// or out of user mode on another CPU.
pub(in crate::task) fn kick(t: &Thread) {
    let before = t.arch.flags.fetch_or(SIGNAL_PENDING, Ordering::AcqRel);
    if core::ptr::eq(t, crate::sched::current()) {
        return;
    }
    let parked = t.sched.is_parked();
    crate::sched::unpark(t, false);
    if !parked && before & SIGNAL_PENDING == 0 {
        crate::sched::resched(t.sched.last_cpu());
    }
}

/// Drops pending signals of `set`, of the process and of its threads.
pub fn discard_everywhere(s: &mut SignalState, set: u64) {
    s.shared.discard(set);
    for i in 0..s.threads.len() {
        let t = s.threads[i].clone();
        t.pending(s).discard(set);
    }
}

/// What waits for `me`: its own and the process's.
pub fn pending_of(me: &Thread) -> u64 {
    let mut s = me.process.signals.lock();
    me.pending(&mut s).set() | s.shared.set()
}

/// Takes a signal of `set` that waits for `me` or its process.
pub fn take_pending(me: &Thread, set: u64) -> Option<SigInfo> {
    let mut s = me.process.signals.lock();
    me.pending(&mut s).take(set).or_else(|| s.shared.take(set))
}

/// sigtimedwait: takes a signal of `set`, waiting for one until `deadline`. `EAGAIN` at the deadline, `EINTR`.
pub fn wait_for(me: &Thread, set: u64, deadline: Option<u64>) -> Result<SigInfo> {
    let take = || take_pending(me, set);
    if let Some(found) = take() {
        return Ok(found);
    }
    // While we wait the signals count as unblocked, so that senders wake us.
    let old = me.blocked();
    me.awaited.store(set, Ordering::Relaxed);
    super::set_blocked(me, old & !set);
    let result = loop {
        if let Some(found) = take() {
            break Ok(found);
        }
        match crate::sched::park(ParkOptions { interruptible: true, deadline_ns: deadline }) {
            Wake::Unparked => {}
            Wake::TimedOut => break take().ok_or(Errno::EAGAIN),
            Wake::Interrupted => match take() {
                Some(found) => break Ok(found),
                None => break Err(Errno::EINTR),
            },
        }
    };
    super::set_blocked(me, old);
    me.awaited.store(0, Ordering::Relaxed);
    result
}

/// Effects that a signal has at once, whether or not it is blocked or ignored: SIGCONT and SIGKILL end a stop and drop
/// pending stops, stopping signals drop a pending SIGCONT.
fn prepare(p: &Process, s: &mut SignalState, signo: u32) {
    if bit(signo) & STOPPING != 0 {
        discard_everywhere(s, bit(SIGCONT));
    } else if signo == SIGCONT || signo == SIGKILL {
        if signo == SIGCONT {
            discard_everywhere(s, STOPPING);
        }
        if s.stopped.is_some() {
            super::stop::resume(p, s, signo == SIGCONT);
        }
    }
}

/// Which thread takes a signal sent to the process: the caller's own if it can, else the first that does not block it.
fn choose(s: &SignalState, signo: u32) -> Option<Arc<Thread>> {
    let takes = |t: &Thread| t.blocked() & bit(signo) & !KERNEL_ONLY == 0;
    let me = crate::sched::current();
    s.threads
        .iter()
        .find(|t| core::ptr::eq(&raw const ***t, me) && takes(t))
        .or_else(|| s.threads.iter().find(|t| takes(t)))
        .cloned()
}

/// Puts a signal into `target` (a thread of `p`) or, if that is `None`, into the process as a whole. `EAGAIN` when too
/// many wait.
pub(in crate::task) fn post(p: &Process, s: &mut SignalState, target: Option<&Thread>, info: SigInfo) -> Result<()> {
    if s.threads.is_empty() {
        return Ok(());
    }
    prepare(p, s, info.signo);
    let blocked = match target {
        Some(t) => t.blocked() & bit(info.signo) != 0,
        None => false,
    };
    if s.ignores(info.signo) && !is_kept(s, target, info.signo) {
        return Ok(());
    }
    let limit = p.rlimit(kind::SIGPENDING);
    let waiting = match target {
        Some(t) => t.pending(s),
        None => &mut s.shared,
    };
    if info.signo >= SIGRTMIN && waiting.len() as u64 >= limit {
        return Err(Errno::EAGAIN);
    }
    waiting.push(info);
    p.wake_signal_watchers();
    if info.signo == SIGKILL {
        for t in &s.threads {
            kick(t);
        }
        return Ok(());
    }
    match target {
        Some(t) if !blocked => kick(t),
        Some(_) => {}
        None => {
            if let Some(t) = choose(s, info.signo) {
                kick(&t);
            }
        }
    }
    Ok(())
}

/// Whether a signal is kept though it is ignored now: who might take it blocks it, and the action may change before that
/// ends, or waits for it with sigtimedwait.
fn is_kept(s: &SignalState, target: Option<&Thread>, signo: u32) -> bool {
    let keeps = |t: &Thread| (t.blocked() | t.awaited.load(Ordering::Relaxed)) & bit(signo) != 0;
    match target {
        Some(t) => keeps(t),
        None => {
            s.threads.iter().all(|t| t.blocked() & bit(signo) != 0)
                || s.threads.iter().any(|t| t.awaited.load(Ordering::Relaxed) & bit(signo) != 0)
        }
    }
}

/// Sends to a process as a whole. Context: any.
pub fn send_to_process(p: &Process, info: SigInfo) -> Result<()> {
    post(p, &mut p.signals.lock(), None, info)
}

/// Sends to one thread. Context: any.
pub fn send_to_thread(t: &Thread, info: SigInfo) -> Result<()> {
    let p = &t.process;
    post(p, &mut p.signals.lock(), Some(t), info)
}

/// Sends to every member of a group, unconditionally; false if it has none. The caller holds the tree.
pub fn kill_group_locked(tree: &Tree, group: &ProcessGroup, info: SigInfo) -> bool {
    for p in group.members(tree) {
        let _ = send_to_process(p, info);
    }
    !group.members(tree).is_empty()
}

/// Sends to every member of process group `id`, unconditionally (terminals do); false if there is no such group.
/// Context: any, with nothing ranked after the tree held.
pub fn kill_pgrp(id: Pid, info: SigInfo) -> bool {
    let tree = TREE.lock();
    match tree.group(id).cloned() {
        Some(g) => kill_group_locked(&tree, &g, info),
        None => false,
    }
}

/// Whether the caller may signal `target` (kill(2)).
pub fn may_signal(target: &Process, signo: u32) -> bool {
    let me = crate::sched::current();
    let mine = me.creds();
    if mine.has(cap::KILL) || core::ptr::eq(&raw const *me.process, target) {
        return true;
    }
    let Some(t) = target.any_thread() else { return true };
    let theirs = t.creds_of();
    if [mine.uid, mine.euid].iter().any(|u| [theirs.uid, theirs.suid].contains(u)) {
        return true;
    }
    signo == SIGCONT && same_session(&me.process, target)
}

fn same_session(a: &Process, b: &Process) -> bool {
    let tree = TREE.lock();
    let of = |p: &Process| p.links.get(&tree).group.as_ref().map(|g| g.session.id);
    of(a) == of(b)
}

/// Sends the calling thread a signal that it caused by an instruction. If it blocks or ignores it, it dies of it.
pub fn force(info: SigInfo) {
    let me = crate::sched::current();
    let mut s = me.process.signals.lock();
    let b = bit(info.signo);
    if me.blocked() & b != 0 || s.action(info.signo).handler == super::state::IGNORE {
        s.set_default(info.signo);
        me.blocked.store(me.blocked() & !b, Ordering::Relaxed);
    }
    me.pending(&mut s).push(info);
    kick(me);
}

/// What the trap code calls for CPU exceptions from user mode.
pub fn force_fault(f: FaultSignal) {
    force(SigInfo::fault(f.signo, f.code, f.addr));
}

/// SIGPIPE for the calling thread, on a write that nobody can read.
pub fn sigpipe() {
    let _ = send_to_thread(crate::sched::current(), SigInfo::user(SIGPIPE, code::USER));
}
