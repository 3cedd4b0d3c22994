//! `openat` and its kin.

use super::{Dir, SysResult, cred, me};
use crate::arch::uaccess::{self, UserAddr};
use crate::file::user::read_path;
use crate::syscall::efault;
use crate::task::rlimit::kind;
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use vfs::{OpenFile, OpenHow};

/// What `open` knows; it ignores the rest, `openat2` refuses it.
const KNOWN: u32 = linux::O_ACCMODE
    | linux::O_CREAT
    | linux::O_EXCL
    | linux::O_NOCTTY
    | linux::O_TRUNC
    | linux::O_APPEND
    | linux::O_NONBLOCK
    | linux::O_SYNC
    | linux::FASYNC
    | linux::O_DIRECT
    | linux::O_LARGEFILE
    | linux::O_DIRECTORY
    | linux::O_NOFOLLOW
    | linux::O_NOATIME
    | linux::O_CLOEXEC
    | linux::O_PATH
    | linux::O_TMPFILE;

/// The bit of `O_TMPFILE` that is not `O_DIRECTORY`.
const TMPFILE_BIT: u32 = linux::O_TMPFILE & !linux::O_DIRECTORY;

/// `RESOLVE_*` that are known. `RESOLVE_CACHED` is answered with `EAGAIN`, which it always may be.
const RESOLVE_KNOWN: u64 = 0x3f;
const RESOLVE_CACHED: u64 = 0x20;

/// Gives `file` the lowest free descriptor.
pub(crate) fn install(file: Arc<OpenFile>, cloexec: bool) -> SysResult {
    let t = me();
    t.files().insert(file, cloexec, 0, t.process.rlimit(kind::NOFILE)).map(|fd| fd as usize)
}

/// The combinations that every form of open refuses, and the flags as the VFS takes them.
fn check_flags(flags: u32) -> Result<u32> {
    if flags & linux::O_PATH != 0 {
        return Ok(flags & (linux::O_PATH | linux::O_DIRECTORY | linux::O_NOFOLLOW | linux::O_CLOEXEC));
    }
    if flags & TMPFILE_BIT != 0 && flags & (linux::O_DIRECTORY | linux::O_CREAT) != linux::O_DIRECTORY {
        return Err(Errno::EINVAL);
    }
    if flags & TMPFILE_BIT == 0 && flags & linux::O_CREAT != 0 && flags & linux::O_DIRECTORY != 0 {
        return Err(Errno::EINVAL);
    }
    // O_EXCL without O_CREAT is for block devices: opened for oneself.
    Ok(flags | linux::O_LARGEFILE)
}

fn open(dir: i32, path: UserAddr, how: OpenHow, cloexec: bool) -> SysResult {
    let path = read_path(path)?;
    let dir = Dir::of(dir, &path)?;
    let file = OpenFile::open(me().fs(), &cred(), dir.at()?, &path, how)?;
    install(file, cloexec)
}

/// `openat(2)`
pub fn openat(dir: i32, path: UserAddr, flags: u32, mode: u32) -> SysResult {
    let cloexec = flags & linux::O_CLOEXEC != 0;
    let flags = check_flags(flags & KNOWN)?;
    open(dir, path, OpenHow { flags, mode: mode & 0o7777, resolve: 0 }, cloexec)
}

/// `openat2(2)`
pub fn openat2(dir: i32, path: UserAddr, how: UserAddr, size: usize) -> SysResult {
    let [flags, mode, resolve] = read_how(how, size)?;
    if flags & !u64::from(KNOWN) != 0 || resolve & !RESOLVE_KNOWN != 0 || mode & !0o7777 != 0 {
        return Err(Errno::EINVAL);
    }
    let flags = flags as u32;
    let creates = flags & (linux::O_CREAT | TMPFILE_BIT) != 0;
    let path_only = linux::O_PATH | linux::O_DIRECTORY | linux::O_NOFOLLOW | linux::O_CLOEXEC;
    if mode != 0 && !creates || flags & linux::O_PATH != 0 && flags & !path_only != 0 {
        return Err(Errno::EINVAL);
    }
    let scoped = u64::from(vfs::RESOLVE_BENEATH | vfs::RESOLVE_IN_ROOT);
    if resolve & scoped == scoped {
        return Err(Errno::EINVAL);
    }
    if resolve & RESOLVE_CACHED != 0 {
        return Err(Errno::EAGAIN);
    }
    let cloexec = flags & linux::O_CLOEXEC != 0;
    let how = OpenHow { flags: check_flags(flags)?, mode: mode as u32, resolve: resolve as u32 };
    open(dir, path, how, cloexec)
}

/// Reads a `struct open_how` of any size: what is beyond the known fields must be zero.
fn read_how(at: UserAddr, size: usize) -> Result<[u64; 3]> {
    const KNOWN_SIZE: usize = 24;
    if size < KNOWN_SIZE {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    for extra in KNOWN_SIZE..size {
        if uaccess::get_user_u8(at.offset(extra as u64)).map_err(efault)? != 0 {
            return Err(Errno::E2BIG);
        }
    }
    uaccess::read_user(at).map_err(efault)
}

const MFD_CLOEXEC: u32 = 1;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_NOEXEC_SEAL: u32 = 8;
const MFD_EXEC: u32 = 16;
/// `NAME_MAX` less the prefix `memfd:`.
const MFD_NAME_MAX: usize = 249;

/// `memfd_create(2)`
pub fn memfd_create(name: UserAddr, flags: u32) -> SysResult {
    let known = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC;
    if flags & !known != 0 || flags & (MFD_EXEC | MFD_NOEXEC_SEAL) == MFD_EXEC | MFD_NOEXEC_SEAL {
        return Err(Errno::EINVAL);
    }
    let mut buf = [0u8; MFD_NAME_MAX + 1];
    let n = uaccess::strncpy_from_user(&mut buf, name).map_err(efault)?;
    if n > MFD_NAME_MAX {
        return Err(Errno::EINVAL);
    }
    let mut shown = alloc::vec::Vec::from(&b"memfd:"[..]);
    shown.extend_from_slice(&buf[..n]);
    let c = cred();
    let mode = if flags & MFD_NOEXEC_SEAL != 0 { 0o666 } else { 0o777 };
    let file = crate::file::unnamed_file(&shown, mode, c.uid, c.gid, linux::O_RDWR | linux::O_LARGEFILE)?;
    install(file, flags & MFD_CLOEXEC != 0)
}
