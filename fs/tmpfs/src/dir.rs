//! Directories: by name for look-ups, by cookie for listing.
//!
//! Each entry gets a cookie that is never used again in its directory, so a listing that continues behind a cookie sees
//! every entry that stays exactly once, whatever is added and removed meanwhile. A name that is renamed over keeps its
//! cookie: it was there all the while.

use crate::inode::TmpInode;
use abi::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use sync::{LockClass, RwLock, RwWriteGuard, rank};
use vfs::{DirEntry, RenameFlags};

static CLASS: LockClass = LockClass::new("tmpfs directory", rank::INODE);

/// The first cookie: 0 and 1 are `.` and `..`.
const FIRST: u64 = 2;

#[derive(Debug)]
struct Child {
    cookie: u64,
    inode: Arc<TmpInode>,
}

#[derive(Debug)]
struct Entries {
    by_name: BTreeMap<Arc<[u8]>, Child>,
    by_cookie: BTreeMap<u64, Arc<[u8]>>,
    next: u64,
    /// Removed: nothing can be created in it any more.
    dead: bool,
}

impl Entries {
    fn insert(&mut self, name: &[u8], inode: Arc<TmpInode>) {
        if let Some(c) = self.by_name.get_mut(name) {
            c.inode = inode;
            return;
        }
        let name: Arc<[u8]> = Arc::from(name);
        let cookie = self.next;
        self.next += 1;
        self.by_cookie.insert(cookie, name.clone());
        self.by_name.insert(name, Child { cookie, inode });
    }

    fn take(&mut self, name: &[u8]) -> Option<Arc<TmpInode>> {
        let child = self.by_name.remove(name)?;
        self.by_cookie.remove(&child.cookie);
        Some(child.inode)
    }
}

#[derive(Debug)]
pub(crate) struct Dir(RwLock<Entries>);

impl Dir {
    pub(crate) fn new() -> Self {
        let entries = Entries { by_name: BTreeMap::new(), by_cookie: BTreeMap::new(), next: FIRST, dead: false };
        Dir(RwLock::new(&CLASS, entries))
    }

    pub(crate) fn set_alive(&self) {
        self.0.write().dead = false;
    }

    pub(crate) fn count(&self) -> usize {
        self.0.read().by_name.len()
    }

    pub(crate) fn take_all(&self) -> Vec<Arc<TmpInode>> {
        let mut e = self.0.write();
        e.by_cookie.clear();
        core::mem::take(&mut e.by_name).into_values().map(|c| c.inode).collect()
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<Arc<TmpInode>> {
        self.0.read().by_name.get(name).map(|c| c.inode.clone())
    }

    pub(crate) fn add(&self, name: &[u8], inode: &Arc<TmpInode>) -> Result<()> {
        let mut e = self.0.write();
        if e.dead {
            return Err(Errno::ENOENT);
        }
        if e.by_name.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        e.insert(name, inode.clone());
        Ok(())
    }

    /// Removes an empty directory (`dir`) or something else.
    pub(crate) fn remove(&self, name: &[u8], dir: bool) -> Result<Arc<TmpInode>> {
        let mut e = self.0.write();
        let child = e.by_name.get(name).ok_or(Errno::ENOENT)?;
        match (dir, child.inode.is_dir()) {
            (true, true) => child.inode.dir()?.die(true)?,
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            (false, false) => {}
        }
        e.take(name).ok_or(Errno::ENOENT)
    }

    /// Marks it removed; `ENOTEMPTY` if it is not empty. `nested`: its parent's lock is held (parent before child).
    fn die(&self, nested: bool) -> Result<()> {
        let mut e = if nested { self.0.write_nested() } else { self.0.write() };
        if !e.by_name.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        e.dead = true;
        Ok(())
    }

    /// Lists from `cookie` on, in batches, so that `emit` runs without the lock.
    pub(crate) fn list(&self, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) {
        let mut from = cookie.max(FIRST);
        loop {
            let batch: Vec<_> = {
                let e = self.0.read();
                let some = e.by_cookie.range(from..).take(64);
                some.filter_map(|(c, n)| e.by_name.get(n).map(|i| (*c, n.clone(), i.inode.ino(), i.inode.kind())))
                    .collect()
            };
            let Some(last) = batch.last() else { return };
            from = last.0 + 1;
            for (c, name, ino, kind) in &batch {
                if !emit(DirEntry { ino: *ino, kind: *kind, name, next: c + 1 }) {
                    return;
                }
            }
        }
    }
}

/// Renames within one file system; see [`vfs::Inode::rename`].
pub(crate) fn rename(from: &TmpInode, old: &[u8], to: &Arc<TmpInode>, new: &[u8], flags: RenameFlags) -> Result<()> {
    let (a, b) = (from.dir()?, to.dir()?);
    let replaced = match from.ino().cmp(&to.ino()) {
        core::cmp::Ordering::Equal => {
            let mut e = a.0.write();
            rename_within(&mut e, old, new, flags)?
        }
        core::cmp::Ordering::Less => {
            let mut ea = a.0.write();
            let mut eb = b.0.write_nested();
            rename_across((from, &mut ea), old, (to, &mut eb), new, flags)?
        }
        core::cmp::Ordering::Greater => {
            let mut eb = b.0.write();
            let mut ea = a.0.write_nested();
            rename_across((from, &mut ea), old, (to, &mut eb), new, flags)?
        }
    };
    if let Some(gone) = replaced {
        if gone.is_dir() {
            gone.nlink.store(0, Ordering::Relaxed);
            to.nlink.fetch_sub(1, Ordering::Relaxed);
        } else {
            gone.nlink.fetch_sub(1, Ordering::Relaxed);
        }
        gone.touch_change();
    }
    from.touch();
    to.touch();
    Ok(())
}

/// May `moved` replace what is at `target`? Marks a directory that goes as removed.
fn check_replace(moved: &TmpInode, target: &TmpInode) -> Result<()> {
    match (moved.is_dir(), target.is_dir()) {
        (true, false) => Err(Errno::ENOTDIR),
        (false, true) => Err(Errno::EISDIR),
        (true, true) => target.dir()?.die(true),
        (false, false) => Ok(()),
    }
}

fn rename_within(e: &mut Entries, old: &[u8], new: &[u8], flags: RenameFlags) -> Result<Option<Arc<TmpInode>>> {
    let moved = e.by_name.get(old).ok_or(Errno::ENOENT)?.inode.clone();
    let target = e.by_name.get(new).map(|c| c.inode.clone());
    if flags.exchange {
        let target = target.ok_or(Errno::ENOENT)?;
        e.insert(old, target);
        e.insert(new, moved);
        return Ok(None);
    }
    if let Some(t) = &target {
        if flags.noreplace {
            return Err(Errno::EEXIST);
        }
        if t.ino() == moved.ino() {
            return Ok(None);
        }
        check_replace(&moved, t)?;
    }
    drop(e.take(old));
    moved.touch_change();
    e.insert(new, moved);
    Ok(target)
}

type Half<'a, 'g> = (&'a TmpInode, &'a mut RwWriteGuard<'g, Entries>);

fn rename_across(
    (from, a): Half<'_, '_>,
    old: &[u8],
    (to, b): Half<'_, '_>,
    new: &[u8],
    flags: RenameFlags,
) -> Result<Option<Arc<TmpInode>>> {
    let moved = a.by_name.get(old).ok_or(Errno::ENOENT)?.inode.clone();
    let target = b.by_name.get(new).map(|c| c.inode.clone());
    if b.dead {
        return Err(Errno::ENOENT);
    }
    let moved_dir = moved.is_dir();
    if flags.exchange {
        let target = target.ok_or(Errno::ENOENT)?;
        let target_dir = target.is_dir();
        a.insert(old, target);
        b.insert(new, moved);
        match (moved_dir, target_dir) {
            (true, false) => move_link(from, to),
            (false, true) => move_link(to, from),
            _ => {}
        }
        return Ok(None);
    }
    if let Some(t) = &target {
        if flags.noreplace {
            return Err(Errno::EEXIST);
        }
        if t.ino() == moved.ino() {
            return Ok(None);
        }
        check_replace(&moved, t)?;
    }
    drop(a.take(old));
    moved.touch_change();
    b.insert(new, moved);
    if moved_dir {
        move_link(from, to);
    }
    Ok(target)
}

/// A subdirectory's `..` goes from one directory to another.
fn move_link(from: &TmpInode, to: &TmpInode) {
    from.nlink.fetch_sub(1, Ordering::Relaxed);
    to.nlink.fetch_add(1, Ordering::Relaxed);
}
