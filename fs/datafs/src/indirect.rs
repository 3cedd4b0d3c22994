//! The old way to map blocks: twelve numbers in the inode, then blocks of numbers, one, two and three levels deep. Files
//! that have it are read, overwritten and removed; they get no new blocks.

use crate::extents::{Mapping, Owner};
use crate::fields::Core;
use crate::layout::u32_at;
use crate::meta::Look;
use abi::Result;
use alloc::vec::Vec;

const DIRECT: u64 = 12;

/// What the blocks from `block` on are mapped to; a run within one block of numbers.
pub(crate) fn lookup(owner: &Owner<'_>, core: &Core, block: u64) -> Result<Mapping> {
    let per = owner.vol.geo.block_size as u64 / 4;
    if block < DIRECT {
        return run(owner, core.root(), block as usize, DIRECT as usize);
    }
    let mut rest = block - DIRECT;
    let mut span = per;
    for level in 1..=3u32 {
        if rest < span {
            return walk(owner, core, level, rest, per);
        }
        rest -= span;
        span *= per;
    }
    Ok(Mapping { len: u64::MAX >> 16, at: None })
}

fn walk(owner: &Owner<'_>, core: &Core, level: u32, rest: u64, per: u64) -> Result<Mapping> {
    let mut at = u64::from(u32_at(core.root(), (11 + level as usize) * 4));
    let mut span = per.pow(level);
    let mut rest = rest;
    for height in (0..level).rev() {
        if at == 0 {
            return Ok(Mapping { len: span - rest, at: None });
        }
        if !owner.vol.valid_data(at, 1) {
            return Err(owner.vol.corrupt(owner.ino, "a block of block numbers lies outside"));
        }
        let buf = owner.vol.store.read(at)?;
        span /= per;
        if height == 0 {
            return buf.with(|b| run(owner, b, rest as usize, per as usize));
        }
        let i = (rest / span) as usize;
        rest %= span;
        at = buf.with(|b| u64::from(u32_at(b, i * 4)));
    }
    Ok(Mapping { len: 1, at: None })
}

fn run(owner: &Owner<'_>, table: &[u8], i: usize, end: usize) -> Result<Mapping> {
    let first = u32_at(table, i * 4);
    let mut n = 1;
    while i + n < end {
        let next = u32_at(table, (i + n) * 4);
        let continues = if first == 0 { next == 0 } else { u64::from(next) == u64::from(first) + n as u64 };
        if !continues {
            break;
        }
        n += 1;
    }
    if first != 0 && !owner.vol.valid_data(u64::from(first), n as u32) {
        return Err(owner.vol.corrupt(owner.ino, "a block lies outside"));
    }
    let at = (first != 0).then_some((u64::from(first), true));
    Ok(Mapping { len: n as u64, at })
}

/// All blocks of the file, those of numbers included, as single blocks: `(block, is_metadata)`. For removal.
pub(crate) fn all_blocks(owner: &Owner<'_>, core: &Core) -> Result<Vec<(u64, bool)>> {
    let mut out = Vec::new();
    for i in 0..DIRECT as usize {
        collect(owner, u32_at(core.root(), i * 4), 0, &mut out)?;
    }
    for level in 1..=3 {
        collect(owner, u32_at(core.root(), (11 + level as usize) * 4), level, &mut out)?;
    }
    Ok(out)
}

fn collect(owner: &Owner<'_>, at: u32, level: u32, out: &mut Vec<(u64, bool)>) -> Result<()> {
    if at == 0 {
        return Ok(());
    }
    let at = u64::from(at);
    // A loop in the tree would repeat blocks: no file has more blocks than the disk.
    if !owner.vol.valid_data(at, 1) || out.len() as u64 > owner.vol.geo.blocks {
        return Err(owner.vol.corrupt(owner.ino, "impossible block map"));
    }
    out.push((at, level > 0));
    if level > 0 {
        let table = owner.vol.store.read(at)?.copy();
        for word in table.chunks_exact(4) {
            collect(owner, u32_at(word, 0), level - 1, out)?;
        }
    }
    Ok(())
}
