//! Kernel mappings outside the linear map: device registers.
//!
//! The area after the stacks' is cut first-fit; a page between two mappings stays unmapped.

use super::{KernelMem, PAGE_SIZE};
use crate::arch::mmu::{self, VMAP_BASE, VMAP_END};
use crate::arch::tlb;
use core::ops::Range;
use core::sync::atomic::Ordering;
use mm_core::pte::Attrs;
use mm_core::table::{NoMemory, PageTable};
use mm_core::vma::{Area, AreaMap};
use sync::{IrqLock, LockClass, rank};

/// Where kernel stacks are.
pub const STACKS: Range<usize> = VMAP_BASE as usize..VMAP_BASE as usize + (64 << 30);
/// Where devices are mapped.
const DEVICES: Range<usize> = STACKS.end..VMAP_END as usize - (1 << 30);

#[derive(Clone)]
struct Used;
impl Area for Used {
    fn advanced(&self, _: usize) -> Self {
        Used
    }
    fn joins(&self, _: &Self, _: usize) -> bool {
        false
    }
}

static CLASS: LockClass = LockClass::new("vmap", rank::HEAP - 20);
static AREAS: IrqLock<AreaMap<Used>> = IrqLock::new(&CLASS, AreaMap::new());

/// The kernel's tables.
pub fn kernel_table() -> PageTable<KernelMem> {
    PageTable::new(mmu::kernel_root(), KernelMem)
}

/// Maps `len` bytes of device registers at physical address `pa` (neither need be aligned). `None` when memory or addresses
/// are exhausted. Context: any.
pub fn ioremap(pa: u64, len: usize) -> Option<usize> {
    map_phys(pa, len, Attrs::KERNEL_DEVICE)
}

/// Maps one page of RAM writable and executable, for the negative control of gate m3 (`berth.sabotage=wx`).
pub fn sabotage_wx() {
    let attrs = Attrs { exec: true, ..Attrs::KERNEL_DATA };
    if let Some(frame) = super::frames::alloc(0) {
        // The frame is lost with the page: the control needs no more.
        let _ = map_phys(frame.pa(), PAGE_SIZE, attrs);
    }
}

fn map_phys(pa: u64, len: usize, attrs: Attrs) -> Option<usize> {
    let offset = pa as usize & (PAGE_SIZE - 1);
    let bytes = mm_core::page_up(len.checked_add(offset)?)?;
    let at = {
        let mut areas = AREAS.lock();
        let gap = areas.gap_bottom_up(bytes + PAGE_SIZE, PAGE_SIZE, DEVICES)?;
        areas.insert(gap..gap + bytes + PAGE_SIZE, Used);
        gap
    };
    if kernel_table().map_range(at, pa - offset as u64, bytes, attrs, false).is_err() {
        unmap(at);
        return None;
    }
    tlb::publish();
    Some(at + offset)
}

fn unmap(at: usize) {
    let Some(range) = AREAS.lock().find(at).map(|a| a.range()) else { return };
    clear(range.start, (range.end - range.start) / PAGE_SIZE, |_| {});
    // Only now may the addresses be used again.
    AREAS.lock().remove(range);
}

/// Maps single frames at `at`, one after the other. On failure nothing stays mapped that the caller must undo other than
/// by [`clear`].
pub(super) fn map_frames(at: usize, frames: &[super::Frame]) -> Result<(), NoMemory> {
    let table = kernel_table();
    for (i, f) in frames.iter().enumerate() {
        table.map_range(at + i * PAGE_SIZE, f.pa(), PAGE_SIZE, Attrs::KERNEL_DATA, false)?;
    }
    tlb::publish();
    Ok(())
}

/// Unmaps `pages` from `at`, forgets the translations, then hands each frame that was mapped to `each`.
pub(super) fn clear(at: usize, pages: usize, mut each: impl FnMut(super::Frame)) {
    let table = kernel_table();
    for chunk in (0..pages).step_by(16) {
        let mut old = [0u64; 16];
        let n = (pages - chunk).min(16);
        for (i, o) in old[..n].iter_mut().enumerate() {
            if let Some(slot) = table.leaf(at + (chunk + i) * PAGE_SIZE) {
                *o = slot.swap(0, Ordering::AcqRel);
            }
        }
        tlb::flush_kernel_range((at + chunk * PAGE_SIZE) as u64, n);
        for pte in old[..n].iter().map(|&o| mm_core::pte::Pte(o)).filter(|p| p.is_valid()) {
            each(super::Frame::of(pte.addr()));
        }
    }
}
