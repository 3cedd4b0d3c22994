//! Block special files (`/dev/vda`, `/dev/vda1`): a disk as bytes.
//!
//! Reads and writes go through the page cache, as on Linux: readahead for sequential readers, write-back later, `fsync` and
//! `O_SYNC` to make things durable. The cache of a device lives while somebody has it open; the last close writes
//! what is dirty and drops it, so that a file system mounted afterwards, whose own requests go past this cache, finds
//! everything on the device, and a check after the unmount sees what the file system wrote. (While both are in use
//! at once, the special file may show old content: so it is on Linux for data, and nobody should write there.)
//!
//! With `O_DIRECT` a transfer goes to the device at once, from or to the caller's own pages where they can be lent
//! (`mm/pin.rs`), else through pages of the call's own; the cache's pages of the range are written before and dropped after.
//!
//! Not done: mapping a device into memory (`ENODEV`).

use crate::arch::uaccess::{self, UserAddr};
use crate::drivers::claims::Claim;
use crate::drivers::disk;
use crate::mm::reclaim::page_cache;
use crate::task::job;
use abi::{Errno, Result, linux};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use block::{BlockDevice, Complete, Request, SECTOR_SHIFT, SECTOR_SIZE, Segment, Segments};
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};
use pagecache::{Backing, FileCache, ReadRun, Settings, WriteRun};
use platform::{PAGE_SIZE, Page, ReadSink, SharedBytesMut, WriteSource, bytes::Fault};
use sync::{LockClass, Mutex, SpinLock};
use vfs::{ErrCursor, File, Io, OpenFile};

static WRITE_CLASS: LockClass = LockClass::new("block file write", sync::rank::INODE + 30);
static OPEN_CLASS: LockClass = LockClass::new("open block devices", sync::rank::SPIN + 98);

/// The devices that are open, by number.
static OPEN: SpinLock<Vec<(u64, Weak<Opened>)>> = SpinLock::new(&OPEN_CLASS, Vec::new());

/// A device and its cache, while it is open.
struct Opened {
    device: Arc<dyn BlockDevice>,
    cache: Arc<FileCache>,
    /// One writer at a time.
    writing: Mutex<()>,
    openers: AtomicUsize,
}

impl Opened {
    fn get(rdev: u64, device: Arc<dyn BlockDevice>) -> Arc<Opened> {
        let fresh = Arc::new_cyclic(|me: &Weak<Opened>| {
            let host: Weak<dyn Backing> = me.clone();
            let settings = Settings { identity: (BDEV, rdev), size: device.geometry().bytes(), fs_errors: None };
            Opened {
                cache: FileCache::new(page_cache(), host, settings),
                device,
                writing: Mutex::new(&WRITE_CLASS, ()),
                openers: AtomicUsize::new(0),
            }
        });
        let mut open = OPEN.lock();
        open.retain(|(_, o)| o.strong_count() > 0);
        let found = open.iter().find(|(r, _)| *r == rdev).and_then(|(_, o)| o.upgrade());
        let opened = found.unwrap_or_else(|| {
            open.push((rdev, Arc::downgrade(&fresh)));
            fresh.clone()
        });
        opened.openers.fetch_add(1, Ordering::AcqRel);
        drop(open);
        opened
    }

    /// The pieces of `pages` from byte `offset` on that lie on the device; what lies behind its end is zero.
    fn segments<'a>(&self, offset: u64, pages: impl Iterator<Item = &'a Page>) -> Segments {
        let end = self.device.geometry().bytes();
        let piece = |(i, page): (usize, &Page)| {
            let at = offset + (i * PAGE_SIZE) as u64;
            let len = usize::try_from(end.saturating_sub(at)).unwrap_or(PAGE_SIZE).min(PAGE_SIZE);
            page.bytes_mut(len, PAGE_SIZE).fill(0);
            (len >= SECTOR_SIZE).then(|| Segment { page: page.clone(), offset: 0, len: len as u32 })
        };
        pages.enumerate().filter_map(piece).collect()
    }

    /// What is dirty in `range` goes to the device, and is waited for.
    fn write_back(&self, range: Range<u64>, seen: &ErrCursor) -> Result<()> {
        self.cache.sync_range(range)?;
        self.cache.errors().check_and_advance(seen)
    }
}

/// The device number under which caches of block devices are known (no file system has it).
const BDEV: u64 = u64::MAX;

struct Reading(ReadRun);

impl Complete for Reading {
    fn complete(&self, _: &Request, result: Result<()>) {
        self.0.finish(result);
    }
}

struct Writing(WriteRun);

impl Complete for Writing {
    fn complete(&self, _: &Request, result: Result<()>) {
        self.0.finish(result);
    }
}

impl Backing for Opened {
    fn read_pages(&self, run: ReadRun) {
        let segments = self.segments(run.offset(), run.pages());
        let sector = run.offset() >> SECTOR_SHIFT;
        if segments.is_empty() {
            return run.finish(Ok(()));
        }
        self.device.submit(Request::read(sector, segments, Arc::new(Reading(run)), 0));
    }

    fn write_pages(&self, run: WriteRun) {
        let segments = self.segments(run.offset(), run.pages());
        let sector = run.offset() >> SECTOR_SHIFT;
        if segments.is_empty() {
            return run.finish(Ok(()));
        }
        self.device.submit(Request::write(sector, segments, false, Arc::new(Writing(run)), 0));
    }
}

/// At most `left` bytes of a source.
struct Limited<'a> {
    source: &'a mut dyn WriteSource,
    left: usize,
}

impl WriteSource for Limited<'_> {
    fn remaining(&self) -> usize {
        self.source.remaining().min(self.left)
    }

    fn get(&mut self, mut dst: SharedBytesMut<'_>) -> core::result::Result<usize, Fault> {
        let got = self.source.get(dst.prefix(self.left))?;
        self.left -= got;
        Ok(got)
    }

    fn lend(&mut self, len: usize, take: &mut dyn FnMut(Page, usize, usize)) -> usize {
        let lent = self.source.lend(len.min(self.left), take);
        self.left -= lent;
        lent
    }
}

/// Request numbers (linux/fs.h).
mod request {
    pub const HDIO_GETGEO: u32 = 0x301;
    pub const BLKROGET: u32 = 0x125e;
    pub const BLKRRPART: u32 = 0x125f;
    pub const BLKGETSIZE: u32 = 0x1260;
    pub const BLKFLSBUF: u32 = 0x1261;
    pub const BLKRASET: u32 = 0x1262;
    pub const BLKRAGET: u32 = 0x1263;
    pub const BLKSECTGET: u32 = 0x1267;
    pub const BLKSSZGET: u32 = 0x1268;
    pub const BLKDISCARD: u32 = 0x1277;
    pub const BLKIOMIN: u32 = 0x1278;
    pub const BLKIOOPT: u32 = 0x1279;
    pub const BLKALIGNOFF: u32 = 0x127a;
    pub const BLKPBSZGET: u32 = 0x127b;
    pub const BLKDISCARDZEROES: u32 = 0x127c;
    pub const BLKROTATIONAL: u32 = 0x127e;
    pub const BLKZEROOUT: u32 = 0x127f;
    pub const BLKBSZGET: u32 = 0x8008_1270;
    pub const BLKBSZSET: u32 = 0x4008_1271;
    pub const BLKGETSIZE64: u32 = 0x8008_1272;
}
use request::*;

struct BlockFile {
    on: Arc<Opened>,
    device: Arc<dyn BlockDevice>,
    /// Opened with `O_SYNC` or `O_DSYNC`.
    durable: bool,
    /// Opened with `O_EXCL`: nobody else's as long as it is open.
    claim: Option<Claim>,
    rdev: u64,
    /// Opened with `O_DIRECT`.
    direct: bool,
    /// The errors of write-back that this opener knows.
    seen: ErrCursor,
}

/// Opens the device with number `rdev`. `ENXIO` if there is none, `EROFS` for writing to a read-only one, `EBUSY` with
/// `O_EXCL` for one that is mounted or somebody else's.
pub fn open(rdev: u64, flags: u32) -> Result<Arc<dyn File>> {
    let device = disk::by_rdev(rdev)?;
    if flags & linux::O_ACCMODE != linux::O_RDONLY && device.geometry().read_only {
        return Err(Errno::EROFS);
    }
    let claim = if flags & linux::O_EXCL != 0 { Some(Claim::take(rdev)?) } else { None };
    let on = Opened::get(rdev, device.clone());
    let (durable, direct) = (flags & linux::O_DSYNC != 0, flags & linux::O_DIRECT != 0);
    Ok(Arc::new(BlockFile { seen: on.cache.errors().sample(), on, device, durable, claim, rdev, direct }))
}

fn fault<T>(r: core::result::Result<T, uaccess::Fault>) -> Result<T> {
    r.map_err(|_| Errno::EFAULT)
}

impl BlockFile {
    /// The `[start, length]` in bytes that `arg` points to, in sectors.
    fn range(&self, file: &OpenFile, arg: UserAddr) -> Result<(u64, u64)> {
        if !file.writable() {
            return Err(Errno::EBADF);
        }
        let start = fault(uaccess::get_user_u64(arg))?;
        let len = fault(uaccess::get_user_u64(arg.offset(8)))?;
        let block = u64::from(self.device.geometry().logical_block);
        let end = start.checked_add(len).filter(|end| *end <= self.device.geometry().bytes()).ok_or(Errno::EINVAL)?;
        if !start.is_multiple_of(block) || !end.is_multiple_of(block) {
            return Err(Errno::EINVAL);
        }
        Ok((start >> SECTOR_SHIFT, len >> SECTOR_SHIFT))
    }
}

impl BlockFile {
    /// Reads the partition table again, as it was written through the cache.
    fn read_partitions(&self) -> Result<()> {
        self.on.write_back(0..u64::MAX, &self.seen)?;
        let _claim = if self.claim.is_none() { Some(Claim::take(self.rdev)?) } else { None };
        disk::rescan(&*self.device)
    }

    /// What the cache holds of `len` bytes at `offset` is written, and no longer cached afterwards.
    fn uncache(&self, offset: u64, len: u64) -> Result<()> {
        let range = offset..offset.saturating_add(len);
        self.on.write_back(range.clone(), &self.seen)?;
        let page = PAGE_SIZE as u64;
        self.on.cache.drop_range(range.start / page..range.end.div_ceil(page));
        Ok(())
    }
}

impl File for BlockFile {
    fn can_poll(&self) -> bool {
        false
    }

    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        if !self.direct {
            return self.on.cache.read(io.offset, sink);
        }
        self.on.write_back(io.offset..io.offset.saturating_add(sink.remaining() as u64), &self.seen)?;
        block::read_to(&*self.device, io.offset, sink)
    }

    fn write(&self, io: Io, source: &mut dyn WriteSource) -> Result<usize> {
        let end = self.device.geometry().bytes();
        if io.offset >= end {
            return if source.remaining() == 0 { Ok(0) } else { Err(Errno::ENOSPC) };
        }
        let left = usize::try_from(end - io.offset).unwrap_or(usize::MAX);
        let mut source = Limited { source, left };
        let len = source.remaining() as u64;
        // Direct writes of whole blocks need no turn: their submitters keep them apart.
        let block = u64::from(self.device.geometry().logical_block);
        let alone = !self.direct || !io.offset.is_multiple_of(block) || !len.is_multiple_of(block);
        let _guard = alone.then(|| self.on.writing.lock());
        if self.direct {
            self.uncache(io.offset, len)?;
            return block::write_from(&*self.device, io.offset, &mut source, self.durable);
        }
        let (_, n) = self.on.cache.write(io.offset, &mut source)?;
        if self.durable {
            self.on.write_back(io.offset..io.offset + n as u64, &self.seen)?;
            block::flush(&*self.device)?;
        }
        Ok(n)
    }

    fn positioned(&self) -> bool {
        true
    }

    fn size(&self) -> Result<u64> {
        Ok(self.device.geometry().bytes())
    }

    fn fsync(&self) -> Result<()> {
        let written = self.on.write_back(0..u64::MAX, &self.seen);
        block::flush(&*self.device)?;
        written
    }

    fn release(&self, _: &OpenFile) {
        if self.on.openers.fetch_sub(1, Ordering::AcqRel) == 1 && self.on.write_back(0..u64::MAX, &self.seen).is_err() {
            // As on Linux close(2) tells nobody: who wants to know calls fsync.
            crate::warn!("{}: not everything could be written at its last close", self.device.name());
        }
    }

    fn ioctl(&self, file: &OpenFile, cmd: u32, arg: u64) -> Result<i64> {
        let g = self.device.geometry();
        let user = UserAddr(arg);
        let u32_to = |v: u32| fault(uaccess::put_user_u32(user, v));
        let u64_to = |v: u64| fault(uaccess::put_user_u64(user, v));
        match cmd {
            BLKGETSIZE64 => u64_to(g.bytes())?,
            BLKGETSIZE => u64_to(g.sectors)?,
            BLKSSZGET => u32_to(g.logical_block)?,
            BLKPBSZGET | BLKIOMIN => u32_to(g.physical_block)?,
            BLKBSZGET => u32_to(4096)?,
            BLKSECTGET => {
                let sectors = (g.max_bytes >> SECTOR_SHIFT).min(0xffff) as u16;
                fault(uaccess::copy_to_user(user, &sectors.to_ne_bytes()))?;
            }
            BLKROGET => u32_to(u32::from(g.read_only))?,
            BLKIOOPT | BLKALIGNOFF | BLKDISCARDZEROES => u32_to(0)?,
            BLKROTATIONAL => fault(uaccess::copy_to_user(user, &0u16.to_ne_bytes()))?,
            BLKRAGET => u64_to(0)?,
            BLKRASET | BLKBSZSET => {}
            HDIO_GETGEO => fault(uaccess::copy_to_user(user, &chs(g.sectors)))?,
            BLKFLSBUF if job::is_privileged() => {
                self.fsync()?;
                self.on.cache.invalidate(0..u64::MAX);
            }
            BLKRRPART if job::is_privileged() => self.read_partitions()?,
            BLKFLSBUF | BLKRRPART => return Err(Errno::EACCES),
            BLKDISCARD => {
                let (sector, count) = self.range(file, user)?;
                if count > 0 {
                    let _guard = self.on.writing.lock();
                    self.uncache(sector << SECTOR_SHIFT, count << SECTOR_SHIFT)?;
                    block::discard(&*self.device, sector, count)?;
                }
            }
            BLKZEROOUT => {
                let (sector, count) = self.range(file, user)?;
                let _guard = self.on.writing.lock();
                self.uncache(sector << SECTOR_SHIFT, count << SECTOR_SHIFT)?;
                block::zero_range(&*self.device, sector, count)?;
            }
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }
}

/// `struct hd_geometry`: what partitioning programs still ask for.
fn chs(sectors: u64) -> [u8; 16] {
    let (heads, per_track) = (16u8, 63u8);
    let cylinders = (sectors / (16 * 63)).min(0xffff) as u16;
    let mut out = [0; 16];
    out[..2].copy_from_slice(&[heads, per_track]);
    out[2..4].copy_from_slice(&cylinders.to_ne_bytes());
    out
}
