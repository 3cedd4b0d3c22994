//! Allocating inodes.
//!
//! A file's inode lies in its directory's group if that has one left, else in the next group that has. Directories are spread:
//! the first of the groups from the parent's on that has at least the average of free inodes and blocks; those in the root
//! begin at a random group.

use crate::bits::bytes;
use crate::layout::group::INODE_UNINIT;
use crate::meta::{Look, Tx};
use crate::volume::Volume;
use abi::{Errno, Result};
use core::sync::atomic::Ordering;

impl Volume {
    fn inode_bitmap_checksum(&self, bitmap: &[u8]) -> u32 {
        let crc = crate::crc::crc32c(self.seed, &bitmap[..(self.geo.inodes_per_group / 8) as usize]);
        if self.geo.desc_size >= crate::layout::group::SIZE { crc } else { crc & 0xffff }
    }

    /// The group in which to look first for a new inode in the directory `parent`.
    fn home_group(&self, parent: u32, dir: bool) -> u32 {
        let (home, _) = self.geo.split_ino(parent);
        let groups = self.geo.groups;
        if !dir || groups == 1 {
            return home;
        }
        let start = if parent == 2 { (platform::random_u64() % u64::from(groups)) as u32 } else { home };
        let average = |n: i64| (n.max(0) / i64::from(groups)) as u32;
        let inodes = average(self.free_inodes.load(Ordering::Relaxed));
        let blocks = average(self.free_blocks.load(Ordering::Relaxed));
        (0..groups)
            .map(|n| (start + n) % groups)
            .find(|&g| {
                let s = self.groups[g as usize].state.lock();
                s.desc.free_inodes() > 0 && s.desc.free_inodes() >= inodes && s.desc.free_blocks() >= blocks
            })
            .unwrap_or(home)
    }

    /// A free inode, in use from this transaction on. `ENOSPC`.
    pub fn alloc_inode(&self, tx: &Tx, parent: u32, dir: bool) -> Result<u32> {
        let home = self.home_group(parent, dir);
        for n in 0..self.geo.groups {
            let group = (home + n) % self.geo.groups;
            if let Some(ino) = self.alloc_inode_in(tx, group, dir)? {
                self.free_inodes.fetch_sub(1, Ordering::Relaxed);
                return Ok(ino);
            }
        }
        Err(Errno::ENOSPC)
    }

    fn alloc_inode_in(&self, tx: &Tx, group: u32, dir: bool) -> Result<Option<u32>> {
        let g = &self.groups[group as usize];
        let mut state = g.state.lock();
        if state.desc.free_inodes() == 0 {
            return Ok(None);
        }
        let ipg = self.geo.inodes_per_group as usize;
        let uninit = self.geo.group_csum() && state.desc.flags.get() & INODE_UNINIT != 0;
        let buf = if uninit { tx.create(g.inode_bitmap)? } else { self.store.read(g.inode_bitmap)? };
        if !uninit && self.geo.metadata_csum() {
            let want = state.desc.inode_bitmap_csum();
            let check =
                buf.verify(|b| if self.inode_bitmap_checksum(b) == want { Ok(()) } else { Err(Errno::EUCLEAN) });
            if check.is_err() {
                self.corrupt(0, &alloc::format!("group {group}: wrong checksum of the inode bitmap"));
                return Ok(None);
            }
        }
        // Inodes below the first that files may have are in use in a sound bitmap; one that is not must not lend them out.
        let least = (self.geo.first_ino as usize - 1).saturating_sub(group as usize * ipg).min(ipg);
        let from = (state.next_inode as usize).max(least);
        let found = if uninit { Some(from) } else { buf.with(|b| bytes::first_clear(b, from, ipg)) };
        let Some(index) = found.filter(|&i| i < ipg) else {
            return Err(self.corrupt(0, &alloc::format!("group {group}: no free inode where some should be")));
        };
        let crc = tx.write(&buf, |b| {
            if uninit {
                b.fill(0);
                bytes::fill(b, ipg, b.len() * 8 - ipg, true);
            }
            bytes::fill(b, index, 1, true);
            self.inode_bitmap_checksum(b)
        })?;
        state.next_inode = index as u32 + 1;
        let desc = &mut state.desc;
        desc.set_free_inodes(desc.free_inodes() - 1);
        if dir {
            desc.set_used_dirs(desc.used_dirs() + 1);
        }
        if self.geo.group_csum() {
            desc.flags.set(desc.flags.get() & !INODE_UNINIT);
            let used = (self.geo.inodes_per_group - desc.itable_unused()) as usize;
            if index >= used {
                desc.set_itable_unused((ipg - index - 1) as u32);
            }
        }
        if self.geo.metadata_csum() {
            desc.set_inode_bitmap_csum(crc);
        }
        self.write_desc(tx, group, desc)?;
        Ok(Some(group * self.geo.inodes_per_group + index as u32 + 1))
    }

    /// Frees an inode.
    pub fn free_inode(&self, tx: &Tx, ino: u32, dir: bool) -> Result<()> {
        let (group, index) = self.geo.split_ino(ino);
        let g = self.groups.get(group as usize).ok_or(Errno::EUCLEAN)?;
        let mut state = g.state.lock();
        let buf = self.store.read(g.inode_bitmap)?;
        if !buf.with(|b| bytes::get(b, index as usize)) {
            return Err(self.corrupt(ino, "the inode is freed twice"));
        }
        let crc = tx.write(&buf, |b| {
            bytes::fill(b, index as usize, 1, false);
            self.inode_bitmap_checksum(b)
        })?;
        state.next_inode = state.next_inode.min(index);
        let desc = &mut state.desc;
        desc.set_free_inodes(desc.free_inodes() + 1);
        if dir {
            desc.set_used_dirs(desc.used_dirs().saturating_sub(1));
        }
        if self.geo.metadata_csum() {
            desc.set_inode_bitmap_csum(crc);
        }
        self.write_desc(tx, group, desc)?;
        self.free_inodes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
