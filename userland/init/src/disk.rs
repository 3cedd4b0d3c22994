//! The data disk: which disk it is, and whether a disk is empty.
//!
//! A disk with ext4 on it becomes /data. If there is none, the first disk that holds nothing is formatted. To hold nothing
//! means: its first and its last MiB are zeros to the last byte. Every file system, partition table, volume manager and
//! boot loader leaves a mark in one of those; and what has no known mark but is not zero is somebody's data too. Such a
//! disk is never touched, and what was found on it is said.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
/// A smaller disk is not worth a file system (a configuration disk, a seed image).
pub const SMALLEST: u64 = 16 * MIB;

/// What is on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Zeros at both ends.
    Empty,
    /// ext2, ext3 or ext4.
    Ext,
    /// Something with this name.
    Known(&'static str),
    /// Something.
    Unknown,
    /// Too small to be meant.
    Small,
}

/// Marks that are known, by offset: for a name in a message. That a disk is not empty does not depend on them.
const MARKS: &[(usize, &[u8], &str)] = &[
    (0, b"XFSB", "xfs"),
    (0, b"LUKS\xba\xbe", "an encrypted volume"),
    (0, b"hsqs", "squashfs"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0x400, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0x400, b"\x10\x20\xf5\xf2", "f2fs"),
    (512, b"EFI PART", "a partition table"),
    (0x218, b"LVM2 001", "a logical volume"),
    (4086, b"SWAPSPACE2", "swap"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (0x8001, b"CD001", "a CD image"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
];

/// What the first and last MiB of a disk of `size` bytes say.
pub fn classify(size: u64, head: &[u8], tail: &[u8]) -> Content {
    if head.get(0x438..0x43a) == Some(b"\x53\xef") {
        return Content::Ext;
    }
    if let Some((.., name)) = MARKS.iter().find(|(at, mark, _)| head.get(*at..at + mark.len()) == Some(mark)) {
        return Content::Known(name);
    }
    let zeros = |part: &[u8]| part.iter().all(|b| *b == 0);
    if !zeros(head) || !zeros(tail) {
        return Content::Unknown;
    }
    if size < SMALLEST || head.len() < MIB as usize || tail.len() < MIB as usize {
        Content::Small
    } else {
        Content::Empty
    }
}

/// Read both ends of `device` and say what is on it.
pub fn content(device: &Path) -> std::io::Result<Content> {
    let mut file = File::open(device)?;
    let size = file.seek(SeekFrom::End(0))?;
    let mut part = |at: u64| -> std::io::Result<Vec<u8>> {
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        (&mut file).take(MIB).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let head = part(0)?;
    // A mark in the head decides; the tail is read only for a disk that looks empty.
    match classify(size, &head, &vec![0; MIB as usize]) {
        Content::Empty => Ok(classify(size, &head, &part(size.saturating_sub(MIB))?)),
        other => Ok(other),
    }
}

/// Whether `name` in /dev is a disk, and whether it is a whole one.
pub fn disk_name(name: &str) -> Option<bool> {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = name.strip_prefix("nvme") {
        let (controller, rest) = rest.split_once('n')?;
        return match rest.split_once('p') {
            None if digits(controller) && digits(rest) => Some(true),
            Some((n, p)) if digits(controller) && digits(n) && digits(p) => Some(false),
            _ => None,
        };
    }
    let rest = name.strip_prefix("vd").or_else(|| name.strip_prefix("sd"))?;
    let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
    let number = rest.get(letters..).unwrap_or_default();
    match (letters, number) {
        (1 | 2, "") => Some(true),
        (1 | 2, n) if digits(n) => Some(false),
        _ => None,
    }
}

/// Disks and partitions in /dev, in order.
pub fn disks() -> Vec<(PathBuf, bool)> {
    let names = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut found: Vec<(PathBuf, bool)> =
        names.filter_map(|e| Some((e.path(), disk_name(e.file_name().to_str()?)?))).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIG: u64 = 64 * MIB;

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut head = vec![0; MIB as usize];
        head[at..at + bytes.len()].copy_from_slice(bytes);
        head
    }

    #[test]
    fn only_zeros_at_both_ends_are_empty() {
        let zero = vec![0; MIB as usize];
        assert_eq!(classify(BIG, &zero, &zero), Content::Empty);
        assert_eq!(classify(SMALLEST - 1, &zero, &zero), Content::Small);
        assert_eq!(classify(BIG, &zero[..100], &zero), Content::Small);
        for at in [0, 1, 511, 4096, MIB as usize - 1] {
            assert_eq!(classify(BIG, &with(at, b"\x01"), &zero), Content::Unknown, "{at}");
            assert_eq!(classify(BIG, &zero, &with(at, b"\x01")), Content::Unknown, "tail {at}");
        }
        assert_eq!(classify(BIG, &with(0x438, b"\x53\xef"), &zero), Content::Ext);
        for (at, mark, name) in MARKS {
            assert_eq!(classify(BIG, &with(*at, mark), &zero), Content::Known(name));
        }
    }

    #[test]
    fn names_of_disks() {
        for (name, whole) in [("vda", true), ("sdab", true), ("vdb1", false), ("nvme0n1", true), ("nvme10n1p12", false)]
        {
            assert_eq!(disk_name(name), Some(whole), "{name}");
        }
        for name in ["vd", "vda1x", "tty", "nvme0", "nvme0n", "sdabc", "vda1p", "nvme0n1p"] {
            assert_eq!(disk_name(name), None, "{name}");
        }
    }
}
