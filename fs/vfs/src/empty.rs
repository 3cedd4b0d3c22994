//! The file system that is there before any other: one empty directory.

use crate::attr::{Attr, FileType, Meta, Statfs};
use crate::inode::{DirEntry, FileSystem, Inode, Mappable};
use abi::{Errno, Result};
use alloc::sync::Arc;

#[derive(Debug)]
pub(crate) struct EmptyFs;

struct Root(Meta);

pub(crate) fn root() -> Arc<dyn Inode> {
    Arc::new(Root(Meta::new(0, 1, FileType::Dir, 0o555, 0, 0)))
}

impl FileSystem for EmptyFs {
    fn name(&self) -> &'static str {
        "rootfs"
    }

    fn root(&self) -> Result<Arc<dyn Inode>> {
        Ok(root())
    }

    fn statfs(&self) -> Result<Statfs> {
        Ok(Statfs { namelen: crate::NAME_MAX as u64, ..Statfs::default() })
    }

    fn read_only(&self) -> bool {
        true
    }
}

impl Mappable for Root {}

impl Inode for Root {
    fn meta(&self) -> &Meta {
        &self.0
    }

    fn getattr(&self) -> Result<Attr> {
        Ok(Attr::of(&self.0))
    }

    fn lookup(&self, _name: &[u8]) -> Result<Arc<dyn Inode>> {
        Err(Errno::ENOENT)
    }

    fn readdir(&self, _cookie: u64, _emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        Ok(())
    }
}
