//! The shape of a file system: taken from the superblock, refused where it is impossible, immutable afterwards.

use crate::layout::features::{Compat, Incompat, RoCompat, unknown_incompat, unknown_ro};
use crate::layout::superblock::{MAGIC, SuperBlock};
use crate::layout::{group, join};
use abi::Errno;
use alloc::format;
use alloc::string::String;

/// Why a disk was not mounted: for the caller a number, for the log a sentence.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The error that `mount(2)` returns.
    pub errno: Errno,
    /// What is wrong.
    pub why: String,
}

impl Refused {
    pub(crate) fn new(errno: Errno, why: impl Into<String>) -> Refused {
        Refused { errno, why: why.into() }
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused { errno, why: format!("{errno} while reading the disk") }
    }
}

/// The shape.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub block_size: usize,
    pub block_bits: u32,
    pub blocks: u64,
    pub first_data_block: u64,
    pub groups: u32,
    pub blocks_per_group: u32,
    pub inodes_per_group: u32,
    pub inodes: u32,
    pub first_ino: u32,
    pub inode_size: usize,
    pub desc_size: usize,
    pub reserved_gdt: u32,
    pub first_meta_bg: u32,
    pub backup_groups: [u32; 2],
    pub compat: Compat,
    pub incompat: Incompat,
    pub ro_compat: RoCompat,
    /// Why it can only be mounted read-only; empty if it need not be.
    pub ro_because: String,
}

fn invalid(why: impl Into<String>) -> Refused {
    Refused::new(Errno::EINVAL, why)
}

impl Geometry {
    /// Reads and checks the superblock. `device_bytes` is the size of the disk.
    pub fn new(sb: &SuperBlock, device_bytes: u64) -> Result<Geometry, Refused> {
        if sb.magic.get() != MAGIC {
            return Err(invalid("not an ext4 file system (no magic number)"));
        }
        let incompat = Incompat::from_bits_retain(sb.feature_incompat.get());
        let ro_compat = RoCompat::from_bits_retain(sb.feature_ro_compat.get());
        let unknown = unknown_incompat(incompat);
        if !unknown.is_empty() {
            return Err(invalid(format!("unsupported features: {unknown}")));
        }
        if sb.rev_level.get() == 0 {
            return Err(invalid("revision 0 of ext2 is not supported"));
        }
        if ro_compat.contains(RoCompat::METADATA_CSUM) {
            if sb.checksum_type != 1 {
                return Err(invalid(format!("unknown checksum type {}", sb.checksum_type)));
            }
            if sb.compute_checksum() != sb.checksum.get() {
                return Err(Refused::new(Errno::EUCLEAN, "the superblock's checksum is wrong"));
            }
        }
        if sb.log_block_size.get() > 2 {
            return Err(invalid("blocks are larger than a page (4096 bytes), or their size is impossible"));
        }
        let block_bits = 10 + sb.log_block_size.get();
        let block_size = 1usize << block_bits;
        let wide = incompat.contains(Incompat::BITS64);
        let hi = |n: u32| if wide { n } else { 0 };
        let blocks = join(sb.blocks_count_lo.get(), hi(sb.blocks_count_hi.get()));
        let desc_size = if wide { usize::from(sb.desc_size.get()) } else { group::SHORT };
        let mut ro_because = unknown_ro(ro_compat);
        if !ro_because.is_empty() {
            ro_because.insert_str(0, "features that may only be read: ");
        } else if !incompat.contains(Incompat::EXTENTS) {
            ro_because.push_str("files are not mapped by extents");
        }
        let g = Geometry {
            block_size,
            block_bits,
            blocks,
            first_data_block: u64::from(sb.first_data_block.get()),
            groups: 0,
            blocks_per_group: sb.blocks_per_group.get(),
            inodes_per_group: sb.inodes_per_group.get(),
            inodes: sb.inodes_count.get(),
            first_ino: sb.first_ino.get(),
            inode_size: usize::from(sb.inode_size.get()),
            desc_size,
            reserved_gdt: u32::from(sb.reserved_gdt_blocks.get()),
            first_meta_bg: sb.first_meta_bg.get(),
            backup_groups: [sb.backup_bgs[0].get(), sb.backup_bgs[1].get()],
            compat: Compat::from_bits_retain(sb.feature_compat.get()),
            incompat,
            ro_compat,
            ro_because,
        };
        g.checked(sb, device_bytes)
    }

    fn checked(mut self, sb: &SuperBlock, device_bytes: u64) -> Result<Geometry, Refused> {
        let bits = 8 * self.block_size as u64;
        let bigalloc = self.ro_compat.bits() & 0x200 != 0;
        if sb.log_cluster_size != sb.log_block_size && !bigalloc {
            return Err(invalid("clusters and blocks differ in size, without bigalloc"));
        }
        let bpg = u64::from(self.blocks_per_group);
        let most = if bigalloc {
            bits << (sb.log_cluster_size.get().saturating_sub(sb.log_block_size.get())).min(20)
        } else {
            bits
        };
        if bpg == 0 || bpg % 8 != 0 || bpg > most {
            return Err(invalid(format!("impossible number of blocks in a group: {bpg}")));
        }
        if !self.inode_size.is_power_of_two() || self.inode_size < 128 || self.inode_size > self.block_size {
            return Err(invalid(format!("impossible inode size: {}", self.inode_size)));
        }
        let ipg = u64::from(self.inodes_per_group);
        if ipg == 0 || ipg > bits || ipg % (self.block_size / self.inode_size) as u64 != 0 {
            return Err(invalid(format!("impossible number of inodes in a group: {ipg}")));
        }
        if !self.desc_size.is_power_of_two() || self.desc_size < group::SHORT || self.desc_size > self.block_size {
            return Err(invalid(format!("impossible size of group descriptors: {}", self.desc_size)));
        }
        if self.has64() && self.desc_size < group::SIZE {
            return Err(invalid("group descriptors too short for 64bit"));
        }
        let first = u64::from(self.block_size == 1024);
        if self.first_data_block != first && !bigalloc {
            return Err(invalid(format!("impossible first block: {}", self.first_data_block)));
        }
        if self.blocks <= self.first_data_block || self.blocks >= 1 << 48 {
            return Err(invalid(format!("impossible number of blocks: {}", self.blocks)));
        }
        if self.blocks > device_bytes >> self.block_bits {
            return Err(invalid(format!(
                "the file system has {} blocks, the disk only {}",
                self.blocks,
                device_bytes >> self.block_bits
            )));
        }
        let groups = (self.blocks - self.first_data_block).div_ceil(bpg);
        if groups > u64::from(u32::MAX) || groups * ipg != u64::from(self.inodes) {
            return Err(invalid(format!("{} inodes do not make {groups} groups of {ipg}", self.inodes)));
        }
        self.groups = groups as u32;
        if self.first_ino < 11 || self.first_ino > self.inodes {
            return Err(invalid(format!("impossible first inode: {}", self.first_ino)));
        }
        if self.reserved_gdt as usize > self.block_size / 4 {
            return Err(invalid(format!("too many blocks reserved for descriptors: {}", self.reserved_gdt)));
        }
        let gdt = u64::from(self.gdt_blocks());
        if u64::from(self.first_meta_bg) > gdt || self.first_data_block + 1 + gdt > self.blocks {
            return Err(invalid("the group descriptors do not fit"));
        }
        if self.metadata_csum() && self.ro_compat.contains(RoCompat::GDT_CSUM) {
            return Err(invalid("metadata_csum and uninit_bg together"));
        }
        Ok(self)
    }

    pub fn has64(&self) -> bool {
        self.incompat.contains(Incompat::BITS64)
    }

    pub fn metadata_csum(&self) -> bool {
        self.ro_compat.contains(RoCompat::METADATA_CSUM)
    }

    /// Whether groups may be uninitialised and descriptors carry checksums.
    pub fn group_csum(&self) -> bool {
        self.ro_compat.intersects(RoCompat::METADATA_CSUM | RoCompat::GDT_CSUM)
    }

    pub fn desc_per_block(&self) -> u32 {
        (self.block_size / self.desc_size) as u32
    }

    /// Blocks of the group descriptor table.
    pub fn gdt_blocks(&self) -> u32 {
        self.groups_or_all().div_ceil(self.desc_per_block())
    }

    fn groups_or_all(&self) -> u32 {
        if self.groups > 0 {
            return self.groups;
        }
        (self.blocks - self.first_data_block).div_ceil(u64::from(self.blocks_per_group)).min(u64::from(u32::MAX)) as u32
    }

    fn meta_bg(&self, gdt_block: u32) -> bool {
        self.incompat.contains(Incompat::META_BG) && gdt_block >= self.first_meta_bg
    }

    /// Where block `i` of the descriptor table lies.
    pub fn gdt_block(&self, i: u32) -> u64 {
        if self.meta_bg(i) {
            let group = i * self.desc_per_block();
            self.group_start(group) + u64::from(self.has_super(group))
        } else {
            self.first_data_block + 1 + u64::from(i)
        }
    }

    /// The first block of a group.
    pub fn group_start(&self, group: u32) -> u64 {
        self.first_data_block + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// The number of blocks in a group: the last may be short.
    pub fn group_len(&self, group: u32) -> u32 {
        (self.blocks - self.group_start(group)).min(u64::from(self.blocks_per_group)) as u32
    }

    /// The group of a block, and its place in it.
    pub fn split_block(&self, block: u64) -> (u32, u32) {
        let n = block - self.first_data_block.min(block);
        ((n / u64::from(self.blocks_per_group)) as u32, (n % u64::from(self.blocks_per_group)) as u32)
    }

    /// The group of an inode, and its place in it.
    pub fn split_ino(&self, ino: u32) -> (u32, u32) {
        ((ino - 1) / self.inodes_per_group, (ino - 1) % self.inodes_per_group)
    }

    /// Whether the run of blocks lies within the file system, behind the superblock.
    pub fn valid_run(&self, start: u64, len: u32) -> bool {
        start > self.first_data_block && start.checked_add(u64::from(len)).is_some_and(|end| end <= self.blocks)
    }

    /// Whether a group holds a copy of the superblock.
    pub fn has_super(&self, group: u32) -> bool {
        let power = |base: u32| {
            let mut n = base;
            while n < group {
                n = n.saturating_mul(base);
            }
            n == group
        };
        if group == 0 {
            return true;
        }
        if self.compat.contains(Compat::SPARSE_SUPER2) {
            return self.backup_groups.contains(&group);
        }
        group == 1 || !self.ro_compat.contains(RoCompat::SPARSE_SUPER) || power(3) || power(5) || power(7)
    }

    /// How many blocks at the start of a group hold superblock and descriptors.
    pub fn base_meta(&self, group: u32) -> u32 {
        let sup = u32::from(self.has_super(group));
        let dpb = self.desc_per_block();
        if self.meta_bg(group / dpb) {
            let at = group % dpb;
            sup + u32::from(at == 0 || at == 1 || at == dpb - 1)
        } else if sup == 1 {
            let table = if self.incompat.contains(Incompat::META_BG) { self.first_meta_bg } else { self.gdt_blocks() };
            1 + table + self.reserved_gdt
        } else {
            0
        }
    }

    /// Inode table blocks in a group.
    pub fn table_blocks(&self) -> u32 {
        (self.inodes_per_group as usize * self.inode_size / self.block_size) as u32
    }
}
