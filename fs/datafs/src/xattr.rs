//! Extended attributes: in what the inode leaves free as long as they fit, the others in one block.

use crate::fields::{Core, now};
use crate::inode::DataInode;
use crate::layout::xattr::{self, Attr, BLOCK_HEADER, INODE_HEADER};
use crate::meta::Look;
use abi::{Errno, Result};
use alloc::vec::Vec;

const CREATE: u32 = 1;
const REPLACE: u32 = 2;

impl DataInode {
    fn xattrs_in_block(&self, core: &Core) -> Result<Vec<Attr>> {
        let at = core.f().file_acl();
        if at == 0 {
            return Ok(Vec::new());
        }
        let buf = self.vol.store.read(at)?;
        let (seed, csum) = (self.vol.seed, self.vol.geo.metadata_csum());
        buf.verify(|b| {
            if csum && xattr::checksum(seed, at, b) != xattr::stored_checksum(b) {
                return Err(self.vol.corrupt(self.ino, "wrong checksum of the attribute block"));
            }
            Ok(())
        })?;
        buf.with(xattr::from_block).map_err(|_| self.vol.corrupt(self.ino, "impossible attribute block"))
    }

    fn xattrs_in_inode(&self, core: &Core) -> Result<Vec<Attr>> {
        xattr::from_inode(core.free()).map_err(|_| self.vol.corrupt(self.ino, "impossible attributes"))
    }

    /// The value of an attribute.
    pub(crate) fn xattr_get(&self, name: &[u8]) -> Result<Vec<u8>> {
        let (index, name) = xattr::split_name(name)?;
        let core = self.core.read();
        let mine = |a: &Attr| a.index == index && a.name == name;
        let found = self.xattrs_in_inode(&core)?.into_iter().find(mine);
        match found {
            Some(a) => Ok(a.value),
            None => self.xattrs_in_block(&core)?.into_iter().find(mine).map(|a| a.value).ok_or(Errno::ENODATA),
        }
    }

    /// All names.
    pub(crate) fn xattr_names(&self) -> Result<Vec<Vec<u8>>> {
        let core = self.core.read();
        let mut all = self.xattrs_in_inode(&core)?;
        all.extend(self.xattrs_in_block(&core)?);
        Ok(all.iter().filter_map(Attr::full_name).collect())
    }

    /// Sets or removes an attribute.
    pub(crate) fn xattr_set(&self, name: &[u8], value: Option<&[u8]>, flags: u32) -> Result<()> {
        let (index, name) = xattr::split_name(name)?;
        if name.len() > 255 {
            return Err(Errno::ERANGE);
        }
        if value.is_some_and(|v| v.len() > self.vol.geo.block_size) {
            return Err(Errno::ENOSPC);
        }
        self.vol.transact(16, |tx| {
            let mut core = self.core.write();
            let mine = |a: &Attr| a.index == index && a.name == name;
            let (mut inside, mut outside) = (self.xattrs_in_inode(&core)?, self.xattrs_in_block(&core)?);
            let exists = inside.iter().chain(&outside).any(mine);
            match value {
                Some(_) if exists && flags & CREATE != 0 => return Err(Errno::EEXIST),
                Some(_) if !exists && flags & REPLACE != 0 => return Err(Errno::ENODATA),
                None if !exists => return Err(Errno::ENODATA),
                _ => {}
            }
            let had_outside = outside.clone();
            inside.retain(|a| !mine(a));
            outside.retain(|a| !mine(a));
            if let Some(v) = value {
                let new = Attr { index, name: name.to_vec(), value: v.to_vec() };
                inside.push(new);
                if !xattr::fits(&inside, INODE_HEADER, core.free().len()) {
                    outside.extend(inside.pop());
                }
            }
            if !xattr::fits(&outside, BLOCK_HEADER, self.vol.geo.block_size) {
                return Err(Errno::ENOSPC);
            }
            if outside != had_outside {
                self.write_xattr_block(tx, &mut core, &mut outside)?;
            }
            if core.free().len() >= INODE_HEADER + 4 {
                xattr::to_inode(core.free_mut(), &inside);
            }
            core.set_ctime(now());
            self.store(tx, &core)
        })
    }

    fn write_xattr_block(&self, tx: &crate::meta::Tx, core: &mut Core, attrs: &mut [Attr]) -> Result<()> {
        if attrs.is_empty() {
            return self.release_xattr_block(tx, core);
        }
        let mut at = core.f().file_acl();
        let shared = at != 0 && self.vol.store.read(at)?.with(xattr::refcount) > 1;
        let buf = if at == 0 || shared {
            let number = self.vol.alloc_named(tx, self.goal(core, 0))?;
            if shared {
                self.release_xattr_block(tx, core)?;
            }
            core.m().set_file_acl(number);
            core.add_blocks(1, self.vol.geo.block_size);
            at = number;
            tx.create(number)?
        } else {
            self.vol.store.read(at)?
        };
        let (seed, csum) = (self.vol.seed, self.vol.geo.metadata_csum());
        tx.write(&buf, |b| {
            xattr::to_block(b, attrs);
            if csum {
                xattr::store_checksum(seed, at, b);
            }
        })
    }
}
