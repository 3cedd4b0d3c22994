//! Readers of what firmware and loaders hand over: the device tree, the initial root archive, the command line.
//!
//! All of it is foreign: nothing here panics, loops for ever, or allocates by a count that the input names.
#![no_std]
#![forbid(unsafe_code)]

pub mod fdt;
pub mod platform;
