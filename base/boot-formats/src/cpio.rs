//! Reading `newc` archives (cpio(5); Linux's `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! An initramfs is one or more archives, each ended by an entry called `TRAILER!!!`, with any number of zero bytes
//! between them. Two readers: [`Entries`] over a slice that holds it all, and [`Parser`], a state machine that takes the
//! bytes in pieces of any size and calls a [`Sink`], so that a decompressed archive never needs to be in memory as a
//! whole. Both accept the same archives; tests hold them against each other.
//!
//! **Hard links.** Entries of one archive with `nlink` over 1 and the same [`Header::link_key`] are one file. GNU cpio
//! writes its bytes with the last of them, others with the first; the rest have size 0. So a sink makes the file at the
//! first, links at the others, and writes wherever there is data.
//!
//! **Strictness.** Like Linux, names may be absolute or not, and what they mean is the sink's affair, as is `..` in them.
//! Unlike Linux, which skips what it cannot read, a number that is not hexadecimal, a name that has no end or is empty,
//! and an archive that stops before its trailer are errors, with the offset: a broken initramfs should be told, not
//! half used. An archive may start at any offset; only within it does padding count. Checksums of the `070702` variant are verified.

mod entries;
mod header;
mod parser;

pub use entries::{Entries, Entry};
pub use header::{FileType, HEADER_LEN, Header, LinkKey};
pub use parser::{Parser, PushError, Sink};

/// Longest name with its NUL (`PATH_MAX`).
pub const MAX_NAME: usize = 4096;
const TRAILER: &[u8] = b"TRAILER!!!";

/// What is wrong with an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpioErrorKind {
    /// No header where one must be.
    BadMagic,
    /// The old portable format (`070707`), which Linux doesn't take either.
    OldFormat,
    /// A field of a header is not hexadecimal.
    BadNumber,
    /// A name of this length: empty or longer than [`MAX_NAME`].
    BadNameLength(u32),
    /// A name that doesn't end with a NUL.
    NameUnterminated,
    /// The sum of a file's bytes is not what its header says.
    BadChecksum,
    /// The input ends inside an archive.
    Truncated,
}

/// What is wrong with an archive, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpioError {
    /// Offset in bytes of the header concerned, or of the input's end.
    pub at: u64,
    /// What.
    pub kind: CpioErrorKind,
}

impl core::fmt::Display for CpioError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.kind {
            CpioErrorKind::BadMagic => write!(f, "cpio: no header")?,
            CpioErrorKind::OldFormat => write!(f, "cpio: old portable format, needs newc")?,
            CpioErrorKind::BadNumber => write!(f, "cpio: bad number in header")?,
            CpioErrorKind::BadNameLength(len) => write!(f, "cpio: name of {len} bytes")?,
            CpioErrorKind::NameUnterminated => write!(f, "cpio: name without end")?,
            CpioErrorKind::BadChecksum => write!(f, "cpio: bad checksum")?,
            CpioErrorKind::Truncated => write!(f, "cpio: truncated")?,
        }
        write!(f, " at offset {:#x}", self.at)
    }
}

impl core::error::Error for CpioError {}
