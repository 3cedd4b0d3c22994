//! The cache of names: (directory, name) to dentry, or to the knowledge that there is none.
//!
//! A fixed number of buckets, each a list that is read without a lock ([`sync::readlist`]), so that CPUs which look up the
//! same names write nothing that they share but the count of references to what they find. An entry holds the full hash,
//! the directory's identity and the name beside the dentry, so a look-up follows no pointer but the right entry's. It never
//! changes: what a name leads to changes by a new entry. Negative entries hold no dentry.
//!
//! The number of entries is bounded: beyond it each insertion moves a clock hand on over a few buckets and drops entries
//! that were not used since its last visit and that nobody else refers to (a directory with cached children is referred to
//! by them, so the cache is emptied from the leaves). That nobody else refers to an entry's dentry must stay so until the
//! entry is out, or one file would have two dentries: the entry is first *closed*, which makes look-ups behave as if there
//! was none, then the look-ups under way are waited for, and then it is looked at again. A look-up that finds nothing asks
//! again under the directory's lock ([`lookup_locked`]), which opens a closed entry.
//!
//! Insertions and removals for a directory happen under that directory's lock and the bucket's.

use crate::dentry::Dentry;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use sync::readlist::{NewNode, ReadList, ReadSection, Retired, read_section, synchronize};
use sync::{LockClass, Once, rank};

static CLASS: LockClass = LockClass::new("dcache bucket", rank::DCACHE);

const BUCKETS: usize = 4096;
/// Entries beyond which old ones are dropped.
const LIMIT: usize = 32768;
/// Entries that are dropped from a bucket at a time.
const GANG: usize = 16;
/// Buckets that one insertion beyond the limit looks at.
const SWEEP: usize = 8;

struct Entry {
    hash: u64,
    parent: u64,
    name: Arc<[u8]>,
    dentry: Option<Arc<Dentry>>,
    used: AtomicBool,
    /// Not 0: it may be on its way out, by the sweep with this number. Written under the bucket's lock.
    closed: AtomicU32,
}

impl Entry {
    #[inline]
    fn is(&self, hash: u64, parent: u64, name: &[u8]) -> bool {
        self.hash == hash && self.parent == parent && *self.name == *name
    }

    fn cached(&self) -> Cached {
        match &self.dentry {
            Some(d) => Cached::Found(d.clone()),
            None => Cached::Absent,
        }
    }
}

type Bucket = ReadList<Entry>;

struct Cache {
    buckets: Box<[Bucket]>,
    seed: u64,
    count: AtomicUsize,
    hand: AtomicUsize,
    /// The number of the last sweep.
    sweep: AtomicU32,
}

static CACHE: Once<Cache> = Once::new();

const K: u64 = 0x9E37_79B9_7F4A_7C15;
const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;
const SLASHES: u64 = 0x2f2f_2f2f_2f2f_2f2f;

fn cache() -> &'static Cache {
    loop {
        if let Some(c) = CACHE.get() {
            return c;
        }
        let buckets = (0..BUCKETS).map(|_| ReadList::new(&CLASS)).collect();
        // A second one at the same time loses and is dropped; then the first is about to be ready.
        drop(CACHE.set(Cache {
            buckets,
            seed: platform::random_u64(),
            count: AtomicUsize::new(0),
            hand: AtomicUsize::new(0),
            sweep: AtomicU32::new(0),
        }));
        platform::relax();
    }
}

/// A component of a path name: its length and its hash in a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hashed {
    pub len: usize,
    hash: u64,
}

#[inline]
fn mix(h: u64, w: u64) -> u64 {
    let x = (h ^ w).wrapping_mul(K);
    x ^ (x >> 29)
}

/// Hashes the component at the start of `text` (up to a slash or the end) as a name in the directory `parent`.
#[inline]
pub(crate) fn hash_component(parent: u64, text: &[u8]) -> Hashed {
    let mut h = cache().seed ^ parent.wrapping_mul(K);
    let mut len = 0;
    let mut words = text.chunks_exact(8);
    for chunk in words.by_ref() {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        let w = u64::from_le_bytes(word);
        let x = w ^ SLASHES;
        let found = x.wrapping_sub(LOW) & !x & HIGH;
        if found != 0 {
            let n = found.trailing_zeros() as usize / 8;
            let last = w & ((1u64 << (8 * n)) - 1);
            len += n;
            return Hashed { len, hash: mix(mix(h, last), len as u64) };
        }
        h = mix(h, w);
        len += 8;
    }
    let mut last = 0u64;
    for (n, &b) in words.remainder().iter().enumerate() {
        if b == b'/' {
            break;
        }
        last |= u64::from(b) << (8 * n);
        len += 1;
    }
    Hashed { len, hash: mix(mix(h, last), len as u64) }
}

fn hash_name(parent: u64, name: &[u8]) -> u64 {
    hash_component(parent, name).hash
}

/// What the cache knows.
#[derive(Debug)]
pub(crate) enum Cached {
    /// This dentry.
    Found(Arc<Dentry>),
    /// There is no such name.
    Absent,
    /// Nothing.
    Unknown,
}

/// There is no such name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Absent;

impl Cache {
    #[inline]
    fn bucket(&self, hash: u64) -> &Bucket {
        &self.buckets[(hash >> 40) as usize % BUCKETS]
    }

    fn sweep(&self) {
        for _ in 0..SWEEP {
            let at = self.hand.fetch_add(1, Ordering::Relaxed) % BUCKETS;
            self.sweep_bucket(at, false);
        }
    }

    /// Drops unused entries of one bucket; with `all`, also those used of late.
    fn sweep_bucket(&self, at: usize, all: bool) -> usize {
        // No allocation: this is how memory is found when there is none.
        let bucket = &self.buckets[at];
        let unused = |e: &Entry| e.dentry.as_ref().is_none_or(|d| Arc::strong_count(d) == 1 && !d.is_mountpoint());
        // Odd, so not 0.
        let number = self.sweep.fetch_add(2, Ordering::Relaxed) | 1;
        let mut closed = 0;
        let list = bucket.write();
        for e in list.values() {
            if e.closed.load(Ordering::Relaxed) != 0 {
                continue;
            }
            if closed < GANG && unused(e) && (all || !e.used.load(Ordering::Relaxed)) {
                e.closed.store(number, Ordering::Relaxed);
                closed += 1;
            } else {
                e.used.store(false, Ordering::Relaxed);
            }
        }
        drop(list);
        if closed == 0 {
            return 0;
        }
        // Whoever did not see the mark has its reference now.
        synchronize();
        let mut gone = Retired::new();
        let mut list = bucket.write();
        let count = list.remove(&mut gone, |e| {
            let mine = e.closed.load(Ordering::Relaxed) == number;
            let goes = mine && unused(e);
            if mine && !goes {
                e.closed.store(0, Ordering::Relaxed);
            }
            goes
        });
        drop(list);
        self.count.fetch_sub(count, Ordering::Relaxed);
        drop(gone);
        count
    }
}

/// What a section finds of `name` in the directory with identity `parent`: its dentry, `Err` if there is known to be none.
/// `None`: nothing is known.
#[inline]
pub(crate) fn find<'a>(
    section: &'a ReadSection,
    parent: u64,
    name: &[u8],
    hashed: Hashed,
) -> Option<Result<&'a Arc<Dentry>, Absent>> {
    let bucket: &'static Bucket = cache().bucket(hashed.hash);
    let e = bucket.iter(section).find(|e| e.is(hashed.hash, parent, name))?;
    if e.closed.load(Ordering::Relaxed) != 0 {
        return None;
    }
    if !e.used.load(Ordering::Relaxed) {
        e.used.store(true, Ordering::Relaxed);
    }
    Some(e.dentry.as_ref().ok_or(Absent))
}

/// Looks `name` up in the directory with identity `parent`.
#[inline]
pub(crate) fn lookup(parent: u64, name: &[u8], hashed: Hashed) -> Cached {
    match find(&read_section(), parent, name, hashed) {
        Some(Ok(d)) => Cached::Found(d.clone()),
        Some(Err(Absent)) => Cached::Absent,
        None => Cached::Unknown,
    }
}

/// As [`lookup`], for a caller that holds the directory's lock and would make an entry if there was none.
pub(crate) fn lookup_locked(parent: u64, name: &[u8]) -> Cached {
    let c = cache();
    let hash = hash_name(parent, name);
    let list = c.bucket(hash).write();
    let Some(e) = list.values().find(|e| e.is(hash, parent, name)) else { return Cached::Unknown };
    e.closed.store(0, Ordering::Relaxed);
    e.used.store(true, Ordering::Relaxed);
    e.cached()
}

/// Notes that `name` in `parent` is `dentry` (or nothing). The caller holds the directory's lock.
pub(crate) fn insert(parent: u64, name: Arc<[u8]>, dentry: Option<Arc<Dentry>>) {
    let c = cache();
    let hash = hash_name(parent, &name);
    let known = name.clone();
    let (used, closed) = (AtomicBool::new(true), AtomicU32::new(0));
    let node = NewNode::new(Entry { hash, parent, name, dentry, used, closed });
    let mut old = Retired::new();
    let mut list = c.bucket(hash).write();
    // The new one first: a look-up finds one of them.
    list.push(node);
    let mut newest = true;
    let removed = list.remove(&mut old, |e| e.is(hash, parent, &known) && !core::mem::take(&mut newest));
    drop(list);
    drop(old);
    c.count.fetch_add(1usize.wrapping_sub(removed), Ordering::Relaxed);
    if c.count.load(Ordering::Relaxed) > LIMIT {
        c.sweep();
    }
}

/// Drops every entry of the superblock `sb`, which is being unmounted.
pub(crate) fn purge(sb: u64) {
    let c = cache();
    for bucket in &c.buckets {
        let mut gone = Retired::new();
        let count = bucket.write().remove(&mut gone, |e| e.dentry.as_ref().is_some_and(|d| d.sb == sb));
        c.count.fetch_sub(count, Ordering::Relaxed);
    }
}

/// Drops every entry that nobody uses, as under memory pressure; returns how many went.
pub fn prune() -> usize {
    let c = cache();
    let mut total = 0;
    loop {
        let n: usize = (0..BUCKETS).map(|b| c.sweep_bucket(b, true)).sum();
        total += n;
        // Dropping leaves frees their parents for the next round.
        if n == 0 {
            return total;
        }
    }
}

/// Drops up to about `goal` entries that nobody uses and that were not used since the clock hand last came by; returns how
/// many went. An inode may end with its last entry, so its file system may do what that takes. May sleep; the caller holds
/// no lock of a file system.
pub fn shrink(goal: usize) -> usize {
    let c = cache();
    let mut gone = 0;
    // Twice round: the first time an entry is only marked.
    for _ in 0..2 * BUCKETS {
        if gone >= goal {
            break;
        }
        let at = c.hand.fetch_add(1, Ordering::Relaxed) % BUCKETS;
        gone += c.sweep_bucket(at, false);
    }
    gone
}

/// About how many bytes the entries take: those that [`prune`] would give back if nobody used any. Inodes are their file
/// systems'.
pub fn bytes() -> usize {
    // A dentry has its counts before it, and its name is kept once.
    size() * (size_of::<Entry>() + size_of::<Dentry>() + 2 * size_of::<usize>() + 32)
}

/// How many entries there are.
pub fn size() -> usize {
    cache().count.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::{hash_component, hash_name};

    #[test]
    fn a_component_hashes_alike_wherever_it_stands() {
        for name in ["a", "abcdefg", "abcdefgh", "abcdefghi", "a-rather-long-name-of-many-words"] {
            for tail in ["", "/", "/x", "/yyyyyyyyyyyyyyyy"] {
                let h = hash_component(7, format!("{name}{tail}").as_bytes());
                assert_eq!(h.len, name.len());
                assert_eq!(h.hash, hash_name(7, name.as_bytes()));
            }
            assert_ne!(hash_name(7, name.as_bytes()), hash_name(8, name.as_bytes()));
        }
        assert_ne!(hash_name(1, b"a"), hash_name(1, b"a\0"));
    }
}
