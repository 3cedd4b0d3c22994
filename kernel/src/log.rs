//! The kernel's log: a ring in memory that `dmesg` and /dev/kmsg read, and the console.
//!
//! Each line carries the time since boot and a level. Lines of level 4 (warning) and up go to the console always, others
//! unless `quiet` was given. Ownership: the ring under one interrupt-safe lock, the last but one in the order; any
//! context may log.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};
use sync::{IrqLock, LockClass};

const SIZE: usize = 64 * 1024;
const LINE: usize = 512;

static CLASS: LockClass = LockClass::new("log", sync::rank::LOG);
static RING: IrqLock<Ring> = IrqLock::new(&CLASS, Ring { bytes: [0; SIZE], end: 0 });
/// Lines with a level below this go to the console.
static CONSOLE_LEVEL: AtomicU8 = AtomicU8::new(7);

struct Ring {
    bytes: [u8; SIZE],
    /// How many bytes were ever written.
    end: u64,
}

/// Severity, as syslog(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// An error.
    Error = 3,
    /// A warning.
    Warning = 4,
    /// Normal but significant.
    Notice = 5,
    /// Information.
    Info = 6,
}

/// Sets which lines reach the console (`quiet` is 4, `loglevel=N`).
pub fn set_console_level(level: u8) {
    CONSOLE_LEVEL.store(level, Ordering::Relaxed);
}

/// A line being built; what does not fit is cut.
struct Line {
    bytes: [u8; LINE],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let n = s.len().min(LINE - 2 - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// Adds a line. Use the macros.
pub fn line(level: Level, args: fmt::Arguments<'_>) {
    let now = crate::arch::time::now_ns();
    let mut line = Line { bytes: [0; LINE], len: 0 };
    let _ = write!(line, "<{}>[{:5}.{:06}] ", level as u8, now / 1_000_000_000, now / 1000 % 1_000_000);
    let _ = line.write_fmt(args);
    line.bytes[line.len] = b'\n';
    line.len += 1;
    let mut ring = RING.lock();
    for &b in &line.bytes[..line.len] {
        let at = (ring.end % SIZE as u64) as usize;
        ring.bytes[at] = b;
        ring.end += 1;
    }
    if (level as u8) < CONSOLE_LEVEL.load(Ordering::Relaxed) {
        line.bytes[line.len - 1] = b'\r';
        line.bytes[line.len] = b'\n';
        crate::drivers::pl011::write_bytes(&line.bytes[3..=line.len]);
    }
}

/// Copies log text from position `from` (or the oldest kept) into `buf`; returns the position after it and the count.
pub fn read(from: u64, buf: &mut [u8]) -> (u64, usize) {
    let ring = RING.lock();
    let start = from.max(ring.end.saturating_sub(SIZE as u64));
    let n = ((ring.end - start) as usize).min(buf.len());
    for (i, b) in buf[..n].iter_mut().enumerate() {
        *b = ring.bytes[((start + i as u64) % SIZE as u64) as usize];
    }
    (start + n as u64, n)
}

/// Logs at level information.
#[macro_export]
macro_rules! info {
    ($($arg:tt)*) => { $crate::log::line($crate::log::Level::Info, format_args!($($arg)*)) };
}
/// Logs at level notice.
#[macro_export]
macro_rules! notice {
    ($($arg:tt)*) => { $crate::log::line($crate::log::Level::Notice, format_args!($($arg)*)) };
}
/// Logs at level warning.
#[macro_export]
macro_rules! warn {
    ($($arg:tt)*) => { $crate::log::line($crate::log::Level::Warning, format_args!($($arg)*)) };
}
/// Logs at level error.
#[macro_export]
macro_rules! error {
    ($($arg:tt)*) => { $crate::log::line($crate::log::Level::Error, format_args!($($arg)*)) };
}
