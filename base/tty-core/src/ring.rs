//! A bounded byte queue.
//!
//! One allocation, made when the queue is; a push that does not fit takes what fits and says how much that was.

use abi::Errno;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// A boxed slice of `len` zeroes; `ENOMEM` instead of an abort when there is no memory.
pub(crate) fn zeroed(len: usize) -> Result<Box<[u8]>, Errno> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    bytes.resize(len, 0);
    Ok(bytes.into_boxed_slice())
}

/// A first-in first-out queue of bytes with a fixed capacity.
#[derive(Debug)]
pub struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Ring {
    /// An empty queue for `capacity` bytes; `ENOMEM` if there is no memory for it.
    pub fn new(capacity: usize) -> Result<Self, Errno> {
        Ok(Ring { bytes: zeroed(capacity)?, start: 0, len: 0 })
    }

    /// Bytes in the queue.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.bytes.len() - self.len
    }

    /// Appends as much of `src` as fits; returns how much.
    pub fn push(&mut self, src: &[u8]) -> usize {
        let n = src.len().min(self.room());
        let capacity = self.bytes.len();
        let at = self.wrap(self.start + self.len);
        let first = n.min(capacity - at);
        self.bytes[at..at + first].copy_from_slice(&src[..first]);
        self.bytes[..n - first].copy_from_slice(&src[first..n]);
        self.len += n;
        n
    }

    /// Takes bytes from the front into `dst`; returns how many.
    pub fn pop(&mut self, dst: &mut [u8]) -> usize {
        let mut taken = 0;
        while taken < dst.len() && !self.is_empty() {
            let front = self.front();
            let n = front.len().min(dst.len() - taken);
            dst[taken..taken + n].copy_from_slice(&front[..n]);
            self.consume(n);
            taken += n;
        }
        taken
    }

    /// The longest run at the front that lies in one piece; empty only if the queue is.
    pub fn front(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len.min(self.bytes.len() - self.start)]
    }

    /// Drops `n` bytes (at most all) from the front.
    pub fn consume(&mut self, n: usize) {
        let n = n.min(self.len);
        self.start = self.wrap(self.start + n);
        self.len -= n;
    }

    /// Keeps the first `len` bytes, drops what came later.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.start = 0;
        self.len = 0;
    }

    /// An index below twice the capacity, brought into it; never equal to the capacity unless that is 0.
    fn wrap(&self, index: usize) -> usize {
        let capacity = self.bytes.len();
        if index >= capacity { index - capacity } else { index }
    }
}
