//! Files as processes see them: descriptors, and the objects behind them.

pub mod base;
pub mod blockdev;
pub mod datadisk;
pub mod devfs;
pub mod epoll;
pub mod eventfd;
pub mod inotify;
pub mod pidfd;
pub mod pipe;
pub mod poll;
pub mod procfs;
pub mod root;
pub mod signalfd;
pub mod synth;
pub mod sysfs;
pub mod table;
pub mod timerfd;
pub mod unnamed;
pub mod user;

pub use root::init_root;
pub use table::FileTable;
pub use vfs::FsContext;

pub use pipe::open_fifo;
pub use unnamed::unnamed_file;

use crate::sched;
use abi::Result;
use alloc::sync::Arc;
use vfs::{Attr, FileType, Meta, OpenFile};

/// The device number that objects without an inode show in `stat`.
const ANON_DEV: u64 = 15;

/// The attributes of anonymous objects (`anon_inode:`), which all share one nameless inode, as on Linux.
pub fn anonymous_attr() -> Attr {
    Attr { nlink: 1, blksize: 4096, ..Attr::of(&Meta::new(ANON_DEV, 1, FileType::Regular, 0o600, 0, 0)) }
}

/// Who owns what the calling thread makes.
fn user_uid_gid() -> (u32, u32) {
    let creds = sched::current().creds();
    (creds.fsuid, creds.fsgid)
}

/// `F_GETPIPE_SZ`, and `F_SETPIPE_SZ` with a size.
pub fn pipe_size(file: &Arc<OpenFile>, to: Option<usize>) -> Result<usize> {
    match to {
        Some(bytes) => pipe::set_size(file, bytes),
        None => pipe::size(file),
    }
}
