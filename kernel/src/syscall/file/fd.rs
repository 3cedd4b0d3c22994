//! Descriptors themselves: duplicate, close, flags, locks, control.

use super::{SysResult, io, me};
use crate::arch::uaccess::{self, FromBytes, Immutable, IntoBytes, UserAddr};
use crate::syscall::efault;
use crate::task::rlimit::kind;
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use vfs::locks::{self, Lock, Owner};
use vfs::{MAX_OFFSET, OpenFile};

fn limit() -> u64 {
    me().process.rlimit(kind::NOFILE)
}

/// `close(2)`
#[inline]
pub fn close(fd: i32) -> SysResult {
    me().files().close(fd).map(|()| 0)
}

/// `dup(2)`
pub fn dup(fd: i32) -> SysResult {
    let files = me().files();
    let f = files.get(fd)?;
    files.insert(f, false, 0, limit()).map(|fd| fd as usize)
}

/// `dup3(2)`
pub fn dup3(old: i32, new: i32, flags: u32) -> SysResult {
    if flags & !linux::O_CLOEXEC != 0 || old == new {
        return Err(Errno::EINVAL);
    }
    let files = me().files();
    if new < 0 || new as u64 >= limit() {
        return Err(Errno::EBADF);
    }
    let f = files.get(old)?;
    files.replace(new, f, flags & linux::O_CLOEXEC != 0, limit())?;
    Ok(new as usize)
}

const CLOSE_RANGE_UNSHARE: u32 = 2;
const CLOSE_RANGE_CLOEXEC: u32 = 4;

/// `close_range(2)`
pub fn close_range(first: u32, last: u32, flags: u32) -> SysResult {
    if flags & !(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    let t = me();
    if flags & CLOSE_RANGE_UNSHARE != 0 && t.files().is_shared() {
        let own = t.files().fork()?;
        t.set_files(Some(own));
    }
    t.files().close_range(first, last, flags & CLOSE_RANGE_CLOEXEC != 0);
    Ok(0)
}

const F_OFD_GETLK: u32 = 36;
const F_OFD_SETLK: u32 = 37;
const F_OFD_SETLKW: u32 = 38;
const F_GETLK: u32 = 5;
const F_SETLK: u32 = 6;
const F_SETLKW: u32 = 7;
const F_SETOWN: u32 = 8;
const F_GETOWN: u32 = 9;
const F_DUPFD_CLOEXEC: u32 = 1030;
const F_SETPIPE_SZ: u32 = 1031;
const F_GETPIPE_SZ: u32 = 1032;
const F_ADD_SEALS: u32 = 1033;
const F_GET_SEALS: u32 = 1034;

/// `fcntl(2)`
pub fn fcntl(fd: i32, cmd: u32, arg: u64) -> SysResult {
    let files = me().files();
    let f = files.get(fd)?;
    match cmd {
        0 | F_DUPFD_CLOEXEC => {
            let from = arg as u32;
            if u64::from(from) >= limit() {
                return Err(Errno::EINVAL);
            }
            files.insert(f, cmd == F_DUPFD_CLOEXEC, from as usize, limit()).map(|fd| fd as usize)
        }
        1 => files.cloexec(fd).map(usize::from),
        2 => files.set_cloexec(fd, arg & 1 != 0).map(|()| 0),
        3 => Ok(f.flags() as usize),
        _ if f.is_path_only() => Err(Errno::EBADF),
        4 => {
            f.set_flags(arg as u32)?;
            Ok(0)
        }
        F_GETLK | F_SETLK | F_SETLKW | F_OFD_GETLK | F_OFD_SETLK | F_OFD_SETLKW => {
            record_lock(fd, &f, cmd, UserAddr(arg)).map(|()| 0)
        }
        // Signals for I/O are not sent: an owner can be named, as programs do without need.
        F_SETOWN | F_GETOWN => Ok(0),
        F_SETPIPE_SZ | F_GETPIPE_SZ => crate::file::pipe_size(&f, (cmd == F_SETPIPE_SZ).then_some(arg as usize)),
        F_ADD_SEALS | F_GET_SEALS => Err(Errno::EINVAL),
        _ => Err(Errno::EINVAL),
    }
}

/// `struct flock`
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Flock {
    kind: i16,
    whence: i16,
    pad: u32,
    start: i64,
    len: i64,
    pid: i32,
    pad2: u32,
}

const F_RDLCK: i16 = 0;
const F_WRLCK: i16 = 1;
const F_UNLCK: i16 = 2;

/// The bytes that a `struct flock` means. `EINVAL`, `EOVERFLOW`.
fn lock_range(f: &OpenFile, l: &Flock) -> Result<(u64, u64)> {
    let base = match l.whence {
        0 => 0,
        1 => f.position() as i64,
        2 => f.inode().map_or(0, |i| i.len()) as i64,
        _ => return Err(Errno::EINVAL),
    };
    let start = base.checked_add(l.start).ok_or(Errno::EOVERFLOW)?;
    let (start, end) = match l.len {
        0 => (start, i64::MAX),
        n if n > 0 => (start, start.checked_add(n).ok_or(Errno::EOVERFLOW)?),
        n => (start.checked_add(n).ok_or(Errno::EINVAL)?, start),
    };
    let start = u64::try_from(start).map_err(|_| Errno::EINVAL)?;
    Ok((start, if l.len == 0 { MAX_OFFSET + 1 } else { end as u64 }))
}

fn record_lock(fd: i32, f: &Arc<OpenFile>, cmd: u32, at: UserAddr) -> Result<()> {
    let mut l: Flock = uaccess::read_user(at).map_err(efault)?;
    let ofd = cmd >= F_OFD_GETLK;
    if ofd && l.pid != 0 {
        return Err(Errno::EINVAL);
    }
    let t = me();
    let owner = if ofd { Owner::ofd(f) } else { Owner::Process(t.files().id(), t.process.pid.0 as i32) };
    let (start, end) = lock_range(f, &l)?;
    let lock = Lock { owner, exclusive: l.kind == F_WRLCK, start, end };
    if cmd == F_GETLK || cmd == F_OFD_GETLK {
        if l.kind == F_UNLCK && !ofd {
            return Err(Errno::EINVAL);
        }
        match locks::conflicting(f, &lock) {
            None => l.kind = F_UNLCK,
            Some(c) => {
                l.kind = if c.exclusive { F_WRLCK } else { F_RDLCK };
                l.whence = 0;
                l.start = c.start as i64;
                l.len = if c.end > MAX_OFFSET { 0 } else { (c.end - c.start) as i64 };
                l.pid = if let Owner::Process(_, pid) = c.owner { pid } else { -1 };
            }
        }
        return uaccess::write_user(at, &l).map_err(efault);
    }
    match l.kind {
        F_UNLCK => {
            locks::release(f, owner, start, end);
            return Ok(());
        }
        F_RDLCK if !f.readable() => return Err(Errno::EBADF),
        F_WRLCK if !f.writable() => return Err(Errno::EBADF),
        F_RDLCK | F_WRLCK => {}
        _ => return Err(Errno::EINVAL),
    }
    if LOCK_NOTHING.on() {
        return Ok(());
    }
    if !ofd {
        t.files().will_lock();
    }
    locks::take(f, lock, cmd == F_SETLKW || cmd == F_OFD_SETLKW)?;
    // A descriptor that another thread closed while this one waited took no lock with it that was not there yet.
    if !ofd && !t.files().get(fd).is_ok_and(|now| Arc::ptr_eq(&now, f)) {
        locks::release(f, owner, start, end);
        return Err(Errno::EBADF);
    }
    Ok(())
}

/// `berth.sabotage=locks`: record locks are granted and exclude nobody, which gate d3 must notice.
static LOCK_NOTHING: crate::machine::Sabotage = crate::machine::Sabotage::new("locks");

/// `flock(2)`
pub fn flock(fd: i32, operation: u32) -> SysResult {
    let f = io(fd)?;
    let owner = Owner::flock(&f);
    let wait = operation & linux::LOCK_NB == 0;
    let exclusive = match operation & !linux::LOCK_NB {
        linux::LOCK_SH => false,
        linux::LOCK_EX => true,
        linux::LOCK_UN => {
            locks::release(&f, owner, 0, u64::MAX);
            return Ok(0);
        }
        _ => return Err(Errno::EINVAL),
    };
    locks::take(&f, Lock { owner, exclusive, start: 0, end: u64::MAX }, wait).map(|()| 0)
}

const FIONCLEX: u32 = 0x5450;
const FIOCLEX: u32 = 0x5451;
const FIONBIO: u32 = 0x5421;
const FIOASYNC: u32 = 0x5452;
const FIONREAD: u32 = 0x541b;

/// `ioctl(2)`: what all files know; the rest is the object's.
pub fn ioctl(fd: i32, cmd: u32, arg: u64) -> SysResult {
    let f = io(fd)?;
    match cmd {
        FIOCLEX | FIONCLEX => me().files().set_cloexec(fd, cmd == FIOCLEX).map(|()| 0),
        FIONBIO => {
            let on = uaccess::get_user_u32(UserAddr(arg)).map_err(efault)? != 0;
            let flags = f.flags() & !linux::O_NONBLOCK;
            f.set_flags(if on { flags | linux::O_NONBLOCK } else { flags })?;
            Ok(0)
        }
        FIOASYNC => Ok(0),
        FIONREAD if f.object().is_none() && !f.is_dir() => {
            let left = f.inode().map_or(0, |i| i.len()).saturating_sub(f.position());
            uaccess::put_user_u32(UserAddr(arg), left.min(i32::MAX as u64) as u32).map_err(efault)?;
            Ok(0)
        }
        _ if f.object().is_none() => super::fsctl::control(&f, cmd, UserAddr(arg)),
        _ => f.ioctl(cmd, arg).map(|v| v as usize),
    }
}
