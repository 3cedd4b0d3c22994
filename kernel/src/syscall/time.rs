//! Clocks, sleeping, timers.

use super::{SysResult, efault};
use crate::arch::time::now_ns;
use crate::arch::uaccess::{UserAddr, read_user, write_user};
use crate::sched::current;
use crate::task::cred::cap;
use crate::task::ids::Pid;
use crate::task::thread::Restart;
use crate::task::timers::{self, Clock, Notify, Setting};
use crate::task::{Process, find, find_thread, signal};
use abi::{Errno, Result, Timespec};
use alloc::sync::Arc;
use platform::{ParkOptions, Wake, realtime_ns};
use zerocopy::{FromBytes, Immutable, IntoBytes};

crate::syscalls! {
    plain {
        101 nanosleep(time: Ptr, left: Ptr) = nanosleep;
        102 getitimer(which: Int, value: Ptr) = getitimer;
        103 setitimer(which: Int, new: Ptr, old: Ptr) = setitimer;
        107 timer_create(clock: Int, event: Ptr, id: Ptr) = timer_create;
        108 timer_gettime(id: Int, value: Ptr) = timer_gettime;
        109 timer_getoverrun(id: Int) = timer_getoverrun;
        110 timer_settime(id: Int, flags: Hex, new: Ptr, old: Ptr) = timer_settime;
        111 timer_delete(id: Int) = timer_delete;
        112 clock_settime(clock: Int, time: Ptr) = clock_settime;
        113 clock_gettime(clock: Int, time: Ptr) = clock_gettime;
        114 clock_getres(clock: Int, time: Ptr) = clock_getres;
        115 clock_nanosleep(clock: Int, flags: Hex, time: Ptr, left: Ptr) = clock_nanosleep;
        128 restart_syscall() = restart_syscall;
        169 gettimeofday(time: Ptr, zone: Ptr) = gettimeofday;
        170 settimeofday(time: Ptr, zone: Ptr) = settimeofday;
    }
    frame {}
}

/// `struct timespec` and, with microseconds, `struct timeval`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Pair {
    sec: i64,
    part: i64,
}

impl Pair {
    fn of_ns(ns: u64) -> Pair {
        let t = Timespec::from_ns(ns);
        Pair { sec: t.sec, part: t.nsec }
    }

    fn of_us(ns: u64) -> Pair {
        Pair { sec: (ns / 1_000_000_000) as i64, part: (ns / 1000 % 1_000_000) as i64 }
    }

    fn ns(self) -> Result<u64> {
        Timespec { sec: self.sec, nsec: self.part }.to_ns()
    }

    fn ns_of_us(self) -> Result<u64> {
        if !(0..1_000_000).contains(&self.part) {
            return Err(Errno::EINVAL);
        }
        Timespec { sec: self.sec, nsec: self.part * 1000 }.to_ns()
    }
}

const REALTIME: i32 = 0;
const MONOTONIC: i32 = 1;
const PROCESS_CPUTIME: i32 = 2;
const THREAD_CPUTIME: i32 = 3;
const MONOTONIC_RAW: i32 = 4;
const REALTIME_COARSE: i32 = 5;
const MONOTONIC_COARSE: i32 = 6;
const BOOTTIME: i32 = 7;
const REALTIME_ALARM: i32 = 8;
const BOOTTIME_ALARM: i32 = 9;
const TAI: i32 = 11;

/// What a CPU-time clock's number names: `~pid << 3 | kind`, kind 2 for processes, 6 for threads.
fn cpu_clock(clock: i32) -> Result<u64> {
    let pid = !(clock >> 3);
    let me = current();
    if clock & 4 != 0 {
        let t = if pid == 0 { None } else { Some(find_thread(Pid(pid as u32)).ok_or(Errno::EINVAL)?) };
        return Ok(crate::sched::runtime_ns(t.as_deref().unwrap_or(me)));
    }
    let p: Arc<Process> = if pid == 0 { me.process.clone() } else { find(Pid(pid as u32)).ok_or(Errno::EINVAL)? };
    Ok(p.runtime_ns())
}

/// A clock's time in nanoseconds; `EINVAL` for a clock that does not exist.
pub(super) fn read_clock(clock: i32) -> Result<u64> {
    Ok(match clock {
        REALTIME | REALTIME_COARSE | REALTIME_ALARM | TAI => realtime_ns(),
        MONOTONIC | MONOTONIC_RAW | MONOTONIC_COARSE | BOOTTIME | BOOTTIME_ALARM => now_ns(),
        PROCESS_CPUTIME => current().process.runtime_ns(),
        THREAD_CPUTIME => crate::sched::runtime_ns(current()),
        c if c < 0 => cpu_clock(c)?,
        _ => return Err(Errno::EINVAL),
    })
}

fn clock_gettime(clock: i32, time: UserAddr) -> SysResult {
    write_user(time, &Pair::of_ns(read_clock(clock)?)).map_err(efault)?;
    Ok(0)
}

fn clock_getres(clock: i32, time: UserAddr) -> SysResult {
    read_clock(clock)?;
    if !time.is_null() {
        let ns = if matches!(clock, REALTIME_COARSE | MONOTONIC_COARSE) { 4_000_000 } else { 1 };
        write_user(time, &Pair::of_ns(ns)).map_err(efault)?;
    }
    Ok(0)
}

fn clock_settime(clock: i32, time: UserAddr) -> SysResult {
    let t: Pair = read_user(time).map_err(efault)?;
    let ns = t.ns()?;
    if clock != REALTIME {
        return Err(Errno::EINVAL);
    }
    current().require(cap::SYS_TIME)?;
    set_wall_clock(ns)
}

/// Sets CLOCK_REALTIME; `EINVAL` for a time before the machine's start.
fn set_wall_clock(ns: u64) -> SysResult {
    crate::clock::set(ns).ok_or(Errno::EINVAL)?;
    super::adjtime::was_set();
    Ok(0)
}

fn gettimeofday(time: UserAddr, zone: UserAddr) -> SysResult {
    if !time.is_null() {
        write_user(time, &Pair::of_us(realtime_ns())).map_err(efault)?;
    }
    if !zone.is_null() {
        write_user(zone, &0u64).map_err(efault)?;
    }
    Ok(0)
}

/// `settimeofday(2)`. There is one time zone for the machine and it is UTC's: setting another is `EOPNOTSUPP`, for the clock runs in UTC
/// and what a zone means to programs is in their files.
fn settimeofday(time: UserAddr, zone: UserAddr) -> SysResult {
    let time = (!time.is_null()).then(|| read_user::<Pair>(time)).transpose().map_err(efault)?;
    let zone = (!zone.is_null()).then(|| read_user::<[i32; 2]>(zone)).transpose().map_err(efault)?;
    let ns = time.map(Pair::ns_of_us).transpose()?;
    current().require(cap::SYS_TIME)?;
    match zone {
        Some([minutes, _]) if minutes.unsigned_abs() > 15 * 60 => return Err(Errno::EINVAL),
        Some([minutes, summer]) if minutes != 0 || summer != 0 => return Err(Errno::EOPNOTSUPP),
        _ => {}
    }
    ns.map_or(Ok(0), set_wall_clock)
}

/// Sleeps until `deadline` on the monotonic clock; `Interrupted` is the only way to wake before.
fn sleep_until(deadline: u64) -> Wake {
    loop {
        match crate::sched::park(ParkOptions { interruptible: true, deadline_ns: Some(deadline) }) {
            Wake::Unparked => {}
            why => return why,
        }
    }
}

/// A relative sleep that can be resumed.
fn sleep_relative(deadline: u64, left: u64) -> SysResult {
    if sleep_until(deadline) == Wake::TimedOut {
        return Ok(0);
    }
    let rest = deadline.saturating_sub(now_ns());
    if rest == 0 {
        return Ok(0);
    }
    if left != 0 {
        write_user(UserAddr(left), &Pair::of_ns(rest)).map_err(efault)?;
    }
    current().restart.set(Restart::Sleep { deadline, rem: left });
    Err(Errno::ERESTART_RESTARTBLOCK)
}

fn nanosleep(time: UserAddr, left: u64) -> SysResult {
    let t: Pair = read_user(time).map_err(efault)?;
    sleep_relative(now_ns().saturating_add(t.ns()?), left)
}

const TIMER_ABSTIME: i32 = 1;

fn clock_nanosleep(clock: i32, flags: i32, time: UserAddr, left: u64) -> SysResult {
    let t: Pair = read_user(time).map_err(efault)?;
    let ns = t.ns()?;
    match clock {
        REALTIME | MONOTONIC | BOOTTIME | REALTIME_ALARM | BOOTTIME_ALARM | TAI => {}
        PROCESS_CPUTIME => return sleep_cpu(flags, ns),
        THREAD_CPUTIME => return Err(Errno::EINVAL),
        c if c < 0 => return Err(Errno::EOPNOTSUPP),
        _ => return Err(if read_clock(clock).is_ok() { Errno::EOPNOTSUPP } else { Errno::EINVAL }),
    }
    if flags & TIMER_ABSTIME == 0 {
        return sleep_relative(now_ns().saturating_add(ns), left);
    }
    loop {
        let deadline = match clock {
            REALTIME | REALTIME_ALARM | TAI => ns.saturating_sub_signed(crate::clock::offset()),
            _ => ns,
        };
        match sleep_until(deadline) {
            Wake::TimedOut if read_clock(clock)? >= ns => return Ok(0),
            Wake::TimedOut => {}
            _ => return Err(Errno::ERESTARTNOHAND),
        }
    }
}

/// Sleeps until the process has used up some CPU time.
fn sleep_cpu(flags: i32, ns: u64) -> SysResult {
    let p = &current().process;
    let target = if flags & TIMER_ABSTIME != 0 { ns } else { p.runtime_ns().saturating_add(ns) };
    loop {
        let used = p.runtime_ns();
        if used >= target {
            return Ok(0);
        }
        if sleep_until(now_ns().saturating_add((target - used).max(1_000_000))) == Wake::Interrupted {
            return Err(Errno::ERESTARTNOHAND);
        }
    }
}

fn restart_syscall() -> SysResult {
    match signal::deliver::take_restart(current()) {
        Restart::None => Err(Errno::EINTR),
        Restart::Sleep { deadline, rem } => sleep_relative(deadline, rem),
        Restart::Futex { addr, value, bitset, private, deadline } => {
            crate::futex::resumable_wait(UserAddr(addr), private, value, bitset, Some(deadline)).map(|n| n as usize)
        }
    }
}

/// `struct itimerval` and `struct itimerspec`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct TimerValue {
    interval: Pair,
    value: Pair,
}

impl TimerValue {
    fn of_us(s: Setting) -> Self {
        // An armed timer never reads as zero.
        let value = if s.value == 0 { 0 } else { s.value.max(1000) };
        TimerValue { interval: Pair::of_us(s.interval), value: Pair::of_us(value) }
    }

    fn of_ns(s: Setting) -> Self {
        TimerValue { interval: Pair::of_ns(s.interval), value: Pair::of_ns(s.value) }
    }
}

fn getitimer(which: i32, value: UserAddr) -> SysResult {
    let s = timers::get_interval(&current().process, which)?;
    write_user(value, &TimerValue::of_us(s)).map_err(efault)?;
    Ok(0)
}

fn setitimer(which: i32, new: UserAddr, old: UserAddr) -> SysResult {
    let setting = if new.is_null() {
        Setting::default()
    } else {
        let v: TimerValue = read_user(new).map_err(efault)?;
        Setting { value: v.value.ns_of_us()?, interval: v.interval.ns_of_us()? }
    };
    let was = timers::set_interval(&current().process, which, setting)?;
    if !old.is_null() {
        write_user(old, &TimerValue::of_us(was)).map_err(efault)?;
    }
    Ok(0)
}

/// The start of `struct sigevent`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes)]
struct SigEvent {
    value: u64,
    signo: i32,
    notify: i32,
    tid: i32,
    pad: i32,
}

const SIGEV_SIGNAL: i32 = 0;
const SIGEV_NONE: i32 = 1;
const SIGEV_THREAD: i32 = 2;
const SIGEV_THREAD_ID: i32 = 4;

fn timer_create(clock: i32, event: UserAddr, id: UserAddr) -> SysResult {
    let me = current();
    let clock = match clock {
        REALTIME | REALTIME_ALARM | TAI => Clock::Realtime,
        MONOTONIC | BOOTTIME | BOOTTIME_ALARM => Clock::Monotonic,
        PROCESS_CPUTIME => Clock::Cpu,
        THREAD_CPUTIME => Clock::Cpu,
        c if c < 0 => Clock::Cpu,
        _ => return Err(Errno::EINVAL),
    };
    let event: Option<SigEvent> = if event.is_null() { None } else { Some(read_user(event).map_err(efault)?) };
    let mut thread = None;
    let (mut signo, mut value) = (signal::number::SIGALRM, None);
    if let Some(e) = event {
        value = Some(e.value);
        match e.notify {
            SIGEV_NONE => signo = 0,
            SIGEV_SIGNAL | SIGEV_THREAD | SIGEV_THREAD_ID if !signal::is_valid(e.signo) => return Err(Errno::EINVAL),
            SIGEV_SIGNAL | SIGEV_THREAD => signo = e.signo as u32,
            SIGEV_THREAD_ID => {
                signo = e.signo as u32;
                let t = find_thread(Pid(e.tid as u32)).filter(|t| Arc::ptr_eq(&t.process, &me.process));
                thread = Some(Arc::downgrade(&t.ok_or(Errno::EINVAL)?));
            }
            _ => return Err(Errno::EINVAL),
        }
    }
    let made = timers::create(&me.process, clock, |n| Notify {
        signo,
        value: value.unwrap_or(n as u64),
        thread,
        id: Some(n),
    })?;
    if write_user(id, &made).is_err() {
        timers::delete(&me.process, made)?;
        return Err(Errno::EFAULT);
    }
    Ok(0)
}

fn timer_settime(id: i32, flags: i32, new: UserAddr, old: UserAddr) -> SysResult {
    let v: TimerValue = read_user(new).map_err(efault)?;
    let setting = Setting { value: v.value.ns()?, interval: v.interval.ns()? };
    let was = timers::set(&current().process, id, setting, flags & TIMER_ABSTIME != 0)?;
    if !old.is_null() {
        write_user(old, &TimerValue::of_ns(was)).map_err(efault)?;
    }
    Ok(0)
}

fn timer_gettime(id: i32, value: UserAddr) -> SysResult {
    let s = timers::get(&current().process, id)?;
    write_user(value, &TimerValue::of_ns(s)).map_err(efault)?;
    Ok(0)
}

fn timer_getoverrun(id: i32) -> SysResult {
    timers::overrun(&current().process, id).map(|n| n as usize)
}

fn timer_delete(id: i32) -> SysResult {
    timers::delete(&current().process, id)?;
    Ok(0)
}
