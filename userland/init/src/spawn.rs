//! Starting a process of a service.
//!
//! What has to happen in the new process before the program runs is done by a second start of this program:
//! `init --exec UID GID GROUPS FILES DIRECTORY PROGRAM ARGUMENT…` makes itself the leader of a session (so that one signal
//! to its group reaches all of the service, and a terminal it opens becomes its own), sets limits and user, and becomes the
//! program. It costs an exec and needs no code between fork and exec.

use std::fs::{File, OpenOptions};
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

/// Start `words` as the service says, with its output to `output` (the console without). Returns the process number, which
/// is its group's and its session's too.
pub fn service(service: &Service, words: &[String], output: Option<File>) -> Result<u32, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let who = users::find(&service.user, &read("/etc/passwd"), &read("/etc/group"))?;
    let program = words.first().ok_or("the command is empty")?;
    // Said here, where the reason is still known, rather than by the second stage into the log.
    if !Path::new(program).exists() {
        return Err(format!("there is no {program}"));
    }
    let mut command = Command::new(SELF);
    command.arg("--exec").args(stage_arguments(service, &who)).args(words);
    command.env_clear().env("PATH", PATH).env("HOME", &who.home).env("USER", &who.name).env("LANG", "C.UTF-8");
    command.envs(service.env.iter().map(|(k, v)| (k, v)));
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

fn stage_arguments(service: &Service, who: &Identity) -> [String; 5] {
    let groups: Vec<String> = who.groups.iter().map(u32::to_string).collect();
    [
        who.uid.to_string(),
        who.gid.to_string(),
        groups.join(","),
        service.open_files.map_or_else(|| "-".to_owned(), |n| n.to_string()),
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
    let [uid, gid, groups, files, directory, program, rest @ ..] = args else {
        return Err("--exec takes UID GID GROUPS FILES DIRECTORY PROGRAM".into());
    };
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("{text:?} is not a number"));
    rustix::process::setsid().map_err(|e| format!("setsid: {e}"))?;
    if files != "-" {
        let n = Some(u64::from(number(files)?));
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: n, maximum: n })
            .map_err(|e| format!("open-files: {e}"))?;
    }
    let ids: Result<Vec<u32>, String> = groups.split(',').filter(|g| !g.is_empty()).map(number).collect();
    let ids: Vec<Gid> = ids?.into_iter().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&ids).map_err(|e| format!("setgroups: {e}"))?;
    rustix::thread::set_thread_gid(Gid::from_raw(number(gid)?)).map_err(|e| format!("setgid: {e}"))?;
    rustix::thread::set_thread_uid(Uid::from_raw(number(uid)?)).map_err(|e| format!("setuid: {e}"))?;
    std::env::set_current_dir(directory).map_err(|e| format!("{directory}: {e}"))?;
    Err(format!("{program}: {}", Command::new(program).args(rest).exec()))
}

/// Send `signal` to the group of a service's process; to the process alone while it has not made its group yet.
pub fn signal(pid: u32, signal: Signal) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    if rustix::process::kill_process_group(pid, signal).is_err() {
        let _ = rustix::process::kill_process(pid, signal);
    }
}
