//! System V IPC: semaphores, messages, shared memory (svipc(7)).
//!
//! # Ideas
//! Each kind has a [`Table`] from identifiers to objects. An identifier is a slot's number and a sequence number above it,
//! which moves on whenever slots are used again, so that an old identifier seldom means a new object. Objects are counted:
//! a call looks its object up, and works on it without the table; removal takes it out of the table and tells it, and whoever
//! sleeps on it, that it is gone (`EIDRM`).
//!
//! # Locking
//! A table's spin lock, then an object's. Neither is held around copies from or to user memory.
//!
//! # What was not done
//! Namespaces. The limits in `/proc/sys/kernel` are fixed.

pub mod msg;
pub mod sem;
pub mod shm;

use crate::arch::uaccess::{UserAddr, write_user};
use crate::sched::current;
use crate::syscall::{SysResult, efault};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use sync::{LockClass, SpinLock, rank};
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

    /// `IPC_SET`.
    fn set(&mut self, from: &UserPerm) {
        self.uid = from.uid;
        self.gid = from.gid;
        self.mode = self.mode & !0o777 | from.mode & 0o777;
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
    /// Whether it is still there for those who know its identifier (a removed segment goes with its last user).
    fn is_gone(this: &Arc<Self>) -> bool {
        let _ = this;
        false
    }
}

struct Slots<T> {
    all: Vec<Option<Arc<T>>>,
    last: usize,
    seq: u32,
}

/// The objects of a kind.
struct Table<T: 'static> {
    inner: SpinLock<Slots<T>>,
    max: usize,
}

impl<T: Object> Table<T> {
    const fn new(max: usize) -> Table<T> {
        Table { inner: SpinLock::new(&TABLE, Slots { all: Vec::new(), last: 0, seq: 0 }), max }
    }

    /// Lets go of what has gone by itself. What is dropped is dropped without the lock.
    fn sweep(&self) {
        let mut gone = Vec::new();
        {
            let mut t = self.inner.lock();
            for slot in &mut t.all {
                if slot.as_ref().is_some_and(T::is_gone) && gone.try_reserve(1).is_ok() {
                    gone.extend(slot.take());
                }
            }
        }
        drop(gone);
    }

    /// The object `id`. `EINVAL`.
    fn find(&self, id: i32) -> Result<Arc<T>> {
        self.sweep();
        let id = u32::try_from(id).map_err(|_| Errno::EINVAL)?;
        let t = self.inner.lock();
        let slot = t.all.get((id & ((1 << SLOT_BITS) - 1)) as usize);
        let found = slot.and_then(|s| s.clone()).ok_or(Errno::EINVAL)?;
        drop(t);
        if found.perm().id == id { Ok(found) } else { Err(Errno::EINVAL) }
    }

    /// The object in slot `index` (`*_STAT`), which has what identifier.
    fn at(&self, index: i32) -> Result<(Arc<T>, u32)> {
        self.sweep();
        let t = self.inner.lock();
        let slot = usize::try_from(index).ok().and_then(|i| t.all.get(i));
        let found = slot.and_then(|s| s.clone()).ok_or(Errno::EINVAL)?;
        drop(t);
        let id = found.perm().id;
        Ok((found, id))
    }

    /// `*get(2)`: the identifier of the object with `key`, which `fits` says whether it serves, or of a new one.
    fn get(&self, key: u32, flags: u32, fits: impl Fn(&T) -> Result<()>, make: impl Fn() -> Result<T>) -> SysResult {
        self.sweep();
        if key != 0
            && let Some(found) = self.all().into_iter().find(|o| o.perm().key == key)
        {
            if flags & (IPC_CREAT | IPC_EXCL) == IPC_CREAT | IPC_EXCL {
                return Err(Errno::EEXIST);
            }
            fits(&found)?;
            let perm = found.perm();
            perm.check(flags)?;
            return Ok(perm.id as usize);
        }
        if key != 0 && flags & IPC_CREAT == 0 {
            return Err(Errno::ENOENT);
        }
        let object = Arc::new(make()?);
        let mut t = self.inner.lock();
        // Another may have made it meanwhile.
        if key != 0 && t.all.iter().flatten().any(|o| o.perm().key == key) {
            drop(t);
            return self.get(key, flags, fits, make);
        }
        let free = t.all.iter().position(Option::is_none).unwrap_or(t.all.len());
        if free >= self.max {
            return Err(Errno::ENOSPC);
        }
        if free == t.all.len() {
            t.all.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            t.all.push(None);
        }
        if free <= t.last && !(t.last == 0 && t.seq == 0 && free == 0 && t.all.len() == 1) {
            t.seq = (t.seq + 1) % SEQUENCES;
        }
        t.last = free;
        let id = t.seq << SLOT_BITS | free as u32;
        object.set_id(id);
        t.all[free] = Some(object);
        Ok(id as usize)
    }

    /// Every object.
    fn all(&self) -> Vec<Arc<T>> {
        self.sweep();
        let mut all = Vec::new();
        let wanted = self.inner.lock().all.len();
        // Without memory the list is short; the call that needs it fails for the same reason soon.
        if all.try_reserve(wanted).is_ok() {
            all.extend(self.inner.lock().all.iter().flatten().take(wanted).cloned());
        }
        all
    }

    /// The highest slot in use (0 if there is none): what `IPC_INFO` returns.
    fn highest(&self) -> usize {
        self.sweep();
        self.inner.lock().all.iter().rposition(Option::is_some).unwrap_or(0)
    }

    /// Takes `object` out.
    fn remove(&self, object: &Arc<T>) {
        let mut t = self.inner.lock();
        let mut found = None;
        for slot in &mut t.all {
            if slot.as_ref().is_some_and(|o| Arc::ptr_eq(o, object)) {
                found = slot.take();
            }
        }
        drop(t);
        drop(found);
    }
}

/// Writes a structure to the caller.
fn give<T: IntoBytes + Immutable>(at: UserAddr, value: &T) -> Result<()> {
    write_user(at, value).map_err(efault)
}
