//! The machine's part of memory management that is not a translation register: clearing and copying frames, and
//! invalidations on this CPU alone.
//!
//! The broadcast invalidations are in [`crate::arch::tlb`]. A space that only ever ran on the calling CPU needs no
//! broadcast; the caller (mm/tlb.rs) keeps the account of that and has preemption disabled.

use core::arch::asm;

/// Fills the 4096 bytes at `page` (page-aligned) with zeroes.
///
/// # Safety
/// The page is mapped writable, normal memory, and the caller's alone.
#[inline(always)]
pub unsafe fn clear_page(page: *mut u8) {
    // DCZID_EL0: 4 means blocks of 64 bytes, with bit 4 (DZP) clear: permitted.
    if crate::read_sysreg!("dczid_el0") & 0x1f == 4 {
        // SAFETY: by contract; DC ZVA writes whole blocks inside the page.
        unsafe {
            asm!(
                "2:",
                "dc zva, {p}",
                "add {q}, {p}, #64",
                "dc zva, {q}",
                "add {q}, {p}, #128",
                "dc zva, {q}",
                "add {q}, {p}, #192",
                "dc zva, {q}",
                "add {p}, {p}, #256",
                "cmp {p}, {end}",
                "b.ne 2b",
                p = inout(reg) page => _,
                q = out(reg) _,
                end = in(reg) page.add(4096),
                options(nostack)
            );
        }
    } else {
        // SAFETY: by contract.
        unsafe { core::ptr::write_bytes(page, 0, 4096) };
    }
}

unsafe extern "C" {
    #[link_name = "memory_copy_page"]
    fn copy_page_asm(to: *mut u8, from: *const u8);
}

/// Copies 4096 bytes between pages. Others may write `from` meanwhile (a shared mapping): the loads are the machine's, not
/// Rust's.
///
/// # Safety
/// Both are mapped normal memory, page-aligned and distinct; `to` is the caller's alone.
#[inline]
pub unsafe fn copy_page(to: *mut u8, from: *const u8) {
    // SAFETY: by contract.
    unsafe { copy_page_asm(to, from) };
}

/// All earlier descriptor writes are seen by every walk that follows, and loads that follow come after. Between a
/// descriptor write and a look at which CPUs may know the old descriptor.
#[inline(always)]
pub fn full_barrier() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
}

/// Forgets one user page's leaf translation on this CPU. After [`full_barrier`].
#[inline(always)]
pub fn flush_page_local(asid: u16, va: u64) {
    let arg = (asid as u64) << 48 | (va >> 12) & 0xfff_ffff_ffff;
    // SAFETY: forgetting translations is always sound.
    unsafe { asm!("tlbi vale1, {}", "dsb nsh", "isb", in(reg) arg, options(nostack, preserves_flags)) };
}

/// Forgets all translations of `asid` on this CPU. After [`full_barrier`].
#[inline(always)]
pub fn flush_asid_local(asid: u16) {
    // SAFETY: forgetting translations is always sound.
    unsafe {
        asm!("tlbi aside1, {}", "dsb nsh", "isb", in(reg) (asid as u64) << 48, options(nostack, preserves_flags));
    };
}
