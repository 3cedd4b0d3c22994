//! Who has a block device for himself: a mounted file system, or a program that opened it with `O_EXCL` (as mke2fs, e2fsck
//! and blkdiscard do, not to destroy what is in use).
//!
//! Partitions of one disk can be claimed beside each other; a whole disk and one of its partitions cannot.

use super::disk::MINORS;
use crate::file::devfs::{major, minor};
use abi::{Errno, Result};
use alloc::vec::Vec;
use sync::{LockClass, SpinLock};

static CLASS: LockClass = LockClass::new("claimed block devices", sync::rank::SPIN + 96);
static CLAIMS: SpinLock<Vec<u64>> = SpinLock::new(&CLASS, Vec::new());

/// A device is somebody's until this is dropped.
#[derive(Debug)]
pub struct Claim(u64);

fn conflict(a: u64, b: u64) -> bool {
    let index = |rdev| minor(rdev) as u32 / MINORS;
    let whole = |rdev| (minor(rdev) as u32).is_multiple_of(MINORS);
    a == b || (major(a) == major(b) && index(a) == index(b) && (whole(a) || whole(b)))
}

impl Claim {
    /// Claims the device with number `rdev`. `EBUSY`, `ENOMEM`.
    pub fn take(rdev: u64) -> Result<Claim> {
        let mut claims = CLAIMS.lock();
        if claims.iter().any(|c| conflict(*c, rdev)) {
            return Err(Errno::EBUSY);
        }
        claims.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        claims.push(rdev);
        Ok(Claim(rdev))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = CLAIMS.lock();
        if let Some(at) = claims.iter().position(|c| *c == self.0) {
            claims.swap_remove(at);
        }
    }
}
