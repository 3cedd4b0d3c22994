//! Inodes: what all kinds have in common, and the calls of the VFS.

use crate::Shared;
use crate::data::Data;
use crate::dir::Dir;
use abi::{Errno, Result, Timespec, linux};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use platform::{PAGE_SIZE, Page, ReadSink, WriteSource};
use sync::{LockClass, Mutex, SpinLock, rank};
use vfs::{Attr, DirEntry, FileType, Inode, Mappable, Meta, NewInode, NewKind, RenameFlags, SetAttr, SetTime};

static TIMES: LockClass = LockClass::new("tmpfs times", rank::SPIN + 40);
static XATTRS: LockClass = LockClass::new("tmpfs xattrs", rank::INODE + 8);

/// The flags that files can have.
const FLAGS: u32 = vfs::flags::IMMUTABLE | vfs::flags::APPEND | vfs::flags::NODUMP | vfs::flags::NOATIME;

const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;
/// The most that the extended attributes of one inode may hold together, as names are kernel memory that no limit covers.
const XATTR_MAX: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
struct Times {
    access: u64,
    modify: u64,
    change: u64,
    birth: u64,
}

#[derive(Debug)]
pub(crate) enum Body {
    File(Data),
    Dir(Dir),
    Symlink(Box<[u8]>),
    Special(u64),
}

/// An inode.
#[derive(Debug)]
pub struct TmpInode {
    meta: Meta,
    pub(crate) shared: Arc<Shared>,
    pub(crate) nlink: AtomicU32,
    times: SpinLock<Times>,
    pub(crate) body: Body,
    xattrs: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// For O_TMPFILE: it may get its first name later.
    linkable: bool,
    /// It was mapped at some time, so pages that it loses may have to be taken out of mappings.
    mapped: AtomicBool,
}

impl TmpInode {
    pub(crate) fn make(shared: &Arc<Shared>, new: &NewInode<'_>) -> Result<Arc<TmpInode>> {
        Self::build(shared, new, false)
    }

    fn build(shared: &Arc<Shared>, new: &NewInode<'_>, unnamed: bool) -> Result<Arc<TmpInode>> {
        shared.charge_inode()?;
        let kind = new.kind.file_type();
        let body = match new.kind {
            NewKind::Regular => Body::File(Data::new()),
            NewKind::Dir => Body::Dir(Dir::new()),
            NewKind::Symlink(text) => Body::Symlink(Box::from(text)),
            NewKind::Special(_, rdev) => Body::Special(rdev),
        };
        let now = platform::realtime_ns();
        let ino = shared.next_ino.fetch_add(1, Ordering::Relaxed);
        let links = u32::from(!unnamed);
        Ok(Arc::new(TmpInode {
            meta: Meta::new(shared.dev, ino, kind, new.mode, new.uid, new.gid),
            shared: shared.clone(),
            nlink: AtomicU32::new(if kind == FileType::Dir { 2 } else { links }),
            times: SpinLock::new(&TIMES, Times { access: now, modify: now, change: now, birth: now }),
            body,
            xattrs: Mutex::new(&XATTRS, BTreeMap::new()),
            linkable: unnamed,
            mapped: AtomicBool::new(false),
        }))
    }

    pub(crate) fn ino(&self) -> u64 {
        self.meta.ino
    }

    pub(crate) fn kind(&self) -> FileType {
        self.meta.kind
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind() == FileType::Dir
    }

    pub(crate) fn set_root(&self) {
        if let Body::Dir(d) = &self.body {
            d.set_alive();
        }
    }

    pub(crate) fn take_children(&self) -> Vec<Arc<TmpInode>> {
        match &self.body {
            Body::Dir(d) => d.take_all(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn dir(&self) -> Result<&Dir> {
        match &self.body {
            Body::Dir(d) => Ok(d),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn data(&self) -> Result<&Data> {
        match &self.body {
            Body::File(d) => Ok(d),
            Body::Dir(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The content or the entries changed.
    pub(crate) fn touch(&self) {
        let now = platform::realtime_ns();
        let mut t = self.times.lock();
        t.modify = now;
        t.change = now;
    }

    /// The attributes or the number of names changed.
    pub(crate) fn touch_change(&self) {
        let now = platform::realtime_ns();
        self.times.lock().change = now;
    }

    /// `relatime`: an access is noted only after a change.
    fn accessed(&self) {
        if self.meta.has(vfs::flags::NOATIME) {
            return;
        }
        let stale = {
            let t = self.times.lock();
            t.access <= t.modify || t.access <= t.change
        };
        if stale {
            let now = platform::realtime_ns();
            self.times.lock().access = now;
        }
    }

    pub(crate) fn from_dyn(inode: &Arc<dyn Inode>) -> Result<Arc<TmpInode>> {
        let any: Arc<dyn Any + Send + Sync> = inode.clone();
        any.downcast::<TmpInode>().map_err(|_| Errno::EXDEV)
    }
}

impl Drop for TmpInode {
    fn drop(&mut self) {
        if let Body::File(d) = &mut self.body {
            self.shared.free_pages(d.clear());
        }
        self.shared.inodes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TmpInode {
    /// Takes pages that are no longer the file's out of mappings.
    fn unmap(&self, first: u64, end: u64) {
        if first < end && self.mapped.load(Ordering::SeqCst) {
            vfs::rmap::change((self.meta.dev, self.meta.ino), first..end, vfs::rmap::Change::Truncated);
        }
    }
}

impl Mappable for TmpInode {
    fn page_for(&self, index: u64, write: bool) -> Result<Page> {
        if !self.mapped.load(Ordering::Relaxed) {
            self.mapped.store(true, Ordering::SeqCst);
        }
        let page = self.data()?.page_for(&self.shared, index)?;
        if write {
            self.touch();
        }
        Ok(page)
    }

    fn for_cached(&self, first: u64, count: u64, each: &mut dyn FnMut(u64, Page)) {
        if let Body::File(d) = &self.body {
            d.for_cached(first, count, each);
        }
    }

    fn tracks_dirty(&self) -> bool {
        false
    }

    fn len(&self) -> u64 {
        match &self.body {
            Body::File(d) => d.size(),
            Body::Symlink(t) => t.len() as u64,
            Body::Dir(d) => d.count() as u64 * 20 + 40,
            Body::Special(_) => 0,
        }
    }

    fn identity(&self) -> (u64, u64) {
        (self.meta.dev, self.meta.ino)
    }
}

impl Inode for TmpInode {
    #[inline]
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn getattr(&self) -> Result<Attr> {
        let t = *self.times.lock();
        Ok(Attr {
            nlink: self.nlink.load(Ordering::Relaxed),
            rdev: if let Body::Special(r) = &self.body { *r } else { 0 },
            size: self.len(),
            blksize: PAGE_SIZE as u32,
            blocks: if let Body::File(d) = &self.body { d.allocated() * (PAGE_SIZE as u64 / 512) } else { 0 },
            atime: Timespec::from_ns(t.access),
            mtime: Timespec::from_ns(t.modify),
            ctime: Timespec::from_ns(t.change),
            btime: Timespec::from_ns(t.birth),
            ..Attr::of(&self.meta)
        })
    }

    fn setattr(&self, set: &SetAttr) -> Result<()> {
        if let Some(size) = set.size {
            self.data()?.truncate(&self.shared, size)?;
            self.unmap(size.div_ceil(platform::PAGE_SIZE as u64), u64::MAX);
        }
        self.meta.apply(set);
        let now = platform::realtime_ns();
        let value = |s: SetTime| match s {
            SetTime::Now => Ok(now),
            // Times before 1970 are kept as 1970: the store is unsigned nanoseconds.
            SetTime::At(t) if t.sec < 0 => Ok(0),
            SetTime::At(t) => t.to_ns(),
        };
        let access = set.atime.map(value).transpose()?;
        let modify = set.mtime.map(value).transpose()?.or(set.size.map(|_| now));
        let mut t = self.times.lock();
        t.access = access.unwrap_or(t.access);
        t.modify = modify.unwrap_or(t.modify);
        t.change = now;
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        self.dir()?.get(name).map(|i| i as Arc<dyn Inode>).ok_or(Errno::ENOENT)
    }

    fn create(&self, name: &[u8], new: &NewInode<'_>) -> Result<Arc<dyn Inode>> {
        let inode = TmpInode::make(&self.shared, new)?;
        self.dir()?.add(name, &inode)?;
        if inode.is_dir() {
            self.nlink.fetch_add(1, Ordering::Relaxed);
        }
        self.touch();
        Ok(inode)
    }

    fn tmpfile(&self, new: &NewInode<'_>) -> Result<Arc<dyn Inode>> {
        Ok(TmpInode::build(&self.shared, new, true)?)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let target = TmpInode::from_dyn(target)?;
        if target.is_dir() {
            return Err(Errno::EPERM);
        }
        let grow = |n: u32| if n == 0 && !target.linkable { None } else { n.checked_add(1) };
        let before = target.nlink.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
        if let Err(n) = before {
            return Err(if n == 0 { Errno::ENOENT } else { Errno::EMLINK });
        }
        if let Err(e) = self.dir()?.add(name, &target) {
            target.nlink.fetch_sub(1, Ordering::Relaxed);
            return Err(e);
        }
        target.touch_change();
        self.touch();
        Ok(())
    }

    fn unlink(&self, name: &[u8]) -> Result<()> {
        let gone = self.dir()?.remove(name, false)?;
        gone.nlink.fetch_sub(1, Ordering::Relaxed);
        gone.touch_change();
        self.touch();
        Ok(())
    }

    fn rmdir(&self, name: &[u8]) -> Result<()> {
        let gone = self.dir()?.remove(name, true)?;
        gone.nlink.store(0, Ordering::Relaxed);
        gone.touch_change();
        self.nlink.fetch_sub(1, Ordering::Relaxed);
        self.touch();
        Ok(())
    }

    fn rename(&self, old: &[u8], new_dir: &Arc<dyn Inode>, new: &[u8], flags: RenameFlags) -> Result<()> {
        let to = TmpInode::from_dyn(new_dir)?;
        crate::dir::rename(self, old, &to, new, flags)
    }

    fn readdir(&self, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        self.accessed();
        self.dir()?.list(cookie, emit);
        Ok(())
    }

    fn readlink(&self) -> Result<Vec<u8>> {
        match &self.body {
            Body::Symlink(t) => {
                self.accessed();
                Ok(t.to_vec())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn read_at(&self, offset: u64, sink: &mut dyn ReadSink) -> Result<usize> {
        let n = self.data()?.read(offset, sink)?;
        self.accessed();
        Ok(n)
    }

    fn write_at(&self, offset: Option<u64>, source: &mut dyn WriteSource) -> Result<(u64, usize)> {
        let done = self.data()?.write(&self.shared, offset, source)?;
        if done.1 > 0 {
            self.touch();
        }
        Ok(done)
    }

    fn file_flags(&self) -> Result<u32> {
        Ok(self.meta.flags())
    }

    fn set_file_flags(&self, flags: u32) -> Result<()> {
        if flags & !FLAGS != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.meta.set_flags(flags);
        self.touch_change();
        Ok(())
    }

    fn fallocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.data()?.fallocate(&self.shared, mode, offset, len)?;
        if mode & (linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_ZERO_RANGE) != 0 {
            let page = platform::PAGE_SIZE as u64;
            self.unmap(offset.div_ceil(page), (offset + len) / page);
        }
        self.touch();
        Ok(())
    }

    fn seek_data(&self, offset: u64, hole: bool) -> Result<u64> {
        self.data()?.seek(offset, hole)
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.xattrs.lock().get(name).cloned().ok_or(Errno::ENODATA)
    }

    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: u32) -> Result<()> {
        let mut all = self.xattrs.lock();
        match value {
            None => {
                all.remove(name).ok_or(Errno::ENODATA)?;
            }
            Some(_) if flags & XATTR_CREATE != 0 && all.contains_key(name) => return Err(Errno::EEXIST),
            Some(_) if flags & XATTR_REPLACE != 0 && !all.contains_key(name) => return Err(Errno::ENODATA),
            Some(v) => {
                let used: usize = all.iter().filter(|(k, _)| ***k != *name).map(|(k, v)| k.len() + v.len()).sum();
                if used + name.len() + v.len() > XATTR_MAX {
                    return Err(Errno::ENOSPC);
                }
                all.insert(name.to_vec(), v.to_vec());
            }
        }
        drop(all);
        self.touch_change();
        Ok(())
    }

    fn list_xattr(&self) -> Result<Vec<u8>> {
        let all = self.xattrs.lock();
        let mut out = Vec::new();
        for name in all.keys() {
            out.extend_from_slice(name);
            out.push(0);
        }
        Ok(out)
    }
}
