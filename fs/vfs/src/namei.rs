//! Calls that change names: create, link, unlink, rename; and those that change attributes by path.
//!
//! Each walks to the directory of the last component, takes that directory's lock, looks the name up again under it, checks
//! permissions, lets the file system do it, and brings the cache in line before the lock is released.

use crate::attr::{FileType, NewInode, NewKind, SetAttr};
use crate::dcache;
use crate::dentry::Dentry;
use crate::flags;
use crate::fsctx::FsContext;
use crate::inode::{Inode, RenameFlags};
use crate::mount::Path;
use crate::notify::{self, event};
use crate::perm::{self, CAP_CHOWN, CAP_FSETID, CAP_MKNOD, Cred, MAY_EXEC, MAY_WRITE};
use crate::walk::{At, Last, Lookup, Special, Walk, child_locked};
use abi::{Errno, Result};
use alloc::sync::Arc;

/// Creates `name` in `dir`, whose lock is held and where it does not exist.
pub(crate) fn create_locked(
    dir: &Path,
    name: &[u8],
    kind: NewKind<'_>,
    mode: u32,
    cred: &Cred<'_>,
) -> Result<Arc<Dentry>> {
    if dir.dentry.is_dead() {
        return Err(Errno::ENOENT);
    }
    if dir.mount.read_only() {
        return Err(Errno::EROFS);
    }
    let meta = dir.inode().meta();
    perm::check(cred, meta, MAY_WRITE | MAY_EXEC)?;
    let (mode, gid) = perm::inherit(cred, meta, mode, kind.file_type());
    let inode = dir.inode().create(name, &NewInode { kind, mode, uid: cred.uid, gid })?;
    let dentry = Dentry::new(dir.mount.sb.id, Some(dir.dentry.clone()), Arc::from(name), inode);
    remember(dir, &dentry);
    notify::entry(&dir.dentry, name, kind.file_type(), event::CREATE);
    Ok(dentry)
}

fn remember(dir: &Path, dentry: &Arc<Dentry>) {
    if dir.mount.sb.cached {
        dcache::insert(dir.dentry.id(), dentry.name(), Some(dentry.clone()));
    }
}

/// Creates a directory, link or special file. `EEXIST` wherever the path ends in something that is there.
fn create(fs: &FsContext, cred: &Cred<'_>, at: At<'_>, path: &[u8], kind: NewKind<'_>, mode: u32) -> Result<()> {
    let mut walk = Walk::start(fs, cred, at, path, Lookup::NOFOLLOW)?;
    let last = walk.walk_to_parent(path)?;
    if last.special != Special::None {
        return Err(Errno::EEXIST);
    }
    let dir = walk.path.clone();
    perm::check(cred, dir.inode().meta(), MAY_EXEC)?;
    let guard = dir.dentry.dir.lock();
    if child_locked(&dir, &last.name)?.is_some() {
        return Err(Errno::EEXIST);
    }
    if last.slash && kind.file_type() != FileType::Dir {
        return Err(Errno::ENOENT);
    }
    let made = create_locked(&dir, &last.name, kind, mode, cred);
    drop(guard);
    made.map(drop)
}

/// `mkdirat(2)`.
pub fn mkdir(fs: &FsContext, cred: &Cred<'_>, at: At<'_>, path: &[u8], mode: u32) -> Result<()> {
    create(fs, cred, at, path, NewKind::Dir, mode & 0o1777 & !fs.umask())
}

/// `mknodat(2)`: `mode` with its type bits.
pub fn mknod(fs: &FsContext, cred: &Cred<'_>, at: At<'_>, path: &[u8], mode: u32, rdev: u64) -> Result<()> {
    let kind = match (mode >> 12) & 0xf {
        0 => FileType::Regular,
        _ => FileType::from_mode(mode).ok_or(Errno::EINVAL)?,
    };
    let perms = mode & 0o7777 & !fs.umask();
    let kind = match kind {
        FileType::Regular => NewKind::Regular,
        FileType::Dir => return Err(Errno::EPERM),
        FileType::Symlink => return Err(Errno::EINVAL),
        FileType::Char | FileType::Block if !cred.capable(CAP_MKNOD) => return Err(Errno::EPERM),
        FileType::Char | FileType::Block => NewKind::Special(kind, rdev),
        FileType::Fifo | FileType::Socket => NewKind::Special(kind, 0),
    };
    create(fs, cred, at, path, kind, perms)
}

/// `symlinkat(2)`.
pub fn symlink(fs: &FsContext, cred: &Cred<'_>, text: &[u8], at: At<'_>, path: &[u8]) -> Result<()> {
    if text.is_empty() {
        return Err(Errno::ENOENT);
    }
    if text.len() >= crate::PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    create(fs, cred, at, path, NewKind::Symlink(text), 0o777)
}

/// `linkat(2)`, its source already resolved.
pub fn link(fs: &FsContext, cred: &Cred<'_>, source: &Path, at: At<'_>, path: &[u8]) -> Result<()> {
    let mut walk = Walk::start(fs, cred, at, path, Lookup::NOFOLLOW)?;
    let last = walk.walk_to_parent(path)?;
    if last.special != Special::None {
        return Err(Errno::EEXIST);
    }
    let dir = walk.path.clone();
    perm::check(cred, dir.inode().meta(), MAY_EXEC)?;
    let guard = dir.dentry.dir.lock();
    if child_locked(&dir, &last.name)?.is_some() {
        return Err(Errno::EEXIST);
    }
    if last.slash {
        return Err(Errno::ENOENT);
    }
    if !Arc::ptr_eq(&source.mount, &dir.mount) {
        return Err(Errno::EXDEV);
    }
    if source.dentry.kind() == FileType::Dir {
        return Err(Errno::EPERM);
    }
    if dir.mount.read_only() {
        return Err(Errno::EROFS);
    }
    if dir.dentry.is_dead() {
        return Err(Errno::ENOENT);
    }
    perm::check(cred, dir.inode().meta(), MAY_WRITE | MAY_EXEC)?;
    if source.inode().meta().has(flags::APPEND | flags::IMMUTABLE) {
        return Err(Errno::EPERM);
    }
    dir.inode().link(&last.name, source.inode())?;
    let sb = dir.mount.sb.id;
    let dentry = Dentry::new(sb, Some(dir.dentry.clone()), Arc::from(&*last.name), source.inode().clone());
    remember(&dir, &dentry);
    drop(guard);
    notify::file(&source.dentry, event::ATTRIB);
    notify::entry(&dir.dentry, &last.name, source.dentry.kind(), event::CREATE);
    Ok(())
}

/// `unlinkat(2)`; `rmdir` for `AT_REMOVEDIR`.
pub fn unlink(fs: &FsContext, cred: &Cred<'_>, at: At<'_>, path: &[u8], rmdir: bool) -> Result<()> {
    let mut walk = Walk::start(fs, cred, at, path, Lookup::NOFOLLOW)?;
    let last = walk.walk_to_parent(path)?;
    match (last.special, rmdir) {
        (Special::None, _) => {}
        (Special::Dot, true) => return Err(Errno::EINVAL),
        (Special::DotDot, true) => return Err(Errno::ENOTEMPTY),
        (Special::Root, true) => return Err(Errno::EBUSY),
        (_, false) => return Err(Errno::EISDIR),
    }
    let dir = walk.path.clone();
    perm::check(cred, dir.inode().meta(), MAY_EXEC)?;
    let guard = dir.dentry.dir.lock();
    let victim = child_locked(&dir, &last.name)?.ok_or(Errno::ENOENT)?;
    let is_dir = victim.kind() == FileType::Dir;
    if dir.mount.read_only() {
        return Err(Errno::EROFS);
    }
    perm::may_delete(cred, dir.inode().meta(), victim.inode().meta())?;
    match (is_dir, rmdir) {
        (true, false) => return Err(Errno::EISDIR),
        (false, true) => return Err(Errno::ENOTDIR),
        (false, false) if last.slash => return Err(Errno::ENOTDIR),
        _ => {}
    }
    if victim.is_mountpoint() {
        return Err(Errno::EBUSY);
    }
    if is_dir {
        // Its own lock keeps anything from being created in it while it goes (parent before child).
        let inner = victim.dir.lock_nested();
        dir.inode().rmdir(&last.name)?;
        victim.kill();
        drop(inner);
    } else {
        dir.inode().unlink(&last.name)?;
        victim.kill();
    }
    absent(&dir, &victim.name());
    drop(guard);
    notify::removed(&dir.dentry, &victim);
    Ok(())
}

/// Notes that `name` is no longer in `dir`.
fn absent(dir: &Path, name: &Arc<[u8]>) {
    if dir.mount.sb.cached {
        dcache::insert(dir.dentry.id(), name.clone(), None);
    }
}

/// `renameat2(2)`.
pub fn rename(
    fs: &FsContext,
    cred: &Cred<'_>,
    (old_at, old_path): (At<'_>, &[u8]),
    (new_at, new_path): (At<'_>, &[u8]),
    flags: RenameFlags,
) -> Result<()> {
    if flags.noreplace && flags.exchange {
        return Err(Errno::EINVAL);
    }
    let mut from = Walk::start(fs, cred, old_at, old_path, Lookup::NOFOLLOW)?;
    let old = from.walk_to_parent(old_path)?;
    let mut to = Walk::start(fs, cred, new_at, new_path, Lookup::NOFOLLOW)?;
    let new = to.walk_to_parent(new_path)?;
    let (from, to) = (from.path, to.path);
    if !Arc::ptr_eq(&from.mount, &to.mount) {
        return Err(Errno::EXDEV);
    }
    if old.special != Special::None {
        return Err(Errno::EBUSY);
    }
    if new.special != Special::None {
        return Err(if flags.noreplace { Errno::EEXIST } else { Errno::EBUSY });
    }
    perm::check(cred, from.inode().meta(), MAY_EXEC)?;
    perm::check(cred, to.inode().meta(), MAY_EXEC)?;
    if Arc::ptr_eq(&from.dentry, &to.dentry) {
        let guard = from.dentry.dir.lock();
        let done = rename_locked(cred, (&from, &old), (&to, &new), flags);
        drop(guard);
        return done;
    }
    // The rename lock freezes who is whose ancestor; then the ancestor's lock comes first, else the older dentry's.
    let tree = from.mount.sb.rename.lock();
    let to_first = to.dentry.contains(&from.dentry);
    let from_first = from.dentry.contains(&to.dentry);
    let (first, second) = if to_first || (!from_first && to.dentry.id() < from.dentry.id()) {
        (&to.dentry, &from.dentry)
    } else {
        (&from.dentry, &to.dentry)
    };
    let outer = first.dir.lock();
    let inner = second.dir.lock_nested();
    let done = rename_locked(cred, (&from, &old), (&to, &new), flags);
    drop(inner);
    drop(outer);
    drop(tree);
    done
}

/// Renames with both directories locked (and, if they differ, the tree frozen).
fn rename_locked(
    cred: &Cred<'_>,
    (from, old): (&Path, &Last<'_>),
    (to, new): (&Path, &Last<'_>),
    flags: RenameFlags,
) -> Result<()> {
    let moved = child_locked(from, &old.name)?.ok_or(Errno::ENOENT)?;
    let target = child_locked(to, &new.name)?;
    if flags.noreplace && target.is_some() {
        return Err(Errno::EEXIST);
    }
    if flags.exchange && target.is_none() {
        return Err(Errno::ENOENT);
    }
    if from.dentry.is_dead() || to.dentry.is_dead() {
        return Err(Errno::ENOENT);
    }
    let is_dir = moved.kind() == FileType::Dir;
    if !is_dir && (old.slash || (!flags.exchange && new.slash)) {
        return Err(Errno::ENOTDIR);
    }
    if is_dir && moved.contains(&to.dentry) {
        return Err(Errno::EINVAL);
    }
    if let Some(t) = &target
        && t.contains(&from.dentry)
        && t.kind() == FileType::Dir
    {
        return Err(if flags.exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
    }
    if from.mount.read_only() {
        return Err(Errno::EROFS);
    }
    let (from_meta, to_meta) = (from.inode().meta(), to.inode().meta());
    perm::may_delete(cred, from_meta, moved.inode().meta())?;
    match &target {
        Some(t) => {
            perm::may_delete(cred, to_meta, t.inode().meta())?;
            if !flags.exchange {
                match (is_dir, t.kind() == FileType::Dir) {
                    (true, false) => return Err(Errno::ENOTDIR),
                    (false, true) => return Err(Errno::EISDIR),
                    _ => {}
                }
            }
        }
        None => perm::check(cred, to_meta, MAY_WRITE | MAY_EXEC)?,
    }
    let other_dir = !Arc::ptr_eq(&from.dentry, &to.dentry);
    if is_dir && other_dir {
        // Its `..` changes.
        perm::check(cred, moved.inode().meta(), MAY_WRITE)?;
    }
    if let Some(t) = &target {
        let (a, b) = (moved.inode().meta(), t.inode().meta());
        if a.ino == b.ino && a.dev == b.dev {
            return Ok(());
        }
    }
    if moved.is_mountpoint() || target.as_ref().is_some_and(|t| t.is_mountpoint()) {
        return Err(Errno::EBUSY);
    }
    from.inode().rename(&old.name, to.inode(), &new.name, flags)?;
    notify::moved(&moved, (&from.dentry, &old.name), (&to.dentry, &new.name));
    if let Some(t) = target.as_ref().filter(|_| flags.exchange) {
        notify::moved(t, (&to.dentry, &new.name), (&from.dentry, &old.name));
    }
    let replaced = target.clone().filter(|_| !flags.exchange);
    settle((from, to), moved, target, &new.name, flags.exchange);
    if let Some(t) = replaced {
        notify::replaced(&t);
    }
    Ok(())
}

/// Brings the cache in line with a rename that was done.
fn settle((from, to): (&Path, &Path), moved: Arc<Dentry>, target: Option<Arc<Dentry>>, new: &[u8], exchange: bool) {
    let old_name = moved.name();
    let new_name: Arc<[u8]> = target.as_ref().map_or_else(|| Arc::from(new), |t| t.name());
    let former = moved.relink(to.dentry.clone(), new_name.clone());
    let cached = from.mount.sb.cached;
    if cached {
        dcache::insert(to.dentry.id(), new_name, Some(moved));
    }
    match target {
        Some(t) if exchange => {
            drop(t.relink(from.dentry.clone(), old_name.clone()));
            if cached {
                dcache::insert(from.dentry.id(), old_name, Some(t));
            }
        }
        other => {
            if let Some(t) = other {
                t.kill();
            }
            if cached {
                dcache::insert(from.dentry.id(), old_name, None);
            }
        }
    }
    drop(former);
}

/// Checks and applies `chmod`, `chown`, `utimens` and `truncate` on a resolved place.
pub fn setattr(cred: &Cred<'_>, path: &Path, set: SetAttr) -> Result<()> {
    if path.mount.read_only() {
        return Err(Errno::EROFS);
    }
    setattr_inode(cred, path.inode(), set)?;
    notify::path(path, if set.size.is_some() { event::MODIFY } else { event::ATTRIB });
    Ok(())
}

fn setattr_inode(cred: &Cred<'_>, inode: &Arc<dyn Inode>, mut set: SetAttr) -> Result<()> {
    let meta = inode.meta();
    flags::check_setattr(meta, &set)?;
    if let Some(mode) = set.mode {
        if !cred.owns(meta) {
            return Err(Errno::EPERM);
        }
        let gid = set.gid.unwrap_or(meta.gid());
        if mode & crate::attr::S_ISGID != 0 && !cred.in_group(gid) && !cred.capable(CAP_FSETID) {
            set.mode = Some(mode & !crate::attr::S_ISGID);
        }
    }
    if set.uid.is_some() || set.gid.is_some() {
        check_chown(cred, inode, &set)?;
        if set.mode.is_none() && meta.kind == FileType::Regular {
            let mode = perm::without_set_id(meta.mode());
            if mode != meta.mode() {
                set.mode = Some(mode);
            }
        }
    }
    let explicit = |t: Option<crate::SetTime>| matches!(t, Some(crate::SetTime::At(_)));
    if explicit(set.atime) || explicit(set.mtime) {
        if !cred.owns(meta) {
            return Err(Errno::EPERM);
        }
    } else if set.atime.is_some() || set.mtime.is_some() {
        // Both to now: whoever may write may do that; only one of them takes the owner.
        let both = set.atime.is_some() && set.mtime.is_some();
        let allowed = cred.owns(meta) || (both && perm::check(cred, meta, MAY_WRITE).is_ok());
        if !allowed {
            return Err(if both { Errno::EACCES } else { Errno::EPERM });
        }
    }
    inode.setattr(&set)
}

fn check_chown(cred: &Cred<'_>, inode: &Arc<dyn Inode>, set: &SetAttr) -> Result<()> {
    let meta = inode.meta();
    if cred.capable(CAP_CHOWN) {
        return Ok(());
    }
    let owner = cred.uid == meta.uid();
    if set.uid.is_some_and(|u| !(owner && u == meta.uid())) {
        return Err(Errno::EPERM);
    }
    if set.gid.is_some_and(|g| !(owner && (g == meta.gid() || cred.in_group(g)))) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// `truncate(2)` on a resolved place.
pub fn truncate(cred: &Cred<'_>, path: &Path, size: u64) -> Result<()> {
    match path.dentry.kind() {
        FileType::Regular => {}
        FileType::Dir => return Err(Errno::EISDIR),
        _ => return Err(Errno::EINVAL),
    }
    perm::check_access(cred, &**path.inode(), MAY_WRITE, path.mount.read_only())?;
    flags::check_cut(path.inode().meta())?;
    let mode = perm::without_set_id(path.inode().meta().mode());
    let strip = (mode != path.inode().meta().mode() && !cred.capable(CAP_FSETID)).then_some(mode);
    path.inode().setattr(&SetAttr { size: Some(size), mode: strip, ..SetAttr::default() })?;
    notify::path(path, event::MODIFY);
    Ok(())
}

/// `faccessat(2)` on a resolved place; `want` in `MAY_*` bits.
pub fn access(cred: &Cred<'_>, path: &Path, want: u32) -> Result<()> {
    if want & MAY_EXEC != 0
        && path.dentry.kind() == FileType::Regular
        && path.mount.flags().has(crate::MountFlags::NOEXEC)
    {
        return Err(Errno::EACCES);
    }
    perm::check_access(cred, &**path.inode(), want, path.mount.read_only())
}
