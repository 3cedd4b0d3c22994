//! System calls: from the trap to a handler and back.
//!
//! The vectors call [`dispatch`] with interrupts on. A handler is a plain function with typed arguments; it decodes user
//! memory through [`uaccess`](crate::arch::uaccess), calls one typed kernel function, and returns a value or an
//! [`Errno`]. The restart codes (`ERESTARTSYS` and its kin) never reach user space: whoever returns one makes signal
//! delivery run, which turns it into `EINTR` or a restart.
//!
//! Context: thread, preemptible, may sleep. No locks are held around a handler.

pub mod file;
pub mod futex;
pub mod misc;
pub mod mm;
pub mod net;
pub mod pidfd;
pub mod poll;
pub mod sched;
pub mod signal;
pub mod table;
pub mod task;
pub mod time;
pub mod trace;

use crate::arch::context::{self, NOTIFY, TRACE};
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
pub fn unknown(_frame: &mut TrapFrame) -> SysResult {
    percpu::count(Counter::UnknownSyscalls);
    Err(Errno::ENOSYS)
}

/// Runs the call that the frame asks for and leaves its result there.
#[inline]
pub fn dispatch(frame: &mut TrapFrame) {
    percpu::count_own(Counter::Syscalls);
    let number = frame.syscallno;
    let handler = table::HANDLERS.get(number as usize).copied().unwrap_or(unknown);
    if context::current().flags.load(Ordering::Relaxed) & TRACE != 0 {
        return trace::traced(frame, handler);
    }
    let result = handler(frame);
    finish(frame, result);
}

/// Puts a result where user space finds it.
#[inline(always)]
fn finish(frame: &mut TrapFrame, result: SysResult) {
    frame.x[0] = match result {
        Ok(v) => v as u64,
        Err(e) => {
            if e.raw() >= Errno::ERESTARTSYS.raw() {
                context::current().flags.fetch_or(NOTIFY, Ordering::Relaxed);
            }
            e.to_return() as u64
        }
    };
}
