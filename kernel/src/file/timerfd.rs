//! Timers as files (timerfd_create(2)).
//!
//! A [`TimerFd`] keeps its next expiry and its interval on the monotonic clock (absolute wall-clock times are converted
//! when set). The kernel timer is armed for the next expiry only; it marks the file readable and wakes. How many intervals
//! have passed is computed when somebody looks, and the next expiry is armed by that look: a program that does not read
//! costs no interrupts.
//!
//! Locking: one interrupt-safe lock around the state, taken before the timers' own.
//!
//! Not done: `TFD_TIMER_CANCEL_ON_SET` is taken and never cancels; a wall clock that is set does not move armed timers.

use super::anonymous_attr;
use crate::sched::timer::{self, TimerCallback, TimerId};
use abi::{Errno, Result};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use platform::{ParkOptions, ReadSink, SharedBytes};
use sync::{IrqLock, LockClass, WaitQueue, rank};
use vfs::{Attr, File, Io, PollEvents, Poller};

static STATE: LockClass = LockClass::new("timer file", rank::OBJECT + 20);

/// Which clock a timer goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Since boot.
    Monotonic,
    /// The wall clock.
    Realtime,
}

/// A setting, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Between expiries; 0: once.
    pub interval: u64,
    /// Until the next expiry; 0: disarmed.
    pub value: u64,
}

#[derive(Default)]
struct State {
    /// The next expiry on the monotonic clock; 0: none.
    next: u64,
    interval: u64,
    /// Expiries that nobody has read.
    expired: u64,
    armed: Option<TimerId>,
}

impl State {
    /// Counts what expired up to `now`.
    fn advance(&mut self, now: u64) {
        if self.next == 0 || now < self.next {
            return;
        }
        let missed = (now - self.next).checked_div(self.interval);
        let passed = missed.map_or(1, |m| m.saturating_add(1));
        self.expired = self.expired.saturating_add(passed);
        self.next = match self.interval {
            0 => 0,
            i => self.next.saturating_add(i.saturating_mul(passed)),
        };
    }

    fn setting(&self, now: u64) -> Setting {
        let value = if self.next == 0 { 0 } else { self.next.saturating_sub(now).max(1) };
        Setting { interval: self.interval, value }
    }
}

/// A timer file.
pub struct TimerFd {
    clock: Clock,
    state: IrqLock<State>,
    waiters: Arc<WaitQueue>,
    alarm: Arc<Alarm>,
}

/// What the kernel timer refers to, so that an armed timer does not keep the file.
struct Alarm(Weak<TimerFd>);

impl TimerCallback for Alarm {
    fn fire(&self) {
        if let Some(t) = self.0.upgrade() {
            {
                let mut s = t.state.lock();
                s.armed = None;
                s.advance(platform::monotonic_ns());
            }
            t.waiters.wake();
        }
    }
}

impl TimerFd {
    /// A disarmed timer.
    pub fn new(clock: Clock) -> Arc<TimerFd> {
        Arc::new_cyclic(|me| TimerFd {
            clock,
            state: IrqLock::new(&STATE, State::default()),
            waiters: Arc::new(WaitQueue::new()),
            alarm: Arc::new(Alarm(me.clone())),
        })
    }

    /// Makes the kernel timer fit the state. The timer may call back at once, so the state is not locked then.
    fn arm(&self) {
        let next = {
            let mut s = self.state.lock();
            if let Some(id) = s.armed.take() {
                timer::cancel(id);
            }
            if s.expired > 0 { 0 } else { s.next }
        };
        if next == 0 {
            return;
        }
        let id = timer::arm_call(next, self.alarm.clone());
        let mut s = self.state.lock();
        if s.next == next && s.armed.is_none() {
            s.armed = Some(id);
        } else {
            // Somebody else set or armed it meanwhile.
            timer::cancel(id);
        }
    }

    /// Sets it; returns the former setting. `absolute`: `value` is a time of its clock.
    pub fn set(&self, to: Setting, absolute: bool) -> Setting {
        let now = platform::monotonic_ns();
        let next = match (to.value, absolute, self.clock) {
            (0, ..) => 0,
            (v, false, _) => now.saturating_add(v),
            (v, true, Clock::Monotonic) => v,
            (v, true, Clock::Realtime) => v.saturating_add_signed(-crate::clock::offset()).max(1),
        };
        let mut s = self.state.lock();
        s.advance(now);
        let former = s.setting(now);
        s.next = next;
        s.interval = to.interval;
        s.expired = 0;
        // What is over already is readable at once.
        s.advance(now);
        let ready = s.expired > 0;
        drop(s);
        self.arm();
        if ready {
            self.waiters.wake();
        }
        former
    }

    /// The setting now.
    pub fn get(&self) -> Setting {
        let now = platform::monotonic_ns();
        let mut s = self.state.lock();
        s.advance(now);
        s.setting(now)
    }

    /// Takes the expiries that nobody has read.
    fn take(&self) -> Option<u64> {
        let n = {
            let mut s = self.state.lock();
            s.advance(platform::monotonic_ns());
            core::mem::take(&mut s.expired)
        };
        if n > 0 {
            self.arm();
        }
        (n > 0).then_some(n)
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        if let Some(id) = self.state.get_mut().armed.take() {
            timer::cancel(id);
        }
    }
}

impl File for TimerFd {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        if sink.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let n = match self.take() {
            Some(n) => n,
            None if io.nonblock => return Err(Errno::EAGAIN),
            None => {
                let options = ParkOptions { interruptible: true, deadline_ns: None };
                self.waiters.wait_until(options, || self.take()).map_err(|_| Errno::ERESTARTSYS)?
            }
        };
        match sink.put(SharedBytes::from(&n.to_ne_bytes()[..])) {
            Ok(8) => Ok(8),
            _ => Err(Errno::EFAULT),
        }
    }

    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        if let Some(p) = poller {
            p.register(&self.waiters);
        }
        let mut s = self.state.lock();
        s.advance(platform::monotonic_ns());
        PollEvents::POLLIN.when(s.expired > 0)
    }

    fn getattr(&self) -> Result<Attr> {
        Ok(anonymous_attr())
    }

    fn name(&self) -> Vec<u8> {
        b"anon_inode:[timerfd]".to_vec()
    }
}
