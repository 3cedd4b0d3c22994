//! Ordered maps of address ranges.
//!
//! An [`AreaMap`] is a sorted vector of disjoint, page-aligned, half-open ranges with a value each. A vector and not a
//! tree: lookups (every page fault) are a binary search over a compact array, forking clones one allocation, and inserts
//! move at most some thousands of small entries, which measures below a tree's rebalancing up to there. Neighbours with
//! values that join ([`Area::joins`]) are merged, so that a program that maps page by page keeps one area.
//!
//! # Invariants
//! Areas are sorted, disjoint, not empty. All changes are by whole operations: none fails half-way.

use alloc::vec::Vec;
use core::ops::Range;

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
    areas: Vec<Entry<T>>,
}

impl<T: Area> AreaMap<T> {
    /// Nothing mapped.
    pub const fn new() -> Self {
        AreaMap { areas: Vec::new() }
    }

    /// Number of areas.
    pub fn len(&self) -> usize {
        self.areas.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }

    /// All areas in order of address.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry<T>> {
        self.areas.iter()
    }

    /// Index of the first area that ends above `addr`.
    #[inline]
    fn index_above(&self, addr: usize) -> usize {
        self.areas.partition_point(|a| a.end <= addr)
    }

    /// The area that holds `addr`.
    #[inline]
    pub fn find(&self, addr: usize) -> Option<&Entry<T>> {
        self.areas.get(self.index_above(addr)).filter(|a| a.start <= addr)
    }

    /// The first area that ends above `addr` (it may start above it too).
    #[inline]
    pub fn find_from(&self, addr: usize) -> Option<&Entry<T>> {
        self.areas.get(self.index_above(addr))
    }

    /// The last area that ends at or below `addr`.
    pub fn find_below(&self, addr: usize) -> Option<&Entry<T>> {
        self.index_above(addr).checked_sub(1).map(|i| &self.areas[i])
    }

    /// The areas that overlap `range`.
    pub fn overlapping(&self, range: Range<usize>) -> &[Entry<T>] {
        let from = self.index_above(range.start);
        let n = self.areas[from..].partition_point(|a| a.start < range.end);
        &self.areas[from..from + n]
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
        self.overlapping(range).is_empty()
    }

    /// The highest `len` bytes, aligned to `align` (a power of two), that are free within `within` and keep the guard of the
    /// area above. Returns their start.
    pub fn gap_top_down(&self, len: usize, align: usize, within: Range<usize>) -> Option<usize> {
        let mut top = within.end;
        let mut i = self.areas.partition_point(|a| a.start < within.end);
        // The area right above the limit guards into it.
        if let Some(above) = self.areas.get(i) {
            top = top.min(above.start.saturating_sub(above.value.guard()));
        }
        loop {
            let floor = i.checked_sub(1).map_or(0, |j| self.areas[j].end).max(within.start);
            if let Some(start) = top.checked_sub(len)
                && start & !(align - 1) >= floor
            {
                return Some(start & !(align - 1));
            }
            if i == 0 || floor <= within.start {
                return None;
            }
            i -= 1;
            top = self.areas[i].start.saturating_sub(self.areas[i].value.guard()).min(top);
        }
    }

    /// The lowest such range.
    pub fn gap_bottom_up(&self, len: usize, align: usize, within: Range<usize>) -> Option<usize> {
        let mut at = within.start.checked_next_multiple_of(align)?;
        for a in &self.areas[self.index_above(within.start)..] {
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
        let i = self.index_above(range.start);
        let before = i.checked_sub(1).filter(|&j| {
            let a = &self.areas[j];
            a.end == range.start && a.value.joins(&value, a.end - a.start)
        });
        let after =
            self.areas.get(i).is_some_and(|a| a.start == range.end && value.joins(&a.value, range.end - range.start));
        match (before, after) {
            (Some(j), true) => {
                self.areas[j].end = self.areas[i].end;
                self.areas.remove(i);
            }
            (Some(j), false) => self.areas[j].end = range.end,
            (None, true) => {
                self.areas[i].start = range.start;
                self.areas[i].value = value;
            }
            (None, false) => self.areas.insert(i, Entry { start: range.start, end: range.end, value }),
        }
        true
    }

    /// Cuts an area in two where `at` lies inside one.
    fn split(&mut self, at: usize) {
        let i = self.index_above(at);
        if let Some(a) = self.areas.get_mut(i)
            && a.start < at
        {
            let tail = Entry { start: at, end: a.end, value: a.value.advanced(at - a.start) };
            a.end = at;
            self.areas.insert(i + 1, tail);
        }
    }

    /// Takes out all that lies in `range`, cutting areas at its ends. Returns what was there.
    pub fn remove(&mut self, range: Range<usize>) -> Vec<Entry<T>> {
        if range.is_empty() {
            return Vec::new();
        }
        self.split(range.start);
        self.split(range.end);
        let from = self.index_above(range.start);
        let n = self.areas[from..].partition_point(|a| a.start < range.end);
        self.areas.drain(from..from + n).collect()
    }

    /// Changes the values in `range`, cutting areas at its ends, and merges what joins afterwards.
    pub fn update(&mut self, range: Range<usize>, mut change: impl FnMut(&mut T)) {
        if range.is_empty() {
            return;
        }
        self.split(range.start);
        self.split(range.end);
        let from = self.index_above(range.start);
        let n = self.areas[from..].partition_point(|a| a.start < range.end);
        for a in &mut self.areas[from..from + n] {
            change(&mut a.value);
        }
        self.merge_around(from.saturating_sub(1), from + n);
    }

    /// Merges neighbours from index `from` up to index `to` and its successor.
    fn merge_around(&mut self, from: usize, to: usize) {
        let mut i = to.min(self.areas.len().saturating_sub(1));
        while i > from {
            let (a, b) = (&self.areas[i - 1], &self.areas[i]);
            if a.end == b.start && a.value.joins(&b.value, a.end - a.start) {
                self.areas[i - 1].end = b.end;
                self.areas.remove(i);
            }
            i -= 1;
        }
    }

    /// Moves the start of the area that holds `addr` down to `start` (stack growth). The caller has checked that the range
    /// between is free.
    pub fn grow_down(&mut self, addr: usize, start: usize) {
        let i = self.index_above(addr);
        if let Some(a) = self.areas.get_mut(i)
            && start < a.start
        {
            a.start = start;
        }
    }

    /// Takes out everything.
    pub fn clear(&mut self) {
        self.areas.clear();
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
