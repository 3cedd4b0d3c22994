//! The host's side, for tests: threads are `std` threads, frames are heap blocks.
#![allow(missing_docs)]

use crate::{PAGE_SIZE, ParkOptions, Wake};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

#[derive(Default)]
struct Parker {
    token: Mutex<bool>,
    wake: Condvar,
}

thread_local! {
    static PARKER: Arc<Parker> = Arc::new(Parker::default());
    static RNG: RefCell<u64> = RefCell::new(0x9E37_79B9_7F4A_7C15 ^ (std::process::id() as u64) << 20);
}

#[cfg(debug_assertions)]
thread_local! {
    static HELD: std::cell::UnsafeCell<crate::HeldLocks> = const { std::cell::UnsafeCell::new(crate::HeldLocks::new()) };
}

pub fn preempt_disable() {}
pub fn preempt_enable() {}
pub fn irq_save() -> usize {
    0
}
pub fn irq_restore(_: usize) {}
pub fn may_sleep() -> bool {
    true
}
pub fn cpu_id() -> usize {
    0
}

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

pub fn monotonic_ns() -> u64 {
    start().elapsed().as_nanos() as u64
}
pub fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}
pub fn random_u64() -> u64 {
    // splitmix64: tests need variety, not secrecy
    RNG.with(|r| {
        let mut s = r.borrow_mut();
        *s = s.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *s;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

pub fn waiter_current() -> usize {
    PARKER.with(|p| Arc::into_raw(p.clone()) as usize)
}
pub fn waiter_ref(raw: usize) {
    // SAFETY: `raw` is a counted reference made by `waiter_current`.
    unsafe { Arc::increment_strong_count(raw as *const Parker) };
}
pub fn waiter_unref(raw: usize) {
    // SAFETY: as above; the caller gives its reference up.
    unsafe { Arc::decrement_strong_count(raw as *const Parker) };
}
pub fn waiter_unpark(raw: usize, _sync: bool) {
    // SAFETY: the caller holds a counted reference, so the parker is alive.
    let parker = unsafe { &*(raw as *const Parker) };
    if let Ok(mut token) = parker.token.lock() {
        *token = true;
        parker.wake.notify_one();
    }
}

pub fn park(options: ParkOptions) -> Wake {
    let parker = PARKER.with(Arc::clone);
    let Ok(mut token) = parker.token.lock() else { return Wake::Unparked };
    loop {
        if *token {
            *token = false;
            return Wake::Unparked;
        }
        match options.deadline_ns {
            None => match parker.wake.wait(token) {
                Ok(t) => token = t,
                Err(_) => return Wake::Unparked,
            },
            Some(deadline) => {
                let now = monotonic_ns();
                if now >= deadline {
                    return Wake::TimedOut;
                }
                match parker.wake.wait_timeout(token, Duration::from_nanos(deadline - now)) {
                    Ok((t, _)) => token = t,
                    Err(_) => return Wake::Unparked,
                }
            }
        }
    }
}

#[cfg(debug_assertions)]
pub fn held_locks() -> *mut crate::HeldLocks {
    HELD.with(|h| h.get())
}

/// Frames live behind a header of one page that holds the count, so that data stays page-aligned.
fn layout() -> Layout {
    // SAFETY: a power-of-two alignment and a size that is a multiple of it.
    unsafe { Layout::from_size_align_unchecked(2 * PAGE_SIZE, PAGE_SIZE) }
}

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// How many frames are allocated now, for leak tests.
pub fn live_pages() -> usize {
    LIVE.load(Ordering::SeqCst)
}

/// Lets allocation fail once `limit` frames are live, to test exhaustion.
pub fn set_page_limit(limit: usize) {
    LIMIT.store(limit, Ordering::SeqCst);
}

pub fn page_alloc(zeroed: bool) -> usize {
    if LIVE.fetch_add(1, Ordering::SeqCst) >= LIMIT.load(Ordering::SeqCst) {
        LIVE.fetch_sub(1, Ordering::SeqCst);
        return 0;
    }
    // SAFETY: the layout has a non-zero size.
    let p = unsafe { if zeroed { alloc_zeroed(layout()) } else { alloc(layout()) } };
    if p.is_null() {
        return 0;
    }
    #[expect(clippy::cast_ptr_alignment, reason = "the layout is page-aligned")]
    // SAFETY: the header page is ours and aligned.
    unsafe {
        (p as *mut AtomicUsize).write(AtomicUsize::new(1));
    };
    p as usize
}
fn count(raw: usize) -> &'static AtomicUsize {
    // SAFETY: `raw` is a live frame's header; the reference does not outlive the caller's call.
    unsafe { &*(raw as *const AtomicUsize) }
}
pub fn page_ref(raw: usize) {
    count(raw).fetch_add(1, Ordering::Relaxed);
}
pub fn page_refs(raw: usize) -> usize {
    count(raw).load(Ordering::Relaxed)
}
pub fn page_unref(raw: usize) {
    if count(raw).fetch_sub(1, Ordering::AcqRel) == 1 {
        LIVE.fetch_sub(1, Ordering::SeqCst);
        // SAFETY: the last reference is gone.
        unsafe { dealloc(raw as *mut u8, layout()) };
    }
}
pub fn page_data(raw: usize) -> *mut u8 {
    (raw + PAGE_SIZE) as *mut u8
}
