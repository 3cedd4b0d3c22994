//! Attributes: stat and its kin, modes, owners, times, access, length.

use super::{Dir, FDCWD, SysResult, cred, io, lookup_flags, me, read_path_or_empty, resolve, resolve_user};
use crate::arch::uaccess::{self, Immutable, IntoBytes, UserAddr};
use crate::syscall::efault;
use abi::{Errno, Result, Timespec, linux};
use vfs::mount::{dev_major, dev_minor};
use vfs::{Attr, Cred, Lookup, Path, SetAttr, SetTime, Walk, namei};

/// `struct stat` of AArch64.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Stat {
    dev: u64,
    ino: u64,
    mode: u32,
    nlink: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
    pad1: u64,
    size: u64,
    blksize: u32,
    pad2: u32,
    blocks: u64,
    times: [i64; 6],
    unused: [u32; 2],
}

#[inline]
fn put_stat(buf: UserAddr, a: &Attr) -> SysResult {
    let s = Stat {
        dev: a.dev,
        ino: a.ino,
        mode: a.st_mode(),
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        pad1: 0,
        size: a.size,
        blksize: a.blksize,
        pad2: 0,
        blocks: a.blocks,
        times: [a.atime.sec, a.atime.nsec, a.mtime.sec, a.mtime.nsec, a.ctime.sec, a.ctime.nsec],
        unused: [0; 2],
    };
    uaccess::write_user(buf, &s).map_err(efault)?;
    Ok(0)
}

/// What `AT_EMPTY_PATH` with a descriptor asks: the open file itself, even if it has no path.
fn attr_of(dir: i32, path: &[u8], how: Lookup) -> Result<Attr> {
    if path.is_empty() && how.empty && dir != FDCWD {
        return me().files().get(dir)?.getattr();
    }
    resolve(dir, path, how)?.inode().getattr()
}

/// `fstatat(2)`
pub fn newfstatat(dir: i32, path: UserAddr, buf: UserAddr, flags: u32) -> SysResult {
    let how = lookup_flags(flags, linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH | linux::AT_NO_AUTOMOUNT)?;
    let path = read_path_or_empty(path, how.empty)?;
    put_stat(buf, &attr_of(dir, &path, how)?)
}

/// `fstat(2)`
pub fn fstat(fd: i32, buf: UserAddr) -> SysResult {
    put_stat(buf, &me().files().get(fd)?.getattr()?)
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct StatxTime {
    sec: i64,
    nsec: u32,
    pad: u32,
}

impl From<Timespec> for StatxTime {
    fn from(t: Timespec) -> Self {
        StatxTime { sec: t.sec, nsec: t.nsec as u32, pad: 0 }
    }
}

/// `struct statx`
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    pad: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    /// Access, birth, change, modification.
    times: [StatxTime; 4],
    rdev: [u32; 2],
    dev: [u32; 2],
    mnt_id: u64,
    spare: [u64; 13],
}

/// `STATX_BASIC_STATS | STATX_BTIME`, and `STATX_MNT_ID`.
const STATX_FILLED: u32 = 0xfff;
const STATX_MNT_ID: u32 = 0x1000;
const STATX_RESERVED: u32 = 0x8000_0000;
const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;
/// `STATX_ATTR_IMMUTABLE`, `_APPEND` and `_NODUMP` are the file's flags of the same values.
const STATX_ATTR_FLAGS: u64 = (vfs::flags::IMMUTABLE | vfs::flags::APPEND | vfs::flags::NODUMP) as u64;

/// `statx(2)`
pub fn statx(dir: i32, path: UserAddr, flags: u32, mask: u32, buf: UserAddr) -> SysResult {
    const SYNC: u32 = linux::AT_STATX_FORCE_SYNC | linux::AT_STATX_DONT_SYNC;
    if mask & STATX_RESERVED != 0 || flags & SYNC == SYNC {
        return Err(Errno::EINVAL);
    }
    let known = linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH | linux::AT_NO_AUTOMOUNT | SYNC;
    let how = lookup_flags(flags, known)?;
    let path = read_path_or_empty(path, how.empty)?;
    let (a, place) = if path.is_empty() && how.empty && dir != FDCWD {
        let f = me().files().get(dir)?;
        (f.getattr()?, f.path().cloned())
    } else {
        let p = resolve(dir, &path, how)?;
        (p.inode().getattr()?, Some(p))
    };
    let root = place.as_ref().is_some_and(|p| alloc::sync::Arc::ptr_eq(&p.dentry, &p.mount.root));
    let s = Statx {
        mask: STATX_FILLED | if place.is_some() { STATX_MNT_ID } else { 0 },
        blksize: a.blksize,
        attributes: u64::from(a.flags) & STATX_ATTR_FLAGS | if root { STATX_ATTR_MOUNT_ROOT } else { 0 },
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        mode: a.st_mode() as u16,
        pad: 0,
        ino: a.ino,
        size: a.size,
        blocks: a.blocks,
        attributes_mask: STATX_ATTR_MOUNT_ROOT | STATX_ATTR_FLAGS,
        times: [a.atime.into(), a.btime.into(), a.ctime.into(), a.mtime.into()],
        rdev: [dev_major(a.rdev), dev_minor(a.rdev)],
        dev: [dev_major(a.dev), dev_minor(a.dev)],
        mnt_id: place.as_ref().map_or(0, |p| u64::from(p.mount.id())),
        spare: [0; 13],
    };
    uaccess::write_user(buf, &s).map_err(efault)?;
    Ok(0)
}

/// The place of a descriptor, for calls that change attributes through it.
fn place_of(fd: i32) -> Result<Path> {
    io(fd)?.path().cloned().ok_or(Errno::EINVAL)
}

fn chmod(place: &Path, mode: u32) -> SysResult {
    if place.dentry.kind() == vfs::FileType::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    namei::setattr(&cred(), place, SetAttr { mode: Some(mode & 0o7777), ..SetAttr::default() }).map(|()| 0)
}

/// `fchmod(2)`
pub fn fchmod(fd: i32, mode: u32) -> SysResult {
    chmod(&place_of(fd)?, mode)
}

/// `fchmodat(2)` as the kernel has it, without flags
pub fn fchmodat(dir: i32, path: UserAddr, mode: u32) -> SysResult {
    chmod(&resolve_user(dir, path, Lookup::FOLLOW)?, mode)
}

/// `fchmodat2(2)`
pub fn fchmodat2(dir: i32, path: UserAddr, mode: u32, flags: u32) -> SysResult {
    let how = lookup_flags(flags, linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH)?;
    chmod(&resolve_user(dir, path, how)?, mode)
}

fn chown(place: &Path, uid: u32, gid: u32) -> SysResult {
    let given = |id: u32| (id != u32::MAX).then_some(id);
    let set = SetAttr { uid: given(uid), gid: given(gid), ..SetAttr::default() };
    namei::setattr(&cred(), place, set).map(|()| 0)
}

/// `fchown(2)`
pub fn fchown(fd: i32, uid: u32, gid: u32) -> SysResult {
    chown(&place_of(fd)?, uid, gid)
}

/// `fchownat(2)`
pub fn fchownat(dir: i32, path: UserAddr, uid: u32, gid: u32, flags: u32) -> SysResult {
    let how = lookup_flags(flags, linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH)?;
    chown(&resolve_user(dir, path, how)?, uid, gid)
}

const UTIME_NOW: i64 = 0x3fff_ffff;
const UTIME_OMIT: i64 = 0x3fff_fffe;

fn set_time(t: [i64; 2]) -> Result<Option<SetTime>> {
    match t[1] {
        UTIME_NOW => Ok(Some(SetTime::Now)),
        UTIME_OMIT => Ok(None),
        0..=999_999_999 => Ok(Some(SetTime::At(Timespec { sec: t[0], nsec: t[1] }))),
        _ => Err(Errno::EINVAL),
    }
}

/// `utimensat(2)`; a null path means the descriptor itself.
pub fn utimensat(dir: i32, path: UserAddr, times: UserAddr, flags: u32) -> SysResult {
    let how = lookup_flags(flags, linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH)?;
    let (atime, mtime) = if times.is_null() {
        (Some(SetTime::Now), Some(SetTime::Now))
    } else {
        let t: [[i64; 2]; 2] = uaccess::read_user(times).map_err(efault)?;
        (set_time(t[0])?, set_time(t[1])?)
    };
    if atime.is_none() && mtime.is_none() {
        return Ok(0);
    }
    let place = if path.is_null() && dir != FDCWD { place_of(dir)? } else { resolve_user(dir, path, how)? };
    namei::setattr(&cred(), &place, SetAttr { atime, mtime, ..SetAttr::default() }).map(|()| 0)
}

/// `faccessat(2)` as the kernel has it, without flags
pub fn faccessat(dir: i32, path: UserAddr, mode: u32) -> SysResult {
    faccessat2(dir, path, mode, 0)
}

/// `faccessat2(2)`: by real user and group unless `AT_EACCESS` says otherwise.
pub fn faccessat2(dir: i32, path: UserAddr, mode: u32, flags: u32) -> SysResult {
    if mode & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    let how = lookup_flags(flags, linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH | linux::AT_EACCESS)?;
    let path = read_path_or_empty(path, how.empty)?;
    let c = me().creds();
    let who = if flags & linux::AT_EACCESS != 0 {
        cred()
    } else {
        let caps = if c.uid == 0 { c.permitted } else { 0 };
        Cred { uid: c.uid, gid: c.gid, groups: &c.groups, caps }
    };
    let start = Dir::of(dir, &path)?;
    let place = Walk::resolve(me().fs(), &who, start.at()?, &path, how)?;
    if mode == 0 {
        return Ok(0);
    }
    namei::access(&who, &place, mode).map(|()| 0)
}

/// `truncate(2)`
pub fn truncate(path: UserAddr, len: i64) -> SysResult {
    let len = u64::try_from(len).map_err(|_| Errno::EINVAL)?;
    let place = resolve_user(FDCWD, path, Lookup::FOLLOW)?;
    if len > place.inode().getattr()?.size {
        super::rw::check_size(len)?;
    }
    namei::truncate(&cred(), &place, len).map(|()| 0)
}

/// `ftruncate(2)`
pub fn ftruncate(fd: i32, len: i64) -> SysResult {
    let len = u64::try_from(len).map_err(|_| Errno::EINVAL)?;
    let f = io(fd)?;
    if f.inode().is_some_and(|i| i.getattr().is_ok_and(|a| len > a.size)) {
        super::rw::check_size(len)?;
    }
    f.truncate(len).map(|()| 0)
}
