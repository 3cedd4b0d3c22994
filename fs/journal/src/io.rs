//! Blocks to and from the device. Buffers are heap memory (so that file systems get slices of them without unsafe code);
//! transfers go through pages of their own, which the device owns until it is done. The copy costs about a tenth of a
//! microsecond a block, and is what gives a commit its stable snapshot.

use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::{Batch, BlockDevice, Priority, Request, SECTOR_SHIFT, Segment, Segments};
use platform::{PAGE_SIZE, Page, SharedBytes};

/// Reads the block into `buf`, whose length is the block size. May sleep.
pub fn read_block(device: &dyn BlockDevice, block: u64, buf: &mut [u8]) -> Result<()> {
    let at = block.checked_mul(buf.len() as u64).ok_or(Errno::EIO)?;
    block::read_at(device, at, buf)
}

/// A request is sent once it has this many bytes.
const REQUEST_BYTES: usize = 256 * 1024;
/// No more than this is under way.
const FLIGHT_BYTES: usize = 4 << 20;

/// Writes many blocks: neighbours become one request, and all are under way together. [`Writer::finish`] waits for them;
/// a writer that is dropped leaves its last requests unsent.
pub struct Writer<'d> {
    device: &'d dyn BlockDevice,
    block_size: usize,
    batch: Arc<Batch>,
    requests: Vec<Request>,
    /// The request being gathered: first block, block after the last, data.
    run: Option<(u64, u64, Segments)>,
    flight: usize,
    priority: Priority,
}

impl<'d> Writer<'d> {
    /// A writer of blocks of `block_size` bytes.
    pub fn new(device: &'d dyn BlockDevice, block_size: usize) -> Self {
        Writer {
            device,
            block_size,
            batch: Batch::new(),
            requests: Vec::new(),
            run: None,
            flight: 0,
            priority: Priority::Normal,
        }
    }

    /// The same with requests of this priority.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Copies `data`, one block, and will write it to `block`. May sleep.
    pub fn put(&mut self, block: u64, data: &[u8]) -> Result<()> {
        let full = self.run.as_ref().is_some_and(|(first, next, _)| {
            *next != block || (next - first) as usize * self.block_size >= REQUEST_BYTES
        });
        if full {
            self.close_run();
            if self.flight >= FLIGHT_BYTES {
                self.drain()?;
            }
        }
        let mut segments = match self.run.take() {
            Some((first, next, segments)) => (first, next, segments),
            None => (block, block, Segments::new()),
        };
        self.append(&mut segments.2, data)?;
        segments.1 += 1;
        self.run = Some(segments);
        Ok(())
    }

    fn append(&mut self, segments: &mut Segments, data: &[u8]) -> Result<()> {
        let mut rest = data;
        while !rest.is_empty() {
            let room = segments.last().map_or(0, |s| PAGE_SIZE - (s.offset + s.len) as usize);
            if room == 0 {
                segments.push(Segment { page: self.page()?, offset: 0, len: 0 });
                continue;
            }
            let Some(last) = segments.last_mut() else { continue };
            let (now, later) = rest.split_at(room.min(rest.len()));
            last.page.bytes_mut(last.len as usize, now.len()).copy_from(SharedBytes::from(now));
            last.len += now.len() as u32;
            rest = later;
        }
        Ok(())
    }

    /// A page; where memory is short, the pages of what is under way come back first.
    fn page(&mut self) -> Result<Page> {
        for _ in 0..64 {
            if let Some(page) = Page::uninit() {
                return Ok(page);
            }
            self.drain()?;
            let deadline = platform::monotonic_ns() + 10_000_000;
            platform::park(platform::ParkOptions { interruptible: false, deadline_ns: Some(deadline) });
        }
        Err(Errno::ENOMEM)
    }

    fn close_run(&mut self) {
        if let Some((first, next, segments)) = self.run.take() {
            let bytes = (next - first) as usize * self.block_size;
            let sector = first * (self.block_size >> SECTOR_SHIFT) as u64;
            let request = Request::write(sector, segments, false, self.batch.add(), 0);
            self.requests.push(request.with_priority(self.priority));
            self.flight += bytes;
        }
    }

    fn drain(&mut self) -> Result<()> {
        if !self.requests.is_empty() {
            self.device.submit_batch(&mut self.requests);
        }
        self.flight = 0;
        self.batch.wait()
    }

    /// Sends what is left and waits for everything; the first error.
    pub fn finish(mut self) -> Result<()> {
        self.close_run();
        self.drain()
    }
}
