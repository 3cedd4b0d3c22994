//! The disk that remembers.
//!
//! What a cut can leave: everything that had completed before the last flush was asked for, every completed FUA write, and
//! *any* subset of the rest, block by block. A block is never torn. Of two writes of one block that both reached the
//! medium the later stays: no device lets a completed write be overtaken by an older one.

use crate::device::{BlockDevice, Geometry};
use crate::memdisk::MemDisk;
use crate::request::{Op, Request};
use crate::stats::Stats;
use crate::testing::OverlayDisk;
use crate::{SECTOR_SHIFT, SECTOR_SIZE};
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::Vec;

/// One thing that happened to a [`RecordingDisk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A write of these bytes. (A discard or a write of zeroes is a write of zeroes.)
    Write {
        /// First sector.
        sector: u64,
        /// The data.
        data: Arc<[u8]>,
        /// Durable by itself.
        fua: bool,
    },
    /// A flush: all before it is durable.
    Flush,
    /// The test's own mark ([`RecordingDisk::mark`]), such as "this fsync has returned".
    Mark(u64),
}

/// A memory disk that remembers all that was done to it since it was made (or since [`RecordingDisk::start`]).
#[derive(Debug)]
pub struct RecordingDisk {
    disk: MemDisk,
    /// The image at the start, and what happened since. Held over each write, so that the events' order is the disk's.
    state: Mutex<Recording>,
}

impl RecordingDisk {
    /// A disk that holds `image`, its blocks `logical_block` bytes.
    ///
    /// # Panics
    /// Where memory is exhausted.
    pub fn new(image: Vec<u8>, logical_block: u32) -> Self {
        let geometry = Geometry { logical_block, ..Geometry::simple((image.len() / SECTOR_SIZE) as u64) };
        let disk = MemDisk::with_geometry("recording", geometry);
        assert!(crate::write_at(&disk, 0, &image).is_ok(), "no memory");
        let recording = Recording { base: image, events: Vec::new(), block: logical_block as usize };
        RecordingDisk { disk, state: Mutex::new(recording) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Recording> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what happened so far: the disk as it is now becomes the recording's base, all of it durable.
    pub fn start(&self) {
        let mut state = self.state();
        state.base = self.disk.to_image();
        state.events.clear();
    }

    /// Notes `mark` among the events.
    pub fn mark(&self, mark: u64) {
        self.state().events.push(Event::Mark(mark));
    }

    /// How many events there are so far.
    pub fn len(&self) -> usize {
        self.state().events.len()
    }

    /// Whether nothing has happened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What happened, as a copy (the data is shared).
    pub fn recording(&self) -> Recording {
        self.state().clone()
    }

    /// The disk as running software sees it.
    pub fn to_image(&self) -> Vec<u8> {
        self.disk.to_image()
    }
}

impl BlockDevice for RecordingDisk {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn submit(&self, request: Request) {
        if self.geometry().check(&request).is_ok() {
            let event = match request.op {
                Op::Read => None,
                Op::Flush => Some(Event::Flush),
                Op::Write { fua } => {
                    let mut data = std::vec![0; request.bytes() as usize];
                    let mut at = 0;
                    for s in &request.segments {
                        at += s.page.bytes(s.offset as usize, s.len as usize).copy_to(&mut data[at..]);
                    }
                    Some(Event::Write { sector: request.sector, data: data.into(), fua })
                }
                Op::Discard | Op::WriteZeroes => {
                    let data = std::vec![0; (request.count << SECTOR_SHIFT) as usize].into();
                    Some(Event::Write { sector: request.sector, data, fua: false })
                }
            };
            if let Some(event) = event {
                self.state().events.push(event);
            }
        }
        self.disk.submit(request);
    }

    fn stats(&self) -> &Stats {
        self.disk.stats()
    }
}

/// What happened to a disk.
#[derive(Clone, Debug)]
pub struct Recording {
    base: Vec<u8>,
    events: Vec<Event>,
    block: usize,
}

impl Recording {
    /// The events in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The marks that had been set before event `cut`.
    pub fn marks_before(&self, cut: usize) -> impl Iterator<Item = u64> + '_ {
        self.events[..cut].iter().filter_map(|e| if let Event::Mark(m) = e { Some(*m) } else { None })
    }

    /// The medium after a cut when `cut` events had happened (0 to their number): durable writes are there; of the others,
    /// block `b` of event `e` is there if `keep(e, b)`. (For many cuts of one recording use [`Recording::cursor`].)
    pub fn image(&self, cut: usize, keep: impl FnMut(usize, usize) -> bool) -> Vec<u8> {
        let mut cursor = self.cursor();
        cursor.seek(cut);
        cursor.image(keep)
    }

    /// A cursor at cut 0.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { recording: self, durable: Arc::new(self.base.clone()), flushed: 0, cut: 0 }
    }
}

fn apply(image: &mut [u8], sector: u64, data: &[u8]) {
    let at = sector as usize * SECTOR_SIZE;
    image[at..at + data.len()].copy_from_slice(data);
}

/// Walks the cuts of a recording forwards, keeping the durable image up to date.
#[derive(Debug)]
pub struct Cursor<'a> {
    recording: &'a Recording,
    durable: Arc<Vec<u8>>,
    /// Events before this one are all in `durable`.
    flushed: usize,
    cut: usize,
}

impl Cursor<'_> {
    /// Moves to the moment when `cut` events had happened. Only forwards; cut off at the last event.
    pub fn seek(&mut self, cut: usize) {
        let cut = cut.min(self.recording.events.len());
        let last = self.recording.events[..cut].iter().rposition(|e| *e == Event::Flush);
        for event in &self.recording.events[self.flushed..last.unwrap_or(0).max(self.flushed)] {
            if let Event::Write { sector, data, .. } = event {
                // Copied only while a disk that shares it is alive.
                apply(Arc::make_mut(&mut self.durable).as_mut_slice(), *sector, data);
            }
        }
        self.flushed = self.flushed.max(last.unwrap_or(0));
        self.cut = cut.max(self.cut);
    }

    /// How many events have happened here.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Whether there is no later moment.
    pub fn at_end(&self) -> bool {
        self.cut == self.recording.events.len()
    }

    /// How many blocks are written here but not durable: each is there or not after a cut.
    pub fn volatile_blocks(&self) -> usize {
        self.recording.events[self.flushed..self.cut]
            .iter()
            .map(|e| if let Event::Write { data, fua: false, .. } = e { data.len() / self.recording.block } else { 0 })
            .sum()
    }

    /// The medium after a cut here; `keep(event, block of it)` decides about what was not durable.
    pub fn image(&self, keep: impl FnMut(usize, usize) -> bool) -> Vec<u8> {
        self.disk(keep).to_image()
    }

    /// As [`Cursor::image`], as a disk that shares the durable image.
    pub fn disk(&self, mut keep: impl FnMut(usize, usize) -> bool) -> OverlayDisk {
        let disk = OverlayDisk::new(self.durable.clone());
        let block = self.recording.block;
        for (index, event) in self.recording.events[..self.cut].iter().enumerate().skip(self.flushed) {
            let Event::Write { sector, data, fua } = event else { continue };
            for (piece, bytes) in data.chunks(block).enumerate() {
                if *fua || keep(index, piece) {
                    disk.put(sector + (piece * block / SECTOR_SIZE) as u64, bytes);
                }
            }
        }
        disk
    }
}
