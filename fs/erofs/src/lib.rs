//! EROFS: the read-only file system of the base image, as mkfs.erofs makes it.
//!
//! The format is Linux' (Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h there; the layouts are retold in
//! [`layout`], [`map`] and [`zmap`]). An image is one device of blocks. Inodes stand in a metadata area at multiples of 32
//! bytes; an inode's number is its place. A file's data is one of: blocks in a row; blocks in a row with the tail behind the
//! inode; chunks by a table; or LZ4 clusters by an index that stands behind the inode.
//!
//! # How reading works
//! The device has a page cache of its own, through which all metadata and compressed clusters are read, and each file has
//! one with its content. Blocks that lie as the file has them go from the device straight into the file's pages,
//! asynchronously; compressed ones are read through the device's cache and unpacked into the file's pages in the thread that
//! needs them. The last unpacked extents are kept, as readahead comes in windows that are smaller than an extent.
//!
//! # Hostile images
//! Whatever the image says is checked where it is used: places against the device's size, names against their block, indices
//! against the file's size. What cannot be is `EUCLEAN` ("structure needs cleaning"), as on Linux; nothing panics or loops.
//! Features that this driver lacks are refused at mount, by name.
//!
//! # Locks
//! The table of inodes (spin), so that a hard link finds the inode it shares; the kept extents (sleeping, above
//! `PAGE_CACHE`). Neither is held over I/O.
//!
//! # What was not done
//! Fragments, deduplication, several devices, LZMA, DEFLATE and Zstandard clusters, tail packing of clusters, blocks other than
//! 4 KiB: mkfs.erofs makes them only when asked. POSIX ACLs are shown as attributes and not enforced.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod device;
mod dir;
mod inode;
mod layout;
pub mod lz4;
mod map;
mod mount;
mod unpack;
mod xattr;
mod zmap;

pub use mount::Erofs;

#[cfg(test)]
mod tests;
