//! s2: programs on all CPUs: placement, affinity, fair shares, preemption, no wake-up lost, bounds with their answers.

use super::programs::{checked, control, on_each};
use crate::error::check;
use crate::gate::{Case, Gate, Options};

/// The gate.
pub const GATE: Gate = Gate {
    name: "s2",
    title: "migration, affinity, fair shares, preemption, 100 000 cross-CPU wake-ups, bounds",
    cases,
};

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["smp", "futex"], |_, _| Ok(()));
    cases.push(checked(4, &["smp", "futex"]));
    cases = cases.into_iter().map(Case::alone).collect();
    if !o.linux {
        cases.push(Case::new("smp8", |c| {
            let config = c.config(8);
            let mut sh = c.boot(&config)?;
            sh.program(
                "smp affinity_calls two_cpus_at_once migrates ring_of_all_cpus mutex_exact cpus",
                super::programs::PROGRAM_LIMIT,
            )?;
            sh.poweroff()
        }));
    }
    cases.push(Case::new("skipped at one CPU says so", |c| {
        let config = c.config(1);
        let mut sh = c.boot(&config)?;
        let out = sh.program("smp two_cpus_at_once migrates", super::programs::PROGRAM_LIMIT)?;
        check(out.matches("skipped ").count() == 2, "smp.skips", || out.clone())?;
        sh.poweroff()
    }));
    cases.push(control(
        "one CPU where two are needed",
        4,
        "berth.sabotage=one-runqueue",
        &["smp -t20 two_cpus_at_once"],
        "smp.two_cpus_at_once",
    ));
    cases.push(control(
        "reschedule sends suppressed",
        4,
        "berth.sabotage=resched-ipi",
        &["smp -t20 resched_chain"],
        "smp.resched_chain",
    ));
    cases.push(control(
        "no preemption",
        1,
        "berth.sabotage=no-preempt",
        &["smp -t40 fair_on_one_cpu"],
        "smp.fair_on_one_cpu",
    ));
    cases.push(control(
        "wake-ups lost",
        4,
        "berth.sabotage=lost-wakeup",
        &["smp -t20 pipe_wakeups"],
        "smp.pipe_wakeups",
    ));
    cases
}
