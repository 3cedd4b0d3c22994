//! busybox's own testsuite: Berth passes what Linux passes in the same machine (tests/busybox/linux.txt).

use std::collections::BTreeSet;
use std::time::Duration;

use super::programs::PROGRAM_LIMIT;
use crate::error::{Failure, Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::paths::Paths;

/// The gate.
pub const GATE: Gate =
    Gate { name: "busybox", title: "busybox's own testsuite: what passes on Linux passes here", cases };

/// What Linux passes and fails, one `PASS: applet test` or `FAIL: …` a line; with BERTH_RECORD=FILE set, `harness --linux busybox` writes what passed.
const LINUX: &str = include_str!("../../../busybox/linux.txt");
const SUITE_LIMIT: Duration = Duration::from_secs(1500);

fn cases(_: &Options) -> Vec<Case> {
    vec![
        // Two CPUs: the suite is all forks and pipes, which more emulated CPUs than the host has only slow down.
        Case::new("whole suite smp2", |c| suite(c, 2, None, LINUX)),
        // The shell's tests run again on the kernel with every run-time check on.
        Case::new("shell smp4 checked", |c| suite(c, 4, Some("shell"), LINUX)).berth(),
        Case::new("control: a test that cannot pass", |c| suite(c, 1, Some("true"), "PASS: true never-there\n"))
            .control_anywhere("busybox.suite"),
    ]
}

fn suite(c: &mut Context<'_>, smp: u32, applet: Option<&str>, expected: &str) -> Outcome {
    let initrd = c.options.paths.build.join("initrd-busybox.cpio.gz");
    Paths::need(&initrd, "initrd")?;
    let mut config = c.config(smp);
    config.initrd = Some(initrd);
    if let (Some("shell"), Some(kernel)) = (applet, c.options.paths.checked_kernel()) {
        config.kernel = kernel;
    }
    let mut sh = c.boot(&config)?;
    let limit = if applet.is_some() { PROGRAM_LIMIT } else { SUITE_LIMIT };
    let run = sh.run(&format!("/usr/lib/busybox-testsuite/run {}", applet.unwrap_or("")), limit)?;
    check(run.output.contains("busybox-suite: end"), "busybox.ended", || {
        run.output.chars().rev().take(2000).collect::<String>().chars().rev().collect()
    })?;
    let passed: BTreeSet<&str> = run.output.lines().filter(|l| l.starts_with("PASS: ")).map(str::trim_end).collect();
    if let Some(record) = std::env::var_os("BERTH_RECORD") {
        let lines: Vec<&str> = passed.iter().copied().collect();
        std::fs::write(record, lines.join("\n") + "\n")?;
    }
    let of_applet =
        |l: &&str| l.strip_prefix("PASS: ").is_some_and(|l| applet.is_none_or(|a| l.starts_with(&format!("{a} "))));
    let missing: Vec<&str> = expected.lines().filter(of_applet).filter(|l| !passed.contains(l.trim_end())).collect();
    if !missing.is_empty() {
        let some = missing.iter().take(60).map(|l| l.replacen("PASS: ", "    ", 1)).collect::<Vec<_>>().join("\n");
        return Err(Failure::new(
            "busybox.suite",
            format!("{} that pass on Linux do not here ({} passed):\n{some}", missing.len(), passed.len()),
        ));
    }
    sh.poweroff()
}
