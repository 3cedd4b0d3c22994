//! What a CPU does with nothing to do: take one thread from a busier CPU, else sleep until an interrupt.

use super::{CPUS, queue, timer};
use crate::arch::context::NEED_RESCHED;
use crate::arch::percpu::{self, Counter, MAX_CPUS};
use crate::task::Thread;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use sync::Once;

static IDLE: [Once<Arc<Thread>>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

/// Makes `thread` CPU `cpu`'s idle thread, before that CPU schedules.
pub fn set_thread(cpu: usize, thread: Arc<Thread>) {
    thread.sched.cpu.store(cpu as u32, Ordering::Relaxed);
    thread.sched.state.store(super::state::RUNNABLE, Ordering::Relaxed);
    let _ = IDLE[cpu].set(thread);
}

/// CPU `cpu`'s idle thread.
pub fn thread(cpu: usize) -> &'static Thread {
    match IDLE[cpu].get() {
        Some(t) => t,
        None => panic!("cpu{cpu} schedules without an idle thread"),
    }
}

/// The idle loop. Runs on the idle thread, never returns.
pub fn run() -> ! {
    let this = percpu::id();
    let cpu = &CPUS[this];
    let ctx = &thread(this).arch;
    loop {
        crate::arch::irq_save();
        if ctx.flags.load(Ordering::Relaxed) & NEED_RESCHED == 0 && cpu.queue.lock().is_empty() && !steal(this) {
            cpu.idle.store(true, Ordering::Release);
            // A thread may have been queued before `idle` was seen: its placer then did not send. Look again.
            if cpu.queue.lock().is_empty() && ctx.flags.load(Ordering::Relaxed) & NEED_RESCHED == 0 {
                let since = crate::arch::time::now_ns();
                percpu::count(Counter::Idles);
                timer::program_idle();
                crate::arch::wait_for_interrupt();
                cpu.idle_ns.fetch_add(crate::arch::time::now_ns() - since, Ordering::Relaxed);
            }
            cpu.idle.store(false, Ordering::Release);
            // The interrupt is taken here.
            crate::arch::irq_enable();
            core::hint::spin_loop();
            crate::arch::irq_save();
        }
        super::schedule(false);
        crate::arch::irq_enable();
    }
}

/// Takes at most one thread from the first CPU, in rising order from ours, that has one waiting. Interrupts masked.
fn steal(this: usize) -> bool {
    let n = percpu::listed();
    for victim in (1..n).map(|i| (this + i) % n) {
        if CPUS[victim].load.load(Ordering::Relaxed) < 2 {
            continue;
        }
        let Some(mut q) = CPUS[victim].queue.try_lock() else { continue };
        let taken = q.steal(this);
        CPUS[victim].load.store(q.len() as u32, Ordering::Relaxed);
        drop(q);
        if let Some(t) = taken {
            percpu::count(Counter::Steals);
            percpu::count(Counter::Migrations);
            t.sched.cpu.store(this as u32, Ordering::Relaxed);
            let mut q = CPUS[this].queue.lock();
            q.enqueue(t, queue::Why::Moved, crate::arch::time::now_ns());
            CPUS[this].load.store(q.len() as u32, Ordering::Relaxed);
            return true;
        }
    }
    false
}
