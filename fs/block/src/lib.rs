//! Block devices: what a file system sees of a disk.
//!
//! A [`BlockDevice`] takes [`Request`]s and answers each exactly once through the request's [`Complete`] object, maybe in
//! interrupt context, in any order. Sizes on this interface are bytes or sectors of 512 bytes, whatever the medium's
//! own block is ([`Geometry::logical_block`]): a request's place and length are multiples of that.
//!
//! # Order and durability
//! - Requests in flight together have no order. Who needs one waits for the first before submitting the second.
//! - A completed write is in the device, maybe in its volatile cache. [`Op::Flush`] makes all writes that had completed
//!   *before it was submitted* durable; a write with `fua` is durable by itself once it completes (where the device has no
//!   FUA, its queue sends a flush behind the write).
//! - A write that failed, or that a power cut overtook, may have changed any part of its sectors; a sector of
//!   `logical_block` bytes is old or new, never a mixture.
//!
//! # Locking
//! `submit` never sleeps and may be called with spin locks held up to the rank of a device's queue (see docs/locks.md),
//! and from interrupts. Completion runs with no lock of the device held.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod device;
mod io;
mod memdisk;
pub mod partition;
mod queue;
mod request;
mod split;
mod stats;
mod stream;
#[cfg(not(target_os = "none"))]
pub mod testing;

pub use device::{BlockDevice, Geometry};
pub use io::{Batch, discard, flush, read_at, read_pages, write_at, write_fua_at, write_pages, zero_range};
pub use memdisk::MemDisk;
pub use queue::{Hardware, QUEUE_CLASS, Queue, Refused, Transfer};
pub use request::{Complete, Op, Priority, Request, Segment, Segments};
pub use stats::{Kind, Stats, StatsSnapshot};
pub use stream::{read_to, write_from};

/// log2 of [`SECTOR_SIZE`].
pub const SECTOR_SHIFT: u32 = 9;
/// The unit of addresses and lengths on this interface, in bytes. A medium's own block may be larger.
pub const SECTOR_SIZE: usize = 1 << SECTOR_SHIFT;

#[cfg(test)]
mod queue_tests;
#[cfg(test)]
mod tests;
