//! Requests.
//!
//! A request owns references to the pages it moves, so that they live until the device is done with them whatever
//! becomes of the submitter. It is completed exactly once: by [`Request::finish`], or with `EIO` by being dropped, so that
//! no path through a driver can leave a waiter hanging.

use crate::{SECTOR_SHIFT, SECTOR_SIZE};
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::fmt;
use platform::{PAGE_SIZE, Page};
use smallvec::SmallVec;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the segments from the medium.
    Read,
    /// Put the segments onto the medium.
    Write {
        /// Durable on completion (force unit access).
        fua: bool,
    },
    /// Make all writes durable that completed before this was submitted.
    Flush,
    /// The sectors' content is of no interest any more; they read as anything, mostly zeroes.
    Discard,
    /// The sectors read as zeroes afterwards.
    WriteZeroes,
}

impl Op {
    /// Whether it changes the medium.
    pub fn modifies(self) -> bool {
        matches!(self, Op::Write { .. } | Op::Discard | Op::WriteZeroes)
    }

    /// Whether it moves data through segments.
    pub fn has_data(self) -> bool {
        matches!(self, Op::Read | Op::Write { .. })
    }
}

/// Who is served first when a queue has to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Write-back and readahead.
    Background,
    /// Somebody waits.
    #[default]
    Normal,
    /// Many wait: journal commits.
    Urgent,
}

/// A piece of a page: part of a request's data.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The page, kept alive by the request.
    pub page: Page,
    /// First byte in it: a multiple of 4.
    pub offset: u32,
    /// How many bytes: a multiple of the sector size, at most to the page's end.
    pub len: u32,
}

impl Segment {
    /// All of `page`.
    pub fn whole(page: Page) -> Self {
        Segment { page, offset: 0, len: PAGE_SIZE as u32 }
    }
}

/// A request's scatter list.
pub type Segments = SmallVec<[Segment; 4]>;

/// Who is told that a request is done.
pub trait Complete: Send + Sync {
    /// `request` has ended with `result`. For a read that failed, the segments' contents are undefined. Called once, maybe
    /// in interrupt context and maybe before `submit` returned: short, never sleeps, takes only locks that mask
    /// interrupts. It may submit further requests.
    fn complete(&self, request: &Request, result: Result<()>);
}

/// One thing asked of a device.
pub struct Request {
    /// What.
    pub op: Op,
    /// Where, in sectors of 512 bytes. Of no meaning for a flush.
    pub sector: u64,
    /// The data of reads and writes.
    pub segments: Segments,
    /// For `Discard` and `WriteZeroes`: how many sectors.
    pub count: u64,
    /// Who first.
    pub priority: Priority,
    /// The submitter's own, untouched: to tell its requests apart.
    pub cookie: usize,
    done: Option<Arc<dyn Complete>>,
}

impl Request {
    /// A read into `segments`.
    pub fn read(sector: u64, segments: Segments, done: Arc<dyn Complete>, cookie: usize) -> Self {
        Self::make(Op::Read, sector, segments, 0, done, cookie)
    }

    /// A write of `segments`.
    pub fn write(sector: u64, segments: Segments, fua: bool, done: Arc<dyn Complete>, cookie: usize) -> Self {
        Self::make(Op::Write { fua }, sector, segments, 0, done, cookie)
    }

    /// A flush.
    pub fn flush(done: Arc<dyn Complete>, cookie: usize) -> Self {
        Self::make(Op::Flush, 0, Segments::new(), 0, done, cookie)
    }

    /// A discard of `count` sectors.
    pub fn discard(sector: u64, count: u64, done: Arc<dyn Complete>, cookie: usize) -> Self {
        Self::make(Op::Discard, sector, Segments::new(), count, done, cookie)
    }

    /// Zeroes onto `count` sectors.
    pub fn write_zeroes(sector: u64, count: u64, done: Arc<dyn Complete>, cookie: usize) -> Self {
        Self::make(Op::WriteZeroes, sector, Segments::new(), count, done, cookie)
    }

    fn make(op: Op, sector: u64, segments: Segments, count: u64, done: Arc<dyn Complete>, cookie: usize) -> Self {
        Request { op, sector, segments, count, priority: Priority::Normal, cookie, done: Some(done) }
    }

    /// The same with another priority.
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Its data's length in bytes.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| u64::from(s.len)).sum()
    }

    /// How many sectors it covers.
    pub fn sectors(&self) -> u64 {
        if self.op.has_data() { self.bytes() >> SECTOR_SHIFT } else { self.count }
    }

    /// The sector after its last.
    pub fn end(&self) -> u64 {
        self.sector.saturating_add(self.sectors())
    }

    /// Whether every segment lies in its page and is made of whole sectors.
    pub fn is_well_formed(&self) -> bool {
        self.segments.iter().all(|s| {
            s.len != 0
                && (s.len as usize).is_multiple_of(SECTOR_SIZE)
                && s.offset.is_multiple_of(4)
                && s.offset as usize + s.len as usize <= PAGE_SIZE
        })
    }

    /// Ends it: its completion object is told `result`.
    pub fn finish(mut self, result: Result<()>) {
        self.complete(result);
    }

    fn complete(&mut self, result: Result<()>) {
        if let Some(done) = self.done.take() {
            done.complete(self, result);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.complete(Err(Errno::EIO));
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("op", &self.op)
            .field("sector", &self.sector)
            .field("sectors", &self.sectors())
            .finish_non_exhaustive()
    }
}
