//! System calls: from the trap to a handler and back.
//!
//! The vectors look a handler up in [`table::ENTRIES`] and call it, mostly with interrupts on ([`table::Mode`]), or
//! [`trace::traced`] for a traced thread. A handler is a plain function with typed arguments; it decodes user memory through [`uaccess`](crate::arch::uaccess), calls one typed kernel function, and returns a value or an
//! [`Errno`]. The restart codes (`ERESTARTSYS` and its kin) never reach user space: whoever returns one makes signal
//! delivery run, which turns it into `EINTR` or a restart.
//!
//! Context: thread, preemptible, may sleep, but for short calls. No locks are held around a handler.

pub mod adjtime;
pub mod file;
pub mod futex;
pub mod identity;
pub mod misc;
pub mod mm;
pub mod net;
pub mod pidfd;
pub mod poll;
pub mod sched;
pub mod signal;
pub mod splice;
pub mod table;
pub mod task;
pub mod time;
pub mod trace;

use crate::arch::context::{self, NOTIFY};
use crate::arch::percpu::{self, Counter};
use crate::arch::trap::TrapFrame;
use abi::Errno;
use core::sync::atomic::Ordering;

/// What a system call gives back.
pub type SysResult = abi::Result<usize>;

/// `EFAULT` for user memory that was not there; for `map_err`.
#[inline(always)]
pub fn efault(_: platform::bytes::Fault) -> Errno {
    Errno::EFAULT
}

/// A number that has no call: `ENOSYS`, counted.
pub extern "C" fn unknown(_: u64, _: u64, _: u64, _: u64, _: u64, _: u64, _: &mut TrapFrame) -> u64 {
    percpu::count(Counter::UnknownSyscalls);
    Errno::ENOSYS.to_return() as u64
}

/// A handler's result as user space finds it in X0.
#[inline(always)]
pub fn to_user(result: SysResult) -> u64 {
    match result {
        Ok(v) => v as u64,
        Err(e) => failed(e),
    }
}

#[cold]
fn failed(e: Errno) -> u64 {
    if e.raw() >= Errno::ERESTARTSYS.raw() {
        context::current().flags.fetch_or(NOTIFY, Ordering::Relaxed);
    }
    e.to_return() as u64
}
