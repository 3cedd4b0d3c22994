//! Back-traces by frame records (AAPCS64 6.4.6): X29 points at the caller's X29 and X30.

/// Calls `f` with each return address from `fp` outwards, at most 32.
pub fn walk(mut fp: u64, mut f: impl FnMut(u64)) {
    for _ in 0..32 {
        if fp & 7 != 0 || fp < crate::arch::mmu::VMAP_BASE {
            return;
        }
        // SAFETY: the address is in the kernel's stack or image area and aligned; records are only followed upwards, and
        // a damaged one leads at worst to a nested panic, which halts.
        let (next, ret) = unsafe { (*(fp as *const u64), *((fp + 8) as *const u64)) };
        if ret == 0 {
            return;
        }
        f(ret);
        if next <= fp {
            return;
        }
        fp = next;
    }
}

/// The calling function's frame pointer.
#[inline(always)]
pub fn frame_pointer() -> u64 {
    let fp: u64;
    // SAFETY: reading a register.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack, preserves_flags)) };
    fp
}
