//! mmap, munmap, mprotect, mremap, brk: what changes the map. All of it under the map's write lock.
//!
//! What is taken out of the map (references to files) is dropped after the lock is, since a last reference may sleep.
//!
//! Overcommit (`vm.overcommit_memory`): 0 refuses a single request beyond all memory, 1 nothing, 2 keeps the sum of private
//! writable mappings within half of memory... the Linux default ratio.

use super::fault::{FILE_PAGE, now_executable};
use super::frames::{self, Frame};
use super::space::{AddressSpace, Map};
use super::tlb::Gather;
use super::vma::{Backing, Prot, VmFlags, Vma, attrs_of};
use super::{MIN_ADDR, PAGE_SIZE, TASK_SIZE};
use abi::{Errno, Result};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use mm_core::page_up;
use mm_core::pte::Pte;
use mm_core::table::span;
use mm_core::vma::Entry;

/// The most mappings a space may have (`vm.max_map_count`).
pub const MAX_AREAS: usize = 65530;

// All areas of a space fit the largest allocation.
const _: () = assert!((MAX_AREAS + 66) * size_of::<Entry<Vma>>() <= PAGE_SIZE << mm_core::frame::MAX_ORDER);

/// The most areas that one change adds; storage for them is got before it begins.
const MARGIN: usize = 4;

static COMMITTED: AtomicUsize = AtomicUsize::new(0);
/// `vm.overcommit_memory`.
pub static OVERCOMMIT: AtomicU8 = AtomicU8::new(0);
/// Boot parameter `wx=log`: writable and executable mappings are allowed to all, and logged.
pub static WX_LOG: AtomicBool = AtomicBool::new(false);

/// Frames promised to private writable mappings.
pub fn committed() -> usize {
    COMMITTED.load(Ordering::Relaxed) / PAGE_SIZE
}

/// `CommitLimit`, in frames.
pub fn commit_limit() -> usize {
    frames::total() / 2
}

pub(super) fn commit(bytes: usize) -> Result<()> {
    let all = frames::total() * PAGE_SIZE;
    let fits = match OVERCOMMIT.load(Ordering::Relaxed) {
        1 => true,
        2 => COMMITTED.load(Ordering::Relaxed) + bytes <= commit_limit() * PAGE_SIZE,
        _ => bytes <= all,
    };
    if !fits {
        return Err(Errno::ENOMEM);
    }
    commit_forced(bytes);
    Ok(())
}

pub(super) fn commit_forced(bytes: usize) {
    COMMITTED.fetch_add(bytes, Ordering::Relaxed);
}

pub(super) fn uncommit(bytes: usize) {
    COMMITTED.fetch_sub(bytes, Ordering::Relaxed);
}

/// Where a mapping goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Anywhere, at this address if that is free (0: no wish).
    Any(usize),
    /// Exactly here, in place of what is there.
    Fixed(usize),
    /// Exactly here; `EEXIST` if anything is there.
    FixedFree(usize),
}

/// A mapping to be made.
#[derive(Debug)]
pub struct MapRequest {
    /// Where.
    pub place: Place,
    /// Bytes; rounded up to pages.
    pub len: usize,
    /// What the program may do.
    pub prot: Prot,
    /// How it behaves.
    pub flags: VmFlags,
    /// What is behind it.
    pub backing: Backing,
    /// Make all pages present at once.
    pub populate: bool,
}

impl AddressSpace {
    /// Makes a mapping; its address. Errors as mmap(2). May sleep.
    pub fn map(&self, request: MapRequest) -> Result<usize> {
        let MapRequest { place, len, prot, flags, backing, populate } = request;
        let len = page_up(len).filter(|&l| l <= TASK_SIZE).ok_or(Errno::ENOMEM)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        self.check_wx(prot, len)?;
        let mut vma = Vma { prot, flags, backing };
        let mut guard = self.map.write();
        let map = &mut *guard;
        map.areas.try_reserve(MARGIN).map_err(|_| Errno::ENOMEM)?;
        let (addr, replaced) = match place {
            Place::Any(hint) => (map.find_place(hint, len)?, 0),
            Place::Fixed(a) | Place::FixedFree(a) => {
                let range = fixed_range(a, len)?;
                let there = map.areas.overlapping(range.clone());
                if place == Place::FixedFree(a) && there.len() != 0 {
                    return Err(Errno::EEXIST);
                }
                (a, there.map(|e| e.end.min(range.end) - e.start.max(range.start)).sum())
            }
        };
        if map.lock_future {
            vma.flags |= VmFlags::LOCKED;
        }
        map.check_room(len, replaced, &vma)?;
        let accounted = if vma.is_accounted() { len } else { 0 };
        commit(accounted)?;
        let old = if replaced > 0 { self.unmap_locked(map, addr..addr + len) } else { Vec::new() };
        let locked = vma.flags.contains(VmFlags::LOCKED);
        map.areas.insert(addr..addr + len, vma);
        map.total += len;
        map.data += accounted;
        if locked {
            map.locked += len;
        }
        drop(guard);
        drop(old);
        if populate || locked {
            self.populate(addr..addr + len);
        }
        Ok(addr)
    }

    /// Refuses what would be writable and executable, or logs it where that is allowed.
    fn check_wx(&self, prot: Prot, len: usize) -> Result<()> {
        if !prot.contains(Prot::WRITE | Prot::EXEC) {
            return Ok(());
        }
        if !self.wx_allowed() && !WX_LOG.load(Ordering::Relaxed) {
            return Err(Errno::EACCES);
        }
        crate::notice!("wx: {len:#x} bytes writable and executable in address space {}", self.id());
        Ok(())
    }

    /// Removes all mappings in `addr..addr + len`. Errors as munmap(2). May sleep.
    pub fn unmap(&self, addr: usize, len: usize) -> Result<()> {
        let end = page_up(len).and_then(|l| addr.checked_add(l)).filter(|&e| e <= TASK_SIZE).ok_or(Errno::EINVAL)?;
        if !addr.is_multiple_of(PAGE_SIZE) || end == addr {
            return Err(Errno::EINVAL);
        }
        let mut map = self.map.write();
        if map.areas.len() >= MAX_AREAS || map.areas.try_reserve(MARGIN).is_err() {
            return Err(Errno::ENOMEM);
        }
        let old = self.unmap_locked(&mut map, addr..end);
        drop(map);
        drop(old);
        Ok(())
    }

    /// Takes the areas in `range` out and frees their pages and tables.
    pub(super) fn unmap_locked(&self, map: &mut Map, range: Range<usize>) -> Vec<Entry<Vma>> {
        let removed = map.areas.remove(range);
        let (Some(first), Some(last)) = (removed.first(), removed.last()) else { return removed };
        let range = first.start..last.end;
        for e in &removed {
            map.forget(e);
        }
        let mut gather = Gather::new(self);
        self.zap(range.clone(), &mut gather);
        // Tables go if no neighbour needs them: look at most one level 2 table's span to either side.
        let floor = map.areas.find_below(range.start).map_or(0, |a| a.end).max(range.start / span(1) * span(1));
        let ceiling = map.areas.find_from(range.end).map_or(TASK_SIZE, |a| a.start);
        let ceiling = ceiling.min(range.end.next_multiple_of(span(1)));
        self.table.take_tables(floor..ceiling, &mut |t| gather.table(t));
        removed
    }

    /// Empties the entries of `range`.
    pub(super) fn zap(&self, range: Range<usize>, gather: &mut Gather<'_>) {
        let (mut anon, mut file) = (0, 0);
        let _memmap = frames::memmap();
        self.table.for_leaves(range, |va, entries| {
            for (i, slot) in entries.iter().enumerate() {
                if slot.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let pte = Pte(slot.swap(0, Ordering::AcqRel));
                gather.note(va + i * PAGE_SIZE);
                if pte.is_valid() && !pte.is_special() {
                    let frame = Frame(pte.frame());
                    if frame.info().owner() & FILE_PAGE != 0 {
                        file += 1;
                    } else {
                        anon += 1;
                    }
                    gather.frame(frame);
                }
            }
        });
        self.rss.anon.fetch_sub(anon, Ordering::Relaxed);
        self.rss.file.fetch_sub(file, Ordering::Relaxed);
    }

    /// Changes the permissions of `addr..addr + len`. Errors as mprotect(2). May sleep.
    pub fn protect(&self, addr: usize, len: usize, prot: Prot) -> Result<()> {
        let end = page_up(len).and_then(|l| addr.checked_add(l)).filter(|&e| e <= TASK_SIZE).ok_or(Errno::ENOMEM)?;
        if !addr.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        if end == addr {
            return Ok(());
        }
        self.check_wx(prot, end - addr)?;
        let mut guard = self.map.write();
        let map = &mut *guard;
        map.areas.try_reserve(MARGIN).map_err(|_| Errno::ENOMEM)?;
        let range = addr..end;
        if !map.areas.covers(range.clone()) || map.areas.len() + 2 > MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        let (mut more, mut less) = (0, 0);
        for e in map.areas.overlapping(range.clone()) {
            let v = &e.value;
            if prot.contains(Prot::WRITE) && v.flags.contains(VmFlags::NOWRITE)
                || prot.contains(Prot::EXEC) && v.flags.contains(VmFlags::NOEXEC)
            {
                return Err(Errno::EACCES);
            }
            let bytes = e.end.min(end) - e.start.max(addr);
            match (v.is_accounted(), v.is_accounted_with(prot)) {
                (false, true) => more += bytes,
                (true, false) => less += bytes,
                _ => {}
            }
        }
        if more > less && map.data + more - less > map.limits.data {
            return Err(Errno::ENOMEM);
        }
        commit(more)?;
        uncommit(less);
        map.data = map.data + more - less;
        map.areas.update(range.clone(), |v| v.prot = prot);
        let mut gather = Gather::new(self);
        for e in map.areas.overlapping(range.clone()) {
            self.protect_pages(&e.value, e.start.max(addr)..e.end.min(end), &mut gather);
        }
        Ok(())
    }

    /// Gives the entries of `range` the rights of their area, as far as they can have them at once.
    fn protect_pages(&self, vma: &Vma, range: Range<usize>, gather: &mut Gather<'_>) {
        let prot = vma.prot;
        let lazy_dirty = match &vma.backing {
            Backing::Object { object, .. } => object.tracks_dirty(),
            _ => false,
        };
        self.table.for_leaves(range, |va, entries| {
            for (i, slot) in entries.iter().enumerate() {
                let old = Pte(slot.load(Ordering::Acquire));
                if !old.is_valid() {
                    continue;
                }
                let frame = Frame(old.frame());
                // A private page that nobody shares can be writable at once; else the write fault decides.
                let write = prot.contains(Prot::WRITE)
                    && (old.is_writable()
                        || !vma.is_private() && !lazy_dirty
                        || vma.is_private() && !old.is_special() && frame.refs() == 1);
                let new = if prot.is_empty() {
                    old.inaccessible()
                } else {
                    old.with_attrs(attrs_of(if write { prot } else { prot - Prot::WRITE }))
                };
                if new == old {
                    continue;
                }
                if new.user_exec() && !old.user_exec() {
                    now_executable(old);
                }
                slot.store(new.0, Ordering::Release);
                if old.is_user() && !new.is_user()
                    || old.is_writable() && !new.is_writable()
                    || old.user_exec() && !new.user_exec()
                {
                    gather.note(va + i * PAGE_SIZE);
                }
            }
        });
    }

    /// Moves the end of the heap; the end that holds afterwards (unchanged if it cannot be), as brk(2). May sleep.
    pub fn brk(&self, new: usize) -> usize {
        let mut guard = self.map.write();
        let map = &mut *guard;
        let (old_end, Some(new_end)) = (map.brk.next_multiple_of(PAGE_SIZE), page_up(new)) else { return map.brk };
        if map.brk_start == 0 || new < map.brk_start || new_end > TASK_SIZE {
            return map.brk;
        }
        if new_end < old_end {
            map.brk = new;
            let old = self.unmap_locked(map, new_end..old_end);
            drop(guard);
            drop(old);
            return new;
        }
        if new_end > old_end {
            let len = new_end - old_end;
            let mut vma = Vma { prot: Prot::READ | Prot::WRITE, flags: VmFlags::empty(), backing: Backing::Anon };
            if map.lock_future {
                vma.flags |= VmFlags::LOCKED;
            }
            let room = old_end..new_end.saturating_add(PAGE_SIZE);
            let heap = new_end - map.brk_start;
            if heap > map.limits.data
                || !map.areas.is_free(room)
                || map.check_room(len, 0, &vma).is_err()
                || commit(len).is_err()
            {
                return map.brk;
            }
            map.total += len;
            map.data += len;
            let locked = vma.flags.contains(VmFlags::LOCKED);
            if locked {
                map.locked += len;
            }
            map.areas.insert(old_end..new_end, vma);
            map.brk = new;
            drop(guard);
            if locked {
                self.populate(old_end..new_end);
            }
            return new;
        }
        map.brk = new;
        new
    }
}

/// How [`AddressSpace::remap`] may go about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemapFlags {
    /// `MREMAP_MAYMOVE`
    pub may_move: bool,
    /// `MREMAP_FIXED`, with the address
    pub fixed: Option<usize>,
    /// `MREMAP_DONTUNMAP`
    pub keep_old: bool,
}

impl AddressSpace {
    /// Resizes or moves a mapping; its address. Errors as mremap(2). May sleep.
    pub fn remap(&self, addr: usize, old_len: usize, new_len: usize, flags: RemapFlags) -> Result<usize> {
        let old_len = page_up(old_len).ok_or(Errno::EINVAL)?;
        let new_len = page_up(new_len).filter(|&l| l > 0 && l <= TASK_SIZE).ok_or(Errno::EINVAL)?;
        let moved = flags.fixed.is_some() || flags.keep_old;
        if !addr.is_multiple_of(PAGE_SIZE)
            || moved && !flags.may_move
            || flags.keep_old && old_len != new_len
            || addr.checked_add(old_len).is_none_or(|e| e > TASK_SIZE)
        {
            return Err(Errno::EINVAL);
        }
        if let Some(to) = flags.fixed {
            fixed_range(to, new_len).map_err(|_| Errno::EINVAL)?;
            if to < addr + old_len && addr < to + new_len {
                return Err(Errno::EINVAL);
            }
        }
        let mut dropped = Vec::new();
        let mut guard = self.map.write();
        let map = &mut *guard;
        if let Some(to) = flags.fixed {
            dropped.extend(self.unmap_locked(map, to..to + new_len));
        }
        let (start, area_end, vma) = {
            let e = map.areas.find(addr).ok_or(Errno::EFAULT)?;
            (e.start, e.end, e.value.clone())
        };
        if addr + old_len > area_end {
            return Err(Errno::EFAULT);
        }
        if old_len == 0 && vma.is_private() || flags.keep_old && !matches!(vma.backing, Backing::Anon) {
            return Err(Errno::EINVAL);
        }
        let mut populate = None;
        let result = if !moved && old_len > 0 && new_len <= old_len {
            if new_len < old_len {
                dropped.extend(self.unmap_locked(map, addr + new_len..addr + old_len));
            }
            Ok(addr)
        } else {
            let piece = mm_core::vma::Area::advanced(&vma, addr - start);
            let grown = new_len - old_len.min(new_len);
            map.check_room(grown, 0, &piece)?;
            let in_place = !moved
                && old_len > 0
                && addr + old_len == area_end
                && addr + new_len <= TASK_SIZE
                && map.areas.is_free(area_end..addr + new_len);
            let charge = if piece.is_accounted() { if flags.keep_old { new_len } else { grown } } else { 0 };
            commit(charge)?;
            map.data += charge;
            let locked = piece.flags.contains(VmFlags::LOCKED);
            if in_place {
                map.total += grown;
                map.locked += if locked { grown } else { 0 };
                let tail = mm_core::vma::Area::advanced(&piece, old_len);
                map.areas.insert(area_end..addr + new_len, tail);
                populate = locked.then_some(area_end..addr + new_len);
                Ok(addr)
            } else if !flags.may_move {
                uncommit(charge);
                map.data -= charge;
                Err(Errno::ENOMEM)
            } else {
                let r = self.move_area(map, addr, old_len, new_len, piece, flags, &mut dropped);
                if r.is_err() {
                    uncommit(charge);
                    map.data -= charge;
                }
                if let Ok(to) = r
                    && locked
                {
                    populate = Some(to..to + new_len);
                }
                r
            }
        };
        drop(guard);
        drop(dropped);
        if let Some(range) = populate {
            self.populate(range);
        }
        result
    }

    /// Moves the mapping `piece` from `addr` to a new place, with its pages.
    #[allow(clippy::too_many_arguments)] // one caller; the parts of one request
    fn move_area(
        &self,
        map: &mut Map,
        addr: usize,
        old_len: usize,
        new_len: usize,
        piece: Vma,
        flags: RemapFlags,
        dropped: &mut Vec<Entry<Vma>>,
    ) -> Result<usize> {
        let to = match flags.fixed {
            Some(to) => to,
            None => map.find_place(0, new_len)?,
        };
        let moving = old_len.min(new_len);
        // Destination tables first, so that nothing fails half-way.
        let mut at = 0;
        while at < moving {
            if self.table.leaf_table(addr + at).is_some() {
                let last = (at + span(2)).min(moving) - PAGE_SIZE;
                self.table.leaf_table_or_create(to + at).map_err(|_| Errno::ENOMEM)?;
                self.table.leaf_table_or_create(to + last).map_err(|_| Errno::ENOMEM)?;
            }
            at += PAGE_SIZE.max(span(2) - (addr + at) % span(2));
        }
        let mut gather = Gather::new(self);
        self.table.for_leaves(addr..addr + moving, |va, entries| {
            for (i, slot) in entries.iter().enumerate() {
                let va = va + i * PAGE_SIZE;
                if slot.load(Ordering::Relaxed) != 0
                    && let Ok(new) = self.table.leaf_or_create(to + (va - addr))
                {
                    new.store(slot.swap(0, Ordering::AcqRel), Ordering::Release);
                    gather.note(va);
                }
            }
        });
        gather.flush();
        let locked = piece.flags.contains(VmFlags::LOCKED);
        let accounted = piece.is_accounted();
        map.areas.insert(to..to + new_len, piece);
        map.total += new_len;
        map.locked += if locked { new_len } else { 0 };
        if !flags.keep_old && old_len > 0 {
            // The part that moved keeps its charge: take it out of what unmapping gives back.
            if accounted {
                map.data += moving;
                commit_forced(moving);
            }
            dropped.extend(self.unmap_locked(map, addr..addr + old_len));
        }
        Ok(to)
    }
}

impl Map {
    /// A free place for `len` bytes: at `hint` if possible, below the mapping top, or anywhere.
    fn find_place(&mut self, hint: usize, len: usize) -> Result<usize> {
        if hint != 0 {
            let hint = mm_core::page_down(hint).max(MIN_ADDR);
            if let Ok(range) = fixed_range(hint, len)
                && self.areas.is_free(range)
                && self.areas.gap_top_down(len, PAGE_SIZE, hint..hint + len) == Some(hint)
            {
                return Ok(hint);
            }
        }
        let top = self.layout.mmap_top;
        let slot = top / span(0) * span(0);
        self.areas
            .take_gap(len, PAGE_SIZE, slot.max(MIN_ADDR)..top)
            .or_else(|| self.areas.gap_top_down(len, PAGE_SIZE, MIN_ADDR..TASK_SIZE - PAGE_SIZE))
            .ok_or(Errno::ENOMEM)
    }

    /// Whether the limits let `len` more bytes in (`replaced` of them go first).
    fn check_room(&self, len: usize, replaced: usize, vma: &Vma) -> Result<()> {
        let total = (self.total + len).saturating_sub(replaced);
        if total > self.limits.address_space || self.areas.len() + 2 > MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        if vma.is_accounted() && self.data.saturating_add(len).saturating_sub(replaced) > self.limits.data {
            return Err(Errno::ENOMEM);
        }
        if vma.flags.contains(VmFlags::LOCKED) && self.locked + len > self.limits.locked {
            return Err(Errno::EAGAIN);
        }
        Ok(())
    }

    /// Takes a removed area out of the accounts.
    fn forget(&mut self, e: &Entry<Vma>) {
        self.total -= e.len();
        if e.value.is_accounted() {
            self.data -= e.len();
            uncommit(e.len());
        }
        if e.value.flags.contains(VmFlags::LOCKED) {
            self.locked -= e.len();
        }
    }
}

fn fixed_range(addr: usize, len: usize) -> Result<Range<usize>> {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    if addr < MIN_ADDR {
        return Err(Errno::EPERM);
    }
    match addr.checked_add(len) {
        Some(end) if end <= TASK_SIZE => Ok(addr..end),
        _ => Err(Errno::ENOMEM),
    }
}
