//! Copying an address space: the map is cloned, the tables are copied, and private pages become read-only on both sides, so
//! that the first write on either copies one page.
//!
//! The walk goes table by table: a child's table is made only where the parent's has something, and the inner loop does per
//! page a load, a count, and at most two stores.

use super::frames::{self, Frame};
use super::space::{AddressSpace, Map};
use super::vma::{VmFlags, Vma};
use super::{KernelMem, fault::FILE_PAGE, oom};
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::Ordering;
use mm_core::pte::Pte;
use mm_core::table::{PageTable, PhysMem};
use mm_core::vma::AreaMap;

/// What copying one area did.
#[derive(Default)]
struct Copied {
    anon: i64,
    file: i64,
    protected: bool,
    failed: bool,
}

impl AddressSpace {
    /// A copy for a child process. `ENOMEM` where the limits do not allow it, or nothing can be done for memory. May sleep.
    pub fn fork_from(parent: &AddressSpace) -> Result<Arc<AddressSpace>> {
        // Each try starts over: nobody may wait for memory with the map locked.
        oom::insist(|| Self::try_fork(parent).transpose()).unwrap_or(Err(Errno::ENOMEM))
    }

    /// `None` if there was no memory just now.
    fn try_fork(parent: &AddressSpace) -> Result<Option<Arc<AddressSpace>>> {
        let guard = parent.map.write();
        let (map, data) = copy_map(&guard)?;
        let Some(root) = KernelMem.alloc_table() else {
            drop(guard);
            super::map::uncommit(data);
            return Ok(None);
        };
        let child = AddressSpace::with(root, map, parent.wx_allowed());
        let mut copied = Copied::default();
        let skip = VmFlags::DONTFORK | VmFlags::WIPEONFORK;
        for e in guard.areas.iter().filter(|e| !e.value.flags.intersects(skip)) {
            copy_area(&parent.table, &child.table, e.range(), e.value.is_private(), &mut copied);
        }
        if copied.protected {
            parent.flush_all();
        }
        child.vdso.store(parent.vdso.load(Ordering::Relaxed), Ordering::Relaxed);
        child.rss.anon.store(copied.anon, Ordering::Relaxed);
        child.rss.file.store(copied.file, Ordering::Relaxed);
        drop(guard);
        if copied.failed {
            return Ok(None);
        }
        if super::space::sabotage().eager_fork {
            child.unshare_all();
        }
        Ok(Some(child))
    }
}

/// The child's map, and how many of its bytes were committed.
fn copy_map(parent: &Map) -> Result<(Map, usize)> {
    let mut areas = AreaMap::new();
    let (mut total, mut data) = (0, 0);
    areas.try_reserve(parent.areas.len()).map_err(|_| Errno::ENOMEM)?;
    // From the highest down: that adds at the end.
    for e in parent.areas.iter().rev().filter(|e| !e.value.flags.contains(VmFlags::DONTFORK)) {
        let mut value: Vma = e.value.clone();
        value.flags -= VmFlags::LOCKED;
        total += e.len();
        data += if value.is_accounted() { e.len() } else { 0 };
        areas.insert(e.range(), value);
    }
    super::map::commit(data)?;
    let map = Map {
        areas,
        layout: parent.layout,
        brk_start: parent.brk_start,
        brk: parent.brk,
        total,
        data,
        locked: 0,
        lock_future: false,
        limits: parent.limits,
    };
    Ok((map, data))
}

impl AddressSpace {
    /// Copies every shared private page at once: what a fork without copy-on-write would do (sabotage for gate m2).
    fn unshare_all(&self) {
        let ranges: alloc::vec::Vec<Range<usize>> = {
            let map = self.map.read();
            let writable = |v: &Vma| v.is_private() && v.prot.contains(super::Prot::WRITE);
            map.areas.iter().filter(|e| writable(&e.value)).map(|e| e.range()).collect()
        };
        for va in ranges.into_iter().flat_map(|r| r.step_by(super::PAGE_SIZE)) {
            let present = self.table.leaf(va).is_some_and(|s| Pte(s.load(Ordering::Relaxed)).is_valid());
            if present {
                let _ = self.fault(va, crate::arch::trap::Access::Write);
            }
        }
    }
}

fn copy_area(
    from: &PageTable<KernelMem>,
    to: &PageTable<KernelMem>,
    range: Range<usize>,
    private: bool,
    copied: &mut Copied,
) {
    let memmap = frames::memmap();
    from.for_leaves(range, |va, entries| {
        if copied.failed {
            return;
        }
        let Some(first) = entries.iter().position(|e| e.load(Ordering::Relaxed) != 0) else { return };
        let Ok(target) = to.leaf_table_or_create(va) else {
            copied.failed = true;
            return;
        };
        let target = &target[va / super::PAGE_SIZE % mm_core::table::ENTRIES..];
        for (slot, new) in entries[first..].iter().zip(&target[first..]) {
            let mut pte = Pte(slot.load(Ordering::Relaxed));
            if !pte.is_valid() {
                continue;
            }
            if !pte.is_special() {
                let Some(info) = memmap.get(Frame(pte.frame()).0) else { continue };
                info.refs().fetch_add(1, Ordering::Relaxed);
                if info.owner() & FILE_PAGE != 0 {
                    copied.file += 1;
                } else {
                    copied.anon += 1;
                }
                if private && pte.is_writable() {
                    pte = pte.read_only();
                    slot.store(pte.0, Ordering::Relaxed);
                    copied.protected = true;
                }
            }
            new.store(pte.0, Ordering::Relaxed);
        }
    });
}
