//! Bad input that a disk may be: each with an error that says what is wrong, and nothing lost that was safe before. (What is
//! no ext4 at all, or has an impossible shape: `read.rs`. Flipped bits: `fuzz.rs`.)

use super::host::*;
use crate::{DataFs, OnError, Options};
use abi::Errno;
use block::{BlockDevice, MemDisk};
use std::sync::{Arc, Mutex};
use vfs::{FileSystem, NewKind};

static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What the log said that has `word` in it.
fn said(word: &str) -> bool {
    SAID.lock().unwrap().iter().any(|m| m.contains(word))
}

fn listening() -> Options {
    Options { log: |m| SAID.lock().unwrap().push(m.to_owned()), ..Options::default() }
}

fn refusal(image: &[u8]) -> (Errno, String) {
    let disk: Arc<dyn BlockDevice> = Arc::new(MemDisk::from_image("t", image).unwrap());
    let refused = DataFs::mount(disk, cache(), options(), 1).expect_err("mounted");
    (refused.errno, refused.why)
}

/// A disk in the middle of its use, and where its journal lies.
fn dirty(dir: &Dir, uuid: &str) -> (Vec<u8>, std::ops::Range<usize>) {
    let image = mke2fs(dir, 16, &["-b", "1024", "-U", uuid]);
    let blocks = debugfs(&image, "blocks <8>");
    let blocks: Vec<usize> = blocks.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    assert!(blocks.windows(2).all(|w| w[0] + 1 == w[1]), "the journal is in one piece");
    let disk = disk(&image);
    let fs = mount(&disk);
    let root = fs.root().unwrap();
    for i in 0..50 {
        file(&root, &format!("f{i}"));
    }
    fs.commit().unwrap();
    let cut = disk.to_image();
    drop(root);
    unmount(fs);
    (cut, blocks[0] * 1024..(blocks[blocks.len() - 1] + 1) * 1024)
}

#[test]
fn a_journal_from_another_disk() {
    let dir = Dir::new();
    let (mut one, place) = dirty(&dir, "11111111-1111-1111-1111-111111111111");
    let (two, other) = dirty(&dir, "22222222-2222-2222-2222-222222222222");
    assert_eq!(place, other);
    mount(&Arc::new(MemDisk::from_image("t", &one).unwrap()));
    one[place.clone()].copy_from_slice(&two[place]);
    let before = one.clone();
    let (errno, why) = refusal(&one);
    assert_eq!(errno, Errno::EUCLEAN);
    assert!(why.contains("another file system"), "{why}");
    let disk = Arc::new(MemDisk::from_image("t", &one).unwrap());
    let device: Arc<dyn BlockDevice> = disk.clone();
    // Not for reading either: what is in the log is not known.
    assert!(DataFs::mount(device, cache(), Options { read_only: true, ..options() }, 1).is_err());
    assert_eq!(disk.to_image(), before, "and nothing was touched");
}

/// Only the superblock's flag says that a journal matters: without it an old log stays where it is, also for later recoveries.
#[test]
fn a_journal_that_is_not_needed() {
    let dir = Dir::new();
    let (cut, _) = dirty(&dir, "33333333-3333-3333-3333-333333333333");
    let image = dir.path("image");
    std::fs::write(&image, &cut).unwrap();
    debugfs_write(&image, "feature -needs_recovery\n");
    for options in [options(), Options { read_only: true, ..options() }] {
        let disk = disk(&image);
        let fs = mount_with(&disk, options);
        fs.remount("rw").unwrap();
        assert!(walk(&fs, "f7").is_err(), "the log was replayed");
        file(&fs.root().unwrap(), "new");
        fs.commit().unwrap();
        let again = mount(&Arc::new(MemDisk::from_image("t", &disk.to_image()).unwrap()));
        assert!(walk(&again, "new").is_ok() && walk(&again, "f7").is_err());
        assert!(!again.saw_errors() && !fs.saw_errors());
    }
}

/// The second half was never written: what lies in the first is there, what does not is an error, not a panic or a loop.
#[test]
fn a_half_written_disk() {
    let dir = Dir::new();
    for args in [&["-b", "1024"][..], &["-b", "1024", "-O", "^flex_bg"], &["-b", "1024", "-O", "^metadata_csum"]] {
        let image = mke2fs(&dir, 32, args);
        let disk = disk(&image);
        let fs = mount(&disk);
        let root = fs.root().unwrap();
        for n in 0..12 {
            let f = file(&root, &format!("f{n}"));
            write(&f, 0, &pattern(n, 1 << 20));
        }
        drop(root);
        unmount(fs);
        let mut half = disk.to_image();
        let middle = half.len() / 2;
        half[middle..].fill(0);
        let device: Arc<dyn BlockDevice> = Arc::new(MemDisk::from_image("t", &half).unwrap());
        // Whether it mounts depends on where the metadata lies; a reason comes if not.
        let fs = match DataFs::mount(device, cache(), Options { on_error: OnError::RemountReadOnly, ..listening() }, 1)
        {
            Ok(fs) => fs,
            Err(refused) => {
                assert!(!refused.why.is_empty());
                continue;
            }
        };
        let whole = (0..12).filter(|n| {
            walk(&fs, &format!("f{n}")).is_ok_and(|f| {
                let mut buf = vec![0; 1 << 20];
                f.read_at(0, &mut platform::SliceSink::new(&mut buf)) == Ok(1 << 20) && buf == pattern(*n, 1 << 20)
            })
        });
        assert!(whole.count() > 0, "{args:?}");
        for n in 0..40 {
            let Ok(f) = fs.root().unwrap().create(format!("new{n}").as_bytes(), &new(NewKind::Regular)) else { break };
            let _ = f.write_at(Some(0), &mut platform::SliceSource::new(&pattern(n, 1 << 19)));
            let _ = f.fsync(false);
        }
        if fs.saw_errors() {
            assert!(said("group"), "{args:?}: {:?}", SAID.lock().unwrap());
        }
    }
}

/// Every kind of change meets the end of space within its transaction: each is done or not done, and what was there stays.
#[test]
fn a_disk_that_fills_while_transactions_are_open() {
    let dir = Dir::new();
    for args in [&["-b", "1024", "-N", "4000"][..], &["-b", "4096", "-N", "2000"], &["-b", "1024", "-N", "200"]] {
        let image = mke2fs(&dir, 8, args);
        let disk = disk(&image);
        let fs = mount(&disk);
        let root = fs.root().unwrap();
        let keep = file(&root, "keep");
        write(&keep, 0, &pattern(1, 200_000));
        keep.fsync(false).unwrap();
        let d = mkdir(&root, "d");
        let fill = file(&root, "fill");
        let before = fill.write_errors().unwrap().sample();
        let mut at = 0;
        while fill.write_at(Some(at), &mut platform::SliceSource::new(&pattern(at, 60_000))).is_ok_and(|(_, n)| n > 0) {
            at += 60_000;
        }
        let long = "n".repeat(200);
        let mut full = 0;
        let mut done = Vec::new();
        for i in 0..3000u32 {
            let name = format!("{i}-{}", &long[..(i % 190) as usize]);
            let made = match i % 4 {
                0 => d.create(name.as_bytes(), &new(NewKind::Regular)),
                1 => d.create(name.as_bytes(), &new(NewKind::Dir)),
                2 => d.create(name.as_bytes(), &new(NewKind::Symlink(&[b'l'; 700]))),
                _ => d.link(name.as_bytes(), &keep).map(|()| keep.clone()),
            };
            match made {
                Ok(inode) => {
                    if i % 4 == 0 {
                        let set = inode.set_xattr(b"user.big", Some(&[7; 600]), 0);
                        assert!(set.is_ok() || set == Err(Errno::ENOSPC), "{set:?}");
                    }
                    done.push(name);
                }
                Err(e) => {
                    assert_eq!(e, Errno::ENOSPC, "{name}");
                    full += 1;
                }
            }
        }
        assert!(full > 100 && !fs.read_only() && !fs.saw_errors(), "{args:?}: {full}");
        // What was written before finds its place, whatever was tried since.
        fill.fsync(false).unwrap();
        assert_eq!(fill.write_errors().unwrap().check_and_advance(&before), Ok(()));
        assert!(done.iter().all(|n| d.lookup(n.as_bytes()).is_ok()));
        assert_eq!(names(&d).len(), done.len());
        assert_eq!(read(&keep), pattern(1, 200_000));
        // Space comes back and is used.
        drop(fill);
        root.unlink(b"fill").unwrap();
        fs.sync().unwrap();
        write(&file(&root, "again"), 0, &pattern(9, 100_000));
        drop((keep, d, root));
        check(fs, &disk, &image);
    }
}
