//! GICv3: system-register CPU interface, one redistributor per CPU (Arm IHI 0069).

use super::{PRIORITY, Regs, gicd, set_trigger};
use arrayvec::ArrayVec;

const GICR_TYPER: usize = 0x8;
const GICR_WAKER: usize = 0x14;
const SGI_BASE: usize = 0x10000;

const CTLR_RWP: u32 = 1 << 31;
const CTLR_ARE: u32 = 1 << 4;
const CTLR_GRP1: u32 = 1 << 1;

#[derive(Debug)]
pub struct Gic {
    dist: Regs,
    redists: ArrayVec<(usize, usize), 8>,
}

impl Gic {
    /// # Safety
    /// All are the mapped registers.
    pub unsafe fn new(dist: usize, redists: ArrayVec<(usize, usize), 8>) -> Self {
        let g = Gic { dist: Regs(dist), redists };
        g.dist.write(gicd::CTLR, 0);
        g.wait_rwp();
        let lines = (((g.dist.read(gicd::TYPER) as usize & 0x1f) + 1) * 32).min(1020);
        for i in (32..lines).step_by(32) {
            g.dist.write(gicd::ICENABLER + i / 8, !0);
            g.dist.write(gicd::IGROUPR + i / 8, !0);
        }
        for i in (32..lines).step_by(4) {
            g.dist.write(gicd::IPRIORITYR + i, PRIORITY);
        }
        g.wait_rwp();
        g.dist.write(gicd::CTLR, CTLR_ARE | CTLR_GRP1);
        g.wait_rwp();
        g
    }

    /// Register writes take effect in bounded time; a controller that never says so is broken, and used all the same.
    fn wait_rwp(&self) {
        for _ in 0..1_000_000 {
            if self.dist.read(gicd::CTLR) & CTLR_RWP == 0 {
                return;
            }
            core::hint::spin_loop();
        }
    }

    /// The calling CPU's redistributor: the one whose TYPER holds its affinity.
    fn redist(&self) -> Option<Regs> {
        let mpidr = crate::read_sysreg!("mpidr_el1");
        let affinity = (mpidr >> 8) & 0xff00_0000 | mpidr & 0xff_ffff;
        for &(base, len) in &self.redists {
            let mut at = base;
            while at + 0x20000 <= base + len {
                let typer = Regs(at).read64(GICR_TYPER);
                if typer >> 32 == affinity {
                    return Some(Regs(at));
                }
                if typer & (1 << 4) != 0 {
                    break;
                }
                at += if typer & 2 != 0 { 0x40000 } else { 0x20000 };
            }
        }
        None
    }

    pub fn init_cpu(&self, timer: u32) -> Result<(), &'static str> {
        let rd = self.redist().ok_or("no redistributor for this CPU")?;
        rd.write(GICR_WAKER, rd.read(GICR_WAKER) & !2);
        let mut awake = false;
        for _ in 0..1_000_000 {
            awake = rd.read(GICR_WAKER) & 4 == 0;
            if awake {
                break;
            }
            core::hint::spin_loop();
        }
        if !awake {
            return Err("the redistributor does not wake");
        }
        let sgi = Regs(rd.0 + SGI_BASE);
        sgi.write(gicd::IGROUPR, !0);
        for i in (0..32).step_by(4) {
            sgi.write(gicd::IPRIORITYR + i, PRIORITY);
        }
        sgi.write(gicd::ICENABLER, 0xffff_0000);
        sgi.write(gicd::ISENABLER, 0xffff | 1 << timer);
        // SAFETY: the CPU's own interrupt interface: system registers on, all priorities, group 1 on.
        unsafe {
            let sre = crate::read_sysreg!("S3_0_C12_C12_5") | 1;
            crate::write_sysreg!("S3_0_C12_C12_5", sre);
            core::arch::asm!("isb", options(nostack));
            crate::write_sysreg!("S3_0_C4_C6_0", 0xf0u64); // ICC_PMR
            crate::write_sysreg!("S3_0_C12_C12_3", 0u64); // ICC_BPR1
            crate::write_sysreg!("S3_0_C12_C12_4", 0u64); // ICC_CTLR: EOI deactivates
            crate::write_sysreg!("S3_0_C12_C12_7", 1u64); // ICC_IGRPEN1
            core::arch::asm!("isb", options(nostack));
        }
        Ok(())
    }

    pub fn enable_spi(&self, intid: u32, edge: bool, mpidr: u64) {
        set_trigger(self.dist, intid, edge);
        self.dist.write64(gicd::IROUTER + intid as usize * 8, mpidr & 0xff_00ff_ffff);
        self.dist.write(gicd::ISENABLER + (intid as usize / 32) * 4, 1 << (intid % 32));
        self.wait_rwp();
    }

    pub fn send_sgi(&self, mpidr: u64, sgi: u8) {
        let (aff0, aff1, aff2, aff3) = (mpidr & 0xff, (mpidr >> 8) & 0xff, (mpidr >> 16) & 0xff, (mpidr >> 32) & 0xff);
        let value = aff3 << 48 | (aff0 >> 4) << 44 | aff2 << 32 | (sgi as u64) << 24 | aff1 << 16 | 1 << (aff0 & 15);
        // SAFETY: sending an interrupt; the barrier orders what the target is to see before it.
        unsafe {
            core::arch::asm!("dsb ishst", options(nostack, preserves_flags));
            crate::write_sysreg!("S3_0_C12_C11_5", value);
            core::arch::asm!("isb", options(nostack, preserves_flags));
        }
    }

    #[inline]
    pub fn acknowledge(&self) -> u32 {
        let v = crate::read_sysreg!("S3_0_C12_C12_0") as u32;
        // SAFETY: a barrier: the acknowledge takes effect before the handler looks at the device.
        unsafe { core::arch::asm!("dsb sy", options(nostack, preserves_flags)) };
        v
    }

    #[inline]
    pub fn end(&self, intid: u32) {
        // SAFETY: ends the interrupt just acknowledged.
        unsafe { crate::write_sysreg!("S3_0_C12_C12_1", intid as u64) };
    }
}
