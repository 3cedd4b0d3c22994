//! Page faults.
//!
//! The map is locked for reading, so faults of one process run side by side; two that want the same entry settle by
//! compare-and-swap, and the loser gives its frame back. What a fault does depends on the entry:
//!
//! | entry | access | done |
//! | --- | --- | --- |
//! | empty, anonymous | read | the shared zero page, read-only |
//! | empty, anonymous | write | a frame of zeroes |
//! | empty, file | read, fetch | the file's page, and its neighbours that are in memory (fault-around) |
//! | empty, private file | write | a copy of the file's page |
//! | empty, shared object | write | the object's page, which it marks dirty |
//! | read-only, private | write | the frame itself if nobody else has it, else a copy |
//! | read-only, shared | write | the object is told, then the entry is made writable |
//! | allows the access | any | a stale translation on this CPU: forgotten |
//!
//! An entry that changes its frame goes through the busy state with an invalidation between (break-before-make); who meets
//! a busy entry retries.

use super::frames::{self, For, Frame};
use super::object::Mappable;
use super::oom::{self, NoWait, Outcome};
use super::space::{AddressSpace, Map, current};
use super::vma::{Backing, Prot, STACK_GUARD, VmFlags, Vma, attrs_of};
use super::{PAGE_SIZE, TASK_SIZE};
use crate::arch::context;
use crate::arch::percpu::{self, Counter};
use crate::arch::tlb;
use crate::arch::trap::{Access, FaultSignal, TrapFrame};
use abi::Errno;
use core::sync::atomic::{AtomicU64, Ordering};
use mm_core::page_down;
use mm_core::pte::Pte;
use mm_core::table::ENTRIES;
use mm_core::vma::Entry;

/// Why an access cannot be made to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// Nothing is mapped there.
    NotMapped,
    /// The mapping does not allow it.
    Denied,
    /// The object has no such page, or could not read it.
    Bus,
    /// Memory is exhausted and nobody can be killed for it.
    NoMemory,
    /// The thread is to be killed, so it does not wait for memory.
    Interrupted,
}

const SIGBUS: u32 = 7;
const SIGKILL: u32 = 9;
const SIGSEGV: u32 = 11;

impl FaultError {
    /// The signal for an access to `addr`.
    pub fn signal(self, addr: u64) -> FaultSignal {
        let (signo, code) = match self {
            FaultError::NotMapped => (SIGSEGV, 1),
            FaultError::Denied => (SIGSEGV, 2),
            FaultError::Bus => (SIGBUS, 2),
            FaultError::NoMemory | FaultError::Interrupted => (SIGKILL, 0x80),
        };
        FaultSignal { signo, code, addr }
    }
}

/// How far one attempt got.
enum Step {
    Done,
    Retry,
    NoMemory,
    Fail(FaultError),
}

/// Resolves a fault on a user address, from user mode or from a copy routine that may sleep. Interrupts on.
#[inline]
pub fn user_fault(addr: u64, access: Access, frame: &TrapFrame) -> Result<(), FaultSignal> {
    let Some(space) = current() else { return Err(FaultError::NotMapped.signal(addr)) };
    let done = space.fault(addr as usize, access);
    let from_user = frame.pstate & 0xf == 0;
    if context::current().dirtied.take() && from_user {
        // Here, since nothing is locked: a copy routine's caller may hold what write-back needs.
        super::reclaim::page_cache().throttle();
    }
    match done {
        Ok(()) => Ok(()),
        // From user mode the signal is taken now; a copy must end.
        Err(FaultError::Interrupted) if from_user => Ok(()),
        Err(e) => Err(e.signal(addr)),
    }
}

#[inline(always)]
fn allows(prot: Prot, access: Access) -> bool {
    match access {
        Access::Read => !prot.is_empty(),
        Access::Write => prot.contains(Prot::WRITE),
        Access::Exec => prot.contains(Prot::EXEC),
    }
}

#[inline(always)]
fn permits(pte: Pte, access: Access) -> bool {
    pte.is_user()
        && match access {
            Access::Read => true,
            Access::Write => pte.is_writable(),
            Access::Exec => pte.user_exec(),
        }
}

/// Notes that this thread made a page of `object` dirty: it must not do that faster than pages are written.
#[inline]
fn note_dirty(object: &dyn Mappable, wrote: bool) {
    if wrote && object.tracks_dirty() {
        context::current().dirtied.set(true);
    }
}

impl AddressSpace {
    /// Makes `access` to `addr` possible. May sleep; the caller holds no lock of rank ADDRESS_SPACE or above.
    pub fn fault(&self, addr: usize, access: Access) -> Result<(), FaultError> {
        loop {
            let map = self.map.read();
            let step = match map.areas.find(addr) {
                Some(area) if allows(area.value.prot, access) => {
                    // Write-back changes mappings, so nobody may wait for it with the map locked.
                    let _no_wait = NoWait::new();
                    self.resolve(area, page_down(addr), access)
                }
                Some(_) => Step::Fail(FaultError::Denied),
                None => {
                    drop(map);
                    self.grow_stack(addr)?;
                    continue;
                }
            };
            drop(map);
            match step {
                Step::Done => return Ok(()),
                Step::Retry => platform::relax(),
                Step::NoMemory => {
                    // Without process 1 there is no system: it waits.
                    if oom::out_of_memory() == Outcome::Hopeless && !oom::is_init() {
                        return Err(FaultError::NoMemory);
                    }
                    if oom::is_doomed() {
                        // Perhaps this thread's process is the one that was chosen.
                        return Err(FaultError::Interrupted);
                    }
                }
                Step::Fail(e) => return Err(e),
            }
        }
    }

    #[inline]
    fn resolve(&self, area: &Entry<Vma>, va: usize, access: Access) -> Step {
        let Ok(slot) = self.table.leaf_or_create(va) else { return Step::NoMemory };
        let old = Pte(slot.load(Ordering::Acquire));
        if old.is_none() {
            return match &area.value.backing {
                Backing::Anon => self.first_touch(slot, &area.value, access),
                Backing::Object { object, offset } => self.object_fault(slot, area, &**object, *offset, va, access),
                Backing::Phys { pa, mem } => {
                    let attrs = mm_core::pte::Attrs { mem: *mem, ..area.value.attrs() };
                    let pte = Pte::page(pa + (va - area.start) as u64, attrs).special();
                    settle(slot.compare_exchange(0, pte.0, Ordering::AcqRel, Ordering::Relaxed).is_ok())
                }
            };
        }
        if !old.is_valid() {
            return Step::Retry;
        }
        if permits(old, access) {
            platform::preempt_disable();
            self.flush_page_here(va);
            platform::preempt_enable();
            return Step::Done;
        }
        if access == Access::Write && area.value.is_private() {
            return self.copy_on_write(slot, old, &area.value, va);
        }
        self.upgrade(slot, old, area, va, access)
    }

    /// An anonymous page's first access.
    #[inline]
    fn first_touch(&self, slot: &AtomicU64, vma: &Vma, access: Access) -> Step {
        if access != Access::Write {
            let pte = Pte::page(frames::zero_frame().pa(), attrs_of(vma.prot - Prot::WRITE)).special();
            return settle(slot.compare_exchange(0, pte.0, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        }
        let Some(frame) = frames::alloc_zeroed(For::User) else { return Step::NoMemory };
        let pte = Pte::page(frame.pa(), vma.attrs());
        if slot.compare_exchange(0, pte.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            frame.put();
            return Step::Retry;
        }
        self.rss.anon.fetch_add(1, Ordering::Relaxed);
        Step::Done
    }

    /// A write to a private page that is mapped read-only.
    fn copy_on_write(&self, slot: &AtomicU64, old: Pte, vma: &Vma, va: usize) -> Step {
        let from = Frame(old.frame());
        if !old.is_special() && from.refs() == 1 {
            // Nobody else maps it, and nobody can come to while we hold the map (fork takes it for writing).
            let new = old.with_attrs(vma.attrs());
            if slot.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                return Step::Retry;
            }
            platform::preempt_disable();
            self.flush_page_here(va);
            platform::preempt_enable();
            return Step::Done;
        }
        let Some(frame) = frames::alloc_one(For::User) else { return Step::NoMemory };
        // SAFETY: the new frame is ours; the old one is kept by its entry, which only we may replace now or the exchange fails
        // (a racing replacement may free it while we copy: the bytes are then discarded).
        unsafe {
            if old.is_special() {
                frame.clear();
            } else {
                frame.copy_from(from);
            }
        }
        if !self.replace(slot, old, Pte::page(frame.pa(), vma.attrs()), va) {
            frame.put();
            return Step::Retry;
        }
        percpu::count(Counter::CowFaults);
        if old.is_special() {
            self.rss.anon.fetch_add(1, Ordering::Relaxed);
        } else {
            if from.info().owner() & FILE_PAGE != 0 {
                self.rss.file.fetch_sub(1, Ordering::Relaxed);
                self.rss.anon.fetch_add(1, Ordering::Relaxed);
            }
            from.put();
        }
        Step::Done
    }

    /// Replaces a valid entry by one with another frame, break-before-make. False if another CPU changed it first.
    #[inline]
    fn replace(&self, slot: &AtomicU64, old: Pte, new: Pte, va: usize) -> bool {
        // Whoever meets the busy entry spins, so nothing may run here in between.
        platform::preempt_disable();
        let won = slot.compare_exchange(old.0, Pte::BUSY.0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if won {
            self.flush_page(va);
            slot.store(new.0, Ordering::Release);
        }
        platform::preempt_enable();
        won
    }

    /// The first access to a page of an object.
    fn object_fault(
        &self,
        slot: &AtomicU64,
        area: &Entry<Vma>,
        object: &dyn Mappable,
        offset: u64,
        va: usize,
        access: Access,
    ) -> Step {
        let vma = &area.value;
        let index = (offset + (va - area.start) as u64) / PAGE_SIZE as u64;
        let private = vma.is_private();
        let page = match object.page_for(index, access == Access::Write && !private) {
            Ok(p) => p,
            Err(Errno::ENOMEM) => return Step::NoMemory,
            Err(_) => return Step::Fail(FaultError::Bus),
        };
        if access == Access::Write && private {
            let Some(frame) = frames::alloc_one(For::User) else { return Step::NoMemory };
            // SAFETY: ours alone; `page` is a counted reference.
            unsafe { frame.copy_from(Frame(page.raw() as u32)) };
            let pte = Pte::page(frame.pa(), vma.attrs());
            if slot.compare_exchange(0, pte.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                frame.put();
                return Step::Retry;
            }
            self.rss.anon.fetch_add(1, Ordering::Relaxed);
            return Step::Done;
        }
        note_dirty(object, access == Access::Write && !private);
        let writable = !private && (access == Access::Write || !object.tracks_dirty());
        if !self.install(slot, page, vma, writable) {
            return Step::Retry;
        }
        if access != Access::Write {
            self.fault_around(area, object, offset, va, writable);
        }
        Step::Done
    }

    /// Puts an object's page into an empty entry. The entry owns the reference then.
    fn install(&self, slot: &AtomicU64, page: platform::Page, vma: &Vma, writable: bool) -> bool {
        let frame = Frame(page.raw() as u32);
        let prot = if writable { vma.prot } else { vma.prot - Prot::WRITE };
        if prot.contains(Prot::EXEC) {
            make_executable(frame);
        }
        mark_file_page(frame);
        let pte = Pte::page(frame.pa(), attrs_of(prot));
        if slot.compare_exchange(0, pte.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        core::mem::forget(page);
        self.rss.file.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Maps those neighbours of a file page that are in memory, so that they cost no fault each: up to 16 pages, aligned, in
    /// the same mapping and table.
    fn fault_around(&self, area: &Entry<Vma>, object: &dyn Mappable, offset: u64, va: usize, writable: bool) {
        const WINDOW: usize = 16 * PAGE_SIZE;
        let low = (va & !(WINDOW - 1)).max(area.start);
        let high = ((va & !(WINDOW - 1)) + WINDOW).min(area.end);
        let Some(table) = self.table.leaf_table(va) else { return };
        let first = (offset + (low - area.start) as u64) / PAGE_SIZE as u64;
        let at = low / PAGE_SIZE % ENTRIES;
        object.for_cached(first, ((high - low) / PAGE_SIZE) as u64, &mut |index, page| {
            let slot = &table[at + (index - first) as usize];
            if slot.load(Ordering::Relaxed) == 0 {
                self.install(slot, page, &area.value, writable);
            }
        });
    }

    /// A mapped page that lacks a right which the mapping grants: a shared page's first write, or an entry made before the
    /// mapping was given the right.
    fn upgrade(&self, slot: &AtomicU64, old: Pte, area: &Entry<Vma>, va: usize, access: Access) -> Step {
        let vma = &area.value;
        let mut prot = vma.prot;
        if let Backing::Object { object, offset } = &vma.backing
            && access == Access::Write
        {
            let index = (offset + (va - area.start) as u64) / PAGE_SIZE as u64;
            match object.page_for(index, true) {
                // The object may have another page by now (truncated and extended): the old one goes first.
                Ok(page) if page.raw() as u32 != old.frame() => {
                    if self.replace(slot, old, Pte::NONE, va) && !old.is_special() {
                        self.rss.file.fetch_sub(1, Ordering::Relaxed);
                        Frame(old.frame()).put();
                    }
                    return Step::Retry;
                }
                Ok(_) => note_dirty(&**object, true),
                Err(Errno::ENOMEM) => return Step::NoMemory,
                Err(_) => return Step::Fail(FaultError::Bus),
            }
        } else if access != Access::Write && !old.is_writable() {
            // Reading or executing grants no right to write that the entry did not have.
            prot -= Prot::WRITE;
        }
        if prot.contains(Prot::EXEC) && !old.user_exec() {
            make_executable(Frame(old.frame()));
        }
        let new = old.with_attrs(attrs_of(prot));
        if slot.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Step::Retry;
        }
        platform::preempt_disable();
        self.flush_page_here(va);
        platform::preempt_enable();
        Step::Done
    }

    /// Extends the stack above `addr` down to it, if there is one within its limit.
    #[cold]
    fn grow_stack(&self, addr: usize) -> Result<(), FaultError> {
        if addr >= TASK_SIZE {
            return Err(FaultError::NotMapped);
        }
        let mut map = self.map.write();
        let Map { areas, limits, .. } = &mut *map;
        if areas.find(addr).is_some() {
            return Ok(());
        }
        let Some(stack) = areas.find_from(addr) else { return Err(FaultError::NotMapped) };
        let start = page_down(addr);
        let (top, old) = (stack.end, stack.start);
        if !stack.value.flags.contains(VmFlags::GROWSDOWN) || top - start > limits.stack {
            return Err(FaultError::NotMapped);
        }
        let floor = areas
            .find_below(addr)
            .map_or(0, |below| if below.value.prot.is_empty() { below.end } else { below.end + STACK_GUARD });
        let grown = old - start;
        if start < floor.max(super::MIN_ADDR) || map.total + grown > map.limits.address_space {
            return Err(FaultError::NotMapped);
        }
        map.areas.grow_down(old, start);
        map.total += grown;
        map.data += grown;
        super::map::commit_forced(grown);
        Ok(())
    }
}

#[inline(always)]
fn settle(won: bool) -> Step {
    if won { Step::Done } else { Step::Retry }
}

/// In a frame's owner bits: it belongs to an object (for accounting).
pub(super) const FILE_PAGE: u16 = 1;
/// In a frame's owner bits: instruction caches agree with its content.
const ICACHE_CLEAN: u16 = 2;

#[inline]
fn mark_file_page(frame: Frame) {
    let info = frame.info();
    if info.owner() & FILE_PAGE == 0 {
        info.set_use(mm_core::frame::FrameState::Used, info.owner() | FILE_PAGE);
    }
}

/// Before a frame is first mapped executable. Pages of a file are synchronised once; who modifies a program's file while
/// it runs must do its own cache maintenance, as on Linux a debugger must.
fn make_executable(frame: Frame) {
    let info = frame.info();
    if info.owner() & ICACHE_CLEAN != 0 {
        return;
    }
    tlb::sync_icache(frame.ptr() as u64, PAGE_SIZE);
    if info.owner() & FILE_PAGE != 0 {
        info.set_use(mm_core::frame::FrameState::Used, info.owner() | ICACHE_CLEAN);
    }
}

/// As [`make_executable`] for whatever an entry maps, by mprotect.
pub(super) fn now_executable(pte: Pte) {
    if !pte.is_special() {
        make_executable(Frame(pte.frame()));
    }
}
