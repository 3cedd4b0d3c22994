//! Directory indexes: a tree of hashes over the blocks of a directory.
//!
//! Block 0 is the root: the entries `.` and `..`, the second of which seems to fill the block, and behind it a header and
//! pairs of hash and block number. Inner nodes look like one empty entry. A leaf holds, as an ordinary directory block,
//! the names whose hashes lie from its own hash up to the next one's; if names with one hash continue in the next leaf, that
//! leaf's hash has its lowest bit set.

use crate::crc::crc32c;
use crate::dir::{Found, Kind};
use crate::fields::Core;
use crate::hash::Version;
use crate::inode::DataInode;
use crate::layout::features::Incompat;
use crate::layout::{dir, part, put_u16, put_u32, u16_at, u32_at};
use crate::meta::{Buf, Look, Tx};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;

const ROOT_BASE: usize = 32;
const NODE_BASE: usize = 8;
const INFO_AT: usize = 24;
const PAIR: usize = 8;

/// A node on the way to a leaf.
pub(crate) struct Frame {
    pub buf: Arc<Buf>,
    base: usize,
    /// Which pair the path follows.
    at: usize,
    count: usize,
}

/// A node's pairs: `(count, limit)`; `EUCLEAN` unless possible.
fn counts(b: &[u8], base: usize, tail: bool) -> Result<(usize, usize)> {
    let (limit, count) = (usize::from(u16_at(b, base)), usize::from(u16_at(b, base + 2)));
    let room = (b.len() - base - if tail { PAIR } else { 0 }) / PAIR;
    if limit != room || count == 0 || count > limit { Err(Errno::EUCLEAN) } else { Ok((count, limit)) }
}

fn pair(b: &[u8], base: usize, i: usize) -> (u32, u32) {
    let hash = if i == 0 { 0 } else { u32_at(b, base + i * PAIR) };
    // The top bits are kept for flags that nobody has defined.
    (hash, u32_at(b, base + i * PAIR + 4) & 0x0fff_ffff)
}

fn node_checksum(seed: u32, b: &[u8], base: usize) -> Option<(u32, usize)> {
    let (limit, count) = (usize::from(u16_at(b, base)), usize::from(u16_at(b, base + 2)));
    let tail = base + limit * PAIR;
    let crc = crc32c(seed, part(b, 0, base + count * PAIR)?);
    let crc = crc32c(crc, part(b, tail, 4)?);
    part(b, tail + 4, 4)?;
    Some((crc32c(crc, &[0; 4]), tail + 4))
}

/// Puts a node's checksum in.
fn seal_node(seed: u32, b: &mut [u8], base: usize) {
    if let Some((crc, at)) = node_checksum(seed, b, base) {
        put_u32(b, at, crc);
    }
}

/// Checks a root or an inner node that came from the disk.
pub(crate) fn check_node(seed: u32, b: &[u8], root: bool, csum: bool) -> Result<()> {
    let base = if root { ROOT_BASE } else { NODE_BASE };
    counts(b, base, csum)?;
    if csum && node_checksum(seed, b, base).is_none_or(|(crc, at)| crc != u32_at(b, at)) {
        return Err(Errno::EUCLEAN);
    }
    Ok(())
}

/// What the root says: the hash's version and the number of levels below it.
fn info(b: &[u8]) -> Result<(Version, u8)> {
    match part(b, INFO_AT, 8) {
        Some(&[0, 0, 0, 0, version, 8, levels, flags]) if flags & 1 == 0 && version <= 5 => {
            Ok((Version(version), levels))
        }
        _ => Err(Errno::EUCLEAN),
    }
}

/// A name with its hash, while leaves are split.
struct Named {
    hash: u32,
    ino: u32,
    kind: u8,
    name: Vec<u8>,
}

impl DataInode {
    fn csum(&self) -> bool {
        self.vol.geo.metadata_csum()
    }

    fn max_levels(&self) -> u8 {
        if self.vol.geo.incompat.contains(Incompat::LARGEDIR) { 2 } else { 1 }
    }

    /// The index's hash version.
    pub(crate) fn hash_version(&self, core: &Core) -> Result<Version> {
        if !self.is_indexed(core) {
            return Ok(self.vol.hash_version);
        }
        self.dir_block(core, 0, Kind::Root)?.with(info).map(|i| i.0)
    }

    /// The path to the leaf for `hash`, and the leaf's number.
    pub(crate) fn probe(&self, core: &Core, hash: u32) -> Result<(Vec<Frame>, u32)> {
        let bad = || self.vol.corrupt(self.ino, "impossible directory index");
        let mut path = Vec::with_capacity(3);
        let root = self.dir_block(core, 0, Kind::Root)?;
        let (_, levels) = root.with(info).map_err(|_| bad())?;
        if levels > self.max_levels() {
            return Err(bad());
        }
        let mut next = Some((root, ROOT_BASE));
        let mut leaf = 0;
        for level in 0..=levels {
            let Some((buf, base)) = next.take() else { break };
            let (at, count, block) = buf
                .with(|b| {
                    let (count, _) = counts(b, base, self.csum())?;
                    let (mut lo, mut hi) = (1, count);
                    while lo < hi {
                        let mid = usize::midpoint(lo, hi);
                        if pair(b, base, mid).0 <= hash { lo = mid + 1 } else { hi = mid }
                    }
                    Ok((lo - 1, count, pair(b, base, lo - 1).1))
                })
                .map_err(|_: Errno| bad())?;
            path.push(Frame { buf, base, at, count });
            leaf = block;
            if level < levels {
                next = Some((self.dir_block(core, u64::from(block), Kind::Node)?, NODE_BASE));
            }
        }
        Ok((path, leaf))
    }

    /// Moves on to the next leaf: its number, and its hash with the continuation bit. `None` at the end.
    pub(crate) fn next_leaf(&self, core: &Core, path: &mut [Frame]) -> Result<Option<(u32, u32)>> {
        let Some(level) = path.iter().rposition(|f| f.at + 1 < f.count) else { return Ok(None) };
        path[level].at += 1;
        let f = &path[level];
        let (hash, mut block) = f.buf.with(|b| pair(b, f.base, f.at));
        for below in &mut path[level + 1..] {
            let buf = self.dir_block(core, u64::from(block), Kind::Node)?;
            let (count, _) = buf.with(|b| counts(b, NODE_BASE, self.csum()))?;
            block = buf.with(|b| pair(b, NODE_BASE, 0).1);
            *below = Frame { buf, base: NODE_BASE, at: 0, count };
        }
        Ok(Some((block, hash)))
    }

    /// Looks a name up through the index.
    pub(crate) fn find_indexed(&self, core: &Core, name: &[u8]) -> Result<Option<Found>> {
        let version = self.hash_version(core)?;
        let (hash, _) = self.vol.hasher.hash(version, name).ok_or(Errno::EUCLEAN)?;
        let (mut path, mut leaf) = self.probe(core, hash)?;
        loop {
            let buf = self.dir_block(core, u64::from(leaf), Kind::Leaf)?;
            if let Some(found) = self.find_in(&buf, name)? {
                return Ok(Some(found));
            }
            match self.next_leaf(core, &mut path)? {
                Some((block, h)) if h == hash | 1 => leaf = block,
                _ => return Ok(None),
            }
        }
    }

    /// Changes the root outside of its pairs.
    pub(crate) fn write_root(&self, tx: &Tx, buf: &Arc<Buf>, f: impl FnOnce(&mut [u8])) -> Result<()> {
        self.write_node(tx, buf, ROOT_BASE, f)
    }

    fn write_node(&self, tx: &Tx, buf: &Arc<Buf>, base: usize, f: impl FnOnce(&mut [u8])) -> Result<()> {
        let (seed, csum) = (self.seed, self.csum());
        tx.write(buf, |b| {
            f(b);
            if csum {
                seal_node(seed, b, base);
            }
        })
    }

    /// Turns a directory of one full block into an indexed one.
    pub(crate) fn make_indexed(&self, tx: &Tx, core: &mut Core) -> Result<()> {
        let root = self.dir_block(core, 0, Kind::Leaf)?;
        let old = root.copy();
        let end = self.chain_end();
        let (mut dots, mut names) = (Vec::new(), Vec::new());
        for e in dir::entries(&old, end) {
            let e = e?;
            if e.ino != 0 && (e.name == b"." || e.name == b"..") {
                dots.push((e.ino, e.name.to_vec()));
            } else if e.ino != 0 {
                names.push(Named { hash: 0, ino: e.ino, kind: e.kind, name: e.name.to_vec() });
            }
        }
        if dots.len() != 2 || dots[0].1 != b"." {
            return Err(self.vol.corrupt(self.ino, "a directory without . and .. at its start"));
        }
        let leaf = self.append_blocks(tx, core, 1)?.pop().ok_or(Errno::EIO)?;
        self.write_leaf(tx, &leaf.1, &names)?;
        let version = self.vol.hash_version.0;
        let (parent, number, size) = (dots[1].0, leaf.0, self.vol.geo.block_size);
        let ino = self.ino;
        let types = self.vol.geo.incompat.contains(Incompat::FILETYPE);
        let code = if types { 2 } else { 0 };
        let tail = if self.csum() { PAIR } else { 0 };
        self.write_node(tx, &root, ROOT_BASE, |b| {
            b.fill(0);
            dir::put(b, 0, 12, ino, code, b".");
            dir::put(b, 12, size - 12, parent, code, b"..");
            b[INFO_AT + 4] = version;
            b[INFO_AT + 5] = 8;
            put_u16(b, ROOT_BASE, ((size - ROOT_BASE - tail) / PAIR) as u16);
            put_u16(b, ROOT_BASE + 2, 1);
            put_u32(b, ROOT_BASE + 4, number);
        })?;
        let flags = core.f().flags.get() | crate::layout::inode::FLAG_INDEX;
        core.m().flags.set(flags);
        Ok(())
    }

    fn write_leaf(&self, tx: &Tx, buf: &Arc<Buf>, names: &[Named]) -> Result<()> {
        let (end, seed, csum) = (self.chain_end(), self.seed, self.csum());
        tx.write(buf, |b| {
            dir::clear(b, end);
            let mut at = 0;
            for (i, n) in names.iter().enumerate() {
                let need = dir::space(n.name.len());
                let len = if i + 1 == names.len() { end.saturating_sub(at) } else { need };
                dir::put(b, at, len, n.ino, n.kind, &n.name);
                at += need;
            }
            if csum {
                dir::store_checksum(seed, b);
            }
        })
    }

    /// Adds a name to an indexed directory.
    pub(crate) fn add_indexed(&self, tx: &Tx, core: &mut Core, name: &[u8], ino: u32, kind: u8) -> Result<()> {
        let version = self.hash_version(core)?;
        let hash_of = |n: &[u8]| self.vol.hasher.hash(version, n).map(|h| h.0).ok_or(Errno::EUCLEAN);
        let hash = hash_of(name)?;
        let (path, leaf) = self.probe(core, hash)?;
        let buf = self.dir_block(core, u64::from(leaf), Kind::Leaf)?;
        if self.insert_in(tx, &buf, ino, kind, name)? {
            return Ok(());
        }
        // The leaf is split; full nodes above it are too, and a full root moves down a level.
        let full = path.iter().rev().take_while(|f| f.count == self.limit(f)).count();
        let grows = full == path.len();
        if grows && path.len() > usize::from(self.max_levels()) {
            return Err(Errno::ENOSPC);
        }
        let mut fresh = self.append_blocks(tx, core, 1 + full)?;
        let right = fresh.pop().ok_or(Errno::EIO)?;
        let mut names = alloc::vec![Named { hash, ino, kind, name: name.to_vec() }];
        let old = buf.copy();
        for e in dir::entries(&old, self.chain_end()) {
            let e = e?;
            if e.ino != 0 {
                names.push(Named { hash: hash_of(e.name)?, ino: e.ino, kind: e.kind, name: e.name.to_vec() });
            }
        }
        names.sort_by_key(|n| n.hash);
        let total: usize = names.iter().map(|n| dir::space(n.name.len())).sum();
        let (mut at, mut size) = (0, 0);
        while size < total / 2 {
            size += dir::space(names[at].name.len());
            at += 1;
        }
        let at = at.clamp(1, names.len() - 1);
        let split = names[at].hash;
        let continued = u32::from(names[at - 1].hash == split);
        self.write_leaf(tx, &right.1, &names[at..])?;
        self.write_leaf(tx, &buf, &names[..at])?;
        self.add_pair(tx, path, (split | continued, right.0), fresh)
    }

    fn limit(&self, f: &Frame) -> usize {
        let tail = if self.csum() { PAIR } else { 0 };
        (self.vol.geo.block_size - f.base - tail) / PAIR
    }

    /// Enters a pair behind the one that the lowest frame follows, splitting full nodes into the blocks of `fresh`.
    fn add_pair(&self, tx: &Tx, mut path: Vec<Frame>, new: (u32, u32), mut fresh: Vec<(u32, Arc<Buf>)>) -> Result<()> {
        let mut new = new;
        while let Some(f) = path.pop() {
            let limit = self.limit(&f);
            let mut pairs: Vec<(u32, u32)> = f.buf.with(|b| (0..f.count).map(|i| pair(b, f.base, i)).collect());
            pairs.insert(f.at + 1, new);
            if pairs.len() <= limit {
                return self.write_node(tx, &f.buf, f.base, |b| put_pairs(b, f.base, limit, &pairs));
            }
            let (number, buf) = fresh.pop().ok_or(Errno::EIO)?;
            let node = Frame { buf, base: NODE_BASE, at: 0, count: 0 };
            if path.is_empty() {
                // The root's pairs move into a node below it, which has room for two more.
                self.init_node(tx, &node, &pairs)?;
                let one = [(0, number)];
                return self.write_node(tx, &f.buf, f.base, |b| {
                    b[INFO_AT + 6] += 1;
                    put_pairs(b, f.base, limit, &one);
                });
            }
            let right = pairs.split_off(pairs.len() / 2);
            self.init_node(tx, &node, &right)?;
            self.write_node(tx, &f.buf, f.base, |b| put_pairs(b, f.base, limit, &pairs))?;
            new = (right[0].0, number);
        }
        Ok(())
    }

    fn init_node(&self, tx: &Tx, f: &Frame, pairs: &[(u32, u32)]) -> Result<()> {
        let (limit, size) = (self.limit(f), self.vol.geo.block_size);
        self.write_node(tx, &f.buf, f.base, |b| {
            b.fill(0);
            put_u16(b, 4, size as u16);
            put_pairs(b, f.base, limit, pairs);
        })
    }
}

fn put_pairs(b: &mut [u8], base: usize, limit: usize, pairs: &[(u32, u32)]) {
    for (i, &(hash, block)) in pairs.iter().enumerate() {
        put_u32(b, base + i * PAIR, hash);
        put_u32(b, base + i * PAIR + 4, block);
    }
    // The first pair's hash is implied; the limit and the count stand in its place.
    put_u16(b, base, limit as u16);
    put_u16(b, base + 2, pairs.len() as u16);
}
