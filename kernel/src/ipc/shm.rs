//! Shared memory segments (shmget(2), shmat(2), shmctl(2)).
//!
//! # Ideas
//! A segment is an object that mappings refer to, with pages made when first touched. Mappings tell it when they come and go
//! ([`crate::mm::Mapped`]), which gives `shm_nattch`: one for each area of each process, as on Linux. `IPC_RMID` of a segment
//! in use only marks it: it keeps its identifier and loses its key, and the last mapping to go, by whatever way, takes it out
//! of the table.
//!
//! # Locking
//! The pages are under a sleeping lock of the page caches' rank, since faults take it; the rest under the object's. Once
//! `gone` is set, which happens with no mapping left, nothing counts as attached any more.
//!
//! # What was not done
//! `SHM_HUGETLB` (`EINVAL`); `SHM_LOCK` only marks, since nothing is swapped.

use super::{IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, OBJECT, Object, Perm, READ, Table, UserPerm, WRITE, give, me, now};
use crate::arch::uaccess::{UserAddr, read_user};
use crate::file::procfs::{Out, full};
use crate::mm::{AddressSpace, Backing, MapRequest, Mappable, Mapped, PAGE_SIZE, Place, Prot, VmFlags};
use crate::sched::current;
use crate::syscall::{SysResult, efault};
use abi::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Range;
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

/// The device that `/proc/PID/maps` names.
const DEVICE: u64 = 1;
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
    /// How many areas map it.
    attached: usize,
    /// It was removed, and nobody maps it.
    gone: bool,
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

    fn mapped(&self) {
        let mut s = self.state.lock();
        s.attached += 1;
        s.atime = now();
        s.lpid = me();
    }

    fn unmapped(&self) {
        let mut s = self.state.lock();
        s.attached -= 1;
        s.dtime = now();
        s.lpid = me();
        let goes = s.goes();
        drop(s);
        if goes {
            SEGMENTS.remove(self);
        }
    }

    fn identity(&self) -> (u64, u64) {
        (DEVICE, self.perm().id.into())
    }

    fn name(&self) -> Vec<u8> {
        let mut name = Vec::new();
        // Without memory it is cut short.
        let _ = write!(Out(&mut name), "/SYSV{:08x} (deleted)", self.perm().key);
        name
    }
}

impl State {
    /// Whether the segment goes now: it was removed, and nobody maps it. True once.
    fn goes(&mut self) -> bool {
        let goes = self.attached == 0 && self.perm.mode & SHM_DEST != 0 && !self.gone;
        self.gone |= goes;
        goes
    }
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
    let object = Mapped::new(segment.clone());
    // It may have gone since it was found; now that it is counted as mapped it cannot.
    if segment.state.lock().gone {
        return Err(Errno::EIDRM);
    }
    let backing = Backing::Object { object, offset: 0 };
    let request = MapRequest { place, len: segment.size, prot, flags: vm, backing, populate: false };
    let space = crate::mm::current().ok_or(Errno::EFAULT)?;
    space.map(request).map_err(|e| if e == Errno::EEXIST { Errno::EINVAL } else { e })
}

/// The first area from `from` on that is a part of what was attached at `addr`: it stands where the segment would if that
/// began there. `whose` is the segment; that of the first area found counts.
fn next_part(space: &AddressSpace, addr: usize, from: usize, whose: &mut Option<Arc<Segment>>) -> Option<Range<usize>> {
    let mut found = None;
    space.for_each_area(|a| {
        let Some(object) = a.object.filter(|_| found.is_none() && a.range.start >= from) else { return };
        if (a.range.start - addr) as u64 != a.offset {
            return;
        }
        let is_behind = |s: &Arc<Segment>| Arc::as_ptr(s).cast::<u8>() == Arc::as_ptr(object).cast::<u8>();
        if whose.is_none()
            && let (DEVICE, id) = object.identity()
        {
            let segment = i32::try_from(id).ok().and_then(|id| SEGMENTS.find(id).ok());
            *whose = segment.filter(|s| is_behind(s));
        }
        let fits = |s: &Arc<Segment>| is_behind(s) && a.range.end - addr <= s.size.next_multiple_of(PAGE_SIZE);
        if whose.as_ref().is_some_and(fits) {
            found = Some(a.range.clone());
        }
    });
    found
}

fn shmdt(addr: usize) -> SysResult {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let space = crate::mm::current().ok_or(Errno::EFAULT)?;
    let (mut from, mut whose) = (addr, None);
    while let Some(part) = next_part(space, addr, from, &mut whose) {
        from = part.end;
        space.unmap(part.start, part.len())?;
    }
    if from > addr { Ok(0) } else { Err(Errno::EINVAL) }
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

fn stat(segment: &Segment) -> UserSegment {
    let s = *segment.state.lock();
    UserSegment {
        perm: s.perm.to_user(),
        size: segment.size as u64,
        times: [s.atime, s.dtime, s.ctime],
        cpid: segment.cpid,
        lpid: s.lpid,
        attached: s.attached as u64,
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
            let (mut count, mut pages, mut present) = (0_u64, 0, 0);
            for segment in SEGMENTS.iter() {
                count += 1;
                pages += segment.size.div_ceil(PAGE_SIZE) as u64;
                present += segment.pages.lock().len() as u64;
            }
            give(buf, &[count, pages, present, 0, 0, 0])?;
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
            s.perm.set(&from.perm)?;
            s.ctime = now();
            Ok(0)
        }
        IPC_RMID => {
            let segment = SEGMENTS.find(id)?;
            segment.perm().check_owner()?;
            let mut s = segment.state.lock();
            s.perm.mode |= SHM_DEST;
            s.perm.key = 0;
            let goes = s.goes();
            drop(s);
            if goes {
                SEGMENTS.remove(&segment);
            }
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
    let mut out = Out(out);
    out.write_str(
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      \
         atime      dtime      ctime                   rss                  swap\n",
    )
    .map_err(full)?;
    for segment in SEGMENTS.iter() {
        let present = segment.pages.lock().len() * PAGE_SIZE;
        let s = *segment.state.lock();
        let p = s.perm;
        writeln!(
            out,
            "{:10} {:10}  {:4o} {:21} {:5} {:5}  {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {present:21} {:21}",
            p.key as i32,
            p.id,
            p.mode,
            segment.size,
            segment.cpid,
            s.lpid,
            s.attached,
            p.uid,
            p.gid,
            p.cuid,
            p.cgid,
            s.atime,
            s.dtime,
            s.ctime,
            0
        )
        .map_err(full)?;
    }
    Ok(())
}
