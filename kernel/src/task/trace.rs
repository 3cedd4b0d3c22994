//! Who is traced: system calls written to the log, per process and its children (like `strace -f`).
//!
//! `berth.trace=all` traces everything from the start, `berth.trace=NAME` every program of that name from its exec on;
//! a number written to `/proc/berth/trace` traces that process from now on, a number with a minus no more, and reading it
//! tells who is traced. Children inherit it at fork. Lines go to the kernel log, which `dmesg` and the console show.

use super::ids::Pid;
use super::process::{self, Process};
use super::thread::Thread;
use crate::arch::context::TRACE;
use crate::machine;
use abi::{Errno, Result};
use core::sync::atomic::Ordering;

/// Whether a child of `t` is traced too.
pub fn follows(t: &Thread) -> bool {
    t.arch.flags.load(Ordering::Relaxed) & TRACE != 0
}

/// Whether the command line asks to trace a program of this name.
pub fn wanted(name: &[u8]) -> bool {
    machine::option("berth.trace").is_some_and(|v| v == b"all" || v == name)
}

/// Turns the trace of a process on or off. `ESRCH`. Any thread context.
pub fn set(pid: Pid, on: bool) -> Result<()> {
    for t in process::find(pid).ok_or(Errno::ESRCH)?.threads() {
        t.set_traced(on);
    }
    Ok(())
}

/// Whether any thread of `p` is traced.
pub fn traced(p: &Process) -> bool {
    p.threads().iter().any(|t| follows(t))
}
