//! CRC-32C (Castagnoli, reflected), the checksum of ext4's metadata and of its journal: the raw update step, with no inversion
//! before or after. The formats begin with all ones where they want that.
//!
//! A build for CPUs that have the instructions (`+crc`, as the kernel's) uses them: eight bytes each. Others, the host's
//! tests among them, use tables, eight bytes a step. The choice is made when compiling: it costs nothing, and every CPU of
//! the Armv8.1 baseline has them.
//!
//! Source: Arm ARM, C6.2 (CRC32CX, CRC32CB); RFC 3720, appendix B.4, for the known values.
#![no_std]

/// Continues the CRC-32C `crc` over `data`. Context: any.
#[cfg(all(target_arch = "aarch64", target_feature = "crc"))]
#[inline]
pub fn crc32c(crc: u32, data: &[u8]) -> u32 {
    // SAFETY: the build requires the feature of every CPU that it runs on.
    unsafe { by_instructions(crc, data) }
}

/// Continues the CRC-32C `crc` over `data`. Context: any.
#[cfg(not(all(target_arch = "aarch64", target_feature = "crc")))]
pub fn crc32c(crc: u32, data: &[u8]) -> u32 {
    by_tables(crc, data)
}

#[cfg(all(target_arch = "aarch64", target_feature = "crc"))]
#[target_feature(enable = "crc")]
fn by_instructions(mut crc: u32, data: &[u8]) -> u32 {
    use core::arch::aarch64::{__crc32cb, __crc32cd};
    let (words, rest) = data.as_chunks::<8>();
    for w in words {
        crc = __crc32cd(crc, u64::from_le_bytes(*w));
    }
    for &b in rest {
        crc = __crc32cb(crc, b);
    }
    crc
}

#[cfg(not(all(target_arch = "aarch64", target_feature = "crc")))]
const fn tables() -> [[u32; 256]; 8] {
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

#[cfg(not(all(target_arch = "aarch64", target_feature = "crc")))]
static TABLES: [[u32; 256]; 8] = tables();

#[cfg(not(all(target_arch = "aarch64", target_feature = "crc")))]
fn by_tables(mut crc: u32, data: &[u8]) -> u32 {
    let t = &TABLES;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(!0, &[0xff; 32]), 0x62a8_ab43);
        let mut long = [0u8; 256];
        for (i, b) in long.iter_mut().enumerate() {
            *b = i as u8;
        }
        for cut in [0, 1, 7, 8, 13, 255, 256] {
            assert_eq!(crc32c(crc32c(!0, &long[..cut]), &long[cut..]), crc32c(!0, &long), "{cut}");
        }
    }
}
