//! Semaphore sets (semget(2), semop(2), semctl(2)).
//!
//! # Ideas
//! A set's values are under one spin lock. An operation is tried as a whole under it: done, or undone again and then slept on
//! until somebody changes the set, when it is tried anew. What an exit must take back (`SEM_UNDO`) is kept in the set, by
//! process; a process that has any says so in a flag, so that other exits cost nothing.
//!
//! # Locking
//! The set's lock; wait queues after it.
//!
//! # What was not done
//! Sleepers are woken all at once and the first to run wins; Linux serves them in the order in which they came. A thread
//! made without `CLONE_SYSVSEM` shares its process's undo values.

use super::{
    Charge, IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, OBJECT, Object, Perm, READ, Table, UserPerm, WRITE,
    give, me, now,
};
use crate::arch::uaccess::{UserAddr, copy_from_user, copy_to_user, read_user};
use crate::file::procfs::{Out, full};
use crate::sched::current;
use crate::syscall::{SysResult, efault};
use crate::task::Process;
use abi::{Errno, Result, Timespec};
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::Ordering;
use platform::{ParkOptions, Wake};
use sync::{SpinLock, WaitQueue};
use zerocopy::{FromBytes, Immutable, IntoBytes};

crate::syscalls! {
    plain {
        190 semget(key: Hex, count: Int, flags: Hex) = semget;
        191 semctl(id: Int, number: Int, command: Int, arg: Ptr) = semctl;
        192 semtimedop(id: Int, ops: Ptr, count: Size, timeout: Ptr) = semtimedop;
        193 semop(id: Int, ops: Ptr, count: Size) = semop;
    }
    frame {}
}

const GETPID: u32 = 11;
const GETVAL: u32 = 12;
const GETALL: u32 = 13;
const GETNCNT: u32 = 14;
const GETZCNT: u32 = 15;
const SETVAL: u32 = 16;
const SETALL: u32 = 17;
const SEM_STAT: u32 = 18;
const SEM_INFO: u32 = 19;
const SEM_STAT_ANY: u32 = 20;
const SEM_UNDO: u16 = 0x1000;
/// The most sets.
pub const SEMMNI: usize = 32000;
/// The most semaphores in a set.
pub const SEMMSL: usize = 32000;
/// The most operations in a call.
pub const SEMOPM: usize = 500;
/// The most semaphores in all.
pub const SEMMNS: usize = SEMMNI * SEMMSL;
/// The highest value.
const SEMVMX: i32 = 32767;

#[derive(Clone, Copy, Default)]
struct Sem {
    value: i32,
    pid: u32,
    /// How many sleep until it is higher, and until it is zero.
    sleepers: [u32; 2],
}

/// On which semaphore a thread sleeps, and whether until it is zero.
type Asleep = Option<(u16, bool)>;

/// What a process's exit adds to each semaphore.
struct Undo {
    pid: u32,
    by: Vec<i32>,
    _charge: Charge,
}

/// Those of a set, by process.
#[derive(Default)]
struct Undos(Vec<Undo>);

impl Undos {
    fn place(&self, pid: u32) -> core::result::Result<usize, usize> {
        self.0.binary_search_by_key(&pid, |u| u.pid)
    }

    fn get(&self, pid: u32) -> Option<&Vec<i32>> {
        self.place(pid).ok().map(|i| &self.0[i].by)
    }

    fn get_mut(&mut self, pid: u32) -> Option<&mut Vec<i32>> {
        self.place(pid).ok().map(|i| &mut self.0[i].by)
    }

    /// Makes room for those of `pid`, of `count` semaphores. `ENOMEM`.
    fn prepare(&mut self, pid: u32, count: usize) -> Result<()> {
        let Err(at) = self.place(pid) else { return Ok(()) };
        let charge = Charge::new(size_of::<Undo>() + count * size_of::<i32>()).ok_or(Errno::ENOMEM)?;
        self.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.0.insert(at, Undo { pid, by: zeroes(count)?, _charge: charge });
        Ok(())
    }

    fn take(&mut self, pid: u32) -> Option<Undo> {
        self.place(pid).ok().map(|i| self.0.remove(i))
    }
}

/// `struct sembuf`.
#[repr(C)]
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
struct Op {
    number: u16,
    by: i16,
    flags: u16,
}

struct State {
    perm: Perm,
    gone: bool,
    sems: Vec<Sem>,
    otime: i64,
    ctime: i64,
    undo: Undos,
}

struct Set {
    state: SpinLock<State>,
    changed: WaitQueue,
    _charge: Charge,
}

static SETS: Table<Set> = Table::new(SEMMNI);

impl Object for Set {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }

    fn set_id(&self, id: u32) {
        self.state.lock().perm.id = id;
    }
}

fn zeroes<T: Clone + Default>(count: usize) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    v.resize(count, T::default());
    Ok(v)
}

fn semget(key: u32, count: i32, flags: u32) -> SysResult {
    let count = usize::try_from(count).ok().filter(|&n| n <= SEMMSL).ok_or(Errno::EINVAL)?;
    let make = || {
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        let charge = Charge::new(size_of::<Set>() + count * size_of::<Sem>()).ok_or(Errno::ENOSPC)?;
        let state = State {
            perm: Perm::new(key, flags),
            gone: false,
            sems: zeroes(count)?,
            otime: 0,
            ctime: now(),
            undo: Undos::default(),
        };
        Ok(Set { state: SpinLock::new(&OBJECT, state), changed: WaitQueue::new(), _charge: charge })
    };
    let fits = |s: &Set| if count > s.state.lock().sems.len() { Err(Errno::EINVAL) } else { Ok(()) };
    SETS.get(key, flags, fits, make)
}

/// Why an operation was not done.
enum Stop {
    Failed(Errno),
    /// This operation would sleep.
    Sleeps(Op),
}

impl State {
    /// Counts a thread that was `asleep` among the sleepers as it is `now`.
    fn count(&mut self, asleep: &mut Asleep, now: Asleep) {
        if let Some((number, zero)) = *asleep {
            self.sems[usize::from(number)].sleepers[usize::from(zero)] -= 1;
        }
        if let Some((number, zero)) = now {
            self.sems[usize::from(number)].sleepers[usize::from(zero)] += 1;
        }
        *asleep = now;
    }

    /// Does all of `ops` for `pid`, or nothing.
    fn attempt(&mut self, ops: &[Op], pid: u32) -> core::result::Result<(), Stop> {
        let mut done = 0;
        let mut stop = None;
        for op in ops {
            let sem = &mut self.sems[usize::from(op.number)];
            let value = sem.value + i32::from(op.by);
            stop = if op.by == 0 {
                (sem.value != 0).then_some(Stop::Sleeps(*op))
            } else if value < 0 {
                Some(Stop::Sleeps(*op))
            } else if value > SEMVMX {
                Some(Stop::Failed(Errno::ERANGE))
            } else {
                let adjust = self.undo.get(pid).map_or(0, |u| u[usize::from(op.number)]) - i32::from(op.by);
                if op.flags & SEM_UNDO != 0 && !(-SEMVMX - 1..=SEMVMX).contains(&adjust) {
                    Some(Stop::Failed(Errno::ERANGE))
                } else {
                    sem.value = value;
                    if op.flags & SEM_UNDO != 0
                        && let Some(u) = self.undo.get_mut(pid)
                    {
                        u[usize::from(op.number)] = adjust;
                    }
                    None
                }
            };
            if stop.is_some() {
                break;
            }
            done += 1;
        }
        let Some(stop) = stop else {
            for op in ops {
                self.sems[usize::from(op.number)].pid = pid;
            }
            self.otime = now();
            return Ok(());
        };
        for op in ops[..done].iter().rev() {
            self.sems[usize::from(op.number)].value -= i32::from(op.by);
            if op.flags & SEM_UNDO != 0
                && let Some(u) = self.undo.get_mut(pid)
            {
                u[usize::from(op.number)] += i32::from(op.by);
            }
        }
        Err(match stop {
            Stop::Sleeps(op) if u32::from(op.flags) & IPC_NOWAIT != 0 => Stop::Failed(Errno::EAGAIN),
            other => other,
        })
    }
}

fn semop(id: i32, ops: UserAddr, count: usize) -> SysResult {
    semtimedop(id, ops, count, UserAddr(0))
}

fn semtimedop(id: i32, at: UserAddr, count: usize, timeout: UserAddr) -> SysResult {
    let mut deadline_ns = None;
    if !timeout.is_null() {
        let [sec, nsec]: [i64; 2] = read_user(timeout).map_err(efault)?;
        deadline_ns = Some(platform::monotonic_ns().saturating_add(Timespec { sec, nsec }.to_ns()?));
    }
    if count < 1 || id < 0 {
        return Err(Errno::EINVAL);
    }
    if count > SEMOPM {
        return Err(Errno::E2BIG);
    }
    let mut ops: Vec<Op> = zeroes(count)?;
    copy_from_user(ops.as_mut_slice().as_mut_bytes(), at).map_err(efault)?;
    let set = SETS.find(id)?;
    let alters = ops.iter().any(|o| o.by != 0);
    let pid = me();
    {
        let mut s = set.state.lock();
        if ops.iter().any(|o| usize::from(o.number) >= s.sems.len()) {
            return Err(Errno::EFBIG);
        }
        s.perm.check(if alters { WRITE } else { READ })?;
        if ops.iter().any(|o| o.flags & SEM_UNDO != 0) {
            let count = s.sems.len();
            s.undo.prepare(pid, count)?;
            current().process.sem_undo.store(true, Ordering::Relaxed);
        }
    }
    let mut asleep: Asleep = None;
    let mut attempt = || {
        let mut s = set.state.lock();
        s.count(&mut asleep, None);
        if s.gone {
            return Some(Err(Errno::EIDRM));
        }
        match s.attempt(&ops, pid) {
            Ok(()) => Some(Ok(0)),
            Err(Stop::Failed(e)) => Some(Err(e)),
            Err(Stop::Sleeps(op)) => {
                s.count(&mut asleep, Some((op.number, op.by == 0)));
                None
            }
        }
    };
    let done = match attempt() {
        Some(done) => done,
        None => {
            let options = ParkOptions { interruptible: true, deadline_ns };
            let slept = set.changed.wait_until(options, attempt);
            set.state.lock().count(&mut asleep, None);
            slept.unwrap_or_else(|why| Err(if why == Wake::TimedOut { Errno::EAGAIN } else { Errno::EINTR }))
        }
    };
    if done.is_ok() && alters {
        set.changed.wake_all();
    }
    done
}

/// The process is ending: what it asked to be undone is.
pub fn process_exits(p: &Process) {
    for set in SETS.iter() {
        let mut s = set.state.lock();
        let Some(undo) = s.undo.take(p.pid.0) else { continue };
        for (sem, by) in s.sems.iter_mut().zip(&undo.by) {
            if *by != 0 {
                sem.value = (sem.value + by).clamp(0, SEMVMX);
                sem.pid = p.pid.0;
            }
        }
        s.otime = now();
        drop(s);
        set.changed.wake_all();
    }
}

/// `struct semid64_ds`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct UserSet {
    perm: UserPerm,
    otime: i64,
    ctime: i64,
    count: u64,
    unused: [u64; 2],
}

fn stat(set: &Set) -> UserSet {
    let s = set.state.lock();
    UserSet { perm: s.perm.to_user(), otime: s.otime, ctime: s.ctime, count: s.sems.len() as u64, unused: [0; 2] }
}

fn info(command: u32, buf: UserAddr) -> SysResult {
    let (mut sets, mut sems) = (20, SEMVMX as usize);
    if command == SEM_INFO {
        (sets, sems) = (0, 0);
        for set in SETS.iter() {
            sets += 1;
            sems += set.state.lock().sems.len();
        }
    }
    let numbers = [SEMMNS, SEMMNI, SEMMNS, SEMMNS, SEMMSL, SEMOPM, SEMOPM, sets, SEMVMX as usize, sems];
    give(buf, &numbers.map(|n| n as u32))?;
    Ok(SETS.highest())
}

fn semctl(id: i32, number: i32, command: u32, arg: UserAddr) -> SysResult {
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        IPC_INFO | SEM_INFO => info(command, arg),
        SEM_STAT | SEM_STAT_ANY => {
            let (set, id) = SETS.at(id)?;
            if command == SEM_STAT {
                set.perm().check(READ)?;
            }
            give(arg, &stat(&set))?;
            Ok(id as usize)
        }
        IPC_STAT => {
            let set = SETS.find(id)?;
            set.perm().check(READ)?;
            give(arg, &stat(&set)).map(|()| 0)
        }
        IPC_SET => {
            let from: UserSet = read_user(arg).map_err(efault)?;
            let set = SETS.find(id)?;
            set.perm().check_owner()?;
            let mut s = set.state.lock();
            s.perm.set(&from.perm)?;
            s.ctime = now();
            Ok(0)
        }
        IPC_RMID => {
            let set = SETS.find(id)?;
            set.perm().check_owner()?;
            set.state.lock().gone = true;
            SETS.remove(&set);
            set.changed.wake_all();
            Ok(0)
        }
        GETALL | SETALL => all_values(&*SETS.find(id)?, command, arg),
        GETPID | GETVAL | GETNCNT | GETZCNT | SETVAL => one_value(&*SETS.find(id)?, number, command, arg),
        _ => Err(Errno::EINVAL),
    }
}

fn all_values(set: &Set, command: u32, arg: UserAddr) -> SysResult {
    set.perm().check(if command == GETALL { READ } else { WRITE })?;
    let count = set.state.lock().sems.len();
    let mut values: Vec<u16> = zeroes(count)?;
    if command == GETALL {
        for (v, sem) in values.iter_mut().zip(&set.state.lock().sems) {
            *v = sem.value as u16;
        }
        copy_to_user(arg, values.as_bytes()).map_err(efault)?;
        return Ok(0);
    }
    copy_from_user(values.as_mut_slice().as_mut_bytes(), arg).map_err(efault)?;
    if values.iter().any(|&v| i32::from(v) > SEMVMX) {
        return Err(Errno::ERANGE);
    }
    let mut s = set.state.lock();
    if s.gone {
        return Err(Errno::EIDRM);
    }
    let pid = me();
    for (sem, v) in s.sems.iter_mut().zip(&values) {
        (sem.value, sem.pid) = (i32::from(*v), pid);
    }
    for undo in &mut s.undo.0 {
        undo.by.fill(0);
    }
    s.ctime = now();
    drop(s);
    set.changed.wake_all();
    Ok(0)
}

fn one_value(set: &Set, number: i32, command: u32, arg: UserAddr) -> SysResult {
    set.perm().check(if command == SETVAL { WRITE } else { READ })?;
    let mut s = set.state.lock();
    let at = usize::try_from(number).ok().filter(|&n| n < s.sems.len()).ok_or(Errno::EINVAL)?;
    if s.gone {
        return Err(Errno::EIDRM);
    }
    match command {
        GETPID => Ok(s.sems[at].pid as usize),
        GETVAL => Ok(s.sems[at].value as usize),
        GETNCNT => Ok(s.sems[at].sleepers[0] as usize),
        GETZCNT => Ok(s.sems[at].sleepers[1] as usize),
        _ => {
            let value = arg.0 as i32;
            if !(0..=SEMVMX).contains(&value) {
                return Err(Errno::ERANGE);
            }
            (s.sems[at].value, s.sems[at].pid) = (value, me());
            for undo in &mut s.undo.0 {
                undo.by[at] = 0;
            }
            s.ctime = now();
            drop(s);
            set.changed.wake_all();
            Ok(0)
        }
    }
}

/// `/proc/sysvipc/sem`.
pub fn list(out: &mut Vec<u8>) -> Result<()> {
    let mut out = Out(out);
    out.write_str("       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n")
        .map_err(full)?;
    for set in SETS.iter() {
        let (u, p) = (stat(&set), set.perm());
        writeln!(
            out,
            "{:10} {:10}  {:4o} {:10} {:5} {:5} {:5} {:5} {:10} {:10}",
            p.key as i32, p.id, p.mode, u.count, p.uid, p.gid, p.cuid, p.cgid, u.otime, u.ctime
        )
        .map_err(full)?;
    }
    Ok(())
}
