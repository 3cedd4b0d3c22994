//! The way out: what is still there when all services have ended, and then the machine.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal};
use rustix::system::{RebootCommand, reboot};

/// How the machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Power off.
    Off,
    /// Start again.
    Again,
}

/// How long all services together may take to end.
pub const SERVICES: Duration = Duration::from_secs(15);
/// How long what else is there may take after SIGTERM.
const OTHERS: Duration = Duration::from_secs(2);

/// Everything but process 1 and the kernel's own threads.
fn processes() -> Vec<Pid> {
    let names = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = names.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()).filter(|n| *n > 1);
    // A kernel thread has no program, and a zombie needs no signal; reaping is done by the caller's loop.
    let alive = |n: &i32| std::fs::read_link(format!("/proc/{n}/exe")).is_ok();
    numbers.filter(alive).filter_map(Pid::from_raw).collect()
}

fn signal_all(signal: Signal) -> usize {
    let all = processes();
    for pid in &all {
        let _ = rustix::process::kill_process(*pid, signal);
        let _ = rustix::process::kill_process(*pid, Signal::CONT);
    }
    all.len()
}

fn wait_for_none(limit: Duration) {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        while matches!(rustix::process::wait(rustix::process::WaitOptions::NOHANG), Ok(Some(_))) {}
        if processes().is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// End whatever is left, bring the disks into order, and end the machine. It returns only if the kernel refuses.
pub fn finish(end: End) {
    let _ = std::env::set_current_dir("/");
    if signal_all(Signal::TERM) > 0 {
        wait_for_none(OTHERS);
    }
    for _ in 0..3 {
        if signal_all(Signal::KILL) == 0 {
            break;
        }
        wait_for_none(OTHERS);
    }
    rustix::fs::sync();
    if Path::new("/data").exists() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below: Vec<&str> = mounts
            .lines()
            .filter_map(|l| l.split(' ').nth(1))
            .filter(|t| *t == "/data" || t.starts_with("/data/") || t.starts_with("/mnt"))
            .collect();
        for target in below.into_iter().rev() {
            if unmount(target, UnmountFlags::empty()).is_err() {
                let _ = rustix::mount::mount_remount(target, rustix::mount::MountFlags::RDONLY, c"");
            }
        }
        rustix::fs::sync();
    }
    let _ = reboot(if end == End::Off { RebootCommand::PowerOff } else { RebootCommand::Restart });
}
