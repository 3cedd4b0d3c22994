//! Archives in memory.

use super::header::{name_of, sum};
use super::{CpioError, CpioErrorKind, HEADER_LEN, Header, TRAILER};

/// One entry of an archive in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Numbers.
    pub header: Header,
    /// Name without its NUL.
    pub name: &'a [u8],
    /// A file's bytes or a symbolic link's target; empty for all else.
    pub data: &'a [u8],
}

/// The entries of all archives in a slice; the trailers are left out. After an error it ends.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    image: &'a [u8],
    at: usize,
    inside: bool,
    ended: bool,
}

impl<'a> Entries<'a> {
    /// Starts at the first byte of `image`.
    pub const fn new(image: &'a [u8]) -> Self {
        Self { image, at: 0, inside: false, ended: false }
    }

    fn read(&mut self) -> Result<Option<Entry<'a>>, CpioErrorKind> {
        loop {
            if !self.inside {
                let rest = self.image.get(self.at..).unwrap_or(&[]);
                let Some(zeros) = rest.iter().position(|byte| *byte != 0) else { return Ok(None) };
                self.at += zeros;
                if rest.get(zeros) != Some(&b'0') {
                    return Err(CpioErrorKind::BadMagic);
                }
            }
            let rest = self.image.get(self.at..).unwrap_or(&[]);
            let Some(bytes) = rest.first_chunk::<HEADER_LEN>() else {
                return Err(CpioErrorKind::Truncated);
            };
            let header = Header::parse(bytes)?;
            let field = rest.get(HEADER_LEN..HEADER_LEN + header.name_len as usize).ok_or(CpioErrorKind::Truncated)?;
            let name = name_of(field)?;
            let (start, size) = (header.data_offset() as usize, header.size as usize);
            let data = rest.get(start..).and_then(|rest| rest.get(..size)).ok_or(CpioErrorKind::Truncated)?;
            self.inside = name != TRAILER;
            let data = if self.inside && header.has_data() { data } else { &[] };
            let has_sum = self.inside && header.has_data();
            if has_sum && header.checksum.is_some_and(|want| sum(0, data) != want) {
                return Err(CpioErrorKind::BadChecksum);
            }
            self.at += (start + size).next_multiple_of(4);
            if self.inside {
                return Ok(Some(Entry { header, name, data }));
            }
        }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, CpioError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.read() {
            Ok(Some(entry)) => return Some(Ok(entry)),
            Ok(None) => self.ended = true,
            Err(kind) => {
                self.ended = true;
                return Some(Err(CpioError { at: self.at as u64, kind }));
            }
        }
        None
    }
}
