//! The checksums of the journal: CRC-32C, and the CRC-32 of whole transactions that was before it. Both are the raw update
//! step, with no inversion before or after.

pub use crc32c::crc32c;

/// Continues the CRC-32 (the polynomial of Ethernet, most significant bit first) `crc` over `data`: the sum of whole
/// transactions that journals without `metadata_csum` may have. Only recovery needs it, so it is small and not quick.
pub fn crc32_be(mut crc: u32, data: &[u8]) -> u32 {
    for &b in data {
        crc ^= u32::from(b) << 24;
        for _ in 0..8 {
            crc = if crc >> 31 != 0 { (crc << 1) ^ 0x04c1_1db7 } else { crc << 1 };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(!crc32_be(!0, b"123456789"), 0xfc89_1918);
    }
}
