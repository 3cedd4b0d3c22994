//! `harness bench`: the same programs on Linux and on Berth in the same machine, back to back, as ratios.
//!
//! Each run boots both kernels once, one after the other, so that a disturbance of the host hits both. A row's value is
//! the median over the runs. Times are the guest's own clock (which the emulator drives from the host's), but for the
//! boot row, which the host takes: from starting the emulator to the first line of /init.
//!
//! Linux is booted at its best: its mitigations cost it up to tenfold under emulation.
//!
//! The rows of files on a disk have a boot of their own, on a fresh ext4 that the host's mke2fs made, once for each kernel
//! and number of CPUs (`--runs` counts for them only with `--only`): the program takes the best of several rounds. The image
//! lies in the host's memory where there is room: else the rows that flush tell what the host's disk did at that moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cpio::{Entry, overlay};
use crate::disk::Disk;
use crate::error::{Failure, Outcome, check};
use crate::paths::Paths;
use crate::shell::BOOT_LIMIT;
use crate::vm::{Vm, VmConfig};

const ROWS_LIMIT: Duration = Duration::from_secs(300);
/// On a host that is busy with other things, rows of many switches between CPUs take minutes.
const FILES_LIMIT: Duration = Duration::from_secs(900);
const FIRST: &str = "init: first line";
/// What runs instead of busybox's init: it says its first line at once, then what the memory is like, then the rows.
/// Memory is asked for before anything else has run.
const INIT: &str = "#!/bin/sh
echo 'init: first line'
/bin/busybox mount -t proc proc /proc
echo \"memtotal $(/bin/busybox awk '/^MemTotal/ { print $2 }' /proc/meminfo) KiB\"
echo \"memfree $(/bin/busybox awk '/^MemFree/ { print $2 }' /proc/meminfo) KiB\"
for m in /lib/modules/*.ko; do [ ! -f $m ] || /bin/busybox insmod $m; done
[ -c /dev/null ] || /bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox ifconfig lo 127.0.0.1 up
/usr/lib/berth-tests/bench ROWS && /usr/lib/berth-tests/netbench ROWS
echo \"bench status $?\"
exec /bin/busybox poweroff -f
";

/// The same for the rows of files on a disk. The emulator's disk has no seeks to sort for: Linux is told so.
const FILES_INIT: &str = "#!/bin/sh
echo 'init: first line'
/bin/busybox mount -t proc proc /proc
for m in /lib/modules/*.ko; do [ ! -f $m ] || /bin/busybox insmod $m; done
[ -c /dev/null ] || /bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t sysfs sysfs /sys
[ ! -w /sys/block/vda/queue/scheduler ] || echo none >/sys/block/vda/queue/scheduler
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox mkdir -p /data
/bin/busybox mount -t ext4 /dev/vda /data
/fsbench /data ROWS
echo \"bench status $?\"
exec /bin/busybox poweroff -f
";
/// Words in the names of those rows.
const FILES_ROWS: [&str; 2] = ["fs-", "sqlite-"];

struct Plan {
    paths: Paths,
    runs: u32,
    smp: Vec<u32>,
    icount: bool,
    only: String,
    mem: u32,
    out: Option<PathBuf>,
    berth_alone: bool,
}

impl Plan {
    fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.split_whitespace().any(|w| row.contains(w))
    }

    /// Whether any of the hosting machine's rows is wanted; it is measured once, not in every run.
    fn hosting(&self) -> bool {
        crate::hosting::ROWS.iter().any(|r| self.wants(r))
    }
}

/// Values of one row over the runs, and its unit.
type Rows = BTreeMap<String, (Vec<f64>, String)>;

/// `harness bench`: true unless a machine could not be measured. A ratio never decides anything.
pub fn main(args: &[String]) -> Outcome<bool> {
    let plan = parse(args)?;
    let mut report = String::new();
    for &smp in &plan.smp {
        let mut linux = Rows::new();
        let mut berth = Rows::new();
        let mut order = Vec::new();
        for run in 1..=plan.runs {
            eprintln!("bench: {smp} CPU(s), run {run} of {}", plan.runs);
            for part in parts(&plan, run) {
                if !plan.berth_alone {
                    measure(&plan, smp, true, part, &mut linux, &mut order)?;
                }
                measure(&plan, smp, false, part, &mut berth, &mut order)?;
            }
        }
        if !plan.icount && plan.hosting() {
            for (is_linux, rows) in [(true, &mut linux), (false, &mut berth)] {
                if !(is_linux && plan.berth_alone) {
                    hosting_rows(&plan, smp, is_linux, rows, &mut order)?;
                }
            }
        }
        table(&mut report, &plan, smp, &order, &linux, &berth);
    }
    print!("{report}");
    if let Some(out) = &plan.out {
        std::fs::write(out, &report)?;
    }
    plan.paths.tidy();
    Ok(true)
}

/// What a boot measures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Calls,
    Files,
}

/// The boots of run `run`.
fn parts(plan: &Plan, run: u32) -> Vec<Part> {
    let words = || plan.only.split_whitespace();
    let is_file = |w: &str| FILES_ROWS.iter().any(|f| w.starts_with(f));
    let mut parts = Vec::new();
    if plan.only.is_empty() || words().any(|w| !is_file(w)) {
        parts.push(Part::Calls);
    }
    if words().any(is_file) || (plan.only.is_empty() && run == 1) {
        parts.push(Part::Files);
    }
    parts
}

fn parse(args: &[String]) -> Outcome<Plan> {
    let (mut kernel, mut initrd) = (None, None);
    let (mut runs, mut smp, mut icount, mut only, mut out, mut berth_alone) =
        (3, vec![1, 4], false, String::new(), None, false);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut value = || rest.next().cloned().ok_or_else(|| Failure::new("usage", format!("{arg} needs a value")));
        match arg.as_str() {
            "--runs" => runs = super::numbers(&value()?)?[0],
            "--smp" => smp = super::numbers(&value()?)?,
            "--icount" => icount = true,
            "--only" => only = value()?,
            "--kernel" => kernel = Some(PathBuf::from(value()?)),
            "--initrd" => initrd = Some(PathBuf::from(value()?)),
            "--out" => out = Some(PathBuf::from(value()?)),
            "--no-linux" => berth_alone = true,
            other => return Err(Failure::new("usage", format!("unknown bench option {other}"))),
        }
    }
    if icount {
        (smp, runs) = (vec![1], 1);
    }
    let given = initrd.is_some();
    let paths = Paths::new(kernel, initrd)?;
    let paths = if given { paths } else { paths.with_plain_initrd() };
    Ok(Plan { paths, runs, smp, icount, only, mem: 512, out, berth_alone })
}

fn config(plan: &Plan, smp: u32, linux: bool, initrd: PathBuf) -> VmConfig {
    let kernel = if linux { plan.paths.linux() } else { plan.paths.kernel.clone() };
    // An initial root's program is rdinit= to Linux; the words are the same for both but for its mitigations.
    let mut append = "console=ttyAMA0 quiet init=/bench-init rdinit=/bench-init".to_owned();
    if linux {
        append.push_str(" mitigations=off kpti=off");
    }
    if plan.icount {
        // Counted time runs ahead of a disk's real time.
        append.push_str(" berth.disk_timeout=1000000000");
    }
    let exact = ["-icount", "shift=0,sleep=off", "-seed", "1", "-rtc", "base=2026-01-01,clock=vm"];
    VmConfig {
        kernel,
        initrd: Some(initrd),
        append,
        smp,
        mem: plan.mem,
        gic: 3,
        cpu: "neoverse-n1".into(),
        el2: false,
        extra: if plan.icount { exact.map(str::to_owned).to_vec() } else { vec![] },
    }
}

/// Whether the host has a file system in memory, and room for an image there.
fn in_memory() -> bool {
    let available = |text: &str| {
        let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let kib = std::fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(available);
    Path::new("/dev/shm").is_dir() && kib.is_some_and(|kib| kib > 4 << 20)
}

/// A disk for `part`.
fn disk(part: Part, dir: &Path) -> Outcome<Disk> {
    if part == Part::Calls {
        return Disk::new(dir, "disk", 512 << 20);
    }
    let memory = in_memory().then(|| PathBuf::from(format!("/dev/shm/berth-bench-{}", std::process::id())));
    let (dir, name) = memory.as_deref().map_or((dir, "disk"), |file| (Path::new("/"), file.to_str().unwrap_or("disk")));
    let disk = Disk::new(dir, name, 1 << 30)?;
    // All tables written now: Linux would do it in the background while the rows run.
    let out = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(&disk.image)
        .output()?;
    check(out.status.success(), "harness.mke2fs", || String::from_utf8_lossy(&out.stderr).into_owned())?;
    Ok(disk)
}

fn measure(plan: &Plan, smp: u32, linux: bool, part: Part, rows: &mut Rows, order: &mut Vec<String>) -> Outcome {
    let who = if linux { "Linux" } else { "Berth" };
    let dir = plan.paths.case_dir(&format!("bench-{who}-{smp}"))?;
    Paths::need(&plan.paths.initrd, "initrd")?;
    let init = if part == Part::Files { FILES_INIT } else { INIT }.replace("ROWS", &plan.only);
    let base = if linux { plan.paths.linux_initrd()? } else { plan.paths.initrd.clone() };
    let program = if part == Part::Files { std::fs::read(plan.paths.build.join("bench/fsbench"))? } else { vec![] };
    let mut entries = vec![Entry::File("bench-init", 0o755, init.as_bytes())];
    if part == Part::Files {
        entries.push(Entry::File("fsbench", 0o755, &program));
    }
    let initrd = overlay(&base, &entries, dir.join("initrd.cpio"))?;
    let mut config = config(plan, smp, linux, initrd);
    // The host's page cache stands behind the disk for both; flushes are honoured.
    let disk = disk(part, &dir)?;
    disk.attach(&mut config, "d", "");
    Paths::need(&config.kernel, if linux { "linux" } else { "kernel" })?;
    let mut vm = Vm::start(&config, &dir)?;
    let result = match part {
        Part::Calls => one_boot(&mut vm, plan.mem, rows, order),
        Part::Files => file_rows(&mut vm, &disk, rows, order),
    };
    if let Err(f) = result {
        let tail = vm.console.tail(25);
        return Err(Failure::new(
            f.what,
            format!("{who}: {}\n{tail}\nthe machine again: {}", f.detail, config.command_line()),
        ));
    }
    drop(vm);
    // A later run takes away what this leaves.
    let _ = std::fs::remove_dir_all(dir);
    Ok(())
}

fn add(rows: &mut Rows, order: &mut Vec<String>, name: &str, value: f64, unit: &str) {
    if !order.iter().any(|o| o == name) {
        order.push(name.to_owned());
    }
    rows.entry(name.to_owned()).or_insert_with(|| (vec![], unit.to_owned())).0.push(value);
}

/// `name value unit` of a line.
fn row(line: &str) -> Option<(&str, f64, &str)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [name, value, unit] = words[..] else { return None };
    Some((name, value.parse().ok()?, unit))
}

fn ended_well(vm: &mut Vm) -> Outcome {
    let status = vm.expect("bench.status", "\n", BOOT_LIMIT)?;
    check(status.before.trim() == "0", "bench.status", || format!("the program ended with {}", status.before.trim()))
}

fn file_rows(vm: &mut Vm, disk: &Disk, rows: &mut Rows, order: &mut Vec<String>) -> Outcome {
    let first = vm.expect("bench.boot", FIRST, BOOT_LIMIT);
    // The emulator has it open: whatever happens, nothing stays behind.
    std::fs::remove_file(&disk.image)?;
    first?;
    let done = vm.expect("bench.rows", "bench status ", FILES_LIMIT)?;
    for (name, value, unit) in done.before.lines().filter_map(row) {
        add(rows, order, name, value, unit);
    }
    ended_well(vm)
}

fn one_boot(vm: &mut Vm, mem: u32, rows: &mut Rows, order: &mut Vec<String>) -> Outcome {
    let mut add = |name: &str, value: f64, unit: &str| add(rows, order, name, value, unit);
    let first = vm.expect("bench.boot", FIRST, BOOT_LIMIT)?;
    add("boot", first.at.duration_since(vm.started).as_secs_f64() * 1e3, "ms");
    let done = vm.expect("bench.rows", "bench status ", ROWS_LIMIT)?;
    let mut free = None;
    let mut total = None;
    for (name, value, unit) in done.before.lines().filter_map(row) {
        match name {
            "memtotal" => total = Some(value),
            "memfree" => free = Some(value),
            _ => add(name, value, unit),
        }
    }
    if let (Some(free), Some(total)) = (free, total) {
        add("memory-in-use", (total - free) / 1024.0, "MiB");
        add("memory-not-free", f64::from(mem) - free / 1024.0, "MiB");
    }
    ended_well(vm)
}

/// One boot of the hosting machine.
fn hosting_rows(plan: &Plan, smp: u32, linux: bool, rows: &mut Rows, order: &mut Vec<String>) -> Outcome {
    let who = if linux { "Linux" } else { "Berth" };
    eprintln!("bench: {smp} CPU(s), {who} hosting");
    let dir = plan.paths.case_dir(&format!("hosting-{who}-{smp}"))?;
    let config = config(plan, smp, linux, PathBuf::new());
    Paths::need(&config.kernel, if linux { "linux" } else { "kernel" })?;
    for (name, value, unit) in crate::hosting::measure(&plan.paths, config, linux, &dir, &|row| plan.wants(row))? {
        if !order.contains(&name) {
            order.push(name.clone());
        }
        rows.entry(name).or_insert_with(|| (vec![], unit.to_owned())).0.push(value);
    }
    let _ = std::fs::remove_dir_all(dir);
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 {
        return f64::NAN;
    }
    f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2])
}

fn table(report: &mut String, plan: &Plan, smp: u32, order: &[String], linux: &Rows, berth: &Rows) {
    let how = if plan.icount { "instructions counted (1 ns each)" } else { "wall time" };
    let _ = writeln!(
        report,
        "\n{smp} CPU(s), neoverse-n1, {} MiB, {how}, medians of {} run(s)\n{:22} {:>12} {:>12}  {:6} {:>12} {:>16}",
        plan.mem, plan.runs, "row", "Linux", "Berth", "unit", "Berth/Linux", "spread of Berth"
    );
    for name in order {
        let (l, b) = (linux.get(name), berth.get(name));
        let unit = b.or(l).map_or("", |r| r.1.as_str());
        let (l, values) = (l.map_or(f64::NAN, |r| median(&r.0)), b.map_or(&[][..], |r| &r.0));
        let m = median(values);
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let ratio = m / l;
        let better = if unit.ends_with("/s") { " (more is better)" } else { "" };
        let _ = writeln!(
            report,
            "{name:22} {:>12} {:>12}  {unit:6} {ratio:>11.2}x {:>16}{better}",
            figure(l),
            figure(m),
            format!("{}..{}", figure(low), figure(high))
        );
    }
    growth(report, linux, berth, smp);
}

/// How much all CPUs do over one.
fn growth(report: &mut String, linux: &Rows, berth: &Rows, smp: u32) {
    for what in ["getppid", "faults", "open"] {
        let of = |rows: &Rows| {
            let one = median(&rows.get(&format!("{what}-1worker"))?.0);
            Some(median(&rows.get(&format!("{what}-{smp}workers"))?.0) / one)
        };
        if let Some(b) = of(berth) {
            let l = of(linux).map_or("-".into(), |l| format!("{l:.2}x"));
            let _ = writeln!(report, "{what}: {smp} workers over one: Linux {l}, Berth {b:.2}x");
        }
    }
}

fn figure(v: f64) -> String {
    if v.is_finite() { if v.abs() < 100.0 { format!("{v:.1}") } else { format!("{v:.0}") } } else { "-".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
