//! Group descriptors: 32 bytes, or with `64bit` as many as the superblock says (64), the rest of which is zero if short.

use crate::crc::{crc16, crc32c};
use crate::layout::join;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The inode bitmap (and table) are not initialised: no inode is in use.
pub const INODE_UNINIT: u16 = 1;
/// The block bitmap is not initialised: only metadata that the layout fixes is in use.
pub const BLOCK_UNINIT: u16 = 2;

/// The length of the whole descriptor.
pub const SIZE: usize = 64;
/// The length of the part that all file systems have.
pub const SHORT: usize = 32;
const CHECKSUM_AT: usize = 0x1e;

/// A group descriptor.
#[allow(missing_docs)]
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupDesc {
    pub block_bitmap_lo: U32,
    pub inode_bitmap_lo: U32,
    pub inode_table_lo: U32,
    pub free_blocks_lo: U16,
    pub free_inodes_lo: U16,
    pub used_dirs_lo: U16,
    pub flags: U16,
    pub exclude_bitmap_lo: U32,
    pub block_bitmap_csum_lo: U16,
    pub inode_bitmap_csum_lo: U16,
    pub itable_unused_lo: U16,
    pub checksum: U16,
    pub block_bitmap_hi: U32,
    pub inode_bitmap_hi: U32,
    pub inode_table_hi: U32,
    pub free_blocks_hi: U16,
    pub free_inodes_hi: U16,
    pub used_dirs_hi: U16,
    pub itable_unused_hi: U16,
    pub exclude_bitmap_hi: U32,
    pub block_bitmap_csum_hi: U16,
    pub inode_bitmap_csum_hi: U16,
    pub reserved: U32,
}

const _: () = assert!(size_of::<GroupDesc>() == SIZE);

fn pair(lo: U16, hi: U16) -> u32 {
    u32::from(lo.get()) | (u32::from(hi.get()) << 16)
}

impl GroupDesc {
    /// From the first `len` bytes of its place on disk.
    pub fn from_disk(bytes: &[u8]) -> GroupDesc {
        let mut whole = [0; SIZE];
        let n = bytes.len().min(SIZE);
        whole[..n].copy_from_slice(&bytes[..n]);
        zerocopy::transmute!(whole)
    }

    /// Where the block bitmap is.
    pub fn block_bitmap(&self) -> u64 {
        join(self.block_bitmap_lo.get(), self.block_bitmap_hi.get())
    }

    /// Where the inode bitmap is.
    pub fn inode_bitmap(&self) -> u64 {
        join(self.inode_bitmap_lo.get(), self.inode_bitmap_hi.get())
    }

    /// Where the inode table begins.
    pub fn inode_table(&self) -> u64 {
        join(self.inode_table_lo.get(), self.inode_table_hi.get())
    }

    /// Free blocks.
    pub fn free_blocks(&self) -> u32 {
        pair(self.free_blocks_lo, self.free_blocks_hi)
    }

    /// Free inodes.
    pub fn free_inodes(&self) -> u32 {
        pair(self.free_inodes_lo, self.free_inodes_hi)
    }

    /// Directories among the used inodes.
    pub fn used_dirs(&self) -> u32 {
        pair(self.used_dirs_lo, self.used_dirs_hi)
    }

    /// Inodes at the end of the table that were never used.
    pub fn itable_unused(&self) -> u32 {
        pair(self.itable_unused_lo, self.itable_unused_hi)
    }

    /// The block bitmap's checksum.
    pub fn block_bitmap_csum(&self) -> u32 {
        pair(self.block_bitmap_csum_lo, self.block_bitmap_csum_hi)
    }

    /// The inode bitmap's checksum.
    pub fn inode_bitmap_csum(&self) -> u32 {
        pair(self.inode_bitmap_csum_lo, self.inode_bitmap_csum_hi)
    }

    /// Sets the number of free blocks.
    pub fn set_free_blocks(&mut self, n: u32) {
        self.free_blocks_lo.set(n as u16);
        self.free_blocks_hi.set((n >> 16) as u16);
    }

    /// Sets the number of free inodes.
    pub fn set_free_inodes(&mut self, n: u32) {
        self.free_inodes_lo.set(n as u16);
        self.free_inodes_hi.set((n >> 16) as u16);
    }

    /// Sets the number of directories.
    pub fn set_used_dirs(&mut self, n: u32) {
        self.used_dirs_lo.set(n as u16);
        self.used_dirs_hi.set((n >> 16) as u16);
    }

    /// Sets the number of inodes that were never used.
    pub fn set_itable_unused(&mut self, n: u32) {
        self.itable_unused_lo.set(n as u16);
        self.itable_unused_hi.set((n >> 16) as u16);
    }

    /// Sets the block bitmap's checksum.
    pub fn set_block_bitmap_csum(&mut self, c: u32) {
        self.block_bitmap_csum_lo.set(c as u16);
        self.block_bitmap_csum_hi.set((c >> 16) as u16);
    }

    /// Sets the inode bitmap's checksum.
    pub fn set_inode_bitmap_csum(&mut self, c: u32) {
        self.inode_bitmap_csum_lo.set(c as u16);
        self.inode_bitmap_csum_hi.set((c >> 16) as u16);
    }

    /// The checksum by CRC-32C over its first `len` bytes.
    pub fn crc32c(&self, seed: u32, group: u32, len: usize) -> u16 {
        let mut copy = *self;
        copy.checksum.set(0);
        let crc = crc32c(seed, &group.to_le_bytes());
        crc32c(crc, &copy.as_bytes()[..len.min(SIZE)]) as u16
    }

    /// The checksum by CRC-16 over its first `len` bytes.
    pub fn crc16(&self, uuid: &[u8; 16], group: u32, len: usize) -> u16 {
        let bytes = &self.as_bytes()[..len.min(SIZE)];
        let crc = crc16(crc16(!0, uuid), &group.to_le_bytes());
        let crc = crc16(crc, &bytes[..CHECKSUM_AT]);
        crc16(crc, &bytes[CHECKSUM_AT + 2..])
    }
}
