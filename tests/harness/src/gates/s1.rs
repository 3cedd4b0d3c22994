//! s1: every CPU that the firmware lists comes online by PSCI, hvc and smc, and ticks; one that refuses is left out.

use crate::error::{Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{COMMAND_LIMIT, Shell};

/// The gate.
pub const GATE: Gate = Gate {
    name: "s1",
    title: "every listed CPU online by PSCI and ticking; a refusing one is reported and left out",
    cases,
};

fn cases(_: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for (smp, gic, el2) in
        [(1, 3, false), (4, 3, false), (8, 3, false), (8, 2, false), (4, 3, true), (4, 2, true), (1, 2, true)]
    {
        let conduit = if el2 { "smc" } else { "hvc" };
        cases.push(
            Case::new(format!("smp{smp} gicv{gic} {conduit}"), move |c| {
                let mut config = c.config(smp);
                (config.gic, config.el2) = (gic, el2);
                let mut sh = c.boot(&config)?;
                online(&mut sh, smp)?;
                reports(&mut sh, smp, conduit)?;
                sh.program("smp cpus", COMMAND_LIMIT)?;
                sh.poweroff()
            })
            .berth(),
        );
    }
    cases.push(Case::new("a CPU that refuses", |c| refusing(c, 3)).berth());
    cases.push(Case::new("every secondary refuses", all_refuse).berth());
    cases.push(
        Case::new("control: maxcpus=1", |c| {
            let mut config = c.config(4);
            config.append.push_str(" maxcpus=1");
            let mut sh = c.boot(&config)?;
            online(&mut sh, 4)?;
            sh.poweroff()
        })
        .control("cpus.online"),
    );
    cases
}

fn online(sh: &mut Shell, want: u32) -> Outcome {
    let n = sh.ok("nproc; grep -c 'cpu.* online' /proc/berth/cpus; grep -c ^processor /proc/cpuinfo; grep -c '^cpu[0-9]' /proc/stat")?;
    let all: Vec<&str> = n.lines().collect();
    check(all.len() == 4 && all.iter().all(|s| *s == want.to_string()), "cpus.online", || {
        format!("{want} CPUs wanted; nproc, /proc/berth/cpus, /proc/cpuinfo, /proc/stat say {all:?}")
    })
}

/// The kernel's own report: one line per CPU, and the conduit by which it came up.
fn reports(sh: &mut Shell, smp: u32, conduit: &str) -> Outcome {
    let log = sh.ok("dmesg")?;
    for cpu in 0..smp {
        let says = |l: &str| l.contains(&format!("cpu{cpu} "));
        check(log.lines().any(|l| says(l) && l.contains("online")), "cpus.reported", || {
            format!("no online report of CPU {cpu}")
        })?;
    }
    let said = log.lines().any(|l| l.to_lowercase().contains("psci") && l.contains(conduit));
    check(said, "psci.conduit", || format!("no line of the log says PSCI by {conduit}"))
}

fn refusing(c: &mut Context<'_>, online_cpus: u32) -> Outcome {
    let mut config = c.config(4);
    config.append.push_str(" berth.sabotage=psci:2");
    let mut sh = c.boot(&config)?;
    online(&mut sh, online_cpus)?;
    let log = sh.ok("dmesg | grep -i cpu")?;
    let left_out = |l: &str| ["left out", "refuse", "fail", "not come"].iter().any(|w| l.contains(w));
    check(log.lines().any(left_out), "cpus.left_out", || format!("no line says that a CPU was left out:\n{log}"))?;
    sh.program("smp affinity_calls mutex_exact", COMMAND_LIMIT).ok();
    sh.poweroff()
}

fn all_refuse(c: &mut Context<'_>) -> Outcome {
    let mut config = c.config(4);
    config.append.push_str(" berth.sabotage=psci:all");
    let mut sh = c.boot(&config)?;
    online(&mut sh, 1)?;
    sh.poweroff()
}
