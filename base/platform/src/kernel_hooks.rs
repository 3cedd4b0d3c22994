//! The kernel's side: symbols that `kernel/src/platform_impl.rs` defines.
#![allow(missing_docs)]

use crate::{ParkOptions, Wake};

// SAFETY: each symbol is defined once, in the kernel, with exactly this signature, and each is safe to call from any
// context that its wrapper in the crate root names.
unsafe extern "Rust" {
    #[link_name = "__berth_preempt_disable"]
    pub safe fn preempt_disable();
    #[link_name = "__berth_preempt_enable"]
    pub safe fn preempt_enable();
    #[link_name = "__berth_irq_save"]
    pub safe fn irq_save() -> usize;
    #[link_name = "__berth_irq_restore"]
    pub safe fn irq_restore(state: usize);
    #[link_name = "__berth_may_sleep"]
    pub safe fn may_sleep() -> bool;
    #[link_name = "__berth_cpu_id"]
    pub safe fn cpu_id() -> usize;
    #[link_name = "__berth_monotonic_ns"]
    pub safe fn monotonic_ns() -> u64;
    #[link_name = "__berth_realtime_ns"]
    pub safe fn realtime_ns() -> u64;
    #[link_name = "__berth_random_u64"]
    pub safe fn random_u64() -> u64;
    #[link_name = "__berth_waiter_current"]
    pub safe fn waiter_current() -> usize;
    #[link_name = "__berth_waiter_unpark"]
    pub safe fn waiter_unpark(raw: usize, sync: bool);
    #[link_name = "__berth_waiter_ref"]
    pub safe fn waiter_ref(raw: usize);
    #[link_name = "__berth_waiter_unref"]
    pub safe fn waiter_unref(raw: usize);
    #[link_name = "__berth_park"]
    pub safe fn park(options: ParkOptions) -> Wake;
    #[link_name = "__berth_page_alloc"]
    pub safe fn page_alloc(zeroed: bool) -> usize;
    #[link_name = "__berth_page_ref"]
    pub safe fn page_ref(raw: usize);
    #[link_name = "__berth_page_unref"]
    pub safe fn page_unref(raw: usize);
    #[link_name = "__berth_page_refs"]
    pub safe fn page_refs(raw: usize) -> usize;
    #[link_name = "__berth_page_data"]
    pub safe fn page_data(raw: usize) -> *mut u8;
    #[cfg(debug_assertions)]
    #[link_name = "__berth_held_locks"]
    pub safe fn held_locks() -> *mut crate::HeldLocks;
}
