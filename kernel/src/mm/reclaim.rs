//! The machine's page cache, and memory got back from it.
//!
//! Free frames have three marks. Below *low* (noticed when a CPU refills its cache of frames) the reclaim thread wakes and
//! frees pages until *high* are free. Below the reserve, user memory is not handed out any more: the allocating thread then
//! frees clean pages itself, or waits for the reclaim thread and for write-back. Either takes pages out of mappings where the
//! address space is not locked at the moment. Only when neither gets anywhere the OOM killer is asked.
//!
//! Two write-back threads serve all file systems, so that a slow one does not hold up the others at once.

use super::frames;
use crate::sched;
use crate::task::Thread;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use pagecache::{Limits, Memory, PageCache, Shrink};
use platform::ParkOptions;
use sync::{Once, WaitQueue};

static CACHE: Once<Arc<PageCache>> = Once::new();
static KSWAPD: WaitQueue = WaitQueue::new();
/// Who waits for the reclaim thread.
static ROUND: WaitQueue = WaitQueue::new();
static WANTED: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
/// Whether the last round of the reclaim thread freed anything.
static PROGRESS: AtomicBool = AtomicBool::new(false);
/// Somebody is about to be killed.
static DESPERATE: AtomicBool = AtomicBool::new(false);
/// How often everything was given back for that.
static GIVEN: AtomicU64 = AtomicU64::new(0);
static NEVER: AtomicBool = AtomicBool::new(false);

const FLUSHERS: usize = 2;
/// So few cached names are not worth a look.
const FEW_NAMES: usize = 256;
/// How long the last resort may take.
const LAST_RESORT_NS: u64 = 5_000_000_000;
/// After that it is of no use again for so long.
const AGAIN_NS: u64 = 300_000_000;

/// The page cache.
pub fn page_cache() -> &'static Arc<PageCache> {
    loop {
        if let Some(c) = CACHE.get() {
            return c;
        }
        let _ = CACHE.set(PageCache::new(Limits::for_memory(frames::total())));
    }
}

/// How many pages who runs out of memory looks at himself, before he leaves it to the reclaim thread.
const SCAN: usize = 1024;
/// How long no write may end before dirty memory counts as lost for reclaim.
const STALL_NS: u64 = 10_000_000_000;

/// Below this the reclaim thread works.
pub fn low_mark() -> usize {
    frames::reserve() * 3 / 2 + 64
}

fn high_mark() -> usize {
    frames::reserve() * 2 + 128
}

/// Starts the threads; once, before the first file system is mounted.
pub fn init() {
    page_cache().set_memory(Memory { free: frames::available, tight: frames::reserve() + 64 });
    super::oom::register_shrinker(direct);
    start("kswapd", kswapd);
    for _ in 0..FLUSHERS {
        start("flush", flush);
    }
}

fn start(name: &str, entry: extern "C" fn(usize)) {
    let started = Thread::new_kernel(name, entry, 0).map(sched::spawn);
    if !matches!(started, Some(Ok(()))) {
        crate::error!("no memory for the thread {name}");
    }
}

extern "C" fn flush(_: usize) {
    page_cache().flush_until(&NEVER);
    sched::exit_current()
}

/// Asks the reclaim thread to work. Context: any.
pub fn wake() {
    if !WANTED.swap(true, Ordering::AcqRel) {
        KSWAPD.wake();
    }
}

extern "C" fn kswapd(_: usize) {
    loop {
        let wanted = || WANTED.swap(false, Ordering::AcqRel).then_some(());
        let _ = KSWAPD.wait_until(ParkOptions::default(), wanted);
        let mut got = false;
        // Bounded: what cannot be freed now will be asked for again.
        for _ in 0..64 {
            if DESPERATE.swap(false, Ordering::AcqRel) {
                got |= give_all();
                GIVEN.fetch_add(1, Ordering::Release);
                ROUND.wake_all();
            }
            if frames::available() < high_mark() {
                // What other CPUs keep is no use to who waits.
                frames::drain();
            }
            let free = frames::available();
            if free >= high_mark() {
                got = true;
                break;
            }
            let target = high_mark() - free;
            let freed = page_cache().shrink(Shrink { target, scan: usize::MAX, unmap: true, all: false });
            got |= freed > 0;
            // Names and metadata give their share; more of it where the cache has nothing to give.
            shrink_metadata(if freed > 0 { 64 } else { 8 });
            if freed == 0 {
                got |= frames::available() > free;
                if page_cache().unwritten_bytes() == 0 || !page_cache().wait_progress(100_000_000) {
                    break;
                }
            }
        }
        PROGRESS.store(got, Ordering::Relaxed);
        ROUNDS.fetch_add(1, Ordering::Release);
        ROUND.wake_all();
    }
}

/// Gives back one of `share` cached names (with them, inodes that nobody uses) and blocks of metadata. Context: thread that
/// holds no locks.
fn shrink_metadata(share: usize) {
    crate::file::datadisk::shrink_share(share);
    let names = vfs::dentry_count();
    if names > FEW_NAMES {
        vfs::shrink_dentries(names / share);
    }
}

/// Gives back whatever is not in use; whether that was anything.
fn give_all() -> bool {
    let before = frames::available();
    vfs::prune_dentries();
    crate::file::datadisk::shrink_all();
    page_cache().shrink(Shrink { target: usize::MAX, scan: usize::MAX, unmap: true, all: true });
    super::heap::drain();
    frames::drain();
    frames::available() > before
}

/// The shrinker for whoever runs out of memory, whatever locks it holds.
fn direct(target: usize) -> usize {
    let cache = page_cache();
    let freed = cache.shrink(Shrink { target, scan: SCAN, unmap: platform::may_sleep(), all: false });
    if freed > 0 || !platform::may_sleep() {
        return freed;
    }
    let before = ROUNDS.load(Ordering::Acquire);
    wake();
    let options = ParkOptions { interruptible: false, deadline_ns: Some(platform::monotonic_ns() + 20_000_000) };
    // Briefly: the caller may hold the lock of the very address space whose pages are to go.
    let done = || (ROUNDS.load(Ordering::Acquire) > before).then_some(());
    let finished = ROUND.wait_until(options, done).is_ok();
    usize::from(finished && PROGRESS.load(Ordering::Relaxed))
}

/// Frees up to `target` clean pages without waiting for anything; returns how many. Context: any (nothing where the caller
/// may not sleep, as locks may be held then that reclaim takes).
#[cold]
pub fn now(target: usize) -> usize {
    match CACHE.get() {
        Some(cache) if platform::may_sleep() => cache.shrink(Shrink { target, scan: SCAN, unmap: true, all: false }),
        _ => 0,
    }
}

/// Has the reclaim thread give back all that is not in use, however lately it was used, and waits for that: before somebody
/// is killed. Whether it got anything. Context: thread that may sleep.
#[cold]
pub fn last_resort() -> bool {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = platform::monotonic_ns();
    if now.saturating_sub(LAST.load(Ordering::Relaxed)) < AGAIN_NS {
        return frames::has_room(64);
    }
    let before = GIVEN.load(Ordering::Acquire);
    DESPERATE.store(true, Ordering::Release);
    wake();
    let options = ParkOptions { interruptible: false, deadline_ns: Some(now + LAST_RESORT_NS) };
    let done = || (GIVEN.load(Ordering::Acquire) > before).then_some(());
    let _ = ROUND.wait_until(options, done);
    LAST.store(platform::monotonic_ns(), Ordering::Relaxed);
    frames::has_room(64)
}

/// Waits a moment for write-back to make pages clean; whether there is hope that it will. Context: thread that holds no
/// address space's lock.
pub fn wait_for_write_back() -> bool {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    static SINCE: AtomicU64 = AtomicU64::new(0);
    static LOOKED: AtomicU64 = AtomicU64::new(0);
    let cache = page_cache();
    // A thread of the kernel may be the one that writes.
    if !platform::may_sleep() || !crate::arch::context::current().is_user() || cache.unwritten_bytes() == 0 {
        return false;
    }
    cache.wake_flusher();
    let moved = cache.wait_progress(100_000_000);
    let (now, written) = (platform::monotonic_ns(), cache.pages_written());
    let looked = LOOKED.swap(now, Ordering::Relaxed);
    // A slow disk is no reason to kill; a dead one is.
    if moved || SEEN.swap(written, Ordering::Relaxed) != written || now.saturating_sub(looked) > STALL_NS / 4 {
        SINCE.store(now, Ordering::Relaxed);
    }
    now.saturating_sub(SINCE.load(Ordering::Relaxed)) < STALL_NS
}

/// `/proc/sys/vm/drop_caches`: 1 drops clean pages, 2 unused directory entries and inodes, and metadata, 3 both.
pub fn drop_caches(what: u32) {
    if what & 2 != 0 {
        vfs::prune_dentries();
        crate::file::datadisk::shrink_share(1);
    }
    if what & 1 != 0 {
        page_cache().shrink(Shrink { target: usize::MAX, scan: usize::MAX, unmap: true, all: true });
    }
}
