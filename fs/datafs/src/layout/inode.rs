//! Inodes: 128 bytes of old, more since, of which `extra_isize` says how many are fields; extended attributes fill the rest.

use crate::crc::crc32c;
use crate::layout::{join, part};
use abi::Timespec;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The part that all inodes have.
pub const OLD_SIZE: usize = 128;
/// The known part.
pub const FIELDS: usize = 160;
/// Where `i_block` lies.
pub const BLOCK_AT: usize = 0x28;
/// How long it is.
pub const BLOCK_LEN: usize = 60;

/// `i_flags`: all that `FS_IOC_GETFLAGS` shows.
pub const FLAGS_VISIBLE: u32 = 0x705b_dfff;
/// `i_flags`: those that can be set here: s, u, c, S, i, a, d, A, t, D, T. (`E`, `j` and `F` would need their features.)
pub const FLAGS_SETTABLE: u32 = 0x0003_80ff;
/// `i_flags`: what a new inode takes over from its directory.
pub const FLAGS_INHERITED: u32 = 0x0001_80cf;
/// `i_flags`: what files that are no directories cannot have.
pub const FLAGS_OF_DIRS: u32 = 0x0003_0000;
/// `i_flags`: what others than files and directories may have.
pub const FLAGS_OF_OTHERS: u32 = 0xc0;
/// `i_flags`: the directory has an index.
pub const FLAG_INDEX: u32 = 0x1000;
/// `i_flags`: the size in blocks counts file system blocks.
pub const FLAG_HUGE_FILE: u32 = 0x4_0000;
/// `i_flags`: mapped by extents.
pub const FLAG_EXTENTS: u32 = 0x8_0000;
/// `i_flags`: an attribute's value.
pub const FLAG_EA_INODE: u32 = 0x20_0000;
/// `i_flags`: content in the inode.
pub const FLAG_INLINE_DATA: u32 = 0x1000_0000;

/// The fields of an inode; those behind `extra_isize` are not valid.
#[allow(missing_docs)]
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawInode {
    pub mode: U16,
    pub uid_lo: U16,
    pub size_lo: U32,
    pub atime: U32,
    pub ctime: U32,
    pub mtime: U32,
    pub dtime: U32,
    pub gid_lo: U16,
    pub links: U16,
    pub blocks_lo: U32,
    pub flags: U32,
    pub version: U32,
    pub block: [u8; BLOCK_LEN],
    pub generation: U32,
    pub file_acl_lo: U32,
    pub size_hi: U32,
    pub obso_faddr: U32,
    pub blocks_hi: U16,
    pub file_acl_hi: U16,
    pub uid_hi: U16,
    pub gid_hi: U16,
    pub checksum_lo: U16,
    pub reserved: U16,
    pub extra_isize: U16,
    pub checksum_hi: U16,
    pub ctime_extra: U32,
    pub mtime_extra: U32,
    pub atime_extra: U32,
    pub crtime: U32,
    pub crtime_extra: U32,
    pub version_hi: U32,
    pub projid: U32,
}

const _: () = assert!(size_of::<RawInode>() == FIELDS);

/// A time of 34 bits of seconds from 1901 to 2446, and nanoseconds: the low word, and the extra one if it is there.
pub fn decode_time(lo: u32, extra: Option<u32>) -> Timespec {
    let extra = extra.unwrap_or(0);
    let sec = i64::from(lo as i32) + (i64::from(extra & 3) << 32);
    Timespec { sec, nsec: i64::from(extra >> 2).min(999_999_999) }
}

/// The two words of a time, cut to what they can say: with an extra word 1901 to 2446, without 1901 to 2038.
pub fn encode_time(t: Timespec, wide: bool) -> (u32, u32) {
    let max = if wide { (3i64 << 32) + i64::from(i32::MAX) } else { i64::from(i32::MAX) };
    let sec = t.sec.clamp(i64::from(i32::MIN), max);
    let lo = sec as u32;
    let epoch = ((sec - i64::from(lo as i32)) >> 32) as u32 & 3;
    (lo, epoch | ((t.nsec.clamp(0, 999_999_999) as u32) << 2))
}

impl RawInode {
    /// All the bits of the mode.
    pub fn uid(&self) -> u32 {
        u32::from(self.uid_lo.get()) | (u32::from(self.uid_hi.get()) << 16)
    }

    /// The group.
    pub fn gid(&self) -> u32 {
        u32::from(self.gid_lo.get()) | (u32::from(self.gid_hi.get()) << 16)
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        join(self.size_lo.get(), self.size_hi.get())
    }

    /// Sets the size.
    pub fn set_size(&mut self, size: u64) {
        self.size_lo.set(size as u32);
        self.size_hi.set((size >> 32) as u32);
    }

    /// Sets the owner.
    pub fn set_uid(&mut self, uid: u32) {
        self.uid_lo.set(uid as u16);
        self.uid_hi.set((uid >> 16) as u16);
    }

    /// Sets the group.
    pub fn set_gid(&mut self, gid: u32) {
        self.gid_lo.set(gid as u16);
        self.gid_hi.set((gid >> 16) as u16);
    }

    /// The block of extended attributes; 0 if there is none.
    pub fn file_acl(&self) -> u64 {
        join(self.file_acl_lo.get(), u32::from(self.file_acl_hi.get()))
    }

    /// Sets the block of extended attributes.
    pub fn set_file_acl(&mut self, block: u64) {
        self.file_acl_lo.set(block as u32);
        self.file_acl_hi.set((block >> 32) as u16);
    }

    /// Allocated units of 512 bytes.
    pub fn sectors(&self, block_size: u32) -> u64 {
        let n = join(self.blocks_lo.get(), u32::from(self.blocks_hi.get()));
        if self.flags.get() & FLAG_HUGE_FILE != 0 { n.saturating_mul(u64::from(block_size / 512)) } else { n }
    }

    /// Sets the allocated units of 512 bytes. `huge`: whether the file system may count in blocks when sectors exceed 48
    /// bits.
    pub fn set_sectors(&mut self, sectors: u64, block_size: u32) {
        let flags = self.flags.get();
        let n = if sectors < 1 << 48 {
            self.flags.set(flags & !FLAG_HUGE_FILE);
            sectors
        } else {
            self.flags.set(flags | FLAG_HUGE_FILE);
            sectors / u64::from(block_size / 512)
        };
        self.blocks_lo.set(n as u32);
        self.blocks_hi.set((n >> 32) as u16);
    }
}

/// Computes the checksum of the inode in `raw`, whose checksum fields count as zero.
pub fn checksum(seed: u32, raw: &[u8]) -> u32 {
    const LO: usize = 0x7c;
    const EXTRA: usize = 0x80;
    const HI: usize = 0x82;
    let has_hi = raw.len() > OLD_SIZE && crate::layout::u16_at(raw, EXTRA) >= 4;
    let piece = |from: usize, to: usize| part(raw, from, to - from).unwrap_or(&[]);
    let mut crc = crc32c(seed, piece(0, LO));
    crc = crc32c(crc, &[0, 0]);
    if has_hi {
        crc = crc32c(crc, piece(LO + 2, HI));
        crc = crc32c(crc, &[0, 0]);
        crc32c(crc, piece(HI + 2, raw.len()))
    } else {
        crc32c(crc, piece(LO + 2, raw.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_reach_from_1901_to_2446() {
        for sec in [0, 1, -1, i64::from(i32::MIN), i64::from(i32::MAX), 1 << 31, 1 << 32, 15_032_385_535] {
            let t = Timespec { sec, nsec: 123_456_789 };
            let (lo, extra) = encode_time(t, true);
            assert_eq!(decode_time(lo, Some(extra)), t);
        }
        let far = Timespec { sec: i64::MAX, nsec: 0 };
        let (lo, extra) = encode_time(far, true);
        assert_eq!(decode_time(lo, Some(extra)).sec, 15_032_385_535);
        assert_eq!(encode_time(far, false).0, 0x7fff_ffff);
    }
}
