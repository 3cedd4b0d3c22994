//! Sets of CPUs.
//!
//! A fixed 256-bit set: `sched_setaffinity(2)` masks of any shorter length fit, a membership test is one load, and no
//! allocation is ever needed. [`AtomicCpuMask`] is the same set for lock-free readers; its words are read one by one, so
//! a reader that races with a writer may see a mixture. Readers use it as a hint or hold the lock that guards it.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The largest number of CPUs that a mask can name.
pub const MAX_CPUS: usize = 256;
const WORDS: usize = MAX_CPUS / 64;

/// The number of a CPU, `0..MAX_CPUS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(u16);

impl CpuId {
    /// The boot CPU.
    pub const BOOT: Self = Self(0);

    /// CPU `n`, or `None` if no mask can name it.
    #[inline]
    pub const fn new(n: usize) -> Option<Self> {
        if n < MAX_CPUS { Some(Self(n as u16)) } else { None }
    }

    /// The number as an index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CpuMask {
    words: [u64; WORDS],
}

impl CpuMask {
    /// The empty set.
    pub const EMPTY: Self = Self { words: [0; WORDS] };
    /// Every CPU that a mask can name.
    pub const ALL: Self = Self { words: [u64::MAX; WORDS] };

    /// The set of one CPU.
    #[inline]
    pub const fn one(cpu: CpuId) -> Self {
        let mut words = [0; WORDS];
        words[cpu.index() / 64] = 1 << (cpu.index() % 64);
        Self { words }
    }

    /// CPUs `0..n` (all that a mask can name if `n` is larger).
    pub fn first(n: usize) -> Self {
        let mut mask = Self::EMPTY;
        for i in 0..n.min(MAX_CPUS) {
            mask.words[i / 64] |= 1 << (i % 64);
        }
        mask
    }

    /// The set whose bits are `words`, lowest CPU in the lowest bit of the first word.
    #[inline]
    pub const fn from_words(words: [u64; 4]) -> Self {
        Self { words }
    }

    /// The bits, lowest CPU in the lowest bit of the first word: the layout of the affinity system calls.
    #[inline]
    pub const fn words(&self) -> [u64; 4] {
        self.words
    }

    /// Is `cpu` in the set?
    #[inline]
    pub const fn contains(&self, cpu: CpuId) -> bool {
        self.words[cpu.index() / 64] >> (cpu.index() % 64) & 1 != 0
    }

    /// Adds `cpu`.
    #[inline]
    pub const fn insert(&mut self, cpu: CpuId) {
        self.words[cpu.index() / 64] |= 1 << (cpu.index() % 64);
    }

    /// Takes `cpu` out.
    #[inline]
    pub const fn remove(&mut self, cpu: CpuId) {
        self.words[cpu.index() / 64] &= !(1 << (cpu.index() % 64));
    }

    /// Is the set empty?
    #[inline]
    pub const fn is_empty(&self) -> bool {
        (self.words[0] | self.words[1] | self.words[2] | self.words[3]) == 0
    }

    /// How many CPUs are in the set.
    #[inline]
    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// The CPUs in both sets.
    #[inline]
    pub const fn and(&self, other: &Self) -> Self {
        let (a, b) = (self.words, other.words);
        Self { words: [a[0] & b[0], a[1] & b[1], a[2] & b[2], a[3] & b[3]] }
    }

    /// The lowest CPU of the set.
    #[inline]
    pub fn lowest(&self) -> Option<CpuId> {
        self.at_or_after(0)
    }

    /// The first CPU of the set at or after `start`, from there round to the CPUs before it.
    #[inline]
    pub fn first_wrapping(&self, start: usize) -> Option<CpuId> {
        self.at_or_after(start).or_else(|| self.lowest())
    }

    /// The lowest CPU of the set that is not below `start`.
    #[inline]
    fn at_or_after(&self, start: usize) -> Option<CpuId> {
        let mut index = start / 64;
        let mut word = *self.words.get(index)? & (u64::MAX << (start % 64));
        while word == 0 {
            index += 1;
            word = *self.words.get(index)?;
        }
        Some(CpuId((index * 64 + word.trailing_zeros() as usize) as u16))
    }

    /// The CPUs of the set in rising order.
    #[inline]
    pub fn iter(&self) -> Iter {
        self.iter_wrapping(0)
    }

    /// The CPUs of the set in rising order from `start`, then those below `start`.
    #[inline]
    pub fn iter_wrapping(&self, start: usize) -> Iter {
        Iter { left: *self, at: start }
    }
}

impl IntoIterator for &CpuMask {
    type Item = CpuId;
    type IntoIter = Iter;
    fn into_iter(self) -> Iter {
        self.iter()
    }
}

impl FromIterator<CpuId> for CpuMask {
    fn from_iter<I: IntoIterator<Item = CpuId>>(cpus: I) -> Self {
        let mut mask = Self::EMPTY;
        cpus.into_iter().for_each(|cpu| mask.insert(cpu));
        mask
    }
}

/// Walks a [`CpuMask`].
#[derive(Clone, Debug)]
pub struct Iter {
    left: CpuMask,
    at: usize,
}

impl Iterator for Iter {
    type Item = CpuId;
    #[inline]
    fn next(&mut self) -> Option<CpuId> {
        let cpu = self.left.first_wrapping(self.at)?;
        self.left.remove(cpu);
        self.at = cpu.index() + 1;
        Some(cpu)
    }
}

/// A [`CpuMask`] that is read without a lock.
#[derive(Debug)]
pub struct AtomicCpuMask {
    words: [AtomicU64; WORDS],
}

impl AtomicCpuMask {
    /// A set that starts as `mask`.
    pub const fn new(mask: CpuMask) -> Self {
        let w = mask.words;
        Self { words: [AtomicU64::new(w[0]), AtomicU64::new(w[1]), AtomicU64::new(w[2]), AtomicU64::new(w[3])] }
    }

    /// A copy of the set.
    #[inline]
    pub fn load(&self) -> CpuMask {
        let w = &self.words;
        CpuMask { words: [w[0].load(Relaxed), w[1].load(Relaxed), w[2].load(Relaxed), w[3].load(Relaxed)] }
    }

    /// Replaces the set. Concurrent stores must be excluded by the caller.
    pub fn store(&self, mask: &CpuMask) {
        for (slot, word) in self.words.iter().zip(mask.words) {
            slot.store(word, Relaxed);
        }
    }

    /// Is `cpu` in the set?
    #[inline]
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.words[cpu.index() / 64].load(Relaxed) >> (cpu.index() % 64) & 1 != 0
    }

    /// Adds `cpu`; atomic against other adds and removals.
    #[inline]
    pub fn insert(&self, cpu: CpuId) {
        self.words[cpu.index() / 64].fetch_or(1 << (cpu.index() % 64), Relaxed);
    }

    /// Takes `cpu` out and says whether it was in: of several that try, one is told yes.
    #[inline]
    pub fn remove(&self, cpu: CpuId) -> bool {
        let bit = 1 << (cpu.index() % 64);
        self.words[cpu.index() / 64].fetch_and(!bit, Relaxed) & bit != 0
    }
}
