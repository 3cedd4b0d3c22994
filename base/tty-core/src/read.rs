//! Reading: what a program gets, and when.
//!
//! *Canonical:* a read waits for a line and returns at most the rest of that one line; an end of file at the start of a
//! line gives 0 bytes, one right behind the bytes that fill the buffer is swallowed with them. *Raw* (termios(3), `MIN`
//! and `TIME`): with `MIN > 0` a read waits for that many bytes, or what was asked if less; `TIME > 0` (tenths of a
//! second) ends it when the gap after a byte is longer. With `MIN = 0` it takes what is there, waiting up to `TIME` for
//! the first byte. `MIN` and `TIME` count as they were when the read began, the mode as it is at each step.
//!
//! A read is a [`ReadRequest`] stepped under the tty's lock; between steps the caller copies to user memory or sleeps.
//! Readers of one tty must take turns for whole requests (a sleeping lock), lest they share out a line's bytes.

use crate::termios::ControlChar;
use crate::{DISABLED, INPUT_CAPACITY, LineDiscipline};

/// Nanoseconds in a tenth of a second, the unit of `VTIME`.
const TENTH_NS: u64 = 100_000_000;

/// What to do next for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStep {
    /// So many bytes (perhaps 0) were put into the buffer: hand them on, then step again.
    Copied(usize),
    /// The read is over; its result is [`ReadRequest::copied`].
    Done,
    /// Nothing to read yet. If bytes were copied and the file is non-blocking or a signal is pending, the read is over;
    /// if none were, it fails with `EAGAIN` or is interrupted. Else sleep until
    /// [`Events::READABLE`](crate::Events::READABLE), at most until `deadline`, and step again.
    Wait {
        /// Nanoseconds on the clock given to [`ReadRequest::step`]; `None` is for ever.
        deadline: Option<u64>,
    },
}

/// A read in progress.
#[derive(Clone, Copy, Debug)]
pub struct ReadRequest {
    requested: usize,
    copied: usize,
    minimum: usize,
    /// Longest gap between bytes; 0 is none.
    gap_ns: u64,
    deadline: Option<u64>,
    hang_ups: u32,
    done: bool,
}

impl ReadRequest {
    /// Begins a read of `requested` bytes at `now` nanoseconds on any monotonic clock.
    pub fn new(tty: &LineDiscipline, requested: usize, now: u64) -> Self {
        let min = usize::from(tty.termios.char(ControlChar::Min));
        let time_ns = u64::from(tty.termios.char(ControlChar::Time)) * TENTH_NS;
        let (minimum, gap_ns, deadline) = match (tty.is_canonical(), min) {
            (true, _) => (0, 0, None),
            (false, 0) => (1, 0, Some(now.saturating_add(time_ns))),
            (false, _) => (min, time_ns, None),
        };
        ReadRequest {
            requested,
            copied: 0,
            minimum: minimum.min(requested),
            gap_ns,
            deadline,
            hang_ups: tty.hang_ups(),
            done: requested == 0,
        }
    }

    /// Bytes copied so far.
    pub fn copied(&self) -> usize {
        self.copied
    }

    /// Goes on with the read, copying into `chunk`, which is not empty and stands for the next part of the program's
    /// buffer.
    pub fn step(&mut self, tty: &mut LineDiscipline, chunk: &mut [u8], now: u64) -> ReadStep {
        if self.done || self.hang_ups != tty.hang_ups() {
            return ReadStep::Done;
        }
        if !tty.input_available() {
            return match self.deadline {
                Some(deadline) if now >= deadline => ReadStep::Done,
                // Part of a line was copied and the rest flushed since.
                None if self.minimum == 0 && self.copied > 0 => ReadStep::Done,
                deadline => ReadStep::Wait { deadline },
            };
        }
        let left = self.requested - self.copied;
        let chunk_len = chunk.len().min(left);
        let chunk = &mut chunk[..chunk_len];
        let n = if tty.is_canonical() {
            let (n, ended) = tty.take_line(chunk, chunk_len == left);
            self.done = ended;
            n
        } else {
            let n = tty.take_raw(chunk);
            self.done = self.copied + n >= self.minimum && !tty.input_available();
            if self.gap_ns != 0 {
                self.deadline = Some(now.saturating_add(self.gap_ns));
            }
            n
        };
        self.copied += n;
        self.done |= self.copied == self.requested;
        ReadStep::Copied(n)
    }
}

impl LineDiscipline {
    /// Whether a read would find something: a complete line, or in raw mode any byte.
    pub fn input_available(&self) -> bool {
        let end = if self.is_canonical() { self.canon } else { self.head };
        end != self.tail
    }

    /// Whether poll calls it readable: as [`LineDiscipline::input_available`], but in raw mode without `TIME` only from
    /// `MIN` bytes on.
    pub fn poll_readable(&self) -> bool {
        if self.is_canonical() {
            return self.input_available();
        }
        let min = usize::from(self.termios.char(ControlChar::Min));
        let timed = self.termios.char(ControlChar::Time) != 0;
        self.used() >= if timed { 1 } else { min.max(1) }
    }

    /// Bytes that can be read now, `TIOCINQ` (`FIONREAD`); ends of file do not count.
    pub fn inq(&self) -> usize {
        if !self.is_canonical() {
            return self.used();
        }
        let mut count = 0;
        let mut at = self.tail;
        while at != self.canon {
            count += usize::from(!self.is_eof(at));
            at = at.wrapping_add(1);
        }
        count
    }

    /// Whether the byte at `index` is an end of file.
    fn is_eof(&self, index: usize) -> bool {
        self.byte_at(index) == DISABLED && self.is_marked(index) && self.pushed != Some(index)
    }

    fn take_raw(&mut self, dst: &mut [u8]) -> usize {
        let n = dst.len().min(self.used());
        self.peek(&mut dst[..n]);
        self.tail = self.tail.wrapping_add(n);
        // No lines here: they begin where the unread bytes do.
        self.canon = self.tail;
        n
    }

    /// Takes from the first line as much as fits into `dst`; also says whether the read ends with it. `last`: nothing
    /// follows `dst` in the program's buffer.
    fn take_line(&mut self, dst: &mut [u8], last: bool) -> (usize, bool) {
        let limit = dst.len().min(self.canon.wrapping_sub(self.tail));
        let end = (0..limit).find(|&i| self.is_marked(self.tail.wrapping_add(i)));
        let Some(end) = end else {
            self.peek(&mut dst[..limit]);
            self.tail = self.tail.wrapping_add(limit);
            if last && self.tail != self.canon && self.is_eof(self.tail) {
                self.take_mark();
            }
            return (limit, last);
        };
        let n = end + usize::from(!self.is_eof(self.tail.wrapping_add(end)));
        self.peek(&mut dst[..n]);
        self.tail = self.tail.wrapping_add(end);
        self.take_mark();
        (n, true)
    }

    /// Steps over the marked byte at `tail`.
    fn take_mark(&mut self) {
        self.clear_mark(self.tail);
        self.tail = self.tail.wrapping_add(1);
        self.pushed = None;
    }

    /// Input bytes held, readable or still being edited; at most the buffer's capacity.
    pub fn input_held(&self) -> usize {
        debug_assert!(self.used() <= INPUT_CAPACITY);
        self.used()
    }
}
