//! Process 1 of a machine that hosts applications, and what it is made of.
//!
//! [`service`] reads what is to run, [`unit`] decides what happens to it (both without a system call, so that the host tests
//! them), [`boot`] and [`disk`] bring the machine up, [`spawn`], [`log`], [`notify`] and [`control`] are the doors to processes,
//! their output, their readiness and `svc`; [`pid1`] is the loop that ties them together, [`shutdown`] the way out.
//! [`radns`] has nothing to do with them: a small program of its own that shares the file with `svc`.
//!
//! Process 1 never ends. It has one thread, so nothing of its own can be held up by a lock; nothing it reads (service
//! files, requests, command lines, disks) can make it stop; and should it panic all the same it replaces itself by a new
//! process image under the same number, which finds the running services in /run/init.state and their output in named
//! pipes, and goes on. Unsafe code is forbidden in it: what a new process has to do between fork and exec (a session of its
//! own, limits, user) it does in a second start of this program, `init --exec`.

#![forbid(unsafe_code)]

pub mod backoff;
pub mod boot;
pub mod cmdline;
pub mod control;
pub mod disk;
pub mod log;
pub mod notify;
pub mod pid1;
pub mod radns;
pub mod service;
pub mod shutdown;
pub mod spawn;
pub mod ssh;
pub mod unit;
pub mod users;
