//! The harness: boots machines, uses them as a user would, and judges what comes out.
//!
//! `vm` is an emulator process, `console` its serial line, `shell` commands on that line, `gate` the cases and how they
//! are run, `gates/` what must hold, `bench` the comparison with Linux. docs/testing.md says how to add a gate.

mod bench;
mod console;
mod cpio;
mod disk;
mod error;
mod frames;
mod gate;
mod gates;
mod hosting;
mod net;
mod paths;
mod screenshot;
mod shell;
mod ssh;
mod station;
mod vm;
mod web;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use error::{Failure, Outcome};
use gate::{Gate, Options};
use paths::Paths;

const USAGE: &str = "\
usage: harness [OPTION...] GATE...     run gates (all: every gate); ends with `N passed, N failed`
       harness --list                  name them
       harness bench [BENCH-OPTION...] compare with Linux
options:
  --kernel FILE   the kernel to test (build/kernel.img)
  --initrd FILE   the initial root (build/initrd.cpio.gz)
  --smp N[,N...]  CPU counts to boot with (1,4)
  --cpu MODEL     CPU model (neoverse-n1)
  --case TEXT     only cases whose name contains TEXT
  --jobs N        machines at once, at most 2 (GATE_JOBS, else 2)
  --append WORDS  more words for the kernel's command line
  --linux         the guest is Linux (build/linux/vmlinuz unless --kernel): checks the test programs themselves
  --verbose       longer tails of consoles
bench-options:
  --runs N        boots of each kernel (3)
  --smp N[,N...]  CPU counts (1,4)
  --icount        exact instruction counts at one CPU instead of wall time
  --only ROW      rows whose name contains ROW
  --kernel FILE, --initrd FILE, --out FILE
The build directory is BERTH_BUILD, else ./build.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(f) => {
            eprintln!("harness: {f}");
            ExitCode::from(2)
        }
    }
}

fn dispatch(args: &[String]) -> Outcome<bool> {
    if args.iter().any(|a| a == "--list") {
        for g in gates::ALL {
            println!("{:10} {}", g.name, g.title);
        }
        return Ok(true);
    }
    if args.first().is_some_and(|a| a == "bench") {
        return bench::main(&args[1..]);
    }
    if args.first().is_some_and(|a| a == "screenshot") {
        return screenshot::main(&args[1..]);
    }
    let (names, mut options) = parse(args)?;
    let mut chosen: Vec<&Gate> = Vec::new();
    for name in &names {
        if name == "all" {
            chosen.extend(gates::ALL.iter());
            continue;
        }
        let found = gates::ALL.iter().find(|g| g.name == name);
        chosen.push(found.ok_or_else(|| Failure::new("usage", format!("no gate is called {name}\n{USAGE}")))?);
    }
    if chosen.is_empty() {
        return Err(Failure::new("usage", USAGE));
    }
    // Two machines of four CPUs want more than a small host has: one at a time is then steadier.
    options.jobs = options.jobs.min(std::thread::available_parallelism().map_or(1, |n| n.get()));
    Ok(gate::run(&chosen, &options))
}

fn parse(args: &[String]) -> Outcome<(Vec<String>, Options)> {
    let jobs = std::env::var("GATE_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let (mut kernel, mut initrd, mut smp, mut names) = (None, None, vec![1, 4], Vec::new());
    let (mut filter, mut linux, mut append, mut jobs, mut verbose) = (None, false, String::new(), jobs, false);
    let mut cpu = "neoverse-n1".to_owned();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut value =
            || rest.next().cloned().ok_or_else(|| Failure::new("usage", format!("{arg} needs a value\n{USAGE}")));
        match arg.as_str() {
            "--kernel" => kernel = Some(PathBuf::from(value()?)),
            "--initrd" => initrd = Some(PathBuf::from(value()?)),
            "--smp" => smp = numbers(&value()?)?,
            "--cpu" => cpu = value()?,
            "--case" => filter = Some(value()?),
            "--jobs" => jobs = numbers(&value()?)?.first().copied().unwrap_or(1) as usize,
            "--append" => append = value()?,
            "--linux" => linux = true,
            "--verbose" => verbose = true,
            "--help" | "-h" => return Err(Failure::new("usage", USAGE)),
            other if other.starts_with('-') => {
                return Err(Failure::new("usage", format!("unknown option {other}\n{USAGE}")));
            }
            name => names.push(name.to_owned()),
        }
    }
    let mut paths = Paths::new(kernel.clone(), initrd)?;
    if linux && kernel.is_none() {
        paths.kernel = paths.linux();
        paths.initrd = paths.linux_initrd()?;
    }
    Ok((names, Options { paths, smp, filter, linux, jobs, append, cpu, verbose }))
}

/// `1,4` as numbers.
fn numbers(list: &str) -> Outcome<Vec<u32>> {
    let parsed: Result<Vec<u32>, _> = list.split(',').map(|n| n.trim().parse::<u32>()).collect();
    match parsed {
        Ok(n) if !n.is_empty() && !n.contains(&0) => Ok(n),
        _ => Err(Failure::new("usage", format!("{list:?} is not a list of numbers"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers() {
        assert_eq!(numbers("1,4").ok(), Some(vec![1, 4]));
        assert!(numbers("").is_err() && numbers("0").is_err() && numbers("x").is_err());
    }

    #[test]
    fn gates_have_distinct_names() {
        let mut names: Vec<_> = gates::ALL.iter().map(|g| g.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), gates::ALL.len());
    }
}
