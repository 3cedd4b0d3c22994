//! Watching files: inotify.

use super::{FDCWD, SysResult, cred, io, me, resolve_user};
use crate::arch::uaccess::UserAddr;
use crate::file::inotify::{self, Inotify, flag};
use crate::task::rlimit::kind::NOFILE;
use abi::{Errno, linux};
use vfs::{Lookup, OpenFile, namei, perm};

/// `inotify_init1(2)`
pub fn inotify_init1(flags: u32) -> SysResult {
    if flags & !(linux::O_CLOEXEC | linux::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = OpenFile::anonymous(Inotify::new(), flags & linux::O_NONBLOCK);
    let me = me();
    me.files().insert(file, flags & linux::O_CLOEXEC != 0, 0, me.process.rlimit(NOFILE)).map(|fd| fd as usize)
}

/// `inotify_add_watch(2)`
pub fn inotify_add_watch(fd: i32, path: UserAddr, mask: u32) -> SysResult {
    let both = flag::MASK_ADD | flag::MASK_CREATE;
    if mask & !inotify::KNOWN != 0 || mask & inotify::EVENTS == 0 || mask & both == both {
        return Err(Errno::EINVAL);
    }
    let file = io(fd)?;
    let queue = file.object_as::<Inotify>().ok_or(Errno::EINVAL)?;
    let how = Lookup { follow: mask & flag::DONT_FOLLOW == 0, directory: mask & flag::ONLYDIR != 0, ..Lookup::FOLLOW };
    let place = resolve_user(FDCWD, path, how)?;
    namei::access(&cred(), &place, perm::MAY_READ)?;
    queue.add(place.inode(), mask).map(|wd| wd as usize)
}

/// `inotify_rm_watch(2)`
pub fn inotify_rm_watch(fd: i32, wd: i32) -> SysResult {
    let file = io(fd)?;
    file.object_as::<Inotify>().ok_or(Errno::EINVAL)?.remove(wd)?;
    Ok(0)
}
