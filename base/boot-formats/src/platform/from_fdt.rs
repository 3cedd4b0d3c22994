//! Reading a [`Platform`] out of a device tree. Bindings: the Devicetree Specification 0.4 chapter 3, and Linux's
//! `Documentation/devicetree/bindings` for `arm/psci`, `interrupt-controller/arm,gic*`, `timer/arm,arch_timer`,
//! `serial/pl011`, `rtc/arm,pl031`, `virtio/mmio`, `reserved-memory`.

use super::regions::insert;
use super::{
    Conduit, Cpu, Device, EnableMethod, Gic, MAX_GIC_REGIONS, MAX_SEED, Platform, PlatformError, Problem, Psci, Region,
    Timer,
};
use crate::fdt::{Fdt, Node, Reg, Walk, pairs_for_children};
use arrayvec::ArrayVec;

const GIC_V2: &[&str] =
    &["arm,cortex-a15-gic", "arm,gic-400", "arm,cortex-a7-gic", "arm,cortex-a9-gic", "arm,eb11mp-gic", "arm,pl390"];
const GIC_V3: &[&str] = &["arm,gic-v3"];
/// Bits of `MPIDR_EL1` that are affinity: Aff3, Aff2, Aff1, Aff0.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;
/// No CPU without FEAT_LPA addresses more.
const PHYSICAL_END: u64 = 1 << 48;
const PSCI_CPU_ON_64: u32 = 0xc400_0003;
const PSCI_CPU_OFF: u32 = 0x8400_0002;

/// How interrupts are written: the controller's handle and cells per specifier.
#[derive(Clone, Copy)]
struct Controller {
    phandle: u32,
    cells: u32,
}

impl Platform {
    /// [`Platform::read_fdt`] into a new value. It is large: prefer a static where the stack is small.
    pub fn from_fdt(fdt: &Fdt<'_>) -> Result<Self, PlatformError> {
        let mut platform = Self::new();
        platform.read_fdt(fdt)?;
        Ok(platform)
    }

    /// Fills this value from `fdt`; it should be new. On error what was read so far stays, so that a console that was
    /// found can tell the reason.
    pub fn read_fdt(&mut self, fdt: &Fdt<'_>) -> Result<(), PlatformError> {
        let controller = self.read_gic(fdt);
        let stdout = self.read_chosen(fdt);
        let mut virtio_dropped = 0;
        let mut walk = fdt.walk();
        while let Some(node) = walk.next() {
            if walk.is_available() {
                self.read_device(&walk, &node, controller, stdout.as_ref(), &mut virtio_dropped);
            }
        }
        if virtio_dropped > 0 {
            self.note(Problem::VirtioDropped(virtio_dropped));
        }
        self.virtio_mmio.sort_unstable_by_key(|device| device.region.base);
        self.read_memory(fdt);
        self.read_cpus(fdt);
        self.read_reserved(fdt)?;
        if self.memory.is_empty() {
            Err(PlatformError::NoMemory)
        } else if self.cpus.is_empty() {
            Err(PlatformError::NoCpus)
        } else if self.gic.is_none() {
            Err(PlatformError::NoInterruptController)
        } else if self.timer.is_none() {
            Err(PlatformError::NoTimer)
        } else {
            Ok(())
        }
    }

    fn read_gic(&mut self, fdt: &Fdt<'_>) -> Option<Controller> {
        let mut walk = fdt.walk();
        let node = loop {
            let node = walk.next()?;
            if walk.is_available() && (node.is_compatible(GIC_V2) || node.is_compatible(GIC_V3)) {
                break node;
            }
        };
        self.gic = if node.is_compatible(GIC_V3) { gic_v3(&node, walk) } else { gic_v2(&node, walk) };
        let cells = node.property("#interrupt-cells").and_then(|p| p.as_u32()).unwrap_or(3);
        Some(Controller { phandle: node.phandle()?, cells })
    }

    /// Reads `/chosen`; returns the node of `stdout-path`.
    fn read_chosen<'a>(&mut self, fdt: &Fdt<'a>) -> Option<Node<'a>> {
        let (mut start, mut end, mut stdout) = (None, None, None);
        for property in fdt.root().child("chosen")?.properties() {
            match property.name() {
                "linux,initrd-start" => start = property.as_u64(),
                "linux,initrd-end" => end = property.as_u64(),
                "kaslr-seed" => self.chosen.kaslr_seed = property.as_u64().filter(|seed| *seed != 0),
                "rng-seed" => self.chosen.rng_seed = property.value.iter().copied().take(MAX_SEED).collect(),
                "stdout-path" | "linux,stdout-path" => stdout = property.as_str(),
                _ => {}
            }
        }
        match (start, end) {
            (None, None) => {}
            (Some(start), Some(end)) if end > start => self.chosen.initrd = Some(Region::new(start, end - start)),
            (Some(start), Some(end)) if start == end => {}
            _ => self.note(Problem::BadInitrd),
        }
        let node = fdt.find_path(stdout?.split(':').next().unwrap_or(""));
        if !node.is_some_and(|node| node.is_compatible(&["arm,pl011"])) {
            self.note(Problem::StdoutUnusable);
        }
        node
    }

    fn read_device(
        &mut self,
        walk: &Walk<'_>,
        node: &Node<'_>,
        controller: Option<Controller>,
        stdout: Option<&Node<'_>>,
        virtio_dropped: &mut u32,
    ) {
        let Some(compatible) = node.property("compatible") else { return };
        for name in compatible.strings() {
            match name {
                "virtio,mmio" => {
                    let Some(device) = self.device(walk, node, controller) else { return };
                    if self.virtio_mmio.try_push(device).is_err() {
                        *virtio_dropped += 1;
                    }
                }
                "arm,pl011" if stdout == Some(node) || self.uart.is_none() => {
                    self.uart = self.device(walk, node, controller).or(self.uart);
                }
                "arm,pl031" if self.rtc.is_none() => self.rtc = self.device(walk, node, controller),
                "arm,armv8-timer" | "arm,armv7-timer" if self.timer.is_none() => {
                    self.timer = controller.and_then(|controller| timer(node, controller));
                }
                "arm,psci-1.0" | "arm,psci-0.2" | "arm,psci" if self.psci.is_none() => {
                    self.psci = psci(node);
                    if self.psci.is_none() {
                        self.note(Problem::BadPsci);
                    }
                }
                _ => continue,
            }
            return;
        }
    }

    fn device(&mut self, walk: &Walk<'_>, node: &Node<'_>, controller: Option<Controller>) -> Option<Device> {
        let region = node.reg().next().and_then(|reg| region(walk, reg));
        if region.is_none() {
            self.note(Problem::Untranslatable);
        }
        let interrupt = controller.and_then(|c| node.gic_interrupt(0, c.phandle, c.cells));
        Some(Device { region: region?, interrupt })
    }

    fn read_memory(&mut self, fdt: &Fdt<'_>) {
        let mut dropped = 0;
        for node in fdt.root().children() {
            let is_memory = node.property("device_type").is_some_and(|kind| kind.as_str() == Some("memory"));
            if !is_memory || !node.is_available() {
                continue;
            }
            let usable = node.property("linux,usable-memory");
            let pairs = usable.map_or_else(|| node.reg(), |usable| pairs_for_children(&fdt.root(), usable.value));
            for Reg { address, size } in pairs {
                let clipped = Region::new(address, size).below(PHYSICAL_END);
                if clipped.size == 0 || clipped.size != size {
                    self.note(Problem::BadMemory(address));
                }
                if insert(&mut self.memory, clipped).is_err() {
                    dropped += 1;
                }
            }
        }
        if dropped > 0 {
            self.note(Problem::MemoryDropped(dropped));
        }
    }

    fn read_cpus(&mut self, fdt: &Fdt<'_>) {
        let Some(cpus) = fdt.root().child("cpus") else { return };
        let mut dropped = 0;
        for node in cpus.children() {
            let is_cpu = node.property("device_type").is_some_and(|kind| kind.as_str() == Some("cpu"));
            // `disabled` means "not started yet" here (specification 3.8.1); only `fail` is out of service.
            let failed = node.property("status").and_then(|s| s.as_str()).is_some_and(|s| s.starts_with("fail"));
            if (!is_cpu && node.base_name() != "cpu") || failed {
                continue;
            }
            let Some(mpidr) = node.reg().next().map(|reg| reg.address).filter(|id| id & !MPIDR_AFFINITY == 0) else {
                self.note(Problem::BadCpu);
                continue;
            };
            if self.cpus.iter().any(|cpu| cpu.mpidr == mpidr) {
                self.note(Problem::DuplicateCpu(mpidr));
            } else if self.cpus.try_push(Cpu { mpidr, enable: enable_method(&node) }).is_err() {
                dropped += 1;
            }
        }
        if dropped > 0 {
            self.note(Problem::CpusDropped(dropped));
        }
    }

    fn read_reserved(&mut self, fdt: &Fdt<'_>) -> Result<(), PlatformError> {
        let too_many = |_| PlatformError::TooManyReserved;
        for reservation in fdt.reservations() {
            insert(&mut self.reserved, Region::new(reservation.address, reservation.size)).map_err(too_many)?;
        }
        let Some(parent) = fdt.root().child("reserved-memory") else { return Ok(()) };
        for node in parent.children().filter(|node| node.is_available()) {
            let no_map = node.property("no-map").is_some();
            for Reg { address, size } in node.reg() {
                insert(&mut self.reserved, Region::new(address, size)).map_err(too_many)?;
                if no_map {
                    insert(&mut self.no_map, Region::new(address, size)).map_err(too_many)?;
                }
            }
        }
        Ok(())
    }
}

/// The command line in `/chosen`, up to its NUL; empty if there is none. Its length is the boot loader's affair.
pub fn bootargs<'a>(fdt: &Fdt<'a>) -> &'a [u8] {
    fdt.root().child("chosen").and_then(|chosen| chosen.property("bootargs")).map_or(&[], |args| args.as_text())
}

/// The range of a `reg` pair of the node that `walk` returned last, as the CPU sees it.
fn region(walk: &Walk<'_>, reg: Reg) -> Option<Region> {
    let base = walk.translate(reg.address, reg.size)?;
    base.checked_add(reg.size).map(|_| Region::new(base, reg.size))
}

/// First registers of each compatible node below the one that `walk` returned last.
fn regions_below(mut walk: Walk<'_>, names: &[&str]) -> ArrayVec<Region, MAX_GIC_REGIONS> {
    let depth = walk.depth();
    let mut found = ArrayVec::new();
    while let Some(node) = walk.next() {
        if walk.depth() <= depth || found.is_full() {
            break;
        }
        if walk.is_available() && node.is_compatible(names) {
            found.extend(node.reg().next().and_then(|reg| region(&walk, reg)));
        }
    }
    found
}

fn gic_v2(node: &Node<'_>, walk: Walk<'_>) -> Option<Gic> {
    let mut regions = node.reg().map_while(|reg| region(&walk, reg));
    let (dist, cpu_if) = (regions.next()?, regions.next()?);
    drop(regions);
    let msi_frame = regions_below(walk, &["arm,gic-v2m-frame"]).first().copied();
    Some(Gic::V2 { dist, cpu_if, msi_frame })
}

fn gic_v3(node: &Node<'_>, walk: Walk<'_>) -> Option<Gic> {
    let count = node.property("#redistributor-regions").and_then(|p| p.as_u32()).unwrap_or(1) as usize;
    let mut regions = node.reg().map_while(|reg| region(&walk, reg));
    let dist = regions.next()?;
    let redists: ArrayVec<Region, MAX_GIC_REGIONS> = regions.take(count.min(MAX_GIC_REGIONS)).collect();
    if redists.is_empty() {
        return None;
    }
    let redist_stride = node.property("redistributor-stride").and_then(|p| p.as_u64());
    Some(Gic::V3 { dist, redists, redist_stride, its: regions_below(walk, &["arm,gic-v3-its"]) })
}

fn enable_method(node: &Node<'_>) -> EnableMethod {
    match node.property("enable-method").and_then(|method| method.as_str()) {
        Some("psci") => EnableMethod::Psci,
        Some("spin-table") => EnableMethod::SpinTable,
        _ => EnableMethod::Unknown,
    }
}

fn psci(node: &Node<'_>) -> Option<Psci> {
    let conduit = match node.property("method")?.as_str()? {
        "hvc" => Conduit::Hvc,
        "smc" => Conduit::Smc,
        _ => return None,
    };
    let standard = node.is_compatible(&["arm,psci-1.0", "arm,psci-0.2"]);
    // From 0.2 on the numbers are fixed; what the node says is for older readers.
    let id = |name, fixed| if standard { Some(fixed) } else { node.property(name)?.as_u32() };
    Some(Psci { conduit, cpu_on: id("cpu_on", PSCI_CPU_ON_64)?, cpu_off: id("cpu_off", PSCI_CPU_OFF)?, standard })
}

/// The binding's order: secure physical, physical, virtual, hypervisor physical, unless `interrupt-names` says else.
fn timer(node: &Node<'_>, controller: Controller) -> Option<Timer> {
    let names = node.property("interrupt-names");
    let at = |name: &str, default: usize| {
        let index = match &names {
            Some(names) => names.strings().position(|have| have == name)?,
            None => default,
        };
        node.gic_interrupt(index, controller.phandle, controller.cells)
    };
    Some(Timer {
        virt: at("virt", 2)?,
        phys: at("phys", 1),
        hyp_phys: at("hyp-phys", 3),
        frequency: node.property("clock-frequency").and_then(|p| p.as_u32()),
    })
}
