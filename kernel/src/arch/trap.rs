//! Exceptions: what the vectors (`vectors.S`) call.
//!
//! From user mode: system calls go to their handlers ([`crate::syscall::table`]); faults are decoded here into a
//! typed [`Access`] and given to the memory manager, or turned into a signal. On the way back [`exit_work`] handles the
//! thread's flags until none is left, with interrupts masked at the end so that none is missed.
//!
//! From kernel mode: interrupts may switch threads if preemption is enabled; a data abort is legal only on user memory or
//! at an instruction with a fix-up in the exception table.

use crate::arch::context::{self, FP_RESTORE, NEED_RESCHED, NOTIFY, SIGNAL_PENDING};
use crate::arch::percpu::{self, Counter};
use core::sync::atomic::Ordering;

/// User registers at the exception, at the top of the thread's kernel stack. The vectors know the layout. In system calls
/// whose handlers do not ask for the frame, X19 to X28 and SP are not in it (but as soon as there is work to do on the way
/// back to user mode they are).
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default)]
pub struct TrapFrame {
    /// X0 to X30.
    pub x: [u64; 31],
    /// SP.
    pub sp: u64,
    /// ELR.
    pub pc: u64,
    /// SPSR.
    pub pstate: u64,
    /// X0 as it was when the system call was made, for restarts.
    pub orig_x0: u64,
    /// The system call's number (X8), or `u64::MAX` when not in one.
    pub syscallno: u64,
}

const _: () = assert!(size_of::<TrapFrame>() == 288);

/// SPSR bits that user space may choose (NZCV, SSBS, BTYPE, SS left out); the rest says EL0, AArch64, nothing masked.
pub const PSTATE_USER_MASK: u64 = 0xf000_0000 | (1 << 12) | (3 << 10);

/// What an access wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Exec,
}

/// A signal that a CPU exception calls for.
#[derive(Clone, Copy, Debug)]
pub struct FaultSignal {
    /// Its number.
    pub signo: u32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub addr: u64,
}

const SIGILL: u32 = 4;
const SIGTRAP: u32 = 5;
const SIGBUS: u32 = 7;
const SIGFPE: u32 = 8;

core::arch::global_asm!(
    include_str!("vectors.S"),
    percpu_emergency = const percpu::OFFSET_EMERGENCY,
    context_cpu = const context::OFFSET_CPU,
    percpu_syscalls = const percpu::OFFSET_SYSCALLS,
    entries = sym crate::syscall::table::ENTRIES,
    last_call = const crate::syscall::table::UNKNOWN,
    traced = sym crate::syscall::trace::traced,
    el0_fault = sym el0_fault,
    el0_bad = sym el0_bad,
    irq = sym irq_from_user,
    irq_kernel = sym irq_from_kernel,
    exit_work = sym exit_work,
    el1_fault = sym el1_fault,
    el1_bad = sym el1_bad,
    stack_overflow = sym stack_overflow,
    finish_switch = sym finish_switch,
    kthread_exit = sym kthread_exit,
);

/// Points this CPU at the vectors and opens FP registers.
pub fn init_cpu() {
    unsafe extern "C" {
        static exception_vectors: u8;
    }
    // SAFETY: the vectors are in place; FP is opened to both levels (the kernel itself never uses it outside
    // fp_save/fp_load); user space may read the virtual counter and its frequency, and WFE wakes at 10 kHz at the latest.
    unsafe {
        crate::write_sysreg!("vbar_el1", &raw const exception_vectors as u64);
        crate::write_sysreg!("cpacr_el1", 3u64 << 20);
        crate::write_sysreg!("cntkctl_el1", super::time::event_stream() | 0b10);
        crate::write_sysreg!("mdscr_el1", 0u64);
        if super::cpu::has_e0pd() {
            const E0PD1: u64 = 1 << 56;
            let tcr = crate::read_sysreg!("tcr_el1");
            crate::write_sysreg!("tcr_el1", tcr | E0PD1);
        }
        core::arch::asm!("msr pan, #1", "isb", options(nostack));
    }
}

extern "C" fn finish_switch() {
    crate::sched::finish_switch();
}

extern "C" fn kthread_exit() {
    crate::sched::exit_current();
}

/// Work before user mode; returns with interrupts masked and no flag set.
extern "C" fn exit_work(frame: &mut TrapFrame) {
    let ctx = context::current();
    loop {
        let flags = ctx.flags.load(Ordering::Relaxed);
        if flags & NEED_RESCHED != 0 {
            crate::arch::irq_enable();
            crate::sched::preempt_user();
        } else if flags & (SIGNAL_PENDING | NOTIFY) != 0 {
            crate::arch::irq_enable();
            crate::task::signal::deliver(frame);
        } else {
            if flags & FP_RESTORE != 0 {
                ctx.fp_restore();
            }
            return;
        }
        crate::arch::irq_save();
    }
}

extern "C" fn irq_from_user(frame: &mut TrapFrame) {
    crate::arch::gic::handle();
    let _ = frame;
}

extern "C" fn irq_from_kernel(_frame: &mut TrapFrame) {
    let ctx = context::current();
    ctx.preempt.set(ctx.preempt.get() + 1);
    crate::arch::gic::handle();
    ctx.preempt.set(ctx.preempt.get() - 1);
    if ctx.preempt.get() == 0 && ctx.flags.load(Ordering::Relaxed) & NEED_RESCHED != 0 {
        crate::sched::preempt_kernel();
    }
}

/// Exception classes (ESR_ELx.EC).
mod ec {
    pub const UNKNOWN: u64 = 0x00;
    pub const WFX: u64 = 0x01;
    pub const FP_TRAP: u64 = 0x07;
    pub const BTI: u64 = 0x0d;
    pub const ILLEGAL: u64 = 0x0e;
    pub const SYSREG: u64 = 0x18;
    pub const SVE: u64 = 0x19;
    pub const INST_EL0: u64 = 0x20;
    pub const PC_ALIGN: u64 = 0x22;
    pub const DATA_EL0: u64 = 0x24;
    pub const DATA_EL1: u64 = 0x25;
    pub const SP_ALIGN: u64 = 0x26;
    pub const FP_EXC: u64 = 0x2c;
    pub const BREAK_EL0: u64 = 0x30;
    pub const STEP_EL0: u64 = 0x32;
    pub const WATCH_EL0: u64 = 0x34;
    pub const BRK: u64 = 0x3c;
}

fn data_access(esr: u64) -> Access {
    // WnR, but a cache maintenance instruction that faults reports a write and means a read.
    if esr & (1 << 6) != 0 && esr & (1 << 8) == 0 { Access::Write } else { Access::Read }
}

extern "C" fn el0_fault(esr: u64, far: u64, frame: &mut TrapFrame) {
    crate::arch::irq_enable();
    let signal = match esr >> 26 {
        ec::DATA_EL0 | ec::INST_EL0 => {
            percpu::count(Counter::PageFaults);
            crate::sched::current().faults.fetch_add(1, Ordering::Relaxed);
            let access = if esr >> 26 == ec::INST_EL0 { Access::Exec } else { data_access(esr) };
            match esr & 0x3c {
                // translation, access flag, permission
                0x04 | 0x08 | 0x0c => match crate::mm::fault::user_fault(far, access, frame) {
                    Ok(()) => return,
                    Err(signal) => signal,
                },
                0x20 => FaultSignal { signo: SIGBUS, code: 1, addr: far },
                _ => FaultSignal { signo: SIGBUS, code: 2, addr: far },
            }
        }
        ec::PC_ALIGN => FaultSignal { signo: SIGBUS, code: 1, addr: far },
        ec::SP_ALIGN => FaultSignal { signo: SIGBUS, code: 1, addr: frame.sp },
        ec::BRK => FaultSignal { signo: SIGTRAP, code: 1, addr: frame.pc },
        ec::BREAK_EL0 | ec::STEP_EL0 | ec::WATCH_EL0 => FaultSignal { signo: SIGTRAP, code: 4, addr: frame.pc },
        ec::FP_EXC => FaultSignal { signo: SIGFPE, code: 0, addr: frame.pc },
        ec::WFX => {
            frame.pc += 4;
            return;
        }
        ec::SYSREG | ec::UNKNOWN if crate::arch::cpu::emulate_id_read(esr, frame) => return,
        ec::UNKNOWN | ec::FP_TRAP | ec::SVE | ec::BTI | ec::ILLEGAL | ec::SYSREG => {
            FaultSignal { signo: SIGILL, code: 1, addr: frame.pc }
        }
        _ => FaultSignal { signo: SIGILL, code: 1, addr: frame.pc },
    };
    crate::task::signal::force_fault(signal);
}

extern "C" fn el0_bad(esr: u64, far: u64, frame: &mut TrapFrame) -> ! {
    panic!("unexpected exception from user mode: esr {esr:#x} far {far:#x} pc {:#x}", frame.pc);
}

extern "C" fn el1_bad(esr: u64, far: u64, frame: &mut TrapFrame) -> ! {
    panic!("unexpected exception in the kernel: esr {esr:#x} far {far:#x} pc {:#x}", frame.pc);
}

extern "C" fn stack_overflow(_esr: u64, far: u64, frame: &mut TrapFrame) -> ! {
    panic!("kernel stack overflow: pc {:#x} far {far:#x}", frame.pc);
}

extern "C" fn el1_fault(esr: u64, far: u64, frame: &mut TrapFrame) {
    if esr >> 26 == ec::DATA_EL1
        && matches!(esr & 0x3c, 0x04 | 0x08 | 0x0c | 0x20)
        && let Some(fixup) = crate::arch::uaccess::fixup(frame.pc)
    {
        // Only user copies have fix-ups. Resolve the fault if this thread may sleep; else, and on failure, the copy
        // reports it.
        let resolvable = esr & 0x3c != 0x20
            && context::current().preempt.get() == 0
            && frame.pstate & (1 << 7) == 0
            && far < crate::arch::mmu::USER_END;
        if resolvable {
            percpu::count(Counter::PageFaults);
            crate::sched::current().faults.fetch_add(1, Ordering::Relaxed);
            // The interrupted code had interrupts on and may sleep.
            crate::arch::irq_enable();
            let done = crate::mm::fault::user_fault(far, data_access(esr), frame).is_ok();
            crate::arch::irq_save();
            if done {
                // `msr pan, #0` sections come back with PAN as it was: SPSR restores it.
                return;
            }
        }
        frame.pc = fixup;
        return;
    }
    kernel_fault(esr, far, frame);
}

fn kernel_fault(esr: u64, far: u64, frame: &TrapFrame) -> ! {
    panic!(
        "kernel fault: esr {esr:#x} far {far:#x} pc {:#x} lr {:#x} sp {:#x}\n x0 {:#x} x1 {:#x} x2 {:#x} x3 {:#x}",
        frame.pc, frame.x[30], frame.sp, frame.x[0], frame.x[1], frame.x[2], frame.x[3]
    );
}
