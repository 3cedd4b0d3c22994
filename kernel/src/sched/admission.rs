//! The door of the run queues: how many threads there may be, and storage for all of them in every queue.
//!
//! See `sched_policy::Admission` for why the bound is met here and not at a wake-up.

use super::CPUS;
use super::state::Handle;
use crate::arch::percpu;
use abi::Errno;
use sched_policy::{Admission, DEFAULT_LIMIT_PER_CPU, QosClass, Reservation, RunQueue, Storage};

pub(super) static ADMISSION: Admission = Admission::new(DEFAULT_LIMIT_PER_CPU);

/// A place in the run queues for one more thread of `class`, or `EAGAIN` with nothing changed: the class is full (1024
/// threads for each CPU), or there is no memory for the queues. Context: may allocate.
pub fn admit_class(class: QosClass) -> abi::Result<Reservation<'static>> {
    ADMISSION.reserve(class, grow).map_err(|_| Errno::EAGAIN)
}

/// As [`admit_class`] for a child of the running thread. For `clone(2)`, which gives it to the new thread
/// ([`super::SchedState::reserve`]).
pub fn admit() -> abi::Result<Reservation<'static>> {
    admit_class(super::current().sched.entity.qos())
}

/// Gives every queue storage for as many threads as there may be, where that costs little: later, memory may be in pieces.
/// For at least 64, else false. Once, at boot.
pub(super) fn provide() -> bool {
    let most = crate::task::fork::max_threads().next_power_of_two().min(1024);
    let Some(threads) = [most, 64].into_iter().find(|&n| grow(n)) else { return false };
    ADMISSION.set_storage(threads);
    true
}

/// Gives every queue storage for `threads`. What is allocated and freed is so outside the queues' locks.
pub(super) fn grow(threads: usize) -> bool {
    (0..percpu::listed()).all(|cpu| grow_one(cpu, threads))
}

fn grow_one(cpu: usize, threads: usize) -> bool {
    let Some(storage) = Storage::<Handle>::new(threads) else { return false };
    let mut q = CPUS[cpu].queue.lock();
    let unused = RunQueue::grow(&mut q, storage);
    drop(q);
    drop(unused);
    true
}
