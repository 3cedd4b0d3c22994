//! The wall clock: CLOCK_REALTIME as a line over the monotonic clock.
//!
//! `real = now + base + slew(min(now - since, span)) + rate(now - since)`. Setting the clock moves `base`. Correcting it
//! without a jump (adjtimex(2)) bends the line: for `span` nanoseconds it runs up to 500 millionths faster or slower, and `rate`
//! stands for a known error of the oscillator. Every change begins a new line where the old one is now, so the time never
//! steps but by being set, and no timer is needed to end a correction.
//!
//! Programs evaluate the same line in the vDSO, from words that are written between two changes of a sequence count; so does
//! the kernel, from a copy of its own. Writers hold a lock that masks interrupts, so a reader in an interrupt never waits for
//! the writer below it.
//!
//! Not done: the kernel's phase-locked loop does not learn the oscillator's error from offsets, as Linux' does; who wants the rate
//! corrected says so (`ADJ_FREQUENCY`, `ADJ_TICK`). Leap seconds are steps made by who sets the clock.

use crate::arch::time::now_ns;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use sync::{IrqLock, LockClass, rank};

/// How much a correction bends the clock, in units of 2^-32: 500 millionths, as on Linux.
const SLEW: i64 = 2_147_484;
/// How long the clock is bent for a nanosecond of correction.
const SPAN_PER_NS: u64 = 2000;
/// The largest error that is corrected without setting the clock, in nanoseconds (Linux' MAXPHASE).
pub const MAX_SLEW_NS: i64 = 500_000_000;

/// A line over the monotonic clock, all in nanoseconds; `slew` and `rate` are in units of 2^-32.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    base: i64,
    since: u64,
    slew: i64,
    span: u64,
    rate: i64,
}

impl Line {
    /// What has been corrected of the error since `since`.
    fn slewed(&self, now: u64) -> i64 {
        // At most 2^40 times 2^22.
        (now.saturating_sub(self.since).min(self.span) as i64).wrapping_mul(self.slew) >> 32
    }

    /// What to add to the monotonic clock.
    fn at(&self, now: u64) -> i64 {
        let elapsed = now.saturating_sub(self.since);
        let drift = ((elapsed as i128 * self.rate as i128) >> 32) as i64;
        self.base.wrapping_add(self.slewed(now)).wrapping_add(drift)
    }

    fn words(&self) -> [u64; 5] {
        [self.base as u64, self.since, self.slew as u64, self.span, self.rate as u64]
    }

    fn of(w: [u64; 5]) -> Line {
        Line { base: w[0] as i64, since: w[1], slew: w[2] as i64, span: w[3], rate: w[4] as i64 }
    }
}

/// A line that is read without a lock: its sequence count (odd while it changes) and its words.
#[repr(transparent)]
pub struct Shared([AtomicU64; 6]);

impl Shared {
    const fn new() -> Shared {
        Shared([const { AtomicU64::new(0) }; 6])
    }

    /// One writer at a time.
    fn write(&self, line: &Line) {
        let [sequence, words @ ..] = &self.0;
        let n = sequence.load(Ordering::Relaxed);
        sequence.store(n.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in words.iter().zip(line.words()) {
            word.store(value, Ordering::Relaxed);
        }
        sequence.store(n.wrapping_add(2), Ordering::Release);
    }

    fn read(&self) -> Line {
        let [sequence, words @ ..] = &self.0;
        loop {
            let before = sequence.load(Ordering::Acquire);
            let line = Line::of(core::array::from_fn(|n| words.get(n).map_or(0, |w| w.load(Ordering::Relaxed))));
            fence(Ordering::Acquire);
            if before & 1 == 0 && sequence.load(Ordering::Relaxed) == before {
                return line;
            }
            core::hint::spin_loop();
        }
    }
}

static CLASS: LockClass = LockClass::new("wall clock", rank::TIMER + 10);
static LINE: Shared = Shared::new();
/// Held by who changes the line.
static WRITER: IrqLock<()> = IrqLock::new(&CLASS, ());

fn change(to: impl FnOnce(Line, u64) -> Line) {
    let _writer = WRITER.lock();
    let now = now_ns();
    let line = to(LINE.read(), now);
    LINE.write(&line);
    if let Some(shared) = crate::mm::vdso::wall_clock() {
        shared.write(&line);
    }
}

/// CLOCK_REALTIME minus CLOCK_MONOTONIC at this moment, in nanoseconds. Any context.
pub fn offset() -> i64 {
    LINE.read().at(now_ns())
}

/// CLOCK_REALTIME in nanoseconds since 1970. Any context.
pub fn realtime_ns() -> u64 {
    let now = now_ns();
    now.wrapping_add_signed(LINE.read().at(now))
}

/// Sets the wall clock; a correction under way ends. `None`, and no change, for a time before the machine's start (the
/// monotonic clock began no earlier than 1970) or beyond what 63 bits hold.
pub fn set(ns: u64) -> Option<()> {
    let mut done = None;
    change(|line, now| {
        let base = i64::try_from(ns).ok().and_then(|ns| ns.checked_sub_unsigned(now)).filter(|&base| base >= 0);
        done = base.map(|_| ());
        base.map_or(line, |base| Line { base, since: now, slew: 0, span: 0, rate: line.rate })
    });
    done
}

/// Moves the wall clock by so many nanoseconds at once; a correction under way ends. `None`, and no change, if it would then be
/// before the machine's start or beyond what 63 bits hold.
pub fn step(ns: i64) -> Option<()> {
    let mut done = None;
    change(|line, now| {
        let base = line.at(now).checked_add(ns).filter(|&b| b >= 0 && b.checked_add_unsigned(now).is_some());
        done = base.map(|_| ());
        base.map_or(line, |base| Line { base, since: now, slew: 0, span: 0, rate: line.rate })
    });
    done
}

/// Corrects the wall clock by so many nanoseconds, at most [`MAX_SLEW_NS`] either way, without a jump; in place of what is left of
/// the correction before.
pub fn slew(ns: i64) {
    let ns = ns.clamp(-MAX_SLEW_NS, MAX_SLEW_NS);
    let span = ns.unsigned_abs() * SPAN_PER_NS;
    change(|line, now| Line { base: line.at(now), since: now, slew: SLEW * ns.signum(), span, rate: line.rate });
}

/// What is left of the correction, in nanoseconds.
pub fn slew_left() -> i64 {
    let line = LINE.read();
    let whole = (line.span as i64).wrapping_mul(line.slew) >> 32;
    whole - line.slewed(now_ns())
}

/// From now on the clock runs faster by `rate`, in units of 2^-32; a correction under way goes on.
pub fn set_rate(rate: i64) {
    change(|line, now| Line {
        base: line.at(now),
        since: now,
        slew: line.slew,
        span: line.span.saturating_sub(now.saturating_sub(line.since)),
        rate,
    });
}

/// Fills a new vDSO's words.
pub fn publish(to: &Shared) {
    let _writer = WRITER.lock();
    to.write(&LINE.read());
}
