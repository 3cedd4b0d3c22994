//! CRC-32 as gzip uses it (RFC 1952, section 8; the polynomial of IEEE 802.3, reflected), eight bytes at a time: table `k`
//! holds what a byte does to the checksum with `k` zero bytes behind it. The CPU's own instructions would be faster and
//! need `unsafe` to call (under emulation they are about as fast: each is a call of the emulator's own table look-ups).

/// Continues a checksum over `data`; start with 0.
pub(crate) fn crc32(crc: u32, data: &[u8]) -> u32 {
    let (words, tail) = data.as_chunks::<8>();
    let crc = words.iter().fold(!crc, |crc, word| {
        let [a, b, c, d, e, f, g, h] = (u64::from(crc) ^ u64::from_le_bytes(*word)).to_le_bytes();
        TABLES[7][a as usize]
            ^ TABLES[6][b as usize]
            ^ TABLES[5][c as usize]
            ^ TABLES[4][d as usize]
            ^ TABLES[3][e as usize]
            ^ TABLES[2][f as usize]
            ^ TABLES[1][g as usize]
            ^ TABLES[0][h as usize]
    });
    !tail.iter().fold(crc, |crc, byte| step(crc, *byte))
}

fn step(crc: u32, byte: u8) -> u32 {
    crc >> 8 ^ TABLES[0][(crc as u8 ^ byte) as usize]
}

static TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    i = 0;
    while i < 256 {
        let mut k = 1;
        while k < 8 {
            let before: u32 = tables[k - 1][i];
            tables[k][i] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            k += 1;
        }
        i += 1;
    }
    tables
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
