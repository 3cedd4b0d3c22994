//! GICv2: memory-mapped CPU interface (Arm IHI 0048).

use super::{PRIORITY, Regs, gicd, set_trigger};

const GICC_CTLR: usize = 0x0;
const GICC_PMR: usize = 0x4;
const GICC_IAR: usize = 0xc;
const GICC_EOIR: usize = 0x10;

#[derive(Debug)]
pub struct Gic {
    dist: Regs,
    cpu: Regs,
}

impl Gic {
    /// # Safety
    /// Both are the mapped registers.
    pub unsafe fn new(dist: usize, cpu: usize) -> Self {
        let g = Gic { dist: Regs(dist), cpu: Regs(cpu) };
        g.dist.write(gicd::CTLR, 0);
        let lines = ((g.dist.read(gicd::TYPER) as usize & 0x1f) + 1) * 32;
        for i in (32..lines).step_by(32) {
            g.dist.write(gicd::ICENABLER + i / 8, !0);
        }
        for i in (32..lines).step_by(4) {
            g.dist.write(gicd::IPRIORITYR + i, PRIORITY);
            g.dist.write(gicd::ITARGETSR + i, 0x0101_0101);
        }
        g.dist.write(gicd::CTLR, 1);
        g
    }

    pub fn init_cpu(&self, timer: u32) {
        self.dist.write(gicd::ICENABLER, 0xffff_0000);
        for i in (0..32).step_by(4) {
            self.dist.write(gicd::IPRIORITYR + i, PRIORITY);
        }
        self.dist.write(gicd::ISENABLER, 0xffff | 1 << timer);
        self.cpu.write(GICC_PMR, 0xf0);
        self.cpu.write(GICC_CTLR, 1);
    }

    pub fn enable_spi(&self, intid: u32, edge: bool) {
        set_trigger(self.dist, intid, edge);
        self.dist.write8(gicd::ITARGETSR + intid as usize, 1);
        self.dist.write(gicd::ISENABLER + (intid as usize / 32) * 4, 1 << (intid % 32));
    }

    /// GICv2 has eight CPU interfaces, numbered as firmware lists the CPUs.
    pub fn send_sgi(&self, target: usize, sgi: u8) {
        // SAFETY: a barrier: what the target is to see is written before it is told.
        unsafe { core::arch::asm!("dsb ishst", options(nostack, preserves_flags)) };
        self.dist.write(gicd::SGIR, 1 << (16 + target.min(7)) | sgi as u32);
    }

    #[inline]
    pub fn acknowledge(&self) -> u32 {
        self.cpu.read(GICC_IAR)
    }

    #[inline]
    pub fn end(&self, iar: u32) {
        self.cpu.write(GICC_EOIR, iar);
    }
}
