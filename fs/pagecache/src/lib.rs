//! The page cache: one copy in memory of what files hold, whoever reads, writes or maps them.
//!
//! A [`PageCache`] is the machine's cache: the lists by which pages age, the counts of dirty pages and their limits. A
//! [`FileCache`] is one file's part: an index from page numbers to [`CachePage`]s. A file system implements [`Backing`] and
//! embeds a [`FileCache`] in its inodes; reads, writes and faults then go through the cache, which calls back to fill pages
//! and to write them.
//!
//! # A page's life
//! It enters the index *reading*, and becomes *up to date* when the file system says so; who needs it meanwhile waits. A
//! write makes it *dirty*; write-back clears that and sets *writeback* in one step, write-protects shared mappings of it,
//! and only then hands it to the file system, so that a write that comes later makes it dirty again and none is lost. A page
//! that is neither reading, dirty, under write-back, mapped nor in a caller's hand may be dropped at any time.
//!
//! # Used once, used often
//! Pages enter the inactive list, oldest first out. A use only counts (in the page, without any lock); sequential small
//! reads of one page count once. When reclaim comes to a page that was used at least twice since it entered, the page moves
//! to the active list instead; the active list gives pages back when it outgrows the inactive one, those that were used
//! meanwhile go round again. So a file that is read once, however large, passes through the inactive list and leaves the
//! often-used pages alone. Mapped pages are judged by their faults: reclaim takes the mapping away first, and the page goes
//! if nobody faults it back before it is next looked at.
//!
//! # Readahead
//! A file follows a few sequential streams. Each has a window that doubles while it is used (16 KiB to 512 KiB) and halves
//! when pages of it were reclaimed before they were read; the next window is started when the reader enters the present one.
//!
//! # Errors
//! A failed read is reported to who needed the page, and tried again at the next need. A failed write is recorded in the
//! file's [`vfs::ErrSeq`], the page counts as written (as on Linux), and each open file description learns of it at its next
//! fsync, once.
//!
//! # Who owns which state, and its lock
//! | state | guarded by |
//! | --- | --- |
//! | a file's index, its dirty and writeback marks | the file's index lock (spin) |
//! | a page's flags | atomics; *dirty* changes only under the index lock |
//! | ageing lists | one spin lock per shard; a page enters the shard of the CPU that brings it in |
//! | list of dirty files | its spin lock |
//! | streams of readahead | the file's stream lock (spin) |
//!
//! None of these is held together with another (but the dirty list's inside an index lock), nor over a call of the file
//! system, a copy from or to user memory, or an allocation that may sleep. Ends of I/O touch only atomics and wait queues,
//! so they may come from interrupt handlers.
//!
//! Locks that a file system takes inside [`Backing`]'s calls have ranks above `rank::PAGE_CACHE`, as those calls come from
//! page faults. Whoever holds up a transaction that [`Backing::write_pages`] may wait for must not wait for write-back; it
//! waits for the I/O that it submitted itself.
//!
//! # What was not done
//! Stable pages under write-back (a page may change while it is written: it is dirty again then, and no checksum of data
//! exists to break); direct I/O; per-device dirty limits and cgroups; large folios.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod cache;
mod file;
mod flusher;
mod index;
mod lru;
mod page;
mod readahead;
mod run;
mod truncate;
mod write;
mod writeback;

pub use cache::{Limits, Memory, PageCache, Stats};
pub use file::{FileCache, Settings};
pub use lru::Shrink;
pub use page::CachePage;
pub use run::{MAX_RUN, ReadRun, WriteRun};
pub use vfs::{Advice, ErrSeq};

use abi::Result;
use alloc::vec::Vec;

/// Bytes in a page.
pub(crate) const PAGE: u64 = platform::PAGE_SIZE as u64;

/// What a file system does for one file. All calls may sleep; none comes with a lock of this crate held.
pub trait Backing: Send + Sync {
    /// Fills the pages of `run` (consecutive, all within the file's size when it was made) and ends it with
    /// [`ReadRun::finish`], now or later, in any context. Holes are filled with zeroes; so is what lies behind the file's
    /// end. A run that is dropped unfinished fails with `EIO`. Called from page faults: locks rank above `PAGE_CACHE`.
    fn read_pages(&self, run: ReadRun);

    /// Writes the pages of `run` (consecutive) and ends it with [`WriteRun::finish`], now or later, in any context. Space for
    /// them was promised by `prepare_dirty`. May wait for a transaction to start. Called by write-back threads, fsync and
    /// throttled writers; never by reclaim.
    fn write_pages(&self, run: WriteRun);

    /// [`Backing::write_pages`] for several runs of rising, disjoint places: where dirty pages lie scattered, a file system
    /// writes them all at the same time.
    fn write_runs(&self, runs: Vec<WriteRun>) {
        for run in runs {
            self.write_pages(run);
        }
    }

    /// Before the clean page `index` becomes dirty: promise the space that writing it may take. An earlier promise for the page
    /// may still be open: it is being written, or another writer is about to make it dirty. Each is ended by itself. Errors (`ENOSPC`, `EIO`,
    /// `EROFS`) reach the writer. `mapped`: by a write fault on a shared mapping, with an address space locked (locks rank
    /// above `PAGE_CACHE`, and neither a transaction nor write-back may be waited for; the program gets SIGBUS on an error);
    /// else by a write, under the locks that the file system took around [`FileCache::write`].
    fn prepare_dirty(&self, index: u64, mapped: bool) -> Result<()> {
        let _ = (index, mapped);
        Ok(())
    }

    /// The promises for `count` pages from `first` on are not needed: dirty pages were dropped by truncation, or somebody else
    /// made the page dirty first.
    fn cancel_dirty(&self, first: u64, count: u64) {
        let _ = (first, count);
    }

    /// Whether the content is wanted by nobody any more: no name, and no reference but `cache_references` ones of the cache.
    /// Its dirty pages are then dropped instead of written.
    fn is_doomed(&self, cache_references: usize) -> bool {
        let _ = cache_references;
        false
    }
}

#[cfg(test)]
mod tests;
