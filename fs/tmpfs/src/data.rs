//! The content of regular files: a sparse map of pages.

use crate::Shared;
use abi::{Errno, Result, linux};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use platform::{PAGE_SIZE, Page, ReadSink, WriteSource};
use sync::{LockClass, Mutex, SpinLock, rank};
use vfs::MAX_OFFSET;

static IO: LockClass = LockClass::new("tmpfs file", rank::INODE + 2);
static PAGES: LockClass = LockClass::new("tmpfs pages", rank::SPIN + 42);

const PAGE: u64 = PAGE_SIZE as u64;

type Map = BTreeMap<u64, Page>;

/// How many pages one lock section removes, so that cutting a huge file does not keep a spin lock for long.
const BATCH: usize = 128;

#[derive(Debug)]
pub(crate) struct Data {
    size: AtomicU64,
    io: Mutex<()>,
    pages: SpinLock<Map>,
    count: AtomicU64,
}

/// Page number and offset within.
fn split(offset: u64) -> (u64, usize) {
    (offset / PAGE, (offset % PAGE) as usize)
}

impl Data {
    pub(crate) fn new() -> Self {
        Data {
            size: AtomicU64::new(0),
            io: Mutex::new(&IO, ()),
            pages: SpinLock::new(&PAGES, Map::new()),
            count: AtomicU64::new(0),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Pages that it occupies.
    pub(crate) fn allocated(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Frees everything; returns how many pages that were.
    pub(crate) fn clear(&mut self) -> u64 {
        let n = self.pages.get_mut().len() as u64;
        self.pages.get_mut().clear();
        n
    }

    fn page(&self, index: u64) -> Option<Page> {
        self.pages.lock().get(&index).cloned()
    }

    /// Puts `page` in if nothing is there; returns what is there then. With `within`, only below that size.
    fn install(&self, shared: &Shared, index: u64, page: Page, check_size: bool) -> Result<Page> {
        let mut map = self.pages.lock();
        let fit = !check_size || index < self.size().div_ceil(PAGE);
        let present = map.get(&index).cloned();
        if fit && present.is_none() {
            map.insert(index, page.clone());
            self.count.fetch_add(1, Ordering::Relaxed);
            return Ok(page);
        }
        drop(map);
        shared.free_pages(1);
        match present {
            Some(p) if fit => Ok(p),
            _ => Err(Errno::ENXIO),
        }
    }

    pub(crate) fn page_for(&self, shared: &Shared, index: u64) -> Result<Page> {
        if index >= self.size().div_ceil(PAGE) {
            return Err(Errno::ENXIO);
        }
        if let Some(p) = self.page(index) {
            return Ok(p);
        }
        shared.charge_pages(1)?;
        let Some(page) = Page::zeroed() else {
            shared.free_pages(1);
            return Err(Errno::ENOMEM);
        };
        self.install(shared, index, page, true)
    }

    pub(crate) fn for_cached(&self, first: u64, count: u64, each: &mut dyn FnMut(u64, Page)) {
        let end = first.saturating_add(count).min(self.size().div_ceil(PAGE));
        if first >= end {
            return;
        }
        let found: Vec<(u64, Page)> = self.pages.lock().range(first..end).map(|(k, p)| (*k, p.clone())).collect();
        for (index, page) in found {
            each(index, page);
        }
    }

    pub(crate) fn read(&self, offset: u64, sink: &mut dyn ReadSink) -> Result<usize> {
        let mut at = offset;
        let mut done = 0;
        loop {
            let left = self.size().saturating_sub(at).min(sink.remaining() as u64);
            if left == 0 {
                return Ok(done);
            }
            let (index, within) = split(at);
            let want = left.min((PAGE_SIZE - within) as u64) as usize;
            let got = match self.page(index) {
                Some(p) => sink.put(p.bytes(within, want)),
                None => sink.put_zeroes(want),
            };
            match got {
                Ok(n) => {
                    done += n;
                    at += n as u64;
                    if n < want {
                        return Ok(done);
                    }
                }
                Err(_) if done > 0 => return Ok(done),
                Err(_) => return Err(Errno::EFAULT),
            }
        }
    }

    pub(crate) fn write(
        &self,
        shared: &Shared,
        offset: Option<u64>,
        source: &mut dyn WriteSource,
    ) -> Result<(u64, usize)> {
        let _io = self.io.lock();
        let start = offset.unwrap_or_else(|| self.size());
        if source.remaining() == 0 {
            return Ok((start, 0));
        }
        if start >= MAX_OFFSET {
            return Err(Errno::EFBIG);
        }
        let mut at = start;
        let mut result = Ok(());
        while source.remaining() > 0 && at < MAX_OFFSET {
            match self.write_page(shared, at, source) {
                Ok((n, want)) => {
                    at += n as u64;
                    if at > self.size() {
                        self.size.store(at, Ordering::Release);
                    }
                    if n < want {
                        break;
                    }
                }
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        if at > start { Ok((at, (at - start) as usize)) } else { result.map(|()| (at, 0)) }
    }

    /// Writes up to the end of one page; returns how much of how much.
    fn write_page(&self, shared: &Shared, at: u64, source: &mut dyn WriteSource) -> Result<(usize, usize)> {
        let (index, within) = split(at);
        let want = (PAGE_SIZE - within).min(source.remaining()).min((MAX_OFFSET - at) as usize);
        if let Some(p) = self.page(index) {
            let n = source.get(p.bytes_mut(within, want)).map_err(|_| Errno::EFAULT)?;
            return Ok((n, want));
        }
        shared.charge_pages(1)?;
        // Nobody else sees a fresh page before it is installed, so one that will be filled whole need not be cleared.
        let fresh = if want == PAGE_SIZE { Page::uninit() } else { Page::zeroed() };
        let filled = match &fresh {
            Some(p) => source.get(p.bytes_mut(within, want)).map_err(|_| Errno::EFAULT),
            None => Err(Errno::ENOMEM),
        };
        match (filled, fresh) {
            (Ok(n), Some(page)) if n > 0 => {
                if n < want {
                    page.bytes_mut(within + n, PAGE_SIZE).fill(0);
                }
                let installed = self.install(shared, index, page.clone(), false)?;
                if installed.raw() != page.raw() {
                    // A fault put one there meanwhile, and it may be mapped already: the bytes go into that.
                    installed.bytes_mut(within, n).copy_from(page.bytes(within, n));
                }
                Ok((n, want))
            }
            (filled, _) => {
                shared.free_pages(1);
                filled.map(|n| (n, want))
            }
        }
    }

    /// Takes the pages `from..to` out, some at a time.
    fn remove(&self, shared: &Shared, from: u64, to: u64) {
        loop {
            let mut map = self.pages.lock();
            let keys: Vec<u64> = map.range(from..to).take(BATCH).map(|(k, _)| *k).collect();
            let gone: Vec<Page> = keys.iter().filter_map(|k| map.remove(k)).collect();
            drop(map);
            let n = gone.len() as u64;
            self.count.fetch_sub(n, Ordering::Relaxed);
            drop(gone);
            shared.free_pages(n);
            if n < BATCH as u64 {
                return;
            }
        }
    }

    fn zero(&self, offset: u64, len: usize) {
        let (index, within) = split(offset);
        if let Some(p) = self.page(index) {
            p.bytes_mut(within, len).fill(0);
        }
    }

    pub(crate) fn truncate(&self, shared: &Shared, size: u64) -> Result<()> {
        if size > MAX_OFFSET {
            return Err(Errno::EINVAL);
        }
        let _io = self.io.lock();
        let old = self.size.swap(size, Ordering::AcqRel);
        if size < old {
            self.remove(shared, size.div_ceil(PAGE), u64::MAX);
            if !size.is_multiple_of(PAGE) {
                self.zero(size, PAGE_SIZE);
            }
        } else if !old.is_multiple_of(PAGE) {
            // A mapping may have written behind the former end.
            self.zero(old, PAGE_SIZE);
        }
        Ok(())
    }

    pub(crate) fn fallocate(&self, shared: &Shared, mode: u32, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).filter(|&e| e <= MAX_OFFSET).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let keep = mode & linux::FALLOC_FL_KEEP_SIZE != 0;
        let _io = self.io.lock();
        match mode & !linux::FALLOC_FL_KEEP_SIZE {
            0 => {
                self.reserve(shared, offset, end)?;
                if !keep && end > self.size() {
                    self.size.store(end, Ordering::Release);
                }
                Ok(())
            }
            linux::FALLOC_FL_PUNCH_HOLE if keep => {
                self.punch(shared, offset, end);
                Ok(())
            }
            linux::FALLOC_FL_ZERO_RANGE => {
                self.punch(shared, offset, end);
                self.reserve(shared, offset, end)?;
                if !keep && end > self.size() {
                    self.size.store(end, Ordering::Release);
                }
                Ok(())
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Fills the holes in the range; on failure those filled so far stay filled, as on Linux they would not.
    fn reserve(&self, shared: &Shared, offset: u64, end: u64) -> Result<()> {
        let (first, last) = (offset / PAGE, end.div_ceil(PAGE));
        let mut added = Vec::new();
        let mut result = Ok(());
        for index in first..last {
            if self.page(index).is_some() {
                continue;
            }
            result = shared.charge_pages(1).and_then(|()| match Page::zeroed() {
                Some(p) => self.install(shared, index, p, false).map(drop),
                None => {
                    shared.free_pages(1);
                    Err(Errno::ENOMEM)
                }
            });
            if result.is_err() {
                break;
            }
            added.push(index);
        }
        if result.is_err() {
            for index in added {
                self.remove(shared, index, index + 1);
            }
        }
        result
    }

    fn punch(&self, shared: &Shared, offset: u64, end: u64) {
        let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
        if first <= last {
            if !offset.is_multiple_of(PAGE) {
                self.zero(offset, PAGE_SIZE);
            }
            if !end.is_multiple_of(PAGE) {
                self.zero(last * PAGE, (end % PAGE) as usize);
            }
            self.remove(shared, first, last);
        } else {
            self.zero(offset, (end - offset) as usize);
        }
    }

    pub(crate) fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        let size = self.size();
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let map = self.pages.lock();
        let mut index = offset / PAGE;
        if hole {
            for (k, _) in map.range(index..) {
                if *k != index {
                    break;
                }
                index += 1;
            }
            return Ok(offset.max(index * PAGE).min(size));
        }
        match map.range(index..).next() {
            Some((k, _)) if k * PAGE < size => Ok(offset.max(k * PAGE)),
            _ => Err(Errno::ENXIO),
        }
    }
}
