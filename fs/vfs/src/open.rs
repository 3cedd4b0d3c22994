//! `openat2`: from a path name to an [`OpenFile`].

use crate::attr::{FileType, NewInode, NewKind, SetAttr};
use crate::dcache;
use crate::dentry::Dentry;
use crate::file::{File, OpenFile};
use crate::flags;
use crate::fsctx::FsContext;
use crate::mount::{MountFlags, Path};
use crate::namei::create_locked;
use crate::notify::{self, event};
use crate::perm::{self, CAP_FSETID, Cred, MAY_EXEC, MAY_READ, MAY_WRITE};
use crate::walk::{At, Lookup, Special, Walk, child_locked};
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use alloc::vec::Vec;
use sync::Once;

/// What the kernel supplies for files that are not bytes in a file system.
pub trait SpecialFiles: Send + Sync {
    /// Opens a device, named pipe or socket. `rdev` is the device number.
    fn open(&self, path: &Path, kind: FileType, rdev: u64, flags: u32) -> Result<Arc<dyn File>>;
}

static SPECIAL: Once<&'static dyn SpecialFiles> = Once::new();

/// Says once, at boot, who opens special files.
pub fn set_special_files(special: &'static dyn SpecialFiles) {
    // A second call keeps the first.
    let _ = SPECIAL.set(special);
}

/// How to open.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenHow {
    /// `O_*`, checked by the caller for unknown bits. `O_LARGEFILE` need not be set.
    pub flags: u32,
    /// Permission bits of a new file, before the umask.
    pub mode: u32,
    /// `RESOLVE_*`.
    pub resolve: u32,
}

impl OpenHow {
    fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }

    fn lookup(&self) -> Lookup {
        let exclusive = self.has(linux::O_CREAT) && self.has(linux::O_EXCL);
        Lookup {
            follow: !self.has(linux::O_NOFOLLOW) && !exclusive,
            empty: false,
            directory: self.has(linux::O_DIRECTORY),
            resolve: self.resolve,
        }
    }

    /// The access that the mode of opening needs.
    fn wanted(&self) -> u32 {
        let want = match self.flags & linux::O_ACCMODE {
            linux::O_RDONLY => MAY_READ,
            linux::O_WRONLY => MAY_WRITE,
            _ => MAY_READ | MAY_WRITE,
        };
        if self.has(linux::O_TRUNC) { want | MAY_WRITE } else { want }
    }
}

/// Whether `flags` hold all of `O_TMPFILE` (which includes `O_DIRECTORY`).
fn is_tmpfile(how: &OpenHow) -> bool {
    how.has(linux::O_TMPFILE)
}

impl OpenFile {
    /// Opens `path`.
    pub fn open(fs: &FsContext, cred: &Cred<'_>, at: At<'_>, path: &[u8], how: OpenHow) -> Result<Arc<OpenFile>> {
        if how.has(linux::O_PATH) {
            let look = Lookup { follow: !how.has(linux::O_NOFOLLOW), ..how.lookup() };
            let place = Walk::resolve(fs, cred, at, path, look)?;
            let keep = linux::O_PATH | linux::O_DIRECTORY | linux::O_NOFOLLOW;
            return Ok(OpenFile::at(place, None, how.flags & keep, false));
        }
        if is_tmpfile(&how) {
            return open_tmpfile(fs, cred, at, path, how);
        }
        if how.has(linux::O_CREAT) {
            return open_create(fs, cred, at, path, how);
        }
        let place = Walk::resolve(fs, cred, at, path, how.lookup())?;
        open_place(cred, place, how, false)
    }

    /// Opens what was resolved already (also for `open_by_handle`, exec and re-opening through `/proc`).
    pub fn open_path(cred: &Cred<'_>, place: Path, how: OpenHow) -> Result<Arc<OpenFile>> {
        open_place(cred, place, how, false)
    }

    /// An open file on an inode that has no name; `name` is what `/proc` shows (`memfd_create`).
    pub fn unnamed(root: &Path, inode: Arc<dyn crate::Inode>, name: &[u8], flags: u32) -> Arc<OpenFile> {
        OpenFile::at(unnamed_path(root, inode, name), None, flags, true)
    }
}

/// A place for an inode that has no name, in the mount of `near`; `name` is what `/proc` shows.
pub fn unnamed_path(near: &Path, inode: Arc<dyn crate::Inode>, name: &[u8]) -> Path {
    let parent = Some(near.mount.root.clone());
    let dentry = Dentry::new(near.mount.sb.id, parent, Arc::from(name), inode);
    dentry.kill();
    Path { mount: near.mount.clone(), dentry }
}

/// Checks and opens; `created` just now, so permissions and truncation do not matter.
fn open_place(cred: &Cred<'_>, place: Path, how: OpenHow, created: bool) -> Result<Arc<OpenFile>> {
    let kind = place.dentry.kind();
    let want = how.wanted();
    match kind {
        FileType::Symlink => return Err(Errno::ELOOP),
        FileType::Dir if want & MAY_WRITE != 0 || how.has(linux::O_CREAT) => return Err(Errno::EISDIR),
        FileType::Socket => return Err(Errno::ENXIO),
        FileType::Char | FileType::Block if place.mount.flags().has(MountFlags::NODEV) => return Err(Errno::EACCES),
        _ => {}
    }
    if how.has(linux::O_DIRECTORY) && kind != FileType::Dir {
        return Err(Errno::ENOTDIR);
    }
    let inode = place.inode();
    if !created {
        perm::check_access(cred, &**inode, want, place.mount.read_only())?;
        let appends = want & MAY_WRITE == 0 || (how.has(linux::O_APPEND) && !how.has(linux::O_TRUNC));
        if !appends && inode.meta().has(flags::APPEND) {
            return Err(Errno::EPERM);
        }
        if how.has(linux::O_NOATIME) && !cred.owns(inode.meta()) {
            return Err(Errno::EPERM);
        }
    }
    let object = match kind {
        FileType::Char | FileType::Block | FileType::Fifo => match inode.open(how.flags)? {
            Some(o) => Some(o),
            None => {
                let rdev = inode.getattr()?.rdev;
                Some(SPECIAL.get().ok_or(Errno::ENXIO)?.open(&place, kind, rdev, how.flags)?)
            }
        },
        _ => inode.open(how.flags)?,
    };
    if how.has(linux::O_TRUNC) && kind == FileType::Regular && !created && object.is_none() {
        let mode = perm::without_set_id(inode.meta().mode());
        let strip = (mode != inode.meta().mode() && !cred.capable(CAP_FSETID)).then_some(mode);
        inode.setattr(&SetAttr { size: Some(0), mode: strip, ..SetAttr::default() })?;
        notify::path(&place, event::MODIFY);
    }
    notify::path(&place, event::OPEN);
    let drop_flags = linux::O_CREAT | linux::O_EXCL | linux::O_NOCTTY | linux::O_TRUNC | linux::O_CLOEXEC;
    OpenFile::counted(place, object, how.flags & !drop_flags, cred.capable(CAP_FSETID))
}

fn open_create(fs: &FsContext, cred: &Cred<'_>, at: At<'_>, path: &[u8], how: OpenHow) -> Result<Arc<OpenFile>> {
    if how.has(linux::O_DIRECTORY) {
        return Err(Errno::EINVAL);
    }
    let mut walk = Walk::start(fs, cred, at, path, how.lookup())?;
    let mut text: Vec<u8>;
    let mut last = walk.walk_to_parent(path)?;
    loop {
        match last.special {
            Special::None if !last.slash => {}
            Special::DotDot => return walk.go_up().and(Err(Errno::EISDIR)),
            _ => return Err(Errno::EISDIR),
        }
        perm::check(cred, walk.path.inode().meta(), MAY_EXEC)?;
        let hashed = dcache::hash_component(walk.path.dentry.id(), &last.name);
        let child = match walk.child(&last.name, hashed)? {
            Some(d) => d,
            None => match create_or_find(&walk, &last.name, how, cred)? {
                (d, false) => d,
                (dentry, true) => {
                    let place = Path { mount: walk.path.mount.clone(), dentry };
                    return open_place(cred, place, OpenHow { flags: how.flags & !linux::O_CREAT, ..how }, true);
                }
            },
        };
        if how.has(linux::O_EXCL) {
            return Err(Errno::EEXIST);
        }
        if child.kind() == FileType::Symlink && !how.has(linux::O_NOFOLLOW) {
            match walk.follow_link(&child)? {
                Some(target) => {
                    text = target;
                    last = walk.walk_to_parent(&text)?.into_owned();
                    continue;
                }
                None => return open_place(cred, walk.path, how, false),
            }
        }
        protect_sticky(cred, &walk.path, &child)?;
        walk.enter(child)?;
        return open_place(cred, walk.path, how, false);
    }
}

impl crate::walk::Last<'_> {
    fn into_owned(self) -> crate::walk::Last<'static> {
        crate::walk::Last { name: self.name.into_owned().into(), special: self.special, slash: self.slash }
    }
}

/// Creates the file under the directory's lock, unless another was faster; says whether it did.
fn create_or_find(walk: &Walk<'_>, name: &[u8], how: OpenHow, cred: &Cred<'_>) -> Result<(Arc<Dentry>, bool)> {
    let dir = &walk.path;
    let guard = dir.dentry.dir.lock();
    let found = match child_locked(dir, name)? {
        Some(d) => Ok((d, false)),
        None => {
            let mode = how.mode & 0o7777 & !walk.fs().umask();
            create_locked(dir, name, NewKind::Regular, mode, cred).map(|d| (d, true))
        }
    };
    drop(guard);
    found
}

/// `fs.protected_regular` and `protected_fifos` at 1: in a sticky directory that anyone may write, `O_CREAT` does not open
/// what a third party put there.
fn protect_sticky(cred: &Cred<'_>, dir: &Path, child: &Arc<Dentry>) -> Result<()> {
    let (d, c) = (dir.inode().meta(), child.inode().meta());
    let shared = d.mode() & (crate::attr::S_ISVTX | 0o002) == crate::attr::S_ISVTX | 0o002;
    let kind = matches!(c.kind, FileType::Regular | FileType::Fifo);
    if shared && kind && c.uid() != cred.uid && c.uid() != d.uid() {
        return Err(Errno::EACCES);
    }
    Ok(())
}

fn open_tmpfile(fs: &FsContext, cred: &Cred<'_>, at: At<'_>, path: &[u8], how: OpenHow) -> Result<Arc<OpenFile>> {
    if how.flags & linux::O_ACCMODE == linux::O_RDONLY {
        return Err(Errno::EINVAL);
    }
    let dir = Walk::resolve(fs, cred, at, path, Lookup { directory: true, ..how.lookup() })?;
    if dir.mount.read_only() {
        return Err(Errno::EROFS);
    }
    let meta = dir.inode().meta();
    perm::check(cred, meta, MAY_WRITE | MAY_EXEC)?;
    let (mode, gid) = perm::inherit(cred, meta, how.mode & 0o7777 & !fs.umask(), FileType::Regular);
    let inode = dir.inode().tmpfile(&NewInode { kind: NewKind::Regular, mode, uid: cred.uid, gid })?;
    let name = alloc::format!("#{}", inode.meta().ino);
    let place = unnamed_path(&dir, inode, name.as_bytes());
    OpenFile::counted(place, None, how.flags & !linux::O_EXCL, cred.capable(CAP_FSETID))
}
