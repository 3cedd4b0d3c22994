//! The image's device: its own page cache, and reads straight into a file's pages.

use crate::layout::CORRUPT;
use abi::{Errno, Result};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use block::{BlockDevice, Complete, Request, SECTOR_SHIFT, Segment, Segments};
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use pagecache::{Backing, FileCache, PageCache, ReadRun, Settings, WriteRun};
use platform::{PAGE_SIZE, SliceSink};

/// The device, seen as a file.
pub(crate) struct Device {
    pub(crate) disk: Arc<dyn BlockDevice>,
    pub(crate) cache: Arc<FileCache>,
    /// Bytes of the image that may be read, at most the device's.
    pub(crate) bytes: u64,
}

impl Device {
    pub(crate) fn new(disk: Arc<dyn BlockDevice>, cache: &Arc<PageCache>, identity: (u64, u64)) -> Arc<Device> {
        let bytes = disk.geometry().bytes();
        Arc::new_cyclic(|me: &Weak<Device>| {
            let host: Weak<dyn Backing> = me.clone();
            Device {
                disk,
                cache: FileCache::new(cache, host, Settings { identity, size: bytes, fs_errors: None }),
                bytes,
            }
        })
    }

    /// Fills `buf` from byte `at` of the image. `EUCLEAN` beyond its end.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.bytes) {
            return Err(CORRUPT);
        }
        let n = self.cache.read(at, &mut SliceSink::new(buf))?;
        if n == buf.len() { Ok(()) } else { Err(Errno::EIO) }
    }

    /// `len` bytes from `at`, in a buffer of their own.
    pub(crate) fn read_vec(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return Err(CORRUPT);
        }
        let mut buf = Vec::new();
        buf.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        buf.resize(len, 0);
        self.read(at, &mut buf)?;
        Ok(buf)
    }
}

/// A run of pages that several requests fill; the last one's end ends it.
pub(crate) struct Fill {
    run: ReadRun,
    pending: AtomicUsize,
    error: AtomicI32,
}

impl Fill {
    /// Counts one request too many until [`Fill::submitted`].
    pub(crate) fn new(run: ReadRun) -> Arc<Fill> {
        Arc::new(Fill { run, pending: AtomicUsize::new(1), error: AtomicI32::new(0) })
    }

    pub(crate) fn run(&self) -> &ReadRun {
        &self.run
    }

    /// Has pages `from..to` of the run filled from byte `at` of the device on.
    pub(crate) fn request(self: &Arc<Self>, device: &Device, from: usize, to: usize, at: u64) {
        let mut left = device.bytes.saturating_sub(at);
        let mut segments = Segments::new();
        for n in from..to {
            let Some(page) = self.run.page(n) else { break };
            let len = left.min(PAGE_SIZE as u64);
            if len < PAGE_SIZE as u64 {
                page.bytes_mut(len as usize, PAGE_SIZE).fill(0);
            }
            if len > 0 {
                segments.push(Segment { page: page.clone(), offset: 0, len: len as u32 });
            }
            left -= len;
        }
        if segments.is_empty() {
            return;
        }
        self.pending.fetch_add(1, Ordering::Relaxed);
        device.disk.submit(Request::read(at >> SECTOR_SHIFT, segments, self.clone(), 0));
    }

    /// No more requests come.
    pub(crate) fn submitted(&self, result: Result<()>) {
        self.end(result);
    }

    fn end(&self, result: Result<()>) {
        if let Err(e) = result {
            self.error.store(e.raw(), Ordering::Relaxed);
        }
        if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.run.finish(Errno::from_raw(self.error.load(Ordering::Relaxed)).map_or(Ok(()), Err));
        }
    }
}

impl Complete for Fill {
    fn complete(&self, _: &Request, result: Result<()>) {
        self.end(result);
    }
}

impl Backing for Device {
    fn read_pages(&self, run: ReadRun) {
        let (at, len) = (run.offset(), run.len());
        let fill = Fill::new(run);
        fill.request(self, 0, len, at);
        fill.submitted(Ok(()));
    }

    fn write_pages(&self, run: WriteRun) {
        run.finish(Err(Errno::EROFS));
    }

    fn prepare_dirty(&self, _: u64, _: bool) -> Result<()> {
        Err(Errno::EROFS)
    }
}
