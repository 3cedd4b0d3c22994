//! Metadata buffers and the journal, in jbd2's format: what makes an ext4 file system survive a power cut.
//!
//! # Ideas
//! A file system changes blocks of metadata within a [`Handle`]; the changes of many handles make one transaction, which
//! reaches the medium whole or not at all. A transaction is written to the log (copies of its blocks between a descriptor
//! and a commit block), and only later, at a *checkpoint*, to the blocks' homes; after a crash [`recover`] copies what the
//! log holds complete.
//!
//! Linux's jbd2 keeps one copy of each block and freezes it where a commit and a writer collide. Here a block's bytes are
//! shared by counting ([`buffer`]): a commit takes references, a writer who finds bytes shared copies them first. So the
//! committed version of each block stays at hand until its checkpoint, whatever the running transaction does to the
//! block, and
//! - handles start again as soon as the commit has taken its references, and never wait for log I/O;
//! - a checkpoint never has to commit the running transaction first, so the log can always be emptied and a commit always
//!   finds room: a handle needs no log space, only room in the transaction;
//! - the price is one copy of a block per transaction that changes it (0.1 to 0.2 us for 4 KiB).
//!
//! # A commit
//! 1. *Lock*: new handles wait, open ones end. 2. *Freeze*: references to the blocks' bytes; handles start again, in the
//!    next transaction. 3. Ordered data is written. 4. Revoke blocks, descriptors and copies go into the log, all under way
//!    at once. 5. A flush: they, and all data that was written before, are on the medium. 6. The commit block, with FUA.
//!    From then on the transaction is durable; whoever waited for it goes on.
//!
//! The thread that needs a commit does it ([`Journal::commit_and_wait`]); others that need the same wait for it, and what
//! they changed meanwhile goes with the next one together: group commit without a thread switch. An embedder's thread in
//! [`Journal::run`] commits what is older than the interval, and checkpoints when the log is half full.
//!
//! # Freed blocks
//! A block of metadata that is freed may come back as file data, over which neither recovery nor a checkpoint must write
//! an old copy. [`Handle::forget`] puts a revoke record into the transaction and, when that has committed, drops the
//! block's pending checkpoint. Until [`Journal::committed_tid`] has reached the freeing transaction the file system must not
//! give the block out for data (as metadata, it may).
//!
//! # Locks
//! | what | guards | held |
//! | --- | --- | --- |
//! | `State` (spin) | running transaction, open handles, credits, who commits | a few instructions, twice a handle |
//! | `Lists` of a transaction (spin) | its buffers and revokes | once for each block's first change |
//! | `LogInner` (sleeping) | the log's head and tail, checkpoint list, the superblock on disk | over log writes and checkpoints |
//! | a buffer's content (sleeping) | its bytes and which transaction has it | by readers and writers of the block |
//!
//! The order is file system locks, `LogInner`, buffer contents, spin locks. Starting a handle may wait for a commit,
//! which waits for open handles: so a thread starts none while it has one, nor while it holds a buffer's guard, nor
//! a lock that another takes within a handle (unless that one too starts its handle under the lock).
//!
//! # What fails
//! A write error in the log or at a checkpoint aborts the journal: nothing more is written, [`Journal::start`] gives `EROFS`,
//! whoever waits for a commit gets `EIO`, and the error is noted in the journal's superblock. The medium stays
//! recoverable to the last commit.
//!
//! # Not done
//! Fast commits, asynchronous commits (written, that is; recovery takes them) and external journals: refused by name or
//! never written. Per-CPU handle counts: `State` is held for some 20 instructions, and a transaction changes blocks that
//! are shared anyway. The old whole-transaction checksum is ignored on recovery.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod buffer;
mod cache;
mod checkpoint;
mod commit;
mod crc;
pub mod format;
mod handle;
mod io;
mod journal;
mod map;
mod recovery;
mod superblock;
#[cfg(not(target_os = "none"))]
pub mod testing;

pub use buffer::{Buffer, ReadGuard, WriteGuard};
pub use cache::{BufferCache, CacheStats};
pub use crc::crc32c;
pub use format::Checksums;
pub use handle::{Handle, OrderedData};
pub use journal::{Journal, Options, Stats, Tid};
pub use map::{Extent, Map};
pub use recovery::{Refusal, Report, pending, recover};

#[cfg(test)]
mod tests;
