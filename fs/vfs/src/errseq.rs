//! Write errors that are each reported once to every observer.
//!
//! When data cannot be written back there is nobody to tell at once. The error is recorded here, and every open file
//! description notes where in the sequence of errors it stands ([`ErrSeq::sample`] at open); its next fsync compares, reports
//! what happened since, and moves on ([`ErrSeq::check_and_advance`]). The rules are those of Linux' errseq_t
//! (Documentation/core-api/errseq.rst): each observer sees an error once, a later observer does not see an error that was
//! seen before it came, but does see one that nobody has seen yet.
//!
//! One word: the error's number in the low 12 bits, a flag that says whether anybody has seen this value, a counter above.
//! The counter moves only when the present value was seen, so it cannot wrap by errors that nobody looks at.

use abi::Errno;
use core::sync::atomic::{AtomicU32, Ordering};

const ERRNO: u32 = 0xfff;
const SEEN: u32 = 0x1000;
const COUNT: u32 = 0x2000;

/// The errors of a file, or of a file system.
#[derive(Debug, Default)]
pub struct ErrSeq(AtomicU32);

/// Where an observer stands.
#[derive(Debug, Default)]
pub struct ErrCursor(AtomicU32);

impl ErrSeq {
    /// No error so far.
    pub const fn new() -> Self {
        ErrSeq(AtomicU32::new(0))
    }

    /// Records an error. Context: any.
    pub fn set(&self, e: Errno) {
        let next = |old: u32| {
            let count =
                if old & SEEN != 0 { (old & !(ERRNO | SEEN)).wrapping_add(COUNT) } else { old & !(ERRNO | SEEN) };
            Some(count | e.raw() as u32 & ERRNO)
        };
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
    }

    /// Where a new observer starts: behind the present error if anybody has seen it, else before it.
    pub fn sample(&self) -> ErrCursor {
        let now = self.0.load(Ordering::Acquire);
        ErrCursor(AtomicU32::new(if now & SEEN != 0 { now } else { 0 }))
    }

    /// Whether there is an error that the observer has not been told; it stays untold.
    pub fn check(&self, cursor: &ErrCursor) -> abi::Result<()> {
        let now = self.0.load(Ordering::Acquire);
        if now == cursor.0.load(Ordering::Relaxed) { Ok(()) } else { error_of(now) }
    }

    /// Tells the observer, once, of an error that came since it last asked.
    pub fn check_and_advance(&self, cursor: &ErrCursor) -> abi::Result<()> {
        let now = self.0.load(Ordering::Acquire);
        if now == cursor.0.load(Ordering::Relaxed) {
            return Ok(());
        }
        // A new error that replaces an unseen one in between leaves the flag clear: then this observer is told again.
        let seen = now | SEEN;
        let _ = self.0.compare_exchange(now, seen, Ordering::AcqRel, Ordering::Relaxed);
        // Two threads that fsync through one descriptor: one of them is told.
        if cursor.0.swap(seen, Ordering::AcqRel) == seen { Ok(()) } else { error_of(now) }
    }
}

fn error_of(value: u32) -> abi::Result<()> {
    match value & ERRNO {
        0 => Ok(()),
        e => Err(Errno::from_raw(e as i32).unwrap_or(Errno::EIO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_observer_is_told_once() {
        let errors = ErrSeq::new();
        let (a, b) = (errors.sample(), errors.sample());
        errors.set(Errno::EIO);
        assert_eq!(errors.check(&a), Err(Errno::EIO));
        assert_eq!(errors.check_and_advance(&a), Err(Errno::EIO));
        assert_eq!(errors.check_and_advance(&a), Ok(()));
        assert_eq!(errors.check_and_advance(&b), Err(Errno::EIO));
        assert_eq!(errors.check_and_advance(&b), Ok(()));
    }

    #[test]
    fn who_comes_later_sees_only_what_nobody_saw() {
        let errors = ErrSeq::new();
        errors.set(Errno::ENOSPC);
        let late = errors.sample();
        assert_eq!(errors.check_and_advance(&late), Err(Errno::ENOSPC));
        let later = errors.sample();
        assert_eq!(errors.check_and_advance(&later), Ok(()));
        errors.set(Errno::ENOSPC);
        assert_eq!(errors.check_and_advance(&later), Err(Errno::ENOSPC));
        assert_eq!(errors.check_and_advance(&late), Err(Errno::ENOSPC));
    }

    #[test]
    fn the_last_of_several_errors_is_told() {
        let errors = ErrSeq::new();
        let a = errors.sample();
        errors.set(Errno::EIO);
        errors.set(Errno::ENOSPC);
        assert_eq!(errors.check_and_advance(&a), Err(Errno::ENOSPC));
        assert_eq!(errors.check_and_advance(&a), Ok(()));
    }
}
