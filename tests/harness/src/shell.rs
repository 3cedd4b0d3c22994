//! Commands on the machine's serial console, with their output and exit status.
//!
//! The login shell edits its line and echoes what is typed, so its output cannot be told from its input. Therefore the
//! first command turns the terminal's echo off, upon which busybox's shell reads plain lines, and empties the prompts.
//! After each command the shell prints a mark that is put together by printf, so that no echo can ever look like it.

use std::time::Duration;

use crate::console::{Missing, Seen};
use crate::error::{Failure, Outcome, check};
use crate::vm::Vm;

/// How long a machine may take to its prompt. Far more than it needs: a limit is for a hang, not a measure.
pub const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How long an ordinary command may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// The end of the login shell's prompt for root.
pub const PROMPT: &str = ":~# ";
/// Longest command: busybox's shell reads lines of up to 1024 bytes (FEATURE_EDITING_MAX_LEN).
const LONGEST: usize = 960;

/// What a command did.
#[derive(Debug, Clone)]
pub struct Done {
    /// Its output, standard error included.
    pub output: String,
    /// Its exit status.
    pub status: i32,
}

/// A machine with a shell that takes commands.
pub struct Shell {
    /// The machine.
    pub vm: Vm,
    serial: u32,
}

/// Explain a missing text as a failure of `what`.
pub fn explain(what: &str, wanted: &str, missing: &Missing, limit: Duration) -> Failure {
    match missing {
        Missing::Late => Failure::new(what, format!("no {wanted:?} within {} s", limit.as_secs())),
        Missing::Closed => Failure::new(what, format!("the machine ended before {wanted:?} came")),
        Missing::Forbidden(word) => {
            Failure::new("console.forbidden", format!("{word:?} on the console while waiting for {wanted:?} ({what})"))
        }
    }
}

impl Vm {
    /// Wait for `text` on the console as the assertion `what`.
    pub fn expect(&mut self, what: &str, text: &str, limit: Duration) -> Outcome<Seen> {
        self.console.expect(text, limit).map_err(|m| {
            if matches!(m, Missing::Forbidden(_)) {
                // Let the report of every CPU come out before the machine is ended.
                self.console.wait_closed(Duration::from_secs(3));
            }
            explain(what, text, &m, limit)
        })
    }

    /// Wait for the login shell and take it over.
    pub fn shell(mut self) -> Outcome<Shell> {
        self.expect("boot.prompt", PROMPT, BOOT_LIMIT)?;
        self.take_shell()
    }

    /// Take over a login shell whose prompt has been seen.
    pub fn take_shell(self) -> Outcome<Shell> {
        let mut shell = Shell { vm: self, serial: 0 };
        shell.vm.send(b"stty -echo; PS1= PS2=; printf '<%s>\\n' ready\n")?;
        shell.vm.expect("boot.shell", "<ready>", BOOT_LIMIT)?;
        Ok(shell)
    }
}

impl Shell {
    /// Run `command` (one line of shell) and wait for its end.
    pub fn run(&mut self, command: &str, limit: Duration) -> Outcome<Done> {
        check(command.len() < LONGEST && !command.contains('\n'), "harness.command", || {
            format!("too long or not a line: {command}")
        })?;
        self.serial += 1;
        let mark = format!("end{}", self.serial);
        self.vm.send(format!("{{ {command}; }} 2>&1; printf '\\n<%s:%d>\\n' {mark} $?\n").as_bytes())?;
        let what = format!("run {}", short(command));
        let open = format!("<{mark}:");
        let seen = self.vm.expect(&what, &open, limit)?;
        let status = self.vm.expect(&what, ">", COMMAND_LIMIT)?;
        // What process 1 reports on the console comes between the lines of whoever is printing.
        let lines: Vec<&str> =
            seen.before.trim_matches('\n').split('\n').filter(|l| !l.starts_with("init: ")).collect();
        let output = lines.join("\n");
        Ok(Done { output, status: status.before.trim().parse().unwrap_or(-1) })
    }

    /// Run `command` and fail unless it exits with 0.
    pub fn ok(&mut self, command: &str) -> Outcome<String> {
        let done = self.run(command, COMMAND_LIMIT)?;
        check(done.status == 0, &format!("run {}", short(command)), || {
            format!("exit status {}:\n{}", done.status, done.output)
        })?;
        Ok(done.output)
    }

    /// Run a test program of userland/tests, which prints `FAIL name: why` for each check that does not hold and ends
    /// with `N passed, N failed`. The assertion's name is that of the first failed check.
    pub fn program(&mut self, command: &str, limit: Duration) -> Outcome<String> {
        let done = self.run(&format!("/usr/lib/berth-tests/{command}"), limit)?;
        let fails: Vec<&str> = done.output.lines().filter(|l| l.starts_with("FAIL ")).collect();
        if let Some(first) = fails.first() {
            let name = first["FAIL ".len()..].split(':').next().unwrap_or("?");
            return Err(Failure::new(name, format!("{command}:\n{}", fails.join("\n"))));
        }
        let passed = done.output.lines().rev().find_map(count);
        let what = format!("run {command}");
        check(done.status == 0, &what, || format!("exit status {}:\n{}", done.status, done.output))?;
        check(matches!(passed, Some(n) if n > 0), &what, || format!("no verdict:\n{}", done.output))?;
        Ok(done.output)
    }

    /// Switch the machine off by its own command and see the emulator end.
    pub fn poweroff(mut self) -> Outcome {
        self.vm.send(b"poweroff\n")?;
        let status = self.vm.wait_exit(COMMAND_LIMIT);
        if let Some(word) = self.vm.console.forbidden() {
            return Err(Failure::new("console.forbidden", format!("{word:?} on the console")));
        }
        check(matches!(status, Some(s) if s.success()), "poweroff", || format!("the emulator ended with {status:?}"))
    }
}

/// The number before ` passed, ` in `N passed, 0 failed`.
fn count(line: &str) -> Option<u32> {
    let (n, rest) = line.split_once(" passed, ")?;
    (rest.starts_with("0 failed")).then(|| n.trim().parse().ok()).flatten()
}

fn short(command: &str) -> &str {
    let command = command.strip_prefix("/usr/lib/berth-tests/").unwrap_or(command);
    command.split([' ', ';', '|']).next().unwrap_or(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read() {
        assert_eq!(count("12 passed, 0 failed"), Some(12));
        assert_eq!(count("12 passed, 1 failed"), None);
        assert_eq!(count("passed"), None);
        assert_eq!(short("/usr/lib/berth-tests/mem cow; x"), "mem");
    }
}
