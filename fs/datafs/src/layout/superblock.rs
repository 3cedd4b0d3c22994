//! The superblock: 1024 bytes at offset 1024 (and copies in some groups).

use crate::crc::crc32c;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where it lies, in bytes from the start of the disk.
pub const OFFSET: u64 = 1024;
/// Its length.
pub const SIZE: usize = 1024;
/// `s_magic`
pub const MAGIC: u16 = 0xef53;

/// `s_state`: cleanly unmounted.
pub const STATE_VALID: u16 = 1;
/// `s_state`: errors were seen.
pub const STATE_ERROR: u16 = 2;

/// `s_flags`: names are hashed as unsigned bytes.
pub const FLAG_UNSIGNED_HASH: u32 = 2;

/// The superblock, field by field as `ext4(5)` and the format's documentation name them.
#[allow(missing_docs)]
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SuperBlock {
    pub inodes_count: U32,
    pub blocks_count_lo: U32,
    pub r_blocks_count_lo: U32,
    pub free_blocks_count_lo: U32,
    pub free_inodes_count: U32,
    pub first_data_block: U32,
    pub log_block_size: U32,
    pub log_cluster_size: U32,
    pub blocks_per_group: U32,
    pub clusters_per_group: U32,
    pub inodes_per_group: U32,
    pub mtime: U32,
    pub wtime: U32,
    pub mnt_count: U16,
    pub max_mnt_count: U16,
    pub magic: U16,
    pub state: U16,
    pub errors: U16,
    pub minor_rev_level: U16,
    pub lastcheck: U32,
    pub checkinterval: U32,
    pub creator_os: U32,
    pub rev_level: U32,
    pub def_resuid: U16,
    pub def_resgid: U16,
    pub first_ino: U32,
    pub inode_size: U16,
    pub block_group_nr: U16,
    pub feature_compat: U32,
    pub feature_incompat: U32,
    pub feature_ro_compat: U32,
    pub uuid: [u8; 16],
    pub volume_name: [u8; 16],
    pub last_mounted: [u8; 64],
    pub algorithm_usage_bitmap: U32,
    pub prealloc_blocks: u8,
    pub prealloc_dir_blocks: u8,
    pub reserved_gdt_blocks: U16,
    pub journal_uuid: [u8; 16],
    pub journal_inum: U32,
    pub journal_dev: U32,
    pub last_orphan: U32,
    pub hash_seed: [U32; 4],
    pub def_hash_version: u8,
    pub jnl_backup_type: u8,
    pub desc_size: U16,
    pub default_mount_opts: U32,
    pub first_meta_bg: U32,
    pub mkfs_time: U32,
    pub jnl_blocks: [U32; 17],
    pub blocks_count_hi: U32,
    pub r_blocks_count_hi: U32,
    pub free_blocks_count_hi: U32,
    pub min_extra_isize: U16,
    pub want_extra_isize: U16,
    pub flags: U32,
    pub raid_stride: U16,
    pub mmp_interval: U16,
    pub mmp_block: U64,
    pub raid_stripe_width: U32,
    pub log_groups_per_flex: u8,
    pub checksum_type: u8,
    pub encryption_level: u8,
    pub reserved_pad: u8,
    pub kbytes_written: U64,
    pub snapshot: [U32; 5],
    pub error_count: U32,
    pub first_error_time: U32,
    pub first_error_ino: U32,
    pub first_error_block: U64,
    pub first_error_func: [u8; 32],
    pub first_error_line: U32,
    pub last_error_time: U32,
    pub last_error_ino: U32,
    pub last_error_line: U32,
    pub last_error_block: U64,
    pub last_error_func: [u8; 32],
    pub mount_opts: [u8; 64],
    pub usr_quota_inum: U32,
    pub grp_quota_inum: U32,
    pub overhead_clusters: U32,
    pub backup_bgs: [U32; 2],
    pub encrypt_algos: [u8; 4],
    pub encrypt_pw_salt: [u8; 16],
    pub lpf_ino: U32,
    pub prj_quota_inum: U32,
    pub checksum_seed: U32,
    pub time_hi: [u8; 8],
    pub encoding: U16,
    pub encoding_flags: U16,
    pub orphan_file_inum: U32,
    pub reserved: [U32; 94],
    pub checksum: U32,
}

const _: () = assert!(size_of::<SuperBlock>() == SIZE);

impl SuperBlock {
    /// What its checksum should be (with `metadata_csum`).
    pub fn compute_checksum(&self) -> u32 {
        crc32c(!0, &self.as_bytes()[..SIZE - 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn fields_lie_where_the_format_has_them() {
        assert_eq!(offset_of!(SuperBlock, magic), 0x38);
        assert_eq!(offset_of!(SuperBlock, first_ino), 0x54);
        assert_eq!(offset_of!(SuperBlock, uuid), 0x68);
        assert_eq!(offset_of!(SuperBlock, journal_inum), 0xe0);
        assert_eq!(offset_of!(SuperBlock, last_orphan), 0xe8);
        assert_eq!(offset_of!(SuperBlock, desc_size), 0xfe);
        assert_eq!(offset_of!(SuperBlock, blocks_count_hi), 0x150);
        assert_eq!(offset_of!(SuperBlock, flags), 0x160);
        assert_eq!(offset_of!(SuperBlock, log_groups_per_flex), 0x174);
        assert_eq!(offset_of!(SuperBlock, error_count), 0x194);
        assert_eq!(offset_of!(SuperBlock, mount_opts), 0x200);
        assert_eq!(offset_of!(SuperBlock, checksum_seed), 0x270);
        assert_eq!(offset_of!(SuperBlock, orphan_file_inum), 0x280);
    }
}
