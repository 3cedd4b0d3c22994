//! Directories: names to inode numbers.
//!
//! Blocks are metadata. One that is full grows by a block; the first time that happens the directory gets an index
//! ([`crate::htree`]), if the file system has them. Whoever reads holds the directory's core for reading, whoever changes
//! it for writing, within a transaction.

use crate::extents_edit::Edit;
use crate::fields::Core;
use crate::htree;
use crate::inode::DataInode;
use crate::layout::dir;
use crate::layout::features::{Compat, Incompat};
use crate::layout::inode::FLAG_INDEX;
use crate::layout::u16_at;
use crate::meta::{Buf, Look, Tx};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use vfs::FileType;

/// What a directory block is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A chain of entries.
    Leaf,
    /// An index's root.
    Root,
    /// An index's inner node.
    Node,
    /// A chain or a node: whoever goes through all blocks.
    Any,
}

/// Where a name is.
pub(crate) struct Found {
    pub buf: Arc<Buf>,
    /// Offset of the entry in the block.
    pub at: usize,
    pub ino: u32,
}

impl DataInode {
    /// Where the chain of entries ends in a leaf.
    pub(crate) fn chain_end(&self) -> usize {
        self.vol.geo.block_size - if self.vol.geo.metadata_csum() { dir::TAIL } else { 0 }
    }

    /// Whether the directory has an index that this driver keeps.
    pub(crate) fn is_indexed(&self, core: &Core) -> bool {
        self.vol.geo.compat.contains(Compat::DIR_INDEX) && core.f().flags.get() & FLAG_INDEX != 0
    }

    fn dir_blocks(&self, core: &Core) -> u64 {
        core.f().size() >> self.vol.geo.block_bits
    }

    /// The directory's block `n`, checked.
    pub(crate) fn dir_block(&self, core: &Core, n: u64, kind: Kind) -> Result<Arc<Buf>> {
        if n >= self.dir_blocks(core) {
            return Err(self.vol.corrupt(self.ino, "a directory index leads outside"));
        }
        let Some(at) = self.owner().lookup(core, n)?.readable() else {
            return Err(self.vol.corrupt(self.ino, "a hole in a directory"));
        };
        let buf = self.vol.store.read(at)?;
        let kind = match kind {
            Kind::Any if n == 0 && self.is_indexed(core) => Kind::Root,
            Kind::Any if self.is_indexed(core) && buf.with(looks_like_node) => Kind::Node,
            Kind::Any => Kind::Leaf,
            k => k,
        };
        self.check_dir_block(&buf, kind)?;
        Ok(buf)
    }

    fn check_dir_block(&self, buf: &Arc<Buf>, kind: Kind) -> Result<()> {
        let csum = self.vol.geo.metadata_csum();
        buf.verify(|b| {
            let good = match kind {
                Kind::Root | Kind::Node => htree::check_node(self.seed, b, kind == Kind::Root, csum).is_ok(),
                Kind::Leaf | Kind::Any => {
                    let sum = !csum || (dir::has_tail(b) && dir::checksum(self.seed, b) == dir::stored_checksum(b));
                    sum && dir::check(b, self.chain_end(), self.vol.geo.inodes).is_ok()
                }
            };
            if good { Ok(()) } else { Err(self.vol.corrupt(self.ino, "a damaged directory block")) }
        })
    }

    pub(crate) fn find_in(&self, buf: &Arc<Buf>, name: &[u8]) -> Result<Option<Found>> {
        let end = self.chain_end();
        let found = buf.with(|b| dir::find(b, end, name).map(|f| f.map(|e| (e.at, e.ino))))?;
        Ok(found.map(|(at, ino)| Found { buf: buf.clone(), at, ino }))
    }

    /// The entry called `name`.
    pub(crate) fn find_name(&self, core: &Core, name: &[u8]) -> Result<Option<Found>> {
        if name.len() > vfs::NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let found = if self.is_indexed(core) {
            self.find_indexed(core, name)?
        } else {
            let mut found = None;
            for n in 0..self.dir_blocks(core) {
                found = self.find_in(&self.dir_block(core, n, Kind::Leaf)?, name)?;
                if found.is_some() {
                    break;
                }
            }
            found
        };
        match found {
            Some(f) if f.ino > self.vol.geo.inodes || (f.ino < self.vol.geo.first_ino && f.ino != 2) => {
                Err(self.vol.corrupt(self.ino, "a name leads to an inode that no name may lead to"))
            }
            f => Ok(f),
        }
    }

    /// Adds an entry where it fits; false if it does not.
    pub(crate) fn insert_in(&self, tx: &Tx, buf: &Arc<Buf>, ino: u32, kind: u8, name: &[u8]) -> Result<bool> {
        let end = self.chain_end();
        // The directory's core is locked for writing, so the room stays where it was found.
        let Some(room) = buf.with(|b| dir::room(b, end, name.len()))? else { return Ok(false) };
        self.write_chain(tx, buf, |b| dir::insert_at(b, room, ino, kind, name)).map(|()| true)
    }

    fn write_chain<R>(&self, tx: &Tx, buf: &Arc<Buf>, f: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let (seed, csum) = (self.seed, self.vol.geo.metadata_csum());
        tx.write(buf, |b| {
            let r = f(b);
            if csum {
                dir::store_checksum(seed, b);
            }
            r
        })
    }

    fn type_code(&self, kind: FileType) -> u8 {
        if self.vol.geo.incompat.contains(Incompat::FILETYPE) { dir::type_code(kind) } else { 0 }
    }

    /// Adds a name that is not there.
    pub(crate) fn add_name(&self, tx: &Tx, core: &mut Core, name: &[u8], ino: u32, kind: FileType) -> Result<()> {
        let code = self.type_code(kind);
        if self.is_indexed(core) {
            return self.add_indexed(tx, core, name, ino, code);
        }
        let blocks = self.dir_blocks(core);
        for n in 0..blocks {
            let buf = self.dir_block(core, n, Kind::Leaf)?;
            if self.insert_in(tx, &buf, ino, code, name)? {
                return Ok(());
            }
        }
        let known = self.vol.hasher.hash(self.vol.hash_version, name).is_some();
        if blocks == 1 && known && self.vol.geo.compat.contains(Compat::DIR_INDEX) {
            self.make_indexed(tx, core)?;
            return self.add_indexed(tx, core, name, ino, code);
        }
        let (_, buf) = self.append_blocks(tx, core, 1)?.pop().ok_or(Errno::EIO)?;
        let end = self.chain_end();
        self.write_chain(tx, &buf, |b| {
            dir::clear(b, end);
            dir::insert(b, end, ino, code, name)
        })?
        .map(drop)
    }

    /// Removes an entry.
    pub(crate) fn remove_name(&self, tx: &Tx, found: &Found) -> Result<()> {
        let end = self.chain_end();
        self.write_chain(tx, &found.buf, |b| dir::remove(b, end, found.at))?
    }

    /// Lets an entry lead to another inode.
    pub(crate) fn set_name(&self, tx: &Tx, found: &Found, ino: u32, kind: FileType) -> Result<()> {
        let code = self.type_code(kind);
        self.write_chain(tx, &found.buf, |b| {
            crate::layout::put_u32(b, found.at, ino);
            if let Some(k) = b.get_mut(found.at + 7) {
                *k = code;
            }
        })
    }

    /// Makes `..` lead to another directory.
    pub(crate) fn set_parent(&self, tx: &Tx, core: &Core, parent: u32) -> Result<()> {
        let indexed = self.is_indexed(core);
        let buf = self.dir_block(core, 0, if indexed { Kind::Root } else { Kind::Leaf })?;
        let at = buf.with(|b| {
            let end = if indexed { b.len() } else { self.chain_end() };
            dir::entries(b, end).take(2).find_map(|e| e.ok().filter(|e| e.name == b"..").map(|e| e.at))
        });
        let at = at.ok_or_else(|| self.vol.corrupt(self.ino, "a directory without .."))?;
        if indexed {
            self.write_root(tx, &buf, |b| crate::layout::put_u32(b, at, parent))
        } else {
            self.write_chain(tx, &buf, |b| crate::layout::put_u32(b, at, parent))
        }
    }

    /// Makes the first block of a new directory.
    pub(crate) fn init_dir(&self, tx: &Tx, core: &mut Core, parent: u32) -> Result<()> {
        crate::symlink::init_extents(core);
        core.m().set_size(0);
        let (_, buf) = self.append_blocks(tx, core, 1)?.pop().ok_or(Errno::EIO)?;
        let (end, code) = (self.chain_end(), self.type_code(FileType::Dir));
        self.write_chain(tx, &buf, |b| {
            dir::clear(b, end);
            dir::put(b, 0, 12, self.ino, code, b".");
            dir::put(b, 12, end - 12, parent, code, b"..");
        })
    }

    /// Adds `n` blocks at the end: their numbers in the directory, and the blocks, zeroed. All or none.
    pub(crate) fn append_blocks(&self, tx: &Tx, core: &mut Core, n: usize) -> Result<Vec<(u32, Arc<Buf>)>> {
        if !core.has_extents() {
            return Err(Errno::EOPNOTSUPP);
        }
        let first = self.dir_blocks(core);
        let mut out = Vec::with_capacity(n);
        for i in 0..n as u64 {
            match self.append_block(tx, core, first + i) {
                Ok(b) => out.push(((first + i) as u32, b)),
                Err(e) => {
                    for (at, buf) in out {
                        let from = at;
                        Edit { owner: self.owner(), tx, core, goal: 0 }.replace(from, u64::from(from) + 1, None, 1)?;
                        self.vol.free_meta(tx, buf.block())?;
                        core.add_blocks(-1, self.vol.geo.block_size);
                    }
                    return Err(e);
                }
            }
        }
        core.m().set_size((first + n as u64) << self.vol.geo.block_bits);
        Ok(out)
    }

    fn append_block(&self, tx: &Tx, core: &mut Core, n: u64) -> Result<Arc<Buf>> {
        let from = u32::try_from(n).map_err(|_| Errno::EFBIG)?;
        let goal = self.goal(core, n);
        let number = self.vol.alloc_named(tx, goal)?;
        let done = Edit { owner: self.owner(), tx, core, goal }.replace(from, n + 1, Some((number, true)), 1);
        if let Err(e) = done {
            self.vol.free_meta(tx, number)?;
            return Err(e);
        }
        core.add_blocks(1, self.vol.geo.block_size);
        tx.create(number)
    }

    /// Whether there is nothing but `.` and `..`.
    pub(crate) fn is_empty_dir(&self, core: &Core) -> Result<bool> {
        for n in 0..self.dir_blocks(core) {
            let buf = self.dir_block(core, n, Kind::Any)?;
            let end = if buf.with(|b| usize::from(u16_at(b, 4)) == b.len()) || (n == 0 && self.is_indexed(core)) {
                self.vol.geo.block_size
            } else {
                self.chain_end()
            };
            let empty = buf.with(|b| {
                dir::entries(b, end).all(|e| e.is_ok_and(|e| e.ino == 0 || e.name == b"." || e.name == b".."))
            });
            if !empty {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A node has one empty entry that fills the whole block; a chain leaves room for its tail, or is in use.
fn looks_like_node(b: &[u8]) -> bool {
    crate::layout::u32_at(b, 0) == 0 && usize::from(u16_at(b, 4)) == b.len()
}
