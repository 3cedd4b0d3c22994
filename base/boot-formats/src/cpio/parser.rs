//! Archives in pieces.
//!
//! The parser is always in one of six states; each takes what it can of the piece at hand. Only headers and names are
//! copied (a name is at most [`MAX_NAME`] bytes); data goes to the sink as it comes.

use super::header::{name_of, sum};
use super::{CpioError, CpioErrorKind, HEADER_LEN, Header, MAX_NAME, TRAILER};
use arrayvec::ArrayVec;

/// Receives the entries of an archive. An error from it ends the parsing and is handed to the caller.
pub trait Sink {
    /// What can go wrong in it.
    type Error;
    /// An entry starts. Its data, if it has any, follows in [`Sink::data`].
    fn begin_entry(&mut self, header: &Header, name: &[u8]) -> Result<(), Self::Error>;
    /// The next bytes of a file, or of a symbolic link's target. Never empty.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// The entry is complete.
    fn end_entry(&mut self) -> Result<(), Self::Error>;
    /// An archive is complete: link keys seen so far mean nothing in the next.
    fn end_archive(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Why [`Parser::push`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError<E> {
    /// The archive is broken.
    Archive(CpioError),
    /// The sink refused.
    Sink(E),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first archive or behind a trailer: zeros, or a header.
    Between,
    /// In a header; what there is of it is in the buffer.
    Header,
    /// In a name.
    Name,
    /// In the data.
    Data,
    /// In zero to three bytes of padding; then the next state.
    Padding(Next),
    /// After an error.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Data,
    Header,
    Between,
}

/// A parser that takes an archive in pieces of any size. It holds about 4 KiB.
#[derive(Clone, Debug)]
pub struct Parser {
    state: State,
    /// Bytes taken so far.
    offset: u64,
    /// Where the present header starts.
    entry_at: u64,
    header: Header,
    buffer: ArrayVec<u8, MAX_NAME>,
    /// Bytes of data or padding still to come.
    left: u64,
    checksum: u32,
    is_trailer: bool,
    archives: u64,
}

impl Parser {
    /// A parser before the first byte.
    pub const fn new() -> Self {
        Self {
            state: State::Between,
            offset: 0,
            entry_at: 0,
            header: Header {
                ino: 0,
                mode: 0,
                uid: 0,
                gid: 0,
                nlink: 0,
                mtime: 0,
                size: 0,
                dev: (0, 0),
                rdev: (0, 0),
                name_len: 0,
                checksum: None,
            },
            buffer: ArrayVec::new_const(),
            left: 0,
            checksum: 0,
            is_trailer: false,
            archives: 0,
        }
    }

    /// Archives seen whole, trailer included.
    pub const fn archives(&self) -> u64 {
        self.archives
    }

    /// Bytes taken so far.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether no archive is open: only zeros, another archive, or the end may follow.
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Between | State::Padding(Next::Between))
    }

    /// Takes the next piece. Returns how many of its bytes were taken: all, unless a byte between archives is neither
    /// zero nor the start of a header; that byte and what follows are left to the caller. After an error, and after the
    /// sink refused, the parser takes nothing more.
    pub fn push<S: Sink>(&mut self, piece: &[u8], sink: &mut S) -> Result<usize, PushError<S::Error>> {
        let mut rest = piece;
        let result = self.run(&mut rest, sink);
        if result.is_err() {
            self.state = State::Failed;
        }
        result.map(|()| piece.len() - rest.len())
    }

    /// Says that nothing follows: an error if an archive is open.
    pub fn finish(&self) -> Result<(), CpioError> {
        if self.is_between() { Ok(()) } else { Err(CpioError { at: self.offset, kind: CpioErrorKind::Truncated }) }
    }

    fn run<S: Sink>(&mut self, rest: &mut &[u8], sink: &mut S) -> Result<(), PushError<S::Error>> {
        while !rest.is_empty() || self.left == 0 && matches!(self.state, State::Data | State::Padding(_)) {
            match self.state {
                State::Failed => return Err(self.fail(CpioErrorKind::BadMagic)),
                State::Between => {
                    let zeros = rest.iter().take_while(|byte| **byte == 0).count();
                    self.take(rest, zeros);
                    match rest.first() {
                        None => return Ok(()),
                        Some(b'0') => self.start_header(),
                        Some(_) => return Ok(()),
                    }
                }
                State::Header => {
                    if self.collect(rest, HEADER_LEN) {
                        self.read_header().map_err(|kind| self.fail(kind))?;
                    }
                }
                State::Name => {
                    if self.collect(rest, self.header.name_len as usize) {
                        self.begin(sink)?;
                    }
                }
                State::Padding(next) => {
                    let count = self.count(rest);
                    self.take(rest, count);
                    self.left -= count as u64;
                    if self.left == 0 {
                        self.follow(next);
                    }
                }
                State::Data => self.pass_data(rest, sink)?,
            }
        }
        Ok(())
    }

    fn fail<E>(&self, kind: CpioErrorKind) -> PushError<E> {
        PushError::Archive(CpioError { at: self.entry_at, kind })
    }

    /// How much of the piece belongs to what is left.
    fn count(&self, rest: &[u8]) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len())
    }

    fn take<'a>(&mut self, rest: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, left) = rest.split_at(count.min(rest.len()));
        *rest = left;
        self.offset += taken.len() as u64;
        taken
    }

    /// Moves bytes into the buffer until it holds `len`; whether it does.
    fn collect(&mut self, rest: &mut &[u8], len: usize) -> bool {
        let wanted = len.saturating_sub(self.buffer.len());
        let taken = self.take(rest, wanted);
        // `len` never exceeds the buffer: a header, or a name whose length was checked.
        self.buffer.extend(taken.iter().copied());
        self.buffer.len() >= len
    }

    fn start_header(&mut self) {
        self.entry_at = self.offset;
        self.buffer.clear();
        self.state = State::Header;
    }

    fn read_header(&mut self) -> Result<(), CpioErrorKind> {
        let bytes = self.buffer.first_chunk::<HEADER_LEN>().ok_or(CpioErrorKind::BadMagic)?;
        self.header = Header::parse(bytes)?;
        self.buffer.clear();
        self.state = State::Name;
        Ok(())
    }

    fn begin<S: Sink>(&mut self, sink: &mut S) -> Result<(), PushError<S::Error>> {
        let name = name_of(&self.buffer).map_err(|kind| self.fail(kind))?;
        self.is_trailer = name == TRAILER;
        if !self.is_trailer {
            sink.begin_entry(&self.header, name).map_err(PushError::Sink)?;
        }
        self.checksum = 0;
        self.pad(Next::Data);
        Ok(())
    }

    /// Skips to the next multiple of four, counted from the header: all before it is padded likewise.
    fn pad(&mut self, next: Next) {
        self.left = (self.entry_at.wrapping_sub(self.offset)) % 4;
        self.state = State::Padding(next);
    }

    fn follow(&mut self, next: Next) {
        match next {
            Next::Data => {
                self.left = u64::from(self.header.size);
                self.state = State::Data;
            }
            Next::Header => self.start_header(),
            Next::Between => self.state = State::Between,
        }
    }

    fn pass_data<S: Sink>(&mut self, rest: &mut &[u8], sink: &mut S) -> Result<(), PushError<S::Error>> {
        let count = self.count(rest);
        let data = self.take(rest, count);
        self.left -= data.len() as u64;
        let wanted = !self.is_trailer && self.header.has_data();
        if wanted && !data.is_empty() {
            if self.header.checksum.is_some() {
                self.checksum = sum(self.checksum, data);
            }
            sink.data(data).map_err(PushError::Sink)?;
        }
        if self.left > 0 {
            return Ok(());
        }
        if wanted && self.header.checksum.is_some_and(|want| want != self.checksum) {
            return Err(self.fail(CpioErrorKind::BadChecksum));
        }
        if self.is_trailer {
            self.archives += 1;
            sink.end_archive().map_err(PushError::Sink)?;
            self.pad(Next::Between);
        } else {
            sink.end_entry().map_err(PushError::Sink)?;
            self.pad(Next::Header);
        }
        Ok(())
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}
