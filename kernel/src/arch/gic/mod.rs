//! The interrupt controller: GICv2 (`v2`) or GICv3 (`v3`), whichever firmware describes.
//!
//! INTIDs 0-15 are SGIs (from CPU to CPU), 16-31 PPIs (the timer), the rest SPIs (devices, routed to the boot CPU until
//! balanced). All run at one priority; handlers run with interrupts masked and are short: devices wake a thread.
//!
//! Ownership: the distributor is configured under [`CONFIG`]; each CPU's interface is its own. Handlers are registered
//! once, at boot, before their interrupt is enabled, and are read without a lock.

mod v2;
mod v3;

use crate::arch::percpu::{self, Counter, MAX_CPUS};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use sync::{IrqLock, LockClass, Once};

/// Interrupts from one CPU to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sgi {
    /// Look at your run queue.
    Reschedule = 0,
    /// Stop: somebody panics.
    Stop = 1,
    /// Execute a full barrier (membarrier(2)).
    Barrier = 2,
}

/// Where the controller is (virtual addresses of device mappings).
#[derive(Debug)]
pub enum Layout {
    /// Distributor and CPU interface.
    V2 {
        /// Distributor registers.
        dist: usize,
        /// CPU interface registers.
        cpu: usize,
    },
    /// Distributor and redistributor regions (address, length).
    V3 {
        /// Distributor registers.
        dist: usize,
        /// Redistributor regions.
        redists: arrayvec::ArrayVec<(usize, usize), 8>,
    },
}

enum Gic {
    V2(v2::Gic),
    V3(v3::Gic),
}

static GIC: Once<Gic> = Once::new();
static CONFIG_CLASS: LockClass = LockClass::new("gic configuration", sync::rank::CONSOLE - 5);
static CONFIG: IrqLock<()> = IrqLock::new(&CONFIG_CLASS, ());
static TIMER_INTID: AtomicUsize = AtomicUsize::new(27);
/// An interrupt handler: called with interrupts masked.
pub type Handler = fn(intid: u32);
const MAX_INTID: usize = 1020;
static HANDLERS: [AtomicPtr<()>; MAX_INTID] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_INTID];

const SPURIOUS: u32 = 1020;

/// Sets up the distributor and this (the boot) CPU.
///
/// # Safety
/// `layout` names the device's mapped registers.
pub unsafe fn init(layout: Layout, timer_intid: u32) -> Result<(), &'static str> {
    TIMER_INTID.store(timer_intid as usize, Ordering::Relaxed);
    // SAFETY: by contract.
    let gic = unsafe {
        match layout {
            Layout::V2 { dist, cpu } => Gic::V2(v2::Gic::new(dist, cpu)),
            Layout::V3 { dist, redists } => Gic::V3(v3::Gic::new(dist, redists)),
        }
    };
    GIC.set(gic).map_err(|_| "the interrupt controller was set up twice")?;
    init_cpu()
}

/// Sets up the calling CPU's interface and its timer interrupt.
pub fn init_cpu() -> Result<(), &'static str> {
    let timer = TIMER_INTID.load(Ordering::Relaxed) as u32;
    match GIC.get() {
        Some(Gic::V2(g)) => g.init_cpu(timer),
        Some(Gic::V3(g)) => g.init_cpu(timer)?,
        None => return Err("no interrupt controller"),
    }
    Ok(())
}

/// Which version is in use, for the log.
pub fn version() -> u32 {
    match GIC.get() {
        Some(Gic::V2(_)) => 2,
        Some(Gic::V3(_)) => 3,
        None => 0,
    }
}

/// Calls `handler` for the shared interrupt `intid` from now on, on the boot CPU.
pub fn register(intid: u32, edge: bool, handler: Handler) -> Result<(), &'static str> {
    let slot = HANDLERS.get(intid as usize).filter(|_| intid >= 32).ok_or("no such interrupt")?;
    let _guard = CONFIG.lock();
    slot.store(handler as *mut (), Ordering::Release);
    match GIC.get() {
        Some(Gic::V2(g)) => g.enable_spi(intid, edge),
        Some(Gic::V3(g)) => g.enable_spi(intid, edge, percpu::of(0).mpidr.get()),
        None => return Err("no interrupt controller"),
    }
    Ok(())
}

/// Sends `sgi` to CPU `target`. False if the target is out of range or offline.
#[must_use]
pub fn send(target: usize, sgi: Sgi) -> bool {
    if target >= percpu::listed().min(MAX_CPUS) || !percpu::of(target).online.load(Ordering::Acquire) {
        return false;
    }
    match GIC.get() {
        Some(Gic::V2(g)) => g.send_sgi(target, sgi as u8),
        Some(Gic::V3(g)) => g.send_sgi(percpu::of(target).mpidr.get(), sgi as u8),
        None => return false,
    }
    true
}

/// Takes every pending interrupt. Interrupts are masked.
pub fn handle() {
    match GIC.get() {
        Some(Gic::V3(g)) => loop {
            let intid = g.acknowledge();
            if intid >= SPURIOUS {
                break;
            }
            dispatch(intid);
            g.end(intid);
        },
        Some(Gic::V2(g)) => loop {
            let iar = g.acknowledge();
            if iar & 0x3ff >= SPURIOUS {
                break;
            }
            dispatch(iar & 0x3ff);
            g.end(iar);
        },
        None => {}
    }
}

fn dispatch(intid: u32) {
    percpu::count(Counter::Interrupts);
    if intid == Sgi::Reschedule as u32 {
        percpu::count(Counter::ReschedTaken);
        crate::sched::resched_interrupt();
    } else if intid == Sgi::Barrier as u32 {
        crate::mm::membarrier::interrupt();
    } else if intid == Sgi::Stop as u32 {
        crate::panic::stopped_by_another();
    } else if intid as usize == TIMER_INTID.load(Ordering::Relaxed) {
        percpu::count(Counter::Ticks);
        crate::arch::time::stop();
        crate::sched::timer_interrupt();
    } else {
        let handler = HANDLERS.get(intid as usize).map_or(core::ptr::null_mut(), |h| h.load(Ordering::Acquire));
        if !handler.is_null() {
            // SAFETY: only `register` stores here, and it stores a Handler.
            let handler: Handler = unsafe { core::mem::transmute(handler) };
            handler(intid);
        }
    }
}

/// Device registers: 32-bit accesses at `base + offset`.
#[derive(Clone, Copy, Debug)]
struct Regs(usize);

impl Regs {
    fn read(self, offset: usize) -> u32 {
        // SAFETY: `base` is a device mapping that lasts for ever (Layout's contract).
        unsafe { ((self.0 + offset) as *const u32).read_volatile() }
    }
    fn write(self, offset: usize, value: u32) {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *mut u32).write_volatile(value) }
    }
    fn write8(self, offset: usize, value: u8) {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *mut u8).write_volatile(value) }
    }
    fn write64(self, offset: usize, value: u64) {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *mut u64).write_volatile(value) }
    }
    fn read64(self, offset: usize) -> u64 {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *const u64).read_volatile() }
    }
}

/// Distributor registers (GIC architecture 12.9).
mod gicd {
    pub const CTLR: usize = 0x000;
    pub const TYPER: usize = 0x004;
    pub const IGROUPR: usize = 0x080;
    pub const ISENABLER: usize = 0x100;
    pub const ICENABLER: usize = 0x180;
    pub const IPRIORITYR: usize = 0x400;
    pub const ITARGETSR: usize = 0x800;
    pub const ICFGR: usize = 0xc00;
    pub const SGIR: usize = 0xf00;
    pub const IROUTER: usize = 0x6000;
}

const PRIORITY: u32 = 0xa0a0_a0a0;

fn set_trigger(dist: Regs, intid: u32, edge: bool) {
    let at = gicd::ICFGR + (intid as usize / 16) * 4;
    let bit = 2 << ((intid % 16) * 2);
    let v = dist.read(at);
    dist.write(at, if edge { v | bit } else { v & !bit });
}
