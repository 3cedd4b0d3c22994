//! Character devices: what opening a device node gives.
//!
//! `/dev` is a tmpfs whose nodes the kernel makes at boot ([`NODES`]); opening a node comes here by its device number
//! (Linux's numbers: Documentation/admin-guide/devices.txt). `/dev/pts` is a file system of its own (`devpts`), since its
//! entries come and go.

use crate::task::job;
use crate::tty::{self, Readiness, Tty, pty::Master};
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use alloc::vec::Vec;
use platform::{ReadSink, SharedBytes, SharedBytesMut, WriteSource};
use sync::{LockClass, SpinLock};
use vfs::{File, FileType, Io, Mapping, OpenFile, Path, PollEvents, Poller, SpecialFiles};

/// A device number as user space sees it.
pub const fn makedev(major: u64, minor: u64) -> u64 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// The major part of a device number.
pub const fn major(dev: u64) -> u64 {
    (dev >> 8) & 0xfff
}

/// The minor part of a device number.
pub const fn minor(dev: u64) -> u64 {
    (dev & 0xff) | (dev >> 12) & 0xfff00
}

/// First major number of pty slaves.
const PTS_MAJOR: u64 = 136;

/// The nodes of `/dev`: name, mode, device number.
pub const NODES: &[(&str, u32, u64)] = &[
    ("null", 0o666, makedev(1, 3)),
    ("zero", 0o666, makedev(1, 5)),
    ("full", 0o666, makedev(1, 7)),
    ("random", 0o666, makedev(1, 8)),
    ("urandom", 0o666, makedev(1, 9)),
    ("kmsg", 0o644, makedev(1, 11)),
    ("tty", 0o666, makedev(5, 0)),
    ("console", 0o600, makedev(5, 1)),
    ("ptmx", 0o666, makedev(5, 2)),
    ("ttyAMA0", 0o600, makedev(204, 64)),
];

/// The device number of pty slave `index`.
pub const fn pts_dev(index: u32) -> u64 {
    makedev(PTS_MAJOR + (index as u64 >> 8), index as u64 & 0xff)
}

/// Opens devices for the VFS.
#[derive(Debug)]
pub struct Devices;

/// The one value of it.
pub static DEVICES: Devices = Devices;

impl SpecialFiles for Devices {
    fn open(&self, path: &Path, kind: FileType, rdev: u64, flags: u32) -> Result<Arc<dyn File>> {
        match kind {
            FileType::Char => open_char(rdev, flags),
            FileType::Block => super::blockdev::open(rdev, flags),
            FileType::Fifo => super::open_fifo(path, flags),
            _ => Err(Errno::ENXIO),
        }
    }
}

fn open_char(rdev: u64, flags: u32) -> Result<Arc<dyn File>> {
    Ok(match (major(rdev), minor(rdev)) {
        (1, 3) => Arc::new(Null),
        (1, 5) => Arc::new(Zero { full: false }),
        (1, 7) => Arc::new(Zero { full: true }),
        (1, minor @ (8 | 9)) => Arc::new(Random { polls: minor == 8 }),
        (1, 11) => Arc::new(Kmsg { at: SpinLock::new(&KMSG, 0) }),
        (5, 0) => Slave::open(job::controlling_tty().ok_or(Errno::ENXIO)?, flags | linux::O_NOCTTY),
        // As on Linux, opening /dev/console never makes it the controlling terminal.
        (5, 1) => Slave::open(tty::console::get().ok_or(Errno::ENXIO)?, flags | linux::O_NOCTTY),
        (204, 64) => Slave::open(tty::console::get().ok_or(Errno::ENXIO)?, flags),
        (5, 2) => Arc::new(MasterFile(tty::pty::open(crate::sched::current().creds().fsuid)?)),
        (m @ PTS_MAJOR..=151, n) => Slave::open(tty::pty::slave(((m - PTS_MAJOR) << 8 | n) as u32)?, flags),
        _ => return Err(Errno::ENXIO),
    })
}

struct Null;

impl File for Null {
    fn read(&self, _: Io, _: &mut dyn ReadSink) -> Result<usize> {
        Ok(0)
    }
    fn write(&self, _: Io, source: &mut dyn WriteSource) -> Result<usize> {
        Ok(source.remaining())
    }
    fn positioned(&self) -> bool {
        true
    }
    fn always_at_start(&self) -> bool {
        true
    }
    fn can_poll(&self) -> bool {
        false
    }
}

struct Zero {
    full: bool,
}

impl File for Zero {
    fn read(&self, _: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        sink.put_zeroes(sink.remaining()).map_err(|_| Errno::EFAULT)
    }
    fn write(&self, _: Io, source: &mut dyn WriteSource) -> Result<usize> {
        if self.full { Err(Errno::ENOSPC) } else { Ok(source.remaining()) }
    }
    fn positioned(&self) -> bool {
        true
    }
    fn always_at_start(&self) -> bool {
        true
    }
    fn can_poll(&self) -> bool {
        false
    }
    fn mmap(&self, _: &OpenFile) -> Result<Mapping> {
        if self.full { Err(Errno::ENODEV) } else { Ok(Mapping::Anonymous) }
    }
}

struct Random {
    /// `/dev/random` may be watched by epoll, `/dev/urandom` may not, as on Linux.
    polls: bool,
}

impl File for Random {
    fn can_poll(&self) -> bool {
        self.polls
    }
    fn read(&self, _: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        let mut done = 0;
        let mut chunk = [0u8; 256];
        while sink.remaining() > 0 {
            let n = sink.remaining().min(chunk.len());
            crate::random::fill(&mut chunk[..n]);
            match sink.put(SharedBytes::from(&chunk[..n])) {
                Ok(m) => {
                    done += m;
                    if m < n {
                        break;
                    }
                }
                Err(_) if done == 0 => return Err(Errno::EFAULT),
                Err(_) => break,
            }
        }
        Ok(done)
    }
    fn write(&self, _: Io, source: &mut dyn WriteSource) -> Result<usize> {
        let mut done = 0;
        let mut chunk = [0u8; 64];
        while source.remaining() > 0 {
            let n = source.get(SharedBytesMut::from(&mut chunk[..])).map_err(|_| Errno::EFAULT)?;
            if n == 0 {
                break;
            }
            crate::random::add_entropy(&chunk[..n]);
            done += n;
        }
        Ok(done)
    }
}

static KMSG: LockClass = LockClass::new("kmsg position", sync::rank::SPIN + 96);

/// The log, from its oldest line on; a write adds a line.
struct Kmsg {
    at: SpinLock<u64>,
}

impl File for Kmsg {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        let from = *self.at.lock();
        let mut chunk = [0u8; 512];
        let want = chunk.len().min(sink.remaining());
        let (next, n) = crate::log::read(from, &mut chunk[..want]);
        if n == 0 {
            return if io.nonblock { Err(Errno::EAGAIN) } else { Ok(0) };
        }
        let put = sink.put(SharedBytes::from(&chunk[..n])).map_err(|_| Errno::EFAULT)?;
        *self.at.lock() = next - (n - put) as u64;
        Ok(put)
    }
    fn write(&self, _: Io, source: &mut dyn WriteSource) -> Result<usize> {
        let mut chunk = [0u8; 256];
        let n = source.get(SharedBytesMut::from(&mut chunk[..])).map_err(|_| Errno::EFAULT)?;
        let text = core::str::from_utf8(&chunk[..n]).map_err(|_| Errno::EINVAL)?;
        crate::info!("{}", text.trim_end());
        Ok(n + source.remaining())
    }
}

/// The events that a terminal's state means.
fn events(r: Readiness) -> PollEvents {
    PollEvents::IN
        .when(r.readable)
        .and(PollEvents::OUT.when(r.writable))
        .and(PollEvents::HUP.when(r.hung_up))
        .and(PollEvents::PRI.when(r.priority))
}

/// A terminal's program side.
#[derive(Debug)]
pub struct Slave(Arc<Tty>);

impl Slave {
    fn open(tty: Arc<Tty>, flags: u32) -> Arc<dyn File> {
        if flags & linux::O_NOCTTY == 0 {
            tty.adopt_if_free();
        }
        tty.opened();
        Arc::new(Slave(tty))
    }
}

impl Drop for Slave {
    fn drop(&mut self) {
        self.0.closed();
    }
}

impl File for Slave {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        self.0.read(sink, io.nonblock)
    }
    fn write(&self, io: Io, source: &mut dyn WriteSource) -> Result<usize> {
        self.0.write(source, io.nonblock)
    }
    fn ioctl(&self, _: &OpenFile, cmd: u32, arg: u64) -> Result<i64> {
        tty::ioctl::slave(&self.0, cmd, arg).map(|v| v as i64)
    }
    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        if let Some(p) = poller {
            p.register(&self.0.waiters);
        }
        let r = self.0.readiness();
        events(r).and(PollEvents::ERR.when(r.hung_up))
    }
}

/// A pty's master side.
struct MasterFile(Master);

impl File for MasterFile {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        self.0.read(sink, io.nonblock)
    }
    fn write(&self, io: Io, source: &mut dyn WriteSource) -> Result<usize> {
        self.0.write(source, io.nonblock)
    }
    fn ioctl(&self, _: &OpenFile, cmd: u32, arg: u64) -> Result<i64> {
        tty::ioctl::master(&self.0, cmd, arg).map(|v| v as i64)
    }
    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        if let Some(p) = poller {
            p.register(&self.0.slave.master_waiters);
        }
        events(self.0.readiness())
    }
    fn name(&self) -> Vec<u8> {
        b"/dev/ptmx".to_vec()
    }
}
