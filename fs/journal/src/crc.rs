//! CRC-32C (Castagnoli, reflected), the journal's checksum: the raw update step, with no inversion before or after. The
//! format begins with all ones where it wants that.

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
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(!crc32_be(!0, b"123456789"), 0xfc89_1918);
        let long: Vec<u8> = (0..=255).collect();
        assert_eq!(crc32c(crc32c(!0, &long[..13]), &long[13..]), crc32c(!0, &long));
    }
}
