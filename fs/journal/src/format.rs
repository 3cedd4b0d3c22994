//! The blocks of the log, as jbd2 lays them out (all numbers big-endian): header, descriptor tags, commit and revoke
//! blocks. Pure functions over byte slices: nothing here panics on foreign bytes (what does not fit reads as zero or
//! ends the walk).
//!
//! Source: the jbd2 format as the kernel's `Documentation/filesystems/ext4/journal.rst` gives it.

use crate::crc::crc32c;

/// First word of every block of the log that is not a copy of another.
pub const MAGIC: u32 = 0xC03B_3998;
/// Bytes of the common header: magic, type, sequence.
pub const HEADER: usize = 12;

/// What a log block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Tags that say where the following blocks belong.
    Descriptor,
    /// The end of a transaction.
    Commit,
    /// The journal's superblock, first version (not supported).
    SuperV1,
    /// The journal's superblock.
    SuperV2,
    /// Blocks whose earlier copies are not to be replayed.
    Revoke,
}

impl Kind {
    fn from_raw(raw: u32) -> Option<Kind> {
        Some(match raw {
            1 => Kind::Descriptor,
            2 => Kind::Commit,
            3 => Kind::SuperV1,
            4 => Kind::SuperV2,
            5 => Kind::Revoke,
            _ => return None,
        })
    }

    fn raw(self) -> u32 {
        match self {
            Kind::Descriptor => 1,
            Kind::Commit => 2,
            Kind::SuperV1 => 3,
            Kind::SuperV2 => 4,
            Kind::Revoke => 5,
        }
    }
}

/// How log blocks are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Not at all.
    None,
    /// CRC-32C, 16 bits of it in each tag.
    V2,
    /// CRC-32C, whole.
    V3,
}

/// What of the format depends on the journal's features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a block.
    pub block_size: usize,
    /// Block numbers have 64 bits.
    pub wide: bool,
    /// How blocks are checked.
    pub checksums: Checksums,
    /// CRC of the journal's UUID: where every checksum but the superblock's begins.
    pub seed: u32,
    /// The journal's UUID, which stands behind the first tag of each descriptor block.
    pub uuid: [u8; 16],
}

/// The big-endian number at `at`, or 0 past the end.
pub fn get32(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|s| s.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// As [`get32`], 16 bits.
pub fn get16(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2).and_then(|s| s.try_into().ok()).map_or(0, u16::from_be_bytes)
}

/// As [`get32`], 64 bits.
pub fn get64(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|s| s.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Stores `bytes` at `at`; nothing past the end.
pub fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(s) = b.get_mut(at..at + bytes.len()) {
        s.copy_from_slice(bytes);
    }
}

/// The kind and sequence of a log block, if it has the magic.
pub fn header(b: &[u8]) -> Option<(Kind, u32)> {
    if get32(b, 0) != MAGIC {
        return None;
    }
    Some((Kind::from_raw(get32(b, 4))?, get32(b, 8)))
}

/// Writes the common header.
pub fn put_header(b: &mut [u8], kind: Kind, sequence: u32) {
    put(b, 0, &MAGIC.to_be_bytes());
    put(b, 4, &kind.raw().to_be_bytes());
    put(b, 8, &sequence.to_be_bytes());
}

const ESCAPE: u32 = 1;
const SAME_UUID: u32 = 2;
const DELETED: u32 = 4;
const LAST: u32 = 8;

/// One tag of a descriptor block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Where the block belongs.
    pub block: u64,
    /// Its first word was the magic and is zero in the log.
    pub escaped: bool,
    /// Its checksum, as many bits as the layout has.
    pub checksum: u32,
}

impl Layout {
    /// Bytes of a tag without its UUID.
    pub fn tag_size(&self) -> usize {
        match (self.checksums, self.wide) {
            (Checksums::V3, _) => 16,
            (Checksums::V2, true) => 14,
            (Checksums::V2, false) => 10,
            (Checksums::None, true) => 12,
            (Checksums::None, false) => 8,
        }
    }

    /// Bytes at the end of descriptor and revoke blocks that hold their checksum.
    pub fn tail_size(&self) -> usize {
        if self.checksums == Checksums::None { 0 } else { 4 }
    }

    /// How many tags one descriptor block holds.
    pub fn tags_per_block(&self) -> usize {
        (self.block_size - HEADER - self.tail_size() - 16) / self.tag_size()
    }

    /// Bytes of a revoke record.
    pub fn revoke_size(&self) -> usize {
        if self.wide { 8 } else { 4 }
    }

    /// How many revoke records one block holds.
    pub fn revokes_per_block(&self) -> usize {
        (self.block_size - HEADER - 4 - self.tail_size()) / self.revoke_size()
    }

    /// The checksum of a block's copy in the log, cut to what a tag holds.
    pub fn data_checksum(&self, sequence: u32, logged: &[u8]) -> u32 {
        let crc = crc32c(crc32c(self.seed, &sequence.to_be_bytes()), logged);
        match self.checksums {
            Checksums::None => 0,
            Checksums::V2 => crc & 0xffff,
            Checksums::V3 => crc,
        }
    }

    /// Whether the copy `logged` is the one that `tag` describes.
    pub fn data_matches(&self, tag: &Tag, sequence: u32, logged: &[u8]) -> bool {
        self.checksums == Checksums::None || self.data_checksum(sequence, logged) == tag.checksum
    }

    /// Reads the tag at `at`: the tag, whether it is the last, and where the next begins. `None` past the block's end.
    fn tag_at(&self, b: &[u8], at: usize) -> Option<(Tag, bool, usize)> {
        let size = self.tag_size();
        if at + size > b.len().saturating_sub(self.tail_size()) {
            return None;
        }
        let (flags, checksum, high) = if self.checksums == Checksums::V3 {
            (get32(b, at + 4), get32(b, at + 12), get32(b, at + 8))
        } else {
            let sum = if self.checksums == Checksums::V2 { u32::from(get16(b, at + 4)) } else { 0 };
            (u32::from(get16(b, at + 6)), sum, get32(b, at + 8))
        };
        let mut block = u64::from(get32(b, at));
        if self.wide {
            block |= u64::from(high) << 32;
        }
        let next = at + size + if flags & SAME_UUID == 0 { 16 } else { 0 };
        let _ = DELETED;
        Some((Tag { block, escaped: flags & ESCAPE != 0, checksum }, flags & LAST != 0, next))
    }

    /// The tags of a descriptor block, in order.
    pub fn tags<'a>(&'a self, b: &'a [u8]) -> impl Iterator<Item = Tag> + 'a {
        let mut at = Some(HEADER);
        core::iter::from_fn(move || {
            let (tag, last, next) = self.tag_at(b, at?)?;
            at = (!last).then_some(next);
            Some(tag)
        })
    }

    /// Fills `b` with a descriptor block of these tags (at most [`Layout::tags_per_block`]).
    pub fn put_descriptor(&self, b: &mut [u8], sequence: u32, tags: &[Tag]) {
        b.fill(0);
        put_header(b, Kind::Descriptor, sequence);
        let mut at = HEADER;
        for (i, tag) in tags.iter().enumerate() {
            let mut flags = if i == 0 { 0 } else { SAME_UUID };
            flags |= if tag.escaped { ESCAPE } else { 0 };
            flags |= if i + 1 == tags.len() { LAST } else { 0 };
            put(b, at, &(tag.block as u32).to_be_bytes());
            let high = ((tag.block >> 32) as u32).to_be_bytes();
            if self.checksums == Checksums::V3 {
                put(b, at + 4, &flags.to_be_bytes());
                put(b, at + 8, &high);
                put(b, at + 12, &tag.checksum.to_be_bytes());
            } else {
                put(b, at + 4, &(tag.checksum as u16).to_be_bytes());
                put(b, at + 6, &(flags as u16).to_be_bytes());
                if self.wide {
                    put(b, at + 8, &high);
                }
            }
            at += self.tag_size();
            if i == 0 {
                put(b, at, &self.uuid);
                at += 16;
            }
        }
        self.put_tail(b);
    }

    /// Fills `b` with a revoke block of these block numbers (at most [`Layout::revokes_per_block`]).
    pub fn put_revoke(&self, b: &mut [u8], sequence: u32, blocks: &[u64]) {
        b.fill(0);
        put_header(b, Kind::Revoke, sequence);
        let used = HEADER + 4 + blocks.len() * self.revoke_size();
        put(b, HEADER, &(used as u32).to_be_bytes());
        for (i, block) in blocks.iter().enumerate() {
            let at = HEADER + 4 + i * self.revoke_size();
            if self.wide {
                put(b, at, &block.to_be_bytes());
            } else {
                put(b, at, &(*block as u32).to_be_bytes());
            }
        }
        self.put_tail(b);
    }

    /// The block numbers of a revoke block; `None` if its length is impossible.
    pub fn revokes<'a>(&'a self, b: &'a [u8]) -> Option<impl Iterator<Item = u64> + 'a> {
        let used = get32(b, HEADER) as usize;
        if used < HEADER + 4 || used > b.len().saturating_sub(self.tail_size()) {
            return None;
        }
        let records = b.get(HEADER + 4..used)?;
        Some(
            records
                .chunks_exact(self.revoke_size())
                .map(|r| if r.len() == 8 { get64(r, 0) } else { u64::from(get32(r, 0)) }),
        )
    }

    fn put_tail(&self, b: &mut [u8]) {
        if self.checksums != Checksums::None {
            let at = b.len() - 4;
            put(b, at, &[0; 4]);
            let crc = crc32c(self.seed, b);
            put(b, at, &crc.to_be_bytes());
        }
    }

    /// Whether a descriptor or revoke block has the checksum that its tail holds.
    pub fn tail_matches(&self, b: &[u8]) -> bool {
        if self.checksums == Checksums::None {
            return true;
        }
        let Some((body, tail)) = b.split_last_chunk::<4>() else { return false };
        crc32c(crc32c(self.seed, body), &[0; 4]) == u32::from_be_bytes(*tail)
    }

    /// Fills `b` with a commit block, made at `time_ns` after 1970.
    pub fn put_commit(&self, b: &mut [u8], sequence: u32, time_ns: u64) {
        b.fill(0);
        put_header(b, Kind::Commit, sequence);
        put(b, 0x30, &(time_ns / 1_000_000_000).to_be_bytes());
        put(b, 0x38, &((time_ns % 1_000_000_000) as u32).to_be_bytes());
        if self.checksums != Checksums::None {
            let crc = crc32c(self.seed, b);
            put(b, 0x10, &crc.to_be_bytes());
        }
    }

    /// Whether a commit block has the checksum that it claims.
    pub fn commit_matches(&self, b: &[u8]) -> bool {
        if self.checksums == Checksums::None {
            return true;
        }
        let (Some(head), Some(rest)) = (b.get(..0x10), b.get(0x14..)) else { return false };
        crc32c(crc32c(crc32c(self.seed, head), &[0; 4]), rest) == get32(b, 0x10)
    }
}

/// Whether a commit block has `sum` as the checksum of its transaction, or none at all.
pub fn commit_sums_up(b: &[u8], sum: u32) -> bool {
    let kind = (b.get(0x0c), b.get(0x0d), get32(b, 0x10));
    kind == (Some(&1), Some(&4), sum) || kind == (Some(&0), Some(&0), 0)
}

/// A commit block's time: seconds, then nanoseconds.
pub fn commit_time(b: &[u8]) -> (u64, u32) {
    (get64(b, 0x30), get32(b, 0x38))
}

/// Makes `b` fit for the log: a block that begins with the magic would be taken for one of the log's own, so its first word
/// is zeroed there. Says whether that was needed.
pub fn escape(b: &mut [u8]) -> bool {
    let needed = get32(b, 0) == MAGIC;
    if needed {
        put(b, 0, &[0; 4]);
    }
    needed
}

/// Undoes [`escape`].
pub fn unescape(b: &mut [u8]) {
    put(b, 0, &MAGIC.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layouts() -> impl Iterator<Item = Layout> {
        [Checksums::None, Checksums::V2, Checksums::V3].into_iter().flat_map(|checksums| {
            [false, true].into_iter().map(move |wide| Layout {
                block_size: 1024,
                wide,
                checksums,
                seed: 0x1234_5678,
                uuid: [7; 16],
            })
        })
    }

    #[test]
    fn tags_come_back() {
        for l in layouts() {
            let n = l.tags_per_block();
            let mask = if l.checksums == Checksums::V2 {
                0xffff
            } else if l.checksums == Checksums::V3 {
                !0
            } else {
                0
            };
            let tags: Vec<Tag> = (0..n as u64)
                .map(|i| Tag {
                    block: i * 977 + if l.wide { i << 33 } else { 0 },
                    escaped: i % 3 == 0,
                    checksum: (i as u32).wrapping_mul(0x9E37_79B9) & mask,
                })
                .collect();
            let mut b = vec![0; 1024];
            l.put_descriptor(&mut b, 9, &tags);
            assert_eq!(header(&b), Some((Kind::Descriptor, 9)));
            assert!(l.tail_matches(&b));
            assert_eq!(l.tags(&b).collect::<Vec<_>>(), tags);
            b[100] ^= 1;
            assert_eq!(l.tail_matches(&b), l.checksums == Checksums::None);
        }
    }

    #[test]
    fn revokes_and_commits_come_back() {
        for l in layouts() {
            let blocks: Vec<u64> = (0..l.revokes_per_block() as u64).map(|i| i * 31).collect();
            let mut b = vec![0; 1024];
            l.put_revoke(&mut b, 5, &blocks);
            assert!(l.tail_matches(&b));
            assert_eq!(l.revokes(&b).map(Iterator::collect::<Vec<_>>), Some(blocks));
            l.put_commit(&mut b, 6, 1_500_000_000_000_000_007);
            assert!(l.commit_matches(&b));
            assert_eq!(commit_time(&b), (1_500_000_000, 7));
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
            for l in layouts() {
                let _ = header(&bytes);
                prop_assert!(l.tags(&bytes).count() <= 1100);
                let _ = l.revokes(&bytes).map(Iterator::count);
                let _ = (l.tail_matches(&bytes), l.commit_matches(&bytes), commit_time(&bytes));
            }
        }
    }
}
