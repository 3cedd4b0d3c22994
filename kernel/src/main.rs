//! The Berth kernel.
//!
//! `arch::boot` brings the boot CPU into the high half and calls [`kernel::kernel_main`]; `docs/tour.md` walks on from
//! there. On anything but its own target this is an empty program, so that host builds of the whole workspace work.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod arch;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod drivers;
#[cfg(target_os = "none")]
mod exec;
#[cfg(target_os = "none")]
mod file;
#[cfg(target_os = "none")]
mod futex;
#[cfg(target_os = "none")]
mod ipc;
#[cfg(target_os = "none")]
#[macro_use]
mod log;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod mm;
#[cfg(target_os = "none")]
mod net;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod platform_impl;
#[cfg(target_os = "none")]
mod random;
#[cfg(target_os = "none")]
mod sched;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod symbols;
#[cfg(target_os = "none")]
mod syscall;
#[cfg(target_os = "none")]
mod task;
#[cfg(target_os = "none")]
mod tty;

#[cfg(target_os = "none")]
use start::{kernel_main, secondary_main};

#[cfg(not(target_os = "none"))]
fn main() {}
