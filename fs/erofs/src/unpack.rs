//! Filling a file's pages: straight from the device, by copy, or unpacked.

use crate::device::{Device, Fill};
use crate::layout::{BLOCK, CORRUPT, RawInode};
use crate::lz4;
use crate::map::{self, Extent};
use crate::zmap::{Cluster, Header, Kind};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use pagecache::ReadRun;
use platform::{PAGE_SIZE, SharedBytes};
use sync::{LockClass, Mutex, rank};

static KEPT: LockClass = LockClass::new("erofs extents", rank::PAGE_CACHE + 2);

const PAGE: u64 = PAGE_SIZE as u64;
/// How many unpacked extents are kept, and the longest that is.
const KEEP: usize = 4;
const KEEP_BYTES: usize = 1 << 20;

/// An unpacked extent, by its place in the image.
type Kept = (u64, Arc<Vec<u8>>);

/// The extents that were unpacked last, newest first.
#[derive(Debug)]
pub(crate) struct Extents(Mutex<Vec<Kept>>);

impl Extents {
    pub(crate) fn new() -> Self {
        Extents(Mutex::new(&KEPT, Vec::new()))
    }

    fn get(&self, at: u64) -> Option<Arc<Vec<u8>>> {
        let mut kept = self.0.lock();
        let found = kept.iter().position(|k| k.0 == at)?;
        kept[..=found].rotate_right(1);
        kept.first().map(|k| k.1.clone())
    }

    fn put(&self, at: u64, bytes: &Arc<Vec<u8>>) {
        if bytes.len() > KEEP_BYTES {
            return;
        }
        let mut kept = self.0.lock();
        kept.truncate(KEEP - 1);
        kept.insert(0, (at, bytes.clone()));
    }
}

/// Copies `bytes` to the file's bytes from `at` on, as far as the run reaches.
fn copy_in(run: &ReadRun, at: u64, bytes: &[u8]) {
    let start = run.offset();
    let end = start + run.len() as u64 * PAGE;
    let from = at.max(start);
    let to = (at + bytes.len() as u64).min(end);
    let mut pos = from;
    while pos < to {
        let within = (pos % PAGE) as usize;
        let n = (to - pos).min(PAGE - within as u64) as usize;
        if let Some(page) = run.page(((pos - start) / PAGE) as usize) {
            let src = (pos - at) as usize;
            page.bytes_mut(within, n).copy_from(SharedBytes::from(&bytes[src..src + n]));
        }
        pos += n as u64;
    }
}

/// Zeroes the run from the file's byte `from` to `to`.
fn zero(run: &ReadRun, from: u64, to: u64) {
    let start = run.offset();
    let mut pos = from.max(start);
    while pos < to.min(start + run.len() as u64 * PAGE) {
        let within = (pos % PAGE) as usize;
        let n = (to - pos).min(PAGE - within as u64) as usize;
        if let Some(page) = run.page(((pos - start) / PAGE) as usize) {
            page.bytes_mut(within, n).fill(0);
        }
        pos += n as u64;
    }
}

/// Fills `run` of an uncompressed file, without waiting where whole pages come from the device.
pub(crate) fn read_plain(device: &Device, inode: &RawInode, run: ReadRun) {
    let fill = Fill::new(run);
    let result = plain(device, inode, &fill);
    fill.submitted(result);
}

fn plain(device: &Device, inode: &RawInode, fill: &Arc<Fill>) -> Result<()> {
    let run = fill.run();
    let start = run.offset();
    let end = (start + run.len() as u64 * PAGE).min(inode.size);
    zero(run, end, start + run.len() as u64 * PAGE);
    let mut at = start;
    while at < end {
        let Extent { at: place, len } = map::map(device, inode, at)?;
        let len = len.min(end - at);
        if len == 0 {
            return Err(CORRUPT);
        }
        match place {
            None => zero(run, at, at + len),
            Some(p) if p.checked_add(len).is_none_or(|e| e > device.bytes) => return Err(CORRUPT),
            Some(p)
                if p.is_multiple_of(BLOCK) && at.is_multiple_of(PAGE) && (len >= PAGE || at + len == inode.size) =>
            {
                // A partial page is copied: the device would bring in what lies behind the file.
                let whole = len / PAGE * PAGE;
                let first = ((at - start) / PAGE) as usize;
                if whole > 0 {
                    fill.request(device, first, first + (whole / PAGE) as usize, p);
                }
                if whole < len {
                    let rest = device.read_vec(p + whole, (len - whole) as usize)?;
                    copy_in(run, at + whole, &rest);
                }
            }
            Some(p) => copy_in(run, at, &device.read_vec(p, len as usize)?),
        }
        at += len;
    }
    Ok(())
}

/// Fills `run` of a compressed file.
pub(crate) fn read_packed(
    device: &Device,
    inode: &RawInode,
    header: &Header,
    kept: &Extents,
    zero_padding: bool,
    run: &ReadRun,
) -> Result<()> {
    let start = run.offset();
    let end = (start + run.len() as u64 * PAGE).min(inode.size);
    zero(run, end, start + run.len() as u64 * PAGE);
    let mut at = start;
    while at < end {
        let cluster = header.find(device, inode, at)?;
        let bytes = match kept.get(cluster.at) {
            Some(b) if b.len() as u64 >= cluster.len => b,
            _ => {
                let bytes = Arc::new(unpack(device, &cluster, zero_padding)?);
                kept.put(cluster.at, &bytes);
                bytes
            }
        };
        copy_in(run, cluster.start, &bytes[..cluster.len as usize]);
        at = cluster.start + cluster.len;
    }
    Ok(())
}

fn unpack(device: &Device, c: &Cluster, zero_padding: bool) -> Result<Vec<u8>> {
    let want = c.len as usize;
    match c.kind {
        Kind::Lz4 => {
            let packed = device.read_vec(c.at, c.packed as usize)?;
            let skip =
                if zero_padding { packed.iter().take(BLOCK as usize).take_while(|b| **b == 0).count() } else { 0 };
            let mut out = Vec::new();
            out.try_reserve_exact(want).map_err(|_| Errno::ENOMEM)?;
            lz4::unpack(&packed[skip..], &mut out, want).map_err(|_| CORRUPT)?;
            Ok(out)
        }
        Kind::Plain if c.len <= c.packed => device.read_vec(c.at, want),
        Kind::Interlaced if c.len <= c.packed => {
            let mut bytes = device.read_vec(c.at, c.packed as usize)?;
            bytes.rotate_left((c.start % BLOCK) as usize);
            bytes.truncate(want);
            Ok(bytes)
        }
        _ => Err(CORRUPT),
    }
}
