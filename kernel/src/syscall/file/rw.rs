//! Moving bytes: read, write, seek, copy, sync.

use super::{SysResult, io, me};
use crate::arch::uaccess::{self, UserAddr};
use crate::file::user::{MAX_RW, UserSink, UserSource, Vectors};
use crate::syscall::efault;
use crate::task::rlimit::kind::FSIZE;
use crate::task::signal::{SigInfo, code, number::SIGXFSZ, send_to_thread};
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use alloc::vec::Vec;
use platform::bytes::Fault;
use platform::{SharedBytesMut, SliceSink, SliceSource, WriteSource};
use vfs::{Advice, FileType, MAX_OFFSET, OpenFile};

/// An offset argument; negative ones: `EINVAL`.
fn offset(o: i64) -> Result<u64> {
    u64::try_from(o).map_err(|_| Errno::EINVAL)
}

/// A source of at most `left` bytes of another.
struct Capped<'a> {
    source: &'a mut dyn WriteSource,
    left: usize,
}

impl WriteSource for Capped<'_> {
    fn remaining(&self) -> usize {
        self.left.min(self.source.remaining())
    }

    fn get(&mut self, dst: SharedBytesMut<'_>) -> core::result::Result<usize, Fault> {
        let n = self.source.get(dst)?;
        self.left = self.left.saturating_sub(n);
        Ok(n)
    }
}

/// Writes at `at` or at the position, within `RLIMIT_FSIZE`: what lies beyond is left out, and if that is all, `EFBIG` and
/// SIGXFSZ (setrlimit(2)).
#[inline]
pub fn limited(f: &OpenFile, at: Option<u64>, source: &mut dyn WriteSource) -> SysResult {
    let limit = me().process.rlimit(FSIZE);
    if limit != u64::MAX {
        return within(limit, f, at, source);
    }
    match at {
        None => f.write(source),
        Some(at) => f.pwrite(at, source),
    }
}

#[cold]
fn within(limit: u64, f: &OpenFile, at: Option<u64>, source: &mut dyn WriteSource) -> SysResult {
    let mut left = source.remaining();
    if f.inode().is_some_and(|i| i.meta().kind == FileType::Regular) {
        let appends = f.flags() & linux::O_APPEND != 0;
        let end = || f.inode().and_then(|i| i.getattr().ok()).map_or(0, |a| a.size);
        let from = if appends { end() } else { at.unwrap_or_else(|| f.position()) };
        if from >= limit && left > 0 {
            return too_big();
        }
        left = left.min(usize::try_from(limit - from).unwrap_or(usize::MAX));
    }
    let mut source = Capped { source, left };
    match at {
        None => f.write(&mut source),
        Some(at) => f.pwrite(at, &mut source),
    }
}

/// `EFBIG`, and the signal that goes with it.
#[cold]
fn too_big() -> SysResult {
    let _ = send_to_thread(me(), SigInfo::user(SIGXFSZ, code::KERNEL));
    Err(Errno::EFBIG)
}

/// Whether a file may become `size` bytes long: `RLIMIT_FSIZE`.
pub(super) fn check_size(size: u64) -> Result<()> {
    if size > me().process.rlimit(FSIZE) { too_big().map(|_| ()) } else { Ok(()) }
}

/// `read(2)`
#[inline]
pub fn read(fd: i32, buf: UserAddr, len: usize) -> SysResult {
    let f = io(fd)?;
    f.read(&mut UserSink::new(buf, len)?)
}

/// `write(2)`
#[inline]
pub fn write(fd: i32, buf: UserAddr, len: usize) -> SysResult {
    let f = io(fd)?;
    limited(&f, None, &mut UserSource::new(buf, len)?)
}

/// `readv(2)`
pub fn readv(fd: i32, iov: UserAddr, count: usize) -> SysResult {
    let f = io(fd)?;
    f.read(&mut Vectors::read(iov, count)?)
}

/// `writev(2)`
pub fn writev(fd: i32, iov: UserAddr, count: usize) -> SysResult {
    let f = io(fd)?;
    limited(&f, None, &mut Vectors::read(iov, count)?)
}

/// `pread(2)`
pub fn pread64(fd: i32, buf: UserAddr, len: usize, at: i64) -> SysResult {
    let at = offset(at)?;
    io(fd)?.pread(at, &mut UserSink::new(buf, len)?)
}

/// `pwrite(2)`
pub fn pwrite64(fd: i32, buf: UserAddr, len: usize, at: i64) -> SysResult {
    let at = offset(at)?;
    limited(&*io(fd)?, Some(at), &mut UserSource::new(buf, len)?)
}

/// `preadv(2)`
pub fn preadv(fd: i32, iov: UserAddr, count: usize, at: i64) -> SysResult {
    let at = offset(at)?;
    io(fd)?.pread(at, &mut Vectors::read(iov, count)?)
}

/// `pwritev(2)`
pub fn pwritev(fd: i32, iov: UserAddr, count: usize, at: i64) -> SysResult {
    let at = offset(at)?;
    limited(&*io(fd)?, Some(at), &mut Vectors::read(iov, count)?)
}

const RWF_HIPRI: u32 = 1;
const RWF_DSYNC: u32 = 2;
const RWF_SYNC: u32 = 4;
/// What is honoured: `RWF_NOWAIT` and `RWF_APPEND` are refused as Linux refuses them on files that cannot.
const RWF_KNOWN: u32 = RWF_HIPRI | RWF_DSYNC | RWF_SYNC;

/// `preadv2(2)`; an offset of -1 means the position.
pub fn preadv2(fd: i32, iov: UserAddr, count: usize, at: i64, _high: u64, flags: u32) -> SysResult {
    if flags & !RWF_KNOWN != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if at == -1 { readv(fd, iov, count) } else { preadv(fd, iov, count, at) }
}

/// `pwritev2(2)`
pub fn pwritev2(fd: i32, iov: UserAddr, count: usize, at: i64, _high: u64, flags: u32) -> SysResult {
    if flags & !RWF_KNOWN != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let n = if at == -1 { writev(fd, iov, count)? } else { pwritev(fd, iov, count, at)? };
    if flags & (RWF_DSYNC | RWF_SYNC) != 0 {
        io(fd)?.fsync(flags & RWF_SYNC == 0)?;
    }
    Ok(n)
}

/// `lseek(2)`
pub fn lseek(fd: i32, at: i64, whence: u32) -> SysResult {
    io(fd)?.seek(at, whence).map(|p| p as usize)
}

/// The most that one `getdents64` gathers before it copies out.
const DENTS_MAX: usize = 32 << 10;

/// `getdents64(2)`
pub fn getdents64(fd: i32, buf: UserAddr, size: usize) -> SysResult {
    let f = io(fd)?;
    let size = size.min(DENTS_MAX);
    let mut out: Vec<u8> = Vec::new();
    out.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
    let mut full = false;
    f.readdir(&mut |e| {
        let record = (19 + e.name.len() + 1).next_multiple_of(8);
        if out.len() + record > size {
            full = true;
            return false;
        }
        let end = out.len() + record;
        out.extend_from_slice(&e.ino.to_le_bytes());
        out.extend_from_slice(&e.next.to_le_bytes());
        out.extend_from_slice(&(record as u16).to_le_bytes());
        out.push(e.kind as u8);
        out.extend_from_slice(e.name);
        out.resize(end, 0);
        true
    })?;
    if out.is_empty() && full {
        return Err(Errno::EINVAL);
    }
    uaccess::copy_to_user(buf, &out).map_err(efault)?;
    Ok(out.len())
}

/// `fallocate(2)`
pub fn fallocate(fd: i32, mode: u32, at: i64, len: i64) -> SysResult {
    let f = io(fd)?;
    let (at, len) = (offset(at)?, offset(len)?);
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    if mode & linux::FALLOC_FL_KEEP_SIZE == 0 {
        check_size(at.saturating_add(len))?;
    }
    f.fallocate(mode, at, len)?;
    Ok(0)
}

/// `sync(2)`: always succeeds.
pub fn sync() -> SysResult {
    let _ = vfs::mount::sync_all();
    Ok(0)
}

/// `berth.sabotage=fsync`: the two syncs of a file say that it is done, which gate d4 must notice.
static SYNC_NOTHING: crate::machine::Sabotage = crate::machine::Sabotage::new("fsync");

/// `fsync(2)`
pub fn fsync(fd: i32) -> SysResult {
    sync_file(fd, false)
}

/// `fdatasync(2)`
pub fn fdatasync(fd: i32) -> SysResult {
    sync_file(fd, true)
}

/// Both: `data` leaves out what reading the data does not need.
fn sync_file(fd: i32, data: bool) -> SysResult {
    let f = io(fd)?;
    if SYNC_NOTHING.on() {
        return Ok(0);
    }
    f.fsync(data).map(|()| 0)
}

/// `syncfs(2)`
pub fn syncfs(fd: i32) -> SysResult {
    io(fd)?.sync_fs().map(|()| 0)
}

/// `sync_file_range(2)`
pub fn sync_file_range(fd: i32, at: i64, len: i64, flags: u32) -> SysResult {
    if flags & !7 != 0 || at < 0 || len < 0 {
        return Err(Errno::EINVAL);
    }
    let f = io(fd)?;
    match f.inode().map(|i| i.meta().kind) {
        Some(FileType::Regular | FileType::Block | FileType::Dir) => {
            let end = if len == 0 { u64::MAX } else { at as u64 + len as u64 };
            f.sync_range(at as u64..end, (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0)).map(|()| 0)
        }
        _ => Err(Errno::ESPIPE),
    }
}

/// `readahead(2)`
pub fn readahead(fd: i32, at: i64, count: usize) -> SysResult {
    let f = io(fd)?;
    if !f.readable() {
        return Err(Errno::EBADF);
    }
    let at = offset(at)?;
    match f.inode() {
        Some(i) if i.meta().kind == FileType::Regular => {
            i.advise(at..at.saturating_add(count as u64), Advice::WillNeed).map(|()| 0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `posix_fadvise(2)`: advice, so that only what is wrong in itself is an error.
pub fn fadvise64(fd: i32, at: i64, len: i64, advice: u32) -> SysResult {
    let f = io(fd)?;
    let inode = f.inode().ok_or(Errno::ESPIPE)?;
    if len < 0 {
        return Err(Errno::EINVAL);
    }
    let advice = match advice {
        0 => Advice::Normal,
        1 => Advice::Random,
        2 => Advice::Sequential,
        3 => Advice::WillNeed,
        4 => Advice::DontNeed,
        5 => return Ok(0),
        _ => return Err(Errno::EINVAL),
    };
    let start = at.max(0) as u64;
    let end = if len == 0 { u64::MAX } else { at.saturating_add(len).max(0) as u64 };
    let _ = inode.advise(start..end, advice);
    Ok(0)
}

/// The size of the pieces in which files are copied.
const CHUNK: usize = 32 << 10;

/// Copies up to `len` bytes, from `*from` if given, to `*to` if given, else at the positions; moves the offsets given.
fn copy(
    source: &OpenFile,
    mut from: Option<&mut u64>,
    target: &OpenFile,
    mut to: Option<&mut u64>,
    len: usize,
) -> SysResult {
    let mut buf: Vec<u8> = Vec::new();
    let piece = len.clamp(1, CHUNK);
    buf.try_reserve_exact(piece).map_err(|_| Errno::ENOMEM)?;
    buf.resize(piece, 0);
    let mut done = 0;
    while done < len {
        let want = (len - done).min(piece);
        let before = if from.is_none() { Some(source.position()) } else { None };
        let n = {
            let mut sink = SliceSink::new(&mut buf[..want]);
            let got = match &from {
                Some(at) => source.pread(**at, &mut sink),
                None => source.read(&mut sink),
            };
            match got {
                Ok(0) => break,
                Ok(n) => n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        };
        let mut part = SliceSource::new(&buf[..n]);
        let put = match &to {
            Some(at) => target.pwrite(**at, &mut part),
            None => target.write(&mut part),
        };
        let written = put.as_ref().copied().unwrap_or(0);
        done += written;
        if let Some(at) = &mut from {
            **at += written as u64;
        }
        if let Some(at) = &mut to {
            **at += written as u64;
        }
        if written < n {
            // What was read and not written is given back.
            if let Some(b) = before {
                source.with_position(|p| *p = b + written as u64);
            }
            if let Err(e) = put
                && done == 0
            {
                return Err(e);
            }
            break;
        }
        if task_interrupted() {
            break;
        }
    }
    Ok(done)
}

fn task_interrupted() -> bool {
    crate::task::signal::send::pending_of(me()) & !me().blocked() != 0
}

/// Reads an offset behind a pointer, if there is one.
fn user_offset(at: UserAddr) -> Result<Option<u64>> {
    if at.is_null() {
        return Ok(None);
    }
    let v = uaccess::get_user_u64(at).map_err(efault)?;
    if v > MAX_OFFSET { Err(Errno::EINVAL) } else { Ok(Some(v)) }
}

fn store_offset(at: UserAddr, value: Option<u64>) -> Result<()> {
    match value {
        Some(v) => uaccess::put_user_u64(at, v).map_err(efault),
        None => Ok(()),
    }
}

/// `sendfile(2)`
pub fn sendfile(out: i32, from: i32, at: UserAddr, count: usize) -> SysResult {
    let mut start = user_offset(at)?;
    let source = io(from)?;
    if !source.readable() {
        return Err(Errno::EBADF);
    }
    let target = io(out)?;
    if !target.writable() {
        return Err(Errno::EBADF);
    }
    if source.is_dir() || target.flags() & linux::O_APPEND != 0 {
        return Err(Errno::EINVAL);
    }
    if start.is_none() && source.object().is_some_and(|o| !o.positioned()) {
        return Err(Errno::EINVAL);
    }
    let n = copy(&source, start.as_mut(), &target, None, count.min(MAX_RW))?;
    store_offset(at, start)?;
    Ok(n)
}

fn regular(f: &Arc<OpenFile>) -> Result<()> {
    match f.inode().map(|i| i.meta().kind) {
        Some(FileType::Regular) if f.object().is_none() => Ok(()),
        Some(FileType::Dir) => Err(Errno::EISDIR),
        _ => Err(Errno::EINVAL),
    }
}

/// `copy_file_range(2)`
pub fn copy_file_range(from: i32, from_at: UserAddr, to: i32, to_at: UserAddr, len: usize, flags: u32) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let (source, target) = (io(from)?, io(to)?);
    regular(&source)?;
    regular(&target)?;
    if !source.readable() || !target.writable() || target.flags() & linux::O_APPEND != 0 {
        return Err(Errno::EBADF);
    }
    let (mut start, mut end) = (user_offset(from_at)?, user_offset(to_at)?);
    let len = len.min(MAX_RW);
    let same = source.inode().map(|i| i.meta().ino) == target.inode().map(|i| i.meta().ino)
        && source.inode().map(|i| i.meta().dev) == target.inode().map(|i| i.meta().dev);
    if same {
        let a = start.unwrap_or_else(|| source.position());
        let b = end.unwrap_or_else(|| target.position());
        if a < b.saturating_add(len as u64) && b < a.saturating_add(len as u64) {
            return Err(Errno::EINVAL);
        }
    }
    let n = copy(&source, start.as_mut(), &target, end.as_mut(), len)?;
    store_offset(from_at, start)?;
    store_offset(to_at, end)?;
    Ok(n)
}
