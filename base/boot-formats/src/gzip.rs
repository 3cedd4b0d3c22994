//! Decompressing gzip (RFC 1952) in pieces, with bounded memory.
//!
//! The format's header and trailer, the checksum and the length are checked here; inflate itself (RFC 1951) is
//! `miniz_oxide`'s, which writes into a window of 32 KiB that belongs to a [`Workspace`]. Whenever the window has filled
//! or the input piece is used up, what is new in it goes to the caller. Nothing is held beyond that, however large the
//! output: a "bomb" costs time in proportion to a limit that the caller sets.
//!
//! Members may follow one another, with zeros between them, as gzip(1) and Linux's initramfs allow.

use crate::crc32::crc32;
use alloc::boxed::Box;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT};

/// Distance that matches may reach back, and the window's length.
const WINDOW: usize = 32 * 1024;
const FLAG_HEADER_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const FLAGS_RESERVED: u8 = 0xe0;

/// The memory that decompression needs, about 43 KiB, on the heap.
pub struct Workspace {
    inflate: Box<DecompressorOxide>,
    window: Vec<u8>,
}

impl Workspace {
    /// Allocates one; `None` if there is no memory for the window.
    pub fn new() -> Option<Self> {
        let mut window = Vec::new();
        window.try_reserve_exact(WINDOW).ok()?;
        window.resize(WINDOW, 0);
        // `Box::default` makes the state in place: it is too large for a kernel stack.
        Some(Self { inflate: Box::default(), window })
    }
}

impl core::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Workspace")
    }
}

/// What is wrong with compressed data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GzipErrorKind {
    /// Not gzip, or not its method 8 (deflate), or reserved flags are set.
    BadHeader,
    /// The header's own checksum does not fit.
    BadHeaderChecksum,
    /// The deflate stream is corrupt.
    BadData,
    /// The checksum of the output does not fit.
    BadChecksum,
    /// The length of the output does not fit.
    BadLength,
    /// More output than the caller allows.
    TooLong,
    /// The input ends inside a member.
    Truncated,
}

/// What is wrong with compressed data, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GzipError {
    /// Offset in the compressed input, in bytes, up to which it was taken.
    pub at: u64,
    /// What.
    pub kind: GzipErrorKind,
}

impl core::fmt::Display for GzipError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let what = match self.kind {
            GzipErrorKind::BadHeader => "bad header",
            GzipErrorKind::BadHeaderChecksum => "bad checksum of the header",
            GzipErrorKind::BadData => "corrupt data",
            GzipErrorKind::BadChecksum => "bad checksum",
            GzipErrorKind::BadLength => "bad length",
            GzipErrorKind::TooLong => "more data than allowed",
            GzipErrorKind::Truncated => "truncated",
        };
        write!(f, "gzip: {what} at offset {:#x}", self.at)
    }
}

impl core::error::Error for GzipError {}

/// Why [`Decoder::push`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError<E> {
    /// The data is broken.
    Gzip(GzipError),
    /// The sink refused.
    Sink(E),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a member: zeros, or its first byte.
    Between,
    /// In the ten bytes that every header has.
    Fixed,
    /// In the length of the extra field.
    ExtraLength,
    /// In the extra field, this much of which is left.
    Extra(u16),
    /// In the file name.
    Name,
    /// In the comment.
    Comment,
    /// In the header's checksum.
    HeaderChecksum,
    /// In the deflate stream.
    Body,
    /// In checksum and length.
    Trailer,
    /// After an error.
    Failed,
}

/// A gzip decoder that takes its input in pieces of any size.
#[derive(Debug)]
pub struct Decoder<'w> {
    workspace: &'w mut Workspace,
    state: State,
    /// Bytes of input taken.
    taken: u64,
    /// Bytes of output that are still allowed.
    allowed: u64,
    flags: u8,
    /// Checksum of the header, then of the member's output.
    crc: u32,
    /// Length of the member's output, modulo 2^32.
    length: u32,
    /// Where in the window the next output goes.
    window_at: usize,
    field: ArrayVec<u8, 10>,
}

impl<'w> Decoder<'w> {
    /// A decoder before the first byte that gives at most `limit` bytes of output in all.
    pub fn new(workspace: &'w mut Workspace, limit: u64) -> Self {
        Self {
            workspace,
            state: State::Between,
            taken: 0,
            allowed: limit,
            flags: 0,
            crc: 0,
            length: 0,
            window_at: 0,
            field: ArrayVec::new(),
        }
    }

    /// Whether no member is open.
    pub fn is_between(&self) -> bool {
        self.state == State::Between
    }

    /// Says that nothing follows: an error if a member is open.
    pub fn finish(&self) -> Result<(), GzipError> {
        if self.is_between() { Ok(()) } else { Err(self.error(GzipErrorKind::Truncated)) }
    }

    /// Takes the next piece and hands the output to `sink`, in pieces of at most 32 KiB. Returns how many bytes were
    /// taken: all, unless a byte between members is neither zero nor the first of a member; that byte and what follows
    /// are left to the caller. After an error nothing more is taken.
    pub fn push<E>(
        &mut self,
        piece: &[u8],
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, PushError<E>> {
        let mut rest = piece;
        let result = self.run(&mut rest, sink);
        if result.is_err() {
            self.state = State::Failed;
        }
        result.map(|()| piece.len() - rest.len())
    }

    fn error(&self, kind: GzipErrorKind) -> GzipError {
        GzipError { at: self.taken, kind }
    }

    fn run<E>(&mut self, rest: &mut &[u8], sink: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), PushError<E>> {
        while let Some(first) = rest.first() {
            match self.state {
                State::Failed => return Err(PushError::Gzip(self.error(GzipErrorKind::BadData))),
                State::Between => match first {
                    0 => _ = self.take(rest, rest.iter().take_while(|byte| **byte == 0).count()),
                    0x1f => self.start_member(),
                    _ => return Ok(()),
                },
                State::Body => self.inflate(rest, sink)?,
                State::Trailer => {
                    if self.collect(rest, 8) {
                        self.check_trailer().map_err(|kind| PushError::Gzip(self.error(kind)))?;
                    }
                }
                _ => self.read_header(rest).map_err(|kind| PushError::Gzip(self.error(kind)))?,
            }
        }
        Ok(())
    }

    fn take<'a>(&mut self, rest: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, left) = rest.split_at(count.min(rest.len()));
        *rest = left;
        self.taken += taken.len() as u64;
        taken
    }

    /// Moves bytes into `field` until it holds `len` of them (ten at most); whether it does.
    fn collect(&mut self, rest: &mut &[u8], len: usize) -> bool {
        let wanted = len.saturating_sub(self.field.len());
        let taken = self.take(rest, wanted);
        self.field.extend(taken.iter().copied());
        self.field.len() >= len
    }

    fn start_member(&mut self) {
        self.field.clear();
        self.crc = 0;
        self.state = State::Fixed;
    }

    fn read_header(&mut self, rest: &mut &[u8]) -> Result<(), GzipErrorKind> {
        match self.state {
            State::Fixed => {
                if self.collect(rest, 10) {
                    if self.field[..3] != [0x1f, 0x8b, 8] || self.field[3] & FLAGS_RESERVED != 0 {
                        return Err(GzipErrorKind::BadHeader);
                    }
                    self.flags = self.field[3];
                    self.count_header();
                    self.state = State::ExtraLength;
                }
            }
            State::ExtraLength if self.flags & FLAG_EXTRA == 0 => self.state = State::Name,
            State::ExtraLength => {
                if self.collect(rest, 2) {
                    self.state = State::Extra(u16::from_le_bytes([self.field[0], self.field[1]]));
                    self.count_header();
                }
            }
            State::Extra(0) => self.state = State::Name,
            State::Extra(left) => {
                let taken = self.take(rest, usize::from(left));
                self.crc = crc32(self.crc, taken);
                self.state = State::Extra(left - taken.len() as u16);
            }
            State::Name => {
                if self.flags & FLAG_NAME == 0 || self.skip_text(rest) {
                    self.state = State::Comment;
                }
            }
            State::Comment => {
                if self.flags & FLAG_COMMENT == 0 || self.skip_text(rest) {
                    self.state = State::HeaderChecksum;
                }
            }
            State::HeaderChecksum if self.flags & FLAG_HEADER_CRC == 0 => self.start_body(),
            State::HeaderChecksum => {
                if !self.collect(rest, 2) {
                    return Ok(());
                }
                if self.crc as u16 != u16::from_le_bytes([self.field[0], self.field[1]]) {
                    return Err(GzipErrorKind::BadHeaderChecksum);
                }
                self.start_body();
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds the collected field to the header's checksum, and empties it.
    fn count_header(&mut self) {
        self.crc = crc32(self.crc, &self.field);
        self.field.clear();
    }

    /// Skips text up to its NUL; whether that was reached.
    fn skip_text(&mut self, rest: &mut &[u8]) -> bool {
        let end = rest.iter().position(|byte| *byte == 0);
        let taken = self.take(rest, end.map_or(rest.len(), |at| at + 1));
        self.crc = crc32(self.crc, taken);
        end.is_some()
    }

    fn start_body(&mut self) {
        self.field.clear();
        self.workspace.inflate.init();
        self.window_at = 0;
        self.crc = 0;
        self.length = 0;
        self.state = State::Body;
    }

    fn inflate<E>(
        &mut self,
        rest: &mut &[u8],
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), PushError<E>> {
        let Workspace { inflate, window } = &mut *self.workspace;
        let start = self.window_at;
        let (status, used, written) = decompress(inflate, rest, window, start, TINFL_FLAG_HAS_MORE_INPUT);
        self.take(rest, used);
        let end = (start + written).min(WINDOW);
        let output = &self.workspace.window[start..end];
        self.crc = crc32(self.crc, output);
        self.length = self.length.wrapping_add(output.len() as u32);
        let Some(allowed) = self.allowed.checked_sub(output.len() as u64) else {
            return Err(PushError::Gzip(self.error(GzipErrorKind::TooLong)));
        };
        self.allowed = allowed;
        if !output.is_empty() {
            sink(output).map_err(PushError::Sink)?;
        }
        self.window_at = if end == WINDOW { 0 } else { end };
        match status {
            TINFLStatus::Done => self.state = State::Trailer,
            // Without progress, the next call would be the same: no stream that can be continued ends up here.
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput if used + written > 0 => {}
            _ => return Err(PushError::Gzip(self.error(GzipErrorKind::BadData))),
        }
        Ok(())
    }

    fn check_trailer(&mut self) -> Result<(), GzipErrorKind> {
        let word = |at: usize| {
            u32::from_le_bytes([self.field[at], self.field[at + 1], self.field[at + 2], self.field[at + 3]])
        };
        if word(0) != self.crc {
            return Err(GzipErrorKind::BadChecksum);
        }
        if word(4) != self.length {
            return Err(GzipErrorKind::BadLength);
        }
        self.state = State::Between;
        Ok(())
    }
}
