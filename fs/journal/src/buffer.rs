//! One cached block of metadata.
//!
//! Its bytes are shared by counting: whoever needs them to stay as they are (a commit, a checkpoint) keeps a reference to
//! them, and a writer who finds them shared copies first. So there are at most two versions of a block that matter, the
//! last committed and the current, and no reader, writer or commit ever waits for another's I/O on it.

use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};
use sync::{LockClass, RwLock, RwReadGuard, RwWriteGuard};

/// After page caches: a page fault reads metadata.
pub(crate) static CLASS: LockClass = LockClass::new("metadata buffer", sync::rank::PAGE_CACHE + 40);

/// The content is what the medium holds, or newer.
const UPTODATE: u32 = 1;
/// Newer than the medium and in no journal (file systems without one).
const DIRTY: u32 = 2;
/// Looked up since the last round of reclaim.
const REFERENCED: u32 = 4;

/// What the buffer's lock guards.
pub(crate) struct Content {
    pub data: Arc<Vec<u8>>,
    /// The last transaction that it was modified in; 0: none.
    pub joined: u64,
    /// That transaction freed the block: it is not logged.
    pub forgotten: bool,
}

impl Content {
    /// Makes the bytes this buffer's alone, copying them if a commit or checkpoint keeps them.
    pub fn make_unique(&mut self) -> Result<()> {
        if Arc::get_mut(&mut self.data).is_none() {
            let mut copy = Vec::new();
            copy.try_reserve_exact(self.data.len()).map_err(|_| Errno::ENOMEM)?;
            copy.extend_from_slice(&self.data);
            self.data = Arc::new(copy);
        }
        Ok(())
    }
}

/// Zeroes, fallibly.
pub(crate) fn zeroes(len: usize) -> Result<Arc<Vec<u8>>> {
    let mut v = Vec::new();
    v.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    v.resize(len, 0);
    Ok(Arc::new(v))
}

/// A cached block. It stays in the cache while anyone holds a reference to it, a transaction or checkpoint included.
pub struct Buffer {
    block: u64,
    state: AtomicU32,
    user: AtomicU32,
    pub(crate) content: RwLock<Content>,
}

impl Buffer {
    pub(crate) fn new(block: u64, size: usize) -> Result<Self> {
        let content = Content { data: zeroes(size)?, joined: 0, forgotten: false };
        Ok(Buffer {
            block,
            state: AtomicU32::new(REFERENCED),
            user: AtomicU32::new(0),
            content: RwLock::new(&CLASS, content),
        })
    }

    /// The block's number on the device.
    pub fn block(&self) -> u64 {
        self.block
    }

    /// The bytes, for reading. Sleeps while a [`WriteGuard`] is held. Several buffers may be held at once; a thread keeps
    /// to the file system's order of them (parent before child, bitmaps before descriptors).
    pub fn read(&self) -> ReadGuard<'_> {
        ReadGuard(self.content.read_nested())
    }

    /// The file system's own flags: 0 when the block was read or created, changed by nobody else.
    pub fn flags(&self) -> u32 {
        self.user.load(Ordering::Acquire)
    }

    /// Sets some of them.
    pub fn set_flags(&self, bits: u32) {
        self.user.fetch_or(bits, Ordering::Release);
    }

    /// Clears some of them.
    pub fn clear_flags(&self, bits: u32) {
        self.user.fetch_and(!bits, Ordering::Release);
    }

    /// Whether the content is valid.
    pub fn is_uptodate(&self) -> bool {
        self.state.load(Ordering::Acquire) & UPTODATE != 0
    }

    pub(crate) fn set_uptodate(&self, yes: bool) {
        if yes {
            self.state.fetch_or(UPTODATE, Ordering::Release);
        } else {
            self.state.fetch_and(!UPTODATE, Ordering::Release);
            self.user.store(0, Ordering::Release);
        }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.state.load(Ordering::Acquire) & DIRTY != 0
    }

    pub(crate) fn set_dirty(&self) {
        self.state.fetch_or(DIRTY, Ordering::Release);
    }

    /// Clears the mark; whether it was set.
    pub(crate) fn take_dirty(&self) -> bool {
        self.state.fetch_and(!DIRTY, Ordering::AcqRel) & DIRTY != 0
    }

    pub(crate) fn touch(&self) {
        if self.state.load(Ordering::Relaxed) & REFERENCED == 0 {
            self.state.fetch_or(REFERENCED, Ordering::Relaxed);
        }
    }

    /// Clears the mark of use; whether it was set.
    pub(crate) fn take_referenced(&self) -> bool {
        self.state.fetch_and(!REFERENCED, Ordering::Relaxed) & REFERENCED != 0
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("block", &self.block).field("state", &self.state).finish_non_exhaustive()
    }
}

/// A block's bytes, for reading.
#[must_use]
pub struct ReadGuard<'a>(RwReadGuard<'a, Content>);

impl Deref for ReadGuard<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0.data
    }
}

/// A block's bytes, for changing them within a transaction.
#[must_use]
pub struct WriteGuard<'a>(RwWriteGuard<'a, Content>);

impl<'a> WriteGuard<'a> {
    /// `content` was made unique.
    pub(crate) fn new(content: RwWriteGuard<'a, Content>) -> Self {
        WriteGuard(content)
    }
}

impl Deref for WriteGuard<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0.data
    }
}

impl DerefMut for WriteGuard<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // Unique since the guard was made: references are taken under the lock that it holds.
        Arc::get_mut(&mut self.0.data).map_or(&mut [], |v| v)
    }
}
