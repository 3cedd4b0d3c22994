//! The structures as they lie on the disk: plain little-endian bytes, any content of which is a valid value. What a value
//! means, and whether it is possible, is checked where it is taken up.

pub mod dir;
pub mod extent;
pub mod features;
pub mod group;
pub mod inode;
pub mod superblock;
pub mod xattr;

/// A 64-bit number of two halves.
pub(crate) fn join(lo: u32, hi: u32) -> u64 {
    u64::from(lo) | (u64::from(hi) << 32)
}

/// `len` bytes at `at`, as a slice; `None` when they do not lie within.
pub(crate) fn part(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?)
}

/// The 16-bit number at `at`; 0 beyond the end.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    match part(bytes, at, 2) {
        Some(&[a, b]) => u16::from_le_bytes([a, b]),
        _ => 0,
    }
}

/// The 32-bit number at `at`; 0 beyond the end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    match part(bytes, at, 4) {
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Stores a 16-bit number at `at`; nothing beyond the end.
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(d) = bytes.get_mut(at..at + 2) {
        d.copy_from_slice(&value.to_le_bytes());
    }
}

/// Stores a 32-bit number at `at`; nothing beyond the end.
pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(d) = bytes.get_mut(at..at + 4) {
        d.copy_from_slice(&value.to_le_bytes());
    }
}
