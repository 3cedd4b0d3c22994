//! A virtual machine: an emulator process with its console on pipes.
//!
//! The process never outlives its `Vm`: dropping it kills and reaps the child by its own handle, and should the harness
//! itself die by a signal, the system kills the child (parent-death signal, where the host has it; on others an
//! interrupt from the terminal reaches the emulator in the same process group).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::console::Console;
use crate::error::{Failure, Outcome};

/// What is booted, and on what machine.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// The arm64 Image.
    pub kernel: PathBuf,
    /// The initial root; none leaves `-initrd` away.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
    /// CPUs.
    pub smp: u32,
    /// Memory in MiB.
    pub mem: u32,
    /// GIC version.
    pub gic: u8,
    /// CPU model under emulation.
    pub cpu: String,
    /// Enter the kernel at EL2 (PSCI then goes by smc).
    pub el2: bool,
    /// More arguments for the emulator.
    pub extra: Vec<String>,
}

impl VmConfig {
    /// The emulator's arguments.
    pub fn args(&self) -> Vec<String> {
        let mut machine = format!("virt,gic-version={}", self.gic);
        if self.el2 {
            machine.push_str(",virtualization=on");
        }
        let mut args: Vec<String> = ["-M", &machine, "-cpu", &self.cpu].map(str::to_owned).to_vec();
        args.extend(["-smp".into(), self.smp.to_string(), "-m".into(), format!("{}M", self.mem)]);
        args.extend(["-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none"].map(str::to_owned));
        args.extend(["-no-reboot".into(), "-kernel".into(), self.kernel.display().to_string()]);
        if let Some(initrd) = &self.initrd {
            args.extend(["-initrd".into(), initrd.display().to_string()]);
        }
        if !self.append.is_empty() {
            args.extend(["-append".into(), self.append.clone()]);
        }
        args.extend(self.extra.iter().cloned());
        args
    }

    /// The command that boots the same machine by hand.
    pub fn command_line(&self) -> String {
        let mut line = emulator();
        for a in self.args() {
            line.push(' ');
            line.push_str(&quote(&a));
        }
        line
    }
}

fn emulator() -> String {
    std::env::var("QEMU").unwrap_or_else(|_| "qemu-system-aarch64".into())
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A running machine.
pub struct Vm {
    child: Child,
    input: Option<ChildStdin>,
    /// What it prints.
    pub console: Console,
    /// When it was switched on.
    pub started: Instant,
}

impl Vm {
    /// Switch a machine on; its logs go to `dir`.
    pub fn start(config: &VmConfig, dir: &Path) -> Outcome<Self> {
        let errors = dir.join("qemu.err");
        let mut command = Command::new(emulator());
        command.args(config.args()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&errors)?);
        die_with_parent(&mut command);
        let started = Instant::now();
        let mut child =
            command.spawn().map_err(|e| Failure::new("harness.emulator", format!("{}: {e}", emulator())))?;
        let input = child.stdin.take();
        let Some(output) = child.stdout.take() else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Failure::new("harness.emulator", "no console pipe"));
        };
        // From here on Drop ends the child.
        let mut vm =
            Self { child, input, console: Console::start(std::io::empty(), &dir.join("console.log"))?, started };
        vm.console = Console::start(output, &dir.join("console.log"))?;
        Ok(vm)
    }

    /// Type `bytes` on the console.
    pub fn send(&mut self, bytes: &[u8]) -> Outcome {
        let Some(input) = &mut self.input else { return Err(Failure::new("console.send", "the console is closed")) };
        input.write_all(bytes).and_then(|()| input.flush()).map_err(|e| Failure::new("console.send", e.to_string()))
    }

    /// Wait until the machine has switched itself off; None if it has not within `limit`.
    pub fn wait_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        // The console closes when the emulator ends, so this waits on an event.
        self.console.wait_closed(limit);
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if Instant::now() > end || !self.console.wait_closed(Duration::ZERO) {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Have the system kill the child when this thread's process dies, however it dies. Machines are used and dropped by
/// the thread that started them, which is what the signal is tied to.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure runs in the forked child before exec and makes one system call; it allocates nothing and takes
    // no lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(Into::into)
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_can_be_pasted() {
        let config = VmConfig {
            kernel: "k.img".into(),
            initrd: None,
            append: "console=ttyAMA0 it's".into(),
            smp: 4,
            mem: 512,
            gic: 3,
            cpu: "neoverse-n1".into(),
            el2: true,
            extra: vec![],
        };
        let line = config.command_line();
        assert!(line.contains("-M virt,gic-version=3,virtualization=on -cpu neoverse-n1 -smp 4 -m 512M"), "{line}");
        assert!(line.ends_with(r"-append 'console=ttyAMA0 it'\''s'"), "{line}");
    }
}
