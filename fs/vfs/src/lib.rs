//! The virtual file system: what the kernel knows of files whoever stores them.
//!
//! A [`FileSystem`] offers [`Inode`]s; names for them are cached as [`Dentry`]s; a [`Mount`] places a file system's tree on
//! a directory of another; a [`Path`] is a dentry seen through a mount. [`Walk`] turns path names into paths with the
//! caller's credentials, [`namei`] changes names, [`OpenFile`] is what a descriptor refers to.
//!
//! # Locking, in order of rank
//! 1. An open file's position ([`OpenFile`]), a sleeping lock.
//! 2. A superblock's rename lock, for renames between directories only: it freezes the tree's shape.
//! 3. A directory's [`Dentry`] lock: held over every change of that directory and over every look-up that misses the
//!    cache, so the cache never disagrees with the directory. Of two directories the ancestor comes first, else the
//!    older dentry.
//! 4. File systems' own locks (`rank::INODE` and up).
//! 5. Spin locks: [`FsContext`], the mount table, a cache bucket, a dentry's link. None is held over a call into a file
//!    system or over a drop of the last reference to anything.
//!
//! # What can fail
//! Every call returns an [`abi::Errno`], the one that Linux returns; nothing panics on what a program or a file system
//! can do.
//!
//! # What was not done
//! A walk without reference counts (RCU): with LSE atomics a component costs two counted references, which stays well
//! under the budget of 1200 instructions for `stat` of three components. Mount propagation and mount namespaces: one
//! global table keyed by mount identity, which namespaces can share later.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod attr;
mod dcache;
mod dentry;
mod empty;
pub mod errseq;
pub mod file;
pub mod flags;
mod fsctx;
pub mod inode;
pub mod locks;
pub mod mount;
pub mod namei;
pub mod notify;
mod open;
pub mod perm;
pub mod rmap;
mod walk;

pub use attr::{Attr, FileType, Meta, NewInode, NewKind, SetAttr, SetTime, Statfs};
pub use dcache::{bytes as dentry_bytes, prune as prune_dentries, shrink as shrink_dentries, size as dentry_count};
pub use dentry::Dentry;
pub use errseq::{ErrCursor, ErrSeq};
pub use file::{File, Io, Mapping, OpenFile, PollEvents, Poller};
pub use fsctx::FsContext;
pub use inode::{Advice, DirEntry, FileExtent, FileSystem, Inode, Link, Mappable, RenameFlags};
pub use mount::{Mount, MountFlags, Path, Superblock};
pub use open::{OpenHow, SpecialFiles, set_special_files, unnamed_path};
pub use perm::Cred;
pub use walk::{
    At, Lookup, MAX_LINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV, Walk,
};

/// The longest file name, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest path name that a call takes, with its NUL.
pub const PATH_MAX: usize = 4096;
/// The largest file offset.
pub const MAX_OFFSET: u64 = i64::MAX as u64;
