//! splice(2), tee(2), vmsplice(2): bytes between pipes and files, and from and to user memory by pipes.
//!
//! # Ideas
//! Everything is copied, through a buffer of the kernel's; no pages are shared. So `SPLICE_F_MOVE` and `SPLICE_F_GIFT` are
//! the hints that they are on Linux as well, and what is written to spliced memory later does not show in the pipe. From a pipe,
//! bytes are claimed, written, and only then taken ([`splice`]).
//!
//! As on Linux, a call moves what there is and does not wait for more once it has moved something.

use super::SysResult;
use super::file::rw::limited;
use crate::arch::uaccess::{UserAddr, get_user_u64, put_user_u64};
use crate::file::pipe::{Pipe, splice};
use crate::file::user::{MAX_RW, Vectors};
use crate::sched::current;
use crate::syscall::efault;
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use alloc::vec::Vec;
use platform::{ReadSink, SliceSink, SliceSource, WriteSource};
use vfs::{FileType, Io, MAX_OFFSET, OpenFile};

crate::syscalls! {
    plain {
        75 vmsplice(fd: Fd, iov: Ptr, count: Size, flags: Hex) = vmsplice;
        76 splice(from: Fd, from_offset: Ptr, to: Fd, to_offset: Ptr, len: Size, flags: Hex) = splice_call;
        77 tee(from: Fd, to: Fd, len: Size, flags: Hex) = tee;
    }
    frame {}
}

const SPLICE_F_NONBLOCK: u32 = 2;
const SPLICE_F_ALL: u32 = 15;
/// How much is moved at once.
const CHUNK: usize = 32 << 10;

fn buffer(len: usize) -> Result<Vec<u8>> {
    let len = len.min(CHUNK);
    let mut buf = Vec::new();
    buf.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    buf.resize(len, 0);
    Ok(buf)
}

/// An offset in user memory, of a file that has positions. `EFAULT`, `EINVAL`.
fn offset_at(at: UserAddr, file: &OpenFile) -> Result<Option<u64>> {
    if at.is_null() {
        return Ok(None);
    }
    let offset = get_user_u64(at).map_err(efault)?;
    let positioned = file.object().is_none_or(|o| o.positioned());
    if !positioned || offset > MAX_OFFSET { Err(Errno::EINVAL) } else { Ok(Some(offset)) }
}

/// `splice(2)`
fn splice_call(from: i32, from_at: UserAddr, to: i32, to_at: UserAddr, len: usize, flags: u32) -> SysResult {
    if len == 0 {
        return Ok(0);
    }
    if flags & !SPLICE_F_ALL != 0 {
        return Err(Errno::EINVAL);
    }
    let files = current().files();
    let (source, target) = (files.get_io(from)?, files.get_io(to)?);
    let pipes = (splice::of(&source), splice::of(&target));
    if pipes.0.is_some() && !from_at.is_null() || pipes.1.is_some() && !to_at.is_null() {
        return Err(Errno::ESPIPE);
    }
    if !source.readable() || !target.writable() {
        return Err(Errno::EBADF);
    }
    let len = len.min(MAX_RW);
    let asked = flags & SPLICE_F_NONBLOCK != 0;
    match pipes {
        (Some(a), Some(b)) => {
            if Arc::ptr_eq(&a, &b) {
                return Err(Errno::EINVAL);
            }
            between(&a, &b, len, asked || source.nonblock() || target.nonblock(), true)
        }
        (Some(pipe), None) => {
            let mut offset = offset_at(to_at, &target)?;
            if target.flags() & linux::O_APPEND != 0 || target.is_dir() {
                return Err(Errno::EINVAL);
            }
            let n = out_of(&pipe, &target, offset.as_mut(), len, asked || source.nonblock())?;
            store(to_at, offset).map(|()| n)
        }
        (None, Some(pipe)) => {
            let mut offset = offset_at(from_at, &source)?;
            if source.is_dir() {
                return Err(Errno::EINVAL);
            }
            let n = into(&pipe, &source, offset.as_mut(), len, asked || target.nonblock())?;
            store(from_at, offset).map(|()| n)
        }
        (None, None) => Err(Errno::EINVAL),
    }
}

fn store(at: UserAddr, offset: Option<u64>) -> Result<()> {
    match offset {
        Some(o) => put_user_u64(at, o).map_err(efault),
        None => Ok(()),
    }
}

/// From a pipe to a file that is none.
fn out_of(pipe: &Pipe, target: &OpenFile, mut at: Option<&mut u64>, len: usize, nonblock: bool) -> SysResult {
    let mut buf = buffer(len)?;
    let mut done = 0;
    while done < len {
        let want = (len - done).min(CHUNK);
        // Who has moved something waits for no more.
        let claim = match pipe.claim(nonblock || done > 0, &mut buf[..want]) {
            Ok(Some(claim)) => claim,
            Ok(None) => break,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        let n = claim.len;
        let mut part = SliceSource::new(&buf[..n]);
        let put = limited(target, at.as_deref().copied(), &mut part);
        let written = match put {
            Ok(w) => w,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        claim.take(written);
        done += written;
        if let Some(at) = &mut at {
            **at += written as u64;
        }
        if written < n {
            break;
        }
    }
    Ok(done)
}

/// From a file that is no pipe to one.
fn into(pipe: &Pipe, source: &OpenFile, mut at: Option<&mut u64>, len: usize, nonblock: bool) -> SysResult {
    let mut room = pipe.reserve(nonblock, len)?;
    let len = room.len;
    let mut buf = buffer(len)?;
    let regular = source.object().is_none() && source.inode().is_some_and(|i| i.meta().kind == FileType::Regular);
    let mut done = 0;
    while done < len {
        let want = (len - done).min(buf.len());
        let mut sink = SliceSink::new(&mut buf[..want]);
        let got = match &at {
            Some(at) => source.pread(**at, &mut sink),
            None => source.read(&mut sink),
        };
        let n = match got {
            Ok(0) => break,
            Ok(n) => n,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        let put = match room.put(&buf[..n]) {
            Ok(put) => put,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        done += put;
        if let Some(at) = &mut at {
            **at += put as u64;
        }
        // What is no file on a disk may have no more just now.
        if !regular || put < n {
            break;
        }
    }
    Ok(done)
}

/// From pipe to pipe; `takes`: what is copied leaves the first.
fn between(a: &Pipe, b: &Pipe, len: usize, nonblock: bool, takes: bool) -> SysResult {
    let mut buf = buffer(len)?;
    let mut done = 0;
    while done < len {
        let stop = nonblock || done > 0;
        let mut room = match b.reserve(stop, (len - done).min(CHUNK)) {
            Ok(room) => room,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        let claim = match a.claim(stop, &mut buf[..room.len]) {
            Ok(Some(claim)) => claim,
            Ok(None) => break,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        let put = match room.put(&buf[..claim.len]) {
            Ok(n) => n,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        done += put;
        if !takes {
            break;
        }
        claim.take(put);
    }
    Ok(done)
}

/// `tee(2)`
fn tee(from: i32, to: i32, len: usize, flags: u32) -> SysResult {
    if flags & !SPLICE_F_ALL != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let files = current().files();
    let (source, target) = (files.get_io(from)?, files.get_io(to)?);
    if !source.readable() || !target.writable() {
        return Err(Errno::EBADF);
    }
    let (Some(a), Some(b)) = (splice::of(&source), splice::of(&target)) else { return Err(Errno::EINVAL) };
    if Arc::ptr_eq(&a, &b) {
        return Err(Errno::EINVAL);
    }
    let nonblock = flags & SPLICE_F_NONBLOCK != 0 || source.nonblock() || target.nonblock();
    between(&a, &b, len.min(MAX_RW), nonblock, false)
}

/// A source of at most `left` bytes.
struct Part<'a> {
    source: &'a mut Vectors,
    left: usize,
}

impl WriteSource for Part<'_> {
    fn remaining(&self) -> usize {
        self.left.min(WriteSource::remaining(self.source))
    }

    fn get(&mut self, dst: platform::SharedBytesMut<'_>) -> core::result::Result<usize, platform::bytes::Fault> {
        let n = self.source.get(dst)?;
        self.left -= n.min(self.left);
        Ok(n)
    }
}

/// `vmsplice(2)`: into the pipe by its writing end, out of it by the reading one.
fn vmsplice(fd: i32, iov: UserAddr, count: usize, flags: u32) -> SysResult {
    if flags & !SPLICE_F_ALL != 0 {
        return Err(Errno::EINVAL);
    }
    let file = current().files().get_io(fd)?;
    if !file.readable() && !file.writable() {
        return Err(Errno::EBADF);
    }
    let mut vectors = Vectors::read(iov, count)?;
    if ReadSink::remaining(&vectors) == 0 {
        return Ok(0);
    }
    let pipe = splice::of(&file).ok_or(Errno::EBADF)?;
    let nonblock = flags & SPLICE_F_NONBLOCK != 0 || file.nonblock();
    let object = file.object().ok_or(Errno::EBADF)?;
    if !file.writable() {
        return object.read(Io { nonblock, ..Io::default() }, &mut vectors);
    }
    let left = pipe.wait_for_room(nonblock)?;
    object.write(Io { nonblock, ..Io::default() }, &mut Part { source: &mut vectors, left })
}
