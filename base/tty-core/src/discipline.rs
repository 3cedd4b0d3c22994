//! The line discipline's state: the input buffer, settings, flow control, flushing.
//!
//! **Buffer.** Bytes lie in a ring of [`INPUT_CAPACITY`] between `tail` (next to be read) and `head`, both counters that
//! run freely and are reduced modulo the capacity on access. In canonical mode `canon` lies between them: what is before
//! it is complete lines, what is after it is the line being edited. A line's last byte carries a mark in a bitmap; a
//! marked zero byte is an end of file, which is read as nothing. Invariant: `tail <= canon <= head <= tail + capacity`
//! in wrapping arithmetic, and (canonical) `canon == tail` or the byte before `canon` is marked.
//!
//! **Modes.** Only the current settings decide how buffered bytes are read. On a change from canonical to raw, all that
//! was typed becomes readable, ends of file as zero bytes; on a change back, all that was unread becomes one line that
//! ends without a newline (`pushed`). Nothing is lost either way.
//!
//! **Flow control.** Output is stopped while either the terminal (`VSTOP`) or a program (`TCOOFF`) stopped it; only the
//! one that stopped may restart, except that a signal character or turning `IXON` off undoes `VSTOP`.

use crate::output::{Echo, OutputSink};
use crate::ring::zeroed;
use crate::termios::{ControlChar, InputFlags, LocalFlags, Termios};
use crate::{DISABLED, Events};
use abi::{Errno, linux as c};
use alloc::boxed::Box;

/// Bytes of the input buffer: the longest line is one byte less and its terminator.
pub const INPUT_CAPACITY: usize = 4096;

/// What `tcflush` discards (`TCFLSH`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushQueue {
    /// `TCIFLUSH`: input received and not read.
    Input,
    /// `TCOFLUSH`: output written and not sent.
    Output,
    /// `TCIOFLUSH`: both.
    Both,
}

impl FlushQueue {
    /// From the argument of `TCFLSH`; `EINVAL` for others.
    pub fn from_arg(arg: u64) -> Result<Self, Errno> {
        match u32::try_from(arg) {
            Ok(c::TCIFLUSH) => Ok(FlushQueue::Input),
            Ok(c::TCOFLUSH) => Ok(FlushQueue::Output),
            Ok(c::TCIOFLUSH) => Ok(FlushQueue::Both),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// What `tcflow` does (`TCXONC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowAction {
    /// `TCOOFF`: stop output.
    StopOutput,
    /// `TCOON`: restart output.
    StartOutput,
    /// `TCIOFF`: send the stop character to the device.
    SendStop,
    /// `TCION`: send the start character to the device.
    SendStart,
}

impl FlowAction {
    /// From the argument of `TCXONC`; `EINVAL` for others.
    pub fn from_arg(arg: u64) -> Result<Self, Errno> {
        match u32::try_from(arg) {
            Ok(c::TCOOFF) => Ok(FlowAction::StopOutput),
            Ok(c::TCOON) => Ok(FlowAction::StartOutput),
            Ok(c::TCIOFF) => Ok(FlowAction::SendStop),
            Ok(c::TCION) => Ok(FlowAction::SendStart),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// A set of byte values.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ByteSet([u64; 4]);

impl ByteSet {
    fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    pub(crate) fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 != 0
    }
}

/// A terminal's line discipline, `N_TTY`. See the module's theory for its invariants.
#[derive(Debug)]
pub struct LineDiscipline {
    pub(crate) termios: Termios,
    /// Input bytes that need more than echo and storing.
    pub(crate) special: ByteSet,
    /// No input processing at all: bytes go to the buffer as they come.
    pub(crate) raw: bool,
    pub(crate) echo: Echo,
    buffer: Box<[u8]>,
    marks: [u64; INPUT_CAPACITY / 64],
    pub(crate) head: usize,
    pub(crate) canon: usize,
    pub(crate) tail: usize,
    /// Where the mark lies that stands for a change from raw to canonical mode, not for a line's end; always the first.
    pub(crate) pushed: Option<usize>,
    /// The next byte is literal (`VLNEXT` was typed).
    pub(crate) literal: bool,
    /// Between `\` and `/` of hard-copy erasing (`ECHOPRT`).
    pub(crate) erasing: bool,
    stopped_by_char: bool,
    stopped_by_program: bool,
    hang_ups: u32,
}

impl LineDiscipline {
    /// An idle line discipline; `ENOMEM` if there is no memory for its buffers (8 KiB).
    pub fn new(termios: Termios) -> Result<Self, Errno> {
        let mut new = LineDiscipline {
            termios,
            special: ByteSet::default(),
            raw: false,
            echo: Echo::new()?,
            buffer: zeroed(INPUT_CAPACITY)?,
            marks: [0; INPUT_CAPACITY / 64],
            head: 0,
            canon: 0,
            tail: 0,
            pushed: None,
            literal: false,
            erasing: false,
            stopped_by_char: false,
            stopped_by_program: false,
            hang_ups: 0,
        };
        new.classify();
        Ok(new)
    }

    /// The settings.
    pub fn termios(&self) -> &Termios {
        &self.termios
    }

    /// Whether input is read by lines.
    pub fn is_canonical(&self) -> bool {
        self.local(LocalFlags::ICANON)
    }

    pub(crate) fn local(&self, flag: LocalFlags) -> bool {
        self.termios.lflag.contains(flag)
    }

    pub(crate) fn iflag(&self, flag: InputFlags) -> bool {
        self.termios.iflag.contains(flag)
    }

    /// Changes the settings (`TCSETS` and relatives; the caller has drained output or flushed input before where asked).
    ///
    /// Readers and writers are always to be woken: the conditions they wait for may have changed.
    pub fn set_termios(&mut self, new: Termios, out: &mut impl OutputSink) -> Events {
        let old = core::mem::replace(&mut self.termios, new);
        if (old.lflag ^ new.lflag).contains(LocalFlags::ICANON) {
            self.switch_mode();
        }
        self.classify();
        let mut events = Events::READABLE | Events::WRITABLE | Events::INPUT_ROOM;
        if old.iflag.contains(InputFlags::IXON) && !self.iflag(InputFlags::IXON) {
            events |= self.start_by_char(out);
        }
        events
    }

    /// Re-reads buffered input under the other mode.
    fn switch_mode(&mut self) {
        self.marks = [0; INPUT_CAPACITY / 64];
        self.erasing = false;
        self.literal = false;
        self.pushed = None;
        self.canon = self.tail;
        if self.is_canonical() && self.head != self.tail {
            let last = self.head.wrapping_sub(1);
            self.set_mark(last);
            self.pushed = Some(last);
            self.canon = self.head;
        }
    }

    /// Works out from the settings which input bytes are special.
    fn classify(&mut self) {
        use ControlChar as C;
        let inputs = InputFlags::ISTRIP
            | InputFlags::IUCLC
            | InputFlags::IGNCR
            | InputFlags::ICRNL
            | InputFlags::INLCR
            | InputFlags::IXON
            | InputFlags::PARMRK;
        let locals = LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::ECHO;
        self.raw = !self.termios.iflag.intersects(inputs) && !self.termios.lflag.intersects(locals);
        let mut special = ByteSet::default();
        let mut chars = |which: &[C]| {
            for &control in which {
                let byte = self.termios.char(control);
                if byte != DISABLED {
                    special.insert(byte);
                }
            }
        };
        if self.local(LocalFlags::ICANON) {
            chars(&[C::Erase, C::Kill, C::Eof, C::Eol]);
            if self.local(LocalFlags::IEXTEN) {
                chars(&[C::Werase, C::Lnext, C::Eol2]);
                if self.local(LocalFlags::ECHO) {
                    chars(&[C::Reprint]);
                }
            }
        }
        if self.iflag(InputFlags::IXON) {
            chars(&[C::Start, C::Stop]);
        }
        if self.local(LocalFlags::ISIG) {
            chars(&[C::Intr, C::Quit, C::Susp]);
        }
        if self.termios.iflag.intersects(InputFlags::IGNCR | InputFlags::ICRNL) {
            special.insert(b'\r');
        }
        if self.iflag(InputFlags::INLCR) || self.is_canonical() {
            special.insert(b'\n');
        }
        self.special = special;
    }

    // The buffer.

    /// Bytes in the buffer, read or not yet readable.
    pub(crate) fn used(&self) -> usize {
        self.head.wrapping_sub(self.tail)
    }

    pub(crate) fn byte_at(&self, index: usize) -> u8 {
        self.buffer[index % INPUT_CAPACITY]
    }

    fn set_mark(&mut self, index: usize) {
        let bit = index % INPUT_CAPACITY;
        self.marks[bit / 64] |= 1 << (bit % 64);
    }

    pub(crate) fn clear_mark(&mut self, index: usize) {
        let bit = index % INPUT_CAPACITY;
        self.marks[bit / 64] &= !(1 << (bit % 64));
    }

    pub(crate) fn is_marked(&self, index: usize) -> bool {
        let bit = index % INPUT_CAPACITY;
        self.marks[bit / 64] >> (bit % 64) & 1 != 0
    }

    /// Stores a byte; drops it if the buffer is full (only a line being edited can fill it).
    pub(crate) fn store(&mut self, byte: u8) {
        if self.used() < INPUT_CAPACITY {
            self.buffer[self.head % INPUT_CAPACITY] = byte;
            self.head = self.head.wrapping_add(1);
        }
    }

    /// Stores as many bytes as are given and fit, in at most two pieces.
    pub(crate) fn store_all(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(INPUT_CAPACITY - self.used());
        let at = self.head % INPUT_CAPACITY;
        let first = n.min(INPUT_CAPACITY - at);
        self.buffer[at..at + first].copy_from_slice(&bytes[..first]);
        self.buffer[..n - first].copy_from_slice(&bytes[first..n]);
        self.head = self.head.wrapping_add(n);
    }

    /// Copies the bytes from `tail` on into `dst`, which is no longer than what is there.
    pub(crate) fn peek(&self, dst: &mut [u8]) {
        let at = self.tail % INPUT_CAPACITY;
        let first = dst.len().min(INPUT_CAPACITY - at);
        let (start, rest) = dst.split_at_mut(first);
        start.copy_from_slice(&self.buffer[at..at + first]);
        rest.copy_from_slice(&self.buffer[..rest.len()]);
    }

    /// Ends the line being edited with `byte`; a full buffer gives up its last byte for it.
    pub(crate) fn end_line(&mut self, byte: u8) -> Events {
        if self.used() == INPUT_CAPACITY && self.head != self.canon {
            self.head = self.head.wrapping_sub(1);
        }
        self.set_mark(self.head);
        self.store(byte);
        self.canon = self.head;
        Events::READABLE
    }

    /// Forgets all input.
    pub(crate) fn discard_input(&mut self) {
        self.marks = [0; INPUT_CAPACITY / 64];
        self.tail = self.head;
        self.canon = self.head;
        self.pushed = None;
        self.erasing = false;
    }

    // Flow control.

    /// Whether output is stopped. The device must not send while it is.
    pub fn is_stopped(&self) -> bool {
        self.stopped_by_char || self.stopped_by_program
    }

    /// Whether `IXANY` may restart output.
    pub(crate) fn stopped_by_char_only(&self) -> bool {
        self.stopped_by_char && !self.stopped_by_program
    }

    pub(crate) fn stop_by_char(&mut self) -> Events {
        let was = self.is_stopped();
        self.stopped_by_char = true;
        if was { Events::empty() } else { Events::STOPPED }
    }

    /// Undoes `VSTOP`; nothing happens while a program holds output stopped.
    pub(crate) fn start_by_char(&mut self, out: &mut impl OutputSink) -> Events {
        if !self.stopped_by_char_only() {
            return Events::empty();
        }
        self.stopped_by_char = false;
        self.restarted(out)
    }

    fn restarted(&mut self, out: &mut impl OutputSink) -> Events {
        self.flush_echo(out);
        Events::STARTED | Events::WRITABLE
    }

    /// `tcflow`. The caller has checked job control.
    pub fn flow(&mut self, action: FlowAction, out: &mut impl OutputSink) -> Events {
        match action {
            FlowAction::StopOutput if !self.stopped_by_program => {
                let was = self.is_stopped();
                self.stopped_by_program = true;
                if was { Events::empty() } else { Events::STOPPED }
            }
            FlowAction::StartOutput if self.stopped_by_program => {
                self.stopped_by_program = false;
                self.stopped_by_char = false;
                self.restarted(out)
            }
            FlowAction::StopOutput | FlowAction::StartOutput => Events::empty(),
            FlowAction::SendStop => self.send_control(ControlChar::Stop, out),
            FlowAction::SendStart => self.send_control(ControlChar::Start, out),
        }
    }

    /// Sends a flow-control character to the device, past `OPOST` and even while output is stopped.
    fn send_control(&self, which: ControlChar, out: &mut impl OutputSink) -> Events {
        let byte = self.termios.char(which);
        if byte != DISABLED && out.room() > 0 {
            out.push(&[byte]);
        }
        Events::empty()
    }

    // Flushing and hang-up.

    /// `tcflush`. The caller also discards what it queues itself before [`LineDiscipline::input`].
    pub fn flush(&mut self, queue: FlushQueue, out: &mut impl OutputSink) -> Events {
        let mut events = Events::empty();
        if queue != FlushQueue::Output {
            self.discard_input();
            events |= Events::INPUT_FLUSHED | Events::INPUT_ROOM;
        }
        if queue != FlushQueue::Input {
            out.flush();
            events |= Events::OUTPUT_FLUSHED | Events::WRITABLE;
        }
        events
    }

    /// The carrier is gone, or `vhangup`: forgets all input and output, restarts output, ends every read in progress.
    ///
    /// Files that were open (their owner compares [`LineDiscipline::hang_ups`]) read end of file and fail to write with
    /// `EIO` from now on; the terminal itself can be opened anew, with settings `fresh`.
    pub fn hang_up(&mut self, fresh: Termios, out: &mut impl OutputSink) -> Events {
        self.hang_ups = self.hang_ups.wrapping_add(1);
        self.discard_input();
        self.literal = false;
        self.echo.clear();
        out.flush();
        self.stopped_by_char = false;
        self.stopped_by_program = false;
        self.termios = fresh;
        self.classify();
        Events::HANG_UP
            | Events::READABLE
            | Events::WRITABLE
            | Events::STARTED
            | Events::INPUT_ROOM
            | Events::INPUT_FLUSHED
            | Events::OUTPUT_FLUSHED
    }

    /// How often the terminal was hung up; a file whose count at open differs is dead.
    pub fn hang_ups(&self) -> u32 {
        self.hang_ups
    }
}
