//! A disk that is a shared image and what was written since: thousands can be made of one image without copying it.

use crate::device::{BlockDevice, Geometry};
use crate::request::{Op, Request};
use crate::stats::Stats;
use crate::{SECTOR_SHIFT, SECTOR_SIZE};
use abi::Result;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::Vec;

type Sector = [u8; SECTOR_SIZE];

/// A disk whose sectors are those of a shared image, but for those that were written.
#[derive(Debug)]
pub struct OverlayDisk {
    base: Arc<Vec<u8>>,
    written: Mutex<HashMap<u64, Sector>>,
    stats: Stats,
}

impl OverlayDisk {
    /// A disk like `base`.
    pub fn new(base: Arc<Vec<u8>>) -> Self {
        OverlayDisk { base, written: Mutex::default(), stats: Stats::new() }
    }

    /// Writes past every request: `data`, a multiple of the sector size, from `sector` on.
    pub fn put(&self, sector: u64, data: &[u8]) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for (n, piece) in data.as_chunks::<SECTOR_SIZE>().0.iter().enumerate() {
            written.insert(sector + n as u64, *piece);
        }
    }

    /// A second disk with the same content, which goes its own way.
    pub fn fork(&self) -> OverlayDisk {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).clone();
        OverlayDisk { base: self.base.clone(), written: Mutex::new(written), stats: Stats::new() }
    }

    /// The bytes from `at` on, both multiples of the sector size.
    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = self.base[at..at + len].to_vec();
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let first = (at >> SECTOR_SHIFT) as u64;
        for (n, piece) in bytes.chunks_mut(SECTOR_SIZE).enumerate() {
            if let Some(data) = written.get(&(first + n as u64)) {
                piece.copy_from_slice(data);
            }
        }
        bytes
    }

    /// All of it.
    pub fn to_image(&self) -> Vec<u8> {
        self.read(0, self.base.len())
    }

    fn perform(&self, request: &Request) -> Result<()> {
        self.geometry().check(request)?;
        if matches!(request.op, Op::Discard | Op::WriteZeroes) {
            for sector in request.sector..request.sector + request.count {
                self.put(sector, &[0; SECTOR_SIZE]);
            }
        }
        let mut at = request.sector as usize * SECTOR_SIZE;
        for s in &request.segments {
            let len = s.len as usize;
            if request.op == Op::Read {
                let bytes = self.read(at, len);
                s.page.bytes_mut(s.offset as usize, len).copy_from(platform::SharedBytes::from(&bytes[..]));
            } else {
                let mut bytes = std::vec![0; len];
                s.page.bytes(s.offset as usize, len).copy_to(&mut bytes);
                self.put((at >> SECTOR_SHIFT) as u64, &bytes);
            }
            at += len;
        }
        Ok(())
    }
}

impl BlockDevice for OverlayDisk {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn geometry(&self) -> Geometry {
        Geometry::simple((self.base.len() >> SECTOR_SHIFT) as u64)
    }

    fn submit(&self, request: Request) {
        let result = self.perform(&request);
        request.finish(result);
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}
