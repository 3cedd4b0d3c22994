//! The cache over a medium that is a vector, with errors and delays on demand.
#![allow(clippy::unwrap_used)]

use crate::{Advice, Backing, FileCache, Limits, PAGE, PageCache, ReadRun, Settings, Shrink, WriteRun};
use abi::{Errno, Result};
use platform::{SliceSink, SliceSource};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

struct Host {
    me: Weak<Host>,
    cache: std::sync::OnceLock<Arc<FileCache>>,
    disk: Mutex<Vec<u8>>,
    /// Promises not yet kept or cancelled, by page. There are two while a page is written and someone makes it dirty again.
    promised: Mutex<BTreeMap<u64, u32>>,
    reads: AtomicUsize,
    fail_reads: AtomicBool,
    fail_writes: AtomicBool,
    full: AtomicBool,
    /// Runs are kept here instead of being finished, if wanted.
    held: Mutex<Option<Vec<WriteRun>>>,
    doomed: AtomicBool,
}

impl Host {
    fn new(cache: &Arc<PageCache>, content: Vec<u8>) -> Arc<Host> {
        static INO: AtomicUsize = AtomicUsize::new(1);
        let host = Arc::new_cyclic(|me: &Weak<Host>| Host {
            me: me.clone(),
            cache: std::sync::OnceLock::new(),
            disk: Mutex::new(content.clone()),
            promised: Mutex::default(),
            reads: AtomicUsize::new(0),
            fail_reads: AtomicBool::new(false),
            fail_writes: AtomicBool::new(false),
            full: AtomicBool::new(false),
            held: Mutex::new(None),
            doomed: AtomicBool::new(false),
        });
        let identity = (9, INO.fetch_add(1, Ordering::Relaxed) as u64);
        let settings = Settings { identity, size: content.len() as u64, fs_errors: None };
        let weak: Weak<dyn Backing> = host.me.clone();
        host.cache.set(FileCache::new(cache, weak, settings)).unwrap();
        host
    }

    fn file(&self) -> &FileCache {
        self.cache.get().unwrap()
    }

    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        let n = self.file().read(at, &mut SliceSink::new(&mut buf))?;
        buf.truncate(n);
        Ok(buf)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<usize> {
        self.file().write(at, &mut SliceSource::new(bytes)).map(|d| d.1)
    }

    /// Ends one promise for a page; whether there was one.
    fn take_promise(&self, index: u64) -> bool {
        let mut promised = self.promised.lock().unwrap();
        let Some(n) = promised.get_mut(&index) else { return false };
        *n -= 1;
        if *n == 0 {
            promised.remove(&index);
        }
        true
    }

    fn store(&self, run: &WriteRun) {
        let mut disk = self.disk.lock().unwrap();
        let mut at = run.offset() as usize;
        let end = at + run.byte_len() as usize;
        if disk.len() < end {
            disk.resize(end, 0);
        }
        for (n, p) in run.pages().enumerate() {
            let len = (end - at).min(PAGE as usize);
            p.bytes(0, len).copy_to(&mut disk[at..at + len]);
            at += len;
            assert!(self.take_promise(run.first() + n as u64), "written without promise");
        }
    }
}

impl Backing for Host {
    fn read_pages(&self, run: ReadRun) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.fail_reads.load(Ordering::Relaxed) {
            return run.finish(Err(Errno::EIO));
        }
        let disk = self.disk.lock().unwrap();
        let mut at = run.offset() as usize;
        for p in run.pages() {
            let from = at.min(disk.len());
            let to = (at + PAGE as usize).min(disk.len());
            p.bytes_mut(0, PAGE as usize).fill(0);
            p.bytes_mut(0, to - from).copy_from((&disk[from..to]).into());
            at += PAGE as usize;
        }
        run.finish(Ok(()));
    }

    fn write_pages(&self, run: WriteRun) {
        if self.fail_writes.load(Ordering::Relaxed) {
            for i in 0..run.len() as u64 {
                self.take_promise(run.first() + i);
            }
            return run.finish(Err(Errno::EIO));
        }
        self.store(&run);
        match &mut *self.held.lock().unwrap() {
            Some(held) => held.push(run),
            None => run.finish(Ok(())),
        }
    }

    fn prepare_dirty(&self, index: u64, _mapped: bool) -> Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(Errno::ENOSPC);
        }
        *self.promised.lock().unwrap().entry(index).or_default() += 1;
        Ok(())
    }

    fn cancel_dirty(&self, first: u64, count: u64) {
        for i in first..first + count {
            assert!(self.take_promise(i), "cancelled without promise");
        }
    }

    fn is_doomed(&self, cache_references: usize) -> bool {
        self.doomed.load(Ordering::Relaxed) && self.me.strong_count() <= cache_references
    }
}

fn cache() -> Arc<PageCache> {
    PageCache::new(Limits { background: 1 << 20, hard: 1 << 20, expire_ns: 30_000_000_000 })
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 + i / 4096) as u8).collect()
}

const SHRINK: Shrink = Shrink { scan: usize::MAX, target: usize::MAX, unmap: false, all: false };

#[test]
fn reads_what_the_medium_holds_and_reads_ahead() {
    let c = cache();
    let content = pattern(1 << 20);
    let h = Host::new(&c, content.clone());
    for (i, chunk) in content.chunks(4096).enumerate() {
        assert_eq!(h.read(i as u64 * 4096, 4096).unwrap(), chunk);
    }
    let reads = h.reads.load(Ordering::Relaxed);
    assert!(reads < 16, "{reads} reads for 256 pages");
    assert_eq!(h.read(1 << 20, 10).unwrap(), []);
    assert_eq!(h.read((1 << 20) - 5, 10).unwrap(), &content[(1 << 20) - 5..]);
    assert_eq!(c.stats().cached, 256);
}

#[test]
fn written_bytes_reach_the_medium_at_sync() {
    let c = cache();
    let h = Host::new(&c, pattern(10_000));
    assert_eq!(h.write(5000, b"hello").unwrap(), 5);
    assert_eq!(h.write(20_000, &[7; 9000]).unwrap(), 9000);
    assert_eq!(h.file().size(), 29_000);
    assert_eq!(c.stats().dirty, 5);
    h.file().sync().unwrap();
    assert_eq!((c.stats().dirty, c.stats().writeback, c.dirty_files()), (0, 0, 0));
    let mut want = pattern(10_000);
    want[5000..5005].copy_from_slice(b"hello");
    want.resize(20_000, 0);
    want.resize(29_000, 7);
    assert_eq!(*h.disk.lock().unwrap(), want);
    assert!(h.promised.lock().unwrap().is_empty());
}

#[test]
fn a_page_written_during_write_back_is_written_again() {
    let c = cache();
    let h = Host::new(&c, vec![0; 4096]);
    *h.held.lock().unwrap() = Some(Vec::new());
    h.write(0, b"one").unwrap();
    h.file().start_writeback(0..u64::MAX);
    assert_eq!(c.stats().writeback, 1);
    h.write(0, b"two").unwrap();
    assert_eq!((c.stats().dirty, c.stats().writeback), (1, 1));
    let runs = h.held.lock().unwrap().take().unwrap();
    let waiter = {
        let h = h.clone();
        std::thread::spawn(move || h.file().sync().unwrap())
    };
    std::thread::sleep(std::time::Duration::from_millis(20));
    runs.iter().for_each(|r| r.finish(Ok(())));
    waiter.join().unwrap();
    assert_eq!(&h.disk.lock().unwrap()[..3], b"two");
    assert_eq!(c.dirty_files(), 0);
}

#[test]
fn write_errors_are_told_once_to_each_observer() {
    let c = cache();
    let h = Host::new(&c, vec![0; 4096]);
    let (a, b) = (h.file().errors().sample(), h.file().errors().sample());
    h.fail_writes.store(true, Ordering::Relaxed);
    h.write(0, b"lost").unwrap();
    h.file().sync().unwrap();
    assert_eq!(h.file().errors().check_and_advance(&a), Err(Errno::EIO));
    assert_eq!(h.file().errors().check_and_advance(&a), Ok(()));
    assert_eq!(h.file().errors().check_and_advance(&b), Err(Errno::EIO));
    let late = h.file().errors().sample();
    assert_eq!(h.file().errors().check_and_advance(&late), Ok(()));
}

#[test]
fn read_errors_reach_the_reader_and_are_tried_again() {
    let c = cache();
    let h = Host::new(&c, pattern(8192));
    h.fail_reads.store(true, Ordering::Relaxed);
    assert_eq!(h.read(0, 10), Err(Errno::EIO));
    assert_eq!(h.file().fault(0, false).map(|_| ()), Err(Errno::EIO));
    h.fail_reads.store(false, Ordering::Relaxed);
    assert_eq!(h.read(0, 10).unwrap(), pattern(10));
}

#[test]
fn a_full_disk_refuses_the_write_and_keeps_the_content() {
    let c = cache();
    let h = Host::new(&c, pattern(8192));
    h.full.store(true, Ordering::Relaxed);
    assert_eq!(h.write(100, b"xxx"), Err(Errno::ENOSPC));
    assert_eq!(h.write(1 << 20, b"xxx"), Err(Errno::ENOSPC));
    assert_eq!(h.file().fault(1, true).map(|_| ()), Err(Errno::ENOSPC));
    assert_eq!(h.file().size(), 8192);
    assert_eq!(h.read(0, 8192).unwrap(), pattern(8192));
}

#[test]
fn used_once_goes_before_used_often() {
    let c = cache();
    let hot = Host::new(&c, pattern(64 * 4096));
    let cold = Host::new(&c, pattern(512 * 4096));
    for _ in 0..3 {
        hot.read(0, 64 * 4096).unwrap();
    }
    for round in 0..4 {
        for i in 0..512 {
            cold.read(i * 4096, 4096).unwrap();
            if i % 64 == 0 {
                hot.read(0, 64 * 4096).unwrap();
                c.shrink(Shrink { target: 40, ..SHRINK });
            }
        }
        assert_eq!(hot.file().pages().0, 64, "round {round}");
    }
    assert!(cold.file().pages().0 < 512);
    // With nothing else left, even those go when nobody uses them.
    let all = Shrink { all: true, ..SHRINK };
    c.shrink(all);
    assert_eq!(c.stats().cached, 0);
}

#[test]
fn dirty_pages_are_not_reclaimed_and_the_file_outlives_its_users() {
    let c = cache();
    let h = Host::new(&c, vec![]);
    h.write(0, &[1; 8192]).unwrap();
    assert_eq!(c.shrink(Shrink { all: true, ..SHRINK }), 0);
    let weak = Arc::downgrade(&h);
    drop(h);
    let h = weak.upgrade().expect("the list of dirty files keeps it");
    c.sync_device(Some(9)).unwrap();
    assert_eq!(h.disk.lock().unwrap().len(), 8192);
    drop(h);
    assert!(weak.upgrade().is_none());
    assert_eq!(c.stats().cached, 0);
}

#[test]
fn truncation_drops_and_clears() {
    let c = cache();
    let h = Host::new(&c, pattern(5 * 4096));
    h.write(0, &vec![9; 5 * 4096]).unwrap();
    h.file().truncate(5000);
    assert_eq!(c.stats().dirty, 2);
    assert_eq!(h.promised.lock().unwrap().len(), 2);
    h.file().truncate(3 * 4096);
    let all = h.read(0, 1 << 20).unwrap();
    assert_eq!(all.len(), 3 * 4096);
    assert!(all[..5000].iter().all(|&b| b == 9));
    assert!(all[5000..8192].iter().all(|&b| b == 0));
    assert_eq!(h.file().fault(3, false).map(|_| ()), Err(Errno::ENXIO));
}

#[test]
fn a_doomed_file_is_dropped_instead_of_written() {
    let c = cache();
    let h = Host::new(&c, vec![]);
    h.write(0, &[1; 8192]).unwrap();
    h.doomed.store(true, Ordering::Relaxed);
    c.set_limits(Limits { background: 0, hard: 1 << 20, expire_ns: 0 });
    let weak = Arc::downgrade(&h);
    drop(h);
    c.write_some();
    assert!(weak.upgrade().is_none());
    assert_eq!(c.stats().written, 0);
}

#[test]
fn writers_over_the_limit_write_back() {
    let c = PageCache::new(Limits { background: 16, hard: 64, expire_ns: 30_000_000_000 });
    let h = Host::new(&c, vec![]);
    for i in 0..1000u64 {
        h.write(i * 4096, &[i as u8; 4096]).unwrap();
        assert!(c.stats().dirty <= 64 + 32);
    }
    h.file().sync().unwrap();
    assert!(h.disk.lock().unwrap().chunks(4096).enumerate().all(|(i, p)| p.iter().all(|&b| b == i as u8)));
}

#[test]
fn a_write_back_thread_writes_what_is_old() {
    let c = PageCache::new(Limits { background: 1000, hard: 2000, expire_ns: 10_000_000 });
    let stop = Arc::new(AtomicBool::new(false));
    let thread = {
        let (c, stop) = (c.clone(), stop.clone());
        std::thread::spawn(move || c.flush_until(&stop))
    };
    let h = Host::new(&c, vec![]);
    for round in 1..4u8 {
        h.write(0, &[round; 4096]).unwrap();
        let start = std::time::Instant::now();
        while h.disk.lock().unwrap().first() != Some(&round) {
            assert!(start.elapsed().as_secs() < 10, "never written");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
    stop.store(true, Ordering::Release);
    c.wake_flusher();
    thread.join().unwrap();
}

#[test]
fn advice_brings_in_and_throws_out() {
    let c = cache();
    let h = Host::new(&c, pattern(1 << 20));
    h.file().advise(0..1 << 18, Advice::WillNeed).unwrap();
    assert_eq!(h.file().pages().0, 64);
    h.file().advise(0..1 << 20, Advice::DontNeed).unwrap();
    assert_eq!(h.file().pages().0, 0);
}

#[test]
fn many_threads_read_write_and_reclaim() {
    let c = cache();
    let h = Host::new(&c, vec![0; 256 * 4096]);
    let stop = Arc::new(AtomicBool::new(false));
    let reclaimer = {
        let (c, stop) = (c.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                c.shrink(SHRINK);
                c.sync_device(None).unwrap();
            }
        })
    };
    let workers: Vec<_> = (0..4u64)
        .map(|t| {
            let h = h.clone();
            std::thread::spawn(move || {
                // Each its own 64 pages; neighbours share nothing but the file.
                for round in 1..60u8 {
                    for i in 0..64 {
                        let at = (t * 64 + i) * 4096;
                        h.write(at + 100, &[round; 200]).unwrap();
                        assert_eq!(h.read(at + 100, 200).unwrap(), vec![round; 200]);
                    }
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|w| w.join().unwrap());
    stop.store(true, Ordering::Relaxed);
    reclaimer.join().unwrap();
    h.file().sync().unwrap();
    assert!(h.disk.lock().unwrap().chunks(4096).all(|p| p[100..300].iter().all(|&b| b == 59)));
    assert!(h.promised.lock().unwrap().is_empty());
}

#[derive(Clone, Debug)]
enum Op {
    Read(u64, usize),
    Write(u64, usize, u8),
    Truncate(u64),
    Fault(u64, u8),
    Sync,
    Shrink(bool),
    Invalidate,
}

fn op() -> impl Strategy<Value = Op> {
    const MAX: u64 = 100_000;
    prop_oneof![
        4 => (0..MAX, 0usize..30_000).prop_map(|(a, l)| Op::Read(a, l)),
        4 => (0..MAX, 1usize..30_000, any::<u8>()).prop_map(|(a, l, b)| Op::Write(a, l, b)),
        2 => (0..MAX).prop_map(Op::Truncate),
        2 => (0..MAX / 4096, any::<u8>()).prop_map(|(i, b)| Op::Fault(i, b)),
        1 => Just(Op::Sync),
        2 => any::<bool>().prop_map(Op::Shrink),
        1 => Just(Op::Invalidate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn behaves_like_a_vector(start in 0usize..50_000, ops in proptest::collection::vec(op(), 1..40)) {
        let c = cache();
        let h = Host::new(&c, pattern(start));
        let mut model = pattern(start);
        for op in ops {
            match op {
                Op::Read(at, len) => {
                    let from = model.len().min(at as usize);
                    let to = model.len().min(at as usize + len);
                    prop_assert_eq!(&h.read(at, len).unwrap(), &model[from..to]);
                }
                Op::Write(at, len, byte) => {
                    prop_assert_eq!(h.write(at, &vec![byte; len]).unwrap(), len);
                    let end = at as usize + len;
                    if model.len() < end {
                        model.resize(end, 0);
                    }
                    model[at as usize..end].fill(byte);
                }
                Op::Truncate(size) => {
                    let within = size % 4096;
                    if size < model.len() as u64 && within != 0 {
                        h.file().zero(size, 4096).unwrap();
                    }
                    h.file().truncate(size);
                    let mut disk = h.disk.lock().unwrap();
                    disk.truncate(size as usize);
                    model.resize(size as usize, 0);
                }
                Op::Fault(index, byte) => {
                    let at = index as usize * 4096 + 17;
                    match h.file().fault(index, true) {
                        Ok(p) => {
                            // A program may write behind the end, too.
                            p.bytes_mut(17, 1).fill(byte);
                            if at < model.len() {
                                model[at] = byte;
                            } else {
                                p.bytes_mut(4000, 96).fill(byte);
                                let over = (index as usize * 4096 + 4000).min(model.len());
                                let len = model.len();
                                model[over..len].fill(byte);
                            }
                        }
                        Err(e) => {
                            prop_assert_eq!(e, Errno::ENXIO);
                            prop_assert!(index as usize * 4096 >= model.len());
                        }
                    }
                }
                Op::Sync => {
                    h.file().sync().unwrap();
                    prop_assert!(h.promised.lock().unwrap().is_empty());
                    let disk = h.disk.lock().unwrap();
                    let n = disk.len().min(model.len());
                    prop_assert_eq!(&disk[..n], &model[..n]);
                    prop_assert!(model[n..].iter().all(|&b| b == 0));
                }
                Op::Shrink(all) => {
                    c.shrink(Shrink { scan: usize::MAX, target: usize::MAX, unmap: true, all });
                }
                Op::Invalidate => {
                    h.file().invalidate(0..u64::MAX);
                }
            }
            prop_assert_eq!(h.file().size(), model.len() as u64);
        }
        let stats = c.stats();
        drop(h);
        c.sync_device(None).unwrap();
        prop_assert_eq!(c.stats().dirty, 0);
        prop_assert!(stats.cached < 100);
    }
}
