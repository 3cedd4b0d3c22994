//! From pages of files to their mappings: what the memory manager does for the holders of pages.
//!
//! File systems and the page cache know a file by its identity (device and inode number, see
//! [`crate::Mappable::identity`]); only the memory manager knows who maps it. It registers one function at boot. On the host
//! there is none, and nothing is mapped.

use core::ops::Range;
use sync::Once;

/// What is to happen to the mappings of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The pages are no longer the file's: all mappings of them go, private copies included. Accesses fault, and find out.
    Truncated,
    /// The pages should go out of memory: entries that map the file's own pages are emptied; private copies stay.
    Reclaim,
    /// The pages will be written back: entries that map them are made read-only, so that the next write faults.
    Protect,
}

/// Applies a change to the pages in the range of the file with this identity.
pub type Mapper = fn((u64, u64), Range<u64>, Change);

static MAPPER: Once<Mapper> = Once::new();

/// Registers the memory manager's part; once, at boot.
pub fn set_mapper(mapper: Mapper) {
    // A second call keeps the first.
    let _ = MAPPER.set(mapper);
}

/// Changes all mappings of `pages` of a file. When it returns, no CPU uses the old ones. May sleep; no lock of the rank of an
/// address space or above is held.
pub fn change(identity: (u64, u64), pages: Range<u64>, how: Change) {
    if pages.start < pages.end
        && let Some(mapper) = MAPPER.get()
    {
        mapper(identity, pages, how);
    }
}
