//! What may be given as `-initrd`: cpio archives, plain or compressed, one after another, with zeros between them (as
//! Linux's `init/initramfs.c` takes them), or something else that [`sniff`] names.
//!
//! [`Unpacker`] takes the image in pieces and feeds a [`Sink`], so the caller can give the pages behind it back at once.

use crate::cpio::{self, CpioError, Parser, Sink};
use crate::gzip::{self, Decoder, GzipError, Workspace};

/// What an image starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A cpio archive of any kind; only `newc` can be read.
    Cpio,
    /// gzip.
    Gzip,
    /// An EROFS filesystem.
    Erofs,
    /// A compression that Linux may know but that isn't done here.
    Compressed(&'static str),
    /// Nothing known.
    Unknown,
}

/// Offset and first word of an EROFS superblock.
const EROFS_SUPERBLOCK: usize = 1024;
const EROFS_MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();

/// Tells an image by its magic; leading zeros are passed over for archives, as [`Unpacker`] does.
pub fn sniff(image: &[u8]) -> Format {
    if image.get(EROFS_SUPERBLOCK..).is_some_and(|rest| rest.starts_with(&EROFS_MAGIC)) {
        return Format::Erofs;
    }
    let zeros = image.iter().take_while(|byte| **byte == 0).count();
    let start = &image[zeros..];
    let kinds: [(&[u8], Format); 10] = [
        (b"07070", Format::Cpio),
        (&[0xc7, 0x71], Format::Cpio),
        (&[0x1f, 0x8b], Format::Gzip),
        (&[0xfd, b'7', b'z', b'X', b'Z'], Format::Compressed("xz")),
        (&[0x28, 0xb5, 0x2f, 0xfd], Format::Compressed("zstd")),
        (b"BZh", Format::Compressed("bzip2")),
        (&[0x02, 0x21, 0x4c, 0x18], Format::Compressed("lz4")),
        (&[0x04, 0x22, 0x4d, 0x18], Format::Compressed("lz4")),
        (&[0x5d, 0, 0], Format::Compressed("lzma")),
        (&[0x89, b'L', b'Z', b'O'], Format::Compressed("lzo")),
    ];
    kinds.iter().find(|(magic, _)| start.starts_with(magic)).map_or(Format::Unknown, |(_, format)| *format)
}

/// Why unpacking stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackError<E> {
    /// An archive is broken. The offset counts decompressed bytes.
    Cpio(CpioError),
    /// Compressed data is broken. The offset counts bytes from the first compressed one.
    Gzip(GzipError),
    /// What starts at this offset of the image is neither cpio nor gzip.
    Unknown {
        /// Offset in bytes.
        at: u64,
        /// What it seems to be.
        format: Format,
    },
    /// The image holds no archive at all.
    Empty,
    /// The sink refused.
    Sink(E),
}

impl<E: core::fmt::Display> core::fmt::Display for UnpackError<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Cpio(error) => error.fmt(f),
            Self::Gzip(error) => error.fmt(f),
            Self::Unknown { at, format: Format::Compressed(name) } => {
                write!(f, "{name} at offset {at:#x} is not supported")
            }
            Self::Unknown { at, format: Format::Erofs } => write!(f, "an EROFS image at offset {at:#x} is no archive"),
            Self::Unknown { at, .. } => write!(f, "neither cpio nor gzip at offset {at:#x}"),
            Self::Empty => write!(f, "no archive in it"),
            Self::Sink(error) => error.fmt(f),
        }
    }
}

impl<E> From<cpio::PushError<E>> for UnpackError<E> {
    fn from(error: cpio::PushError<E>) -> Self {
        match error {
            cpio::PushError::Archive(error) => Self::Cpio(error),
            cpio::PushError::Sink(error) => Self::Sink(error),
        }
    }
}

/// Unpacks an image that comes in pieces of any size. It holds about 4 KiB and borrows the decoder's workspace.
#[derive(Debug)]
pub struct Unpacker<'w> {
    parser: Parser,
    gzip: Decoder<'w>,
    taken: u64,
    /// An archive is open whose bytes come out of the decoder.
    inside_compressed: bool,
}

impl<'w> Unpacker<'w> {
    /// An unpacker before the first byte, that takes at most `limit` bytes of decompressed data.
    pub fn new(workspace: &'w mut Workspace, limit: u64) -> Self {
        Self { parser: Parser::new(), gzip: Decoder::new(workspace, limit), taken: 0, inside_compressed: false }
    }

    /// Takes the next piece, all of it. After an error it must not be called again.
    pub fn push<S: Sink>(&mut self, piece: &[u8], sink: &mut S) -> Result<(), UnpackError<S::Error>> {
        let mut rest = piece;
        while let Some(first) = rest.first() {
            let compressed = !self.gzip.is_between() || self.inside_compressed;
            let count = if compressed {
                self.push_gzip(rest, sink)?
            } else if !self.parser.is_between() {
                self.parser.push(rest, sink)?
            } else {
                match first {
                    0 => rest.iter().take_while(|byte| **byte == 0).count(),
                    b'0' => self.parser.push(rest, sink)?,
                    0x1f => self.push_gzip(rest, sink)?,
                    _ => 0,
                }
            };
            if count == 0 {
                return Err(UnpackError::Unknown { at: self.taken, format: sniff(rest) });
            }
            self.taken += count as u64;
            rest = rest.get(count..).unwrap_or(&[]);
        }
        Ok(())
    }

    fn push_gzip<S: Sink>(&mut self, rest: &[u8], sink: &mut S) -> Result<usize, UnpackError<S::Error>> {
        let parser = &mut self.parser;
        let mut feed = |output: &[u8]| -> Result<(), UnpackError<S::Error>> {
            if parser.push(output, sink)? == output.len() {
                return Ok(());
            }
            Err(UnpackError::Cpio(CpioError { at: parser.offset(), kind: cpio::CpioErrorKind::BadMagic }))
        };
        let result = self.gzip.push(rest, &mut feed);
        // An archive may go on in the next member.
        self.inside_compressed = !self.parser.is_between();
        result.map_err(|error| match error {
            gzip::PushError::Gzip(error) => UnpackError::Gzip(error),
            gzip::PushError::Sink(error) => error,
        })
    }

    /// Says that nothing follows. Returns how many archives there were.
    pub fn finish<E>(&self) -> Result<u64, UnpackError<E>> {
        self.gzip.finish().map_err(UnpackError::Gzip)?;
        self.parser.finish().map_err(UnpackError::Cpio)?;
        if self.parser.archives() == 0 { Err(UnpackError::Empty) } else { Ok(self.parser.archives()) }
    }
}

/// Unpacks an image that is in memory as a whole. Returns how many archives it held.
pub fn unpack<S: Sink>(
    image: &[u8],
    workspace: &mut Workspace,
    limit: u64,
    sink: &mut S,
) -> Result<u64, UnpackError<S::Error>> {
    let mut unpacker = Unpacker::new(workspace, limit);
    unpacker.push(image, sink)?;
    unpacker.finish()
}
