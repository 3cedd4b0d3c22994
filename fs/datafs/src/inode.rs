//! Inodes in memory.
//!
//! An inode is in memory once ([`Volume::enter`]); who holds a reference sees every change. Its fields are a [`Core`] under a
//! lock. A change of the core is stored into the inode table's block within the transaction that makes it, except that times
//! and the size of a file being written run ahead in memory: such an inode is on the volume's dirty list, which keeps it in
//! memory until [`DataInode::flush`].
//!
//! # Locks, in order of taking
//! 1. `io`: one writer, truncation or allocation at a time; may be held over copies from user memory.
//! 2. (a transaction begins)
//! 3. `core`; of two inodes one after the other, never together.
//! 4. the orphan list, a group, a metadata block.
//!
//! # The end
//! When the last reference to an inode without names goes, its blocks and itself are freed ([`crate::evict`]). References
//! are therefore never dropped within a transaction or under a spin lock.

use crate::extents::{Mapping, Owner};
use crate::fields::{Core, now};
use crate::layout::inode::{self as raw, FLAG_EA_INODE, FLAG_INLINE_DATA, OLD_SIZE};
use crate::layout::{put_u16, put_u32};
use crate::meta::{Look, Tx};
use crate::volume::Volume;
use abi::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use pagecache::{FileCache, Settings};
use sync::{LockClass, Mutex, RwLock, SpinLock, rank};
use vfs::{FileType, Meta};

static IO: LockClass = LockClass::new("datafs file", rank::INODE + 2);
static CORE: LockClass = LockClass::new("datafs inode", rank::PAGE_CACHE + 12);
/// Space promised to a page that is, or is about to be, dirty over a hole. Two writers may each be about to make it dirty:
/// they share the promise, and the one that came second leaves it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Promise {
    /// How many blocks.
    pub blocks: u32,
    /// Who counts on it.
    pub holders: u32,
}

impl Promise {
    /// One more holder, who brings a promise of `blocks`; returns how many of them are not needed.
    pub fn join(&mut self, blocks: u32) -> u32 {
        let spare = self.blocks.min(blocks);
        self.blocks = self.blocks.max(blocks);
        self.holders += 1;
        spare
    }
}

static DELAYED: LockClass = LockClass::new("datafs delayed", rank::SPIN + 66);

/// The root directory's inode.
pub(crate) const ROOT: u32 = 2;

/// An inode.
pub struct DataInode {
    pub(crate) meta: Meta,
    pub(crate) vol: Arc<Volume>,
    pub(crate) me: Weak<DataInode>,
    pub(crate) ino: u32,
    /// The seed of its checksums.
    pub(crate) seed: u32,
    pub(crate) io: Mutex<()>,
    pub(crate) core: RwLock<Core>,
    /// The content of a regular file.
    pub(crate) cache: Option<Arc<FileCache>>,
    /// Dirty pages over holes: how many blocks are promised to each.
    pub(crate) delayed: SpinLock<BTreeMap<u64, Promise>>,
    /// The core is ahead of the inode table.
    pub(crate) lazy: AtomicBool,
    /// It has no name, and its `dtime` is a link of the orphan list.
    pub(crate) orphan: AtomicBool,
    /// Shared with the list, where a neighbour's removal changes it.
    pub(crate) next_orphan: Arc<AtomicU32>,
    /// Made without a name (`O_TMPFILE`): it may get one.
    pub(crate) linkable: AtomicBool,
    /// The last transaction that changed it.
    pub(crate) tid: AtomicU64,
    /// The same for what fdatasync needs: all but times.
    pub(crate) content_tid: AtomicU64,
    /// Its blocks are freed already.
    pub(crate) gone: AtomicBool,
}

impl core::fmt::Debug for DataInode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "datafs inode {}", self.ino)
    }
}

impl Volume {
    fn inode_seed(&self, ino: u32, generation: u32) -> u32 {
        let crc = crate::crc::crc32c(self.seed, &ino.to_le_bytes());
        crate::crc::crc32c(crc, &generation.to_le_bytes())
    }

    /// The inode with this number. `ESTALE` if it is not in use, `EUCLEAN` if it is damaged.
    pub(crate) fn get(self: &Arc<Volume>, ino: u32) -> Result<Arc<DataInode>> {
        if let Some(i) = self.cached(ino) {
            return Ok(i);
        }
        let (block, at) = self.inode_place(ino)?;
        let size = self.geo.inode_size;
        let core = self.store.read(block)?.with(|b| Core::new(&b[at..at + size]));
        let inode = self.build(ino, core, false)?;
        Ok(self.enter(inode))
    }

    fn check(&self, ino: u32, core: &Core) -> Result<FileType> {
        let bad = |what: &str| Err(self.corrupt(ino, what));
        let f = core.f();
        let seed = self.inode_seed(ino, f.generation.get());
        if self.geo.metadata_csum() {
            let crc = raw::checksum(seed, core.bytes());
            let has_hi = core.bytes().len() > OLD_SIZE && f.extra_isize.get() >= 4;
            let stored = u32::from(f.checksum_lo.get()) | (u32::from(f.checksum_hi.get()) << 16);
            if if has_hi { crc != stored } else { crc as u16 != f.checksum_lo.get() } {
                return bad("wrong checksum of the inode");
            }
        }
        let Some(kind) = FileType::from_mode(u32::from(f.mode.get())) else {
            return if f.mode.get() == 0 && f.links.get() == 0 { Err(Errno::ESTALE) } else { bad("impossible mode") };
        };
        if core.bytes().len() > OLD_SIZE {
            let extra = usize::from(f.extra_isize.get());
            if extra % 4 != 0 || OLD_SIZE + extra > core.bytes().len() {
                return bad("impossible number of extra fields");
            }
        }
        if f.flags.get() & (FLAG_INLINE_DATA | FLAG_EA_INODE) != 0 {
            return bad("flags of features that the file system does not have");
        }
        let bs = self.geo.block_size as u64;
        if f.size() > (1 << 32) * bs || (kind == FileType::Dir && (f.size() == 0 || !f.size().is_multiple_of(bs))) {
            return bad("impossible size");
        }
        let acl = f.file_acl();
        if acl != 0 && !self.valid_data(acl, 1) {
            return bad("attributes lie outside");
        }
        Ok(kind)
    }

    fn build(self: &Arc<Volume>, ino: u32, core: Core, fresh: bool) -> Result<Arc<DataInode>> {
        let kind = self.check_unless(fresh, ino, &core)?;
        let f = core.f();
        let seed = self.inode_seed(ino, f.generation.get());
        if core.has_extents() && !fresh {
            Owner { vol: self, ino, seed }.check_root(core.root())?;
        }
        let meta = Meta::new(self.dev, u64::from(ino), kind, u32::from(f.mode.get()), f.uid(), f.gid());
        meta.set_flags(f.flags.get());
        let size = f.size();
        let dtime = f.dtime.get();
        let orphan = f.links.get() == 0;
        Ok(Arc::new_cyclic(|me: &Weak<DataInode>| {
            let settings =
                Settings { identity: (self.dev, u64::from(ino)), size, fs_errors: Some(self.fs_errors.clone()) };
            let cache = (kind == FileType::Regular).then(|| FileCache::new(&self.cache, me.clone(), settings));
            DataInode {
                meta,
                vol: self.clone(),
                me: me.clone(),
                ino,
                seed,
                io: Mutex::new(&IO, ()),
                core: RwLock::new(&CORE, core),
                cache,
                delayed: SpinLock::new(&DELAYED, BTreeMap::new()),
                lazy: AtomicBool::new(false),
                orphan: AtomicBool::new(orphan && !fresh),
                next_orphan: Arc::new(AtomicU32::new(if orphan && !fresh { dtime } else { 0 })),
                linkable: AtomicBool::new(false),
                // Who changed it before it was dropped from memory is not known: at the latest this one.
                tid: AtomicU64::new(self.store.journal.last_tid()),
                content_tid: AtomicU64::new(self.store.journal.last_tid()),
                gone: AtomicBool::new(false),
            }
        }))
    }

    fn check_unless(&self, fresh: bool, ino: u32, core: &Core) -> Result<FileType> {
        if fresh {
            return FileType::from_mode(u32::from(core.f().mode.get())).ok_or(Errno::EINVAL);
        }
        self.check(ino, core)
    }

    /// Brings a newly allocated inode into memory and the table.
    pub(crate) fn adopt(self: &Arc<Volume>, ino: u32, core: Core) -> Result<Arc<DataInode>> {
        let inode = self.build(ino, core, true)?;
        let entered = self.enter(inode.clone());
        if !Arc::ptr_eq(&entered, &inode) {
            // The bitmap lent out an inode that something still refers to.
            inode.gone.store(true, Ordering::Relaxed);
            return Err(self.corrupt(ino, "an inode in use was free"));
        }
        Ok(inode)
    }
}

impl DataInode {
    /// Whose extent tree.
    pub(crate) fn owner(&self) -> Owner<'_> {
        Owner { vol: &self.vol, ino: self.ino, seed: self.seed }
    }

    /// Whether it is a directory.
    pub(crate) fn is_dir(&self) -> bool {
        self.meta.kind == FileType::Dir
    }

    /// What blocks are mapped to.
    pub(crate) fn lookup_block(&self, block: u64) -> Result<Mapping> {
        self.owner().lookup(&self.core.read(), block)
    }

    /// The size in bytes, as programs see it.
    pub(crate) fn size(&self) -> u64 {
        match &self.cache {
            Some(c) => c.size(),
            None => self.core.read().f().size(),
        }
    }

    /// Stores the core in the inode table.
    pub(crate) fn store(&self, tx: &Tx, core: &Core) -> Result<()> {
        self.store_times(tx, core)?;
        self.content_tid.store(tx.tid(), Ordering::Relaxed);
        Ok(())
    }

    /// The same where only times have changed since it was last stored.
    fn store_times(&self, tx: &Tx, core: &Core) -> Result<()> {
        let (block, at) = self.vol.inode_place(self.ino)?;
        let buf = self.vol.store.read(block)?;
        let (seed, csum) = (self.seed, self.vol.geo.metadata_csum());
        tx.write(&buf, |b| {
            let d = &mut b[at..at + core.bytes().len()];
            d.copy_from_slice(core.bytes());
            if self.orphan.load(Ordering::Relaxed) {
                put_u32(d, 0x14, self.next_orphan.load(Ordering::Relaxed));
            }
            if csum {
                seal(seed, d);
            }
        })?;
        self.tid.store(tx.tid(), Ordering::Relaxed);
        Ok(())
    }

    /// Changes the core and stores it.
    pub(crate) fn change<R>(&self, tx: &Tx, f: impl FnOnce(&mut Core) -> R) -> Result<R> {
        let mut core = self.core.write();
        let r = f(&mut core);
        self.store(tx, &core)?;
        Ok(r)
    }

    /// Changes the core in memory only, for now; `me` is this inode.
    pub(crate) fn change_lazily(self: &Arc<Self>, f: impl FnOnce(&mut Core)) {
        f(&mut self.core.write());
        if !self.lazy.swap(true, Ordering::AcqRel) {
            let old = self.vol.dirty.lock().insert(self.ino, self.clone());
            drop(old);
        }
    }

    /// Notes a read, as the options say.
    pub(crate) fn accessed(self: &Arc<Self>) {
        const DAY: i64 = 86400;
        let o = &self.vol.options;
        if o.noatime() || (self.is_dir() && o.nodiratime()) {
            return;
        }
        if self.meta.has(vfs::flags::NOATIME) || self.vol.read_only.load(Ordering::Relaxed) {
            return;
        }
        let now = now();
        let stale = {
            let c = self.core.read();
            let a = c.atime();
            o.strictatime() || a <= c.mtime() || a <= c.ctime() || now.sec - a.sec >= DAY
        };
        if stale {
            self.change_lazily(|c| c.set_atime(now));
        }
    }

    /// Brings what runs ahead in memory into a transaction.
    pub(crate) fn flush(&self) -> Result<()> {
        if !self.lazy.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let done = self.vol.transact(4, |tx| self.store_times(tx, &self.core.write()));
        if done.is_err() {
            self.lazy.store(true, Ordering::Release);
        }
        done
    }

    /// The present position of the last block that is mapped before `block`, plus one: where the next should lie.
    pub(crate) fn goal(&self, core: &Core, block: u64) -> u64 {
        if block > 0
            && core.has_extents()
            && let Ok(m) = self.owner().lookup(core, block - 1)
            && let Some((start, _)) = m.at
        {
            return start + 1;
        }
        let (group, index) = self.vol.geo.split_ino(self.ino);
        let spread = u64::from(index % 16) * u64::from(self.vol.geo.blocks_per_group / 16);
        self.vol.geo.group_start(group) + if self.is_dir() { 0 } else { spread }
    }

    /// The bytes of a block of a file without page cache (a link's text).
    pub(crate) fn read_block(&self, block: u64) -> Result<Option<Vec<u8>>> {
        match self.lookup_block(block)?.readable() {
            Some(at) => Ok(Some(self.vol.store.read(at)?.copy())),
            None => Ok(None),
        }
    }
}

/// Puts an inode's checksum into its bytes.
pub(crate) fn seal(seed: u32, bytes: &mut [u8]) {
    let crc = raw::checksum(seed, bytes);
    put_u16(bytes, 0x7c, crc as u16);
    if bytes.len() > OLD_SIZE && crate::layout::u16_at(bytes, 0x80) >= 4 {
        put_u16(bytes, 0x82, (crc >> 16) as u16);
    }
}

impl Drop for DataInode {
    fn drop(&mut self) {
        let nameless = self.core.get_mut().f().links.get() == 0;
        if nameless && !*self.gone.get_mut() {
            self.evict();
        }
        self.vol.leave(self.ino);
    }
}
