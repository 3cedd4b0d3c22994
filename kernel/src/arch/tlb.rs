//! TLB maintenance (D8.14). All but [`flush_local`] broadcast to the inner-shareable domain: no interrupts are needed, and
//! the DSB waits until every CPU has finished, so a caller that returns may reuse the frames.

use crate::arch::percpu::{self, Counter};
use core::arch::asm;

#[inline(always)]
fn before() {
    // SAFETY: a barrier: earlier descriptor writes are seen by the walks that follow.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
}

#[inline(always)]
fn after() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Forgets one user page's leaf translation under `asid`.
#[inline]
pub fn flush_page(asid: u16, va: u64) {
    percpu::count(Counter::TlbPages);
    before();
    let arg = (asid as u64) << 48 | (va >> 12) & 0xfff_ffff_ffff;
    // SAFETY: forgetting translations is always sound.
    unsafe { asm!("tlbi vale1is, {}", in(reg) arg, options(nostack, preserves_flags)) };
    after();
}

/// Forgets the translations of `pages` user pages from `va`, leaf and walk caches.
pub fn flush_range(asid: u16, va: u64, pages: usize) {
    if pages > 64 {
        return flush_asid(asid);
    }
    before();
    for i in 0..pages as u64 {
        let arg = (asid as u64) << 48 | ((va >> 12) + i) & 0xfff_ffff_ffff;
        percpu::count(Counter::TlbPages);
        // SAFETY: as in `flush_page`.
        unsafe { asm!("tlbi vae1is, {}", in(reg) arg, options(nostack, preserves_flags)) };
    }
    after();
}

/// Forgets all translations of `asid`.
pub fn flush_asid(asid: u16) {
    percpu::count(Counter::TlbFlushes);
    before();
    // SAFETY: as in `flush_page`.
    unsafe { asm!("tlbi aside1is, {}", in(reg) (asid as u64) << 48, options(nostack, preserves_flags)) };
    after();
}

/// Forgets kernel pages.
pub fn flush_kernel_range(va: u64, pages: usize) {
    before();
    for i in 0..pages as u64 {
        // SAFETY: as in `flush_page`.
        unsafe {
            asm!("tlbi vaae1is, {}", in(reg) ((va >> 12) + i) & 0xfff_ffff_ffff, options(nostack, preserves_flags));
        };
    }
    after();
}

/// Forgets everything on this CPU.
pub fn flush_local() {
    // SAFETY: as in `flush_page`.
    unsafe { asm!("dsb nshst", "tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}

/// Makes a descriptor that was invalid before visible to walks.
#[inline(always)]
pub fn publish() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
}

/// Makes `len` bytes at kernel address `va`, just written, fetchable as instructions through any mapping.
pub fn sync_icache(va: u64, len: usize) {
    let ctr = crate::read_sysreg!("ctr_el0");
    let line = 4u64 << ((ctr >> 16) & 0xf);
    let mut at = va & !(line - 1);
    while at < va + len as u64 {
        // SAFETY: cleaning a line of mapped memory.
        unsafe { asm!("dc cvau, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
    // SAFETY: invalidating instruction caches is always sound; all of them, since user addresses alias.
    unsafe { asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
}
