//! When timers may fire, and how many there may be.
//!
//! A wake-up that nobody waits for need not have an interrupt of its own. Each timer may fire anywhere from its expiry
//! to the end of a window: 8, 4, 1 or 0 ms by QoS class, or the slack that the program set itself
//! (`prctl(PR_SET_TIMERSLACK)`), and nothing for real-time threads. The end of the window is rounded to a multiple of
//! the window, so that timers which could share an interrupt do. A short sleep is not stretched out of proportion: the
//! window of a class is at most a quarter of the time asked for.
//!
//! Timers never fire early.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::entity::Entity;
use crate::qos::QosClass;

/// Live timers that one owner may have unless the kernel sets another limit.
pub const DEFAULT_TIMER_LIMIT: u32 = 1024;

/// The coalescing window of a class, in ns.
#[inline]
pub const fn class_window_ns(class: QosClass) -> u64 {
    match class {
        QosClass::Idle => 8_000_000,
        QosClass::Normal => 4_000_000,
        QosClass::Interactive => 1_000_000,
        QosClass::PerfBurst => 0,
    }
}

/// The window of a timer that a thread sets `duration_ns` ahead, in ns. `own_slack` is what the program asked for.
#[inline]
pub fn timer_window_ns(entity: &Entity, own_slack: Option<u64>, duration_ns: u64) -> u64 {
    if entity.policy().is_realtime() {
        return 0;
    }
    match own_slack {
        Some(slack) => slack,
        None => class_window_ns(entity.qos()).min(duration_ns / 4),
    }
}

/// The latest time at which a timer that expires at `expiry_ns` should fire by itself: within `window_ns` of the
/// expiry, and at a moment that other timers of such a window choose too.
#[inline]
pub const fn coalesced_expiry_ns(expiry_ns: u64, window_ns: u64) -> u64 {
    if window_ns == 0 {
        return expiry_ns;
    }
    let rest = expiry_ns % window_ns;
    if rest == 0 { expiry_ns } else { expiry_ns.saturating_add(window_ns - rest) }
}

/// The owner has as many live timers as it may have (`EAGAIN`). Nothing was changed.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerOverLimit {
    /// The limit.
    pub limit: u32,
}

/// Counts one owner's live timers.
#[derive(Debug, Default)]
pub struct TimerAccount {
    live: AtomicU32,
}

impl TimerAccount {
    /// No timers.
    pub const fn new() -> Self {
        Self { live: AtomicU32::new(0) }
    }

    /// How many timers live.
    pub fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// Counts one more timer in, if that keeps within `limit`.
    pub fn reserve(&self, limit: u32) -> Result<(), TimerOverLimit> {
        self.live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| (live < limit).then_some(live + 1))
            .map(drop)
            .map_err(|_| TimerOverLimit { limit })
    }

    /// Counts one timer out, which was reserved before.
    pub fn release(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpumask::{CpuId, CpuMask};
    use crate::params::{Nice, Policy, RtPriority};

    #[test]
    fn windows_by_class_own_slack_and_policy() {
        let entity = |policy, qos| Entity::new(policy, qos, CpuMask::ALL, CpuId::BOOT);
        let fair = Policy::Fair(Nice::ZERO);
        let second = 1_000_000_000;
        assert_eq!(timer_window_ns(&entity(fair, QosClass::Idle), None, second), 8_000_000);
        assert_eq!(timer_window_ns(&entity(fair, QosClass::Normal), None, second), 4_000_000);
        assert_eq!(timer_window_ns(&entity(fair, QosClass::Interactive), None, second), 1_000_000);
        assert_eq!(timer_window_ns(&entity(fair, QosClass::PerfBurst), None, second), 0);
        assert_eq!(timer_window_ns(&entity(fair, QosClass::Normal), Some(50_000), second), 50_000);
        assert_eq!(timer_window_ns(&entity(fair, QosClass::Normal), None, 1000), 250);
        let fifo = Policy::Fifo(RtPriority::new(1).unwrap());
        assert_eq!(timer_window_ns(&entity(fifo, QosClass::Idle), Some(50_000), second), 0);
    }

    #[test]
    fn never_early_and_never_past_the_window() {
        for window in [0, 1, 1_000_000, 4_000_000, 8_000_000] {
            for expiry in [0, 1, 999_999, 4_000_000, 12_345_678, u64::MAX] {
                let fires = coalesced_expiry_ns(expiry, window);
                assert!(fires >= expiry && fires - expiry <= window);
            }
        }
        assert_eq!(coalesced_expiry_ns(4_100_000, 4_000_000), coalesced_expiry_ns(7_900_000, 4_000_000));
    }
}
