//! The table of descriptors that a process (or several, CLONE_FILES) has.
//!
//! A descriptor is an index; an entry holds the open file and the close-on-exec flag. Looking one up costs the table's spin
//! lock and one counted reference. The lowest free number is found from a hint below which nothing is free.
//!
//! # Locking
//! [`Inner`] is under a spin lock (class `file table`). Files are dropped, which may sleep, only after it is released; so
//! everything that takes entries out hands them back to the caller.

use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use sync::{LockClass, SpinLock};
use vfs::OpenFile;

static CLASS: LockClass = LockClass::new("file table", sync::rank::SPIN + 5);

/// No table grows beyond this (`fs.nr_open`).
pub const NR_OPEN: usize = 1 << 20;

#[derive(Clone)]
struct Entry {
    file: Arc<OpenFile>,
    cloexec: bool,
}

#[derive(Clone, Default)]
struct Inner {
    entries: Vec<Option<Entry>>,
    /// No index below is free.
    lowest: usize,
}

/// A table of descriptors.
pub struct FileTable {
    /// A number that no other table ever had: the owner of POSIX record locks.
    id: u64,
    /// A record lock was asked for in its name: only then closing looks for some, in a table that all processes share.
    locks: AtomicBool,
    /// Threads that have it as theirs. Who only looks (`/proc`, pidfd_getfd) holds a reference and does not count.
    users: AtomicUsize,
    inner: SpinLock<Inner>,
}

/// A thread's hold on its table. When the last one goes, everything in the table is closed, whoever still looks at it.
#[derive(Debug)]
pub struct OwnTable(Arc<FileTable>);

impl OwnTable {
    /// One more user of `table`.
    pub fn of(table: Arc<FileTable>) -> OwnTable {
        table.users.fetch_add(1, Ordering::Relaxed);
        OwnTable(table)
    }

    /// The table.
    #[inline]
    pub fn table(&self) -> &Arc<FileTable> {
        &self.0
    }
}

impl Drop for OwnTable {
    /// May sleep.
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.close_all();
        }
    }
}

impl core::fmt::Debug for FileTable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FileTable({})", self.id)
    }
}

fn with(inner: Inner) -> Arc<FileTable> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    Arc::new(FileTable {
        id,
        locks: AtomicBool::new(false),
        users: AtomicUsize::new(0),
        inner: SpinLock::new(&CLASS, inner),
    })
}

impl Inner {
    fn find_free(&self, from: usize) -> usize {
        let start = from.max(self.lowest);
        (start..self.entries.len()).find(|&i| self.entries[i].is_none()).unwrap_or(start.max(self.entries.len()))
    }

    fn put(&mut self, fd: usize, entry: Entry) -> Result<Option<Entry>> {
        if fd >= self.entries.len() {
            let len = (fd + 1).next_power_of_two().max(16);
            self.entries.try_reserve(len - self.entries.len()).map_err(|_| Errno::ENOMEM)?;
            self.entries.resize_with(len, || None);
        }
        if fd == self.lowest {
            self.lowest += 1;
        }
        Ok(self.entries[fd].replace(entry))
    }

    fn take(&mut self, fd: usize) -> Option<Entry> {
        let e = self.entries.get_mut(fd)?.take()?;
        self.lowest = self.lowest.min(fd);
        Some(e)
    }
}

impl FileTable {
    /// An empty table.
    pub fn new() -> Arc<FileTable> {
        with(Inner::default())
    }

    /// A copy, for fork. `ENOMEM`.
    pub fn fork(&self) -> Result<Arc<FileTable>> {
        let inner = self.inner.lock();
        let mut entries = Vec::new();
        let used = inner.entries.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
        entries.try_reserve(used).map_err(|_| Errno::ENOMEM)?;
        entries.extend_from_slice(&inner.entries[..used]);
        let copy = Inner { entries, lowest: inner.lowest.min(used) };
        drop(inner);
        Ok(with(copy))
    }

    /// Whether other threads have it, too.
    pub fn is_shared(&self) -> bool {
        self.users.load(Ordering::Acquire) > 1
    }

    /// The owner of POSIX record locks taken through this table.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Says that a POSIX record lock is about to be taken through this table: closing looks for locks from now on.
    pub fn will_lock(&self) {
        self.locks.store(true, Ordering::Relaxed);
    }

    /// The open file behind `fd`. `EBADF`.
    #[inline]
    pub fn get(&self, fd: i32) -> Result<Arc<OpenFile>> {
        let inner = self.inner.lock();
        match inner.entries.get(fd as u32 as usize) {
            Some(Some(e)) => Ok(e.file.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// As `get`, for calls that O_PATH descriptors do not serve. `EBADF`.
    #[inline]
    pub fn get_io(&self, fd: i32) -> Result<Arc<OpenFile>> {
        self.get(fd).and_then(|f| if f.is_path_only() { Err(Errno::EBADF) } else { Ok(f) })
    }

    /// Gives `file` the lowest free number of at least `from` and below `limit` (RLIMIT_NOFILE). `EMFILE`, `ENOMEM`.
    pub fn insert(&self, file: Arc<OpenFile>, cloexec: bool, from: usize, limit: u64) -> Result<i32> {
        let mut inner = self.inner.lock();
        let fd = inner.find_free(from);
        if fd as u64 >= limit || fd >= NR_OPEN {
            return Err(Errno::EMFILE);
        }
        inner.put(fd, Entry { file, cloexec })?;
        if fd == inner.lowest {
            inner.lowest += 1;
        }
        Ok(fd as i32)
    }

    /// Makes `fd` stand for `file` (dup2, dup3); what stood there is closed. `EBADF` if `fd` is beyond `limit`.
    pub fn replace(&self, fd: i32, file: Arc<OpenFile>, cloexec: bool, limit: u64) -> Result<()> {
        if fd < 0 || fd as u64 >= limit || fd as usize >= NR_OPEN {
            return Err(Errno::EBADF);
        }
        let old = self.inner.lock().put(fd as usize, Entry { file, cloexec })?;
        if let Some(e) = old {
            self.closed(&e);
        }
        Ok(())
    }

    /// Closes `fd`. `EBADF`. May sleep.
    pub fn close(&self, fd: i32) -> Result<()> {
        let entry = self.inner.lock().take(fd as u32 as usize).ok_or(Errno::EBADF)?;
        self.closed(&entry);
        Ok(())
    }

    /// POSIX: closing any descriptor of a file drops the process's record locks on it.
    fn closed(&self, entry: &Entry) {
        if self.locks.load(Ordering::Relaxed) {
            vfs::locks::release_process(&entry.file, self.id);
        }
    }

    /// Closes (or marks close-on-exec) every descriptor in `first..=last`.
    pub fn close_range(&self, first: u32, last: u32, only_mark: bool) {
        let mut fd = first as usize;
        loop {
            let mut inner = self.inner.lock();
            let end = inner.entries.len().min((last as usize).saturating_add(1));
            while fd < end && inner.entries[fd].is_none() {
                fd += 1;
            }
            if fd >= end {
                return;
            }
            if only_mark {
                if let Some(e) = &mut inner.entries[fd] {
                    e.cloexec = true;
                }
            } else if let Some(e) = inner.take(fd) {
                drop(inner);
                self.closed(&e);
            }
            fd += 1;
        }
    }

    /// Closes what is marked close-on-exec.
    pub fn close_on_exec(&self) {
        let mut fd = 0;
        loop {
            let mut inner = self.inner.lock();
            let Some(at) = inner.entries.iter().skip(fd).position(|e| e.as_ref().is_some_and(|e| e.cloexec)) else {
                return;
            };
            fd += at;
            let entry = inner.take(fd);
            drop(inner);
            if let Some(e) = entry {
                self.closed(&e);
            }
        }
    }

    /// Closes everything, at exit.
    pub fn close_all(&self) {
        self.close_range(0, u32::MAX, false);
    }

    /// The close-on-exec flag. `EBADF`.
    pub fn cloexec(&self, fd: i32) -> Result<bool> {
        match self.inner.lock().entries.get(fd as u32 as usize) {
            Some(Some(e)) => Ok(e.cloexec),
            _ => Err(Errno::EBADF),
        }
    }

    /// Sets the close-on-exec flag. `EBADF`.
    pub fn set_cloexec(&self, fd: i32, on: bool) -> Result<()> {
        match self.inner.lock().entries.get_mut(fd as u32 as usize) {
            Some(Some(e)) => {
                e.cloexec = on;
                Ok(())
            }
            _ => Err(Errno::EBADF),
        }
    }

    /// Every descriptor in use, in order (for /proc/PID/fd).
    pub fn list(&self) -> Vec<i32> {
        let inner = self.inner.lock();
        inner.entries.iter().enumerate().filter(|(_, e)| e.is_some()).map(|(i, _)| i as i32).collect()
    }

    /// How many entries the table has room for (FDSize in /proc/PID/status).
    pub fn capacity(&self) -> usize {
        self.inner.lock().entries.len()
    }
}
