//! The loop of process 1: signals, ends of processes, output of services, requests, and what time brings.
//!
//! One thread sleeps in poll(2) until any of them comes. Every child is reaped, services' and strangers' alike. Nothing
//! read here can end the loop; what fails is said and left.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitOptions, wait};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::pipe;

use crate::boot::{self, Machine};
use crate::control::{Control, Heard, Request, SOCKET};
use crate::log::Log;
use crate::notify::Notify;
use crate::service::{Ready, Service, StopSignal};
use crate::shutdown::{self, End};
use crate::spawn;
use crate::unit::{Action, State, Status, Unit, Units};

/// Where services are described: those of the image, and those of the data disk, which win.
const SERVICES: [&str; 2] = ["/etc/svc", "/data/svc"];
/// What a new image of process 1 needs to know.
const STATE: &str = "/run/init.state";
/// How many health checks may fail one after the other.
const PATIENCE: u32 = 3;
/// While a service is waited for its first check comes so soon, and each later one after twice as long, up to a bound.
const SOON: Duration = Duration::from_millis(50);
const NOT_SO_SOON: Duration = Duration::from_secs(2);

/// A health check that runs.
#[derive(Debug)]
struct Check {
    name: String,
    until: Duration,
}

/// A service's health.
#[derive(Debug, Default)]
struct Health {
    next: Duration,
    /// Until it is ready, from one check to the next.
    soon: Duration,
    failed: u32,
    /// The process it was asked of, so that a new one starts with a clean sheet.
    of: u32,
}

struct Init {
    start: Instant,
    units: Units,
    logs: BTreeMap<String, Log>,
    own: Option<Log>,
    log_dir: PathBuf,
    control: Control,
    checks: BTreeMap<u32, Check>,
    health: BTreeMap<String, Health>,
    notify: BTreeMap<String, Notify>,
    ending: Option<(End, Duration)>,
}

/// Be process 1. `resume` after a crash: the machine is up already. It does not return.
pub fn run(resume: bool) -> ExitCode {
    replace_on_panic();
    let signals = signals();
    let machine = if resume {
        Machine { said: vec!["process 1 goes on in a new image".into()], data: Path::new("/data/ssh").exists() }
    } else {
        boot::bring_up()
    };
    let log_dir = machine.log_directory();
    let mut init = Init {
        start: Instant::now(),
        units: Units::default(),
        logs: BTreeMap::new(),
        own: Log::open("init", &log_dir, Path::new("/run/svc")).ok(),
        log_dir,
        control: Control::open(Path::new(SOCKET)).unwrap_or_default(),
        checks: BTreeMap::new(),
        health: BTreeMap::new(),
        notify: BTreeMap::new(),
        ending: None,
    };
    for text in &machine.said {
        init.say(text);
    }
    match Control::open(Path::new(SOCKET)) {
        Ok(control) => init.control = control,
        Err(e) => init.say(&format!("{SOCKET}: {e}: svc cannot reach process 1")),
    }
    init.load();
    if resume {
        init.resume();
    }
    loop {
        init.turn(signals.as_ref());
    }
}

/// A panic (there should be none) replaces the process image; the number stays, and with it the machine.
fn replace_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        console(&format!("panic: {info}"));
        // Should it panic again at once, the machine is not kept busy with it.
        std::thread::sleep(Duration::from_millis(500));
        let failed = replace();
        console(&format!("{}: {failed}", spawn::SELF));
    }));
}

fn replace() -> std::io::Error {
    Command::new(spawn::SELF).arg("--resume").exec()
}

fn console(text: &str) {
    if let Ok(mut out) = std::fs::OpenOptions::new().write(true).open("/dev/console") {
        let _ = std::io::Write::write_all(&mut out, format!("init: {text}\n").as_bytes());
    }
}

/// One pipe a signal, so that a reader knows which came.
fn signals() -> Option<Vec<(i32, UnixStream)>> {
    [SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2]
        .into_iter()
        .map(|signal| {
            let (read, write) = UnixStream::pair().ok()?;
            read.set_nonblocking(true).ok()?;
            pipe::register(signal, write).ok()?;
            Some((signal, read))
        })
        .collect()
}

impl Init {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn say(&mut self, text: &str) {
        console(text);
        if let Some(log) = &mut self.own {
            log.say(text);
        }
    }

    /// Read all service files.
    fn load(&mut self) {
        let mut services: BTreeMap<String, Service> = BTreeMap::new();
        for dir in SERVICES {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with('.')) else {
                    continue;
                };
                let text = match std::fs::read(&path) {
                    Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    Err(e) => {
                        self.say(&format!("{}: {e}", path.display()));
                        continue;
                    }
                };
                match Service::parse(name, &text) {
                    Ok(service) => drop(services.insert(name.to_owned(), service)),
                    Err(e) => self.say(&format!("{}: {e}: left out", path.display())),
                }
            }
        }
        let present = |path: &str| Path::new(path).exists();
        let actions = self.units.load(services.into_values().collect(), present, self.now());
        self.act(actions);
    }

    /// What the image before this one left: who runs, and who is stopped.
    fn resume(&mut self) {
        let now = self.now();
        for line in std::fs::read_to_string(STATE).unwrap_or_default().lines() {
            let (name, ready, pid) = match line.split(' ').collect::<Vec<_>>()[..] {
                [name, pid] => (name, true, pid),
                [name, pid, "starting"] => (name, false, pid),
                _ => continue,
            };
            let state = match pid.parse() {
                Ok(pid) => State::Up(pid),
                Err(_) if pid == "done" => State::Done,
                Err(_) => State::Stopped,
            };
            self.units.resume(name, state, ready, now);
            if state.pid().is_some() {
                self.open_log(name);
                self.open_notify(name);
            }
        }
    }

    fn remember(&self) {
        let line = |u: &Unit| match u.state {
            State::Up(pid) if !u.ready => Some(format!("{} {pid} starting\n", u.service.name)),
            State::Up(pid) | State::Stopping(pid, _) => Some(format!("{} {pid}\n", u.service.name)),
            State::Done => Some(format!("{} done\n", u.service.name)),
            State::Stopped | State::Ended(_) => Some(format!("{} -\n", u.service.name)),
            _ => None,
        };
        let text: String = self.units.iter().filter_map(line).collect();
        let _ = std::fs::write(STATE, text);
    }

    fn open_log(&mut self, name: &str) -> Option<&mut Log> {
        if !self.logs.contains_key(name) {
            match Log::open(name, &self.log_dir, Path::new("/run/svc")) {
                Ok(log) => drop(self.logs.insert(name.to_owned(), log)),
                Err(e) => self.say(&format!("the log of {name}: {e}")),
            }
        }
        self.logs.get_mut(name)
    }

    /// A new socket for the readiness of a service that says it itself; its path.
    fn open_notify(&mut self, name: &str) -> Option<PathBuf> {
        self.notify.remove(name);
        let service = self.units.get(name).map(|u| &u.service).filter(|s| s.ready == Ready::Notify)?;
        let opened = spawn::identity(service).and_then(|who| Notify::open(name, who.uid).map_err(|e| e.to_string()));
        match opened {
            Ok(notify) => {
                let path = notify.path.clone();
                self.notify.insert(name.to_owned(), notify);
                Some(path)
            }
            Err(e) => {
                self.say(&format!("{name} cannot say when it is ready: {e}"));
                None
            }
        }
    }

    fn hear_readiness(&mut self) {
        let ready: Vec<String> = self.notify.iter().filter(|(_, n)| n.pump()).map(|(name, _)| name.clone()).collect();
        for name in &ready {
            self.units.is_ready(name);
        }
        if !ready.is_empty() {
            self.remember();
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        let changes = !actions.is_empty();
        for action in actions {
            match action {
                Action::Start(name) => self.start_service(&name),
                Action::Terminate(pid) => {
                    let asks = self.units.iter().find(|u| u.state.pid() == Some(pid)).map(|u| u.service.stop_signal);
                    let signal = match asks {
                        Some(StopSignal::Hup) => Signal::HUP,
                        Some(StopSignal::Int) => Signal::INT,
                        Some(StopSignal::Quit) => Signal::QUIT,
                        Some(StopSignal::Term) | None => Signal::TERM,
                    };
                    spawn::signal(pid, signal);
                    spawn::signal(pid, Signal::CONT);
                }
                Action::Kill(pid) => spawn::signal(pid, Signal::KILL),
                Action::Report(text) => self.say(&text),
            }
        }
        if changes {
            self.remember();
        }
    }

    fn start_service(&mut self, name: &str) {
        let Some(service) = self.units.get(name).map(|u| u.service.clone()) else { return };
        let output = if service.console { None } else { self.open_log(name).and_then(|log| log.for_service().ok()) };
        let notify = self.open_notify(name);
        let now = self.now();
        match spawn::service(&service, &service.exec, output, notify.as_deref()) {
            Ok(pid) => self.units.started(name, pid, now),
            Err(why) => {
                let actions = self.units.not_started(name, &why, now);
                self.act(actions);
            }
        }
    }

    /// Sleep until something comes, and see to it.
    fn turn(&mut self, signals: Option<&Vec<(i32, UnixStream)>>) {
        let actions = self.units.tick(self.now());
        self.act(actions);
        self.check_health();
        self.end_if_due();
        self.sleep(signals);
        for (signal, pipe) in signals.into_iter().flatten() {
            let mut buffer = [0; 64];
            if std::io::Read::read(&mut &*pipe, &mut buffer).is_ok_and(|n| n > 0) {
                self.signalled(*signal);
            }
        }
        // Before the dead are seen to: who says that it is ready and ends was ready.
        self.hear_readiness();
        self.reap();
        for log in self.logs.values_mut() {
            log.pump();
        }
        let now = self.now();
        self.control.accept(now);
        self.hear(now);
    }

    fn sleep(&self, signals: Option<&Vec<(i32, UnixStream)>>) {
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        fds.extend(
            signals.into_iter().flatten().map(|(_, pipe)| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)),
        );
        fds.extend(self.logs.values().map(|l| PollFd::from_borrowed_fd(l.pipe.as_fd(), PollFlags::IN)));
        fds.extend(self.notify.values().map(|n| PollFd::from_borrowed_fd(n.socket.as_fd(), PollFlags::IN)));
        fds.extend(self.control.listener.iter().map(|l| PollFd::from_borrowed_fd(l.as_fd(), PollFlags::IN)));
        fds.extend(self.control.clients.iter().map(|c| PollFd::from_borrowed_fd(c.stream.as_fd(), PollFlags::IN)));
        let deadlines = [
            self.units.deadline(),
            self.control.deadline(),
            self.checks.values().map(|c| c.until).min(),
            self.health.values().map(|h| h.next).min(),
            self.ending.map(|(_, at)| at),
            // Without signals it looks for itself.
            signals.is_none().then(|| self.now() + Duration::from_millis(200)),
        ];
        let timeout = deadlines.into_iter().flatten().min().map(|at| {
            let left = at.saturating_sub(self.now()).max(Duration::from_millis(1));
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // It must not run hot if the kernel refuses.
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }

    /// busybox' poweroff, reboot and halt say it by signals.
    fn signalled(&mut self, signal: i32) {
        match signal {
            SIGUSR1 | SIGUSR2 => self.end(End::Off),
            SIGTERM | SIGINT => self.end(End::Again),
            SIGHUP => self.load(),
            _ => {}
        }
    }

    fn reap(&mut self) {
        // Bounded, so that children that come as fast as they are reaped do not hold up everything else.
        for _ in 0..256 {
            let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) else { return };
            let pid = pid.as_raw_nonzero().get() as u32;
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Status::Code(code),
                (None, Some(signal)) => Status::Signal(signal),
                (None, None) => continue,
            };
            if let Some(check) = self.checks.remove(&pid) {
                self.checked(&check.name, status == Status::Code(0), &status.to_string());
            } else if let Some(actions) = self.units.exited(pid, status, self.now()) {
                self.act(actions);
                self.remember();
            }
        }
    }

    // --- health ---------------------------------------------------------------------------------------------------

    fn check_health(&mut self) {
        let now = self.now();
        let overdue: Vec<u32> = self.checks.iter().filter(|(_, c)| c.until <= now).map(|(pid, _)| *pid).collect();
        for pid in overdue {
            spawn::signal(pid, Signal::KILL);
            if let Some(check) = self.checks.remove(&pid) {
                self.checked(&check.name, false, "no answer in time");
            }
        }
        let mut due: Vec<(String, u32, Service)> = Vec::new();
        for unit in self.units.iter().filter(|u| !u.service.health.is_empty()) {
            let name = &unit.service.name;
            let State::Up(pid) = unit.state else {
                self.health.remove(name);
                continue;
            };
            let health = self.health.entry(name.clone()).or_default();
            let waited_for = !unit.ready && unit.service.ready == Ready::Health;
            if health.of != pid {
                let first = if waited_for { SOON } else { unit.service.health_every };
                *health = Health { next: now + first, soon: SOON, failed: 0, of: pid };
            }
            if health.next <= now {
                health.soon = (health.soon * 2).min(NOT_SO_SOON);
                health.next = now + if waited_for { health.soon } else { unit.service.health_every };
                if !self.checks.values().any(|c| &c.name == name) {
                    due.push((name.clone(), pid, unit.service.clone()));
                }
            }
        }
        for (name, _, service) in due {
            let output = self.logs.get(&name).and_then(|log| log.for_service().ok());
            let until = now + service.health_every.max(Duration::from_secs(5));
            match spawn::service(&service, &service.health, output, None) {
                Ok(pid) => drop(self.checks.insert(pid, Check { name, until })),
                Err(why) => self.checked(&name, false, &why),
            }
        }
    }

    fn checked(&mut self, name: &str, well: bool, why: &str) {
        let Some(health) = self.health.get_mut(name) else { return };
        let unit = self.units.get(name);
        if unit.is_some_and(|u| !u.ready && u.service.ready == Ready::Health) {
            // How long that may take is bounded by `ready-timeout`.
            if well {
                health.next = health.next.max(self.start.elapsed() + unit.map_or(SOON, |u| u.service.health_every));
                self.units.is_ready(name);
                self.remember();
            }
            return;
        }
        health.failed = if well { 0 } else { health.failed + 1 };
        if health.failed < PATIENCE {
            return;
        }
        health.failed = 0;
        self.say(&format!("{name} failed {PATIENCE} health checks ({why}) and is restarted"));
        let now = self.now();
        if let Some(actions) = self.units.restart(name, now) {
            self.act(actions);
        }
    }

    // --- requests -------------------------------------------------------------------------------------------------

    fn hear(&mut self, now: Duration) {
        let mut asked = Vec::new();
        let mut stay = Vec::new();
        for mut client in std::mem::take(&mut self.control.clients) {
            match client.hear(now) {
                Heard::More => stay.push(client),
                Heard::Gone => {}
                Heard::Asked(request) => asked.push((client, request)),
            }
        }
        self.control.clients = stay;
        for (client, request) in asked {
            let answer = request.and_then(|r| self.answer(&r));
            client.answer(&answer);
        }
    }

    fn answer(&mut self, request: &Request) -> Result<String, String> {
        let now = self.now();
        let unknown = |name: &str| format!("there is no service {name:?}");
        match request {
            Request::List => Ok(self.units.iter().map(|u| self.line(u)).collect()),
            Request::Status(name) => {
                self.units.get(name).map(|u| self.line(u) + &self.details(u)).ok_or_else(|| unknown(name))
            }
            Request::Start(name) => {
                let actions = self.units.start(name, now).ok_or_else(|| unknown(name))?;
                self.act(actions);
                Ok(String::new())
            }
            Request::Stop(name) => {
                self.units.get(name).ok_or_else(|| unknown(name))?;
                let actions = self.units.stop(name, now);
                self.act(actions);
                self.remember();
                Ok(String::new())
            }
            Request::Restart(name) => {
                let actions = self.units.restart(name, now).ok_or_else(|| unknown(name))?;
                self.act(actions);
                Ok(String::new())
            }
            Request::Reload => {
                self.load();
                Ok(String::new())
            }
            Request::Poweroff => {
                self.end(End::Off);
                Ok(String::new())
            }
            Request::Reboot => {
                self.end(End::Again);
                Ok(String::new())
            }
            Request::Reexec => {
                self.remember();
                Err(replace().to_string())
            }
            Request::Panic => panic!("as asked for by svc"),
        }
    }

    fn line(&self, unit: &Unit) -> String {
        let for_ = self.now().saturating_sub(unit.since).as_secs();
        let state = match unit.state {
            State::Waiting => "waiting".to_owned(),
            State::Up(pid) if !unit.ready => format!("starting pid {pid} for {for_} s"),
            State::Up(pid) => format!("up pid {pid} for {for_} s"),
            State::Stopping(pid, _) => format!("stopping pid {pid}"),
            State::Backoff(at) => format!("down, next start in {} s", at.saturating_sub(self.now()).as_secs()),
            State::Done => "done".to_owned(),
            State::Stopped => "stopped".to_owned(),
            State::Ended(status) => format!("ended with {status}"),
            State::Skipped => format!("left out: no {}", unit.service.if_exists),
        };
        let restarts = if unit.restarts > 0 { format!(", {} restarts", unit.restarts) } else { String::new() };
        format!("{:<16} {state}{restarts}\n", unit.service.name)
    }

    fn details(&self, unit: &Unit) -> String {
        let s = &unit.service;
        let last = unit.last.map_or_else(String::new, |l| format!("last end: {l}\n"));
        let failed = self.health.get(&s.name).map_or(0, |h| h.failed);
        let health =
            if s.health.is_empty() { String::new() } else { format!("health: {failed} checks failed in a row\n") };
        let user = if s.user.is_empty() { "root" } else { &s.user };
        let log = self.log_dir.join(format!("{}.log", s.name));
        format!("command: {}\nuser: {user}\n{last}{health}log: {}\n", s.exec.join(" "), log.display())
    }

    // --- the end --------------------------------------------------------------------------------------------------

    fn end(&mut self, end: End) {
        if self.ending.is_none() {
            self.say(if end == End::Off { "powering off" } else { "starting again" });
            self.ending = Some((end, self.now() + shutdown::SERVICES));
            self.units.close();
        }
    }

    fn end_if_due(&mut self) {
        let Some((end, until)) = self.ending else { return };
        if !self.units.is_quiet() && self.now() < until {
            let actions = self.units.tick(self.now());
            self.act(actions);
            return;
        }
        // Files on /data have to be closed before it can be unmounted.
        self.logs.clear();
        self.own = None;
        shutdown::finish(end);
        console("the kernel refuses to end the machine");
        self.ending = Some((end, self.now() + shutdown::SERVICES));
        std::thread::sleep(Duration::from_secs(1));
    }
}
