//! `fallocate(2)`: space ahead of its use, holes, zeroes; and where data and holes are.

use crate::evict::STEP_CREDITS;
use crate::extents_edit::Edit;
use crate::fields::now;
use crate::inode::DataInode;
use abi::{Errno, Result, linux};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;
use pagecache::FileCache;
use platform::PAGE_SIZE;
use vfs::FileExtent;

const PAGE: u64 = PAGE_SIZE as u64;
/// Blocks that one transaction allocates at most.
const CHUNK: u64 = 8192;

impl DataInode {
    pub(crate) fn do_fallocate(&self, cache: &FileCache, mode: u32, offset: u64, len: u64) -> Result<()> {
        const SHIFT: u32 = linux::FALLOC_FL_COLLAPSE_RANGE | linux::FALLOC_FL_INSERT_RANGE;
        const KNOWN: u32 =
            SHIFT | linux::FALLOC_FL_KEEP_SIZE | linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_ZERO_RANGE;
        if mode & !KNOWN != 0 || !self.core.read().has_extents() {
            return Err(Errno::EOPNOTSUPP);
        }
        let (punch, zero) = (mode & linux::FALLOC_FL_PUNCH_HOLE != 0, mode & linux::FALLOC_FL_ZERO_RANGE != 0);
        let keep = mode & linux::FALLOC_FL_KEEP_SIZE != 0;
        if (punch && (zero || !keep)) || len == 0 {
            return Err(if len == 0 { Errno::EINVAL } else { Errno::EOPNOTSUPP });
        }
        if mode & SHIFT != 0 {
            if mode & (mode - 1) != 0 {
                return Err(Errno::EINVAL);
            }
            self.vol.writable()?;
            let _io = self.io.lock();
            return if mode == linux::FALLOC_FL_COLLAPSE_RANGE {
                self.collapse(cache, offset, len)
            } else {
                self.insert(cache, offset, len)
            };
        }
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if end > self.max_size() {
            return Err(Errno::EFBIG);
        }
        self.vol.writable()?;
        let _io = self.io.lock();
        if punch || zero {
            self.make_hole(cache, offset, end.min(cache.size().max(offset)))?;
        }
        if !punch {
            self.allocate(offset, end)?;
        }
        let grows = !keep && end > cache.size();
        if grows {
            cache.truncate(end);
        }
        self.vol.transact(4, |tx| {
            self.change(tx, |core| {
                let t = now();
                core.set_ctime(t);
                if punch || zero || grows {
                    core.set_mtime(t);
                }
                if grows && core.f().size() < end {
                    core.m().set_size(end);
                }
            })
        })
    }

    /// The largest size.
    pub(crate) fn max_size(&self) -> u64 {
        ((1u64 << 32) - 1) << self.vol.geo.block_bits
    }

    /// Zeroes `from..to`: whole pages become holes, edges are written.
    fn make_hole(&self, cache: &FileCache, from: u64, to: u64) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        let (first, last) = (from.next_multiple_of(PAGE), to / PAGE * PAGE);
        // The last page of the file is a whole one too, if the hole reaches the end.
        let last = if to == cache.size() { to.next_multiple_of(PAGE) } else { last };
        if first > last || (first == last && !from.is_multiple_of(PAGE) && from / PAGE == to / PAGE) {
            return cache.zero(from, (to - from) as usize);
        }
        if from < first {
            cache.zero(from, (first - from) as usize)?;
        }
        if last < to {
            cache.zero(last, (to - last) as usize)?;
        }
        if first < last {
            cache.drop_range(first / PAGE..last / PAGE);
            let bits = self.vol.geo.block_bits;
            self.free_range(first >> bits, last >> bits)?;
        }
        Ok(())
    }

    /// Allocates the holes of `from..to`, unwritten.
    fn allocate(&self, from: u64, to: u64) -> Result<()> {
        let bits = self.vol.geo.block_bits;
        let (mut at, end) = (from >> bits, to.div_ceil(1 << bits));
        let mut holes = 0;
        let mut probe = at;
        while probe < end {
            let m = self.lookup_block(probe)?;
            let n = m.len.min(end - probe);
            if m.at.is_none() {
                holes += n;
            }
            probe += n;
        }
        // All or nothing, as far as can be known: a promise until the blocks are taken.
        self.vol.promise(holes as i64)?;
        let mut left = holes as i64;
        let result = loop {
            if at >= end {
                break Ok(());
            }
            match self.allocate_some(at, end) {
                Ok((next, taken)) => {
                    at = next;
                    let n = (taken as i64).min(left);
                    left -= n;
                    self.vol.release_promise(n);
                }
                Err(e) => break Err(e),
            }
        };
        self.vol.release_promise(left);
        result
    }

    fn allocate_some(&self, at: u64, end: u64) -> Result<(u64, u64)> {
        let m = self.lookup_block(at)?;
        let len = m.len.min(end - at);
        if m.at.is_some() {
            return Ok((at + len, 0));
        }
        let goal = self.goal(&self.core.read(), at);
        let (start, n) = self.vol.pick(goal, len.min(CHUNK) as u32)?;
        let from = u32::try_from(at).map_err(|_| Errno::EFBIG)?;
        let mut done = at;
        let result = self.vol.transact(STEP_CREDITS, |tx| {
            let mut core = self.core.write();
            let to = at + u64::from(n);
            let still_hole = self.owner().lookup(&core, at)?;
            if still_hole.at.is_some() {
                // Write-back was faster.
                return Ok(0);
            }
            let to = to.min(at + still_hole.len);
            let step = Edit { owner: self.owner(), tx, core: &mut core, goal: start }.replace(
                from,
                to,
                Some((start, false)),
                1,
            )?;
            let taken = step.done - at;
            self.vol.take(tx, start, taken as u32)?;
            core.add_blocks(taken as i64, self.vol.geo.block_size);
            self.store(tx, &core)?;
            done = step.done;
            Ok(taken)
        });
        let taken = *result.as_ref().unwrap_or(&0);
        if taken < u64::from(n) {
            self.vol.unpick(start + taken, n - taken as u32);
        }
        result.map(|taken| (done, taken))
    }

    /// The first byte from `offset` on that is data, or that is in a hole. Unwritten space is a hole where no page is dirty.
    pub(crate) fn seek(&self, cache: &FileCache, offset: u64, hole: bool) -> Result<u64> {
        let size = cache.size();
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        // Dirty pages get their blocks first, so that the tree tells the truth.
        if !self.delayed.lock().is_empty() || cache.pages().1 > 0 {
            cache.sync()?;
        }
        let bits = self.vol.geo.block_bits;
        let mut at = offset >> bits;
        while at << bits < size {
            let m = self.lookup_block(at)?;
            if m.readable().is_none() == hole {
                return Ok((at << bits).max(offset));
            }
            at = at.saturating_add(m.len);
            if at > (size >> bits) + 1 {
                break;
            }
        }
        if hole { Ok(size) } else { Err(Errno::ENXIO) }
    }

    /// The runs of the file in a range of bytes, as `FIEMAP` reports them; at most `most`.
    pub(crate) fn runs(&self, range: Range<u64>, most: usize) -> Result<Vec<FileExtent>> {
        let bits = self.vol.geo.block_bits;
        let limit = range.end.min(self.max_size()).div_ceil(1 << bits);
        let mut at = range.start >> bits;
        let mut out: Vec<FileExtent> = Vec::new();
        while at < limit && out.len() < most {
            let m = self.lookup_block(at)?;
            let n = m.len.min(limit - at);
            match m.at {
                Some((start, written)) => out.push(FileExtent {
                    logical: at << bits,
                    physical: start << bits,
                    len: n << bits,
                    unwritten: !written,
                    delayed: false,
                }),
                None => self.delayed_runs(at << bits, (at + n) << bits, &mut out),
            }
            at += n;
        }
        out.truncate(most);
        Ok(out)
    }

    fn delayed_runs(&self, from: u64, to: u64, out: &mut Vec<FileExtent>) {
        for (&index, _) in self.delayed.lock().range(from / PAGE..to.div_ceil(PAGE)) {
            let logical = index * PAGE;
            match out.last_mut() {
                Some(e) if e.delayed && e.logical + e.len == logical => e.len += PAGE,
                _ => out.push(FileExtent { logical, physical: 0, len: PAGE, unwritten: false, delayed: true }),
            }
        }
    }

    /// Changes the size.
    pub(crate) fn set_size(&self, cache: &FileCache, size: u64) -> Result<()> {
        if size > self.max_size() {
            return Err(Errno::EFBIG);
        }
        self.vol.writable()?;
        let _io = self.io.lock();
        let old = cache.size();
        if size < old {
            let bits = self.vol.geo.block_bits;
            if !size.is_multiple_of(1 << bits)
                && (self.lookup_block(size >> bits)?.at.is_some() || self.is_dirty_at(size))
            {
                // What is left of the last block must not come back when the file grows again.
                let until = old.min(size.next_multiple_of(PAGE));
                cache.zero(size, (until - size) as usize)?;
            }
            cache.truncate(size);
            return self.shrink(size);
        }
        cache.truncate(size);
        self.vol.transact(4, |tx| {
            self.change(tx, |core| {
                let t = now();
                core.set_mtime(t);
                core.set_ctime(t);
                if core.f().size() < size {
                    core.m().set_size(size);
                }
            })
        })
    }

    fn is_dirty_at(&self, offset: u64) -> bool {
        self.delayed.lock().contains_key(&(offset / PAGE)) || self.lazy.load(Ordering::Relaxed)
    }
}
