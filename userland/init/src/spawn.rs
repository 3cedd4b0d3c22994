//! Starting a process of a service.
//!
//! What has to happen in the new process before the program runs is done by a second start of this program:
//! `init --exec UID GID GROUPS LIMITS STATE DIRECTORY PROGRAM ARGUMENT…` makes itself the leader of a session (so that one
//! signal to its group reaches all of the service, and a terminal it opens becomes its own), makes the service's own
//! directory STATE, sets limits and user, and becomes the program. It costs an exec and needs no code between fork and exec.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid};

use crate::service::Service;
use crate::users::{self, Identity};

/// What PATH is for services.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where this program is.
pub const SELF: &str = "/sbin/init";

/// Who a service runs as.
pub fn identity(service: &Service) -> Result<Identity, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    users::find(&service.user, &read("/etc/passwd"), &read("/etc/group"))
}

/// Start `words` as the service says, with its output to `output` (the console without), and with the socket `notify` as its
/// NOTIFY_SOCKET. Returns the process number, which is its group's and its session's too.
pub fn service(
    service: &Service,
    words: &[String],
    output: Option<File>,
    notify: Option<&Path>,
) -> Result<u32, String> {
    let who = identity(service)?;
    let program = words.first().ok_or("the command is empty")?;
    // Said here, where the reason is still known, rather than by the second stage into the log.
    if !Path::new(program).exists() {
        return Err(format!("there is no {program}"));
    }
    let mut command = Command::new(SELF);
    command.arg("--exec").args(stage_arguments(service, &who)).args(words);
    command.env_clear().env("PATH", PATH).env("HOME", &who.home).env("USER", &who.name).env("LANG", "C.UTF-8");
    command.envs(service.env.iter().map(|(k, v)| (k, v)));
    command.envs(notify.map(|path| ("NOTIFY_SOCKET", path)));
    command.stdin(Stdio::null());
    if let Some(output) = output {
        let second = output.try_clone().map_err(|e| format!("its log: {e}"))?;
        command.stdout(output).stderr(second);
    } else if let Ok(console) = OpenOptions::new().write(true).open("/dev/console") {
        if let Ok(second) = console.try_clone() {
            command.stdout(console).stderr(second);
        }
    } else {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    }
    command.spawn().map(|child| child.id()).map_err(|e| e.to_string())
}

/// Limits as they are passed to the second stage, and what each is for the kernel.
const LIMITS: [(&str, Resource); 3] =
    [("open-files", Resource::Nofile), ("memory", Resource::As), ("processes", Resource::Nproc)];

fn stage_arguments(service: &Service, who: &Identity) -> [String; 6] {
    let groups: Vec<String> = who.groups.iter().map(u32::to_string).collect();
    let limits = [service.open_files, service.memory, service.processes];
    let limits = LIMITS.iter().zip(limits).filter_map(|((name, _), n)| Some(format!("{name}={}", n?)));
    [
        who.uid.to_string(),
        who.gid.to_string(),
        groups.join(","),
        limits.collect::<Vec<_>>().join(","),
        service.state_directory.clone(),
        if service.directory.is_empty() { "/".to_owned() } else { service.directory.clone() },
    ]
}

/// The middle step, in the new process: it returns only if the program cannot be run.
pub fn second_stage(args: &[String]) -> ExitCode {
    let why = match become_program(args) {
        Ok(never) => match never {},
        Err(why) => why,
    };
    eprintln!("init: {why}");
    ExitCode::from(127)
}

fn become_program(args: &[String]) -> Result<std::convert::Infallible, String> {
    let [uid, gid, groups, limits, state, directory, program, rest @ ..] = args else {
        return Err("--exec takes UID GID GROUPS LIMITS STATE DIRECTORY PROGRAM".into());
    };
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("{text:?} is not a number"));
    rustix::process::setsid().map_err(|e| format!("setsid: {e}"))?;
    for limit in limits.split(',').filter(|l| !l.is_empty()) {
        let (name, n) = limit.split_once('=').ok_or_else(|| format!("the limit {limit:?}"))?;
        let n = Some(n.parse::<u64>().map_err(|e| format!("{name}: {e}"))?);
        let (_, which) = LIMITS.into_iter().find(|(l, _)| *l == name).ok_or_else(|| format!("the limit {name:?}"))?;
        rustix::process::setrlimit(which, Rlimit { current: n, maximum: n }).map_err(|e| format!("{name}: {e}"))?;
    }
    if !state.is_empty() {
        own_directory(Path::new(state), number(uid)?, number(gid)?).map_err(|e| format!("{state}: {e}"))?;
    }
    let ids: Result<Vec<u32>, String> = groups.split(',').filter(|g| !g.is_empty()).map(number).collect();
    let ids: Vec<Gid> = ids?.into_iter().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&ids).map_err(|e| format!("setgroups: {e}"))?;
    rustix::thread::set_thread_gid(Gid::from_raw(number(gid)?)).map_err(|e| format!("setgid: {e}"))?;
    rustix::thread::set_thread_uid(Uid::from_raw(number(uid)?)).map_err(|e| format!("setuid: {e}"))?;
    std::env::set_current_dir(directory).map_err(|e| format!("{directory}: {e}"))?;
    Err(format!("{program}: {}", Command::new(program).args(rest).exec()))
}

/// Make `path` and what is in it `uid`'s, closed to others. Who owned it before handed over everything in it, so what it
/// holds is looked at only when the owner changes.
fn own_directory(path: &Path, uid: u32, gid: u32) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    let is = std::fs::symlink_metadata(path)?;
    if !is.is_dir() {
        return Err(std::io::Error::other("not a directory"));
    }
    if (is.uid(), is.gid()) != (uid, gid) {
        give_away(path, uid, gid)?;
    }
    if is.mode() & 0o7777 != 0o700 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Symbolic links are given away themselves, never followed. The directory comes last: an interrupted run is repeated.
fn give_away(path: &Path, uid: u32, gid: u32) -> std::io::Result<()> {
    if std::fs::symlink_metadata(path)?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_away(&entry?.path(), uid, gid)?;
        }
    }
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))
}

/// Send `signal` to the group of a service's process; to the process alone while it has not made its group yet.
pub fn signal(pid: u32, signal: Signal) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    if rustix::process::kill_process_group(pid, signal).is_err() {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_its_own() {
        let top = std::env::temp_dir().join(format!("init-own-{}", std::process::id()));
        let me = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        own_directory(&top.join("a/b"), me.0, me.1).expect("one's own");
        let mode = |p: &Path| std::fs::metadata(p).map(|m| m.mode() & 0o777).ok();
        assert_eq!(mode(&top.join("a/b")), Some(0o700));
        std::os::unix::fs::symlink("/nowhere", top.join("a/b/link")).expect("a link");
        give_away(&top, me.0, me.1).expect("links are not followed");
        std::fs::write(top.join("file"), "").expect("a file");
        assert!(own_directory(&top.join("file"), me.0, me.1).is_err());
        std::fs::remove_dir_all(&top).expect("it is there");
    }

    #[test]
    fn limits_are_passed_on() {
        let s = Service::parse("x", "exec = /x\nmemory = 1M\nopen-files = 5").expect("it is right");
        let who = users::find("", "", "").expect("root");
        assert_eq!(stage_arguments(&s, &who)[3], "open-files=5,memory=1048576");
    }
}
