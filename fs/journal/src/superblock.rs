//! The journal's superblock: its first block. 1024 bytes, big-endian; the second version of the format only.

use crate::crc::crc32c;
use crate::format::{Checksums, Kind, Layout, get32, header, put};
use crate::recovery::Refusal;
use alloc::vec::Vec;

/// Compatible feature: commit blocks carry a checksum of the whole transaction (the first kind). Read, never written.
const COMPAT_CHECKSUM: u32 = 1;
/// Incompatible features.
const REVOKE: u32 = 1;
const WIDE: u32 = 2;
const ASYNC_COMMIT: u32 = 4;
const CSUM_V2: u32 = 8;
const CSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
const KNOWN: u32 = REVOKE | WIDE | ASYNC_COMMIT | CSUM_V2 | CSUM_V3;

/// Bytes of the superblock.
pub const SIZE: usize = 1024;

/// The journal's superblock, as read. Fields that are not named keep their bytes.
#[derive(Clone, Debug)]
pub struct Superblock {
    raw: Vec<u8>,
}

impl Superblock {
    /// Takes the first bytes of the journal. Refuses what is no journal of a kind that is understood, or whose geometry
    /// does not fit `block_size` bytes a block and `blocks` blocks.
    pub fn parse(raw: &[u8], block_size: usize, blocks: u32) -> Result<Self, Refusal> {
        let raw: Vec<u8> = raw.get(..SIZE).ok_or(Refusal::NotAJournal)?.to_vec();
        match header(&raw) {
            Some((Kind::SuperV2, _)) => {}
            Some((Kind::SuperV1, _)) => return Err(Refusal::Version),
            _ => return Err(Refusal::NotAJournal),
        }
        let sb = Superblock { raw };
        let unknown = sb.incompat() & !KNOWN;
        if unknown != 0 {
            return Err(if unknown == FAST_COMMIT { Refusal::FastCommit } else { Refusal::Features(unknown) });
        }
        if get32(&sb.raw, 0x2c) != 0 {
            return Err(Refusal::Features(get32(&sb.raw, 0x2c)));
        }
        if sb.incompat() & CSUM_V2 != 0 && sb.incompat() & CSUM_V3 != 0 {
            return Err(Refusal::Features(CSUM_V2 | CSUM_V3));
        }
        if sb.incompat() & (CSUM_V2 | CSUM_V3) != 0 && (sb.raw[0x50] != 4 || sb.checksum() != get32(&sb.raw, 0xfc)) {
            return Err(Refusal::Checksum);
        }
        let geometry_fits = get32(&sb.raw, 0x0c) as usize == block_size
            && sb.len() <= blocks
            && sb.first() >= 1
            && sb.first() < sb.len()
            && sb.len() - sb.first() >= 16
            && (sb.start() == 0 || (sb.start() >= sb.first() && sb.start() < sb.len()));
        if geometry_fits { Ok(sb) } else { Err(Refusal::Geometry) }
    }

    fn set(&mut self, at: usize, value: u32) {
        put(&mut self.raw, at, &value.to_be_bytes());
    }

    fn checksum(&self) -> u32 {
        let mut copy = self.raw.clone();
        put(&mut copy, 0xfc, &[0; 4]);
        crc32c(!0, &copy)
    }

    fn incompat(&self) -> u32 {
        get32(&self.raw, 0x28)
    }

    /// Blocks of the journal, superblock included.
    pub fn len(&self) -> u32 {
        get32(&self.raw, 0x10)
    }

    /// First block of the log proper.
    pub fn first(&self) -> u32 {
        get32(&self.raw, 0x14)
    }

    /// Sequence of the first transaction in the log, or of the next to be written if the log is empty.
    pub fn sequence(&self) -> u32 {
        get32(&self.raw, 0x18)
    }

    /// Where the log begins; 0: nothing to recover.
    pub fn start(&self) -> u32 {
        get32(&self.raw, 0x1c)
    }

    /// The error that made somebody abort this journal (a Linux error number, as stored), or 0.
    pub fn errno(&self) -> i32 {
        get32(&self.raw, 0x20) as i32
    }

    /// Stores where the log begins.
    pub fn set_tail(&mut self, sequence: u32, start: u32) {
        self.set(0x18, sequence);
        self.set(0x1c, start);
    }

    /// Stores the error that aborted the journal.
    pub fn set_errno(&mut self, errno: i32) {
        self.set(0x20, errno as u32);
    }

    /// The journal's UUID.
    pub fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.raw[0x30..0x40]);
        uuid
    }

    /// Says that revoke records occur, and sets what else the file system wants. Only while the log is empty.
    pub fn set_features(&mut self, wide: bool, checksums: Checksums) {
        let mut f = self.incompat() & !(WIDE | CSUM_V2 | CSUM_V3 | ASYNC_COMMIT) | REVOKE;
        f |= if wide { WIDE } else { 0 };
        f |= match checksums {
            Checksums::None => 0,
            Checksums::V2 => CSUM_V2,
            Checksums::V3 => CSUM_V3,
        };
        self.set(0x28, f);
        let compat = get32(&self.raw, 0x24) & !COMPAT_CHECKSUM;
        self.set(0x24, compat);
        self.raw[0x50] = if checksums == Checksums::None { 0 } else { 4 };
    }

    /// What of the log's format these features fix.
    pub fn layout(&self) -> Layout {
        let f = self.incompat();
        Layout {
            block_size: get32(&self.raw, 0x0c) as usize,
            wide: f & WIDE != 0,
            checksums: if f & CSUM_V3 != 0 {
                Checksums::V3
            } else if f & CSUM_V2 != 0 {
                Checksums::V2
            } else {
                Checksums::None
            },
            seed: crc32c(!0, &self.uuid()),
            uuid: self.uuid(),
        }
    }

    /// Whether commit blocks may carry a checksum of their transaction.
    pub fn has_transaction_sums(&self) -> bool {
        get32(&self.raw, 0x24) & COMPAT_CHECKSUM != 0 && self.incompat() & (CSUM_V2 | CSUM_V3) == 0
    }

    /// The bytes to store, with their checksum brought up to date.
    pub fn bytes(&mut self) -> &[u8] {
        let sum = if self.incompat() & (CSUM_V2 | CSUM_V3) != 0 { self.checksum() } else { 0 };
        self.set(0xfc, sum);
        &self.raw
    }
}
