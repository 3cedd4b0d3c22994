//! System V IPC: semaphores, messages, shared memory (svipc(7)).
//!
//! # Ideas
//! Each kind has a [`Table`] from identifiers to objects. An identifier is a slot's number and a sequence number above it,
//! which moves on whenever slots are used again, so that an old identifier seldom means a new object. Objects are counted:
//! a call looks its object up, and works on it without the table; removal takes it out of the table and tells it, and whoever
//! sleeps on it, that it is gone (`EIDRM`). Whoever looks at all objects goes from slot to slot, and so needs no memory.
//!
//! What sets, queues, messages and undo values take is counted ([`Charge`]), and bounded to an eighth of memory: any user
//! may make them, and they stay when he goes.
//!
//! # Locking
//! A table's spin lock, then an object's. Neither is held around copies from or to user memory, nor around what allocates
//! without being able to fail. Both may be taken with an address space locked: mappings of segments come and go.
//!
//! # What was not done
//! Namespaces. The limits in `/proc/sys/kernel` are fixed.

pub mod msg;
pub mod sem;
pub mod shm;

use crate::arch::uaccess::{UserAddr, write_user};
use crate::mm::{PAGE_SIZE, frames};
use crate::sched::current;
use crate::syscall::{SysResult, efault};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use sync::{LockClass, Once, SpinLock, rank};
use zerocopy::{FromBytes, Immutable, IntoBytes};

static TABLE: LockClass = LockClass::new("System V identifiers", rank::SPIN + 80);
static OBJECT: LockClass = LockClass::new("System V object", rank::SPIN + 81);

const IPC_CREAT: u32 = 0o1000;
const IPC_EXCL: u32 = 0o2000;
const IPC_NOWAIT: u32 = 0o4000;
const IPC_RMID: u32 = 0;
const IPC_SET: u32 = 1;
const IPC_STAT: u32 = 2;
const IPC_INFO: u32 = 3;
/// Reading and writing, for everyone: [`Perm::check`] takes the caller's part.
const READ: u32 = 0o444;
const WRITE: u32 = 0o222;
const CAP_IPC_OWNER: u32 = 15;
/// An identifier's lower part is the slot.
const SLOT_BITS: u32 = 15;
const SEQUENCES: u32 = 1 << 16;

/// Seconds since 1970.
fn now() -> i64 {
    (platform::realtime_ns() / 1_000_000_000) as i64
}

/// The calling process's number.
fn me() -> u32 {
    current().process.pid.0
}

/// Who made an object, whose it is, and who may do what.
#[derive(Clone, Copy, Debug, Default)]
struct Perm {
    key: u32,
    uid: u32,
    gid: u32,
    cuid: u32,
    cgid: u32,
    mode: u32,
    id: u32,
}

/// `struct ipc64_perm`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct UserPerm {
    key: u32,
    uid: u32,
    gid: u32,
    cuid: u32,
    cgid: u32,
    mode: u32,
    seq: u32,
    pad: u32,
    unused: [u64; 2],
}

impl Perm {
    fn new(key: u32, flags: u32) -> Perm {
        let c = current().creds();
        Perm { key, uid: c.euid, gid: c.egid, cuid: c.euid, cgid: c.egid, mode: flags & 0o777, id: 0 }
    }

    /// Whether the caller may do all of `wanted` (mode bits, in any of the three places). `EACCES`.
    fn check(&self, wanted: u32) -> Result<()> {
        let c = current().creds();
        let wanted = (wanted >> 6 | wanted >> 3 | wanted) & 7;
        let member = |g: u32| c.egid == g || c.groups.binary_search(&g).is_ok();
        let granted = if c.euid == self.uid || c.euid == self.cuid {
            self.mode >> 6
        } else if member(self.gid) || member(self.cgid) {
            self.mode >> 3
        } else {
            self.mode
        };
        if wanted & !granted == 0 || c.has(CAP_IPC_OWNER) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Whether the caller may change or remove it. `EPERM`.
    fn check_owner(&self) -> Result<()> {
        let c = current().creds();
        let owns = c.euid == self.uid || c.euid == self.cuid || c.has(crate::task::cred::cap::SYS_ADMIN);
        if owns { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// `IPC_SET`. `EINVAL` for what is no user or group.
    fn set(&mut self, from: &UserPerm) -> Result<()> {
        if from.uid == u32::MAX || from.gid == u32::MAX {
            return Err(Errno::EINVAL);
        }
        self.uid = from.uid;
        self.gid = from.gid;
        self.mode = self.mode & !0o777 | from.mode & 0o777;
        Ok(())
    }

    fn to_user(self) -> UserPerm {
        let Perm { key, uid, gid, cuid, cgid, mode, id } = self;
        UserPerm { key, uid, gid, cuid, cgid, mode, seq: id >> SLOT_BITS, pad: 0, unused: [0; 2] }
    }
}

/// What a table holds.
trait Object: Send + Sync {
    /// Its permissions, as they are now.
    fn perm(&self) -> Perm;
    /// Tells it its identifier.
    fn set_id(&self, id: u32);
}

struct Slots<T> {
    all: Vec<Option<Arc<T>>>,
    /// The slot used last.
    last: Option<usize>,
    seq: u32,
}

/// The objects of a kind.
struct Table<T: 'static> {
    inner: SpinLock<Slots<T>>,
    max: usize,
}

/// The slot of the object `id`.
fn slot(id: u32) -> usize {
    (id & ((1 << SLOT_BITS) - 1)) as usize
}

impl<T: Object> Slots<T> {
    fn with_key(&self, key: u32) -> Option<Arc<T>> {
        self.all.iter().flatten().find(|o| o.perm().key == key).cloned()
    }
}

impl<T: Object> Table<T> {
    const fn new(max: usize) -> Table<T> {
        Table { inner: SpinLock::new(&TABLE, Slots { all: Vec::new(), last: None, seq: 0 }), max }
    }

    /// The object `id`. `EINVAL`.
    fn find(&self, id: i32) -> Result<Arc<T>> {
        let id = u32::try_from(id).map_err(|_| Errno::EINVAL)?;
        let found = self.inner.lock().all.get(slot(id)).cloned().flatten().ok_or(Errno::EINVAL)?;
        if found.perm().id == id { Ok(found) } else { Err(Errno::EINVAL) }
    }

    /// The object in slot `index` (`*_STAT`), which has what identifier.
    fn at(&self, index: i32) -> Result<(Arc<T>, u32)> {
        let index = usize::try_from(index).map_err(|_| Errno::EINVAL)?;
        let found = self.inner.lock().all.get(index).cloned().flatten().ok_or(Errno::EINVAL)?;
        let id = found.perm().id;
        Ok((found, id))
    }

    /// `*get(2)`: the identifier of the object with `key`, which `fits` says whether it serves, or of a new one.
    fn get(&self, key: u32, flags: u32, fits: impl Fn(&T) -> Result<()>, make: impl Fn() -> Result<T>) -> SysResult {
        let serve = |found: &T| -> SysResult {
            if flags & (IPC_CREAT | IPC_EXCL) == IPC_CREAT | IPC_EXCL {
                return Err(Errno::EEXIST);
            }
            fits(found)?;
            let perm = found.perm();
            perm.check(flags)?;
            Ok(perm.id as usize)
        };
        if key != 0 {
            let found = self.inner.lock().with_key(key);
            match found {
                Some(found) => return serve(&found),
                None if flags & IPC_CREAT == 0 => return Err(Errno::ENOENT),
                None => {}
            }
        }
        let object = Arc::new(make()?);
        let mut t = self.inner.lock();
        // Another may have made it meanwhile.
        if key != 0
            && let Some(found) = t.with_key(key)
        {
            drop(t);
            return serve(&found);
        }
        let free = t.all.iter().position(Option::is_none).unwrap_or(t.all.len());
        if free >= self.max {
            return Err(Errno::ENOSPC);
        }
        if free == t.all.len() {
            t.all.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            t.all.push(None);
        }
        if t.last.is_some_and(|last| free <= last) {
            t.seq = (t.seq + 1) % SEQUENCES;
        }
        t.last = Some(free);
        let id = t.seq << SLOT_BITS | free as u32;
        object.set_id(id);
        t.all[free] = Some(object);
        Ok(id as usize)
    }

    /// The objects, each looked up when its turn comes: what is made or removed meanwhile may be among them or not.
    fn iter(&self) -> impl Iterator<Item = Arc<T>> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let t = self.inner.lock();
            let (i, found) = t.all.iter().enumerate().skip(from).find_map(|(i, o)| Some((i, o.clone()?)))?;
            from = i + 1;
            Some(found)
        })
    }

    /// The highest slot in use (0 if there is none): what `IPC_INFO` returns.
    fn highest(&self) -> usize {
        self.inner.lock().all.iter().rposition(Option::is_some).unwrap_or(0)
    }

    /// Takes `object` out. The caller holds a reference and no object's lock.
    fn remove(&self, object: &T) {
        let at = slot(object.perm().id);
        let mut t = self.inner.lock();
        let found = match t.all.get_mut(at) {
            Some(o) if o.as_ref().is_some_and(|o| core::ptr::eq(Arc::as_ptr(o), object)) => o.take(),
            _ => None,
        };
        drop(t);
        drop(found);
    }
}

/// What objects of all kinds take of the kernel's memory, in bytes.
static CHARGED: AtomicUsize = AtomicUsize::new(0);

/// A part of that, given back when dropped.
#[derive(Default)]
struct Charge(usize);

impl Charge {
    /// `None` where that would make it more than an eighth of memory.
    fn new(bytes: usize) -> Option<Charge> {
        static MOST: Once<usize> = Once::new();
        let most = MOST.get().copied().unwrap_or_else(|| {
            let most = frames::total() * PAGE_SIZE / 8;
            let _ = MOST.set(most);
            most
        });
        let more = |now: usize| now.checked_add(bytes).filter(|&n| n <= most);
        CHARGED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Charge(bytes))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        CHARGED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Writes a structure to the caller.
fn give<T: IntoBytes + Immutable>(at: UserAddr, value: &T) -> Result<()> {
    write_user(at, value).map_err(efault)
}
