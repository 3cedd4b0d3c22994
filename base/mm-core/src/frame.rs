//! The memory map and the buddy allocator.
//!
//! Every frame of RAM has a [`PageInfo`] of 16 bytes in a [`MemMap`], which is a short list of regions (a region for each
//! run of RAM; holes cost nothing). Frames are named by number, physical address >> 12, in 32 bits (16 TiB).
//!
//! Free memory is kept in blocks of 2^order frames, orders 0 to [`MAX_ORDER`]. The first frame of a free block says so in
//! its `PageInfo` and links the block into its order's list, so that freeing is a constant number of steps: look at the
//! buddy's `PageInfo`, unlink it, go up one order, at most [`MAX_ORDER`] times. Nothing is ever searched.
//!
//! Large memory would take long to describe at boot, so whole blocks of the highest order can be given as *untouched*
//! ([`Buddy::add_untouched`]): nobody has written their `PageInfo` yet. That happens some blocks at a time when the lists
//! have nothing that fits. Blocks join only within a block of the highest order, so nothing ever looks into an untouched
//! one.
//!
//! # Invariants
//! - A frame is in exactly one state: free head, part of a free block (state `Tail`), or in use.
//! - `refs` of a free frame is 0. The allocator hands frames out with `refs` 1 in the first frame.
//! - All fields are atomics, so that a look at a neighbour's state needs no unsafe code; links and the free states are
//!   changed only by the [`Buddy`], whose owner serialises access.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

/// Blocks are up to `2^MAX_ORDER` frames: 4 MiB.
pub const MAX_ORDER: usize = 10;
/// Regions a [`MemMap`] can hold; firmware that lists more has its smallest ones left out.
pub const MAX_REGIONS: usize = 16;
const NIL: u32 = u32::MAX;
/// Frames in a block of the highest order.
pub const BLOCK: u32 = 1 << MAX_ORDER;
/// How many blocks are described at a time.
const GROW: u32 = 4;
const MAX_UNTOUCHED: usize = 32;

/// What a frame is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameState {
    /// Not RAM that the allocator may use.
    Reserved = 0,
    /// First frame of a free block.
    FreeHead = 1,
    /// Another frame of a free block.
    FreeTail = 2,
    /// Allocated.
    Used = 3,
    /// Allocated as a slab of the heap.
    Slab = 4,
    /// Allocated as a page table.
    Table = 5,
}

/// What is known of one frame.
#[derive(Debug)]
#[repr(C)]
pub struct PageInfo {
    refs: AtomicU32,
    /// Bits 0-7 the state, 8-15 the order, 16-31 for the owner.
    meta: AtomicU32,
    /// List links while free or while a slab; the owner's otherwise.
    next: AtomicU32,
    prev: AtomicU32,
}

impl PageInfo {
    /// A reserved frame.
    pub const fn new() -> Self {
        PageInfo {
            refs: AtomicU32::new(0),
            meta: AtomicU32::new(0),
            next: AtomicU32::new(NIL),
            prev: AtomicU32::new(NIL),
        }
    }

    /// Makes it a reserved frame's, whatever it was before.
    pub fn reset(&self) {
        self.refs.store(0, Ordering::Relaxed);
        self.meta.store(0, Ordering::Relaxed);
        self.next.store(NIL, Ordering::Relaxed);
        self.prev.store(NIL, Ordering::Relaxed);
    }

    /// The reference count.
    #[inline(always)]
    pub fn refs(&self) -> &AtomicU32 {
        &self.refs
    }

    /// The two words that the frame's owner may use while it is allocated.
    #[inline(always)]
    pub fn words(&self) -> (&AtomicU32, &AtomicU32) {
        (&self.next, &self.prev)
    }

    /// The state.
    pub fn state(&self) -> FrameState {
        match self.meta.load(Ordering::Relaxed) as u8 {
            1 => FrameState::FreeHead,
            2 => FrameState::FreeTail,
            3 => FrameState::Used,
            4 => FrameState::Slab,
            5 => FrameState::Table,
            _ => FrameState::Reserved,
        }
    }

    /// Marks an allocated frame with what it is used for and 16 bits of the owner's.
    #[inline]
    pub fn set_use(&self, state: FrameState, owner: u16) {
        self.meta.store(state as u32 | (owner as u32) << 16, Ordering::Relaxed);
    }

    /// The 16 bits given to [`PageInfo::set_use`].
    #[inline]
    pub fn owner(&self) -> u16 {
        (self.meta.load(Ordering::Relaxed) >> 16) as u16
    }

    fn set(&self, state: FrameState, order: usize) {
        self.meta.store(state as u32 | (order as u32) << 8, Ordering::Relaxed);
    }

    fn is_free_block(&self, order: usize) -> bool {
        self.meta.load(Ordering::Relaxed) == FrameState::FreeHead as u32 | (order as u32) << 8
    }
}

impl Default for PageInfo {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Clone, Copy, Debug)]
struct Region {
    base: u32,
    info: &'static [PageInfo],
}

/// The [`PageInfo`] of every frame. Built at boot, immutable after.
#[derive(Debug)]
pub struct MemMap {
    regions: [Region; MAX_REGIONS],
    len: usize,
}

impl MemMap {
    /// Without regions.
    pub const fn new() -> Self {
        MemMap { regions: [Region { base: 0, info: &[] }; MAX_REGIONS], len: 0 }
    }

    /// Adds the frames `base..base + info.len()`, all reserved until [`Buddy::add_range`]. Returns false if there are too
    /// many regions.
    pub fn add_region(&mut self, base: u32, info: &'static [PageInfo]) -> bool {
        if self.len == MAX_REGIONS {
            return false;
        }
        self.regions[self.len] = Region { base, info };
        self.len += 1;
        true
    }

    /// What is known of `frame`; `None` if it is not RAM.
    #[inline(always)]
    pub fn get(&self, frame: u32) -> Option<&'static PageInfo> {
        // One region is the rule; it is found without the loop.
        let first = &self.regions[0];
        if let Some(info) = first.info.get(frame.wrapping_sub(first.base) as usize) {
            return Some(info);
        }
        self.get_slow(frame)
    }

    #[cold]
    #[inline(never)]
    fn get_slow(&self, frame: u32) -> Option<&'static PageInfo> {
        self.regions[..self.len].iter().find_map(|r| r.info.get(frame.wrapping_sub(r.base) as usize))
    }

    /// The frame number ranges of all regions.
    pub fn regions(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.regions[..self.len].iter().map(|r| r.base..r.base + r.info.len() as u32)
    }
}

impl Default for MemMap {
    fn default() -> Self {
        Self::new()
    }
}

/// The buddy allocator's lists. Every call is given the [`MemMap`] that all calls before were given.
#[derive(Debug)]
pub struct Buddy {
    heads: [u32; MAX_ORDER + 1],
    counts: [usize; MAX_ORDER + 1],
    free: usize,
    total: usize,
    /// Ranges of whole blocks that are free and not described yet.
    untouched: [(u32, u32); MAX_UNTOUCHED],
    untouched_len: usize,
}

impl Buddy {
    /// Without memory.
    pub const fn new() -> Self {
        Buddy {
            heads: [NIL; MAX_ORDER + 1],
            counts: [0; MAX_ORDER + 1],
            free: 0,
            total: 0,
            untouched: [(0, 0); MAX_UNTOUCHED],
            untouched_len: 0,
        }
    }

    /// Frames that are free.
    pub fn free_frames(&self) -> usize {
        self.free
    }

    /// Frames that were ever given to the allocator.
    pub fn total_frames(&self) -> usize {
        self.total
    }

    /// Free blocks of `order`.
    pub fn free_blocks(&self, order: usize) -> usize {
        self.counts[order]
    }

    /// Gives reserved frames to the allocator. Frames outside the map are skipped.
    pub fn add_range(&mut self, map: &MemMap, range: Range<u32>) {
        let mut at = range.start;
        while at < range.end {
            let Some(info) = map.get(at) else {
                at += 1;
                continue;
            };
            if info.state() != FrameState::Reserved {
                at += 1;
                continue;
            }
            // The largest aligned block that fits and lies in one region.
            let mut order = (at.trailing_zeros() as usize).min(MAX_ORDER);
            while order > 0 && !(at + (1 << order) <= range.end && Self::whole(map, at, order)) {
                order -= 1;
            }
            self.total += 1 << order;
            self.free(map, at, order);
            at += 1 << order;
        }
    }

    /// Gives frames whose [`PageInfo`] may hold anything: whole blocks of the highest order within one region of the map.
    pub fn add_untouched(&mut self, map: &MemMap, range: Range<u32>) {
        debug_assert!(range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK));
        if range.is_empty() {
            return;
        }
        self.total += range.len();
        self.free += range.len();
        if self.untouched_len == MAX_UNTOUCHED {
            return range.step_by(BLOCK as usize).for_each(|b| self.describe(map, b));
        }
        self.untouched[self.untouched_len] = (range.start, range.end);
        self.untouched_len += 1;
    }

    /// Makes an untouched block an ordinary free one.
    fn describe(&mut self, map: &MemMap, block: u32) {
        for frame in block..block + BLOCK {
            if let Some(info) = map.get(frame) {
                info.reset();
            }
        }
        self.link(map, block, MAX_ORDER);
    }

    /// Describes some more blocks; false if there are none.
    #[cold]
    fn grow(&mut self, map: &MemMap) -> bool {
        let Some(last) = self.untouched_len.checked_sub(1) else { return false };
        let (start, end) = self.untouched[last];
        let from = end.saturating_sub(GROW * BLOCK).max(start);
        self.untouched[last].1 = from;
        if from == start {
            self.untouched_len = last;
        }
        (from..end).step_by(BLOCK as usize).for_each(|b| self.describe(map, b));
        true
    }

    fn whole(map: &MemMap, at: u32, order: usize) -> bool {
        (at..at + (1 << order)).all(|f| map.get(f).is_some_and(|i| i.state() == FrameState::Reserved))
    }

    /// Takes a block of `2^order` frames; its first frame's number. The first frame has one reference.
    #[inline]
    pub fn alloc(&mut self, map: &MemMap, order: usize) -> Option<u32> {
        let from = loop {
            match (order..=MAX_ORDER).find(|&o| self.heads[o] != NIL) {
                Some(o) => break o,
                None if order <= MAX_ORDER && self.grow(map) => {}
                None => return None,
            }
        };
        let frame = self.heads[from];
        let info = map.get(frame)?;
        self.unlink(map, info, from);
        for o in (order..from).rev() {
            self.link(map, frame + (1 << o), o);
        }
        self.free -= 1 << order;
        info.set(FrameState::Used, order);
        info.refs.store(1, Ordering::Relaxed);
        Some(frame)
    }

    /// Gives a block back, joining it with its buddy while that is free as well.
    #[inline]
    pub fn free(&mut self, map: &MemMap, frame: u32, order: usize) {
        self.free += 1 << order;
        let (mut frame, mut order) = (frame, order);
        while order < MAX_ORDER {
            let buddy = frame ^ (1 << order);
            let Some(info) = map.get(buddy) else { break };
            if !info.is_free_block(order) {
                break;
            }
            self.unlink(map, info, order);
            info.set(FrameState::FreeTail, 0);
            frame = frame.min(buddy);
            order += 1;
        }
        self.link(map, frame, order);
    }

    fn link(&mut self, map: &MemMap, frame: u32, order: usize) {
        let Some(info) = map.get(frame) else { return };
        let old = self.heads[order];
        info.set(FrameState::FreeHead, order);
        info.refs.store(0, Ordering::Relaxed);
        info.next.store(old, Ordering::Relaxed);
        info.prev.store(NIL, Ordering::Relaxed);
        if let Some(next) = (old != NIL).then(|| map.get(old)).flatten() {
            next.prev.store(frame, Ordering::Relaxed);
        }
        self.heads[order] = frame;
        self.counts[order] += 1;
    }

    fn unlink(&mut self, map: &MemMap, info: &PageInfo, order: usize) {
        let (next, prev) = (info.next.load(Ordering::Relaxed), info.prev.load(Ordering::Relaxed));
        if prev == NIL {
            self.heads[order] = next;
        } else if let Some(p) = map.get(prev) {
            p.next.store(next, Ordering::Relaxed);
        }
        if next != NIL
            && let Some(n) = map.get(next)
        {
            n.prev.store(prev, Ordering::Relaxed);
        }
        self.counts[order] -= 1;
    }
}

impl Default for Buddy {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::boxed::Box;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    fn map(regions: &[(u32, usize)]) -> MemMap {
        let mut m = MemMap::new();
        for &(base, len) in regions {
            let info: Vec<PageInfo> = (0..len).map(|_| PageInfo::new()).collect();
            assert!(m.add_region(base, Box::leak(info.into_boxed_slice())));
        }
        m
    }

    #[test]
    fn page_info_is_16_bytes() {
        assert_eq!(size_of::<PageInfo>(), 16);
    }

    #[test]
    fn whole_memory_coalesces_again() {
        let m = map(&[(0x40000, 4096), (0x90000, 1024)]);
        let mut b = Buddy::new();
        b.add_range(&m, 0x40003..0x41000);
        b.add_range(&m, 0x90000..0x90400);
        let before: Vec<usize> = (0..=MAX_ORDER).map(|o| b.free_blocks(o)).collect();
        let total = b.free_frames();
        assert_eq!(total, 4096 - 3 + 1024);
        let mut got = Vec::new();
        while let Some(f) = b.alloc(&m, 0) {
            got.push(f);
        }
        assert_eq!(got.len(), total);
        assert_eq!(b.free_frames(), 0);
        for f in got {
            b.free(&m, f, 0);
        }
        assert_eq!(before, (0..=MAX_ORDER).map(|o| b.free_blocks(o)).collect::<Vec<_>>());
    }

    #[test]
    fn reserved_frames_are_never_handed_out() {
        let m = map(&[(0, 64)]);
        let mut b = Buddy::new();
        b.add_range(&m, 0..10);
        b.add_range(&m, 20..64);
        while let Some(f) = b.alloc(&m, 1) {
            assert!(f + 1 < 10 || (20..64).contains(&f));
        }
    }

    #[test]
    fn untouched_blocks_are_described_when_wanted() {
        let m = map(&[(0x400, 20 * BLOCK as usize)]);
        for f in 0x400..0x400 + 20 * BLOCK {
            // What a machine's RAM may hold.
            let info = m.get(f).unwrap();
            info.set(FrameState::FreeHead, 3);
            info.refs.store(77, Ordering::Relaxed);
        }
        let mut b = Buddy::new();
        b.add_untouched(&m, 0x400..0x400 + 12 * BLOCK);
        b.add_untouched(&m, 0x400 + 13 * BLOCK..0x400 + 20 * BLOCK);
        let total = 19 * BLOCK as usize;
        assert_eq!((b.free_frames(), b.total_frames()), (total, total));
        let mut got = Vec::new();
        while let Some(f) = b.alloc(&m, got.len() % 3) {
            got.push((f, got.len() % 3));
            assert_eq!(m.get(f).unwrap().refs().load(Ordering::Relaxed), 1);
        }
        while let Some(f) = b.alloc(&m, 0) {
            got.push((f, 0));
        }
        assert_eq!(b.free_frames(), 0);
        assert_eq!(got.iter().map(|g| 1usize << g.1).sum::<usize>(), total);
        assert!(got.iter().all(|g| !(0x400 + 12 * BLOCK..0x400 + 13 * BLOCK).contains(&g.0)));
        got.iter().for_each(|&(f, o)| b.free(&m, f, o));
        assert_eq!((b.free_frames(), b.free_blocks(MAX_ORDER)), (total, 19));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Blocks never overlap, are aligned, and everything comes back.
        #[test]
        fn behaves_as_a_set_of_frames(ops in proptest::collection::vec((0usize..8, any::<u16>(), any::<bool>()), 1..300)) {
            let m = map(&[(0x100, 700), (0x1000, 512)]);
            let mut b = Buddy::new();
            b.add_range(&m, 0x105..0x100 + 700);
            b.add_range(&m, 0x1000..0x1200);
            let total = b.free_frames();
            let mut live: BTreeMap<u32, usize> = BTreeMap::new();
            for (order, pick, free) in ops {
                if free && !live.is_empty() {
                    let key = *live.keys().nth(pick as usize % live.len()).unwrap();
                    let order = live.remove(&key).unwrap();
                    b.free(&m, key, order);
                } else if let Some(f) = b.alloc(&m, order) {
                    prop_assert_eq!(f % (1 << order), 0);
                    let end = f + (1 << order);
                    if let Some((&s, &o)) = live.range(..end).next_back() {
                        prop_assert!(s + (1 << o) <= f);
                    }
                    prop_assert!((0x105..0x100 + 700).contains(&f) || (0x1000..0x1200).contains(&f));
                    live.insert(f, order);
                }
                let used: usize = live.values().map(|o| 1usize << o).sum();
                prop_assert_eq!(b.free_frames() + used, total);
            }
            for (f, o) in live {
                b.free(&m, f, o);
            }
            prop_assert_eq!(b.free_frames(), total);
        }
    }
}
