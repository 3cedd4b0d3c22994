//! Flags of files (`chattr(1)`, ioctl_iflags(2)): what they forbid, and to whom.
//!
//! A file system stores them and shows the ones that the VFS acts on in [`crate::Meta`]; which it knows is its own
//! business. Immutable: neither content, names nor attributes change. Append-only: content only grows, and names only come.
//! Both bind the superuser too, until he takes the flag away, which needs `CAP_LINUX_IMMUTABLE`.
//!
//! Linux checks at opening, not at each write; so does this. (A file system may look again: ext4 does.)

use crate::attr::{Meta, SetAttr, SetTime};
use crate::inode::Inode;
use crate::perm::{CAP_LINUX_IMMUTABLE, Cred};
use abi::{Errno, Result};

/// Changes are durable when their calls return (`S`).
pub const SYNC: u32 = 0x8;
/// Nothing about it changes (`i`).
pub const IMMUTABLE: u32 = 0x10;
/// Content is only appended (`a`).
pub const APPEND: u32 = 0x20;
/// Not for backups (`d`); a note.
pub const NODUMP: u32 = 0x40;
/// Access times are not kept (`A`).
pub const NOATIME: u32 = 0x80;
/// Changes of a directory's names are durable when their calls return (`D`).
pub const DIRSYNC: u32 = 0x1_0000;
/// Those that mean something to the VFS or to `statx`.
pub const SHOWN: u32 = SYNC | IMMUTABLE | APPEND | NODUMP | NOATIME | DIRSYNC;

impl Meta {
    /// Whether the file has one of `flags`.
    #[inline]
    pub fn has(&self, flags: u32) -> bool {
        self.flags() & flags != 0
    }
}

/// `EPERM` if the file's flags forbid these changes of attributes.
pub(crate) fn check_setattr(meta: &Meta, set: &SetAttr) -> Result<()> {
    let now = |t: Option<SetTime>| matches!(t, Some(SetTime::Now));
    let touch = now(set.atime) && now(set.mtime);
    let times = !touch && (set.atime.is_some() || set.mtime.is_some());
    let owned = set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || times;
    if meta.has(IMMUTABLE) || (owned && meta.has(APPEND)) { Err(Errno::EPERM) } else { Ok(()) }
}

/// `EPERM` if the file's flags forbid any change but growth.
pub(crate) fn check_cut(meta: &Meta) -> Result<()> {
    if meta.has(APPEND) { Err(Errno::EPERM) } else { Ok(()) }
}

/// `EPERM` unless `cred` may give the inode the flags `new`.
pub fn check_change(cred: &Cred<'_>, inode: &dyn Inode, new: u32) -> Result<()> {
    let meta = inode.meta();
    let protects = (new ^ meta.flags()) & (IMMUTABLE | APPEND) != 0;
    if !cred.owns(meta) || (protects && !cred.capable(CAP_LINUX_IMMUTABLE)) {
        return Err(Errno::EPERM);
    }
    Ok(())
}
