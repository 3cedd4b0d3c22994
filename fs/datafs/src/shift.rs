//! Taking a range out of a file, or putting a hole in, so that what lies behind it moves (`FALLOC_FL_COLLAPSE_RANGE`,
//! `FALLOC_FL_INSERT_RANGE`).
//!
//! Only the tree of extents changes: everything dirty is written first and what the cache holds behind the offset is
//! dropped, before and after. Runs move one at a time, each in a handle of its own, from the side to which they move; so
//! they never meet. A crash (as on Linux) can leave a file of many runs moved in part, never one with foreign blocks.
//!
//! Who writes behind the offset through a mapping meanwhile may lose that; calls wait.

use crate::evict::STEP_CREDITS;
use crate::extents::BLOCKS_END;
use crate::extents_edit::Edit;
use crate::fields::{Core, now};
use crate::inode::DataInode;
use crate::meta::Tx;
use abi::{Errno, Result};
use alloc::vec::Vec;
use pagecache::FileCache;
use platform::PAGE_SIZE;

/// A run that moves.
#[derive(Clone, Copy)]
struct Run {
    block: u64,
    len: u64,
    start: u64,
    written: bool,
}

impl DataInode {
    fn aligned(&self, offset: u64, len: u64) -> Result<()> {
        let mask = (1 << self.vol.geo.block_bits) - 1;
        if (offset | len) & mask == 0 { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Takes `len` bytes out at `offset`. `EINVAL` unless both are whole blocks that end before the file does. The caller has
    /// `io`.
    pub(crate) fn collapse(&self, cache: &FileCache, offset: u64, len: u64) -> Result<()> {
        let (size, end) = (cache.size(), offset.checked_add(len).ok_or(Errno::EINVAL)?);
        self.aligned(offset, len)?;
        if end >= size {
            return Err(Errno::EINVAL);
        }
        self.settle_behind(cache, offset, size)?;
        let bits = self.vol.geo.block_bits;
        self.free_range(offset >> bits, end >> bits)?;
        let mut at = end >> bits;
        while let Some(run) = self.run_from(at)? {
            self.move_run(run, run.block - (len >> bits))?;
            at = run.block + run.len;
        }
        self.resized(size - len)?;
        uncache(cache, offset, size);
        cache.truncate(size - len);
        Ok(())
    }

    /// Puts a hole of `len` bytes in at `offset`. `EINVAL` unless both are whole blocks and the file goes on there. The caller
    /// has `io`.
    pub(crate) fn insert(&self, cache: &FileCache, offset: u64, len: u64) -> Result<()> {
        let size = cache.size();
        self.aligned(offset, len)?;
        if offset >= size {
            return Err(Errno::EINVAL);
        }
        if size.checked_add(len).is_none_or(|s| s > self.max_size()) {
            return Err(Errno::EFBIG);
        }
        self.settle_behind(cache, offset, size)?;
        let bits = self.vol.geo.block_bits;
        let mut runs: Vec<Run> = Vec::new();
        let mut at = offset >> bits;
        while let Some(run) = self.run_from(at)? {
            runs.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            runs.push(run);
            at = run.block + run.len;
        }
        // Space beyond the end counts too.
        if at + (len >> bits) > BLOCKS_END - 1 {
            return Err(Errno::EFBIG);
        }
        self.resized(size + len)?;
        cache.truncate(size + len);
        for run in runs.into_iter().rev() {
            self.move_run(run, run.block + (len >> bits))?;
        }
        uncache(cache, offset, size + len);
        Ok(())
    }

    /// What lies behind `offset` is on the disk, and nowhere else.
    fn settle_behind(&self, cache: &FileCache, offset: u64, size: u64) -> Result<()> {
        cache.sync()?;
        uncache(cache, offset, size);
        Ok(())
    }

    /// The first run from block `at` on.
    fn run_from(&self, at: u64) -> Result<Option<Run>> {
        let mut at = at;
        while at < BLOCKS_END {
            let m = self.lookup_block(at)?;
            if let Some((start, written)) = m.at {
                return Ok(Some(Run { block: at, len: m.len, start, written }));
            }
            at = at.saturating_add(m.len.max(1));
        }
        Ok(None)
    }

    /// Maps a run at block `to` of the file instead of where it is.
    fn move_run(&self, run: Run, to: u64) -> Result<()> {
        self.vol.transact(STEP_CREDITS, |tx| {
            let mut core = self.core.write();
            let moved = self.remap(tx, &mut core, run, to);
            self.store(tx, &core)?;
            moved
        })
    }

    fn remap(&self, tx: &Tx, core: &mut Core, piece: Run, target: u64) -> Result<()> {
        self.put(tx, core, piece.block, piece.len, None)?;
        let placed = self.put(tx, core, target, piece.len, Some((piece.start, piece.written)));
        if placed.is_err() {
            // Back where there was room for it just now.
            self.put(tx, core, target, piece.len, None)?;
            self.put(tx, core, piece.block, piece.len, Some((piece.start, piece.written)))?;
        }
        placed
    }

    /// Maps `len` blocks from `block` on to `new`, leaf by leaf.
    fn put(&self, tx: &Tx, core: &mut Core, block: u64, len: u64, new: Option<(u64, bool)>) -> Result<()> {
        let (mut at, end) = (block, block + len);
        while at < end {
            let from = u32::try_from(at).map_err(|_| Errno::EFBIG)?;
            let here = new.map(|(start, written)| (start + (at - block), written));
            let goal = new.map_or(0, |(start, _)| start);
            at = Edit { owner: self.owner(), tx, core, goal }.replace(from, end, here, usize::MAX)?.done;
        }
        Ok(())
    }

    fn resized(&self, size: u64) -> Result<()> {
        self.vol.transact(4, |tx| {
            self.change(tx, |core| {
                let t = now();
                core.m().set_size(size);
                core.set_mtime(t);
                core.set_ctime(t);
            })
        })
    }
}

fn uncache(cache: &FileCache, from: u64, to: u64) {
    let page = PAGE_SIZE as u64;
    cache.drop_range(from / page..to.div_ceil(page));
}
