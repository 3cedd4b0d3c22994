//! Invalidation for an address space, and the gathering of frames that must not be freed before it.
//!
//! Four cases, cheapest first: a space that never ran needs nothing; one that ran only on this CPU is invalidated here
//! alone; one that ran elsewhere before, but that only the running thread uses now, gets a new ASID, after which it ran only
//! here; else the instruction is broadcast. By page up to [`BY_PAGE`] pages, by ASID above. Broadcasts are dear on
//! machines with many CPUs, and on emulators, which stop every CPU for one.
//!
//! Which CPUs a space ran on is a mask that only grows, but for the third case. A CPU sets its bit, with a full barrier, before it loads the tables;
//! who changes an entry has a full barrier before it reads the mask. So either the changer sees the bit and broadcasts, or
//! the CPU's walks see the new entry.

use super::asid;
use super::frames::{self, Frame};
use super::space::AddressSpace;
use super::{KernelMem, PAGE_SIZE};
use crate::arch::{paging, tlb};
use core::sync::atomic::Ordering;
use mm_core::table::PhysMem;

/// Invalidations by page that cost about as much as the refill after one by ASID.
const BY_PAGE: usize = 32;

/// Who may hold translations of a space.
enum Reach {
    Nobody,
    Here,
    Everywhere,
}

/// Runs `f` with preemption disabled.
#[inline(always)]
fn pinned<R>(f: impl FnOnce() -> R) -> R {
    platform::preempt_disable();
    let r = f();
    platform::preempt_enable();
    r
}

impl AddressSpace {
    #[inline]
    fn reach(&self) -> Reach {
        paging::full_barrier();
        let ran = self.ran_on.load(Ordering::Relaxed);
        if ran == 0 {
            Reach::Nobody
        } else if ran == 1 << platform::cpu_id() {
            Reach::Here
        } else if self.is_mine_alone() {
            self.renew();
            Reach::Nobody
        } else if super::space::sabotage().local_flush {
            Reach::Here
        } else {
            Reach::Everywhere
        }
    }

    /// Forgets the translation of one page. Context: any but interrupts.
    #[inline]
    pub(super) fn flush_page(&self, va: usize) {
        pinned(|| match self.reach() {
            Reach::Nobody => {}
            Reach::Here => paging::flush_page_local(self.asid(), va as u64),
            Reach::Everywhere => tlb::flush_page(self.asid(), va as u64),
        });
    }

    /// Forgets a page on this CPU only, after a change that grants more: others find out by a fault.
    #[inline]
    pub(super) fn flush_page_here(&self, va: usize) {
        paging::full_barrier();
        paging::flush_page_local(self.asid(), va as u64);
    }

    /// Forgets the whole space.
    pub(super) fn flush_all(&self) {
        pinned(|| match self.reach() {
            Reach::Nobody => {}
            Reach::Here => paging::flush_asid_local(self.asid()),
            Reach::Everywhere => tlb::flush_asid(self.asid()),
        });
    }

    /// Forgets `pages` pages from `va`; `tables` says that tables were taken out as well.
    pub(super) fn flush_range(&self, va: usize, pages: usize, tables: bool) {
        if pages > BY_PAGE || tables {
            return self.flush_all();
        }
        pinned(|| match self.reach() {
            Reach::Nobody => {}
            Reach::Here => {
                for i in 0..pages {
                    paging::flush_page_local(self.asid(), (va + i * PAGE_SIZE) as u64);
                }
            }
            Reach::Everywhere => tlb::flush_range(self.asid(), va as u64, pages),
        });
    }

    #[inline(always)]
    fn asid(&self) -> u16 {
        asid::of(self.context.load(Ordering::Relaxed))
    }
}

const GATHER: usize = 120;

/// Frames and tables taken out of a space's tables, freed when no CPU can reach them any more.
pub(super) struct Gather<'a> {
    space: &'a AddressSpace,
    frames: [Frame; GATHER],
    len: usize,
    tables: [u64; 8],
    table_len: usize,
    low: usize,
    high: usize,
}

impl<'a> Gather<'a> {
    pub(super) fn new(space: &'a AddressSpace) -> Self {
        Gather { space, frames: [Frame(0); GATHER], len: 0, tables: [0; 8], table_len: 0, low: usize::MAX, high: 0 }
    }

    /// An entry at `va` was valid and is no more.
    #[inline]
    pub(super) fn note(&mut self, va: usize) {
        self.low = self.low.min(va);
        self.high = self.high.max(va + PAGE_SIZE);
    }

    /// Drops a reference later.
    #[inline]
    pub(super) fn frame(&mut self, frame: Frame) {
        if self.len == GATHER {
            self.flush();
        }
        self.frames[self.len] = frame;
        self.len += 1;
    }

    /// Frees a table later.
    pub(super) fn table(&mut self, pa: u64) {
        if self.table_len == self.tables.len() {
            self.flush();
        }
        self.tables[self.table_len] = pa;
        self.table_len += 1;
    }

    /// Invalidates and frees.
    pub(super) fn flush(&mut self) {
        if self.low < self.high || self.table_len > 0 {
            let pages = self.high.saturating_sub(self.low) / PAGE_SIZE;
            self.space.flush_range(self.low, pages, self.table_len > 0);
        }
        frames::put_all(&self.frames[..self.len]);
        for &t in &self.tables[..self.table_len] {
            KernelMem.free_table(t);
        }
        self.len = 0;
        self.table_len = 0;
        self.low = usize::MAX;
        self.high = 0;
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
