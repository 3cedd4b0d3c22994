//! A mounted image.

use crate::device::Device;
use crate::inode::ErofsInode;
use crate::layout::{BLOCK, CORRUPT, RawInode, Refusal, SLOT, Super};
use crate::unpack::Extents;
use abi::Result;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use block::BlockDevice;
use pagecache::PageCache;
use sync::{LockClass, SpinLock, rank};
use vfs::{FileSystem, FileType, Inode, Statfs};

static INODES: LockClass = LockClass::new("erofs inodes", rank::SPIN + 44);

/// EROFS_SUPER_MAGIC_V1.
const MAGIC: u64 = 0xE0F5_E1E2;

/// What the inodes of an image share.
pub(crate) struct Shared {
    pub(crate) sb: Super,
    pub(crate) device: Arc<Device>,
    pub(crate) pages: Arc<PageCache>,
    pub(crate) extents: Extents,
    pub(crate) dev: u64,
    inodes: SpinLock<BTreeMap<u64, Weak<ErofsInode>>>,
}

impl Shared {
    /// Inode `nid` as it stands in the image, checked.
    pub(crate) fn raw_inode(&self, nid: u64) -> Result<(RawInode, FileType)> {
        let at = nid.checked_mul(SLOT).and_then(|n| n.checked_add(self.sb.meta_start)).ok_or(CORRUPT)?;
        // The last inode of the image may be a compact one: half of this.
        let mut bytes = [0; 64];
        let have = self.device.bytes.saturating_sub(at).min(64);
        if have < SLOT {
            return Err(CORRUPT);
        }
        self.device.read(at, &mut bytes[..have as usize])?;
        if bytes[0] & 1 != 0 && have < 64 {
            return Err(CORRUPT);
        }
        let raw = RawInode::parse(&bytes, at)?;
        let kind = FileType::from_mode(raw.mode).ok_or(CORRUPT)?;
        Ok((raw, kind))
    }

    /// Inode `nid`, the same for all who know it.
    pub(crate) fn inode(self: &Arc<Self>, nid: u64) -> Result<Arc<ErofsInode>> {
        let known = self.inodes.lock().get(&nid).and_then(Weak::upgrade);
        if let Some(i) = known {
            return Ok(i);
        }
        let fresh = ErofsInode::load(self, nid)?;
        let mut inodes = self.inodes.lock();
        let other = inodes.get(&nid).and_then(Weak::upgrade);
        if other.is_none() {
            inodes.insert(nid, Arc::downgrade(&fresh));
        }
        drop(inodes);
        Ok(other.unwrap_or(fresh))
    }

    /// The last reference to inode `nid` (or to a copy of it that lost a race) is gone.
    pub(crate) fn forget(&self, nid: u64) {
        let mut inodes = self.inodes.lock();
        if inodes.get(&nid).is_some_and(|w| w.strong_count() == 0) {
            let gone = inodes.remove(&nid);
            drop(inodes);
            drop(gone);
        }
    }
}

/// An EROFS image on a device.
pub struct Erofs {
    shared: Arc<Shared>,
}

impl core::fmt::Debug for Erofs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Erofs on {}", self.shared.device.disk.name())
    }
}

impl Erofs {
    /// Mounts the image on `disk`, whose pages go into `pages`. May sleep.
    pub fn mount(disk: Arc<dyn BlockDevice>, pages: &Arc<PageCache>) -> core::result::Result<Arc<Erofs>, Refusal> {
        if u64::from(disk.geometry().logical_block) > BLOCK {
            return Err(Refusal::DeviceBlocks);
        }
        let dev = vfs::mount::anonymous_dev();
        let device = Device::new(disk, pages, (vfs::mount::anonymous_dev(), 0));
        let mut first = [0; BLOCK as usize];
        if device.bytes < BLOCK {
            return Err(Refusal::NotErofs);
        }
        device.read(0, &mut first).map_err(Refusal::Io)?;
        let sb = Super::parse(&first, device.bytes)?;
        let inodes = SpinLock::new(&INODES, BTreeMap::new());
        let shared = Arc::new(Shared { sb, device, pages: pages.clone(), extents: Extents::new(), dev, inodes });
        let root = shared.inode(sb.root_nid).map_err(Refusal::Io)?;
        if root.meta().kind != FileType::Dir {
            return Err(Refusal::Root);
        }
        Ok(Arc::new(Erofs { shared }))
    }

    /// Whether the bytes at the start of a device (2 KiB are enough) look like an image.
    pub fn recognises(start: &[u8]) -> bool {
        crate::layout::le32(start, crate::layout::SUPER_OFFSET as usize) == MAGIC as u32
    }
}

impl FileSystem for Erofs {
    fn name(&self) -> &'static str {
        "erofs"
    }

    fn root(&self) -> Result<Arc<dyn Inode>> {
        Ok(self.shared.inode(self.shared.sb.root_nid)?)
    }

    fn statfs(&self) -> Result<Statfs> {
        let sb = &self.shared.sb;
        Ok(Statfs {
            magic: MAGIC,
            bsize: BLOCK,
            blocks: u64::from(sb.blocks),
            bfree: 0,
            bavail: 0,
            files: sb.inodes,
            ffree: 0,
            fsid: sb.id,
            namelen: vfs::NAME_MAX as u64,
        })
    }

    fn read_only(&self) -> bool {
        true
    }
}
