//! epoll(7).
//!
//! # Ideas
//! An [`Epoll`] has an [`Item`] per watched descriptor. Each item watches the queues that its file names; a wake-up puts
//! the item on the ready list (once) and wakes who waits on the epoll. `epoll_wait` takes items off the list, asks each
//! file what is really ready, reports that, and puts level-triggered items back, so that the next call looks again. An
//! edge-triggered item comes back only with the next wake-up; a one-shot one only after `EPOLL_CTL_MOD`.
//!
//! # Ownership
//! Items refer to files weakly: closing the last descriptor of a file ends its items, which are dropped when next met. An
//! item and its watches refer to each other; [`Item::retire`] breaks that, and whoever takes an item out of the map calls
//! it.
//!
//! # Locking
//! The map of items is under a sleeping lock, held over scans and changes; polling a file that is itself an epoll takes
//! that one's inside ours, in the order in which they watch each other, which [`check_nesting`] keeps free of cycles (under one global lock) and at
//! most [`MAX_NESTING`] deep. The ready list is under a spin lock ranked after wait queues, since wake-ups come with a
//! queue locked. It never allocates there: its room is reserved when items are added.
//!
//! # What was not done
//! `EPOLLEXCLUSIVE` is taken, and wakes every epoll that watches, which its definition allows ("one or more").
//! `EPOLLWAKEUP` means nothing on a machine that does not suspend.

use super::anonymous_attr;
use crate::machine::Sabotage;
use abi::{Errno, Result};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use platform::{ParkOptions, Wake};
use sync::{IrqLock, LockClass, Mutex, Notify, SpinLock, WaitQueue, Watch, rank};
use vfs::{Attr, File, OpenFile, PollEvents, Poller};

static NESTING: LockClass = LockClass::new("epoll nesting", rank::FILES + 1);
static ITEMS: LockClass = LockClass::new("epoll items", rank::FILES + 2);
static PARENTS: LockClass = LockClass::new("epoll parents", rank::SPIN + 8);
static WATCHES: LockClass = LockClass::new("epoll watches", rank::SPIN + 9);
static READY: LockClass = LockClass::new("epoll ready list", rank::WAIT + 5);

/// `berth.sabotage=edges`: edges are taken for levels, which gate m7 must notice.
static EDGES: Sabotage = Sabotage::new("edges");

/// How deep epolls may watch each other.
const MAX_NESTING: usize = 5;

/// Level-triggered is the default; this asks for edges.
pub const EPOLLET: u32 = 1 << 31;
/// Disabled once reported.
pub const EPOLLONESHOT: u32 = 1 << 30;
/// Ignored.
pub const EPOLLWAKEUP: u32 = 1 << 29;
/// Need not wake every watcher.
pub const EPOLLEXCLUSIVE: u32 = 1 << 28;
/// The bits that say how, not what.
const HOW: u32 = EPOLLET | EPOLLONESHOT | EPOLLWAKEUP | EPOLLEXCLUSIVE;
/// What is reported unasked.
const ALWAYS: u32 = PollEvents::ERR.0 | PollEvents::HUP.0;
/// With `EPOLLEXCLUSIVE`, only these go along.
const EXCLUSIVE_OK: u32 = 1 | 4 | ALWAYS | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;

/// What a program asks of one descriptor, and what it is told: `struct epoll_event` without its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `EPOLL*`.
    pub events: u32,
    /// The program's own.
    pub data: u64,
}

/// Items that may have something to report.
struct Ready {
    list: VecDeque<Arc<Item>>,
    /// How many of them are retired: nobody asks for them any more.
    retired: usize,
}

/// What items share with their epoll.
struct Core {
    ready: IrqLock<Ready>,
    /// `epoll_wait`s, and what watches the epoll itself.
    waiters: Arc<WaitQueue>,
}

struct Item {
    me: Weak<Item>,
    core: Arc<Core>,
    file: Weak<OpenFile>,
    /// What is asked for, with [`ALWAYS`]; the [`HOW`] bits alone when it is disabled. Written under the epoll's lock.
    events: AtomicU32,
    data: AtomicU64,
    /// Whether it is on the ready list. Written under the list's lock.
    queued: AtomicBool,
    /// Taken out of the map: never to be queued again.
    retired: AtomicBool,
    watches: SpinLock<Vec<Watch>>,
}

impl Item {
    /// Puts it on the ready list unless it is there.
    fn queue(&self) {
        let mut ready = self.core.ready.lock();
        if self.retired.load(Ordering::Relaxed) || self.queued.load(Ordering::Relaxed) {
            return;
        }
        // It can be on its way out already, when only its watches are left of it.
        if let Some(me) = self.me.upgrade() {
            self.queued.store(true, Ordering::Relaxed);
            ready.list.push_back(me);
        }
    }

    /// What it has to report now; `None` if its file is closed.
    fn look(&self) -> Option<u32> {
        let events = self.events.load(Ordering::Relaxed);
        let file = self.file.upgrade()?;
        if events & !HOW == 0 {
            return Some(0);
        }
        Some(file.poll(None).0 & events & !HOW)
    }

    /// It is out of the map, whose lock the caller still holds: stops watching.
    fn retire(&self) {
        {
            let mut ready = self.core.ready.lock();
            self.retired.store(true, Ordering::Relaxed);
            ready.retired += usize::from(self.queued.load(Ordering::Relaxed));
        }
        let watches = core::mem::take(&mut *self.watches.lock());
        drop(watches);
    }
}

impl Notify for Item {
    fn notify(&self) {
        if self.events.load(Ordering::Relaxed) & !HOW != 0 {
            self.queue();
            // Who wakes whom has no cycles: `check_nesting`.
            self.core.waiters.wake_nested();
        }
    }
}

/// Which file, through which descriptor. The address stays the file's as long as an item refers to it.
type Key = (i32, usize);

fn key_of(fd: i32, file: &Arc<OpenFile>) -> Key {
    (fd, Arc::as_ptr(file) as usize)
}

struct Items {
    map: BTreeMap<Key, Arc<Item>>,
    /// At so many, look for items of closed files.
    purge_at: usize,
}

/// An epoll instance.
pub struct Epoll {
    core: Arc<Core>,
    items: Mutex<Items>,
    /// The epolls that watch this one.
    parents: SpinLock<Vec<Weak<Epoll>>>,
    me: Weak<Epoll>,
}

struct Collector<'a> {
    item: &'a Arc<Item>,
    watches: Vec<Watch>,
}

impl Poller for Collector<'_> {
    fn register(&mut self, queue: &Arc<WaitQueue>) {
        self.watches.push(Watch::new(queue.clone(), self.item.clone()));
    }
}

impl Epoll {
    /// An instance that watches nothing.
    pub fn new() -> Arc<Epoll> {
        let ready = IrqLock::new(&READY, Ready { list: VecDeque::new(), retired: 0 });
        Arc::new_cyclic(|me| Epoll {
            core: Arc::new(Core { ready, waiters: Arc::new(WaitQueue::new()) }),
            items: Mutex::new(&ITEMS, Items { map: BTreeMap::new(), purge_at: 64 }),
            parents: SpinLock::new(&PARENTS, Vec::new()),
            me: me.clone(),
        })
    }

    /// Makes room on the ready list for `count` items beside those that are retired and still on it, or takes these off. The
    /// caller holds the items' lock, so that none retires meanwhile. Room for twice as many makes that rare.
    fn reserve(&self, count: usize) -> Result<()> {
        let full = |r: &Ready| r.list.capacity() < count + r.retired;
        if !full(&self.core.ready.lock()) {
            return Ok(());
        }
        let mut larger = VecDeque::new();
        larger.try_reserve((count * 2).next_power_of_two().max(16)).map_err(|_| Errno::ENOMEM)?;
        let mut ready = self.core.ready.lock();
        larger.extend(ready.list.iter().filter(|i| !i.retired.load(Ordering::Relaxed)).cloned());
        core::mem::swap(&mut ready.list, &mut larger);
        ready.retired = 0;
        drop(ready);
        // The retired go with the old list, which must not be locked then.
        drop(larger);
        Ok(())
    }

    /// `EPOLL_CTL_ADD`. `EEXIST`, `ELOOP`, `EINVAL`, `EPERM` (a file that is always ready), `ENOMEM`.
    pub fn add(&self, fd: i32, file: &Arc<OpenFile>, what: Event) -> Result<()> {
        if !file.object().is_some_and(|o| o.can_poll()) {
            return Err(Errno::EPERM);
        }
        let exclusive = what.events & EPOLLEXCLUSIVE != 0;
        let Some(inner) = file.object_as::<Epoll>() else {
            if exclusive && what.events & !EXCLUSIVE_OK != 0 {
                return Err(Errno::EINVAL);
            }
            return self.insert(fd, file, what);
        };
        if exclusive || core::ptr::eq(inner, self) {
            return Err(Errno::EINVAL);
        }
        let _one_at_a_time = NEST.lock();
        check_nesting(self, inner)?;
        self.insert(fd, file, what)?;
        let mut parents = Vec::new();
        parents.try_reserve(inner.parents.lock().len() + 1).map_err(|_| Errno::ENOMEM)?;
        let mut now = inner.parents.lock();
        parents.extend(now.drain(..).filter(|p: &Weak<Epoll>| p.strong_count() > 0));
        parents.push(self.me.clone());
        *now = parents;
        Ok(())
    }

    fn insert(&self, fd: i32, file: &Arc<OpenFile>, what: Event) -> Result<()> {
        let mut items = self.items.lock();
        if items.map.len() >= items.purge_at {
            items.purge();
        }
        let key = key_of(fd, file);
        if items.map.contains_key(&key) {
            return Err(Errno::EEXIST);
        }
        self.reserve(items.map.len() + 1)?;
        let item = Arc::new_cyclic(|me| Item {
            me: me.clone(),
            core: self.core.clone(),
            file: Arc::downgrade(file),
            events: AtomicU32::new(what.events | ALWAYS),
            data: AtomicU64::new(what.data),
            queued: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            watches: SpinLock::new(&WATCHES, Vec::new()),
        });
        items.map.insert(key, item.clone());
        let mut collector = Collector { item: &item, watches: Vec::new() };
        let now = file.poll(Some(&mut collector));
        *item.watches.lock() = collector.watches;
        if now.0 & (what.events | ALWAYS) != 0 {
            item.queue();
            self.core.waiters.wake();
        }
        Ok(())
    }

    /// `EPOLL_CTL_MOD`. `ENOENT`, `EINVAL`.
    pub fn modify(&self, fd: i32, file: &Arc<OpenFile>, what: Event) -> Result<()> {
        let items = self.items.lock();
        let item = items.map.get(&key_of(fd, file)).ok_or(Errno::ENOENT)?;
        if (what.events | item.events.load(Ordering::Relaxed)) & EPOLLEXCLUSIVE != 0 {
            return Err(Errno::EINVAL);
        }
        item.data.store(what.data, Ordering::Relaxed);
        item.events.store(what.events | ALWAYS, Ordering::Relaxed);
        // A wake-up that saw the old interest came before this look.
        core::sync::atomic::fence(Ordering::SeqCst);
        if item.look().is_some_and(|e| e != 0) {
            item.queue();
            self.core.waiters.wake();
        }
        Ok(())
    }

    /// `EPOLL_CTL_DEL`. `ENOENT`.
    pub fn remove(&self, fd: i32, file: &Arc<OpenFile>) -> Result<()> {
        let mut items = self.items.lock();
        let item = items.map.remove(&key_of(fd, file)).ok_or(Errno::ENOENT)?;
        item.retire();
        drop(items);
        Ok(())
    }

    /// Takes the next item off the ready list.
    fn next_ready(&self) -> Option<Arc<Item>> {
        let mut ready = self.core.ready.lock();
        let item = ready.list.pop_front()?;
        item.queued.store(false, Ordering::Relaxed);
        ready.retired -= usize::from(item.retired.load(Ordering::Relaxed)).min(ready.retired);
        Some(item)
    }

    fn ready_len(&self) -> usize {
        self.core.ready.lock().list.len()
    }

    /// Reports up to `limit` events to `emit`, which returns false when it could not take one; that one is not lost.
    fn scan(&self, limit: usize, emit: &mut dyn FnMut(Event) -> bool) -> usize {
        let mut items = self.items.lock_nested();
        let mut count = 0;
        for _ in 0..self.ready_len() {
            if count == limit {
                break;
            }
            let Some(item) = self.next_ready() else { break };
            if item.retired.load(Ordering::Relaxed) {
                continue;
            }
            match item.look() {
                None => items.drop_item(&item),
                Some(0) => {}
                Some(events) => {
                    if !emit(Event { events, data: item.data.load(Ordering::Relaxed) }) {
                        item.queue();
                        break;
                    }
                    count += 1;
                    let how = item.events.load(Ordering::Relaxed);
                    if how & EPOLLONESHOT != 0 {
                        item.events.store(how & HOW, Ordering::Relaxed);
                    } else if how & EPOLLET == 0 || EDGES.on() {
                        item.queue();
                    }
                }
            }
        }
        drop(items);
        count
    }

    /// `epoll_wait`: reports up to `limit` events to `emit`; how many. `deadline_ns` as for [`super::poll::wait`].
    /// `EINTR`. May sleep.
    pub fn wait(&self, limit: usize, deadline_ns: Option<u64>, emit: &mut dyn FnMut(Event) -> bool) -> Result<usize> {
        loop {
            let mut refused = false;
            if self.ready_len() > 0 {
                let count = self.scan(limit, &mut |e| {
                    let taken = emit(e);
                    refused |= !taken;
                    taken
                });
                if count > 0 && self.ready_len() > 0 {
                    // There may be something for the next one.
                    self.core.waiters.wake();
                }
                if count > 0 || refused {
                    return if count > 0 { Ok(count) } else { Err(Errno::EFAULT) };
                }
            }
            if deadline_ns == Some(0) {
                return Ok(0);
            }
            let options = ParkOptions { interruptible: true, deadline_ns };
            match self.core.waiters.wait_exclusive(options, || (self.ready_len() > 0).then_some(())) {
                Ok(()) => {}
                Err(Wake::TimedOut) => return Ok(0),
                Err(_) => return Err(Errno::EINTR),
            }
        }
    }

    /// The epolls that this one watches.
    fn children(&self) -> Vec<Arc<OpenFile>> {
        let items = self.items.lock();
        let files = items.map.values().filter_map(|i| i.file.upgrade());
        files.filter(|f| f.object_as::<Epoll>().is_some()).collect()
    }
}

impl Items {
    fn drop_item(&mut self, item: &Arc<Item>) {
        self.map.retain(|_, i| !Arc::ptr_eq(i, item));
        item.retire();
    }

    /// Drops the items of closed files.
    fn purge(&mut self) {
        self.map.retain(|_, i| {
            let alive = i.file.strong_count() > 0;
            if !alive {
                i.retire();
            }
            alive
        });
        self.purge_at = (self.map.len() * 2).max(64);
    }
}

/// Held while an epoll becomes watched by another.
static NEST: Mutex<()> = Mutex::new(&NESTING, ());

/// Whether `outer` may watch `inner`. `ELOOP`.
fn check_nesting(outer: &Epoll, inner: &Epoll) -> Result<()> {
    let below = depth_below(inner, outer, 1)?;
    if below + depth_above(outer, 0) > MAX_NESTING { Err(Errno::ELOOP) } else { Ok(()) }
}

/// The longest chain from `e` down, `e` included; `ELOOP` if it comes to `outer` or is too long.
fn depth_below(e: &Epoll, outer: &Epoll, level: usize) -> Result<usize> {
    if core::ptr::eq(e, outer) || level > MAX_NESTING {
        return Err(Errno::ELOOP);
    }
    let mut depth = 1;
    for child in e.children() {
        if let Some(c) = child.object_as::<Epoll>() {
            depth = depth.max(1 + depth_below(c, outer, level + 1)?);
        }
    }
    Ok(depth)
}

/// The longest chain of watchers above `e`, `e` included.
fn depth_above(e: &Epoll, level: usize) -> usize {
    if level > MAX_NESTING {
        return level;
    }
    let parents: Vec<_> = e.parents.lock().iter().filter_map(Weak::upgrade).collect();
    1 + parents.iter().map(|p| depth_above(p, level + 1)).max().unwrap_or(0)
}

impl File for Epoll {
    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        if let Some(p) = poller {
            p.register(&self.core.waiters);
        }
        if self.ready_len() == 0 {
            return PollEvents::NONE;
        }
        // An event that nobody takes stays.
        let mut any = false;
        self.scan(1, &mut |_| {
            any = true;
            false
        });
        PollEvents::IN.when(any)
    }

    fn getattr(&self) -> Result<Attr> {
        Ok(anonymous_attr())
    }

    fn name(&self) -> Vec<u8> {
        b"anon_inode:[eventpoll]".to_vec()
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        for item in self.items.get_mut().map.values() {
            item.retire();
        }
        // Taken out first: items must not be freed with the list locked.
        let left = core::mem::take(&mut self.core.ready.lock().list);
        drop(left);
    }
}
