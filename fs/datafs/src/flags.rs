//! Flags of inodes (`chattr`): which can be had, and the durability that `S` and `D` ask for. What `i` and `a` forbid is
//! mostly the VFS's business ([`vfs::flags`]).

use crate::fields::now;
use crate::inode::DataInode;
use crate::layout::inode::{FLAGS_INHERITED, FLAGS_OF_DIRS, FLAGS_OF_OTHERS, FLAGS_SETTABLE, FLAGS_VISIBLE};
use abi::{Errno, Result};
use core::sync::atomic::Ordering;
use vfs::FileType;
use vfs::flags::{DIRSYNC, IMMUTABLE, SYNC};

/// The flags of a new inode in a directory with the flags `dir`.
pub(crate) fn inherited(dir: u32, kind: FileType) -> u32 {
    fitting(dir & FLAGS_INHERITED, kind)
}

fn fitting(flags: u32, kind: FileType) -> u32 {
    match kind {
        FileType::Dir => flags,
        FileType::Regular => flags & !FLAGS_OF_DIRS,
        _ => flags & FLAGS_OF_OTHERS,
    }
}

impl DataInode {
    /// As `FS_IOC_GETFLAGS` shows them.
    pub(crate) fn shown_flags(&self) -> u32 {
        self.core.read().f().flags.get() & FLAGS_VISIBLE
    }

    /// `FS_IOC_SETFLAGS`: programs set what they got with some bits changed, so what cannot be set here is left as it is.
    /// `EOPNOTSUPP` for bits that nobody can have.
    pub(crate) fn change_flags(&self, flags: u32) -> Result<()> {
        if flags & !FLAGS_VISIBLE != 0 || (flags ^ self.shown_flags()) & !FLAGS_SETTABLE != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let set = fitting(flags & FLAGS_SETTABLE, self.meta.kind);
        self.vol.writable()?;
        if set & IMMUTABLE != 0
            && let Some(c) = &self.cache
        {
            // What was written before is written, even if nobody will be able to write again.
            c.sync()?;
        }
        self.vol.transact(4, |tx| {
            self.change(tx, |core| {
                let keep = core.f().flags.get() & !FLAGS_SETTABLE;
                core.m().flags.set(keep | set);
                core.set_ctime(now());
            })
        })?;
        self.meta.set_flags(set);
        if set & SYNC != 0 { self.settle() } else { Ok(()) }
    }

    /// Makes the last change of the inode durable.
    pub(crate) fn settle(&self) -> Result<()> {
        self.vol.store.commit(self.tid.load(Ordering::Relaxed))
    }

    /// Names in the directory changed: durable at once, if it is marked so.
    pub(crate) fn names_changed(&self) -> Result<()> {
        if self.meta.has(DIRSYNC | SYNC) || self.vol.options.dirsync() { self.settle() } else { Ok(()) }
    }
}
