//! Per-CPU state and CPU identity.
//!
//! `TPIDR_EL1` holds the running thread, and that the address of its CPU's [`PerCpu`] (fast path). As a cross-check, a bounded
//! lookup of `MPIDR_EL1` among the CPUs that firmware listed gives the same answer ([`lookup_by_mpidr`]); gate s0 compares
//! both on every CPU, and the boot parameter `berth.sabotage=percpu` breaks the fast path to show that the gate sees it.
//!
//! Ownership: each block is written by its own CPU only, except the counters (atomics) and `online` (set by the CPU
//! itself, read by all). A thread may use a reference to "its" block only while it cannot migrate; [`id`] is therefore
//! meaningful only with preemption disabled.

use crate::arch::context;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The most CPUs that the kernel uses.
pub const MAX_CPUS: usize = 64;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What each CPU counts; read at `/proc/berth/counters`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        /// Every counter with the name that user space sees.
        pub const COUNTERS: &[(Counter, &str)] = &[$((Counter::$name, $text),)*];
        const COUNTER_COUNT: usize = COUNTERS.len();
    };
}

counters! {
    /// System calls taken.
    Syscalls = "syscalls",
    /// System calls with an unknown number.
    UnknownSyscalls = "unknown_syscalls",
    /// Faults from user space or on user memory.
    PageFaults = "page_faults",
    /// Pages copied on write.
    CowFaults = "cow_faults",
    /// Thread switches.
    ContextSwitches = "context_switches",
    /// Reschedules asked of this CPU by another.
    ReschedRequest = "resched_request",
    /// Reschedule interrupts sent to this CPU.
    ReschedSent = "resched_sent",
    /// Reschedule interrupts that this CPU took.
    ReschedTaken = "resched_taken",
    /// Reschedule interrupts after which this CPU looked at its queue.
    ReschedAcked = "resched_acked",
    /// Timer interrupts.
    Ticks = "ticks",
    /// All interrupts.
    Interrupts = "interrupts",
    /// Threads taken from another CPU's queue.
    Steals = "steals",
    /// Threads that came from another CPU in any way.
    Migrations = "migrations",
    /// TLB invalidations by address space or more.
    TlbFlushes = "tlb_flushes",
    /// TLB invalidations by page.
    TlbPages = "tlb_pages",
    /// Generations of address-space identifiers used up.
    AsidRollovers = "asid_rollovers",
    /// FP states loaded.
    FpLoads = "fp_loads",
    /// Idle periods.
    Idles = "idles",
    /// Processes killed for want of memory.
    OomKills = "oom_kills",
}

/// One CPU's block.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct PerCpu {
    /// Top of the stack on which a kernel stack overflow is reported. The vectors load it.
    pub emergency_stack: AtomicUsize,
    /// This CPU's index.
    pub id: Cell<usize>,
    /// Its MPIDR affinity fields.
    pub mpidr: Cell<u64>,
    /// Whether it takes threads and interrupts.
    pub online: AtomicBool,
    /// The thread whose FP registers the CPU holds, as an address that is only compared.
    pub fp_owner: Cell<usize>,
    counters: [AtomicU64; COUNTER_COUNT],
}

/// Offset of `emergency_stack`, for the vectors.
pub const OFFSET_EMERGENCY: usize = core::mem::offset_of!(PerCpu, emergency_stack);

/// Offset of the count of system calls, for the vectors, which count.
pub const OFFSET_SYSCALLS: usize =
    core::mem::offset_of!(PerCpu, counters) + Counter::Syscalls as usize * size_of::<AtomicU64>();

// SAFETY: the cells are written by the owning CPU alone, with preemption disabled, and others read only atomics or what
// is fixed before the CPU goes online.
unsafe impl Sync for PerCpu {}

static BLOCKS: [PerCpu; MAX_CPUS] = [const {
    PerCpu {
        emergency_stack: AtomicUsize::new(0),
        id: Cell::new(0),
        mpidr: Cell::new(u64::MAX),
        online: AtomicBool::new(false),
        fp_owner: Cell::new(0),
        counters: [const { AtomicU64::new(0) }; COUNTER_COUNT],
    }
}; MAX_CPUS];

static LISTED: AtomicUsize = AtomicUsize::new(1);

/// The MPIDR fields that tell CPUs apart.
pub const MPIDR_MASK: u64 = 0xff_00ff_ffff;

/// Fills in identities, once, on the boot CPU: `mpidrs` in the order of indices, the boot CPU's first.
pub fn init(mpidrs: &[u64]) {
    for (i, (block, &m)) in BLOCKS.iter().zip(mpidrs).enumerate() {
        block.id.set(i);
        block.mpidr.set(m & MPIDR_MASK);
    }
    LISTED.store(mpidrs.len().clamp(1, MAX_CPUS), Ordering::Release);
}

/// How many CPUs firmware lists (and the kernel knows).
pub fn listed() -> usize {
    LISTED.load(Ordering::Acquire)
}

/// Block `cpu`.
#[inline(always)]
pub fn of(cpu: usize) -> &'static PerCpu {
    &BLOCKS[cpu]
}

/// The calling CPU's block. The caller must not migrate while it uses it.
#[inline(always)]
pub fn this() -> &'static PerCpu {
    // SAFETY: `context::adopt` and `context::switch` set it in whatever runs. Read anew each time: a thread migrates.
    unsafe { &*context::current().cpu.load(Ordering::Relaxed) }
}

/// The calling CPU's index (fast path).
#[inline(always)]
pub fn id() -> usize {
    this().id.get()
}

/// The index of the CPU with this MPIDR (fallback): a bounded scan over the listed CPUs.
pub fn lookup_by_mpidr(mpidr: u64) -> Option<usize> {
    BLOCKS[..listed()].iter().position(|b| b.mpidr.get() == mpidr & MPIDR_MASK)
}

/// The calling CPU's index by the fallback.
pub fn id_by_mpidr() -> Option<usize> {
    lookup_by_mpidr(crate::read_sysreg!("mpidr_el1"))
}

/// What each CPU found when it last compared: times compared, fast path, fallback.
static IDENTITY: [[AtomicUsize; 3]; MAX_CPUS] = [const { [const { AtomicUsize::new(0) }; 3] }; MAX_CPUS];

/// Compares the two ways to know the calling CPU and keeps the answers for [`identity_check`]. With
/// `berth.sabotage=percpu` the answer of the fast path is falsified here (and only here). Preemption is disabled.
pub fn check_identity_here() {
    let cpu = id();
    let fast = if crate::machine::sabotaged("percpu") { cpu ^ 1 } else { cpu };
    let at = &IDENTITY[cpu];
    at[1].store(fast, Ordering::Relaxed);
    at[2].store(id_by_mpidr().unwrap_or(usize::MAX), Ordering::Relaxed);
    at[0].fetch_add(1, Ordering::Release);
}

/// Lets each online CPU compare its identities now, and returns (index, fast path, fallback) of each that answered within
/// 2 s (a busy host may not run a virtual CPU for long). Context: thread.
pub fn identity_check() -> arrayvec::ArrayVec<(usize, usize, usize), MAX_CPUS> {
    let mut found = arrayvec::ArrayVec::new();
    for cpu in (0..listed()).filter(|&c| of(c).online.load(Ordering::Acquire)) {
        let before = IDENTITY[cpu][0].load(Ordering::Acquire);
        let irq = crate::arch::irq_save();
        if id() == cpu {
            check_identity_here();
        } else {
            crate::sched::ask_identity(cpu);
        }
        crate::arch::irq_restore(irq);
        let limit = crate::arch::time::now_ns() + 2_000_000_000;
        while IDENTITY[cpu][0].load(Ordering::Acquire) == before && crate::arch::time::now_ns() < limit {
            core::hint::spin_loop();
        }
        if IDENTITY[cpu][0].load(Ordering::Acquire) != before {
            let [fast, fallback] = [1, 2].map(|i| IDENTITY[cpu][i].load(Ordering::Relaxed));
            found.push((cpu, fast, fallback));
        }
    }
    found
}

/// Counts one event on the calling CPU. A migration in between credits the wrong CPU, which no one minds.
#[inline(always)]
pub fn count(what: Counter) {
    let c = &this().counters[what as usize];
    // Interrupt handlers count other events than the code they interrupt, so a plain add would almost do; LSE makes the
    // atomic one as cheap.
    c.fetch_add(1, Ordering::Relaxed);
}

/// As [`count`] for an event that no interrupt handler counts, on a path where the price of an atomic addition shows. The
/// caller cannot migrate, or does not mind that a count is lost where it is preempted here.
#[inline(always)]
pub fn count_own(what: Counter) {
    let c = &this().counters[what as usize];
    c.store(c.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Counts `n` events on the calling CPU.
pub fn count_many(what: Counter, n: u64) {
    this().counters[what as usize].fetch_add(n, Ordering::Relaxed);
}

/// Counts one event on behalf of another CPU.
pub fn count_on(cpu: usize, what: Counter) {
    BLOCKS[cpu].counters[what as usize].fetch_add(1, Ordering::Relaxed);
}

/// Takes back one event that was counted too early.
pub fn uncount_on(cpu: usize, what: Counter) {
    BLOCKS[cpu].counters[what as usize].fetch_sub(1, Ordering::Relaxed);
}

/// A counter's value on one CPU.
pub fn counter(cpu: usize, what: Counter) -> u64 {
    BLOCKS[cpu].counters[what as usize].load(Ordering::Relaxed)
}
