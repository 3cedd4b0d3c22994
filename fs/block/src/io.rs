//! Waiting for requests, and transfers between a device and kernel memory at byte offsets.
//!
//! [`Batch`] counts what was submitted with it and sleeps until all is done. The functions below it move bytes through
//! pages of their own: for superblocks, partition tables, tests. A cache moves pages itself.

use crate::device::BlockDevice;
use crate::request::{Complete, Op, Request, Segment, Segments};
use crate::{SECTOR_SHIFT, SECTOR_SIZE};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use platform::{PAGE_SIZE, Page, ParkOptions, SharedBytes};
use sync::WaitQueue;

/// A completion object that counts requests out and in. `Arc<Batch>` goes into each request; [`Batch::wait`] returns when
/// all are done. It may be used again afterwards.
#[derive(Debug, Default)]
pub struct Batch {
    pending: AtomicUsize,
    /// The first error's number, or 0.
    error: AtomicI32,
    waiters: WaitQueue,
}

impl Batch {
    /// With nothing out.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Counts one request out and gives what to put into it.
    pub fn add(self: &Arc<Self>) -> Arc<dyn Complete> {
        self.pending.fetch_add(1, Ordering::Relaxed);
        self.clone()
    }

    /// How many are not done yet.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    /// Sleeps (uninterruptibly) until all are done; the first error, if there was one, and forgets it.
    pub fn wait(&self) -> Result<()> {
        while self.pending() != 0 {
            let _ = self.waiters.wait_until(ParkOptions::default(), || (self.pending() == 0).then_some(()));
        }
        Errno::from_raw(self.error.swap(0, Ordering::AcqRel)).map_or(Ok(()), Err)
    }
}

impl Complete for Batch {
    fn complete(&self, _: &Request, result: Result<()>) {
        if let Err(e) = result {
            let _ = self.error.compare_exchange(0, e.raw(), Ordering::AcqRel, Ordering::Relaxed);
        }
        // The request holds a reference to us, so waking after the count went down is sound.
        if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.waiters.wake_all();
        }
    }
}

/// Makes everything durable whose write has completed. May sleep.
pub fn flush(device: &dyn BlockDevice) -> Result<()> {
    let batch = Batch::new();
    device.submit(Request::flush(batch.add(), 0));
    batch.wait()
}

/// Reads `pages`, whole, from `offset` bytes on (a multiple of the logical block). May sleep.
pub fn read_pages(device: &dyn BlockDevice, offset: u64, pages: &[Page]) -> Result<()> {
    transfer_pages(device, Op::Read, offset, pages)
}

/// Writes `pages`, whole, from `offset` bytes on (a multiple of the logical block). May sleep.
pub fn write_pages(device: &dyn BlockDevice, offset: u64, pages: &[Page], fua: bool) -> Result<()> {
    transfer_pages(device, Op::Write { fua }, offset, pages)
}

fn transfer_pages(device: &dyn BlockDevice, op: Op, offset: u64, pages: &[Page]) -> Result<()> {
    if !offset.is_multiple_of(SECTOR_SIZE as u64) {
        return Err(Errno::EINVAL);
    }
    if pages.is_empty() {
        return Ok(());
    }
    let batch = Batch::new();
    let segments = pages.iter().cloned().map(Segment::whole).collect();
    submit(device, op, offset >> SECTOR_SHIFT, segments, &batch);
    batch.wait()
}

pub(crate) fn submit(device: &dyn BlockDevice, op: Op, sector: u64, segments: Segments, batch: &Arc<Batch>) {
    device.submit(match op {
        Op::Write { fua } => Request::write(sector, segments, fua, batch.add(), 0),
        _ => Request::read(sector, segments, batch.add(), 0),
    });
}

/// At most this many bytes go through bounce pages at once.
pub(crate) const BOUNCE_BYTES: usize = 1024 * 1024;

/// The blocks that hold `len` bytes at `offset`: their first byte, and how many bytes (both whole blocks).
pub(crate) fn cover(device: &dyn BlockDevice, offset: u64, len: usize) -> (u64, usize) {
    let block = u64::from(device.geometry().logical_block).max(SECTOR_SIZE as u64);
    let first = offset / block * block;
    let end = (offset + len as u64).div_ceil(block) * block;
    (first, (end - first) as usize)
}

/// Pages for `bytes` bytes, as segments. Their content is undefined: they are filled, by the device or the caller, before
/// anyone sees them.
pub(crate) fn bounce(bytes: usize) -> Result<Segments> {
    let mut segments = Segments::new();
    let mut left = bytes;
    while left > 0 {
        let len = left.min(PAGE_SIZE);
        segments.push(Segment { page: Page::uninit().ok_or(Errno::ENOMEM)?, offset: 0, len: len as u32 });
        left -= len;
    }
    Ok(segments)
}

/// Calls `f` with each contiguous piece of `segments` that holds the `len` bytes from `skip` on, and where in the `len`
/// bytes it stands.
fn each_piece(segments: &Segments, skip: usize, len: usize, mut f: impl FnMut(&Page, usize, usize, usize)) {
    let mut done = 0;
    while done < len {
        let at = skip + done;
        let inside = at % PAGE_SIZE;
        let n = (PAGE_SIZE - inside).min(len - done);
        f(&segments[at / PAGE_SIZE].page, inside, done, n);
        done += n;
    }
}

fn check_range(device: &dyn BlockDevice, offset: u64, len: usize) -> Result<()> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= device.geometry().bytes() => Ok(()),
        _ => Err(Errno::EIO),
    }
}

/// Fills `buf` with what stands at `offset`, in bytes, any alignment. `EIO` past the end. May sleep.
pub fn read_at(device: &dyn BlockDevice, offset: u64, buf: &mut [u8]) -> Result<()> {
    check_range(device, offset, buf.len())?;
    let mut done = 0;
    while done < buf.len() {
        let n = (buf.len() - done).min(BOUNCE_BYTES);
        let at = offset + done as u64;
        let (first, bytes) = cover(device, at, n);
        let segments = bounce(bytes)?;
        let batch = Batch::new();
        submit(device, Op::Read, first >> SECTOR_SHIFT, segments.clone(), &batch);
        batch.wait()?;
        each_piece(&segments, (at - first) as usize, n, |page, inside, to, len| {
            page.bytes(inside, len).copy_to(&mut buf[done + to..done + to + len]);
        });
        done += n;
    }
    Ok(())
}

/// Writes `buf` at `offset`, in bytes, any alignment: blocks that are written in part are read first (nobody else may
/// write them meanwhile). Durable only after a [`flush`]. May sleep.
pub fn write_at(device: &dyn BlockDevice, offset: u64, buf: &[u8]) -> Result<()> {
    write_through(device, offset, buf, false)
}

/// As [`write_at`], durable when it returns.
pub fn write_fua_at(device: &dyn BlockDevice, offset: u64, buf: &[u8]) -> Result<()> {
    write_through(device, offset, buf, true)
}

fn write_through(device: &dyn BlockDevice, offset: u64, buf: &[u8], fua: bool) -> Result<()> {
    check_range(device, offset, buf.len())?;
    let mut done = 0;
    while done < buf.len() {
        let n = (buf.len() - done).min(BOUNCE_BYTES);
        let at = offset + done as u64;
        let (first, bytes) = cover(device, at, n);
        let segments = bounce(bytes)?;
        let batch = Batch::new();
        if first != at || bytes != n {
            submit(device, Op::Read, first >> SECTOR_SHIFT, segments.clone(), &batch);
            batch.wait()?;
        }
        each_piece(&segments, (at - first) as usize, n, |page, inside, from, len| {
            page.bytes_mut(inside, len).copy_from(SharedBytes::from(&buf[done + from..done + from + len]));
        });
        submit(device, Op::Write { fua }, first >> SECTOR_SHIFT, segments, &batch);
        batch.wait()?;
        done += n;
    }
    Ok(())
}

/// Tells the device that `count` sectors from `sector` on are free. `EOPNOTSUPP` where it does not care. May sleep.
pub fn discard(device: &dyn BlockDevice, sector: u64, count: u64) -> Result<()> {
    let batch = Batch::new();
    device.submit(Request::discard(sector, count, batch.add(), 0));
    batch.wait()
}

/// Zeroes onto `count` sectors from `sector` on: by the device if it can, else by writing them. May sleep.
pub fn zero_range(device: &dyn BlockDevice, sector: u64, count: u64) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let batch = Batch::new();
    if device.geometry().write_zeroes {
        device.submit(Request::write_zeroes(sector, count, batch.add(), 0));
        match batch.wait() {
            Err(Errno::EOPNOTSUPP) => {}
            other => return other,
        }
    }
    let zeroes = Page::zeroed().ok_or(Errno::ENOMEM)?;
    let per_page = (PAGE_SIZE / SECTOR_SIZE) as u64;
    let mut requests = Vec::new();
    let mut at = 0;
    while at < count {
        let mut segments = Segments::new();
        let start = at;
        while at < count && segments.len() < BOUNCE_BYTES / PAGE_SIZE {
            let n = (count - at).min(per_page);
            segments.push(Segment { page: zeroes.clone(), offset: 0, len: (n << SECTOR_SHIFT) as u32 });
            at += n;
        }
        requests.push(Request::write(sector + start, segments, false, batch.add(), 0));
        if requests.len() == 16 || at >= count {
            device.submit_batch(&mut requests);
            batch.wait()?;
        }
    }
    Ok(())
}
