//! The base image as root: EROFS, read-only, from the initial RAM disk or from a disk (`root=/dev/vda`).
//!
//! Where a system must write there are tmpfs: empty ones on /tmp and /run, and on /var, /etc, /root and /home ones that start as
//! copies of what the image has there (they are small; an overlay would copy the same files one by one). Directories that the
//! image lacks are left out. What is written there is gone with the machine: /data keeps.
//!
//! An image in the initial RAM disk stays where the loader put it, and is read like a disk; pages of files that are needed are
//! copied into the page cache and can be dropped again.

use abi::{Errno, Result};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::{BlockDevice, Geometry, Op, Request, SECTOR_SHIFT, Stats};
use core::ops::Range;
use erofs::Erofs;
use platform::{SharedBytes, SliceSink, SliceSource};
use tmpfs::{Limits, TmpFs};
use vfs::{
    At, Cred, FileSystem, FileType, FsContext, Inode, Lookup, MountFlags, NewInode, NewKind, Path, SetAttr, SetTime,
    Superblock, Walk,
};

/// Where tmpfs are mounted over the image: path, mode where it does not come from the image, whether the content is copied.
const WRITABLE: [(&str, Option<u32>, bool); 6] = [
    ("tmp", Some(0o1777), false),
    ("run", None, false),
    ("var", None, true),
    ("etc", None, true),
    ("root", None, true),
    ("home", None, true),
];
/// Directories deeper than this are not copied: the image is damaged.
const MAX_DEPTH: usize = 64;
const CHUNK: usize = 32 << 10;

/// The loader's image as a disk.
struct RamDisk {
    name: String,
    range: Range<u64>,
    stats: Stats,
}

impl BlockDevice for RamDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        let sectors = (self.range.end - self.range.start) >> SECTOR_SHIFT;
        Geometry { read_only: true, discard: false, write_zeroes: false, ..Geometry::simple(sectors) }
    }

    fn submit(&self, request: Request) {
        if let Err(e) = self.geometry().check(&request) {
            return request.finish(Err(e));
        }
        if matches!(request.op, Op::Read) {
            let mut at = self.range.start + (request.sector << SECTOR_SHIFT);
            for s in &request.segments {
                let from = crate::mm::phys_to_ptr(at);
                // SAFETY: the range is RAM that was reserved at boot and that nobody writes; the request lies within it.
                let bytes = unsafe { SharedBytes::new(from, s.len as usize) };
                s.page.bytes_mut(s.offset as usize, s.len as usize).copy_from(bytes);
                at += u64::from(s.len);
            }
        }
        request.finish(Ok(()));
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

/// Mounts the image on a device, for the root or mount(2); says in the log what is wrong with it.
pub fn mount_image(disk: Arc<dyn BlockDevice>) -> Result<Arc<dyn FileSystem>> {
    let name = String::from(disk.name());
    match Erofs::mount(disk, crate::mm::reclaim::page_cache()) {
        Ok(fs) => Ok(fs),
        Err(why) => {
            crate::error!("{name}: cannot mount as EROFS: {why}");
            Err(why.errno())
        }
    }
}

/// Mounts the base image as the first root, if there is one: in the initial RAM disk, or, without that, on the disk that the
/// command line names.
pub fn find(initrd: Option<Range<u64>>) -> Result<Option<Path>> {
    let (disk, source): (Arc<dyn BlockDevice>, &str) = match (initrd, crate::machine::option("root")) {
        (Some(range), _) => {
            let start = ((range.end - range.start) as usize).min(4096);
            // SAFETY: the loader's image lies in RAM that was reserved at boot, and nobody writes there.
            let start = unsafe { core::slice::from_raw_parts(crate::mm::phys_to_ptr(range.start), start) };
            if !Erofs::recognises(start) {
                return Ok(None);
            }
            (Arc::new(RamDisk { name: "ram0".into(), range, stats: Stats::new() }), "/dev/ram0")
        }
        (None, Some(name)) => {
            let shown = core::str::from_utf8(name).unwrap_or("?");
            let Some(disk) = crate::drivers::disk::by_name(name) else {
                crate::error!("no disk root={shown}");
                return Err(Errno::ENODEV);
            };
            (disk, shown)
        }
        (None, None) => return Ok(None),
    };
    let fs = mount_image(disk)?;
    let root = vfs::mount::mount_root(Superblock::new(fs)?, MountFlags::RDONLY, source);
    crate::info!("root is the EROFS image on {source}, read-only");
    Ok(Some(root))
}

/// Puts tmpfs where a system must write.
pub fn make_writable(fs: &FsContext) -> Result<()> {
    for (name, mode, copied) in WRITABLE {
        let at = match Walk::resolve(fs, &Cred::ROOT, At::Cwd, name.as_bytes(), Lookup::DIRECTORY) {
            Ok(p) => p,
            Err(Errno::ENOENT) => continue,
            Err(e) => return Err(told(name, e)),
        };
        let meta = at.inode().meta();
        let tmp = TmpFs::new(Limits::half_of(super::root::ram_pages()), mode.unwrap_or(meta.mode()))?;
        if copied {
            copy_dir(at.inode(), &tmp.root()?, 0).map_err(|e| told(name, e))?;
        }
        vfs::mount::mount(Superblock::new(tmp)?, &at, MountFlags::NODEV | MountFlags::NOSUID, "tmpfs")?;
    }
    Ok(())
}

fn told(name: &str, e: Errno) -> Errno {
    crate::error!("base image: /{name}: {e}");
    e
}

/// Copies what the directory `from` holds into the empty directory `to`. Hard links become files of their own.
fn copy_dir(from: &Arc<dyn Inode>, to: &Arc<dyn Inode>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::ELOOP);
    }
    let mut names: Vec<Vec<u8>> = Vec::new();
    from.readdir(2, &mut |e| {
        names.push(e.name.to_vec());
        true
    })?;
    for name in names {
        let child = from.lookup(&name)?;
        let attr = child.getattr()?;
        let text = if attr.kind == FileType::Symlink { child.readlink()? } else { Vec::new() };
        let kind = match attr.kind {
            FileType::Dir => NewKind::Dir,
            FileType::Regular => NewKind::Regular,
            FileType::Symlink => NewKind::Symlink(&text),
            other => NewKind::Special(other, attr.rdev),
        };
        let copy = to.create(&name, &NewInode { kind, mode: attr.mode, uid: attr.uid, gid: attr.gid })?;
        match attr.kind {
            FileType::Dir => copy_dir(&child, &copy, depth + 1)?,
            FileType::Regular => copy_file(&child, &copy)?,
            _ => {}
        }
        let (atime, mtime) = (Some(SetTime::At(attr.atime)), Some(SetTime::At(attr.mtime)));
        copy.setattr(&SetAttr { atime, mtime, ..SetAttr::default() })?;
    }
    Ok(())
}

fn copy_file(from: &Arc<dyn Inode>, to: &Arc<dyn Inode>) -> Result<()> {
    let mut buf = alloc::vec![0; CHUNK];
    let mut at = 0;
    loop {
        let n = from.read_at(at, &mut SliceSink::new(&mut buf))?;
        if n == 0 {
            return Ok(());
        }
        let (end, written) = to.write_at(Some(at), &mut SliceSource::new(&buf[..n]))?;
        if written < n {
            return Err(Errno::ENOSPC);
        }
        at = end;
    }
}
