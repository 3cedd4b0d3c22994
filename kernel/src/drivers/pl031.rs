//! The PL031 real-time clock (Arm DDI 0224): read once at boot, to set the wall clock.

/// Seconds since 1970 that the clock shows, read through registers mapped at `base`.
///
/// # Safety
/// `base` is a device mapping of a PL031.
pub unsafe fn read_seconds(base: usize) -> u32 {
    // SAFETY: RTCDR, by contract.
    unsafe { (base as *const u32).read_volatile() }
}
