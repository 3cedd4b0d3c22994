//! The queue over hardware that holds a few transfers and ends them in any order.

use crate::*;
use abi::Errno;
use proptest::prelude::*;
use std::boxed::Box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::vec::Vec;
use std::{vec, vec::IntoIter};

struct Fake {
    disk: MemDisk,
    limits: Geometry,
    room: usize,
    #[expect(clippy::vec_box, reason = "the queue hands boxes out and wants them back")]
    inside: Mutex<Vec<Box<Transfer>>>,
    flushes: AtomicUsize,
    started: AtomicUsize,
    gone: AtomicBool,
    /// A sector whose writes fail.
    bad: Option<u64>,
}

impl Hardware for Fake {
    fn geometry(&self) -> Geometry {
        self.limits
    }

    fn start(&self, transfer: Box<Transfer>) -> Result<(), Refused> {
        if self.gone.load(SeqCst) {
            return Err(Refused::Gone(transfer));
        }
        assert!(transfer.segments <= self.limits.max_segments as usize);
        if transfer.op.has_data() {
            assert!(transfer.sectors << 9 <= u64::from(self.limits.max_bytes));
        }
        let mut inside = self.inside.lock().unwrap();
        if inside.len() == self.room {
            return Err(Refused::Full(transfer));
        }
        self.started.fetch_add(1, SeqCst);
        if transfer.op == Op::Flush {
            self.flushes.fetch_add(1, SeqCst);
        }
        inside.push(transfer);
        Ok(())
    }

    fn kick(&self) {}
}

fn fake(limits: Geometry, room: usize) -> Queue<Fake> {
    Queue::new(
        "fake",
        Fake {
            disk: MemDisk::with_geometry("inner", limits),
            limits,
            room,
            inside: Mutex::default(),
            flushes: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
            bad: None,
        },
    )
}

/// Ends one transfer (chosen by `pick`); false if there is none.
fn end_one(queue: &Queue<Fake>, pick: usize) -> bool {
    let hw = queue.hardware();
    let transfer = {
        let mut inside = hw.inside.lock().unwrap();
        if inside.is_empty() {
            return false;
        }
        let at = pick % inside.len();
        inside.remove(at)
    };
    let mut result = Ok(());
    if transfer.op.modifies()
        && hw.bad.is_some_and(|b| (transfer.sector..transfer.sector + transfer.sectors).contains(&b))
    {
        result = Err(Errno::EIO);
    } else if transfer.op != Op::Flush {
        let batch = Batch::new();
        for r in &transfer.requests {
            hw.disk.submit(match r.op {
                Op::Read => Request::read(r.sector, r.segments.clone(), batch.add(), 0),
                Op::Write { .. } => Request::write(r.sector, r.segments.clone(), false, batch.add(), 0),
                Op::Discard => Request::discard(r.sector, r.count, batch.add(), 0),
                _ => Request::write_zeroes(r.sector, r.count, batch.add(), 0),
            });
        }
        result = batch.wait();
    }
    queue.completed(transfer, result);
    queue.run();
    true
}

fn small() -> Geometry {
    Geometry {
        max_segments: 3,
        max_bytes: 8192,
        max_segment_bytes: 2048,
        max_zeroes_sectors: 5,
        ..Geometry::simple(256)
    }
}

fn data(sectors: usize, fill: u8) -> Segments {
    let mut segments = Segments::new();
    let mut left = sectors * 512;
    while left > 0 {
        let page = platform::Page::zeroed().unwrap();
        let len = left.min(4096);
        page.bytes_mut(0, len).fill(fill);
        segments.push(Segment { page, offset: 0, len: len as u32 });
        left -= len;
    }
    segments
}

#[test]
fn neighbours_that_wait_become_one_transfer() {
    let queue = fake(Geometry::simple(256), 1);
    let batch = Batch::new();
    queue.submit(Request::flush(batch.add(), 0));
    for i in [1u64, 2, 3, 0] {
        queue.submit(Request::write(i * 8, data(8, i as u8 + 1), false, batch.add(), 0));
    }
    while end_one(&queue, 0) {}
    assert_eq!(batch.wait(), Ok(()));
    assert_eq!(queue.hardware().started.load(SeqCst), 2);
    assert_eq!(queue.stats().snapshot().merges[Kind::Write as usize], 3);
    let image = queue.hardware().disk.to_image();
    assert!((0..4).all(|i| image[i * 4096..][..4096].iter().all(|b| *b == i as u8 + 1)));
}

#[test]
fn a_merged_failure_hits_only_the_guilty() {
    let mut queue = fake(Geometry::simple(256), 1);
    queue = Queue::new("fake", Fake { bad: Some(9), ..take(queue) });
    let batches: IntoIter<_> = vec![Batch::new(), Batch::new(), Batch::new()].into_iter();
    let mut requests = Vec::new();
    for (i, batch) in batches.clone().enumerate() {
        requests.push(Request::write(i as u64 * 8, data(8, 1), false, batch.add(), 0));
    }
    queue.submit_batch(&mut requests);
    while end_one(&queue, 0) {}
    let results: Vec<_> = batches.map(|b| b.wait()).collect();
    assert_eq!(results, [Ok(()), Err(Errno::EIO), Ok(())]);
    assert_eq!(queue.stats().snapshot().in_flight, 0);
}

fn take(queue: Queue<Fake>) -> Fake {
    let limits = queue.hardware().limits;
    let room = queue.hardware().room;
    Fake {
        disk: MemDisk::with_geometry("inner", limits),
        limits,
        room,
        inside: Mutex::default(),
        flushes: AtomicUsize::new(0),
        started: AtomicUsize::new(0),
        gone: AtomicBool::new(false),
        bad: None,
    }
}

#[test]
fn fua_without_hardware_is_a_flush_behind() {
    let queue = fake(Geometry::simple(256), 4);
    let batch = Batch::new();
    queue.submit(Request::write(0, data(1, 1), true, batch.add(), 0));
    assert!(end_one(&queue, 0));
    assert_eq!((batch.pending(), queue.hardware().flushes.load(SeqCst)), (1, 1));
    assert!(end_one(&queue, 0));
    assert_eq!(batch.wait(), Ok(()));
    assert_eq!(queue.stats().snapshot().requests, [0, 1, 0, 0]);
}

#[test]
fn a_gone_device_answers_everybody() {
    let queue = fake(Geometry::simple(256), 1);
    let batch = Batch::new();
    queue.submit(Request::flush(batch.add(), 0));
    queue.submit(Request::write(0, data(1, 1), false, batch.add(), 0));
    queue.hardware().gone.store(true, SeqCst);
    let inside = core::mem::take(&mut *queue.hardware().inside.lock().unwrap());
    inside.into_iter().for_each(|t| queue.completed(t, Err(Errno::EIO)));
    queue.run();
    assert_eq!(batch.wait(), Err(Errno::EIO));
    assert_eq!(read_at(&queue, 0, &mut [0]), Err(Errno::EIO));
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, bool),
    Zero(u64, u64),
    Flush,
    End(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u64..200, 1usize..40, any::<bool>()).prop_map(|(s, n, f)| Step::Write(s, n, f)),
        1 => (0u64..200, 1u64..40).prop_map(|(s, n)| Step::Zero(s, n)),
        1 => Just(Step::Flush),
        3 => any::<usize>().prop_map(Step::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is split, merged and reordered: everybody is answered, and requests that were not in flight together
    /// took effect in their order.
    #[test]
    fn everything_is_done_once(steps in proptest::collection::vec(step(), 1..60), room in 1usize..5) {
        let queue = fake(small(), room);
        let mut model = vec![0u8; 256 * 512];
        let mut fill = 0u8;
        let mut busy: Vec<(core::ops::Range<u64>, Arc<Batch>)> = Vec::new();
        for step in steps {
            let batch = Batch::new();
            let range = match step {
                Step::End(pick) => { end_one(&queue, pick); continue; }
                Step::Flush => { queue.submit(Request::flush(batch.add(), 0)); 0..0 }
                Step::Write(s, n, _) => s..s + n as u64,
                Step::Zero(s, n) => s..s + n,
            };
            // A submitter waits for what overlaps before it goes on, as the contract says.
            while busy.iter().any(|(r, b)| r.start < range.end && range.start < r.end && b.pending() > 0) {
                prop_assert!(end_one(&queue, 0));
            }
            let bytes = range.start as usize * 512..range.end as usize * 512;
            match step {
                Step::Write(s, n, fua) => {
                    fill = fill.wrapping_add(1);
                    model[bytes].fill(fill);
                    queue.submit(Request::write(s, data(n, fill), fua, batch.add(), 0));
                }
                Step::Zero(s, n) => {
                    model[bytes].fill(0);
                    queue.submit(Request::write_zeroes(s, n, batch.add(), 0));
                }
                _ => {}
            }
            busy.push((range, batch));
        }
        while end_one(&queue, 0) {}
        for (_, batch) in busy {
            prop_assert_eq!(batch.pending(), 0);
            prop_assert_eq!(batch.wait(), Ok(()));
        }
        prop_assert_eq!(queue.stats().snapshot().in_flight, 0);
        prop_assert_eq!(queue.waiting(), 0);
        prop_assert!(queue.hardware().disk.to_image() == model);
    }
}

#[test]
fn only_a_flush_behind_a_write_reaches_the_hardware() {
    let queue = fake(Geometry::simple(256), 4);
    let batch = Batch::new();
    let flushes = |ends: usize| {
        queue.submit(Request::flush(batch.add(), 0));
        let started = queue.hardware().inside.lock().unwrap().iter().filter(|t| t.op == Op::Flush).count();
        (0..ends).for_each(|_| assert!(end_one(&queue, 0)));
        started
    };
    // What the medium had before is not known to be durable.
    assert_eq!(flushes(1), 1);
    assert_eq!(flushes(0), 0);
    queue.submit(Request::write(0, data(8, 1), false, batch.add(), 0));
    // The write has not ended when the flush comes: the flush need not cover it, and the next must.
    assert_eq!(flushes(1), 0);
    assert_eq!(flushes(1), 1);
    assert_eq!(flushes(0), 0);
    // A write that ends while a flush is under way is not covered.
    queue.submit(Request::write(0, data(8, 2), false, batch.add(), 0));
    assert!(end_one(&queue, 0));
    queue.submit(Request::write(0, data(8, 3), false, batch.add(), 0));
    queue.submit(Request::flush(batch.add(), 0));
    assert!(end_one(&queue, 0));
    assert!(end_one(&queue, 0));
    queue.submit(Request::flush(batch.add(), 0));
    assert!(end_one(&queue, 0));
    queue.submit(Request::flush(batch.add(), 0));
    assert!(!end_one(&queue, 0));
    batch.wait().unwrap();
}
