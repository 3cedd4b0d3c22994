//! Symbolic links: texts shorter than 60 bytes lie in the inode, longer ones in a block of their own.

use crate::extents_edit::Edit;
use crate::fields::Core;
use crate::inode::DataInode;
use crate::layout::inode::BLOCK_LEN;
use crate::meta::Tx;
use crate::volume::Volume;
use abi::{Errno, Result};
use alloc::vec::Vec;

/// Whether the text lies in the inode.
pub(crate) fn is_fast(core: &Core, vol: &Volume) -> bool {
    let attributes = if core.f().file_acl() != 0 { vol.geo.block_size as u64 / 512 } else { 0 };
    core.f().sectors(vol.geo.block_size as u32) <= attributes && (core.f().size() as usize) < BLOCK_LEN
}

impl DataInode {
    /// The text.
    pub(crate) fn link_text(&self) -> Result<Vec<u8>> {
        let (size, fast) = {
            let core = self.core.read();
            let size = core.f().size() as usize;
            let fast = is_fast(&core, &self.vol);
            if fast {
                return Ok(core.root().get(..size).ok_or(Errno::EUCLEAN)?.to_vec());
            }
            (size, fast)
        };
        let _ = fast;
        if size == 0 || size > self.vol.geo.block_size.min(vfs::PATH_MAX) {
            return Err(self.vol.corrupt(self.ino, "impossible length of a symbolic link"));
        }
        let mut text = self.read_block(0)?.ok_or_else(|| self.vol.corrupt(self.ino, "a symbolic link without text"))?;
        text.truncate(size);
        Ok(text)
    }

    /// Gives a new link its text.
    pub(crate) fn set_link_text(&self, tx: &Tx, text: &[u8]) -> Result<()> {
        let mut core = self.core.write();
        core.m().set_size(text.len() as u64);
        if text.len() < BLOCK_LEN {
            core.root_mut().fill(0);
            core.root_mut()[..text.len()].copy_from_slice(text);
            return self.store(tx, &core);
        }
        if text.len() > self.vol.geo.block_size {
            return Err(Errno::ENAMETOOLONG);
        }
        init_extents(&mut core);
        let goal = self.goal(&core, 0);
        let at = self.vol.alloc_named(tx, goal)?;
        let buf = tx.create(at)?;
        tx.write(&buf, |b| b[..text.len()].copy_from_slice(text))?;
        Edit { owner: self.owner(), tx, core: &mut core, goal }.replace(0, 1, Some((at, true)), 1)?;
        core.add_blocks(1, self.vol.geo.block_size);
        self.store(tx, &core)
    }
}

/// Makes the inode one whose blocks extents map; there are none yet.
pub(crate) fn init_extents(core: &mut Core) {
    use crate::layout::extent::{Entries, encode};
    let flags = core.f().flags.get() | crate::layout::inode::FLAG_EXTENTS;
    core.m().flags.set(flags);
    encode(core.root_mut(), &Entries::Leaf(Vec::new()));
}
