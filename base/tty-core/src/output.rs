//! Output post-processing (`OPOST`), echo, and the column they keep track of.
//!
//! Echo goes through the same post-processing as program output, because both move the cursor. It is produced while
//! input is received, when the device may have no room or be stopped; so it first goes into a bounded queue, drained
//! whenever there is room and always before program output. Echo that overflows the queue is lost, as on Linux: input
//! must not block on output, or two terminals facing each other would lock up. It is post-processed when typed, not when
//! sent (Linux), which differs only if `c_oflag` changes while echo waits.

use crate::termios::{LocalFlags, OutputFlags};
use crate::{LineDiscipline, Ring, Termios};
use abi::Errno;

/// Where output goes: a UART's transmit queue or a pty master's read queue.
pub trait OutputSink {
    /// Bytes that [`push`](OutputSink::push) can take now.
    fn room(&self) -> usize;
    /// Queues `bytes`, at most [`room`](OutputSink::room) of them.
    fn push(&mut self, bytes: &[u8]);
    /// Discards what is queued and not yet sent.
    fn flush(&mut self);
}

impl OutputSink for Ring {
    fn room(&self) -> usize {
        Ring::room(self)
    }

    fn push(&mut self, bytes: &[u8]) {
        Ring::push(self, bytes);
    }

    fn flush(&mut self) {
        self.clear();
    }
}

/// Bytes of echo that may wait for the device.
const ECHO_CAPACITY: usize = 4096;

/// Whether a byte is a control character (ISO 8859-1's upper half counts as printing).
pub(crate) fn is_control(byte: u8) -> bool {
    byte.is_ascii_control()
}

/// Upper case in ISO 8859-1.
fn to_upper(byte: u8) -> u8 {
    match byte {
        b'a'..=b'z' | 0xdf..=0xf6 | 0xf8..=0xff => byte - 32,
        _ => byte,
    }
}

/// Where the cursor is, in columns from the left margin; wraps at 2^32.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    /// Where the next character goes.
    pub column: u32,
    /// Where the line being edited began.
    pub line_start: u32,
}

/// What one byte becomes: at most eight bytes.
struct Cooked {
    bytes: [u8; 8],
    len: usize,
}

impl Cooked {
    fn one(byte: u8) -> Self {
        Cooked { bytes: [byte; 8], len: 1 }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Post-processes one byte: what to send, and where the cursor is afterwards.
fn cook(termios: &Termios, mut at: Cursor, byte: u8) -> (Cooked, Cursor) {
    let on = |flag| termios.oflag.contains(flag);
    let home = Cursor::default();
    let mut cooked = Cooked::one(byte);
    match byte {
        b'\n' => {
            if on(OutputFlags::ONLCR) {
                cooked.bytes[..2].copy_from_slice(b"\r\n");
                cooked.len = 2;
                at = home;
            } else {
                if on(OutputFlags::ONLRET) {
                    at = home;
                }
                at.line_start = at.column;
            }
        }
        b'\r' if on(OutputFlags::ONOCR) && at.column == 0 => cooked.len = 0,
        b'\r' if on(OutputFlags::OCRNL) => {
            cooked = Cooked::one(b'\n');
            if on(OutputFlags::ONLRET) {
                at = home;
            }
        }
        b'\r' => at = home,
        b'\t' => {
            let width = 8 - (at.column & 7);
            at.column = at.column.wrapping_add(width);
            if termios.oflag & OutputFlags::TABDLY == OutputFlags::XTABS {
                cooked = Cooked { bytes: [b' '; 8], len: width as usize };
            }
        }
        0x08 => at.column = at.column.saturating_sub(1),
        _ if is_control(byte) => {}
        _ => {
            if on(OutputFlags::OLCUC) {
                cooked = Cooked::one(to_upper(byte));
            }
            if !termios.continues(byte) {
                at.column = at.column.wrapping_add(1);
            }
        }
    }
    (cooked, at)
}

/// The echo queue and the cursor.
#[derive(Debug)]
pub(crate) struct Echo {
    queue: Ring,
    /// Where the cursor will be when the queue has been sent.
    pub cursor: Cursor,
    /// Where it was when the queue was last empty.
    sent: Cursor,
}

impl Echo {
    pub fn new() -> Result<Self, Errno> {
        Ok(Echo { queue: Ring::new(ECHO_CAPACITY)?, cursor: Cursor::default(), sent: Cursor::default() })
    }

    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Drops what waits; the cursor goes back to where it was before (nearly, if a part had been sent).
    pub fn clear(&mut self) {
        if !self.queue.is_empty() {
            self.queue.clear();
            self.cursor = self.sent;
        }
    }

    /// Queues bytes as they are; all or nothing.
    pub fn put(&mut self, bytes: &[u8]) {
        if self.queue.is_empty() {
            self.sent = self.cursor;
        }
        if bytes.len() <= self.queue.room() {
            self.queue.push(bytes);
        }
    }

    /// Echoes a byte through post-processing.
    pub fn byte(&mut self, termios: &Termios, byte: u8) {
        if !termios.oflag.contains(OutputFlags::OPOST) {
            return self.put(&[byte]);
        }
        let (cooked, cursor) = cook(termios, self.cursor, byte);
        self.put(cooked.as_slice());
        self.cursor = cursor;
    }

    /// Echoes a byte, control characters other than tab in the form `^X` if `ECHOCTL`.
    pub fn visible(&mut self, termios: &Termios, byte: u8) {
        if termios.lflag.contains(LocalFlags::ECHOCTL) && is_control(byte) && byte != b'\t' {
            self.put(&[b'^', byte ^ 0x40]);
            self.cursor.column = self.cursor.column.wrapping_add(2);
        } else if byte == 0xff {
            // Never changed by OLCUC: its capital is not in ISO 8859-1.
            self.put(&[byte]);
            self.cursor.column = self.cursor.column.wrapping_add(1);
        } else {
            self.byte(termios, byte);
        }
    }

    /// Moves what fits to the device.
    fn drain(&mut self, out: &mut impl OutputSink) {
        loop {
            let front = self.queue.front();
            let n = front.len().min(out.room());
            if n == 0 {
                return;
            }
            out.push(&front[..n]);
            self.queue.consume(n);
        }
    }
}

impl LineDiscipline {
    /// Bytes of echo that wait for the device (`tcdrain` waits for them too).
    pub fn echo_pending(&self) -> usize {
        self.echo.pending()
    }

    /// Sends waiting echo as far as there is room; to be called when the device has drained some output.
    pub fn flush_echo(&mut self, out: &mut impl OutputSink) {
        if !self.is_stopped() {
            self.echo.drain(out);
        }
    }

    /// A program's write: post-processes `bytes` into `out`.
    ///
    /// Returns how many of `bytes` were taken, fewer than all when output is stopped or out of room; the writer then
    /// waits for [`Events::WRITABLE`](crate::Events::WRITABLE) or for the device to drain. The caller has checked job
    /// control ([`background_access`](crate::background_access)) and hang-up.
    pub fn write(&mut self, bytes: &[u8], out: &mut impl OutputSink) -> usize {
        self.flush_echo(out);
        if self.is_stopped() || self.echo.pending() != 0 {
            return 0;
        }
        if !self.termios.oflag.contains(OutputFlags::OPOST) {
            let n = bytes.len().min(out.room());
            out.push(&bytes[..n]);
            return n;
        }
        let mut taken = 0;
        while taken < bytes.len() {
            let run = self.plain_run(&bytes[taken..], out.room());
            if run != 0 {
                out.push(&bytes[taken..taken + run]);
                taken += run;
                continue;
            }
            let (cooked, cursor) = cook(&self.termios, self.echo.cursor, bytes[taken]);
            if cooked.len > out.room() {
                break;
            }
            out.push(cooked.as_slice());
            self.echo.cursor = cursor;
            taken += 1;
        }
        taken
    }

    /// The length of the leading run of bytes that go out unchanged, at most `room`; moves the cursor past it.
    fn plain_run(&mut self, bytes: &[u8], room: usize) -> usize {
        if self.termios.oflag.contains(OutputFlags::OLCUC) {
            return 0;
        }
        let mut columns = 0u32;
        let mut run = 0;
        for &byte in bytes.iter().take(room).take_while(|b| !matches!(b, b'\n' | b'\r' | b'\t' | 0x08)) {
            run += 1;
            let visible = !is_control(byte) && !self.termios.continues(byte);
            columns = columns.wrapping_add(u32::from(visible));
        }
        self.echo.cursor.column = self.echo.cursor.column.wrapping_add(columns);
        run
    }

    /// Whether a writer may go on: what poll calls writable.
    pub fn writable(&self, out: &impl OutputSink) -> bool {
        !self.is_stopped() && self.echo.pending() == 0 && out.room() > 0
    }
}
