//! Gates that are mostly a test program inside the machine: how it is run, and each gate's own extras.

use std::time::Duration;

use crate::error::Outcome;
use crate::gate::{Case, Context};
use crate::shell::Shell;

/// How long one test program may take in all. Each of its tests has a shorter limit of its own.
pub const PROGRAM_LIMIT: Duration = Duration::from_secs(420);

/// A case for each CPU count: boot, run `programs` one after the other, then `more`.
pub fn on_each(
    smp: &[u32],
    programs: &'static [&'static str],
    more: fn(&mut Shell, &Context<'_>) -> Outcome,
) -> Vec<Case> {
    smp.iter().map(|&n| Case::new(format!("smp{n}"), move |c| run_programs(c, n, "", programs, more))).collect()
}

/// The same on the kernel with every run-time check on.
pub fn checked(smp: u32, programs: &'static [&'static str]) -> Case {
    Case::new(format!("smp{smp} checked"), move |c| {
        let mut config = c.config(smp);
        if let Some(kernel) = c.options.paths.checked_kernel() {
            config.kernel = kernel;
        }
        let mut sh = c.boot(&config)?;
        for p in programs {
            sh.program(p, PROGRAM_LIMIT)?;
        }
        sh.poweroff()
    })
    .berth()
}

/// A negative control: with `break_it` on the command line, `must_fail` fails in `program`.
pub fn control(
    name: &'static str,
    smp: u32,
    break_it: &'static str,
    program: &'static [&'static str],
    must_fail: &'static str,
) -> Case {
    Case::new(format!("control: {name}"), move |c| run_programs(c, smp, break_it, program, |_, _| Ok(())))
        .control(must_fail)
}

fn run_programs(
    c: &mut Context<'_>,
    smp: u32,
    append: &str,
    programs: &[&str],
    more: fn(&mut Shell, &Context<'_>) -> Outcome,
) -> Outcome {
    let mut config = c.config(smp);
    if !append.is_empty() {
        config.append.push(' ');
        config.append.push_str(append);
    }
    let mut sh = c.boot(&config)?;
    let mut first = None;
    for p in programs {
        // All of them, so that one run shows everything that is wrong.
        match sh.program(p, PROGRAM_LIMIT) {
            Err(f) if f.what.starts_with("console.") || f.detail.contains("within") => return Err(f),
            Err(f) => match &mut first {
                None => first = Some(f),
                Some(seen) => seen.detail.push_str(&format!("\n{}", f.detail)),
            },
            Ok(_) => {}
        }
    }
    first.map_or(Ok(()), Err)?;
    more(&mut sh, c)?;
    sh.poweroff()
}
