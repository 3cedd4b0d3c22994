//! Shared memory segments (shmget(2), shmat(2), shmctl(2)).
//!
//! # Ideas
//! A segment is an object that mappings refer to, with pages made when first touched. Every mapping of it, in whatever
//! process, is one reference beside the table's, which gives `shm_nattch` without counting. `IPC_RMID` of a segment in use
//! only marks it: it keeps its identifier, loses its key, and [`Object::is_gone`] finds when the last mapping went.
//!
//! # Locking
//! The pages are under a sleeping lock of the page caches' rank, since faults take it; the rest under the object's.
//!
//! # What was not done
//! `SHM_HUGETLB` (`EINVAL`); `SHM_LOCK` only marks, since nothing is swapped. `shm_dtime` and `shm_lpid` tell of `shmdt`,
//! not of exits.

use super::{IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, OBJECT, Object, Perm, READ, Table, UserPerm, WRITE, give, me, now};
use crate::arch::uaccess::{UserAddr, read_user};
use crate::mm::{Backing, MapRequest, Mappable, PAGE_SIZE, Place, Prot, VmFlags};
use crate::sched::current;
use crate::syscall::{SysResult, efault};
use abi::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use platform::Page;
use sync::{LockClass, Mutex, SpinLock, rank};
use zerocopy::{FromBytes, Immutable, IntoBytes};

static PAGES: LockClass = LockClass::new("System V shared memory", rank::PAGE_CACHE);

crate::syscalls! {
    plain {
        194 shmget(key: Hex, size: Size, flags: Hex) = shmget;
        195 shmctl(id: Int, command: Int, buf: Ptr) = shmctl;
        196 shmat(id: Int, addr: Ptr, flags: Hex) = shmat;
        197 shmdt(addr: Ptr) = shmdt;
    }
    frame {}
}

const SHM_LOCK: u32 = 11;
const SHM_UNLOCK: u32 = 12;
const SHM_STAT: u32 = 13;
const SHM_INFO: u32 = 14;
const SHM_STAT_ANY: u32 = 15;
/// In the mode: it goes with its last user.
const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;
const SHM_HUGETLB: u32 = 0o4000;
const SHM_RDONLY: u32 = 0o10000;
const SHM_RND: u32 = 0o20000;
const SHM_REMAP: u32 = 0o40000;
const SHM_EXEC: u32 = 0o100_000;
/// The most segments, and the largest, as `/proc/sys/kernel` says.
pub const SHMMNI: usize = 4096;
/// The largest segment and all together.
pub const SHMMAX: u64 = u64::MAX - (1 << 24);

#[derive(Clone, Copy, Default)]
struct State {
    perm: Perm,
    atime: i64,
    dtime: i64,
    ctime: i64,
    lpid: u32,
}

struct Segment {
    size: usize,
    cpid: u32,
    state: SpinLock<State>,
    pages: Mutex<BTreeMap<u64, Page>>,
}

static SEGMENTS: Table<Segment> = Table::new(SHMMNI);

impl Object for Segment {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }

    fn set_id(&self, id: u32) {
        self.state.lock().perm.id = id;
    }

    fn is_gone(this: &Arc<Self>) -> bool {
        // Only the table has it, so nobody can come to have it but through the table, whose lock the caller holds.
        Arc::strong_count(this) == 1 && this.perm().mode & SHM_DEST != 0
    }
}

impl Mappable for Segment {
    fn page_for(&self, index: u64, _write: bool) -> Result<Page> {
        if index >= self.size.div_ceil(PAGE_SIZE) as u64 {
            return Err(Errno::ENXIO);
        }
        let mut pages = self.pages.lock();
        if let Some(p) = pages.get(&index) {
            return Ok(p.clone());
        }
        let page = Page::zeroed().ok_or(Errno::ENOMEM)?;
        pages.insert(index, page.clone());
        Ok(page)
    }

    fn for_cached(&self, first: u64, count: u64, each: &mut dyn FnMut(u64, Page)) {
        for (&i, p) in self.pages.lock().range(first..first + count) {
            each(i, p.clone());
        }
    }

    fn tracks_dirty(&self) -> bool {
        false
    }

    fn len(&self) -> u64 {
        self.size.next_multiple_of(PAGE_SIZE) as u64
    }

    fn identity(&self) -> (u64, u64) {
        (1, self.perm().id.into())
    }

    fn name(&self) -> Vec<u8> {
        alloc::format!("/SYSV{:08x} (deleted)", self.perm().key).into_bytes()
    }
}

/// How many mappings there are, besides `mine` references of the caller and the table's.
fn attached(segment: &Arc<Segment>, mine: usize) -> usize {
    Arc::strong_count(segment).saturating_sub(mine + 1)
}

fn shmget(key: u32, size: usize, flags: u32) -> SysResult {
    let make = || {
        if size == 0 || size as u64 > SHMMAX || flags & SHM_HUGETLB != 0 {
            return Err(Errno::EINVAL);
        }
        if size.div_ceil(PAGE_SIZE) > crate::mm::frames::total() {
            return Err(Errno::ENOMEM);
        }
        let state = State { perm: Perm::new(key, flags), ctime: now(), ..State::default() };
        let pages = Mutex::new(&PAGES, BTreeMap::new());
        Ok(Segment { size, cpid: me(), state: SpinLock::new(&OBJECT, state), pages })
    };
    let fits = |s: &Segment| if size > s.size { Err(Errno::EINVAL) } else { Ok(()) };
    SEGMENTS.get(key, flags, fits, make)
}

fn shmat(id: i32, addr: usize, flags: u32) -> SysResult {
    let mut addr = addr;
    if !addr.is_multiple_of(PAGE_SIZE) {
        if flags & SHM_RND == 0 {
            return Err(Errno::EINVAL);
        }
        addr -= addr % PAGE_SIZE;
        if addr == 0 && flags & SHM_REMAP != 0 {
            return Err(Errno::EINVAL);
        }
    } else if addr == 0 && flags & SHM_REMAP != 0 {
        return Err(Errno::EINVAL);
    }
    let segment = SEGMENTS.find(id)?;
    let (mut prot, mut vm, mut wanted) = (Prot::READ, VmFlags::SHARED, READ);
    if flags & SHM_RDONLY == 0 {
        prot |= Prot::WRITE;
        wanted |= WRITE;
    } else {
        vm |= VmFlags::NOWRITE;
    }
    if flags & SHM_EXEC != 0 {
        prot |= Prot::EXEC;
        wanted |= 0o111;
    }
    segment.perm().check(wanted)?;
    let place = match (addr, flags & SHM_REMAP != 0) {
        (0, _) => Place::Any(0),
        (a, true) => Place::Fixed(a),
        (a, false) => Place::FixedFree(a),
    };
    let backing = Backing::Object { object: segment.clone(), offset: 0 };
    let request = MapRequest { place, len: segment.size, prot, flags: vm, backing, populate: false };
    let space = crate::mm::current().ok_or(Errno::EFAULT)?;
    let at = space.map(request).map_err(|e| if e == Errno::EEXIST { Errno::EINVAL } else { e })?;
    let mut s = segment.state.lock();
    s.atime = now();
    s.lpid = me();
    Ok(at)
}

fn shmdt(addr: usize) -> SysResult {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let space = crate::mm::current().ok_or(Errno::EFAULT)?;
    let data = |s: &Arc<dyn Mappable>| Arc::as_ptr(s).cast::<u8>();
    // The first mapping that stands where the segment would if it began at `addr`, and then all of that attachment.
    let all = SEGMENTS.all();
    let mut found: Option<&Arc<Segment>> = None;
    let mut parts = Vec::new();
    space.for_each_area(|a| {
        let Some(object) = a.object.filter(|_| a.range.start >= addr) else { return };
        if (a.range.start - addr) as u64 != a.offset {
            return;
        }
        if found.is_none() {
            found = all.iter().find(|s| Arc::as_ptr(s).cast::<u8>() == data(object));
        }
        let fits = found.is_some_and(|s| {
            Arc::as_ptr(s).cast::<u8>() == data(object) && a.range.end - addr <= s.size.next_multiple_of(PAGE_SIZE)
        });
        if fits && parts.try_reserve(1).is_ok() {
            parts.push(a.range.clone());
        }
    });
    let segment = found.ok_or(Errno::EINVAL)?;
    for part in parts {
        space.unmap(part.start, part.len())?;
    }
    let mut s = segment.state.lock();
    s.dtime = now();
    s.lpid = me();
    Ok(0)
}

/// `struct shmid64_ds`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct UserSegment {
    perm: UserPerm,
    size: u64,
    times: [i64; 3],
    cpid: u32,
    lpid: u32,
    attached: u64,
    unused: [u64; 2],
}

fn stat(segment: &Arc<Segment>) -> UserSegment {
    let attached = attached(segment, 1) as u64;
    let s = *segment.state.lock();
    UserSegment {
        perm: s.perm.to_user(),
        size: segment.size as u64,
        times: [s.atime, s.dtime, s.ctime],
        cpid: segment.cpid,
        lpid: s.lpid,
        attached,
        unused: [0; 2],
    }
}

fn shmctl(id: i32, command: u32, buf: UserAddr) -> SysResult {
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        IPC_INFO => {
            give(buf, &[SHMMAX, 1, SHMMNI as u64, SHMMNI as u64, SHMMAX, 0, 0, 0, 0])?;
            Ok(SEGMENTS.highest())
        }
        SHM_INFO => {
            let all = SEGMENTS.all();
            let pages: usize = all.iter().map(|s| s.size.div_ceil(PAGE_SIZE)).sum();
            let present: usize = all.iter().map(|s| s.pages.lock().len()).sum();
            give(buf, &[all.len() as u64, pages as u64, present as u64, 0, 0, 0])?;
            drop(all);
            Ok(SEGMENTS.highest())
        }
        SHM_STAT | SHM_STAT_ANY => {
            let (segment, id) = SEGMENTS.at(id)?;
            if command == SHM_STAT {
                segment.perm().check(READ)?;
            }
            give(buf, &stat(&segment))?;
            Ok(id as usize)
        }
        IPC_STAT => {
            let segment = SEGMENTS.find(id)?;
            segment.perm().check(READ)?;
            give(buf, &stat(&segment)).map(|()| 0)
        }
        IPC_SET => {
            let from: UserSegment = read_user(buf).map_err(efault)?;
            let segment = SEGMENTS.find(id)?;
            segment.perm().check_owner()?;
            let mut s = segment.state.lock();
            s.perm.set(&from.perm);
            s.ctime = now();
            Ok(0)
        }
        IPC_RMID => {
            let segment = SEGMENTS.find(id)?;
            segment.perm().check_owner()?;
            let mut s = segment.state.lock();
            s.perm.mode |= SHM_DEST;
            s.perm.key = 0;
            drop(s);
            drop(segment);
            SEGMENTS.sweep();
            Ok(0)
        }
        SHM_LOCK | SHM_UNLOCK => {
            let segment = SEGMENTS.find(id)?;
            if !current().creds().has(crate::task::cred::cap::IPC_LOCK) {
                segment.perm().check_owner()?;
            }
            let mut s = segment.state.lock();
            s.perm.mode = s.perm.mode & !SHM_LOCKED | if command == SHM_LOCK { SHM_LOCKED } else { 0 };
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `/proc/sysvipc/shm`.
pub fn list(out: &mut Vec<u8>) -> Result<()> {
    let mut text = alloc::string::String::from(
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      \
         atime      dtime      ctime                   rss                  swap\n",
    );
    for segment in SEGMENTS.all() {
        let present = segment.pages.lock().len() * PAGE_SIZE;
        let s = *segment.state.lock();
        let (p, attached) = (s.perm, attached(&segment, 1));
        writeln!(
            text,
            "{:10} {:10}  {:4o} {:21} {:5} {:5}  {attached:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {present:21} {:21}",
            p.key as i32,
            p.id,
            p.mode,
            segment.size,
            segment.cpid,
            s.lpid,
            p.uid,
            p.gid,
            p.cuid,
            p.cgid,
            s.atime,
            s.dtime,
            s.ctime,
            0
        )
        .map_err(|_| Errno::ENOMEM)?;
    }
    out.extend_from_slice(text.as_bytes());
    Ok(())
}
