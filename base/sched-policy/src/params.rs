//! What a thread asks of the scheduler: policy, nice value, real-time priority, QoS class; and what follows from it.
//!
//! Names and ranges are those of `sched(7)`. The weight table is the one that programs know from Linux: one nice step is
//! about 10 % of a CPU between two threads, a factor of 1.25 in weight, with nice 0 at 1024.

use crate::qos::QosClass;

/// Weight of nice 0.
pub const NICE_0_WEIGHT: u32 = 1024;
/// Weight of the `SCHED_IDLE` policy.
pub const IDLE_WEIGHT: u32 = 3;
/// The quantum of `SCHED_RR`, in ns (`sched_rr_get_interval(2)` reports it).
pub const RR_QUANTUM_NS: u32 = 100_000_000;

const WEIGHTS: [u32; 40] = [
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906, 3121, 2501,
    1991, 1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
];

/// A nice value, `-20..=19`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nice(i8);

impl Nice {
    /// The usual value.
    pub const ZERO: Self = Self(0);

    /// `n` if it is in range.
    pub const fn new(n: i32) -> Option<Self> {
        if n >= -20 && n <= 19 { Some(Self(n as i8)) } else { None }
    }

    /// `n` forced into range, as `setpriority(2)` does.
    pub const fn clamped(n: i32) -> Self {
        if n < -20 {
            Self(-20)
        } else if n > 19 {
            Self(19)
        } else {
            Self(n as i8)
        }
    }

    /// The value.
    pub const fn get(self) -> i32 {
        self.0 as i32
    }

    const fn weight(self) -> u32 {
        WEIGHTS[(self.0 + 20) as usize]
    }
}

/// A real-time priority, `1..=99`, larger runs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RtPriority(u8);

impl RtPriority {
    /// `n` if it is in range.
    pub const fn new(n: i32) -> Option<Self> {
        if n >= 1 && n <= 99 { Some(Self(n as u8)) } else { None }
    }

    /// The value.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// A scheduling policy with its own parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `SCHED_OTHER`: a fair share by weight.
    Fair(Nice),
    /// `SCHED_BATCH`: a fair share by weight that never preempts at a wake-up.
    Batch(Nice),
    /// `SCHED_IDLE`: the least weight; every other policy preempts it.
    Idle,
    /// `SCHED_FIFO`: runs until it blocks, yields or a higher priority wakes.
    Fifo(RtPriority),
    /// `SCHED_RR`: as FIFO, with a quantum among equals.
    Rr(RtPriority),
}

impl Policy {
    /// Is this FIFO or RR?
    pub const fn is_realtime(self) -> bool {
        matches!(self, Self::Fifo(_) | Self::Rr(_))
    }

    /// The weight among fair threads (nice 0 for real-time policies).
    pub const fn weight(self) -> u32 {
        match self {
            Self::Fair(nice) | Self::Batch(nice) => nice.weight(),
            Self::Idle => IDLE_WEIGHT,
            Self::Fifo(_) | Self::Rr(_) => NICE_0_WEIGHT,
        }
    }
}

/// 2^32 / `weight`: what turns the division of [`virtual_ns`] into a multiplication.
#[inline]
pub(crate) const fn inverse_weight(weight: u32) -> u32 {
    ((1u64 << 32) / weight as u64) as u32
}

/// Virtual time that `ns` of real time are worth at a weight, given its inverse: `ns * 1024 / weight`.
#[inline]
pub(crate) const fn virtual_ns(ns: u64, inverse: u32) -> i64 {
    ((ns as u128 * inverse as u128) >> 22) as i64
}

/// Real time that `virtual_ns` are worth at `weight`.
#[inline]
pub(crate) const fn real_ns(virtual_ns: i64, weight: u32) -> i64 {
    ((virtual_ns as i128 * weight as i128) >> 10) as i64
}

/// Policy and QoS class in one word, so that they are read and replaced together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Params(pub(crate) u32);

/// The kinds of policy in the lowest byte of [`Params`]; real-time ones are the largest.
pub(crate) mod kind {
    pub(crate) const FAIR: u8 = 0;
    pub(crate) const BATCH: u8 = 1;
    pub(crate) const IDLE: u8 = 2;
    pub(crate) const FIFO: u8 = 3;
    pub(crate) const RR: u8 = 4;
}

impl Params {
    pub(crate) const fn new(policy: Policy, qos: QosClass) -> Self {
        let (kind, value) = match policy {
            Policy::Fair(nice) => (kind::FAIR, nice.0 as u8),
            Policy::Batch(nice) => (kind::BATCH, nice.0 as u8),
            Policy::Idle => (kind::IDLE, 0),
            Policy::Fifo(prio) => (kind::FIFO, prio.0),
            Policy::Rr(prio) => (kind::RR, prio.0),
        };
        Self(kind as u32 | (value as u32) << 8 | (qos as u32) << 16)
    }

    #[inline]
    pub(crate) const fn kind(self) -> u8 {
        self.0 as u8
    }

    #[inline]
    pub(crate) const fn is_realtime(self) -> bool {
        self.kind() >= kind::FIFO
    }

    /// The real-time priority; meaningless for fair policies.
    #[inline]
    pub(crate) const fn priority(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline]
    pub(crate) const fn qos(self) -> QosClass {
        QosClass::from_low_bits((self.0 >> 16) as u8)
    }

    pub(crate) const fn policy(self) -> Policy {
        let value = self.priority();
        match self.kind() {
            kind::BATCH => Policy::Batch(Nice(value as i8)),
            kind::IDLE => Policy::Idle,
            kind::FIFO => Policy::Fifo(RtPriority(value)),
            kind::RR => Policy::Rr(RtPriority(value)),
            _ => Policy::Fair(Nice(value as i8)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_keep_policy_and_class() {
        for policy in [
            Policy::Fair(Nice(-20)),
            Policy::Fair(Nice(19)),
            Policy::Batch(Nice(-1)),
            Policy::Idle,
            Policy::Fifo(RtPriority(99)),
            Policy::Rr(RtPriority(1)),
        ] {
            for qos in QosClass::ALL {
                let params = Params::new(policy, qos);
                assert_eq!(params.policy(), policy);
                assert_eq!(params.qos(), qos);
                assert_eq!(params.is_realtime(), policy.is_realtime());
            }
        }
    }

    #[test]
    fn virtual_time_is_real_time_at_nice_zero() {
        assert_eq!(virtual_ns(3_000_000, inverse_weight(NICE_0_WEIGHT)), 3_000_000);
        assert_eq!(real_ns(3_000_000, NICE_0_WEIGHT), 3_000_000);
        let slow = virtual_ns(1_000_000, inverse_weight(IDLE_WEIGHT));
        assert!((slow - 341_333_333).abs() < 100, "{slow}");
    }
}
