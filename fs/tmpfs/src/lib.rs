//! A file system that lives in memory.
//!
//! Inodes are counted objects; a directory holds its children, so a file lives while it has a name or is open. Content is
//! a sparse map from page number to page frame, which user mappings share: a page that was handed out for mapping is the
//! page that `read` and `write` copy from and to.
//!
//! # Locking, in order of rank
//! - a regular file's `io` (sleeping): one writer, truncation or `fallocate` at a time. Readers and page faults do not
//!   take it, so that a copy which faults on a mapping of the same file cannot deadlock.
//! - a directory's `body` (sleeping); of two, the one with the lower inode number first.
//! - a file's `pages` and an inode's `times` (spin, leaves). The size is published before truncation removes pages, and a
//!   fault checks it under `pages`, so no page beyond the end survives.
//!
//! # Limits
//! Pages and inodes are charged to the file system before they are allocated; beyond the limit: `ENOSPC`.
//!
//! # What was not done
//! Swapping, as there is no swap.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod data;
mod dir;
mod inode;

#[cfg(test)]
mod tests;

pub use inode::TmpInode;

use abi::{Errno, Result};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use platform::PAGE_SIZE;
use vfs::{FileSystem, Inode, NewInode, NewKind, Statfs};

/// `TMPFS_MAGIC`
const MAGIC: u64 = 0x0102_1994;

/// What a tmpfs may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pages of content.
    pub pages: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Limits {
    /// No limit but memory itself.
    pub const NONE: Limits = Limits { pages: u64::MAX, inodes: u64::MAX };
    /// What every inode costs at least, for the default limit.
    const INODE_COST: u64 = 4;

    /// Linux's defaults: half of the memory of `ram_pages`.
    pub fn half_of(ram_pages: u64) -> Limits {
        Limits { pages: ram_pages / 2, inodes: ram_pages / 2 * Self::INODE_COST / 4 }
    }

    /// As the mount options `size=` (bytes with k, m, g, or a percentage) and `nr_inodes=` say, beginning from `self`.
    /// `EINVAL` for values that do not parse; unknown options are left to the caller.
    pub fn with_options(mut self, options: &str, ram_pages: u64) -> Result<Limits> {
        for option in options.split(',') {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match key {
                "size" => self.pages = parse_size(value, ram_pages)?.div_ceil(PAGE_SIZE as u64),
                "nr_blocks" => self.pages = parse_size(value, ram_pages)?,
                "nr_inodes" => self.inodes = parse_size(value, ram_pages)?,
                _ => {}
            }
        }
        if self.pages == 0 {
            self.pages = u64::MAX;
        }
        if self.inodes == 0 {
            self.inodes = u64::MAX;
        }
        Ok(self)
    }
}

fn parse_size(text: &str, ram_pages: u64) -> Result<u64> {
    let number = |s: &str| s.parse::<u64>().map_err(|_| Errno::EINVAL);
    if let Some(percent) = text.strip_suffix('%') {
        return Ok(ram_pages * PAGE_SIZE as u64 / 100 * number(percent)?);
    }
    let shift = match text.as_bytes().last() {
        Some(b'k' | b'K') => 10,
        Some(b'm' | b'M') => 20,
        Some(b'g' | b'G') => 30,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    number(digits)?.checked_shl(shift).ok_or(Errno::EINVAL)
}

/// What all inodes of one file system share.
#[derive(Debug)]
pub(crate) struct Shared {
    dev: u64,
    limits: Limits,
    pages: AtomicU64,
    inodes: AtomicU64,
    next_ino: AtomicU64,
}

fn charge(counter: &AtomicU64, n: u64, limit: u64) -> Result<()> {
    let before = counter.fetch_add(n, Ordering::Relaxed);
    if before.checked_add(n).is_none_or(|after| after > limit) {
        counter.fetch_sub(n, Ordering::Relaxed);
        return Err(Errno::ENOSPC);
    }
    Ok(())
}

impl Shared {
    fn charge_pages(&self, n: u64) -> Result<()> {
        charge(&self.pages, n, self.limits.pages)
    }

    fn free_pages(&self, n: u64) {
        self.pages.fetch_sub(n, Ordering::Relaxed);
    }

    fn charge_inode(&self) -> Result<()> {
        charge(&self.inodes, 1, self.limits.inodes)
    }
}

/// A mounted tmpfs.
#[derive(Debug)]
pub struct TmpFs {
    shared: Arc<Shared>,
    root: Arc<TmpInode>,
    name: &'static str,
}

impl TmpFs {
    /// An empty one; its root belongs to root, with permissions `mode`.
    pub fn new(limits: Limits, mode: u32) -> Result<Arc<TmpFs>> {
        Self::named("tmpfs", limits, mode)
    }

    /// As [`TmpFs::new`], showing another type name (`devtmpfs`, `rootfs`).
    pub fn named(name: &'static str, limits: Limits, mode: u32) -> Result<Arc<TmpFs>> {
        let shared = Arc::new(Shared {
            dev: vfs::mount::anonymous_dev(),
            limits,
            pages: AtomicU64::new(0),
            inodes: AtomicU64::new(0),
            next_ino: AtomicU64::new(1),
        });
        let root = TmpInode::make(&shared, &NewInode { kind: NewKind::Dir, mode, uid: 0, gid: 0 })?;
        root.set_root();
        Ok(Arc::new(TmpFs { shared, root, name }))
    }

    /// An unnamed regular file (`memfd_create`, shared anonymous memory).
    pub fn unnamed(&self, mode: u32, uid: u32, gid: u32) -> Result<Arc<dyn Inode>> {
        self.root.tmpfile(&NewInode { kind: NewKind::Regular, mode, uid, gid })
    }

    /// Pages in use.
    pub fn used_pages(&self) -> u64 {
        self.shared.pages.load(Ordering::Relaxed)
    }

    /// Inodes in use.
    pub fn used_inodes(&self) -> u64 {
        self.shared.inodes.load(Ordering::Relaxed)
    }
}

impl FileSystem for TmpFs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn root(&self) -> Result<Arc<dyn Inode>> {
        Ok(self.root.clone())
    }

    fn statfs(&self) -> Result<Statfs> {
        let Limits { pages, inodes } = self.shared.limits;
        let total = if pages == u64::MAX { 0 } else { pages };
        let files = if inodes == u64::MAX { 0 } else { inodes };
        let free = total.saturating_sub(self.used_pages());
        Ok(Statfs {
            magic: MAGIC,
            bsize: PAGE_SIZE as u64,
            blocks: total,
            bfree: free,
            bavail: free,
            files,
            ffree: files.saturating_sub(self.used_inodes()),
            fsid: self.shared.dev,
            namelen: vfs::NAME_MAX as u64,
        })
    }

    fn options(&self) -> String {
        let Limits { pages, .. } = self.shared.limits;
        if pages == u64::MAX { String::new() } else { alloc::format!(",size={}k", pages.saturating_mul(4)) }
    }
}

impl Drop for TmpFs {
    /// Takes the tree apart without recursion: it may be deeper than the stack.
    fn drop(&mut self) {
        let mut todo: Vec<Arc<TmpInode>> = alloc::vec![self.root.clone()];
        while let Some(dir) = todo.pop() {
            todo.extend(dir.take_children());
        }
    }
}
