//! The machine's serial console as a growing text that one can wait on.
//!
//! A thread copies what the emulator prints into one buffer and into a log file, and notes when each piece came. Waiting
//! is on events, never on sleeps: `expect` returns at the first byte that completes its pattern, or says after its limit
//! what was missing. Each `expect` searches from where the last one ended, so evidence comes in order.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Texts that must never appear on a console: each is the kernel saying that it is broken.
pub const FORBIDDEN: &[&str] = &[
    "panicked at",
    "kernel panic",
    "Kernel panic",
    "KERNEL PANIC",
    "BUG:",
    "lock order violation",
    "sleeping in atomic context",
    "Unable to handle kernel",
];

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// (length of `bytes` after the piece, when it came)
    arrivals: Vec<(usize, Instant)>,
    closed: bool,
}

/// Why a wait ended without its pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The limit passed.
    Late,
    /// The machine ended, so it can never come.
    Closed,
    /// A forbidden text came first.
    Forbidden(String),
}

/// One end of the console; clones share it.
#[derive(Clone)]
pub struct Console {
    shared: Arc<(Mutex<State>, Condvar)>,
    cursor: usize,
    forbid: bool,
}

impl Console {
    /// Start copying `source` into the buffer and into `log`.
    pub fn start(mut source: impl Read + Send + 'static, log: &Path) -> std::io::Result<Self> {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let mut log = File::create(log)?;
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let n = source.read(&mut chunk).unwrap_or(0);
                let mut state = lock(&theirs.0);
                if n == 0 {
                    state.closed = true;
                    theirs.1.notify_all();
                    return;
                }
                state.bytes.extend_from_slice(&chunk[..n]);
                let length = state.bytes.len();
                state.arrivals.push((length, Instant::now()));
                theirs.1.notify_all();
                drop(state);
                // A full disk must not stop the machine: the buffer has it all.
                let _ = log.write_all(&chunk[..n]);
            }
        });
        Ok(Self { shared, cursor: 0, forbid: true })
    }

    /// Whether forbidden texts end a wait at once (the default). Off for cases that break the kernel on purpose.
    pub fn forbid(&mut self, on: bool) {
        self.forbid = on;
    }

    /// Wait until `find` sees what it looks for in what came since the last wait: it returns the range of its match.
    /// The text before the match is returned with the match, and the next wait starts behind it.
    pub fn wait_for(
        &mut self,
        limit: Duration,
        find: impl Fn(&[u8]) -> Option<(usize, usize)>,
    ) -> Result<Seen, Missing> {
        let end = Instant::now() + limit;
        let mut state = lock(&self.shared.0);
        loop {
            let fresh = state.bytes.get(self.cursor..).unwrap_or(&[]);
            if let Some((from, to)) = find(fresh) {
                let seen = Seen { before: text(&fresh[..from]), at: arrival(&state.arrivals, self.cursor + to) };
                self.cursor += to;
                return Ok(seen);
            }
            if self.forbid
                && let Some(word) = forbidden(&state.bytes)
            {
                return Err(Missing::Forbidden(word.to_owned()));
            }
            if state.closed {
                return Err(Missing::Closed);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Missing::Late);
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wait for the text `needle`.
    pub fn expect(&mut self, needle: &str, limit: Duration) -> Result<Seen, Missing> {
        let needle = needle.as_bytes();
        self.wait_for(limit, |fresh| find(fresh, needle).map(|at| (at, at + needle.len())))
    }

    /// Wait until the machine has closed the console, or the limit passes; true if it closed.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut state = lock(&self.shared.0);
        while !state.closed {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Everything so far.
    pub fn all(&self) -> String {
        text(&lock(&self.shared.0).bytes)
    }

    /// The forbidden text on the console, if any.
    pub fn forbidden(&self) -> Option<String> {
        if !self.forbid {
            return None;
        }
        forbidden(&lock(&self.shared.0).bytes).map(str::to_owned)
    }

    /// The last `lines` lines.
    pub fn tail(&self, lines: usize) -> String {
        let all = self.all();
        let all = all.trim_end();
        let from = all.rmatch_indices('\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
        all[from..].to_owned()
    }
}

/// What a wait found.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What came between the last match and this one.
    pub before: String,
    /// When the match's last byte came.
    pub at: Instant,
}

fn lock(m: &Mutex<State>) -> MutexGuard<'_, State> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}

fn arrival(arrivals: &[(usize, Instant)], length: usize) -> Instant {
    let at = arrivals.partition_point(|(upto, _)| *upto < length);
    arrivals.get(at).map_or_else(Instant::now, |a| a.1)
}

fn forbidden(bytes: &[u8]) -> Option<&'static str> {
    FORBIDDEN.iter().find(|w| find(bytes, w.as_bytes()).is_some()).copied()
}

/// Where `needle` first is in `hay`.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(0);
    }
    hay.windows(needle.len()).position(|w| w == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn console(text: &'static str) -> Console {
        let log = std::env::temp_dir().join(format!("berth-console-{}-{:p}", std::process::id(), text));
        let c = Console::start(Cursor::new(text.as_bytes()), &log).expect("a log file");
        let _ = std::fs::remove_file(log);
        c
    }
    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn evidence_comes_in_order() {
        let mut c = console("one two one three");
        assert_eq!(c.expect("two", SOON).expect("seen").before, "one ");
        assert_eq!(c.expect("three", SOON).expect("seen").before, " one ");
        assert_eq!(c.expect("one", SOON).err(), Some(Missing::Closed));
    }

    #[test]
    fn a_panic_ends_the_wait() {
        let mut c = console("boot\nkernel panic: no\n");
        assert_eq!(c.expect("prompt", SOON).err(), Some(Missing::Forbidden("kernel panic".into())));
        c.forbid(false);
        assert_eq!(c.expect("prompt", SOON).err(), Some(Missing::Closed));
    }

    #[test]
    fn tails_are_whole_lines() {
        let c = console("a\nb\nc\nd\n");
        assert!(c.wait_closed(SOON));
        assert_eq!(c.tail(2), "c\nd");
        assert_eq!(c.tail(9), "a\nb\nc\nd");
    }
}
