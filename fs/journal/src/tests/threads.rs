//! Many threads: atomicity of handles, group commit, the background thread.

use super::support::*;
use crate::Checksums;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Each thread moves amounts between counters in pairs of blocks: whatever is recovered, the sum must be the same.
#[test]
fn a_recovered_state_is_one_between_operations() {
    let Some(image) = Image::make(8192, 1024, "") else { return };
    let disk = image.disk();
    let (cache, journal) = open(disk.clone(), &image, options(Checksums::V3, true));
    let accounts = &image.free[..16];
    let get = |b: &[u8]| u64::from_le_bytes(b[..8].try_into().unwrap());
    let h = journal.start(16).unwrap();
    for block in accounts {
        h.write(&cache.read(*block).unwrap()).unwrap()[..8].copy_from_slice(&1000u64.to_le_bytes());
    }
    h.sync().unwrap();
    let stop = AtomicBool::new(false);
    let left = AtomicU64::new(4);
    let mut images = Vec::new();
    journal.set_interval_ns(3_000_000);
    std::thread::scope(|s| {
        s.spawn(|| journal.run(&stop));
        for t in 0..4u64 {
            let (cache, journal, left) = (&cache, &journal, &left);
            s.spawn(move || {
                let mut rng = Rng(t);
                for n in 0..400 {
                    let h = journal.start(2).unwrap();
                    let i = rng.below(15) as usize;
                    let j = i + 1 + rng.below(15 - i as u64) as usize;
                    let (a, b) = (cache.read(accounts[i]).unwrap(), cache.read(accounts[j]).unwrap());
                    let (mut a, mut b) = (h.write(&a).unwrap(), h.write(&b).unwrap());
                    let (x, y) = (get(&a), get(&b));
                    let amount = rng.below(x.max(1));
                    a[..8].copy_from_slice(&(x - amount.min(x)).to_le_bytes());
                    b[..8].copy_from_slice(&(y + amount.min(x)).to_le_bytes());
                    drop((a, b));
                    if n % 10 == 0 {
                        h.sync().unwrap();
                    }
                }
                left.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while left.load(Ordering::Relaxed) > 0 {
            images.push(disk.to_image());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        stop.store(true, Ordering::Release);
        journal.request(0);
    });
    images.push(disk.to_image());
    for bytes in images.into_iter().rev().take(40) {
        let (after, _) = image.with(bytes).recovered().unwrap();
        let sum: u64 = accounts.iter().map(|b| get(after.block(*b))).sum();
        assert_eq!(sum, 16_000);
    }
}

#[test]
fn many_syncs_share_a_commit() {
    let Some(image) = Image::make(8192, 1024, "") else { return };
    let (cache, journal) = open(image.disk(), &image, options(Checksums::V3, true));
    // Eight changes are in before the first of eight syncs: one commit serves them all.
    let tids: Vec<u64> = (0..8)
        .map(|n| {
            let h = journal.start(1).unwrap();
            h.write(&cache.read(image.free[n]).unwrap()).unwrap()[0] = 1;
            h.tid()
        })
        .collect();
    let before = journal.stats().commits;
    std::thread::scope(|s| {
        for tid in tids {
            let journal = &journal;
            s.spawn(move || journal.sync(tid).unwrap());
        }
    });
    assert_eq!(journal.stats().commits, before + 1);
}

#[test]
fn full_transactions_make_way_under_many_starters() {
    let Some(image) = Image::make(8192, 1024, "") else { return };
    let disk = image.disk();
    let (cache, journal) = open(disk.clone(), &image, options(Checksums::V3, true));
    std::thread::scope(|s| {
        for t in 0..6u64 {
            let (cache, journal, image) = (&cache, &journal, &image);
            s.spawn(move || {
                let mut rng = Rng(t);
                for _ in 0..150 {
                    let h = journal.start(200).unwrap();
                    for _ in 0..rng.below(60) {
                        let block = image.free[rng.below(96) as usize];
                        if rng.below(20) == 0 {
                            h.forget(block).unwrap();
                            h.create(block).unwrap();
                        } else if let Ok(b) = cache.read(block) {
                            // Another handle may have freed it meanwhile: then it has no content.
                            if let Ok(mut w) = h.write(&b) {
                                w[0] = w[0].wrapping_add(1);
                            }
                        }
                    }
                }
            });
        }
    });
    journal.close().unwrap();
    assert_eq!(image.with(disk.to_image()).recovered().unwrap().1.transactions, 0);
    assert!(journal.stats().commits > 20);
}
