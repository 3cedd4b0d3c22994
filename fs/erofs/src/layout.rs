//! The structures of the format, from bytes. All numbers are little-endian.

use abi::{Errno, Result};

/// log2 of the block size that is supported.
pub(crate) const BLOCK_BITS: u32 = 12;
/// The block size.
pub(crate) const BLOCK: u64 = 1 << BLOCK_BITS;
/// Where the superblock stands.
pub(crate) const SUPER_OFFSET: u64 = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// Inodes stand at multiples of this.
pub(crate) const SLOT: u64 = 32;

/// What the image is not, as Linux calls it.
pub(crate) const CORRUPT: Errno = Errno::EUCLEAN;

/// A number of two bytes at `at`; 0 outside.
pub(crate) fn le16(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2).map_or(0, |s| u16::from_le_bytes([s[0], s[1]]))
}

/// A number of four bytes at `at`; 0 outside.
pub(crate) fn le32(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).map_or(0, |s| u32::from_le_bytes([s[0], s[1], s[2], s[3]]))
}

/// A number of eight bytes at `at`; 0 outside.
pub(crate) fn le64(b: &[u8], at: usize) -> u64 {
    u64::from(le32(b, at)) | u64::from(le32(b, at + 4)) << 32
}

const COMPAT_CHECKSUM: u32 = 1;
const INCOMPAT_ZERO_PADDING: u32 = 1;
/// Compression configurations, or big clusters: the same bit.
const INCOMPAT_CONFIGS: u32 = 2;
const INCOMPAT_CHUNKED: u32 = 4;
/// Features that are known but not here.
const LACKING: [(u32, &str); 6] = [
    (0x8, "device table or second algorithm"),
    (0x10, "ztailpacking"),
    (0x20, "fragments or dedupe"),
    (0x40, "xattr name prefixes"),
    (0x80, "48-bit blocks"),
    (0x100, "metabox"),
];

/// The superblock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Super {
    pub(crate) root_nid: u64,
    pub(crate) inodes: u64,
    pub(crate) build_time: u64,
    pub(crate) build_nsec: u32,
    pub(crate) blocks: u32,
    pub(crate) meta_start: u64,
    pub(crate) xattr_start: u64,
    pub(crate) id: u64,
    /// Compressed data stands at the end of its cluster.
    pub(crate) zero_padding: bool,
}

/// Why an image cannot be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No EROFS magic number.
    NotErofs,
    /// The checksum of the superblock is wrong.
    Checksum,
    /// Blocks of this many bits.
    BlockSize(u8),
    /// The image uses this.
    Feature(&'static str),
    /// The image uses features whose bits are these, which nobody has named yet.
    Unknown(u32),
    /// The image is longer than its device.
    Truncated,
    /// The device's blocks are larger than the image's.
    DeviceBlocks,
    /// Reading or memory failed.
    Io(Errno),
    /// The root is not a directory.
    Root,
}

impl Refusal {
    /// For mount(2).
    pub fn errno(self) -> Errno {
        match self {
            Refusal::NotErofs | Refusal::BlockSize(_) | Refusal::DeviceBlocks => Errno::EINVAL,
            Refusal::Feature(_) | Refusal::Unknown(_) => Errno::EOPNOTSUPP,
            Refusal::Checksum | Refusal::Truncated | Refusal::Root => CORRUPT,
            Refusal::Io(e) => e,
        }
    }
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Refusal::NotErofs => write!(f, "not an EROFS image"),
            Refusal::Checksum => write!(f, "the superblock's checksum is wrong"),
            Refusal::BlockSize(bits) => write!(f, "blocks of 2^{bits} bytes are not supported"),
            Refusal::Feature(name) => write!(f, "the feature {name} is not supported"),
            Refusal::Unknown(bits) => write!(f, "unknown features {bits:#x}"),
            Refusal::Truncated => write!(f, "the image is longer than its device"),
            Refusal::DeviceBlocks => write!(f, "the device's blocks are larger than the image's"),
            Refusal::Io(e) => write!(f, "reading failed: {e}"),
            Refusal::Root => write!(f, "the root is not a directory"),
        }
    }
}

/// CRC-32C as Linux computes it over the superblock: not inverted at the end.
fn crc32c(mut crc: u32, bytes: &[u8]) -> u32 {
    for &b in bytes {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    crc
}

impl Super {
    /// From the image's first block.
    pub(crate) fn parse(block: &[u8], device_bytes: u64) -> core::result::Result<Super, Refusal> {
        let sb = block.get(SUPER_OFFSET as usize..).unwrap_or_default();
        if sb.len() < 128 || le32(sb, 0) != MAGIC {
            return Err(Refusal::NotErofs);
        }
        if u32::from(sb[12]) != BLOCK_BITS || sb[90] != 0 {
            return Err(Refusal::BlockSize(sb[12]));
        }
        if le32(sb, 8) & COMPAT_CHECKSUM != 0 {
            let crc = crc32c(crc32c(crc32c(!0, &sb[..4]), &[0; 4]), &sb[8..]);
            if crc != le32(sb, 4) {
                return Err(Refusal::Checksum);
            }
        }
        let incompat = le32(sb, 80);
        if let Some((_, name)) = LACKING.iter().find(|(bit, _)| incompat & bit != 0) {
            return Err(Refusal::Feature(name));
        }
        let unknown = incompat & !(INCOMPAT_ZERO_PADDING | INCOMPAT_CONFIGS | INCOMPAT_CHUNKED);
        if unknown != 0 {
            return Err(Refusal::Unknown(unknown));
        }
        let algorithms = if incompat & INCOMPAT_CONFIGS != 0 { le16(sb, 84) } else { 1 };
        if algorithms & !1 != 0 {
            return Err(Refusal::Feature("compression other than LZ4"));
        }
        let blocks = le32(sb, 36);
        if u64::from(blocks) * BLOCK > device_bytes {
            return Err(Refusal::Truncated);
        }
        Ok(Super {
            root_nid: u64::from(le16(sb, 14)),
            inodes: le64(sb, 16),
            build_time: le64(sb, 24),
            build_nsec: le32(sb, 32),
            blocks,
            meta_start: u64::from(le32(sb, 40)) * BLOCK,
            xattr_start: u64::from(le32(sb, 44)) * BLOCK,
            id: le64(sb, 48),
            zero_padding: incompat & INCOMPAT_ZERO_PADDING != 0,
        })
    }
}

/// How a file's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataLayout {
    /// Blocks in a row.
    Plain,
    /// Clusters, with an index of 8 bytes an entry.
    ClustersFull,
    /// As `Plain`, the last partial block behind the inode.
    Inline,
    /// Clusters, with an index of 2 or 4 bytes an entry.
    ClustersCompact,
    /// Chunks by a table.
    Chunks,
}

/// An inode as it stands in the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawInode {
    pub(crate) layout: DataLayout,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: Option<(u64, u32)>,
    /// First block, device number, number of compressed blocks or chunk format, by type and layout.
    pub(crate) union: u32,
    /// Where the inode's body stops and its attributes start, from the image's start.
    pub(crate) xattr_at: u64,
    /// How long these are.
    pub(crate) xattr_len: u64,
}

impl RawInode {
    /// Where what belongs to the data's layout (tail, index, table) stands.
    pub(crate) fn data_at(&self) -> u64 {
        self.xattr_at + self.xattr_len
    }

    /// From the 64 bytes at `at`, of which a compact inode uses 32.
    pub(crate) fn parse(b: &[u8; 64], at: u64) -> Result<RawInode> {
        let format = le16(b, 0);
        let layout = match format >> 1 & 7 {
            0 => DataLayout::Plain,
            1 => DataLayout::ClustersFull,
            2 => DataLayout::Inline,
            3 => DataLayout::ClustersCompact,
            4 => DataLayout::Chunks,
            _ => return Err(CORRUPT),
        };
        if format & !0xf != 0 {
            return Err(CORRUPT);
        }
        let count = u64::from(le16(b, 2));
        let xattr_len = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let mode = u32::from(le16(b, 4));
        let union = le32(b, 16);
        let inode = if format & 1 == 0 {
            RawInode {
                layout,
                mode,
                nlink: u32::from(le16(b, 6)),
                uid: u32::from(le16(b, 24)),
                gid: u32::from(le16(b, 26)),
                size: u64::from(le32(b, 8)),
                mtime: None,
                union,
                xattr_at: at + 32,
                xattr_len,
            }
        } else {
            RawInode {
                layout,
                mode,
                nlink: le32(b, 44),
                uid: le32(b, 24),
                gid: le32(b, 28),
                size: le64(b, 8),
                mtime: Some((le64(b, 32), le32(b, 40))),
                union,
                xattr_at: at + 64,
                xattr_len,
            }
        };
        if inode.size > vfs::MAX_OFFSET { Err(CORRUPT) } else { Ok(inode) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(!super::crc32c(!0, b"123456789"), 0xE306_9283);
    }
}
