//! Ordered maps of address ranges.
//!
//! An [`AreaMap`] is a sorted vector of disjoint, page-aligned, half-open ranges with a value each. A vector and not a
//! tree: lookups (every page fault) are a binary search over a compact array, forking clones one allocation, and inserts
//! move at most some thousands of small entries, which measures below a tree's rebalancing up to there. It is sorted
//! downwards, since mappings are placed below each other: a new one goes near the end, however many there are. Neighbours with
//! values that join ([`Area::joins`]) are merged, so that a program that maps page by page keeps one area.
//!
//! # Invariants
//! Areas are sorted, disjoint, not empty. All changes are by whole operations: none fails half-way.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::iter::Rev;
use core::ops::Range;
use core::slice;

/// What an area maps.
pub trait Area: Clone {
    /// The value of the part that starts `bytes` further on.
    fn advanced(&self, bytes: usize) -> Self;
    /// Whether `next`, which starts where this ends, `len` bytes after its start, is the same mapping continued.
    fn joins(&self, next: &Self, len: usize) -> bool;
    /// How many bytes below the area's start must stay free (stack guard).
    fn guard(&self) -> usize {
        0
    }
}

/// One range and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T> {
    /// First address.
    pub start: usize,
    /// First address after.
    pub end: usize,
    /// What is there.
    pub value: T,
}

impl<T> Entry<T> {
    /// Bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// The addresses.
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// The map.
#[derive(Clone, Debug, Default)]
pub struct AreaMap<T> {
    /// The highest first.
    areas: Vec<Entry<T>>,
    searched: Option<Searched>,
}

/// What the last search from the top found out: above `found` nothing has room for `len` bytes aligned to `align`.
#[derive(Clone, Copy, Debug)]
struct Searched {
    len: usize,
    align: usize,
    end: usize,
    found: usize,
}

impl<T: Area> AreaMap<T> {
    /// Nothing mapped.
    pub const fn new() -> Self {
        AreaMap { areas: Vec::new(), searched: None }
    }

    /// Number of areas.
    pub fn len(&self) -> usize {
        self.areas.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }

    /// Makes room for `more` areas, so that changes that add no more need no memory.
    pub fn try_reserve(&mut self, more: usize) -> Result<(), TryReserveError> {
        // Twice as many may be more than there is in one piece.
        self.areas
            .try_reserve(more)
            .or_else(|_| self.areas.try_reserve_exact(more + self.areas.len() / 8))
            .or_else(|_| self.areas.try_reserve_exact(more + 64))
    }

    /// All areas in order of address.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry<T>> {
        self.areas.iter().rev()
    }

    /// How many areas end above `addr`; the lowest of them is the last one of as many.
    #[inline]
    fn count_above(&self, addr: usize) -> usize {
        self.areas.partition_point(|a| a.end > addr)
    }

    /// How many areas start at `addr` or above.
    #[inline]
    fn count_from(&self, addr: usize) -> usize {
        self.areas.partition_point(|a| a.start >= addr)
    }

    /// The area that holds `addr`.
    #[inline]
    pub fn find(&self, addr: usize) -> Option<&Entry<T>> {
        self.find_from(addr).filter(|a| a.start <= addr)
    }

    /// The first area that ends above `addr` (it may start above it too).
    #[inline]
    pub fn find_from(&self, addr: usize) -> Option<&Entry<T>> {
        self.areas.get(self.count_above(addr).wrapping_sub(1))
    }

    /// The last area that ends at or below `addr`.
    pub fn find_below(&self, addr: usize) -> Option<&Entry<T>> {
        self.areas.get(self.count_above(addr))
    }

    /// The areas that overlap `range`, in order of address.
    pub fn overlapping(&self, range: Range<usize>) -> Rev<slice::Iter<'_, Entry<T>>> {
        self.areas[self.indices(&range)].iter().rev()
    }

    /// Where the areas that overlap `range` are.
    fn indices(&self, range: &Range<usize>) -> Range<usize> {
        let from = self.count_from(range.end);
        from..self.count_above(range.start).max(from)
    }

    /// Whether every address of `range` is in some area.
    pub fn covers(&self, range: Range<usize>) -> bool {
        let mut at = range.start;
        for a in self.overlapping(range.clone()) {
            if a.start > at {
                return false;
            }
            at = a.end;
        }
        at >= range.end
    }

    /// Whether `range` is free.
    pub fn is_free(&self, range: Range<usize>) -> bool {
        self.indices(&range).is_empty()
    }

    /// The highest `len` bytes, aligned to `align` (a power of two), that are free within `within` and keep the guard of the
    /// area above. Returns their start.
    pub fn gap_top_down(&self, len: usize, align: usize, within: Range<usize>) -> Option<usize> {
        let mut top = within.end;
        if let Some(s) = self.searched
            && s.end == within.end
            && len >= s.len
            && align >= s.align
        {
            // What fits now would have fitted then, so it starts no higher.
            top = top.min(s.found.saturating_add(len));
        }
        let mut i = self.count_from(top);
        // The area right above the limit guards into it.
        if let Some(above) = i.checked_sub(1).map(|j| &self.areas[j]) {
            top = top.min(above.start.saturating_sub(above.value.guard()));
        }
        loop {
            let area = self.areas.get(i);
            let floor = area.map_or(0, |a| a.end).max(within.start);
            if let Some(start) = top.checked_sub(len)
                && start & !(align - 1) >= floor
            {
                return Some(start & !(align - 1));
            }
            let area = area.filter(|_| floor > within.start)?;
            top = area.start.saturating_sub(area.value.guard()).min(top);
            i += 1;
        }
    }

    /// As [`AreaMap::gap_top_down`], and remembers what it learnt, so that a program that maps one thing below the other
    /// does not pay for those above.
    pub fn take_gap(&mut self, len: usize, align: usize, within: Range<usize>) -> Option<usize> {
        let end = within.end;
        let found = self.gap_top_down(len, align, within)?;
        self.searched = Some(Searched { len, align, end, found });
        Some(found)
    }

    /// The lowest such range.
    pub fn gap_bottom_up(&self, len: usize, align: usize, within: Range<usize>) -> Option<usize> {
        let mut at = within.start.checked_next_multiple_of(align)?;
        for a in self.areas[..self.count_above(within.start)].iter().rev() {
            let end = at.checked_add(len)?;
            if end <= a.start.saturating_sub(a.value.guard()) {
                break;
            }
            at = at.max(a.end).checked_next_multiple_of(align)?;
        }
        (at.checked_add(len)? <= within.end).then_some(at)
    }

    /// Adds an area, merged with its neighbours where they join. The range must be free and not empty; if not, nothing
    /// changes and it returns false.
    pub fn insert(&mut self, range: Range<usize>, value: T) -> bool {
        if range.is_empty() || !self.is_free(range.clone()) {
            return false;
        }
        // The area above is the one before `i`, the area below the one at `i`.
        let i = self.count_above(range.start);
        let below = self.areas.get(i).is_some_and(|a| a.end == range.start && a.value.joins(&value, a.end - a.start));
        let above = i.checked_sub(1).filter(|&j| {
            let a = &self.areas[j];
            a.start == range.end && value.joins(&a.value, range.end - range.start)
        });
        match (below, above) {
            (true, Some(j)) => {
                self.areas[i].end = self.areas[j].end;
                self.areas.remove(j);
            }
            (true, None) => self.areas[i].end = range.end,
            (false, Some(j)) => {
                self.areas[j].start = range.start;
                self.areas[j].value = value;
            }
            (false, None) => self.areas.insert(i, Entry { start: range.start, end: range.end, value }),
        }
        true
    }

    /// Cuts an area in two where `at` lies inside one.
    fn split(&mut self, at: usize) {
        let Some(i) = self.count_above(at).checked_sub(1) else { return };
        let a = &mut self.areas[i];
        if a.start < at {
            let tail = Entry { start: at, end: a.end, value: a.value.advanced(at - a.start) };
            a.end = at;
            self.areas.insert(i, tail);
        }
    }

    /// Takes out all that lies in `range`, cutting areas at its ends. Returns what was there, in order of address.
    pub fn remove(&mut self, range: Range<usize>) -> Vec<Entry<T>> {
        if range.is_empty() {
            return Vec::new();
        }
        self.searched = None;
        self.split(range.start);
        self.split(range.end);
        let which = self.indices(&range);
        self.areas.drain(which).rev().collect()
    }

    /// Changes the values in `range`, cutting areas at its ends, and merges what joins afterwards. A change leaves the
    /// guard as it is.
    pub fn update(&mut self, range: Range<usize>, mut change: impl FnMut(&mut T)) {
        if range.is_empty() {
            return;
        }
        self.split(range.start);
        self.split(range.end);
        let which = self.indices(&range);
        for a in self.areas[which.clone()].iter_mut().rev() {
            change(&mut a.value);
        }
        self.merge_around(which);
    }

    /// Merges the areas at these places with each other, the one above and the one below.
    fn merge_around(&mut self, which: Range<usize>) {
        let mut i = which.end.min(self.areas.len().saturating_sub(1));
        while i >= which.start.max(1) {
            let (above, below) = (&self.areas[i - 1], &self.areas[i]);
            if below.end == above.start && below.value.joins(&above.value, below.end - below.start) {
                self.areas[i].end = above.end;
                self.areas.remove(i - 1);
            }
            i -= 1;
        }
    }

    /// Moves the start of the area that holds `addr` down to `start` (stack growth). The caller has checked that the range
    /// between is free.
    pub fn grow_down(&mut self, addr: usize, start: usize) {
        if let Some(i) = self.count_above(addr).checked_sub(1)
            && start < self.areas[i].start
        {
            self.areas[i].start = start;
        }
    }

    /// Takes out everything.
    pub fn clear(&mut self) {
        self.areas.clear();
        self.searched = None;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_range_loop)] // the index is the page

    use super::*;
    use proptest::prelude::*;

    /// A mapping of object `id` from `offset` (pages count), or anonymous.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct V {
        id: u8,
        offset: Option<usize>,
        guard: usize,
    }

    impl Area for V {
        fn advanced(&self, bytes: usize) -> Self {
            V { id: self.id, offset: self.offset.map(|o| o + bytes), guard: self.guard }
        }
        fn joins(&self, next: &Self, len: usize) -> bool {
            self.id == next.id && self.offset.map(|o| o + len) == next.offset
        }
        fn guard(&self) -> usize {
            self.guard
        }
    }

    const N: usize = 64;
    type Model = [Option<(u8, Option<usize>)>; N];

    fn check(map: &AreaMap<V>, model: &Model) {
        let mut seen: Model = [None; N];
        let mut last: Option<&Entry<V>> = None;
        for a in map.iter() {
            assert!(a.start < a.end);
            if let Some(l) = last {
                assert!(l.end <= a.start);
                assert!(l.end < a.start || !l.value.joins(&a.value, l.len()), "unmerged {l:?} {a:?}");
            }
            for p in a.start..a.end {
                seen[p] = Some((a.value.id, a.value.offset.map(|o| o + (p - a.start))));
            }
            last = Some(a);
        }
        assert_eq!(&seen, model);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(usize, usize, u8, bool),
        Remove(usize, usize),
        Update(usize, usize, u8),
        Gap(usize, usize, usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let p = 0..N;
        prop_oneof![
            (p.clone(), 1..9usize, 0..3u8, any::<bool>()).prop_map(|(a, l, i, f)| Op::Insert(a, l, i, f)),
            (p.clone(), 1..16usize).prop_map(|(a, l)| Op::Remove(a, l)),
            (p.clone(), 1..16usize, 0..3u8).prop_map(|(a, l, i)| Op::Update(a, l, i)),
            (1..12usize, p.clone(), p).prop_map(|(l, a, b)| Op::Gap(l, a.min(b), a.max(b))),
        ]
    }

    #[test]
    fn what_a_search_learnt_stays_true() {
        let mut map = AreaMap::new();
        let mut seed = 12345_u32;
        for _ in 0..4000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (len, start) = (1 + (seed >> 28) as usize, (seed >> 8) as usize % 400);
            if seed >> 24 & 3 == 0 {
                map.remove(start..start + len);
                continue;
            }
            let fresh = AreaMap { areas: map.areas.clone(), searched: None };
            let got = map.take_gap(len, 1, 0..400);
            assert_eq!(got, fresh.gap_top_down(len, 1, 0..400));
            if let Some(at) = got.filter(|_| seed >> 20 & 7 != 0) {
                assert!(map.insert(at..at + len, V { id: 1, offset: None, guard: 0 }));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn behaves_as_an_array_of_pages(ops in proptest::collection::vec(op(), 1..60)) {
            let mut map = AreaMap::new();
            let mut model: Model = [None; N];
            for o in ops {
                match o {
                    Op::Insert(a, l, id, file) => {
                        let end = (a + l).min(N);
                        let free = model[a..end].iter().all(Option::is_none);
                        prop_assert_eq!(map.is_free(a..end), free);
                        let offset = file.then_some(a);
                        prop_assert_eq!(map.insert(a..end, V { id, offset, guard: 0 }), free);
                        if free {
                            for p in a..end {
                                model[p] = Some((id, offset.map(|o| o + p - a)));
                            }
                        }
                    }
                    Op::Remove(a, l) => {
                        let end = (a + l).min(N);
                        let n: usize = map.remove(a..end).iter().map(Entry::len).sum();
                        prop_assert_eq!(n, model[a..end].iter().flatten().count());
                        model[a..end].fill(None);
                    }
                    Op::Update(a, l, id) => {
                        let end = (a + l).min(N);
                        map.update(a..end, |v| v.id = id);
                        model[a..end].iter_mut().flatten().for_each(|v| v.0 = id);
                        prop_assert_eq!(map.covers(a..end), model[a..end].iter().all(Option::is_some));
                    }
                    Op::Gap(len, low, high) => {
                        let fits = |s: usize| model[s..s + len].iter().all(Option::is_none);
                        let starts = low..(high + 1).saturating_sub(len);
                        prop_assert_eq!(map.gap_top_down(len, 1, low..high), starts.clone().rev().find(|&s| fits(s)));
                        prop_assert_eq!(map.gap_bottom_up(len, 1, low..high), starts.clone().find(|&s| fits(s)));
                        prop_assert_eq!(map.gap_top_down(len, 4, low..high), starts.rev().find(|&s| s % 4 == 0 && fits(s)));
                    }
                }
                check(&map, &model);
                for (p, m) in model.iter().enumerate() {
                    prop_assert_eq!(map.find(p).is_some(), m.is_some());
                }
            }
        }
    }

    #[test]
    fn the_guard_below_a_stack_stays_free() {
        let mut m = AreaMap::new();
        assert!(m.insert(50..60, V { id: 0, offset: None, guard: 5 }));
        assert_eq!(m.gap_top_down(4, 1, 0..60), Some(41));
        assert_eq!(m.gap_top_down(4, 1, 0..50), Some(41));
        assert_eq!(m.gap_bottom_up(4, 1, 43..70), Some(60));
    }
}
