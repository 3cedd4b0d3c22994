//! Signals as a file (signalfd(2)).
//!
//! As on Linux the file holds a mask only; reading takes what waits for the *reading* thread and its process, and polling
//! asks for the thread that polls. Sleepers wait on the queue of their own process ([`crate::task::watch`]), which is woken
//! under the signal lock, after the signal was put there.

use super::anonymous_attr;
use crate::sched::current;
use crate::task::signal::{Detail, KERNEL_ONLY, SigInfo, send};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use platform::{ParkOptions, ReadSink, SharedBytes};
use vfs::{Attr, File, Io, PollEvents, Poller};

/// Size of `struct signalfd_siginfo`.
const RECORD: usize = 128;

/// A signal file.
#[derive(Debug)]
pub struct SignalFd {
    mask: AtomicU64,
}

impl SignalFd {
    /// One for the signals in `mask`.
    pub fn new(mask: u64) -> Arc<SignalFd> {
        Arc::new(SignalFd { mask: AtomicU64::new(mask & !KERNEL_ONLY) })
    }

    /// Changes the signals it is for. Sleepers look again.
    pub fn set_mask(&self, mask: u64) {
        self.mask.store(mask & !KERNEL_ONLY, Ordering::Relaxed);
        current().process.signal_queue().wake_all();
    }

    fn mask(&self) -> u64 {
        self.mask.load(Ordering::Relaxed)
    }
}

/// The record that a signal is read as (signalfd(2)).
fn record(i: &SigInfo) -> [u8; RECORD] {
    let mut b = [0; RECORD];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &i.signo.to_le_bytes());
    put(4, &i.errno.to_le_bytes());
    put(8, &i.code.to_le_bytes());
    match i.detail {
        Detail::None => {}
        Detail::Sender { pid, uid, value } => {
            put(12, &pid.0.to_le_bytes());
            put(16, &uid.to_le_bytes());
            put(44, &(value as u32).to_le_bytes());
            put(48, &value.to_le_bytes());
        }
        Detail::Child { pid, uid, status, ticks } => {
            put(12, &pid.0.to_le_bytes());
            put(16, &uid.to_le_bytes());
            put(40, &status.to_le_bytes());
            put(56, &ticks.to_le_bytes());
        }
        Detail::Fault { addr } => put(72, &addr.to_le_bytes()),
        Detail::Timer { id, overrun, value } => {
            put(24, &id.to_le_bytes());
            put(32, &overrun.to_le_bytes());
            put(44, &(value as u32).to_le_bytes());
            put(48, &value.to_le_bytes());
        }
    }
    b
}

impl File for SignalFd {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        if sink.remaining() < RECORD {
            return Err(Errno::EINVAL);
        }
        let me = current();
        let first = match send::take_pending(me, self.mask()) {
            Some(i) => i,
            None if io.nonblock => return Err(Errno::EAGAIN),
            None => {
                let sleep = ParkOptions { interruptible: true, deadline_ns: None };
                let queue = me.process.signal_queue();
                queue.wait_until(sleep, || send::take_pending(me, self.mask())).map_err(|_| Errno::ERESTARTSYS)?
            }
        };
        let mut next = Some(first);
        let mut done = 0;
        while let Some(i) = next {
            match sink.put(SharedBytes::from(&record(&i)[..])) {
                Ok(RECORD) => done += RECORD,
                _ if done > 0 => break,
                _ => return Err(Errno::EFAULT),
            }
            next = if sink.remaining() < RECORD { None } else { send::take_pending(me, self.mask()) };
        }
        Ok(done)
    }

    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        let me = current();
        if let Some(p) = poller {
            p.register(me.process.signal_queue());
        }
        PollEvents::POLLIN.when(send::pending_of(me) & self.mask() != 0)
    }

    fn getattr(&self) -> Result<Attr> {
        Ok(anonymous_attr())
    }

    fn name(&self) -> Vec<u8> {
        b"anon_inode:[signalfd]".to_vec()
    }

    fn fdinfo(&self) -> Vec<u8> {
        alloc::format!("sigmask:\t{:016x}\n", self.mask()).into_bytes()
    }
}
