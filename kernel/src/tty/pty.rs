//! Pseudo-terminals: /dev/ptmx makes a pair; the master side talks to the slave's device side.
//!
//! A pair lives as long as either side is open. The table maps slave numbers to pairs for /dev/pts, with each slave's owner and
//! permissions: whoever opened the master owns the slave (devpts' rule), and chown and chmod of it last as long as the pair.

use super::{Device, Readiness, State, Tty};
use abi::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use platform::{ParkOptions, ReadSink, SharedBytes, SharedBytesMut, WriteSource};
use sync::{LockClass, Mutex};
use tty_core::{Events, PacketMode, PtyOutput, Termios};

static TABLE_CLASS: LockClass = LockClass::new("pty table", sync::rank::INODE + 4);
static TABLE: Mutex<BTreeMap<u32, Pair>> = Mutex::new(&TABLE_CLASS, BTreeMap::new());
/// The most pairs at a time.
const MAX_PTYS: u32 = 4096;

/// The group of all slaves, `tty` (5), and their permissions, as distributions mount devpts: others can write a message, not read.
const TTY_GROUP: u32 = 5;
const SLAVE_MODE: u32 = 0o620;

struct Pair {
    slave: Weak<Tty>,
    access: Arc<Access>,
}

/// Who may open a slave by its name. Each value by itself is current; together they are only as consistent as the last change.
#[derive(Debug)]
pub struct Access {
    /// Owner.
    pub uid: AtomicU32,
    /// Group.
    pub gid: AtomicU32,
    /// Permission bits.
    pub mode: AtomicU32,
}

/// The master side of a pair; dropping it hangs the slave up.
#[derive(Debug)]
pub struct Master {
    /// The slave.
    pub slave: Arc<Tty>,
}

/// A new pair, whose slave belongs to `uid`. `ENOSPC` when there are too many, `ENOMEM`.
pub fn open(uid: u32) -> Result<Master> {
    let mut table = TABLE.lock();
    table.retain(|_, p| p.slave.strong_count() > 0);
    let index = (0..MAX_PTYS).find(|i| !table.contains_key(i)).ok_or(Errno::ENOSPC)?;
    let tty = Arc::new(Tty::new(index, Device::Pty(PtyOutput::new(16384)?), Termios::pty(), true)?);
    let access = Access { uid: AtomicU32::new(uid), gid: AtomicU32::new(TTY_GROUP), mode: AtomicU32::new(SLAVE_MODE) };
    table.insert(index, Pair { slave: Arc::downgrade(&tty), access: Arc::new(access) });
    Ok(Master { slave: tty })
}

/// The slave with number `index`: `ENXIO` if there is none or its master is gone, `EIO` while it is locked.
pub fn slave(index: u32) -> Result<Arc<Tty>> {
    let tty = TABLE.lock().get(&index).and_then(|p| p.slave.upgrade()).ok_or(Errno::ENXIO)?;
    if tty.locked() || tty.state.lock().closed {
        return Err(Errno::EIO);
    }
    Ok(tty)
}

/// Who may open the slave with number `index`: `None` if there is no such pair.
pub fn access(index: u32) -> Option<Arc<Access>> {
    TABLE.lock().get(&index).filter(|p| p.slave.strong_count() > 0).map(|p| p.access.clone())
}

/// The numbers of all pairs.
pub fn list() -> Vec<u32> {
    TABLE.lock().iter().filter(|(_, p)| p.slave.strong_count() > 0).map(|(&i, _)| i).collect()
}

impl Drop for Master {
    fn drop(&mut self) {
        self.slave.hang_up();
    }
}

impl Master {
    /// Reads what the slave's side wrote. `EIO` when no slave is open any more and nothing is left.
    pub fn read(&self, sink: &mut dyn ReadSink, nonblock: bool) -> Result<usize> {
        let slave_open = || self.slave.has_slave();
        let mut chunk = [0u8; 512];
        loop {
            let want = sink.remaining().min(chunk.len());
            if want == 0 {
                return Ok(0);
            }
            let n = self.take(&mut chunk[..want]);
            if n > 0 {
                self.slave.waiters.wake();
                return sink.put(SharedBytes::from(&chunk[..n])).map_err(|_| Errno::EFAULT);
            }
            if !slave_open() {
                return Err(Errno::EIO);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            let options = ParkOptions { interruptible: true, deadline_ns: None };
            let ready = || (self.readiness().readable || !slave_open()).then_some(());
            if self.slave.master_waiters.wait_until(options, ready).is_err() {
                return Err(Errno::ERESTARTSYS);
            }
        }
    }

    /// Takes what is queued: in packet mode a status byte alone, or a zero before data.
    fn take(&self, chunk: &mut [u8]) -> usize {
        let mut s = self.slave.state.lock();
        let State { device, packet, discipline, .. } = &mut *s;
        let Device::Pty(queue) = device else { return 0 };
        if let Some(status) = packet.take() {
            chunk[0] = status;
            return 1;
        }
        if queue.is_empty() {
            return 0;
        }
        let head = usize::from(packet.is_on());
        if head == 1 {
            chunk[0] = PacketMode::DATA;
        }
        let n = head + queue.ring().pop(&mut chunk[head..]);
        discipline.flush_echo(queue);
        n
    }

    /// Types `source` into the slave.
    pub fn write(&self, source: &mut dyn WriteSource, nonblock: bool) -> Result<usize> {
        let mut chunk = [0u8; 512];
        let mut written = 0;
        loop {
            let n = source.get(SharedBytesMut::from(&mut chunk[..])).map_err(|_| Errno::EFAULT)?;
            if n == 0 {
                return Ok(written);
            }
            let mut at = 0;
            while at < n {
                let taken = self.slave.input(&chunk[at..n]);
                at += taken;
                written += taken;
                if taken > 0 {
                    continue;
                }
                if nonblock {
                    return if written > 0 { Ok(written) } else { Err(Errno::EAGAIN) };
                }
                let options = ParkOptions { interruptible: true, deadline_ns: None };
                let room = || (self.slave.state.lock().pending.room() > 0).then_some(());
                if self.slave.master_waiters.wait_until(options, room).is_err() {
                    return if written > 0 { Ok(written) } else { Err(Errno::ERESTARTSYS) };
                }
            }
        }
    }

    /// What poll sees on the master's side.
    pub fn readiness(&self) -> Readiness {
        let slave_open = self.slave.has_slave();
        let s = self.slave.state.lock();
        let queued = matches!(&s.device, Device::Pty(q) if !q.is_empty());
        Readiness {
            readable: queued || s.packet.pending(),
            writable: s.pending.room() > 0,
            hung_up: !slave_open,
            priority: s.packet.pending(),
        }
    }

    /// TIOCPKT.
    pub fn set_packet_mode(&self, on: bool) {
        self.slave.state.lock().packet.set(on);
    }

    /// TIOCGPKT.
    pub fn packet_mode(&self) -> bool {
        self.slave.state.lock().packet.is_on()
    }

    /// TIOCSPTLCK.
    pub fn set_locked(&self, locked: bool) {
        self.slave.locked.store(locked, Ordering::Relaxed);
    }

    /// TIOCGPTLCK.
    pub fn is_locked(&self) -> bool {
        self.slave.locked()
    }

    /// TIOCSIG: raises a signal in the slave's foreground group. `EINVAL` for others than INT, QUIT and TSTP.
    pub fn signal(&self, signal: u64) -> Result<()> {
        let event = match signal {
            2 => Events::SIG_INT,
            3 => Events::SIG_QUIT,
            20 => Events::SIG_TSTP,
            _ => return Err(Errno::EINVAL),
        };
        self.slave.with(|_| ((), event));
        Ok(())
    }
}
