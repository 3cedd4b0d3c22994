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

/// Copies 4096 bytes between pages, through the vector registers, which hold some thread's values: those used are saved
/// around it. Nothing may switch threads in between (their owner's values are not what a switch would save), so the
/// caller has preemption disabled.
///
/// # Safety
/// Both are mapped normal memory, page-aligned and distinct; `to` is the caller's alone. Preemption is disabled.
#[inline]
pub unsafe fn copy_page(to: *mut u8, from: *const u8) {
    // SAFETY: by contract. Others may write `from` meanwhile (a shared mapping): the loads are the machine's, not Rust's. The
    // stack is used below SP as an ordinary push; every vector register is restored.
    unsafe {
        asm!(
            ".arch_extension fp",
            ".arch_extension simd",
            "sub sp, sp, #128",
            "stp q0, q1, [sp]",
            "stp q2, q3, [sp, #32]",
            "stp q4, q5, [sp, #64]",
            "stp q6, q7, [sp, #96]",
            "2:",
            "ldp q0, q1, [{from}]",
            "ldp q2, q3, [{from}, #32]",
            "ldp q4, q5, [{from}, #64]",
            "ldp q6, q7, [{from}, #96]",
            "add {from}, {from}, #128",
            "stp q0, q1, [{to}]",
            "stp q2, q3, [{to}, #32]",
            "stp q4, q5, [{to}, #64]",
            "stp q6, q7, [{to}, #96]",
            "add {to}, {to}, #128",
            "cmp {from}, {end}",
            "b.ne 2b",
            "ldp q0, q1, [sp]",
            "ldp q2, q3, [sp, #32]",
            "ldp q4, q5, [sp, #64]",
            "ldp q6, q7, [sp, #96]",
            "add sp, sp, #128",
            ".arch_extension nosimd",
            ".arch_extension nofp",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            end = in(reg) from.add(4096),
        );
    }
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
