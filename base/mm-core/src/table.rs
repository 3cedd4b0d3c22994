//! Four-level page tables.
//!
//! A [`PageTable`] is a root and a way to reach tables ([`PhysMem`]). Entries are atomic words:
//! - A missing table is added by compare-and-swap, so that faults on several CPUs may build the same path at once; who
//!   loses frees its table again.
//! - Leaf entries are the caller's: [`PageTable::leaf`] and [`PageTable::leaf_or_create`] return the word.
//! - Tables are removed ([`PageTable::free_tables`]) only while nobody else walks: the owner's lock must say so.
//!
//! The kernel's stores to entries need a barrier before the walk can rely on them (DSB ISHST); that is the machine's part
//! and is not done here.

use crate::PAGE_SIZE;
use crate::pte::{Attrs, Pte};
use core::ops::{ControlFlow, Range};
use core::sync::atomic::{AtomicU64, Ordering};

/// Entries in a table.
pub const ENTRIES: usize = 512;
/// A table.
pub type Table = [AtomicU64; ENTRIES];

/// A table could not be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// Where tables are.
pub trait PhysMem {
    /// The table at `pa`, which is one that `alloc_table` returned or the root.
    fn table(&self, pa: u64) -> &Table;
    /// A new table of zeroes.
    fn alloc_table(&self) -> Option<u64>;
    /// Gives a table back.
    fn free_table(&self, pa: u64);
}

/// A tree of tables.
#[derive(Debug)]
pub struct PageTable<M> {
    root: u64,
    mem: M,
}

/// Bytes that one entry of a table at `level` covers.
pub const fn span(level: usize) -> usize {
    PAGE_SIZE << (9 * (3 - level))
}

#[inline(always)]
const fn index(va: usize, level: usize) -> usize {
    va >> (12 + 9 * (3 - level)) & (ENTRIES - 1)
}

impl<M: PhysMem> PageTable<M> {
    /// The tables below the root table at `root`. Addresses are taken modulo 2^48, so the same code serves both halves.
    pub const fn new(root: u64, mem: M) -> Self {
        PageTable { root, mem }
    }

    /// The root's physical address.
    #[inline]
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// The level 3 entry for `va`, if its tables exist.
    #[inline]
    pub fn leaf(&self, va: usize) -> Option<&AtomicU64> {
        self.leaf_table(va).map(|t| &t[index(va, 3)])
    }

    /// The level 3 table for `va`, if it exists.
    #[inline]
    pub fn leaf_table(&self, va: usize) -> Option<&Table> {
        let mut table = self.mem.table(self.root);
        for level in 0..3 {
            let entry = Pte(table[index(va, level)].load(Ordering::Acquire));
            if !entry.is_table() {
                return None;
            }
            table = self.mem.table(entry.addr());
        }
        Some(table)
    }

    /// The level 3 table for `va`, made if missing.
    #[inline]
    pub fn leaf_table_or_create(&self, va: usize) -> Result<&Table, NoMemory> {
        let mut table = self.mem.table(self.root);
        for level in 0..3 {
            table = self.next_or_create(&table[index(va, level)])?;
        }
        Ok(table)
    }

    /// The level 3 entry for `va`, its tables made if missing.
    #[inline]
    pub fn leaf_or_create(&self, va: usize) -> Result<&AtomicU64, NoMemory> {
        self.leaf_table_or_create(va).map(|t| &t[index(va, 3)])
    }

    #[inline]
    fn next_or_create(&self, slot: &AtomicU64) -> Result<&Table, NoMemory> {
        let entry = Pte(slot.load(Ordering::Acquire));
        if entry.is_table() {
            return Ok(self.mem.table(entry.addr()));
        }
        self.create(slot, entry)
    }

    #[cold]
    fn create(&self, slot: &AtomicU64, old: Pte) -> Result<&Table, NoMemory> {
        // A block where a table is wanted is a caller's mistake; there is no next table to give.
        if old.is_valid() {
            return Err(NoMemory);
        }
        let new = self.mem.alloc_table().ok_or(NoMemory)?;
        match slot.compare_exchange(old.0, Pte::table(new).0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(self.mem.table(new)),
            Err(now) => {
                self.mem.free_table(new);
                Ok(self.mem.table(Pte(now).addr()))
            }
        }
    }

    /// Maps `len` bytes at `va` to `pa` (all page-aligned), with blocks where alignment allows if `blocks`. For ranges that
    /// are not mapped yet.
    pub fn map_range(&self, va: usize, pa: u64, len: usize, attrs: Attrs, blocks: bool) -> Result<(), NoMemory> {
        let mut done = 0;
        while done < len {
            let (va, pa) = (va + done, pa + done as u64);
            let fits =
                |level| va & (span(level) - 1) == 0 && pa & (span(level) as u64 - 1) == 0 && len - done >= span(level);
            let level = if blocks { (1..3).find(|&l| fits(l)).unwrap_or(3) } else { 3 };
            let mut table = self.mem.table(self.root);
            for l in 0..level {
                table = self.next_or_create(&table[index(va, l)])?;
            }
            let pte = if level == 3 { Pte::page(pa, attrs) } else { Pte::block(pa, attrs) };
            table[index(va, level)].store(pte.0, Ordering::Release);
            done += span(level);
        }
        Ok(())
    }

    /// Calls `visit(address of the first entry, entries)` for each run of level 3 entries in `range` whose table exists.
    pub fn for_leaves(&self, range: Range<usize>, mut visit: impl FnMut(usize, &[AtomicU64])) {
        self.leaves_below(self.mem.table(self.root), 0, range, &mut visit);
    }

    fn leaves_below(
        &self,
        table: &Table,
        level: usize,
        range: Range<usize>,
        visit: &mut impl FnMut(usize, &[AtomicU64]),
    ) {
        let mut va = range.start;
        while va < range.end {
            let end = ((va & !(span(level) - 1)) + span(level)).min(range.end);
            let entry = Pte(table[index(va, level)].load(Ordering::Acquire));
            if entry.is_table() {
                let next = self.mem.table(entry.addr());
                if level == 2 {
                    let from = index(va, 3);
                    visit(va, &next[from..from + (end - va).div_ceil(PAGE_SIZE)]);
                } else {
                    self.leaves_below(next, level + 1, va..end, visit);
                }
            }
            va = end;
        }
    }

    /// Takes out the tables that cover only addresses in `range` and hands each to `free` (the tables inside it first).
    /// Their leaf entries must be empty or of no more interest. Nobody else may walk meanwhile; the machine's walkers may
    /// still know the tables until the TLB is told, so `free` keeps them until then.
    pub fn take_tables(&self, range: Range<usize>, free: &mut impl FnMut(u64)) {
        self.take_below(self.root, 0, range, free);
    }

    fn take_below(&self, table: u64, level: usize, range: Range<usize>, free: &mut impl FnMut(u64)) {
        let entries = self.mem.table(table);
        let mut va = range.start;
        while va < range.end {
            let base = va & !(span(level) - 1);
            let end = base + span(level);
            let slot = &entries[index(va, level)];
            let entry = Pte(slot.load(Ordering::Acquire));
            if entry.is_table() {
                if level < 2 {
                    self.take_below(entry.addr(), level + 1, va..end.min(range.end), free);
                }
                if base >= range.start && end <= range.end {
                    slot.store(0, Ordering::Release);
                    free(entry.addr());
                }
            }
            va = end;
        }
    }

    /// Visits every mapping as (level, address, entry), `0` being the first address of this half, until `visit` breaks.
    pub fn walk(&self, visit: &mut impl FnMut(usize, usize, Pte) -> ControlFlow<()>) -> ControlFlow<()> {
        self.walk_below(self.root, 0, 0, visit)
    }

    fn walk_below(
        &self,
        table: u64,
        level: usize,
        base: usize,
        visit: &mut impl FnMut(usize, usize, Pte) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for (i, slot) in self.mem.table(table).iter().enumerate() {
            let entry = Pte(slot.load(Ordering::Acquire));
            let va = base + i * span(level);
            if level < 3 && entry.is_table() {
                self.walk_below(entry.addr(), level + 1, va, visit)?;
            } else if entry.is_valid() {
                visit(level, va, entry)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// What `va` maps to: the entry's level and the entry.
    pub fn lookup(&self, va: usize) -> Option<(usize, Pte)> {
        let mut table = self.mem.table(self.root);
        for level in 0..4 {
            let entry = Pte(table[index(va, level)].load(Ordering::Acquire));
            if level < 3 && entry.is_table() {
                table = self.mem.table(entry.addr());
            } else {
                return entry.is_valid().then_some((level, entry));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::boxed::Box;
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};
    use std::vec::Vec;

    /// Tables on the host's heap; their "physical address" is where they are (user space fits 48 bits).
    #[derive(Default)]
    struct Mem {
        live: RefCell<BTreeSet<u64>>,
        limit: Option<usize>,
    }

    impl PhysMem for Mem {
        fn table(&self, pa: u64) -> &Table {
            assert!(self.live.borrow().contains(&pa), "a table that is not there");
            // SAFETY: live tables are leaked boxes.
            unsafe { &*(pa as *const Table) }
        }
        fn alloc_table(&self) -> Option<u64> {
            if self.limit.is_some_and(|l| self.live.borrow().len() >= l) {
                return None;
            }
            #[repr(C, align(4096))]
            struct Aligned(Table);
            let pa = Box::leak(Box::new(Aligned([const { AtomicU64::new(0) }; ENTRIES]))) as *const Aligned as u64;
            self.live.borrow_mut().insert(pa);
            Some(pa)
        }
        fn free_table(&self, pa: u64) {
            assert!(self.live.borrow_mut().remove(&pa));
        }
    }

    fn new(limit: Option<usize>) -> PageTable<Mem> {
        let mem = Mem { limit, ..Mem::default() };
        let root = mem.alloc_table().unwrap();
        PageTable::new(root, mem)
    }

    #[test]
    fn a_linear_map_uses_the_largest_blocks() {
        let t = new(None);
        let base = 0xffff_0000_0000_0000usize;
        // from 1 GiB - 2 MiB - 4 KiB to 2 GiB + 8 KiB
        let (start, end) = ((1usize << 30) - (2 << 20) - 4096, (2usize << 30) + 8192);
        t.map_range(base + start, start as u64, end - start, Attrs::KERNEL_DATA, true).unwrap();
        let mut got = Vec::new();
        let _ = t.walk(&mut |level, va, pte| {
            assert_eq!(va as u64, pte.addr());
            got.push((level, va));
            ControlFlow::Continue(())
        });
        let g = 1usize << 30;
        assert_eq!(got, [(3, start), (2, g - (2 << 20)), (1, g), (3, 2 * g), (3, 2 * g + 4096)]);
        assert_eq!(t.lookup(base + g + 12345), Some((1, Pte::block(g as u64, Attrs::KERNEL_DATA))));
        assert_eq!(t.lookup(base), None);
    }

    #[test]
    fn running_out_of_tables_is_an_error() {
        let t = new(Some(3));
        assert_eq!(t.leaf_or_create(0x1000).map(|_| ()), Err(NoMemory));
        assert!(t.leaf(0x1000).is_none());
    }

    #[test]
    fn tables_outside_the_range_stay() {
        let t = new(None);
        for va in [0usize, 2 << 20, 1 << 30, 1 << 39] {
            t.leaf_or_create(va).unwrap().store(Pte::page(0x1000, Attrs::KERNEL_DATA).0, Ordering::Relaxed);
        }
        let before = t.mem.live.borrow().len();
        let mut freed = Vec::new();
        t.take_tables((2 << 20)..(1 << 39), &mut |pa| freed.push(pa));
        // the level 3 table at 2 MiB, the level 2 and 3 tables at 1 GiB; not the level 1 and 2 tables that 0 needs
        assert_eq!(freed.len(), 3);
        freed.iter().for_each(|&pa| t.mem.free_table(pa));
        assert_eq!(t.mem.live.borrow().len(), before - 3);
        assert!(
            t.leaf(0).is_some() && t.leaf(1 << 39).is_some() && t.leaf(2 << 20).is_none() && t.leaf(1 << 30).is_none()
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn behaves_as_a_map_of_pages(ops in proptest::collection::vec((0usize..4, 0usize..700, 0usize..700, any::<bool>()), 1..40)) {
            let t = new(None);
            let bases = [0usize, (1 << 30) - (1 << 20), 5 << 39, (1 << 47) - (4 << 20)];
            let mut model: BTreeMap<usize, u64> = BTreeMap::new();
            for (b, from, len, map) in ops {
                let start = bases[b] + from * PAGE_SIZE;
                let range = start..start + len * PAGE_SIZE;
                if map {
                    for va in range.step_by(PAGE_SIZE) {
                        let pte = Pte::page(va as u64 ^ 0x5000, Attrs::KERNEL_DATA);
                        t.leaf_or_create(va).unwrap().store(pte.0, Ordering::Relaxed);
                        model.insert(va, pte.0);
                    }
                } else {
                    let mut cleared = 0;
                    t.for_leaves(range.clone(), |_, entries| {
                        for e in entries {
                            cleared += usize::from(e.swap(0, Ordering::Relaxed) != 0);
                        }
                    });
                    prop_assert_eq!(cleared, model.range(range.clone()).count());
                    model.retain(|va, _| !range.contains(va));
                    let mut freed = Vec::new();
                    t.take_tables(range, &mut |pa| freed.push(pa));
                    freed.iter().for_each(|&pa| t.mem.free_table(pa));
                }
                let mut seen = BTreeMap::new();
                let _ = t.walk(&mut |_, va, pte| {
                    seen.insert(va, pte.0);
                    ControlFlow::Continue(())
                });
                prop_assert_eq!(&seen, &model);
            }
            let mut freed = Vec::new();
            t.take_tables(0..1 << 48, &mut |pa| freed.push(pa));
            freed.iter().for_each(|&pa| t.mem.free_table(pa));
            prop_assert_eq!(t.mem.live.borrow().len(), 1);
        }
    }
}
