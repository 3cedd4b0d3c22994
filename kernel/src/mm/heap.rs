//! The kernel's heap: `#[global_allocator]`.
//!
//! Sizes up to 2048 come from size classes. Each CPU has a magazine of ready objects a class; an allocation pops, a free
//! pushes, under an `IrqLock` that no one else wants, so that interrupt handlers may allocate and free as well. An empty
//! magazine takes half a magazine from the class's slabs (`mm_core::slab`), a full one gives half back. Larger sizes are
//! powers of two of frames.
//!
//! The size class follows from the layout that Rust passes to both calls, so freeing looks nothing up.

use super::frames::{self, For, Frame};
use super::{PAGE_SIZE, oom, phys_to_ptr, ptr_to_phys};
use crate::arch::percpu::MAX_CPUS;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
use mm_core::frame::{MAX_ORDER, MemMap};
use mm_core::slab::{CLASS_SIZES, CLASSES, SlabList, SlabMem, class_of};
use sync::{IrqLock, LockClass, rank};

static MAGAZINE_CLASS: LockClass = LockClass::new("heap magazines", rank::HEAP);
static SLAB_CLASS: LockClass = LockClass::new("heap slabs", rank::HEAP + 10);

const MAGAZINE: usize = 32;

struct Magazine {
    len: usize,
    objects: [*mut u8; MAGAZINE],
}

#[repr(align(128))]
struct PerCpu(IrqLock<[Magazine; CLASSES]>);

// SAFETY: the objects in a magazine belong to whoever holds its lock.
unsafe impl Sync for PerCpu {}

static MAGAZINES: [PerCpu; MAX_CPUS] = [const {
    PerCpu(IrqLock::new(
        &MAGAZINE_CLASS,
        [const { Magazine { len: 0, objects: [ptr::null_mut(); MAGAZINE] } }; CLASSES],
    ))
}; MAX_CPUS];

static SLABS: [IrqLock<SlabList>; CLASSES] = {
    let mut lists = [const { IrqLock::new(&SLAB_CLASS, SlabList::new(0)) }; CLASSES];
    let mut class = 1;
    while class < CLASSES {
        lists[class] = IrqLock::new(&SLAB_CLASS, SlabList::new(class));
        class += 1;
    }
    lists
};

static LARGE_FRAMES: AtomicUsize = AtomicUsize::new(0);

struct Mem;

// SAFETY: frames are pages of the linear map, which is one-to-one.
unsafe impl SlabMem for Mem {
    fn map(&self) -> &MemMap {
        frames::memmap()
    }
    fn alloc_frame(&self) -> Option<u32> {
        frames::alloc_one(For::Kernel).map(|f| f.0)
    }
    fn free_frame(&self, frame: u32) {
        frames::free(Frame(frame), 0);
    }
    fn frame_ptr(&self, frame: u32) -> *mut u8 {
        Frame(frame).ptr()
    }
    fn frame_of(&self, ptr: *mut u8) -> u32 {
        Frame::of(ptr_to_phys(ptr)).0
    }
}

/// How many objects of a class a magazine holds at most: big objects are not hoarded.
const fn capacity(class: usize) -> usize {
    let by_size = 16 * 1024 / CLASS_SIZES[class];
    if by_size < MAGAZINE { by_size } else { MAGAZINE }
}

const CAPACITY: [u8; CLASSES] = {
    let mut c = [0; CLASSES];
    let mut i = 0;
    while i < CLASSES {
        c[i] = capacity(i) as u8;
        i += 1;
    }
    c
};

#[cold]
#[inline(never)]
fn refill(magazine: &mut Magazine, class: usize) {
    let want = (CAPACITY[class] as usize / 2).max(1);
    magazine.len = SLABS[class].lock().alloc_batch(&Mem, &mut magazine.objects[..want]);
}

#[cold]
#[inline(never)]
fn flush(magazine: &mut Magazine, class: usize, keep: usize) {
    let mut list = SLABS[class].lock();
    // SAFETY: the objects in the magazine were freed by their owners and came from this class.
    unsafe { list.free_batch(&Mem, &magazine.objects[keep..magazine.len]) };
    magazine.len = keep;
}

/// The order that holds `layout`.
fn order_of(layout: &Layout) -> usize {
    let bytes = layout.size().max(layout.align());
    bytes.div_ceil(PAGE_SIZE).next_power_of_two().trailing_zeros() as usize
}

/// Blocks up to this order come together when enough single frames are reclaimed; larger ones may never.
const PERSISTENT: usize = 3;

#[cold]
fn alloc_large(layout: Layout) -> *mut u8 {
    let got = try_large(&layout);
    if got.is_null() && order_of(&layout) <= PERSISTENT { starved(layout) } else { got }
}

fn try_large(layout: &Layout) -> *mut u8 {
    let order = order_of(layout);
    if order > MAX_ORDER {
        return ptr::null_mut();
    }
    match frames::alloc(order) {
        Some(f) => {
            LARGE_FRAMES.fetch_add(1 << order, Ordering::Relaxed);
            phys_to_ptr(f.pa())
        }
        None => ptr::null_mut(),
    }
}

/// How long an allocation of the kernel waits for memory.
const STARVED_NS: u64 = 10_000_000_000;

/// Memory is exhausted, the reserve included. Whoever may sleep lets the OOM killer work and tries again for a while (not for
/// ever: the victim may need what the caller holds); others fail.
#[cold]
#[inline(never)]
fn starved(layout: Layout) -> *mut u8 {
    let begun = platform::monotonic_ns();
    while platform::monotonic_ns().saturating_sub(begun) < STARVED_NS {
        if !platform::may_sleep() || oom::out_of_memory() == oom::Outcome::Hopeless {
            break;
        }
        let got = match class_of(layout.size(), layout.align()) {
            Some(class) => {
                let mut one = [ptr::null_mut()];
                SLABS[class].lock().alloc_batch(&Mem, &mut one);
                one[0]
            }
            None => try_large(&layout),
        };
        if !got.is_null() {
            return got;
        }
    }
    ptr::null_mut()
}

/// The allocator. Context: any; sleeps only where memory is exhausted and the caller may. Returns null then in the end.
#[derive(Debug)]
pub struct Heap;

// SAFETY: objects come from slabs or the buddy allocator, each handed out once until freed, of at least the layout's size
// and alignment (`class_of`, `order_of`).
unsafe impl GlobalAlloc for Heap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class_of(layout.size(), layout.align()) else { return alloc_large(layout) };
        let mut magazines = MAGAZINES[platform::cpu_id()].0.lock();
        let magazine = &mut magazines[class];
        if magazine.len == 0 {
            refill(magazine, class);
            if magazine.len == 0 {
                drop(magazines);
                return starved(layout);
            }
        }
        magazine.len -= 1;
        magazine.objects[magazine.len]
    }

    #[inline]
    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        let Some(class) = class_of(layout.size(), layout.align()) else {
            let order = order_of(&layout);
            LARGE_FRAMES.fetch_sub(1 << order, Ordering::Relaxed);
            return frames::free(Frame::of(ptr_to_phys(object)), order);
        };
        let mut magazines = MAGAZINES[platform::cpu_id()].0.lock();
        let magazine = &mut magazines[class];
        if magazine.len >= CAPACITY[class] as usize {
            flush(magazine, class, CAPACITY[class] as usize / 2);
        }
        magazine.objects[magazine.len] = object;
        magazine.len += 1;
    }

    unsafe fn realloc(&self, object: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that the new size is valid for the alignment.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let fits = match (class_of(layout.size(), layout.align()), class_of(new_size, layout.align())) {
            (Some(a), Some(b)) => a == b,
            (None, None) => order_of(&layout) == order_of(&new),
            _ => false,
        };
        if fits {
            return object;
        }
        // SAFETY: as for `alloc` and `dealloc`; the copy is of the part that both hold.
        unsafe {
            let to = self.alloc(new);
            if !to.is_null() {
                ptr::copy_nonoverlapping(object, to, layout.size().min(new_size));
                self.dealloc(object, layout);
            }
            to
        }
    }
}

#[global_allocator]
static HEAP: Heap = Heap;

/// Frames held by slabs and large allocations.
pub fn slab_frames() -> usize {
    SLABS.iter().map(|s| s.lock().slabs()).sum::<usize>() + LARGE_FRAMES.load(Ordering::Relaxed)
}

/// Frames held by allocations above the largest class.
pub fn large_frames() -> usize {
    LARGE_FRAMES.load(Ordering::Relaxed)
}

/// Objects handed out of each class (those in magazines count), with the class's size, for `/proc/berth/memory`.
pub fn classes() -> [(usize, usize, usize); CLASSES] {
    core::array::from_fn(|c| {
        let list = SLABS[c].lock();
        (CLASS_SIZES[c], list.in_use(), list.slabs())
    })
}

/// Empties the CPUs' magazines and gives empty slabs back.
pub fn drain() {
    for magazines in &MAGAZINES {
        let mut magazines = magazines.0.lock();
        for (class, m) in magazines.iter_mut().enumerate() {
            if m.len > 0 {
                flush(m, class, 0);
            }
        }
    }
    for list in &SLABS {
        list.lock().trim(&Mem);
    }
}
