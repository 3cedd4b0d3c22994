//! Mounts, file systems as wholes, root and working directories.

use super::{FDCWD, SysResult, cred, me, resolve_user};
use crate::arch::uaccess::{self, Immutable, IntoBytes, UserAddr};
use crate::file::user::read_path;
use crate::syscall::efault;
use abi::{Errno, Result};
use alloc::string::String;
use alloc::vec::Vec;
use vfs::perm::{self, CAP_SYS_ADMIN, CAP_SYS_CHROOT, MAY_EXEC};
use vfs::{FileType, Lookup, MountFlags, Path, Superblock};

const MS_SYNCHRONOUS: u32 = 16;
const MS_REMOUNT: u32 = 32;
const MS_DIRSYNC: u32 = 128;
const MS_BIND: u32 = 4096;
const MS_MOVE: u32 = 8192;
const MS_REC: u32 = 16384;
/// `MS_UNBINDABLE`, `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`: there is no propagation to change, so these succeed.
const MS_PROPAGATION: u32 = (1 << 17) | (1 << 18) | (1 << 19) | (1 << 20);
const MS_STRICTATIME: u32 = 1 << 24;
const MS_MAGIC: u32 = 0xc0ed_0000;

const MNT_FORCE: u32 = 1;
const MNT_DETACH: u32 = 2;
const MNT_EXPIRE: u32 = 4;
const UMOUNT_NOFOLLOW: u32 = 8;

fn admin() -> Result<()> {
    if cred().capable(CAP_SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
}

/// A string argument that may be null.
fn string(at: UserAddr) -> Result<String> {
    if at.is_null() {
        return Ok(String::new());
    }
    let bytes = read_path(at)?;
    core::str::from_utf8(&bytes).map(String::from).map_err(|_| Errno::EINVAL)
}

/// `mount(2)`
pub fn mount(source: UserAddr, target: UserAddr, fstype: UserAddr, flags: u64, data: UserAddr) -> SysResult {
    let mut flags = flags as u32;
    if flags & 0xffff_0000 == MS_MAGIC {
        flags &= 0xffff;
    }
    let at = resolve_user(FDCWD, target, Lookup::FOLLOW)?;
    admin()?;
    if flags & MS_REMOUNT != 0 {
        if flags & MS_BIND != 0 {
            return vfs::mount::remount_bind(&at, flags).map(|()| 0);
        }
        return vfs::mount::remount(&at, flags, &with_words(string(data)?, flags, true)).map(|()| 0);
    }
    if flags & MS_BIND != 0 {
        let what = resolve_user(FDCWD, source, Lookup::FOLLOW)?;
        return vfs::mount::bind(&what, &at, flags & MS_REC != 0).map(|()| 0);
    }
    if flags & MS_PROPAGATION != 0 {
        return Ok(0);
    }
    if flags & MS_MOVE != 0 {
        let from = resolve_user(FDCWD, source, Lookup::FOLLOW)?;
        return vfs::mount::move_mount(&from, &at).map(|()| 0);
    }
    if fstype.is_null() {
        return Err(Errno::EINVAL);
    }
    let (source, kind, mut data) = (string(source)?, string(fstype)?, string(data)?);
    if kind == "ext4" {
        data = with_words(data, flags, false);
    }
    let fs = crate::file::root::filesystem(kind.as_bytes(), &source, flags, &data)?;
    let shown = if source.is_empty() { "none" } else { &source };
    vfs::mount::mount(Superblock::new(fs)?, &at, flags, shown).map(|()| 0)
}

/// Adds the flags that file systems take as options. A remount without any word about access times leaves them as they are.
fn with_words(mut words: String, flags: u32, remount: bool) -> String {
    const ATIME: u32 = vfs::mount::ATIME_FLAGS;
    let negative = |about: bool, no: &'static str| if remount && about { no } else { "" };
    let about = flags & (ATIME | MS_STRICTATIME) != 0;
    for (flag, yes, no) in [
        (MS_SYNCHRONOUS, ",sync", negative(true, ",async")),
        (MS_DIRSYNC, ",dirsync", negative(true, ",nodirsync")),
        (MountFlags::NOATIME, ",noatime", negative(about, ",atime")),
        (MountFlags::NODIRATIME, ",nodiratime", negative(about, ",diratime")),
        (MS_STRICTATIME, ",strictatime", ""),
    ] {
        words.push_str(if flags & flag != 0 { yes } else { no });
    }
    words
}

/// `umount2(2)`; what is forced is detached.
pub fn umount2(path: UserAddr, flags: u32) -> SysResult {
    if flags & !(MNT_FORCE | MNT_DETACH | MNT_EXPIRE | UMOUNT_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let how = if flags & UMOUNT_NOFOLLOW != 0 { Lookup::NOFOLLOW } else { Lookup::FOLLOW };
    let at = resolve_user(FDCWD, path, how)?;
    admin()?;
    if flags & MNT_EXPIRE != 0 {
        return Err(Errno::EAGAIN);
    }
    vfs::mount::unmount(at, flags & MNT_DETACH != 0).map(|()| 0)
}

/// `pivot_root(2)`: every process whose root or working directory is the old root moves to the new one.
pub fn pivot_root(new: UserAddr, old: UserAddr) -> SysResult {
    admin()?;
    let new = resolve_user(FDCWD, new, Lookup::DIRECTORY)?;
    let old = resolve_user(FDCWD, old, Lookup::DIRECTORY)?;
    let root = me().fs().root();
    vfs::mount::pivot_root(&root, &new, &old)?;
    replace_everywhere(&root, &new);
    Ok(0)
}

/// Moves every process whose root or working directory is `old` to `new`.
fn replace_everywhere(old: &Path, new: &Path) {
    let mut from = 1;
    while let Some(p) = crate::task::process::next_from(from) {
        for t in p.threads() {
            if let Some(fs) = t.fs_of() {
                fs.replace(old, new);
            }
        }
        from = p.pid.0 + 1;
    }
}

/// `struct statfs` of 64-bit machines.
#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct StatfsOut {
    magic: u64,
    bsize: u64,
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    fsid: u64,
    namelen: u64,
    frsize: u64,
    flags: u64,
    spare: [u64; 4],
}

/// `ST_VALID`: the flags are filled in.
const ST_VALID: u64 = 0x20;

fn put_statfs(place: &Path, buf: UserAddr) -> SysResult {
    let s = place.mount.sb.fs.statfs()?;
    let f = place.mount.flags();
    let mut flags = ST_VALID | u64::from(f.0 & 0xf);
    if f.has(MountFlags::RELATIME) {
        flags |= 0x1000;
    }
    if f.has(MountFlags::NOATIME) {
        flags |= 0x400;
    }
    let out = StatfsOut {
        magic: s.magic,
        bsize: s.bsize.max(512),
        blocks: s.blocks,
        bfree: s.bfree,
        bavail: s.bavail,
        files: s.files,
        ffree: s.ffree,
        fsid: s.fsid,
        namelen: s.namelen,
        frsize: s.bsize.max(512),
        flags,
        spare: [0; 4],
    };
    uaccess::write_user(buf, &out).map_err(efault)?;
    Ok(0)
}

/// Of an object without a name: a pipe, an event counter. Linux tells them apart by magic; programs do not ask.
fn put_unnamed_statfs(buf: UserAddr) -> SysResult {
    const PIPEFS_MAGIC: u64 = 0x5049_5045;
    let out = StatfsOut {
        magic: PIPEFS_MAGIC,
        bsize: 4096,
        namelen: 255,
        frsize: 4096,
        flags: ST_VALID,
        ..StatfsOut::default()
    };
    uaccess::write_user(buf, &out).map_err(efault)?;
    Ok(0)
}

/// `statfs(2)`
pub fn statfs(path: UserAddr, buf: UserAddr) -> SysResult {
    put_statfs(&resolve_user(FDCWD, path, Lookup::FOLLOW)?, buf)
}

/// `fstatfs(2)`
pub fn fstatfs(fd: i32, buf: UserAddr) -> SysResult {
    let f = me().files().get(fd)?;
    match f.path() {
        Some(p) => put_statfs(p, buf),
        None => put_unnamed_statfs(buf),
    }
}

/// `getcwd(2)`: the length with its NUL.
pub fn getcwd(buf: UserAddr, size: usize) -> SysResult {
    let (root, cwd) = me().fs().places();
    let mut name: Vec<u8> = cwd.render_cwd(&root)?;
    name.push(0);
    if name.len() > size {
        return Err(Errno::ERANGE);
    }
    uaccess::copy_to_user(buf, &name).map_err(efault)?;
    Ok(name.len())
}

fn searchable(place: &Path) -> Result<()> {
    if place.dentry.kind() != FileType::Dir {
        return Err(Errno::ENOTDIR);
    }
    perm::check(&cred(), place.inode().meta(), MAY_EXEC)
}

/// `chdir(2)`
pub fn chdir(path: UserAddr) -> SysResult {
    let place = resolve_user(FDCWD, path, Lookup::DIRECTORY)?;
    searchable(&place)?;
    me().fs().set_cwd(place);
    Ok(0)
}

/// `fchdir(2)`
pub fn fchdir(fd: i32) -> SysResult {
    let f = me().files().get(fd)?;
    let place = f.path().cloned().ok_or(Errno::ENOTDIR)?;
    searchable(&place)?;
    me().fs().set_cwd(place);
    Ok(0)
}

/// `chroot(2)`
pub fn chroot(path: UserAddr) -> SysResult {
    let place = resolve_user(FDCWD, path, Lookup::DIRECTORY)?;
    searchable(&place)?;
    if !cred().capable(CAP_SYS_CHROOT) {
        return Err(Errno::EPERM);
    }
    me().fs().set_root(place);
    Ok(0)
}

/// `umask(2)`
pub fn umask(mask: u32) -> SysResult {
    Ok(me().fs().set_umask(mask) as usize)
}
