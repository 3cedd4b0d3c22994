//! Pipes and named pipes (pipe(7), fifo(7)).
//!
//! # Ideas
//! A pipe is a ring of pages between one writer and one reader at a time. Each side has a *turn*, a sleeping lock that
//! says whose read or write it is and that guards that side's counter: the writer's counter [`Pipe::tail`] moves only
//! under the write turn, the reader's [`Pipe::head`] only under the read turn. So the two sides never wait for each
//! other's copies, and bytes go between user memory and the ring's pages directly: what lies between the counters
//! belongs to the reader, the rest to the writer. Copies may fault and sleep; no spin lock is held anywhere.
//!
//! A writer publishes bytes by storing `tail`, then wakes; a reader that finds nothing links itself into the queue and
//! looks again before it sleeps. The wait queue's fences make one see the other.
//!
//! # Rules kept
//! - Writes of at most [`PIPE_BUF`] bytes are atomic: they wait until all of it fits.
//! - A pipe polls writable while [`PIPE_BUF`] bytes fit; writers are woken on that same condition.
//! - Sleepers are exclusive; who was woken and leaves something to do passes the wake-up on.
//! - Nobody sleeps holding a turn, except in page faults.
//!
//! # Locking
//! Write turn, then read turn (both only to resize), then whatever a user copy takes. The registry of named pipes comes
//! after them.
//!
//! # What was not done
//! Packet mode (`O_DIRECT` gets `EINVAL`, as in Linux before 3.4). Pages are kept until the pipe is closed, not until
//! they are drained.

pub mod splice;

use super::user_uid_gid;
use crate::arch::uaccess::{self, UserAddr};
use abi::{Errno, Result, Timespec, linux};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use platform::{PAGE_SIZE, Page, ParkOptions, ReadSink, WriteSource};
use sync::{LockClass, Mutex, Once, WaitQueue, rank};
use vfs::{Attr, File, FileType, Inode, Io, Mappable, Meta, OpenFile, Path, PollEvents, Poller};

static WRITE_TURN: LockClass = LockClass::new("pipe write turn", rank::INODE + 20);
static READ_TURN: LockClass = LockClass::new("pipe read turn", rank::INODE + 21);
static REGISTRY: LockClass = LockClass::new("named pipes", rank::INODE + 22);

/// Writes of up to so many bytes are atomic.
pub const PIPE_BUF: usize = 4096;
/// A new pipe's size in pages: 64 KiB.
const DEFAULT_PAGES: usize = 16;
/// The most that a process without privileges may ask for (`fs.pipe-max-size`).
const MAX_SIZE: usize = 1 << 20;
/// The device number that anonymous pipes show in `stat`.
const PIPE_DEV: u64 = 14;
const FIONREAD: u32 = 0x541b;

/// Sleeps that signals end.
const INTERRUPTIBLE: ParkOptions = ParkOptions { interruptible: true, deadline_ns: None };

/// The pages. A position in the stream is at `position % capacity`; pages come when a position is first written.
struct Ring {
    pages: Box<[Once<Page>]>,
}

impl Ring {
    fn new(pages: usize) -> Result<Arc<Ring>> {
        let mut v = Vec::new();
        v.try_reserve_exact(pages).map_err(|_| Errno::ENOMEM)?;
        v.resize_with(pages, Once::new);
        Ok(Arc::new(Ring { pages: v.into_boxed_slice() }))
    }

    /// Its size in bytes.
    fn capacity(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    /// The page that holds stream position `at`. Its length is a power of two, so positions may wrap.
    fn slot(&self, at: usize) -> &Once<Page> {
        &self.pages[(at / PAGE_SIZE) & (self.pages.len() - 1)]
    }

    /// As `slot`, with a page there. `ENOMEM`. Only under the write turn.
    fn page(&self, at: usize) -> Result<&Page> {
        let slot = self.slot(at);
        if let Some(p) = slot.get() {
            return Ok(p);
        }
        let page = Page::uninit().ok_or(Errno::ENOMEM)?;
        Ok(slot.set(page).unwrap_or_else(|_| unreachable!("the write turn is held")))
    }
}

/// A pipe.
pub struct Pipe {
    /// Bytes read so far.
    head: AtomicUsize,
    /// Bytes written so far.
    tail: AtomicUsize,
    capacity: AtomicUsize,
    write_turn: Mutex<Arc<Ring>>,
    read_turn: Mutex<Arc<Ring>>,
    /// The bytes in it are on their way to a file ([`splice`]).
    claimed: AtomicBool,
    /// Room that is kept for bytes on their way from a file; grows under the write turn.
    reserved: AtomicUsize,
    readers: AtomicU32,
    writers: AtomicU32,
    /// How often it was opened for reading, ever.
    read_opens: AtomicU32,
    write_opens: AtomicU32,
    readable: Arc<WaitQueue>,
    writable: Arc<WaitQueue>,
    /// Opens of a named pipe that wait for the other side.
    openers: WaitQueue,
    /// Where it is registered, if it has a name.
    fifo: Option<(u64, u64)>,
    meta: Meta,
    made: Timespec,
}

impl Pipe {
    fn new(fifo: Option<(u64, u64)>) -> Result<Arc<Pipe>> {
        static INO: AtomicU64 = AtomicU64::new(1);
        let ring = Ring::new(DEFAULT_PAGES)?;
        let (uid, gid) = user_uid_gid();
        let ino = INO.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Pipe {
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
            capacity: AtomicUsize::new(ring.capacity()),
            write_turn: Mutex::new(&WRITE_TURN, ring.clone()),
            read_turn: Mutex::new(&READ_TURN, ring),
            claimed: AtomicBool::new(false),
            reserved: AtomicUsize::new(0),
            readers: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            read_opens: AtomicU32::new(0),
            write_opens: AtomicU32::new(0),
            readable: Arc::new(WaitQueue::new()),
            writable: Arc::new(WaitQueue::new()),
            openers: WaitQueue::new(),
            fifo,
            meta: Meta::new(PIPE_DEV, ino, FileType::Fifo, 0o600, uid, gid),
            made: Timespec::from_ns(platform::realtime_ns()),
        }))
    }

    /// How many bytes wait to be read (a snapshot).
    fn used(&self) -> usize {
        // The head first: it never passes the tail, so the difference is never negative.
        let head = self.head.load(Ordering::Acquire);
        self.tail.load(Ordering::Acquire).wrapping_sub(head)
    }

    /// How many more bytes fit (a snapshot, exact under the write turn but for readers making more room).
    fn free(&self) -> usize {
        let capacity = self.capacity.load(Ordering::Acquire);
        let tail = self.tail.load(Ordering::Acquire);
        let used = tail.wrapping_sub(self.head.load(Ordering::Acquire));
        capacity.saturating_sub(used).saturating_sub(self.reserved.load(Ordering::Acquire))
    }

    fn is_open_for_writing(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
    }

    fn is_open_for_reading(&self) -> bool {
        self.readers.load(Ordering::Acquire) > 0
    }

    fn read(&self, nonblock: bool, sink: &mut dyn ReadSink) -> Result<usize> {
        if sink.remaining() == 0 {
            return Ok(0);
        }
        let mut waited = false;
        loop {
            // Whether writers are left is asked first: what the last one wrote is then visible.
            let open = self.is_open_for_writing();
            if self.can_read() {
                let n = self.drain(&self.read_turn.lock(), sink)?;
                if n > 0 {
                    self.after_read(waited);
                    return Ok(n);
                }
                // Another reader was faster.
            } else if !open && self.used() == 0 {
                return Ok(0);
            } else if nonblock {
                return Err(Errno::EAGAIN);
            } else {
                waited = true;
                let ready = || (self.can_read() || self.used() == 0 && !self.is_open_for_writing()).then_some(());
                self.readable.wait_exclusive(INTERRUPTIBLE, ready).map_err(|_| Errno::ERESTARTSYS)?;
            }
        }
    }

    /// Whether there are bytes, and nobody has claimed them.
    fn can_read(&self) -> bool {
        self.used() > 0 && !self.claimed.load(Ordering::Acquire)
    }

    /// Moves bytes to `sink`; how many (0: there were none). The caller holds the read turn.
    fn drain(&self, ring: &Ring, sink: &mut dyn ReadSink) -> Result<usize> {
        if self.claimed.load(Ordering::Acquire) {
            return Ok(0);
        }
        let start = self.head.load(Ordering::Relaxed);
        let (at, fault) = self.copy_out(ring, start, sink);
        self.head.store(at, Ordering::Release);
        if fault && at == start { Err(Errno::EFAULT) } else { Ok(at.wrapping_sub(start)) }
    }

    /// Copies bytes from position `at` on to `sink`: where it ended, and whether the sink's memory did.
    fn copy_out(&self, ring: &Ring, mut at: usize, sink: &mut dyn ReadSink) -> (usize, bool) {
        let tail = self.tail.load(Ordering::Acquire);
        let mut fault = false;
        while at != tail && !fault {
            let offset = at % PAGE_SIZE;
            let n = tail.wrapping_sub(at).min(PAGE_SIZE - offset).min(sink.remaining());
            let Some(page) = ring.slot(at).get().filter(|_| n > 0) else { break };
            let put = sink.put(page.bytes(offset, n)).unwrap_or(0);
            at = at.wrapping_add(put);
            fault = put < n;
        }
        (at, fault)
    }

    fn after_read(&self, waited: bool) {
        if self.free() >= PIPE_BUF {
            self.writable.wake_sync();
        }
        if waited && self.used() > 0 {
            self.readable.wake();
        }
    }

    fn write(&self, nonblock: bool, source: &mut dyn WriteSource) -> Result<usize> {
        let total = source.remaining();
        if total == 0 {
            return Ok(0);
        }
        // A part of a small write is never written.
        let need = if total <= PIPE_BUF { total } else { 1 };
        let mut done = 0;
        let mut waited = false;
        let so_far = |done: usize, e: Errno| if done > 0 { Ok(done) } else { Err(e) };
        loop {
            if !self.is_open_for_reading() {
                crate::task::signal::sigpipe();
                return so_far(done, Errno::EPIPE);
            }
            if self.free() >= need {
                let filled = self.fill(&self.write_turn.lock(), source, need);
                let (n, stop) = filled.or_else(|e| so_far(done, e).map(|_| (0, true)))?;
                done += n;
                if n > 0 {
                    self.readable.wake_sync();
                }
                if stop || done == total {
                    if waited && self.free() >= PIPE_BUF {
                        self.writable.wake();
                    }
                    return Ok(done);
                }
            } else if nonblock {
                return so_far(done, Errno::EAGAIN);
            } else {
                waited = true;
                let enough = (total - done).min(PIPE_BUF);
                let ready = || (self.free() >= enough || !self.is_open_for_reading()).then_some(());
                if self.writable.wait_exclusive(INTERRUPTIBLE, ready).is_err() {
                    return so_far(done, Errno::ERESTARTSYS);
                }
            }
        }
    }

    /// Takes bytes from `source` as long as there is room, if there is room for `need`; how many, and whether to stop
    /// there because the source's memory ended. `EFAULT`, `ENOMEM`: nothing was taken. The caller holds the write turn.
    fn fill(&self, ring: &Ring, source: &mut dyn WriteSource, need: usize) -> Result<(usize, bool)> {
        let room = self.free();
        if room < need {
            return Ok((0, false));
        }
        let mut at = self.tail.load(Ordering::Relaxed);
        let start = at;
        let mut failed = None;
        while failed.is_none() {
            let offset = at % PAGE_SIZE;
            let left = room - at.wrapping_sub(start);
            let n = left.min(PAGE_SIZE - offset).min(source.remaining());
            if n == 0 {
                break;
            }
            match ring.page(at) {
                Ok(page) => {
                    let got = source.get(page.bytes_mut(offset, n)).unwrap_or(0);
                    at = at.wrapping_add(got);
                    failed = (got < n).then_some(Errno::EFAULT);
                }
                Err(e) => failed = Some(e),
            }
        }
        self.tail.store(at, Ordering::Release);
        match failed {
            Some(e) if at == start => Err(e),
            _ => Ok((at.wrapping_sub(start), failed.is_some())),
        }
    }

    /// `F_SETPIPE_SZ`; the new size in bytes.
    fn resize(&self, bytes: usize) -> Result<usize> {
        let pages = bytes.max(1).div_ceil(PAGE_SIZE).next_power_of_two();
        let fresh = Ring::new(pages)?;
        let mut write = self.write_turn.lock();
        let mut read = self.read_turn.lock();
        if self.used() + self.reserved.load(Ordering::Acquire) > fresh.capacity() {
            return Err(Errno::EBUSY);
        }
        let tail = self.tail.load(Ordering::Relaxed);
        let mut at = self.head.load(Ordering::Relaxed);
        while at != tail {
            let offset = at % PAGE_SIZE;
            let n = tail.wrapping_sub(at).min(PAGE_SIZE - offset);
            if let Some(old) = read.slot(at).get() {
                fresh.page(at)?.bytes_mut(offset, n).copy_from(old.bytes(offset, n));
            }
            at = at.wrapping_add(n);
        }
        let size = fresh.capacity();
        *read = fresh.clone();
        *write = fresh;
        self.capacity.store(size, Ordering::Release);
        drop(read);
        drop(write);
        self.writable.wake_all();
        Ok(size)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if let Some(key) = self.fifo {
            let mut all = FIFOS.lock();
            // Somebody may have made a new one meanwhile.
            if all.get(&key).is_some_and(|w| w.strong_count() == 0) {
                all.remove(&key);
            }
        }
    }
}

/// An end of a pipe, or both (a named pipe opened `O_RDWR`).
pub struct PipeEnd {
    pipe: Arc<Pipe>,
    reads: bool,
    writes: bool,
    /// The count of opens for writing at which "no writer" is not yet a hang-up: none has come since this end was opened.
    unwritten: Option<u32>,
}

impl PipeEnd {
    fn open(pipe: &Arc<Pipe>, reads: bool, writes: bool) -> Arc<PipeEnd> {
        let unwritten = (!writes && !pipe.is_open_for_writing()).then(|| pipe.write_opens.load(Ordering::Relaxed));
        if reads {
            pipe.readers.fetch_add(1, Ordering::AcqRel);
            pipe.read_opens.fetch_add(1, Ordering::AcqRel);
        }
        if writes {
            pipe.writers.fetch_add(1, Ordering::AcqRel);
            pipe.write_opens.fetch_add(1, Ordering::AcqRel);
        }
        pipe.openers.wake_all();
        Arc::new(PipeEnd { pipe: pipe.clone(), reads, writes, unwritten })
    }

    fn hung_up(&self) -> bool {
        !self.pipe.is_open_for_writing() && self.unwritten != Some(self.pipe.write_opens.load(Ordering::Acquire))
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        if self.reads && self.pipe.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.pipe.writable.wake_all();
        }
        if self.writes && self.pipe.writers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.pipe.readable.wake_all();
        }
    }
}

impl File for PipeEnd {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        self.pipe.read(io.nonblock, sink)
    }

    fn write(&self, io: Io, source: &mut dyn WriteSource) -> Result<usize> {
        self.pipe.write(io.nonblock, source)
    }

    fn ioctl(&self, _file: &OpenFile, cmd: u32, arg: u64) -> Result<i64> {
        if cmd != FIONREAD {
            return Err(Errno::ENOTTY);
        }
        uaccess::put_user_u32(UserAddr(arg), self.pipe.used() as u32).map_err(|_| Errno::EFAULT)?;
        Ok(0)
    }

    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        if let Some(p) = poller {
            if self.reads {
                p.register(&self.pipe.readable);
            }
            if self.writes {
                p.register(&self.pipe.writable);
            }
        }
        let mut now = PollEvents::NONE;
        if self.reads {
            let hung_up = self.hung_up();
            now = now.and(PollEvents::IN.when(self.pipe.can_read())).and(PollEvents::HUP.when(hung_up));
        }
        if self.writes {
            let broken = !self.pipe.is_open_for_reading();
            now = now.and(PollEvents::OUT.when(self.pipe.free() >= PIPE_BUF)).and(PollEvents::ERR.when(broken));
        }
        now
    }

    fn getattr(&self) -> Result<Attr> {
        let at = self.pipe.made;
        let blksize = PAGE_SIZE as u32;
        Ok(Attr { nlink: 1, blksize, atime: at, mtime: at, ctime: at, btime: at, ..Attr::of(&self.pipe.meta) })
    }

    fn to_open_again(&self) -> Option<Arc<dyn Inode>> {
        Some(Arc::new(PipeInode(self.pipe.clone())))
    }

    fn name(&self) -> Vec<u8> {
        alloc::format!("pipe:[{}]", self.pipe.meta.ino).into_bytes()
    }
}

/// `pipe2(2)`: the end to read from and the end to write to. `flags` may hold `O_NONBLOCK`. `ENOMEM`.
pub fn create(flags: u32) -> Result<(Arc<OpenFile>, Arc<OpenFile>)> {
    let pipe = Pipe::new(None)?;
    let flags = flags & linux::O_NONBLOCK;
    let write = PipeEnd::open(&pipe, false, true);
    let read = PipeEnd::open(&pipe, true, false);
    Ok((OpenFile::anonymous(read, flags | linux::O_RDONLY), OpenFile::anonymous(write, flags | linux::O_WRONLY)))
}

/// `F_GETPIPE_SZ`. `EBADF` if `file` is no pipe.
pub fn size(file: &OpenFile) -> Result<usize> {
    let end = file.object_as::<PipeEnd>().ok_or(Errno::EBADF)?;
    Ok(end.pipe.capacity.load(Ordering::Relaxed))
}

/// `F_SETPIPE_SZ`: the size that it got. `EBADF`, `EBUSY` (more is in it), `EPERM` (over the limit), `ENOMEM`.
pub fn set_size(file: &OpenFile, bytes: usize) -> Result<usize> {
    let end = file.object_as::<PipeEnd>().ok_or(Errno::EBADF)?;
    if bytes > 1 << 31 {
        return Err(Errno::EINVAL);
    }
    if bytes > MAX_SIZE {
        return Err(Errno::EPERM);
    }
    end.pipe.resize(bytes)
}

static FIFOS: Mutex<BTreeMap<(u64, u64), Weak<Pipe>>> = Mutex::new(&REGISTRY, BTreeMap::new());

fn named(key: (u64, u64)) -> Result<Arc<Pipe>> {
    let mut all = FIFOS.lock();
    if let Some(p) = all.get(&key).and_then(Weak::upgrade) {
        return Ok(p);
    }
    let made = Pipe::new(Some(key))?;
    all.insert(key, Arc::downgrade(&made));
    Ok(made)
}

/// Opens the named pipe at `path` (fifo(7)): reading waits for a writer and writing for a reader, unless `O_NONBLOCK`,
/// when reading opens at once and writing without a reader gets `ENXIO`. `O_RDWR` never waits. `ERESTARTSYS`, `ENOMEM`.
pub fn open_fifo(path: &Path, flags: u32) -> Result<Arc<dyn File>> {
    let meta = path.inode().meta();
    open_end(&named((meta.dev, meta.ino))?, flags)
}

/// What the links in `/proc/PID/fd` lead to: opening it opens the pipe anew, as if it had a name.
struct PipeInode(Arc<Pipe>);

impl Mappable for PipeInode {}

impl Inode for PipeInode {
    fn meta(&self) -> &Meta {
        &self.0.meta
    }

    fn getattr(&self) -> Result<Attr> {
        Ok(Attr::of(&self.0.meta))
    }

    fn open(&self, flags: u32) -> Result<Option<Arc<dyn File>>> {
        open_end(&self.0, flags).map(Some)
    }
}

fn open_end(pipe: &Arc<Pipe>, flags: u32) -> Result<Arc<dyn File>> {
    let nonblock = flags & linux::O_NONBLOCK != 0;
    // Who opens a pipe without a name by /proc has one of its ends, or a friend has: nobody is waited for.
    let waits = !nonblock && pipe.fifo.is_some();
    let wait = |other: &AtomicU32, opens: &AtomicU32, seen: u32| {
        let ready = || (other.load(Ordering::Acquire) > 0 || opens.load(Ordering::Acquire) != seen).then_some(());
        pipe.openers.wait_until(INTERRUPTIBLE, ready).map_err(|_| Errno::ERESTARTSYS)
    };
    match flags & linux::O_ACCMODE {
        linux::O_RDONLY => {
            let seen = pipe.write_opens.load(Ordering::Acquire);
            let mut end = PipeEnd::open(pipe, true, false);
            if waits {
                wait(&pipe.writers, &pipe.write_opens, seen)?;
                if let Some(e) = Arc::get_mut(&mut end) {
                    e.unwritten = None;
                }
            }
            Ok(end)
        }
        linux::O_WRONLY => {
            if nonblock && pipe.fifo.is_some() && !pipe.is_open_for_reading() {
                return Err(Errno::ENXIO);
            }
            let seen = pipe.read_opens.load(Ordering::Acquire);
            let end = PipeEnd::open(pipe, false, true);
            if waits {
                wait(&pipe.readers, &pipe.read_opens, seen)?;
            }
            Ok(end)
        }
        linux::O_RDWR => Ok(PipeEnd::open(pipe, true, true)),
        _ => Err(Errno::EINVAL),
    }
}
