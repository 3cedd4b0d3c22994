//! The output of services: lines with the time, in a file of bounded size for each, with one older file beside it.
//!
//! A service writes to a named pipe that this process holds too, so that neither its own end nor a new process image of
//! process 1 makes a service's write fail; what is written meanwhile waits in the pipe. A log never stops its service: a
//! line that cannot be stored (disk full) is counted and lost, and the first good line afterwards says how many were.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

/// The most that one file holds; with the older one beside it, a service keeps at most twice this.
pub const LIMIT: u64 = 1 << 20;
/// A longer line is cut into pieces.
const LONGEST_LINE: usize = 4096;
/// How much is taken from one service in one turn, so that a talkative one does not keep the others waiting.
const TURN: usize = 64 << 10;

/// The log of one service.
#[derive(Debug)]
pub struct Log {
    /// This process' end of the pipe.
    pub pipe: File,
    pipe_path: PathBuf,
    path: PathBuf,
    file: Option<File>,
    size: u64,
    partial: Vec<u8>,
    lost: u64,
}

impl Log {
    /// Open the log of `name` in `dir`, with its pipe in `pipes`.
    pub fn open(name: &str, dir: &Path, pipes: &Path) -> std::io::Result<Self> {
        let pipe_path = pipes.join(format!("{name}.pipe"));
        match mknodat(CWD, &pipe_path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let pipe = both_ends(&pipe_path, OFlags::NONBLOCK)?;
        Ok(Self {
            pipe,
            pipe_path,
            path: dir.join(format!("{name}.log")),
            file: None,
            size: 0,
            partial: Vec::new(),
            lost: 0,
        })
    }

    /// What the service writes to.
    pub fn for_service(&self) -> std::io::Result<File> {
        both_ends(&self.pipe_path, OFlags::empty())
    }

    /// Take what has been written.
    pub fn pump(&mut self) {
        let mut buffer = vec![0; TURN];
        if let Ok(n) = self.pipe.read(&mut buffer) {
            let fresh = buffer.get(..n).unwrap_or_default().to_vec();
            self.take(&fresh);
        }
    }

    fn take(&mut self, mut fresh: &[u8]) {
        let mut out = Vec::with_capacity(fresh.len() + 64);
        let stamp = stamp(SystemTime::now());
        while !fresh.is_empty() {
            let end = fresh.iter().position(|b| *b == b'\n');
            let (line, rest) = match end {
                Some(at) => (fresh.get(..at).unwrap_or_default(), fresh.get(at + 1..).unwrap_or_default()),
                None => (fresh, &[][..]),
            };
            self.partial.extend_from_slice(line);
            if end.is_some() {
                self.flush_line(&stamp, &mut out);
            }
            while self.partial.len() >= LONGEST_LINE {
                let tail = self.partial.split_off(LONGEST_LINE);
                self.flush_line(&stamp, &mut out);
                self.partial = tail;
            }
            fresh = rest;
        }
        self.store(&out);
    }

    fn flush_line(&mut self, stamp: &str, out: &mut Vec<u8>) {
        let text = self.partial.strip_suffix(b"\r").unwrap_or(&self.partial);
        out.extend_from_slice(stamp.as_bytes());
        out.push(b' ');
        out.extend_from_slice(text);
        out.push(b'\n');
        self.partial.clear();
    }

    /// Add a line of process 1's own.
    pub fn say(&mut self, text: &str) {
        let line = format!("{} {text}\n", stamp(SystemTime::now()));
        self.store(line.as_bytes());
    }

    fn store(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.size + bytes.len() as u64 > LIMIT && self.size > 0 {
            self.file = None;
            let _ = std::fs::rename(&self.path, self.path.with_extension("log.1"));
        }
        if self.try_store(bytes).is_err() {
            self.file = None;
            self.lost += bytes.split(|b| *b == b'\n').count().saturating_sub(1) as u64;
        }
    }

    fn try_store(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
                self.size = file.metadata()?.len();
                self.file.insert(file)
            }
        };
        if self.lost > 0 {
            let note = format!("{} (here {} lines were lost)\n", stamp(SystemTime::now()), self.lost);
            file.write_all(note.as_bytes())?;
            self.size += note.len() as u64;
            self.lost = 0;
        }
        file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }
}

/// A named pipe opened for reading and writing: never an end of file, never a broken pipe.
fn both_ends(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty())?;
    Ok(File::from(fd))
}

/// The time as logs have it: `2026-11-21T14:55:11Z`.
pub fn stamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Days since 1 March of year 0, in the calendar of 400 years (146097 days), with years that begin in March.
    let z = days + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (d, m) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let y = year + era * 400 + u64::from(m <= 2);
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times() {
        let at = |s| stamp(UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_273_511), "2026-11-21T15:05:11Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn lines_are_stored_and_files_bounded() {
        let dir = std::env::temp_dir().join(format!("init-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let mut log = Log::open("x", &dir, &dir).expect("a log");
        let mut out = log.for_service().expect("a pipe");
        out.write_all(b"one\ntw").expect("room");
        log.pump();
        out.write_all(b"o\r\n").expect("room");
        log.pump();
        let text = std::fs::read_to_string(dir.join("x.log")).expect("a file");
        let words: Vec<&str> = text.lines().filter_map(|l| l.split_once(' ')).map(|(_, t)| t).collect();
        assert_eq!(words, ["one", "two"]);
        for _ in 0..LIMIT / 1000 * 3 {
            log.take(&[b'a'; 1000]);
        }
        let sizes = ["x.log", "x.log.1"].map(|f| std::fs::metadata(dir.join(f)).map_or(0, |m| m.len()));
        assert!(sizes.iter().all(|s| *s > 0 && *s <= LIMIT), "{sizes:?}");
        log.pump();
        std::fs::remove_dir_all(&dir).expect("it is there");
    }
}
