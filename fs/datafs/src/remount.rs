//! Beginning and ending to write: remounts, and the end of a mount.
//!
//! A file system that is mounted read-only has its journal at hand but closed. To begin: the journal is opened, the
//! superblock says durably that it is needed, then interrupted work is finished. To end: everything is written, the journal
//! emptied and closed, then the superblock says that it is not needed. Between any two of these steps a crash leaves what
//! recovery makes whole. That no file is open for writing is the VFS's business.

use crate::layout::features::Compat;
use crate::recover;
use crate::volume::Volume;
use abi::{Errno, Result};
use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

impl Volume {
    /// Changes options. `EINVAL` for what is unknown or would need another mount; `EROFS` if writing cannot begin, `EBUSY` if
    /// it cannot end because removed files are still open.
    pub(crate) fn remount(self: &Arc<Self>, words: &str) -> Result<()> {
        let mut old = self.options.now();
        old.read_only = self.read_only.load(Ordering::Relaxed);
        let new = old.parse(words)?;
        if new.barrier != old.barrier {
            return Err(Errno::EINVAL);
        }
        match (old.read_only, new.read_only) {
            (true, false) => self.begin_writing()?,
            (false, true) => self.end_writing()?,
            _ => {}
        }
        self.options.set(&new);
        self.store.journal.set_interval_ns(u64::from(new.commit_seconds) * 1_000_000_000);
        Ok(())
    }

    /// Why writing cannot begin.
    fn obstacle(&self) -> Option<&str> {
        let log = self.geo.compat.contains(Compat::HAS_JOURNAL);
        if self.device.geometry().read_only {
            Some("the disk cannot be written")
        } else if !self.geo.ro_because.is_empty() {
            Some(&self.geo.ro_because)
        } else if self.saw_errors() || self.store.journal.aborted().is_some() {
            Some("it is damaged: unmount it and run e2fsck")
        } else if log && !self.store.has_journal() {
            Some("its journal cannot be used")
        } else {
            None
        }
    }

    fn begin_writing(self: &Arc<Self>) -> Result<()> {
        if let Some(why) = self.obstacle() {
            self.options.log(&format!("datafs: {}: stays read-only: {why}", self.device.name()));
            return Err(Errno::EROFS);
        }
        self.store.journal.reopen()?;
        if self.store.has_journal() {
            recover::mark_recover(&*self.device, true)?;
        }
        self.read_only.store(false, Ordering::Relaxed);
        let begun = self.mark_mounted().and_then(|()| self.finish_orphans());
        if begun.is_err() {
            let _ = self.stop();
        }
        begun
    }

    fn end_writing(&self) -> Result<()> {
        self.sync_all()?;
        if !self.orphans.lock().is_empty() {
            return Err(Errno::EBUSY);
        }
        self.stop()
    }

    /// Empties and closes the journal, and says so in the superblock.
    fn stop(&self) -> Result<()> {
        if self.writable().is_ok() {
            self.update_super(true)?;
        }
        let wrote = self.store.journal.is_open();
        let closed = self.store.journal.close();
        self.read_only.store(true, Ordering::Relaxed);
        closed?;
        if wrote && self.store.has_journal() && self.store.journal.aborted().is_none() {
            recover::mark_recover(&*self.device, false)?;
        }
        Ok(())
    }

    /// The end of the mount.
    pub(crate) fn end(&self) -> Result<()> {
        self.sync_all()?;
        self.stop()
    }
}
