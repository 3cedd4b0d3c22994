//! The queue in front of a device: what every driver would otherwise do again.
//!
//! [`Queue`] is a [`BlockDevice`] over a [`Hardware`] that knows only how to start one transfer. It splits requests that
//! are larger than the hardware takes, joins neighbours while they wait, keeps as many transfers in the hardware as it has
//! room for, counts, sends a flush behind a write that wants FUA where the hardware has none, and answers everything
//! with `EIO` once the hardware is gone.
//!
//! **Merging.** Only what waits can merge: requests of one [`BlockDevice::submit_batch`], and those that found the hardware
//! full. An idle device gets a lone request at once; nothing is held back in the hope of a neighbour. A merged
//! transfer that fails is split and its requests tried again one by one, so that nobody gets another's error.
//!
//! **Flushes** that wait together become one: each is started after all of them were submitted, which is all that a flush
//! promises.
//!
//! A flush of a device that has completed no write since the last one began is answered at once.
//!
//! **Order.** Within a priority first come, first served; an urgent request overtakes others that wait. With full hardware
//! a background request can wait as long as better ones keep coming; every eighth start is therefore of the lowest
//! priority that waits.
//!
//! **Locking.** The waiting lists are under one interrupt-safe lock, held while transfers are handed to the hardware (whose
//! own lock ranks behind it). Completions run without it. Nothing here sleeps.
//!
//! What was not done: an elevator. Disks of virtual machines have no heads, and the host sorts.

use crate::device::{BlockDevice, Geometry};
use crate::request::{Op, Priority, Request};
use crate::split;
use crate::stats::{Kind, Stats};
use abi::{Errno, Result};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use smallvec::SmallVec;
use sync::{IrqLock, LockClass};

/// The class of the lock in each queue; what hardware takes inside `start` ranks behind it.
pub static QUEUE_CLASS: LockClass = LockClass::new("block queue", sync::rank::PAGE_TABLE + 20);

/// What the hardware is asked to do at once: one request, or several that are neighbours.
#[derive(Debug)]
pub struct Transfer {
    /// What. `Write { fua: true }` only where the hardware has FUA.
    pub op: Op,
    /// First sector.
    pub sector: u64,
    /// How many sectors.
    pub sectors: u64,
    /// How many segments.
    pub segments: usize,
    /// The requests, in the order of their sectors.
    pub requests: SmallVec<[Request; 1]>,
    /// When it was handed to the hardware (`CLOCK_MONOTONIC`, nanoseconds).
    pub began: u64,
    /// Never to be merged (again).
    alone: bool,
    /// Of a flush: how many changes of the medium had ended when it began.
    covers: u64,
}

impl Transfer {
    fn new(request: Request) -> Box<Self> {
        Box::new(Transfer {
            op: request.op,
            sector: request.sector,
            sectors: request.sectors(),
            segments: request.segments.len(),
            requests: SmallVec::from_buf([request]),
            began: 0,
            alone: false,
            covers: 0,
        })
    }

    fn priority(&self) -> Priority {
        self.requests.iter().map(|r| r.priority).max().unwrap_or_default()
    }

    /// Takes `request` in if it is a neighbour and the sum keeps to the limits; otherwise gives it back.
    fn join(&mut self, request: Request, limits: &Geometry) -> core::result::Result<(), Request> {
        if self.alone || self.op != request.op {
            return Err(request);
        }
        if self.op == Op::Flush {
            self.requests.push(request);
            return Ok(());
        }
        let sectors = self.sectors + request.sectors();
        let segments = self.segments + request.segments.len();
        let fits = match self.op {
            Op::Discard => sectors <= u64::from(limits.max_discard_sectors),
            Op::WriteZeroes => sectors <= u64::from(limits.max_zeroes_sectors),
            _ => {
                sectors <= u64::from(limits.max_bytes >> crate::SECTOR_SHIFT)
                    && segments <= limits.max_segments as usize
            }
        };
        if !fits {
            return Err(request);
        }
        if request.sector == self.sector + self.sectors {
            self.requests.push(request);
        } else if request.end() == self.sector {
            self.sector = request.sector;
            self.requests.insert(0, request);
        } else {
            return Err(request);
        }
        self.sectors = sectors;
        self.segments = segments;
        Ok(())
    }
}

/// Why hardware did not start a transfer.
#[derive(Debug)]
pub enum Refused {
    /// There is no room now; room comes with a completion, after which [`Queue::completed`] is called.
    Full(Box<Transfer>),
    /// The device is broken or gone, and will not come back.
    Gone(Box<Transfer>),
}

/// What a driver provides.
pub trait Hardware: Send + Sync {
    /// Limits and abilities; `max_segments` and such are kept to by the queue.
    fn geometry(&self) -> Geometry;

    /// Starts `transfer`; its end is reported by [`Queue::completed`], never from within this call. Called with the queue's
    /// lock held: never sleeps.
    fn start(&self, transfer: Box<Transfer>) -> core::result::Result<(), Refused>;

    /// Transfers were started: tell the device, if it must be told. Called without locks.
    fn kick(&self);
}

/// How far back a new request looks for a neighbour.
const MERGE_SCAN: usize = 8;

#[derive(Default)]
struct Waiting {
    /// By priority.
    lists: [VecDeque<Box<Transfer>>; 3],
    starts: u32,
}

impl Waiting {
    fn add(&mut self, request: Request, limits: &Geometry, stats: &Stats) {
        let list = &mut self.lists[request.priority as usize];
        let mut request = request;
        for transfer in list.iter_mut().rev().take(MERGE_SCAN) {
            let kind = Kind::from(request.op);
            match transfer.join(request, limits) {
                Ok(()) => return stats.merged(kind),
                Err(back) => request = back,
            }
        }
        list.push_back(Transfer::new(request));
    }

    fn next(&mut self) -> Option<Box<Transfer>> {
        self.starts = self.starts.wrapping_add(1);
        if self.starts.is_multiple_of(8) {
            return self.lists.iter_mut().find_map(VecDeque::pop_front);
        }
        self.lists.iter_mut().rev().find_map(VecDeque::pop_front)
    }

    fn put_back(&mut self, transfer: Box<Transfer>) {
        self.lists[transfer.priority() as usize].push_front(transfer);
    }
}

/// A device made of a queue and its hardware.
pub struct Queue<H> {
    name: String,
    hardware: H,
    waiting: IrqLock<Waiting>,
    stats: Stats,
    gone: AtomicBool,
    /// Changes of the medium that have ended, and how many of them a flush has made durable.
    changed: AtomicU64,
    flushed: AtomicU64,
}

impl<H: Hardware> Queue<H> {
    /// An empty queue.
    pub fn new(name: &str, hardware: H) -> Self {
        Queue {
            name: name.into(),
            hardware,
            waiting: IrqLock::new(&QUEUE_CLASS, Waiting::default()),
            stats: Stats::new(),
            gone: AtomicBool::new(false),
            // What was written before the queue was there is not known to be durable.
            changed: AtomicU64::new(1),
            flushed: AtomicU64::new(0),
        }
    }

    /// The hardware.
    pub fn hardware(&self) -> &H {
        &self.hardware
    }

    /// `transfer` has ended with `result`. Call [`Queue::run`] after the last of several. Context: any, without locks.
    pub fn completed(&self, mut transfer: Box<Transfer>, result: Result<()>) {
        // Counted before anybody hears of it; also where it failed, since some of it may have been done.
        if transfer.op.modifies() {
            self.changed.fetch_add(1, Ordering::SeqCst);
        } else if transfer.op == Op::Flush && result.is_ok() {
            self.flushed.fetch_max(transfer.covers, Ordering::SeqCst);
        }
        if result.is_err() && transfer.requests.len() > 1 && transfer.op != Op::Flush && !self.is_gone() {
            return self.retry_singly(&mut transfer);
        }
        // A flush may carry writes that wanted FUA: to their submitters they are writes.
        let wants_flush = transfer.op != Op::Flush && result.is_ok() && !self.hardware.geometry().fua;
        for request in transfer.requests.drain(..) {
            if wants_flush && request.op == (Op::Write { fua: true }) && self.hardware.geometry().flush {
                self.flush_behind(request, transfer.began);
                continue;
            }
            self.stats.end(Kind::from(request.op), request.sectors(), transfer.began, result.is_ok());
            request.finish(result);
        }
    }

    fn retry_singly(&self, transfer: &mut Transfer) {
        let mut waiting = self.waiting.lock();
        for request in transfer.requests.drain(..).rev() {
            self.stats.cancel();
            let mut single = Transfer::new(request);
            single.alone = true;
            waiting.put_back(single);
        }
    }

    /// The write `request` is done, but not durable yet.
    fn flush_behind(&self, request: Request, began: u64) {
        self.stats.cancel();
        let mut transfer = Transfer::new(request);
        transfer.op = Op::Flush;
        transfer.began = began;
        let mut waiting = self.waiting.lock();
        let list = &mut waiting.lists[transfer.priority() as usize];
        match list.iter_mut().find(|t| t.op == Op::Flush) {
            Some(flush) => flush.requests.extend(transfer.requests.drain(..)),
            None => list.push_back(transfer),
        }
    }

    /// Starts what waits, as far as the hardware has room. Context: any, without locks.
    pub fn run(&self) {
        let mut started = false;
        let mut dead: SmallVec<[Box<Transfer>; 4]> = SmallVec::new();
        let mut waiting = self.waiting.lock();
        while let Some(mut transfer) = waiting.next() {
            transfer.began = self.stats.begin_many(transfer.requests.len() as u64);
            transfer.covers = self.changed.load(Ordering::SeqCst);
            match self.hardware.start(transfer) {
                Ok(()) => started = true,
                Err(Refused::Full(transfer)) => {
                    self.stats.cancel_many(transfer.requests.len() as u64);
                    waiting.put_back(transfer);
                    break;
                }
                Err(Refused::Gone(transfer)) => {
                    self.gone.store(true, Ordering::Release);
                    dead.push(transfer);
                }
            }
        }
        drop(waiting);
        if started {
            self.hardware.kick();
        }
        for transfer in dead {
            self.completed(transfer, Err(Errno::EIO));
        }
    }

    /// How many transfers wait.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().lists.iter().map(VecDeque::len).sum()
    }

    /// Whether every write that has ended is durable.
    fn is_flushed(&self) -> bool {
        self.flushed.load(Ordering::SeqCst) == self.changed.load(Ordering::SeqCst)
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Takes `request` into the waiting lists, or ends it at once.
    fn take(&self, request: Request, limits: &Geometry) {
        if let Err(e) = limits.check(&request) {
            return request.finish(Err(e));
        }
        if self.is_gone() {
            return request.finish(Err(Errno::EIO));
        }
        match request.op {
            Op::Flush if !limits.flush || self.is_flushed() => request.finish(Ok(())),
            _ if split::needed(&request, limits) => {
                let parts = split::split(request, limits);
                let mut waiting = self.waiting.lock();
                parts.into_iter().for_each(|part| waiting.add(part, limits, &self.stats));
            }
            _ => self.waiting.lock().add(request, limits, &self.stats),
        }
    }
}

impl<H: Hardware> BlockDevice for Queue<H> {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.hardware.geometry()
    }

    fn submit(&self, request: Request) {
        self.take(request, &self.geometry());
        self.run();
    }

    fn submit_batch(&self, requests: &mut Vec<Request>) {
        let limits = self.geometry();
        for request in requests.drain(..) {
            self.take(request, &limits);
        }
        self.run();
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}
