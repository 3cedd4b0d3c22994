//! Address-space identifiers.
//!
//! A space gets an ASID when it first runs and keeps it for as long as the generation lasts; when all are used a new
//! generation starts: every CPU forgets its translations before it next loads a space, and spaces that are running keep
//! their numbers. A context word holds generation and ASID together: `generation << 16 | asid`; 0 means never run.
//!
//! The switch's fast path is a compare of generations and an exchange of the CPU's active word; the exchange finds 0 if a
//! roll-over took the word away, and the slow path settles that under the lock.

use crate::arch::percpu::{self, Counter, MAX_CPUS};
use crate::arch::{cpu, tlb};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use sync::{IrqLock, LockClass, rank};

const BITS: u32 = 16;
const MASK: u64 = (1 << BITS) - 1;
const WORDS: usize = 1 << (BITS - 6);

static GENERATION: AtomicU64 = AtomicU64::new(1 << BITS);
/// How many ASIDs the CPUs have.
static COUNT: AtomicUsize = AtomicUsize::new(256);

#[repr(align(64))]
struct Active(AtomicU64);
/// What each CPU runs; 0 after a roll-over until it next switches.
static ACTIVE: [Active; MAX_CPUS] = [const { Active(AtomicU64::new(0)) }; MAX_CPUS];

struct State {
    used: [u64; WORDS],
    next: usize,
    /// What each CPU ran at the last roll-over.
    reserved: [u64; MAX_CPUS],
    /// CPUs that have yet to forget the last generation.
    flush: u64,
}

static CLASS: LockClass = LockClass::new("asid", rank::RUNQUEUE + 10);
static STATE: IrqLock<State> =
    IrqLock::new(&CLASS, State { used: [0; WORDS], next: 1, reserved: [0; MAX_CPUS], flush: 0 });

/// Learns the number of ASIDs; the boot CPU, after feature detection.
pub(super) fn init() {
    COUNT.store(if cpu::features().asid16 { 1 << 16 } else { 256 }, Ordering::Relaxed);
}

/// The ASID in a context word.
#[inline(always)]
pub fn of(context: u64) -> u16 {
    (context & MASK) as u16
}

/// Whether CPU `cpu` runs `context` as it is now.
#[inline(always)]
pub(super) fn is_active(context: &AtomicU64, cpu: usize) -> bool {
    ACTIVE[cpu].0.load(Ordering::Relaxed) == context.load(Ordering::Relaxed)
}

/// Makes `context` the one that CPU `cpu` (the caller's, interrupts masked) runs; its ASID.
#[inline(always)]
pub(super) fn activate(context: &AtomicU64, cpu: usize) -> u16 {
    let word = context.load(Ordering::Relaxed);
    let active = &ACTIVE[cpu].0;
    let old = active.load(Ordering::Relaxed);
    if old != 0
        && word >> BITS == GENERATION.load(Ordering::Relaxed) >> BITS
        && active.compare_exchange(old, word, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        return of(word);
    }
    activate_slow(context, cpu)
}

#[cold]
#[inline(never)]
fn activate_slow(context: &AtomicU64, cpu: usize) -> u16 {
    let mut state = STATE.lock();
    let mut word = context.load(Ordering::Relaxed);
    if word >> BITS != GENERATION.load(Ordering::Relaxed) >> BITS {
        word = state.assign(word);
        context.store(word, Ordering::Relaxed);
    }
    if state.flush & 1 << cpu != 0 {
        state.flush &= !(1 << cpu);
        tlb::flush_local();
    }
    ACTIVE[cpu].0.store(word, Ordering::Relaxed);
    of(word)
}

impl State {
    /// A context word of the current generation (or a new one) for a space whose word is stale.
    fn assign(&mut self, word: u64) -> u64 {
        let mut generation = GENERATION.load(Ordering::Relaxed);
        if word != 0 {
            let new = generation | word & MASK;
            // Running somewhere through the roll-over: it keeps its number.
            if self.replace_reserved(word, new) {
                return new;
            }
            // Nobody took its number since.
            let asid = (word & MASK) as usize;
            if self.used[asid / 64] & 1 << (asid % 64) == 0 {
                self.used[asid / 64] |= 1 << (asid % 64);
                return new;
            }
        }
        let asid = match self.find() {
            Some(a) => a,
            None => {
                generation += 1 << BITS;
                GENERATION.store(generation, Ordering::Relaxed);
                self.roll_over();
                // CPUs are fewer than ASIDs, so one is free now.
                self.find().unwrap_or(1)
            }
        };
        self.used[asid / 64] |= 1 << (asid % 64);
        self.next = asid + 1;
        generation | asid as u64
    }

    fn find(&self) -> Option<usize> {
        let count = COUNT.load(Ordering::Relaxed);
        let mut word = self.next / 64;
        let mut free = !self.used.get(word)? & (u64::MAX << (self.next % 64));
        while free == 0 {
            word += 1;
            if word * 64 >= count {
                return None;
            }
            free = !self.used[word];
        }
        let asid = word * 64 + free.trailing_zeros() as usize;
        (asid < count).then_some(asid)
    }

    fn roll_over(&mut self) {
        percpu::count(Counter::AsidRollovers);
        self.used = [0; WORDS];
        self.next = 1;
        for (cpu, active) in ACTIVE.iter().enumerate() {
            let was = active.0.swap(0, Ordering::Relaxed);
            // 0: it has not switched since the last roll-over; what was reserved then still is.
            if was != 0 {
                self.reserved[cpu] = was;
            }
            let asid = (self.reserved[cpu] & MASK) as usize;
            self.used[asid / 64] |= 1 << (asid % 64);
        }
        self.used[0] |= 1;
        self.flush = u64::MAX;
    }

    fn replace_reserved(&mut self, old: u64, new: u64) -> bool {
        let mut hit = false;
        for r in &mut self.reserved {
            if *r == old {
                *r = new;
                hit = true;
            }
        }
        hit
    }
}
