//! Remounts and mount options: each does what it says, and what is on the disk at any moment is whole.

use super::host::*;
use crate::{DataFs, Options};
use abi::{Errno, Timespec};
use block::{BlockDevice, MemDisk};
use platform::SliceSource;
use std::sync::Arc;
use vfs::{FileSystem, SetAttr, SetTime};

fn read_only() -> Options {
    Options { read_only: true, ..options() }
}

/// A copy of the disk as it is now, which is what a power cut would leave of a disk without a cache.
fn copy(disk: &Arc<MemDisk>) -> Arc<MemDisk> {
    Arc::new(MemDisk::from_image("copy", &disk.to_image()).unwrap())
}

fn judged(disk: &Arc<MemDisk>, image: &std::path::PathBuf) {
    std::fs::write(image, disk.to_image()).unwrap();
    fsck(image);
}

#[test]
fn writing_begins_and_ends_by_remounts() {
    for args in [&["-b", "1024"][..], &["-b", "4096"], &["-O", "^has_journal"], &["-O", "^metadata_csum"]] {
        let dir = Dir::new();
        let image = mke2fs(&dir, 16, args);
        let disk = disk(&image);
        let before = disk.to_image();
        let fs = mount_with(&disk, read_only());
        let root = fs.root().unwrap();
        assert_eq!(root.create(b"f", &new(vfs::NewKind::Regular)).unwrap_err(), Errno::EROFS);
        assert_eq!(disk.to_image(), before, "a read-only mount changes nothing");
        for round in 0..3 {
            fs.remount("rw").unwrap();
            assert!(!fs.read_only());
            let f = file(&root, &format!("f{round}"));
            write(&f, 0, &pattern(round, 100_000));
            f.fsync(false).unwrap();
            if fs.vol.store.has_journal() {
                // Cut here, recovery has all of it.
                let cut = copy(&disk);
                let other = mount(&cut);
                assert_eq!(read(&walk(&other, &format!("f{round}")).unwrap()), pattern(round, 100_000));
                unmount(other);
                judged(&cut, &image);
            }
            write(&f, 100_000, &pattern(round + 10, 5000));
            fs.remount("ro").unwrap();
            assert!(fs.read_only());
            assert_eq!(f.write_at(None, &mut SliceSource::new(b"x")).unwrap_err(), Errno::EROFS);
            // Clean for everybody at this moment, journal empty.
            judged(&copy(&disk), &image);
            let now = disk.to_image();
            assert_eq!(read(&f)[100_000..], pattern(round + 10, 5000));
            assert_eq!(disk.to_image(), now, "reading changes nothing");
        }
        drop(root);
        check(fs, &disk, &image);
    }
}

#[test]
fn a_read_only_mount_leaves_orphans_to_the_remount() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &[]);
    let disk = disk(&image);
    let fs = mount(&disk);
    let root = fs.root().unwrap();
    let f = file(&root, "f");
    write(&f, 0, &pattern(1, 1 << 20));
    fs.sync().unwrap();
    let free = fs.statfs().unwrap().bfree;
    root.unlink(b"f").unwrap();
    assert_eq!(fs.remount("ro").unwrap_err(), Errno::EBUSY, "a removed file is open");
    fs.commit().unwrap();
    let cut = copy(&disk);
    drop(f);
    fs.remount("ro").unwrap();
    drop(root);
    unmount(fs);

    let fs = mount_with(&cut, read_only());
    assert_eq!(fs.statfs().unwrap().bfree, free);
    fs.remount("rw").unwrap();
    fs.sync().unwrap();
    assert!(fs.statfs().unwrap().bfree >= free + (1 << 20) / 4096);
    check(fs, &cut, &image);
}

#[test]
fn what_cannot_be_written_stays_read_only() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &["-O", "quota"]);
    let disk = disk(&image);
    let fs = mount(&disk);
    assert!(fs.read_only());
    assert_eq!(fs.remount("rw").unwrap_err(), Errno::EROFS);
    assert_eq!(fs.remount("rw,bogus").unwrap_err(), Errno::EINVAL);
    fs.remount("ro,noatime").unwrap();
    drop(fs);
    // Damage ends writing until somebody has looked.
    let image = mke2fs(&dir, 16, &[]);
    debugfs_write(&image, "write /dev/null f\nsif f mode 0\n");
    let disk = super::host::disk(&image);
    let fs = mount(&disk);
    assert_eq!(walk(&fs, "f").map(drop).unwrap_err(), Errno::EUCLEAN);
    assert!(fs.read_only());
    assert_eq!(fs.remount("rw").unwrap_err(), Errno::EROFS);
    drop(fs);
    // errors=continue goes on.
    let fs = mount_with(&super::host::disk(&image), options().parse("errors=continue").unwrap());
    assert_eq!(walk(&fs, "f").map(drop).unwrap_err(), Errno::EUCLEAN);
    file(&fs.root().unwrap(), "g");
    assert!(!fs.read_only());
}

#[test]
fn options_about_access_times_act() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &[]);
    let disk = disk(&image);
    let fs = mount(&disk);
    let root = fs.root().unwrap();
    let (f, d) = (file(&root, "f"), mkdir(&root, "d"));
    write(&f, 0, b"x");
    // The access lies before or behind the change, and long ago or not.
    let day = 86400;
    let now = platform::realtime_ns() as i64 / 1_000_000_000;
    let stale = |i: &Arc<dyn vfs::Inode>, access: i64, modify: i64| {
        let at = |sec| Some(SetTime::At(Timespec { sec, nsec: 0 }));
        i.setattr(&SetAttr { atime: at(access), mtime: at(modify), ..SetAttr::default() }).unwrap();
        let _ = i.read_at(0, &mut platform::SliceSink::new(&mut [0; 4]));
        let _ = i.readdir(2, &mut |_| true);
        i.getattr().unwrap().atime.sec != access
    };
    // The change of status is now: later accesses only are "behind the change".
    assert!(stale(&f, now - 10 * day, now - 20 * day), "relatime: older than a day");
    assert!(!stale(&f, now + 100, now - 20 * day), "relatime: behind the change");
    assert!(stale(&d, now - 10 * day, now - 20 * day));
    fs.remount("strictatime").unwrap();
    assert!(stale(&f, now + 100, now - 20 * day));
    fs.remount("noatime").unwrap();
    assert!(!stale(&f, now - 10 * day, now) && !stale(&d, now - 10 * day, now));
    fs.remount("relatime,nodiratime").unwrap();
    assert!(stale(&f, now - 10 * day, now) && !stale(&d, now - 10 * day, now));
    fs.remount("diratime").unwrap();
    assert!(stale(&d, now - 10 * day, now));
    drop((f, d, root));
    check(fs, &disk, &image);
}

fn there(disk: &Arc<MemDisk>, path: &str) -> bool {
    let fs = mount(&copy(disk));
    let found = walk(&fs, path).is_ok();
    unmount(fs);
    found
}

#[test]
fn options_about_durability_act() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &[]);
    let disk = disk(&image);
    let fs = mount_with(&disk, options().parse("commit=1").unwrap());
    let root = fs.root().unwrap();
    file(&root, "late");
    assert!(!there(&disk, "late"));
    // commit=1: a round of the thread behind the mount, a second later.
    let keeper = fs.keeper();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    keeper.round().unwrap();
    assert!(there(&disk, "late"));
    fs.remount("commit=300,sync").unwrap();
    let f = file(&root, "now");
    assert!(there(&disk, "now"));
    write(&f, 0, &[1; 3000]);
    let other = mount(&copy(&disk));
    assert_eq!(read(&walk(&other, "now").unwrap()), [1; 3000]);
    unmount(other);
    fs.remount("async,dirsync").unwrap();
    mkdir(&root, "dir");
    assert!(there(&disk, "dir"));
    fs.remount("nodirsync").unwrap();
    mkdir(&root, "later");
    assert!(!there(&disk, "later"));
    assert_eq!(fs.options(), ",commit=300");
    drop((f, root));
    check(fs, &disk, &image);
}

#[test]
fn discard_tells_the_device_of_what_was_freed() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &["-b", "4096"]);
    for (option, gone) in [("discard", true), ("nodiscard", false)] {
        let disk = super::host::disk(&image);
        let fs = mount_with(&disk, options().parse(option).unwrap());
        let root = fs.root().unwrap();
        let f = file(&root, "f");
        write(&f, 0, &pattern(1, 1 << 20));
        fs.sync().unwrap();
        let at = f.extents(0..u64::MAX, 1).unwrap()[0].physical as usize;
        drop(f);
        root.unlink(b"f").unwrap();
        fs.sync().unwrap();
        fs.sync().unwrap();
        assert_eq!(disk.to_image()[at..at + 4096] == [0; 4096], gone, "{option}");
        drop(root);
        check(fs, &disk, &dir.path("judged"));
    }
}

#[test]
fn a_disk_that_cannot_be_written() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &[]);
    let bytes = std::fs::read(&image).unwrap();
    let plain = MemDisk::from_image("test", &bytes).unwrap();
    let geometry = block::Geometry { read_only: true, ..plain.geometry() };
    let blank = MemDisk::with_geometry("blank", geometry);
    assert!(DataFs::mount(Arc::new(blank), cache(), options(), 1).is_err());
}
