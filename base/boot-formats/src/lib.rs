//! Readers for what firmware and boot loaders hand to a kernel.
//!
//! Every byte here is foreign: a device tree, an archive or a command line may be truncated, corrupt or hostile. So each
//! reader keeps three promises: it never panics, it always ends (its work is bounded by the length of the input, not by
//! numbers written in it), and it never allocates by such a number. All but [`gzip`] are usable before the heap exists;
//! what they hand out borrows from the input or lives in values of fixed capacity.
//!
//! - [`fdt`]: the flattened device tree as such; [`platform`]: what the kernel wants to know, read out of it.
//! - [`cpio`]: `newc` archives, as a slice or in pieces; [`gzip`]: decompression in pieces.
//! - [`initramfs`]: what may be given as `-initrd`: archives, plain or compressed, one after another.
//! - [`cmdline`]: the kernel's command line.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod cmdline;
pub mod cpio;
mod crc32;
pub mod fdt;
pub mod gzip;
pub mod initramfs;
pub mod platform;
