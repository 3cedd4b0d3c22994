//! Mounting, and the file system as a whole.

use crate::geometry::{Geometry, Refused};
use crate::inode::{DataInode, ROOT};
use crate::layout::features::Incompat;
use crate::layout::superblock as sbl;
use crate::options::Options;
use crate::recover::{self, read_super};
use crate::volume::Volume;
use abi::{Errno, Result};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::BlockDevice;
use core::any::Any;
use core::sync::atomic::Ordering;
use pagecache::PageCache;
use sync::Once;
use vfs::{FileSystem, Inode, Statfs};

/// `EXT4_SUPER_MAGIC`
const MAGIC: u64 = 0xef53;

/// A mounted file system.
pub struct DataFs {
    pub(crate) vol: Arc<Volume>,
    root: Arc<DataInode>,
    /// What the device's owner wants to know dropped when the file system is unmounted; so it is the last field.
    guard: Once<Box<dyn Any + Send + Sync>>,
}

impl core::fmt::Debug for DataFs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "datafs on {}", self.vol.device.name())
    }
}

/// What a disk says about itself, for tools: label and UUID; `None` if it holds no ext4.
pub fn probe(device: &dyn BlockDevice) -> Option<([u8; 16], [u8; 16])> {
    read_super(device).ok().filter(|sb| sb.magic.get() == sbl::MAGIC).map(|sb| (sb.volume_name, sb.uuid))
}

impl DataFs {
    /// Mounts the file system on `device`, whose number `dev` the inodes will show. The journal is replayed and interrupted
    /// work is finished first. Content is cached in `cache`. May sleep.
    pub fn mount(
        device: Arc<dyn BlockDevice>,
        cache: Arc<PageCache>,
        options: Options,
        dev: u64,
    ) -> core::result::Result<Arc<DataFs>, Refused> {
        let bytes = device.geometry().sectors.saturating_mul(512);
        let sb = read_super(&*device)?;
        let geo = Geometry::new(&sb, bytes)?;
        let store = recover::open(&device, &geo, &sb, &options)?;
        // Replaying may have changed the superblock.
        let geo = Geometry::new(&read_super(&*device)?, bytes)?;
        if !geo.ro_because.is_empty() {
            (options.log)(&alloc::format!("datafs: {}: mounted read-only: {}", device.name(), geo.ro_because));
        }
        let vol = Arc::new(Volume::load(device, cache, options, dev, geo, store)?);
        let root = vol.get(ROOT).map_err(|e| Refused::new(e, "the root directory cannot be read"))?;
        if !root.is_dir() {
            return Err(Refused::new(Errno::EUCLEAN, "the root is no directory"));
        }
        let fs = Arc::new(DataFs { vol, root, guard: Once::new() });
        if fs.vol.writable().is_ok() {
            fs.vol.mark_mounted()?;
            fs.vol.finish_orphans()?;
        }
        Ok(fs)
    }

    /// Keeps `guard` until the file system is unmounted and everything is written. A second call keeps the first.
    pub fn hold(&self, guard: Box<dyn Any + Send + Sync>) {
        let _ = self.guard.set(guard);
    }

    /// Makes everything durable but the content of files: inodes whose times run ahead, and the running transaction. May
    /// sleep.
    pub fn commit(&self) -> Result<()> {
        self.vol.flush_inodes()?;
        self.vol.store.commit_all()
    }

    /// An inode by its number, if it is in use: for tools and tests.
    pub fn inode(&self, ino: u32) -> Result<Arc<DataInode>> {
        self.vol.get(ino)
    }

    /// Whether damage was seen since mounting.
    pub fn saw_errors(&self) -> bool {
        self.vol.saw_errors()
    }
}

impl Volume {
    /// Stores all inodes that run ahead in memory.
    pub(crate) fn flush_inodes(&self) -> Result<()> {
        let mut result = Ok(());
        loop {
            let Some((_, inode)) = self.dirty.lock().pop_first() else { return result };
            if self.writable().is_ok() {
                result = result.and(inode.flush());
            } else {
                inode.lazy.store(false, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn mark_mounted(&self) -> Result<()> {
        let now = (platform::realtime_ns() / 1_000_000_000) as u32;
        let journal = self.store.has_journal();
        self.transact(4, |tx| {
            self.write_super(tx, |sb| {
                sb.mtime.set(now);
                sb.mnt_count.set(sb.mnt_count.get().wrapping_add(1));
                if journal {
                    // Said durably before; this is the copy in memory.
                    let incompat = Incompat::from_bits_retain(sb.feature_incompat.get()) | Incompat::RECOVER;
                    sb.feature_incompat.set(incompat.bits());
                } else {
                    sb.state.set(sb.state.get() & !sbl::STATE_VALID);
                }
            })
        })
    }

    /// Brings the superblock's counts up to date; with `clean` the file system is left for others.
    pub(crate) fn update_super(&self, clean: bool) -> Result<()> {
        let blocks = self.free_blocks.load(Ordering::Relaxed) + self.pending_blocks.load(Ordering::Relaxed);
        let inodes = self.free_inodes.load(Ordering::Relaxed);
        let now = (platform::realtime_ns() / 1_000_000_000) as u32;
        let errors = self.saw_errors();
        self.transact(4, |tx| {
            self.write_super(tx, |sb| {
                sb.free_blocks_count_lo.set(blocks as u32);
                if self.geo.has64() {
                    sb.free_blocks_count_hi.set((blocks >> 32) as u32);
                }
                sb.free_inodes_count.set(inodes as u32);
                sb.wtime.set(now);
                if errors {
                    sb.state.set((sb.state.get() & !sbl::STATE_VALID) | sbl::STATE_ERROR);
                } else if clean {
                    sb.state.set(sb.state.get() | sbl::STATE_VALID);
                }
            })
        })
    }

    pub(crate) fn sync_all(&self) -> Result<()> {
        let _one = self.sync_lock.lock();
        let mut result = self.cache.sync_device(Some(self.dev));
        if self.writable().is_err() {
            return result;
        }
        result = result.and(self.flush_inodes());
        result = result.and(self.update_super(false));
        result = result.and(self.store.commit_all());
        self.settle_freed();
        result
    }
}

impl FileSystem for DataFs {
    fn name(&self) -> &'static str {
        "ext4"
    }

    fn root(&self) -> Result<Arc<dyn Inode>> {
        Ok(self.root.clone())
    }

    fn statfs(&self) -> Result<Statfs> {
        let v = &self.vol;
        let count = |n: &core::sync::atomic::AtomicI64| n.load(Ordering::Relaxed);
        let free = (count(&v.free_blocks) + count(&v.pending_blocks) - count(&v.promised)).max(0) as u64;
        Ok(Statfs {
            magic: MAGIC,
            bsize: v.geo.block_size as u64,
            blocks: v.geo.blocks - v.overhead,
            bfree: free,
            bavail: free.saturating_sub(v.root_reserved),
            files: u64::from(v.geo.inodes),
            ffree: count(&v.free_inodes).max(0) as u64,
            fsid: v.uuid.iter().fold(0u64, |h, b| h.rotate_left(8) ^ u64::from(*b)),
            namelen: vfs::NAME_MAX as u64,
        })
    }

    fn sync(&self) -> Result<()> {
        self.vol.sync_all()
    }

    fn write_errors(&self) -> Option<&vfs::ErrSeq> {
        Some(&self.vol.fs_errors)
    }

    fn read_only(&self) -> bool {
        self.vol.read_only.load(Ordering::Relaxed) || self.vol.store.journal.aborted().is_some()
    }

    fn remount(&self, words: &str) -> Result<()> {
        self.vol.remount(words)
    }

    fn trim(&self, range: core::ops::Range<u64>, least: u64) -> Result<u64> {
        let v = &self.vol;
        v.writable()?;
        let bits = v.geo.block_bits;
        let blocks = range.start.div_ceil(1 << bits)..(range.end >> bits).min(v.geo.blocks);
        let least = least.div_ceil(1 << bits);
        if blocks.start >= v.geo.blocks || least > u64::from(v.geo.blocks_per_group) {
            return Err(Errno::EINVAL);
        }
        Ok(v.trim(blocks, least as u32)? << bits)
    }

    fn options(&self) -> String {
        self.vol.shown_options()
    }
}

impl Drop for DataFs {
    /// Unmounts: everything is written, the journal emptied, the file system marked clean. Errors are in the
    /// log.
    fn drop(&mut self) {
        let v = &self.vol;
        v.left.store(true, Ordering::Release);
        if let Err(e) = v.end() {
            v.options.log(&alloc::format!("datafs: {}: unmounting: {e}", v.device.name()));
        }
        // Whatever is left in the list would keep itself alive.
        let rest: Vec<_> = core::mem::take(&mut *v.dirty.lock()).into_values().collect();
        drop(rest);
    }
}
