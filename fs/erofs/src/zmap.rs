//! Where the clusters of compressed files lie.
//!
//! A file is cut into *logical clusters* of one block. The index has an entry for each: *head* (an extent starts in it, at a
//! byte offset; the entry also gives the block where the extent's *physical cluster* stands), *plain* (a head whose cluster
//! is stored as it is), or *nonhead* (no extent starts here; how far back the head is, and how far ahead the next). With big
//! clusters the first nonhead entry behind a head tells instead how many blocks the physical cluster has; without such an
//! entry it has one.
//!
//! The full index has 8 bytes an entry: type and flags, offset, and block number or two distances. The compact index packs 2
//! entries in 8 bytes, or 16 in 32, each with the type in 2 bits, then a block number for the whole pack: an entry's own block
//! is that number plus the blocks of the heads before it in the pack. Packs of 2 come until the address is a multiple of 32,
//! then packs of 16 as long as they are filled (if the inode says so), then packs of 2 again.

use crate::device::Device;
use crate::layout::{BLOCK, BLOCK_BITS, CORRUPT, DataLayout, RawInode, le16, le32};
use abi::{Errno, Result};

const ADVISE_COMPACT_2B: u16 = 1;
const ADVISE_BIG_1: u16 = 2;
const ADVISE_BIG_2: u16 = 4;
const ADVISE_INLINE: u16 = 8;
const ADVISE_INTERLACED: u16 = 0x10;
const ADVISE_FRAGMENT: u16 = 0x20;
/// In a distance: it is a number of blocks.
const BLOCK_COUNT: u32 = 1 << 11;
/// An extent is not longer than this, unpacked; mkfs.erofs makes them far shorter.
const MAX_EXTENT: u64 = 4 << 20;
/// A physical cluster is not longer than this (Z_EROFS_PCLUSTER_MAX_SIZE).
const MAX_CLUSTER: u64 = 1 << 20;

/// What the index is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    advise: u16,
    /// log2 of a logical cluster's size.
    bits: u32,
    /// Where the entries start.
    base: u64,
}

/// An extent: bytes of the file that are packed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// Its place in the file, and its length there.
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// Its place and length in the image.
    pub(crate) at: u64,
    pub(crate) packed: u64,
    pub(crate) kind: Kind,
}

/// How the bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Lz4,
    /// As they are, from the cluster's start.
    Plain,
    /// As they are, turned round so that each byte has the same place in its block as in the file.
    Interlaced,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Head {
        plain: bool,
        second: bool,
        offset: u32,
        block: u32,
    },
    /// The distance to the head before.
    Nonhead {
        back: u32,
    },
    /// The first nonhead of a big cluster of so many blocks.
    Count {
        blocks: u32,
    },
}

impl Header {
    /// Reads the header of a compressed file.
    pub(crate) fn read(device: &Device, inode: &RawInode) -> Result<Header> {
        let at = inode.data_at().next_multiple_of(8);
        let mut b = [0; 8];
        device.read(at, &mut b)?;
        let advise = le16(&b, 4);
        let known = ADVISE_COMPACT_2B | ADVISE_BIG_1 | ADVISE_BIG_2 | ADVISE_INTERLACED;
        if advise & (ADVISE_INLINE | ADVISE_FRAGMENT) != 0 || b[7] & 0x80 != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        // Algorithm 0 is LZ4, for both kinds of head.
        if advise & !known != 0 || b[6] != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let bits = BLOCK_BITS + u32::from(b[7] & 7);
        let compact = inode.layout == DataLayout::ClustersCompact;
        if compact && bits > 14 || compact && advise & ADVISE_COMPACT_2B != 0 && bits > 12 {
            return Err(CORRUPT);
        }
        // The full index comes behind 8 more bytes.
        Ok(Header { advise, bits, base: at + if compact { 8 } else { 16 } })
    }

    fn big(&self, second: bool) -> bool {
        self.advise & if second { ADVISE_BIG_2 } else { ADVISE_BIG_1 } != 0
    }

    /// How many logical clusters the file has.
    fn count(&self, inode: &RawInode) -> u64 {
        inode.size.div_ceil(1 << self.bits)
    }

    fn entry(&self, device: &Device, inode: &RawInode, n: u64) -> Result<Entry> {
        if n >= self.count(inode) {
            return Err(CORRUPT);
        }
        if inode.layout == DataLayout::ClustersFull {
            let mut b = [0; 8];
            device.read(self.base + n * 8, &mut b)?;
            return self.full_entry(b);
        }
        self.compact_entry(device, inode, n)
    }

    fn full_entry(&self, b: [u8; 8]) -> Result<Entry> {
        let b = &b;
        let kind = le16(b, 0) & 3;
        if kind == 2 {
            let back = u32::from(le16(b, 4));
            return if back & BLOCK_COUNT != 0 {
                self.block_count(back & !BLOCK_COUNT)
            } else {
                Ok(Entry::Nonhead { back })
            };
        }
        let offset = u32::from(le16(b, 2));
        if offset >> self.bits != 0 {
            return Err(CORRUPT);
        }
        Ok(Entry::Head { plain: kind == 0, second: kind == 3, offset, block: le32(b, 4) })
    }

    fn block_count(&self, blocks: u32) -> Result<Entry> {
        let big = self.advise & (ADVISE_BIG_1 | ADVISE_BIG_2) != 0;
        if !big || blocks == 0 { Err(CORRUPT) } else { Ok(Entry::Count { blocks }) }
    }

    /// Where the pack with entry `n` starts, how many entries it has, which of them `n` is, and the bits of each.
    fn pack_of(&self, inode: &RawInode, n: u64) -> (u64, u32, u32, u32) {
        let total = self.count(inode);
        let first = match (32 - self.base % 32) / 4 {
            8 => 0,
            k => k,
        };
        let two = if self.advise & ADVISE_COMPACT_2B != 0 && first < total { (total - first) / 16 * 16 } else { 0 };
        let (place, entry_bytes) = if n < first {
            (self.base + n * 4, 4)
        } else if n < first + two {
            (self.base + first * 4 + (n - first) * 2, 2)
        } else {
            (self.base + first * 4 + two * 2 + (n - first - two) * 4, 4)
        };
        let per_pack = if entry_bytes == 4 { 2u32 } else { 16 };
        let pack_bytes = u64::from(per_pack) * entry_bytes;
        let start = place / pack_bytes * pack_bytes;
        (start, per_pack, ((place - start) / entry_bytes) as u32, (pack_bytes as u32 - 4) * 8 / per_pack)
    }

    fn compact_entry(&self, device: &Device, inode: &RawInode, n: u64) -> Result<Entry> {
        let (start, per_pack, mut i, width) = self.pack_of(inode, n);
        let mut buf = [0; 36];
        let len = if per_pack == 2 { 8 } else { 32 };
        device.read(start, &mut buf[..len])?;
        let low_bits = self.bits.max(12);
        let look = |i: u32| {
            let bit = (width * i) as usize;
            let v = le32(&buf, bit / 8) >> (bit % 8);
            (v & ((1 << low_bits) - 1), v >> low_bits & 3)
        };
        let (low, kind) = look(i);
        if kind == 2 {
            if low & BLOCK_COUNT != 0 {
                return self.block_count(low & !BLOCK_COUNT);
            }
            if i + 1 != per_pack {
                return Ok(Entry::Nonhead { back: low });
            }
            // The last of a pack has the distance ahead: its own distance back is one more than its neighbour's.
            let (low, kind) = look(i - 1);
            let back = match kind {
                2 if low & BLOCK_COUNT != 0 => 1,
                2 => low,
                _ => 0,
            };
            return Ok(Entry::Nonhead { back: back + 1 });
        }
        let offset = low;
        let big = self.advise & (ADVISE_BIG_1 | ADVISE_BIG_2) != 0;
        // Blocks of the heads before it in the pack, counted backwards.
        let mut blocks = u32::from(!big);
        while i > 0 {
            i -= 1;
            let (low, kind) = look(i);
            if kind != 2 {
                blocks += 1;
            } else if !big {
                match i.checked_sub(low) {
                    Some(head) => {
                        i = head;
                        blocks += 1;
                    }
                    None => i = 0,
                }
            } else if low & BLOCK_COUNT != 0 {
                // The head of these blocks is just before.
                i = i.saturating_sub(1);
                blocks += low & !BLOCK_COUNT;
            } else if low <= 1 {
                return Err(CORRUPT);
            } else {
                // To the entry with the count, just behind the head.
                i = i.saturating_sub(low - 2);
            }
        }
        let base = le32(&buf, len - 4);
        if offset >> self.bits != 0 {
            return Err(CORRUPT);
        }
        Ok(Entry::Head { plain: kind == 0, second: kind == 3, offset, block: base.wrapping_add(blocks) })
    }

    /// The extent that holds the byte `offset`, below the file's size.
    pub(crate) fn find(&self, device: &Device, inode: &RawInode, offset: u64) -> Result<Cluster> {
        let mut n = offset >> self.bits;
        let within = (offset & ((1 << self.bits) - 1)) as u32;
        let mut entry = self.entry(device, inode, n)?;
        if let Entry::Head { offset, .. } = entry
            && within < offset
        {
            n = n.checked_sub(1).ok_or(CORRUPT)?;
            entry = self.entry(device, inode, n)?;
        }
        // Backwards to the head; each step goes back, so it ends.
        let (plain, second, head_offset, block) = loop {
            let back = match entry {
                Entry::Head { plain, second, offset, block } => break (plain, second, offset, block),
                Entry::Nonhead { back } => u64::from(back),
                Entry::Count { .. } => 1,
            };
            if back == 0 {
                return Err(CORRUPT);
            }
            n = n.checked_sub(back).ok_or(CORRUPT)?;
            entry = self.entry(device, inode, n)?;
        };
        let start = (n << self.bits) + u64::from(head_offset);
        if start > offset {
            return Err(CORRUPT);
        }
        let packed = u64::from(self.packed_blocks(device, inode, n, second)?) * BLOCK;
        let len = self.end_of(device, inode, n)?.checked_sub(start).ok_or(CORRUPT)?;
        if offset - start >= len || len > MAX_EXTENT || packed > MAX_CLUSTER {
            return Err(CORRUPT);
        }
        let kind = match plain {
            false => Kind::Lz4,
            true if self.advise & ADVISE_INTERLACED != 0 => Kind::Interlaced,
            true => Kind::Plain,
        };
        Ok(Cluster { start, len, at: u64::from(block) * BLOCK, packed, kind })
    }

    /// How many blocks the physical cluster of the head `n` has.
    fn packed_blocks(&self, device: &Device, inode: &RawInode, n: u64, second: bool) -> Result<u32> {
        let one = 1 << (self.bits - BLOCK_BITS);
        if !self.big(second) || (n + 1) << self.bits >= inode.size {
            return Ok(one);
        }
        match self.entry(device, inode, n + 1)? {
            Entry::Head { .. } => Ok(one),
            Entry::Count { blocks } => Ok(blocks),
            Entry::Nonhead { .. } => Err(CORRUPT),
        }
    }

    /// Where the extent of the head `n` ends in the file: at the next head.
    fn end_of(&self, device: &Device, inode: &RawInode, n: u64) -> Result<u64> {
        let mut at = n + 1;
        while at < self.count(inode) {
            if (at - n) << self.bits > MAX_EXTENT + (1 << self.bits) {
                return Err(CORRUPT);
            }
            match self.entry(device, inode, at)? {
                Entry::Head { offset, .. } => return Ok((at << self.bits) + u64::from(offset)),
                _ => at += 1,
            }
        }
        Ok(inode.size)
    }
}
