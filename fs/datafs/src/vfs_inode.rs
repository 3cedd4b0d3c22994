//! The calls of the VFS.

use crate::fields::now;
use crate::inode::DataInode;
use abi::{Errno, Result, Timespec};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::ops::Range;
use core::sync::atomic::Ordering;
use pagecache::FileCache;
use platform::{Page, ReadSink, WriteSource};
use vfs::{Advice, Attr, DirEntry, FileType, Inode, Mappable, Meta, NewInode, RenameFlags, SetAttr, SetTime};

impl DataInode {
    fn file(&self) -> Result<&Arc<FileCache>> {
        match (&self.cache, self.meta.kind) {
            (Some(c), _) => Ok(c),
            (None, FileType::Dir) => Err(Errno::EISDIR),
            (None, _) => Err(Errno::EINVAL),
        }
    }

    fn dir(&self) -> Result<&Self> {
        if self.is_dir() { Ok(self) } else { Err(Errno::ENOTDIR) }
    }

    /// The counted reference behind `&self`.
    fn this(&self) -> Option<Arc<DataInode>> {
        self.me.upgrade()
    }

    fn touch_read(&self) {
        if !self.vol.options.noatime()
            && let Some(me) = self.this()
        {
            me.accessed();
        }
    }

    fn touch_written(&self) {
        if let Some(me) = self.this() {
            let t = now();
            me.change_lazily(|c| {
                c.set_mtime(t);
                c.set_ctime(t);
            });
        }
    }

    /// Brings everything about the inode to stable storage.
    fn make_durable(&self, data_only: bool) -> Result<()> {
        if let Some(c) = &self.cache {
            c.sync()?;
        }
        if self.vol.writable().is_err() {
            return Ok(());
        }
        if data_only {
            // Times may wait: content that was overwritten in place needs no transaction.
            return self.vol.store.commit(self.content_tid.load(Ordering::Relaxed));
        }
        self.flush()?;
        self.vol.store.commit(self.tid.load(Ordering::Relaxed))
    }

    pub(crate) fn from_dyn(inode: &Arc<dyn Inode>) -> Result<Arc<DataInode>> {
        let any: Arc<dyn Any + Send + Sync> = inode.clone();
        any.downcast::<DataInode>().map_err(|_| Errno::EXDEV)
    }
}

impl Mappable for DataInode {
    fn page_for(&self, index: u64, write: bool) -> Result<Page> {
        let page = self.file()?.fault(index, write)?;
        if write {
            self.touch_written();
        }
        Ok(page)
    }

    fn for_cached(&self, first: u64, count: u64, each: &mut dyn FnMut(u64, Page)) {
        if let Some(c) = &self.cache {
            c.for_cached(first, count, each);
        }
    }

    fn sync(&self, first: u64, count: u64) -> Result<()> {
        let from = first.saturating_mul(platform::PAGE_SIZE as u64);
        let to = first.saturating_add(count).saturating_mul(platform::PAGE_SIZE as u64);
        self.file()?.sync_range(from..to)?;
        self.make_durable(true)
    }

    fn len(&self) -> u64 {
        self.size()
    }

    fn identity(&self) -> (u64, u64) {
        (self.meta.dev, self.meta.ino)
    }
}

impl Inode for DataInode {
    #[inline]
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn getattr(&self) -> Result<Attr> {
        let delayed: u32 = if self.cache.is_some() { self.delayed.lock().values().map(|p| p.blocks).sum() } else { 0 };
        let core = self.core.read();
        let f = core.f();
        let device = matches!(self.meta.kind, FileType::Char | FileType::Block);
        let bs = self.vol.geo.block_size;
        Ok(Attr {
            nlink: u32::from(f.links.get()),
            rdev: if device { crate::ops::decode_rdev(core.root()) } else { 0 },
            size: self.cache.as_ref().map_or(f.size(), |c| c.size()),
            blksize: bs as u32,
            blocks: f.sectors(bs as u32) + u64::from(delayed) * (bs as u64 / 512),
            atime: core.atime(),
            mtime: core.mtime(),
            ctime: core.ctime(),
            btime: core.btime(),
            ..Attr::of(&self.meta)
        })
    }

    fn setattr(&self, set: &SetAttr) -> Result<()> {
        self.vol.writable()?;
        if let Some(size) = set.size {
            self.set_size(&self.file()?.clone(), size)?;
        }
        let t = now();
        let value = |s: SetTime| -> Result<Timespec> {
            match s {
                SetTime::Now => Ok(t),
                SetTime::At(at) if !(0..1_000_000_000).contains(&at.nsec) => Err(Errno::EINVAL),
                SetTime::At(at) => Ok(at),
            }
        };
        let access = set.atime.map(value).transpose()?;
        let modify = set.mtime.map(value).transpose()?;
        self.vol.transact(4, |tx| {
            self.change(tx, |core| {
                let f = core.m();
                if let Some(m) = set.mode {
                    f.mode.set((self.meta.kind.mode_bits() | (m & 0o7777)) as u16);
                }
                if let Some(u) = set.uid {
                    f.set_uid(u);
                }
                if let Some(g) = set.gid {
                    f.set_gid(g);
                }
                if let Some(a) = access {
                    core.set_atime(a);
                }
                if let Some(m) = modify {
                    core.set_mtime(m);
                }
                core.set_ctime(t);
            })
        })?;
        self.meta.apply(set);
        if self.meta.has(vfs::flags::SYNC) { self.settle() } else { Ok(()) }
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        Ok(self.dir()?.child(name)?)
    }

    fn create(&self, name: &[u8], new: &NewInode<'_>) -> Result<Arc<dyn Inode>> {
        let made = self.dir()?.do_create(name, new)?;
        self.names_changed()?;
        Ok(made)
    }

    fn tmpfile(&self, new: &NewInode<'_>) -> Result<Arc<dyn Inode>> {
        Ok(self.dir()?.do_tmpfile(new)?)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let target = DataInode::from_dyn(target)?;
        self.dir()?.do_link(name, &target)?;
        self.names_changed()
    }

    fn unlink(&self, name: &[u8]) -> Result<()> {
        self.dir()?.do_unlink(name)?;
        self.names_changed()
    }

    fn rmdir(&self, name: &[u8]) -> Result<()> {
        self.dir()?.do_rmdir(name)?;
        self.names_changed()
    }

    fn rename(&self, old: &[u8], new_dir: &Arc<dyn Inode>, new: &[u8], flags: RenameFlags) -> Result<()> {
        let to = DataInode::from_dyn(new_dir)?;
        self.dir()?.do_rename(old, to.dir()?, new, flags)?;
        self.names_changed()?;
        to.names_changed()
    }

    fn readdir(&self, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        self.dir()?.list(cookie, emit)?;
        self.touch_read();
        Ok(())
    }

    fn readlink(&self) -> Result<Vec<u8>> {
        if self.meta.kind != FileType::Symlink {
            return Err(Errno::EINVAL);
        }
        let text = self.link_text()?;
        self.touch_read();
        Ok(text)
    }

    fn read_at(&self, offset: u64, sink: &mut dyn ReadSink) -> Result<usize> {
        let n = self.file()?.read(offset, sink)?;
        self.touch_read();
        Ok(n)
    }

    fn write_at(&self, offset: Option<u64>, source: &mut dyn WriteSource) -> Result<(u64, usize)> {
        let cache = self.file()?;
        self.vol.writable()?;
        if self.meta.has(vfs::flags::IMMUTABLE) {
            return Err(Errno::EPERM);
        }
        let done = {
            let _io = self.io.lock();
            let start = offset.unwrap_or_else(|| cache.size());
            let room = self.max_size().saturating_sub(start);
            if source.remaining() == 0 {
                return Ok((start, 0));
            }
            if room == 0 {
                return Err(Errno::EFBIG);
            }
            // Before the size grows, so that the page behind which it ends is what reads say: zeroes.
            let done = cache.write(start, &mut Limited { source, left: room })?;
            if done.1 > 0 {
                self.touch_written();
            }
            done
        };
        if self.vol.options.sync() || self.meta.has(vfs::flags::SYNC) {
            self.make_durable(false)?;
        }
        Ok(done)
    }

    fn fallocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.do_fallocate(&self.file()?.clone(), mode, offset, len)
    }

    fn seek_data(&self, offset: u64, hole: bool) -> Result<u64> {
        match &self.cache {
            Some(c) => self.seek(c, offset, hole),
            None if offset >= self.size() => Err(Errno::ENXIO),
            None => Ok(if hole { self.size() } else { offset }),
        }
    }

    fn file_flags(&self) -> Result<u32> {
        Ok(self.shown_flags())
    }

    fn set_file_flags(&self, flags: u32) -> Result<()> {
        self.change_flags(flags)
    }

    fn generation(&self) -> Result<u32> {
        Ok(self.core.read().f().generation.get())
    }

    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<vfs::FileExtent>> {
        // What else an inode has where the map would be is no map.
        if !matches!(self.meta.kind, FileType::Regular | FileType::Dir) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.runs(range, most)
    }

    fn fsync(&self, data_only: bool) -> Result<()> {
        self.make_durable(data_only)
    }

    fn sync_range(&self, range: Range<u64>, steps: (bool, bool, bool)) -> Result<()> {
        let cache = self.file()?;
        if steps.0 {
            cache.wait_writeback(range.clone());
        }
        if steps.1 {
            cache.start_writeback(range.clone());
        }
        if steps.2 {
            cache.wait_writeback(range);
        }
        Ok(())
    }

    fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
        self.file()?.advise(range, advice)
    }

    fn write_errors(&self) -> Option<&vfs::ErrSeq> {
        self.cache.as_ref().map(|c| c.errors())
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.xattr_get(name)
    }

    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: u32) -> Result<()> {
        self.vol.writable()?;
        self.xattr_set(name, value, flags)
    }

    fn list_xattr(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for name in self.xattr_names()? {
            out.extend_from_slice(&name);
            out.push(0);
        }
        Ok(out)
    }
}

/// A source that ends where the largest file does.
struct Limited<'a> {
    source: &'a mut dyn WriteSource,
    left: u64,
}

impl WriteSource for Limited<'_> {
    fn remaining(&self) -> usize {
        self.source.remaining().min(usize::try_from(self.left).unwrap_or(usize::MAX))
    }

    fn get(&mut self, dst: platform::SharedBytesMut<'_>) -> core::result::Result<usize, platform::bytes::Fault> {
        let n = self.source.get(dst)?;
        self.left = self.left.saturating_sub(n as u64);
        Ok(n)
    }
}
