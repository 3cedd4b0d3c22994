//! The hashes by which directories are indexed.
//!
//! Three functions (legacy, half MD4, TEA), each in two variants, because the first writers of the format added plain
//! `char`s, which are signed on some machines. A hash is even: its lowest bit marks, in an index, that entries with the
//! same hash continue in the next block.

/// The largest hash plus two: readdir's end mark in Linux, which no name may hash to.
const END: u32 = 0x7fff_ffff << 1;

/// Which function, as the superblock and the index root number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub u8);

/// What names are hashed with.
#[derive(Clone, Copy, Debug)]
pub struct Hasher {
    /// The file system's seed; all zero means the functions' own.
    pub seed: [u32; 4],
    /// Whether bytes count as unsigned.
    pub unsigned: bool,
}

impl Hasher {
    /// The hash of `name` and its minor hash; `None` for versions that are not known.
    pub fn hash(&self, version: Version, name: &[u8]) -> Option<(u32, u32)> {
        let (function, unsigned) = match version.0 {
            v @ 0..=2 => (v, self.unsigned),
            v @ 3..=5 => (v - 3, true),
            _ => return None,
        };
        let mut buf = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        if self.seed != [0; 4] {
            buf = self.seed;
        }
        let (hash, minor) = match function {
            0 => (legacy(name, unsigned), 0),
            1 => {
                for part in name.chunks(32).enumerate() {
                    let rest = &name[part.0 * 32..];
                    half_md4(&mut buf, &words::<8>(rest, unsigned));
                }
                (buf[1], buf[2])
            }
            _ => {
                for part in name.chunks(16).enumerate() {
                    let rest = &name[part.0 * 16..];
                    tea(&mut buf, &words::<4>(rest, unsigned));
                }
                (buf[0], buf[1])
            }
        };
        let hash = hash & !1;
        Some((if hash == END { END - 2 } else { hash }, minor))
    }
}

fn value(byte: u8, unsigned: bool) -> u32 {
    if unsigned { u32::from(byte) } else { byte as i8 as u32 }
}

fn legacy(name: &[u8], unsigned: bool) -> u32 {
    let (mut h0, mut h1) = (0x12a3_fe2du32, 0x37ab_e8f9u32);
    for &b in name {
        let mut h = h1.wrapping_add(h0 ^ value(b, unsigned).wrapping_mul(7_152_373));
        if h & 0x8000_0000 != 0 {
            h = h.wrapping_sub(0x7fff_ffff);
        }
        h1 = h0;
        h0 = h;
    }
    h0 << 1
}

/// The first `4 * N` bytes of `text` as words, filled up with a pattern of its whole length.
fn words<const N: usize>(text: &[u8], unsigned: bool) -> [u32; N] {
    let len = text.len() as u32;
    let pad = len | (len << 8);
    let pad = pad | (pad << 16);
    let mut out = [pad; N];
    for (word, four) in out.iter_mut().zip(text.chunks(4)) {
        for &b in four {
            *word = value(b, unsigned).wrapping_add(*word << 8);
        }
    }
    out
}

fn tea(buf: &mut [u32; 4], input: &[u32; 4]) {
    let (mut b0, mut b1, mut sum) = (buf[0], buf[1], 0u32);
    let [a, b, c, d] = *input;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        b0 = b0.wrapping_add((b1 << 4).wrapping_add(a) ^ b1.wrapping_add(sum) ^ (b1 >> 5).wrapping_add(b));
        b1 = b1.wrapping_add((b0 << 4).wrapping_add(c) ^ b0.wrapping_add(sum) ^ (b0 >> 5).wrapping_add(d));
    }
    buf[0] = buf[0].wrapping_add(b0);
    buf[1] = buf[1].wrapping_add(b1);
}

fn half_md4(buf: &mut [u32; 4], input: &[u32; 8]) {
    const ORDER: [[usize; 8]; 3] = [[0, 1, 2, 3, 4, 5, 6, 7], [1, 3, 5, 7, 0, 2, 4, 6], [3, 7, 2, 6, 1, 5, 0, 4]];
    const SHIFT: [[u32; 4]; 3] = [[3, 7, 11, 19], [3, 5, 9, 13], [3, 9, 11, 15]];
    const ADD: [u32; 3] = [0, 0x5a82_7999, 0x6ed9_eba1];
    let mut s = *buf;
    for round in 0..3 {
        for step in 0..8 {
            // The four words change roles from step to step: a, d, c, b.
            let at = (4 - step % 4) % 4;
            let (x, y, z) = (s[(at + 1) % 4], s[(at + 2) % 4], s[(at + 3) % 4]);
            let mixed = match round {
                0 => z ^ (x & (y ^ z)),
                1 => (x & y).wrapping_add((x ^ y) & z),
                _ => x ^ y ^ z,
            };
            let sum = s[at].wrapping_add(mixed).wrapping_add(input[ORDER[round][step]]).wrapping_add(ADD[round]);
            s[at] = sum.rotate_left(SHIFT[round][step % 4]);
        }
    }
    for (b, w) in buf.iter_mut().zip(s) {
        *b = b.wrapping_add(w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from debugfs' `dx_hash`.
    #[test]
    fn as_e2fsprogs_computes_them() {
        let long = b"somewhat_long_name_of_a_file_more_than_32";
        let plain = Hasher { seed: [0; 4], unsigned: false };
        assert_eq!(plain.hash(Version(1), b"hello"), Some((0x1746_da32, 0x4200_13b5)));
        assert_eq!(plain.hash(Version(1), long), Some((0x7508_a64c, 0x3dac_1bb1)));
        assert_eq!(plain.hash(Version(0), b"hello"), Some((0x3225_2546, 0)));
        let seed = [0x0403_0201, 0x0807_0605, 0x0c0b_0a09, 0x100f_0e0d];
        assert_eq!(Hasher { seed, unsigned: false }.hash(Version(2), long), Some((0x985c_50fe, 0x9046_4130)));
        assert_eq!(plain.hash(Version(9), b"x"), None);
        assert_ne!(plain.hash(Version(1), b"\xe4"), plain.hash(Version(4), b"\xe4"));
    }
}
