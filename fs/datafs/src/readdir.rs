//! Listing a directory in an order that changes do not disturb.
//!
//! Where names may move (the directory has an index, or will get one), entries come in the order of their hashes, and a
//! position is a hash: 31 bits of the major one, 24 of the minor one, and 8 bits that count names which agree in both. In
//! other directories entries never move, and a position is a byte offset.

use crate::dir::Kind;
use crate::hash::Version;
use crate::inode::DataInode;
use crate::layout::dir;
use crate::layout::features::Compat;
use crate::meta::Look;
use abi::{Errno, Result};
use alloc::vec::Vec;
use vfs::{DirEntry, FileType};

/// Positions below are those of `.` and `..`.
const FIRST: u64 = 2;

struct Item {
    key: u64,
    ino: u32,
    kind: u8,
    name: Vec<u8>,
}

impl DataInode {
    /// Hands out entries from the position `cookie` on, until `emit` returns false.
    pub(crate) fn list(&self, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let mut from = cookie.max(FIRST) - FIRST;
        loop {
            let (items, next) =
                if self.lists_by_hash() { self.batch_by_hash(from)? } else { self.batch_in_order(from)? };
            for i in items {
                let kind = match dir::type_of(i.kind) {
                    Some(k) => k,
                    None => self.type_of_child(i.ino)?,
                };
                let e = DirEntry { ino: u64::from(i.ino), kind, name: &i.name, next: i.key + 1 + FIRST };
                if !emit(e) {
                    return Ok(());
                }
            }
            match next {
                Some(n) => from = n,
                None => return Ok(()),
            }
        }
    }

    fn type_of_child(&self, ino: u32) -> Result<FileType> {
        // Without types in the entries the inode's mode tells.
        let (block, at) = self.vol.inode_place(ino)?;
        let mode = self.vol.store.read(block)?.with(|b| crate::layout::u16_at(b, at));
        Ok(FileType::from_mode(u32::from(mode)).unwrap_or(FileType::Regular))
    }

    fn lists_by_hash(&self) -> bool {
        let core = self.core.read();
        let one = core.f().size() == self.vol.geo.block_size as u64;
        self.is_indexed(&core) || (one && self.vol.geo.compat.contains(Compat::DIR_INDEX))
    }

    fn hashed(&self, version: Version, block: &[u8], out: &mut Vec<Item>) -> Result<()> {
        for e in dir::entries(block, self.chain_end()) {
            let e = e?;
            if e.ino == 0 || e.name == b"." || e.name == b".." {
                continue;
            }
            let (major, minor) = self.vol.hasher.hash(version, e.name).ok_or(Errno::EUCLEAN)?;
            let key = (u64::from(major >> 1) << 32) | (u64::from(minor >> 8) << 8);
            out.push(Item { key, ino: e.ino, kind: e.kind, name: e.name.to_vec() });
        }
        Ok(())
    }

    /// The entries of the leaf (and those that continue it) to which the position belongs, from it on; and where the next
    /// leaf begins.
    fn batch_by_hash(&self, from: u64) -> Result<(Vec<Item>, Option<u64>)> {
        let core = self.core.read();
        let version = self.hash_version(&core)?;
        let mut items = Vec::new();
        let mut next = None;
        if self.is_indexed(&core) {
            let hash = ((from >> 32) << 1) as u32;
            let (mut path, mut leaf) = self.probe(&core, hash)?;
            loop {
                let block = self.dir_block(&core, u64::from(leaf), Kind::Leaf)?.copy();
                self.hashed(version, &block, &mut items)?;
                match self.next_leaf(&core, &mut path)? {
                    Some((block, hash)) if hash & 1 == 1 => leaf = block,
                    Some((_, hash)) => {
                        next = Some(u64::from(hash >> 1) << 32);
                        break;
                    }
                    None => break,
                }
            }
        } else {
            let block = self.dir_block(&core, 0, Kind::Leaf)?.copy();
            self.hashed(version, &block, &mut items)?;
        }
        drop(core);
        items.sort_by(|a, b| (a.key, &a.name).cmp(&(b.key, &b.name)));
        let mut count = 0;
        for i in 1..items.len() {
            count = if items[i].key == items[i - 1].key & !0xff { (count + 1).min(0xff) } else { 0 };
            items[i].key |= count;
        }
        items.retain(|i| i.key >= from);
        // A damaged index could lead back; positions only rise.
        if next.is_some_and(|n| n <= from) && items.is_empty() {
            return Err(self.vol.corrupt(self.ino, "hashes of a directory index do not rise"));
        }
        Ok((items, next.filter(|&n| n > from)))
    }

    fn batch_in_order(&self, from: u64) -> Result<(Vec<Item>, Option<u64>)> {
        let bits = self.vol.geo.block_bits;
        let core = self.core.read();
        let n = from >> bits;
        if n >= core.f().size() >> bits {
            return Ok((Vec::new(), None));
        }
        let block = self.dir_block(&core, n, Kind::Leaf)?.copy();
        drop(core);
        let start = n << bits;
        let mut items = Vec::new();
        for e in dir::entries(&block, self.chain_end()) {
            let e = e?;
            let key = start + e.at as u64;
            if key >= from && e.ino != 0 && e.name != b"." && e.name != b".." {
                items.push(Item { key, ino: e.ino, kind: e.kind, name: e.name.to_vec() });
            }
        }
        Ok((items, Some((n + 1) << bits)))
    }
}
