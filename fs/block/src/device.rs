//! The device's side of the interface.

use crate::request::Request;
use crate::stats::Stats;
use crate::{SECTOR_SHIFT, SECTOR_SIZE};
use abi::{Errno, Result};
use alloc::vec::Vec;

/// What a device is and can do. Fixed while the device lives, but for `sectors` (a disk can be resized).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Capacity in sectors of 512 bytes.
    pub sectors: u64,
    /// The least unit that can be read or written, in bytes: a power of two, 512 to 65536.
    pub logical_block: u32,
    /// The medium's own unit, which a smaller write would have to read and modify, in bytes.
    pub physical_block: u32,
    /// The most segments that one transfer to the device carries. A larger request is split by the device's queue.
    pub max_segments: u32,
    /// The most bytes of one segment.
    pub max_segment_bytes: u32,
    /// The most bytes that one transfer carries. A larger request is split.
    pub max_bytes: u32,
    /// Writes are refused (`EROFS`).
    pub read_only: bool,
    /// Completed writes may sit in a volatile cache, and `Flush` does something. Without it `Flush` completes at once.
    pub flush: bool,
    /// The device does FUA itself. Requests may always ask for it; without it costs a flush each.
    pub fua: bool,
    /// `Discard` is understood; otherwise it gives `EOPNOTSUPP`.
    pub discard: bool,
    /// `WriteZeroes` is understood; otherwise it gives `EOPNOTSUPP` ([`crate::zero_range`] then writes zeroes).
    pub write_zeroes: bool,
    /// The most sectors of one discard. A larger one is split.
    pub max_discard_sectors: u32,
    /// The most sectors of one write of zeroes. A larger one is split.
    pub max_zeroes_sectors: u32,
}

impl Geometry {
    /// A plain disk of `sectors` sectors that has no limits worth naming: 512-byte blocks, writable, with a cache to flush.
    pub const fn simple(sectors: u64) -> Self {
        Geometry {
            sectors,
            logical_block: SECTOR_SIZE as u32,
            physical_block: SECTOR_SIZE as u32,
            max_segments: 128,
            max_segment_bytes: 1 << 20,
            max_bytes: 1 << 20,
            read_only: false,
            flush: true,
            fua: false,
            discard: true,
            write_zeroes: true,
            max_discard_sectors: u32::MAX,
            max_zeroes_sectors: u32::MAX,
        }
    }

    /// Capacity in bytes.
    pub const fn bytes(&self) -> u64 {
        self.sectors.saturating_mul(SECTOR_SIZE as u64)
    }

    /// Whether `request` is one that this device can be asked for: `EINVAL` for a place or length that is not a multiple
    /// of the logical block or segments that are none, `EIO` past the end, `EROFS`, `EOPNOTSUPP`.
    pub fn check(&self, request: &Request) -> Result<()> {
        use crate::request::Op;
        if request.op.modifies() && self.read_only {
            return Err(Errno::EROFS);
        }
        match request.op {
            Op::Flush => return Ok(()),
            Op::Discard if !self.discard => return Err(Errno::EOPNOTSUPP),
            Op::WriteZeroes if !self.write_zeroes => return Err(Errno::EOPNOTSUPP),
            _ => {}
        }
        let mask = u64::from(self.logical_block >> SECTOR_SHIFT).max(1) - 1;
        let sectors = request.sectors();
        if sectors == 0 || (request.sector | sectors) & mask != 0 || !request.is_well_formed() {
            return Err(Errno::EINVAL);
        }
        match request.sector.checked_add(sectors) {
            Some(end) if end <= self.sectors => Ok(()),
            _ => Err(Errno::EIO),
        }
    }
}

/// A disk, a partition of one, or something that behaves like them.
pub trait BlockDevice: Send + Sync {
    /// Its name as in `/dev`, without the directory.
    fn name(&self) -> &str;

    /// What it is and can do. Cheap.
    fn geometry(&self) -> Geometry;

    /// Takes `request` and completes it sooner or later, exactly once, with its result; a request that the device cannot
    /// be asked for ([`Geometry::check`]) is completed with that error. Requests beyond the device's depth wait in
    /// its queue. Never sleeps; may complete the request before it returns. Context: any.
    fn submit(&self, request: Request);

    /// As `submit` for several at once, so that neighbours are merged and the device is told once. Leaves `requests`
    /// empty. Context: any.
    fn submit_batch(&self, requests: &mut Vec<Request>) {
        for request in requests.drain(..) {
            self.submit(request);
        }
    }

    /// What it has done so far.
    fn stats(&self) -> &Stats;
}
