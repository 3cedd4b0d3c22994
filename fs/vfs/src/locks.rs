//! Locks on files: `flock`, POSIX record locks, and record locks of open files (OFD).
//!
//! One table for all, under one sleeping lock that is a leaf: calls are rare, lists short. A lock belongs to an [`Owner`];
//! `flock` locks and record locks do not see each other, as in Linux. A waiter sleeps on one queue for all files and looks
//! again after every release.
//!
//! A process that would wait for a process that waits for it, over any number of others, gets `EDEADLK`. As in Linux that
//! is so for POSIX locks alone: an open file, whose are the other kinds, may be many processes', so who waits for whom is not
//! known. Threads of one process are one owner: where two of them wait the answer can come too early, as it can there.

use crate::file::OpenFile;
use abi::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use platform::{ParkOptions, Wake};
use sync::{LockClass, Mutex, WaitQueue, rank};

static CLASS: LockClass = LockClass::new("file locks", rank::PAGE_CACHE + 20);
static TABLE: Mutex<Table> = Mutex::new(&CLASS, Table { files: BTreeMap::new(), waiting: Vec::new() });
static RELEASED: WaitQueue = WaitQueue::new();

/// Device and inode number.
type Key = (u64, u64);

struct Table {
    files: BTreeMap<Key, Vec<Lock>>,
    /// What processes wait for.
    waiting: Vec<(Key, Lock)>,
}

impl Table {
    /// Whether an owner that waits for `lock` would wait for itself.
    fn deadlocks(&self, key: Key, lock: &Lock) -> bool {
        let mut todo = alloc::vec![(key, *lock)];
        let mut seen = Vec::new();
        while let Some((key, wanted)) = todo.pop() {
            for held in self.files.get(&key).into_iter().flatten().filter(|l| l.conflicts(&wanted)) {
                if held.owner == lock.owner {
                    return true;
                }
                if !seen.contains(&held.owner) {
                    seen.push(held.owner);
                    todo.extend(self.waiting.iter().filter(|w| w.1.owner == held.owner));
                }
            }
        }
        false
    }

    fn stop_waiting(&mut self, key: Key, lock: &Lock) {
        if let Some(at) = self.waiting.iter().position(|w| *w == (key, *lock)) {
            self.waiting.swap_remove(at);
        }
    }
}

/// Whose a lock is.
#[derive(Clone, Copy, Debug)]
pub enum Owner {
    /// An open file's, by `flock`.
    Flock(usize),
    /// A process's (the identity of its descriptor table), by `F_SETLK`; with the process id that `F_GETLK` reports.
    Process(u64, i32),
    /// An open file's, by `F_OFD_SETLK`.
    Ofd(usize),
}

impl PartialEq for Owner {
    /// The number of a process is for show: processes that share a descriptor table own its locks together.
    fn eq(&self, other: &Owner) -> bool {
        match (self, other) {
            (Owner::Flock(a), Owner::Flock(b)) | (Owner::Ofd(a), Owner::Ofd(b)) => a == b,
            (Owner::Process(a, _), Owner::Process(b, _)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Owner {}

impl Owner {
    /// `flock` through `file`.
    pub fn flock(file: &OpenFile) -> Owner {
        Owner::Flock(core::ptr::from_ref(file).addr())
    }

    /// Record locks of the open file itself.
    pub fn ofd(file: &OpenFile) -> Owner {
        Owner::Ofd(core::ptr::from_ref(file).addr())
    }

    fn sees(self, other: Owner) -> bool {
        matches!(self, Owner::Flock(_)) == matches!(other, Owner::Flock(_))
    }
}

/// A lock on the bytes `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Whose.
    pub owner: Owner,
    /// Whether it excludes readers.
    pub exclusive: bool,
    /// The first byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}

impl Lock {
    fn conflicts(&self, other: &Lock) -> bool {
        self.owner != other.owner
            && self.owner.sees(other.owner)
            && (self.exclusive || other.exclusive)
            && self.start < other.end
            && other.start < self.end
    }
}

fn key(file: &OpenFile) -> Result<Key> {
    let meta = file.inode().ok_or(Errno::EBADF)?.meta();
    Ok((meta.dev, meta.ino))
}

/// Takes the range from the owner's locks in `list`; says whether anything changed.
fn carve(list: &mut Vec<Lock>, owner: Owner, start: u64, end: u64) -> bool {
    let mut changed = false;
    let mut rest = Vec::new();
    list.retain_mut(|l| {
        if l.owner != owner || l.end <= start || end <= l.start {
            return true;
        }
        changed = true;
        if l.start < start && end < l.end {
            rest.push(Lock { start: end, ..*l });
        }
        if l.start < start {
            l.end = start;
            true
        } else if end < l.end {
            l.start = end;
            true
        } else {
            false
        }
    });
    list.append(&mut rest);
    changed
}

fn try_take(file: &OpenFile, lock: Lock) -> Result<bool> {
    let mut table = TABLE.lock();
    let list = table.files.entry(key(file)?).or_default();
    if list.iter().any(|l| l.conflicts(&lock)) {
        return Ok(false);
    }
    let weaker = carve(list, lock.owner, lock.start, lock.end);
    list.push(lock);
    drop(table);
    file.locked.store(true, Ordering::Relaxed);
    if weaker {
        RELEASED.wake_all();
    }
    Ok(true)
}

/// Takes a lock, replacing what the owner has in the range. If another's is in the way: `EAGAIN`, or with `wait` sleeps
/// (`ERESTARTSYS` when a signal comes; `EDEADLK` where a process would wait for itself).
pub fn take(file: &OpenFile, lock: Lock, wait: bool) -> Result<()> {
    if try_take(file, lock)? {
        return Ok(());
    }
    if !wait {
        return Err(Errno::EAGAIN);
    }
    let options = ParkOptions { interruptible: true, deadline_ns: None };
    let key = key(file)?;
    let known = matches!(lock.owner, Owner::Process(..));
    if known {
        let mut table = TABLE.lock();
        if table.deadlocks(key, &lock) {
            return Err(Errno::EDEADLK);
        }
        // Whoever closes a circle from now on sees this.
        table.waiting.push((key, lock));
    }
    let attempt = || match try_take(file, lock) {
        Ok(true) => Some(Ok(())),
        // What stands in the way may be another's by now.
        Ok(false) if known && TABLE.lock().deadlocks(key, &lock) => Some(Err(Errno::EDEADLK)),
        Ok(false) => None,
        Err(e) => Some(Err(e)),
    };
    let done = RELEASED.wait_until(options, attempt);
    if known {
        TABLE.lock().stop_waiting(key, &lock);
    }
    match done {
        Ok(r) => r,
        Err(Wake::Interrupted) => Err(Errno::ERESTARTSYS),
        Err(_) => Err(Errno::EINTR),
    }
}

/// Releases the owner's locks in `start..end`.
pub fn release(file: &OpenFile, owner: Owner, start: u64, end: u64) {
    let Ok(key) = key(file) else { return };
    let mut table = TABLE.lock();
    let Some(list) = table.files.get_mut(&key) else { return };
    let changed = carve(list, owner, start, end);
    if list.is_empty() {
        table.files.remove(&key);
    }
    drop(table);
    if changed {
        RELEASED.wake_all();
    }
}

/// The first lock that would be in the way of `lock`.
pub fn conflicting(file: &OpenFile, lock: &Lock) -> Option<Lock> {
    let key = key(file).ok()?;
    TABLE.lock().files.get(&key)?.iter().filter(|l| l.conflicts(lock)).min_by_key(|l| l.start).copied()
}

/// A process closed a descriptor of the file: all its record locks on it go, as POSIX has it.
pub fn release_process(file: &OpenFile, table: u64) {
    if file.inode().is_some() {
        let Ok(key) = key(file) else { return };
        let mut t = TABLE.lock();
        if t.files.is_empty() {
            return;
        }
        let Some(list) = t.files.get_mut(&key) else { return };
        let before = list.len();
        list.retain(|l| !matches!(l.owner, Owner::Process(id, _) if id == table));
        let changed = list.len() != before;
        if list.is_empty() {
            t.files.remove(&key);
        }
        drop(t);
        if changed {
            RELEASED.wake_all();
        }
    }
}

/// The open file is gone, and with it its own locks.
pub(crate) fn release_file(file: &OpenFile) {
    release(file, Owner::flock(file), 0, u64::MAX);
    release(file, Owner::ofd(file), 0, u64::MAX);
}

/// Every lock, for `/proc/locks`: (device, inode), lock.
pub fn all() -> Vec<((u64, u64), Lock)> {
    TABLE.lock().files.iter().flat_map(|(k, v)| v.iter().map(|l| (*k, *l))).collect()
}
