//! Locks that say what they are, and wait queues.
//!
//! | type | while held | may be taken |
//! | --- | --- | --- |
//! | [`SpinLock`] | preemption is disabled | in threads only, never in an interrupt handler |
//! | [`IrqLock`] | interrupts are masked | anywhere |
//! | [`Mutex`], [`RwLock`] | the holder may sleep | in threads that hold no spin lock |
//!
//! [`readlist`] has lists that are read without a lock.
//!
//! Every lock names its [`LockClass`]: a name and a rank. A thread takes locks in rising rank; taking one whose rank is
//! not above all that the thread holds is a bug that builds with debug assertions report at once ([`order`]). Two locks of
//! one class are taken together only through the `*_nested` calls, whose caller states the order that it keeps. The
//! whole list of ranks is `docs/locks.md`.
//!
//! Guards are neither `Send` nor usable across a sleep: taking a sleeping lock in atomic context is checked at run time
//! in debug builds ([`platform::may_sleep`]).
//!
//! What was not done: lockdep-style learned order (a ranked list is stricter and needs no run to learn from); priority
//! inheritance in [`Mutex`] (holders are never preempted for long: the scheduler's slices bound it).
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod mutex;
pub mod once;
pub mod order;
pub mod readlist;
pub mod rwlock;
pub mod spin;
pub mod wait;

pub use mutex::{Mutex, MutexGuard};
pub use once::Once;
pub use order::LockClass;
pub use rwlock::{RwLock, RwReadGuard, RwWriteGuard};
pub use spin::{IrqGuard, IrqLock, SpinGuard, SpinLock};
pub use wait::{Notify, WaitNode, WaitQueue, Watch};

/// Ranks of the lock classes that more than one crate must order. Rising rank is the order of taking; gaps are for what
/// comes between. Sleeping locks come first, spin locks after, the scheduler's last.
pub mod rank {
    /// Process tree and process state (sleeping).
    pub const PROCESS: u16 = 100;
    /// Per-process file table (sleeping).
    pub const FILES: u16 = 150;
    /// Rename exclusion of a file system (sleeping).
    pub const RENAME: u16 = 200;
    /// Directory inodes, outer to inner (sleeping).
    pub const INODE_DIR: u16 = 210;
    /// Other inodes' contents (sleeping).
    pub const INODE: u16 = 220;
    /// An address space's map (sleeping). A page fault takes it with file locks not held; a file's read may fault on user
    /// memory while it holds INODE, so this comes after.
    pub const ADDRESS_SPACE: u16 = 300;
    /// Page caches (sleeping): a fault fills from the cache while it holds the map.
    pub const PAGE_CACHE: u16 = 310;
    /// First rank of spin locks.
    pub const SPIN: u16 = 500;
    /// Directory-entry cache buckets.
    pub const DCACHE: u16 = 520;
    /// Terminal, pipe and other object state.
    pub const OBJECT: u16 = 600;
    /// Signal state of a process.
    pub const SIGNAL: u16 = 640;
    /// Page tables.
    pub const PAGE_TABLE: u16 = 700;
    /// Heap and frame allocators.
    pub const HEAP: u16 = 800;
    /// Frame allocator.
    pub const FRAMES: u16 = 820;
    /// Wait queues' own lists.
    pub const WAIT: u16 = 900;
    /// Timers.
    pub const TIMER: u16 = 920;
    /// Run queues.
    pub const RUNQUEUE: u16 = 940;
    /// The log.
    pub const LOG: u16 = 980;
    /// The console's transmit path: last, taken from anywhere.
    pub const CONSOLE: u16 = 990;
}
