//! From the identity map to the high half.
//!
//! `boot.S` brings the boot CPU to EL1, turns the MMU on with an identity map of the image and the device tree, relocates
//! the image for where it lies, and calls [`early_main`]. That reads the tree, chooses where the kernel will run (KASLR,
//! from `/chosen/kaslr-seed`), and builds the kernel's own tables in the image's pool:
//!
//! - the linear map: all RAM, writable, never executable, in the largest blocks that fit; the image's text and
//!   read-only data are read-only in it too;
//! - the image: text read-only and executable, read-only data, and the rest writable, each to the page;
//! - the console's registers at [`EARLY_UART`], so that nothing that follows fails in silence.
//!
//! `boot.S` then relocates again, for the chosen address, and jumps to `kernel_main`. What can fail here (no tree, no
//! memory in it, an image outside it) has no console to say so on: the CPU stops in `early_fail` with the reason in X0,
//! for a debugger. Everything that can be checked later is.

use crate::arch::mmu::{self, attr, desc};
use boot_formats::cmdline::Cmdline;
use boot_formats::fdt::Fdt;
use boot_formats::platform::{Platform, bootargs};
use core::cell::UnsafeCell;
use core::ptr::{addr_of, addr_of_mut};

const BOOT_STACK: usize = 32 * 1024;
const POOL_TABLES: usize = 96;

/// 16 KiB of stack at an odd multiple of 16 KiB, the rule for all kernel stacks (vectors.S).
#[repr(align(32768))]
struct BootStack(#[allow(dead_code)] UnsafeCell<[u8; BOOT_STACK]>);
// SAFETY: used by the boot CPU alone.
unsafe impl Sync for BootStack {}
static STACK: BootStack = BootStack(UnsafeCell::new([0; BOOT_STACK]));

#[repr(align(4096))]
struct Pool {
    tables: [[u64; 512]; POOL_TABLES],
    used: usize,
}
static mut POOL: Pool = Pool { tables: [[0; 512]; POOL_TABLES], used: 0 };

/// Where the console's registers are mapped during boot.
pub const EARLY_UART: u64 = mmu::VMAP_END - 0x20_0000;

core::arch::global_asm!(
    include_str!("boot.S"),
    boot_stack = sym STACK,
    boot_stack_size = const BOOT_STACK,
    early_main = sym early_main,
    kernel_main = sym crate::kernel_main,
    secondary_ttbr1 = sym crate::arch::smp::SECONDARY_TTBR1,
    // RES1 bits; M, C, SA, SA0, I on; EL0 may DC ZVA, read CTR_EL0, clean caches; WFI and WFE not trapped; SPAN clear, so
    // that PAN is set on every exception.
    sctlr = const 0x3050_0800u64 | 0x1 | 0x4 | 0x8 | 0x10 | 0x1000 | 0x4000 | 0x8000 | 0x1_0000 | 0x4_0000 | 0x400_0000,
    sctlr_off = const 0x30d0_0800u64,
);

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
    static __idmap_start: u8;
}

fn at(symbol: *const u8) -> u64 {
    symbol as u64
}

/// What early_main gives boot.S, in X0 and X1.
#[repr(C)]
pub struct Handover {
    image_virt: u64,
    ttbr1: u64,
}

#[inline(never)]
extern "C" fn early_fail(reason: u64) -> ! {
    loop {
        // SAFETY: waits; the reason stays in X0 for a debugger.
        unsafe { core::arch::asm!("wfi", in("x0") reason) };
    }
}

extern "C" fn early_main(dtb: u64, image_phys: u64) -> Handover {
    // SAFETY: boot.S mapped 2 MiB behind `dtb`, the most that the protocol allows.
    let bytes = unsafe { core::slice::from_raw_parts(dtb as *const u8, 0x20_0000) };
    let Ok(fdt) = Fdt::new(bytes) else { early_fail(1) };
    // What is missing is told by kernel_main, which has a console; only memory is needed here.
    let mut platform = Platform::new();
    if platform.read_fdt(&fdt).is_err() && platform.memory.is_empty() {
        early_fail(2)
    }

    let seed = platform
        .chosen
        .kaslr_seed
        .unwrap_or_else(|| crate::read_sysreg!("cntvct_el0").wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let seed = seed ^ seed >> 31;
    let fixed = Cmdline::new(bootargs(&fdt)).get("nokaslr").is_some();
    let image_virt = mmu::IMAGE_BASE + if fixed { 0 } else { (seed & 0xffff) * 0x20_0000 };

    let start = at(&raw const __image_start);
    let part = |symbol: *const u8| at(symbol) - start;
    let (text, rodata, end) =
        (part(&raw const __text_end), part(&raw const __rodata_end), part(&raw const __image_end));

    const RW: u64 = desc::PXN | desc::UXN;
    const RO: u64 = desc::RO | desc::PXN | desc::UXN;
    let root = new_table();
    for r in &platform.memory {
        let (low, high) = (r.base.next_multiple_of(4096), r.end() & !0xfff);
        for (from, to, flags) in
            [(low, image_phys, RW), (image_phys, image_phys + rodata, RO), (image_phys + rodata, high, RW)]
        {
            let (from, to) = (from.clamp(low, high.max(low)), to.clamp(low, high.max(low)));
            map(root, mmu::LINEAR_BASE + from, from, to.saturating_sub(from), flags, attr::NORMAL);
        }
    }
    map(root, image_virt, image_phys, text, desc::RO | desc::UXN, attr::NORMAL);
    map(root, image_virt + text, image_phys + text, rodata - text, RO, attr::NORMAL);
    map(root, image_virt + rodata, image_phys + rodata, end - rodata, RW, attr::NORMAL);
    if let Some(uart) = &platform.uart {
        map(root, EARLY_UART, uart.region.base & !0xfff, 4096, RW, attr::DEVICE);
    }
    // SAFETY: a barrier: the tables are seen by the walks that start when boot.S loads TTBR1.
    unsafe { core::arch::asm!("dsb ish") };
    Handover { image_virt, ttbr1: root }
}

/// Makes the identity map read-only. After the jump to the high half. It stays for secondary CPUs, which turn their MMUs
/// on under it and leave it a few instructions later.
pub fn retire_identity_map() {
    let tables = (&raw const __idmap_start as u64) as *mut u64;
    // The pool that boot.S fills is ten tables: whichever of their entries are blocks become read-only.
    for i in 0..10 * 512 {
        // SAFETY: the tables lie in the image's writable part; no CPU walks them now.
        unsafe {
            let entry = tables.add(i);
            let value = entry.read();
            if value & 3 == desc::VALID {
                entry.write(value | desc::RO | desc::UXN);
            }
        }
    }
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("dsb ish") };
}

fn new_table() -> u64 {
    // SAFETY: the boot CPU alone, before anything else runs.
    unsafe {
        let pool = addr_of_mut!(POOL);
        let used = (*pool).used;
        if used >= POOL_TABLES {
            early_fail(3);
        }
        (*pool).used = used + 1;
        addr_of!((*pool).tables[used]) as u64
    }
}

/// Maps `len` bytes (whole pages) at `va` to `pa`, with the largest blocks that fit.
fn map(root: u64, va: u64, pa: u64, len: u64, flags: u64, index: u64) {
    let mut done = 0;
    while done < len {
        let (v, p, left) = (va + done, pa + done, len - done);
        let mut table = root;
        let mut level = 0;
        let mut shift = 39;
        let fits = |shift: u32| shift <= 30 && (v | p) & ((1 << shift) - 1) == 0 && left >= 1 << shift;
        while !fits(shift) && level < 3 {
            // SAFETY: tables are identity-mapped, aligned pages of the pool.
            let entry = unsafe { &mut *((table as *mut u64).add((v >> shift) as usize & 511)) };
            if *entry & desc::VALID == 0 {
                *entry = new_table() | desc::TABLE | desc::VALID;
            }
            table = *entry & desc::ADDR;
            level += 1;
            shift -= 9;
        }
        let kind = if level == 3 { desc::TABLE } else { 0 };
        let value = p | flags | desc::AF | desc::INNER | index << 2 | kind | desc::VALID;
        // SAFETY: as above.
        unsafe { *(table as *mut u64).add((v >> shift) as usize & 511) = value };
        done += 1 << shift;
    }
}

/// Where the image runs.
pub fn image_virt() -> u64 {
    at(&raw const __image_start)
}

/// The image's length, its zeroed data and boot tables included.
pub fn image_len() -> u64 {
    at(&raw const __image_end) - image_virt()
}

/// The kernel's level 0 table (physical), as boot.S loaded it.
pub fn ttbr1() -> u64 {
    crate::read_sysreg!("ttbr1_el1") & desc::ADDR
}

static mut IMAGE_PHYS: u64 = 0;

/// Remembers where the image was loaded; once, first thing in the high half.
pub fn set_image_phys(pa: u64) {
    // SAFETY: the boot CPU alone.
    unsafe { IMAGE_PHYS = pa };
}

/// Where the image was loaded.
pub fn image_phys() -> u64 {
    // SAFETY: written once before other CPUs run.
    unsafe { IMAGE_PHYS }
}

/// The physical address of something in the image.
pub fn image_phys_of(va: u64) -> u64 {
    va - image_virt() + image_phys()
}

/// The address that the linker gave to what runs at `pc`, as symbol tables know it.
pub fn link_address(pc: u64) -> u64 {
    let offset = pc.wrapping_sub(image_virt());
    if offset < image_len() { offset } else { pc }
}
