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

/// Copies 4096 bytes between pages.
///
/// # Safety
/// Both are mapped normal memory, page-aligned and distinct; `to` is the caller's alone.
#[inline(always)]
pub unsafe fn copy_page(to: *mut u8, from: *const u8) {
    // SAFETY: by contract. Others may write `from` meanwhile (a shared mapping): the loads are the machine's, not Rust's.
    unsafe {
        asm!(
            "2:",
            "ldp {a}, {b}, [{from}]",
            "ldp {c}, {d}, [{from}, #16]",
            "ldp {e}, {f}, [{from}, #32]",
            "ldp {g}, {h}, [{from}, #48]",
            "stp {a}, {b}, [{to}]",
            "stp {c}, {d}, [{to}, #16]",
            "stp {e}, {f}, [{to}, #32]",
            "stp {g}, {h}, [{to}, #48]",
            "ldp {a}, {b}, [{from}, #64]",
            "ldp {c}, {d}, [{from}, #80]",
            "ldp {e}, {f}, [{from}, #96]",
            "ldp {g}, {h}, [{from}, #112]",
            "add {from}, {from}, #128",
            "stp {a}, {b}, [{to}, #64]",
            "stp {c}, {d}, [{to}, #80]",
            "stp {e}, {f}, [{to}, #96]",
            "stp {g}, {h}, [{to}, #112]",
            "add {to}, {to}, #128",
            "cmp {from}, {end}",
            "b.ne 2b",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            end = in(reg) from.add(4096),
            a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
            e = out(reg) _, f = out(reg) _, g = out(reg) _, h = out(reg) _,
            options(nostack)
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
        asm!("tlbi aside1, {}", "dsb nsh", "isb", in(reg) (asid as u64) << 48, options(nostack, preserves_flags))
    };
}
