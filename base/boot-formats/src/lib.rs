//! Readers for what firmware and boot loaders hand to a kernel.
//!
//! Every byte here is foreign: a device tree, an archive or a command line may be truncated, corrupt or hostile. So each
//! reader keeps three promises: it never panics, it always ends (its work is bounded by the length of the input, not by
//! numbers written in it), and it never allocates by such a number. All are usable before the heap exists; what they
//! hand out borrows from the input or lives in values of fixed capacity.
//!
//! - [`fdt`]: the flattened device tree as such; [`platform`]: what the kernel wants to know, read out of it.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod fdt;
pub mod platform;
