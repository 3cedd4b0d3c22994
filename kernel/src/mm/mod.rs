//! Memory management.
//!
//! From the bottom: [`frames`] (buddy allocator with per-CPU caches, reference counts), [`heap`] (the global allocator),
//! [`vmap`] and [`stack`] (kernel mappings: devices, stacks with guard pages), [`asid`] and [`tlb`] (address-space
//! identifiers and invalidation), [`space`] (address spaces: the map of areas, page tables, accounting), and on these
//! [`map`] (mmap and its family), [`fault`], [`fork`], [`advise`]. [`object`] is what mappings are backed by, [`oom`] what
//! happens when nothing is left, [`wx`] the proof that nothing is writable and executable.
//!
//! The thinking parts (buddy, slabs, area maps, table walks) are the crate `mm-core` and have their tests there.
//!
//! # Locks, in order
//! 1. `AddressSpace.map` (RwLock, rank ADDRESS_SPACE): areas and accounting. Read: faults. Write: whoever changes areas,
//!    removes tables or write-protects (fork). Held over `Mappable::page_for`, which may sleep.
//! 2. vmap areas and stack pools (IrqLock, below HEAP).
//! 3. heap magazines, slab lists, frame caches, buddy: IrqLocks, HEAP to FRAMES.
//! 4. the ASID allocator: IrqLock, taken in the context switch.
//!
//! Page-table entries have no lock: faults that race under the read lock settle by compare-and-swap, and an entry being
//! replaced break-before-make is marked busy.

pub mod advise;
pub mod asid;
pub mod fault;
pub mod fork;
pub mod frames;
pub mod heap;
pub mod map;
pub mod membarrier;
pub mod object;
pub mod oom;
mod pin;
pub mod reclaim;
mod rmap;
pub mod space;
pub mod stack;
pub mod tlb;
pub mod vdso;
pub mod vma;
pub mod vmap;
pub mod wx;

use crate::arch::mmu::LINEAR_BASE;
use core::ops::Range;
use core::sync::atomic::AtomicU64;
use mm_core::table::{PhysMem, Table};

pub use frames::Frame;
pub use map::{MapRequest, Place};
pub use object::{Mappable, Mapped};
pub use space::{AddressSpace, AreaInfo, Limits, Pages, current};
pub use stack::KernelStack;
pub use vma::{Backing, Prot, VmFlags};
pub use vmap::ioremap;

/// Bytes in a page.
pub const PAGE_SIZE: usize = mm_core::PAGE_SIZE;
/// First address that is not user space's.
pub const TASK_SIZE: usize = crate::arch::mmu::USER_END as usize;
/// Lowest address that may be mapped (`mmap_min_addr`).
pub const MIN_ADDR: usize = 0x10000;

/// Where the byte at `pa` is in the linear map.
#[inline(always)]
pub fn phys_to_ptr(pa: u64) -> *mut u8 {
    (pa + LINEAR_BASE) as *mut u8
}

/// The physical address of a pointer into the linear map.
#[inline(always)]
pub fn ptr_to_phys(ptr: *const u8) -> u64 {
    ptr as u64 - LINEAR_BASE
}

/// Page tables in the linear map.
#[derive(Clone, Copy, Debug)]
pub struct KernelMem;

/// Frames in use as page tables of user spaces and of vmap.
pub static TABLE_FRAMES: AtomicU64 = AtomicU64::new(0);

impl PhysMem for KernelMem {
    #[inline(always)]
    #[allow(clippy::cast_ptr_alignment)] // a page boundary
    fn table(&self, pa: u64) -> &Table {
        // SAFETY: `pa` is a table's by the trait's contract; tables are whole frames of RAM, which the linear map covers, and
        // their entries are only reached as atomics.
        unsafe { &*phys_to_ptr(pa).cast::<Table>() }
    }

    fn alloc_table(&self) -> Option<u64> {
        // On behalf of a program, so not from the reserve.
        let frame = frames::alloc_zeroed(frames::For::User).or_else(|| {
            reclaim::now(32);
            frames::alloc_zeroed(frames::For::User)
        })?;
        frame.info().set_use(mm_core::frame::FrameState::Table, 0);
        TABLE_FRAMES.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        Some(frame.pa())
    }

    fn free_table(&self, pa: u64) {
        TABLE_FRAMES.fetch_sub(1, core::sync::atomic::Ordering::Relaxed);
        Frame::of(pa).put();
    }
}

/// Starts memory management: `ram` is all memory, mapped linearly already, `reserved` what must not be handed out (kernel
/// image, initial RAM disk, device tree). The boot CPU calls it once, before anything allocates.
pub fn init(ram: &[Range<u64>], reserved: &[Range<u64>]) {
    frames::init(ram, reserved);
    asid::init();
    vdso::init();
    rmap::init();
}

/// Hands out a range that was reserved at boot and is no longer needed (the initial RAM disk, unpacked). Whole pages only.
pub fn release(range: Range<u64>) {
    frames::release(range);
}

/// What `/proc/meminfo` and `sysinfo` report, in frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemInfo {
    /// All frames that the allocator manages.
    pub total: usize,
    /// Free ones: those of the buddy allocator, of the CPUs' caches, and of stacks kept for reuse.
    pub free: usize,
    /// In the heap's slabs.
    pub slab: usize,
    /// In page tables.
    pub tables: usize,
    /// In kernel stacks of threads.
    pub stacks: usize,
    /// Promised to private writable mappings.
    pub committed: usize,
}

/// A snapshot.
pub fn info() -> MemInfo {
    MemInfo {
        total: frames::total(),
        free: frames::free_count() + stack::cached_frames(),
        slab: heap::slab_frames(),
        tables: TABLE_FRAMES.load(core::sync::atomic::Ordering::Relaxed) as usize,
        stacks: stack::used_frames(),
        committed: map::committed(),
    }
}

/// Gives everything that is only cached back to the buddy allocator, for exact counts.
pub fn drain() {
    crate::task::tree::TREE.lock().trim();
    stack::drain();
    heap::drain();
    frames::drain();
}
