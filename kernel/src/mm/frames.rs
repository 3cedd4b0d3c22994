//! Page frames: the buddy allocator behind per-CPU caches of single frames, and reference counts.
//!
//! A cache is an `IrqLock` of its own CPU, so it is uncontended but for [`drain`], and whoever is migrated between finding
//! its CPU and taking the lock merely uses another's cache. Frames in a cache have count 0.
//!
//! User memory may not take the last frames: a refill for it fails while fewer than [`reserve`] are free, so that the
//! kernel's own small allocations still succeed while the OOM killer works.

use super::{PAGE_SIZE, phys_to_ptr};
use crate::arch::paging;
use crate::arch::percpu::MAX_CPUS;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering, fence};
use mm_core::frame::{BLOCK, Buddy, FrameState, MAX_ORDER, MemMap, PageInfo};
use sync::{IrqLock, LockClass, Once, rank};

static CACHE_CLASS: LockClass = LockClass::new("frame cache", rank::FRAMES);
static BUDDY_CLASS: LockClass = LockClass::new("buddy", rank::FRAMES + 5);

static MAP: Once<MemMap> = Once::new();
static BUDDY: IrqLock<Buddy> = IrqLock::new(&BUDDY_CLASS, Buddy::new());
static RESERVE: AtomicUsize = AtomicUsize::new(0);
static ZERO: AtomicUsize = AtomicUsize::new(0);

/// A program that maps, touches and unmaps a megabyte over and over stays within its CPU's cache.
const CACHE: usize = 288;
const BATCH: usize = 64;

#[repr(align(128))]
struct Cache {
    len: usize,
    frames: [u32; CACHE],
}

#[repr(align(128))]
struct PerCpu(IrqLock<Cache>);

static CACHES: [PerCpu; MAX_CPUS] =
    [const { PerCpu(IrqLock::new(&CACHE_CLASS, Cache { len: 0, frames: [0; CACHE] })) }; MAX_CPUS];

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// The kernel: may take the reserve.
    Kernel,
    /// User memory and file caches.
    User,
}

/// A frame's number: physical address >> 12. A plain name; references are counted by [`Frame::get`] and [`Frame::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Frame(pub u32);

#[cold]
#[inline(never)]
fn not_ram(frame: u32) -> ! {
    panic!("frame {frame:#x} is not RAM")
}

impl Frame {
    /// The frame that holds `pa`.
    #[inline(always)]
    pub const fn of(pa: u64) -> Frame {
        Frame((pa >> 12) as u32)
    }

    /// Its physical address.
    #[inline(always)]
    pub const fn pa(self) -> u64 {
        (self.0 as u64) << 12
    }

    /// Its bytes in the linear map.
    #[inline(always)]
    pub fn ptr(self) -> *mut u8 {
        phys_to_ptr(self.pa())
    }

    /// What is known of it. Panics if it is not RAM.
    #[inline(always)]
    pub fn info(self) -> &'static PageInfo {
        match MAP.get().and_then(|m| m.get(self.0)) {
            Some(info) => info,
            None => not_ram(self.0),
        }
    }

    /// Adds a reference.
    #[inline(always)]
    pub fn get(self) {
        self.info().refs().fetch_add(1, Ordering::Relaxed);
    }

    /// How many references there are.
    #[inline(always)]
    pub fn refs(self) -> u32 {
        self.info().refs().load(Ordering::Acquire)
    }

    /// Drops a reference; the last one frees the frame.
    #[inline(always)]
    pub fn put(self) {
        let info = self.info();
        if info.refs().fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            free_single(self, info);
        }
    }

    /// Fills it with zeroes.
    ///
    /// # Safety
    /// The frame is the caller's alone.
    #[inline(always)]
    pub unsafe fn clear(self) {
        // SAFETY: frames are whole pages of RAM in the linear map; by contract nobody else uses this one.
        unsafe { paging::clear_page(self.ptr()) };
    }

    /// Copies all of `from`.
    ///
    /// # Safety
    /// The frame is the caller's alone; the caller holds a reference to `from`, another frame.
    #[inline(always)]
    pub unsafe fn copy_from(self, from: Frame) {
        // SAFETY: as above.
        unsafe { paging::copy_page(self.ptr(), from.ptr()) };
    }
}

/// The memory map, for the heap.
pub(super) fn memmap() -> &'static MemMap {
    static NONE: MemMap = MemMap::new();
    MAP.get().unwrap_or(&NONE)
}

/// Takes a frame of undefined content, with one reference. Context: any.
#[inline]
pub fn alloc_one(whom: For) -> Option<Frame> {
    let mut cache = CACHES[platform::cpu_id()].0.lock();
    if cache.len == 0 && !refill(&mut cache, whom) {
        return None;
    }
    cache.len -= 1;
    let frame = Frame(cache.frames[cache.len]);
    drop(cache);
    frame.info().refs().store(1, Ordering::Relaxed);
    Some(frame)
}

/// Takes a frame of zeroes, with one reference. Context: any.
#[inline]
pub fn alloc_zeroed(whom: For) -> Option<Frame> {
    let frame = alloc_one(whom)?;
    // SAFETY: just allocated.
    unsafe { frame.clear() };
    Some(frame)
}

#[cold]
#[inline(never)]
fn refill(cache: &mut Cache, whom: For) -> bool {
    let map = memmap();
    let mut buddy = BUDDY.lock();
    let reserve = RESERVE.load(Ordering::Relaxed);
    let keep = if whom == For::User { reserve } else { 0 };
    // Of the reserve only what is needed: whatever else lies in the cache, user memory may have.
    let batch = if buddy.free_frames() > reserve { BATCH } else { 1 };
    while cache.len < batch && buddy.free_frames() > keep {
        let Some(frame) = buddy.alloc(map, 0) else { break };
        cache.frames[cache.len] = frame;
        cache.len += 1;
    }
    let low = buddy.free_frames() < super::reclaim::low_mark();
    drop(buddy);
    if low {
        super::reclaim::wake();
    }
    cache.len > 0
}

#[inline]
fn free_single(frame: Frame, info: &PageInfo) {
    info.set_use(FrameState::Used, 0);
    let mut cache = CACHES[platform::cpu_id()].0.lock();
    if cache.len == CACHE {
        spill(&mut cache, BATCH);
    }
    let at = cache.len;
    cache.frames[at] = frame.0;
    cache.len = at + 1;
}

#[cold]
#[inline(never)]
fn spill(cache: &mut Cache, count: usize) {
    let map = memmap();
    let mut buddy = BUDDY.lock();
    for _ in 0..count.min(cache.len) {
        cache.len -= 1;
        buddy.free(map, cache.frames[cache.len], 0);
    }
}

/// Drops a reference to each of `frames` (some tens), with one look for the cache.
pub(super) fn put_all(frames: &[Frame]) {
    let map = memmap();
    let mut cache = CACHES[platform::cpu_id()].0.lock();
    for frame in frames {
        let Some(info) = map.get(frame.0) else { not_ram(frame.0) };
        if info.refs().fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            info.set_use(FrameState::Used, 0);
            if cache.len == CACHE {
                spill(&mut cache, BATCH);
            }
            let at = cache.len;
            cache.frames[at] = frame.0;
            cache.len = at + 1;
        }
    }
}

/// Takes `2^order` contiguous frames; the first has one reference. Context: any.
pub fn alloc(order: usize) -> Option<Frame> {
    if order == 0 {
        return alloc_one(For::Kernel);
    }
    if order > MAX_ORDER {
        return None;
    }
    let mut buddy = BUDDY.lock();
    let first = buddy.alloc(memmap(), order);
    let low = buddy.free_frames() < super::reclaim::low_mark();
    drop(buddy);
    if low {
        super::reclaim::wake();
    }
    // Single frames that the caches hold may be all that a larger block lacks.
    first
        .or_else(|| {
            drain();
            BUDDY.lock().alloc(memmap(), order)
        })
        .map(Frame)
}

/// Gives back what [`alloc`] took, whoever counted references to it.
pub fn free(frame: Frame, order: usize) {
    if order == 0 {
        frame.info().refs().store(0, Ordering::Relaxed);
        return free_single(frame, frame.info());
    }
    BUDDY.lock().free(memmap(), frame.0, order);
}

/// Empties the CPUs' caches.
pub fn drain() {
    for cache in &CACHES {
        let mut cache = cache.0.lock();
        spill(&mut cache, CACHE);
    }
}

/// Frames that an allocation on any CPU can have: those in other CPUs' caches are none.
pub fn available() -> usize {
    BUDDY.lock().free_frames()
}

/// Whether user memory can have `frames` more now, from any CPU.
pub fn has_room(frames: usize) -> bool {
    available() > RESERVE.load(Ordering::Relaxed) + frames
}

/// Free frames, cached ones included.
pub fn free_count() -> usize {
    let cached: usize = CACHES.iter().map(|c| c.0.lock().len).sum();
    cached + BUDDY.lock().free_frames()
}

/// All frames that the allocator manages.
pub fn total() -> usize {
    BUDDY.lock().total_frames()
}

/// Frames that user memory leaves to the kernel.
pub fn reserve() -> usize {
    RESERVE.load(Ordering::Relaxed)
}

/// The frame of zeroes that read faults map. Never freed, never written, not counted.
#[inline(always)]
pub fn zero_frame() -> Frame {
    Frame(ZERO.load(Ordering::Relaxed) as u32)
}

/// Builds the memory map in RAM and hands the rest to the allocator. Only the parts of the map that describe reserved
/// memory and its neighbourhood are written; the allocator does the rest when it comes to it.
pub(super) fn init(ram: &[Range<u64>], reserved: &[Range<u64>]) {
    let mut map = MemMap::new();
    let page = PAGE_SIZE as u64;
    let mut taken: [Range<u64>; mm_core::frame::MAX_REGIONS] = core::array::from_fn(|_| 0..0);
    for (i, r) in ram.iter().enumerate().take(taken.len()) {
        let (start, end) = (r.start.next_multiple_of(page), r.end / page * page);
        if start >= end {
            continue;
        }
        let frames = ((end - start) / page) as usize;
        let bytes = ((frames * size_of::<PageInfo>()) as u64).next_multiple_of(page);
        let Some(at) = place(start..end, bytes, reserved) else { continue };
        taken[i] = at..at + bytes;
        #[allow(clippy::cast_ptr_alignment)] // a page boundary
        let infos = phys_to_ptr(at).cast::<PageInfo>();
        // SAFETY: `place` found RAM that nothing else uses, long enough and page-aligned; it is never given to the allocator.
        // Whatever it holds are valid words.
        let infos = unsafe { core::slice::from_raw_parts(infos, frames) };
        map.add_region((start / page) as u32, infos);
    }
    let Ok(map) = MAP.set(map) else { return };
    let mut buddy = BUDDY.lock();
    for_parts(ram, reserved, &taken, &mut |part, kind| {
        if kind != Part::Blocks {
            part.filter_map(|f| map.get(f)).for_each(PageInfo::reset);
        }
    });
    for_parts(ram, reserved, &taken, &mut |part, kind| match kind {
        Part::Free => buddy.add_range(map, part),
        Part::Blocks => buddy.add_untouched(map, part),
        Part::Reserved => {}
    });
    let total = buddy.total_frames();
    RESERVE.store((total / 64).clamp(64, 2048), Ordering::Relaxed);
    drop(buddy);
    if let Some(zero) = alloc_zeroed(For::Kernel) {
        ZERO.store(zero.0 as usize, Ordering::Relaxed);
    }
}

/// What a run of frames is at boot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Not ours to use.
    Reserved,
    /// Free.
    Free,
    /// Free, and whole blocks of the highest order.
    Blocks,
}

/// Shows all RAM that the map describes, part by part.
fn for_parts(ram: &[Range<u64>], a: &[Range<u64>], b: &[Range<u64>], show: &mut dyn FnMut(Range<u32>, Part)) {
    let page = PAGE_SIZE as u64;
    for (r, taken) in ram.iter().zip(b) {
        if taken.is_empty() {
            continue;
        }
        let frame = |pa: u64| (pa / page) as u32;
        let mut at = r.start.next_multiple_of(page);
        let end = r.end / page * page;
        while at < end {
            let (stop, next) = next_reserved(at, end, a, b);
            let (from, to) = (frame(at), frame(stop).max(frame(at)));
            let low = from.next_multiple_of(BLOCK).min(to);
            let high = (to / BLOCK * BLOCK).max(low);
            let free = if low < high { [from..low, high..to] } else { [from..to, to..to] };
            for part in free.into_iter().filter(|p| !p.is_empty()) {
                show(part, Part::Free);
            }
            if low < high {
                show(low..high, Part::Blocks);
            }
            at = next.next_multiple_of(page).max(at + page).min(end);
            show(to..frame(at), Part::Reserved);
        }
    }
}

/// Adds the whole pages of `range`, reserved until now, to the allocator. Nobody may use them any more.
pub(super) fn release(range: Range<u64>) {
    let page = PAGE_SIZE as u64;
    let (start, end) = (range.start.next_multiple_of(page), range.end / page * page);
    if start < end {
        BUDDY.lock().add_range(memmap(), (start / page) as u32..(end / page) as u32);
    }
}

/// The first reserved range that ends above `at`: where it starts (`end` if there is none) and where it ends.
fn next_reserved(at: u64, end: u64, a: &[Range<u64>], b: &[Range<u64>]) -> (u64, u64) {
    let first = a.iter().chain(b).filter(|r| r.end > at && r.start < end && !r.is_empty()).min_by_key(|r| r.start);
    match first {
        Some(r) => (r.start.max(at), r.end),
        None => (end, end),
    }
}

/// The highest `bytes` in `within` (page-aligned) that no reserved range touches.
fn place(within: Range<u64>, bytes: u64, reserved: &[Range<u64>]) -> Option<u64> {
    let mut top = within.end;
    loop {
        let start = top.checked_sub(bytes)? & !(PAGE_SIZE as u64 - 1);
        if start < within.start {
            return None;
        }
        match reserved.iter().filter(|r| r.start < start + bytes && r.end > start).map(|r| r.start).min() {
            None => return Some(start),
            Some(s) => top = s,
        }
    }
}

/// The page hooks of the crate `platform`, see `platform_impl.rs`. A page is its frame's number.
pub mod hooks {
    use super::{For, Frame, alloc_one, alloc_zeroed};
    use crate::arch::context;
    use crate::mm::{oom, reclaim};

    /// After so long a wait the reserve is used: the caller may hold what write-back needs.
    const PATIENCE_NS: u64 = 200_000_000;

    /// Allocates. Waits for memory where the caller may sleep and is not inside a fault ([`oom::NoWait`]). 0 when there is none
    /// and waiting brings none.
    pub fn page_alloc(zeroed: bool) -> usize {
        take(zeroed, For::User).unwrap_or_else(|| wait_for_page(zeroed))
    }

    /// What of the reserve is left to the kernel in any case.
    fn floor() -> usize {
        super::reserve() / 2
    }

    #[inline]
    fn take(zeroed: bool, whom: For) -> Option<usize> {
        let frame = if zeroed { alloc_zeroed(whom) } else { alloc_one(whom) };
        frame.map(|f| f.0 as usize)
    }

    #[cold]
    #[inline(never)]
    fn wait_for_page(zeroed: bool) -> usize {
        let reserve = || take(zeroed, For::Kernel).unwrap_or(0);
        if !platform::may_sleep() {
            return reserve();
        }
        reclaim::now(32);
        if let Some(page) = take(zeroed, For::User) {
            return page;
        }
        let me = context::current();
        if me.no_wait.get() > 0 {
            return 0;
        }
        if !me.is_user() {
            // A thread of the kernel: others wait for its work.
            return reserve();
        }
        let begun = platform::monotonic_ns();
        loop {
            if oom::is_doomed() {
                return reserve();
            }
            if oom::out_of_memory() == oom::Outcome::Hopeless {
                return 0;
            }
            if let Some(page) = take(zeroed, For::User) {
                return page;
            }
            if platform::monotonic_ns() - begun > PATIENCE_NS
                && super::available() > floor()
                && let Some(page) = take(zeroed, For::Kernel)
            {
                return page;
            }
        }
    }

    /// Adds a reference.
    pub fn page_ref(raw: usize) {
        Frame(raw as u32).get();
    }

    /// Drops one.
    pub fn page_unref(raw: usize) {
        Frame(raw as u32).put();
    }

    /// Counts them.
    pub fn page_refs(raw: usize) -> usize {
        Frame(raw as u32).refs() as usize
    }

    /// Where its bytes are.
    pub fn page_data(raw: usize) -> *mut u8 {
        Frame(raw as u32).ptr()
    }
}
