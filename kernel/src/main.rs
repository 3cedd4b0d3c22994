//! The Berth kernel. On anything but its own target this is an empty program, so that host builds of the whole
//! workspace work.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}
