//! The Linux AArch64 ABI: error numbers, constants and structures.
//!
//! Numbers come from `linux-raw-sys`, which is generated from Linux's own headers; this crate adds the types that the
//! kernel passes around ([`Errno`], file modes, times). Structures that cross the boundary are `#[repr(C)]` here or in
//! `linux-raw-sys` ([`raw`]).
#![no_std]
#![forbid(unsafe_code)]

mod errno;

pub use errno::Errno;
pub use linux_raw_sys as raw;
pub use linux_raw_sys::general as linux;

/// The result of whatever a system call may report.
pub type Result<T> = core::result::Result<T, Errno>;

/// Seconds and nanoseconds, as `struct timespec`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timespec {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, 0 to 999 999 999.
    pub nsec: i64,
}

impl Timespec {
    /// From nanoseconds.
    pub const fn from_ns(ns: u64) -> Self {
        Timespec { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as i64 }
    }

    /// In nanoseconds, saturated; `EINVAL` for negative times or nanoseconds out of range.
    pub fn to_ns(self) -> Result<u64> {
        if self.sec < 0 || !(0..1_000_000_000).contains(&self.nsec) {
            return Err(Errno::EINVAL);
        }
        Ok((self.sec as u64).saturating_mul(1_000_000_000).saturating_add(self.nsec as u64))
    }
}
