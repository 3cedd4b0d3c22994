//! Bytes between a device and a caller: what a block special file does without a page cache. Whole sectors go from and to the
//! caller's own memory where it lends that ([`ReadSink::lend`]), everything else through pages that belong to the call.

use crate::device::BlockDevice;
use crate::io::{BOUNCE_BYTES, Batch, bounce, cover, submit};
use crate::request::{Op, Segment, Segments};
use crate::{SECTOR_SHIFT, SECTOR_SIZE};
use abi::{Errno, Result};
use platform::{PAGE_SIZE, Page, ReadSink, WriteSource};

/// Reads from byte `offset` on until `sink` is full, the device ends, or an error: how many bytes came (an error only if none).
/// May sleep.
pub fn read_to(device: &dyn BlockDevice, offset: u64, sink: &mut dyn ReadSink) -> Result<usize> {
    let end = device.geometry().bytes();
    let mut done = 0;
    while sink.remaining() > 0 && offset + (done as u64) < end {
        let at = offset + done as u64;
        let n = sink.remaining().min(BOUNCE_BYTES).min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let lent = transfer_lent(device, Op::Read, at, n, |len, take| sink.lend(len, take));
        match lent.and_then(|lent| if lent > 0 { Ok(lent) } else { read_piece(device, at, n, sink) }) {
            Ok(m) => {
                done += m;
                // A fault, or memory that is lent only so far: the next round tells which.
                if m == 0 {
                    break;
                }
            }
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Moves up to `len` bytes at byte `at` of the device from or to what `lend` gives; 0 if it gives nothing.
fn transfer_lent(
    device: &dyn BlockDevice,
    op: Op,
    at: u64,
    len: usize,
    lend: impl FnOnce(usize, &mut dyn FnMut(Page, usize, usize)) -> usize,
) -> Result<usize> {
    if device.geometry().logical_block as usize > SECTOR_SIZE
        || len < SECTOR_SIZE
        || !at.is_multiple_of(SECTOR_SIZE as u64)
    {
        return Ok(0);
    }
    let mut segments = Segments::new();
    segments.try_reserve(len / PAGE_SIZE + 2).map_err(|_| Errno::ENOMEM)?;
    let lent = lend(len, &mut |page, offset, len| {
        segments.push(Segment { page, offset: offset as u32, len: len as u32 });
    });
    if lent > 0 {
        let batch = Batch::new();
        submit(device, op, at >> SECTOR_SHIFT, segments, &batch);
        batch.wait()?;
    }
    Ok(lent)
}

fn read_piece(device: &dyn BlockDevice, at: u64, n: usize, sink: &mut dyn ReadSink) -> Result<usize> {
    let (first, bytes) = cover(device, at, n);
    let segments = bounce(bytes)?;
    let batch = Batch::new();
    submit(device, Op::Read, first >> SECTOR_SHIFT, segments.clone(), &batch);
    batch.wait()?;
    let (mut skip, mut done) = ((at - first) as usize, 0);
    for s in &segments {
        let len = (s.len as usize - skip).min(n - done);
        let put = match sink.put(s.page.bytes(skip, len)) {
            Ok(put) => put,
            Err(_) if done == 0 => return Err(Errno::EFAULT),
            Err(_) => 0,
        };
        done += put;
        skip = 0;
        if put < len {
            break;
        }
    }
    Ok(done)
}

/// Writes from byte `offset` on until `source` is empty, the device ends (`ENOSPC` if at once), or an error: how many bytes
/// went (an error only if none). Blocks written in part are read first; the caller keeps other writers out meanwhile. With
/// `fua` durable when it returns. May sleep.
pub fn write_from(device: &dyn BlockDevice, offset: u64, source: &mut dyn WriteSource, fua: bool) -> Result<usize> {
    let end = device.geometry().bytes();
    let mut done = 0;
    while source.remaining() > 0 {
        let at = offset + done as u64;
        if at >= end {
            return if done == 0 { Err(Errno::ENOSPC) } else { Ok(done) };
        }
        let n = source.remaining().min(BOUNCE_BYTES).min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let lent = transfer_lent(device, Op::Write { fua }, at, n, |len, take| source.lend(len, take));
        match lent.and_then(|lent| if lent > 0 { Ok(lent) } else { write_piece(device, at, n, source, fua) }) {
            Ok(m) => {
                done += m;
                if m == 0 {
                    break;
                }
            }
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn write_piece(device: &dyn BlockDevice, at: u64, n: usize, source: &mut dyn WriteSource, fua: bool) -> Result<usize> {
    let (first, bytes) = cover(device, at, n);
    let mut segments = bounce(bytes)?;
    let batch = Batch::new();
    let mut fill = Ok(0);
    if first != at || bytes != n {
        submit(device, Op::Read, first >> SECTOR_SHIFT, segments.clone(), &batch);
        batch.wait()?;
    }
    let (mut skip, mut done) = ((at - first) as usize, 0);
    let start = skip;
    for s in &segments {
        let len = (s.len as usize - skip).min(n - done);
        fill = source.get(s.page.bytes_mut(skip, len)).map_err(|_| Errno::EFAULT);
        let Ok(got) = fill else { break };
        done += got;
        skip = 0;
        if got < len {
            break;
        }
    }
    if done == 0 {
        return fill;
    }
    if done < n {
        // A fault in the middle: only whole blocks that are filled may go out, unless all was read before.
        let block = (device.geometry().logical_block as usize).max(SECTOR_SIZE);
        if first == at && bytes == n {
            done = done / block * block;
        }
        cut(&mut segments, (start + done).next_multiple_of(block));
        if done == 0 {
            return Err(Errno::EFAULT);
        }
    }
    submit(device, Op::Write { fua }, first >> SECTOR_SHIFT, segments, &batch);
    batch.wait()?;
    Ok(done)
}

/// Keeps the first `bytes` bytes.
fn cut(segments: &mut Segments, mut bytes: usize) {
    for s in segments.iter_mut() {
        s.len = s.len.min(bytes as u32);
        bytes -= s.len as usize;
    }
    segments.retain(|s| s.len > 0);
}
