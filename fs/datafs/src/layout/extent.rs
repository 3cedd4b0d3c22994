//! Nodes of extent trees: a header, and entries in rising order of file blocks: extents in leaves, indexes above. The root
//! is the 60 bytes of `i_block`; the other nodes are blocks whose last bytes hold a checksum.

use crate::layout::{join, part, put_u16, put_u32, u16_at, u32_at};
use abi::{Errno, Result};
use alloc::vec::Vec;

/// `eh_magic`
pub const MAGIC: u16 = 0xf30a;
/// The deepest tree: five levels of indexes cover every file.
pub const MAX_DEPTH: u16 = 5;
/// The length of the header, and of each entry.
pub const ENTRY: usize = 12;
/// The longest extent that is written.
pub const MAX_LEN: u32 = 32768;
/// The longest extent that is not written yet.
pub const MAX_UNWRITTEN: u32 = 32767;

/// A run of blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first block in the file.
    pub block: u32,
    /// How many.
    pub len: u32,
    /// The first block on disk.
    pub start: u64,
    /// Allocated but not written: reads as zeroes.
    pub unwritten: bool,
}

impl Extent {
    /// The block in the file behind the last.
    pub fn end(&self) -> u64 {
        u64::from(self.block) + u64::from(self.len)
    }

    /// The longest that it may become.
    pub fn max_len(&self) -> u32 {
        if self.unwritten { MAX_UNWRITTEN } else { MAX_LEN }
    }

    /// The part within `from..to` of the file; `None` if there is none.
    pub fn cut(&self, from: u64, to: u64) -> Option<Extent> {
        let a = from.max(u64::from(self.block));
        let b = to.min(self.end());
        (a < b).then(|| Extent {
            block: a as u32,
            len: (b - a) as u32,
            start: self.start + (a - u64::from(self.block)),
            unwritten: self.unwritten,
        })
    }

    /// Takes `next` in if it continues this one.
    pub fn absorb(&mut self, next: &Extent) -> bool {
        let fits = self.end() == u64::from(next.block)
            && self.start + u64::from(self.len) == next.start
            && self.unwritten == next.unwritten
            && self.len + next.len <= self.max_len();
        if fits {
            self.len += next.len;
        }
        fits
    }
}

/// A child in an inner node: the first block of the file that it may hold, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// The first block in the file.
    pub block: u32,
    /// The block on disk that holds the child.
    pub child: u64,
}

/// The entries of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entries {
    /// Of a leaf.
    Leaf(Vec<Extent>),
    /// Of an inner node, at this height above the leaves.
    Inner(u16, Vec<Index>),
}

/// A node's header, checked against the bytes it stands in.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Number of entries.
    pub entries: usize,
    /// Height above the leaves.
    pub depth: u16,
}

/// How many entries fit into a node of `len` bytes.
pub fn capacity(len: usize) -> usize {
    len / ENTRY - 1
}

/// Where the checksum of a node of `len` bytes lies: behind the entries.
pub fn tail_at(len: usize) -> usize {
    ENTRY + capacity(len) * ENTRY
}

/// Reads the header; `EUCLEAN` unless it is possible.
pub fn header(bytes: &[u8]) -> Result<Header> {
    let entries = usize::from(u16_at(bytes, 2));
    let max = usize::from(u16_at(bytes, 4));
    let depth = u16_at(bytes, 6);
    if u16_at(bytes, 0) != MAGIC || entries > max || max > capacity(bytes.len()) || max == 0 || depth > MAX_DEPTH {
        return Err(Errno::EUCLEAN);
    }
    Ok(Header { entries, depth })
}

fn extent_at(bytes: &[u8], i: usize) -> Extent {
    let at = ENTRY * (i + 1);
    let raw = u32::from(u16_at(bytes, at + 4));
    let unwritten = raw > MAX_LEN;
    Extent {
        block: u32_at(bytes, at),
        len: if unwritten { raw - MAX_LEN } else { raw },
        start: join(u32_at(bytes, at + 8), u32::from(u16_at(bytes, at + 6))),
        unwritten,
    }
}

fn index_at(bytes: &[u8], i: usize) -> Index {
    let at = ENTRY * (i + 1);
    Index { block: u32_at(bytes, at), child: join(u32_at(bytes, at + 4), u32::from(u16_at(bytes, at + 8))) }
}

/// The number of entries that begin at or before `block`.
fn position(bytes: &[u8], entries: usize, block: u32) -> usize {
    let (mut lo, mut hi) = (0, entries);
    while lo < hi {
        let mid = usize::midpoint(lo, hi);
        if u32_at(bytes, ENTRY * (mid + 1)) <= block {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    lo
}

/// In a leaf: the extent that begins last at or before `block`, and where the next one begins.
pub fn find_extent(bytes: &[u8], block: u32) -> Result<(Option<Extent>, Option<u32>)> {
    let h = header(bytes)?;
    let n = position(bytes, h.entries, block);
    let before = n.checked_sub(1).map(|i| extent_at(bytes, i));
    let next = (n < h.entries).then(|| extent_at(bytes, n).block);
    Ok((before, next))
}

/// In an inner node: the child for `block`, and where the next one begins.
pub fn find_child(bytes: &[u8], block: u32) -> Result<(Index, Option<u32>)> {
    let h = header(bytes)?;
    if h.entries == 0 {
        return Err(Errno::EUCLEAN);
    }
    let n = position(bytes, h.entries, block).max(1);
    let next = (n < h.entries).then(|| index_at(bytes, n).block);
    Ok((index_at(bytes, n - 1), next))
}

/// All entries. `EUCLEAN` unless they rise and do not overlap, and each run satisfies `valid` (first block, length).
pub fn decode(bytes: &[u8], valid: &dyn Fn(u64, u32) -> bool) -> Result<Entries> {
    let h = header(bytes)?;
    if h.depth > 0 {
        let v: Vec<Index> = (0..h.entries).map(|i| index_at(bytes, i)).collect();
        let good = v.windows(2).all(|w| w[0].block < w[1].block) && v.iter().all(|x| valid(x.child, 1));
        return if good { Ok(Entries::Inner(h.depth, v)) } else { Err(Errno::EUCLEAN) };
    }
    let v: Vec<Extent> = (0..h.entries).map(|i| extent_at(bytes, i)).collect();
    let good = v.windows(2).all(|w| w[0].end() <= u64::from(w[1].block))
        && v.iter().all(|e| e.len > 0 && e.end() <= 1 << 32 && valid(e.start, e.len));
    if good { Ok(Entries::Leaf(v)) } else { Err(Errno::EUCLEAN) }
}

/// Writes the entries, which must fit, into a node. The generation is kept.
pub fn encode(bytes: &mut [u8], entries: &Entries) {
    let max = capacity(bytes.len());
    let (depth, n) = match entries {
        Entries::Leaf(v) => (0, v.len()),
        Entries::Inner(d, v) => (*d, v.len()),
    };
    put_u16(bytes, 0, MAGIC);
    put_u16(bytes, 2, n as u16);
    put_u16(bytes, 4, max as u16);
    put_u16(bytes, 6, depth);
    match entries {
        Entries::Leaf(v) => {
            for (i, e) in v.iter().enumerate().take(max) {
                let at = ENTRY * (i + 1);
                put_u32(bytes, at, e.block);
                put_u16(bytes, at + 4, (if e.unwritten { e.len + MAX_LEN } else { e.len }) as u16);
                put_u16(bytes, at + 6, (e.start >> 32) as u16);
                put_u32(bytes, at + 8, e.start as u32);
            }
        }
        Entries::Inner(_, v) => {
            for (i, x) in v.iter().enumerate().take(max) {
                let at = ENTRY * (i + 1);
                put_u32(bytes, at, x.block);
                put_u32(bytes, at + 4, x.child as u32);
                put_u16(bytes, at + 8, (x.child >> 32) as u16);
                put_u16(bytes, at + 10, 0);
            }
        }
    }
    let used = ENTRY * (n + 1);
    let end = tail_at(bytes.len());
    if let Some(rest) = bytes.get_mut(used..end) {
        rest.fill(0);
    }
}

/// What the checksum of a node, other than the root, should be.
pub fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    crate::crc::crc32c(seed, part(bytes, 0, tail_at(bytes.len())).unwrap_or(&[]))
}

/// The checksum as it stands in the node.
pub fn stored_checksum(bytes: &[u8]) -> u32 {
    u32_at(bytes, tail_at(bytes.len()))
}

/// Puts the checksum in.
pub fn store_checksum(seed: u32, bytes: &mut [u8]) {
    let crc = checksum(seed, bytes);
    let at = tail_at(bytes.len());
    put_u32(bytes, at, crc);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_back_as_written() {
        let e = |block, len, start, unwritten| Extent { block, len, start, unwritten };
        let v = vec![e(0, 32768, 1 << 40, false), e(40000, 5, 77, true), e(50000, 32767, 99, true)];
        let mut b = vec![0; 1024];
        encode(&mut b, &Entries::Leaf(v.clone()));
        assert_eq!(decode(&b, &|_, _| true), Ok(Entries::Leaf(v.clone())));
        assert_eq!(find_extent(&b, 40004).unwrap(), (Some(v[1]), Some(50000)));
        assert_eq!(decode(&b, &|start, _| start != 77), Err(Errno::EUCLEAN));
        assert_eq!(v[1].cut(40002, 50000), Some(e(40002, 3, 79, true)));
    }

    #[test]
    fn impossible_nodes_are_refused() {
        let mut b = vec![0; 60];
        assert!(header(&b).is_err());
        encode(&mut b, &Entries::Leaf(vec![]));
        put_u16(&mut b, 2, 5);
        assert!(header(&b).is_err());
        put_u16(&mut b, 4, 5);
        assert!(header(&b).is_err());
    }
}
