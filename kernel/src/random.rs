//! The kernel's random number generator: ChaCha20 with fast key erasure, one state per CPU, seeded from all that the
//! hardware offers (RNDR, the loader's seed, the counter's jitter; virtio-rng adds when its driver runs).
//!
//! Each refill makes 256 bytes of output from the key; the first 32 become the next key at once, so what was handed out
//! cannot be found from the state afterwards (fast key erasure, D. J. Bernstein 2017). Each state is its CPU's own, under
//! an interrupt-safe lock because threads migrate and interrupts may ask too.

use crate::arch::percpu::{self, MAX_CPUS};
use sync::{IrqLock, LockClass};

const OUTPUT: usize = 256;

static CLASS: LockClass = LockClass::new("random", sync::rank::CONSOLE - 7);

struct State {
    key: [u32; 8],
    buffer: [u8; OUTPUT],
    /// Bytes of `buffer` not yet handed out are those from here.
    at: usize,
}

static STATES: [IrqLock<State>; MAX_CPUS] =
    [const { IrqLock::new(&CLASS, State { key: [0; 8], buffer: [0; OUTPUT], at: OUTPUT }) }; MAX_CPUS];

fn quarter(s: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    s[a] = s[a].wrapping_add(s[b]);
    s[d] = (s[d] ^ s[a]).rotate_left(16);
    s[c] = s[c].wrapping_add(s[d]);
    s[b] = (s[b] ^ s[c]).rotate_left(12);
    s[a] = s[a].wrapping_add(s[b]);
    s[d] = (s[d] ^ s[a]).rotate_left(8);
    s[c] = s[c].wrapping_add(s[d]);
    s[b] = (s[b] ^ s[c]).rotate_left(7);
}

/// One ChaCha20 block (RFC 8439, 2.3) with counter `counter` and a zero nonce.
fn block(key: &[u32; 8], counter: u32) -> [u32; 16] {
    let mut initial = [0u32; 16];
    initial[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    initial[4..12].copy_from_slice(key);
    initial[12] = counter;
    let mut s = initial;
    for _ in 0..10 {
        quarter(&mut s, 0, 4, 8, 12);
        quarter(&mut s, 1, 5, 9, 13);
        quarter(&mut s, 2, 6, 10, 14);
        quarter(&mut s, 3, 7, 11, 15);
        quarter(&mut s, 0, 5, 10, 15);
        quarter(&mut s, 1, 6, 11, 12);
        quarter(&mut s, 2, 7, 8, 13);
        quarter(&mut s, 3, 4, 9, 14);
    }
    for (x, i) in s.iter_mut().zip(initial) {
        *x = x.wrapping_add(i);
    }
    s
}

impl State {
    fn refill(&mut self) {
        for (i, chunk) in self.buffer.chunks_exact_mut(64).enumerate() {
            for (bytes, word) in chunk.chunks_exact_mut(4).zip(block(&self.key, i as u32)) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        for (k, bytes) in self.key.iter_mut().zip(self.buffer.chunks_exact(4)) {
            *k = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        self.buffer[..32].fill(0);
        self.at = 32;
    }

    fn take(&mut self, out: &mut [u8]) {
        for b in out {
            if self.at == OUTPUT {
                self.refill();
            }
            *b = core::mem::take(&mut self.buffer[self.at]);
            self.at += 1;
        }
    }

    fn stir(&mut self, words: [u64; 4]) {
        for (i, w) in words.into_iter().enumerate() {
            self.key[2 * i] ^= w as u32;
            self.key[2 * i + 1] ^= (w >> 32) as u32;
        }
        self.refill();
    }
}

/// Adds entropy to every CPU's state. `seed` may be of any length and quality.
pub fn add_entropy(seed: &[u8]) {
    for (cpu, state) in STATES.iter().enumerate().take(percpu::listed()) {
        let mut words = [0u64; 4];
        for (i, &b) in seed.iter().enumerate() {
            words[i / 8 % 4] = words[i / 8 % 4].rotate_left(9) ^ (b as u64) << (i % 8 * 8);
        }
        words[0] ^= (cpu as u64) << 56 ^ crate::arch::time::count();
        for w in &mut words {
            *w ^= crate::arch::cpu::rndr().unwrap_or(0);
        }
        state.lock().stir(words);
    }
}

/// Fills `out`. Any context.
pub fn fill(out: &mut [u8]) {
    // The index may be stale after a migration: the lock makes any state right to use.
    let cpu = percpu::id();
    STATES[cpu].lock().take(out);
}

/// A random number.
pub fn next_u64() -> u64 {
    let mut b = [0; 8];
    fill(&mut b);
    u64::from_le_bytes(b)
}
