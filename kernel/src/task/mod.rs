//! Placeholder until processes land.
use crate::arch::context::ThreadContext;
use crate::sched::SchedState;
pub mod job;
/// Placeholder.
#[repr(C)]
#[derive(Debug)]
pub struct Thread {
    /// CPU state; first.
    pub arch: ThreadContext,
    /// Scheduler state.
    pub sched: SchedState,
    stack: Option<crate::mm::KernelStack>,
}
/// Placeholder.
pub mod signal {
    use crate::arch::trap::{FaultSignal, TrapFrame};
    /// Placeholder.
    pub fn deliver(_frame: &mut TrapFrame) {}
    /// Placeholder.
    pub fn force_fault(_s: FaultSignal) {}
}

impl Thread {
    /// Placeholder.
    pub fn stack_top(&self) -> usize {
        self.stack.as_ref().map_or(0, |s| s.top())
    }
}
/// Placeholder.
pub fn kernel_thread_for_boot(_cpu: usize) -> alloc::sync::Arc<Thread> {
    alloc::sync::Arc::new(Thread {
        arch: ThreadContext::boot(),
        sched: SchedState::new(),
        stack: crate::mm::KernelStack::new(),
    })
}
/// Placeholder.
pub fn start_init() -> ! {
    crate::start::stop("no init")
}
