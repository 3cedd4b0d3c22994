//! A disk in memory: for tests, and for a base image that the boot loader left in RAM.
//!
//! Pages are made when first written; what was never written, or was discarded, reads as zeroes. Completion is immediate.

use crate::device::{BlockDevice, Geometry};
use crate::request::{Op, Request};
use crate::stats::{Kind, Stats};
use crate::{SECTOR_SHIFT, SECTOR_SIZE};
use abi::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use platform::{PAGE_SIZE, Page, SharedBytes};
use sync::{IrqLock, LockClass};

static CLASS: LockClass = LockClass::new("memory disk", sync::rank::PAGE_TABLE - 10);

/// A disk in memory.
#[derive(Debug)]
pub struct MemDisk {
    name: String,
    geometry: Geometry,
    pages: IrqLock<BTreeMap<u64, Page>>,
    stats: Stats,
}

impl MemDisk {
    /// An empty disk of `sectors` sectors.
    pub fn new(name: &str, sectors: u64) -> Self {
        Self::with_geometry(name, Geometry::simple(sectors))
    }

    /// An empty disk with these properties.
    pub fn with_geometry(name: &str, geometry: Geometry) -> Self {
        MemDisk { name: name.into(), geometry, pages: IrqLock::new(&CLASS, BTreeMap::new()), stats: Stats::new() }
    }

    /// A disk that holds `image`, with a capacity of at least its size. `ENOMEM`.
    pub fn from_image(name: &str, image: &[u8]) -> Result<Self> {
        let disk = Self::new(name, image.len().div_ceil(SECTOR_SIZE) as u64);
        let mut pages = disk.pages.lock();
        for (index, chunk) in image.chunks(PAGE_SIZE).enumerate() {
            if chunk.iter().any(|b| *b != 0) {
                let page = Page::zeroed().ok_or(Errno::ENOMEM)?;
                page.bytes_mut(0, chunk.len()).copy_from(SharedBytes::from(chunk));
                pages.insert(index as u64, page);
            }
        }
        drop(pages);
        Ok(disk)
    }

    /// All of its content (tests).
    pub fn to_image(&self) -> Vec<u8> {
        let mut image = alloc::vec![0; self.geometry.bytes() as usize];
        for (index, page) in self.pages.lock().iter() {
            let at = *index as usize * PAGE_SIZE;
            let end = (at + PAGE_SIZE).min(image.len());
            page.bytes(0, end - at).copy_to(&mut image[at..end]);
        }
        image
    }

    fn perform(&self, request: &Request) -> Result<()> {
        self.geometry.check(request)?;
        match request.op {
            Op::Flush => Ok(()),
            Op::Read | Op::Write { .. } => self.transfer(request),
            Op::Discard | Op::WriteZeroes => {
                self.zero(request.sector << SECTOR_SHIFT, request.count << SECTOR_SHIFT);
                Ok(())
            }
        }
    }

    fn transfer(&self, request: &Request) -> Result<()> {
        let mut at = request.sector << SECTOR_SHIFT;
        let mut pages = self.pages.lock();
        for segment in &request.segments {
            let mut done = 0;
            while done < segment.len as usize {
                let inside = (at % PAGE_SIZE as u64) as usize;
                let n = (PAGE_SIZE - inside).min(segment.len as usize - done);
                let index = at / PAGE_SIZE as u64;
                let here = segment.offset as usize + done;
                if request.op == Op::Read {
                    let mut dst = segment.page.bytes_mut(here, n);
                    match pages.get(&index) {
                        Some(page) => {
                            dst.copy_from(page.bytes(inside, n));
                        }
                        None => dst.fill(0),
                    }
                } else {
                    if let alloc::collections::btree_map::Entry::Vacant(e) = pages.entry(index) {
                        e.insert(Page::zeroed().ok_or(Errno::ENOSPC)?);
                    }
                    if let Some(page) = pages.get(&index) {
                        page.bytes_mut(inside, n).copy_from(segment.page.bytes(here, n));
                    }
                }
                at += n as u64;
                done += n;
            }
        }
        Ok(())
    }

    fn zero(&self, start: u64, len: u64) {
        let size = PAGE_SIZE as u64;
        let end = start + len;
        let mut pages = self.pages.lock();
        let touched: Vec<u64> = pages.range(start / size..end.div_ceil(size)).map(|(i, _)| *i).collect();
        for index in touched {
            let from = start.max(index * size) - index * size;
            let to = end.min((index + 1) * size) - index * size;
            if to - from == size {
                pages.remove(&index);
            } else if let Some(page) = pages.get(&index) {
                page.bytes_mut(from as usize, (to - from) as usize).fill(0);
            }
        }
    }
}

impl BlockDevice for MemDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&self, request: Request) {
        let began = self.stats.begin();
        let result = self.perform(&request);
        self.stats.end(Kind::from(request.op), request.sectors(), began, result.is_ok());
        request.finish(result);
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}
