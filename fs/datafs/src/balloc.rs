//! Allocating blocks.
//!
//! Each group has, beside its bitmap on disk, one in memory, loaded when first needed: a set bit there means "not to be
//! had", because it is in use, or picked for data that is being written but not yet mapped ([`Volume::pick`]), or freed by
//! a transaction that is not committed yet. The bitmap on disk changes only in transactions ([`Volume::take`],
//! [`Volume::free`]).
//!
//! A run is looked for at the goal, then in the goal's group, then in the groups behind it: first for the whole length, then
//! for the longest run there is. Inodes of different groups thus allocate in different groups, under different locks.
//!
//! # Counts
//! `free_blocks` counts clear bits of the maps in memory (before a map is loaded, the descriptor's count stands for it).
//! Dirty pages hold promises against it; `kept_back` blocks are left for the metadata that keeping promises needs.

use crate::bits;
use crate::layout::group::{BLOCK_UNINIT, GroupDesc};
use crate::meta::{Look, Tx};
use crate::volume::{Freed, Volume};
use abi::{Errno, Result};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

/// A group's changing part.
pub(crate) struct GroupState {
    pub desc: GroupDesc,
    /// What is not to be had; `None` before the first use.
    map: Option<Box<[u64]>>,
    /// Clear bits of `map`.
    free: u32,
    /// No run is longer than this.
    longest: u32,
    /// The bitmap is damaged: nothing is taken or freed here.
    broken: bool,
    /// Where the search for a free inode begins.
    pub next_inode: u32,
}

impl GroupState {
    pub fn new(desc: GroupDesc) -> GroupState {
        let free = desc.free_blocks();
        GroupState { desc, map: None, free, longest: free, broken: false, next_inode: 0 }
    }
}

/// How the search has progressed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Whole,
    Half,
    Any,
}

impl Volume {
    /// The block bitmap of a group that was never initialised: its own metadata, and what lies behind the end.
    fn fresh_bitmap(&self, group: u32) -> Vec<u8> {
        let mut b = alloc::vec![0; self.geo.block_size];
        let (start, len) = (self.geo.group_start(group), self.geo.group_len(group) as usize);
        bits::bytes::fill(&mut b, len, self.geo.block_size * 8 - len, true);
        for (at, n) in self.zones_within(start, len as u64) {
            bits::bytes::fill(&mut b, (at - start) as usize, n as usize, true);
        }
        b
    }

    /// The parts of the fixed metadata within a range.
    fn zones_within(&self, start: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let end = start + len;
        let first = self.zones.partition_point(|z| z.0 + z.1 <= start);
        self.zones[first..].iter().take_while(move |z| z.0 < end).map(move |z| {
            let a = z.0.max(start);
            (a, (z.0 + z.1).min(end) - a)
        })
    }

    fn bitmap_bytes(&self) -> usize {
        (self.geo.blocks_per_group / 8) as usize
    }

    fn bitmap_checksum(&self, bitmap: &[u8]) -> u32 {
        let crc = crate::crc::crc32c(self.seed, &bitmap[..self.bitmap_bytes().min(bitmap.len())]);
        if self.geo.desc_size >= crate::layout::group::SIZE { crc } else { crc & 0xffff }
    }

    fn load_map(&self, group: u32, state: &mut GroupState) -> Result<()> {
        if state.broken {
            return Err(Errno::EUCLEAN);
        }
        if state.map.is_some() {
            return Ok(());
        }
        let len = self.geo.group_len(group) as usize;
        let bytes = if state.desc.flags.get() & BLOCK_UNINIT != 0 && self.geo.group_csum() {
            self.fresh_bitmap(group)
        } else {
            self.store.read(self.groups[group as usize].block_bitmap)?.copy()
        };
        let uninit = state.desc.flags.get() & BLOCK_UNINIT != 0;
        if !uninit && self.geo.metadata_csum() && self.bitmap_checksum(&bytes) != state.desc.block_bitmap_csum() {
            state.broken = true;
            return Err(self.corrupt(0, &alloc::format!("group {group}: wrong checksum of the block bitmap")));
        }
        let mut map: Box<[u64]> = bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
        let total = map.len() * 64;
        bits::fill(&mut map, len, total - len, true);
        let free = map.iter().map(|w| w.count_zeros()).sum::<u32>();
        let start = self.geo.group_start(group);
        let fixed = self
            .zones_within(start, len as u64)
            .all(|(at, n)| bits::all(&map, (at - start) as usize, n as usize, true));
        if free != state.desc.free_blocks() || !fixed {
            state.broken = true;
            return Err(self.corrupt(0, &alloc::format!("group {group}: the block bitmap contradicts the descriptor")));
        }
        state.map = Some(map);
        state.free = free;
        state.longest = free;
        Ok(())
    }

    /// Promises `n` blocks to somebody who will need them. `ENOSPC`.
    pub fn promise(&self, n: i64) -> Result<()> {
        let mut now = self.promised.load(Ordering::Relaxed);
        loop {
            if n > 0 && self.free_blocks.load(Ordering::Relaxed) - now - self.kept_back < n {
                return Err(Errno::ENOSPC);
            }
            match self.promised.compare_exchange_weak(now, now + n, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => now = other,
            }
        }
    }

    /// Ends a promise.
    pub fn release_promise(&self, n: i64) {
        self.promised.fetch_sub(n, Ordering::Relaxed);
    }

    /// Picks up to `want` free blocks in a run, near `goal`: nobody else gets them, but nothing on disk says so yet.
    pub fn pick(&self, goal: u64, want: u32) -> Result<(u64, u32)> {
        self.settle_freed();
        let goal = if self.geo.valid_run(goal, 1) { goal } else { self.geo.first_data_block + 1 };
        let (home, offset) = self.geo.split_block(goal);
        let want = want.clamp(1, 1 << 15);
        for pass in [Pass::Whole, Pass::Half, Pass::Any] {
            let least = match pass {
                Pass::Whole => want,
                Pass::Half => want.div_ceil(4),
                Pass::Any => 1,
            };
            for n in 0..self.geo.groups {
                let group = (home + n) % self.geo.groups;
                let from = if n == 0 { offset as usize } else { 0 };
                if let Some(run) = self.pick_in(group, from, want, least)? {
                    return Ok(run);
                }
            }
            if least == 1 {
                break;
            }
        }
        Err(Errno::ENOSPC)
    }

    fn pick_in(&self, group: u32, from: usize, want: u32, least: u32) -> Result<Option<(u64, u32)>> {
        let mut state = self.groups[group as usize].state.lock();
        if state.free < least || state.longest < least {
            return Ok(None);
        }
        match self.load_map(group, &mut state) {
            Err(Errno::EUCLEAN) => return Ok(None),
            other => other?,
        }
        let end = self.geo.group_len(group) as usize;
        let Some(map) = &mut state.map else { return Ok(None) };
        let mut run = bits::find_run(map, from, end, want as usize);
        if run.1 < want as usize && from > 0 {
            let whole = bits::find_run(map, 0, end, want as usize);
            if whole.1 > run.1 {
                run = whole;
            }
            if run.1 < want as usize {
                state.longest = state.longest.min(run.1 as u32);
            }
        } else if run.1 < want as usize {
            state.longest = state.longest.min(run.1 as u32);
        }
        let (at, len) = run;
        if (len as u32) < least || len == 0 {
            return Ok(None);
        }
        if let Some(map) = &mut state.map {
            bits::fill(map, at, len, true);
        }
        state.free -= len as u32;
        self.free_blocks.fetch_sub(len as i64, Ordering::Relaxed);
        Ok(Some((self.geo.group_start(group) + at as u64, len as u32)))
    }

    /// Gives picked blocks back (or blocks whose freeing has become durable).
    pub fn unpick(&self, start: u64, len: u32) {
        let (mut start, mut len) = (start, len);
        while len > 0 {
            let (group, at) = self.geo.split_block(start);
            let Some(g) = self.groups.get(group as usize) else { return };
            let n = len.min(self.geo.blocks_per_group - at);
            let mut state = g.state.lock();
            if let Some(map) = &mut state.map {
                bits::fill(map, at as usize, n as usize, false);
                state.free += n;
                state.longest = self.geo.blocks_per_group;
                self.free_blocks.fetch_add(i64::from(n), Ordering::Relaxed);
            }
            drop(state);
            start += u64::from(n);
            len -= n;
        }
    }

    /// Changes the bitmap on disk and the descriptor; `set`: the blocks come into use.
    fn change_bitmap(&self, tx: &Tx, group: u32, at: u32, n: u32, set: bool) -> Result<()> {
        let g = self.groups.get(group as usize).ok_or(Errno::EUCLEAN)?;
        let mut state = g.state.lock();
        self.load_map(group, &mut state)?;
        let uninit = state.desc.flags.get() & BLOCK_UNINIT != 0 && self.geo.group_csum();
        let buf = if uninit { tx.create(g.block_bitmap)? } else { self.store.read(g.block_bitmap)? };
        let fresh = uninit.then(|| self.fresh_bitmap(group));
        let (at, len) = (at as usize, n as usize);
        let ok = match &fresh {
            Some(f) => bits::bytes::all(f, at, len, !set),
            None => buf.with(|b| bits::bytes::all(b, at, len, !set)),
        };
        if !ok {
            return Err(
                self.corrupt(0, &alloc::format!("group {group}: blocks {} twice", if set { "taken" } else { "freed" }))
            );
        }
        let crc = tx.write(&buf, |b| {
            if let Some(f) = &fresh {
                b.copy_from_slice(f);
            }
            bits::bytes::fill(b, at, len, set);
            if self.geo.metadata_csum() { self.bitmap_checksum(b) } else { 0 }
        })?;
        let free = state.desc.free_blocks();
        let flags = state.desc.flags.get() & !BLOCK_UNINIT;
        state.desc.flags.set(flags);
        state.desc.set_free_blocks(if set { free.saturating_sub(n) } else { free + n });
        if self.geo.metadata_csum() {
            state.desc.set_block_bitmap_csum(crc);
        }
        self.write_desc(tx, group, &mut state.desc)
    }

    fn change_run(&self, tx: &Tx, start: u64, len: u32, set: bool) -> Result<()> {
        let (mut start, mut len) = (start, len);
        while len > 0 {
            let (group, at) = self.geo.split_block(start);
            let n = len.min(self.geo.blocks_per_group - at);
            self.change_bitmap(tx, group, at, n, set)?;
            start += u64::from(n);
            len -= n;
        }
        Ok(())
    }

    /// Makes picked blocks used on disk.
    pub fn take(&self, tx: &Tx, start: u64, len: u32) -> Result<()> {
        self.change_run(tx, start, len, true)
    }

    /// Frees blocks: on disk in this transaction, for others once it is committed.
    pub fn free(&self, tx: &Tx, start: u64, len: u32) -> Result<()> {
        if !self.valid_data(start, len) {
            return Err(self.corrupt(0, "freeing blocks that no file may have"));
        }
        self.change_run(tx, start, len, false)?;
        let mut pending = self.pending.lock();
        let merged = match pending.back_mut() {
            Some(f) if f.tid == tx.tid() && f.start + u64::from(f.len) == start => {
                f.len += len;
                true
            }
            _ => false,
        };
        if !merged {
            pending.push_back(Freed { tid: tx.tid(), start, len });
        }
        self.pending_blocks.fetch_add(i64::from(len), Ordering::Relaxed);
        Ok(())
    }

    /// Makes blocks available whose freeing has been committed, and tells the device if that was asked for.
    pub fn settle_freed(&self) {
        if self.pending_blocks.load(Ordering::Relaxed) == 0 {
            return;
        }
        let committed = self.store.committed();
        loop {
            let next = {
                let mut pending = self.pending.lock();
                match pending.front() {
                    Some(f) if f.tid <= committed => pending.pop_front(),
                    _ => None,
                }
            };
            let Some(f) = next else { return };
            self.pending_blocks.fetch_sub(i64::from(f.len), Ordering::Relaxed);
            if self.options.discard() && self.device.geometry().discard {
                let shift = self.geo.block_bits - 9;
                // A device that cannot is no error: discarding is a hint.
                let _ = block::discard(&*self.device, f.start << shift, u64::from(f.len) << shift);
            }
            self.unpick(f.start, f.len);
        }
    }

    /// Tells the device of the free runs of at least `least` blocks within `range` (blocks); how many blocks that were. A
    /// group's allocations wait meanwhile. `EOPNOTSUPP` if the device has no use for it.
    pub fn trim(&self, range: Range<u64>, least: u32) -> Result<u64> {
        if !self.device.geometry().discard {
            return Err(Errno::EOPNOTSUPP);
        }
        self.settle_freed();
        let mut told = 0;
        for (group, g) in (0..).zip(&self.groups) {
            let start = self.geo.group_start(group);
            let len = u64::from(self.geo.group_len(group));
            let (from, to) = (range.start.max(start), range.end.min(start + len));
            if from >= to {
                continue;
            }
            let mut state = g.state.lock();
            self.load_map(group, &mut state)?;
            let Some(map) = &state.map else { continue };
            let (mut at, end) = ((from - start) as usize, (to - start) as usize);
            while at < end {
                let first = bits::next(map, at, end, false);
                at = bits::next(map, first, end, true);
                let n = (at - first) as u64;
                if n >= u64::from(least.max(1)) {
                    let shift = self.geo.block_bits - 9;
                    block::discard(&*self.device, (start + first as u64) << shift, n << shift)?;
                    told += n;
                }
            }
        }
        Ok(told)
    }

    /// A block for names, a link's text or attributes: as [`Volume::alloc_meta`], but nothing that was promised to others or is
    /// kept back for their mapping.
    pub fn alloc_named(&self, tx: &Tx, goal: u64) -> Result<u64> {
        self.settle_freed();
        self.promise(1)?;
        let got = self.alloc_meta(tx, goal);
        self.release_promise(1);
        got
    }

    /// A block for metadata, in use from this transaction on. It must then be made with [`Tx::create`]. Mapping what was
    /// promised must not fail, so it may be one of those kept back for that.
    pub fn alloc_meta(&self, tx: &Tx, goal: u64) -> Result<u64> {
        let (at, _) = self.pick(goal, 1)?;
        if let Err(e) = self.take(tx, at, 1) {
            self.unpick(at, 1);
            return Err(e);
        }
        Ok(at)
    }

    /// Frees a block of metadata.
    pub fn free_meta(&self, tx: &Tx, number: u64) -> Result<()> {
        tx.forget(number)?;
        self.free(tx, number, 1)
    }
}
