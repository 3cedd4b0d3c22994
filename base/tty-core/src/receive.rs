//! Input: from the device into the buffer, with everything typed characters can mean on the way.
//!
//! **Back-pressure.** One byte of the buffer is kept free. In raw mode, and in canonical mode while complete lines are
//! unread, input that does not fit is refused ([`Received::taken`] is short) and the device side has to hold it. But a
//! line being edited with nothing to read before it must stay editable: it takes input without limit, each excess byte
//! replacing the one before, so that at most 4095 characters and their terminator arrive. As on Linux the excess is
//! echoed; with `IMAXBEL` it rings the bell instead (Linux ignores that bit).

use crate::output::OutputSink;
use crate::termios::{ControlChar, InputFlags, LocalFlags};
use crate::{DISABLED, Events, INPUT_CAPACITY, LineDiscipline};

/// What became of input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes taken; the rest is to be offered again after [`Events::INPUT_ROOM`].
    pub taken: usize,
    /// What to do.
    pub events: Events,
}

/// A character that the device received with a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFault {
    /// A break condition.
    Break,
    /// A byte with a parity or framing error.
    Parity(u8),
    /// The device lost bytes. Counted by the driver, of no consequence here.
    Overrun,
}

/// Room for input.
enum Room {
    /// As many bytes.
    Bytes(usize),
    /// One byte, in the last place of the buffer, which may be taken.
    Excess,
}

/// Lower case in ISO 8859-1.
fn to_lower(byte: u8) -> u8 {
    match byte {
        b'A'..=b'Z' | 0xc0..=0xd6 | 0xd8..=0xde => byte + 32,
        _ => byte,
    }
}

impl LineDiscipline {
    /// Input from the device: processes as much of `bytes` as there is room for, echoing into `out`.
    pub fn input(&mut self, bytes: &[u8], out: &mut impl OutputSink) -> Received {
        let mut events = Events::empty();
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            match self.room() {
                Room::Bytes(0) => break,
                Room::Bytes(room) => {
                    let n = room.min(rest.len());
                    events |= self.receive(&rest[..n], out);
                    taken += n;
                }
                Room::Excess => {
                    events |= self.receive_excess(rest[0], out);
                    taken += 1;
                }
            }
        }
        self.flush_echo(out);
        if !self.is_canonical() && self.head != self.tail {
            events |= Events::READABLE;
        }
        Received { taken, events }
    }

    /// How many bytes [`LineDiscipline::input`] is sure to take now; 0 means that the device should be throttled.
    pub fn input_room(&self) -> usize {
        match self.room() {
            Room::Bytes(n) => n,
            Room::Excess => 1,
        }
    }

    fn room(&self) -> Room {
        let free = INPUT_CAPACITY - self.used();
        // With PARMRK one byte may take three places.
        let places = if self.iflag(InputFlags::PARMRK) { free.div_ceil(3) } else { free };
        if places <= 1 && self.is_canonical() && self.canon == self.tail {
            return Room::Excess;
        }
        Room::Bytes(places.saturating_sub(1))
    }

    /// A byte for a full line.
    fn receive_excess(&mut self, byte: u8, out: &mut impl OutputSink) -> Events {
        if self.used() == INPUT_CAPACITY {
            self.head = self.head.wrapping_sub(1);
        }
        if self.iflag(InputFlags::IMAXBEL) && !self.literal && !self.special.contains(byte) {
            self.echo.put(b"\x07");
            return Events::empty();
        }
        self.receive(&[byte], out)
    }

    fn receive(&mut self, bytes: &[u8], out: &mut impl OutputSink) -> Events {
        if self.raw {
            self.store_all(bytes);
            return Events::empty();
        }
        let strip = if self.iflag(InputFlags::ISTRIP) { 0x7f } else { 0xff };
        let lower = self.iflag(InputFlags::IUCLC) && self.local(LocalFlags::IEXTEN);
        let mut events = Events::empty();
        for &byte in bytes {
            let byte = byte & strip;
            let byte = if lower { to_lower(byte) } else { byte };
            if core::mem::take(&mut self.literal) || !self.special.contains(byte) {
                events |= self.ordinary(byte, out);
            } else {
                events |= self.special(byte, out);
            }
        }
        events
    }

    /// A character with a fault, in the place of a byte of input. It is dropped if there is no room.
    pub fn input_fault(&mut self, fault: LineFault, out: &mut impl OutputSink) -> Events {
        if self.input_room() == 0 {
            return Events::empty();
        }
        let literal = core::mem::take(&mut self.literal);
        let mut events = match fault {
            LineFault::Break => self.line_break(out),
            LineFault::Parity(byte) => self.parity_error(byte, out),
            LineFault::Overrun => {
                self.literal = literal;
                Events::empty()
            }
        };
        self.flush_echo(out);
        if !self.is_canonical() && self.head != self.tail {
            events |= Events::READABLE;
        }
        events
    }

    fn line_break(&mut self, out: &mut impl OutputSink) -> Events {
        if self.iflag(InputFlags::IGNBRK) {
            return Events::empty();
        }
        if self.iflag(InputFlags::BRKINT) {
            return self.signal(Events::SIG_INT, out);
        }
        if self.iflag(InputFlags::PARMRK) {
            self.store_all(&[0xff, 0]);
        }
        self.store(0);
        Events::empty()
    }

    fn parity_error(&mut self, byte: u8, out: &mut impl OutputSink) -> Events {
        if !self.iflag(InputFlags::INPCK) {
            return self.ordinary(byte, out);
        }
        if self.iflag(InputFlags::IGNPAR) {
            return Events::empty();
        }
        if self.iflag(InputFlags::PARMRK) {
            self.store_all(&[0xff, 0, byte]);
        } else {
            self.store(0);
        }
        Events::empty()
    }

    /// A byte without a meaning of its own: echo and store.
    fn ordinary(&mut self, byte: u8, out: &mut impl OutputSink) -> Events {
        let events = self.restart_by_any(out);
        if self.local(LocalFlags::ECHO) {
            self.echo_typed(byte);
        }
        self.store_doubled(byte);
        events
    }

    /// With `IXANY` any byte restarts output.
    fn restart_by_any(&mut self, out: &mut impl OutputSink) -> Events {
        if self.iflag(InputFlags::IXON) && self.iflag(InputFlags::IXANY) && self.stopped_by_char_only() {
            self.start_by_char(out)
        } else {
            Events::empty()
        }
    }

    /// Echoes a byte that goes into the line.
    fn echo_typed(&mut self, byte: u8) {
        self.finish_erasing();
        if self.canon == self.head {
            self.echo.cursor.line_start = self.echo.cursor.column;
        }
        self.echo.visible(&self.termios, byte);
    }

    /// Stores a byte; with `PARMRK` a 0xff is doubled, to be told from a fault's mark.
    fn store_doubled(&mut self, byte: u8) {
        self.double(byte);
        self.store(byte);
    }

    fn double(&mut self, byte: u8) {
        if byte == 0xff && self.iflag(InputFlags::PARMRK) {
            self.store(byte);
        }
    }

    fn special(&mut self, byte: u8, out: &mut impl OutputSink) -> Events {
        use ControlChar as C;
        if self.iflag(InputFlags::IXON) {
            if self.termios.is(byte, C::Start) {
                let events = self.start_by_char(out);
                self.flush_echo(out);
                return events;
            }
            if self.termios.is(byte, C::Stop) {
                return self.stop_by_char();
            }
        }
        if self.local(LocalFlags::ISIG) {
            for (which, signal) in
                [(C::Intr, Events::SIG_INT), (C::Quit, Events::SIG_QUIT), (C::Susp, Events::SIG_TSTP)]
            {
                if self.termios.is(byte, which) {
                    return self.signal_char(byte, signal, out);
                }
            }
        }
        let mut events = self.restart_by_any(out);
        let byte = match byte {
            b'\r' if self.iflag(InputFlags::IGNCR) => return events,
            b'\r' if self.iflag(InputFlags::ICRNL) => b'\n',
            b'\n' if self.iflag(InputFlags::INLCR) => b'\r',
            other => other,
        };
        if self.is_canonical()
            && let Some(more) = self.canonical(byte)
        {
            events |= more;
            return events;
        }
        if self.local(LocalFlags::ECHO) {
            if byte == b'\n' {
                self.finish_erasing();
                self.echo.byte(&self.termios, b'\n');
            } else {
                self.echo_typed(byte);
            }
        }
        self.store_doubled(byte);
        events
    }

    /// A signal character: flushes (before its own echo) unless `NOFLSH`, and restarts output.
    fn signal_char(&mut self, byte: u8, signal: Events, out: &mut impl OutputSink) -> Events {
        let mut events = self.signal(signal, out);
        if self.iflag(InputFlags::IXON) {
            events |= self.start_by_char(out);
        }
        if self.local(LocalFlags::ECHO) {
            self.echo.visible(&self.termios, byte);
        }
        events
    }

    fn signal(&mut self, signal: Events, out: &mut impl OutputSink) -> Events {
        if self.local(LocalFlags::NOFLSH) {
            return signal;
        }
        self.echo.clear();
        self.discard_input();
        out.flush();
        signal | Events::INPUT_FLUSHED | Events::INPUT_ROOM | Events::OUTPUT_FLUSHED | Events::WRITABLE
    }

    /// The characters that canonical mode gives a meaning; `None` if `byte` is none of them.
    fn canonical(&mut self, byte: u8) -> Option<Events> {
        use ControlChar as C;
        let extended = self.local(LocalFlags::IEXTEN);
        let echo = self.local(LocalFlags::ECHO);
        let is = |which| self.termios.is(byte, which);
        if is(C::Erase) || is(C::Kill) || (extended && is(C::Werase)) {
            self.erase(byte);
        } else if extended && is(C::Lnext) {
            self.literal = true;
            if echo {
                self.finish_erasing();
                if self.local(LocalFlags::ECHOCTL) {
                    self.echo.byte(&self.termios, b'^');
                    self.echo.byte(&self.termios, 0x08);
                }
            }
        } else if extended && echo && is(C::Reprint) {
            self.reprint(byte);
        } else if byte == b'\n' {
            if echo || self.local(LocalFlags::ECHONL) {
                self.echo.byte(&self.termios, b'\n');
            }
            return Some(self.end_line(byte));
        } else if is(C::Eof) {
            return Some(self.end_line(DISABLED));
        } else if is(C::Eol) || (extended && is(C::Eol2)) {
            if echo {
                self.echo_line_end(byte);
            }
            self.double(byte);
            return Some(self.end_line(byte));
        } else {
            return None;
        }
        Some(Events::empty())
    }

    /// Echoes `VEOL` or `VEOL2`.
    fn echo_line_end(&mut self, byte: u8) {
        if self.canon == self.head {
            self.echo.cursor.line_start = self.echo.cursor.column;
        }
        self.echo.visible(&self.termios, byte);
    }
}
