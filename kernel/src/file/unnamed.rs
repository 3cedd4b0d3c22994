//! Files without a name anywhere (`memfd_create`), on a tmpfs that is mounted nowhere.

use abi::{Errno, Result};
use alloc::sync::Arc;
use sync::Once;
use tmpfs::{Limits, TmpFs};
use vfs::{OpenFile, Path, Superblock};

struct Hidden {
    fs: Arc<TmpFs>,
    place: Path,
}

static HIDDEN: Once<Hidden> = Once::new();

fn hidden() -> Result<&'static Hidden> {
    if let Some(h) = HIDDEN.get() {
        return Ok(h);
    }
    let fs = TmpFs::new(Limits::NONE, 0o700)?;
    let place = vfs::mount::unattached(Superblock::new(fs.clone())?);
    match HIDDEN.set(Hidden { fs, place }) {
        Ok(h) => Ok(h),
        // Another thread is about to be ready.
        Err(_) => HIDDEN.get().ok_or(Errno::EAGAIN),
    }
}

/// An unnamed regular file, open; `name` is what `/proc` shows.
pub fn unnamed_file(name: &[u8], mode: u32, uid: u32, gid: u32, flags: u32) -> Result<Arc<OpenFile>> {
    let h = hidden()?;
    let inode = h.fs.unnamed(mode, uid, gid)?;
    Ok(OpenFile::unnamed(&h.place, inode, name, flags))
}
