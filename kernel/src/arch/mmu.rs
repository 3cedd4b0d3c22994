//! The translation registers.

use core::sync::atomic::{AtomicU64, Ordering};

/// First address of the map of all RAM.
pub const LINEAR_BASE: u64 = 0xffff_0000_0000_0000;
/// First address of stacks and devices.
pub const VMAP_BASE: u64 = 0xffff_8000_0000_0000;
/// End of stacks and devices.
pub const VMAP_END: u64 = 0xffff_c000_0000_0000;
/// Lowest address that the kernel image may get.
pub const IMAGE_BASE: u64 = 0xffff_c000_0000_0000;
/// First address that is not user space's.
pub const USER_END: u64 = 1 << 48;

/// MAIR attribute indices (boot.S sets MAIR).
#[allow(dead_code)] // the list is whole
pub mod attr {
    /// Device-nGnRE.
    pub const DEVICE: u64 = 0;
    /// Normal, write-back.
    pub const NORMAL: u64 = 1;
    /// Normal, not cached.
    pub const NON_CACHED: u64 = 2;
}

/// Descriptor bits (D8.3).
#[allow(dead_code)] // the list is whole
pub mod desc {
    /// Valid.
    pub const VALID: u64 = 1;
    /// A table, or at level 3 a page.
    pub const TABLE: u64 = 2;
    /// EL0 may access (AP[1]).
    pub const USER: u64 = 1 << 6;
    /// Read-only (AP[2]).
    pub const RO: u64 = 1 << 7;
    /// Inner shareable.
    pub const INNER: u64 = 3 << 8;
    /// Accessed.
    pub const AF: u64 = 1 << 10;
    /// Not global: belongs to an ASID.
    pub const NG: u64 = 1 << 11;
    /// Dirty-bit modifier.
    pub const DBM: u64 = 1 << 51;
    /// Not executable at EL1.
    pub const PXN: u64 = 1 << 53;
    /// Not executable at EL0.
    pub const UXN: u64 = 1 << 54;
    /// The address in a descriptor.
    pub const ADDR: u64 = 0x0000_ffff_ffff_f000;
}

static KERNEL_TTBR1: AtomicU64 = AtomicU64::new(0);
static EMPTY_TTBR0: AtomicU64 = AtomicU64::new(0);

#[repr(align(4096))]
struct EmptyTable(#[allow(dead_code)] [u64; 512]);
static EMPTY: EmptyTable = EmptyTable([0; 512]);

/// A physical address's place in the map of all RAM.
#[inline(always)]
pub const fn phys_to_virt(pa: u64) -> u64 {
    pa + LINEAR_BASE
}

/// Remembers the kernel's tables and leaves the identity map; on the boot CPU, right after the jump to the high half.
pub fn init(ttbr1: u64, image_phys: u64, image_virt: u64) {
    KERNEL_TTBR1.store(ttbr1, Ordering::Relaxed);
    let empty = (&raw const EMPTY as u64) - image_virt + image_phys;
    EMPTY_TTBR0.store(empty, Ordering::Relaxed);
    unload_user();
    crate::arch::tlb::flush_local();
}

/// The physical address of the kernel's level 0 table.
pub fn kernel_root() -> u64 {
    KERNEL_TTBR1.load(Ordering::Relaxed)
}

/// Makes the tables at `root` (physical) with `asid` the current user space.
#[inline(always)]
pub fn load_user(root: u64, asid: u16) {
    // SAFETY: user tables never map the kernel half; the caller owns the address space.
    unsafe {
        crate::write_sysreg!("ttbr0_el1", root | (asid as u64) << 48);
        core::arch::asm!("isb", options(nostack, preserves_flags));
    }
}

/// Leaves no user space loaded.
pub fn unload_user() {
    load_user(EMPTY_TTBR0.load(Ordering::Relaxed), 0);
}
