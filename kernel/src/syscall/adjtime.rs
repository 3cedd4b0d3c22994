//! adjtimex(2) and clock_adjtime(2): corrections of the wall clock ([`crate::clock`]) by those who know the time better.
//!
//! What a daemon sets and reads back is kept here: status, time constant, estimated errors. The clock is unsynchronised
//! (`TIME_ERROR`) until somebody says otherwise, and again whenever it is set.

use super::{SysResult, efault};
use crate::arch::uaccess::{UserAddr, read_user, write_user};
use crate::clock;
use crate::sched::current;
use crate::task::cred::cap;
use abi::Errno;
use sync::{IrqLock, LockClass, rank};
use zerocopy::{FromBytes, Immutable, IntoBytes};

crate::syscalls! {
    plain {
        171 adjtimex(timex: Ptr) = adjtimex;
        266 clock_adjtime(clock: Int, timex: Ptr) = clock_adjtime;
    }
    frame {}
}

/// `struct timex`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Timex {
    modes: u32,
    pad0: u32,
    offset: i64,
    freq: i64,
    maxerror: i64,
    esterror: i64,
    status: i32,
    pad1: u32,
    constant: i64,
    precision: i64,
    tolerance: i64,
    sec: i64,
    part: i64,
    tick: i64,
    ppsfreq: i64,
    jitter: i64,
    shift: i32,
    pad2: u32,
    stabil: i64,
    counts: [i64; 4],
    tai: i32,
    rest: [u32; 11],
}

mod modes {
    pub const OFFSET: u32 = 1;
    pub const FREQUENCY: u32 = 2;
    pub const MAXERROR: u32 = 4;
    pub const ESTERROR: u32 = 8;
    pub const STATUS: u32 = 0x10;
    pub const TIMECONST: u32 = 0x20;
    pub const TAI: u32 = 0x80;
    pub const SETOFFSET: u32 = 0x100;
    pub const MICRO: u32 = 0x1000;
    pub const NANO: u32 = 0x2000;
    pub const TICK: u32 = 0x4000;
    /// adjtime(3): the offset in microseconds, whatever the status; reading only what is left of it.
    pub const SINGLESHOT: u32 = 0x8001;
    pub const READ_SINGLESHOT: u32 = 0xa001;
}

const STA_PLL: i32 = 1;
const STA_UNSYNC: i32 = 0x40;
const STA_NANO: i32 = 0x2000;
/// Set by the kernel alone.
const STA_READ_ONLY: i32 = 0xff00;
const TIME_OK: usize = 0;
const TIME_ERROR: usize = 5;
/// The largest correction of the rate, in millionths times 2^16.
const MAX_FREQUENCY: i64 = 500 << 16;
/// Sixteen seconds: what nothing is known of.
const NO_ESTIMATE: i64 = 16_000_000;
/// Microseconds of a tick of USER_HZ, and how far it may be from that.
const TICK: i64 = 10_000;
const TICK_SPAN: i64 = 1000;

struct State {
    frequency: i64,
    max_error: i64,
    estimated_error: i64,
    status: i32,
    constant: i64,
    tick: i64,
    tai: i32,
}

static CLASS: LockClass = LockClass::new("clock discipline", rank::TIMER + 9);
static STATE: IrqLock<State> = IrqLock::new(
    &CLASS,
    State {
        frequency: 0,
        max_error: NO_ESTIMATE,
        estimated_error: NO_ESTIMATE,
        status: STA_UNSYNC,
        constant: 2,
        tick: TICK,
        tai: 0,
    },
);

/// The clock was set: nobody knows how well.
pub fn was_set() {
    let mut s = STATE.lock();
    s.status |= STA_UNSYNC;
    (s.max_error, s.estimated_error) = (NO_ESTIMATE, NO_ESTIMATE);
}

fn clock_adjtime(clock: i32, at: UserAddr) -> SysResult {
    match clock {
        0 => adjtimex(at),
        c if c > 0 && super::time::read_clock(c).is_ok() => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}

fn adjtimex(at: UserAddr) -> SysResult {
    let mut t: Timex = read_user(at).map_err(efault)?;
    let code = if t.modes & 0x8000 != 0 { adjtime(&mut t)? } else { adjust(&mut t)? };
    write_user(at, &t).map_err(efault)?;
    Ok(code)
}

/// The old adjtime(3): one offset in microseconds.
fn adjtime(t: &mut Timex) -> Result<usize, Errno> {
    if t.modes != modes::SINGLESHOT && t.modes != modes::READ_SINGLESHOT {
        return Err(Errno::EINVAL);
    }
    let left = clock::slew_left() / 1000;
    if t.modes == modes::SINGLESHOT {
        current().require(cap::SYS_TIME)?;
        clock::slew(t.offset.saturating_mul(1000));
    }
    let asked = t.modes;
    let code = report(t);
    (t.modes, t.offset) = (asked, left);
    Ok(code)
}

fn adjust(t: &mut Timex) -> Result<usize, Errno> {
    let has = |mode| t.modes & mode != 0;
    if t.modes != 0 {
        current().require(cap::SYS_TIME)?;
    }
    if has(modes::TICK) && !(TICK - TICK_SPAN..=TICK + TICK_SPAN).contains(&t.tick) {
        return Err(Errno::EINVAL);
    }
    if has(modes::SETOFFSET) {
        let limit = if has(modes::NANO) { 1_000_000_000 } else { 1_000_000 };
        if !(0..limit).contains(&t.part) {
            return Err(Errno::EINVAL);
        }
        let part = t.part * (1_000_000_000 / limit);
        let by = t.sec.checked_mul(1_000_000_000).and_then(|s| s.checked_add(part)).ok_or(Errno::EINVAL)?;
        clock::step(by).ok_or(Errno::EINVAL)?;
        was_set();
    }
    let mut s = STATE.lock();
    if has(modes::STATUS) {
        s.status = (s.status & STA_READ_ONLY) | (t.status & !STA_READ_ONLY);
    }
    if has(modes::NANO) {
        s.status |= STA_NANO;
    }
    if has(modes::MICRO) {
        s.status &= !STA_NANO;
    }
    if has(modes::MAXERROR) {
        s.max_error = t.maxerror.clamp(0, NO_ESTIMATE);
    }
    if has(modes::ESTERROR) {
        s.estimated_error = t.esterror.clamp(0, NO_ESTIMATE);
    }
    if has(modes::TIMECONST) {
        s.constant = t.constant.clamp(0, 10);
    }
    if has(modes::TAI) && (0..=100_000).contains(&t.constant) {
        s.tai = t.constant as i32;
    }
    if has(modes::FREQUENCY) {
        s.frequency = t.freq.clamp(-MAX_FREQUENCY, MAX_FREQUENCY);
    }
    if has(modes::TICK) {
        s.tick = t.tick;
    }
    if has(modes::FREQUENCY | modes::TICK) {
        // Millionths times 2^16, in units of 2^-32.
        let millionths = s.frequency + (((s.tick - TICK) * 100) << 16);
        clock::set_rate((i128::from(millionths) * 65536 / 1_000_000) as i64);
    }
    if has(modes::OFFSET) && s.status & STA_PLL != 0 {
        clock::slew(if s.status & STA_NANO != 0 { t.offset } else { t.offset.saturating_mul(1000) });
    }
    drop(s);
    Ok(report(t))
}

fn report(t: &mut Timex) -> usize {
    let s = STATE.lock();
    let nano = s.status & STA_NANO != 0;
    let now = clock::realtime_ns();
    *t = Timex {
        offset: if nano { clock::slew_left() } else { clock::slew_left() / 1000 },
        freq: s.frequency,
        maxerror: s.max_error,
        esterror: s.estimated_error,
        status: s.status,
        constant: s.constant,
        precision: 1,
        tolerance: MAX_FREQUENCY,
        sec: (now / 1_000_000_000) as i64,
        part: if nano { now % 1_000_000_000 } else { now / 1000 % 1_000_000 } as i64,
        tick: s.tick,
        tai: s.tai,
        ..Timex { modes: t.modes, ..zerocopy::FromZeros::new_zeroed() }
    };
    if s.status & STA_UNSYNC != 0 { TIME_ERROR } else { TIME_OK }
}
