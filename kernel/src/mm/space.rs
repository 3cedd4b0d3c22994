//! Address spaces: life, switching, accounting, and what others may read of them.
//!
//! A CPU that switches to a kernel thread leaves the last space's tables loaded, so a space may be dropped while some CPU
//! still has its tables in TTBR0. Dropping first makes every CPU let go ([`crate::sched::retire_mm`]). Translations that
//! CPUs still hold need no invalidation then: the space's ASID is not used again before all is forgotten (asid.rs).

use super::fault::FILE_PAGE;
use super::frames::{self, Frame};
use super::rmap::{self, Link};
use super::vma::{Backing, Prot, VmFlags, Vma};
use super::{KernelMem, Mappable, PAGE_SIZE, TASK_SIZE, asid};
use crate::arch::{mmu, paging};
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use mm_core::pte::Pte;
use mm_core::table::{PageTable, PhysMem, span};
use mm_core::vma::AreaMap;
use platform::Page;
use sync::{LockClass, Once, RwLock, rank};

static MAP_CLASS: LockClass = LockClass::new("address space", rank::ADDRESS_SPACE);

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
    /// The program said that it uses expedited memory barriers.
    membarrier: AtomicBool,
    /// Where the vDSO's ELF header is, or 0.
    pub(super) vdso: AtomicU64,
    pub(super) link: Link,
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
        let map = Map {
            areas: AreaMap::new(),
            layout,
            brk_start: 0,
            brk: 0,
            total: 0,
            data: 0,
            locked: 0,
            lock_future: false,
            limits: Limits::default(),
        };
        let root = super::oom::insist(|| KernelMem.alloc_table()).ok_or(Errno::ENOMEM)?;
        Ok(Self::with(root, map, false))
    }

    /// A space with the empty table `root`.
    pub(super) fn with(root: u64, map: Map, wx: bool) -> Arc<AddressSpace> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let space = Arc::new_cyclic(|me| AddressSpace {
            link: Link::new(me),
            map: RwLock::new(&MAP_CLASS, map),
            table: PageTable::new(root, KernelMem),
            context: AtomicU64::new(0),
            ran_on: AtomicU64::new(0),
            rss: Rss::default(),
            wx_allowed: AtomicBool::new(wx),
            membarrier: AtomicBool::new(false),
            vdso: AtomicU64::new(0),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        });
        rmap::add(&space);
        space
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

    /// Notes that the program uses expedited barriers (membarrier(2)).
    pub fn register_membarrier(&self) {
        self.membarrier.store(true, Ordering::Relaxed);
    }

    /// Whether it said so.
    pub fn membarrier_registered(&self) -> bool {
        self.membarrier.load(Ordering::Relaxed)
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
                Backing::Object { object, offset } => (Some(object.object()), *offset),
                _ => (None, 0),
            };
            let label = if a.value.flags.contains(VmFlags::GROWSDOWN) {
                Some("[stack]")
            } else if a.value.flags.contains(VmFlags::VDSO) {
                Some(if a.value.prot.contains(Prot::EXEC) { "[vdso]" } else { "[vvar]" })
            } else if object.is_none() && a.start >= map.brk_start && a.end <= map.brk.next_multiple_of(PAGE_SIZE) {
                Some("[heap]")
            } else {
                None
            };
            let (prot, flags) = (a.value.prot, a.value.flags);
            each(&AreaInfo { range: a.range(), prot, flags, object, offset, label, space: self });
        }
    }
}

/// A mapping as others may see it.
pub struct AreaInfo<'a> {
    /// Addresses.
    pub range: Range<usize>,
    /// Permissions.
    pub prot: Prot,
    /// Properties.
    pub flags: VmFlags,
    /// The object behind it.
    pub object: Option<&'a Arc<dyn Mappable>>,
    /// Where in the object it starts.
    pub offset: u64,
    /// `[heap]`, `[stack]`, `[vdso]`.
    pub label: Option<&'static str>,
    /// Whose it is; its map is locked.
    space: &'a AddressSpace,
}

/// How many pages of a mapping are present, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pages {
    /// Others have them too, and they are as in the file.
    pub shared_clean: usize,
    /// Others have them too, and they were written.
    pub shared_dirty: usize,
    /// Nobody else maps them; as in the file.
    pub private_clean: usize,
    /// Nobody else maps them; written.
    pub private_dirty: usize,
    /// Those of no file.
    pub anonymous: usize,
    /// Bytes, each page's shared out among its users.
    pub proportional: usize,
}

impl Pages {
    /// All of them.
    pub fn present(&self) -> usize {
        self.shared_clean + self.shared_dirty + self.private_clean + self.private_dirty
    }

    /// Adds another mapping's.
    pub fn add(&mut self, other: &Pages) {
        self.shared_clean += other.shared_clean;
        self.shared_dirty += other.shared_dirty;
        self.private_clean += other.private_clean;
        self.private_dirty += other.private_dirty;
        self.anonymous += other.anonymous;
        self.proportional += other.proportional;
    }

    fn count(&mut self, pte: Pte) {
        let frame = Frame(pte.frame());
        let file = frame.info().owner() & FILE_PAGE != 0;
        // The page cache holds a reference of its own.
        let users = frame.refs().saturating_sub(u32::from(file)).max(1) as usize;
        // Memory of no file is always ahead of what is stored; a page of a file, once it may be written.
        let dirty = !file || pte.is_writable();
        *match (users > 1, dirty) {
            (true, true) => &mut self.shared_dirty,
            (true, false) => &mut self.shared_clean,
            (false, true) => &mut self.private_dirty,
            (false, false) => &mut self.private_clean,
        } += 1;
        self.anonymous += usize::from(!file);
        self.proportional += PAGE_SIZE / users;
    }
}

impl AreaInfo<'_> {
    /// The pages that are present, at a moment: reclaim and writers go on.
    pub fn pages(&self) -> Pages {
        let mut pages = Pages::default();
        self.space.table.for_leaves(self.range.clone(), |_, entries| {
            for e in entries {
                let pte = Pte(e.load(Ordering::Acquire));
                if pte.is_user() && !pte.is_special() {
                    pages.count(pte);
                }
            }
        });
        pages
    }
}

/// The calling thread's address space; `None` in a kernel thread. The reference is good until the thread leaves the space
/// (exec, exit), which only the thread itself does.
#[inline]
pub fn current<'a>() -> Option<&'a AddressSpace> {
    let p = crate::sched::current().sched.mm.load(Ordering::Relaxed);
    // SAFETY: a thread holds an `Arc` of the space that is set in it, until it sets another.
    unsafe { p.as_ref() }
}

impl AddressSpace {
    /// Loads this space on the calling CPU; for the scheduler, which keeps the space alive until [`crate::sched::retire_mm`].
    /// Interrupts masked.
    #[inline]
    pub fn activate(&self) {
        let cpu = platform::cpu_id();
        if self.ran_on.load(Ordering::Relaxed) & 1 << cpu == 0 {
            self.ran_on.fetch_or(1 << cpu, Ordering::SeqCst);
            paging::full_barrier();
        }
        let asid = asid::activate(&self.context, cpu);
        mmu::load_user(self.table.root(), asid);
    }

    /// Whether CPU `cpu`, which has these tables loaded, runs them under the ASID that the space has now.
    #[inline]
    pub fn is_active_on(&self, cpu: usize) -> bool {
        asid::is_active(&self.context, cpu)
    }

    /// Whether the running thread is the only one that uses this space, and no other CPU has its tables loaded any more.
    /// Preemption disabled.
    pub(super) fn is_mine_alone(&self) -> bool {
        let me = crate::sched::current();
        let mine = me.sched.mm.load(Ordering::Relaxed).cast_const() == core::ptr::from_ref(self)
            && me.try_mm().is_some_and(|mm| Arc::strong_count(mm) == 1);
        mine && !crate::sched::lingers_elsewhere(self)
    }

    /// Gives the space a new ASID, so that nothing that any CPU knows of it counts any more. The caller has seen
    /// [`AddressSpace::is_mine_alone`] with preemption disabled since.
    ///
    /// Another thread (reclaim) may invalidate an entry at the same time. It clears the entry, has a barrier, and reads the
    /// ASID. If that is not the new one, the new one is stored later, and there is a barrier between that and our walks,
    /// which so see the entry cleared.
    #[cold]
    pub(super) fn renew(&self) {
        let irq = crate::arch::irq_save();
        let cpu = platform::cpu_id();
        self.ran_on.store(1 << cpu, Ordering::SeqCst);
        self.context.store(0, Ordering::SeqCst);
        let asid = asid::activate(&self.context, cpu);
        paging::full_barrier();
        mmu::load_user(self.table.root(), asid);
        crate::arch::irq_restore(irq);
    }

    /// The page behind `addr` if it is mapped shared, counted; `None` if the mapping is private. `EFAULT` if nothing is there.
    /// May sleep.
    pub fn shared_page_at(&self, addr: usize) -> Result<Option<Page>> {
        let map = self.map.read();
        let area = map.areas.find(addr).ok_or(Errno::EFAULT)?;
        if area.value.is_private() {
            return Ok(None);
        }
        let pte = self.table.leaf(addr).map_or(Pte::NONE, |s| Pte(s.load(Ordering::Acquire)));
        if !pte.is_user() || pte.is_special() {
            return Err(Errno::EFAULT);
        }
        Frame(pte.frame()).get();
        // SAFETY: the count was just taken for it; the entry held one meanwhile, since the map is locked.
        Ok(Some(unsafe { Page::from_raw(pte.frame() as usize) }))
    }

    /// Copies what is present at `addr` into `buf`, without faulting anything in (another process's arguments, for `/proc`);
    /// returns how much that was. May sleep.
    pub fn peek(&self, addr: usize, buf: &mut [u8]) -> usize {
        let _map = self.map.read();
        let mut done = 0;
        while done < buf.len() {
            let at = addr + done;
            if at >= TASK_SIZE {
                break;
            }
            let pte = self.table.leaf(at).map_or(Pte::NONE, |s| Pte(s.load(Ordering::Acquire)));
            if !pte.is_user() || pte.is_special() {
                break;
            }
            let offset = at % PAGE_SIZE;
            let n = (PAGE_SIZE - offset).min(buf.len() - done);
            // SAFETY: the map is locked for reading, so the entry keeps its frame; whoever writes there meanwhile is as
            // with any shared memory.
            let bytes = unsafe { platform::SharedBytes::new(super::phys_to_ptr(pte.addr()).add(offset), n) };
            bytes.copy_to(&mut buf[done..done + n]);
            done += n;
        }
        done
    }
}

/// What `berth.sabotage=` breaks on purpose in address spaces.
#[derive(Clone, Copy)]
pub(super) struct Sabotage {
    /// `eager-fork`: fork copies at once (gate m2).
    pub eager_fork: bool,
    /// `leak-frame`: a frame is lost with each address space (gate m2).
    pub leak_frame: bool,
    /// `local-flush`: translations are forgotten on the CPU that changes them only (gate s3).
    pub local_flush: bool,
}

/// Read from the command line once.
pub(super) fn sabotage() -> Sabotage {
    static FLAGS: Once<Sabotage> = Once::new();
    FLAGS.get().copied().unwrap_or_else(|| {
        let named = crate::machine::sabotaged;
        let flags = Sabotage {
            eager_fork: named("eager-fork"),
            leak_frame: named("leak-frame"),
            local_flush: named("local-flush"),
        };
        let _ = FLAGS.set(flags);
        flags
    })
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        rmap::remove(self);
        crate::sched::retire_mm(self);
        if sabotage().leak_frame {
            let _ = frames::alloc_one(frames::For::User);
        }
        let map = self.map.get_mut();
        let areas = core::mem::replace(&mut map.areas, AreaMap::new());
        super::map::uncommit(map.data);
        let low = areas.iter().next().map_or(0, |a| a.start);
        let high = areas.iter().next_back().map_or(0, |a| a.end);
        self.table.for_leaves(low..high, |_, entries| {
            let mut batch = arrayvec::ArrayVec::<Frame, 64>::new();
            for e in entries {
                let pte = Pte(e.load(Ordering::Relaxed));
                if pte.is_valid() && !pte.is_special() {
                    if batch.is_full() {
                        frames::put_all(&batch);
                        batch.clear();
                    }
                    batch.push(Frame(pte.frame()));
                }
            }
            frames::put_all(&batch);
        });
        let all = low / span(0) * span(0)..high.next_multiple_of(span(0)).min(TASK_SIZE);
        self.table.take_tables(all, &mut |t| KernelMem.free_table(t));
        KernelMem.free_table(self.table.root());
    }
}
