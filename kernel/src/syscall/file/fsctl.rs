//! `ioctl(2)` on files and directories: flags (`chattr`, `lsattr`), where a file lies (`filefrag`), discarding what is free
//! (`fstrim`). Numbers and structures from linux/fs.h and linux/fiemap.h.

use super::{SysResult, cred};
use crate::arch::uaccess::{self, Immutable, IntoBytes, UserAddr};
use crate::syscall::efault;
use abi::{Errno, Result};
use vfs::perm::CAP_SYS_ADMIN;
use vfs::{FileExtent, Inode, OpenFile, flags};

const FIGETBSZ: u32 = 2;
const FS_IOC_FIEMAP: u32 = 0xc020_660b;
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC_GETVERSION: u32 = 0x8008_7601;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
const FITRIM: u32 = 0xc018_5879;

/// What files without an object of their own know. `ENOTTY` for the rest.
pub fn control(f: &OpenFile, cmd: u32, arg: UserAddr) -> SysResult {
    let inode = f.inode().ok_or(Errno::ENOTTY)?;
    match cmd {
        FIGETBSZ => put(arg, inode.getattr()?.blksize),
        FS_IOC_GETFLAGS => put(arg, inode.file_flags()?),
        FS_IOC_SETFLAGS => {
            let new = uaccess::get_user_u32(arg).map_err(efault)?;
            set_flags(f, &**inode, new)
        }
        FS_IOC_GETVERSION => put(arg, inode.generation()?),
        FS_IOC_FSGETXATTR => {
            let out = Fsxattr { xflags: xflags(inode.file_flags()?), ..Fsxattr::default() };
            uaccess::write_user(arg, &out).map_err(efault).map(|()| 0)
        }
        FS_IOC_FSSETXATTR => set_xflags(f, &**inode, arg),
        FS_IOC_FIEMAP => fiemap(&**inode, arg),
        FITRIM => trim(f, arg),
        _ => Err(Errno::ENOTTY),
    }
}

fn put(arg: UserAddr, value: u32) -> SysResult {
    uaccess::put_user_u32(arg, value).map_err(efault).map(|()| 0)
}

fn set_flags(f: &OpenFile, inode: &dyn Inode, new: u32) -> SysResult {
    // Who has no flags says so before who may is asked.
    inode.file_flags()?;
    if f.path().is_some_and(|p| p.mount.read_only()) {
        return Err(Errno::EROFS);
    }
    flags::check_change(&cred(), inode, new)?;
    inode.set_file_flags(new)?;
    if let Some(path) = f.path() {
        vfs::notify::path(path, vfs::notify::event::ATTRIB);
    }
    Ok(0)
}

/// `struct fsxattr`
#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct Fsxattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// `FS_XFLAG_*` and the flags that they are.
const XFLAGS: [(u32, u32); 5] = [
    (0x8, flags::IMMUTABLE),
    (0x10, flags::APPEND),
    (0x20, flags::SYNC),
    (0x40, flags::NOATIME),
    (0x80, flags::NODUMP),
];

fn xflags(of: u32) -> u32 {
    XFLAGS.iter().filter(|(_, flag)| of & flag != 0).map(|(x, _)| x).sum()
}

/// `FS_IOC_FSSETXATTR`: the flags only; there are no projects and no hints about extents.
fn set_xflags(f: &OpenFile, inode: &dyn Inode, arg: UserAddr) -> SysResult {
    let words: [u32; 7] = uaccess::read_user(arg).map_err(efault)?;
    let known: u32 = XFLAGS.iter().map(|(x, _)| x).sum();
    let [x, extsize, _, project, cow, ..] = words;
    if x & !known != 0 || project != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if extsize != 0 || cow != 0 {
        return Err(Errno::EINVAL);
    }
    let old = inode.file_flags()?;
    let changed: u32 = XFLAGS.iter().filter(|(bit, _)| (x ^ xflags(old)) & bit != 0).map(|(_, flag)| flag).sum();
    set_flags(f, inode, old ^ changed)
}

/// `struct fiemap` without its extents.
#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`
#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 1;
const FIEMAP_EXTENT_UNKNOWN: u32 = 2;
const FIEMAP_EXTENT_DELALLOC: u32 = 4;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
/// Extents asked of the file system at once.
const AT_ONCE: usize = 128;

fn out_of(e: &FileExtent, last: bool) -> FiemapExtent {
    let bit = |yes: bool, flag: u32| if yes { flag } else { 0 };
    FiemapExtent {
        logical: e.logical,
        physical: e.physical,
        length: e.len,
        flags: bit(last, FIEMAP_EXTENT_LAST)
            | bit(e.delayed, FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_UNKNOWN)
            | bit(e.unwritten, FIEMAP_EXTENT_UNWRITTEN),
        ..FiemapExtent::default()
    }
}

fn fiemap(inode: &dyn Inode, arg: UserAddr) -> SysResult {
    let word = |at: u64| uaccess::get_user_u64(arg.offset(at)).map_err(efault);
    let (start, length, what, room) = (word(0)?, word(8)?, word(16)? as u32, word(24)? as u32);
    let mut head = Fiemap { start, length, flags: what, count: room, ..Fiemap::default() };
    // Whether there is any such thing is said first.
    inode.extents(0..0, 0)?;
    if length == 0 || room > u32::MAX / size_of::<FiemapExtent>() as u32 {
        return Err(Errno::EINVAL);
    }
    if start > vfs::MAX_OFFSET {
        return Err(Errno::EFBIG);
    }
    if what & !FIEMAP_FLAG_SYNC != 0 {
        head.flags = what & !FIEMAP_FLAG_SYNC;
        uaccess::write_user(arg, &head).map_err(efault)?;
        return Err(Errno::EBADR);
    }
    if what & FIEMAP_FLAG_SYNC != 0 {
        inode.sync_range(0..vfs::MAX_OFFSET, (true, true, true))?;
    }
    head.mapped = list(inode, start..start.saturating_add(length), room, arg)?;
    uaccess::write_user(arg, &head).map_err(efault)?;
    Ok(0)
}

/// Copies out the extents in `range`, at most `room`; with a `room` of 0 only counts them.
fn list(inode: &dyn Inode, range: core::ops::Range<u64>, room: u32, arg: UserAddr) -> Result<u32> {
    let (mut at, mut n) = (range.start, 0u32);
    let mut tail: Option<(UserAddr, FileExtent)> = None;
    loop {
        let most = if room == 0 { AT_ONCE } else { AT_ONCE.min((room - n) as usize) };
        let found = inode.extents(at..range.end, most)?;
        for e in &found {
            let to = arg.offset((size_of::<Fiemap>() + n as usize * size_of::<FiemapExtent>()) as u64);
            if room != 0 {
                uaccess::write_user(to, &out_of(e, false)).map_err(efault)?;
            }
            tail = Some((to, *e));
            n = n.checked_add(1).ok_or(Errno::EOVERFLOW)?;
            at = e.logical + e.len;
        }
        if found.len() < most || (room != 0 && n == room) || at >= range.end {
            break;
        }
    }
    if let Some((to, e)) = tail
        && room != 0
        && inode.extents(at..vfs::MAX_OFFSET, 1)?.is_empty()
    {
        uaccess::write_user(to, &out_of(&e, true)).map_err(efault)?;
    }
    Ok(n)
}

/// `FITRIM` with a `struct fstrim_range`: start, length, least length of a run; the length says afterwards what was found.
fn trim(f: &OpenFile, arg: UserAddr) -> SysResult {
    if !cred().capable(CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let word = |at: u64| uaccess::get_user_u64(arg.offset(at)).map_err(efault);
    let (start, len, least) = (word(0)?, word(8)?, word(16)?);
    let path = f.path().ok_or(Errno::ENOTTY)?;
    let done = path.mount.sb.fs.trim(start..start.saturating_add(len), least)?;
    uaccess::put_user_u64(arg.offset(8), done).map_err(efault)?;
    Ok(0)
}
