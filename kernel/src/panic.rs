//! The end: a panic stops every CPU, prints the message and each CPU's stack, and then does what `panic=` says.
//!
//! The first CPU to panic owns the console; others that panic or are stopped print their stacks one after the other, in
//! bounded time, and halt.

use crate::arch::backtrace;
use crate::arch::gic::{self, Sgi};
use crate::arch::percpu;
use core::fmt::Write;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

static OWNER: AtomicUsize = AtomicUsize::new(usize::MAX);
static TURN: AtomicUsize = AtomicUsize::new(usize::MAX);
static DONE: AtomicUsize = AtomicUsize::new(0);
/// `panic=`: seconds until reset, 0 power-off (Berth's default, so that a harness sees the end), negative: reset at once.
static ACTION: AtomicI32 = AtomicI32::new(0);

/// Sets what happens after a panic.
pub fn set_action(seconds: i32) {
    ACTION.store(seconds, Ordering::Relaxed);
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        for part in s.split_inclusive('\n') {
            crate::drivers::pl011::write_bytes_forced(part.trim_end_matches('\n').as_bytes());
            if part.ends_with('\n') {
                crate::drivers::pl011::write_bytes_forced(b"\r\n");
            }
        }
        Ok(())
    }
}

fn print_stack(cpu: usize) {
    let _ = writeln!(Console, "cpu{cpu} stack:");
    backtrace::walk(backtrace::frame_pointer(), |pc| {
        let _ = match crate::symbols::lookup(pc) {
            Some((name, offset)) => {
                writeln!(Console, "  {:#018x} {name}+{offset:#x}", crate::arch::boot::link_address(pc))
            }
            None => writeln!(Console, "  {:#018x}", crate::arch::boot::link_address(pc)),
        };
    });
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::arch::irq_save();
    let cpu = percpu::id();
    match OWNER.compare_exchange(usize::MAX, cpu, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(owner) if owner == cpu => {
            let _ = writeln!(Console, "\npanic within the panic: {}", info.message());
            finish();
        }
        Err(_) => stopped_by_another(),
    }
    let _ = write!(Console, "\nkernel panic on cpu{cpu}: {}", info.message());
    if let Some(at) = info.location() {
        let _ = write!(Console, " ({}:{})", at.file(), at.line());
    }
    let _ = writeln!(Console);
    print_stack(cpu);
    for other in (0..percpu::listed()).filter(|&c| c != cpu) {
        let before = DONE.load(Ordering::Acquire);
        TURN.store(other, Ordering::Release);
        if !gic::send(other, Sgi::Stop) {
            continue;
        }
        let mut patience = 50_000_000u32;
        while DONE.load(Ordering::Acquire) == before && patience > 0 {
            patience -= 1;
            core::hint::spin_loop();
        }
        if patience == 0 {
            let _ = writeln!(Console, "cpu{other} does not answer");
        }
    }
    finish();
}

/// Another CPU panics: print our stack when it is our turn, and halt.
pub fn stopped_by_another() -> ! {
    let cpu = percpu::id();
    if TURN.load(Ordering::Acquire) == cpu {
        print_stack(cpu);
        DONE.fetch_add(1, Ordering::AcqRel);
    }
    crate::arch::halt();
}

fn finish() -> ! {
    let action = ACTION.load(Ordering::Relaxed);
    if action > 0 {
        let end = crate::arch::time::now_ns() + action as u64 * 1_000_000_000;
        while crate::arch::time::now_ns() < end {
            core::hint::spin_loop();
        }
    }
    if action != 0 {
        crate::arch::psci::system_reset();
    }
    crate::arch::psci::system_off();
    crate::arch::halt();
}
