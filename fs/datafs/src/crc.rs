//! The checksums of the format: CRC-32C (Castagnoli, reflected) for metadata, CRC-16 (ARC polynomial) for group
//! descriptors of file systems with `uninit_bg` but without `metadata_csum`.
//!
//! Both are the raw update step: no inversion before or after; the format begins with all ones where it wants that.

const fn table() -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut k = 0;
        while k < 8 {
            c = if c & 1 != 0 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 };
            k += 1;
        }
        t[0][i] = c;
        i += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut i = 0;
        while i < 256 {
            let c = t[n - 1][i];
            t[n][i] = (c >> 8) ^ t[0][(c & 0xff) as usize];
            i += 1;
        }
        n += 1;
    }
    t
}

static TABLE: [[u32; 256]; 8] = table();

/// Continues the CRC-32C `crc` over `data`, eight bytes a step.
pub fn crc32c(mut crc: u32, data: &[u8]) -> u32 {
    let t = &TABLE;
    let (words, rest) = data.as_chunks::<8>();
    for w in words {
        let x = u64::from_le_bytes(*w) ^ u64::from(crc);
        let b = x.to_le_bytes();
        crc = t[7][b[0] as usize]
            ^ t[6][b[1] as usize]
            ^ t[5][b[2] as usize]
            ^ t[4][b[3] as usize]
            ^ t[3][b[4] as usize]
            ^ t[2][b[5] as usize]
            ^ t[1][b[6] as usize]
            ^ t[0][b[7] as usize];
    }
    for &b in rest {
        crc = (crc >> 8) ^ t[0][((crc ^ u32::from(b)) & 0xff) as usize];
    }
    crc
}

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
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
        let long: Vec<u8> = (0..=255).collect();
        let split = crc32c(crc32c(!0, &long[..13]), &long[13..]);
        assert_eq!(split, crc32c(!0, &long));
    }
}
