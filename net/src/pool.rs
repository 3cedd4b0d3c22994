//! Buffers that are used for a moment and often: what is on its way between a program and a ring, and large packets through
//! loopback. They are kept, so that each use need not clear 64 KiB first. Nothing of what an earlier user left is ever read:
//! users take no more out than they have put in.

use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("net buffers", 598);
/// A buffer's size; larger ones are not kept.
pub(crate) const SIZE: usize = 64 << 10;
/// Smaller ones cost less than the lock.
const SMALL: usize = 4 << 10;
/// For each CPU, up to so many.
const KEPT: usize = 2;
const LANES: usize = 8;

static POOL: [SpinLock<Vec<Vec<u8>>>; LANES] = [const { SpinLock::new(&CLASS, Vec::new()) }; LANES];

/// A buffer of `len` bytes with anything in them.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// One of `len` bytes.
    pub fn new(len: usize) -> Buffer {
        if len <= SMALL || len > SIZE {
            return Buffer { bytes: alloc::vec![0; len], len };
        }
        let kept = POOL[platform::cpu_id() % LANES].lock().pop();
        Buffer { bytes: kept.unwrap_or_else(|| alloc::vec![0; SIZE]), len }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        Buffer { bytes: self.to_vec(), len: self.len }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len() == SIZE {
            let mut lane = POOL[platform::cpu_id() % LANES].lock();
            if lane.len() < KEPT {
                lane.push(core::mem::take(&mut self.bytes));
            }
        }
    }
}
