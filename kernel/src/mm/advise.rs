//! madvise, msync, mincore, mlock: what looks at or prepares pages without changing what is mapped.

use super::space::AddressSpace;
use super::tlb::Gather;
use super::vma::{Backing, Prot, VmFlags};
use super::{Mappable, PAGE_SIZE, TASK_SIZE};
use crate::arch::trap::Access;
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;
use mm_core::page_up;
use mm_core::pte::Pte;

/// An object, its first page, and how many.
type ObjectPages = (Arc<dyn Mappable>, u64, u64);

/// What [`AddressSpace::advise`] understands; the rest of madvise(2)'s values are hints that change nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Drop the pages; the next access starts over.
    DontNeed,
    /// Bring file pages in.
    WillNeed,
    /// Make present for reading.
    PopulateRead,
    /// Make present for writing.
    PopulateWrite,
    /// Set these flags.
    Set(VmFlags),
    /// Clear these flags.
    Clear(VmFlags),
    /// Check the range only.
    Nothing,
}

/// `addr..addr + len` in whole pages; `bad` for what cannot be.
fn page_range(addr: usize, len: usize, bad: Errno) -> Result<Range<usize>> {
    let end = page_up(len).and_then(|l| addr.checked_add(l)).filter(|&e| e <= TASK_SIZE).ok_or(bad)?;
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    Ok(addr..end)
}

impl AddressSpace {
    /// Makes the pages of `range` present, as far as that goes without error. May sleep.
    pub(super) fn populate(&self, range: Range<usize>) {
        let _ = self.populate_for(range, None);
    }

    fn populate_for(&self, range: Range<usize>, write: Option<bool>) -> Result<()> {
        for va in range.step_by(PAGE_SIZE) {
            let access = {
                let map = self.map.read();
                let prot = map.areas.find(va).ok_or(Errno::ENOMEM)?.value.prot;
                match write {
                    Some(true) => Access::Write,
                    None if prot.contains(Prot::WRITE) => Access::Write,
                    None if prot.is_empty() => continue,
                    _ => Access::Read,
                }
            };
            let present = self.table.leaf(va).is_some_and(|s| {
                let pte = Pte(s.load(Ordering::Acquire));
                pte.is_user() && (access == Access::Read || pte.is_writable())
            });
            if !present {
                self.fault(va, access).map_err(|_| Errno::EFAULT)?;
            }
        }
        Ok(())
    }

    /// Errors as madvise(2): `ENOMEM` if part of the range is not mapped (the rest is done all the same). May sleep.
    pub fn advise(&self, addr: usize, len: usize, advice: Advice) -> Result<()> {
        let range = page_range(addr, len, Errno::EINVAL)?;
        if range.is_empty() {
            return Ok(());
        }
        match advice {
            Advice::PopulateRead => return self.populate_for(range, Some(false)),
            Advice::PopulateWrite => return self.populate_for(range, Some(true)),
            Advice::WillNeed => {
                self.will_need(range.clone());
            }
            Advice::DontNeed => {
                // Exclusive: a fault that runs meanwhile must not see an entry come and go.
                let map = self.map.write();
                let locked = map.areas.overlapping(range.clone()).any(|e| {
                    e.value.flags.contains(VmFlags::LOCKED) || matches!(e.value.backing, Backing::Phys { .. })
                });
                if locked {
                    return Err(Errno::EINVAL);
                }
                let mut gather = Gather::new(self);
                for e in map.areas.overlapping(range.clone()) {
                    self.zap(e.start.max(range.start)..e.end.min(range.end), &mut gather);
                }
            }
            Advice::Set(flags) => self.map.write().areas.update(range.clone(), |v| v.flags |= flags),
            Advice::Clear(flags) => self.map.write().areas.update(range.clone(), |v| v.flags -= flags),
            Advice::Nothing => {}
        }
        if self.map.read().areas.covers(range) { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    fn will_need(&self, range: Range<usize>) {
        for (object, first, count) in self.objects_in(range).unwrap_or_default() {
            for index in first..first + count.min(1024) {
                if object.page_for(index, false).is_err() {
                    break;
                }
            }
        }
    }

    /// The objects mapped in `range`, with the pages that are. `ENOMEM` if there is a hole.
    fn objects_in(&self, range: Range<usize>) -> Result<Vec<ObjectPages>> {
        let map = self.map.read();
        if !map.areas.covers(range.clone()) {
            return Err(Errno::ENOMEM);
        }
        Ok(map
            .areas
            .overlapping(range.clone())
            .filter_map(|e| match &e.value.backing {
                Backing::Object { object, offset } => {
                    let (from, to) = (e.start.max(range.start), e.end.min(range.end));
                    let first = (offset + (from - e.start) as u64) / PAGE_SIZE as u64;
                    Some((object.object().clone(), first, ((to - from) / PAGE_SIZE) as u64))
                }
                _ => None,
            })
            .collect())
    }

    /// Writes mapped files back and waits (`MS_SYNC`) or not. Errors as msync(2). May sleep.
    pub fn msync(&self, addr: usize, len: usize, wait: bool) -> Result<()> {
        let range = page_range(addr, len, Errno::ENOMEM)?;
        if range.is_empty() {
            return Ok(());
        }
        for (object, first, count) in self.objects_in(range)? {
            if wait {
                object.sync(first, count)?;
            }
        }
        Ok(())
    }

    /// Says for each page from `addr` (one byte of `out` a page) whether it is in memory. Errors as mincore(2). May sleep.
    pub fn mincore(&self, addr: usize, out: &mut [u8]) -> Result<()> {
        let range = page_range(addr, out.len() * PAGE_SIZE, Errno::ENOMEM)?;
        let map = self.map.read();
        if !map.areas.covers(range.clone()) {
            return Err(Errno::ENOMEM);
        }
        for (va, byte) in range.clone().step_by(PAGE_SIZE).zip(out.iter_mut()) {
            *byte = u8::from(self.table.leaf(va).is_some_and(|s| Pte(s.load(Ordering::Relaxed)).is_valid()));
        }
        for e in map.areas.overlapping(range.clone()) {
            let Backing::Object { object, offset } = &e.value.backing else { continue };
            let (from, to) = (e.start.max(range.start), e.end.min(range.end));
            let first = (offset + (from - e.start) as u64) / PAGE_SIZE as u64;
            let at = (from - range.start) / PAGE_SIZE;
            object.for_cached(first, ((to - from) / PAGE_SIZE) as u64, &mut |index, _| {
                if let Some(b) = out.get_mut(at + (index - first) as usize) {
                    *b = 1;
                }
            });
        }
        Ok(())
    }

    /// Locks or unlocks pages in memory. `may_exceed`: the caller is privileged. `on_fault`: do not bring them in now. Errors as
    /// mlock(2). May sleep.
    pub fn lock_pages(&self, addr: usize, len: usize, lock: bool, on_fault: bool, may_exceed: bool) -> Result<()> {
        let start = mm_core::page_down(addr);
        let end = addr.checked_add(len).and_then(page_up).filter(|&e| e <= TASK_SIZE).ok_or(Errno::EINVAL)?;
        let range = start..end;
        if range.is_empty() {
            return Ok(());
        }
        let mut map = self.map.write();
        if !map.areas.covers(range.clone()) {
            return Err(Errno::ENOMEM);
        }
        let already: usize = map
            .areas
            .overlapping(range.clone())
            .filter(|e| e.value.flags.contains(VmFlags::LOCKED))
            .map(|e| e.end.min(end) - e.start.max(start))
            .sum();
        let locked = map.locked - already + if lock { range.len() } else { 0 };
        if lock && locked > map.limits.locked && !may_exceed {
            return Err(if map.limits.locked == 0 { Errno::EPERM } else { Errno::ENOMEM });
        }
        map.locked = locked;
        map.areas.update(range.clone(), |v| v.flags.set(VmFlags::LOCKED, lock));
        drop(map);
        if lock && !on_fault {
            self.populate(range);
        }
        Ok(())
    }

    /// mlockall and munlockall: what is mapped now, what will be. May sleep.
    #[allow(clippy::fn_params_excessive_bools)] // mlockall's own flags
    pub fn lock_all(&self, now: bool, future: bool, on_fault: bool, may_exceed: bool) -> Result<()> {
        let mut map = self.map.write();
        if now && map.total > map.limits.locked && !may_exceed {
            return Err(if map.limits.locked == 0 { Errno::EPERM } else { Errno::ENOMEM });
        }
        map.lock_future = future;
        let unlock = !now && !future;
        if now || unlock {
            map.areas.update(0..TASK_SIZE, |v| v.flags.set(VmFlags::LOCKED, now));
            map.locked = if now { map.total } else { 0 };
        }
        let ranges: Vec<Range<usize>> =
            if now && !on_fault { map.areas.iter().map(|e| e.range()).collect() } else { Vec::new() };
        drop(map);
        for r in ranges {
            self.populate(r);
        }
        Ok(())
    }
}
