//! The orphan list: inodes without a name that are still in use, and files in the middle of a truncation. A list through
//! the inodes' `dtime` fields that begins in the superblock; mounting finishes what it finds there.

use crate::inode::{DataInode, seal};
use crate::layout::put_u32;
use crate::meta::Tx;
use crate::volume::Volume;
use abi::Result;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

/// An entry of the list in memory.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub ino: u32,
    /// The inode behind it; stored with the inode.
    pub next: Arc<AtomicU32>,
}

impl DataInode {
    /// Puts the inode at the head of the list; the caller stores its core afterwards.
    pub(crate) fn add_orphan(&self, tx: &Tx) -> Result<()> {
        if self.orphan.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut list = self.vol.orphans.lock();
        let head = list.first().map_or(0, |o| o.ino);
        self.vol.write_super(tx, |sb| sb.last_orphan.set(self.ino))?;
        self.next_orphan.store(head, Ordering::Relaxed);
        self.orphan.store(true, Ordering::Relaxed);
        list.insert(0, Orphan { ino: self.ino, next: self.next_orphan.clone() });
        Ok(())
    }

    /// Takes the inode out of the list; the caller stores its core afterwards.
    pub(crate) fn remove_orphan(&self, tx: &Tx) -> Result<()> {
        if !self.orphan.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut list = self.vol.orphans.lock();
        let next = self.next_orphan.load(Ordering::Relaxed);
        if let Some(at) = list.iter().position(|o| o.ino == self.ino) {
            match at.checked_sub(1).and_then(|p| list.get(p)) {
                None => self.vol.write_super(tx, |sb| sb.last_orphan.set(next))?,
                Some(before) => self.vol.relink_orphan(tx, before, next)?,
            }
            list.remove(at);
        }
        self.orphan.store(false, Ordering::Relaxed);
        self.next_orphan.store(0, Ordering::Relaxed);
        Ok(())
    }
}

impl Volume {
    /// Makes `next` follow an orphan, whose core somebody else may hold: only the bytes in the table are changed, and
    /// the number that storing the core puts in.
    fn relink_orphan(&self, tx: &Tx, orphan: &Orphan, next: u32) -> Result<()> {
        let ino = orphan.ino;
        let (block, at) = self.inode_place(ino)?;
        let buf = self.store.read(block)?;
        let size = self.geo.inode_size;
        tx.write(&buf, |b| {
            let d = &mut b[at..at + size];
            orphan.next.store(next, Ordering::Relaxed);
            put_u32(d, 0x14, next);
            if self.geo.metadata_csum() {
                let seed = crate::crc::crc32c(self.seed, &ino.to_le_bytes());
                let seed = crate::crc::crc32c(seed, &d[0x64..0x68]);
                seal(seed, d);
            }
        })
    }

    /// Finishes what was interrupted: frees nameless inodes, cuts files to their sizes. Called once, before anyone else.
    pub(crate) fn finish_orphans(self: &Arc<Volume>) -> Result<()> {
        let mut list: Vec<Orphan> = Vec::new();
        let mut ino = self.with_super(|sb| sb.last_orphan.get())?;
        let mut held = Vec::new();
        while ino != 0 {
            if ino < self.geo.first_ino
                || ino > self.geo.inodes
                || list.iter().any(|o| o.ino == ino)
                || list.len() > 1 << 20
            {
                self.corrupt(ino, "impossible orphan list");
                break;
            }
            let Ok(inode) = self.get(ino) else {
                self.corrupt(ino, "an orphan cannot be read");
                break;
            };
            let next = inode.core.read().f().dtime.get();
            inode.orphan.store(true, Ordering::Relaxed);
            inode.next_orphan.store(next, Ordering::Relaxed);
            list.push(Orphan { ino, next: inode.next_orphan.clone() });
            held.push(inode);
            ino = next;
        }
        *self.orphans.lock() = list;
        for inode in held {
            if inode.core.read().f().links.get() > 0 {
                inode.finish_truncation()?;
            }
            // A nameless one is freed as its last reference goes.
            drop(inode);
        }
        Ok(())
    }
}
