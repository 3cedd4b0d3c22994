//! Extended attributes.
//!
//! `user.` attributes follow the file's permissions and exist on files and directories only; `trusted.` and `security.`
//! need `CAP_SYS_ADMIN` to set, `trusted.` also to see; there is no `system.` (POSIX ACLs).

use super::{FDCWD, SysResult, cred, io, resolve_user};
use crate::arch::uaccess::{self, UserAddr};
use crate::syscall::efault;
use abi::{Errno, Result};
use alloc::vec::Vec;
use vfs::perm::{self, CAP_SYS_ADMIN, MAY_READ, MAY_WRITE};
use vfs::{FileType, Lookup, Path};

const NAME_MAX: usize = 255;
const SIZE_MAX: usize = 65536;
const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;

fn by_path(path: UserAddr, follow: bool) -> Result<Path> {
    resolve_user(FDCWD, path, if follow { Lookup::FOLLOW } else { Lookup::NOFOLLOW })
}

fn by_fd(fd: i32) -> Result<Path> {
    io(fd)?.path().cloned().ok_or(Errno::EOPNOTSUPP)
}

fn read_name(name: UserAddr) -> Result<Vec<u8>> {
    let mut buf = [0u8; NAME_MAX + 1];
    let n = uaccess::strncpy_from_user(&mut buf, name).map_err(efault)?;
    if n == 0 || n > NAME_MAX { Err(Errno::ERANGE) } else { Ok(buf[..n].to_vec()) }
}

/// Whether the caller may read (or write) the attribute at all.
fn check(place: &Path, name: &[u8], write: bool) -> Result<()> {
    let c = cred();
    if write && place.mount.read_only() {
        return Err(Errno::EROFS);
    }
    let meta = place.inode().meta();
    if write && meta.has(vfs::flags::IMMUTABLE | vfs::flags::APPEND) {
        return Err(Errno::EPERM);
    }
    if name.starts_with(b"user.") {
        if !matches!(meta.kind, FileType::Regular | FileType::Dir) {
            return Err(if write { Errno::EPERM } else { Errno::ENODATA });
        }
        if write && meta.kind == FileType::Dir && meta.mode() & vfs::attr::S_ISVTX != 0 && !c.owns(meta) {
            return Err(Errno::EPERM);
        }
        return perm::check(&c, meta, if write { MAY_WRITE } else { MAY_READ });
    }
    if name.starts_with(b"trusted.") && !c.capable(CAP_SYS_ADMIN) {
        return Err(if write { Errno::EPERM } else { Errno::ENODATA });
    }
    if name.starts_with(b"trusted.") || name.starts_with(b"security.") {
        return if write && !c.capable(CAP_SYS_ADMIN) { Err(Errno::EPERM) } else { Ok(()) };
    }
    Err(Errno::EOPNOTSUPP)
}

fn set(place: Result<Path>, name: UserAddr, value: UserAddr, size: usize, flags: u32) -> SysResult {
    if flags & !(XATTR_CREATE | XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL);
    }
    let name = read_name(name)?;
    if size > SIZE_MAX {
        return Err(Errno::E2BIG);
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
    bytes.resize(size, 0);
    uaccess::copy_from_user(&mut bytes, value).map_err(efault)?;
    let place = place?;
    check(&place, &name, true)?;
    place.inode().set_xattr(&name, Some(&bytes), flags).map(|()| 0)
}

/// Copies `bytes` out; with a size of 0 only tells how many there are.
fn put(bytes: &[u8], at: UserAddr, size: usize) -> SysResult {
    if size == 0 {
        return Ok(bytes.len());
    }
    if bytes.len() > size {
        return Err(Errno::ERANGE);
    }
    uaccess::copy_to_user(at, bytes).map_err(efault)?;
    Ok(bytes.len())
}

fn get(place: Result<Path>, name: UserAddr, value: UserAddr, size: usize) -> SysResult {
    let name = read_name(name)?;
    let place = place?;
    check(&place, &name, false)?;
    put(&place.inode().get_xattr(&name)?, value, size)
}

fn list(place: Result<Path>, at: UserAddr, size: usize) -> SysResult {
    let all = place?.inode().list_xattr()?;
    let admin = cred().capable(CAP_SYS_ADMIN);
    let mut out = Vec::new();
    for name in all.split_inclusive(|&b| b == 0) {
        if admin || !name.starts_with(b"trusted.") {
            out.extend_from_slice(name);
        }
    }
    put(&out, at, size)
}

fn remove(place: Result<Path>, name: UserAddr) -> SysResult {
    let name = read_name(name)?;
    let place = place?;
    check(&place, &name, true)?;
    place.inode().set_xattr(&name, None, 0).map(|()| 0)
}

/// `setxattr(2)`
pub fn setxattr(path: UserAddr, name: UserAddr, value: UserAddr, size: usize, flags: u32) -> SysResult {
    set(by_path(path, true), name, value, size, flags)
}
/// `lsetxattr(2)`
pub fn lsetxattr(path: UserAddr, name: UserAddr, value: UserAddr, size: usize, flags: u32) -> SysResult {
    set(by_path(path, false), name, value, size, flags)
}
/// `fsetxattr(2)`
pub fn fsetxattr(fd: i32, name: UserAddr, value: UserAddr, size: usize, flags: u32) -> SysResult {
    set(by_fd(fd), name, value, size, flags)
}
/// `getxattr(2)`
pub fn getxattr(path: UserAddr, name: UserAddr, value: UserAddr, size: usize) -> SysResult {
    get(by_path(path, true), name, value, size)
}
/// `lgetxattr(2)`
pub fn lgetxattr(path: UserAddr, name: UserAddr, value: UserAddr, size: usize) -> SysResult {
    get(by_path(path, false), name, value, size)
}
/// `fgetxattr(2)`
pub fn fgetxattr(fd: i32, name: UserAddr, value: UserAddr, size: usize) -> SysResult {
    get(by_fd(fd), name, value, size)
}
/// `listxattr(2)`
pub fn listxattr(path: UserAddr, at: UserAddr, size: usize) -> SysResult {
    list(by_path(path, true), at, size)
}
/// `llistxattr(2)`
pub fn llistxattr(path: UserAddr, at: UserAddr, size: usize) -> SysResult {
    list(by_path(path, false), at, size)
}
/// `flistxattr(2)`
pub fn flistxattr(fd: i32, at: UserAddr, size: usize) -> SysResult {
    list(by_fd(fd), at, size)
}
/// `removexattr(2)`
pub fn removexattr(path: UserAddr, name: UserAddr) -> SysResult {
    remove(by_path(path, true), name)
}
/// `lremovexattr(2)`
pub fn lremovexattr(path: UserAddr, name: UserAddr) -> SysResult {
    remove(by_path(path, false), name)
}
/// `fremovexattr(2)`
pub fn fremovexattr(fd: i32, name: UserAddr) -> SysResult {
    remove(by_fd(fd), name)
}
