//! What splice, tee and vmsplice need of a pipe: bytes that are looked at before they are taken, and room that is waited for.
//!
//! # Ideas
//! Bytes on their way from a pipe to a file are *claimed*: they stay in the pipe, and nobody else reads, until the file has
//! taken as many of them as it takes; only those leave the pipe. So a short write loses nothing, and no lock of the pipe is
//! held while the file sleeps. `tee` claims and takes nothing.
//!
//! On the way from a file to a pipe, room is *reserved* before the file is read: what was read then fits, whoever else writes
//! meanwhile, and the call neither waits a second time nor loses bytes to a signal.

use super::{INTERRUPTIBLE, Pipe, PipeEnd};
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use platform::{SliceSink, SliceSource};
use vfs::OpenFile;

/// The pipe behind a file, if it is an end of one.
pub fn of(file: &OpenFile) -> Option<Arc<Pipe>> {
    file.object_as::<PipeEnd>().map(|e| e.pipe.clone())
}

/// Claimed bytes. Dropped, it gives the claim up.
pub struct Claim<'a> {
    pipe: &'a Pipe,
    /// How many.
    pub len: usize,
}

impl Claim<'_> {
    /// The first `n` of them are taken from the pipe.
    pub fn take(self, n: usize) {
        let turn = self.pipe.read_turn.lock();
        self.pipe.head.fetch_add(n.min(self.len), Ordering::AcqRel);
        drop(turn);
        self.pipe.after_read(false);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.pipe.claimed.store(false, Ordering::Release);
        self.pipe.readable.wake_all();
    }
}

/// Reserved room. Dropped, it gives back what was not used.
pub struct Room<'a> {
    pipe: &'a Pipe,
    /// How many bytes.
    pub len: usize,
}

impl Room<'_> {
    /// Puts the first `len` bytes of `data` into the pipe; how many it took. `EPIPE` with SIGPIPE, `ENOMEM`.
    pub fn put(&mut self, data: &[u8]) -> Result<usize> {
        if !self.pipe.is_open_for_reading() {
            crate::task::signal::sigpipe();
            return Err(Errno::EPIPE);
        }
        let turn = self.pipe.write_turn.lock();
        let n = data.len().min(self.len);
        self.pipe.reserved.fetch_sub(n, Ordering::AcqRel);
        self.len -= n;
        let (done, _) = self.pipe.fill(&turn, &mut SliceSource::new(&data[..n]), 1)?;
        drop(turn);
        self.pipe.readable.wake_sync();
        Ok(done)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.len > 0 {
            self.pipe.reserved.fetch_sub(self.len, Ordering::AcqRel);
            self.pipe.writable.wake_all();
        }
    }
}

impl Pipe {
    /// Reserves room for at most `most` bytes, once there is some. `EPIPE` with SIGPIPE, `EAGAIN`, `ERESTARTSYS`.
    pub fn reserve(&self, nonblock: bool, most: usize) -> Result<Room<'_>> {
        loop {
            self.wait_for_room(nonblock)?;
            let turn = self.write_turn.lock();
            let len = self.free().min(most);
            if len > 0 {
                self.reserved.fetch_add(len, Ordering::AcqRel);
                drop(turn);
                return Ok(Room { pipe: self, len });
            }
        }
    }

    /// Copies up to `buf.len()` bytes that wait to `buf` and claims them; `None` at the end of file. `EAGAIN`, `ERESTARTSYS`.
    pub fn claim(&self, nonblock: bool, buf: &mut [u8]) -> Result<Option<Claim<'_>>> {
        loop {
            let open = self.is_open_for_writing();
            if self.can_read() {
                let ring = self.read_turn.lock();
                if self.can_read() {
                    let from = self.head.load(Ordering::Relaxed);
                    let (to, _) = self.copy_out(&ring, from, &mut SliceSink::new(buf));
                    let len = to.wrapping_sub(from);
                    self.claimed.store(true, Ordering::Release);
                    return Ok(Some(Claim { pipe: self, len }));
                }
            } else if !open && self.used() == 0 {
                return Ok(None);
            } else if nonblock {
                return Err(Errno::EAGAIN);
            } else {
                let ready = || (self.can_read() || self.used() == 0 && !self.is_open_for_writing()).then_some(());
                self.readable.wait_until(INTERRUPTIBLE, ready).map_err(|_| Errno::ERESTARTSYS)?;
            }
        }
    }

    /// How many bytes fit, once some do. `EPIPE` with SIGPIPE, `EAGAIN`, `ERESTARTSYS`.
    pub fn wait_for_room(&self, nonblock: bool) -> Result<usize> {
        loop {
            if !self.is_open_for_reading() {
                crate::task::signal::sigpipe();
                return Err(Errno::EPIPE);
            }
            match self.free() {
                0 if nonblock => return Err(Errno::EAGAIN),
                0 => {
                    let ready = || (self.free() > 0 || !self.is_open_for_reading()).then_some(());
                    self.writable.wait_until(INTERRUPTIBLE, ready).map_err(|_| Errno::ERESTARTSYS)?;
                }
                n => return Ok(n),
            }
        }
    }
}
