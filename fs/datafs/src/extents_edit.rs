//! Changing an extent tree.
//!
//! Everything is one operation: [`Edit::replace`] takes a range of a file's blocks out of the tree and puts a run (or
//! nothing) in its place, one leaf at a time. A leaf that overflows is split, one that becomes empty goes away; an index
//! always names its child's first block. The nodes that splits may need are allocated before anything is changed, so that
//! a full disk is an error without consequences.

use crate::extents::{BLOCKS_END, Owner};
use crate::fields::Core;
use crate::layout::extent::{self, Entries, Extent, Index, MAX_LEN, MAX_UNWRITTEN};
use crate::meta::{Buf, Look, Tx};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;

struct Step {
    /// `None`: the root, in the inode.
    place: Option<Arc<Buf>>,
    entries: Entries,
    /// Which child the path follows.
    at: usize,
}

/// What one step of a replacement did.
pub(crate) struct Replaced {
    /// Up to which block of the file it is done.
    pub done: u64,
    /// The runs on disk that were mapped there, and are not any more.
    pub removed: Vec<(u64, u32)>,
}

/// A change in progress: the inode's core is held and so is a transaction.
pub(crate) struct Edit<'a> {
    pub owner: Owner<'a>,
    pub tx: &'a Tx,
    pub core: &'a mut Core,
    /// Where new nodes should lie.
    pub goal: u64,
}

impl Edit<'_> {
    fn node_len(&self, place: Option<&Arc<Buf>>) -> usize {
        if place.is_some() { self.owner.vol.geo.block_size } else { extent::ENTRY * 5 }
    }

    /// The path to the leaf for `block`, and where the next leaf begins.
    fn descend(&self, block: u32) -> Result<(Vec<Step>, u64)> {
        let vol = self.owner.vol;
        let valid = |start: u64, len: u32| vol.valid_data(start, len);
        let mut path = Vec::with_capacity(3);
        let mut limit = BLOCKS_END;
        let mut place: Option<Arc<Buf>> = None;
        loop {
            let entries = match &place {
                None => extent::decode(self.core.root(), &valid)?,
                Some(b) => b.with(|b| extent::decode(b, &valid))?,
            };
            let child = match &entries {
                Entries::Leaf(_) => None,
                Entries::Inner(depth, v) => {
                    let at = v.partition_point(|x| x.block <= block).max(1) - 1;
                    if let Some(next) = v.get(at + 1) {
                        limit = limit.min(u64::from(next.block));
                    }
                    Some((at, v.get(at).ok_or(Errno::EUCLEAN)?.child, *depth))
                }
            };
            path.push(Step { place, entries, at: child.map_or(0, |c| c.0) });
            let Some((_, number, depth)) = child else { return Ok((path, limit)) };
            let buf = vol.store.read(number)?;
            self.owner.verify(&buf, depth - 1)?;
            place = Some(buf);
        }
    }

    /// Replaces the mapping of `from..to` by the run of blocks at `new` (and whether they are written), or by a hole. Stops
    /// at a leaf's end, and after having removed about `most` runs; the caller calls again from where it says.
    pub fn replace(&mut self, from: u32, to: u64, new: Option<(u64, bool)>, most: usize) -> Result<Replaced> {
        let (path, limit) = self.descend(from)?;
        let Some(Step { entries: Entries::Leaf(old), .. }) = path.last() else { return Err(Errno::EUCLEAN) };
        let start = u64::from(from);
        let mut end = to.min(limit);
        let mut removed = Vec::new();
        // Limit the work first, so that what is put in ends where the removal ends.
        if let Some(e) = old.iter().filter(|e| e.end() > start && u64::from(e.block) < end).nth(most) {
            end = end.min(u64::from(e.block));
        }
        let mut out: Vec<Extent> = Vec::with_capacity(old.len() + 2);
        let mut rest = Vec::new();
        for e in old {
            if let Some(left) = e.cut(0, start) {
                out.push(left);
            }
            if let Some(gone) = e.cut(start, end) {
                removed.push((gone.start, gone.len));
            }
            if let Some(right) = e.cut(end, BLOCKS_END) {
                rest.push(right);
            }
        }
        let appends = rest.is_empty();
        let add = |e: Extent, out: &mut Vec<Extent>| {
            if !out.last_mut().is_some_and(|last| last.absorb(&e)) {
                out.push(e);
            }
        };
        if let Some((disk, written)) = new {
            let most = if written { MAX_LEN } else { MAX_UNWRITTEN };
            let mut at = start;
            while at < end {
                let len = (end - at).min(u64::from(most)) as u32;
                let e = Extent { block: at as u32, len, start: disk + (at - start), unwritten: !written };
                add(e, &mut out);
                at += u64::from(len);
            }
        }
        for e in rest {
            add(e, &mut out);
        }
        if out != *old {
            self.store(path, out, appends)?;
        }
        Ok(Replaced { done: end, removed })
    }

    /// How many nodes storing `len` entries in the last node of `path` may need.
    fn nodes_needed(&self, path: &[Step], len: usize) -> usize {
        let mut need = 0;
        let mut len = len;
        for level in (0..path.len()).rev() {
            if len <= extent::capacity(self.node_len(path[level].place.as_ref())) {
                break;
            }
            // A split; of the root: a block into which its entries move, and where they fit.
            need += 1;
            if level > 0 {
                len = count(&path[level - 1].entries) + 1;
            }
        }
        need
    }

    fn store(&mut self, mut path: Vec<Step>, leaf: Vec<Extent>, appends: bool) -> Result<()> {
        let mut pool = Vec::new();
        for _ in 0..self.nodes_needed(&path, leaf.len()) {
            match self.owner.vol.alloc_meta(self.tx, self.goal) {
                Ok(n) => pool.push(n),
                Err(e) => {
                    for n in pool {
                        self.owner.vol.free_meta(self.tx, n)?;
                    }
                    return Err(e);
                }
            }
        }
        let taken = pool.len();
        let level = path.len() - 1;
        let done = self.store_node(&mut path, level, Entries::Leaf(leaf), appends, &mut pool);
        let used = (taken - pool.len()) as i64;
        self.core.add_blocks(used, self.owner.vol.geo.block_size);
        for n in pool {
            self.owner.vol.free_meta(self.tx, n)?;
        }
        done
    }

    fn store_node(
        &mut self,
        path: &mut Vec<Step>,
        level: usize,
        entries: Entries,
        appends: bool,
        pool: &mut Vec<u64>,
    ) -> Result<()> {
        let n = count(&entries);
        if level == 0 {
            return self.store_root(entries, pool);
        }
        let place = path[level].place.clone().ok_or(Errno::EUCLEAN)?;
        let Entries::Inner(height, mut parent) = path[level - 1].entries.clone() else { return Err(Errno::EUCLEAN) };
        let at = path[level - 1].at;
        let mut changed = false;
        let mut parent_appends = false;
        if n == 0 {
            self.owner.vol.free_meta(self.tx, place.block())?;
            self.core.add_blocks(-1, self.owner.vol.geo.block_size);
            parent.remove(at);
            changed = true;
        } else {
            let first = first_block(&entries);
            if parent[at].block != first {
                parent[at].block = first;
                changed = true;
            }
            let cap = extent::capacity(self.owner.vol.geo.block_size);
            if n > cap {
                let (left, right) = split(entries, if appends { cap } else { n / 2 });
                let number = pool.pop().ok_or(Errno::EUCLEAN)?;
                let buf = self.tx.create(number)?;
                parent.insert(at + 1, Index { block: first_block(&right), child: number });
                self.write_node(&buf, &right)?;
                self.write_node(&place, &left)?;
                parent_appends = appends && at + 2 == parent.len();
                changed = true;
            } else {
                self.write_node(&place, &entries)?;
            }
        }
        if changed {
            let up = if parent.is_empty() { Entries::Leaf(Vec::new()) } else { Entries::Inner(height, parent) };
            if level > 1 && matches!(up, Entries::Leaf(_)) {
                return self.store_node(path, level - 1, Entries::Inner(height, Vec::new()), false, pool);
            }
            return self.store_node(path, level - 1, up, parent_appends, pool);
        }
        Ok(())
    }

    fn store_root(&mut self, entries: Entries, pool: &mut Vec<u64>) -> Result<()> {
        let entries = match entries {
            Entries::Inner(_, v) if v.is_empty() => Entries::Leaf(Vec::new()),
            e => e,
        };
        if count(&entries) <= extent::capacity(self.core.root().len()) {
            extent::encode(self.core.root_mut(), &entries);
            return Ok(());
        }
        // The tree grows: what the root held moves into a block of its own.
        let height = match &entries {
            Entries::Leaf(_) => 1,
            Entries::Inner(h, _) => h + 1,
        };
        if height > extent::MAX_DEPTH {
            return Err(Errno::EFBIG);
        }
        let number = pool.pop().ok_or(Errno::EUCLEAN)?;
        let buf = self.tx.create(number)?;
        self.write_node(&buf, &entries)?;
        let root = Entries::Inner(height, alloc::vec![Index { block: first_block(&entries), child: number }]);
        extent::encode(self.core.root_mut(), &root);
        Ok(())
    }

    fn write_node(&self, buf: &Arc<Buf>, entries: &Entries) -> Result<()> {
        let (seed, csum) = (self.owner.seed, self.owner.vol.geo.metadata_csum());
        self.tx.write(buf, |b| {
            extent::encode(b, entries);
            if csum {
                extent::store_checksum(seed, b);
            }
        })
    }
}

fn count(e: &Entries) -> usize {
    match e {
        Entries::Leaf(v) => v.len(),
        Entries::Inner(_, v) => v.len(),
    }
}

fn first_block(e: &Entries) -> u32 {
    match e {
        Entries::Leaf(v) => v.first().map_or(0, |x| x.block),
        Entries::Inner(_, v) => v.first().map_or(0, |x| x.block),
    }
}

fn split(e: Entries, at: usize) -> (Entries, Entries) {
    match e {
        Entries::Leaf(mut v) => {
            let right = v.split_off(at);
            (Entries::Leaf(v), Entries::Leaf(right))
        }
        Entries::Inner(d, mut v) => {
            let right = v.split_off(at);
            (Entries::Inner(d, v), Entries::Inner(d, right))
        }
    }
}
