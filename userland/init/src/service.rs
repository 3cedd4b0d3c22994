//! What a service is: one small file, `/etc/svc/NAME` in the image or `/data/svc/NAME` on the data disk, which wins.
//!
//! A line is `key = value`; `#` begins a comment line. A command is split at blanks as a shell would, with '…', "…" and
//! backslashes, and nothing else of a shell's: who wants more writes `exec = /bin/sh -c '…'`. Every error names the line.

use std::fmt;
use std::time::Duration;

/// When a service that has ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// However it ended.
    Always,
    /// When it ended with another status than 0, or by a signal.
    OnFailure,
    /// Not.
    Never,
}

/// What a service's end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It runs for as long as the machine does.
    Daemon,
    /// It does its work once; with status 0 it is done and counts as up for those that come after it.
    Oneshot,
}

/// What makes a running daemon one that others can build on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// That it runs.
    Started,
    /// That its health check has passed once.
    Health,
    /// That it says so itself, as sd_notify(3) describes: `READY=1` to the socket that NOTIFY_SOCKET names.
    Notify,
}

/// The signal that asks a service to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM.
    Term,
    /// SIGHUP: what a shell takes for the end of its terminal.
    Hup,
    /// SIGINT.
    Int,
    /// SIGQUIT: what some servers finish their work on.
    Quit,
}

/// A command to be run, in words.
pub type Words = Vec<String>;

/// One service as its file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The file's name.
    pub name: String,
    /// The command.
    pub exec: Words,
    /// Whose process it is: `user` or `user:group`; root if empty.
    pub user: String,
    /// Names of services that must be up first.
    pub after: Vec<String>,
    /// When it is started again.
    pub restart: Restart,
    /// What its end means.
    pub kind: Kind,
    /// Variables on top of PATH, HOME and LANG.
    pub env: Vec<(String, String)>,
    /// Where it runs; `/` if empty.
    pub directory: String,
    /// A command that ends with 0 while the service is well.
    pub health: Words,
    /// How often that is asked.
    pub health_every: Duration,
    /// What asks it to end.
    pub stop_signal: StopSignal,
    /// How long after that comes SIGKILL.
    pub stop_timeout: Duration,
    /// It is left out where this file does not exist.
    pub if_exists: String,
    /// What it is waited for before those that come after it are started.
    pub ready: Ready,
    /// Who is not ready by then is restarted.
    pub ready_timeout: Duration,
    /// A directory of its own, made if it is not there, given to its user, closed to others.
    pub state_directory: String,
    /// The bound of its open files (`RLIMIT_NOFILE`).
    pub open_files: Option<u64>,
    /// The bound of its address space in bytes (`RLIMIT_AS`).
    pub memory: Option<u64>,
    /// The bound of its user's processes and threads (`RLIMIT_NPROC`).
    pub processes: Option<u64>,
    /// Its output goes to the console instead of a log.
    pub console: bool,
    /// It is started at boot.
    pub enabled: bool,
}

/// What is wrong with a service file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Line number from 1, or 0 for the file as a whole.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { f.write_str(&self.what) } else { write!(f, "line {}: {}", self.line, self.what) }
    }
}

/// The longest service file that is read, in bytes.
pub const LONGEST: usize = 16 << 10;

/// Whether `name` may name a service: it becomes part of file names.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    !name.is_empty() && name.len() <= 48 && !name.starts_with('.') && name.chars().all(plain)
}

impl Service {
    /// A service that runs `exec`, with every setting at its default.
    pub fn new(name: &str, exec: Words) -> Self {
        Self {
            name: name.to_owned(),
            exec,
            user: String::new(),
            after: Vec::new(),
            restart: Restart::Always,
            kind: Kind::Daemon,
            env: Vec::new(),
            directory: String::new(),
            health: Vec::new(),
            health_every: Duration::from_secs(10),
            stop_signal: StopSignal::Term,
            stop_timeout: Duration::from_secs(5),
            if_exists: String::new(),
            ready: Ready::Started,
            ready_timeout: Duration::from_secs(60),
            state_directory: String::new(),
            open_files: None,
            memory: None,
            processes: None,
            console: false,
            enabled: true,
        }
    }

    /// Read the file `text` of the service `name`.
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        if !is_name(name) {
            return Err(Error {
                line: 0,
                what: "the file's name is not one for a service (letters, digits, - _ . @)".into(),
            });
        }
        if text.len() > LONGEST {
            return Err(Error { line: 0, what: format!("longer than {LONGEST} bytes") });
        }
        let mut service = Self::new(name, Vec::new());
        let mut seen: Vec<&str> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let wrong = |what: String| Error { line: index + 1, what };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                return Err(wrong(format!("{line:?} is not of the form `key = value`")));
            };
            let (key, value) = (key.trim(), value.trim());
            if key != "env" && seen.contains(&key) {
                return Err(wrong(format!("`{key}` is set a second time")));
            }
            seen.push(key);
            service.set(key, value).map_err(wrong)?;
        }
        if service.exec.is_empty() {
            return Err(Error { line: 0, what: "there is no `exec = COMMAND`".into() });
        }
        if service.after.contains(&service.name) {
            return Err(Error { line: 0, what: "it is to start after itself".into() });
        }
        if service.kind == Kind::Oneshot && !seen.contains(&"restart") {
            service.restart = Restart::OnFailure;
        }
        if service.ready == Ready::Health && service.health.is_empty() {
            return Err(Error { line: 0, what: "`ready = health` takes a `health = COMMAND`".into() });
        }
        // Who says how its health is found is not up before that was found.
        if !service.health.is_empty() && !seen.contains(&"ready") {
            service.ready = Ready::Health;
        }
        Ok(service)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "exec" => self.exec = command(value)?,
            "user" => value.clone_into(&mut self.user),
            "after" => {
                self.after = value.split([' ', ',', '\t']).filter(|w| !w.is_empty()).map(str::to_owned).collect();
            }
            "restart" => {
                self.restart = one_of(
                    value,
                    &[("always", Restart::Always), ("on-failure", Restart::OnFailure), ("never", Restart::Never)],
                )?;
            }
            "type" => self.kind = one_of(value, &[("daemon", Kind::Daemon), ("oneshot", Kind::Oneshot)])?,
            "env" => {
                let (name, text) = value.split_once('=').ok_or("`env` takes NAME=VALUE")?;
                if name.is_empty() || name.contains(char::is_whitespace) {
                    return Err(format!("{name:?} is no name of a variable"));
                }
                self.env.push((name.to_owned(), text.to_owned()));
            }
            "directory" => self.directory = absolute(value)?,
            "health" => self.health = command(value)?,
            "health-every" => self.health_every = duration(value)?,
            "stop-signal" => {
                use StopSignal::{Hup, Int, Quit, Term};
                self.stop_signal = one_of(value, &[("TERM", Term), ("HUP", Hup), ("INT", Int), ("QUIT", Quit)])?;
            }
            "stop-timeout" => self.stop_timeout = duration(value)?,
            "if-exists" => self.if_exists = absolute(value)?,
            "ready" => {
                use Ready::{Health, Notify, Started};
                self.ready = one_of(value, &[("started", Started), ("health", Health), ("notify", Notify)])?;
            }
            "ready-timeout" => self.ready_timeout = duration(value)?,
            "state-directory" => self.state_directory = absolute(value)?,
            "open-files" => self.open_files = Some(number(value, "files")?),
            "processes" => self.processes = Some(number(value, "processes")?),
            "memory" => self.memory = Some(bytes(value)?),
            "console" => self.console = one_of(value, &[("yes", true), ("no", false)])?,
            "enabled" => self.enabled = one_of(value, &[("yes", true), ("no", false)])?,
            _ => return Err(format!("there is no setting `{key}`")),
        }
        Ok(())
    }
}

fn one_of<T: Copy>(value: &str, choices: &[(&str, T)]) -> Result<T, String> {
    choices.iter().find(|(name, _)| *name == value).map(|(_, v)| *v).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        format!("{value:?} is none of {}", names.join(", "))
    })
}

fn absolute(value: &str) -> Result<String, String> {
    if value.starts_with('/') { Ok(value.to_owned()) } else { Err(format!("{value:?} is not an absolute path")) }
}

fn command(value: &str) -> Result<Words, String> {
    let words = split(value)?;
    match words.first() {
        Some(program) if program.starts_with('/') => Ok(words),
        Some(program) => Err(format!("the program {program:?} is not an absolute path")),
        None => Err("the command is empty".into()),
    }
}

fn number(value: &str, of: &str) -> Result<u64, String> {
    value.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("{value:?} is not a number of {of}"))
}

/// An amount of memory: `64M`, `1G`, bytes without a letter.
fn bytes(value: &str) -> Result<u64, String> {
    let wrong = || format!("{value:?} is not an amount of memory such as 512K, 64M or 1G");
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let shift = match unit.trim() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(1 << shift)).ok_or_else(wrong)
}

/// A time: `500ms`, `10s`, `5m`; at most a day, and not nothing.
pub fn duration(value: &str) -> Result<Duration, String> {
    let wrong = || format!("{value:?} is not a time such as 500ms, 10s or 5m");
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let factor = match unit.trim() {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let ms = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)?;
    if (1..=86_400_000).contains(&ms) { Ok(Duration::from_millis(ms)) } else { Err(wrong()) }
}

/// Split a command line into words as the shell does, quotes and backslashes included, expansions not.
pub fn split(line: &str) -> Result<Words, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => {
                let text = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => text.push(c),
                        None => return Err("a ' is not closed".into()),
                    }
                }
            }
            '"' => {
                let text = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\' | '$' | '`')) => text.push(c),
                            Some(c) => text.extend(['\\', c]),
                            None => return Err("a \" is not closed".into()),
                        },
                        Some(c) => text.push(c),
                        None => return Err("a \" is not closed".into()),
                    }
                }
            }
            '\\' => {
                let c = chars.next().ok_or("a \\ stands at the end")?;
                word.get_or_insert_default().push(c);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Service::parse("x", text).map_or_else(|e| e.to_string(), |s| format!("accepted: {s:?}"))
    }

    #[test]
    fn a_whole_file() {
        let text = "# the application\nexec = /data/app/run --listen '127.0.0.1:8000' \"a b\"\nuser = www:www\nafter = network, data\n\
                    restart=on-failure\nenv = A=b=c\nenv = D=\nhealth = /bin/true\nhealth-every = 500ms\nstop-timeout = 2m\nopen-files = 9000\n\
                    memory = 64M\nprocesses = 20\nready-timeout = 3s\nstate-directory = /data/app\n";
        let s = Service::parse("app", text).expect("it is right");
        assert_eq!(s.exec, ["/data/app/run", "--listen", "127.0.0.1:8000", "a b"]);
        assert_eq!((s.user.as_str(), s.after.as_slice()), ("www:www", &["network".to_owned(), "data".to_owned()][..]));
        assert_eq!(s.env, [("A".into(), "b=c".into()), ("D".into(), String::new())]);
        assert_eq!((s.restart, s.kind, s.open_files), (Restart::OnFailure, Kind::Daemon, Some(9000)));
        assert_eq!((s.memory, s.processes, s.ready), (Some(64 << 20), Some(20), Ready::Health));
        assert_eq!((s.ready_timeout, s.state_directory.as_str()), (Duration::from_secs(3), "/data/app"));
        assert_eq!((s.health_every, s.stop_timeout), (Duration::from_millis(500), Duration::from_secs(120)));
    }

    #[test]
    fn defaults_follow_the_kind() {
        let daemon = Service::parse("d", "exec = /bin/d").expect("it is right");
        assert_eq!((daemon.restart, daemon.enabled), (Restart::Always, true));
        let once = Service::parse("o", "exec = /bin/o\ntype = oneshot").expect("it is right");
        assert_eq!(once.restart, Restart::OnFailure);
    }

    #[test]
    fn errors_say_where_and_what() {
        assert_eq!(error(""), "there is no `exec = COMMAND`");
        assert_eq!(error("exec = /a\n\nexec = /b"), "line 3: `exec` is set a second time");
        assert_eq!(error("exec = run"), "line 1: the program \"run\" is not an absolute path");
        assert_eq!(error("# c\nhello"), "line 2: \"hello\" is not of the form `key = value`");
        assert_eq!(error("exec = /a\nrestrat = always"), "line 2: there is no setting `restrat`");
        assert_eq!(
            error("exec = /a\nrestart = sometimes"),
            "line 2: \"sometimes\" is none of always, on-failure, never"
        );
        assert_eq!(error("exec = /a 'b"), "line 1: a ' is not closed");
        assert_eq!(error("exec = /a\nhealth-every = 0"), "line 2: \"0\" is not a time such as 500ms, 10s or 5m");
        assert_eq!(error("exec = /a\nafter = x"), "it is to start after itself");
        assert_eq!(error("exec = /a\nenv = AB"), "line 2: `env` takes NAME=VALUE");
        assert_eq!(
            error("exec = /a\nmemory = 1T"),
            "line 2: \"1T\" is not an amount of memory such as 512K, 64M or 1G"
        );
        assert_eq!(error("exec = /a\nopen-files = 0"), "line 2: \"0\" is not a number of files");
        assert_eq!(error("exec = /a\nready = health"), "`ready = health` takes a `health = COMMAND`");
        assert!(Service::parse("../x", "exec = /a").is_err());
        assert!(Service::parse("x", &"#".repeat(LONGEST + 1)).is_err());
    }

    #[test]
    fn words_are_split_as_a_shell_does() {
        let ok = |s: &str| split(s).expect("it is right");
        assert_eq!(ok("  a\tb  "), ["a", "b"]);
        assert_eq!(ok(r#"a'b c'd "e\"f\n" '' \ g"#), ["ab cd", "e\"f\\n", "", " g"]);
        assert!(split("a\\").is_err());
        assert!(split("\"a").is_err());
    }
}
