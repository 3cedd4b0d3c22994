//! Kernel stacks: 16 KiB in the upper half of a slot of 32 KiB, whose lower half is never mapped.
//!
//! So bit 14 of every address on a stack is set, and a stack that runs over hits the guard; the vectors test that bit before
//! they touch the stack. Stacks of threads that ended stay mapped for the next thread, a few on each CPU; more than that
//! are unmapped and their slots reused.

use super::frames::{self, For, Frame};
use super::vmap;
use crate::arch::percpu::MAX_CPUS;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use sync::{IrqLock, LockClass, rank};

/// Bytes on a stack.
pub const STACK_SIZE: usize = 16 * 1024;
const SLOT: usize = 2 * STACK_SIZE;
const FRAMES: usize = STACK_SIZE / super::PAGE_SIZE;
const CACHE: usize = 4;

static CACHE_CLASS: LockClass = LockClass::new("stack cache", rank::HEAP - 22);
static SLOT_CLASS: LockClass = LockClass::new("stack slots", rank::HEAP - 21);

struct Cache {
    len: usize,
    tops: [usize; CACHE],
}

#[repr(align(128))]
struct PerCpu(IrqLock<Cache>);

static CACHES: [PerCpu; MAX_CPUS] =
    [const { PerCpu(IrqLock::new(&CACHE_CLASS, Cache { len: 0, tops: [0; CACHE] })) }; MAX_CPUS];

struct Slots {
    /// Slots never used so far start here.
    next: usize,
    /// Tops of slots that are free and unmapped.
    free: Vec<usize>,
}

static SLOTS: IrqLock<Slots> = IrqLock::new(&SLOT_CLASS, Slots { next: vmap::STACKS.start, free: Vec::new() });
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// A kernel stack; dropping it gives it back. Nobody may run on it then. Context of both: any.
#[derive(Debug)]
pub struct KernelStack {
    top: usize,
}

impl KernelStack {
    /// A stack of undefined content; waits for memory where the caller may sleep. `None` when it is exhausted.
    pub fn new() -> Option<KernelStack> {
        super::oom::insist(Self::take)
    }

    fn take() -> Option<KernelStack> {
        let mut cache = CACHES[platform::cpu_id()].0.lock();
        if cache.len > 0 {
            cache.len -= 1;
            return Some(KernelStack { top: cache.tops[cache.len] });
        }
        drop(cache);
        let top = {
            let mut slots = SLOTS.lock();
            match slots.free.pop() {
                Some(top) => top,
                None if slots.next + SLOT <= vmap::STACKS.end => {
                    slots.next += SLOT;
                    slots.next
                }
                None => return None,
            }
        };
        if map(top) { Some(KernelStack { top }) } else { None }
    }

    /// The first address above it.
    #[inline]
    pub fn top(&self) -> usize {
        self.top
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        let mut cache = CACHES[platform::cpu_id()].0.lock();
        if cache.len < CACHE {
            let at = cache.len;
            cache.tops[at] = self.top;
            cache.len = at + 1;
            return;
        }
        drop(cache);
        unmap(self.top);
    }
}

fn map(top: usize) -> bool {
    let mut got = [Frame(0); FRAMES];
    let mut n = 0;
    while n < FRAMES {
        match frames::alloc_one(For::User) {
            Some(f) => got[n] = f,
            None => break,
        }
        n += 1;
    }
    if n == FRAMES && vmap::map_frames(top - STACK_SIZE, &got).is_ok() {
        MAPPED.fetch_add(1, Ordering::Relaxed);
        return true;
    }
    vmap::clear(top - STACK_SIZE, FRAMES, |_| {});
    got[..n].iter().for_each(|f| f.put());
    SLOTS.lock().free.push(top);
    false
}

fn unmap(top: usize) {
    vmap::clear(top - STACK_SIZE, FRAMES, Frame::put);
    MAPPED.fetch_sub(1, Ordering::Relaxed);
    SLOTS.lock().free.push(top);
}

/// Unmaps the stacks that are kept for reuse.
pub(super) fn drain() {
    for cache in &CACHES {
        loop {
            let top = {
                let mut c = cache.0.lock();
                if c.len == 0 {
                    break;
                }
                c.len -= 1;
                c.tops[c.len]
            };
            unmap(top);
        }
    }
}

/// Frames in stacks that are kept for reuse.
pub(super) fn cached_frames() -> usize {
    CACHES.iter().map(|c| c.0.lock().len).sum::<usize>() * FRAMES
}

/// Frames in stacks in use.
pub(super) fn used_frames() -> usize {
    (MAPPED.load(Ordering::Relaxed) * FRAMES).saturating_sub(cached_frames())
}
