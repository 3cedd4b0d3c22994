//! The files of `/proc` that are about the machine.

use super::super::synth::{Kind, Node, Text};
use super::{Entry, Fixed, Two, berth, disks, sysctl};
use crate::arch::percpu;
use crate::arch::time::now_ns;
use abi::{Errno, Result};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use vfs::FileType::{Dir, Regular, Symlink};

/// Text appended to a buffer of bytes.
pub(crate) struct Out<'a>(pub &'a mut Vec<u8>);

impl Write for Out<'_> {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        self.0.try_reserve(s.len()).map_err(|_| core::fmt::Error)?;
        self.0.extend_from_slice(s.as_bytes());
        Ok(())
    }
}

/// `ENOMEM` for a text that found no room.
pub(crate) fn full(_: core::fmt::Error) -> Errno {
    Errno::ENOMEM
}

/// The entries of `/proc` beside processes.
pub(super) const ENTRIES: &[Entry] = &[
    ("berth", Dir, || Node::dir(Arc::new(Fixed(berth::ENTRIES)))),
    ("cmdline", Regular, || Node::text(cmdline)),
    ("cpuinfo", Regular, || Node::text(cpuinfo)),
    ("devices", Regular, || Node::text(disks::devices)),
    ("diskstats", Regular, || Node::text(disks::diskstats)),
    ("filesystems", Regular, || Node::text(filesystems)),
    ("loadavg", Regular, || Node::text(loadavg)),
    ("meminfo", Regular, || Node::text(meminfo)),
    ("mounts", Symlink, || Node::link(|| Ok(b"self/mounts".to_vec()))),
    ("net", Dir, || Node::dir(Arc::new(Fixed(super::netinfo::ENTRIES)))),
    ("partitions", Regular, || Node::text(disks::partitions)),
    ("stat", Regular, || Node::text(stat)),
    ("sys", Dir, || Node::dir(Arc::new(Fixed(SYS)))),
    ("swaps", Regular, || Node::text(|o| line(o, b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"))),
    ("sysvipc", Dir, || Node::dir(Arc::new(Fixed(SYSVIPC)))),
    ("uptime", Regular, || Node::text(uptime)),
    ("version", Regular, || Node::text(version)),
    ("vmstat", Regular, || Node::text(vmstat)),
];

const SYSVIPC: &[Entry] = &[
    ("msg", Regular, || Node::text(crate::ipc::msg::list)),
    ("sem", Regular, || Node::text(crate::ipc::sem::list)),
    ("shm", Regular, || Node::text(crate::ipc::shm::list)),
];

const SYS: &[Entry] = &[
    ("kernel", Dir, || Node::dir(Arc::new(Two(SYS_KERNEL, sysctl::KERNEL)))),
    ("vm", Dir, || Node::dir(Arc::new(Two(SYS_VM, sysctl::VM)))),
    ("fs", Dir, || Node::dir(Arc::new(Two(SYS_FS, sysctl::FS)))),
    ("net", Dir, || Node::dir(Arc::new(Fixed(sysctl::NET)))),
];

const SYS_KERNEL: &[Entry] = &[
    ("hostname", Regular, || Node::text(|o| line(o, &crate::syscall::misc::host_name()))),
    ("osrelease", Regular, || Node::text(|o| line(o, crate::syscall::misc::RELEASE.as_bytes()))),
    ("ostype", Regular, || Node::text(|o| line(o, b"Linux"))),
    ("pid_max", Regular, || Node::text(|o| line(o, format!("{}", pid_max()).as_bytes()))),
    ("ngroups_max", Regular, || Node::text(|o| line(o, b"65536"))),
    ("cap_last_cap", Regular, || Node::text(|o| line(o, b"40"))),
    ("random", Dir, || Node::dir(Arc::new(Fixed(SYS_RANDOM)))),
];

const SYS_RANDOM: &[Entry] = &[
    ("boot_id", Regular, || Node::text(|o| uuid(o, boot_id()))),
    ("uuid", Regular, || Node::text(|o| uuid(o, [crate::random::next_u64(), crate::random::next_u64()]))),
    ("entropy_avail", Regular, || Node::text(|o| line(o, b"256"))),
];

const SYS_VM: &[Entry] = &[
    ("overcommit_memory", Regular, || Node { kind: Kind::File(Arc::new(Overcommit)), mode: 0o644, owner: (0, 0) }),
    ("dirty_background_ratio", Regular, || tunable(Dirty::Background)),
    ("dirty_expire_centisecs", Regular, || tunable(Dirty::Expire)),
    ("dirty_ratio", Regular, || tunable(Dirty::Hard)),
    ("drop_caches", Regular, || Node { kind: Kind::File(Arc::new(DropCaches)), mode: 0o200, owner: (0, 0) }),
    ("max_map_count", Regular, || Node::text(|o| line(o, format!("{}", crate::mm::map::MAX_AREAS).as_bytes()))),
];

const SYS_FS: &[Entry] =
    &[("nr_open", Regular, || Node::text(|o| line(o, format!("{}", crate::file::table::NR_OPEN).as_bytes())))];

struct Overcommit;

impl Text for Overcommit {
    fn read(&self, out: &mut Vec<u8>) -> Result<()> {
        let mode = crate::mm::map::OVERCOMMIT.load(core::sync::atomic::Ordering::Relaxed);
        line(out, format!("{mode}").as_bytes())
    }

    fn write(&self, text: &[u8]) -> Result<()> {
        let mode = match text.trim_ascii() {
            b"0" => 0,
            b"1" => 1,
            b"2" => 2,
            _ => return Err(Errno::EINVAL),
        };
        crate::mm::map::OVERCOMMIT.store(mode, core::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

fn tunable(what: Dirty) -> Node {
    Node { kind: Kind::File(Arc::new(what)), mode: 0o644, owner: (0, 0) }
}

/// When dirty pages are written: two shares of memory in percent, and an age.
#[derive(Clone, Copy)]
enum Dirty {
    Background,
    Hard,
    Expire,
}

impl Text for Dirty {
    fn read(&self, out: &mut Vec<u8>) -> Result<()> {
        let (limits, total) = (crate::mm::reclaim::page_cache().limits(), crate::mm::info().total.max(1));
        // Rounded, as the limits are whole pages.
        let percent = |pages: usize| (pages * 100 + total / 2) / total;
        let value = match self {
            Dirty::Background => percent(limits.background),
            Dirty::Hard => percent(limits.hard),
            Dirty::Expire => (limits.expire_ns / 10_000_000) as usize,
        };
        line(out, format!("{value}").as_bytes())
    }

    fn write(&self, text: &[u8]) -> Result<()> {
        let value: usize =
            core::str::from_utf8(text.trim_ascii()).ok().and_then(|t| t.parse().ok()).ok_or(Errno::EINVAL)?;
        let cache = crate::mm::reclaim::page_cache();
        let mut limits = cache.limits();
        let share = || if value <= 100 { Ok(crate::mm::info().total * value / 100) } else { Err(Errno::EINVAL) };
        match self {
            Dirty::Background => limits.background = share()?,
            Dirty::Hard => limits.hard = share()?,
            Dirty::Expire if value > 100_000_000 => return Err(Errno::EINVAL),
            Dirty::Expire => limits.expire_ns = value as u64 * 10_000_000,
        }
        cache.set_limits(limits);
        cache.wake_flusher();
        Ok(())
    }
}

struct DropCaches;

impl Text for DropCaches {
    fn read(&self, _: &mut Vec<u8>) -> Result<()> {
        Err(Errno::EINVAL)
    }

    fn write(&self, text: &[u8]) -> Result<()> {
        let what = match text.trim_ascii() {
            b"1" => 1,
            b"2" => 2,
            b"3" => 3,
            _ => return Err(Errno::EINVAL),
        };
        crate::mm::reclaim::drop_caches(what);
        Ok(())
    }
}

fn pid_max() -> u32 {
    crate::task::tree::TREE.lock().pid_max()
}

fn boot_id() -> [u64; 2] {
    static ID: sync::Once<[u64; 2]> = sync::Once::new();
    let _ = ID.set([crate::random::next_u64(), crate::random::next_u64()]);
    ID.get().copied().unwrap_or_default()
}

fn uuid(out: &mut Vec<u8>, id: [u64; 2]) -> Result<()> {
    let (a, b) = (id[0] & !0xf000 | 0x4000, id[1] & !(3 << 62) | 1 << 63);
    let text = format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xffff,
        b >> 48,
        b & 0xffff_ffff_ffff
    );
    line(out, text.as_bytes())
}

/// One line.
pub(in crate::file) fn line(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    out.try_reserve(text.len() + 1).map_err(|_| Errno::ENOMEM)?;
    out.extend_from_slice(text);
    out.push(b'\n');
    Ok(())
}

fn cmdline(out: &mut Vec<u8>) -> Result<()> {
    line(out, crate::machine::command_line())
}

fn cpuinfo(out: &mut Vec<u8>) -> Result<()> {
    let midr = crate::read_sysreg!("midr_el1");
    let bogo = crate::read_sysreg!("cntfrq_el0") / 5_000;
    let mut o = Out(out);
    for cpu in (0..percpu::listed()).filter(|&c| crate::arch::smp::is_online(c)) {
        write!(
            o,
            "processor\t: {cpu}\nBogoMIPS\t: {}.{:02}\nFeatures\t: fp asimd aes pmull sha1 sha2 crc32 atomics cpuid asimdrdm\n\
             CPU implementer\t: {:#04x}\nCPU architecture: 8\nCPU variant\t: {:#x}\nCPU part\t: {:#05x}\nCPU revision\t: {}\n\n",
            bogo / 100,
            bogo % 100,
            midr >> 24 & 0xff,
            midr >> 20 & 0xf,
            midr >> 4 & 0xfff,
            midr & 0xf
        )
        .map_err(full)?;
    }
    Ok(())
}

fn filesystems(out: &mut Vec<u8>) -> Result<()> {
    out.extend_from_slice(
        b"nodev\ttmpfs\nnodev\tproc\nnodev\tdevpts\nnodev\tdevtmpfs\nnodev\tsysfs\n\text4\n\terofs\n",
    );
    Ok(())
}

/// The load average: an exponential mean of the runnable threads, brought up to date when it is read or sampled.
fn loadavg(out: &mut Vec<u8>) -> Result<()> {
    let running = crate::sched::runnable();
    let (threads, last) = {
        let tree = crate::task::tree::TREE.lock();
        (tree.thread_count(), tree.last_pid())
    };
    let loads = crate::sched::load_average();
    let mut o = Out(out);
    for l in loads {
        write!(o, "{}.{:02} ", l / 100, l % 100).map_err(full)?;
    }
    writeln!(o, "{running}/{threads} {last}").map_err(full)
}

fn meminfo(out: &mut Vec<u8>) -> Result<()> {
    let m = crate::mm::info();
    let cache = crate::mm::reclaim::page_cache().stats();
    let kb = |frames: usize| frames * 4;
    // What the cache would give, less what is kept free at any rate.
    let clean = cache.cached.saturating_sub(cache.dirty + cache.writeback);
    let metadata = crate::file::datadisk::footprint();
    let names = vfs::dentry_bytes() + metadata.inodes;
    // Names in use and their inodes stay, and so does what the journal has still to write: half, as on Linux.
    let given = clean + metadata.blocks.midpoint(names) / 4096;
    let available = (m.free + given).saturating_sub(crate::mm::reclaim::low_mark());
    let slab = kb(m.slab).saturating_sub(metadata.blocks / 1024);
    let reclaimable = (names / 1024).min(slab);
    let rows: [(&str, usize); 21] = [
        ("MemTotal", kb(m.total)),
        ("MemFree", kb(m.free)),
        ("MemAvailable", kb(available)),
        ("Buffers", metadata.blocks / 1024),
        ("Cached", kb(cache.cached)),
        ("SwapCached", 0),
        ("Active", kb(cache.active)),
        ("Inactive", kb(cache.inactive)),
        ("Active(file)", kb(cache.active)),
        ("Inactive(file)", kb(cache.inactive)),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", kb(cache.dirty)),
        ("Writeback", kb(cache.writeback)),
        ("Slab", slab),
        ("SReclaimable", reclaimable),
        ("SUnreclaim", slab - reclaimable),
        ("KernelStack", kb(m.stacks)),
        ("PageTables", kb(m.tables)),
        ("CommitLimit", kb(crate::mm::map::commit_limit())),
        ("Committed_AS", kb(m.committed)),
    ];
    let mut o = Out(out);
    for (name, value) in rows {
        let label = format!("{name}:");
        writeln!(o, "{label:<16}{value:>8} kB").map_err(full)?;
    }
    Ok(())
}

/// Clock ticks of 10 ms, as `/proc` counts.
pub(super) fn ticks(ns: u64) -> u64 {
    ns / 10_000_000
}

fn stat(out: &mut Vec<u8>) -> Result<()> {
    let online: Vec<usize> = (0..percpu::listed()).filter(|&c| crate::arch::smp::is_online(c)).collect();
    let mut all = crate::sched::account::CpuTimes::default();
    let mut rows = Vec::new();
    for &c in &online {
        let t = crate::sched::cpu_times(c);
        all.user_ns += t.user_ns;
        all.system_ns += t.system_ns;
        all.idle_ns += t.idle_ns;
        let (user, system, idle) = (ticks(t.user_ns), ticks(t.system_ns), ticks(t.idle_ns));
        writeln!(Out(&mut rows), "cpu{c} {user} 0 {system} {idle} 0 0 0 0 0 0").map_err(full)?;
    }
    let mut o = Out(out);
    let (user, system, idle) = (ticks(all.user_ns), ticks(all.system_ns), ticks(all.idle_ns));
    write!(o, "cpu  {user} 0 {system} {idle} 0 0 0 0 0 0\n{}", alloc::string::String::from_utf8_lossy(&rows))
        .map_err(full)?;
    let sum = |what| (0..percpu::listed()).map(|c| percpu::counter(c, what)).sum::<u64>();
    writeln!(o, "intr {}", sum(percpu::Counter::Interrupts)).map_err(full)?;
    writeln!(o, "ctxt {}", sum(percpu::Counter::ContextSwitches)).map_err(full)?;
    let boot = (crate::clock::offset().max(0) as u64) / 1_000_000_000;
    let running = crate::sched::runnable();
    writeln!(o, "btime {boot}\nprocesses {}\nprocs_running {running}\nprocs_blocked 0", forks()).map_err(full)
}

/// Processes ever made, as far as their numbers tell.
fn forks() -> u32 {
    crate::task::tree::TREE.lock().last_pid()
}

fn uptime(out: &mut Vec<u8>) -> Result<()> {
    let now = now_ns() / 10_000_000;
    let idle: u64 = (0..percpu::listed()).map(crate::sched::idle_ns).sum::<u64>() / 10_000_000;
    writeln!(Out(out), "{}.{:02} {}.{:02}", now / 100, now % 100, idle / 100, idle % 100).map_err(full)
}

/// What of Linux's counters there is here.
fn vmstat(out: &mut Vec<u8>) -> Result<()> {
    let m = crate::mm::info();
    let cache = crate::mm::reclaim::page_cache().stats();
    let faults = (0..percpu::listed()).map(|c| percpu::counter(c, percpu::Counter::PageFaults)).sum::<u64>();
    let rows: [(&str, u64); 9] = [
        ("nr_free_pages", m.free as u64),
        ("nr_file_pages", cache.cached as u64),
        ("nr_active_file", cache.active as u64),
        ("nr_inactive_file", cache.inactive as u64),
        ("nr_dirty", cache.dirty as u64),
        ("nr_writeback", cache.writeback as u64),
        ("pgfault", faults),
        ("pswpin", 0),
        ("pswpout", 0),
    ];
    rows.iter().try_for_each(|(name, n)| writeln!(Out(&mut *out), "{name} {n}").map_err(full))
}

fn version(out: &mut Vec<u8>) -> Result<()> {
    writeln!(Out(out), "Linux version {} (berth) {}", crate::syscall::misc::RELEASE, crate::syscall::misc::VERSION)
        .map_err(full)
}
