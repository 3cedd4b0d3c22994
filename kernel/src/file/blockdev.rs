//! Block special files (`/dev/vda`, `/dev/vda1`): a disk as bytes.
//!
//! Reads and writes go to the device at once, through pages of the call's own; there is no cache between, so what was written
//! is in the device (maybe in its volatile cache: `fsync` flushes that, and `O_SYNC` writes are durable). Writes that are
//! not made of whole blocks read the rest of the block first, one writer at a time.

use crate::arch::uaccess::{self, UserAddr};
use crate::drivers::disk;
use crate::task::job;
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use block::{BlockDevice, SECTOR_SHIFT};
use platform::{ReadSink, WriteSource};
use sync::{LockClass, Mutex};
use vfs::{File, Io, OpenFile};

/// Held over the reading, changing and writing of a block.
static PARTIAL_CLASS: LockClass = LockClass::new("block file partial write", sync::rank::INODE + 30);
static PARTIAL: Mutex<()> = Mutex::new(&PARTIAL_CLASS, ());

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
    device: Arc<dyn BlockDevice>,
    /// Opened with `O_SYNC` or `O_DSYNC`.
    durable: bool,
}

/// Opens the device with number `rdev`. `ENXIO` if there is none, `EROFS` for writing to a read-only one.
pub fn open(rdev: u64, flags: u32) -> Result<Arc<dyn File>> {
    let device = disk::by_rdev(rdev)?;
    if flags & linux::O_ACCMODE != linux::O_RDONLY && device.geometry().read_only {
        return Err(Errno::EROFS);
    }
    Ok(Arc::new(BlockFile { device, durable: flags & linux::O_DSYNC != 0 }))
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

impl File for BlockFile {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        block::read_to(&*self.device, io.offset, sink)
    }

    fn write(&self, io: Io, source: &mut dyn WriteSource) -> Result<usize> {
        let block = u64::from(self.device.geometry().logical_block);
        let whole = io.offset.is_multiple_of(block) && (source.remaining() as u64).is_multiple_of(block);
        let _guard = (!whole).then(|| PARTIAL.lock());
        block::write_from(&*self.device, io.offset, source, self.durable)
    }

    fn positioned(&self) -> bool {
        true
    }

    fn size(&self) -> Result<u64> {
        Ok(self.device.geometry().bytes())
    }

    fn fsync(&self) -> Result<()> {
        block::flush(&*self.device)
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
            BLKFLSBUF if job::is_privileged() => block::flush(&*self.device)?,
            BLKRRPART if job::is_privileged() => disk::rescan(&*self.device)?,
            BLKFLSBUF | BLKRRPART => return Err(Errno::EACCES),
            BLKDISCARD => {
                let (sector, count) = self.range(file, user)?;
                if count > 0 {
                    block::discard(&*self.device, sector, count)?;
                }
            }
            BLKZEROOUT => {
                let (sector, count) = self.range(file, user)?;
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
