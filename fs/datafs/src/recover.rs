//! Finding and opening the journal, before anything else is believed.
//!
//! The journal is a file (inode 8). Its blocks never move, so where they are is read straight from the disk; what it holds
//! is brought home before the rest of the metadata is looked at.

use crate::geometry::{Geometry, Refused};
use crate::layout::extent::{self, Entries};
use crate::layout::features::{Compat, Incompat};
use crate::layout::group::GroupDesc;
use crate::layout::inode::RawInode;
use crate::layout::superblock::{self as sbl, SuperBlock};
use crate::meta::Store;
use crate::options::Options;
use abi::{Errno, Result};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::BlockDevice;
use journal::{BufferCache, Checksums, Extent, Journal, Map};
use zerocopy::{FromBytes, IntoBytes};

/// Reads the superblock.
pub(crate) fn read_super(device: &dyn BlockDevice) -> core::result::Result<SuperBlock, Refused> {
    let bytes = device.geometry().sectors.saturating_mul(512);
    if bytes < sbl::OFFSET + sbl::SIZE as u64 {
        return Err(Refused::new(Errno::EINVAL, "the disk is too small for a superblock"));
    }
    let mut raw = alloc::vec![0; sbl::SIZE];
    block::read_at(device, sbl::OFFSET, &mut raw)?;
    SuperBlock::read_from_bytes(&raw).map_err(|_| Refused::new(Errno::EIO, "no superblock"))
}

/// Says on the disk, past the journal and durably, whether the journal is needed to make sense of it.
pub(crate) fn mark_recover(device: &dyn BlockDevice, needed: bool) -> Result<()> {
    let mut sb = read_super(device).map_err(|r| r.errno)?;
    let mut incompat = Incompat::from_bits_retain(sb.feature_incompat.get());
    incompat.set(Incompat::RECOVER, needed);
    sb.feature_incompat.set(incompat.bits());
    if crate::layout::features::RoCompat::from_bits_retain(sb.feature_ro_compat.get())
        .contains(crate::layout::features::RoCompat::METADATA_CSUM)
    {
        sb.checksum.set(sb.compute_checksum());
    }
    block::write_fua_at(device, sbl::OFFSET, sb.as_bytes())
}

fn read_block(device: &dyn BlockDevice, geo: &Geometry, n: u64) -> Result<Vec<u8>> {
    if n >= geo.blocks {
        return Err(Errno::EUCLEAN);
    }
    let mut b = alloc::vec![0; geo.block_size];
    block::read_at(device, n << geo.block_bits, &mut b)?;
    Ok(b)
}

fn collect(
    device: &dyn BlockDevice,
    geo: &Geometry,
    node: &[u8],
    depth: u16,
    out: &mut Vec<extent::Extent>,
) -> Result<()> {
    match extent::decode(node, &|start, len| geo.valid_run(start, len))? {
        Entries::Leaf(v) if depth == 0 => out.extend(v),
        Entries::Inner(d, v) if d == depth => {
            for x in v {
                let child = read_block(device, geo, x.child)?;
                if extent::header(&child)?.depth != depth - 1 {
                    return Err(Errno::EUCLEAN);
                }
                collect(device, geo, &child, depth - 1, out)?;
            }
        }
        _ => return Err(Errno::EUCLEAN),
    }
    if out.len() > 1 << 16 { Err(Errno::EUCLEAN) } else { Ok(()) }
}

/// Where the blocks of the journal are.
fn journal_map(device: &dyn BlockDevice, geo: &Geometry, ino: u32) -> Result<Map> {
    if ino == 0 || ino > geo.inodes {
        return Err(Errno::EUCLEAN);
    }
    let (group, index) = geo.split_ino(ino);
    let per = geo.desc_per_block();
    let table = read_block(device, geo, geo.gdt_block(group / per))?;
    let at = (group % per) as usize * geo.desc_size;
    let desc = GroupDesc::from_disk(&table[at..at + geo.desc_size]);
    let byte = index as usize * geo.inode_size;
    let block = read_block(device, geo, desc.inode_table() + (byte >> geo.block_bits) as u64)?;
    let at = byte & (geo.block_size - 1);
    let mut raw = block[at..at + geo.inode_size].to_vec();
    raw.resize(raw.len().max(crate::layout::inode::FIELDS), 0);
    let (inode, _) = RawInode::read_from_prefix(&raw).map_err(|_| Errno::EUCLEAN)?;
    let extents = inode.flags.get() & crate::layout::inode::FLAG_EXTENTS != 0;
    if inode.mode.get() >> 12 != 8 || inode.links.get() == 0 || !extents {
        return Err(Errno::EUCLEAN);
    }
    let mut found = Vec::new();
    collect(device, geo, &inode.block, extent::header(&inode.block)?.depth, &mut found)?;
    let mut next = 0;
    for e in &found {
        if e.unwritten || u64::from(e.block) != next {
            return Err(Errno::EUCLEAN);
        }
        next = e.end();
    }
    if next << geo.block_bits < inode.size() {
        return Err(Errno::EUCLEAN);
    }
    Ok(Map::new(found.iter().map(|e| Extent { physical: e.start, len: e.len })))
}

/// Recovers and opens the journal (or does without, where there is none or nothing will be written).
pub(crate) fn open(
    device: &Arc<dyn BlockDevice>,
    geo: &Geometry,
    sb: &SuperBlock,
    options: &Options,
) -> core::result::Result<Store, Refused> {
    let cache = BufferCache::new(device.clone(), geo.block_size)?;
    let pending = geo.incompat.contains(Incompat::RECOVER);
    if !geo.compat.contains(Compat::HAS_JOURNAL) {
        if pending {
            return Err(Refused::new(Errno::EUCLEAN, "a journal must be replayed, but there is none"));
        }
        return Ok(Store::new(Journal::none(cache), geo.blocks));
    }
    if sb.journal_inum.get() == 0 {
        return Err(Refused::new(Errno::EINVAL, "the journal is on another device, which is not supported"));
    }
    let writes = !options.read_only && geo.ro_because.is_empty() && !device.geometry().read_only;
    if device.geometry().read_only {
        if pending {
            return Err(Refused::new(Errno::EROFS, "the journal must be replayed, but the disk cannot be written"));
        }
        return Ok(Store::new(Journal::none(cache), geo.blocks));
    }
    let map = journal_map(&**device, geo, sb.journal_inum.get())
        .map_err(|e| Refused::new(e, "the journal's inode is damaged"));
    let refused = |r: journal::Refusal| Refused::new(r.errno(), format!("the journal: {r}"));
    let with = journal::Options {
        barrier: options.barrier,
        interval_ns: u64::from(options.commit_seconds) * 1_000_000_000,
        wide: geo.has64(),
        checksums: if geo.metadata_csum() { Checksums::V3 } else { Checksums::None },
    };
    if !writes {
        if pending {
            let map = map.as_ref().map_err(Refused::clone)?;
            let report = journal::recover(&**device, geo.block_size, map, &sb.uuid).map_err(refused)?;
            told(options, device, &report);
            mark_recover(&**device, false)?;
        }
        // For a remount. Whoever only reads can do without.
        let journal = map.and_then(|map| Journal::closed(cache.clone(), map, &sb.uuid, with).map_err(refused));
        return Ok(Store::new(journal.unwrap_or_else(|_| Journal::none(cache)), geo.blocks));
    }
    let journal = if pending {
        let (journal, report) = Journal::load(cache, map?, &sb.uuid, with).map_err(refused)?;
        told(options, device, &report);
        journal
    } else {
        let journal = Journal::closed(cache, map?, &sb.uuid, with).map_err(refused)?;
        journal.reopen()?;
        journal
    };
    mark_recover(&**device, true)?;
    Ok(Store::new(journal, geo.blocks))
}

fn told(options: &Options, device: &Arc<dyn BlockDevice>, report: &journal::Report) {
    if report.transactions > 0 {
        (options.log)(&format!(
            "datafs: {}: recovered {} transactions, {} blocks",
            device.name(),
            report.transactions,
            report.replayed
        ));
    }
}
