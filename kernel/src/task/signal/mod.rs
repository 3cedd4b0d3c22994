//! Signals.
//!
//! # Ideas
//! A signal is sent ([`send`]) by putting it into a thread's or the process's pending set under the process's signal lock,
//! and setting `SIGNAL_PENDING` in a thread that will take it; that flag ends interruptible sleeps, and sends the thread
//! through [`deliver`](deliver::deliver) on its way to user mode. There the next signal is taken and acted on: ignored,
//! the process ended or stopped, or a frame built on the user's stack ([`frame`]).
//!
//! # Locking
//! [`SignalState`](state::SignalState) has one interrupt-masking lock per process, ranked after the tree's, so that a
//! terminal's or a timer's interrupt can send. Whoever needs both takes the tree first.
//!
//! # Invariants
//! - `SIGNAL_PENDING` is set in every thread that has something to take, or the thread is on its way to look.
//! - A thread that is in a process's list is known to the scheduler (entered under the same lock), so it can be woken.
//!
//! # What was not done
//! Core files: `core` actions end the process without one, and the wait status does not claim one. Signals between
//! processes that share actions without being threads of one process (`CLONE_SIGHAND` alone) are not shared: such a
//! clone copies.

pub mod deliver;
pub mod frame;
pub mod info;
pub mod pending;
pub mod send;
pub mod state;
pub mod stop;

pub use deliver::deliver;
pub use info::{Detail, SigInfo, code};
pub use send::{force_fault, kill_pgrp, send_to_process, send_to_thread, sigpipe};

/// Signal numbers.
pub mod number {
    #![allow(missing_docs, dead_code)] // the list is whole
    pub const SIGHUP: u32 = 1;
    pub const SIGINT: u32 = 2;
    pub const SIGQUIT: u32 = 3;
    pub const SIGILL: u32 = 4;
    pub const SIGTRAP: u32 = 5;
    pub const SIGABRT: u32 = 6;
    pub const SIGBUS: u32 = 7;
    pub const SIGFPE: u32 = 8;
    pub const SIGKILL: u32 = 9;
    pub const SIGUSR1: u32 = 10;
    pub const SIGSEGV: u32 = 11;
    pub const SIGUSR2: u32 = 12;
    pub const SIGPIPE: u32 = 13;
    pub const SIGALRM: u32 = 14;
    pub const SIGTERM: u32 = 15;
    pub const SIGSTKFLT: u32 = 16;
    pub const SIGCHLD: u32 = 17;
    pub const SIGCONT: u32 = 18;
    pub const SIGSTOP: u32 = 19;
    pub const SIGTSTP: u32 = 20;
    pub const SIGTTIN: u32 = 21;
    pub const SIGTTOU: u32 = 22;
    pub const SIGURG: u32 = 23;
    pub const SIGXCPU: u32 = 24;
    pub const SIGXFSZ: u32 = 25;
    pub const SIGVTALRM: u32 = 26;
    pub const SIGPROF: u32 = 27;
    pub const SIGWINCH: u32 = 28;
    pub const SIGIO: u32 = 29;
    pub const SIGPWR: u32 = 30;
    pub const SIGSYS: u32 = 31;
}
use number::*;

/// The first real-time signal.
pub const SIGRTMIN: u32 = 32;
/// The highest signal.
pub const SIGMAX: u32 = 64;

/// `SA_NOCLDSTOP`
pub const SA_NOCLDSTOP: u64 = 1;
/// `SA_NOCLDWAIT`
pub const SA_NOCLDWAIT: u64 = 2;
/// `SA_SIGINFO`
pub const SA_SIGINFO: u64 = 4;
/// `SA_RESTORER`
pub const SA_RESTORER: u64 = 0x0400_0000;
/// `SA_ONSTACK`
pub const SA_ONSTACK: u64 = 0x0800_0000;
/// `SA_RESTART`
pub const SA_RESTART: u64 = 0x1000_0000;
/// `SA_NODEFER`
pub const SA_NODEFER: u64 = 0x4000_0000;
/// `SA_RESETHAND`
pub const SA_RESETHAND: u64 = 0x8000_0000;

/// `SS_ONSTACK`
pub const SS_ONSTACK: u32 = 1;
/// `SS_DISABLE`
pub const SS_DISABLE: u32 = 2;
/// `SS_AUTODISARM`
pub const SS_AUTODISARM: u32 = 1 << 31;

/// A signal's bit in a mask.
#[inline(always)]
pub const fn bit(signo: u32) -> u64 {
    1 << (signo - 1)
}

/// Signals that cannot be blocked, caught or ignored.
pub const KERNEL_ONLY: u64 = bit(SIGKILL) | bit(SIGSTOP);
/// Signals that stop a process.
pub const STOPPING: u64 = bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);

/// What a signal does to a process that did not say (signal(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultAction {
    /// It ends.
    Terminate,
    /// Nothing.
    Ignore,
    /// It ends (with a core file, were there any).
    Core,
    /// It stops.
    Stop,
    /// It goes on.
    Continue,
}

/// The default action of `signo`.
pub fn default_of(signo: u32) -> DefaultAction {
    match signo {
        SIGCHLD | SIGURG | SIGWINCH => DefaultAction::Ignore,
        SIGCONT => DefaultAction::Continue,
        SIGSTOP | SIGTSTP | SIGTTIN | SIGTTOU => DefaultAction::Stop,
        SIGQUIT | SIGILL | SIGTRAP | SIGABRT | SIGBUS | SIGFPE | SIGSEGV | SIGXCPU | SIGXFSZ | SIGSYS => {
            DefaultAction::Core
        }
        _ => DefaultAction::Terminate,
    }
}

/// Whether `n` is a signal's number.
pub fn is_valid(n: i32) -> bool {
    (1..=SIGMAX as i32).contains(&n)
}

/// Sets the calling thread's blocked set, and looks again at what is pending.
pub fn set_blocked(me: &crate::task::Thread, mask: u64) {
    use core::sync::atomic::Ordering;
    let mask = mask & !KERNEL_ONLY;
    let mut s = me.process.signals.lock();
    let newly = mask & !me.blocked();
    me.blocked.store(mask, Ordering::Relaxed);
    if s.has_work_for(me) {
        me.arch.flags.fetch_or(crate::arch::context::SIGNAL_PENDING, Ordering::Relaxed);
    } else {
        me.arch.flags.fetch_and(!crate::arch::context::SIGNAL_PENDING, Ordering::Relaxed);
    }
    // What was meant for the process and would now wait for us may have another taker.
    let left = s.shared.set() & newly;
    if left != 0 && s.threads.len() > 1 {
        for t in &s.threads {
            if !core::ptr::eq(&raw const **t, me) && left & !t.blocked() != 0 {
                send::kick(t);
            }
        }
    }
}
