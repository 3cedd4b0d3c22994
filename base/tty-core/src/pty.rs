//! State around the line discipline: window size, exclusive mode, and a pty master's packet mode and output queue.

use crate::{Events, LineDiscipline, OutputSink, Ring, Termios};
use abi::{Errno, linux as c};

/// `struct winsize` (`TIOCGWINSZ`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Winsize {
    /// Rows, in characters.
    pub rows: u16,
    /// Columns, in characters.
    pub cols: u16,
    /// Width in pixels (kept, not used).
    pub xpixel: u16,
    /// Height in pixels (kept, not used).
    pub ypixel: u16,
}

impl Winsize {
    /// As `struct winsize`.
    pub fn to_bytes(self) -> [u8; 8] {
        let mut out = [0; 8];
        for (slot, value) in out.chunks_exact_mut(2).zip([self.rows, self.cols, self.xpixel, self.ypixel]) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        out
    }

    /// From `struct winsize`.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let at = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        Winsize { rows: at(0), cols: at(2), xpixel: at(4), ypixel: at(6) }
    }

    /// Sets it; true if it changed, when `SIGWINCH` is due to the foreground process group.
    pub fn set(&mut self, new: Winsize) -> bool {
        let changed = *self != new;
        *self = new;
        changed
    }
}

/// Whether further opens are refused (`TIOCEXCL`, `TIOCNXCL`, `TIOCGEXCL`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExclusiveMode(bool);

impl ExclusiveMode {
    /// Switches it.
    pub fn set(&mut self, on: bool) {
        self.0 = on;
    }

    /// Whether it is on.
    pub fn get(self) -> bool {
        self.0
    }

    /// `EBUSY` for an open while it is on, unless the opener has `CAP_SYS_ADMIN`.
    pub fn check_open(self, privileged: bool) -> Result<(), Errno> {
        if self.0 && !privileged { Err(Errno::EBUSY) } else { Ok(()) }
    }
}

bitflags::bitflags! {
    /// The status byte a master in packet mode reads instead of data (ioctl_tty(2), `TIOCPKT`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PacketStatus: u8 {
        /// The slave's input was flushed.
        const FLUSHREAD = c::TIOCPKT_FLUSHREAD as u8;
        /// The slave's output was flushed.
        const FLUSHWRITE = c::TIOCPKT_FLUSHWRITE as u8;
        /// Output stopped.
        const STOP = c::TIOCPKT_STOP as u8;
        /// Output restarted.
        const START = c::TIOCPKT_START as u8;
        /// Flow control no longer uses `^S` and `^Q`.
        const NOSTOP = c::TIOCPKT_NOSTOP as u8;
        /// Flow control uses `^S` and `^Q`.
        const DOSTOP = c::TIOCPKT_DOSTOP as u8;
    }
}

/// A pty master's packet mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct PacketMode {
    on: bool,
    status: PacketStatus,
}

impl PacketMode {
    /// The byte before data (`TIOCPKT_DATA`) in a packet-mode read.
    pub const DATA: u8 = c::TIOCPKT_DATA as u8;

    /// Switches it (`TIOCPKT`); switching on forgets old news.
    pub fn set(&mut self, on: bool) {
        if on && !self.on {
            self.status = PacketStatus::empty();
        }
        self.on = on;
    }

    /// Whether it is on (`TIOCGPKT`).
    pub fn is_on(self) -> bool {
        self.on
    }

    /// News to read: what poll reports as `POLLPRI | POLLIN`.
    pub fn pending(self) -> bool {
        self.on && !self.status.is_empty()
    }

    /// Takes the status byte for a read, if there is news.
    pub fn take(&mut self) -> Option<u8> {
        if !self.pending() {
            return None;
        }
        let status = self.status.bits();
        self.status = PacketStatus::empty();
        Some(status)
    }

    /// Notes what a call on the slave's line discipline did; returns `MASTER_STATUS` if the master has to wake.
    pub fn note(&mut self, events: Events, discipline: &LineDiscipline) -> Events {
        let mut news = PacketStatus::empty();
        if events.intersects(Events::STOPPED | Events::STARTED) {
            self.status -= PacketStatus::STOP | PacketStatus::START;
            news |= if discipline.is_stopped() { PacketStatus::STOP } else { PacketStatus::START };
        }
        if events.contains(Events::INPUT_FLUSHED) {
            news |= PacketStatus::FLUSHREAD;
        }
        if events.contains(Events::OUTPUT_FLUSHED) {
            news |= PacketStatus::FLUSHWRITE;
        }
        self.add(news)
    }

    /// Notes a change of the slave's settings.
    pub fn note_termios(&mut self, old: &Termios, new: &Termios) -> Events {
        let now = new.usual_flow_control();
        if old.usual_flow_control() == now {
            return Events::empty();
        }
        self.status -= PacketStatus::DOSTOP | PacketStatus::NOSTOP;
        self.add(if now { PacketStatus::DOSTOP } else { PacketStatus::NOSTOP })
    }

    fn add(&mut self, news: PacketStatus) -> Events {
        if !self.on || news.is_empty() {
            return Events::empty();
        }
        self.status |= news;
        Events::MASTER_STATUS
    }
}

/// The queue from a pty's slave to its master.
///
/// A flush of the slave's output (`^C` without `NOFLSH`, `TCOFLUSH`) spares the oldest [`PtyOutput::DELIVERED`] bytes:
/// on Linux these have reached the master's own input buffer and are out of the slave's reach, so that a program's last
/// words before `^C` are still seen.
#[derive(Debug)]
pub struct PtyOutput {
    ring: Ring,
}

impl PtyOutput {
    /// Bytes that count as delivered: the size of the input buffer of a Linux master.
    pub const DELIVERED: usize = crate::INPUT_CAPACITY - 1;

    /// A queue for `capacity` bytes; `ENOMEM` if there is no memory.
    pub fn new(capacity: usize) -> Result<Self, Errno> {
        Ok(PtyOutput { ring: Ring::new(capacity)? })
    }

    /// The queue, for the master's reads.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Bytes waiting for the master.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }
}

impl OutputSink for PtyOutput {
    fn room(&self) -> usize {
        self.ring.room()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.ring.push(bytes);
    }

    fn flush(&mut self) {
        self.ring.truncate(Self::DELIVERED);
    }
}
