//! Lending a program's pages to a device, so that a transfer past the page cache (`O_DIRECT`) needs no copy.
//!
//! A page is lent by a counted reference, which keeps the frame whatever becomes of the mapping. Only private anonymous
//! pages that the program may write are lent: nobody else maps those, and their entries change only with the map locked
//! for writing, so that the frame found in an entry is still its own when it is counted. Everything else (files, shared
//! memory, pages not yet copied after a fork) is copied as before.
//!
//! As on Linux before 5.12, a fork by another thread while a read is under way may leave the data in the child's copy: who
//! forks and uses `O_DIRECT` in several threads keeps its buffers out of the child with `MADV_DONTFORK`.

use super::PAGE_SIZE;
use super::frames::Frame;
use super::space::AddressSpace;
use super::vma::Backing;
use core::sync::atomic::Ordering;
use mm_core::pte::Pte;
use mm_core::table::ENTRIES;
use platform::Page;

impl AddressSpace {
    /// Gives the pages of `len` bytes at `addr` to `take` (page, first byte in it, number of bytes), as far as they can be
    /// lent as they are; returns of how many bytes. `take` does not sleep. May sleep.
    pub fn lend(&self, addr: usize, len: usize, take: &mut dyn FnMut(Page, usize, usize)) -> usize {
        let map = self.map.read();
        let Some(area) = map.areas.find(addr) else { return 0 };
        if !matches!(area.value.backing, Backing::Anon) || !area.value.is_private() {
            return 0;
        }
        let end = addr.saturating_add(len).min(area.end);
        let (mut at, mut table) = (addr, None);
        while at < end {
            let index = at / PAGE_SIZE % ENTRIES;
            if table.is_none() || index == 0 {
                table = self.table.leaf_table(at);
            }
            let pte = table.map_or(Pte::NONE, |t| Pte(t[index].load(Ordering::Acquire)));
            if !pte.is_valid() || !pte.is_user() || pte.is_special() || !pte.is_writable() {
                break;
            }
            Frame(pte.frame()).get();
            // SAFETY: the count was just taken for it; the entry holds one meanwhile (see the module's text).
            let page = unsafe { Page::from_raw(pte.frame() as usize) };
            let n = (PAGE_SIZE - at % PAGE_SIZE).min(end - at);
            take(page, at % PAGE_SIZE, n);
            at += n;
        }
        at - addr
    }
}
