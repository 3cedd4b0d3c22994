//! Pipes, waiting for several files, event counters, timers as files: pipe2, ppoll, pselect6, epoll, eventfd2, timerfd.
//!
//! Waits that a signal ends return `ERESTARTNOHAND` (poll, select) or `EINTR` (epoll), as Linux does. Calls that wait with
//! another signal mask put the former one back themselves, unless a signal ended them: then it is put back behind the
//! handler, by signal delivery.

use super::{SysResult, efault};
use crate::arch::uaccess::{UserAddr, copy_from_user, copy_to_user, get_user_u64, read_user, write_user};
use crate::file::epoll::{self, Epoll};
use crate::file::eventfd::EventFd;
use crate::file::pipe;
use crate::file::poll::{self, Request};
use crate::file::signalfd::SignalFd;
use crate::file::timerfd::{Clock, Setting, TimerFd};
use crate::file::user::check_range;
use crate::sched::current;
use crate::task::signal;
use abi::{Errno, Result, Timespec, linux};
use alloc::sync::Arc;
use alloc::vec::Vec;
use vfs::{File, OpenFile, PollEvents};
use zerocopy::{FromBytes, Immutable, IntoBytes};

crate::syscalls! {
    plain {
        19 eventfd2(count: Int, flags: Hex) = eventfd2;
        20 epoll_create1(flags: Hex) = epoll_create1;
        21 epoll_ctl(epfd: Fd, op: Int, fd: Fd, event: Ptr) = epoll_ctl;
        22 epoll_pwait(epfd: Fd, events: Ptr, maxevents: Int, timeout: Int, sigmask: Ptr, sigsetsize: Size) = epoll_pwait;
        59 pipe2(fds: Ptr, flags: Hex) = pipe2;
        72 pselect6(n: Int, readfds: Ptr, writefds: Ptr, exceptfds: Ptr, timeout: Ptr, sigmask: Ptr) = pselect6;
        73 ppoll(fds: Ptr, nfds: Int, timeout: Ptr, sigmask: Ptr, sigsetsize: Size) = ppoll;
        74 signalfd4(fd: Fd, mask: Ptr, size: Size, flags: Hex) = signalfd4;
        85 timerfd_create(clockid: Int, flags: Hex) = timerfd_create;
        86 timerfd_settime(fd: Fd, flags: Hex, new: Ptr, old: Ptr) = timerfd_settime;
        87 timerfd_gettime(fd: Fd, current: Ptr) = timerfd_gettime;
        441 epoll_pwait2(epfd: Fd, events: Ptr, maxevents: Int, timeout: Ptr, sigmask: Ptr, sigsetsize: Size) = epoll_pwait2;
    }
    frame {}
}

const RLIMIT_NOFILE: usize = 7;
const NS_PER_MS: u64 = 1_000_000;

/// Gives `file` a descriptor.
fn install(file: Arc<OpenFile>, cloexec: bool) -> Result<i32> {
    let me = current();
    me.files().insert(file, cloexec, 0, me.process.rlimit(RLIMIT_NOFILE))
}

/// As `install`, for an object without a path that is opened for reading and writing.
fn install_object(object: Arc<dyn File>, flags: u32) -> SysResult {
    let open = OpenFile::anonymous(object, linux::O_RDWR | flags & linux::O_NONBLOCK);
    install(open, flags & linux::O_CLOEXEC != 0).map(|fd| fd as usize)
}

fn pipe2(fds: UserAddr, flags: u32) -> SysResult {
    if flags & !(linux::O_CLOEXEC | linux::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let cloexec = flags & linux::O_CLOEXEC != 0;
    let (read, write) = pipe::create(flags)?;
    let files = current().files();
    let first = install(read, cloexec)?;
    let undo = |fd: i32| {
        // Another thread may have closed it; then there is nothing to undo.
        let _ = files.close(fd);
    };
    let second = install(write, cloexec).inspect_err(|_| undo(first))?;
    if copy_to_user(fds, [first, second].as_bytes()).is_err() {
        undo(first);
        undo(second);
        return Err(Errno::EFAULT);
    }
    Ok(0)
}

fn eventfd2(count: u32, flags: u32) -> SysResult {
    if flags & !(linux::EFD_SEMAPHORE | linux::O_CLOEXEC | linux::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    install_object(EventFd::new(count, flags & linux::EFD_SEMAPHORE != 0), flags)
}

fn signalfd4(fd: i32, mask: UserAddr, size: usize, flags: u32) -> SysResult {
    if flags & !(linux::O_CLOEXEC | linux::O_NONBLOCK) != 0 || size != 8 {
        return Err(Errno::EINVAL);
    }
    let mask = get_user_u64(mask).map_err(efault)?;
    if fd == -1 {
        return install_object(SignalFd::new(mask), flags);
    }
    let file = current().files().get_io(fd)?;
    file.object_as::<SignalFd>().ok_or(Errno::EINVAL)?.set_mask(mask);
    Ok(fd as usize)
}

/// When a wait of `ns` from now ends, as the waiting functions take it.
fn deadline_in(ns: u64) -> u64 {
    if ns == 0 { 0 } else { platform::monotonic_ns().saturating_add(ns) }
}

/// The deadline that a `struct timespec` in user memory means; `None` without one. `EFAULT`, `EINVAL`.
fn read_timeout(at: UserAddr) -> Result<Option<u64>> {
    if at.is_null() {
        return Ok(None);
    }
    let [sec, nsec]: [i64; 2] = read_user(at).map_err(efault)?;
    Ok(Some(deadline_in(Timespec { sec, nsec }.to_ns()?)))
}

/// Writes what is left until `deadline`. As in Linux, a call whose remaining time cannot be written is not restarted.
fn finish_timeout(result: SysResult, at: UserAddr, deadline: Option<u64>) -> SysResult {
    let Some(end) = deadline else { return result };
    let left = Timespec::from_ns(end.saturating_sub(platform::monotonic_ns()));
    let written = write_user(at, &[left.sec, left.nsec]);
    match result {
        Err(Errno::ERESTARTNOHAND) if written.is_err() => Err(Errno::EINTR),
        r => r,
    }
}

/// The signal mask at `at`, if there is one. `EINVAL` for another size than the kernel's.
fn read_mask(at: UserAddr, size: usize) -> Result<Option<u64>> {
    if at.is_null() {
        return Ok(None);
    }
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    get_user_u64(at).map(Some).map_err(efault)
}

/// Runs `wait` with `mask` blocked, if there is one.
fn with_mask(mask: Option<u64>, wait: impl FnOnce() -> SysResult) -> SysResult {
    let Some(mask) = mask else { return wait() };
    let me = current();
    let former = me.blocked();
    signal::set_blocked(me, mask);
    let result = wait();
    if matches!(result, Err(Errno::ERESTARTNOHAND | Errno::EINTR)) {
        me.set_saved_mask(former);
    } else {
        signal::set_blocked(me, former);
    }
    result
}

/// `struct pollfd`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct PollFd {
    fd: i32,
    events: u16,
    revents: u16,
}

fn ppoll(fds: UserAddr, nfds: u32, timeout: UserAddr, sigmask: UserAddr, size: usize) -> SysResult {
    let deadline = read_timeout(timeout)?;
    let mask = read_mask(sigmask, size)?;
    let result = with_mask(mask, || poll_fds(fds, nfds as usize, deadline));
    finish_timeout(result, timeout, deadline)
}

fn poll_fds(at: UserAddr, count: usize, deadline: Option<u64>) -> SysResult {
    let me = current();
    if count as u64 > me.process.rlimit(RLIMIT_NOFILE) {
        return Err(Errno::EINVAL);
    }
    let mut fds: Vec<PollFd> = Vec::new();
    let mut requests: Vec<Request> = Vec::new();
    fds.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    requests.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    fds.resize(count, PollFd { fd: 0, events: 0, revents: 0 });
    copy_from_user(fds.as_mut_slice().as_mut_bytes(), at).map_err(efault)?;
    for p in &fds {
        let file = if p.fd < 0 { None } else { me.files().get_io(p.fd).ok() };
        let found = PollEvents::NVAL.when(p.fd >= 0 && file.is_none());
        requests.push(Request { file, events: PollEvents(p.events.into()), only_asked: false, found });
    }
    let ready = poll::wait(&mut requests, deadline).map_err(|_| Errno::ERESTARTNOHAND)?;
    for (i, r) in requests.iter().enumerate() {
        let revents = at.offset((i * size_of::<PollFd>()) as u64 + 6);
        copy_to_user(revents, &(r.found.0 as u16).to_ne_bytes()).map_err(efault)?;
    }
    Ok(ready)
}

/// What the three sets of select ask for, and what answers each (`POLLIN_SET` and so on of Linux).
const SETS: [PollEvents; 3] = [
    PollEvents(PollEvents::IN.0 | 0x80 | PollEvents::HUP.0 | PollEvents::ERR.0 | PollEvents::NVAL.0),
    PollEvents(PollEvents::OUT.0 | 0x200 | PollEvents::ERR.0 | PollEvents::NVAL.0),
    PollEvents(PollEvents::PRI.0 | PollEvents::NVAL.0),
];

fn pselect6(
    n: i32,
    readfds: UserAddr,
    writefds: UserAddr,
    exceptfds: UserAddr,
    timeout: UserAddr,
    sigmask: UserAddr,
) -> SysResult {
    let deadline = read_timeout(timeout)?;
    let mut mask = None;
    if !sigmask.is_null() {
        let [set, size]: [u64; 2] = read_user(sigmask).map_err(efault)?;
        mask = read_mask(UserAddr(set), size as usize)?;
    }
    // As in Linux, what is beyond the table is not looked at; its tables have room for 64 at least.
    let n = usize::try_from(n).map_err(|_| Errno::EINVAL)?.min(current().files().capacity().max(64));
    let result = with_mask(mask, || select(n, [readfds, writefds, exceptfds], deadline));
    finish_timeout(result, timeout, deadline)
}

fn read_set(at: UserAddr, words: usize) -> Result<Vec<u64>> {
    let mut set = Vec::new();
    set.try_reserve_exact(words).map_err(|_| Errno::ENOMEM)?;
    set.resize(words, 0u64);
    if !at.is_null() {
        copy_from_user(set.as_mut_slice().as_mut_bytes(), at).map_err(efault)?;
    }
    Ok(set)
}

fn select(n: usize, at: [UserAddr; 3], deadline: Option<u64>) -> SysResult {
    let words = n.div_ceil(64);
    let mut sets = [read_set(at[0], words)?, read_set(at[1], words)?, read_set(at[2], words)?];
    let files = current().files();
    let mut requests: Vec<Request> = Vec::new();
    let mut fds: Vec<usize> = Vec::new();
    for word in 0..words {
        let mut any = sets.iter().fold(0, |bits, s| bits | s[word]);
        while any != 0 {
            let bit = any.trailing_zeros() as usize;
            any &= any - 1;
            let fd = word * 64 + bit;
            if fd >= n {
                break;
            }
            let asked = sets.iter().zip(SETS).filter(|(s, _)| s[word] >> bit & 1 != 0);
            let events = asked.fold(PollEvents::NONE, |all, (_, e)| all.and(e));
            requests.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            fds.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            // What was opened with O_PATH cannot be polled, and is in every set, as on Linux.
            let file = match files.get_io(fd as i32) {
                Err(e) => files.get(fd as i32).map(|_| None).map_err(|_| e)?,
                Ok(f) => Some(f),
            };
            // An error or hang-up counts only in a set that it answers.
            let found = PollEvents::NVAL.when(file.is_none());
            requests.push(Request { file, events, only_asked: true, found });
            fds.push(fd);
        }
    }
    let count = select_wait(&mut requests, &fds, &mut sets, deadline)?;
    for (set, at) in sets.iter().zip(at) {
        if !at.is_null() {
            copy_to_user(at, set.as_bytes()).map_err(efault)?;
        }
    }
    Ok(count)
}

/// Waits, and turns the sets from what was asked into what was found; the number of bits set.
fn select_wait(requests: &mut [Request], fds: &[usize], sets: &mut [Vec<u64>; 3], deadline: Option<u64>) -> SysResult {
    poll::wait(requests, deadline).map_err(|_| Errno::ERESTARTNOHAND)?;
    let mut count = 0;
    for (set, answers) in sets.iter_mut().zip(SETS) {
        let asked = core::mem::replace(set, alloc::vec![0; set.len()]);
        for (r, &fd) in requests.iter().zip(fds) {
            if asked[fd / 64] >> (fd % 64) & 1 != 0 && r.found.intersects(answers) {
                set[fd / 64] |= 1 << (fd % 64);
                count += 1;
            }
        }
    }
    Ok(count)
}

fn epoll_create1(flags: u32) -> SysResult {
    if flags & !linux::O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    install_object(Epoll::new(), flags)
}

/// `struct epoll_event` as AArch64 has it: not packed.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct EpollEvent {
    events: u32,
    pad: u32,
    data: u64,
}

fn epoll_ctl(epfd: i32, op: u32, fd: i32, event: UserAddr) -> SysResult {
    let what = if op == linux::EPOLL_CTL_DEL {
        epoll::Event { events: 0, data: 0 }
    } else {
        let e: EpollEvent = read_user(event).map_err(efault)?;
        epoll::Event { events: e.events, data: e.data }
    };
    let files = current().files();
    let watcher = files.get_io(epfd)?;
    let file = files.get_io(fd)?;
    if file.object().is_none() {
        return Err(Errno::EPERM);
    }
    let ep = watcher.object_as::<Epoll>().filter(|_| !Arc::ptr_eq(&watcher, &file)).ok_or(Errno::EINVAL)?;
    match op {
        linux::EPOLL_CTL_ADD => ep.add(fd, &file, what)?,
        linux::EPOLL_CTL_MOD => ep.modify(fd, &file, what)?,
        linux::EPOLL_CTL_DEL => ep.remove(fd, &file)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn epoll_pwait(epfd: i32, events: UserAddr, max: i32, timeout_ms: i32, sigmask: UserAddr, size: usize) -> SysResult {
    // Negative: for ever.
    let deadline = u64::try_from(timeout_ms).ok().map(|ms| deadline_in(ms * NS_PER_MS));
    let mask = read_mask(sigmask, size)?;
    with_mask(mask, || epoll_wait(epfd, events, max, deadline))
}

fn epoll_pwait2(epfd: i32, events: UserAddr, max: i32, timeout: UserAddr, sigmask: UserAddr, size: usize) -> SysResult {
    let deadline = read_timeout(timeout)?;
    let mask = read_mask(sigmask, size)?;
    with_mask(mask, || epoll_wait(epfd, events, max, deadline))
}

fn epoll_wait(epfd: i32, events: UserAddr, max: i32, deadline: Option<u64>) -> SysResult {
    const SIZE: usize = size_of::<EpollEvent>();
    let limit =
        usize::try_from(max).ok().filter(|n| (1..=i32::MAX as usize / SIZE).contains(n)).ok_or(Errno::EINVAL)?;
    check_range(events, limit * SIZE)?;
    let watcher = current().files().get_io(epfd)?;
    let ep = watcher.object_as::<Epoll>().ok_or(Errno::EINVAL)?;
    let mut at = events;
    ep.wait(limit, deadline, &mut |e| {
        let written = write_user(at, &EpollEvent { events: e.events, pad: 0, data: e.data }).is_ok();
        at = at.offset(SIZE as u64);
        written
    })
}

fn timerfd_create(clockid: i32, flags: u32) -> SysResult {
    if flags & !(linux::O_CLOEXEC | linux::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let clock = match clockid as u32 {
        linux::CLOCK_REALTIME | linux::CLOCK_REALTIME_ALARM => Clock::Realtime,
        linux::CLOCK_MONOTONIC | linux::CLOCK_BOOTTIME | linux::CLOCK_BOOTTIME_ALARM => Clock::Monotonic,
        _ => return Err(Errno::EINVAL),
    };
    install_object(TimerFd::new(clock), flags)
}

/// `TFD_TIMER_ABSTIME` and `TFD_TIMER_CANCEL_ON_SET`.
const TFD_ABSTIME: u32 = 1;
const TFD_CANCEL_ON_SET: u32 = 2;

fn write_setting(at: UserAddr, s: Setting) -> Result<()> {
    let (interval, value) = (Timespec::from_ns(s.interval), Timespec::from_ns(s.value));
    write_user(at, &[interval.sec, interval.nsec, value.sec, value.nsec]).map_err(efault)
}

fn timerfd_settime(fd: i32, flags: u32, new: UserAddr, old: UserAddr) -> SysResult {
    let [is, ins, vs, vns]: [i64; 4] = read_user(new).map_err(efault)?;
    if flags & !(TFD_ABSTIME | TFD_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    let interval = Timespec { sec: is, nsec: ins }.to_ns()?;
    let value = Timespec { sec: vs, nsec: vns }.to_ns()?;
    let file = current().files().get_io(fd)?;
    let t = file.object_as::<TimerFd>().ok_or(Errno::EINVAL)?;
    let former = t.set(Setting { interval, value }, flags & TFD_ABSTIME != 0);
    if !old.is_null() {
        write_setting(old, former)?;
    }
    Ok(0)
}

fn timerfd_gettime(fd: i32, to: UserAddr) -> SysResult {
    let file = current().files().get_io(fd)?;
    let t = file.object_as::<TimerFd>().ok_or(Errno::EINVAL)?;
    write_setting(to, t.get())?;
    Ok(0)
}
