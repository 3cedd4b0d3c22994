//! Processes and threads.
//!
//! # Ideas
//! A [`Thread`] is what the scheduler runs; a [`Process`] is what threads share as POSIX sees it: number, place in the
//! tree, signals, limits. What clone can share separately (memory, files, directories) and what Linux keeps per thread
//! (credentials) is referenced from each thread ([`owned`]), so that the thread's own use of it costs no lock.
//!
//! # Ownership and locking, in order
//! 1. `Owned` and small per-process spin locks: copies of references, nothing else inside.
//! 2. [`tree::TREE`], one interrupt-masking lock: numbers, parents, groups, sessions, zombies.
//! 3. `Process.signals`, one per process: actions, pending signals, the list of threads, stop and exit in progress.
//! 4. The scheduler's own.
//!
//! Nothing that may sleep happens under any of them; references that could be the last to something big are dropped
//! outside.
//!
//! # Life
//! [`fork`] makes threads and processes whole before it enters them; [`exit`] takes them apart; what is left of a process
//! (number, status, times) waits in the tree for its parent ([`wait`]).
//!
//! # What can fail
//! Numbers, the user's limit on threads, memory for a stack: all before anything has been changed.

pub mod cred;
pub mod exec;
pub mod exit;
pub mod fork;
pub mod ids;
pub mod init;
pub mod job;
pub mod owned;
pub mod process;
pub mod rlimit;
pub mod signal;
pub mod thread;
pub mod timers;
pub mod trace;
pub mod tree;
pub mod wait;
pub mod watch;

pub use ids::Pid;
pub use process::{Process, find, find_thread};
pub use thread::Thread;

use alloc::sync::Arc;

/// The thread that CPU `cpu`'s first thread of control becomes: its idle thread.
pub fn kernel_thread_for_boot(cpu: usize) -> Arc<Thread> {
    Thread::new_idle(cpu)
}

/// Starts process 1; the calling thread becomes the boot CPU's idle thread.
pub fn start_init() -> ! {
    init::start()
}

/// Gives the memory manager the means to choose and kill a process when nothing is left.
fn register_with_mm() {
    crate::mm::oom::register_processes(crate::mm::oom::Processes { for_each: oom_candidates, kill: oom_kill });
}

fn oom_candidates(each: &mut dyn FnMut(crate::mm::oom::Candidate<'_>)) {
    let mut from = 2;
    while let Some(p) = process::next_from(from) {
        from = p.pid.0 + 1;
        let dying = exit::is_ending(&p);
        let Some(t) = p.any_thread() else { continue };
        let (anon, file) = match t.mm_of() {
            Some(mm) => mm.rss(),
            // It has files left to close.
            None if dying => (0, 0),
            None => continue,
        };
        let files = t.files_of().map_or(0, |f| f.capacity());
        each(crate::mm::oom::Candidate {
            pid: p.pid.0,
            name: &t.name_str(),
            rss: anon + file,
            files,
            adjust: p.oom_adjust.load(core::sync::atomic::Ordering::Relaxed),
            dying,
        });
    }
}

fn oom_kill(pid: u32) -> bool {
    match find(Pid(pid)) {
        Some(p) => signal::send_to_process(&p, signal::SigInfo::kernel(signal::number::SIGKILL)).is_ok(),
        None => false,
    }
}
