//! Who may do what: owner, group and others, with the overrides that capabilities give.

use crate::attr::{FileType, Meta, S_ISGID, S_ISVTX};
use crate::flags;
use crate::inode::Inode;
use abi::{Errno, Result};

/// `CAP_CHOWN`
pub const CAP_CHOWN: u32 = 0;
/// `CAP_DAC_OVERRIDE`
pub const CAP_DAC_OVERRIDE: u32 = 1;
/// `CAP_DAC_READ_SEARCH`
pub const CAP_DAC_READ_SEARCH: u32 = 2;
/// `CAP_FOWNER`
pub const CAP_FOWNER: u32 = 3;
/// `CAP_FSETID`
pub const CAP_FSETID: u32 = 4;
/// `CAP_LINUX_IMMUTABLE`
pub const CAP_LINUX_IMMUTABLE: u32 = 9;
/// `CAP_SYS_CHROOT`
pub const CAP_SYS_CHROOT: u32 = 18;
/// `CAP_SYS_ADMIN`
pub const CAP_SYS_ADMIN: u32 = 21;
/// `CAP_MKNOD`
pub const CAP_MKNOD: u32 = 27;

/// Read access.
pub const MAY_READ: u32 = 4;
/// Write access.
pub const MAY_WRITE: u32 = 2;
/// Execution, or search of a directory.
pub const MAY_EXEC: u32 = 1;

/// The credentials that file access is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Cred<'a> {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
    /// Effective capabilities, bit `1 << CAP_*`.
    pub caps: u64,
}

impl Cred<'_> {
    /// Root with all capabilities.
    pub const ROOT: Cred<'static> = Cred { uid: 0, gid: 0, groups: &[], caps: u64::MAX };

    /// Whether a capability is held.
    #[inline]
    pub fn capable(&self, cap: u32) -> bool {
        self.caps & (1 << cap) != 0
    }

    /// Whether `gid` is among the caller's groups.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether the caller owns the inode, or may act as if.
    pub fn owns(&self, meta: &Meta) -> bool {
        self.uid == meta.uid() || self.capable(CAP_FOWNER)
    }
}

/// `EACCES` unless `cred` has the access `want` (`MAY_*`) to the inode; `EPERM` for writing to what is immutable.
#[inline]
pub fn check(cred: &Cred<'_>, meta: &Meta, want: u32) -> Result<()> {
    if want & MAY_WRITE != 0 && meta.has(flags::IMMUTABLE) {
        return Err(Errno::EPERM);
    }
    let mode = meta.mode();
    // What everybody may needs no look at who asks.
    if (mode & (mode >> 3) & (mode >> 6)) & want == want {
        return Ok(());
    }
    check_slow(cred, meta, mode, want)
}

#[inline(never)]
fn check_slow(cred: &Cred<'_>, meta: &Meta, mode: u32, want: u32) -> Result<()> {
    let bits = if cred.uid == meta.uid() {
        mode >> 6
    } else if cred.in_group(meta.gid()) {
        mode >> 3
    } else {
        mode
    };
    if bits & want == want {
        return Ok(());
    }
    let dir = meta.kind == FileType::Dir;
    if cred.capable(CAP_DAC_OVERRIDE) && (dir || want & MAY_EXEC == 0 || mode & 0o111 != 0) {
        return Ok(());
    }
    if cred.capable(CAP_DAC_READ_SEARCH) && (want == MAY_READ || (dir && want & MAY_WRITE == 0)) {
        return Ok(());
    }
    Err(Errno::EACCES)
}

/// Whether `cred` may remove or rename `victim` in `dir`.
pub(crate) fn may_delete(cred: &Cred<'_>, dir: &Meta, victim: &Meta) -> Result<()> {
    check(cred, dir, MAY_WRITE | MAY_EXEC)?;
    let sticky =
        dir.mode() & S_ISVTX != 0 && cred.uid != victim.uid() && cred.uid != dir.uid() && !cred.capable(CAP_FOWNER);
    if sticky || dir.has(flags::APPEND) || victim.has(flags::APPEND | flags::IMMUTABLE) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// Mode and group for a new inode in `dir`: the set-group-id bit of a directory is inherited.
pub(crate) fn inherit(cred: &Cred<'_>, dir: &Meta, mode: u32, kind: FileType) -> (u32, u32) {
    if dir.mode() & S_ISGID == 0 {
        return (mode, cred.gid);
    }
    let gid = dir.gid();
    let mode = if kind == FileType::Dir {
        mode | S_ISGID
    } else if mode & (S_ISGID | 0o010) == (S_ISGID | 0o010) && !cred.in_group(gid) && !cred.capable(CAP_FSETID) {
        mode & !S_ISGID
    } else {
        mode
    };
    (mode, gid)
}

/// The mode without the set-id bits that a write or a change of owner takes away.
pub(crate) fn without_set_id(mode: u32) -> u32 {
    let mode = mode & !crate::attr::S_ISUID;
    if mode & 0o010 != 0 { mode & !S_ISGID } else { mode }
}

/// As [`check`], on an inode, refusing writes where the mount is read-only.
pub(crate) fn check_access(cred: &Cred<'_>, inode: &dyn Inode, want: u32, read_only: bool) -> Result<()> {
    let meta = inode.meta();
    if want & MAY_WRITE != 0 && read_only && matches!(meta.kind, FileType::Regular | FileType::Dir | FileType::Symlink)
    {
        return Err(Errno::EROFS);
    }
    check(cred, meta, want)
}
