//! Which address space a CPU has loaded.
//!
//! A CPU keeps the last user address space loaded while kernel threads and idle run ("lazy"), since changing it costs TLB
//! refills. Who destroys an address space first calls [`retire_mm`], which makes every CPU let go of it.

use super::{CPUS, current, resched};
use crate::arch::percpu;
use crate::mm::AddressSpace;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// One CPU's part.
pub(super) struct Loaded {
    mm: AtomicPtr<AddressSpace>,
    /// Asked to let go of it.
    leave: AtomicBool,
}

impl Loaded {
    pub(super) const fn new() -> Self {
        Loaded { mm: AtomicPtr::new(core::ptr::null_mut()), leave: AtomicBool::new(false) }
    }
}

/// Loads `mm` on this CPU if it is a user's and not loaded. Interrupts masked.
#[inline]
pub(super) fn switch_to(mm: *mut AddressSpace) {
    if mm.is_null() {
        return;
    }
    let cpu = percpu::id();
    let loaded = &CPUS[cpu].loaded;
    // SAFETY: a thread's address space lives as long as a thread that uses it has not exited.
    let space = unsafe { &*mm };
    // Its ASID may have changed since it was loaded here (`AddressSpace::renew`).
    if loaded.mm.load(Ordering::Relaxed) == mm && space.is_active_on(cpu) {
        return;
    }
    loaded.mm.store(mm, Ordering::Relaxed);
    space.activate();
}

/// Whether a CPU other than the caller's has `mm` loaded, which no thread there runs in; each such CPU is asked to let go of
/// it some time. Preemption disabled.
pub fn lingers_elsewhere(mm: *const AddressSpace) -> bool {
    let here = percpu::id();
    let mut found = false;
    for (i, cpu) in CPUS.iter().enumerate().take(percpu::listed()) {
        if i != here && cpu.loaded.mm.load(Ordering::SeqCst) == mm.cast_mut() {
            found = true;
            if !cpu.loaded.leave.swap(true, Ordering::AcqRel) {
                resched(i);
            }
        }
    }
    found
}

/// Loads the running thread's address space after it was changed (exec), or none.
pub fn reload_mm() {
    let irq = crate::arch::irq_save();
    let mm = current().sched.mm.load(Ordering::Relaxed);
    if mm.is_null() {
        leave();
    } else {
        switch_to(mm);
    }
    crate::arch::irq_restore(irq);
}

/// Lets this CPU go of whatever is loaded. Interrupts masked.
fn leave() {
    if !CPUS[percpu::id()].loaded.mm.swap(core::ptr::null_mut(), Ordering::AcqRel).is_null() {
        crate::arch::mmu::unload_user();
    }
}

/// Does what another CPU's [`retire_mm`] asks of this one. Interrupts masked.
pub(super) fn serve(cpu: usize) {
    let asked = &CPUS[cpu].loaded.leave;
    // A CPU that runs a user thread by now has that one's space loaded, which nobody retires.
    if asked.load(Ordering::Relaxed)
        && asked.swap(false, Ordering::AcqRel)
        && current().sched.mm.load(Ordering::Relaxed).is_null()
    {
        leave();
    }
}

/// Makes every CPU let go of `mm`, which no thread uses any more (the caller has already pointed itself elsewhere).
/// Bounded: the others run idle or kernel threads, and take the interrupt.
pub fn retire_mm(mm: *const AddressSpace) {
    let mm = mm.cast_mut();
    for (i, cpu) in CPUS.iter().enumerate().take(percpu::listed()) {
        if cpu.loaded.mm.load(Ordering::Acquire) != mm {
            continue;
        }
        let irq = crate::arch::irq_save();
        let here = percpu::id();
        if here == i {
            leave();
        }
        crate::arch::irq_restore(irq);
        if here == i {
            continue;
        }
        cpu.loaded.leave.store(true, Ordering::Release);
        resched(i);
        let limit = crate::arch::time::now_ns() + 5_000_000_000;
        while cpu.loaded.mm.load(Ordering::Acquire) == mm {
            // That CPU may wait for this one in the same way, with interrupts masked.
            let irq = crate::arch::irq_save();
            serve(percpu::id());
            crate::arch::irq_restore(irq);
            core::hint::spin_loop();
            assert!(crate::arch::time::now_ns() <= limit, "cpu{i} does not let go of an address space");
        }
    }
}
