//! Timers that signal: setitimer, alarm and timer_create.
//!
//! A timer sits in the scheduler's timer queue while armed; when it fires (interrupts masked) it sends its signal and arms
//! itself again if it has an interval. Timers over CPU time look at the process's run time when they fire and sleep for
//! what is still missing: CPU time never passes faster than real time per thread.
//!
//! Setting a timer while it fires is settled by the deadline in its state: a callback that comes before it does nothing.
//!
//! Not done: timers on CLOCK_REALTIME do not follow later changes of the clock.

use super::process::Process;
use super::signal::number::*;
use super::signal::{Detail, SigInfo, code, send_to_process, send_to_thread};
use super::thread::Thread;
use crate::sched::timer::{TimerCallback, TimerId, arm_call, cancel};
use abi::{Errno, Result};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use sync::{IrqLock, LockClass, SpinLock};

static LIST: LockClass = LockClass::new("process timers", sync::rank::SPIN + 93);
static STATE: LockClass = LockClass::new("signalling timer", sync::rank::OBJECT + 5);
/// The most timers of timer_create in one process.
const MAX_POSIX: usize = 4096;

/// What a timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Time.
    Monotonic,
    /// Time; absolute settings count from 1970.
    Realtime,
    /// The process's CPU time.
    Cpu,
}

/// Whom it signals, and how.
#[derive(Clone, Debug)]
pub struct Notify {
    /// The signal; 0 for none.
    pub signo: u32,
    /// `si_value`.
    pub value: u64,
    /// `SIGEV_THREAD_ID`.
    pub thread: Option<Weak<Thread>>,
    /// The timer's number, for `si_timerid`; `None` for an interval timer.
    pub id: Option<i32>,
}

#[derive(Debug, Default)]
struct State {
    armed: Option<TimerId>,
    /// On the timer's clock; 0 while disarmed.
    deadline: u64,
    interval: u64,
    overrun: u64,
}

/// A timer.
pub struct SignalTimer {
    process: Weak<Process>,
    clock: Clock,
    notify: Notify,
    state: IrqLock<State>,
    /// Itself, for arming.
    me: Weak<SignalTimer>,
    /// Overruns at the last signal.
    reported: AtomicU64,
}

/// Nanoseconds until it fires, and its interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// 0: disarmed.
    pub value: u64,
    /// 0: fires once.
    pub interval: u64,
}

impl SignalTimer {
    fn new(process: &Arc<Process>, clock: Clock, notify: Notify) -> Arc<SignalTimer> {
        Arc::new_cyclic(|me| SignalTimer {
            process: Arc::downgrade(process),
            clock,
            notify,
            state: IrqLock::new(&STATE, State::default()),
            me: me.clone(),
            reported: AtomicU64::new(0),
        })
    }

    fn now(&self, p: &Process) -> u64 {
        match self.clock {
            Clock::Cpu => p.runtime_ns(),
            _ => crate::arch::time::now_ns(),
        }
    }

    /// Arms for `s.deadline`, seen from `now` (both on the timer's clock).
    fn arm(&self, s: &mut State, now: u64) {
        let Some(me) = self.me.upgrade() else { return };
        let at = match self.clock {
            Clock::Cpu => crate::arch::time::now_ns().saturating_add(s.deadline.saturating_sub(now).max(1_000_000)),
            _ => s.deadline,
        };
        s.armed = Some(arm_call(at, me));
    }

    /// Sets it; returns what was left. `absolute`: `setting.value` is a time on the timer's clock.
    fn set(&self, p: &Process, setting: Setting, absolute: bool) -> Setting {
        let now = self.now(p);
        let mut s = self.state.lock();
        let old = left(&s, now);
        if let Some(armed) = s.armed.take() {
            cancel(armed);
        }
        s.overrun = 0;
        s.interval = setting.interval;
        s.deadline = if setting.value == 0 {
            0
        } else if absolute {
            let at = match self.clock {
                Clock::Realtime => setting.value.saturating_sub_signed(crate::clock::offset()),
                _ => setting.value,
            };
            at.max(1)
        } else {
            now.saturating_add(setting.value)
        };
        if s.deadline != 0 {
            self.arm(&mut s, now);
        }
        old
    }

    fn get(&self, p: &Process) -> Setting {
        let now = self.now(p);
        left(&self.state.lock(), now)
    }

    fn send(&self, p: &Process, overrun: u64) {
        if self.notify.signo == 0 {
            return;
        }
        self.reported.store(overrun, Ordering::Relaxed);
        let info = match self.notify.id {
            Some(id) => SigInfo {
                signo: self.notify.signo,
                errno: 0,
                code: code::TIMER,
                detail: Detail::Timer { id, overrun: overrun.min(i32::MAX as u64) as i32, value: self.notify.value },
            },
            None => SigInfo::kernel(self.notify.signo),
        };
        let _ = match &self.notify.thread {
            None => send_to_process(p, info),
            Some(t) => t.upgrade().map_or(Ok(()), |t| send_to_thread(&t, info)),
        };
    }
}

fn left(s: &State, now: u64) -> Setting {
    let value = if s.deadline == 0 { 0 } else { s.deadline.saturating_sub(now).max(1) };
    Setting { value, interval: s.interval }
}

impl TimerCallback for SignalTimer {
    fn fire(&self) {
        let Some(p) = self.process.upgrade() else { return };
        let now = self.now(&p);
        let overrun = {
            let mut s = self.state.lock();
            s.armed = None;
            if s.deadline == 0 {
                return;
            }
            if now < s.deadline {
                self.arm(&mut s, now);
                return;
            }
            let missed = (now - s.deadline).checked_div(s.interval);
            if let Some(missed) = missed {
                s.deadline += (missed + 1) * s.interval;
                self.arm(&mut s, now);
            } else {
                s.deadline = 0;
            }
            let missed = missed.unwrap_or(0);
            s.overrun = missed;
            missed
        };
        self.send(&p, overrun);
    }
}

#[derive(Default)]
struct List {
    interval: [Option<Arc<SignalTimer>>; 3],
    posix: Vec<Option<Arc<SignalTimer>>>,
}

/// A process's timers.
pub struct ProcessTimers(SpinLock<List>);

impl ProcessTimers {
    /// None.
    pub fn new() -> Self {
        ProcessTimers(SpinLock::new(&LIST, List::default()))
    }
}

impl Default for ProcessTimers {
    fn default() -> Self {
        Self::new()
    }
}

const INTERVAL_SIGNALS: [u32; 3] = [SIGALRM, SIGVTALRM, SIGPROF];

/// Reads interval timer `which` (`ITIMER_*`); `EINVAL`.
pub fn get_interval(p: &Process, which: i32) -> Result<Setting> {
    let which = usize::try_from(which).ok().filter(|&w| w < 3).ok_or(Errno::EINVAL)?;
    let timer = p.timers.0.lock().interval[which].clone();
    Ok(timer.map_or(Setting::default(), |t| t.get(p)))
}

/// Sets interval timer `which`; returns the former setting. `EINVAL`.
pub fn set_interval(p: &Arc<Process>, which: i32, setting: Setting) -> Result<Setting> {
    let which = usize::try_from(which).ok().filter(|&w| w < 3).ok_or(Errno::EINVAL)?;
    let existing = p.timers.0.lock().interval[which].clone();
    let timer = match existing {
        Some(t) => t,
        None if setting.value == 0 => return Ok(Setting::default()),
        None => {
            let clock = if which == 0 { Clock::Monotonic } else { Clock::Cpu };
            let notify = Notify { signo: INTERVAL_SIGNALS[which], value: 0, thread: None, id: None };
            let made = SignalTimer::new(p, clock, notify);
            p.timers.0.lock().interval[which].get_or_insert(made).clone()
        }
    };
    Ok(timer.set(p, setting, false))
}

/// timer_create: `notify` gets the timer's number. `EAGAIN` if there are too many.
pub fn create(p: &Arc<Process>, clock: Clock, notify: impl FnOnce(i32) -> Notify) -> Result<i32> {
    let at = {
        let list = p.timers.0.lock();
        let at = list.posix.iter().position(Option::is_none).unwrap_or(list.posix.len());
        if at >= MAX_POSIX {
            return Err(Errno::EAGAIN);
        }
        at
    };
    let timer = SignalTimer::new(p, clock, notify(at as i32));
    let mut list = p.timers.0.lock();
    if at == list.posix.len() {
        list.posix.push(Some(timer));
    } else if list.posix.get(at).is_some_and(Option::is_none) {
        list.posix[at] = Some(timer);
    } else {
        return Err(Errno::EAGAIN);
    }
    Ok(at as i32)
}

fn posix(p: &Process, id: i32) -> Result<Arc<SignalTimer>> {
    let list = p.timers.0.lock();
    let at = usize::try_from(id).map_err(|_| Errno::EINVAL)?;
    list.posix.get(at).cloned().flatten().ok_or(Errno::EINVAL)
}

/// timer_settime.
pub fn set(p: &Process, id: i32, setting: Setting, absolute: bool) -> Result<Setting> {
    Ok(posix(p, id)?.set(p, setting, absolute))
}

/// timer_gettime.
pub fn get(p: &Process, id: i32) -> Result<Setting> {
    Ok(posix(p, id)?.get(p))
}

/// timer_getoverrun.
pub fn overrun(p: &Process, id: i32) -> Result<i32> {
    Ok(posix(p, id)?.reported.load(Ordering::Relaxed).min(i32::MAX as u64) as i32)
}

/// timer_delete.
pub fn delete(p: &Process, id: i32) -> Result<()> {
    let timer = posix(p, id)?;
    timer.set(p, Setting::default(), false);
    let gone = p.timers.0.lock().posix[id as usize].take();
    drop(gone);
    Ok(())
}

fn drop_posix(p: &Process) {
    let timers = core::mem::take(&mut p.timers.0.lock().posix);
    for t in timers.into_iter().flatten() {
        t.set(p, Setting::default(), false);
    }
}

/// Exec keeps interval timers and drops the others (execve(2)).
pub fn exec(p: &Process) {
    drop_posix(p);
}

/// The process has ended.
pub fn process_exit(p: &Process) {
    drop_posix(p);
    let timers = core::mem::take(&mut p.timers.0.lock().interval);
    for t in timers.into_iter().flatten() {
        t.set(p, Setting::default(), false);
    }
}
