//! Open files.
//!
//! [`OpenFile`] is what descriptors refer to (POSIX's open file description): flags, a position, and what was opened: an
//! inode at a path, or an object of its own ([`File`]: a pipe, a terminal, a device, a generated file of `/proc`), or both.
//!
//! Reads and writes that use the position hold its lock, so that two threads never get the same bytes; streams
//! (objects that are not [`File::positioned`]) have none and take no lock.

mod description;

pub use description::{OpenFile, SETTABLE};

use crate::attr::Attr;
use crate::inode::{Inode, Mappable};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use platform::{ReadSink, WriteSource};
use sync::WaitQueue;

/// What is asked for or ready (`POLL*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollEvents(pub u32);

impl PollEvents {
    /// Nothing.
    pub const NONE: PollEvents = PollEvents(0);
    /// Readable.
    pub const IN: PollEvents = PollEvents(0x41);
    /// `POLLIN` alone, as event counters, timers and signals say it.
    pub const POLLIN: PollEvents = PollEvents(1);
    /// `POLLOUT` alone.
    pub const POLLOUT: PollEvents = PollEvents(4);
    /// Urgent data.
    pub const PRI: PollEvents = PollEvents(2);
    /// Writable.
    pub const OUT: PollEvents = PollEvents(0x104);
    /// An error is pending.
    pub const ERR: PollEvents = PollEvents(8);
    /// The other side is gone.
    pub const HUP: PollEvents = PollEvents(0x10);
    /// No such descriptor.
    pub const NVAL: PollEvents = PollEvents(0x20);
    /// The other side will not write any more.
    pub const RDHUP: PollEvents = PollEvents(0x2000);

    /// Both.
    #[must_use]
    pub const fn and(self, other: PollEvents) -> PollEvents {
        PollEvents(self.0 | other.0)
    }

    /// `self` if `condition` holds, nothing otherwise.
    #[must_use]
    pub const fn when(self, condition: bool) -> PollEvents {
        if condition { self } else { PollEvents(0) }
    }

    /// Whether they have anything in common.
    pub const fn intersects(self, other: PollEvents) -> bool {
        self.0 & other.0 != 0
    }
}

/// Who polls: collects the queues whose wake-ups may change what [`File::poll`] says.
pub trait Poller {
    /// Watches `queue`, from before the caller looks at its state.
    fn register(&mut self, queue: &Arc<WaitQueue>);
}

/// The circumstances of one read or write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Io {
    /// Where; meaningless for streams.
    pub offset: u64,
    /// Return `EAGAIN` instead of sleeping.
    pub nonblock: bool,
}

/// What mapping an object means.
pub enum Mapping {
    /// Pages of this.
    Object(Arc<dyn Mappable>),
    /// Anonymous memory (`/dev/zero`).
    Anonymous,
}

/// An open object with reads and writes of its own. Calls that sleep return `ERESTARTSYS` when a signal comes.
pub trait File: Any + Send + Sync {
    /// Reads what is there, at least a byte unless at the end.
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        let _ = (io, sink);
        Err(Errno::EINVAL)
    }

    /// Writes.
    fn write(&self, io: Io, source: &mut dyn WriteSource) -> Result<usize> {
        let _ = (io, source);
        Err(Errno::EINVAL)
    }

    /// Whether offsets mean something; otherwise seeking and positioned calls get `ESPIPE`.
    fn positioned(&self) -> bool {
        false
    }

    /// For positioned objects: the size, where `SEEK_END` counts from.
    fn size(&self) -> Result<u64> {
        Err(Errno::EINVAL)
    }

    /// Whether it has no positions though it takes positioned calls: every `lseek` ends at 0 (`/dev/null`, `zero` and `full`).
    fn always_at_start(&self) -> bool {
        false
    }

    /// Device control. `arg` is the caller's third argument as it is.
    fn ioctl(&self, file: &OpenFile, cmd: u32, arg: u64) -> Result<i64> {
        let _ = (file, cmd, arg);
        Err(Errno::ENOTTY)
    }

    /// What is ready. With a poller, first registers every queue that is woken when this changes.
    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        let _ = poller;
        PollEvents::IN.and(PollEvents::OUT)
    }

    /// Whether `epoll_ctl` takes it: files that are always ready are refused (epoll_ctl(2), `EPERM`).
    fn can_poll(&self) -> bool {
        true
    }

    /// What a mapping of it maps.
    fn mmap(&self, file: &OpenFile) -> Result<Mapping> {
        let _ = file;
        Err(Errno::ENODEV)
    }

    /// Makes it durable.
    fn fsync(&self) -> Result<()> {
        Err(Errno::EINVAL)
    }

    /// Attributes of an object that has no inode.
    fn getattr(&self) -> Result<Attr> {
        Err(Errno::EBADF)
    }

    /// What `/proc/PID/fd` shows for an object without a path, as `pipe:[7]`.
    fn name(&self) -> Vec<u8> {
        b"anon_inode:[unknown]".to_vec()
    }

    /// More lines for `/proc/PID/fdinfo` (proc(5)).
    fn fdinfo(&self) -> Vec<u8> {
        Vec::new()
    }

    /// An inode whose opening gives the same thing again, for the links in `/proc/PID/fd` to objects without a path.
    fn to_open_again(&self) -> Option<Arc<dyn Inode>> {
        None
    }

    /// The last descriptor of the open file is gone.
    fn release(&self, file: &OpenFile) {
        let _ = file;
    }
}

impl core::fmt::Debug for dyn File {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("file object")
    }
}
