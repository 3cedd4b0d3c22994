//! Everything that knows the machine is AArch64.
//!
//! The rest of the kernel sees: a device-independent [`trap::TrapFrame`], [`percpu`] state, [`context`] switching,
//! [`uaccess`] copies, [`mmu`]/[`tlb`] maintenance, [`time`], [`smp`], [`psci`]. Section numbers in the files below are
//! those of the Arm Architecture Reference Manual for A-profile (DDI 0487).

pub mod backtrace;
pub mod boot;
pub mod context;
pub mod cpu;
pub mod gic;
pub mod mmu;
pub mod paging;
pub mod percpu;
pub mod psci;
pub mod smp;
pub mod time;
pub mod tlb;
pub mod trap;
pub mod uaccess;

// What the compiler calls to copy, fill and compare memory; in place of its own.
core::arch::global_asm!(include_str!("memory.S"), options(raw));

/// Reads a system register.
#[macro_export]
macro_rules! read_sysreg {
    ($reg:expr) => {{
        let value: u64;
        // SAFETY: reading this register has no side effect that Rust could see.
        #[allow(unused_unsafe)]
        unsafe { core::arch::asm!(concat!("mrs {}, ", $reg), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

/// Writes a system register. To be used in an `unsafe` block that says why the write is sound.
#[macro_export]
macro_rules! write_sysreg {
    ($reg:expr, $value:expr) => {
        core::arch::asm!(concat!("msr ", $reg, ", {}"), in(reg) $value, options(nostack, preserves_flags))
    };
}

/// Masks IRQs on this CPU; returns the former DAIF.
#[inline(always)]
pub fn irq_save() -> usize {
    let daif: usize;
    // SAFETY: masking interrupts breaks no memory rule; the clobber orders it before the section it protects.
    unsafe {
        core::arch::asm!("mrs {0}, daif", "tbnz {0}, #7, 2f", "msr daifset, #2", "2:", out(reg) daif,
            options(nostack, preserves_flags));
    }
    daif
}

/// Restores what [`irq_save`] returned. A section inside another writes nothing.
#[inline(always)]
pub fn irq_restore(daif: usize) {
    // SAFETY: as for irq_save.
    unsafe {
        core::arch::asm!("tbnz {0}, #7, 2f", "msr daifclr, #2", "2:", in(reg) daif, options(nostack, preserves_flags));
    }
}

/// Unmasks IRQs.
#[inline(always)]
pub fn irq_enable() {
    // SAFETY: vectors and stacks are in place before anything calls this.
    unsafe { core::arch::asm!("msr daifclr, #2", options(nostack, preserves_flags)) };
}

/// Whether IRQs are masked.
#[inline(always)]
pub fn irqs_masked() -> bool {
    read_sysreg!("daif") & (1 << 7) != 0
}

/// Sleeps until an interrupt is pending, masked or not. Returns with the mask unchanged.
#[inline(always)]
pub fn wait_for_interrupt() {
    // SAFETY: waiting changes no state.
    unsafe { core::arch::asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    irq_save();
    loop {
        wait_for_interrupt();
    }
}
