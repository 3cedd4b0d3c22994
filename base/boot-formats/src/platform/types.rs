//! The value itself.

use crate::fdt::Interrupt;
use arrayvec::ArrayVec;

/// Most memory or reserved ranges.
pub const MAX_REGIONS: usize = 64;
/// Most CPUs.
pub const MAX_CPUS: usize = 64;
/// Most virtio-mmio slots.
pub const MAX_VIRTIO: usize = 64;
/// Most redistributor regions of a GICv3, and most ITSs.
pub const MAX_GIC_REGIONS: usize = 8;
/// Longest seed that is kept.
pub const MAX_SEED: usize = 64;

/// A range of physical addresses. `base + size` never exceeds 2^64 - 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Region {
    /// The range, cut off at the end of the address space.
    pub const fn new(base: u64, size: u64) -> Self {
        let room = u64::MAX - base;
        Self { base, size: if size < room { size } else { room } }
    }

    /// The first byte behind the range.
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }

    /// The part below `limit`.
    pub const fn below(&self, limit: u64) -> Self {
        let room = limit.saturating_sub(self.base);
        Self { base: self.base, size: if self.size < room { self.size } else { room } }
    }

    /// The same as a standard range.
    pub const fn range(&self) -> core::ops::Range<u64> {
        self.base..self.end()
    }

    /// Whether the two have a byte in common.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.base < other.end() && other.base < self.end()
    }
}

/// How a CPU is started (`enable-method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnableMethod {
    /// `CPU_ON` of PSCI.
    Psci,
    /// Write an entry address to a mailbox and send an event. Only told, so that it can be said that it isn't done.
    SpinTable,
    /// Not said, or nothing known here; the boot CPU needs none.
    Unknown,
}

/// One CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Affinity fields of `MPIDR_EL1` (Aff3 in bits 39:32, Aff2 to Aff0 in bits 23:0), all else 0.
    pub mpidr: u64,
    /// How to start it.
    pub enable: EnableMethod,
}

/// The instruction that enters firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `hvc #0`
    Hvc,
    /// `smc #0`
    Smc,
}

/// Power State Coordination Interface (Arm DEN 0022).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Psci {
    /// How to call it.
    pub conduit: Conduit,
    /// Function id of `CPU_ON`.
    pub cpu_on: u32,
    /// Function id of `CPU_OFF`.
    pub cpu_off: u32,
    /// Version 0.2 or later: `SYSTEM_OFF`, `SYSTEM_RESET` and `AFFINITY_INFO` exist under their standard ids.
    pub standard: bool,
}

/// The interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one, made before there is a heap")]
pub enum Gic {
    /// GICv2 and compatibles.
    V2 {
        /// Distributor.
        dist: Region,
        /// CPU interface.
        cpu_if: Region,
        /// GICv2m frame, which turns writes into SPIs.
        msi_frame: Option<Region>,
    },
    /// GICv3 and later.
    V3 {
        /// Distributor.
        dist: Region,
        /// Regions that hold redistributors, in the order of the tree; at least one.
        redists: ArrayVec<Region, MAX_GIC_REGIONS>,
        /// Bytes from one redistributor to the next, where they are not as `GICR_TYPER` says.
        redist_stride: Option<u64>,
        /// Interrupt translation services.
        its: ArrayVec<Region, MAX_GIC_REGIONS>,
    },
}

/// The generic timer's interrupts (Arm ARM, chapter D12). Each private to its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// `CNTV`, EL1 virtual timer.
    pub virt: Interrupt,
    /// `CNTP`, EL1 non-secure physical timer.
    pub phys: Option<Interrupt>,
    /// `CNTHP`, EL2 physical timer.
    pub hyp_phys: Option<Interrupt>,
    /// `clock-frequency` in Hz, given only where firmware fails to set `CNTFRQ_EL0`.
    pub frequency: Option<u32>,
}

/// A device with registers in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its registers, as the CPU sees them.
    pub region: Region,
    /// Its interrupt, if it has one at the GIC.
    pub interrupt: Option<Interrupt>,
}

/// `/chosen`: what the boot loader says, but for the command line (see [`bootargs`](super::bootargs)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Where the initial root is.
    pub initrd: Option<Region>,
    /// Randomness for the kernel's address.
    pub kaslr_seed: Option<u64>,
    /// Randomness for the generator; empty if none. Longer ones are cut.
    pub rng_seed: ArrayVec<u8, MAX_SEED>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// RAM: sorted, disjoint, not adjacent, not empty, below 2^48. Reserved ranges are *not* cut out.
    pub memory: ArrayVec<Region, MAX_REGIONS>,
    /// Ranges to leave alone, in RAM or not: sorted, disjoint. Neither the tree's own nor the initrd's memory is in it
    /// unless the boot loader put it there.
    pub reserved: ArrayVec<Region, MAX_REGIONS>,
    /// The part of `reserved` that must not even be mapped (`no-map`): sorted, disjoint.
    pub no_map: ArrayVec<Region, MAX_REGIONS>,
    /// CPUs in the order of the tree, whether firmware started them or not.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// Firmware's power interface.
    pub psci: Option<Psci>,
    /// The interrupt controller. `Some` after a reader has succeeded.
    pub gic: Option<Gic>,
    /// The generic timer. `Some` after a reader has succeeded.
    pub timer: Option<Timer>,
    /// The console: the PL011 that `stdout-path` names, else the first there is.
    pub uart: Option<Device>,
    /// PL031 real-time clock.
    pub rtc: Option<Device>,
    /// virtio-mmio slots, sorted by address; most are empty.
    pub virtio_mmio: ArrayVec<Device, MAX_VIRTIO>,
    /// What the boot loader says.
    pub chosen: Chosen,
    /// What was odd; the first 16.
    pub problems: ArrayVec<Problem, 16>,
}

impl Platform {
    /// A machine with nothing.
    pub const fn new() -> Self {
        Self {
            memory: ArrayVec::new_const(),
            reserved: ArrayVec::new_const(),
            no_map: ArrayVec::new_const(),
            cpus: ArrayVec::new_const(),
            psci: None,
            gic: None,
            timer: None,
            uart: None,
            rtc: None,
            virtio_mmio: ArrayVec::new_const(),
            chosen: Chosen { initrd: None, kaslr_seed: None, rng_seed: ArrayVec::new_const() },
            problems: ArrayVec::new_const(),
        }
    }

    pub(super) fn note(&mut self, problem: Problem) {
        // The first sixteen tell enough.
        let _ = self.problems.try_push(problem);
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self::new()
    }
}

/// Something odd that booting can go on without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// That many CPUs found no place.
    CpusDropped(u32),
    /// Two CPU nodes have this affinity; the second is left out.
    DuplicateCpu(u64),
    /// A CPU node without a usable `reg`.
    BadCpu,
    /// That many memory ranges found no place.
    MemoryDropped(u32),
    /// A memory range at this address that is empty or leaves the 48 bits of physical addresses; what lies inside is
    /// used.
    BadMemory(u64),
    /// `/chosen/stdout-path` names no node, or none that is a PL011.
    StdoutUnusable,
    /// The initrd's end lies before its start, or one of the two is missing.
    BadInitrd,
    /// That many virtio-mmio slots found no place.
    VirtioDropped(u32),
    /// `/psci` has a method or version that is unknown.
    BadPsci,
    /// A device's registers lie where its bus doesn't reach.
    Untranslatable,
}

/// Why the tree doesn't describe a machine to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformError {
    /// No node with `device_type = "memory"` and a range.
    NoMemory,
    /// No CPU node.
    NoCpus,
    /// Neither a GICv2 nor a GICv3, or one without its registers.
    NoInterruptController,
    /// No `arm,armv8-timer` with a virtual timer interrupt at the GIC.
    NoTimer,
    /// More reserved ranges than [`MAX_REGIONS`] even after merging: memory that must not be touched would be.
    TooManyReserved,
}

impl core::fmt::Display for PlatformError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "device tree: no memory",
            Self::NoCpus => "device tree: no CPUs",
            Self::NoInterruptController => "device tree: no usable GIC",
            Self::NoTimer => "device tree: no usable generic timer",
            Self::TooManyReserved => "device tree: too many reserved memory ranges",
        })
    }
}

impl core::error::Error for PlatformError {}

impl core::fmt::Display for Problem {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::CpusDropped(n) => write!(f, "{n} CPUs beyond {MAX_CPUS} left out"),
            Self::DuplicateCpu(mpidr) => write!(f, "second CPU with affinity {mpidr:#x} left out"),
            Self::BadCpu => write!(f, "CPU without a usable reg left out"),
            Self::MemoryDropped(n) => write!(f, "{n} memory ranges beyond {MAX_REGIONS} left out"),
            Self::BadMemory(base) => write!(f, "empty or endless memory range at {base:#x}"),
            Self::StdoutUnusable => write!(f, "stdout-path names no PL011"),
            Self::BadInitrd => write!(f, "initrd without a usable start and end"),
            Self::VirtioDropped(n) => write!(f, "{n} virtio-mmio slots beyond {MAX_VIRTIO} left out"),
            Self::BadPsci => write!(f, "PSCI of unknown method or version"),
            Self::Untranslatable => write!(f, "device outside its bus left out"),
        }
    }
}
