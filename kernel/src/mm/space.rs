//! Address spaces: life, switching, accounting, and what others may read of them.
//!
//! A CPU that switches to a kernel thread leaves the last space's tables loaded (nothing in the kernel reads user
//! addresses without a current space), so a space may be dropped while some CPU still has its tables in TTBR0. Dropping
//! therefore empties the root and invalidates before it frees tables, and a root that is loaded somewhere waits in a list,
//! at most one a CPU, until it is not.

use super::frames::Frame;
use super::tlb::Gather;
use super::vma::{Backing, Prot, Vma, VmFlags};
use super::{KernelMem, Mappable, PAGE_SIZE, TASK_SIZE, asid};
use crate::arch::percpu::MAX_CPUS;
use crate::arch::{mmu, paging};
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use mm_core::pte::Pte;
use mm_core::table::{PageTable, PhysMem, span};
use mm_core::vma::AreaMap;
use sync::{IrqLock, LockClass, RwLock, rank};

static MAP_CLASS: LockClass = LockClass::new("address space", rank::ADDRESS_SPACE);
static ROOT_CLASS: LockClass = LockClass::new("retired roots", rank::PAGE_TABLE);

#[repr(align(128))]
struct Cpu {
    /// The space of the thread that runs there; null for kernel threads.
    current: AtomicPtr<AddressSpace>,
    /// What TTBR0 holds.
    loaded: AtomicU64,
}

static CPUS: [Cpu; MAX_CPUS] =
    [const { Cpu { current: AtomicPtr::new(ptr::null_mut()), loaded: AtomicU64::new(0) } }; MAX_CPUS];

struct Retired {
    len: usize,
    roots: [u64; MAX_CPUS + 1],
}
static RETIRED: IrqLock<Retired> = IrqLock::new(&ROOT_CLASS, Retired { len: 0, roots: [0; MAX_CPUS + 1] });

/// Resource limits that mappings obey, in bytes (`setrlimit(2)`).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `RLIMIT_AS`
    pub address_space: usize,
    /// `RLIMIT_DATA`
    pub data: usize,
    /// `RLIMIT_STACK`
    pub stack: usize,
    /// `RLIMIT_MEMLOCK`
    pub locked: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { address_space: usize::MAX, data: usize::MAX, stack: 8 << 20, locked: 8 << 20 }
    }
}

/// Where things go in a new space.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Mappings are placed below this, downwards.
    pub mmap_top: usize,
    /// Position-independent programs load here.
    pub pie_base: usize,
    /// One above the main stack's highest byte.
    pub stack_top: usize,
}

impl Layout {
    /// A random place for each, all in one slot of 512 GiB, so that a process needs one level 1 table.
    pub fn random() -> Layout {
        const SLOT: usize = span(0);
        let page = |bits: u32| (platform::random_u64() as usize & ((1 << bits) - 1)) * PAGE_SIZE;
        let slot = 1 + (platform::random_u64() as usize % 254);
        let base = slot * SLOT;
        // 16 GiB of room for the stack's place, 64 GiB for the mappings', 64 GiB for the program's.
        let stack_top = base + SLOT - PAGE_SIZE - page(22);
        let mmap_top = base + SLOT - (24 << 30) - page(24);
        let pie_base = base + (1 << 30) + page(24);
        Layout { mmap_top, pie_base, stack_top }
    }
}

/// What the map's lock guards.
#[derive(Debug)]
pub struct Map {
    pub(super) areas: AreaMap<Vma>,
    pub(super) layout: Layout,
    pub(super) brk_start: usize,
    pub(super) brk: usize,
    /// Bytes mapped.
    pub(super) total: usize,
    /// Bytes accounted (private and writable).
    pub(super) data: usize,
    /// Bytes locked.
    pub(super) locked: usize,
    pub(super) lock_future: bool,
    pub(super) limits: Limits,
}

/// Resident pages.
#[derive(Debug, Default)]
pub struct Rss {
    /// Private pages.
    pub anon: AtomicI64,
    /// Pages of files and shared memory.
    pub file: AtomicI64,
    /// The largest sum seen at a look.
    pub peak: AtomicUsize,
}

/// A user address space. Shared by a process's threads as an `Arc`.
pub struct AddressSpace {
    pub(super) map: RwLock<Map>,
    pub(super) table: PageTable<KernelMem>,
    pub(super) context: AtomicU64,
    /// CPUs whose TLB may know this space.
    pub(super) ran_on: AtomicU64,
    pub(super) rss: Rss,
    /// Writable and executable mappings are let through, and logged.
    wx_allowed: AtomicBool,
    id: u64,
}

impl core::fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "AddressSpace({})", self.id)
    }
}

impl AddressSpace {
    /// An empty space with a random layout. `ENOMEM`.
    pub fn new() -> Result<Arc<AddressSpace>> {
        let layout = Layout::random();
        Self::with(
            Map {
                areas: AreaMap::new(),
                layout,
                brk_start: 0,
                brk: 0,
                total: 0,
                data: 0,
                locked: 0,
                lock_future: false,
                limits: Limits::default(),
            },
            false,
        )
    }

    pub(super) fn with(map: Map, wx: bool) -> Result<Arc<AddressSpace>> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        reap_roots();
        let root = KernelMem.alloc_table().ok_or(Errno::ENOMEM)?;
        Ok(Arc::new(AddressSpace {
            map: RwLock::new(&MAP_CLASS, map),
            table: PageTable::new(root, KernelMem),
            context: AtomicU64::new(0),
            ran_on: AtomicU64::new(0),
            rss: Rss::default(),
            wx_allowed: AtomicBool::new(wx),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        }))
    }

    /// A number that no other space ever had, for keys.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Lets writable and executable mappings through (a marked program). Fork inherits it.
    pub fn set_wx_allowed(&self, allowed: bool) {
        self.wx_allowed.store(allowed, Ordering::Relaxed);
    }

    /// Whether it does.
    pub fn wx_allowed(&self) -> bool {
        self.wx_allowed.load(Ordering::Relaxed)
    }

    /// Sets the limits that mappings obey, at exec and by `prlimit`. May sleep.
    pub fn set_limits(&self, limits: Limits) {
        self.map.write().limits = limits;
    }

    /// Where things are placed. May sleep.
    pub fn layout(&self) -> Layout {
        self.map.read().layout
    }

    /// Sets where the heap begins (the end of the program's data); exec. May sleep.
    pub fn set_brk_start(&self, addr: usize) {
        let mut map = self.map.write();
        let start = addr.next_multiple_of(PAGE_SIZE);
        map.brk_start = start;
        map.brk = start;
    }

    /// Resident pages: private, and of files and shared memory.
    pub fn rss(&self) -> (usize, usize) {
        let get = |a: &AtomicI64| a.load(Ordering::Relaxed).max(0) as usize;
        let (anon, file) = (get(&self.rss.anon), get(&self.rss.file));
        self.rss.peak.fetch_max(anon + file, Ordering::Relaxed);
        (anon, file)
    }

    /// The largest number of resident pages so far, as far as anyone looked.
    pub fn peak_rss(&self) -> usize {
        let (a, f) = self.rss();
        self.rss.peak.load(Ordering::Relaxed).max(a + f)
    }

    /// Sizes in bytes for `/proc/PID/status`: total, private writable, locked. May sleep.
    pub fn sizes(&self) -> (usize, usize, usize) {
        let map = self.map.read();
        (map.total, map.data, map.locked)
    }

    /// Shows every mapping in order, for `/proc/PID/maps`. The callback may not touch user memory. May sleep.
    pub fn for_each_area(&self, mut each: impl FnMut(&AreaInfo<'_>)) {
        let map = self.map.read();
        for a in map.areas.iter() {
            let (object, offset) = match &a.value.backing {
                Backing::Object { object, offset } => (Some(object), *offset),
                _ => (None, 0),
            };
            let label = if a.value.flags.contains(VmFlags::GROWSDOWN) {
                Some("[stack]")
            } else if a.value.flags.contains(VmFlags::VDSO) {
                Some("[vdso]")
            } else if object.is_none() && a.start >= map.brk_start && a.end <= map.brk.next_multiple_of(PAGE_SIZE) {
                Some("[heap]")
            } else {
                None
            };
            each(&AreaInfo { range: a.range(), prot: a.value.prot, flags: a.value.flags, object, offset, label });
        }
    }

    /// What a futex at `addr` is known by in shared use: (object, byte offset) if the mapping is shared, else this space's
    /// number and the address. `EFAULT` if nothing is mapped. May sleep.
    pub fn futex_key(&self, addr: usize) -> Result<(usize, u64)> {
        let map = self.map.read();
        let area = map.areas.find(addr).ok_or(Errno::EFAULT)?;
        Ok(match &area.value.backing {
            Backing::Object { object, offset } if !area.value.is_private() => {
                (Arc::as_ptr(object).cast::<()>() as usize, offset + (addr - area.start) as u64)
            }
            _ => (self.id as usize, addr as u64),
        })
    }
}

/// A mapping as others may see it.
#[derive(Debug)]
pub struct AreaInfo<'a> {
    /// Addresses.
    pub range: Range<usize>,
    /// Permissions.
    pub prot: Prot,
    /// Properties.
    pub flags: VmFlags,
    #[allow(missing_debug_implementations)]
    /// The object behind it.
    pub object: Option<&'a Arc<dyn Mappable>>,
    /// Where in the object it starts.
    pub offset: u64,
    /// `[heap]`, `[stack]`, `[vdso]`.
    pub label: Option<&'static str>,
}

impl core::fmt::Debug for dyn Mappable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Mappable")
    }
}

/// The calling thread's address space; `None` in a kernel thread. The reference is good until the thread leaves the space
/// (exec, exit), which only the thread itself does.
#[inline]
pub fn current<'a>() -> Option<&'a AddressSpace> {
    let irq = platform::irq_save();
    let p = CPUS[platform::cpu_id()].current.load(Ordering::Relaxed);
    platform::irq_restore(irq);
    // SAFETY: the thread that runs holds an `Arc` of the space that was set with it, until it sets another.
    unsafe { p.as_ref() }
}

/// Makes `next` the space of this CPU's running thread: in the context switch, at exec, and with `None` for kernel threads
/// and before a thread gives its space up. The caller keeps the space alive for as long as it is set. Context: preemption
/// disabled, or a thread that changes its own space.
#[inline]
pub fn switch_to(next: Option<&AddressSpace>) {
    let irq = platform::irq_save();
    let at = platform::cpu_id();
    let cpu = &CPUS[at];
    match next {
        None => cpu.current.store(ptr::null_mut(), Ordering::Relaxed),
        Some(space) => {
            cpu.current.store(ptr::from_ref(space).cast_mut(), Ordering::Relaxed);
            let asid = asid::activate(&space.context, at);
            let ttbr = space.table.root() | (asid as u64) << 48;
            if cpu.loaded.load(Ordering::Relaxed) != ttbr {
                if space.ran_on.load(Ordering::Relaxed) & 1 << at == 0 {
                    space.ran_on.fetch_or(1 << at, Ordering::SeqCst);
                    paging::full_barrier();
                }
                cpu.loaded.store(ttbr, Ordering::SeqCst);
                mmu::load_user(space.table.root(), asid);
            }
        }
    }
    platform::irq_restore(irq);
}

const ROOT: u64 = 0x0000_ffff_ffff_f000;

/// Whether any CPU has the tables at `root` loaded; this CPU lets go of them first.
fn loaded_elsewhere(root: u64) -> bool {
    let irq = platform::irq_save();
    let here = &CPUS[platform::cpu_id()];
    if here.loaded.load(Ordering::Relaxed) & ROOT == root {
        mmu::unload_user();
        here.loaded.store(0, Ordering::SeqCst);
    }
    platform::irq_restore(irq);
    CPUS.iter().any(|c| c.loaded.load(Ordering::SeqCst) & ROOT == root)
}

/// Frees the roots of dropped spaces that no CPU has loaded any more.
fn reap_roots() {
    let mut retired = RETIRED.lock();
    let mut i = 0;
    while i < retired.len {
        let root = retired.roots[i];
        if CPUS.iter().any(|c| c.loaded.load(Ordering::SeqCst) & ROOT == root) {
            i += 1;
            continue;
        }
        retired.len -= 1;
        retired.roots[i] = retired.roots[retired.len];
        KernelMem.free_table(root);
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        let root = self.table.root();
        let lazy = loaded_elsewhere(root);
        let map = self.map.get_mut();
        let areas = core::mem::take(&mut map.areas);
        super::map::uncommit(map.data);
        let low = areas.iter().next().map_or(0, |a| a.start);
        let high = areas.iter().next_back().map_or(0, |a| a.end);
        self.table.for_leaves(low..high, |_, entries| {
            for e in entries {
                let pte = Pte(e.load(Ordering::Relaxed));
                if pte.is_valid() && !pte.is_special() {
                    Frame(pte.frame()).put();
                }
            }
        });
        let all = low / span(0) * span(0)..high.next_multiple_of(span(0)).min(TASK_SIZE);
        if lazy {
            let mut gather = Gather::new(self);
            self.table.take_tables(all, &mut |t| gather.table(t));
            drop(gather);
            let mut retired = RETIRED.lock();
            let at = retired.len;
            if at < retired.roots.len() {
                retired.roots[at] = root;
                retired.len += 1;
            }
        } else {
            self.table.take_tables(all, &mut |t| KernelMem.free_table(t));
            KernelMem.free_table(root);
        }
        reap_roots();
    }
}
