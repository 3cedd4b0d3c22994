//! The scheduler's policy, apart from the machine.
//!
//! The kernel has one [`RunQueue`] per CPU under an interrupt-safe spin lock and asks it what to run; everything that
//! needs no machine is here and is tested on the host: the fair class (virtual deadlines), the
//! real-time class (FIFO, RR), stealing and balancing, the placement of wake-ups, the admission of threads, QoS classes
//! and who may set them, timer windows.
//!
//! | module | what it decides |
//! | --- | --- |
//! | `runqueue`, `current` | which thread runs, who preempts whom, when the slice timer must fire |
//! | `fair`, `heap` | earliest eligible virtual deadline first |
//! | `rt` | POSIX real-time order |
//! | `steal` | which thread moves to another CPU, and in what order victims are tried |
//! | `place` | where a thread wakes or is born |
//! | `admission` | how many threads there may be, so that a wake-up cannot fail |
//! | `qos` | classes and authority |
//! | `timer` | coalescing windows and limits |
//!
//! Speed: a run queue copies what it needs of the running thread into itself and keeps the keys of waiting ones beside
//! their handles, so that no decision follows a pointer; nothing allocates on the way; an empty queue or a single thread
//! takes a short path at each step.
//!
//! What was not done: group scheduling (cells account, they do not divide CPUs), `SCHED_DEADLINE`, load averages per
//! thread, cache topology (virtual machines rarely tell the truth about it).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod admission;
mod cpumask;
mod current;
mod entity;
mod fair;
mod heap;
mod params;
mod place;
mod qos;
mod rt;
mod runqueue;
mod steal;
mod timer;

pub use admission::{Admission, DEFAULT_LIMIT_PER_CPU, QueueFull, Reservation};
pub use cpumask::{AtomicCpuMask, CpuId, CpuMask, Iter as CpuIter, MAX_CPUS};
pub use current::WAKEUP_GRANULARITY_NS;
pub use entity::{Entity, RunState, Task};
pub use params::{IDLE_WEIGHT, NICE_0_WEIGHT, Nice, Policy, RR_QUANTUM_NS, RtPriority};
pub use place::{WakeRequest, select_cpu, select_cpu_new};
pub use qos::{QosClass, QosError, QosTarget, authorize_entity_qos, authorize_qos};
pub use runqueue::{Arrival, GiveWay, Kick, MIN_TIMER_NS, RT_PERIOD_NS, RT_RUNTIME_NS, RunQueue, Storage};
pub use steal::{BALANCE_RESYNC, BALANCE_THRESHOLD, STEAL_BOUND, StealRefusal, StealRequest, balance, victim_order};
pub use timer::{
    DEFAULT_TIMER_LIMIT, TimerAccount, TimerOverLimit, class_window_ns, coalesced_expiry_ns, timer_window_ns,
};
