//! The kernel's side of the crate `platform`: what the libraries ask of the machine.

use crate::arch::{self, context, percpu};
use crate::mm::frames::hooks as pages;
use crate::task::Thread;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use platform::{ParkOptions, Wake};

#[unsafe(export_name = "__berth_preempt_disable")]
fn preempt_disable() {
    let p = &context::current().preempt;
    p.set(p.get() + 1);
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
}

#[unsafe(export_name = "__berth_preempt_enable")]
fn preempt_enable() {
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    let ctx = context::current();
    let n = ctx.preempt.get() - 1;
    ctx.preempt.set(n);
    if n == 0 && ctx.flags.load(Ordering::Relaxed) & context::NEED_RESCHED != 0 {
        preempt_enable_slow();
    }
}

#[cold]
fn preempt_enable_slow() {
    // With interrupts masked the switch waits for whoever unmasks them.
    if !arch::irqs_masked() {
        crate::sched::preempt_user();
    }
}

#[unsafe(export_name = "__berth_irq_save")]
fn irq_save() -> usize {
    arch::irq_save()
}

#[unsafe(export_name = "__berth_irq_restore")]
fn irq_restore(state: usize) {
    arch::irq_restore(state);
}

#[unsafe(export_name = "__berth_may_sleep")]
fn may_sleep() -> bool {
    context::current().preempt.get() == 0 && !arch::irqs_masked()
}

#[unsafe(export_name = "__berth_cpu_id")]
fn cpu_id() -> usize {
    percpu::id()
}

#[unsafe(export_name = "__berth_monotonic_ns")]
fn monotonic_ns() -> u64 {
    arch::time::now_ns()
}

#[unsafe(export_name = "__berth_realtime_ns")]
fn realtime_ns() -> u64 {
    crate::clock::realtime_ns()
}

#[unsafe(export_name = "__berth_random_u64")]
fn random_u64() -> u64 {
    crate::random::next_u64()
}

fn thread(raw: usize) -> &'static Thread {
    // SAFETY: `raw` is a counted reference made by `waiter_current`.
    unsafe { &*(raw as *const Thread) }
}

#[unsafe(export_name = "__berth_waiter_current")]
fn waiter_current() -> usize {
    Arc::into_raw(crate::sched::current_arc()) as usize
}

#[unsafe(export_name = "__berth_waiter_unpark")]
fn waiter_unpark(raw: usize, sync: bool) {
    crate::sched::unpark(thread(raw), sync);
}

#[unsafe(export_name = "__berth_waiter_ref")]
fn waiter_ref(raw: usize) {
    // SAFETY: the caller holds a counted reference.
    unsafe { Arc::increment_strong_count(raw as *const Thread) };
}

#[unsafe(export_name = "__berth_waiter_unref")]
fn waiter_unref(raw: usize) {
    // SAFETY: the caller gives a counted reference up.
    unsafe { Arc::decrement_strong_count(raw as *const Thread) };
}

#[unsafe(export_name = "__berth_park")]
fn park(options: ParkOptions) -> Wake {
    crate::sched::park(options)
}

#[unsafe(export_name = "__berth_page_alloc")]
fn page_alloc(zeroed: bool) -> usize {
    pages::page_alloc(zeroed)
}

#[unsafe(export_name = "__berth_page_ref")]
fn page_ref(raw: usize) {
    pages::page_ref(raw);
}

#[unsafe(export_name = "__berth_page_unref")]
fn page_unref(raw: usize) {
    pages::page_unref(raw);
}

#[unsafe(export_name = "__berth_page_refs")]
fn page_refs(raw: usize) -> usize {
    pages::page_refs(raw)
}

#[unsafe(export_name = "__berth_page_data")]
fn page_data(raw: usize) -> *mut u8 {
    pages::page_data(raw)
}

#[cfg(debug_assertions)]
#[unsafe(export_name = "__berth_held_locks")]
fn held_locks() -> *mut platform::HeldLocks {
    context::current().held_locks()
}
