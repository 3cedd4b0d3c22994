//! svc: list, start, stop, restart services and follow their logs; ask process 1 to read its files again or to end the
//! machine. Called as `radns` it is [`init::radns`].

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: svc [list]                 all services
       svc status NAME            one of them
       svc start|stop|restart NAME
       svc log [-f] [-n LINES] NAME   its output (-f: and what comes; `init` is process 1 itself)
       svc ready                  said by a service with `ready = notify`: it can be built on
       svc reload                 read /etc/svc and /data/svc again
       svc reexec                 replace process 1 by its program as it is now, services going on
       svc poweroff | reboot
";

/// How long `stop` waits for the end: as long as the longest stop-timeout that is sensible.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut args = std::env::args();
    let called = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    // One file for two small programs: a second copy of the standard library would cost more than it.
    if called.rsplit('/').next() == Some("radns") {
        return radns(&args);
    }
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        [] | ["list"] => ask("list").map(|t| print(&t)),
        ["-h" | "--help" | "help"] => {
            print(USAGE);
            Ok(())
        }
        ["log" | "logs", rest @ ..] => log(rest),
        ["ready"] => init::notify::ready(),
        ["stop", name] => ask(&format!("stop {name}")).and_then(|_| gone(name)),
        ["status" | "start" | "restart", _] | ["reload" | "poweroff" | "reboot" | "panic"] => {
            ask(&words.join(" ")).map(|t| print(&t))
        }
        // Its answer never comes: who would give it is replaced.
        ["reexec"] => {
            ask("reexec").map(|t| print(&t)).or_else(|e| if e.contains("no answer") { Ok(()) } else { Err(e) })
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("svc: {why}");
            ExitCode::FAILURE
        }
    }
}

fn radns(args: &[String]) -> ExitCode {
    let [interface, program] = args else {
        eprintln!("usage: radns INTERFACE PROGRAM");
        return ExitCode::from(2);
    };
    match init::radns::run(interface, program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) {
    // Into a pipe that nobody reads any more is no error of this program's.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn ask(request: &str) -> Result<String, String> {
    let fail = |e: std::io::Error| format!("{}: {e}", init::control::SOCKET);
    let mut stream = UnixStream::connect(init::control::SOCKET).map_err(fail)?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(fail)?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(fail)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(fail)?;
    match answer.split_once('\n') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some(("error", why)) => Err(why.trim().to_owned()),
        _ => Err("process 1 gave no answer".into()),
    }
}

/// Wait until the service has no process any more.
fn gone(name: &str) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let status = ask(&format!("status {name}"))?;
        let first = status.lines().next().unwrap_or_default();
        if !first.contains(" pid ") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!("{name} has not ended yet"))
}

fn log(args: &[&str]) -> Result<(), String> {
    let (mut follow, mut lines, mut name) = (false, 20, None);
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match *word {
            "-f" => follow = true,
            "-n" => {
                lines = words.next().and_then(|n| n.parse().ok()).ok_or("-n takes a number of lines")?;
            }
            other if name.is_none() && init::service::is_name(other) => name = Some(other),
            other => return Err(format!("{other:?}: see svc help")),
        }
    }
    let name = name.ok_or("log takes the name of a service")?;
    let path = if name == "init" {
        ["/data/log/init.log", "/run/log/init.log"]
            .into_iter()
            .find(|p| std::path::Path::new(p).exists())
            .unwrap_or_default()
            .to_owned()
    } else {
        let status = ask(&format!("status {name}"))?;
        status.lines().find_map(|l| l.strip_prefix("log: ")).ok_or("no log")?.to_owned()
    };
    let text = std::fs::read_to_string(format!("{path}.1")).unwrap_or_default()
        + &String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default());
    let all: Vec<&str> = text.lines().collect();
    for line in all.iter().skip(all.len().saturating_sub(lines)) {
        print(&format!("{line}\n"));
    }
    if follow { follow_file(&path) } else { Ok(()) }
}

/// Print what is added to the file, over its rotations, until somebody ends this.
fn follow_file(path: &str) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("{path}: {e}");
    let mut open: Option<(File, u64)> = None;
    let mut first = true;
    loop {
        let on_disk = std::fs::metadata(path).map(|m| m.ino()).ok();
        if let Some((file, inode)) = &mut open {
            let mut fresh = Vec::new();
            file.read_to_end(&mut fresh).map_err(fail)?;
            std::io::stdout().write_all(&fresh).and_then(|()| std::io::stdout().flush()).map_err(fail)?;
            if on_disk.is_some_and(|i| i != *inode) {
                open = None;
            }
        }
        if open.is_none()
            && let Ok(mut file) = File::open(path)
        {
            // What was there at the beginning has been printed.
            if first {
                file.seek(SeekFrom::End(0)).map_err(fail)?;
            }
            let inode = file.metadata().map_err(fail)?.ino();
            open = Some((file, inode));
        }
        first = false;
        std::thread::sleep(Duration::from_millis(200));
    }
}
