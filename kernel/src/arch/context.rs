//! Threads as the CPU sees them: saved stack pointer, thread register, FP state, and the word of flags that the way back
//! to user mode looks at.
//!
//! A thread that is not running has its callee-saved registers on its own kernel stack and the stack pointer in
//! [`ThreadContext::sp`]. FP registers are user state only (the kernel is built without FP): they are saved when a thread
//! that used them is switched out, and loaded when it is switched in, only if the CPU does not still hold them. Most
//! threads that are switched in soon go back to user mode, and the short way there has no work to do then. What changes
//! the saved registers of the running thread has them loaded on that way ([`FP_RESTORE`]).
//!
//! `TPIDR_EL1` holds the running thread's context, which knows its CPU: one register read that needs no trap check gives
//! the thread, and a load more the CPU. `SP_EL0` is left to user mode, so that entering the kernel writes no register, and
//! follows the thread like `TPIDR_EL0`.
//!
//! Ownership: `flags` is atomic and anyone may set bits; everything else belongs to the thread itself while it runs and
//! to the scheduler while it does not.

use crate::arch::percpu::{self, Counter, PerCpu};
use crate::arch::trap::TrapFrame;
use alloc::boxed::Box;
use core::cell::Cell;
#[cfg(debug_assertions)]
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// The CPU should pick another thread before going on.
pub const NEED_RESCHED: u32 = 1 << 0;
/// A signal may be deliverable.
pub const SIGNAL_PENDING: u32 = 1 << 1;
/// The FP registers must be loaded before user mode.
pub const FP_RESTORE: u32 = 1 << 2;
/// Task work is queued (stop, exit of the group, restart).
pub const NOTIFY: u32 = 1 << 3;
/// System calls are traced.
pub const TRACE: u32 = 1 << 4;

/// The FP and SIMD registers.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub struct FpState {
    /// V0 to V31.
    pub v: [u128; 32],
    /// FPSR.
    pub fpsr: u32,
    /// FPCR.
    pub fpcr: u32,
}

impl FpState {
    /// As after exec.
    pub const fn new() -> Self {
        FpState { v: [0; 32], fpsr: 0, fpcr: 0 }
    }
}

impl Default for FpState {
    fn default() -> Self {
        Self::new()
    }
}

/// The first field of every thread.
#[repr(C)]
#[derive(Debug)]
pub struct ThreadContext {
    /// Work to do before user mode. At offset 0: the vectors test it.
    pub flags: AtomicU32,
    /// How often preemption is disabled. Only the thread itself (and interrupts on top of it) change it.
    pub preempt: Cell<u32>,
    /// The CPU that it runs on, while it runs. At [`OFFSET_CPU`]: the vectors load it.
    pub(super) cpu: AtomicPtr<PerCpu>,
    /// The saved stack pointer while not running.
    sp: Cell<u64>,
    /// User's TPIDR_EL0 while not running.
    pub tpidr: Cell<u64>,
    /// User's SP_EL0 while not running.
    sp_el0: Cell<u64>,
    /// User's FP registers while no CPU holds them, a box of this thread's; null for kernel threads, which have none.
    fp: *mut FpState,
    /// The CPU that last held the FP registers.
    fp_cpu: Cell<usize>,
    /// The saved FP registers are being written: a switch must not load them yet. The thread's own.
    fp_filling: Cell<bool>,
    /// Whether it is a user thread at all.
    user: bool,
    /// How often allocations of pages must fail rather than wait (see `mm::oom::NoWait`). The thread's own.
    pub no_wait: Cell<u32>,
    /// A fault of this thread made a page of a shared mapping dirty. The thread's own.
    pub dirtied: Cell<bool>,
    /// The locks it holds (debug builds check their order).
    #[cfg(debug_assertions)]
    held: UnsafeCell<platform::HeldLocks>,
}

/// Offset of `cpu`, for the vectors.
pub const OFFSET_CPU: usize = core::mem::offset_of!(ThreadContext, cpu);

// SAFETY: see the module's ownership rule.
unsafe impl Sync for ThreadContext {}
// SAFETY: as above.
unsafe impl Send for ThreadContext {}

#[allow(improper_ctypes)] // the assembly reads only the fields at known offsets
unsafe extern "C" {
    fn switch_stacks(save: *mut u64, load: u64, next: *const ThreadContext);
    fn thread_start_user();
    fn thread_start_kernel();
    fn fp_save(state: *mut FpState);
    fn fp_load(state: *const FpState);
}

#[repr(C)]
struct SwitchFrame {
    x19: u64,
    x20: u64,
    rest: [u64; 8],
    x29: u64,
    x30: u64,
}

impl ThreadContext {
    /// For the thread that is already running: a CPU's first.
    pub const fn boot() -> Self {
        Self::make(0, core::ptr::null_mut())
    }

    const fn make(sp: u64, fp: *mut FpState) -> Self {
        ThreadContext {
            flags: AtomicU32::new(0),
            // A new thread enters as if from inside the scheduler, which runs with preemption disabled once.
            preempt: Cell::new(if sp == 0 { 0 } else { 1 }),
            cpu: AtomicPtr::new(core::ptr::null_mut()),
            sp: Cell::new(sp),
            tpidr: Cell::new(0),
            sp_el0: Cell::new(0),
            fp,
            fp_cpu: Cell::new(usize::MAX),
            fp_filling: Cell::new(false),
            user: !fp.is_null(),
            no_wait: Cell::new(0),
            dirtied: Cell::new(false),
            #[cfg(debug_assertions)]
            held: UnsafeCell::new(platform::HeldLocks::new()),
        }
    }

    /// Whether it is a user thread's.
    #[inline]
    pub fn is_user(&self) -> bool {
        self.user
    }

    /// The record of held locks; the running thread's own.
    #[cfg(debug_assertions)]
    pub fn held_locks(&self) -> *mut platform::HeldLocks {
        self.held.get()
    }

    /// A user thread that enters user mode with `frame`. `stack_top` is the top of its empty kernel stack.
    ///
    /// # Safety
    /// The stack is mapped, owned by the new thread, and at least a page long.
    pub unsafe fn new_user(stack_top: usize, frame: &TrapFrame) -> Self {
        let at = stack_top - size_of::<TrapFrame>();
        // SAFETY: inside the stack by contract.
        unsafe { (at as *mut TrapFrame).write(*frame) };
        // SAFETY: as above.
        let sp = unsafe { push_switch_frame(at, thread_start_user as *const () as u64, 0, 0) };
        let c = Self::make(sp, Box::into_raw(Box::new(FpState::new())));
        c.flags.store(FP_RESTORE, Ordering::Relaxed);
        c
    }

    /// A kernel thread that runs `entry(arg)`.
    ///
    /// # Safety
    /// As for [`ThreadContext::new_user`].
    pub unsafe fn new_kernel(stack_top: usize, entry: extern "C" fn(usize), arg: usize) -> Self {
        // SAFETY: by contract.
        let sp = unsafe {
            push_switch_frame(stack_top, thread_start_kernel as *const () as u64, entry as *const () as u64, arg as u64)
        };
        Self::make(sp, core::ptr::null_mut())
    }

    /// Makes `self`, the running thread, a user thread's state holder: exec gives fresh FP registers.
    pub fn reset_fp(&self) {
        let irq = crate::arch::irq_save();
        // SAFETY: the running thread owns its state; interrupts do not touch it.
        unsafe { *self.fp = FpState::new() };
        self.forget_fp();
        crate::arch::irq_restore(irq);
    }

    fn forget_fp(&self) {
        self.fp_cpu.set(usize::MAX);
        if percpu::this().fp_owner.get() == self.address() {
            percpu::this().fp_owner.set(0);
        }
        self.flags.fetch_or(FP_RESTORE, Ordering::Relaxed);
    }

    fn address(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }

    /// Whether the CPU's registers are this thread's now. Interrupts are masked, or the caller is the thread itself in a
    /// place where it cannot be switched.
    fn fp_is_live(&self) -> bool {
        let cpu = percpu::this();
        cpu.fp_owner.get() == self.address() && self.fp_cpu.get() == cpu.id.get()
    }

    /// The running thread's FP registers as they are in user mode now (for fork and signal frames). The reference is good
    /// until the thread goes back to user mode.
    pub fn fp_state(&self) -> &FpState {
        let irq = crate::arch::irq_save();
        if self.fp_is_live() && self.flags.load(Ordering::Relaxed) & FP_RESTORE == 0 {
            // SAFETY: FP access is enabled at EL1; the buffer is ours.
            unsafe { fp_save(self.fp) };
        }
        crate::arch::irq_restore(irq);
        // SAFETY: the running thread owns its state; a switch would write the same values.
        unsafe { &*self.fp }
    }

    /// Sets the FP registers of a thread that never ran (fork).
    pub fn fp_set(&self, state: &FpState) {
        // SAFETY: the caller is the only one that knows the thread.
        unsafe { *self.fp = *state };
        self.flags.fetch_or(FP_RESTORE, Ordering::Relaxed);
    }

    /// Lets `fill` write the running thread's FP registers (sigreturn); it may sleep. What it leaves is what user mode gets.
    pub fn fp_fill<T>(&self, fill: impl FnOnce(&mut FpState) -> T) -> T {
        let irq = crate::arch::irq_save();
        // From here on a switch neither saves the CPU's registers over what `fill` writes nor loads the half of it.
        self.fp_filling.set(true);
        self.forget_fp();
        crate::arch::irq_restore(irq);
        // SAFETY: the running thread owns its state, and nobody else touches it now.
        let result = fill(unsafe { &mut *self.fp });
        self.fp_filling.set(false);
        result
    }

    /// Loads the thread's FP registers if the CPU does not hold them. On the way to user mode or to the thread, interrupts masked.
    pub fn fp_restore(&self) {
        self.flags.fetch_and(!FP_RESTORE, Ordering::Relaxed);
        if !self.fp_is_live() {
            // SAFETY: FP access is enabled at EL1 and the state is the running thread's own.
            unsafe { fp_load(self.fp) };
            let cpu = percpu::this();
            cpu.fp_owner.set(self.address());
            self.fp_cpu.set(cpu.id.get());
            percpu::count(Counter::FpLoads);
        }
    }

    /// TPIDR_EL0 of the running thread or of one that never ran.
    pub fn set_tls(&self, value: u64, running: bool) {
        self.tpidr.set(value);
        if running {
            // SAFETY: a user register.
            unsafe { crate::write_sysreg!("tpidr_el0", value) };
        }
    }
}

impl Drop for ThreadContext {
    fn drop(&mut self) {
        if !self.fp.is_null() {
            // SAFETY: the box that `new_user` leaked; no CPU saves into it any more since the thread ended.
            drop(unsafe { Box::from_raw(self.fp) });
        }
    }
}

unsafe fn push_switch_frame(top: usize, pc: u64, x19: u64, x20: u64) -> u64 {
    let at = top - size_of::<SwitchFrame>();
    // SAFETY: inside the new thread's stack by the callers' contract.
    unsafe { (at as *mut SwitchFrame).write(SwitchFrame { x19, x20, rest: [0; 8], x29: 0, x30: pc }) };
    at as u64
}

/// Switches from the running thread `prev` to `next`. Returns when `prev` runs again, perhaps on another CPU.
///
/// # Safety
/// Interrupts are masked; `prev` is the running thread; `next` is runnable, is not running anywhere, and stays alive.
#[inline]
pub unsafe fn switch(prev: &ThreadContext, next: &ThreadContext) {
    let cpu = percpu::this();
    if prev.user {
        prev.tpidr.set(crate::read_sysreg!("tpidr_el0"));
        prev.sp_el0.set(crate::read_sysreg!("sp_el0"));
        if prev.flags.load(Ordering::Relaxed) & FP_RESTORE == 0 && prev.fp_is_live() {
            // SAFETY: the registers are prev's.
            unsafe { fp_save(prev.fp) };
            prev.flags.fetch_or(FP_RESTORE, Ordering::Relaxed);
        }
    }
    if next.user {
        // SAFETY: user registers.
        unsafe {
            crate::write_sysreg!("tpidr_el0", next.tpidr.get());
            crate::write_sysreg!("sp_el0", next.sp_el0.get());
        }
        if next.flags.load(Ordering::Relaxed) & FP_RESTORE != 0 && !next.fp_filling.get() {
            next.fp_restore();
        }
    }
    next.cpu.store(core::ptr::from_ref(cpu).cast_mut(), Ordering::Relaxed);
    percpu::count_own(Counter::ContextSwitches);
    // SAFETY: by contract.
    unsafe { switch_stacks(prev.sp.as_ptr(), next.sp.get(), next) };
}

/// The running thread's context.
#[inline(always)]
pub fn current() -> &'static ThreadContext {
    let p: *const ThreadContext;
    // SAFETY: TPIDR_EL1 holds the running thread, which stays alive while it runs. The value is the same for all the code
    // that one thread runs, so the read may be merged (`pure`).
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el1", out(reg) p, options(pure, nomem, nostack, preserves_flags));
        &*p
    }
}

/// Makes `first` the running thread of CPU `cpu`, the calling one, in place of none or of the boot context.
///
/// # Safety
/// Before interrupts are unmasked; `first` lives for ever and runs nowhere else.
pub unsafe fn adopt(first: &'static ThreadContext, cpu: usize) {
    first.cpu.store(core::ptr::from_ref(percpu::of(cpu)).cast_mut(), Ordering::Relaxed);
    // SAFETY: the register is the kernel's own.
    unsafe { crate::write_sysreg!("tpidr_el1", core::ptr::from_ref(first) as u64) };
}
