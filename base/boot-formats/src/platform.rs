//! The machine as firmware describes it: one value, filled from the device tree (and later from ACPI), read by everything
//! that needs to know where a device is. Fixed capacity: it is made before there is a heap.

use crate::fdt::{Fdt, Node};
use arrayvec::ArrayVec;
use core::ops::Range;

/// The most of each kind that is remembered; more are left out (and counted in [`Platform::dropped`]).
pub const MAX_REGIONS: usize = 64;
/// The most CPUs.
pub const MAX_CPUS: usize = 64;
/// The most virtio-mmio slots.
pub const MAX_VIRTIO: usize = 64;

/// Why a tree does not describe a usable machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformError {
    /// No memory node with a region in it.
    NoMemory,
    /// No CPU node.
    NoCpus,
}

/// How firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciConduit {
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
}

/// The interrupt controller's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gic {
    /// GICv2.
    V2 {
        /// Distributor.
        dist: (u64, u64),
        /// CPU interface.
        cpu: (u64, u64),
    },
    /// GICv3.
    V3 {
        /// Distributor.
        dist: (u64, u64),
        /// Redistributor regions.
        redists: ArrayVec<(u64, u64), 8>,
    },
}

/// A device with one register window and one interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Physical address.
    pub base: u64,
    /// Length.
    pub size: u64,
    /// Interrupt.
    pub intid: u32,
    /// Whether it is edge-triggered.
    pub edge: bool,
}

/// The machine.
#[derive(Clone, Debug, Default)]
pub struct Platform {
    /// RAM.
    pub memory: ArrayVec<Range<u64>, MAX_REGIONS>,
    /// Parts of it that firmware keeps.
    pub reserved: ArrayVec<Range<u64>, MAX_REGIONS>,
    /// MPIDR of each CPU, in the tree's order.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// PSCI, if there is.
    pub psci: Option<PsciConduit>,
    /// The interrupt controller.
    pub gic: Option<Gic>,
    /// INTID of the virtual timer.
    pub timer_intid: Option<u32>,
    /// The console.
    pub uart: Option<Device>,
    /// The real-time clock (PL031).
    pub rtc: Option<Device>,
    /// virtio-mmio slots.
    pub virtio: ArrayVec<Device, MAX_VIRTIO>,
    /// The initial root image.
    pub initrd: Option<Range<u64>>,
    /// A random number for KASLR.
    pub kaslr_seed: Option<u64>,
    /// Where `rng-seed`'s bytes lie, relative to the blob, and how many.
    pub rng_seed: ArrayVec<u8, 64>,
    /// How many regions, CPUs or devices had no room.
    pub dropped: usize,
}

fn note<T, const N: usize>(list: &mut ArrayVec<T, N>, item: T, dropped: &mut usize) {
    if list.try_push(item).is_err() {
        *dropped += 1;
    }
}

fn range(base: u64, size: u64) -> Option<Range<u64>> {
    (size > 0).then(|| Some(base..base.checked_add(size)?))?
}

fn device(n: &Node<'_>) -> Option<Device> {
    let (base, size) = n.reg().next()?;
    let (intid, edge) = n.gic_interrupt(0)?;
    Some(Device { base, size, intid, edge })
}

impl Platform {
    /// Reads the tree.
    pub fn from_fdt(fdt: &Fdt<'_>) -> Result<Self, PlatformError> {
        let mut p = Platform::default();
        let mut in_reserved = false;
        for n in fdt.nodes() {
            if n.depth == 1 {
                in_reserved = n.name == b"reserved-memory";
            } else if in_reserved && n.depth == 2 {
                for r in n.reg().filter_map(|(b, s)| range(b, s)) {
                    note(&mut p.reserved, r, &mut p.dropped);
                }
            }
            if !n.is_disabled() {
                p.take_node(&n);
            }
        }
        for r in fdt.reservations().filter_map(|(b, s)| range(b, s)) {
            note(&mut p.reserved, r, &mut p.dropped);
        }
        p.take_chosen(fdt);
        if p.memory.is_empty() {
            return Err(PlatformError::NoMemory);
        }
        if p.cpus.is_empty() {
            return Err(PlatformError::NoCpus);
        }
        Ok(p)
    }

    fn take_node(&mut self, n: &Node<'_>) {
        match n.string(b"device_type") {
            Some(b"memory") => {
                for r in n.reg().filter_map(|(b, s)| range(b, s)) {
                    note(&mut self.memory, r, &mut self.dropped);
                }
            }
            Some(b"cpu") => {
                if let Some((mpidr, _)) = n.reg().next() {
                    note(&mut self.cpus, mpidr, &mut self.dropped);
                }
            }
            _ => {}
        }
        if n.is_compatible(b"arm,psci-1.0") || n.is_compatible(b"arm,psci-0.2") {
            self.psci = match n.string(b"method") {
                Some(b"hvc") => Some(PsciConduit::Hvc),
                Some(b"smc") => Some(PsciConduit::Smc),
                _ => None,
            };
        } else if n.is_compatible(b"arm,gic-v3") {
            let regions = n.u32(b"#redistributor-regions").unwrap_or(1) as usize;
            let mut reg = n.reg();
            if let Some(dist) = reg.next() {
                self.gic = Some(Gic::V3 { dist, redists: reg.take(regions.min(8)).collect() });
            }
        } else if n.is_compatible(b"arm,cortex-a15-gic") || n.is_compatible(b"arm,gic-400") {
            let mut reg = n.reg();
            if let (Some(dist), Some(cpu)) = (reg.next(), reg.next()) {
                self.gic = Some(Gic::V2 { dist, cpu });
            }
        } else if n.is_compatible(b"arm,armv8-timer") {
            self.timer_intid = n.gic_interrupt(2).map(|(id, _)| id);
        } else if n.is_compatible(b"arm,pl011") {
            // The first one, unless /chosen names another.
            self.uart = self.uart.or(device(n));
        } else if n.is_compatible(b"arm,pl031") {
            self.rtc = device(n);
        } else if n.is_compatible(b"virtio,mmio")
            && let Some(d) = device(n)
        {
            note(&mut self.virtio, d, &mut self.dropped);
        }
    }

    fn take_chosen(&mut self, fdt: &Fdt<'_>) {
        let Some(chosen) = fdt.path(b"/chosen") else { return };
        if let (Some(start), Some(end)) = (chosen.number(b"linux,initrd-start"), chosen.number(b"linux,initrd-end")) {
            self.initrd = (start < end).then_some(start..end);
        }
        self.kaslr_seed = chosen.number(b"kaslr-seed").filter(|&s| s != 0);
        if let Some(seed) = chosen.property(b"rng-seed") {
            self.rng_seed = seed.iter().copied().take(64).collect();
        }
        if let Some(path) = chosen.string(b"stdout-path") {
            let path = path.split(|&c| c == b':').next().unwrap_or(path);
            let node = if path.first() == Some(&b'/') {
                fdt.path(path)
            } else {
                fdt.path(b"/aliases").and_then(|a| a.string(path)).and_then(|p| fdt.path(p))
            };
            if let Some(d) = node.filter(|n| n.is_compatible(b"arm,pl011")).and_then(|n| device(&n)) {
                self.uart = Some(d);
            }
        }
    }
}

/// The command line in `/chosen`, without its NUL.
pub fn bootargs<'a>(fdt: &Fdt<'a>) -> &'a [u8] {
    fdt.path(b"/chosen").and_then(|c| c.string(b"bootargs")).unwrap_or(b"")
}
