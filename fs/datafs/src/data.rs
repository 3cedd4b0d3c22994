//! The content of regular files: what the page cache asks of a file system.
//!
//! Allocation is delayed. A page that becomes dirty over a hole only takes a promise of space. When it is written, blocks are
//! picked (in memory), the data is written to them, and only then a transaction maps them: so a crash shows either the old
//! content or the new, never what a former owner left in the blocks, and the journal need not order data. The size on disk
//! follows in the same transaction, up to what has been written.

use crate::evict::STEP_CREDITS;
use crate::extents_edit::Edit;
use crate::inode::DataInode;
use crate::meta::Tx;
use abi::{Errno, Result};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::{Complete, Request, Segment, Segments};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use pagecache::{Backing, ReadRun, WriteRun};
use platform::{PAGE_SIZE, Page};

/// Pieces that one transaction maps at most.
const PIECES: usize = 8;
/// How often, and after how long each, a write is tried again for which there was no memory.
const NO_MEMORY_TRIES: usize = 500;
const NO_MEMORY_NAP_NS: u64 = 20_000_000;

/// Part of a run of pages, in blocks.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// First block in the file.
    block: u64,
    len: u64,
    /// Where on disk.
    start: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Written,
    Unwritten,
    /// Picked, not mapped.
    Fresh,
}

/// The end of a run's reads.
struct ReadEnd {
    run: ReadRun,
    left: AtomicUsize,
    failed: AtomicBool,
}

impl ReadEnd {
    fn done(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        if self.failed.load(Ordering::Relaxed) {
            self.run.finish(Err(Errno::EIO));
            return;
        }
        // What lies behind the file's end must read as zeroes if it grows, whatever is on the disk.
        let (size, end) = (self.run.file_size(), self.run.offset() + (self.run.len() * PAGE_SIZE) as u64);
        if size < end && size >= self.run.offset() {
            let at = (size - self.run.offset()) as usize;
            if let Some(p) = self.run.page(at / PAGE_SIZE) {
                p.bytes_mut(at % PAGE_SIZE, PAGE_SIZE).fill(0);
            }
        }
        self.run.finish(Ok(()));
    }
}

impl Complete for ReadEnd {
    fn complete(&self, _: &Request, result: Result<()>) {
        if result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.done();
    }
}

/// The parts of `pages` (whose first byte is at byte `origin` of the file) that hold the bytes `from..to` of the file.
fn segments<'a>(page: impl Fn(usize) -> Option<&'a Page>, origin: u64, from: u64, to: u64) -> Segments {
    let mut out = Segments::new();
    let mut at = from - origin;
    let end = to - origin;
    while at < end {
        let within = (at % PAGE_SIZE as u64) as usize;
        let len = (PAGE_SIZE - within).min((end - at) as usize);
        if let Some(p) = page((at / PAGE_SIZE as u64) as usize) {
            out.push(Segment { page: p.clone(), offset: within as u32, len: len as u32 });
        }
        at += len as u64;
    }
    out
}

impl DataInode {
    fn bits(&self) -> u32 {
        self.vol.geo.block_bits
    }

    /// Submits reads for the run, or fills with zeroes what is a hole.
    fn start_reads(&self, run: ReadRun) {
        let (first, last) =
            (run.offset() >> self.bits(), (run.offset() + (run.len() * PAGE_SIZE) as u64) >> self.bits());
        let mut pieces = Vec::new();
        let mut result = Ok(());
        {
            let core = self.core.read();
            let mut at = first;
            while at < last {
                match self.owner().lookup(&core, at) {
                    Ok(m) => {
                        let len = m.len.min(last - at);
                        pieces.push((at, len, m.readable()));
                        at += len;
                    }
                    Err(e) => {
                        result = Err(e);
                        break;
                    }
                }
            }
        }
        if let Err(e) = result {
            run.finish(Err(e));
            return;
        }
        let origin = run.offset();
        for &(at, len, _) in pieces.iter().filter(|p| p.2.is_none()) {
            let (mut from, to) = ((at << self.bits()) - origin, ((at + len) << self.bits()) - origin);
            while from < to {
                let within = (from % PAGE_SIZE as u64) as usize;
                let n = (PAGE_SIZE - within).min((to - from) as usize);
                if let Some(p) = run.page((from / PAGE_SIZE as u64) as usize) {
                    p.bytes_mut(within, n).fill(0);
                }
                from += n as u64;
            }
        }
        let reads: Vec<(u64, u64, u64)> = pieces.iter().filter_map(|p| p.2.map(|start| (p.0, p.1, start))).collect();
        let requests: Vec<(u64, Segments)> = reads
            .iter()
            .map(|&(at, len, start)| {
                let to = (at + len) << self.bits();
                (start << (self.bits() - 9), segments(|i| run.page(i), origin, at << self.bits(), to))
            })
            .collect();
        let end = Arc::new(ReadEnd { run, left: AtomicUsize::new(requests.len() + 1), failed: AtomicBool::new(false) });
        for (sector, segments) in requests {
            self.vol.device.submit(Request::read(sector, segments, end.clone(), 0));
        }
        end.done();
    }

    /// Where the blocks `from..to` go, behind what is in `out`; picks blocks for holes.
    fn plan_writes(&self, from: u64, to: u64, out: &mut Vec<Piece>) -> Result<()> {
        let core = self.core.read();
        let mut at = from;
        while at < to {
            let m = self.owner().lookup(&core, at)?;
            let len = m.len.min(to - at);
            let piece = match m.at {
                Some((start, written)) => {
                    Piece { block: at, len, start, state: if written { State::Written } else { State::Unwritten } }
                }
                None if !core.has_extents() => return Err(Errno::EOPNOTSUPP),
                None => {
                    let goal = match out.last() {
                        Some(p) => p.start + p.len,
                        None => self.goal(&core, at),
                    };
                    let (start, n) = self.vol.pick(goal, len as u32)?;
                    Piece { block: at, len: u64::from(n), start, state: State::Fresh }
                }
            };
            at += piece.len;
            out.push(piece);
        }
        Ok(())
    }

    fn unpick(&self, pieces: &[Piece]) {
        for p in pieces.iter().filter(|p| p.state == State::Fresh && p.len > 0) {
            self.vol.unpick(p.start, p.len as u32);
        }
    }

    /// Makes written pieces part of the file, and the size what it is after `end` (bytes) was written.
    fn map_pieces(&self, pieces: &[Piece], end: u64) -> Result<()> {
        let mut todo: Vec<Piece> = pieces.iter().filter(|p| p.state != State::Written).copied().collect();
        let grows = self.core.read().f().size() < end;
        if todo.is_empty() && !grows {
            return Ok(());
        }
        let batches = todo.len().div_ceil(PIECES).max(1);
        for n in 0..batches {
            let range = n * PIECES..((n + 1) * PIECES).min(todo.len());
            let last = n + 1 == batches;
            let batch = &mut todo[range];
            let done = self.vol.transact(STEP_CREDITS + batch.len() * 4, |tx| {
                let mut core = self.core.write();
                let mapped = batch.iter_mut().try_for_each(|p| self.map_piece(tx, &mut core, p));
                if mapped.is_ok() && last && core.f().size() < end {
                    core.m().set_size(end);
                }
                self.store(tx, &core)?;
                mapped
            });
            if let Err(e) = done {
                self.unpick(&todo);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Maps a piece; what is left of it after an error is in `p`.
    fn map_piece(&self, tx: &Tx, core: &mut crate::fields::Core, p: &mut Piece) -> Result<()> {
        while p.len > 0 {
            let from = u32::try_from(p.block).map_err(|_| Errno::EFBIG)?;
            let to = Some((p.start, true));
            let step =
                Edit { owner: self.owner(), tx, core, goal: p.start }.replace(from, p.block + p.len, to, usize::MAX)?;
            let n = step.done - p.block;
            if p.state == State::Fresh {
                self.vol.take(tx, p.start, n as u32)?;
                core.add_blocks(n as i64, self.vol.geo.block_size);
                // Somebody allocated here meanwhile (fallocate): those blocks are not needed.
                for (start, len) in step.removed {
                    self.vol.free(tx, start, len)?;
                    core.add_blocks(-i64::from(len), self.vol.geo.block_size);
                }
            }
            p.block += n;
            p.start += n;
            p.len -= n;
        }
        Ok(())
    }

    /// Writes the pages of the runs, all at the same time, and maps them. On an error none is mapped that was not before.
    fn write_all(&self, runs: &[WriteRun]) -> Result<()> {
        self.vol.writable()?;
        let size = self.size();
        let (mut pieces, mut ends, mut last) = (Vec::new(), Vec::with_capacity(runs.len()), 0);
        for run in runs {
            let end = (run.offset() + run.byte_len()).min(size);
            if end > run.offset() {
                let (from, to) = (run.offset() >> self.bits(), end.div_ceil(1 << self.bits()));
                if let Err(e) = self.plan_writes(from, to, &mut pieces) {
                    self.unpick(&pieces);
                    return Err(e);
                }
                last = last.max(end);
            }
            ends.push(pieces.len());
        }
        if pieces.is_empty() {
            return Ok(());
        }
        let batch = block::Batch::new();
        let mut requests = Vec::with_capacity(pieces.len());
        let mut first = 0;
        for (run, end) in runs.iter().zip(ends) {
            for p in &pieces[first..end] {
                let (a, b) = (p.block << self.bits(), (p.block + p.len) << self.bits());
                let segments = segments(|i| run.page(i), run.offset(), a, b);
                let sector = p.start << (self.bits() - 9);
                requests.push(Request::write(sector, segments, false, batch.add(), 0));
            }
            first = end;
        }
        self.vol.device.submit_batch(&mut requests);
        if let Err(e) = batch.wait() {
            self.unpick(&pieces);
            return Err(e);
        }
        self.map_pieces(&pieces, last)
    }

    /// Writes runs and ends them, trying as often as it takes to have the memory for it; their promises end too.
    fn write_patiently(&self, runs: &[WriteRun]) {
        let promised: i64 = runs.iter().map(|r| self.take_promises(r.first(), r.len() as u64)).sum();
        let mut result = self.write_all(runs);
        // Without memory for the metadata the content would be lost, and nobody asked for it to be written just now.
        for _ in 0..NO_MEMORY_TRIES {
            if result != Err(Errno::ENOMEM) {
                break;
            }
            let deadline_ns = Some(platform::monotonic_ns() + NO_MEMORY_NAP_NS);
            platform::park(platform::ParkOptions { interruptible: false, deadline_ns });
            result = self.write_all(runs);
        }
        // One by one, what can be written is, and each error is its own run's.
        if result.is_err() && runs.len() > 1 {
            for run in runs {
                self.end_run(run, self.write_all(core::slice::from_ref(run)));
            }
        }
        self.vol.release_promise(promised);
        for run in runs {
            self.end_run(run, result);
        }
    }

    /// Ends a run, unless it has ended.
    fn end_run(&self, run: &WriteRun, result: Result<()>) {
        if run.is_finished() {
            return;
        }
        run.finish(result);
        if let Err(e) = result {
            self.vol.options.log(&format!(
                "datafs: inode {}: {} pages from {} on were not written: {e:?}",
                self.ino,
                run.len(),
                run.first()
            ));
        }
    }

    /// Takes back the promises of `count` pages from `first` on; returns how many blocks they were for.
    fn take_promises(&self, first: u64, count: u64) -> i64 {
        let mut map = self.delayed.lock();
        let keys: Vec<u64> = map.range(first..first.saturating_add(count)).map(|(k, _)| *k).collect();
        keys.iter().filter_map(|k| map.remove(k)).map(|p| i64::from(p.blocks)).sum()
    }

    /// One holder of each promise for `count` pages from `first` on needs it no more; returns how many blocks that frees.
    fn leave_promises(&self, first: u64, count: u64) -> i64 {
        let mut map = self.delayed.lock();
        let keys: Vec<u64> = map.range(first..first.saturating_add(count)).map(|(k, _)| *k).collect();
        let mut free = 0;
        for k in keys {
            if let Some(p) = map.get_mut(&k) {
                p.holders = p.holders.saturating_sub(1);
                if p.holders == 0 {
                    free += i64::from(p.blocks);
                    map.remove(&k);
                }
            }
        }
        free
    }

    /// How many blocks of a page are holes.
    fn holes_in_page(&self, index: u64) -> Result<u32> {
        let per = PAGE_SIZE as u64 >> self.bits();
        let (mut at, end) = (index * per, (index + 1) * per);
        let core = self.core.read();
        let mut holes = 0;
        while at < end {
            let m = self.owner().lookup(&core, at)?;
            let n = m.len.min(end - at);
            if m.at.is_none() {
                if !core.has_extents() {
                    return Err(Errno::EOPNOTSUPP);
                }
                holes += n as u32;
            }
            at += n;
        }
        Ok(holes)
    }
}

impl Backing for DataInode {
    fn read_pages(&self, run: ReadRun) {
        self.start_reads(run);
    }

    fn write_pages(&self, run: WriteRun) {
        self.write_patiently(&[run]);
    }

    fn write_runs(&self, runs: Vec<WriteRun>) {
        self.write_patiently(&runs);
    }

    fn prepare_dirty(&self, index: u64, _mapped: bool) -> Result<()> {
        self.vol.writable()?;
        let holes = self.holes_in_page(index)?;
        if holes > 0 {
            self.vol.promise(i64::from(holes))?;
            let spare = self.delayed.lock().entry(index).or_default().join(holes);
            self.vol.release_promise(i64::from(spare));
        }
        Ok(())
    }

    fn cancel_dirty(&self, first: u64, count: u64) {
        let n = self.leave_promises(first, count);
        self.vol.release_promise(n);
    }

    fn is_doomed(&self, cache_references: usize) -> bool {
        let _ = cache_references;
        self.gone.load(Ordering::Relaxed)
    }
}
