//! What must hold of the device tree reader, on trees built here.
mod support;

use boot_formats::fdt::{Fdt, FdtError, InterruptKind, MAX_DEPTH, Reg};
use boot_formats::platform::{Conduit, EnableMethod, Gic, Platform, PlatformError, Problem, Region, bootargs};
use proptest::prelude::*;
use support::{Tree, Virt, virt};

const V3: Virt = Virt { gic: 3, cpus: 4, bus: false };

/// Reads everything there is to read, as a kernel would.
fn read_all(bytes: &[u8]) {
    let Ok(fdt) = Fdt::new(bytes) else { return };
    let mut walk = fdt.walk();
    while let Some(node) = walk.next() {
        for property in node.properties() {
            let _ = (property.name(), property.as_str(), property.as_u64(), property.strings().count());
        }
        let _ = (node.reg().count(), node.children().count(), node.gic_interrupt(1, 1, 3), walk.depth());
        let _ = node.reg().next().map(|reg| walk.translate(reg.address, reg.size));
    }
    let _ = (fdt.find_path("/soc/pl011"), fdt.find_path("serial0"), fdt.find_phandle(1));
    assert!(fdt.reservations().count() <= bytes.len() / 16);
    let mut platform = Platform::new();
    let _ = platform.read_fdt(&fdt);
    for list in [&platform.memory, &platform.reserved, &platform.no_map] {
        assert!(list.windows(2).all(|pair| pair[0].end() < pair[1].base), "{list:?}");
        assert!(list.iter().all(|region| region.size > 0));
    }
}

#[test]
fn virt_gicv3_is_read_whole() {
    let blob = virt(V3).finish();
    let fdt = Fdt::new(&blob).unwrap();
    assert_eq!(fdt.total_size(), blob.len());
    let p = Platform::from_fdt(&fdt).unwrap();
    assert_eq!(p.memory.as_slice(), [Region::new(0x4000_0000, 0x2000_0000)]);
    assert_eq!(p.reserved.as_slice(), [Region::new(0x4000_0000, 0x1000), Region::new(0x5000_0000, 0x1_0000)]);
    assert_eq!(p.no_map.as_slice(), [Region::new(0x5000_0000, 0x1_0000)]);
    assert_eq!(p.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(p.cpus.iter().all(|cpu| cpu.enable == EnableMethod::Psci));
    let psci = p.psci.unwrap();
    assert_eq!((psci.conduit, psci.cpu_on, psci.standard), (Conduit::Hvc, 0xc400_0003, true));
    let Some(Gic::V3 { dist, redists, redist_stride, its }) = p.gic else { panic!("{:?}", p.gic) };
    assert_eq!((dist.base, redist_stride), (0x0800_0000, None));
    assert_eq!(redists.as_slice(), [Region::new(0x080a_0000, 0xf6_0000)]);
    assert_eq!(its.as_slice(), [Region::new(0x0808_0000, 0x2_0000)]);
    let timer = p.timer.unwrap();
    assert_eq!((timer.virt.intid, timer.virt.edge, timer.virt.kind), (27, false, InterruptKind::Ppi));
    assert_eq!((timer.phys.unwrap().intid, timer.hyp_phys.unwrap().intid), (30, 26));
    let uart = p.uart.unwrap();
    assert_eq!((uart.region, uart.interrupt.unwrap().intid), (Region::new(0x0900_0000, 0x1000), 33));
    assert_eq!(p.rtc.unwrap().region.base, 0x0901_0000);
    let slots: Vec<_> = p.virtio_mmio.iter().map(|d| (d.region.base, d.interrupt.unwrap().intid)).collect();
    assert_eq!(slots, [(0xa00_0000, 48), (0xa00_0200, 49), (0xa00_0400, 50), (0xa00_0600, 51)]);
    assert!(p.virtio_mmio[0].interrupt.unwrap().edge);
    assert_eq!(bootargs(&fdt), b"console=ttyAMA0 quiet");
    assert_eq!(p.chosen.initrd, Some(Region::new(0x4800_0000, 0x10_0000)));
    assert_eq!(p.chosen.kaslr_seed, Some(0x1234_5678_9abc_def0));
    assert_eq!(p.chosen.rng_seed.as_slice(), [7; 32]);
    assert!(p.problems.is_empty(), "{:?}", p.problems);
}

#[test]
fn virt_gicv2_is_read_whole() {
    let blob = virt(Virt { gic: 2, ..V3 }).finish();
    let p = Platform::from_fdt(&Fdt::new(&blob).unwrap()).unwrap();
    let Some(Gic::V2 { dist, cpu_if, msi_frame }) = p.gic else { panic!("{:?}", p.gic) };
    assert_eq!((dist.base, cpu_if.base, msi_frame.unwrap().base), (0x0800_0000, 0x0801_0000, 0x0802_0000));
}

#[test]
fn addresses_below_a_bus_are_translated() {
    let blob = virt(Virt { bus: true, ..V3 }).finish();
    let fdt = Fdt::new(&blob).unwrap();
    let uart = Platform::from_fdt(&fdt).unwrap().uart.unwrap();
    assert_eq!((uart.region, uart.interrupt.unwrap().intid), (Region::new(0x0900_0000, 0x1000), 33));
    assert_eq!(fdt.find_path("/soc/pl011").unwrap().reg().next(), Some(Reg { address: 0, size: 0x1000 }));
    let mut walk = fdt.walk();
    walk.find(|node| node.name() == "pl011@0").unwrap();
    assert_eq!(walk.translate(0xf_f000, 0x1000), Some(0x090f_f000));
    assert_eq!(walk.translate(0xf_f000, 0x1001), None);
    assert_eq!(walk.translate(0x10_0000, 0), None);
}

#[test]
fn cpus_beyond_the_cap_and_twins_are_left_out_with_a_note() {
    let blob = virt(Virt { cpus: 70, ..V3 }).finish();
    let p = Platform::from_fdt(&Fdt::new(&blob).unwrap()).unwrap();
    assert_eq!((p.cpus.len(), p.problems.as_slice()), (64, &[Problem::CpusDropped(6)][..]));
    let mut t = Tree::new();
    t.begin("").begin("cpus").cells("#address-cells", &[2]).cells("#size-cells", &[0]);
    for cells in [[0, 0x100], [0, 0x100], [0x1, 0x100], [0xff00, 0]] {
        t.begin("cpu").cells("reg", &cells).end();
    }
    t.begin("cpu").text("status", "fail").cells("reg", &[0, 5]).end().end().end();
    let blob = t.finish();
    let mut p = Platform::new();
    assert_eq!(p.read_fdt(&Fdt::new(&blob).unwrap()), Err(PlatformError::NoMemory));
    assert_eq!(p.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0x100, 0x1_0000_0100]);
    assert_eq!(p.problems.as_slice(), [Problem::DuplicateCpu(0x100), Problem::BadCpu]);
}

#[test]
fn what_no_kernel_can_do_without_is_named() {
    let mut t = Tree::new();
    t.begin("").cells("#address-cells", &[2]).cells("#size-cells", &[2]);
    let with = |t: &mut Tree| Platform::from_fdt(&Fdt::new(&t.end().finish()).unwrap()).unwrap_err();
    let memory = || {
        let mut t = Tree::new();
        t.begin("").cells("#address-cells", &[2]).cells("#size-cells", &[2]);
        t.begin("memory").text("device_type", "memory").wide("reg", &[0x4000_0000, 0x100_0000]).end();
        t
    };
    assert_eq!(with(&mut t), PlatformError::NoMemory);
    assert_eq!(with(&mut memory()), PlatformError::NoCpus);
    let cpus = || {
        let mut t = memory();
        t.begin("cpus").cells("#address-cells", &[1]).cells("#size-cells", &[0]);
        t.begin("cpu@0").cells("reg", &[0]).end().end();
        t
    };
    assert_eq!(with(&mut cpus()), PlatformError::NoInterruptController);
    let mut gic = cpus();
    gic.begin("intc").text("compatible", "arm,gic-400").wide("reg", &[1 << 20, 4096, 2 << 20, 4096]).end();
    assert_eq!(with(&mut gic), PlatformError::NoTimer);
}

#[test]
fn memory_is_sorted_merged_and_clipped() {
    let mut t = Tree::new();
    t.begin("").cells("#address-cells", &[2]).cells("#size-cells", &[2]);
    let ranges =
        [0x9000, 0x1000, 0x1000, 0x1000, 0x3000, 0x1000, 0x2000, 0x1000, 0, 0, (1 << 48) - 0x1000, 0x2000, u64::MAX, 2];
    t.begin("memory").text("device_type", "memory").wide("reg", &ranges).end().end();
    let blob = t.finish();
    let mut p = Platform::new();
    assert_eq!(p.read_fdt(&Fdt::new(&blob).unwrap()), Err(PlatformError::NoCpus));
    let want = [Region::new(0x1000, 0x3000), Region::new(0x9000, 0x1000), Region::new((1 << 48) - 0x1000, 0x1000)];
    assert_eq!(p.memory.as_slice(), want);
    assert_eq!(
        p.problems.as_slice(),
        [Problem::BadMemory(0), Problem::BadMemory((1 << 48) - 0x1000), Problem::BadMemory(u64::MAX)]
    );
}

#[test]
fn a_reservation_is_never_lost_silently() {
    let mut t = virt(V3);
    for i in 0..65 {
        t.reserve(0x6000_0000 + i * 0x2000, 0x1000);
    }
    assert_eq!(Platform::from_fdt(&Fdt::new(&t.finish()).unwrap()), Err(PlatformError::TooManyReserved));
}

#[test]
fn disabled_devices_are_not_used() {
    let mut t = Tree::new();
    t.begin("").cells("#address-cells", &[2]).cells("#size-cells", &[2]);
    t.begin("bus")
        .text("status", "disabled")
        .prop("ranges", &[])
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2]);
    t.begin("pl011@1").text("compatible", "arm,pl011").wide("reg", &[1, 1]).end().end();
    t.begin("pl011@2").text("compatible", "arm,pl011").wide("reg", &[2, 1]).text("status", "okay").end().end();
    let mut p = Platform::new();
    let _ = p.read_fdt(&Fdt::new(&t.finish()).unwrap());
    assert_eq!(p.uart.unwrap().region.base, 2);
}

#[test]
fn malformed_blobs_are_refused_by_name() {
    let good = virt(V3).finish();
    let edit = |at: usize, word: u32| {
        let mut blob = good.clone();
        blob[at..at + 4].copy_from_slice(&word.to_be_bytes());
        Fdt::new(&blob).err()
    };
    assert_eq!(edit(0, 1), Some(FdtError::BadMagic(1)));
    assert_eq!(edit(4, 39), Some(FdtError::BadHeader));
    assert_eq!(edit(4, good.len() as u32 + 1), Some(FdtError::Truncated));
    assert_eq!(edit(8, u32::MAX - 3), Some(FdtError::BadHeader));
    assert_eq!(edit(12, good.len() as u32 + 1), Some(FdtError::BadHeader));
    assert_eq!(edit(16, 41), Some(FdtError::BadHeader));
    assert_eq!(edit(20, 15), Some(FdtError::BadVersion(15)));
    assert_eq!(edit(24, 18), Some(FdtError::BadVersion(17)));
    assert_eq!(edit(36, 8), Some(FdtError::Truncated));
    let mut deep = Tree::new();
    (0..=MAX_DEPTH).for_each(|_| {
        deep.begin("");
    });
    assert!(matches!(Fdt::new(&deep.finish()), Err(FdtError::TooDeep(_))));
    let mut two = Tree::new();
    assert_eq!(Fdt::new(&two.begin("").end().begin("").end().finish()).err(), Some(FdtError::BadToken(12)));
    assert_eq!(Fdt::new(&Tree::new().word(2).finish()).err(), Some(FdtError::BadToken(0)));
    assert_eq!(
        Fdt::new(&Tree::new().begin("").word(3).word(u32::MAX).word(0).finish()).err(),
        Some(FdtError::BadProperty(8))
    );
}

#[test]
fn every_truncation_is_refused_or_whole() {
    let good = virt(V3).finish();
    for len in 0..good.len() {
        assert_eq!(Fdt::new(&good[..len]).err(), Some(FdtError::Truncated), "{len}");
    }
}

/// The time a hostile blob can cost: many properties, and names far from the next NUL.
#[test]
fn work_is_linear_in_the_blob() {
    let mut t = Tree::new();
    t.begin("");
    for _ in 0..40_000 {
        t.cells("a", &[]);
    }
    t.prop(&"b".repeat(500_000), &[]).end();
    let start = std::time::Instant::now();
    read_all(&t.finish());
    assert!(start.elapsed().as_secs() < 5);
}

#[test]
fn mutated_trees_never_panic() {
    let good = virt(Virt { bus: true, ..V3 }).finish();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let start = std::time::Instant::now();
    while start.elapsed().as_millis() < 1500 {
        let mut blob = good.clone();
        for _ in 0..=random % 4 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (random >> 33) as usize % blob.len();
            blob[at] = if random & 1 == 0 { (random >> 8) as u8 } else { blob[at] ^ (1 << ((random >> 8) & 7)) };
        }
        read_all(&blob);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        read_all(&bytes);
    }

    /// Random structure blocks under a valid header reach the walkers far more often than plain noise.
    #[test]
    fn random_tokens_never_panic(words in proptest::collection::vec(prop_oneof![Just(1_u32), Just(2), Just(3), Just(4), Just(9), 0..64_u32, any::<u32>()], 0..200)) {
        let mut t = Tree::new();
        t.begin("").cells("reg", &[0, 0]).cells("#size-cells", &[1]).cells("ranges", &[]);
        for word in words {
            t.word(word);
        }
        read_all(&t.end().finish());
    }

    #[test]
    fn reg_is_decoded_by_the_parents_cells(address_cells in 0..4_u32, size_cells in 0..4_u32, cells in proptest::collection::vec(any::<u32>(), 0..24)) {
        let mut t = Tree::new();
        t.begin("").cells("#address-cells", &[address_cells]).cells("#size-cells", &[size_cells]);
        t.begin("n").cells("reg", &cells).end().end();
        let blob = t.finish();
        let fdt = Fdt::new(&blob).unwrap();
        let got: Vec<Reg> = fdt.find_path("/n").unwrap().reg().collect();
        let readable = (1..=2).contains(&address_cells) && size_cells <= 2;
        let stride = (address_cells + size_cells) as usize;
        let number = |cells: &[u32]| cells.iter().fold(0_u64, |n, cell| n << 32 | u64::from(*cell));
        let want: Vec<Reg> = if readable {
            cells.chunks_exact(stride).map(|c| { let (a, s) = c.split_at(address_cells as usize); Reg { address: number(a), size: number(s) } }).collect()
        } else { vec![] };
        prop_assert_eq!(got, want);
    }
}
