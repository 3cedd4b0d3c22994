//! What a process brings to every path walk: root, working directory, umask.

use crate::mount::{self, Path, Superblock};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};
use sync::{LockClass, SpinLock, rank};

static CLASS: LockClass = LockClass::new("fs context", rank::SPIN + 10);

#[derive(Clone, Debug)]
struct Places {
    root: Path,
    cwd: Path,
}

/// Root, working directory and file-creation mask, shared by the threads of a process (`CLONE_FS`).
#[derive(Debug)]
pub struct FsContext {
    places: SpinLock<Places>,
    umask: AtomicU32,
}

impl FsContext {
    /// What kernel threads have: an empty root until the first file system is mounted and [`FsContext::set_root`] says so.
    pub fn initial() -> Arc<FsContext> {
        let sb = Superblock::of(Arc::new(crate::empty::EmptyFs), crate::empty::root());
        Arc::new(FsContext::new(mount::unattached(sb)))
    }

    /// Both places at `root`, umask 022.
    pub fn new(root: Path) -> Self {
        FsContext { places: SpinLock::new(&CLASS, Places { cwd: root.clone(), root }), umask: AtomicU32::new(0o022) }
    }

    /// A copy, for `fork`.
    pub fn fork(&self) -> Self {
        let places = self.places.lock().clone();
        FsContext { places: SpinLock::new(&CLASS, places), umask: AtomicU32::new(self.umask()) }
    }

    /// The root directory.
    #[inline]
    pub fn root(&self) -> Path {
        self.places.lock().root.clone()
    }

    /// The working directory.
    #[inline]
    pub fn cwd(&self) -> Path {
        self.places.lock().cwd.clone()
    }

    /// Root and working directory of one moment.
    #[inline]
    pub fn places(&self) -> (Path, Path) {
        let p = self.places.lock();
        (p.root.clone(), p.cwd.clone())
    }

    /// Lets `f` look at root and working directory of one moment. It runs with preemption disabled and takes no lock.
    #[inline]
    pub(crate) fn with_places<R>(&self, f: impl FnOnce(&Path, &Path) -> R) -> R {
        let p = self.places.lock();
        f(&p.root, &p.cwd)
    }

    /// Changes the root (`chroot`).
    pub fn set_root(&self, root: Path) {
        let mut p = self.places.lock();
        let old = core::mem::replace(&mut p.root, root);
        drop(p);
        drop(old);
    }

    /// Changes the working directory.
    pub fn set_cwd(&self, cwd: Path) {
        let mut p = self.places.lock();
        let old = core::mem::replace(&mut p.cwd, cwd);
        drop(p);
        drop(old);
    }

    /// The mask of permission bits that new files do not get.
    #[inline]
    pub fn umask(&self) -> u32 {
        self.umask.load(Ordering::Relaxed)
    }

    /// Sets the mask; returns the old one.
    pub fn set_umask(&self, mask: u32) -> u32 {
        self.umask.swap(mask & 0o777, Ordering::Relaxed)
    }

    /// For `pivot_root`: moves root and working directory from `old` to `new` where they are at `old`.
    pub fn replace(&self, old: &Path, new: &Path) {
        let mut p = self.places.lock();
        let keep = p.clone();
        if p.root.same(old) {
            p.root = new.clone();
        }
        if p.cwd.same(old) {
            p.cwd = new.clone();
        }
        drop(p);
        drop(keep);
    }
}
