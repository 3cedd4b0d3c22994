//! A file's index: page numbers to pages, with marks that are found in order.
//!
//! Leaves of 32 slots in an ordered map: neighbours share a leaf, so ranges are walked at a leaf's speed and a small file
//! costs one. *Dirty* and *writeback* are bits of the leaf. The writeback bits may be stale (an end of I/O takes no lock):
//! who finds one looks at the page.

use crate::page::{CachePage, WRITEBACK};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::ops::Range;

const SLOTS: u64 = 32;

#[derive(Debug, Default)]
struct Leaf {
    slots: Box<[Option<Arc<CachePage>>; SLOTS as usize]>,
    present: u32,
    dirty: u32,
    writeback: u32,
}

/// Which pages to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Present,
    Dirty,
    Writeback,
}

/// The index.
#[derive(Debug, Default)]
pub(crate) struct Index {
    leaves: BTreeMap<u64, Leaf>,
    len: usize,
    dirty: usize,
}

fn split(index: u64) -> (u64, usize) {
    (index / SLOTS, (index % SLOTS) as usize)
}

/// Bits `from..to` of a word.
fn bits(from: u64, to: u64) -> u32 {
    let upto = |n: u64| if n >= SLOTS { u32::MAX } else { (1u32 << n) - 1 };
    upto(to) & !upto(from)
}

impl Index {
    /// How many pages there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many are dirty.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty
    }

    pub(crate) fn get(&self, index: u64) -> Option<&Arc<CachePage>> {
        let (leaf, slot) = split(index);
        self.leaves.get(&leaf)?.slots[slot].as_ref()
    }

    /// The pages at `index` and behind it, `count` at most, up to the first vacant place or the end of a leaf.
    pub(crate) fn stretch(&self, index: u64, count: usize) -> impl Iterator<Item = &Arc<CachePage>> {
        let (leaf, slot) = split(index);
        let slots = self.leaves.get(&leaf).map_or(&[][..], |l| &l.slots[slot..]);
        slots.iter().take(count).map_while(Option::as_ref)
    }

    /// Puts `page` at its place, which is vacant.
    pub(crate) fn insert(&mut self, page: Arc<CachePage>) {
        let (leaf, slot) = split(page.index());
        let leaf = self.leaves.entry(leaf).or_default();
        leaf.present |= 1 << slot;
        self.len += usize::from(leaf.slots[slot].replace(page).is_none());
    }

    /// Takes the page out, with its marks; says whether it was dirty.
    pub(crate) fn remove(&mut self, index: u64) -> Option<(Arc<CachePage>, bool)> {
        let (key, slot) = split(index);
        let leaf = self.leaves.get_mut(&key)?;
        let page = leaf.slots[slot].take()?;
        let bit = 1 << slot;
        let was_dirty = leaf.dirty & bit != 0;
        leaf.present &= !bit;
        leaf.dirty &= !bit;
        leaf.writeback &= !bit;
        if leaf.present == 0 {
            self.leaves.remove(&key);
        }
        self.len -= 1;
        self.dirty -= usize::from(was_dirty);
        Some((page, was_dirty))
    }

    /// Marks a present page dirty, or not.
    pub(crate) fn mark_dirty(&mut self, index: u64, dirty: bool) {
        let (key, slot) = split(index);
        let Some(leaf) = self.leaves.get_mut(&key) else { return };
        let bit = 1 << slot;
        let was = leaf.dirty & bit != 0;
        if dirty && !was {
            leaf.dirty |= bit;
            self.dirty += 1;
        } else if !dirty && was {
            leaf.dirty &= !bit;
            self.dirty -= 1;
        }
    }

    /// Marks a present page as handed out for writing.
    pub(crate) fn mark_writeback(&mut self, index: u64) {
        let (key, slot) = split(index);
        if let Some(leaf) = self.leaves.get_mut(&key) {
            leaf.writeback |= 1 << slot;
        }
    }

    /// The first page in `range` with the mark.
    pub(crate) fn next(&mut self, range: Range<u64>, tag: Tag) -> Option<&Arc<CachePage>> {
        let at = self.next_index(range, tag)?;
        self.get(at)
    }

    fn next_index(&mut self, range: Range<u64>, tag: Tag) -> Option<u64> {
        if range.start >= range.end {
            return None;
        }
        let last = (range.end - 1) / SLOTS;
        for (&key, leaf) in self.leaves.range_mut(range.start / SLOTS..=last) {
            let base = key * SLOTS;
            let within = bits(range.start.saturating_sub(base), range.end - base);
            if tag == Tag::Writeback {
                let slots = &leaf.slots;
                let stale = |slot: &usize| slots[*slot].as_ref().is_none_or(|p| !p.has(WRITEBACK));
                let all = leaf.writeback & within;
                let gone = (0..SLOTS as usize).filter(|s| all & (1 << s) != 0).filter(stale);
                leaf.writeback &= !gone.fold(0, |mask, s| mask | (1 << s));
            }
            let word = match tag {
                Tag::Present => leaf.present,
                Tag::Dirty => leaf.dirty,
                Tag::Writeback => leaf.writeback,
            };
            let hit = word & within;
            if hit != 0 {
                return Some(base + u64::from(hit.trailing_zeros()));
            }
        }
        None
    }

    /// Where the stretch without pages that begins at `from` ends; at most `to`.
    pub(crate) fn next_hole_end(&self, from: u64, to: u64) -> u64 {
        if from >= to {
            return from;
        }
        for (&key, leaf) in self.leaves.range(from / SLOTS..=(to - 1) / SLOTS) {
            let base = key * SLOTS;
            let hit = leaf.present & bits(from.saturating_sub(base), SLOTS);
            if hit != 0 {
                return (base + u64::from(hit.trailing_zeros())).min(to);
            }
        }
        to
    }
}
