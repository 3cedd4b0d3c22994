//! Inodes, for the VFS.

use crate::dir;
use crate::layout::{BLOCK, CORRUPT, DataLayout, RawInode};
use crate::mount::Shared;
use crate::unpack;
use crate::xattr;
use crate::zmap::Header;
use abi::{Errno, Result, Timespec};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;
use pagecache::{Backing, FileCache, ReadRun, Settings, WriteRun};
use platform::{PAGE_SIZE, Page, ReadSink, SliceSink};
use sync::Once;
use vfs::{Advice, Attr, DirEntry, FileType, Inode, Mappable, Meta, SetAttr};

/// An inode in memory.
pub(crate) struct ErofsInode {
    meta: Meta,
    nid: u64,
    raw: RawInode,
    shared: Arc<Shared>,
    /// The content of files, directories and links.
    cache: Arc<FileCache>,
    /// A compressed file's, once it was needed.
    header: Once<Header>,
}

impl ErofsInode {
    /// Reads inode number `nid`.
    pub(crate) fn load(shared: &Arc<Shared>, nid: u64) -> Result<Arc<ErofsInode>> {
        let (raw, kind) = shared.raw_inode(nid)?;
        let content = matches!(kind, FileType::Regular | FileType::Dir | FileType::Symlink);
        let settings =
            Settings { identity: (shared.dev, nid), size: if content { raw.size } else { 0 }, fs_errors: None };
        Ok(Arc::new_cyclic(|me: &Weak<ErofsInode>| {
            let host: Weak<dyn Backing> = me.clone();
            ErofsInode {
                meta: Meta::new(shared.dev, nid, kind, raw.mode & 0o7777, raw.uid, raw.gid),
                nid,
                raw,
                shared: shared.clone(),
                cache: FileCache::new(&shared.pages, host, settings),
                header: Once::new(),
            }
        }))
    }

    fn header(&self) -> Result<Header> {
        if let Some(h) = self.header.get() {
            return Ok(*h);
        }
        let h = Header::read(&self.shared.device, &self.raw)?;
        let _ = self.header.set(h);
        Ok(h)
    }

    /// Fills `buf` from the directory's block `n`; how much of it there is.
    fn block(&self, n: u64, buf: &mut [u8]) -> Result<usize> {
        self.cache.read(n * BLOCK, &mut SliceSink::new(buf))
    }

    fn content(&self) -> Result<&FileCache> {
        match self.meta.kind {
            FileType::Regular => Ok(&self.cache),
            FileType::Dir => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl Drop for ErofsInode {
    fn drop(&mut self) {
        self.shared.forget(self.nid);
    }
}

impl Backing for ErofsInode {
    fn read_pages(&self, run: ReadRun) {
        let s = &*self.shared;
        match self.raw.layout {
            DataLayout::ClustersFull | DataLayout::ClustersCompact => {
                let read =
                    |h: Header| unpack::read_packed(&s.device, &self.raw, &h, &s.extents, s.sb.zero_padding, &run);
                let result = self.header().and_then(read);
                run.finish(result);
            }
            _ => unpack::read_plain(&s.device, &self.raw, run),
        }
    }

    fn write_pages(&self, run: WriteRun) {
        run.finish(Err(Errno::EROFS));
    }

    fn prepare_dirty(&self, _: u64, _: bool) -> Result<()> {
        Err(Errno::EROFS)
    }
}

impl Mappable for ErofsInode {
    fn page_for(&self, index: u64, write: bool) -> Result<Page> {
        self.content()?.fault(index, write)
    }

    fn for_cached(&self, first: u64, count: u64, each: &mut dyn FnMut(u64, Page)) {
        self.cache.for_cached(first, count, each);
    }

    fn len(&self) -> u64 {
        self.raw.size
    }

    fn identity(&self) -> (u64, u64) {
        (self.meta.dev, self.meta.ino)
    }
}

impl Inode for ErofsInode {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn getattr(&self) -> Result<Attr> {
        let (sec, nsec) = self.raw.mtime.unwrap_or((self.shared.sb.build_time, self.shared.sb.build_nsec));
        let time = Timespec { sec: sec as i64, nsec: i64::from(nsec.min(999_999_999)) };
        let device = matches!(self.meta.kind, FileType::Char | FileType::Block);
        let compressed = matches!(self.raw.layout, DataLayout::ClustersFull | DataLayout::ClustersCompact);
        let blocks = if compressed { u64::from(self.raw.union) } else { self.raw.size.div_ceil(BLOCK) };
        Ok(Attr {
            nlink: self.raw.nlink,
            // The image has it as the low 32 bits of a dev_t, which is all of one with such numbers.
            rdev: if device { u64::from(self.raw.union) } else { 0 },
            size: self.raw.size,
            blksize: PAGE_SIZE as u32,
            blocks: if device { 0 } else { blocks * (BLOCK / 512) },
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            ..Attr::of(&self.meta)
        })
    }

    fn setattr(&self, _: &SetAttr) -> Result<()> {
        Err(Errno::EROFS)
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        if self.meta.kind != FileType::Dir {
            return Err(Errno::ENOTDIR);
        }
        let nid = dir::lookup(self.raw.size, name, |n, buf| self.block(n, buf))?;
        Ok(self.shared.inode(nid)?)
    }

    fn readdir(&self, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        if self.meta.kind != FileType::Dir {
            return Err(Errno::ENOTDIR);
        }
        // A cookie is 2 and the entry's number, with 4096 numbers for each block.
        let mut at = cookie.saturating_sub(2);
        let mut buf = [0; BLOCK as usize];
        while at / BLOCK < self.raw.size.div_ceil(BLOCK) {
            let n = self.block(at / BLOCK, &mut buf)?;
            let block = dir::Block::new(&buf[..n])?;
            for i in (at % BLOCK) as usize..block.len() {
                let e = block.entry(i)?;
                let next =
                    if i + 1 < block.len() { at / BLOCK * BLOCK + i as u64 + 1 } else { (at / BLOCK + 1) * BLOCK };
                if matches!(e.name, b"." | b"..") {
                    continue;
                }
                let kind = dir::file_type(e.kind)?;
                if !emit(DirEntry { ino: e.nid, kind, name: e.name, next: next + 2 }) {
                    return Ok(());
                }
            }
            at = (at / BLOCK + 1) * BLOCK;
        }
        Ok(())
    }

    fn readlink(&self) -> Result<Vec<u8>> {
        if self.meta.kind != FileType::Symlink {
            return Err(Errno::EINVAL);
        }
        if self.raw.size >= vfs::PATH_MAX as u64 {
            return Err(CORRUPT);
        }
        let mut text = alloc::vec![0; self.raw.size as usize];
        let n = self.cache.read(0, &mut SliceSink::new(&mut text))?;
        if n == text.len() { Ok(text) } else { Err(Errno::EIO) }
    }

    fn read_at(&self, offset: u64, sink: &mut dyn ReadSink) -> Result<usize> {
        self.content()?.read(offset, sink)
    }

    fn write_at(&self, _: Option<u64>, _: &mut dyn platform::WriteSource) -> Result<(u64, usize)> {
        Err(Errno::EROFS)
    }

    fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
        self.content()?.advise(range, advice)
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        xattr::get(&self.shared.device, &self.shared.sb, &self.raw, name)
    }

    fn set_xattr(&self, _: &[u8], _: Option<&[u8]>, _: u32) -> Result<()> {
        Err(Errno::EROFS)
    }

    fn list_xattr(&self) -> Result<Vec<u8>> {
        xattr::list(&self.shared.device, &self.shared.sb, &self.raw)
    }
}
