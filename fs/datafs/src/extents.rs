//! Where the blocks of a file are: looking through its extent tree.

use crate::fields::Core;
use crate::layout::extent::{self, Entries};
use crate::meta::{Buf, Look};
use crate::volume::Volume;
use abi::{Errno, Result};
use alloc::sync::Arc;

/// What a range of a file's blocks is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// How many blocks from the one that was asked for on.
    pub len: u64,
    /// The first block on disk, and whether the run is written; `None` for a hole.
    pub at: Option<(u64, bool)>,
}

impl Mapping {
    /// Where to read from: `None` for what reads as zeroes.
    pub fn readable(&self) -> Option<u64> {
        match self.at {
            Some((start, true)) => Some(start),
            _ => None,
        }
    }
}

/// One more than the last block that extents can map.
pub(crate) const BLOCKS_END: u64 = 1 << 32;

/// Whose tree.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub vol: &'a Volume,
    pub ino: u32,
    /// The seed of the inode's checksums.
    pub seed: u32,
}

impl Owner<'_> {
    /// Checks a node that came from the disk; once each.
    pub fn verify(&self, buf: &Arc<Buf>, depth: u16) -> Result<()> {
        let bad = |what: &str| self.vol.corrupt(self.ino, what);
        buf.verify(|b| {
            if self.vol.geo.metadata_csum() && extent::checksum(self.seed, b) != extent::stored_checksum(b) {
                return Err(bad("wrong checksum of an extent block"));
            }
            extent::decode(b, &|start, len| self.vol.valid_data(start, len))
                .map(drop)
                .map_err(|_| bad("impossible extent block"))
        })?;
        match buf.with(extent::header) {
            Ok(h) if h.depth == depth && h.entries > 0 => Ok(()),
            _ => Err(bad("an extent block at the wrong height, or empty")),
        }
    }

    /// Checks the root, when an inode comes into memory.
    pub fn check_root(&self, root: &[u8]) -> Result<()> {
        let good = match extent::decode(root, &|start, len| self.vol.valid_data(start, len)) {
            Ok(Entries::Inner(_, v)) => !v.is_empty(),
            Ok(Entries::Leaf(_)) => true,
            Err(_) => false,
        };
        if good { Ok(()) } else { Err(self.vol.corrupt(self.ino, "impossible extent root")) }
    }

    /// What the blocks from `block` on are mapped to.
    pub fn lookup(&self, core: &Core, block: u64) -> Result<Mapping> {
        if !core.has_extents() {
            return crate::indirect::lookup(self, core, block);
        }
        let Ok(at) = u32::try_from(block) else { return Ok(Mapping { len: u64::MAX >> 16, at: None }) };
        let mut depth = extent::header(core.root())?.depth;
        let mut limit = BLOCKS_END;
        let mut node: Option<Arc<Buf>> = None;
        while depth > 0 {
            let (child, next) = match &node {
                None => extent::find_child(core.root(), at)?,
                Some(b) => b.with(|b| extent::find_child(b, at))?,
            };
            limit = next.map_or(limit, |n| limit.min(u64::from(n)));
            depth -= 1;
            let buf = self.vol.store.read(child.child)?;
            self.verify(&buf, depth)?;
            node = Some(buf);
        }
        let (found, next) = match &node {
            None => extent::find_extent(core.root(), at)?,
            Some(b) => b.with(|b| extent::find_extent(b, at))?,
        };
        if let Some(e) = found
            && e.end() > block
        {
            let skip = block - u64::from(e.block);
            return Ok(Mapping { len: e.end() - block, at: Some((e.start + skip, !e.unwritten)) });
        }
        let end = next.map_or(limit, u64::from);
        match end.checked_sub(block) {
            Some(len) if len > 0 => Ok(Mapping { len, at: None }),
            _ => Err(Errno::EUCLEAN),
        }
    }
}
