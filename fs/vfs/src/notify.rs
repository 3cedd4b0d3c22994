//! Telling observers what happens to files (inotify(7)).
//!
//! The calls that open, read, write, close, create, link, remove, rename and change files say so here. As long as nobody
//! watches anything that is one load and a branch. The observer (the kernel's inotify) finds by file system and inode number
//! who wants to know; a directory is told with the name of its entry, the file itself without.
//!
//! Said after the deed, by who did it, with whatever locks it holds: the observer takes only spin locks.

use crate::attr::FileType;
use crate::dentry::Dentry;
use crate::inode::Inode;
use crate::mount::Path;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use sync::Once;

/// `IN_*` event bits.
#[allow(missing_docs)] // inotify(7)
pub mod event {
    pub const ACCESS: u32 = 0x1;
    pub const MODIFY: u32 = 0x2;
    pub const ATTRIB: u32 = 0x4;
    pub const CLOSE_WRITE: u32 = 0x8;
    pub const CLOSE_NOWRITE: u32 = 0x10;
    pub const OPEN: u32 = 0x20;
    pub const MOVED_FROM: u32 = 0x40;
    pub const MOVED_TO: u32 = 0x80;
    pub const CREATE: u32 = 0x100;
    pub const DELETE: u32 = 0x200;
    pub const DELETE_SELF: u32 = 0x400;
    pub const MOVE_SELF: u32 = 0x800;
    pub const ISDIR: u32 = 0x4000_0000;
}

/// What happened to the inode with these device and inode numbers.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Device and inode number.
    pub inode: (u64, u64),
    /// [`event`] bits.
    pub mask: u32,
    /// Ties the two halves of a rename together; else 0.
    pub cookie: u32,
    /// In a directory: the entry.
    pub name: Option<&'a [u8]>,
}

/// Who is told.
pub trait Observer: Sync {
    /// Something happened. Takes only spin locks.
    fn happened(&self, e: Event<'_>);
}

static OBSERVER: Once<&'static dyn Observer> = Once::new();
static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// Sets who is told; once.
pub fn set_observer(o: &'static dyn Observer) {
    let _ = OBSERVER.set(o);
}

/// Notes that `by` more (or fewer) watches exist.
pub fn count_watches(by: isize) {
    WATCHES.fetch_add(by.cast_unsigned(), Ordering::Relaxed);
}

#[inline]
fn watched() -> bool {
    WATCHES.load(Ordering::Relaxed) != 0
}

#[cold]
fn tell(inode: &dyn Inode, mask: u32, cookie: u32, name: Option<&[u8]>) {
    if let Some(o) = OBSERVER.get() {
        let meta = inode.meta();
        o.happened(Event { inode: (meta.dev, meta.ino), mask, cookie, name });
    }
}

fn dir_bit(kind: FileType) -> u32 {
    if kind == FileType::Dir { event::ISDIR } else { 0 }
}

/// To the directory `dir` and its entry `name`, of type `kind`.
#[inline]
pub(crate) fn entry(dir: &Dentry, name: &[u8], kind: FileType, mask: u32) {
    if watched() {
        tell(&**dir.inode(), mask | dir_bit(kind), 0, Some(name));
    }
}

/// To the file `d`, and to the directory that it is in.
#[inline]
pub(crate) fn file(d: &Dentry, mask: u32) {
    if watched() {
        of_file(d, mask);
    }
}

#[cold]
fn of_file(d: &Dentry, mask: u32) {
    let mask = mask | dir_bit(d.kind());
    if !d.is_dead()
        && let Some(parent) = d.parent()
    {
        tell(&**parent.inode(), mask, 0, Some(&d.name()));
    }
    tell(&**d.inode(), mask, 0, None);
}

/// The file at `path` changed; for the calls that change attributes and content by themselves.
#[inline]
pub fn path(path: &Path, mask: u32) {
    file(&path.dentry, mask);
}

/// A name of `d` was removed from `dir`.
#[inline]
pub(crate) fn removed(dir: &Dentry, d: &Dentry) {
    if watched() {
        tell(&**dir.inode(), event::DELETE | dir_bit(d.kind()), 0, Some(&d.name()));
        lost_name(d);
    }
}

/// A rename put another in the place of `d`.
#[inline]
pub(crate) fn replaced(d: &Dentry) {
    if watched() {
        lost_name(d);
    }
}

#[cold]
fn lost_name(d: &Dentry) {
    let is_dir = d.kind() == FileType::Dir;
    if !is_dir {
        tell(&**d.inode(), event::ATTRIB, 0, None);
    }
    if is_dir || d.inode().getattr().is_ok_and(|a| a.nlink == 0) {
        tell(&**d.inode(), event::DELETE_SELF | dir_bit(d.kind()), 0, None);
    }
}

/// `d` was moved from `from`, where it was `old`, to `to`, where it is `new`.
#[inline]
pub(crate) fn moved(d: &Dentry, (from, old): (&Dentry, &[u8]), (to, new): (&Dentry, &[u8])) {
    static COOKIE: AtomicU32 = AtomicU32::new(0);
    if watched() {
        let cookie = COOKIE.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        tell(&**from.inode(), event::MOVED_FROM | dir_bit(d.kind()), cookie, Some(old));
        tell(&**to.inode(), event::MOVED_TO | dir_bit(d.kind()), cookie, Some(new));
        tell(&**d.inode(), event::MOVE_SELF, 0, None);
    }
}
