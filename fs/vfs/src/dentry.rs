//! Directory entries: a name in a directory, and the inode it leads to.
//!
//! A dentry is one name of one inode; a directory has exactly one. Its inode never changes. When the name is removed the
//! dentry leaves the cache and is marked dead, but lives on as long as something refers to it (an open file, a working
//! directory), and still knows the name it had. A rename moves the dentry (and so everything below it).

use crate::attr::FileType;
use crate::inode::Inode;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use sync::{LockClass, Mutex, SpinLock, rank};

static DIR: LockClass = LockClass::new("directory", rank::INODE_DIR);
static LINK: LockClass = LockClass::new("dentry link", rank::DCACHE + 2);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Where a dentry hangs.
#[derive(Debug)]
pub(crate) struct LinkTo {
    /// The directory; `None` for a root.
    pub parent: Option<Arc<Dentry>>,
    /// The name in it.
    pub name: Arc<[u8]>,
}

/// A cached name.
///
/// What a walk reads stands at the end: in an `Arc` the counts, which each open and close of the file writes, come first,
/// and so they are not in the same line of the cache.
#[repr(C)]
pub struct Dentry {
    link: SpinLock<LinkTo>,
    /// Held over changes of this directory and over look-ups that miss the cache.
    pub(crate) dir: Mutex<()>,
    id: u64,
    /// Which superblock it belongs to.
    pub(crate) sb: u64,
    inode: Arc<dyn Inode>,
    /// How many mounts stand on it.
    pub(crate) mounts: AtomicU32,
    kind: FileType,
    dead: AtomicBool,
}

impl Dentry {
    /// A dentry for `inode`, called `name` in `parent`.
    pub(crate) fn new(sb: u64, parent: Option<Arc<Dentry>>, name: Arc<[u8]>, inode: Arc<dyn Inode>) -> Arc<Dentry> {
        Arc::new(Dentry {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            sb,
            kind: inode.meta().kind,
            dead: AtomicBool::new(false),
            mounts: AtomicU32::new(0),
            inode,
            link: SpinLock::new(&LINK, LinkTo { parent, name }),
            dir: Mutex::new(&DIR, ()),
        })
    }

    /// An identity that is never used again.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it names.
    #[inline]
    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    /// The type of the inode.
    #[inline]
    pub fn kind(&self) -> FileType {
        self.kind
    }

    /// Whether the name was removed.
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Whether something is mounted on it.
    #[inline]
    pub fn is_mountpoint(&self) -> bool {
        self.mounts.load(Ordering::Relaxed) != 0
    }

    /// The directory; `None` for a file system's root.
    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.link.lock().parent.clone()
    }

    /// The name in it.
    pub fn name(&self) -> Arc<[u8]> {
        self.link.lock().name.clone()
    }

    /// Moves it; the former parent and name come back (to be dropped without the lock).
    pub(crate) fn relink(&self, parent: Arc<Dentry>, name: Arc<[u8]>) -> LinkTo {
        core::mem::replace(&mut *self.link.lock(), LinkTo { parent: Some(parent), name })
    }

    /// Whether `self` is `other` or lies above it. Stable while the rename lock is held.
    pub fn contains(self: &Arc<Self>, other: &Arc<Dentry>) -> bool {
        let mut at = other.clone();
        loop {
            if Arc::ptr_eq(self, &at) {
                return true;
            }
            match at.parent() {
                Some(p) => at = p,
                None => return false,
            }
        }
    }
}

impl core::fmt::Debug for Dentry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "dentry {} {:?}", self.id, self.kind)
    }
}

impl Drop for Dentry {
    /// Frees a chain of parents without recursion: trees may be deeper than the stack.
    fn drop(&mut self) {
        let mut next = self.link.get_mut().parent.take();
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut d| d.link.get_mut().parent.take());
        }
    }
}
