//! The user's end of reads and writes: one buffer, or a vector of them (readv(2)).

use crate::arch::trap::Access;
use crate::arch::uaccess::{self, UserAddr};
use abi::{Errno, Result};
use alloc::vec::Vec;
use platform::bytes::Fault;
use platform::{Page, ReadSink, SharedBytes, SharedBytesMut, WriteSource};

/// What devices transfer at least.
const SECTOR: usize = 512;

/// The most that one call moves (Linux: MAX_RW_COUNT).
pub const MAX_RW: usize = 0x7fff_f000;
/// The most buffers in a vector.
pub const IOV_MAX: usize = 1024;

/// Refuses a buffer that user space cannot have, as Linux's `access_ok` does. `EFAULT`.
#[inline]
pub fn check_range(addr: UserAddr, len: usize) -> Result<()> {
    match addr.0.checked_add(len as u64) {
        Some(end) if end <= crate::arch::mmu::USER_END => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// One user buffer that a read fills.
#[derive(Debug)]
pub struct UserSink {
    at: UserAddr,
    left: usize,
}

impl UserSink {
    /// `len` bytes at `at`, all within user space (`EFAULT`), cut to [`MAX_RW`].
    #[inline]
    pub fn new(at: UserAddr, len: usize) -> Result<Self> {
        check_range(at, len)?;
        Ok(UserSink { at, left: len.min(MAX_RW) })
    }
}

impl ReadSink for UserSink {
    #[inline]
    fn remaining(&self) -> usize {
        self.left
    }

    #[inline]
    fn put(&mut self, src: SharedBytes<'_>) -> core::result::Result<usize, Fault> {
        let n = src.len().min(self.left);
        // SAFETY: a SharedBytes is readable.
        let done = unsafe { uaccess::copy_to_user_raw(self.at, src.as_ptr(), n) };
        self.at = self.at.offset(done as u64);
        self.left -= done;
        if done == 0 && n > 0 { Err(Fault) } else { Ok(done) }
    }

    fn lend(&mut self, len: usize, take: &mut dyn FnMut(Page, usize, usize)) -> usize {
        let done = lend(self.at, len.min(self.left), true, take);
        self.at = self.at.offset(done as u64);
        self.left -= done;
        done
    }
}

/// Lends the pages of a user buffer ([`ReadSink::lend`]); with `fill`, makes those that are not there yet.
fn lend(at: UserAddr, len: usize, fill: bool, take: &mut dyn FnMut(Page, usize, usize)) -> usize {
    let len = len & !(SECTOR - 1);
    let Some(space) = crate::mm::current().filter(|_| at.0 as usize & (SECTOR - 1) == 0) else { return 0 };
    let (mut done, mut touched) = (0, false);
    loop {
        let n = space.lend(at.0 as usize + done, len - done, take);
        done += n;
        // A page that was touched and is not lent is not of the kind that can be.
        if done == len || !fill || n == 0 && touched || space.fault(at.0 as usize + done, Access::Write).is_err() {
            return done;
        }
        touched = true;
    }
}

/// One user buffer that a write takes from.
#[derive(Debug)]
pub struct UserSource {
    at: UserAddr,
    left: usize,
}

impl UserSource {
    /// `len` bytes at `at`, all within user space (`EFAULT`), cut to [`MAX_RW`].
    #[inline]
    pub fn new(at: UserAddr, len: usize) -> Result<Self> {
        check_range(at, len)?;
        Ok(UserSource { at, left: len.min(MAX_RW) })
    }
}

impl WriteSource for UserSource {
    #[inline]
    fn remaining(&self) -> usize {
        self.left
    }

    #[inline]
    fn get(&mut self, dst: SharedBytesMut<'_>) -> core::result::Result<usize, Fault> {
        let n = dst.len().min(self.left);
        // SAFETY: a SharedBytesMut is writable.
        let done = unsafe { uaccess::copy_from_user_raw(dst.as_ptr(), self.at, n) };
        self.at = self.at.offset(done as u64);
        self.left -= done;
        if done == 0 && n > 0 { Err(Fault) } else { Ok(done) }
    }

    fn lend(&mut self, len: usize, take: &mut dyn FnMut(Page, usize, usize)) -> usize {
        let done = lend(self.at, len.min(self.left), false, take);
        self.at = self.at.offset(done as u64);
        self.left -= done;
        done
    }
}

/// The buffers of a readv or writev.
#[derive(Debug)]
pub struct Vectors {
    parts: Vec<(UserAddr, usize)>,
    at: usize,
    left: usize,
}

impl Vectors {
    /// Reads `count` `struct iovec`s at `iov`. `EINVAL` for too many or a total beyond `ssize_t`, `EFAULT`, `ENOMEM`.
    pub fn read(iov: UserAddr, count: usize) -> Result<Self> {
        if count > IOV_MAX {
            return Err(Errno::EINVAL);
        }
        let mut parts = Vec::new();
        parts.try_reserve(count).map_err(|_| Errno::ENOMEM)?;
        let mut total = 0usize;
        for i in 0..count as u64 {
            let pair: [u64; 2] = uaccess::read_user(iov.offset(i * 16)).map_err(|_| Errno::EFAULT)?;
            let (base, len) = (UserAddr(pair[0]), pair[1] as usize);
            if len > isize::MAX as usize {
                return Err(Errno::EINVAL);
            }
            let len = len.min(MAX_RW - total);
            check_range(base, len)?;
            total += len;
            parts.push((base, len));
        }
        Ok(Vectors { parts, at: 0, left: total })
    }

    /// The part to go on with, skipping empty ones.
    fn part(&mut self) -> Option<&mut (UserAddr, usize)> {
        while self.parts.get(self.at)?.1 == 0 {
            self.at += 1;
        }
        self.parts.get_mut(self.at)
    }

    /// Moves `len` bytes with `copy(user, offset, n) -> done`.
    fn transfer(
        &mut self,
        len: usize,
        mut copy: impl FnMut(UserAddr, usize, usize) -> usize,
    ) -> core::result::Result<usize, Fault> {
        let mut done = 0;
        while done < len {
            let Some(part) = self.part() else { break };
            let n = part.1.min(len - done);
            let moved = copy(part.0, done, n);
            part.0 = part.0.offset(moved as u64);
            part.1 -= moved;
            done += moved;
            self.left -= moved;
            if moved < n {
                return if done == 0 { Err(Fault) } else { Ok(done) };
            }
        }
        Ok(done)
    }
}

impl ReadSink for Vectors {
    fn remaining(&self) -> usize {
        self.left
    }

    fn put(&mut self, src: SharedBytes<'_>) -> core::result::Result<usize, Fault> {
        self.transfer(src.len(), |user, offset, n| {
            let part = src.slice(offset, n);
            // SAFETY: a SharedBytes is readable.
            unsafe { uaccess::copy_to_user_raw(user, part.as_ptr(), part.len()) }
        })
    }
}

impl WriteSource for Vectors {
    fn remaining(&self) -> usize {
        self.left
    }

    fn get(&mut self, dst: SharedBytesMut<'_>) -> core::result::Result<usize, Fault> {
        let base = dst.as_ptr();
        self.transfer(dst.len(), |user, offset, n| {
            // SAFETY: offset + n is within the writable range.
            unsafe { uaccess::copy_from_user_raw(base.add(offset), user, n) }
        })
    }
}

/// A path name from user space. `ENAMETOOLONG`, `EFAULT`.
pub fn read_path(addr: UserAddr) -> Result<PathBuf> {
    let mut buf = [0u8; 256];
    let n = uaccess::strncpy_from_user(&mut buf, addr).map_err(|_| Errno::EFAULT)?;
    if n < buf.len() {
        return Ok(PathBuf::Short(buf, n));
    }
    let mut long = Vec::new();
    long.try_reserve_exact(vfs::PATH_MAX).map_err(|_| Errno::ENOMEM)?;
    long.resize(vfs::PATH_MAX, 0);
    let n = uaccess::strncpy_from_user(&mut long, addr).map_err(|_| Errno::EFAULT)?;
    if n >= vfs::PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    long.truncate(n);
    Ok(PathBuf::Long(long))
}

/// A path name: on the stack unless it is long.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the point is to need no heap")]
pub enum PathBuf {
    /// Up to 255 bytes.
    Short([u8; 256], usize),
    /// Longer.
    Long(Vec<u8>),
}

impl core::ops::Deref for PathBuf {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            PathBuf::Short(b, n) => &b[..*n],
            PathBuf::Long(v) => v,
        }
    }
}
