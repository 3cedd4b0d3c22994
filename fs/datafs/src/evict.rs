//! Giving blocks back: truncation, holes, and the end of an inode.
//!
//! A large range is freed in several transactions. Before the first the inode is put on the orphan list, so that a crash in
//! between leaves a file that mounting finishes.

use crate::extents::BLOCKS_END;
use crate::extents_edit::Edit;
use crate::fields::{Core, now};
use crate::inode::DataInode;
use crate::layout::xattr;
use crate::meta::{Look, Tx};
use abi::{Errno, Result};
use core::sync::atomic::Ordering;
use vfs::FileType;

/// Extents that one transaction frees at most.
const STEP: usize = 12;
/// Blocks that one step changes at most: bitmaps and descriptors of each extent, the path, the inode.
pub(crate) const STEP_CREDITS: usize = 2 * (STEP + 1) + 16;

impl DataInode {
    /// Frees what is mapped in `from..to`, as far as one step goes; returns up to where it is done.
    pub(crate) fn free_step(&self, tx: &Tx, core: &mut Core, from: u64, to: u64) -> Result<u64> {
        if from >= to {
            return Ok(to);
        }
        let goal = 0;
        let start = u32::try_from(from).map_err(|_| Errno::EFBIG)?;
        let step = Edit { owner: self.owner(), tx, core, goal }.replace(start, to, None, STEP)?;
        let mut freed = 0i64;
        for (at, len) in step.removed {
            if self.is_dir() || self.meta.kind == FileType::Symlink {
                for n in at..at + u64::from(len) {
                    tx.forget(n)?;
                }
            }
            self.vol.free(tx, at, len)?;
            freed += i64::from(len);
        }
        core.add_blocks(-freed, self.vol.geo.block_size);
        Ok(step.done)
    }

    /// Frees the blocks `from..to` of the file in as many transactions as that needs.
    pub(crate) fn free_range(&self, from: u64, to: u64) -> Result<()> {
        let mut at = from;
        while at < to {
            at = self.vol.transact(STEP_CREDITS, |tx| {
                let mut core = self.core.write();
                let done = self.free_step(tx, &mut core, at, to)?;
                self.store(tx, &core)?;
                Ok(done)
            })?;
        }
        Ok(())
    }

    /// Cuts the file to `size` on disk (the cache is cut already).
    pub(crate) fn shrink(&self, size: u64) -> Result<()> {
        let first = size.div_ceil(self.vol.geo.block_size as u64);
        let done = self.vol.transact(STEP_CREDITS + 4, |tx| {
            let mut core = self.core.write();
            if !core.has_extents() {
                self.cut_old_map(&core, first)?;
            }
            core.m().set_size(size);
            let t = now();
            core.set_mtime(t);
            core.set_ctime(t);
            let done = if core.has_extents() { self.free_step(tx, &mut core, first, BLOCKS_END)? } else { BLOCKS_END };
            if done < BLOCKS_END {
                self.add_orphan(tx)?;
            }
            self.store(tx, &core)?;
            Ok(done)
        })?;
        if done < BLOCKS_END { self.finish_truncation() } else { Ok(()) }
    }

    /// Files with the old map are cut only to nothing that is mapped.
    fn cut_old_map(&self, core: &Core, first: u64) -> Result<()> {
        let mut at = first;
        while at < core.f().size().div_ceil(self.vol.geo.block_size as u64) {
            let m = self.owner().lookup(core, at)?;
            if m.at.is_some() {
                return Err(Errno::EOPNOTSUPP);
            }
            at += m.len;
        }
        Ok(())
    }

    /// Frees what lies behind the size of a file on the orphan list, and takes it from there.
    pub(crate) fn finish_truncation(&self) -> Result<()> {
        let size = self.core.read().f().size();
        if self.core.read().has_extents() {
            self.free_range(size.div_ceil(self.vol.geo.block_size as u64), BLOCKS_END)?;
        }
        self.vol.transact(8, |tx| {
            let mut core = self.core.write();
            self.remove_orphan(tx)?;
            core.m().dtime.set(0);
            self.store(tx, &core)
        })
    }

    /// Drops the block of attributes: it is freed, or has one owner less.
    pub(crate) fn release_xattr_block(&self, tx: &Tx, core: &mut Core) -> Result<()> {
        let at = core.f().file_acl();
        if at == 0 {
            return Ok(());
        }
        let buf = self.vol.store.read(at)?;
        if buf.with(xattr::refcount) > 1 {
            let (seed, csum) = (self.vol.seed, self.vol.geo.metadata_csum());
            tx.write(&buf, |b| {
                xattr::set_refcount(b, xattr::refcount(b) - 1);
                if csum {
                    xattr::store_checksum(seed, at, b);
                }
            })?;
        } else {
            self.vol.free_meta(tx, at)?;
        }
        core.m().set_file_acl(0);
        core.add_blocks(-1, self.vol.geo.block_size);
        Ok(())
    }

    /// The last reference to an inode without names is gone: frees its blocks and itself. Errors leave it on the orphan
    /// list, for the next mount.
    pub(crate) fn evict(&self) {
        self.gone.store(true, Ordering::Relaxed);
        if let Some(c) = &self.cache {
            c.discard();
        }
        let promised: u32 = core::mem::take(&mut *self.delayed.lock()).values().map(|p| p.blocks).sum();
        self.vol.release_promise(i64::from(promised));
        if self.vol.writable().is_err() {
            return;
        }
        if let Err(e) = self.try_evict() {
            self.vol.options.log(&alloc::format!("datafs: inode {} is left for the next mount: {e}", self.ino));
        }
    }

    fn try_evict(&self) -> Result<()> {
        if self.has_old_map() {
            self.free_old_map()?;
        } else if self.core.read().has_extents() {
            self.free_range(0, BLOCKS_END)?;
        }
        let dir = self.is_dir();
        self.vol.transact(16, |tx| {
            let mut core = self.core.write();
            self.release_xattr_block(tx, &mut core)?;
            self.remove_orphan(tx)?;
            core.m().set_size(0);
            core.m().dtime.set(now().sec as u32);
            self.store(tx, &core)?;
            drop(core);
            self.vol.free_inode(tx, self.ino, dir)
        })
    }

    fn has_old_map(&self) -> bool {
        let core = self.core.read();
        let has_blocks =
            matches!(self.meta.kind, FileType::Regular | FileType::Dir) || !crate::symlink::is_fast(&core, &self.vol);
        !core.has_extents()
            && has_blocks
            && matches!(self.meta.kind, FileType::Regular | FileType::Dir | FileType::Symlink)
    }

    fn free_old_map(&self) -> Result<()> {
        let blocks = crate::indirect::all_blocks(&self.owner(), &self.core.read())?;
        self.vol.transact(8, |tx| {
            self.change(tx, |core| {
                core.root_mut().fill(0);
                core.add_blocks(-(blocks.len() as i64), self.vol.geo.block_size);
            })
        })?;
        for part in blocks.chunks(STEP) {
            self.vol.transact(STEP_CREDITS, |tx| {
                for &(at, metadata) in part {
                    if metadata || self.meta.kind != FileType::Regular {
                        tx.forget(at)?;
                    }
                    self.vol.free(tx, at, 1)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
