//! The terminal's settings, and their layouts at the system-call boundary.
//!
//! Sources: termios(3), ioctl_tty(2), and Linux's `asm-generic/termbits.h`, from which `linux-raw-sys` takes the
//! numbers. Bits that have no effect here are kept and given back, as Linux does.

use abi::linux as c;

/// Control characters in `struct termios`.
pub const NCCS: usize = c::NCCS as usize;
/// Bytes in `struct termios` (`TCGETS`).
pub const TERMIOS_SIZE: usize = 4 * 4 + 1 + NCCS;
/// Bytes in `struct termios2` (`TCGETS2`).
pub const TERMIOS2_SIZE: usize = TERMIOS_SIZE + 8;
/// Bytes in the System V `struct termio` (`TCGETA`).
pub const TERMIO_SIZE: usize = 18;
/// Control characters in `struct termio`.
const NCC: usize = 8;
/// `_POSIX_VDISABLE`: a control character with this value is off.
pub const DISABLED: u8 = 0;

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($flag:ident)* }) => {
        bitflags::bitflags! {
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name: u32 {
                $(#[doc = concat!("`", stringify!($flag), "`")] const $flag = c::$flag;)*
                const _ = !0;
            }
        }
    };
}

flags! {
    /// `c_iflag`
    InputFlags {
        IGNBRK BRKINT IGNPAR PARMRK INPCK ISTRIP INLCR IGNCR ICRNL IUCLC IXON IXANY IXOFF IMAXBEL IUTF8
    }
}
flags! {
    /// `c_oflag`. `XTABS` is two bits wide: compare `TABDLY` with it.
    OutputFlags { OPOST OLCUC ONLCR OCRNL ONOCR ONLRET TABDLY XTABS }
}
flags! {
    /// `c_cflag`. Nothing here depends on it; a driver may.
    ControlFlags { CBAUD CSIZE CS8 CSTOPB CREAD PARENB PARODD HUPCL CLOCAL CRTSCTS }
}
flags! {
    /// `c_lflag`
    LocalFlags {
        ISIG ICANON XCASE ECHO ECHOE ECHOK ECHONL NOFLSH TOSTOP ECHOCTL ECHOPRT ECHOKE FLUSHO PENDIN IEXTEN EXTPROC
    }
}

/// Indices into `c_cc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // the names are those of termios(3)
pub enum ControlChar {
    Intr = c::VINTR as u8,
    Quit = c::VQUIT as u8,
    Erase = c::VERASE as u8,
    Kill = c::VKILL as u8,
    Eof = c::VEOF as u8,
    Time = c::VTIME as u8,
    Min = c::VMIN as u8,
    Start = c::VSTART as u8,
    Stop = c::VSTOP as u8,
    Susp = c::VSUSP as u8,
    Eol = c::VEOL as u8,
    Reprint = c::VREPRINT as u8,
    Discard = c::VDISCARD as u8,
    Werase = c::VWERASE as u8,
    Lnext = c::VLNEXT as u8,
    Eol2 = c::VEOL2 as u8,
}

/// A terminal's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termios {
    /// Input modes.
    pub iflag: InputFlags,
    /// Output modes.
    pub oflag: OutputFlags,
    /// Control modes: speed codes, character size, parity.
    pub cflag: ControlFlags,
    /// Local modes.
    pub lflag: LocalFlags,
    /// The line discipline's number; 0 is `N_TTY`.
    pub line: u8,
    /// Control characters by [`ControlChar`].
    pub cc: [u8; NCCS],
    /// Input speed in baud.
    pub ispeed: u32,
    /// Output speed in baud.
    pub ospeed: u32,
}

impl Default for Termios {
    /// What Linux gives a new tty: canonical, echoing, signals on, 38400 baud 8N1.
    fn default() -> Self {
        use ControlChar as C;
        let mut cc = [DISABLED; NCCS];
        let control = |letter: u8| letter & 0x1f;
        for (index, value) in [
            (C::Intr, control(b'C')),
            (C::Quit, control(b'\\')),
            (C::Erase, 0x7f),
            (C::Kill, control(b'U')),
            (C::Eof, control(b'D')),
            (C::Min, 1),
            (C::Start, control(b'Q')),
            (C::Stop, control(b'S')),
            (C::Susp, control(b'Z')),
            (C::Reprint, control(b'R')),
            (C::Discard, control(b'O')),
            (C::Werase, control(b'W')),
            (C::Lnext, control(b'V')),
        ] {
            cc[index as usize] = value;
        }
        Termios {
            iflag: InputFlags::ICRNL | InputFlags::IXON,
            oflag: OutputFlags::OPOST | OutputFlags::ONLCR,
            cflag: ControlFlags::from_bits_retain(c::B38400)
                | ControlFlags::CS8
                | ControlFlags::CREAD
                | ControlFlags::HUPCL,
            lflag: LocalFlags::ISIG
                | LocalFlags::ICANON
                | LocalFlags::ECHO
                | LocalFlags::ECHOE
                | LocalFlags::ECHOK
                | LocalFlags::ECHOCTL
                | LocalFlags::ECHOKE
                | LocalFlags::IEXTEN,
            line: 0,
            cc,
            ispeed: 38400,
            ospeed: 38400,
        }
    }
}

/// The little-endian 32-bit word at `at`; 0 past the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// The little-endian 16-bit word at `at`; 0 past the end.
fn half(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, |b| u32::from(u16::from_le_bytes(b)))
}

impl Termios {
    /// The settings a pty's slave starts with: as [`Termios::default`] without `HUPCL`.
    pub fn pty() -> Self {
        Termios::default().for_pty_with(ControlFlags::HUPCL)
    }

    /// Forces what a pty cannot change: eight bits, no parity, receiver on.
    pub fn for_pty(self) -> Self {
        self.for_pty_with(ControlFlags::empty())
    }

    fn for_pty_with(mut self, also_off: ControlFlags) -> Self {
        self.cflag &= !(ControlFlags::CSIZE | ControlFlags::PARENB | also_off);
        self.cflag |= ControlFlags::CS8 | ControlFlags::CREAD;
        self
    }

    /// A control character's value.
    pub fn char(&self, which: ControlChar) -> u8 {
        self.cc[which as usize]
    }

    /// Whether `byte` is this control character and the character is not off.
    pub(crate) fn is(&self, byte: u8, which: ControlChar) -> bool {
        byte != DISABLED && byte == self.char(which)
    }

    /// Whether `byte` continues a UTF-8 sequence (only asked when `IUTF8` is on).
    pub(crate) fn continues(&self, byte: u8) -> bool {
        self.iflag.contains(InputFlags::IUTF8) && byte & 0xc0 == 0x80
    }

    /// Whether software flow control uses its usual characters, what packet mode calls `DOSTOP`.
    pub(crate) fn usual_flow_control(&self) -> bool {
        self.iflag.contains(InputFlags::IXON)
            && self.char(ControlChar::Stop) == 0x13
            && self.char(ControlChar::Start) == 0x11
    }

    /// As `struct termios`.
    pub fn to_termios(&self) -> [u8; TERMIOS_SIZE] {
        let mut out = [0; TERMIOS_SIZE];
        let words = [self.iflag.bits(), self.oflag.bits(), self.cflag.bits(), self.lflag.bits()];
        for (slot, value) in out.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        out[16] = self.line;
        out[17..].copy_from_slice(&self.cc);
        out
    }

    /// As `struct termios2`.
    pub fn to_termios2(&self) -> [u8; TERMIOS2_SIZE] {
        let mut out = [0; TERMIOS2_SIZE];
        out[..TERMIOS_SIZE].copy_from_slice(&self.to_termios());
        out[TERMIOS_SIZE..TERMIOS_SIZE + 4].copy_from_slice(&self.ispeed.to_le_bytes());
        out[TERMIOS_SIZE + 4..].copy_from_slice(&self.ospeed.to_le_bytes());
        out
    }

    /// As `struct termio`: the low halves of the flags and the first eight control characters.
    pub fn to_termio(&self) -> [u8; TERMIO_SIZE] {
        let mut out = [0; TERMIO_SIZE];
        let words = [self.iflag.bits(), self.oflag.bits(), self.cflag.bits(), self.lflag.bits()];
        for (slot, value) in out.chunks_exact_mut(2).zip(words) {
            slot.copy_from_slice(&(value as u16).to_le_bytes());
        }
        out[8] = self.line;
        out[9..9 + NCC].copy_from_slice(&self.cc[..NCC]);
        out
    }

    /// These settings changed to a `struct termios` (`TCSETS`). Every value is accepted, as on Linux.
    pub fn with_termios(&self, bytes: &[u8; TERMIOS_SIZE]) -> Self {
        self.with_words(bytes, self.ispeed, self.ospeed)
    }

    /// These settings changed to a `struct termios2` (`TCSETS2`), where `BOTHER` takes the speeds given.
    pub fn with_termios2(&self, bytes: &[u8; TERMIOS2_SIZE]) -> Self {
        self.with_words(bytes, word(bytes, TERMIOS_SIZE), word(bytes, TERMIOS_SIZE + 4))
    }

    /// These settings changed to a `struct termio` (`TCSETA`); what it has no room for stays.
    pub fn with_termio(&self, bytes: &[u8; TERMIO_SIZE]) -> Self {
        let merge = |old: u32, at: usize| (old & 0xffff_0000) | half(bytes, at);
        let mut new = *self;
        new.iflag = InputFlags::from_bits_retain(merge(self.iflag.bits(), 0));
        new.oflag = OutputFlags::from_bits_retain(merge(self.oflag.bits(), 2));
        new.cflag = ControlFlags::from_bits_retain(merge(self.cflag.bits(), 4));
        new.lflag = LocalFlags::from_bits_retain(merge(self.lflag.bits(), 6));
        new.line = bytes[8];
        new.cc[..NCC].copy_from_slice(&bytes[9..9 + NCC]);
        new.with_speeds(self.ispeed, self.ospeed)
    }

    fn with_words(&self, bytes: &[u8], ispeed: u32, ospeed: u32) -> Self {
        let mut new = *self;
        new.iflag = InputFlags::from_bits_retain(word(bytes, 0));
        new.oflag = OutputFlags::from_bits_retain(word(bytes, 4));
        new.cflag = ControlFlags::from_bits_retain(word(bytes, 8));
        new.lflag = LocalFlags::from_bits_retain(word(bytes, 12));
        new.line = bytes[16];
        new.cc.copy_from_slice(&bytes[17..TERMIOS_SIZE]);
        new.with_speeds(ispeed, ospeed)
    }

    /// Speeds from the codes in `cflag`, or as given where the code is `BOTHER`.
    fn with_speeds(mut self, ispeed: u32, ospeed: u32) -> Self {
        (self.ispeed, self.ospeed) = crate::speed::from_cflag(self.cflag.bits(), ispeed, ospeed);
        self
    }
}
