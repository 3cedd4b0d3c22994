//! File system calls: decode, call the VFS, encode.
//!
//! By part: [`open`] (names to descriptors), [`rw`] (moving bytes), [`fd`] (descriptors themselves), [`names`] (creating and
//! removing names), [`attrs`] (attributes), [`xattr`], [`mount`] (mounts, roots, working directories).
//!
//! Nothing here holds a spin lock: user memory is copied by the sinks and sources of [`crate::file::user`], or into kernel
//! buffers before and after the call. Unknown flags are refused (or ignored) as Linux does for each call.

pub mod attrs;
pub mod fd;
mod fsctl;
pub mod mount;
pub mod names;
pub mod open;
pub mod rw;
mod watch;
pub mod xattr;

use crate::arch::uaccess::UserAddr;
use crate::file::user::{PathBuf, read_path};
use crate::task::Thread;
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use vfs::{At, Cred, Lookup, OpenFile, Path, Walk};

pub(super) use super::SysResult;

/// `AT_FDCWD`.
pub const FDCWD: i32 = linux::AT_FDCWD;

/// The calling thread.
#[inline(always)]
pub(super) fn me() -> &'static Thread {
    crate::sched::current()
}

/// The open file behind a descriptor that reads, writes and the like may use.
#[inline(always)]
fn io(fd: i32) -> Result<Arc<OpenFile>> {
    me().files().get_io(fd)
}

/// The credentials that file access is judged by.
#[inline(always)]
fn cred() -> Cred<'static> {
    me().creds().file_cred()
}

/// The starting point of a path: what a `dirfd` argument means for it.
struct Dir(Option<Arc<OpenFile>>);

impl Dir {
    /// An absolute path needs no directory, so the descriptor is not even looked at.
    #[inline]
    fn of(fd: i32, path: &[u8]) -> Result<Dir> {
        if fd == FDCWD || path.first() == Some(&b'/') {
            return Ok(Dir(None));
        }
        me().files().get(fd).map(|f| Dir(Some(f)))
    }

    /// `ENOTDIR` for descriptors of what has no path.
    #[inline]
    fn at(&self) -> Result<At<'_>> {
        match &self.0 {
            None => Ok(At::Cwd),
            Some(f) => f.path().map(At::Dir).ok_or(Errno::ENOTDIR),
        }
    }
}

/// Resolves a path name that was read already.
#[inline]
fn resolve(fd: i32, path: &[u8], how: Lookup) -> Result<Path> {
    let dir = Dir::of(fd, path)?;
    Walk::resolve(me().fs(), &cred(), dir.at()?, path, how)
}

/// Reads and resolves a path name.
fn resolve_user(fd: i32, path: UserAddr, how: Lookup) -> Result<Path> {
    let path = read_path(path)?;
    resolve(fd, &path, how)
}

/// The look-up that `AT_*` flags ask for, where following is the default; unknown flags: `EINVAL`.
fn lookup_flags(flags: u32, known: u32) -> Result<Lookup> {
    if flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Lookup {
        follow: flags & linux::AT_SYMLINK_NOFOLLOW == 0,
        empty: flags & linux::AT_EMPTY_PATH != 0,
        ..Lookup::FOLLOW
    })
}

/// A path that may be null where it may be empty (`AT_EMPTY_PATH`).
fn read_path_or_empty(path: UserAddr, empty: bool) -> Result<PathBuf> {
    if empty && path.is_null() {
        return Ok(PathBuf::Short([0; 256], 0));
    }
    read_path(path)
}

crate::syscalls! {
    plain {
        5 setxattr(path: Path, name: Str, value: Ptr, size: Size, flags: Hex) = xattr::setxattr;
        6 lsetxattr(path: Path, name: Str, value: Ptr, size: Size, flags: Hex) = xattr::lsetxattr;
        7 fsetxattr(fd: Fd, name: Str, value: Ptr, size: Size, flags: Hex) = xattr::fsetxattr;
        8 getxattr(path: Path, name: Str, value: Ptr, size: Size) = xattr::getxattr;
        9 lgetxattr(path: Path, name: Str, value: Ptr, size: Size) = xattr::lgetxattr;
        10 fgetxattr(fd: Fd, name: Str, value: Ptr, size: Size) = xattr::fgetxattr;
        11 listxattr(path: Path, list: Ptr, size: Size) = xattr::listxattr;
        12 llistxattr(path: Path, list: Ptr, size: Size) = xattr::llistxattr;
        13 flistxattr(fd: Fd, list: Ptr, size: Size) = xattr::flistxattr;
        14 removexattr(path: Path, name: Str) = xattr::removexattr;
        15 lremovexattr(path: Path, name: Str) = xattr::lremovexattr;
        16 fremovexattr(fd: Fd, name: Str) = xattr::fremovexattr;
        17 getcwd(buf: Ptr, size: Size) = mount::getcwd;
        23 dup(fd: Fd) = fd::dup;
        24 dup3(old: Fd, new: Fd, flags: Hex) = fd::dup3;
        25 fcntl(fd: Fd, cmd: Int, arg: Hex) = fd::fcntl;
        26 inotify_init1(flags: Hex) = watch::inotify_init1;
        27 inotify_add_watch(fd: Fd, path: Path, mask: Hex) = watch::inotify_add_watch;
        28 inotify_rm_watch(fd: Fd, wd: Int) = watch::inotify_rm_watch;
        29 ioctl(fd: Fd, cmd: Hex, arg: Hex) = fd::ioctl;
        32 flock(fd: Fd, operation: Int) = fd::flock;
        33 mknodat(dir: Fd, path: Path, mode: Mode, dev: Hex) = names::mknodat;
        34 mkdirat(dir: Fd, path: Path, mode: Mode) = names::mkdirat;
        35 unlinkat(dir: Fd, path: Path, flags: Hex) = names::unlinkat;
        36 symlinkat(text: Str, dir: Fd, path: Path) = names::symlinkat;
        37 linkat(olddir: Fd, old: Path, newdir: Fd, new: Path, flags: Hex) = names::linkat;
        38 renameat(olddir: Fd, old: Path, newdir: Fd, new: Path) = names::renameat;
        39 umount2(path: Path, flags: Hex) = mount::umount2;
        40 mount(source: Str, target: Path, fstype: Str, flags: Hex, data: Str) = mount::mount;
        41 pivot_root(new: Path, old: Path) = mount::pivot_root;
        43 statfs(path: Path, buf: Ptr) = mount::statfs;
        44 fstatfs(fd: Fd, buf: Ptr) = mount::fstatfs;
        45 truncate(path: Path, len: Off) = attrs::truncate;
        46 ftruncate(fd: Fd, len: Off) = attrs::ftruncate;
        47 fallocate(fd: Fd, mode: Hex, offset: Off, len: Off) = rw::fallocate;
        48 faccessat(dir: Fd, path: Path, mode: Int) = attrs::faccessat;
        49 chdir(path: Path) = mount::chdir;
        50 fchdir(fd: Fd) = mount::fchdir;
        51 chroot(path: Path) = mount::chroot;
        52 fchmod(fd: Fd, mode: Mode) = attrs::fchmod;
        53 fchmodat(dir: Fd, path: Path, mode: Mode) = attrs::fchmodat;
        54 fchownat(dir: Fd, path: Path, uid: Int, gid: Int, flags: Hex) = attrs::fchownat;
        55 fchown(fd: Fd, uid: Int, gid: Int) = attrs::fchown;
        56 openat(dir: Fd, path: Path, flags: Hex, mode: Mode) = open::openat;
        57 close(fd: Fd) = fd::close;
        61 getdents64(fd: Fd, buf: Ptr, size: Size) = rw::getdents64;
        62 lseek(fd: Fd, offset: Off, whence: Int) = rw::lseek;
        63 read(fd: Fd, buf: Ptr, len: Size) = rw::read;
        64 write(fd: Fd, buf: Ptr, len: Size) = rw::write;
        65 readv(fd: Fd, iov: Ptr, count: Size) = rw::readv;
        66 writev(fd: Fd, iov: Ptr, count: Size) = rw::writev;
        67 pread64(fd: Fd, buf: Ptr, len: Size, offset: Off) = rw::pread64;
        68 pwrite64(fd: Fd, buf: Ptr, len: Size, offset: Off) = rw::pwrite64;
        69 preadv(fd: Fd, iov: Ptr, count: Size, offset: Off) = rw::preadv;
        70 pwritev(fd: Fd, iov: Ptr, count: Size, offset: Off) = rw::pwritev;
        71 sendfile(out: Fd, from: Fd, offset: Ptr, count: Size) = rw::sendfile;
        78 readlinkat(dir: Fd, path: Path, buf: Ptr, size: Size) = names::readlinkat;
        79 newfstatat(dir: Fd, path: Path, buf: Ptr, flags: Hex) = attrs::newfstatat;
        80 fstat(fd: Fd, buf: Ptr) = attrs::fstat;
        81 sync() = rw::sync;
        82 fsync(fd: Fd) = rw::fsync;
        83 fdatasync(fd: Fd) = rw::fdatasync;
        84 sync_file_range(fd: Fd, offset: Off, len: Off, flags: Hex) = rw::sync_file_range;
        88 utimensat(dir: Fd, path: Path, times: Ptr, flags: Hex) = attrs::utimensat;
        166 umask(mask: Mode) = mount::umask;
        213 readahead(fd: Fd, offset: Off, count: Size) = rw::readahead;
        223 fadvise64(fd: Fd, offset: Off, len: Off, advice: Int) = rw::fadvise64;
        267 syncfs(fd: Fd) = rw::syncfs;
        276 renameat2(olddir: Fd, old: Path, newdir: Fd, new: Path, flags: Hex) = names::renameat2;
        279 memfd_create(name: Str, flags: Hex) = open::memfd_create;
        285 copy_file_range(from: Fd, from_offset: Ptr, to: Fd, to_offset: Ptr, len: Size, flags: Hex) = rw::copy_file_range;
        286 preadv2(fd: Fd, iov: Ptr, count: Size, offset: Off, high: Int, flags: Hex) = rw::preadv2;
        287 pwritev2(fd: Fd, iov: Ptr, count: Size, offset: Off, high: Int, flags: Hex) = rw::pwritev2;
        291 statx(dir: Fd, path: Path, flags: Hex, mask: Hex, buf: Ptr) = attrs::statx;
        436 close_range(first: Fd, last: Fd, flags: Hex) = fd::close_range;
        437 openat2(dir: Fd, path: Path, how: Ptr, size: Size) = open::openat2;
        439 faccessat2(dir: Fd, path: Path, mode: Int, flags: Hex) = attrs::faccessat2;
        452 fchmodat2(dir: Fd, path: Path, mode: Mode, flags: Hex) = attrs::fchmodat2;
    }
    frame {}
}
