//! The access log: one line an answer, written in batches by a thread of its own.
//!
//! Requests append to a buffer in memory; the thread is woken when the first line comes into an empty buffer, waits a moment
//! for company and writes all of it at once. A file that is too slow costs lines (counted), never requests or memory. After a
//! SIGHUP the file is opened anew, so that it can be rotated. Paths are logged without their query, which may hold secrets.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::metrics::{COUNTERS, count};
use crate::privilege::User;

/// What may wait to be written.
const ROOM: usize = 1 << 20;
/// How long lines wait for company.
const GATHER: Duration = Duration::from_millis(200);

struct State {
    target: Target,
    lines: Vec<u8>,
}

enum Target {
    None,
    Stdout,
    File(String, File),
}

static STATE: Mutex<State> = Mutex::new(State { target: Target::None, lines: Vec::new() });
static FIRST: Condvar = Condvar::new();
// Taken while writing, so that flush waits for a batch under way.
static WRITING: Mutex<()> = Mutex::new(());

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_file(path: &str) -> Result<File, String> {
    OpenOptions::new().create(true).append(true).open(path).map_err(|e| format!("log = {path:?}: {e}"))
}

/// Opens `target`: a file, `-` or nothing. The file is given to `owner`, so that it can be opened again later.
pub fn open(target: &str, owner: Option<User>) -> Result<(), String> {
    state().target = match target {
        "" => Target::None,
        "-" => Target::Stdout,
        path => {
            let file = open_file(path)?;
            if let Some(user) = owner {
                std::os::unix::fs::fchown(&file, Some(user.uid), Some(user.gid))
                    .map_err(|e| format!("log = {path:?}: {e}"))?;
            }
            Target::File(path.to_owned(), file)
        }
    };
    Ok(())
}

/// Begins to log to what was opened. The thread that does it comes into being here, as the user who serves.
pub fn start() -> Result<(), String> {
    if !enabled() {
        return Ok(());
    }
    std::thread::Builder::new()
        .name("log".into())
        .stack_size(64 * 1024)
        .spawn(|| {
            loop {
                let mut s = state();
                while s.lines.is_empty() {
                    s = FIRST.wait(s).unwrap_or_else(PoisonError::into_inner);
                }
                drop(s);
                std::thread::sleep(GATHER);
                flush();
            }
        })
        .map(drop)
        .map_err(|e| format!("cannot start the log's thread: {e}"))
}

/// Opens the file anew; the old one stays if that fails.
pub fn reopen() {
    flush();
    let mut s = state();
    if let Target::File(path, _) = &s.target {
        let path = path.clone();
        match open_file(&path) {
            Ok(file) => s.target = Target::File(path, file),
            Err(why) => eprintln!("httpd: {why}"),
        }
    }
}

/// Appends a line, which ends with a newline.
pub fn line(text: &[u8]) {
    let mut s = state();
    if matches!(s.target, Target::None) {
        return;
    }
    if s.lines.len() + text.len() > ROOM {
        count(&COUNTERS.log_dropped);
        return;
    }
    let first = s.lines.is_empty();
    s.lines.extend_from_slice(text);
    drop(s);
    if first {
        FIRST.notify_one();
    }
}

/// Is anything logged at all?
pub fn enabled() -> bool {
    !matches!(state().target, Target::None)
}

/// Writes what waits.
pub fn flush() {
    let writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut s = state();
    let lines = std::mem::take(&mut s.lines);
    let file = match &s.target {
        Target::None => return,
        Target::Stdout => None,
        Target::File(_, file) => file.try_clone().ok(),
    };
    drop(s);
    // A full disk costs lines of the log.
    let _ = match file {
        Some(mut file) => file.write_all(&lines),
        None => std::io::stdout().write_all(&lines),
    };
    drop(writing);
}
