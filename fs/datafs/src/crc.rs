//! The checksums of the format: CRC-32C (Castagnoli, reflected) for metadata, CRC-16 (ARC polynomial) for group
//! descriptors of file systems with `uninit_bg` but without `metadata_csum`.
//!
//! Both are the raw update step: no inversion before or after; the format begins with all ones where it wants that.

pub use crc32c::crc32c;

/// Continues the CRC-16 `crc` over `data`.
pub fn crc16(mut crc: u16, data: &[u8]) -> u16 {
    for &b in data {
        crc ^= u16::from(b);
        for _ in 0..8 {
            crc = if crc & 1 != 0 { (crc >> 1) ^ 0xa001 } else { crc >> 1 };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
