//! The feature words of the superblock: what a driver must know to mount, to write, or merely may know.

use alloc::string::String;
use bitflags::bitflags;

bitflags! {
    /// May be ignored by who does not know them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Compat: u32 {
        /// There is a journal.
        const HAS_JOURNAL = 0x4;
        /// Extended attributes.
        const EXT_ATTR = 0x8;
        /// Blocks are kept for a growing group table.
        const RESIZE_INODE = 0x10;
        /// Directories have hash indexes.
        const DIR_INDEX = 0x20;
        /// Backup superblocks in two groups only.
        const SPARSE_SUPER2 = 0x200;
        /// There may be a file of orphans.
        const ORPHAN_FILE = 0x1000;
        const _ = !0;
    }

    /// Must be known to mount at all.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompat: u32 {
        /// Directory entries hold types.
        const FILETYPE = 0x2;
        /// The journal must be replayed.
        const RECOVER = 0x4;
        /// Group descriptors are spread over meta groups.
        const META_BG = 0x10;
        /// Files are mapped by extents.
        const EXTENTS = 0x40;
        /// Block numbers of 48 bits and long group descriptors.
        const BITS64 = 0x80;
        /// Bitmaps and inode tables of groups lie together.
        const FLEX_BG = 0x200;
        /// The seed of checksums is kept apart from the UUID.
        const CSUM_SEED = 0x2000;
        /// Indexes of three levels, directories over 2 GiB.
        const LARGEDIR = 0x4000;
        const _ = !0;
    }

    /// Must be known to write.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RoCompat: u32 {
        /// Few backup superblocks.
        const SPARSE_SUPER = 0x1;
        /// Files over 2 GiB.
        const LARGE_FILE = 0x2;
        /// Files over 2 TiB, counted in blocks.
        const HUGE_FILE = 0x8;
        /// Checksums of group descriptors by CRC-16, lazily initialised groups.
        const GDT_CSUM = 0x10;
        /// Directories with more than 65000 subdirectories.
        const DIR_NLINK = 0x20;
        /// Inodes reserve room for more fields.
        const EXTRA_ISIZE = 0x40;
        /// Checksums of all metadata by CRC-32C.
        const METADATA_CSUM = 0x400;
        /// The file of orphans holds some.
        const ORPHAN_PRESENT = 0x10000;
        const _ = !0;
    }
}

impl Incompat {
    /// What this driver knows.
    pub const KNOWN: Incompat = Incompat::FILETYPE
        .union(Incompat::RECOVER)
        .union(Incompat::META_BG)
        .union(Incompat::EXTENTS)
        .union(Incompat::BITS64)
        .union(Incompat::FLEX_BG)
        .union(Incompat::CSUM_SEED)
        .union(Incompat::LARGEDIR);
}

impl RoCompat {
    /// What this driver knows.
    pub const KNOWN: RoCompat = RoCompat::SPARSE_SUPER
        .union(RoCompat::LARGE_FILE)
        .union(RoCompat::HUGE_FILE)
        .union(RoCompat::GDT_CSUM)
        .union(RoCompat::DIR_NLINK)
        .union(RoCompat::EXTRA_ISIZE)
        .union(RoCompat::METADATA_CSUM)
        .union(RoCompat::ORPHAN_PRESENT);
}

const INCOMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "compression"),
    (0x8, "journal_dev"),
    (0x100, "mmp"),
    (0x400, "ea_inode"),
    (0x1000, "dirdata"),
    (0x8000, "inline_data"),
    (0x10000, "encrypt"),
    (0x20000, "casefold"),
];

const RO_NAMES: &[(u32, &str)] = &[
    (0x4, "btree_dir"),
    (0x80, "snapshot"),
    (0x100, "quota"),
    (0x200, "bigalloc"),
    (0x800, "replica"),
    (0x1000, "read-only"),
    (0x2000, "project"),
    (0x4000, "shared_blocks"),
    (0x8000, "verity"),
];

fn names(mut bits: u32, table: &[(u32, &str)]) -> String {
    let mut out = String::new();
    while bits != 0 {
        let bit = bits & bits.wrapping_neg();
        bits ^= bit;
        if !out.is_empty() {
            out.push(' ');
        }
        match table.iter().find(|(b, _)| *b == bit) {
            Some((_, name)) => out.push_str(name),
            None => out.push_str(&alloc::format!("feature {bit:#x}")),
        }
    }
    out
}

/// The names of those incompatible features that are not known; empty if there is none.
pub fn unknown_incompat(f: Incompat) -> String {
    names(f.difference(Incompat::KNOWN).bits(), INCOMPAT_NAMES)
}

/// The names of those read-only compatible features that are not known; empty if there is none.
pub fn unknown_ro(f: RoCompat) -> String {
    names(f.difference(RoCompat::KNOWN).bits(), RO_NAMES)
}
