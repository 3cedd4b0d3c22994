//! One thread: what a handle writes is in the log, then home, and comes back.

use super::support::*;
use crate::{BufferCache, Checksums, Journal, OrderedData};
use abi::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn image() -> Option<Image> {
    Image::make(16384, 1024, "")
}

const ALL: [(Checksums, bool); 5] = [
    (Checksums::None, false),
    (Checksums::None, true),
    (Checksums::V2, false),
    (Checksums::V2, true),
    (Checksums::V3, true),
];

/// Fills `block` with `byte` in a handle of its own.
fn fill(j: &Arc<Journal>, cache: &BufferCache, block: u64, byte: u8) -> u64 {
    let h = j.start(1).unwrap();
    let b = cache.read(block).unwrap();
    h.write(&b).unwrap().fill(byte);
    h.tid()
}

#[test]
fn both_recoveries_read_what_was_committed() {
    for (checksums, wide) in ALL {
        let Some(image) = image() else { return };
        let disk = image.disk();
        let (cache, j) = open(disk.clone(), &image, options(checksums, wide));
        let f = &image.free;
        for round in 0..5u8 {
            for block in &f[..40] {
                fill(&j, &cache, *block, round + 1);
            }
            // one that must be escaped
            let h = j.start(1).unwrap();
            let b = cache.read(f[50]).unwrap();
            h.write(&b).unwrap()[..5].copy_from_slice(&[0xC0, 0x3B, 0x39, 0x98, round]);
            h.sync().unwrap();
        }
        let last = fill(&j, &cache, f[3], 99);
        assert!(j.committed_tid() < last);
        // Power cut: nothing is home yet, the last change is nowhere.
        let mut cut = image.with(disk.to_image());
        assert_eq!(cut.block(f[0]), vec![0; 1024], "not checkpointed yet");
        let (ours, report) = cut.recovered().unwrap();
        assert_eq!((report.transactions, report.replayed), (5, 41));
        assert_eq!(ours.block(f[3]), vec![5; 1024]);
        assert_eq!(ours.block(f[50])[..5], [0xC0, 0x3B, 0x39, 0x98, 4]);
        cut.set_needs_recovery();
        let (theirs, o) = cut.recovered_by_e2fsck();
        assert!(ours.essence() == theirs.essence(), "{checksums:?} {wide}: {}", text(&o));
        assert!(ours.check().status.success(), "{}", text(&ours.check()));
        assert!(theirs.check().status.success());
    }
}

#[test]
fn close_leaves_nothing_to_recover() {
    let Some(image) = image() else { return };
    let disk = image.disk();
    let (cache, j) = open(disk.clone(), &image, options(Checksums::V3, true));
    fill(&j, &cache, image.free[0], 7);
    j.close().unwrap();
    assert_eq!(j.start(1).err(), Some(Errno::EROFS));
    let after = image.with(disk.to_image());
    assert_eq!(after.block(image.free[0]), vec![7; 1024]);
    assert_eq!(after.recovered().unwrap().1.transactions, 0);
    // and again: sequences go on
    let (cache, j) = open(disk.clone(), &image, options(Checksums::V3, true));
    assert_eq!(cache.read(image.free[0]).unwrap().read()[5], 7);
    fill(&j, &cache, image.free[0], 8);
    j.force().unwrap();
    let (ours, report) = image.with(disk.to_image()).recovered().unwrap();
    assert_eq!((report.transactions, ours.block(image.free[0])[0]), (1, 8));
}

#[test]
fn the_log_wraps_and_is_checkpointed() {
    let Some(image) = image() else { return };
    let disk = image.disk();
    let (cache, j) = open(disk.clone(), &image, options(Checksums::V3, true));
    for round in 0..200u8 {
        for block in &image.free[..60] {
            fill(&j, &cache, *block, round);
        }
        j.force().unwrap();
        if round % 20 == 7 {
            let (ours, _) = image.with(disk.to_image()).recovered().unwrap();
            assert!(image.free[..60].iter().all(|b| ours.block(*b)[9] == round), "round {round}");
        }
    }
    // Each round takes over what the one before had pending: 12 000 blocks were logged and none written home.
    assert_eq!(j.stats().checkpointed, 0);
    for block in &image.free[60..90] {
        fill(&j, &cache, *block, 1);
        j.force().unwrap();
        j.background();
    }
    for round in 0..40u8 {
        for block in &image.free[..60] {
            fill(&j, &cache, *block, 160 + round);
        }
        j.force().unwrap();
    }
    assert_eq!(j.stats().checkpointed, 30, "only what stood still was written");
    j.checkpoint().unwrap();
    let home = image.with(disk.to_image());
    assert!(image.free[..60].iter().all(|b| home.block(*b)[9] == 199));
}

#[test]
fn what_was_freed_is_not_brought_back() {
    let Some(image) = image() else { return };
    let disk = image.disk();
    let (cache, j) = open(disk.clone(), &image, options(Checksums::V3, true));
    let (a, b) = (image.free[0], image.free[1]);
    fill(&j, &cache, a, 1);
    fill(&j, &cache, b, 1);
    j.force().unwrap();
    let h = j.start(4).unwrap();
    let buf = cache.read(a).unwrap();
    h.write(&buf).unwrap().fill(2);
    h.forget(a).unwrap();
    h.forget(b).unwrap();
    // b is given out again as metadata in the same transaction
    let fresh = h.create(b).unwrap();
    h.write(&fresh).unwrap()[0] = 3;
    let tid = h.tid();
    drop((h, fresh));
    j.sync(tid).unwrap();
    assert_eq!(j.committed_tid(), tid);
    // a is given out as data now, which no recovery and no checkpoint may touch
    block::write_at(&*disk, a * 1024, &[9; 1024]).unwrap();
    let mut cut = image.with(disk.to_image());
    let (ours, report) = cut.recovered().unwrap();
    assert_eq!(report.revoked, 1);
    assert_eq!((ours.block(a)[0], ours.block(b)[0], ours.block(b)[1]), (9, 3, 0));
    cut.set_needs_recovery();
    assert!(cut.recovered_by_e2fsck().0.essence() == ours.essence());
    j.checkpoint().unwrap();
    let home = image.with(disk.to_image());
    assert_eq!((home.block(a)[0], home.block(b)[0]), (9, 3));
}

#[test]
fn a_writer_does_not_disturb_what_is_committed() {
    let Some(image) = image() else { return };
    let disk = image.disk();
    let (cache, j) = open(disk.clone(), &image, options(Checksums::V3, true));
    let a = image.free[0];
    fill(&j, &cache, a, 1);
    j.force().unwrap();
    let tid = fill(&j, &cache, a, 2);
    // A checkpoint while transaction `tid` runs writes the committed version.
    j.checkpoint_all(false).unwrap();
    assert_eq!(image.with(disk.to_image()).block(a)[0], 1);
    assert_eq!(cache.read(a).unwrap().read()[0], 2);
    j.sync(tid).unwrap();
    assert_eq!(image.with(disk.to_image()).recovered().unwrap().0.block(a)[0], 2);
}

struct Ordered(AtomicUsize);
impl OrderedData for Ordered {
    fn write_and_wait(&self) -> abi::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn ordered_data_goes_first_and_credits_are_bounded() {
    let Some(image) = image() else { return };
    let (cache, j) = open(image.disk(), &image, options(Checksums::V3, true));
    let ordered = Arc::new(Ordered(AtomicUsize::new(0)));
    assert_eq!(j.start(j.max_credits() + 1).err(), Some(Errno::ENOSPC));
    let mut h = j.start(2).unwrap();
    h.order(ordered.clone());
    assert_eq!(h.extend(j.max_credits()), Err(Errno::EAGAIN));
    h.extend(5).unwrap();
    assert_eq!(h.credits(), 7);
    let b = cache.read(image.free[0]).unwrap();
    h.write(&b).unwrap()[0] = 1;
    h.write(&b).unwrap()[1] = 1;
    assert_eq!(h.credits(), 6);
    let first = h.tid();
    h.restart(j.max_credits()).unwrap();
    assert!(h.tid() > first, "a full transaction was committed");
    assert_eq!(ordered.0.load(Ordering::Relaxed), 1);
    assert_eq!(j.committed_tid(), first);
}

#[test]
fn without_a_journal_sync_writes() {
    let disk = Arc::new(block::MemDisk::new("plain", 4096));
    let cache = BufferCache::new(disk.clone(), 1024).unwrap();
    let j = Journal::none(cache.clone());
    let tid = fill(&j, &cache, 5, 4);
    assert_eq!(tid, 0);
    cache.drop_clean();
    assert_eq!(disk.to_image()[5 * 1024], 0);
    j.sync(tid).unwrap();
    assert_eq!(disk.to_image()[5 * 1024], 4);
    assert_eq!(cache.stats().buffers, 1);
    cache.drop_clean();
    assert_eq!(cache.stats().buffers, 0);
    j.close().unwrap();
}

#[test]
fn reclaim_takes_what_is_clean_only() {
    let Some(image) = image() else { return };
    let (cache, j) = open(image.disk(), &image, options(Checksums::V3, true));
    cache.prefetch(&(0..100).collect::<Vec<_>>());
    let held = cache.read(3).unwrap();
    held.set_flags(1);
    fill(&j, &cache, image.free[0], 1);
    j.force().unwrap();
    cache.drop_clean();
    assert_eq!(cache.stats().buffers, 2, "one is held, one awaits its checkpoint");
    assert_eq!(cache.read(3).unwrap().flags(), 1);
    j.checkpoint().unwrap();
    drop(held);
    cache.drop_clean();
    assert_eq!(cache.stats().buffers, 0);
    assert_eq!(cache.read(3).unwrap().flags(), 0);
}
