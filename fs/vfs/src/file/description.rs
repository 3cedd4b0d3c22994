//! Open file descriptions: flags, a position, and what was opened.

use super::{File, Io, Mapping, PollEvents, Poller};
use crate::attr::{Attr, FileType, SetAttr};
use crate::errseq::{ErrCursor, ErrSeq};
use crate::flags;
use crate::inode::{DirEntry, Inode, Mappable};
use crate::mount::{MountFlags, Path};
use crate::notify::{self, event};
use crate::{MAX_OFFSET, locks, perm};
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use platform::{Page, ReadSink, WriteSource};
use sync::{LockClass, Mutex, rank};

static POS: LockClass = LockClass::new("file position", rank::FILES + 10);

/// The status flags that `F_SETFL` changes.
pub const SETTABLE: u32 = linux::O_APPEND | linux::O_NONBLOCK | linux::O_DIRECT | linux::O_NOATIME | linux::FASYNC;

/// An open file description.
#[derive(Debug)]
pub struct OpenFile {
    path: Option<Path>,
    object: Option<Arc<dyn File>>,
    flags: AtomicU32,
    /// Whether the opener may keep set-id bits over a write (`CAP_FSETID`).
    keeps_set_id: bool,
    pos: Mutex<u64>,
    /// How far it was told of write errors of the file, and of its file system.
    errors: (ErrCursor, ErrCursor),
    /// It counts among its mount's writers.
    writer: bool,
    /// Set once a lock was taken through it, so that closing looks for locks only then.
    pub(crate) locked: AtomicBool,
}

impl OpenFile {
    /// An object without a path.
    pub fn anonymous(object: Arc<dyn File>, flags: u32) -> Arc<OpenFile> {
        Self::build((None, false), Some(object), flags, true)
    }

    /// What is at `path`; `object` where reads and writes go to an object.
    pub fn at(path: Path, object: Option<Arc<dyn File>>, flags: u32, keeps_set_id: bool) -> Arc<OpenFile> {
        Self::build((Some(path), false), object, flags, keeps_set_id)
    }

    /// The same for a file that programs open by its name, which counts among its mount's writers if it is one. `EROFS` if
    /// there may be none any more.
    pub(crate) fn counted(
        path: Path,
        object: Option<Arc<dyn File>>,
        flags: u32,
        keeps_set_id: bool,
    ) -> Result<Arc<OpenFile>> {
        let writer = flags & linux::O_ACCMODE != linux::O_RDONLY && path.dentry.kind() == FileType::Regular;
        if writer {
            path.mount.begin_write()?;
        }
        Ok(Self::build((Some(path), writer), object, flags, keeps_set_id))
    }

    fn build(
        (path, writer): (Option<Path>, bool),
        object: Option<Arc<dyn File>>,
        flags: u32,
        keeps_set_id: bool,
    ) -> Arc<OpenFile> {
        let sample = |e: Option<&ErrSeq>| e.map_or_else(ErrCursor::default, ErrSeq::sample);
        let of_file = sample(path.as_ref().and_then(|p| p.inode().write_errors()));
        let of_fs = sample(path.as_ref().and_then(|p| p.mount.sb.fs.write_errors()));
        Arc::new(OpenFile {
            errors: (of_file, of_fs),
            path,
            object,
            flags: AtomicU32::new(flags),
            keeps_set_id,
            writer,
            pos: Mutex::new(&POS, 0),
            locked: AtomicBool::new(false),
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref()
    }

    /// The inode, unless it is a bare object.
    pub fn inode(&self) -> Option<&Arc<dyn Inode>> {
        self.path.as_ref().map(Path::inode)
    }

    /// The object, if there is one.
    pub fn object(&self) -> Option<&Arc<dyn File>> {
        self.object.as_ref()
    }

    /// The object as a `T`, if it is one.
    pub fn object_as<T: File>(&self) -> Option<&T> {
        let object: &dyn Any = &**self.object.as_ref()?;
        object.downcast_ref()
    }

    /// `O_*` flags as `F_GETFL` shows them.
    #[inline]
    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Changes the settable flags. `EPERM` if writing to an append-only file would no longer append.
    pub fn set_flags(&self, flags: u32) -> Result<()> {
        let append_only = self.inode().is_some_and(|i| i.meta().has(flags::APPEND));
        if append_only && (flags ^ self.flags()) & linux::O_APPEND != 0 {
            return Err(Errno::EPERM);
        }
        let keep = self.flags() & !SETTABLE;
        self.flags.store(keep | (flags & SETTABLE), Ordering::Relaxed);
        Ok(())
    }

    /// Whether it was opened for reading.
    #[inline]
    pub fn readable(&self) -> bool {
        let f = self.flags();
        f & linux::O_ACCMODE != linux::O_WRONLY && f & linux::O_PATH == 0
    }

    /// Whether it was opened for writing.
    #[inline]
    pub fn writable(&self) -> bool {
        let f = self.flags();
        f & linux::O_ACCMODE != linux::O_RDONLY && f & linux::O_PATH == 0
    }

    /// Whether it only names a place (`O_PATH`).
    #[inline]
    pub fn is_path_only(&self) -> bool {
        self.flags() & linux::O_PATH != 0
    }

    /// Whether reads and writes must not sleep.
    #[inline]
    pub fn nonblock(&self) -> bool {
        self.flags() & linux::O_NONBLOCK != 0
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.path.as_ref().is_some_and(|p| p.dentry.kind() == FileType::Dir)
    }

    fn stream(&self) -> bool {
        self.object.as_ref().is_some_and(|o| !o.positioned())
    }

    fn io(&self, offset: u64) -> Io {
        Io { offset, nonblock: self.nonblock() }
    }

    /// Reads at the position.
    #[inline]
    pub fn read(&self, sink: &mut dyn ReadSink) -> Result<usize> {
        if !self.readable() {
            return Err(Errno::EBADF);
        }
        if let Some(o) = &self.object
            && !o.positioned()
        {
            return self.said(o.read(self.io(0), sink), event::ACCESS);
        }
        let mut pos = self.pos.lock();
        let n = self.said(self.read_at(*pos, sink), event::ACCESS)?;
        *pos += n as u64;
        Ok(n)
    }

    /// Writes at the position (or at the end, with `O_APPEND`).
    #[inline]
    pub fn write(&self, source: &mut dyn WriteSource) -> Result<usize> {
        if !self.writable() {
            return Err(Errno::EBADF);
        }
        if let Some(o) = &self.object
            && !o.positioned()
        {
            return self.said(o.write(self.io(0), source), event::MODIFY);
        }
        let mut pos = self.pos.lock();
        let (end, n) = self.write_at(*pos, source)?;
        *pos = end;
        self.said(Ok(n), event::MODIFY)
    }

    /// Tells who watches the file of what was read or written, if anything was.
    #[inline]
    fn said(&self, result: Result<usize>, mask: u32) -> Result<usize> {
        if let (Ok(1..), Some(p)) = (&result, &self.path) {
            notify::path(p, mask);
        }
        result
    }

    /// Reads at `offset`.
    pub fn pread(&self, offset: u64, sink: &mut dyn ReadSink) -> Result<usize> {
        if !self.readable() {
            return Err(Errno::EBADF);
        }
        if self.stream() {
            return Err(Errno::ESPIPE);
        }
        self.said(self.read_at(offset, sink), event::ACCESS)
    }

    /// Writes at `offset`. As in Linux, `O_APPEND` wins over the offset.
    pub fn pwrite(&self, offset: u64, source: &mut dyn WriteSource) -> Result<usize> {
        if !self.writable() {
            return Err(Errno::EBADF);
        }
        if self.stream() {
            return Err(Errno::ESPIPE);
        }
        self.said(self.write_at(offset, source).map(|(_, n)| n), event::MODIFY)
    }

    fn read_at(&self, offset: u64, sink: &mut dyn ReadSink) -> Result<usize> {
        if offset > MAX_OFFSET || sink.remaining() as u64 > MAX_OFFSET - offset {
            return Err(Errno::EINVAL);
        }
        match (&self.object, &self.path) {
            (Some(o), _) => o.read(self.io(offset), sink),
            (None, Some(p)) if p.dentry.kind() == FileType::Dir => Err(Errno::EISDIR),
            (None, Some(p)) => p.inode().read_at(offset, sink),
            (None, None) => Err(Errno::EBADF),
        }
    }

    fn write_at(&self, offset: u64, source: &mut dyn WriteSource) -> Result<(u64, usize)> {
        if offset > MAX_OFFSET || source.remaining() as u64 > MAX_OFFSET - offset {
            return Err(Errno::EINVAL);
        }
        if let Some(o) = &self.object {
            return o.write(self.io(offset), source).map(|n| (offset + n as u64, n));
        }
        let inode = self.inode().ok_or(Errno::EBADF)?;
        let meta = inode.meta();
        if meta.mode() & (crate::attr::S_ISUID | crate::attr::S_ISGID) != 0 && !self.keeps_set_id {
            let mode = perm::without_set_id(meta.mode());
            inode.setattr(&SetAttr { mode: Some(mode), ..SetAttr::default() })?;
        }
        let at = (self.flags() & linux::O_APPEND == 0).then_some(offset);
        let done = inode.write_at(at, source)?;
        if self.flags() & linux::O_DSYNC != 0 {
            self.told(inode.fsync(self.flags() & linux::O_SYNC != linux::O_SYNC))?;
        }
        Ok(done)
    }

    /// `lseek(2)`.
    pub fn seek(&self, offset: i64, whence: u32) -> Result<u64> {
        if self.is_path_only() {
            return Err(Errno::EBADF);
        }
        if self.stream() {
            return Err(Errno::ESPIPE);
        }
        let mut pos = self.pos.lock();
        if self.object.as_ref().is_some_and(|o| o.always_at_start()) {
            *pos = 0;
            return Ok(0);
        }
        let to = match whence {
            linux::SEEK_SET => u64::try_from(offset).map_err(|_| Errno::EINVAL)?,
            linux::SEEK_CUR => pos.checked_add_signed(offset).ok_or(Errno::EINVAL)?,
            linux::SEEK_END => self.size()?.checked_add_signed(offset).ok_or(Errno::EINVAL)?,
            linux::SEEK_DATA | linux::SEEK_HOLE => {
                let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
                self.inode().ok_or(Errno::EINVAL)?.seek_data(from, whence == linux::SEEK_HOLE)?
            }
            _ => return Err(Errno::EINVAL),
        };
        if to > MAX_OFFSET {
            return Err(if whence == linux::SEEK_CUR { Errno::EOVERFLOW } else { Errno::EINVAL });
        }
        *pos = to;
        Ok(to)
    }

    /// The position.
    pub fn position(&self) -> u64 {
        *self.pos.lock()
    }

    /// Runs `f` on the position, which it may move, holding its lock (`sendfile`, `splice`).
    pub fn with_position<R>(&self, f: impl FnOnce(&mut u64) -> R) -> R {
        f(&mut self.pos.lock())
    }

    fn size(&self) -> Result<u64> {
        match (&self.object, &self.path) {
            (Some(o), _) => o.size(),
            (None, Some(p)) if p.dentry.kind() == FileType::Dir => Ok(MAX_OFFSET),
            (None, Some(p)) => Ok(p.inode().len()),
            (None, None) => Err(Errno::EINVAL),
        }
    }

    /// Attributes.
    pub fn getattr(&self) -> Result<Attr> {
        match (&self.path, &self.object) {
            (Some(p), _) => p.inode().getattr(),
            (None, Some(o)) => o.getattr(),
            (None, None) => Err(Errno::EBADF),
        }
    }

    /// What is ready.
    pub fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        match &self.object {
            Some(o) => o.poll(poller),
            None => PollEvents::IN.and(PollEvents::OUT),
        }
    }

    /// Device control.
    pub fn ioctl(&self, cmd: u32, arg: u64) -> Result<i64> {
        match &self.object {
            Some(o) => o.ioctl(self, cmd, arg),
            None => Err(Errno::ENOTTY),
        }
    }

    /// What a mapping of this file maps. Access modes are checked by the caller of `mmap`.
    pub fn mapping(self: &Arc<Self>) -> Result<Mapping> {
        match &self.object {
            Some(o) => o.mmap(self),
            None => match self.inode().map(|i| i.meta().kind) {
                Some(FileType::Regular) => Ok(Mapping::Object(self.clone())),
                _ => Err(Errno::ENODEV),
            },
        }
    }

    /// Makes content (and, unless `data_only`, attributes) durable.
    pub fn fsync(&self, data_only: bool) -> Result<()> {
        if self.is_path_only() {
            return Err(Errno::EBADF);
        }
        match (&self.object, self.inode()) {
            (Some(o), _) => o.fsync(),
            (None, Some(i)) => self.told(i.fsync(data_only)),
            (None, None) => Err(Errno::EINVAL),
        }
    }

    /// `result`, or the write error of the file that this description has not been told yet. Tells it, in any case.
    fn told(&self, result: Result<()>) -> Result<()> {
        let errors = self.inode().and_then(|i| i.write_errors());
        let earlier = errors.map_or(Ok(()), |e| e.check_and_advance(&self.errors.0));
        result.and(earlier)
    }

    /// `syncfs(2)`: writes the file system back that the file is in, and reports, once, write errors of any of its files.
    pub fn sync_fs(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let fs = &path.mount.sb.fs;
        let result = fs.sync();
        let earlier = fs.write_errors().map_or(Ok(()), |e| e.check_and_advance(&self.errors.1));
        result.and(earlier)
    }

    /// `sync_file_range(2)`; see [`Inode::sync_range`].
    pub fn sync_range(&self, range: Range<u64>, steps: (bool, bool, bool)) -> Result<()> {
        let inode = self.inode().ok_or(Errno::ESPIPE)?;
        let result = inode.sync_range(range, steps);
        if steps.0 || steps.2 { self.told(result) } else { result }
    }

    /// `ftruncate(2)`.
    pub fn truncate(&self, size: u64) -> Result<()> {
        if !self.writable() {
            return Err(Errno::EINVAL);
        }
        let inode = self.inode().ok_or(Errno::EINVAL)?;
        if inode.meta().kind != FileType::Regular || self.object.is_some() {
            return Err(Errno::EINVAL);
        }
        flags::check_cut(inode.meta())?;
        inode.setattr(&SetAttr { size: Some(size), ..SetAttr::default() })?;
        self.said(Ok(1), event::MODIFY).map(drop)
    }

    /// `fallocate(2)`.
    pub fn fallocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        if !self.writable() {
            return Err(Errno::EBADF);
        }
        if self.object.is_some() {
            return Err(if self.stream() { Errno::ESPIPE } else { Errno::ENODEV });
        }
        let inode = self.inode().ok_or(Errno::ENODEV)?;
        match inode.meta().kind {
            FileType::Regular => {
                let meta = inode.meta();
                let only_grows = mode & !linux::FALLOC_FL_KEEP_SIZE == 0;
                if meta.has(flags::IMMUTABLE) || (!only_grows && meta.has(flags::APPEND)) {
                    return Err(Errno::EPERM);
                }
                inode.fallocate(mode, offset, len)
            }
            FileType::Dir => Err(Errno::EISDIR),
            _ => Err(Errno::ENODEV),
        }
    }

    /// `getdents64(2)`: hands out entries from the position on until `emit` returns false.
    pub fn readdir(&self, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let Some(path) = self.path.as_ref() else { return Err(Errno::ENOTDIR) };
        if !self.readable() {
            return Err(Errno::EBADF);
        }
        if !self.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let mut pos = self.pos.lock();
        if path.dentry.is_dead() {
            return Err(Errno::ENOENT);
        }
        for (cookie, name) in [(0, &b"."[..]), (1, b"..")] {
            if *pos > cookie {
                continue;
            }
            let at = if cookie == 0 { path.clone() } else { path.parent(&Path::root_of(&path.mount)) };
            let ino = at.inode().meta().ino;
            if !emit(DirEntry { ino, kind: FileType::Dir, name, next: cookie + 1 }) {
                return Ok(());
            }
            *pos = cookie + 1;
        }
        let from = *pos;
        path.inode().readdir(from, &mut |e| {
            let next = e.next;
            let more = emit(e);
            if more {
                *pos = next;
            }
            more
        })
    }

    /// Whether device files and set-id bits on it are to be ignored, and so on.
    pub fn mount_flags(&self) -> MountFlags {
        self.path.as_ref().map_or(MountFlags(0), |p| p.mount.flags())
    }

    /// What `/proc/PID/fd` shows, as seen from `root`.
    pub fn display(&self, root: Option<&Path>) -> Vec<u8> {
        match (&self.path, &self.object) {
            (Some(p), _) => p.render(root),
            (None, Some(o)) => o.name(),
            (None, None) => Vec::new(),
        }
    }
}

impl Mappable for OpenFile {
    fn page_for(&self, index: u64, write: bool) -> Result<Page> {
        self.inode().ok_or(Errno::ENODEV)?.page_for(index, write)
    }

    fn for_cached(&self, first: u64, count: u64, each: &mut dyn FnMut(u64, Page)) {
        if let Some(i) = self.inode() {
            i.for_cached(first, count, each);
        }
    }

    fn tracks_dirty(&self) -> bool {
        self.inode().is_none_or(|i| i.tracks_dirty())
    }

    fn sync(&self, first: u64, count: u64) -> Result<()> {
        self.inode().map_or(Ok(()), |i| self.told(i.sync(first, count)))
    }

    fn len(&self) -> u64 {
        self.inode().map_or(0, |i| i.len())
    }

    fn identity(&self) -> (u64, u64) {
        self.inode().map_or((0, 0), |i| (i.meta().dev, i.meta().ino))
    }

    fn name(&self) -> Vec<u8> {
        self.display(None)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if *self.locked.get_mut() {
            locks::release_file(self);
        }
        if let Some(p) = &self.path
            && self.flags() & linux::O_PATH == 0
        {
            notify::path(p, if self.writable() { event::CLOSE_WRITE } else { event::CLOSE_NOWRITE });
        }
        if let Some(o) = &self.object {
            o.release(self);
        }
        if let Some(i) = self.inode() {
            i.release(self);
        }
        if let Some(p) = self.path.as_ref().filter(|_| self.writer) {
            p.mount.end_write();
        }
    }
}
