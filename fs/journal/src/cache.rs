//! The metadata buffer cache: the blocks of one file system that are in memory.
//!
//! A table in shards, each under a spin lock; a buffer's identity is its block number. Reclaim ([`BufferCache::shrink`])
//! goes round the shards as a clock: what nobody references, is clean and was not looked up since the hand last came by
//! is freed. Content is read under the buffer's own (sleeping) lock, so two readers of a block read it once.
//!
//! Two users: a [`crate::Journal`] keeps references to what it has still to write, which keeps it here; a file system without
//! one marks buffers dirty and [`BufferCache::sync`] writes them.

use crate::buffer::Buffer;
use crate::io::{Writer, read_block};
use abi::{Errno, Result};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::BlockDevice;
use core::hash::{BuildHasherDefault, Hasher};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use hashbrown::HashMap;
use sync::{LockClass, Mutex, SpinLock};

static SHARD: LockClass = LockClass::new("buffer cache shard", sync::rank::SPIN + 44);
static SYNC: LockClass = LockClass::new("buffer cache sync", sync::rank::PAGE_CACHE + 30);

const SHARDS: usize = 32;

/// Block numbers are spread well enough by one multiplication.
#[derive(Default)]
struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }
}

#[derive(Default)]
struct Shard {
    map: HashMap<u64, Arc<Buffer>, BuildHasherDefault<BlockHasher>>,
    clock: VecDeque<u64>,
}

/// What the cache has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Buffers in memory.
    pub buffers: usize,
    /// Look-ups that found valid content.
    pub hits: u64,
    /// Blocks read from the device.
    pub reads: u64,
}

/// The cached blocks of one device, all of one size.
pub struct BufferCache {
    device: Arc<dyn BlockDevice>,
    block_size: usize,
    shards: Box<[SpinLock<Shard>]>,
    count: AtomicUsize,
    hand: AtomicUsize,
    hits: AtomicU64,
    reads: AtomicU64,
    syncing: Mutex<()>,
}

impl BufferCache {
    /// An empty cache of `device` in blocks of `block_size` bytes (a power of two, 1024 to 65536, else `EINVAL`).
    pub fn new(device: Arc<dyn BlockDevice>, block_size: usize) -> Result<Arc<Self>> {
        if !block_size.is_power_of_two() || !(1024..=65536).contains(&block_size) {
            return Err(Errno::EINVAL);
        }
        Ok(Arc::new(BufferCache {
            device,
            block_size,
            shards: (0..SHARDS).map(|_| SpinLock::new(&SHARD, Shard::default())).collect(),
            count: AtomicUsize::new(0),
            hand: AtomicUsize::new(0),
            hits: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            syncing: Mutex::new(&SYNC, ()),
        }))
    }

    /// The device below.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    fn shard(&self, block: u64) -> &SpinLock<Shard> {
        &self.shards[(block ^ (block >> 5) ^ (block >> 15)) as usize % SHARDS]
    }

    /// The buffer of `block` if it is cached, whatever its content.
    pub fn peek(&self, block: u64) -> Option<Arc<Buffer>> {
        self.shard(block).lock().map.get(&block).cloned()
    }

    /// The buffer of `block` without reading it: for a block that will be overwritten whole ([`crate::Handle::create`]).
    /// `ENOMEM`. Context: thread.
    pub fn get(&self, block: u64) -> Result<Arc<Buffer>> {
        if let Some(found) = self.peek(block) {
            found.touch();
            return Ok(found);
        }
        let fresh = Arc::new(Buffer::new(block, self.block_size)?);
        let mut shard = self.shard(block).lock();
        let shard = &mut *shard;
        let mut made = false;
        let buffer = shard
            .map
            .entry(block)
            .or_insert_with(|| {
                made = true;
                fresh
            })
            .clone();
        if made {
            shard.clock.push_back(block);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(buffer)
    }

    /// The buffer of `block` with valid content, read from the device if need be. `EIO`, `ENOMEM`. May sleep.
    pub fn read(&self, block: u64) -> Result<Arc<Buffer>> {
        let buffer = self.get(block)?;
        if buffer.is_uptodate() {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(buffer);
        }
        let mut content = buffer.content.write_nested();
        if !buffer.is_uptodate() {
            content.make_unique()?;
            let bytes = Arc::get_mut(&mut content.data).ok_or(Errno::EIO)?;
            read_block(&*self.device, block, bytes)?;
            self.reads.fetch_add(1, Ordering::Relaxed);
            buffer.set_uptodate(true);
        }
        drop(content);
        Ok(buffer)
    }

    /// Reads those of `blocks` that are not cached, neighbours together, so that later [`BufferCache::read`]s find them. A
    /// hint: errors are left to those. May sleep.
    pub fn prefetch(&self, blocks: &[u64]) {
        let mut at = 0;
        while at < blocks.len() {
            let mut run = 1;
            while at + run < blocks.len() && run < 64 && blocks[at + run] == blocks[at] + run as u64 {
                run += 1;
            }
            let wanted = &blocks[at..at + run];
            at += run;
            if wanted.iter().all(|b| self.peek(*b).is_some_and(|b| b.is_uptodate())) {
                continue;
            }
            let mut bytes = Vec::new();
            if bytes.try_reserve_exact(run * self.block_size).is_err() {
                return;
            }
            bytes.resize(run * self.block_size, 0);
            // Content must be locked while it is read: else a block that is changed and written meanwhile would get its
            // old bytes. Only buffers that were not valid before are filled, and those nobody can have changed.
            let held: Vec<Arc<Buffer>> = wanted.iter().filter_map(|b| self.get(*b).ok()).collect();
            let mut locked: Vec<_> =
                held.iter().filter(|b| !b.is_uptodate()).filter_map(|b| Some((b, b.content.try_write()?))).collect();
            if read_block_run(&*self.device, wanted[0], self.block_size, &mut bytes).is_err() {
                continue;
            }
            for (buffer, content) in &mut locked {
                let i = (buffer.block() - wanted[0]) as usize * self.block_size;
                if !buffer.is_uptodate()
                    && content.make_unique().is_ok()
                    && let Some(data) = Arc::get_mut(&mut content.data)
                {
                    data.copy_from_slice(&bytes[i..i + self.block_size]);
                    self.reads.fetch_add(1, Ordering::Relaxed);
                    buffer.set_uptodate(true);
                }
            }
        }
    }

    /// Forgets the content of `block`: the next look-up reads the device. For blocks that something else wrote.
    pub fn invalidate(&self, block: u64) {
        if let Some(buffer) = self.peek(block) {
            let content = buffer.content.write_nested();
            buffer.take_dirty();
            buffer.set_uptodate(false);
            drop(content);
        }
    }

    /// Frees up to `goal` buffers that are clean, unreferenced and not used lately; how many were freed. Never sleeps, never
    /// writes: fit for direct reclaim.
    pub fn shrink(&self, goal: usize) -> usize {
        let mut freed = 0;
        for _ in 0..SHARDS * 2 {
            if freed >= goal {
                break;
            }
            let at = self.hand.fetch_add(1, Ordering::Relaxed) % SHARDS;
            let mut shard = self.shards[at].lock();
            for _ in 0..shard.clock.len().min(256) {
                let Some(block) = shard.clock.pop_front() else { break };
                let Some(buffer) = shard.map.get(&block) else { continue };
                let busy = Arc::strong_count(buffer) > 1 || buffer.is_dirty();
                if busy || buffer.take_referenced() {
                    shard.clock.push_back(block);
                } else {
                    shard.map.remove(&block);
                    freed += 1;
                }
                if freed >= goal {
                    break;
                }
            }
        }
        self.count.fetch_sub(freed, Ordering::Relaxed);
        freed
    }

    /// Frees all that can be freed.
    pub fn drop_clean(&self) {
        while self.shrink(usize::MAX) > 0 {}
    }

    /// Writes all buffers that were dirtied without a journal, and flushes the device. `EIO`: they stay dirty. May sleep.
    pub fn sync(&self) -> Result<()> {
        let turn = self.syncing.lock();
        let mut dirty = Vec::new();
        for shard in &self.shards {
            dirty.extend(shard.lock().map.values().filter(|b| b.is_dirty()).cloned());
        }
        dirty.sort_unstable_by_key(|b: &Arc<Buffer>| b.block());
        let result = self.write_out(&dirty);
        if result.is_err() {
            dirty.iter().for_each(|b| b.set_dirty());
        }
        drop(turn);
        result
    }

    fn write_out(&self, dirty: &[Arc<Buffer>]) -> Result<()> {
        let mut writer = Writer::new(&*self.device, self.block_size);
        for buffer in dirty {
            let content = buffer.content.read_nested();
            buffer.take_dirty();
            let data = content.data.clone();
            drop(content);
            writer.put(buffer.block(), &data)?;
        }
        writer.finish()?;
        block::flush(&*self.device)
    }

    /// What it has done.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            buffers: self.count.load(Ordering::Relaxed),
            hits: self.hits.load(Ordering::Relaxed),
            reads: self.reads.load(Ordering::Relaxed),
        }
    }
}

fn read_block_run(device: &dyn BlockDevice, first: u64, block_size: usize, bytes: &mut [u8]) -> Result<()> {
    let at = first.checked_mul(block_size as u64).ok_or(Errno::EIO)?;
    block::read_at(device, at, bytes)
}

impl core::fmt::Debug for BufferCache {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("BufferCache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
