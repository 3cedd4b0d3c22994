//! All address spaces, and what must reach every mapping of a file.
//!
//! The spaces form a list. A walk goes from its head to its tail and holds one space at a time; a space that forks adds its
//! child at the tail, so a walk that was at the parent before the child was made still meets the child after it: no
//! mapping made from one that the walk has not yet changed is missed. Mappings made anew meanwhile ask the file.
//!
//! What was not done: an index by file. A change costs a look at the mappings of every process; it comes with truncation of
//! a file that was mapped, with reclaim and with write-back in batches.

use super::PAGE_SIZE;
use super::fault::FILE_PAGE;
use super::frames::Frame;
use super::space::{AddressSpace, Map};
use super::tlb::Gather;
use super::vma::Backing;
use alloc::sync::{Arc, Weak};
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use mm_core::pte::Pte;
use sync::{LockClass, SpinLock, rank};
use vfs::rmap::Change;

static CLASS: LockClass = LockClass::new("address spaces", rank::SPIN + 99);
static SPACES: SpinLock<Ends> = SpinLock::new(&CLASS, Ends { head: ptr::null_mut(), tail: ptr::null_mut() });

struct Ends {
    head: *mut AddressSpace,
    tail: *mut AddressSpace,
}

// SAFETY: the pointers are used only with the lock held; every space takes itself out before it goes.
unsafe impl Send for Ends {}

/// A space's place in the list.
#[derive(Debug)]
pub(super) struct Link {
    me: Weak<AddressSpace>,
    next: AtomicPtr<AddressSpace>,
    prev: AtomicPtr<AddressSpace>,
}

impl Link {
    pub(super) fn new(me: &Weak<AddressSpace>) -> Link {
        Link { me: me.clone(), next: AtomicPtr::new(ptr::null_mut()), prev: AtomicPtr::new(ptr::null_mut()) }
    }
}

/// Adds a space, at the tail.
pub(super) fn add(space: &AddressSpace) {
    let at = ptr::from_ref(space).cast_mut();
    let mut ends = SPACES.lock();
    space.link.prev.store(ends.tail, Ordering::Relaxed);
    // SAFETY: spaces in the list are alive, see `remove`.
    match unsafe { ends.tail.as_ref() } {
        Some(last) => last.link.next.store(at, Ordering::Relaxed),
        None => ends.head = at,
    }
    ends.tail = at;
}

/// Takes a space out; first thing when it is dropped.
pub(super) fn remove(space: &AddressSpace) {
    let mut ends = SPACES.lock();
    let (next, prev) = (space.link.next.load(Ordering::Relaxed), space.link.prev.load(Ordering::Relaxed));
    // SAFETY: spaces in the list are alive: they are taken out under this lock before they go.
    unsafe {
        match prev.as_ref() {
            Some(p) => p.link.next.store(next, Ordering::Relaxed),
            None => ends.head = next,
        }
        match next.as_ref() {
            Some(n) => n.link.prev.store(prev, Ordering::Relaxed),
            None => ends.tail = prev,
        }
    }
}

/// The first space after `space` (from the head without one) that is not just being dropped.
fn after(space: Option<&AddressSpace>) -> Option<Arc<AddressSpace>> {
    let ends = SPACES.lock();
    let mut at = space.map_or(ends.head, |s| s.link.next.load(Ordering::Relaxed));
    loop {
        // SAFETY: as above; `space` is in the list since the caller holds it.
        let next = unsafe { at.as_ref() }?;
        if let Some(found) = next.link.me.upgrade() {
            return Some(found);
        }
        at = next.link.next.load(Ordering::Relaxed);
    }
}

/// What the file layer calls ([`vfs::rmap::change`]). `Reclaim` leaves out spaces whose map is busy, so it may come from
/// a fault's allocation; who reclaims looks at the page's count afterwards.
pub(super) fn change(identity: (u64, u64), pages: Range<u64>, how: Change) {
    let mut at = after(None);
    while let Some(space) = at {
        change_in(&space, identity, &pages, how);
        at = after(Some(&space));
    }
}

fn change_in(space: &AddressSpace, identity: (u64, u64), pages: &Range<u64>, how: Change) {
    // Most spaces do not map the file: look before keeping everyone out.
    let found = |map: &Map| ranges_of(map, identity, pages).next().is_some();
    let map = if how == Change::Reclaim {
        match space.map.try_write() {
            Some(m) => m,
            None => return,
        }
    } else {
        if !found(&space.map.read()) {
            return;
        }
        space.map.write()
    };
    let mut gather = Gather::new(space);
    for range in ranges_of(&map, identity, pages) {
        match how {
            Change::Truncated => space.zap(range, &mut gather),
            Change::Reclaim => space.zap_file_pages(range, &mut gather),
            Change::Protect => space.write_protect(range, &mut gather),
        }
    }
}

/// Where pages of a file are mapped.
fn ranges_of<'a>(map: &'a Map, identity: (u64, u64), pages: &'a Range<u64>) -> impl Iterator<Item = Range<usize>> + 'a {
    map.areas.iter().filter_map(move |e| {
        let Backing::Object { object, offset } = &e.value.backing else { return None };
        let first = offset / PAGE_SIZE as u64;
        let count = (e.len() / PAGE_SIZE) as u64;
        let (from, to) = (pages.start.max(first), pages.end.min(first + count));
        if from >= to || object.identity() != identity {
            return None;
        }
        let at = |page: u64| e.start + (page - first) as usize * PAGE_SIZE;
        Some(at(from)..at(to))
    })
}

impl AddressSpace {
    /// Empties entries that map a file's own pages; private copies stay.
    fn zap_file_pages(&self, range: Range<usize>, gather: &mut Gather<'_>) {
        let mut file = 0;
        self.table.for_leaves(range, |va, entries| {
            for (i, slot) in entries.iter().enumerate() {
                let pte = Pte(slot.load(Ordering::Relaxed));
                if pte.is_valid() && !pte.is_special() && Frame(pte.frame()).info().owner() & FILE_PAGE != 0 {
                    slot.store(0, Ordering::Release);
                    gather.note(va + i * PAGE_SIZE);
                    gather.frame(Frame(pte.frame()));
                    file += 1;
                }
            }
        });
        self.rss.file.fetch_sub(file, Ordering::Relaxed);
    }

    /// Makes entries that map a file's own pages read-only.
    fn write_protect(&self, range: Range<usize>, gather: &mut Gather<'_>) {
        self.table.for_leaves(range, |va, entries| {
            for (i, slot) in entries.iter().enumerate() {
                let pte = Pte(slot.load(Ordering::Relaxed));
                let own = || Frame(pte.frame()).info().owner() & FILE_PAGE != 0;
                if pte.is_valid() && !pte.is_special() && pte.is_writable() && own() {
                    slot.store(pte.read_only().0, Ordering::Release);
                    gather.note(va + i * PAGE_SIZE);
                }
            }
        });
    }
}

/// Registers what the file layer calls.
pub(super) fn init() {
    vfs::rmap::set_mapper(change);
}
