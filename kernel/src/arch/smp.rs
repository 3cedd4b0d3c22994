//! Bringing up the other CPUs: PSCI CPU_ON for all at once, then waiting for each to report, in bounded time.
//!
//! A secondary enters at `secondary_entry` (boot.S), turns its MMU on with the identity map, jumps high, and runs
//! [`secondary_main`]: vectors, per-CPU block, interrupt interface, then the scheduler's idle loop. One that firmware
//! refuses, or that does not report within two seconds, is named on the console and left out.

use crate::arch::percpu::{self, MAX_CPUS};
use crate::arch::psci::{self, PsciError};
use core::sync::atomic::{AtomicU64, Ordering};
use sync::Once;

/// What a secondary finds through X0. The layout is known to boot.S.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct SecondaryArgs {
    entry: u64,
    stack_top: u64,
    cpu: u64,
}

/// The kernel's table, for boot.S to read with the MMU off.
pub static SECONDARY_TTBR1: AtomicU64 = AtomicU64::new(0);

static ARGS: [Once<SecondaryArgs>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

unsafe extern "C" {
    static secondary_entry: u8;
}

/// Starts CPUs 1 to `wanted - 1` and waits for them. `stack_for` gives each the top of its idle thread's kernel stack.
/// Returns how many are online.
pub fn start_secondaries(wanted: usize, stack_for: impl Fn(usize) -> usize) -> usize {
    let entry = crate::arch::boot::image_phys_of(&raw const secondary_entry as u64);
    SECONDARY_TTBR1.store(crate::arch::mmu::kernel_root(), Ordering::Relaxed);
    clean(&raw const SECONDARY_TTBR1 as u64, 8);
    let wanted = wanted.min(percpu::listed());
    let mut refused = [false; MAX_CPUS];
    for (cpu, slot) in ARGS.iter().enumerate().take(wanted).skip(1) {
        let args = SecondaryArgs {
            entry: secondary_main as *const () as u64,
            stack_top: stack_for(cpu) as u64,
            cpu: cpu as u64,
        };
        let Ok(args) = slot.set(args) else { continue };
        let context = core::ptr::from_ref(args) as u64;
        if let Err(e) = cpu_on(cpu, entry, context) {
            crate::warn!("cpu{cpu}: refuses to start ({e:?}), left out");
            refused[cpu] = true;
        }
    }
    let limit = crate::arch::time::now_ns() + 2_000_000_000;
    for cpu in (1..wanted).filter(|&cpu| !refused[cpu]) {
        while !percpu::of(cpu).online.load(Ordering::Acquire) {
            if crate::arch::time::now_ns() > limit {
                crate::warn!("cpu{cpu}: no sign of life within 2 s, left out");
                break;
            }
            core::hint::spin_loop();
        }
    }
    online_count()
}

/// Asks firmware to start a CPU. `berth.sabotage=psci:N` and `psci:all` refuse in its place.
fn cpu_on(cpu: usize, entry: u64, context: u64) -> Result<(), PsciError> {
    use crate::machine::sabotaged;
    if sabotaged("psci:all") || sabotaged(&alloc::format!("psci:{cpu}")) {
        return Err(PsciError::Refused(-3));
    }
    psci::cpu_on(percpu::of(cpu).mpidr.get(), entry, context)
}

/// Cleans lines to memory, for readers with the MMU off.
fn clean(va: u64, len: u64) {
    let mut at = va & !63;
    while at < va + len {
        // SAFETY: cleaning a mapped line.
        unsafe { core::arch::asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += 64;
    }
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("dsb sy", options(nostack, preserves_flags)) };
}

extern "C" fn secondary_main(args: &SecondaryArgs) -> ! {
    let cpu = args.cpu as usize;
    crate::sched::adopt_secondary(cpu);
    crate::arch::trap::init_cpu();
    crate::arch::mmu::unload_user();
    crate::arch::tlb::flush_local();
    crate::secondary_main(cpu)
}

/// How many CPUs are online.
pub fn online_count() -> usize {
    (0..percpu::listed()).filter(|&c| is_online(c)).count()
}

/// Whether `cpu` is online.
pub fn is_online(cpu: usize) -> bool {
    cpu < MAX_CPUS && percpu::of(cpu).online.load(Ordering::Acquire)
}
