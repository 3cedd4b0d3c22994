//! Quality-of-service classes and who may set them.
//!
//! A class says how soon a thread wants to be served, never how much: in the fair scheduler it chooses the length of the
//! request (a shorter request has an earlier deadline), it bounds what an idle CPU may steal, and it chooses the window
//! in which timer wake-ups coalesce. Shares of CPU time come from weights alone.
//!
//! A thread may lower its own class. Raising it, or touching another thread's, needs an authority that the kernel
//! derives from the caller's credentials; nothing in the request counts as one. A refusal changes nothing and clamps
//! nothing.

use crate::entity::Entity;

/// A QoS class; the numbers are those of the system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QosClass {
    /// Work that nobody waits for.
    Idle = 0,
    /// The usual class.
    Normal = 1,
    /// A user waits.
    Interactive = 2,
    /// A short burst that must start and wake at once.
    PerfBurst = 3,
}

impl QosClass {
    /// How many classes there are.
    pub const COUNT: usize = 4;
    /// All classes, lowest first.
    pub const ALL: [Self; Self::COUNT] = [Self::Idle, Self::Normal, Self::Interactive, Self::PerfBurst];

    /// The class that the system call's number `raw` names.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw < Self::COUNT as u64 { Some(Self::from_low_bits(raw as u8)) } else { None }
    }

    #[inline]
    pub(crate) const fn from_low_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Idle,
            1 => Self::Normal,
            2 => Self::Interactive,
            _ => Self::PerfBurst,
        }
    }

    /// The length of one request of a fair thread, in ns of run time.
    #[inline]
    pub const fn slice_ns(self) -> u32 {
        match self {
            Self::Idle => 12_000_000,
            Self::Normal | Self::PerfBurst => 3_000_000,
            Self::Interactive => 1_500_000,
        }
    }
}

/// Why a change of class was refused. Nothing was changed.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosError {
    /// No class has that number (`EINVAL`).
    InvalidClass,
    /// Raising a class, or another thread's, without authority (`EPERM`).
    NotPermitted,
}

/// Whose class a caller wants to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosTarget {
    /// The calling thread itself.
    Caller,
    /// Another thread.
    Other,
}

/// Decides whether a thread of class `current` may get the class numbered `raw`. `authority` is what the kernel found in
/// the caller's credentials. A bad number is reported before a missing authority.
pub const fn authorize_qos(
    target: QosTarget,
    current: QosClass,
    raw: u64,
    authority: bool,
) -> Result<QosClass, QosError> {
    let Some(class) = QosClass::new(raw) else { return Err(QosError::InvalidClass) };
    let lowers = matches!(target, QosTarget::Caller) && class as u8 <= current as u8;
    if lowers || authority { Ok(class) } else { Err(QosError::NotPermitted) }
}

/// [`authorize_qos`] against a thread's entity. The caller goes on to move the thread's admission to the new class and to
/// call [`crate::RunQueue::set_params`].
pub fn authorize_entity_qos(
    target: QosTarget,
    entity: &Entity,
    raw: u64,
    authority: bool,
) -> Result<QosClass, QosError> {
    authorize_qos(target, entity.qos(), raw, authority)
}
