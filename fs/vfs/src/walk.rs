//! The path walk.
//!
//! A walk goes component by component from a starting directory. Each directory on the way must grant search permission;
//! a cached name costs a hash, a look-up without a lock and a counted reference. Symbolic links are met by putting their
//! text in front of what remains and going on (no recursion), at most [`MAX_LINKS`] times.
//!
//! Most walks meet only cached names, no links and no mount points: [`walk_cached`] does those in one read section of the
//! cache and counts references only to where they end, so that CPUs that walk the same paths do not write the same
//! memory on the way. Whatever else it meets, it leaves the whole walk to the other.

use crate::dcache::{self, Cached, Hashed};
use crate::dentry::Dentry;
use crate::fsctx::FsContext;
use crate::inode::Link;
use crate::mount::Path;
use crate::perm::{self, Cred, MAY_EXEC};
use crate::{FileType, NAME_MAX};
use abi::{Errno, Result};
use alloc::borrow::Cow;
use alloc::sync::Arc;
use alloc::vec::Vec;
use sync::readlist::read_section;

/// How many symbolic links one walk follows before `ELOOP`.
pub const MAX_LINKS: u32 = 40;

/// Where a relative path starts.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// In the working directory (`AT_FDCWD`).
    Cwd,
    /// In this directory.
    Dir(&'a Path),
}

/// How to resolve.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookup {
    /// Follow a symbolic link in the last component.
    pub follow: bool,
    /// An empty path names the starting point itself (`AT_EMPTY_PATH`).
    pub empty: bool,
    /// The result must be a directory.
    pub directory: bool,
    /// `RESOLVE_*` of `openat2`.
    pub resolve: u32,
}

/// `RESOLVE_NO_XDEV`: stay on the starting mount.
pub const RESOLVE_NO_XDEV: u32 = 1;
/// `RESOLVE_NO_MAGICLINKS`: refuse the links of `/proc`.
pub const RESOLVE_NO_MAGICLINKS: u32 = 2;
/// `RESOLVE_NO_SYMLINKS`: refuse all links.
pub const RESOLVE_NO_SYMLINKS: u32 = 4;
/// `RESOLVE_BENEATH`: stay beneath the starting directory.
pub const RESOLVE_BENEATH: u32 = 8;
/// `RESOLVE_IN_ROOT`: take the starting directory for the root.
pub const RESOLVE_IN_ROOT: u32 = 16;

impl Lookup {
    /// Follow links.
    pub const FOLLOW: Lookup = Lookup { follow: true, empty: false, directory: false, resolve: 0 };
    /// Do not follow a link in the last component.
    pub const NOFOLLOW: Lookup = Lookup { follow: false, empty: false, directory: false, resolve: 0 };
    /// A directory, following links.
    pub const DIRECTORY: Lookup = Lookup { follow: true, empty: false, directory: true, resolve: 0 };
}

/// The last component, found by walking to its directory.
#[derive(Debug)]
pub(crate) struct Last<'a> {
    /// The name; empty if the path ends in the directory itself (`/`, `.` or `..`).
    pub name: Cow<'a, [u8]>,
    /// How it ends, where `name` is empty.
    pub special: Special,
    /// Slashes follow.
    pub slash: bool,
}

/// A path that ends in no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// It does end in a name.
    None,
    /// In `/`.
    Root,
    /// In `.`.
    Dot,
    /// In `..`.
    DotDot,
}

enum Step {
    /// The whole text was walked; in parent mode the last component is `range`.
    Done { start: usize, end: usize, special: Special, slash: bool },
    /// A link leads to `Vec`; the text from `usize` on remains.
    Link(Vec<u8>, usize),
    /// A link led straight to where `path` now is; the text from `usize` on remains.
    Jumped(usize),
}

/// A walk in progress, and the caller on whose behalf it is.
#[derive(Debug)]
pub struct Walk<'a> {
    cred: Cred<'a>,
    fs: &'a FsContext,
    root: Path,
    /// Where the walk is.
    pub(crate) path: Path,
    links: u32,
    how: Lookup,
}

impl<'a> Walk<'a> {
    /// Resolves `path` from `at`.
    pub fn resolve(fs: &'a FsContext, cred: &Cred<'a>, at: At<'_>, path: &[u8], how: Lookup) -> Result<Path> {
        if let Some(found) = walk_cached(fs, cred, at, path, how) {
            return found;
        }
        let mut w = Walk::start(fs, cred, at, path, how)?;
        if path.is_empty() {
            if !how.empty {
                return Err(Errno::ENOENT);
            }
        } else {
            w.run(path, false)?;
        }
        if how.directory && w.path.dentry.kind() != FileType::Dir {
            return Err(Errno::ENOTDIR);
        }
        Ok(w.path)
    }

    /// Starts a walk of `path`.
    pub(crate) fn start(fs: &'a FsContext, cred: &Cred<'a>, at: At<'_>, path: &[u8], how: Lookup) -> Result<Walk<'a>> {
        if path.len() >= crate::PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let (mut root, cwd) = fs.places();
        let mut start = match at {
            At::Cwd => cwd,
            At::Dir(p) => p.clone(),
        };
        if how.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT) != 0 {
            if how.resolve & RESOLVE_BENEATH != 0 && path.first() == Some(&b'/') {
                return Err(Errno::EXDEV);
            }
            root = start.clone();
        } else if path.first() == Some(&b'/') {
            if how.resolve & RESOLVE_NO_XDEV != 0 && !Arc::ptr_eq(&root.mount, &start.mount) {
                return Err(Errno::EXDEV);
            }
            start = root.clone();
        }
        Ok(Walk { cred: *cred, fs, root, path: start, links: 0, how })
    }

    /// The context of the walk.
    pub(crate) fn fs(&self) -> &'a FsContext {
        self.fs
    }

    /// Walks to the directory of the last component.
    pub(crate) fn walk_to_parent<'t>(&mut self, text: &'t [u8]) -> Result<Last<'t>> {
        if text.is_empty() {
            return Err(Errno::ENOENT);
        }
        self.run(text, true)
    }

    fn run<'t>(&mut self, input: &'t [u8], parent: bool) -> Result<Last<'t>> {
        let mut text = Cow::Borrowed(input);
        loop {
            match self.walk_text(&text, parent)? {
                Step::Done { start, end, special, slash } => {
                    let name = match text {
                        Cow::Borrowed(t) => Cow::Borrowed(&t[start..end]),
                        Cow::Owned(t) => Cow::Owned(t[start..end].to_vec()),
                    };
                    return Ok(Last { name, special, slash });
                }
                Step::Link(mut target, rest) => {
                    if rest < text.len() {
                        target.push(b'/');
                        target.extend_from_slice(&text[rest..]);
                    }
                    text = Cow::Owned(target);
                }
                Step::Jumped(rest) => {
                    let remains = text[rest..].iter().position(|&b| b != b'/').map(|skip| rest + skip);
                    match remains {
                        Some(from) => text = Cow::Owned(text[from..].to_vec()),
                        None => {
                            if rest < text.len() && self.path.dentry.kind() != FileType::Dir {
                                return Err(Errno::ENOTDIR);
                            }
                            return Ok(Last { name: Cow::Borrowed(&[]), special: Special::Dot, slash: false });
                        }
                    }
                }
            }
        }
    }

    /// Walks until the text ends or a link is met.
    fn walk_text(&mut self, text: &[u8], parent: bool) -> Result<Step> {
        let mut pos = 0;
        if text.first() == Some(&b'/') {
            self.go_to_root()?;
            pos = skip_slashes(text, 0);
            if pos == text.len() {
                return Ok(Step::Done { start: pos, end: pos, special: Special::Root, slash: true });
            }
        }
        loop {
            if self.path.dentry.kind() != FileType::Dir {
                return Err(Errno::ENOTDIR);
            }
            perm::check(&self.cred, self.path.inode().meta(), MAY_EXEC)?;
            let hashed = dcache::hash_component(self.path.dentry.id(), &text[pos..]);
            let end = pos + hashed.len;
            let next = skip_slashes(text, end);
            let last = next == text.len();
            let slash = next > end;
            if hashed.len > NAME_MAX {
                return Err(Errno::ENAMETOOLONG);
            }
            let name = &text[pos..end];
            let special = match name {
                b"." => Special::Dot,
                b".." => Special::DotDot,
                _ => Special::None,
            };
            if last && parent {
                let (start, end) = if special == Special::None { (pos, end) } else { (end, end) };
                return Ok(Step::Done { start, end, special, slash });
            }
            match special {
                Special::Dot => {}
                Special::DotDot => self.go_up()?,
                _ => {
                    let child = self.child(name, hashed)?.ok_or(Errno::ENOENT)?;
                    if child.kind() == FileType::Symlink && (!last || self.how.follow || slash) {
                        return self.follow(child, end, next, last);
                    }
                    self.enter(child)?;
                }
            }
            if last {
                if slash && self.path.dentry.kind() != FileType::Dir {
                    return Err(Errno::ENOTDIR);
                }
                return Ok(Step::Done { start: end, end, special: Special::Dot, slash });
            }
            pos = next;
        }
    }

    fn go_to_root(&mut self) -> Result<()> {
        if self.how.resolve & RESOLVE_BENEATH != 0
            || (self.how.resolve & RESOLVE_NO_XDEV != 0 && !Arc::ptr_eq(&self.root.mount, &self.path.mount))
        {
            return Err(Errno::EXDEV);
        }
        if !self.path.same(&self.root) {
            self.path = self.root.clone();
        }
        self.path.cross_down();
        Ok(())
    }

    pub(crate) fn go_up(&mut self) -> Result<()> {
        if self.how.resolve & RESOLVE_BENEATH != 0 && self.path.same(&self.root) {
            return Err(Errno::EXDEV);
        }
        let up = self.path.parent(&self.root);
        if self.how.resolve & RESOLVE_NO_XDEV != 0 && !Arc::ptr_eq(&up.mount, &self.path.mount) {
            return Err(Errno::EXDEV);
        }
        self.path = up;
        Ok(())
    }

    /// Steps to a child of the current directory, and onto what is mounted there.
    #[inline]
    pub(crate) fn enter(&mut self, child: Arc<Dentry>) -> Result<()> {
        self.path.dentry = child;
        if self.path.dentry.is_mountpoint() {
            let before = self.path.mount.clone();
            self.path.cross_down();
            if self.how.resolve & RESOLVE_NO_XDEV != 0 && !Arc::ptr_eq(&before, &self.path.mount) {
                return Err(Errno::EXDEV);
            }
        }
        Ok(())
    }

    #[cold]
    fn follow(&mut self, link: Arc<Dentry>, end: usize, next: usize, last: bool) -> Result<Step> {
        let rest = if last { end } else { next };
        Ok(match self.follow_link(&link)? {
            Some(text) => Step::Link(text, rest),
            None => Step::Jumped(rest),
        })
    }

    /// Reads the link (in the current directory): its text, or, if it jumped, nothing.
    pub(crate) fn follow_link(&mut self, link: &Arc<Dentry>) -> Result<Option<Vec<u8>>> {
        self.links += 1;
        if self.links > MAX_LINKS || self.how.resolve & RESOLVE_NO_SYMLINKS != 0 {
            return Err(Errno::ELOOP);
        }
        match link.inode().follow()? {
            Link::Text(t) if t.is_empty() => Err(Errno::ENOENT),
            Link::Text(t) => Ok(Some(t)),
            Link::Jump(to) => {
                if self.how.resolve & RESOLVE_NO_MAGICLINKS != 0 {
                    return Err(Errno::ELOOP);
                }
                if self.how.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT | RESOLVE_NO_XDEV) != 0 {
                    return Err(Errno::EXDEV);
                }
                self.path = to;
                Ok(None)
            }
        }
    }

    /// The child `name` of the current directory, from the cache or the file system.
    #[inline]
    pub(crate) fn child(&self, name: &[u8], hashed: Hashed) -> Result<Option<Arc<Dentry>>> {
        match dcache::lookup(self.path.dentry.id(), name, hashed) {
            Cached::Found(d) => Ok(Some(d)),
            Cached::Absent => Ok(None),
            Cached::Unknown => {
                let dir = self.path.dentry.clone();
                let guard = dir.dir.lock();
                let child = child_locked(&self.path, name);
                drop(guard);
                child
            }
        }
    }
}

/// [`Walk::resolve`] by the cache alone; `None` where that does not do.
fn walk_cached(fs: &FsContext, cred: &Cred<'_>, at: At<'_>, path: &[u8], how: Lookup) -> Option<Result<Path>> {
    if how.resolve != 0 || path.len() >= crate::PATH_MAX {
        return None;
    }
    fs.with_places(|root, cwd| {
        let start = match at {
            _ if path.first() == Some(&b'/') => root,
            At::Cwd => cwd,
            At::Dir(dir) => dir,
        };
        let mut pos = skip_slashes(path, 0);
        if pos == path.len() || start.dentry.is_mountpoint() {
            return None;
        }
        let section = read_section();
        let mut dir = &start.dentry;
        loop {
            if dir.kind() != FileType::Dir {
                return None;
            }
            perm::check(cred, dir.inode().meta(), MAY_EXEC).ok()?;
            let hashed = dcache::hash_component(dir.id(), &path[pos..]);
            let end = pos + hashed.len;
            let name = &path[pos..end];
            if hashed.len > NAME_MAX || matches!(name, b"." | b"..") {
                return None;
            }
            let next = skip_slashes(path, end);
            let Ok(child) = dcache::find(&section, dir.id(), name, hashed)? else {
                return Some(Err(Errno::ENOENT));
            };
            if child.is_mountpoint() || child.kind() == FileType::Symlink {
                return None;
            }
            if next == path.len() {
                let must_be_dir = next > end || how.directory;
                if must_be_dir && child.kind() != FileType::Dir {
                    return Some(Err(Errno::ENOTDIR));
                }
                return Some(Ok(Path { mount: start.mount.clone(), dentry: child.clone() }));
            }
            dir = child;
            pos = next;
        }
    })
}

/// As [`Walk::child`], with the directory's lock held.
#[cold]
pub(crate) fn child_locked(dir: &Path, name: &[u8]) -> Result<Option<Arc<Dentry>>> {
    let sb = &dir.mount.sb;
    if dir.dentry.is_dead() {
        return Ok(None);
    }
    if sb.cached {
        match dcache::lookup_locked(dir.dentry.id(), name) {
            Cached::Found(d) => return Ok(Some(d)),
            Cached::Absent => return Ok(None),
            Cached::Unknown => {}
        }
    }
    let dentry = match dir.inode().lookup(name) {
        Ok(inode) if sb.cached && is_above(&dir.dentry, &*inode) => return Err(Errno::ELOOP),
        Ok(inode) => Some(Dentry::new(sb.id, Some(dir.dentry.clone()), Arc::from(name), inode)),
        Err(Errno::ENOENT) => None,
        Err(e) => return Err(e),
    };
    if sb.cached {
        let name = dentry.as_ref().map_or_else(|| Arc::from(name), |d| d.name());
        dcache::insert(dir.dentry.id(), name, dentry.clone());
    }
    Ok(dentry)
}

/// Whether `inode`, found in `dir`, is `dir` or a directory above it: only a damaged disk has such a loop, in which who walks
/// the tree would never come to an end.
fn is_above(dir: &Arc<Dentry>, inode: &dyn crate::Inode) -> bool {
    let (meta, mut at) = (inode.meta(), Some(dir.clone()));
    if meta.kind != FileType::Dir {
        return false;
    }
    while let Some(d) = at {
        if d.inode().meta().ino == meta.ino {
            return true;
        }
        at = d.parent();
    }
    false
}

#[inline]
fn skip_slashes(text: &[u8], mut pos: usize) -> usize {
    while text.get(pos) == Some(&b'/') {
        pos += 1;
    }
    pos
}
