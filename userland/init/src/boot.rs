//! From the first instruction of process 1 to the first service: file systems, the data disk, the host's name and keys.
//!
//! Nothing here can stop the boot. What fails is said on the console, and the machine comes up with what it has: without
//! a data disk /data is a directory in memory.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, mount};

use crate::disk::{self, Content};
use crate::{cmdline, ssh};

/// What the boot found.
#[derive(Debug, Default)]
pub struct Machine {
    /// What is to be said on the console.
    pub said: Vec<String>,
    /// /data is on a disk.
    pub data: bool,
}

impl Machine {
    /// Where logs go.
    pub fn log_directory(&self) -> PathBuf {
        PathBuf::from(if self.data { "/data/log" } else { "/run/log" })
    }
}

/// Type, target, flags and options of what is always mounted; who is there already is left alone.
const MOUNTS: &[(&str, &str, MountFlags, &CStr)] = &[
    ("proc", "/proc", MountFlags::empty(), c""),
    ("devtmpfs", "/dev", MountFlags::empty(), c""),
    ("devpts", "/dev/pts", MountFlags::empty(), c"mode=620,gid=5,ptmxmode=666"),
    ("sysfs", "/sys", MountFlags::empty(), c""),
    ("tmpfs", "/tmp", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=1777"),
    ("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=755"),
    ("tmpfs", "/dev/shm", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=1777"),
];

/// Bring the machine up to where services can be started.
pub fn bring_up() -> Machine {
    let mut machine = Machine::default();
    mount_all(&mut machine);
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    machine.data = data_disk(&line, &mut machine.said);
    for path in ["/run/log", "/run/svc", "/data/svc", "/data/log"] {
        let _ = fs::create_dir_all(path);
    }
    let _ = fs::set_permissions("/run/svc", fs::Permissions::from_mode(0o700));
    if machine.data {
        machine.said.extend(lay_over(Path::new("/data/etc"), Path::new("/etc")));
    }
    host_name(&line);
    let keys = Path::new(if machine.data { "/data/ssh" } else { "/run/ssh" });
    machine.said.extend(ssh::prepare(keys, &line));
    machine
}

fn is_mounted(mounts: &str, target: &str) -> bool {
    mounts.lines().any(|l| l.split(' ').nth(1) == Some(target))
}

fn mount_all(machine: &mut Machine) {
    for (kind, target, flags, options) in MOUNTS {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if is_mounted(&mounts, target) || (*target == "/dev" && Path::new("/dev/null").exists()) {
            continue;
        }
        let _ = fs::create_dir_all(target);
        match mount(*kind, *target, *kind, *flags, Some(*options)) {
            // A kernel without it is a matter of the kernel's.
            Ok(()) | Err(rustix::io::Errno::NODEV) => {}
            Err(e) => machine.said.push(format!("{target}: {e}")),
        }
    }
    for (link, to) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let link = Path::new("/dev").join(link);
        if fs::symlink_metadata(&link).is_err() {
            let _ = std::os::unix::fs::symlink(format!("/proc/self/{to}"), link);
        }
    }
}

fn host_name(line: &str) {
    let file = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let given = cmdline::values(line, "berth.hostname").pop();
    let name = given.as_deref().unwrap_or(file.trim());
    let right = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if right {
        let _ = rustix::system::sethostname(name.as_bytes());
    }
}

/// Mount the data disk, formatting an empty one. `berth.data=none` leaves disks alone, `berth.data=/dev/…` takes only that.
fn data_disk(line: &str, said: &mut Vec<String>) -> bool {
    let choice = cmdline::values(line, "berth.data").pop().unwrap_or_default();
    let _ = fs::create_dir_all("/data");
    if choice == "none" {
        return false;
    }
    let mut disks = disk::disks();
    if choice.starts_with('/') {
        disks.retain(|(path, _)| path == Path::new(&choice));
    }
    let mut empty = None;
    for (path, whole) in &disks {
        match disk::content(path) {
            Ok(Content::Ext) => match mount_data(path) {
                Ok(()) => return true,
                Err(e) => said.push(format!("{}: {e}: not mounted on /data, and left as it is", path.display())),
            },
            Ok(Content::Empty) if *whole => empty = empty.or(Some(path)),
            Ok(Content::Empty | Content::Small) => {}
            Ok(Content::Known(name)) => said.push(format!("{} holds {name}: left as it is", path.display())),
            Ok(Content::Unknown) => said.push(format!("{} holds something unknown: left as it is", path.display())),
            Err(e) => said.push(format!("{}: {e}", path.display())),
        }
    }
    // A disk that should have been mounted and could not be is no reason to begin a new life on another.
    let Some(path) = empty.filter(|_| !said.iter().any(|s| s.contains("not mounted on /data"))) else { return false };
    match format(path).and_then(|()| mount_data(path)) {
        Ok(()) => {
            said.push(format!("{} was empty: formatted (ext4) and mounted on /data", path.display()));
            true
        }
        Err(e) => {
            said.push(format!("{} was empty, but: {e}", path.display()));
            false
        }
    }
}

fn mount_data(device: &Path) -> Result<(), String> {
    let name = CString::new(device.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    mount(name.as_c_str(), c"/data", c"ext4", MountFlags::NODEV, None).map_err(|e| e.to_string())
}

fn format(device: &Path) -> Result<(), String> {
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "1", "-L", "data"])
        .arg(device)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("/sbin/mke2fs: {e}"))?;
    if made.status.success() {
        Ok(())
    } else {
        Err(format!("mke2fs: {}", String::from_utf8_lossy(&made.stderr).trim()))
    }
}

/// Copy the files below `from` over those below `to`, modes included: /etc lives in memory, and this is what of it lasts.
fn lay_over(from: &Path, to: &Path) -> Vec<String> {
    let mut said = Vec::new();
    let Ok(entries) = fs::read_dir(from) else { return said };
    for entry in entries.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                let _ = fs::create_dir_all(&target);
                said.extend(lay_over(&source, &target));
            }
            Ok(kind) if kind.is_file() => {
                if let Err(e) = fs::copy(&source, &target) {
                    said.push(format!("{}: {e}", source.display()));
                }
            }
            _ => {}
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_recognised() {
        let mounts = "rootfs / rootfs rw 0 0\ndevtmpfs /dev devtmpfs rw 0 0\n";
        assert!(is_mounted(mounts, "/dev") && !is_mounted(mounts, "/dev/pts"));
    }

    #[test]
    fn files_are_laid_over() {
        let top = std::env::temp_dir().join(format!("init-over-{}", std::process::id()));
        let (from, to) = (top.join("from"), top.join("to"));
        fs::create_dir_all(from.join("sub")).expect("a directory");
        fs::create_dir_all(&to).expect("a directory");
        fs::write(from.join("sub/a"), "new").expect("a file");
        fs::write(to.join("b"), "old").expect("a file");
        assert_eq!(lay_over(&from, &to), [""; 0]);
        assert_eq!(fs::read_to_string(to.join("sub/a")).ok().as_deref(), Some("new"));
        assert!(lay_over(Path::new("/nowhere"), &to).is_empty());
        fs::remove_dir_all(&top).expect("it is there");
    }
}
