//! What all inodes of one mounted file system share: shape, groups, counters, the table of inodes in memory.

use crate::balloc::GroupState;
use crate::geometry::{Geometry, Refused};
use crate::hash::{Hasher, Version};
use crate::inode::DataInode;
use crate::layout::features::Incompat;
use crate::layout::group::GroupDesc;
use crate::layout::superblock::{self as sbl, SuperBlock};
use crate::meta::{Buf, Look, Store, Tx};
use crate::options::{Live, Options};
use abi::{Errno, Result};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use block::BlockDevice;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use pagecache::{ErrSeq, PageCache};
use sync::{LockClass, Mutex, SpinLock, rank};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) static GROUP: LockClass = LockClass::new("datafs group", rank::PAGE_CACHE + 20);
static INODES: LockClass = LockClass::new("datafs inode table", rank::SPIN + 60);
static DIRTY: LockClass = LockClass::new("datafs dirty inodes", rank::SPIN + 62);
static PENDING: LockClass = LockClass::new("datafs freed blocks", rank::SPIN + 64);
static ORPHANS: LockClass = LockClass::new("datafs orphans", rank::PAGE_CACHE + 16);
static SYNC: LockClass = LockClass::new("datafs sync", rank::INODE + 6);

/// A group: where its metadata lies never changes; the rest is under the lock.
pub(crate) struct Group {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
    pub state: Mutex<GroupState>,
}

/// Blocks that a transaction freed: not to be used before it is committed, or a crash would leave the former owner with
/// another's data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freed {
    pub tid: u64,
    pub start: u64,
    pub len: u32,
}

impl core::fmt::Debug for Volume {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "datafs volume on {}", self.device.name())
    }
}

/// The shared part of a mounted file system.
pub(crate) struct Volume {
    pub geo: Geometry,
    pub store: Store,
    pub device: Arc<dyn BlockDevice>,
    pub cache: Arc<PageCache>,
    /// Write errors of all files, for `syncfs`.
    pub fs_errors: Arc<ErrSeq>,
    pub options: Live,
    /// Seed of all checksums.
    pub seed: u32,
    pub uuid: [u8; 16],
    pub hasher: Hasher,
    pub hash_version: Version,
    pub dev: u64,
    pub groups: Vec<Group>,
    pub gdt: Vec<Arc<Buf>>,
    sb_buf: Arc<Buf>,
    sb_at: usize,
    /// Runs that hold the metadata which the layout fixes, sorted.
    pub zones: Vec<(u64, u64)>,
    inodes: SpinLock<BTreeMap<u32, Weak<DataInode>>>,
    /// Inodes with something in memory that is not on its way to the disk.
    pub dirty: SpinLock<BTreeMap<u32, Arc<DataInode>>>,
    /// Blocks that can be allocated now.
    pub free_blocks: AtomicI64,
    /// Blocks promised to dirty pages.
    pub promised: AtomicI64,
    /// Blocks kept back, so that what was promised can be mapped.
    pub kept_back: i64,
    /// Blocks for the superuser only.
    pub root_reserved: u64,
    pub overhead: u64,
    pub free_inodes: AtomicI64,
    pub pending: SpinLock<VecDeque<Freed>>,
    pub pending_blocks: AtomicI64,
    /// Inodes on the orphan list, the head first.
    pub orphans: Mutex<Vec<crate::orphan::Orphan>>,
    pub read_only: AtomicBool,
    errors: AtomicU32,
    pub sync_lock: Mutex<()>,
    /// It is not mounted any more.
    pub left: AtomicBool,
}

impl Volume {
    /// Reads everything that a mounted file system keeps in memory. The journal was replayed before.
    pub fn load(
        device: Arc<dyn BlockDevice>,
        cache: Arc<PageCache>,
        options: Options,
        dev: u64,
        geo: Geometry,
        store: Store,
    ) -> core::result::Result<Volume, Refused> {
        let sb_block = sbl::OFFSET >> geo.block_bits;
        let sb_at = (sbl::OFFSET - (sb_block << geo.block_bits)) as usize;
        let sb_buf = store.read(sb_block)?;
        let sb = sb_buf.with(|b| SuperBlock::read_from_bytes(&b[sb_at..sb_at + sbl::SIZE]).ok());
        let sb = sb.ok_or_else(|| Refused::new(Errno::EIO, "no superblock"))?;
        let seed = if geo.incompat.contains(Incompat::CSUM_SEED) {
            sb.checksum_seed.get()
        } else {
            crate::crc::crc32c(!0, &sb.uuid)
        };
        let read_only = options.read_only || device.geometry().read_only || !geo.ro_because.is_empty();
        let blocks = geo.blocks as i64;
        let root_reserved = crate::layout::join(sb.r_blocks_count_lo.get(), sb.r_blocks_count_hi.get()).min(geo.blocks);
        let mut v = Volume {
            store,
            device,
            cache,
            fs_errors: Arc::new(ErrSeq::new()),
            options: Live::new(options),
            seed,
            uuid: sb.uuid,
            hasher: Hasher {
                seed: sb.hash_seed.map(|w| w.get()),
                unsigned: sb.flags.get() & sbl::FLAG_UNSIGNED_HASH != 0,
            },
            hash_version: Version(sb.def_hash_version),
            dev,
            groups: Vec::new(),
            gdt: Vec::new(),
            sb_buf,
            sb_at,
            zones: Vec::new(),
            inodes: SpinLock::new(&INODES, BTreeMap::new()),
            dirty: SpinLock::new(&DIRTY, BTreeMap::new()),
            free_blocks: AtomicI64::new(0),
            promised: AtomicI64::new(0),
            kept_back: (blocks / 50).min(4096),
            root_reserved,
            overhead: 0,
            free_inodes: AtomicI64::new(0),
            pending: SpinLock::new(&PENDING, VecDeque::new()),
            pending_blocks: AtomicI64::new(0),
            orphans: Mutex::new(&ORPHANS, Vec::new()),
            read_only: AtomicBool::new(read_only),
            errors: AtomicU32::new(0),
            sync_lock: Mutex::new(&SYNC, ()),
            left: AtomicBool::new(false),
            geo,
        };
        v.load_groups()?;
        Ok(v)
    }

    fn load_groups(&mut self) -> core::result::Result<(), Refused> {
        let geo = &self.geo;
        for i in 0..geo.gdt_blocks() {
            let at = geo.gdt_block(i);
            if at >= geo.blocks {
                return Err(Refused::new(Errno::EUCLEAN, "group descriptors beyond the end"));
            }
            self.gdt.push(self.store.read(at)?);
        }
        let mut zones = Vec::with_capacity(geo.groups as usize * 4);
        let (mut free, mut free_inodes) = (0i64, 0i64);
        for g in 0..geo.groups {
            let desc = self.read_desc(g);
            self.check_desc(g, &desc)?;
            let base = geo.base_meta(g);
            zones.push((geo.group_start(g), u64::from(base)));
            zones.push((desc.block_bitmap(), 1));
            zones.push((desc.inode_bitmap(), 1));
            zones.push((desc.inode_table(), u64::from(geo.table_blocks())));
            free += i64::from(desc.free_blocks());
            free_inodes += i64::from(desc.free_inodes());
            self.groups.push(Group {
                block_bitmap: desc.block_bitmap(),
                inode_bitmap: desc.inode_bitmap(),
                inode_table: desc.inode_table(),
                state: Mutex::new(&GROUP, GroupState::new(desc)),
            });
        }
        zones.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, len) in zones.into_iter().filter(|z| z.1 > 0) {
            match merged.last_mut() {
                Some(last) if last.0 + last.1 > start => {
                    return Err(Refused::new(Errno::EUCLEAN, format!("two pieces of metadata lie at block {start}")));
                }
                Some(last) if last.0 + last.1 == start => last.1 += len,
                _ => merged.push((start, len)),
            }
        }
        self.overhead = geo.first_data_block + merged.iter().map(|z| z.1).sum::<u64>();
        self.zones = merged;
        *self.free_blocks.get_mut() = free;
        *self.free_inodes.get_mut() = free_inodes;
        Ok(())
    }

    fn desc_place(&self, group: u32) -> (usize, usize) {
        let per = self.geo.desc_per_block();
        ((group / per) as usize, (group % per) as usize * self.geo.desc_size)
    }

    fn read_desc(&self, group: u32) -> GroupDesc {
        let (i, at) = self.desc_place(group);
        self.gdt[i].with(|b| GroupDesc::from_disk(&b[at..at + self.geo.desc_size]))
    }

    fn desc_checksum(&self, group: u32, desc: &GroupDesc) -> u16 {
        if self.geo.metadata_csum() {
            desc.crc32c(self.seed, group, self.geo.desc_size)
        } else {
            desc.crc16(&self.uuid, group, self.geo.desc_size)
        }
    }

    fn check_desc(&self, g: u32, desc: &GroupDesc) -> core::result::Result<(), Refused> {
        let bad = |what: &str| Err(Refused::new(Errno::EUCLEAN, format!("group {g}: {what}")));
        if self.geo.group_csum() && self.desc_checksum(g, desc) != desc.checksum.get() {
            return bad("wrong checksum of the descriptor");
        }
        if !self.geo.valid_run(desc.block_bitmap(), 1) || !self.geo.valid_run(desc.inode_bitmap(), 1) {
            return bad("a bitmap lies outside");
        }
        if !self.geo.valid_run(desc.inode_table(), self.geo.table_blocks()) {
            return bad("the inode table lies outside");
        }
        if desc.free_blocks() > self.geo.blocks_per_group || desc.free_inodes() > self.geo.inodes_per_group {
            return bad("impossible counts");
        }
        if desc.itable_unused() > self.geo.inodes_per_group || desc.used_dirs() > self.geo.inodes_per_group {
            return bad("impossible counts");
        }
        Ok(())
    }

    /// Writes a group's descriptor, with its checksum.
    pub fn write_desc(&self, tx: &Tx, group: u32, desc: &mut GroupDesc) -> Result<()> {
        if self.geo.group_csum() {
            desc.checksum.set(self.desc_checksum(group, desc));
        }
        let (i, at) = self.desc_place(group);
        let buf = self.gdt.get(i).ok_or(Errno::EUCLEAN)?;
        let len = self.geo.desc_size.min(crate::layout::group::SIZE);
        tx.write(buf, |b| b[at..at + len].copy_from_slice(&desc.as_bytes()[..len]))
    }

    /// Changes the superblock.
    pub fn write_super(&self, tx: &Tx, change: impl FnOnce(&mut SuperBlock)) -> Result<()> {
        let (at, csum) = (self.sb_at, self.geo.metadata_csum());
        tx.write(&self.sb_buf, |b| {
            if let Ok(sb) = SuperBlock::mut_from_bytes(&mut b[at..at + sbl::SIZE]) {
                change(sb);
                if csum {
                    sb.checksum.set(sb.compute_checksum());
                }
            }
        })
    }

    /// Looks at the superblock.
    pub fn with_super<R>(&self, look: impl FnOnce(&SuperBlock) -> R) -> Result<R> {
        let at = self.sb_at;
        self.sb_buf.with(|b| SuperBlock::ref_from_bytes(&b[at..at + sbl::SIZE]).ok().map(look)).ok_or(Errno::EIO)
    }

    /// Whether a run lies where files may have blocks.
    pub fn valid_data(&self, start: u64, len: u32) -> bool {
        if !self.geo.valid_run(start, len) {
            return false;
        }
        let n = self.zones.partition_point(|z| z.0 < start + u64::from(len));
        n == 0 || self.zones[n - 1].0 + self.zones[n - 1].1 <= start
    }

    /// `EROFS` unless changes are allowed.
    pub fn writable(&self) -> Result<()> {
        if self.read_only.load(Ordering::Relaxed) { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Notes that the disk holds something impossible: logged, marked in the superblock, and depending on the options the
    /// end of all writing. Returns the error for the caller.
    #[cold]
    pub fn corrupt(&self, ino: u32, what: &str) -> Errno {
        if self.errors.fetch_add(1, Ordering::Relaxed) < 16 {
            self.options.log(&format!("datafs: inode {ino}: {what}"));
        }
        if !self.options.goes_on() {
            self.read_only.store(true, Ordering::Relaxed);
        }
        Errno::EUCLEAN
    }

    /// Whether impossible things were seen since mounting.
    pub fn saw_errors(&self) -> bool {
        self.errors.load(Ordering::Relaxed) > 0
    }

    /// The inode, if it is in memory.
    pub fn cached(&self, ino: u32) -> Option<Arc<DataInode>> {
        self.inodes.lock().get(&ino).and_then(Weak::upgrade)
    }

    /// About how many bytes the inodes in memory take.
    pub fn inode_bytes(&self) -> usize {
        self.inodes.lock().len() * (size_of::<DataInode>() + size_of::<pagecache::FileCache>())
    }

    /// Enters an inode in the table, unless it is there: then that one.
    pub fn enter(&self, inode: Arc<DataInode>) -> Arc<DataInode> {
        let mut table = self.inodes.lock();
        let there = table.get(&inode.ino).and_then(Weak::upgrade);
        if let Some(other) = &there
            && !other.gone.load(Ordering::Relaxed)
        {
            drop(table);
            return other.clone();
        }
        table.insert(inode.ino, Arc::downgrade(&inode));
        drop(table);
        // One that is gone leaves the table alone; its end takes the table's lock, though.
        drop(there);
        inode
    }

    /// Takes an inode that is being dropped out of the table.
    pub fn leave(&self, ino: u32) {
        let mut table = self.inodes.lock();
        if table.get(&ino).is_some_and(|w| w.strong_count() == 0) {
            table.remove(&ino);
        }
    }

    /// The place of an inode: the block of the table, and where in it.
    pub fn inode_place(&self, ino: u32) -> Result<(u64, usize)> {
        if ino == 0 || ino > self.geo.inodes {
            return Err(Errno::EUCLEAN);
        }
        let (group, index) = self.geo.split_ino(ino);
        let byte = index as usize * self.geo.inode_size;
        let table = self.groups.get(group as usize).ok_or(Errno::EUCLEAN)?.inode_table;
        Ok((table + (byte >> self.geo.block_bits) as u64, byte & (self.geo.block_size - 1)))
    }

    /// Runs `f` in a transaction of at most `credits` blocks. When the disk is full but blocks were freed that only wait for
    /// their transaction's end, ends it and tries once more, so `f` must leave nothing behind when it fails with `ENOSPC`.
    pub fn transact<R>(&self, credits: usize, mut f: impl FnMut(&Tx) -> Result<R>) -> Result<R> {
        self.writable()?;
        let mut again = true;
        loop {
            let tx = self.store.begin(credits)?;
            let result = f(&tx);
            let tid = tx.tid();
            if matches!(result, Err(Errno::EUCLEAN)) && !self.options.goes_on() {
                // What was changed so far must not become durable.
                self.store.journal.abort(Errno::EUCLEAN);
            }
            drop(tx);
            if matches!(result, Err(Errno::ENOSPC)) && again && self.pending_blocks.load(Ordering::Relaxed) > 0 {
                again = false;
                self.store.commit(tid)?;
                continue;
            }
            if self.options.sync() && result.is_ok() {
                self.store.commit(tid)?;
            }
            return result;
        }
    }

    /// Options as `/proc/mounts` shows them.
    pub fn shown_options(&self) -> String {
        self.options.now().shown()
    }
}
