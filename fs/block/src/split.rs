//! Cutting a request into parts that a device takes.
//!
//! The parts share a completion object that holds the whole request and ends it when the last part has ended, with the
//! first error if there was one.

use crate::device::Geometry;
use crate::request::{Complete, Op, Request, Segment, Segments};
use crate::{SECTOR_SHIFT, SECTOR_SIZE};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use sync::{IrqLock, LockClass};

static CLASS: LockClass = LockClass::new("split request", sync::rank::PAGE_TABLE + 25);

struct Whole {
    request: IrqLock<Option<Request>>,
    pending: AtomicUsize,
    error: AtomicI32,
}

impl Complete for Whole {
    fn complete(&self, _: &Request, result: Result<()>) {
        if let Err(e) = result {
            let _ = self.error.compare_exchange(0, e.raw(), Ordering::AcqRel, Ordering::Relaxed);
        }
        self.drop_one();
    }
}

impl Whole {
    fn drop_one(&self) {
        if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            let request = self.request.lock().take();
            if let Some(request) = request {
                request.finish(Errno::from_raw(self.error.load(Ordering::Acquire)).map_or(Ok(()), Err));
            }
        }
    }
}

/// The most sectors of one part.
fn most_sectors(op: Op, limits: &Geometry) -> u64 {
    let block = u64::from(limits.logical_block >> SECTOR_SHIFT).max(1);
    let most = match op {
        Op::Discard => limits.max_discard_sectors,
        Op::WriteZeroes => limits.max_zeroes_sectors,
        _ => limits.max_bytes >> SECTOR_SHIFT,
    };
    (u64::from(most) / block * block).max(block)
}

/// Whether `request` is larger than `limits` allow for one transfer.
pub fn needed(request: &Request, limits: &Geometry) -> bool {
    request.op != Op::Flush
        && (request.sectors() > most_sectors(request.op, limits)
            || request.segments.len() > limits.max_segments as usize
            || request.segments.iter().any(|s| s.len > limits.max_segment_bytes))
}

/// The parts of `request`. Together they cover it; each keeps to the limits (as far as a device whose blocks are larger
/// than its transfers can be served at all).
pub fn split(request: Request, limits: &Geometry) -> Vec<Request> {
    let pieces = if request.op.has_data() { data_pieces(&request, limits) } else { plain_pieces(&request, limits) };
    let (op, priority) = (request.op, request.priority);
    let whole = Arc::new(Whole {
        request: IrqLock::new(&CLASS, Some(request)),
        pending: AtomicUsize::new(pieces.len()),
        error: AtomicI32::new(0),
    });
    let part = |(sector, count, segments): Piece| {
        let done: Arc<dyn Complete> = whole.clone();
        match op {
            Op::Read => Request::read(sector, segments, done, 0),
            Op::Write { fua } => Request::write(sector, segments, fua, done, 0),
            Op::Discard => Request::discard(sector, count, done, 0),
            Op::WriteZeroes => Request::write_zeroes(sector, count, done, 0),
            Op::Flush => Request::flush(done, 0),
        }
        .with_priority(priority)
    };
    pieces.into_iter().map(part).collect()
}

/// First sector, number of sectors, data.
type Piece = (u64, u64, Segments);

fn plain_pieces(request: &Request, limits: &Geometry) -> Vec<Piece> {
    let most = most_sectors(request.op, limits);
    let starts = (0..request.count).step_by(usize::try_from(most).unwrap_or(usize::MAX));
    starts.map(|at| (request.sector + at, most.min(request.count - at), Segments::new())).collect()
}

fn data_pieces(request: &Request, limits: &Geometry) -> Vec<Piece> {
    let block = limits.logical_block.max(SECTOR_SIZE as u32) as usize;
    let most_bytes = (most_sectors(request.op, limits) << SECTOR_SHIFT) as usize;
    let most_segment = (limits.max_segment_bytes as usize / SECTOR_SIZE * SECTOR_SIZE).max(SECTOR_SIZE);
    let most_segments = (limits.max_segments as usize).max(1);
    let mut pieces = Vec::new();
    let (mut sector, mut bytes, mut current) = (request.sector, 0, Segments::new());
    for segment in &request.segments {
        let (mut offset, mut left) = (segment.offset, segment.len as usize);
        while left > 0 {
            let n = left.min(most_segment).min(most_bytes - bytes);
            current.push(Segment { page: segment.page.clone(), offset, len: n as u32 });
            offset += n as u32;
            left -= n;
            bytes += n;
            if (current.len() >= most_segments && bytes.is_multiple_of(block)) || bytes == most_bytes {
                let count = (bytes >> SECTOR_SHIFT) as u64;
                pieces.push((sector, count, core::mem::take(&mut current)));
                sector += count;
                bytes = 0;
            }
        }
    }
    if bytes > 0 {
        pieces.push((sector, (bytes >> SECTOR_SHIFT) as u64, current));
    }
    pieces
}
