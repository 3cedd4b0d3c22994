//! Damaged journals: refused with a reason, or recovered to the last sound commit; never a panic, never an endless loop,
//! and nothing written where it was refused.

use super::support::*;
use crate::{Checksums, Refusal};
use proptest::prelude::*;
use std::sync::OnceLock;

/// A file system whose journal holds six transactions, closed by a power cut.
fn dirty() -> Option<&'static Image> {
    static IMAGE: OnceLock<Option<Image>> = OnceLock::new();
    IMAGE
        .get_or_init(|| {
            let image = Image::make(4096, 1024, "")?;
            let disk = image.disk();
            let (cache, j) = open(disk.clone(), &image, options(Checksums::V3, true));
            for round in 0..6u8 {
                let h = j.start(80).unwrap();
                for block in &image.free[..70] {
                    h.write(&cache.read(*block).unwrap()).unwrap().fill(round + 1);
                }
                h.forget(image.free[90 + round as usize]).unwrap();
                h.sync().unwrap();
            }
            let mut cut = image.with(disk.to_image());
            cut.set_needs_recovery();
            Some(cut)
        })
        .as_ref()
}

/// Where journal block `block` is in the image, in bytes.
fn place(image: &Image, block: u32) -> usize {
    image.map.find(block).unwrap().0 as usize * image.block_size
}

fn flip(image: &mut Image, block: u32) {
    let at = place(image, block) + 600;
    image.bytes[at] ^= 4;
}

#[test]
fn what_is_no_journal_is_refused_by_name() {
    let Some(image) = dirty() else { return };
    let sb = place(image, 0);
    type Change = fn(&mut [u8]);
    let cases: [(Change, Refusal); 9] = [
        (|b| b[0] = 0, Refusal::NotAJournal),
        (|b| b[7] = 3, Refusal::Version),
        (|b| b[0x2b] |= 0x20, Refusal::FastCommit),
        (|b| b[0x29] |= 0x10, Refusal::Features(0x10_0000)),
        (|b| b[0x100] ^= 1, Refusal::Checksum),
        (|b| b[0x0e] = 8, Refusal::Geometry),
        (|b| b[0x11] = 1, Refusal::Geometry),
        (|b| b[0x14..0x18].fill(0), Refusal::Geometry),
        (|b| b[0x1d] = 9, Refusal::Geometry),
    ];
    for (change, why) in cases {
        let mut bad = image.clone();
        let raw = &mut bad.bytes[sb..sb + 1024];
        change(raw);
        if why != Refusal::Checksum {
            raw[0xfc..0x100].fill(0);
            let crc = crate::crc32c(!0, raw);
            raw[0xfc..0x100].copy_from_slice(&crc.to_be_bytes());
        }
        assert_eq!(bad.recovered().err(), Some(why), "{why}");
    }
}

#[test]
fn damage_in_the_middle_is_refused_and_at_the_end_cuts_off() {
    let Some(image) = dirty() else { return };
    // Block 1 is the first revoke block, 2 the first descriptor, 3 the first copy: void, since all six have the block.
    let try_flip = |block: u32| {
        let mut bad = image.clone();
        flip(&mut bad, block);
        bad.recovered().map(|(i, r)| (r.transactions, i.block(image.free[0])[0]))
    };
    let whole = image.recovered().unwrap();
    assert_eq!((whole.1.transactions, whole.0.block(image.free[0])[0]), (6, 6));
    assert_eq!(try_flip(2), Err(Refusal::Corrupt(2)));
    assert_eq!(try_flip(3), Ok((6, 6)));
    // 70 tags need two descriptors of 1024 bytes: 1 + 70 + 2 + 1 blocks a transaction.
    let last = 1 + 5 * 74;
    assert_eq!(try_flip(last + 2), Err(Refusal::Corrupt(last + 2)), "a copy in the last transaction");
    assert_eq!(try_flip(last + 73), Ok((5, 5)), "its commit block");
    // e2fsck cuts off at the same place
    let mut bad = image.clone();
    flip(&mut bad, last + 73);
    let (theirs, _) = bad.recovered_by_e2fsck();
    assert!(theirs.essence() == bad.recovered().unwrap().0.essence());
}

#[test]
fn refused_means_untouched() {
    let Some(image) = dirty() else { return };
    let mut bad = image.clone();
    flip(&mut bad, 2);
    let disk = bad.disk();
    assert!(crate::recover(&*disk, 1024, &bad.map, &bad.uuid).is_err());
    assert!(disk.to_image() == bad.bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes anywhere in the journal.
    #[test]
    fn random_damage_never_panics(
        hits in proptest::collection::vec((0u32..460, 0usize..1024, any::<u8>()), 1..20),
        fix in any::<bool>(),
    ) {
        let Some(image) = dirty() else { return Ok(()) };
        let mut bad = image.clone();
        for (block, at, value) in hits {
            let at = place(&bad, block) + if block == 0 { at % 0x58 } else if at & 1 == 0 { at % 64 } else { at };
            bad.bytes[at] = value;
        }
        if fix {
            let sb = place(&bad, 0);
            bad.bytes[sb + 0xfc..sb + 0x100].fill(0);
            let crc = crate::crc32c(!0, &bad.bytes[sb..sb + 1024]);
            bad.bytes[sb + 0xfc..sb + 0x100].copy_from_slice(&crc.to_be_bytes());
        }
        let disk = bad.disk();
        if crate::recover(&*disk, 1024, &bad.map, &bad.uuid).is_err() {
            prop_assert!(disk.to_image() == bad.bytes);
        }
    }

    /// The same without checksums, which then catch nothing.
    #[test]
    fn random_logs_never_panic(
        blocks in proptest::collection::vec((1u32..200, 0u32..7, 0u32..4, proptest::collection::vec(any::<u8>(), 64)), 1..40),
        wide in any::<bool>(),
    ) {
        let Some(image) = dirty() else { return Ok(()) };
        let mut bad = image.clone();
        let sb = place(&bad, 0);
        bad.bytes[sb + 0x28..sb + 0x2c].copy_from_slice(&(1 | u32::from(wide) << 1).to_be_bytes());
        let first = crate::format::get32(&bad.bytes[sb..], 0x18);
        for (i, (_, kind, later, rest)) in blocks.iter().enumerate() {
            let at = place(&bad, 1 + i as u32);
            crate::format::put(&mut bad.bytes, at, &crate::format::MAGIC.to_be_bytes());
            crate::format::put(&mut bad.bytes, at + 4, &kind.to_be_bytes());
            crate::format::put(&mut bad.bytes, at + 8, &(first + later).to_be_bytes());
            crate::format::put(&mut bad.bytes, at + 12, rest);
        }
        let disk = bad.disk();
        let _ = crate::recover(&*disk, 1024, &bad.map, &bad.uuid);
    }
}
