//! Creating, removing and reading names.

use super::{Dir, SysResult, cred, lookup_flags, me, resolve};
use crate::arch::uaccess::{self, UserAddr};
use crate::file::user::read_path;
use crate::syscall::efault;
use abi::{Errno, linux};
use vfs::{FileType, Link, Lookup, RenameFlags, namei};

/// `mkdirat(2)`
pub fn mkdirat(dir: i32, path: UserAddr, mode: u32) -> SysResult {
    let path = read_path(path)?;
    let dir = Dir::of(dir, &path)?;
    namei::mkdir(me().fs(), &cred(), dir.at()?, &path, mode).map(|()| 0)
}

/// `mknodat(2)`
pub fn mknodat(dir: i32, path: UserAddr, mode: u32, dev: u32) -> SysResult {
    let path = read_path(path)?;
    let dir = Dir::of(dir, &path)?;
    namei::mknod(me().fs(), &cred(), dir.at()?, &path, mode, u64::from(dev)).map(|()| 0)
}

/// `symlinkat(2)`
pub fn symlinkat(text: UserAddr, dir: i32, path: UserAddr) -> SysResult {
    let text = read_path(text)?;
    let path = read_path(path)?;
    let dir = Dir::of(dir, &path)?;
    namei::symlink(me().fs(), &cred(), &text, dir.at()?, &path).map(|()| 0)
}

/// `unlinkat(2)`
pub fn unlinkat(dir: i32, path: UserAddr, flags: u32) -> SysResult {
    if flags & !linux::AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    let path = read_path(path)?;
    let dir = Dir::of(dir, &path)?;
    namei::unlink(me().fs(), &cred(), dir.at()?, &path, flags & linux::AT_REMOVEDIR != 0).map(|()| 0)
}

/// `linkat(2)`
pub fn linkat(old_dir: i32, old: UserAddr, new_dir: i32, new: UserAddr, flags: u32) -> SysResult {
    if flags & !(linux::AT_SYMLINK_FOLLOW | linux::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let follow = flags & linux::AT_SYMLINK_FOLLOW != 0;
    let empty = flags & linux::AT_EMPTY_PATH != 0;
    let old = read_path(old)?;
    let source = resolve(old_dir, &old, Lookup { follow, empty, ..Lookup::FOLLOW })?;
    let new = read_path(new)?;
    let dir = Dir::of(new_dir, &new)?;
    namei::link(me().fs(), &cred(), &source, dir.at()?, &new).map(|()| 0)
}

/// `renameat(2)`
pub fn renameat(old_dir: i32, old: UserAddr, new_dir: i32, new: UserAddr) -> SysResult {
    renameat2(old_dir, old, new_dir, new, 0)
}

/// `renameat2(2)`; whiteouts are refused, as file systems without them do.
pub fn renameat2(old_dir: i32, old: UserAddr, new_dir: i32, new: UserAddr, flags: u32) -> SysResult {
    if flags & !(linux::RENAME_NOREPLACE | linux::RENAME_EXCHANGE) != 0 {
        return Err(Errno::EINVAL);
    }
    let how =
        RenameFlags { noreplace: flags & linux::RENAME_NOREPLACE != 0, exchange: flags & linux::RENAME_EXCHANGE != 0 };
    let (old, new) = (read_path(old)?, read_path(new)?);
    let (from, to) = (Dir::of(old_dir, &old)?, Dir::of(new_dir, &new)?);
    namei::rename(me().fs(), &cred(), (from.at()?, &old), (to.at()?, &new), how).map(|()| 0)
}

/// `readlinkat(2)`: an empty path reads the link that the descriptor stands for.
pub fn readlinkat(dir: i32, path: UserAddr, buf: UserAddr, size: usize) -> SysResult {
    if size as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let path = read_path(path)?;
    let empty = path.is_empty();
    let place = resolve(dir, &path, Lookup { empty: true, ..lookup_flags(linux::AT_SYMLINK_NOFOLLOW, !0)? })?;
    if place.dentry.kind() != FileType::Symlink {
        return Err(if empty { Errno::ENOENT } else { Errno::EINVAL });
    }
    let text = match place.inode().readlink() {
        Ok(t) => t,
        // Links that only lead somewhere show where that is.
        Err(Errno::EINVAL) => match place.inode().follow()? {
            Link::Text(t) => t,
            Link::Jump(p) => p.render(Some(&me().fs().root())),
        },
        Err(e) => return Err(e),
    };
    let n = text.len().min(size);
    uaccess::copy_to_user(buf, &text[..n]).map_err(efault)?;
    Ok(n)
}
