//! Devices that fail: the journal ends itself, nobody hangs, the medium stays recoverable.

use super::support::*;
use crate::{BufferCache, Checksums, Journal};
use abi::Errno;
use block::testing::{Fault, FaultyDisk, What};
use std::sync::Arc;

struct Setup {
    image: Image,
    disk: Arc<block::MemDisk>,
    faulty: Arc<FaultyDisk>,
    cache: Arc<BufferCache>,
    journal: Arc<Journal>,
}

fn setup() -> Option<Setup> {
    let image = Image::make(8192, 1024, "")?;
    let disk = image.disk();
    let faulty = Arc::new(FaultyDisk::new(disk.clone()));
    let (cache, journal) = open(faulty.clone(), &image, options(Checksums::V3, true));
    Some(Setup { image, disk, faulty, cache, journal })
}

impl Setup {
    fn change(&self, n: usize, byte: u8) -> abi::Result<u64> {
        let h = self.journal.start(1)?;
        let b = self.cache.read(self.image.free[n])?;
        h.write(&b)?.fill(byte);
        Ok(h.tid())
    }

    fn dead(&self) {
        assert_eq!(self.journal.aborted(), Some(Errno::EIO));
        assert_eq!(self.journal.start(1).err(), Some(Errno::EROFS));
        assert_eq!(self.journal.close(), Err(Errno::EIO));
        self.faulty.heal();
        let (after, _) = self.image.with(self.disk.to_image()).recovered().unwrap();
        assert_eq!(after.block(self.image.free[0])[0], 1, "the last commit that was acknowledged");
    }
}

#[test]
fn a_failed_log_write_or_flush_aborts() {
    for what in [What::Writes, What::Flushes] {
        let Some(s) = setup() else { return };
        let tid = s.change(0, 1).unwrap();
        s.journal.sync(tid).unwrap();
        s.faulty.inject(Fault::once(what));
        let open = s.journal.start(3).unwrap();
        let tid = s.change(0, 2).unwrap();
        let buffer = s.cache.read(s.image.free[1]).unwrap();
        drop(open);
        assert_eq!(s.journal.sync(tid), Err(Errno::EIO));
        assert_eq!(s.journal.sync(tid), Err(Errno::EIO));
        drop(buffer);
        s.dead();
    }
}

#[test]
fn a_failed_checkpoint_aborts_and_the_log_keeps_everything() {
    let Some(s) = setup() else { return };
    s.journal.sync(s.change(0, 1).unwrap()).unwrap();
    let home = s.image.free[0] * 2;
    s.faulty.inject(Fault::always(What::Writes).at(home..home + 2));
    assert_eq!(s.journal.checkpoint(), Err(Errno::EIO));
    s.dead();
}

#[test]
fn waiters_of_a_failed_group_commit_all_hear_of_it() {
    let Some(s) = setup() else { return };
    s.journal.sync(s.change(0, 1).unwrap()).unwrap();
    s.faulty.inject(Fault::always(What::Flushes));
    std::thread::scope(|scope| {
        for n in 0..8 {
            let s = &s;
            scope.spawn(move || {
                for _ in 0..20 {
                    match s.change(n, 2) {
                        Ok(tid) => assert_eq!(s.journal.sync(tid), Err(Errno::EIO)),
                        Err(e) => assert_eq!(e, Errno::EROFS),
                    }
                }
            });
        }
    });
    assert_eq!(s.journal.aborted(), Some(Errno::EIO));
}

#[test]
fn a_read_error_is_the_readers_alone() {
    let Some(s) = setup() else { return };
    s.faulty.inject(Fault::once(What::Reads));
    assert_eq!(s.cache.read(s.image.free[0]).err(), Some(Errno::EIO));
    assert!(s.cache.read(s.image.free[0]).is_ok());
    assert_eq!(s.journal.aborted(), None);
}

#[test]
fn the_file_system_may_abort() {
    let Some(s) = setup() else { return };
    s.journal.sync(s.change(0, 1).unwrap()).unwrap();
    let h = s.journal.start(2).unwrap();
    s.journal.abort(Errno::EUCLEAN);
    let b = s.cache.read(s.image.free[1]).unwrap();
    assert_eq!(h.write(&b).err(), Some(Errno::EROFS));
    assert_eq!(h.sync(), Err(Errno::EIO));
    let (_, report) = s.image.with(s.disk.to_image()).recovered().unwrap();
    assert_eq!(report.errno, -Errno::EUCLEAN.raw());
}
