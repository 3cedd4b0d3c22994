//! The first root file system: an EROFS image (see [`super::base`]), or a tmpfs filled from the initial RAM disk; /dev on top.
//!
//! The loader leaves the initial RAM disk in memory: an EROFS image, or a cpio archive, plain or gzip, several one behind the other, as Linux takes it
//! (Documentation/driver-api/early-userspace/buffer-format.rst). It is unpacked in pieces, so that a machine with little
//! memory holds it only twice: packed and unpacked.
//!
//! What fails says why on the console and is an error for the caller, who stops the boot: no image, an image that is none,
//! one that ends early, one that does not fit.

use super::base;
use super::devfs::{DEVICES, NODES, makedev};
use super::synth;
use crate::drivers::disk;
use abi::{Errno, Result, Timespec};
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::BlockDevice;
use boot_formats::cpio::{Header, Sink};
use boot_formats::gzip::Workspace;
use boot_formats::initramfs::{Format, sniff, unpack};
use core::ops::Range;
use platform::SliceSource;
use sync::Once;
use tmpfs::{Limits, TmpFs};
use vfs::{
    At, Cred, FileSystem, FileType, FsContext, Lookup, OpenFile, OpenHow, SetAttr, SetTime, Superblock, Walk, namei,
};

/// The largest root that is unpacked.
const MAX_UNPACKED: u64 = 8 << 30;

static DEV: Once<Arc<TmpFs>> = Once::new();
/// The file system of /dev as its own root, wherever it is mounted.
static NODES_AT: Once<FsContext> = Once::new();

/// Makes the root: a tmpfs with the initial RAM disk's content and a populated /dev. Called once, by process 1.
#[inline(never)]
pub fn init_root() -> Result<Arc<FsContext>> {
    vfs::set_special_files(&DEVICES);
    let initrd = crate::machine::platform().chosen.initrd.map(|r| r.base..r.end());
    disk::scan();
    let base = base::find(initrd.clone())?;
    let unpacked = base.is_none();
    let root = match base {
        Some(root) => root,
        None => {
            let fs = TmpFs::named("rootfs", Limits::half_of(ram_pages()), 0o755)?;
            vfs::mount::mount_root(Superblock::new(fs)?, 0, "rootfs")
        }
    };
    let fs = Arc::new(FsContext::new(root));
    fs.set_umask(0);
    if unpacked {
        unpack_initrd(&fs, initrd)?;
    } else {
        base::make_writable(&fs)?;
    }
    mount_dev(&fs)?;
    fs.set_umask(0o022);
    Ok(fs)
}

pub(super) fn ram_pages() -> u64 {
    crate::mm::info().total as u64
}

#[inline(never)]
fn unpack_initrd(fs: &FsContext, initrd: Option<Range<u64>>) -> Result<()> {
    let Some(range) = initrd else {
        crate::error!(
            "no initial RAM disk: give the loader one (-initrd), or a disk with an EROFS image (root=/dev/vda)"
        );
        return Err(Errno::ENODEV);
    };
    let len = (range.end - range.start) as usize;
    // SAFETY: the loader's image lies in RAM that was reserved at boot, and nobody writes there.
    let image = unsafe { core::slice::from_raw_parts(crate::mm::phys_to_ptr(range.start), len) };
    match sniff(image) {
        Format::Erofs | Format::Unknown => {
            crate::error!("the initial RAM disk ({len} bytes) is no cpio archive, gzip or EROFS image");
            return Err(Errno::EINVAL);
        }
        _ => {}
    }
    let mut workspace = Workspace::new().ok_or(Errno::ENOMEM)?;
    let mut sink = Unpack { fs, file: None, link: None, offset: 0, meta: None, links: Vec::new() };
    match unpack(image, &mut workspace, MAX_UNPACKED, &mut sink) {
        Ok(_) => {
            crate::mm::release(range);
            Ok(())
        }
        Err(e) => {
            crate::error!("the initial RAM disk is damaged: {e}");
            Err(Errno::EIO)
        }
    }
}

/// Where unpacked entries go.
struct Unpack<'a> {
    fs: &'a FsContext,
    /// The regular file whose data comes now.
    file: Option<Arc<OpenFile>>,
    offset: u64,
    /// The symbolic link whose text comes now: its name and what there is of the text.
    link: Option<(Vec<u8>, Vec<u8>)>,
    /// The entry's name, owner, mode and time, to be set when it is complete.
    meta: Option<(Vec<u8>, SetAttr)>,
    /// Names of files with several links, by their number in the archive.
    links: Vec<(u32, (u32, u32), Vec<u8>)>,
}

/// A problem with one entry, told with its name.
fn told(name: &[u8], e: Errno) -> Errno {
    crate::error!("initial RAM disk: {}: {e}", core::str::from_utf8(name).unwrap_or("?"));
    e
}

fn time(mtime: u32) -> SetTime {
    SetTime::At(Timespec { sec: mtime as i64, nsec: 0 })
}

impl Unpack<'_> {
    fn begin(&mut self, h: &Header, name: &[u8]) -> Result<()> {
        let (fs, cred, at) = (self.fs, &Cred::ROOT, At::Cwd);
        let kind = h.mode & 0o170_000;
        let set = SetAttr {
            mode: Some(h.mode & 0o7777),
            uid: Some(h.uid),
            gid: Some(h.gid),
            size: None,
            atime: Some(time(h.mtime)),
            mtime: Some(time(h.mtime)),
        };
        self.meta = Some((name.to_vec(), set));
        match kind {
            0o040_000 => match namei::mkdir(fs, cred, at, name, 0o755) {
                Ok(()) | Err(Errno::EEXIST) => Ok(()),
                Err(e) => Err(e),
            },
            0o120_000 => {
                self.link = Some((name.to_vec(), Vec::new()));
                self.meta = None;
                Ok(())
            }
            0o100_000 => {
                if h.nlink > 1 {
                    if let Some((_, _, first)) = self.links.iter().find(|l| (l.0, l.1) == (h.ino, h.dev)) {
                        let source = Walk::resolve(fs, cred, At::Cwd, first, Lookup::NOFOLLOW)?;
                        let _ = namei::unlink(fs, cred, At::Cwd, name, false);
                        namei::link(fs, cred, &source, At::Cwd, name)?;
                    } else {
                        self.links.push((h.ino, h.dev, name.to_vec()));
                    }
                }
                use abi::linux::{O_CREAT, O_TRUNC, O_WRONLY};
                let truncate = if h.nlink > 1 && h.size == 0 { 0 } else { O_TRUNC };
                let how = OpenHow { flags: O_WRONLY | O_CREAT | truncate, mode: 0o600, resolve: 0 };
                self.file = Some(OpenFile::open(fs, cred, at, name, how)?);
                self.offset = 0;
                Ok(())
            }
            _ => {
                let rdev = super::devfs::makedev(h.rdev.0 as u64, h.rdev.1 as u64);
                let _ = namei::unlink(fs, cred, At::Cwd, name, false);
                namei::mknod(fs, cred, at, name, h.mode, rdev)
            }
        }
    }
}

impl Sink for Unpack<'_> {
    type Error = Errno;

    fn begin_entry(&mut self, header: &Header, name: &[u8]) -> Result<()> {
        let name = if name.is_empty() { b"." } else { name };
        self.begin(header, name).map_err(|e| told(name, e))
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some((_, text)) = &mut self.link {
            text.extend_from_slice(bytes);
        } else if let Some(file) = &self.file {
            let n = file.pwrite(self.offset, &mut SliceSource::new(bytes))?;
            self.offset += n as u64;
            if n < bytes.len() {
                crate::error!("initial RAM disk: no room for all of it in memory");
                return Err(Errno::ENOSPC);
            }
        }
        Ok(())
    }

    fn end_entry(&mut self) -> Result<()> {
        self.file = None;
        if let Some((name, text)) = self.link.take() {
            let _ = namei::unlink(self.fs, &Cred::ROOT, At::Cwd, &name, false);
            return namei::symlink(self.fs, &Cred::ROOT, &text, At::Cwd, &name).map_err(|e| told(&name, e));
        }
        if let Some((name, set)) = self.meta.take() {
            let path = Walk::resolve(self.fs, &Cred::ROOT, At::Cwd, &name, Lookup::NOFOLLOW)?;
            path.inode().setattr(&set)?;
        }
        Ok(())
    }

    fn end_archive(&mut self) -> Result<()> {
        self.links.clear();
        Ok(())
    }
}

/// The file system of /dev, one for all its mounts, with the kernel's nodes in it.
fn devtmpfs() -> Result<Arc<TmpFs>> {
    if let Some(fs) = DEV.get() {
        return Ok(fs.clone());
    }
    let fs = TmpFs::named("devtmpfs", Limits::half_of(ram_pages()), 0o755)?;
    let _ = DEV.set(fs.clone());
    Ok(fs)
}

/// Mounts /dev and /dev/pts and makes the nodes. A root without /dev gets one.
fn mount_dev(fs: &FsContext) -> Result<()> {
    let cred = &Cred::ROOT;
    let make_dir = |path: &[u8]| match namei::mkdir(fs, cred, At::Cwd, path, 0o755) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(e) => Err(e),
    };
    make_dir(b"/dev")?;
    let at = Walk::resolve(fs, cred, At::Cwd, b"/dev", Lookup::FOLLOW)?;
    let sb = Superblock::new(devtmpfs()?)?;
    let dev = FsContext::new(vfs::mount::unattached(sb.clone()));
    dev.set_umask(0);
    let _ = NODES_AT.set(dev);
    vfs::mount::mount(sb, &at, 0, "devtmpfs")?;
    for &(name, mode, rdev) in NODES {
        let path = [b"/dev/", name.as_bytes()].concat();
        namei::mknod(fs, cred, At::Cwd, &path, 0o020_000 | mode, rdev)?;
    }
    update_nodes(core::iter::empty());
    for (name, text) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        namei::symlink(fs, cred, text.as_bytes(), At::Cwd, &[b"/dev/", name.as_bytes()].concat())?;
    }
    make_dir(b"/dev/pts")?;
    make_dir(b"/dev/shm")?;
    let at = Walk::resolve(fs, cred, At::Cwd, b"/dev/pts", Lookup::FOLLOW)?;
    vfs::mount::mount(Superblock::new(synth::devpts())?, &at, 0, "devpts")
}

/// Brings the nodes of /dev in line with the disks and partitions that there are: `gone` are names of some that were. What
/// cannot be made is told in the log. Context: thread; before there is a /dev it does nothing.
pub fn update_nodes<'a>(gone: impl Iterator<Item = &'a str>) {
    let Some(dev) = NODES_AT.get() else { return };
    let cred = &Cred::ROOT;
    for name in gone {
        let _ = namei::unlink(dev, cred, At::Cwd, name.as_bytes(), false);
    }
    for node in disk::all() {
        let name = node.device.name();
        let rdev = makedev(disk::MAJOR, node.minor.into());
        match namei::mknod(dev, cred, At::Cwd, name.as_bytes(), 0o060_660, rdev) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => crate::warn!("/dev/{name} cannot be made: {e}"),
        }
    }
}

/// A new file system of type `kind` for mount(2), on the device that `source` names where it needs one. `ENODEV` for unknown
/// types, `EINVAL` for bad options, `ENOTBLK`, `ENXIO` for what is no device.
pub fn filesystem(kind: &[u8], source: &str, flags: u32, options: &str) -> Result<Arc<dyn FileSystem>> {
    Ok(match kind {
        b"tmpfs" | b"ramfs" => {
            let limits = Limits::half_of(ram_pages()).with_options(options, ram_pages())?;
            let mode = options
                .split(',')
                .find_map(|o| o.strip_prefix("mode="))
                .map_or(Ok(0o1777), |m| u32::from_str_radix(m, 8).map_err(|_| Errno::EINVAL))?;
            TmpFs::new(limits, mode & 0o7777)?
        }
        b"devtmpfs" => devtmpfs()?,
        b"devpts" => synth::devpts(),
        b"proc" => super::procfs::new(),
        b"sysfs" => super::sysfs::new(),
        b"erofs" => base::mount_image(block_device(source)?.0)?,
        b"ext4" => {
            let (device, rdev) = block_device(source)?;
            super::datadisk::mount(device, rdev, flags, options)?
        }
        _ => return Err(Errno::ENODEV),
    })
}

/// The block device at the path `source`, and its number.
fn block_device(source: &str) -> Result<(Arc<dyn BlockDevice>, u64)> {
    let fs = crate::sched::current().fs();
    let place = Walk::resolve(fs, &Cred::ROOT, At::Cwd, source.as_bytes(), Lookup::FOLLOW)?;
    if place.dentry.kind() != FileType::Block {
        return Err(Errno::ENOTBLK);
    }
    let rdev = place.inode().getattr()?.rdev;
    Ok((disk::by_rdev(rdev)?, rdev))
}
