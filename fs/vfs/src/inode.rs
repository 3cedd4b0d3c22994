//! What a file system implements.
//!
//! All methods are internally synchronised. The VFS additionally holds the directory's dentry lock around everything that
//! changes a directory, and the rename lock around renames between directories, so a file system sees at most one change
//! of a directory at a time; `lookup`, `readdir` and data calls come in parallel. Permissions, read-only mounts, sticky
//! bits and mount points are the VFS's business.
//!
//! Context: threads that may sleep. Sinks and sources may fault on user memory and come back in through
//! [`Mappable::page_for`], which therefore takes no lock that `read_at` and `write_at` hold over a copy.

use crate::attr::{Attr, Meta, NewInode, SetAttr, Statfs};
use crate::errseq::ErrSeq;
use crate::file::{File, OpenFile};
use crate::mount::Path;
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::ops::Range;
use platform::{Page, ReadSink, WriteSource};

/// Something whose pages can be mapped: a file's content, shared anonymous memory. The calls may sleep; they come with an
/// address space's lock held, so they take only locks of higher rank and touch no user memory.
pub trait Mappable: Send + Sync {
    /// The page number `index` (in pages from the start), counted for the caller. With `write` the page is about to be
    /// changed through a shared mapping: holes are filled, space is charged, the page is marked dirty. Errors: `ENXIO`
    /// beyond the end, `ENOSPC`, `EIO` (the program gets SIGBUS), `ENOMEM`.
    fn page_for(&self, index: u64, write: bool) -> Result<Page> {
        let _ = (index, write);
        Err(Errno::ENODEV)
    }

    /// Hands out those of the pages `first..first + count` that are in memory already, without sleeping for any.
    fn for_cached(&self, first: u64, count: u64, each: &mut dyn FnMut(u64, Page)) {
        let _ = (first, count, each);
    }

    /// Whether it must learn which pages are written (by write-protecting them first).
    fn tracks_dirty(&self) -> bool {
        true
    }

    /// Writes the pages `first..first + count` back (`msync`).
    fn sync(&self, first: u64, count: u64) -> Result<()> {
        let _ = (first, count);
        Ok(())
    }

    /// The length in bytes.
    fn len(&self) -> u64 {
        0
    }

    /// Whether there is nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Another mapping of it was made: by mmap, by fork, or by cutting one in two. Takes spin locks only.
    fn mapped(&self) {}

    /// A mapping went, for whatever reason. Takes spin locks only; whoever calls still holds a reference.
    fn unmapped(&self) {}

    /// Device and inode number, for `/proc/PID/maps`.
    fn identity(&self) -> (u64, u64) {
        (0, 0)
    }

    /// The path or another name, for `/proc/PID/maps`.
    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// How a part of a file will be used (`posix_fadvise(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// No advice.
    Normal,
    /// Read in order.
    Sequential,
    /// Read here and there.
    Random,
    /// Needed soon.
    WillNeed,
    /// Not needed soon.
    DontNeed,
}

/// A run of a file on its device, as `FIEMAP` reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// Bytes from the file's start.
    pub logical: u64,
    /// Bytes from the disk's start; 0 for what has no place yet.
    pub physical: u64,
    /// In bytes.
    pub len: u64,
    /// Allocated but not written.
    pub unwritten: bool,
    /// Not allocated yet.
    pub delayed: bool,
}

/// Flags of `renameat2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// `EEXIST` if the new name exists.
    pub noreplace: bool,
    /// Exchange the two.
    pub exchange: bool,
}

/// One directory entry, as `readdir` hands it out.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub kind: crate::FileType,
    /// Name.
    pub name: &'a [u8],
    /// The cookie with which the next call continues behind this entry.
    pub next: u64,
}

/// Where a symbolic link leads.
#[derive(Debug)]
pub enum Link {
    /// To this path name.
    Text(Vec<u8>),
    /// Straight to this place (the links in `/proc/PID`), whatever the text says.
    Jump(Path),
}

/// A file, directory, link or special file of some file system.
pub trait Inode: Mappable + Any + Send + Sync {
    /// The part that path walks read.
    fn meta(&self) -> &Meta;

    /// All attributes.
    fn getattr(&self) -> Result<Attr>;

    /// Changes attributes. Permissions are checked by the caller.
    fn setattr(&self, set: &SetAttr) -> Result<()> {
        let _ = set;
        Err(Errno::EPERM)
    }

    /// The child `name`; `ENOENT` if there is none.
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let _ = name;
        Err(Errno::ENOTDIR)
    }

    /// Creates the child `name`; `EEXIST` if there is one.
    fn create(&self, name: &[u8], new: &NewInode<'_>) -> Result<Arc<dyn Inode>> {
        let _ = (name, new);
        Err(Errno::EPERM)
    }

    /// An unnamed regular file in this directory's file system (`O_TMPFILE`).
    fn tmpfile(&self, new: &NewInode<'_>) -> Result<Arc<dyn Inode>> {
        let _ = new;
        Err(Errno::EOPNOTSUPP)
    }

    /// Gives `target`, of the same file system and no directory, the further name `name`.
    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let _ = (name, target);
        Err(Errno::EPERM)
    }

    /// Removes the name of something other than a directory.
    fn unlink(&self, name: &[u8]) -> Result<()> {
        let _ = name;
        Err(Errno::EPERM)
    }

    /// Removes an empty directory; `ENOTEMPTY` otherwise.
    fn rmdir(&self, name: &[u8]) -> Result<()> {
        let _ = name;
        Err(Errno::EPERM)
    }

    /// Moves `old` of this directory to `new` of `new_dir` (of the same file system), replacing what is there (a
    /// directory only if empty: `ENOTEMPTY`). That no directory moves into itself is checked by the caller.
    fn rename(&self, old: &[u8], new_dir: &Arc<dyn Inode>, new: &[u8], flags: RenameFlags) -> Result<()> {
        let _ = (old, new_dir, new, flags);
        Err(Errno::EPERM)
    }

    /// Calls `emit` for the entries from `cookie` on until it returns false. Cookies 0 and 1 stand for `.` and `..`, which
    /// the VFS adds, so `cookie` is at least 2. An entry that exists all the while is seen exactly once.
    fn readdir(&self, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let _ = (cookie, emit);
        Err(Errno::ENOTDIR)
    }

    /// The text of a symbolic link.
    fn readlink(&self) -> Result<Vec<u8>> {
        Err(Errno::EINVAL)
    }

    /// Where a walk continues at this symbolic link.
    fn follow(&self) -> Result<Link> {
        self.readlink().map(Link::Text)
    }

    /// Reads from `offset` until `sink` is full or the file ends.
    fn read_at(&self, offset: u64, sink: &mut dyn ReadSink) -> Result<usize> {
        let _ = (offset, sink);
        Err(Errno::EINVAL)
    }

    /// Writes at `offset`, or at the end where that is `None` (atomically with other writes); returns the offset behind
    /// what was written and how much that is. A short count means that space ran out or the source faulted midway.
    fn write_at(&self, offset: Option<u64>, source: &mut dyn WriteSource) -> Result<(u64, usize)> {
        let _ = (offset, source);
        Err(Errno::EINVAL)
    }

    /// `fallocate(2)`; `mode` holds `FALLOC_FL_*`.
    fn fallocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        let _ = (mode, offset, len);
        Err(Errno::EOPNOTSUPP)
    }

    /// The first offset from `offset` on that is data (or, with `hole`, that is none); `ENXIO` beyond the end.
    fn seek_data(&self, offset: u64, hole: bool) -> Result<u64> {
        let size = self.len();
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        Ok(if hole { size } else { offset })
    }

    /// The file's flags (`FS_IOC_GETFLAGS`): those of [`crate::flags`] and others that the file system has. `ENOTTY` where it
    /// has none.
    fn file_flags(&self) -> Result<u32> {
        Err(Errno::ENOTTY)
    }

    /// Changes the flags (`FS_IOC_SETFLAGS`); that the caller may is checked ([`crate::flags::check_change`]). Those that are
    /// shown but cannot be changed are left as they are; `EOPNOTSUPP` for unknown ones.
    fn set_file_flags(&self, flags: u32) -> Result<()> {
        let _ = flags;
        Err(Errno::ENOTTY)
    }

    /// The generation of the inode's number (`FS_IOC_GETVERSION`).
    fn generation(&self) -> Result<u32> {
        Err(Errno::ENOTTY)
    }

    /// The runs of the file within `range` (bytes), in order, at most `most`. `EOPNOTSUPP` where there is no device.
    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<FileExtent>> {
        let _ = (range, most);
        Err(Errno::EOPNOTSUPP)
    }

    /// Makes the content (with `data_only`, not all attributes) durable. Errors are this call's own; those of write-back are in
    /// [`Inode::write_errors`], where the open file looks afterwards.
    fn fsync(&self, data_only: bool) -> Result<()> {
        let _ = data_only;
        Ok(())
    }

    /// Where errors of writing the content back are recorded; `None` where nothing is written back.
    fn write_errors(&self) -> Option<&ErrSeq> {
        None
    }

    /// `sync_file_range(2)` for the bytes `range`: waits for writes in progress (`steps.0`), starts writing what is dirty
    /// (`steps.1`), waits for that (`steps.2`). Durable it is only where the medium has no cache.
    fn sync_range(&self, range: Range<u64>, steps: (bool, bool, bool)) -> Result<()> {
        let _ = (range, steps);
        Ok(())
    }

    /// `posix_fadvise(2)` and `readahead(2)` for the bytes `range`.
    fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
        let _ = (range, advice);
        Ok(())
    }

    /// The value of an extended attribute; `ENODATA` if there is none.
    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        let _ = name;
        Err(Errno::EOPNOTSUPP)
    }

    /// Sets (`XATTR_CREATE`: 1, only anew; `XATTR_REPLACE`: 2, only over an old one) or, with `None`, removes one.
    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: u32) -> Result<()> {
        let _ = (name, value, flags);
        Err(Errno::EOPNOTSUPP)
    }

    /// The names of all, each followed by a NUL.
    fn list_xattr(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// An object of its own for an open file, where reading and writing mean something else than bytes of the inode
    /// (devices, files of `/proc`). `None`: the inode's own calls serve.
    fn open(&self, flags: u32) -> Result<Option<Arc<dyn File>>> {
        let _ = flags;
        Ok(None)
    }

    /// The last descriptor of an open file is gone.
    fn release(&self, file: &OpenFile) {
        let _ = file;
    }
}

impl core::fmt::Debug for dyn Inode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let m = self.meta();
        write!(f, "inode {}:{} {:?}", m.dev, m.ino, m.kind)
    }
}

/// A mounted file system.
pub trait FileSystem: Send + Sync {
    /// Its type's name, as `/proc/filesystems` has it.
    fn name(&self) -> &'static str;

    /// The root directory.
    fn root(&self) -> Result<Arc<dyn Inode>>;

    /// Sizes.
    fn statfs(&self) -> Result<Statfs>;

    /// Writes everything back.
    fn sync(&self) -> Result<()> {
        Ok(())
    }

    /// Where write-back errors of all its files are recorded, for `syncfs`.
    fn write_errors(&self) -> Option<&ErrSeq> {
        None
    }

    /// Whether names may be cached. Not where they come and go by themselves (`/proc`).
    fn cache_names(&self) -> bool {
        true
    }

    /// Whether nothing can ever be written.
    fn read_only(&self) -> bool {
        false
    }

    /// Changes its options while it is mounted: words separated by commas, of which only what differs is named, and `ro` or
    /// `rw`. `EINVAL` for what it does not know or cannot change, `EROFS` if it cannot be written.
    fn remount(&self, words: &str) -> Result<()> {
        let _ = words;
        Ok(())
    }

    /// Tells the device of free space within `range` (bytes), in runs of at least `least` bytes (`FITRIM`); returns how many
    /// bytes that were.
    fn trim(&self, range: Range<u64>, least: u64) -> Result<u64> {
        let _ = (range, least);
        Err(Errno::EOPNOTSUPP)
    }

    /// Options to show in `/proc/mounts`, each preceded by a comma.
    fn options(&self) -> alloc::string::String {
        alloc::string::String::new()
    }
}
