//! From the first Rust instruction in the high half to the first user program.

use crate::arch::{self, boot, context, gic, percpu, psci, smp, time, trap};
use crate::drivers::{pl011, pl031};
use crate::{machine, random, sched};
use boot_formats::fdt::Fdt;
use boot_formats::platform::{self, Conduit, Gic, Platform, Region};

/// The boot CPU arrives here from boot.S: MMU on, in the high half, on the boot stack, interrupts masked.
pub extern "C" fn kernel_main(dtb_phys: u64, image_phys: u64) -> ! {
    boot::set_image_phys(image_phys);
    // SAFETY: early_main mapped the console's registers there if there is a console; writes without one would fault, so
    // the tree is read first.
    let bytes = unsafe { core::slice::from_raw_parts(arch::mmu::phys_to_virt(dtb_phys) as *const u8, 0x20_0000) };
    let Ok(fdt) = Fdt::new(bytes) else { arch::halt() };
    let root = boot::ttbr1();
    let mut found = Platform::new();
    let result = found.read_fdt(&fdt);
    if !arch::cpu::meets_minimum() {
        refuse_cpu(&found);
    }
    // SAFETY: first thing on this CPU; the context is a static.
    unsafe { context::adopt(&sched::BOOT_CONTEXT, 0) };
    trap::init_cpu();
    arch::mmu::init(root, image_phys, boot::image_virt());
    boot::retire_identity_map();
    time::init();
    arch::cpu::init();
    psci::init(psci_conduit(&found));
    if let Some(uart) = &found.uart {
        // SAFETY: mapped by early_main, for ever.
        unsafe { pl011::init(boot::EARLY_UART as usize + (uart.region.base as usize & 0xfff)) };
    }
    let p = machine::set_platform(found);
    if let Err(why) = result {
        error!("{why}");
        stop("firmware describes no machine that can be used");
    }
    start_machine(p, &fdt, dtb_phys)
}

fn psci_conduit(p: &Platform) -> Option<psci::Conduit> {
    Some(match p.psci?.conduit {
        Conduit::Hvc => psci::Conduit::Hvc,
        Conduit::Smc => psci::Conduit::Smc,
    })
}

/// The CPU lacks what the kernel is compiled for: say so with the plainest instructions, and stop.
fn refuse_cpu(p: &Platform) -> ! {
    if let Some(uart) = &p.uart {
        let data = boot::EARLY_UART + (uart.region.base & 0xfff);
        for &b in b"\r\nBerth needs an Armv8.2 CPU (LSE atomics, PAN, CRC32; Neoverse N1 class). This one is older.\r\n"
        {
            // SAFETY: the data register of the console that early_main mapped.
            unsafe { (data as *mut u32).write_volatile(b as u32) };
        }
    }
    psci::init(psci_conduit(p));
    psci::system_off();
    arch::halt()
}

fn start_machine(p: &'static Platform, fdt: &Fdt<'_>, dtb_phys: u64) -> ! {
    order_cpus(p);
    reserve_and_init_memory(p, fdt, dtb_phys);
    machine::set_command_line(platform::bootargs(fdt));
    configure_log();
    info!(
        "Berth {} booting on {} CPUs listed, image at {:#x}",
        env!("CARGO_PKG_VERSION"),
        percpu::listed(),
        boot::image_phys()
    );
    match p.psci.as_ref().map(|psci| psci.conduit) {
        Some(Conduit::Hvc) => info!("PSCI by hvc"),
        Some(Conduit::Smc) => info!("PSCI by smc"),
        None => warn!("no PSCI: one CPU, no power-off"),
    }
    random::add_entropy(&p.chosen.rng_seed);
    for problem in &p.problems {
        warn!("device tree: {problem}");
    }
    if let Err(why) = start_interrupts(p) {
        error!("interrupts: {why}");
        stop("no usable interrupt controller");
    }
    sched::init_boot_cpu();
    for cpu in 0..percpu::listed() {
        provide_emergency_stack(cpu);
    }
    configure_wx();
    set_wall_clock(p);
    if let Err(e) = crate::tty::console::init() {
        error!("console: {e}");
    }
    percpu::of(0).online.store(true, core::sync::atomic::Ordering::Release);
    info!("cpu0 online, mpidr {:#x}, gic v{}", percpu::of(0).mpidr.get(), gic::version());
    let wanted =
        machine::option_number("maxcpus").map_or(percpu::listed(), |n| (n.max(1) as usize).min(percpu::listed()));
    let online = smp::start_secondaries(wanted, sched::prepare_secondary);
    info!("{online} of {} CPUs online", percpu::listed());
    arch::irq_enable();
    check_identities();
    crate::net::init();
    crate::drivers::virtio::probe();
    sched::selftest();
    crate::mm::reclaim::init();
    crate::task::start_init()
}

/// Every CPU must know itself by both ways.
fn check_identities() {
    for (cpu, fast, fallback) in percpu::identity_check() {
        if fast != cpu || fallback != cpu {
            error!("cpu{cpu}: identity mismatch: fast path {fast}, fallback {fallback}");
        }
    }
}

/// The stack on which CPU `cpu` reports that a kernel stack ran over. Without memory for one, it reports nothing.
fn provide_emergency_stack(cpu: usize) {
    if let Some(stack) = crate::mm::KernelStack::new() {
        percpu::of(cpu).emergency_stack.store(stack.top(), core::sync::atomic::Ordering::Relaxed);
        core::mem::forget(stack);
    }
}

/// Indices: the boot CPU first, then the others as listed.
fn order_cpus(p: &Platform) {
    let me = crate::read_sysreg!("mpidr_el1") & percpu::MPIDR_MASK;
    let mut list = arrayvec::ArrayVec::<u64, { percpu::MAX_CPUS }>::new();
    list.push(me);
    for cpu in p.cpus.iter().filter(|cpu| cpu.mpidr != me) {
        let _ = list.try_push(cpu.mpidr);
    }
    percpu::init(&list);
    sync::readlist::set_readers(percpu::listed());
}

fn configure_log() {
    let line = machine::cmdline();
    if ["quiet", "debug", "loglevel"].iter().any(|key| line.get(key).is_some()) {
        crate::log::set_console_level(line.loglevel().min(8));
    }
    if let Some(n) = machine::option_number("panic") {
        crate::panic::set_action(n as i32);
    }
}

/// `wx=log` allows what would be refused, and logs it.
fn configure_wx() {
    crate::mm::map::WX_LOG.store(machine::option("wx") == Some(b"log"), core::sync::atomic::Ordering::Relaxed);
    if machine::sabotaged("wx") {
        crate::mm::vmap::sabotage_wx();
    }
}

/// A boot that cannot go on: the reason on the console, then power-off.
pub fn stop(why: &str) -> ! {
    error!("cannot boot: {why}; powering off");
    psci::system_off();
    arch::halt()
}

/// A secondary CPU arrives here, on its idle thread's stack.
pub fn secondary_main(cpu: usize) -> ! {
    if let Err(why) = gic::init_cpu() {
        error!("cpu{cpu}: {why}");
        arch::halt();
    }
    if percpu::id_by_mpidr() != Some(cpu) {
        error!("cpu{cpu}: its identity by MPIDR differs; left out");
        arch::halt();
    }
    info!("cpu{cpu} online, mpidr {:#x}", percpu::of(cpu).mpidr.get());
    percpu::of(cpu).online.store(true, core::sync::atomic::Ordering::Release);
    arch::irq_enable();
    sched::idle::run()
}

/// Reads the real-time clock, if there is one; without it the wall clock starts in 1970.
fn set_wall_clock(p: &Platform) {
    let Some(rtc) = &p.rtc else { return };
    if let Some(base) = crate::mm::ioremap(rtc.region.base, rtc.region.size as usize) {
        // SAFETY: just mapped, for ever.
        let seconds = unsafe { pl031::read_seconds(base) };
        if crate::clock::set(seconds as u64 * 1_000_000_000).is_none() {
            warn!("the real-time clock stands at a time before the machine's start");
        }
    }
}

fn start_interrupts(p: &Platform) -> Result<(), &'static str> {
    let map = |r: &Region| crate::mm::ioremap(r.base, r.size as usize).ok_or("no memory for device mappings");
    let layout = match p.gic.as_ref().ok_or("firmware describes none")? {
        Gic::V2 { dist, cpu_if, .. } => gic::Layout::V2 { dist: map(dist)?, cpu: map(cpu_if)? },
        Gic::V3 { dist, redists, .. } => {
            let mut regions = arrayvec::ArrayVec::new();
            for r in redists {
                regions.push((map(r)?, r.size as usize));
            }
            gic::Layout::V3 { dist: map(dist)?, redists: regions }
        }
    };
    // SAFETY: the registers are mapped for ever.
    unsafe { gic::init(layout, p.timer.map_or(27, |t| t.virt.intid)) }
}

fn reserve_and_init_memory(p: &Platform, fdt: &Fdt<'_>, dtb_phys: u64) {
    let mut reserved = arrayvec::ArrayVec::<core::ops::Range<u64>, 72>::new();
    let page = |r: core::ops::Range<u64>| r.start & !0xfff..(r.end + 0xfff) & !0xfff;
    let image = boot::image_phys()..boot::image_phys() + boot::image_len();
    let dtb = dtb_phys..dtb_phys + fdt.total_size() as u64;
    for r in [image, dtb].into_iter().chain(p.chosen.initrd.iter().chain(&p.reserved).map(Region::range)) {
        let _ = reserved.try_push(page(r));
    }
    let memory: arrayvec::ArrayVec<_, { platform::MAX_REGIONS }> = p.memory.iter().map(Region::range).collect();
    crate::mm::init(&memory, &reserved);
}
