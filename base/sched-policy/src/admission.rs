//! The bound on run queues, and why a wake-up cannot fail.
//!
//! Run queues are bounded per CPU and QoS class, but the bound must not be met at a wake-up: a thread that the system
//! has accepted may never be lost, and whoever wakes it can do nothing about a full queue. So the bound sits at the
//! door. Each thread holds a [`Reservation`] from `clone(2)` to its end; there are at most `limit per CPU * CPUs` of a
//! class, and when they are given out `clone` gets [`QueueFull`] and answers `EAGAIN`. A change of class needs a place
//! in the new class before it gives up the old.
//!
//! Any thread may be made to wait on any CPU (affinity may pin them all to one), so every CPU's queue has storage for
//! every accepted thread. It grows by doubling, here, at admission, where memory may be allocated and refused; wake-ups
//! and stealing find room always. The cost is about 100 bytes a thread and CPU, little beside a kernel stack.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use crate::qos::QosClass;

/// Threads per CPU and QoS class unless the kernel sets another limit.
pub const DEFAULT_LIMIT_PER_CPU: u32 = 1024;
/// The smallest storage that a queue is grown to.
const MIN_STORAGE: usize = 64;

/// No more threads of this class are accepted (`EAGAIN`). Nothing was changed.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull {
    /// The class that is full.
    pub class: QosClass,
    /// How many threads it may have, or `None` if the limit was not met but there was no memory for the queues.
    pub limit: Option<u32>,
}

/// Counts the threads that the run queues have accepted.
#[derive(Debug)]
pub struct Admission {
    limit_per_cpu: AtomicU32,
    cpus: AtomicU32,
    admitted: [AtomicU32; QosClass::COUNT],
    total: AtomicUsize,
    /// Every queue has at least this much storage.
    storage: AtomicUsize,
}

impl Admission {
    /// Nobody admitted yet, one CPU, at most `limit_per_cpu` threads per CPU and class.
    pub const fn new(limit_per_cpu: u32) -> Self {
        Self {
            limit_per_cpu: AtomicU32::new(limit_per_cpu),
            cpus: AtomicU32::new(1),
            admitted: [const { AtomicU32::new(0) }; QosClass::COUNT],
            total: AtomicUsize::new(0),
            storage: AtomicUsize::new(0),
        }
    }

    /// Tells how many CPUs are online.
    pub fn set_cpus(&self, cpus: u32) {
        self.cpus.store(cpus, Ordering::Relaxed);
    }

    /// How many threads of one class there may be.
    pub fn limit(&self) -> u32 {
        self.limit_per_cpu.load(Ordering::Relaxed).saturating_mul(self.cpus.load(Ordering::Relaxed))
    }

    /// How many threads of `class` there are.
    pub fn admitted(&self, class: QosClass) -> u32 {
        self.admitted[class as usize].load(Ordering::Relaxed)
    }

    /// How many threads there are.
    pub fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// The storage that every queue, also one of a CPU that comes online later, must have.
    pub fn storage(&self) -> usize {
        self.storage.load(Ordering::Acquire)
    }

    /// Tells that every queue has storage for `threads`, given in advance.
    pub fn set_storage(&self, threads: usize) {
        self.storage.fetch_max(threads, Ordering::Release);
    }

    /// Accepts one more thread of `class`. `grow(n)` is called when the queues need storage for `n` threads; it makes
    /// sure that every queue has it ([`crate::RunQueue::grow`]) or returns false. Context: as `grow`, which may sleep.
    pub fn reserve(&self, class: QosClass, grow: impl FnOnce(usize) -> bool) -> Result<Reservation<'_>, QueueFull> {
        self.count_in(class)?;
        let needed = self.total.fetch_add(1, Ordering::Relaxed) + 1;
        // From here on dropping it takes the counts back.
        let reservation = Reservation { admission: self, class: AtomicU8::new(class as u8) };
        if needed > self.storage.load(Ordering::Acquire) {
            let size = needed.next_power_of_two().max(MIN_STORAGE);
            if !grow(size) {
                return Err(QueueFull { class, limit: None });
            }
            self.storage.fetch_max(size, Ordering::Release);
        }
        Ok(reservation)
    }

    fn count_in(&self, class: QosClass) -> Result<(), QueueFull> {
        let limit = self.limit();
        self.admitted[class as usize]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1))
            .map(drop)
            .map_err(|_| QueueFull { class, limit: Some(limit) })
    }

    fn count_out(&self, class: QosClass) {
        self.admitted[class as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// A thread's place in the run queues, given back on drop.
#[derive(Debug)]
pub struct Reservation<'a> {
    admission: &'a Admission,
    class: AtomicU8,
}

impl Reservation<'_> {
    /// The class that the place is in.
    pub fn class(&self) -> QosClass {
        QosClass::from_low_bits(self.class.load(Ordering::Relaxed))
    }

    /// Moves the place to another class, or leaves it if that is full. The caller excludes other changes of this thread's
    /// class.
    pub fn change_class(&self, class: QosClass) -> Result<(), QueueFull> {
        let old = self.class();
        if old != class {
            self.admission.count_in(class)?;
            self.class.store(class as u8, Ordering::Relaxed);
            self.admission.count_out(old);
        }
        Ok(())
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.admission.count_out(self.class());
        self.admission.total.fetch_sub(1, Ordering::Relaxed);
    }
}
