//! Gates and their cases, and how they are run.
//!
//! A gate is a list of cases. A case boots its own machine and returns at the first assertion that does not hold. A
//! negative control is a case with the mechanism broken on purpose: it is green only if exactly the named assertion
//! fails, so a control that dies of something else, a machine that does not even boot, is red.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::cpio::{Entry, overlay};
use crate::error::{Failure, Outcome};
use crate::paths::Paths;
use crate::shell::Shell;
use crate::vm::{Vm, VmConfig};

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where things are.
    pub paths: Paths,
    /// CPU counts that gates boot with unless they say otherwise.
    pub smp: Vec<u32>,
    /// Only cases whose name contains this.
    pub filter: Option<String>,
    /// The guest is Linux: the judge of the test programs. Cases about Berth's own evidence are left out.
    pub linux: bool,
    /// Machines at once.
    pub jobs: usize,
    /// More words for the kernel's command line.
    pub append: String,
    /// CPU model.
    pub cpu: String,
    /// Print every console as it was.
    pub verbose: bool,
}

type Body = Box<dyn Fn(&mut Context<'_>) -> Outcome + Send + Sync>;

/// One boot (or a few, one after the other) and what must hold in it.
pub struct Case {
    /// Name within the gate.
    pub name: String,
    /// For a negative control: the assertion that must fail.
    pub must_fail: Option<&'static str>,
    /// Measures shares of time, so no other machine runs beside it.
    pub alone: bool,
    /// Needs what only Berth has: its counters, boot parameters, messages.
    pub berth_only: bool,
    body: Body,
}

impl Case {
    /// A case in which everything must hold.
    pub fn new(name: impl Into<String>, body: impl Fn(&mut Context<'_>) -> Outcome + Send + Sync + 'static) -> Self {
        Self { name: name.into(), must_fail: None, alone: false, berth_only: false, body: Box::new(body) }
    }

    /// No other machine may run beside this case's.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// This case needs Berth itself.
    pub fn berth(mut self) -> Self {
        self.berth_only = true;
        self
    }

    /// This case is a negative control: the assertion `what` must fail in it. Controls break Berth, so they need it.
    pub fn control(mut self, what: &'static str) -> Self {
        self.must_fail = Some(what);
        self.berth_only = true;
        self
    }

    /// As `control`, with the break made outside the kernel, so that it also holds on Linux.
    pub fn control_anywhere(mut self, what: &'static str) -> Self {
        self.must_fail = Some(what);
        self
    }
}

/// A named list of cases.
pub struct Gate {
    /// `m1`, `busybox`.
    pub name: &'static str,
    /// One line for `--list`.
    pub title: &'static str,
    /// Its cases under these options.
    pub cases: fn(&Options) -> Vec<Case>,
}

/// What a case's body works with.
pub struct Context<'a> {
    /// The run's options.
    pub options: &'a Options,
    /// A directory of the case's own.
    pub dir: PathBuf,
    last: Option<(String, PathBuf)>,
    boots: usize,
}

impl Context<'_> {
    /// The default machine with `smp` CPUs: 512 MiB, GICv3, the kernel under test and the common initial root.
    pub fn config(&self, smp: u32) -> VmConfig {
        let o = self.options;
        let mut append = "console=ttyAMA0".to_owned();
        if o.linux {
            append.push_str(" mitigations=off kpti=off quiet loglevel=1");
        }
        if !o.append.is_empty() {
            append.push(' ');
            append.push_str(&o.append);
        }
        VmConfig {
            kernel: o.paths.kernel.clone(),
            initrd: Some(o.paths.initrd.clone()),
            append,
            smp,
            mem: 512,
            gic: 3,
            cpu: o.cpu.clone(),
            el2: false,
            extra: vec![],
        }
    }

    /// Switch on a machine.
    pub fn start(&mut self, config: &VmConfig) -> Outcome<Vm> {
        Paths::need(&config.kernel, "kernel")?;
        if let Some(initrd) = &config.initrd {
            Paths::need(initrd, "initrd")?;
        }
        self.boots += 1;
        let dir = self.dir.join(self.boots.to_string());
        std::fs::create_dir_all(&dir)?;
        self.last = Some((config.command_line(), dir.join("console.log")));
        Vm::start(config, &dir)
    }

    /// Switch on a machine and take its shell.
    pub fn boot(&mut self, config: &VmConfig) -> Outcome<Shell> {
        self.start(config)?.shell()
    }

    /// The common initial root with `entries` laid over it.
    pub fn overlay(&self, entries: &[Entry<'_>]) -> Outcome<PathBuf> {
        Paths::need(&self.options.paths.initrd, "initrd")?;
        Ok(overlay(&self.options.paths.initrd, entries, self.dir.join("initrd.cpio"))?)
    }
}

struct Job {
    gate: &'static str,
    case: Case,
}

/// Run the cases of `gates`; true if all of them held.
pub fn run(gates: &[&Gate], options: &Options) -> bool {
    let mut jobs = Vec::new();
    for gate in gates {
        for case in (gate.cases)(options) {
            let name = format!("{} {}", gate.name, case.name);
            let wanted = options.filter.as_ref().is_none_or(|f| name.contains(f.as_str()));
            if wanted && !(options.linux && case.berth_only) {
                jobs.push(Job { gate: gate.name, case });
            }
        }
    }
    let next = AtomicUsize::new(0);
    let passed = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    // Held for reading by machines that may have company, for writing by one that must not.
    let company = RwLock::new(());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, 2) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let held = if job.case.alone {
                        let guard = company.write().unwrap_or_else(PoisonError::into_inner);
                        let done = one(job, options);
                        drop(guard);
                        done
                    } else {
                        let guard = company.read().unwrap_or_else(PoisonError::into_inner);
                        let done = one(job, options);
                        drop(guard);
                        done
                    };
                    if held {
                        passed.fetch_add(1, Ordering::Relaxed);
                    } else if let Ok(mut names) = failed.lock() {
                        names.push(format!("{} {}", job.gate, job.case.name));
                    }
                }
            });
        }
    });
    options.paths.tidy();
    let passed = passed.into_inner();
    // A worker that died left its case uncounted: that is a failure too.
    let failed_count = jobs.len() - passed;
    for name in failed.into_inner().unwrap_or_default() {
        println!("failed: {name}");
    }
    println!("{passed} passed, {failed_count} failed");
    failed_count == 0 && passed > 0
}

fn one(job: &Job, options: &Options) -> bool {
    let name = format!("{} {}", job.gate, job.case.name);
    let start = Instant::now();
    let dir = match options.paths.case_dir(&name) {
        Ok(dir) => dir,
        Err(f) => {
            println!("FAIL {name}: {f}");
            return false;
        }
    };
    let mut context = Context { options, dir, last: None, boots: 0 };
    let outcome = (job.case.body)(&mut context);
    let verdict = judge(&outcome, job.case.must_fail);
    let took = start.elapsed();
    match verdict {
        Ok(()) => {
            println!("ok   {name}{} ({:.1} s)", control_note(&job.case), took.as_secs_f32());
            // What a failed removal leaves is taken away by a later run.
            let _ = std::fs::remove_dir_all(&context.dir);
            true
        }
        Err(failure) => {
            report(&name, &failure, &context, took);
            false
        }
    }
}

fn control_note(case: &Case) -> String {
    case.must_fail.map_or_else(String::new, |what| format!(" [control: {what} failed as it must]"))
}

/// What a case's outcome means, given what it was for.
fn judge(outcome: &Outcome, must_fail: Option<&str>) -> Outcome {
    match (outcome, must_fail) {
        (Ok(()), None) => Ok(()),
        (Err(f), None) => Err(f.clone()),
        (Ok(()), Some(what)) => {
            Err(Failure::new("control", format!("{what} holds although its mechanism is broken on purpose")))
        }
        (Err(f), Some(what)) if f.what == what => Ok(()),
        (Err(f), Some(what)) => Err(Failure::new("control", format!("{what} was to fail, but {f}"))),
    }
}

fn report(name: &str, failure: &Failure, context: &Context<'_>, took: Duration) {
    let mut text =
        format!("FAIL {name} ({:.1} s)\n  {}\n", took.as_secs_f32(), failure.to_string().replace('\n', "\n  "));
    if let Some((command, log)) = &context.last {
        let console = std::fs::read(log).map(|b| String::from_utf8_lossy(&b).replace('\r', "")).unwrap_or_default();
        let lines: Vec<&str> = console.lines().collect();
        text.push_str("  the console's last lines:\n");
        for line in &lines[lines.len().saturating_sub(if context.options.verbose { 400 } else { 25 })..] {
            text.push_str("  | ");
            text.push_str(line);
            text.push('\n');
        }
        let errors = log.with_file_name("qemu.err");
        let errors = std::fs::read_to_string(errors).unwrap_or_default();
        if !errors.trim().is_empty() {
            text.push_str(&format!("  the emulator said: {}\n", errors.trim()));
        }
        text.push_str(&format!("  whole console: {}\n  the machine again: {command}\n", log.display()));
    }
    text.push_str(&format!(
        "  the case again: harness {}--case '{name}' {}",
        if context.options.linux { "--linux " } else { "" },
        name.split(' ').next().unwrap_or("")
    ));
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_is_green_only_for_its_own_assertion() {
        let fails = |what: &str| -> Outcome { Err(Failure::new(what, "no")) };
        assert!(judge(&Ok(()), None).is_ok());
        assert!(judge(&fails("x"), None).is_err());
        assert!(judge(&fails("x"), Some("x")).is_ok());
        assert!(judge(&fails("boot.prompt"), Some("x")).is_err());
        assert!(judge(&Ok(()), Some("x")).is_err());
    }
}
