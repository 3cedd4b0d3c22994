//! datafs: the persistent file system, a driver for the ext4 on-disk format.
//!
//! A disk made by `mke2fs -t ext4` is mounted with [`DataFs::mount`], which gives a [`vfs::FileSystem`]. Metadata goes
//! through a journal, content through the page cache.
//!
//! # Who owns what
//! - The volume ([`volume`]): shape, groups, counters, orphans, the table of inodes in memory.
//! - An inode ([`DataInode`]): its fields as they lie on disk, under its core lock; the content of a regular file is the page
//!   cache's; the blocks of a directory are metadata.
//! - A group: its bitmaps and descriptor, under the group's lock; beside the bitmap on disk one in memory that also knows
//!   what is about to be used and what is not free yet ([`balloc`]).
//! - A metadata block: its bytes, under its own lock, changed only within a transaction.
//!
//! # Locks, in order of taking
//! | lock | rank |
//! | --- | --- |
//! | the VFS's directory locks | `INODE_DIR` |
//! | a file's `io`: writers, truncation, allocation | `INODE` + 2 |
//! | the volume's sync lock | `INODE` + 6 |
//! | (address spaces, the page cache; then a transaction begins) | |
//! | an inode's core (never two) | `PAGE_CACHE` + 12 |
//! | the orphan list | `PAGE_CACHE` + 16 |
//! | a group (never two) | `PAGE_CACHE` + 20 |
//! | the journal, a metadata block (never two) | `PAGE_CACHE` + 30 and up |
//! | tables, spin locks | `SPIN` + 60 and up |
//!
//! Within a transaction nobody copies from or to user memory, waits for write-back, or drops the last reference to an inode.
//!
//! # What can fail
//! What is on the disk is believed only as far as it was checked: an impossible value is `EUCLEAN`, is logged, and stops
//! writing unless `errors=continue`. A full disk is `ENOSPC` before anything was changed.
//!
//! # What was not done
//! Quotas, encryption, case folding, inline data, verity, attributes in inodes of their own, clusters (`bigalloc`), blocks
//! larger than a page: refused or mounted read-only by name. ACLs are neither shown nor enforced. Files with the old block
//! map are read, overwritten and removed, but get no new blocks. Reserved blocks are open to everyone, as the VFS does not
//! say who writes. With blocks smaller than a page a write
//! allocates all blocks of its pages.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod balloc;
mod bits;
mod crc;
mod data;
mod dir;
mod evict;
mod extents;
mod extents_edit;
mod falloc;
mod fields;
mod flags;
mod geometry;
mod hash;
mod htree;
mod ialloc;
mod indirect;
mod inode;
mod keeper;
mod layout;
mod meta;
mod mount;
mod ops;
mod options;
mod orphan;
mod readdir;
mod recover;
mod remount;
mod shift;
mod symlink;
mod vfs_inode;
mod volume;
mod xattr;

#[cfg(test)]
mod tests;

pub use geometry::Refused;
pub use inode::DataInode;
pub use keeper::{Footprint, Keeper, Shrinker};
pub use mount::{DataFs, probe};
pub use options::{OnError, Options};
