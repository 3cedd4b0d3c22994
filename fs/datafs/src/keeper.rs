//! What must happen from time to time, whoever's thread does it.

use crate::mount::DataFs;
use crate::volume::Volume;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicU64, Ordering};
use journal::BufferCache;

/// Keeps a mounted file system durable: commits, checkpoints, stores times that run ahead. Does not keep it mounted.
#[derive(Debug)]
pub struct Keeper {
    vol: Weak<Volume>,
    flushed: AtomicU64,
}

/// Frees metadata blocks that are in memory and not needed. Does not keep the file system mounted.
#[derive(Clone, Debug)]
pub struct Shrinker {
    blocks: Weak<BufferCache>,
    vol: Weak<Volume>,
}

/// Memory that a mounted file system uses for metadata, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Content of blocks of the device.
    pub blocks: usize,
    /// Inodes, which stay as long as a name of theirs is cached.
    pub inodes: usize,
}

impl DataFs {
    /// The work of a background thread for this mount.
    pub fn keeper(&self) -> Keeper {
        Keeper { vol: Arc::downgrade(&self.vol), flushed: AtomicU64::new(platform::monotonic_ns()) }
    }

    /// For when memory is short.
    pub fn shrinker(&self) -> Shrinker {
        Shrinker { blocks: Arc::downgrade(self.vol.store.journal.cache()), vol: Arc::downgrade(&self.vol) }
    }
}

impl Keeper {
    /// One round. Returns the monotonic time (in nanoseconds) at which to come back; `None` when the file system is no longer
    /// mounted. May sleep.
    pub fn round(&self) -> Option<u64> {
        let vol = self.vol.upgrade()?;
        if vol.left.load(Ordering::Acquire) {
            return None;
        }
        let now = platform::monotonic_ns();
        let interval = u64::from(vol.options.commit_seconds()) * 1_000_000_000;
        if now >= self.flushed.load(Ordering::Relaxed) + interval {
            self.flushed.store(now, Ordering::Relaxed);
            // Errors have aborted the journal or will come again at the next sync, which reports them.
            let _ = vol.flush_inodes();
        }
        let next = vol.store.journal.background();
        vol.settle_freed();
        Some(next.min(now + interval))
    }
}

impl Shrinker {
    /// Frees up to `goal` blocks; returns how many that were, and `None` when the file system is no longer mounted. Takes
    /// spin locks only.
    pub fn shrink(&self, goal: usize) -> Option<usize> {
        Some(self.blocks.upgrade()?.shrink(goal))
    }

    /// Writes what the journal keeps in memory until it is in its place, so that it can be freed. `None` when the file system
    /// is no longer mounted. May sleep; the caller holds no lock of a file system.
    pub fn relieve(&self) -> Option<()> {
        let vol = self.vol.upgrade()?;
        if !vol.left.load(Ordering::Acquire) {
            // Errors have aborted the journal.
            let _ = vol.store.journal.checkpoint();
        }
        Some(())
    }

    /// What is in memory; `None` when the file system is no longer mounted. Context: thread that holds no spin lock.
    pub fn footprint(&self) -> Option<Footprint> {
        let cache = self.blocks.upgrade()?;
        Some(Footprint {
            blocks: cache.stats().buffers * cache.block_size(),
            inodes: self.vol.upgrade()?.inode_bytes(),
        })
    }
}
