//! Watching files and directories (inotify(7)).
//!
//! A [`Inotify`] is a queue of events and a set of watches. What happens to files comes from [`vfs::notify`], by device and
//! inode number; one table of all watches finds the queues that it goes to. A watch keeps its inode, so that the number
//! stays the inode's.
//!
//! Locking: the table's spin lock, then a queue's. Neither is held when an inode is let go. An event equal to the last one
//! in the queue is left out, as on Linux; at [`MAX_QUEUED`] events the next is `IN_Q_OVERFLOW`, and what follows is lost.
//!
//! Not as Linux: `IN_DELETE_SELF` comes with the removal of the last name, though a descriptor may still hold the file.

use super::anonymous_attr;
use abi::{Errno, Result};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use platform::{ParkOptions, ReadSink, SharedBytes};
use sync::{LockClass, SpinLock, WaitQueue, rank};
use vfs::notify::{self, Event, Observer, event};
use vfs::{Attr, File, FileType, Inode, Io, PollEvents, Poller};

static TABLE_CLASS: LockClass = LockClass::new("inotify watches", rank::SPIN + 90);
static QUEUE: LockClass = LockClass::new("inotify queue", rank::SPIN + 91);

/// The most events that wait in one queue (`/proc/sys/fs/inotify/max_queued_events`).
pub const MAX_QUEUED: usize = 16_384;
/// The most watches of one queue.
pub const MAX_WATCHES: usize = 65_536;

/// Bits of a mask that are no events (inotify(7)).
#[allow(missing_docs)]
pub mod flag {
    pub const Q_OVERFLOW: u32 = 0x4000;
    pub const IGNORED: u32 = 0x8000;
    pub const ONLYDIR: u32 = 0x0100_0000;
    pub const DONT_FOLLOW: u32 = 0x0200_0000;
    pub const EXCL_UNLINK: u32 = 0x0400_0000;
    pub const MASK_CREATE: u32 = 0x1000_0000;
    pub const MASK_ADD: u32 = 0x2000_0000;
    pub const ONESHOT: u32 = 0x8000_0000;
}
/// The events that can be asked for (`IN_ALL_EVENTS`).
pub const EVENTS: u32 = 0xfff;
/// What a mask may hold.
pub const KNOWN: u32 = EVENTS
    | flag::ONLYDIR
    | flag::DONT_FOLLOW
    | flag::EXCL_UNLINK
    | flag::MASK_CREATE
    | flag::MASK_ADD
    | event::ISDIR
    | flag::ONESHOT;

/// A `struct inotify_event`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    wd: i32,
    mask: u32,
    cookie: u32,
    name: Vec<u8>,
}

impl Record {
    /// Its length with the name, ended by NULs and padded to a whole record's.
    fn len(&self) -> usize {
        16 + if self.name.is_empty() { 0 } else { (self.name.len() + 1).next_multiple_of(16) }
    }

    fn bytes(&self) -> Vec<u8> {
        let len = self.len();
        let mut b = Vec::with_capacity(len);
        b.extend_from_slice(&self.wd.to_le_bytes());
        b.extend_from_slice(&self.mask.to_le_bytes());
        b.extend_from_slice(&self.cookie.to_le_bytes());
        b.extend_from_slice(&((len - 16) as u32).to_le_bytes());
        b.extend_from_slice(&self.name);
        b.resize(len, 0);
        b
    }
}

/// One watch of one queue.
struct Entry {
    queue: Weak<Inotify>,
    wd: i32,
    mask: u32,
}

/// The watches of an inode, which they keep.
struct Watched {
    /// Keeps its number its own.
    _inode: Arc<dyn Inode>,
    by: Vec<Entry>,
}

type Table = BTreeMap<(u64, u64), Watched>;
static TABLE: SpinLock<Table> = SpinLock::new(&TABLE_CLASS, BTreeMap::new());

#[derive(Default)]
struct State {
    events: VecDeque<Record>,
    /// The inodes by watch.
    watches: BTreeMap<i32, (u64, u64)>,
    last_wd: i32,
}

/// An inotify instance.
pub struct Inotify {
    state: SpinLock<State>,
    waiters: Arc<WaitQueue>,
    me: Weak<Inotify>,
}

struct Tell;

impl Observer for Tell {
    fn happened(&self, e: Event<'_>) {
        let mut gone = Vec::new();
        {
            let mut table = TABLE.lock();
            let Some(w) = table.get_mut(&e.inode) else { return };
            let last = e.mask & event::DELETE_SELF != 0;
            w.by.retain(|entry| {
                let Some(queue) = entry.queue.upgrade() else { return true };
                let bits = e.mask & entry.mask & EVENTS;
                if bits != 0 {
                    queue.push(entry.wd, e.mask & (bits | event::ISDIR), e.cookie, e.name);
                }
                let ends = last || bits != 0 && entry.mask & flag::ONESHOT != 0;
                if ends {
                    queue.push(entry.wd, flag::IGNORED, 0, None);
                    queue.state.lock().watches.remove(&entry.wd);
                    notify::count_watches(-1);
                }
                gone.push(queue);
                !ends
            });
        }
        drop(gone);
        sweep(e.inode);
    }
}

/// Lets go of an inode that nobody watches any more.
fn sweep(inode: (u64, u64)) {
    let unused = {
        let mut table = TABLE.lock();
        if table.get(&inode).is_some_and(|w| w.by.is_empty()) { table.remove(&inode) } else { None }
    };
    drop(unused);
}

impl Inotify {
    /// An instance that watches nothing.
    pub fn new() -> Arc<Inotify> {
        notify::set_observer(&Tell);
        Arc::new_cyclic(|me| Inotify {
            state: SpinLock::new(&QUEUE, State::default()),
            waiters: Arc::new(WaitQueue::new()),
            me: me.clone(),
        })
    }

    fn push(&self, wd: i32, mask: u32, cookie: u32, name: Option<&[u8]>) {
        {
            let mut s = self.state.lock();
            let r = Record { wd, mask, cookie, name: name.unwrap_or_default().to_vec() };
            if s.events.back() == Some(&r) {
                return;
            }
            match s.events.len() {
                n if n < MAX_QUEUED => s.events.push_back(r),
                MAX_QUEUED => {
                    s.events.push_back(Record { wd: -1, mask: flag::Q_OVERFLOW, cookie: 0, name: Vec::new() });
                }
                _ => return,
            }
        }
        self.waiters.wake();
    }

    /// Watches `inode` for `mask`; the watch's number. `EEXIST` with `IN_MASK_CREATE`, `ENOTDIR`, `ENOSPC`.
    pub fn add(&self, inode: &Arc<dyn Inode>, mask: u32) -> Result<i32> {
        if mask & flag::ONLYDIR != 0 && inode.meta().kind != FileType::Dir {
            return Err(Errno::ENOTDIR);
        }
        let key = (inode.meta().dev, inode.meta().ino);
        let added = self.enter(inode, key, mask);
        if added.is_err() {
            sweep(key);
        }
        added
    }

    fn enter(&self, inode: &Arc<dyn Inode>, key: (u64, u64), mask: u32) -> Result<i32> {
        let kept = mask & (EVENTS | flag::ONESHOT | flag::EXCL_UNLINK);
        let mut table = TABLE.lock();
        let w = table.entry(key).or_insert_with(|| Watched { _inode: inode.clone(), by: Vec::new() });
        if let Some(entry) = w.by.iter_mut().find(|e| core::ptr::eq(e.queue.as_ptr(), self)) {
            if mask & flag::MASK_CREATE != 0 {
                return Err(Errno::EEXIST);
            }
            entry.mask = if mask & flag::MASK_ADD != 0 { entry.mask | kept } else { kept };
            return Ok(entry.wd);
        }
        let mut s = self.state.lock();
        if s.watches.len() >= MAX_WATCHES {
            return Err(Errno::ENOSPC);
        }
        s.last_wd += 1;
        let wd = s.last_wd;
        s.watches.insert(wd, key);
        w.by.push(Entry { queue: self.me.clone(), wd, mask: kept });
        notify::count_watches(1);
        Ok(wd)
    }

    /// Ends watch `wd`, with an `IN_IGNORED`. `EINVAL`.
    pub fn remove(&self, wd: i32) -> Result<()> {
        let key = self.state.lock().watches.remove(&wd).ok_or(Errno::EINVAL)?;
        self.forget(wd, key);
        self.push(wd, flag::IGNORED, 0, None);
        Ok(())
    }

    fn forget(&self, wd: i32, key: (u64, u64)) {
        if let Some(w) = TABLE.lock().get_mut(&key) {
            let before = w.by.len();
            w.by.retain(|e| e.wd != wd || !core::ptr::eq(e.queue.as_ptr(), self));
            notify::count_watches(w.by.len() as isize - before as isize);
        }
        sweep(key);
    }

    /// Takes events that fit into `room` bytes. `EINVAL`: the first does not.
    fn take(&self, room: usize) -> Option<Result<Vec<u8>>> {
        let mut s = self.state.lock();
        let mut out = Vec::new();
        while let Some(r) = s.events.front() {
            if out.len() + r.len() > room {
                return Some(if out.is_empty() { Err(Errno::EINVAL) } else { Ok(out) });
            }
            out.extend(r.bytes());
            s.events.pop_front();
        }
        (!out.is_empty()).then_some(Ok(out))
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        let watches = core::mem::take(&mut self.state.get_mut().watches);
        for (wd, key) in watches {
            self.forget(wd, key);
        }
    }
}

impl File for Inotify {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        let room = sink.remaining().min(64 << 10);
        let taken = match self.take(room) {
            Some(r) => r?,
            None if io.nonblock => return Err(Errno::EAGAIN),
            None => {
                let sleep = ParkOptions { interruptible: true, deadline_ns: None };
                self.waiters.wait_until(sleep, || self.take(room)).map_err(|_| Errno::ERESTARTSYS)??
            }
        };
        match sink.put(SharedBytes::from(&taken[..])) {
            Ok(n) if n == taken.len() => Ok(n),
            _ => Err(Errno::EFAULT),
        }
    }

    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        if let Some(p) = poller {
            p.register(&self.waiters);
        }
        PollEvents::IN.when(!self.state.lock().events.is_empty())
    }

    fn ioctl(&self, _: &vfs::OpenFile, cmd: u32, arg: u64) -> Result<i64> {
        const FIONREAD: u32 = 0x541b;
        if cmd != FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let n: usize = self.state.lock().events.iter().map(Record::len).sum();
        crate::arch::uaccess::put_user_u32(crate::arch::uaccess::UserAddr(arg), n as u32).map_err(|_| Errno::EFAULT)?;
        Ok(0)
    }

    fn getattr(&self) -> Result<Attr> {
        Ok(anonymous_attr())
    }

    fn name(&self) -> Vec<u8> {
        b"anon_inode:inotify".to_vec()
    }
}
