//! Lock classes, and the run-time check of their order in debug builds.

/// What a lock belongs to: one per field that holds a lock, as a `static`.
#[derive(Debug)]
pub struct LockClass {
    /// Shown in reports.
    pub name: &'static str,
    /// Locks are taken in rising rank.
    pub rank: u16,
}

impl LockClass {
    /// A class.
    pub const fn new(name: &'static str, rank: u16) -> Self {
        LockClass { name, rank }
    }
}

/// Notes that a lock of `class` is about to be taken. Panics where the order is broken (debug builds).
#[inline(always)]
pub(crate) fn acquire(class: &'static LockClass, nested: bool) {
    #[cfg(debug_assertions)]
    debug::acquire(class, nested);
    let _ = (class, nested);
}

/// As [`acquire`] for a lock that was taken without waiting: it can be in any order.
#[inline(always)]
pub(crate) fn acquired_by_try(class: &'static LockClass) {
    #[cfg(debug_assertions)]
    debug::push(class);
    let _ = class;
}

/// Notes that a lock of `class` was released.
#[inline(always)]
pub(crate) fn release(class: &'static LockClass) {
    #[cfg(debug_assertions)]
    debug::release(class);
    let _ = class;
}

#[cfg(debug_assertions)]
mod debug {
    use super::LockClass;
    use platform::HeldLocks;

    fn with<R>(f: impl FnOnce(&mut HeldLocks) -> R) -> Option<R> {
        let state = platform::irq_save();
        // SAFETY: the record belongs to the calling context alone, and interrupts are masked while it is used.
        let r = unsafe { platform::held_locks().as_mut() }.map(f);
        platform::irq_restore(state);
        r
    }

    #[track_caller]
    pub fn acquire(class: &'static LockClass, nested: bool) {
        let broken = with(|held| {
            let worst = held.entries[..held.len].iter().max_by_key(|e| e.0).copied();
            let broken = worst.filter(|&(rank, _)| if nested { rank > class.rank } else { rank >= class.rank });
            push_to(held, class);
            broken
        })
        .flatten();
        if let Some((rank, name)) = broken {
            with(|held| held.len = 0);
            panic!("lock order: taking {} (rank {}) while holding {} (rank {})", class.name, class.rank, name, rank);
        }
    }

    fn push_to(held: &mut HeldLocks, class: &'static LockClass) {
        if held.len < held.entries.len() {
            held.entries[held.len] = (class.rank, class.name);
            held.len += 1;
        }
    }

    pub fn push(class: &'static LockClass) {
        with(|held| push_to(held, class));
    }

    pub fn release(class: &'static LockClass) {
        with(|held| {
            if let Some(at) = held.entries[..held.len].iter().rposition(|e| e.1 == class.name && e.0 == class.rank) {
                held.entries.copy_within(at + 1..held.len, at);
                held.len -= 1;
            }
        });
    }
}
