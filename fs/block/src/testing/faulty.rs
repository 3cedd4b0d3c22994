//! The disk that fails on demand.

use crate::device::{BlockDevice, Geometry};
use crate::request::{Op, Request};
use crate::stats::Stats;
use abi::Errno;
use core::ops::Range;
use std::string::String;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

/// Which operations a [`Fault`] hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Reads.
    Reads,
    /// Writes, also of zeroes, and discards.
    Writes,
    /// Flushes.
    Flushes,
    /// Everything.
    All,
}

/// A rule: `count` of the matching requests fail with `error`, after `skip` of them have passed.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operations.
    pub what: What,
    /// Requests that touch these sectors (flushes: always).
    pub sectors: Range<u64>,
    /// So many pass before.
    pub skip: u64,
    /// So many fail.
    pub count: u64,
    /// With this.
    pub error: Errno,
}

impl Fault {
    /// Every such request fails with `EIO` from now on.
    pub fn always(what: What) -> Self {
        Fault { what, sectors: 0..u64::MAX, skip: 0, count: u64::MAX, error: Errno::EIO }
    }

    /// The next such request fails with `EIO`, once.
    pub fn once(what: What) -> Self {
        Fault { count: 1, ..Self::always(what) }
    }

    /// Limited to `sectors`.
    pub fn at(self, sectors: Range<u64>) -> Self {
        Fault { sectors, ..self }
    }

    /// After `skip` that pass.
    pub fn after(self, skip: u64) -> Self {
        Fault { skip, ..self }
    }

    fn matches(&self, request: &Request) -> bool {
        let op = match self.what {
            What::All => true,
            What::Reads => request.op == Op::Read,
            What::Writes => request.op.modifies(),
            What::Flushes => request.op == Op::Flush,
        };
        op && (request.op == Op::Flush || (request.sector < self.sectors.end && request.end() > self.sectors.start))
    }

    /// Whether this matching request is one that fails.
    fn hit(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let hit = self.count > 0;
        self.count = self.count.saturating_sub(1);
        hit
    }
}

/// A device in front of another that fails, holds back, or vanishes as a test wants it.
pub struct FaultyDisk {
    inner: Arc<dyn BlockDevice>,
    name: String,
    faults: Mutex<Vec<Fault>>,
    gone: AtomicBool,
    holding: AtomicBool,
    held: Mutex<Vec<Request>>,
    injected: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultyDisk {
    /// A faultless disk in front of `inner`.
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        let name = inner.name().into();
        FaultyDisk {
            inner,
            name,
            faults: Mutex::new(Vec::new()),
            gone: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            held: Mutex::new(Vec::new()),
            injected: AtomicU64::new(0),
        }
    }

    /// Adds a rule.
    pub fn inject(&self, fault: Fault) {
        lock(&self.faults).push(fault);
    }

    /// Removes all rules.
    pub fn heal(&self) {
        lock(&self.faults).clear();
        self.gone.store(false, Ordering::SeqCst);
    }

    /// Fails everything from now on, as a device that was pulled out, and what is held back first.
    pub fn vanish(&self) {
        self.gone.store(true, Ordering::SeqCst);
        self.release();
    }

    /// Holds requests back from now on, so that a test sees them in flight.
    pub fn hold(&self) {
        self.holding.store(true, Ordering::SeqCst);
    }

    /// How many are held back.
    pub fn held(&self) -> usize {
        lock(&self.held).len()
    }

    /// Lets held requests go, in order, and later ones pass.
    pub fn release(&self) {
        self.holding.store(false, Ordering::SeqCst);
        let held = core::mem::take(&mut *lock(&self.held));
        for request in held {
            self.pass(request);
        }
    }

    /// How many failures were injected.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::SeqCst)
    }

    fn pass(&self, request: Request) {
        if self.gone.load(Ordering::SeqCst) {
            self.injected.fetch_add(1, Ordering::SeqCst);
            return request.finish(Err(Errno::EIO));
        }
        let error =
            lock(&self.faults).iter_mut().filter(|f| f.matches(&request)).find_map(|f| f.hit().then_some(f.error));
        match error {
            Some(error) => {
                self.injected.fetch_add(1, Ordering::SeqCst);
                request.finish(Err(error));
            }
            None => self.inner.submit(request),
        }
    }
}

impl BlockDevice for FaultyDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn submit(&self, request: Request) {
        if self.holding.load(Ordering::SeqCst) {
            lock(&self.held).push(request);
        } else {
            self.pass(request);
        }
    }

    fn stats(&self) -> &Stats {
        self.inner.stats()
    }
}
