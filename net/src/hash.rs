//! A keyed hash for tables whose keys strangers choose, and for SYN cookies.

/// Two secret words. Folded multiplication: fast, and unpredictable to who does not know the words and sees no hashes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key(pub u64, pub u64);

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

impl Key {
    /// The hash of `words`.
    pub fn hash(&self, words: &[u64]) -> u64 {
        let mut h = self.0;
        for &w in words {
            h = fold(h ^ w, self.1 | 1).rotate_left(23) ^ self.0;
        }
        fold(h, 0x9e37_79b9_7f4a_7c15 ^ self.1)
    }
}

/// For `hashbrown` maps.
impl core::hash::BuildHasher for Key {
    type Hasher = Hasher;
    fn build_hasher(&self) -> Hasher {
        Hasher { key: *self, state: self.0 }
    }
}

pub(crate) struct Hasher {
    key: Key,
    state: u64,
}

impl core::hash::Hasher for Hasher {
    fn finish(&self) -> u64 {
        fold(self.state, 0x9e37_79b9_7f4a_7c15 ^ self.key.1)
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut w = [0; 8];
            w[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(w));
        }
    }
    fn write_u8(&mut self, v: u8) {
        self.write_u64(v.into());
    }
    fn write_u16(&mut self, v: u16) {
        self.write_u64(v.into());
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(v.into());
    }
    fn write_usize(&mut self, v: usize) {
        self.write_u64(v as u64);
    }
    fn write_u64(&mut self, v: u64) {
        self.state = fold(self.state ^ v, self.key.1 | 1).rotate_left(23) ^ self.key.0;
    }
}
