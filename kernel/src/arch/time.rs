//! The generic timer (D11): a counter that all CPUs share, and one one-shot timer per CPU.

use core::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds per tick, times 2^32.
static MULT: AtomicU64 = AtomicU64::new(16 << 32);
/// Ticks per nanosecond, times 2^32.
static INVERSE: AtomicU64 = AtomicU64::new((1 << 32) / 16);
/// The counter at boot.
static START: AtomicU64 = AtomicU64::new(0);

/// Reads the counter's frequency; once, on the boot CPU.
pub fn init() {
    let freq = crate::read_sysreg!("cntfrq_el0").max(1);
    MULT.store(((1_000_000_000u128 << 32) / freq as u128) as u64, Ordering::Relaxed);
    INVERSE.store((((freq as u128) << 32) / 1_000_000_000) as u64, Ordering::Relaxed);
    START.store(count(), Ordering::Relaxed);
}

/// CNTKCTL_EL1's fields that make the counter an event source for WFE at about 10 kHz (HWCAP_EVTSTRM).
pub fn event_stream() -> u64 {
    let freq = crate::read_sysreg!("cntfrq_el0").max(1);
    let bit = (freq / 10_000).max(1).ilog2().saturating_sub(1).min(15) as u64;
    bit << 4 | 1 << 2
}

/// The counter.
#[inline(always)]
pub fn count() -> u64 {
    let v: u64;
    // SAFETY: reading the counter; the ISB keeps the read from moving up.
    unsafe { core::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

/// Nanoseconds since boot.
#[inline]
pub fn now_ns() -> u64 {
    since_boot(count())
}

/// The same, where it does not matter if the CPU reads the counter some instructions early: no barrier.
#[inline]
pub fn about_now_ns() -> u64 {
    let v: u64;
    // SAFETY: reading the counter.
    unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) v, options(nomem, nostack, preserves_flags)) };
    since_boot(v)
}

#[inline]
fn since_boot(count: u64) -> u64 {
    let ticks = count.saturating_sub(START.load(Ordering::Relaxed));
    ((ticks as u128 * MULT.load(Ordering::Relaxed) as u128) >> 32) as u64
}

/// The counter's value at boot, and its ratio to nanoseconds times 2^32 (for the vDSO).
pub fn scale() -> (u64, u64) {
    (START.load(Ordering::Relaxed), MULT.load(Ordering::Relaxed))
}

/// Lets this CPU's timer fire at `deadline_ns` on the [`now_ns`] clock (at once if that is past).
#[inline]
pub fn set_oneshot(deadline_ns: u64) {
    let ticks = ((deadline_ns as u128 * INVERSE.load(Ordering::Relaxed) as u128) >> 32) as u64;
    let compare = START.load(Ordering::Relaxed).saturating_add(ticks).saturating_add(1);
    // SAFETY: the CPU's own timer.
    unsafe {
        crate::write_sysreg!("cntv_cval_el0", compare);
        crate::write_sysreg!("cntv_ctl_el0", 1u64);
    }
}

/// Stops this CPU's timer.
#[inline]
pub fn stop() {
    // SAFETY: the CPU's own timer.
    unsafe { crate::write_sysreg!("cntv_ctl_el0", 0u64) };
}
