//! Who is traced: system calls written to the log, per process and its children (like `strace -f`).
//!
//! `berth.trace=all` traces everything from the start, `berth.trace=NAME` every program of that name from its exec on;
//! writing a number to `/proc/berth/trace` calls [`set`].

use super::ids::Pid;
use super::process;
use super::thread::Thread;
use crate::arch::context::TRACE;
use crate::machine;
use core::sync::atomic::Ordering;

/// Whether a child of `t` is traced too.
pub fn follows(t: &Thread) -> bool {
    t.arch.flags.load(Ordering::Relaxed) & TRACE != 0
}

/// Whether the command line asks to trace a program of this name.
pub fn wanted(name: &[u8]) -> bool {
    machine::option("berth.trace").is_some_and(|v| v == b"all" || v == name)
}

/// Turns the trace of a process on or off; false if there is none.
pub fn set(pid: Pid, on: bool) -> bool {
    let Some(p) = process::find(pid) else { return false };
    for t in p.threads() {
        t.set_traced(on);
    }
    true
}
