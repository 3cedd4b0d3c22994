//! CRC-32 as gzip uses it (RFC 1952, section 8; the polynomial of IEEE 802.3, reflected).

/// Continues a checksum over `data`; start with 0.
pub(crate) fn crc32(crc: u32, data: &[u8]) -> u32 {
    !update(!crc, data)
}

/// The CPU's own instructions, where the target is known to have them.
#[cfg(all(target_arch = "aarch64", target_feature = "crc"))]
fn update(mut crc: u32, data: &[u8]) -> u32 {
    use core::arch::aarch64::{__crc32b, __crc32d};
    let (words, tail) = data.as_chunks::<8>();
    for word in words {
        crc = __crc32d(crc, u64::from_le_bytes(*word));
    }
    tail.iter().fold(crc, |crc, byte| __crc32b(crc, *byte))
}

#[cfg(not(all(target_arch = "aarch64", target_feature = "crc")))]
fn update(crc: u32, data: &[u8]) -> u32 {
    data.iter().fold(crc, |crc, byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

#[cfg(not(all(target_arch = "aarch64", target_feature = "crc")))]
static TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::crc32;

    #[test]
    fn the_check_value_of_the_standard_comes_out() {
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(crc32(0, b"1234"), b"56789"), 0xcbf4_3926);
        assert_eq!(crc32(0, b""), 0);
    }
}
