//! Changes of names: create, link, unlink, rename.
//!
//! Each is one transaction. What may fail for want of space comes first in it; from the first change of a directory entry on
//! only damage and I/O errors can come between. The VFS holds the directories' own locks, so nobody else changes them.

use crate::dir::Found;
use crate::fields::{Core, now};
use crate::inode::DataInode;
use crate::layout::features::{Incompat, RoCompat};
use crate::layout::inode::OLD_SIZE;
use crate::layout::put_u32;
use crate::meta::Tx;
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use vfs::{FileType, NewInode, NewKind, RenameFlags};

/// Blocks that a change of names may touch: bitmaps, descriptors, inodes, a split of the index at every level.
const CREDITS: usize = 60;
const LINK_MAX: u16 = 65000;
/// The fields behind the old part that new inodes have.
const EXTRA: u16 = 32;

impl DataInode {
    /// A new inode in this directory's file system; nothing leads to it yet.
    fn new_inode(&self, tx: &Tx, new: &NewInode<'_>, links: u16) -> Result<Arc<DataInode>> {
        let kind = new.kind.file_type();
        let dir = kind == FileType::Dir;
        let ino = self.vol.alloc_inode(tx, self.ino, dir)?;
        let mut core = Core::new(&alloc::vec![0; self.vol.geo.inode_size]);
        let f = core.m();
        f.mode.set((kind.mode_bits() | (new.mode & 0o7777)) as u16);
        f.set_uid(new.uid);
        f.set_gid(new.gid);
        f.links.set(links);
        f.generation.set(platform::random_u64() as u32);
        f.flags.set(crate::flags::inherited(self.core.read().f().flags.get(), kind));
        if self.vol.geo.inode_size >= OLD_SIZE + usize::from(EXTRA) {
            f.extra_isize.set(EXTRA);
        }
        let t = now();
        core.set_atime(t);
        core.set_mtime(t);
        core.set_ctime(t);
        core.set_btime(t);
        if kind == FileType::Regular && self.vol.geo.incompat.contains(Incompat::EXTENTS) {
            crate::symlink::init_extents(&mut core);
        }
        match self.vol.adopt(ino, core) {
            Ok(i) => Ok(i),
            Err(e) => {
                self.vol.free_inode(tx, ino, dir)?;
                Err(e)
            }
        }
    }

    /// Gives a new inode what it has from the start.
    fn fill(&self, tx: &Tx, child: &DataInode, new: &NewInode<'_>) -> Result<()> {
        match new.kind {
            NewKind::Regular => child.change(tx, |_| ()),
            NewKind::Dir => {
                let mut core = child.core.write();
                child.init_dir(tx, &mut core, self.ino)?;
                child.store(tx, &core)
            }
            NewKind::Symlink(text) => child.set_link_text(tx, text),
            NewKind::Special(_, rdev) => child.change(tx, |core| encode_rdev(core.root_mut(), rdev)),
        }
    }

    /// Undoes `new_inode` and `fill`.
    fn unmake(&self, tx: &Tx, child: &DataInode) -> Result<()> {
        child.gone.store(true, Ordering::Relaxed);
        let mut core = child.core.write();
        if core.has_extents() {
            child.free_step(tx, &mut core, 0, crate::extents::BLOCKS_END)?;
        }
        core.m().links.set(0);
        core.m().dtime.set(now().sec as u32);
        child.store(tx, &core)?;
        drop(core);
        self.vol.free_inode(tx, child.ino, child.is_dir())
    }

    /// Counts a subdirectory more or less.
    fn count_subdir(&self, core: &mut Core, more: bool) -> Result<()> {
        let n = core.f().links.get();
        let many = self.vol.geo.ro_compat.contains(RoCompat::DIR_NLINK);
        // One name means "too many to count".
        let next = match (n, more) {
            (1, _) => 1,
            (n, true) if n >= LINK_MAX && !many => return Err(Errno::EMLINK),
            (n, true) if n >= LINK_MAX - 1 && many => 1,
            (n, true) => n + 1,
            (n, false) => n.saturating_sub(1).max(2),
        };
        core.m().links.set(next);
        Ok(())
    }

    fn touch_dir(&self, core: &mut Core) {
        let t = now();
        core.set_mtime(t);
        core.set_ctime(t);
    }

    fn alive_dir(&self, core: &Core) -> Result<()> {
        if !self.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        if core.f().links.get() == 0 { Err(Errno::ENOENT) } else { Ok(()) }
    }

    pub(crate) fn do_create(&self, name: &[u8], new: &NewInode<'_>) -> Result<Arc<DataInode>> {
        if matches!(new.kind, NewKind::Symlink(text) if text.len() > self.vol.geo.block_size) {
            return Err(Errno::ENAMETOOLONG);
        }
        let dir = matches!(new.kind, NewKind::Dir);
        self.vol.transact(CREDITS, |tx| {
            {
                let core = self.core.read();
                self.alive_dir(&core)?;
                if self.find_name(&core, name)?.is_some() {
                    return Err(Errno::EEXIST);
                }
            }
            let child = self.new_inode(tx, new, if dir { 2 } else { 1 })?;
            let done = self.fill(tx, &child, new).and_then(|()| {
                let mut core = self.core.write();
                if dir {
                    self.count_subdir(&mut core, true)?;
                }
                let added = self.add_name(tx, &mut core, name, child.ino, child.meta.kind);
                match &added {
                    Ok(()) => self.touch_dir(&mut core),
                    Err(_) if dir => self.count_subdir(&mut core, false)?,
                    Err(_) => {}
                }
                self.store(tx, &core)?;
                added
            });
            if done.is_err() {
                // Unmade, its last reference may go within the transaction.
                self.unmake(tx, &child)?;
            }
            done.map(|()| child)
        })
    }

    pub(crate) fn do_tmpfile(&self, new: &NewInode<'_>) -> Result<Arc<DataInode>> {
        self.vol.transact(CREDITS, |tx| {
            let child = self.new_inode(tx, new, 0)?;
            child.linkable.store(true, Ordering::Relaxed);
            let done = child.add_orphan(tx).and_then(|()| child.change(tx, |_| ()));
            if done.is_err() {
                self.unmake(tx, &child)?;
            }
            done.map(|()| child)
        })
    }

    pub(crate) fn do_link(&self, name: &[u8], target: &DataInode) -> Result<()> {
        if target.is_dir() {
            return Err(Errno::EPERM);
        }
        self.vol.transact(CREDITS, |tx| {
            match target.core.read().f().links.get() {
                0 if !target.linkable.load(Ordering::Relaxed) => return Err(Errno::ENOENT),
                n if n >= LINK_MAX => return Err(Errno::EMLINK),
                _ => {}
            }
            let mut core = self.core.write();
            self.alive_dir(&core)?;
            if self.find_name(&core, name)?.is_some() {
                return Err(Errno::EEXIST);
            }
            let added = self.add_name(tx, &mut core, name, target.ino, target.meta.kind);
            if added.is_ok() {
                self.touch_dir(&mut core);
            }
            self.store(tx, &core)?;
            drop(core);
            added?;
            let mut core = target.core.write();
            let n = core.f().links.get();
            if n == 0 {
                target.remove_orphan(tx)?;
                core.m().dtime.set(0);
            }
            core.m().links.set(n + 1);
            core.set_ctime(now());
            target.store(tx, &core)
        })
    }

    /// The child called `name`.
    pub(crate) fn child(&self, name: &[u8]) -> Result<Arc<DataInode>> {
        let ino = {
            let core = self.core.read();
            self.find_name(&core, name)?.ok_or(Errno::ENOENT)?.ino
        };
        match self.vol.get(ino) {
            Err(Errno::ESTALE) => Err(self.vol.corrupt(ino, "a name leads to an inode that is not in use")),
            Ok(i) if i.core.read().f().links.get() == 0 => {
                Err(self.vol.corrupt(ino, "a name leads to a removed inode"))
            }
            other => other,
        }
    }

    /// A name of the inode is gone; `whole`: it was a directory's.
    fn drop_name(&self, tx: &Tx, whole: bool) -> Result<()> {
        let mut core = self.core.write();
        let n = core.f().links.get();
        let left = if whole { 0 } else { n.saturating_sub(1) };
        core.m().links.set(left);
        core.set_ctime(now());
        if left == 0 {
            self.add_orphan(tx)?;
        }
        self.store(tx, &core)
    }

    fn entry(&self, core: &Core, name: &[u8], ino: u32) -> Result<Found> {
        self.find_name(core, name)?.filter(|f| f.ino == ino).ok_or(Errno::ENOENT)
    }

    pub(crate) fn do_unlink(&self, name: &[u8]) -> Result<()> {
        let child = self.child(name)?;
        if child.is_dir() {
            return Err(Errno::EISDIR);
        }
        self.vol.transact(CREDITS, |tx| {
            let mut core = self.core.write();
            let found = self.entry(&core, name, child.ino)?;
            self.remove_name(tx, &found)?;
            self.touch_dir(&mut core);
            self.store(tx, &core)?;
            drop(core);
            child.drop_name(tx, false)
        })
    }

    pub(crate) fn do_rmdir(&self, name: &[u8]) -> Result<()> {
        let child = self.child(name)?;
        if !child.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        if !child.is_empty_dir(&child.core.read())? {
            return Err(Errno::ENOTEMPTY);
        }
        self.vol.transact(CREDITS, |tx| {
            let mut core = self.core.write();
            let found = self.entry(&core, name, child.ino)?;
            self.remove_name(tx, &found)?;
            self.count_subdir(&mut core, false)?;
            self.touch_dir(&mut core);
            self.store(tx, &core)?;
            drop(core);
            child.drop_name(tx, true)
        })
    }

    pub(crate) fn do_rename(&self, old: &[u8], to: &DataInode, new: &[u8], flags: RenameFlags) -> Result<()> {
        let child = self.child(old)?;
        let target = match to.child(new) {
            Ok(t) => Some(t),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        match &target {
            Some(_) if flags.noreplace => return Err(Errno::EEXIST),
            None if flags.exchange => return Err(Errno::ENOENT),
            Some(t) if flags.exchange => return self.exchange(old, &child, to, new, t),
            Some(t) if Arc::ptr_eq(t, &child) => return Ok(()),
            Some(t) if child.is_dir() && !t.is_dir() => return Err(Errno::ENOTDIR),
            Some(t) if !child.is_dir() && t.is_dir() => return Err(Errno::EISDIR),
            Some(t) if t.is_dir() && !t.is_empty_dir(&t.core.read())? => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        let moves_dir = child.is_dir() && self.ino != to.ino;
        self.vol.transact(CREDITS, |tx| {
            let mut core = to.core.write();
            to.alive_dir(&core)?;
            if moves_dir && target.is_none() {
                to.count_subdir(&mut core, true)?;
            }
            let placed = match &target {
                Some(t) => to.entry(&core, new, t.ino).and_then(|f| to.set_name(tx, &f, child.ino, child.meta.kind)),
                None => to.add_name(tx, &mut core, new, child.ino, child.meta.kind),
            };
            match &placed {
                Ok(()) => to.touch_dir(&mut core),
                Err(_) if moves_dir && target.is_none() => to.count_subdir(&mut core, false)?,
                Err(_) => {}
            }
            to.store(tx, &core)?;
            drop(core);
            placed?;
            let mut core = self.core.write();
            let found = self.entry(&core, old, child.ino)?;
            self.remove_name(tx, &found)?;
            // A directory leaves this one, or replaces another in it.
            if child.is_dir() && (moves_dir || target.is_some()) {
                self.count_subdir(&mut core, false)?;
            }
            self.touch_dir(&mut core);
            self.store(tx, &core)?;
            drop(core);
            let mut core = child.core.write();
            if moves_dir {
                child.set_parent(tx, &core, to.ino)?;
            }
            core.set_ctime(now());
            child.store(tx, &core)?;
            drop(core);
            match &target {
                Some(t) => t.drop_name(tx, t.is_dir()),
                None => Ok(()),
            }
        })
    }

    fn exchange(&self, old: &[u8], a: &Arc<DataInode>, to: &DataInode, new: &[u8], b: &Arc<DataInode>) -> Result<()> {
        if Arc::ptr_eq(a, b) {
            return Ok(());
        }
        let across = self.ino != to.ino;
        self.vol.transact(CREDITS, |tx| {
            // Names change places; the two directories count one subdirectory more or less where the kinds differ.
            for (dir, name, from, into) in [(self, old, a, b), (to, new, b, a)] {
                let mut core = dir.core.write();
                let found = dir.entry(&core, name, from.ino)?;
                dir.set_name(tx, &found, into.ino, into.meta.kind)?;
                if across && from.is_dir() != into.is_dir() {
                    dir.count_subdir(&mut core, into.is_dir())?;
                }
                dir.touch_dir(&mut core);
                dir.store(tx, &core)?;
            }
            for (inode, parent) in [(a, to.ino), (b, self.ino)] {
                let mut core = inode.core.write();
                if across && inode.is_dir() {
                    inode.set_parent(tx, &core, parent)?;
                }
                core.set_ctime(now());
                inode.store(tx, &core)?;
            }
            Ok(())
        })
    }
}

/// A device number as user space has it, in an inode: small ones in the old form.
fn encode_rdev(root: &mut [u8], rdev: u64) {
    let major = ((rdev >> 8) & 0xfff) | ((rdev >> 32) & 0xffff_f000);
    let minor = (rdev & 0xff) | ((rdev >> 12) & 0xffff_ff00);
    root.fill(0);
    if major < 256 && minor < 256 {
        put_u32(root, 0, ((major << 8) | minor) as u32);
    } else {
        put_u32(root, 4, ((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)) as u32);
    }
}

/// The device number of an inode.
pub(crate) fn decode_rdev(root: &[u8]) -> u64 {
    let (old, new) = (u64::from(crate::layout::u32_at(root, 0)), u64::from(crate::layout::u32_at(root, 4)));
    let (major, minor) = if old != 0 {
        ((old >> 8) & 0xff, old & 0xff)
    } else {
        ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xf_ff00))
    };
    ((major & 0xfff) << 8) | (minor & 0xff) | ((minor & !0xff) << 12) | ((major & !0xfff) << 32)
}
