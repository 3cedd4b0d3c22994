//! Bytes that others may change while we look, and the two ends of a transfer.
//!
//! File systems move data between page frames and "the caller", which may be user memory (a copy that can fault), a
//! kernel buffer, or a pipe. [`ReadSink`] is where read data goes, [`WriteSource`] where written data comes from.
//! Both may sleep (user memory is demand-paged), so no spin lock may be held around a call.

use crate::page::Page;
use core::marker::PhantomData;

/// A user address was not accessible: `EFAULT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// Readable bytes that may change underneath.
#[derive(Clone, Copy, Debug)]
pub struct SharedBytes<'a> {
    ptr: *const u8,
    len: usize,
    life: PhantomData<&'a u8>,
}

impl SharedBytes<'_> {
    /// # Safety
    /// `ptr..ptr+len` is readable memory for `'a`.
    #[inline]
    pub unsafe fn new(ptr: *const u8, len: usize) -> Self {
        SharedBytes { ptr, len, life: PhantomData }
    }

    /// Where the bytes are.
    #[inline]
    pub fn as_ptr(self) -> *const u8 {
        self.ptr
    }

    /// How many there are.
    #[inline]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The part from `at` (cut at the end), at most `len` bytes.
    #[inline]
    pub fn slice(self, at: usize, len: usize) -> Self {
        let at = at.min(self.len);
        let len = len.min(self.len - at);
        // SAFETY: a sub-range of the range this value stands for.
        unsafe { SharedBytes::new(self.ptr.add(at), len) }
    }

    /// Copies as many bytes as fit into `dst`; returns how many.
    #[inline]
    pub fn copy_to(self, dst: &mut [u8]) -> usize {
        let n = self.len.min(dst.len());
        // SAFETY: both ranges hold at least n bytes and a `&mut` cannot overlap memory that others reach.
        unsafe { core::ptr::copy_nonoverlapping(self.ptr, dst.as_mut_ptr(), n) };
        n
    }
}

impl<'a> From<&'a [u8]> for SharedBytes<'a> {
    fn from(s: &'a [u8]) -> Self {
        // SAFETY: a slice is readable for its lifetime.
        unsafe { SharedBytes::new(s.as_ptr(), s.len()) }
    }
}

/// Writable bytes that others may read and write at the same time.
#[derive(Debug)]
pub struct SharedBytesMut<'a> {
    ptr: *mut u8,
    len: usize,
    life: PhantomData<&'a mut u8>,
}

impl SharedBytesMut<'_> {
    /// # Safety
    /// `ptr..ptr+len` is readable and writable memory for `'a`.
    #[inline]
    pub unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        SharedBytesMut { ptr, len, life: PhantomData }
    }

    /// Where the bytes are.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `len` bytes (all, if there are fewer).
    #[inline]
    pub fn prefix(&mut self, len: usize) -> SharedBytesMut<'_> {
        // SAFETY: a part of the range this value stands for, which is borrowed meanwhile.
        unsafe { SharedBytesMut::new(self.ptr, len.min(self.len)) }
    }

    /// Fills all with `value`.
    #[inline]
    pub fn fill(&mut self, value: u8) {
        // SAFETY: the range is writable by the type's contract.
        unsafe { core::ptr::write_bytes(self.ptr, value, self.len) };
    }

    /// Copies as many bytes as fit from `src`; returns how many.
    #[inline]
    pub fn copy_from(&mut self, src: SharedBytes<'_>) -> usize {
        let n = self.len.min(src.len());
        // SAFETY: both ranges hold n bytes; `copy` allows overlap.
        unsafe { core::ptr::copy(src.as_ptr(), self.ptr, n) };
        n
    }
}

impl<'a> From<&'a mut [u8]> for SharedBytesMut<'a> {
    fn from(s: &'a mut [u8]) -> Self {
        // SAFETY: an exclusive slice is writable for its lifetime.
        unsafe { SharedBytesMut::new(s.as_mut_ptr(), s.len()) }
    }
}

/// Where read data goes.
pub trait ReadSink {
    /// How many more bytes are wanted.
    fn remaining(&self) -> usize;

    /// Takes up to `remaining()` bytes of `src`; returns how many it took. A short count that is neither `src.len()` nor
    /// `remaining()` means that the next byte faults; a fault at the first byte is the error. May sleep.
    fn put(&mut self, src: SharedBytes<'_>) -> Result<usize, Fault>;

    /// Instead of `put`: gives the memory of the next bytes, at most `len`, to `take` (page, first byte in it, number of bytes),
    /// for a device to fill; returns of how many bytes, which count as put. What it gives is in whole sectors of 512 bytes.
    /// 0: not possible, use `put`. `take` does not sleep. May sleep.
    fn lend(&mut self, len: usize, take: &mut dyn FnMut(Page, usize, usize)) -> usize {
        let _ = (len, take);
        0
    }

    /// As `put`, with zeroes.
    fn put_zeroes(&mut self, len: usize) -> Result<usize, Fault> {
        static ZEROES: [u8; 512] = [0; 512];
        let mut done = 0;
        while done < len && self.remaining() > 0 {
            let n = (len - done).min(ZEROES.len());
            match self.put(SharedBytes::from(&ZEROES[..n])) {
                Ok(m) => {
                    done += m;
                    if m < n {
                        break;
                    }
                }
                Err(f) if done == 0 => return Err(f),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

/// Where written data comes from.
pub trait WriteSource {
    /// How many more bytes there are.
    fn remaining(&self) -> usize;

    /// Fills up to `remaining()` bytes of `dst`; returns how many. Short counts and faults as for [`ReadSink::put`].
    fn get(&mut self, dst: SharedBytesMut<'_>) -> Result<usize, Fault>;

    /// Instead of `get`: gives the memory of the next bytes to `take`, for a device to read. As [`ReadSink::lend`].
    fn lend(&mut self, len: usize, take: &mut dyn FnMut(Page, usize, usize)) -> usize {
        let _ = (len, take);
        0
    }
}

/// A [`ReadSink`] over a kernel buffer.
#[derive(Debug)]
pub struct SliceSink<'a> {
    buf: &'a mut [u8],
    done: usize,
}

impl<'a> SliceSink<'a> {
    /// Reads go to `buf`.
    pub fn new(buf: &'a mut [u8]) -> Self {
        SliceSink { buf, done: 0 }
    }

    /// How many bytes have arrived.
    pub fn done(&self) -> usize {
        self.done
    }
}

impl ReadSink for SliceSink<'_> {
    fn remaining(&self) -> usize {
        self.buf.len() - self.done
    }

    fn put(&mut self, src: SharedBytes<'_>) -> Result<usize, Fault> {
        let n = src.copy_to(&mut self.buf[self.done..]);
        self.done += n;
        Ok(n)
    }
}

/// A [`WriteSource`] over a kernel buffer.
#[derive(Debug)]
pub struct SliceSource<'a> {
    buf: &'a [u8],
}

impl<'a> SliceSource<'a> {
    /// Writes come from `buf`.
    pub fn new(buf: &'a [u8]) -> Self {
        SliceSource { buf }
    }
}

impl WriteSource for SliceSource<'_> {
    fn remaining(&self) -> usize {
        self.buf.len()
    }

    fn get(&mut self, mut dst: SharedBytesMut<'_>) -> Result<usize, Fault> {
        let n = dst.copy_from(SharedBytes::from(self.buf));
        self.buf = &self.buf[n..];
        Ok(n)
    }
}
