//! Directories: blocks of entries, each block sorted, and the blocks among them.
//!
//! A block starts with its entries of 12 bytes (inode number, where the name starts, type), the first of which thereby says how
//! many there are; the names follow without separators, the last one ends with the block or a NUL.

use crate::layout::{BLOCK, CORRUPT, le16, le64};
use abi::{Errno, Result};
use core::cmp::Ordering;
use vfs::FileType;

const ENTRY: usize = 12;

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) nid: u64,
    pub(crate) kind: u8,
    pub(crate) name: &'a [u8],
}

/// A block of a directory; the last one may be short.
pub(crate) struct Block<'a>(&'a [u8]);

impl<'a> Block<'a> {
    /// Checks the entries' number.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Block<'a>> {
        let first = usize::from(le16(bytes, 8));
        if bytes.len() < ENTRY || first < ENTRY || first > bytes.len() || !first.is_multiple_of(ENTRY) {
            return Err(CORRUPT);
        }
        Ok(Block(bytes))
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(le16(self.0, 8)) / ENTRY
    }

    pub(crate) fn entry(&self, n: usize) -> Result<Entry<'a>> {
        let at = n * ENTRY;
        let start = usize::from(le16(self.0, at + 8));
        let end = if n + 1 < self.len() { usize::from(le16(self.0, at + ENTRY + 8)) } else { self.0.len() };
        let name = self.0.get(start..end).ok_or(CORRUPT)?;
        let name = match name.iter().position(|b| *b == 0) {
            Some(n) => &name[..n],
            None => name,
        };
        if name.is_empty() || name.len() > vfs::NAME_MAX || name.contains(&b'/') {
            return Err(CORRUPT);
        }
        Ok(Entry { nid: le64(self.0, at), kind: self.0[at + 10], name })
    }

    /// The entry `name`, or whether it would come before this block's first or behind its last.
    pub(crate) fn find(&self, name: &[u8]) -> Result<core::result::Result<Entry<'a>, Ordering>> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let entry = self.entry(middle)?;
            match name.cmp(entry.name) {
                Ordering::Equal => return Ok(Ok(entry)),
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        Ok(Err(match low {
            0 => Ordering::Less,
            n if n == self.len() => Ordering::Greater,
            _ => Ordering::Equal,
        }))
    }
}

/// Looks `name` up in a directory of `size` bytes; `read` fills a buffer with the block at a number.
pub(crate) fn lookup(size: u64, name: &[u8], mut read: impl FnMut(u64, &mut [u8]) -> Result<usize>) -> Result<u64> {
    let mut buf = [0; BLOCK as usize];
    let (mut low, mut high) = (0, size.div_ceil(BLOCK));
    while low < high {
        let middle = u64::midpoint(low, high);
        let n = read(middle, &mut buf)?;
        match Block::new(&buf[..n])?.find(name)? {
            Ok(entry) => return Ok(entry.nid),
            Err(Ordering::Less) => high = middle,
            Err(Ordering::Greater) => low = middle + 1,
            Err(Ordering::Equal) => break,
        }
    }
    Err(Errno::ENOENT)
}

/// The type that an entry gives; `EUCLEAN` for none.
pub(crate) fn file_type(kind: u8) -> Result<FileType> {
    Ok(match kind {
        1 => FileType::Regular,
        2 => FileType::Dir,
        3 => FileType::Char,
        4 => FileType::Block,
        5 => FileType::Fifo,
        6 => FileType::Socket,
        7 => FileType::Symlink,
        _ => return Err(CORRUPT),
    })
}
