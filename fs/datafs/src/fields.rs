//! An inode's fields in memory: the bytes as they lie on disk, seen through accessors. Whoever holds an inode's core
//! changes it within a transaction and stores it back in the same one; only times and the size may run ahead.

use crate::layout::inode::{BLOCK_AT, BLOCK_LEN, FIELDS, FLAG_EXTENTS, OLD_SIZE, RawInode, decode_time, encode_time};
use abi::Timespec;
use alloc::vec::Vec;
use zerocopy::FromBytes;

/// The bytes of an inode; at least as many as it has fields.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    raw: Vec<u8>,
    /// How many of them are on the disk.
    len: usize,
}

impl Core {
    /// From what is on the disk.
    pub fn new(disk: &[u8]) -> Core {
        let mut raw = disk.to_vec();
        raw.resize(disk.len().max(FIELDS), 0);
        Core { raw, len: disk.len() }
    }

    /// What belongs on the disk, without a checksum.
    pub fn bytes(&self) -> &[u8] {
        &self.raw[..self.len]
    }

    /// The fields.
    pub fn f(&self) -> &RawInode {
        // `new` made room for all fields, which have no alignment: the conversion cannot fail.
        match RawInode::ref_from_prefix(&self.raw) {
            Ok((f, _)) => f,
            Err(_) => unreachable!(),
        }
    }

    /// The fields, to change.
    pub fn m(&mut self) -> &mut RawInode {
        match RawInode::mut_from_prefix(&mut self.raw) {
            Ok((f, _)) => f,
            Err(_) => unreachable!(),
        }
    }

    /// `i_block`.
    pub fn root(&self) -> &[u8] {
        &self.raw[BLOCK_AT..BLOCK_AT + BLOCK_LEN]
    }

    /// `i_block`, to change.
    pub fn root_mut(&mut self) -> &mut [u8] {
        &mut self.raw[BLOCK_AT..BLOCK_AT + BLOCK_LEN]
    }

    /// Whether extents map it.
    pub fn has_extents(&self) -> bool {
        self.f().flags.get() & FLAG_EXTENTS != 0
    }

    /// Where the free part begins, in which attributes may lie; the end if there is none.
    fn free_at(&self) -> usize {
        if self.len <= OLD_SIZE {
            return self.len;
        }
        (OLD_SIZE + usize::from(self.f().extra_isize.get())).min(self.len)
    }

    /// The part behind the fields.
    pub fn free(&self) -> &[u8] {
        &self.raw[self.free_at()..self.len]
    }

    /// The part behind the fields, to change.
    pub fn free_mut(&mut self) -> &mut [u8] {
        let at = self.free_at();
        let len = self.len;
        &mut self.raw[at..len]
    }

    /// Whether the field that ends at `end` is valid.
    pub fn has_field(&self, end: usize) -> bool {
        self.len > OLD_SIZE && self.free_at() >= end
    }

    fn extra(&self, end: usize, word: u32) -> Option<u32> {
        self.has_field(end).then_some(word)
    }

    /// Last read.
    pub fn atime(&self) -> Timespec {
        decode_time(self.f().atime.get(), self.extra(0x90, self.f().atime_extra.get()))
    }

    /// Last change of content.
    pub fn mtime(&self) -> Timespec {
        decode_time(self.f().mtime.get(), self.extra(0x8c, self.f().mtime_extra.get()))
    }

    /// Last change of anything.
    pub fn ctime(&self) -> Timespec {
        decode_time(self.f().ctime.get(), self.extra(0x88, self.f().ctime_extra.get()))
    }

    /// Creation.
    pub fn btime(&self) -> Timespec {
        if !self.has_field(0x98) {
            return Timespec { sec: 0, nsec: 0 };
        }
        decode_time(self.f().crtime.get(), Some(self.f().crtime_extra.get()))
    }

    /// Sets the time of the last read.
    pub fn set_atime(&mut self, t: Timespec) {
        let wide = self.has_field(0x90);
        let (lo, extra) = encode_time(t, wide);
        self.m().atime.set(lo);
        if wide {
            self.m().atime_extra.set(extra);
        }
    }

    /// Sets the time of the last change of content.
    pub fn set_mtime(&mut self, t: Timespec) {
        let wide = self.has_field(0x8c);
        let (lo, extra) = encode_time(t, wide);
        self.m().mtime.set(lo);
        if wide {
            self.m().mtime_extra.set(extra);
        }
    }

    /// Sets the time of the last change of anything.
    pub fn set_ctime(&mut self, t: Timespec) {
        let wide = self.has_field(0x88);
        let (lo, extra) = encode_time(t, wide);
        self.m().ctime.set(lo);
        if wide {
            self.m().ctime_extra.set(extra);
        }
    }

    /// Sets the time of creation.
    pub fn set_btime(&mut self, t: Timespec) {
        if self.has_field(0x98) {
            let (lo, extra) = encode_time(t, true);
            self.m().crtime.set(lo);
            self.m().crtime_extra.set(extra);
        }
    }

    /// Changes the number of allocated blocks.
    pub fn add_blocks(&mut self, blocks: i64, block_size: usize) {
        let now = self.f().sectors(block_size as u32);
        let sectors = now.saturating_add_signed(blocks * (block_size / 512) as i64);
        self.m().set_sectors(sectors, block_size as u32);
    }
}

/// The present time.
pub(crate) fn now() -> Timespec {
    Timespec::from_ns(platform::realtime_ns())
}
