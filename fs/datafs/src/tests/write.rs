//! Writing, judged by e2fsck.

use super::host::*;
use abi::{Errno, Timespec, linux};
use std::sync::Arc;
use vfs::{FileSystem, FileType, Inode, NewKind, RenameFlags, SetAttr, SetTime};

const SHAPES: &[&[&str]] = &[&["-b", "1024"], &["-b", "4096"]];

fn on_each(mib: u64, f: impl Fn(&Arc<crate::DataFs>, Arc<dyn Inode>)) {
    for args in SHAPES {
        let dir = Dir::new();
        let image = mke2fs(&dir, mib, args);
        let disk = disk(&image);
        let fs = mount(&disk);
        f(&fs, fs.root().unwrap());
        check(fs, &disk, &image);
    }
}

#[test]
fn an_untouched_mount_stays_clean() {
    on_each(16, |_, _| ());
}

#[test]
fn files_are_written_and_read_back() {
    for args in SHAPES {
        let dir = Dir::new();
        let image = mke2fs(&dir, 64, args);
        let disk = disk(&image);
        let fs = mount(&disk);
        let data = pattern(7, 5_000_123);
        let f = file(&fs.root().unwrap(), "f");
        write(&f, 0, &data);
        let sparse = file(&fs.root().unwrap(), "sparse");
        write(&sparse, 10_000_000, b"end");
        write(&sparse, 5_000_001, b"middle");
        assert_eq!(read(&f), data);
        drop((f, sparse));
        unmount(fs);
        let fs = mount(&disk);
        let f = walk(&fs, "f").unwrap();
        assert_eq!(read(&f), data);
        let s = read(&walk(&fs, "sparse").unwrap());
        assert_eq!((s.len(), &s[5_000_001..5_000_007], &s[10_000_000..]), (10_000_003, &b"middle"[..], &b"end"[..]));
        assert!(s[..5_000_001].iter().all(|b| *b == 0));
        assert!(walk(&fs, "sparse").unwrap().getattr().unwrap().blocks < 100);
        drop(f);
        check(fs, &disk, &image);
        debugfs(&image, &format!("dump f {}", dir.path("out").display()));
        assert_eq!(std::fs::read(dir.path("out")).unwrap(), data);
    }
}

#[test]
fn names_of_all_kinds() {
    on_each(32, |fs, root| {
        let d = mkdir(&root, "d");
        let f = file(&d, "f");
        d.link(b"g", &f).unwrap();
        assert_eq!(f.getattr().unwrap().nlink, 2);
        d.create(b"s", &new(NewKind::Symlink(b"target"))).unwrap();
        d.create(b"l", &new(NewKind::Symlink(&[b'y'; 500]))).unwrap();
        d.create(b"p", &new(NewKind::Special(FileType::Fifo, 0))).unwrap();
        d.create(b"c", &new(NewKind::Special(FileType::Char, 0x501))).unwrap();
        assert_eq!(walk(fs, "d/l").unwrap().readlink().unwrap(), vec![b'y'; 500]);
        assert_eq!(walk(fs, "d/c").unwrap().getattr().unwrap().rdev, 0x501);
        assert_eq!(d.create(b"f", &new(NewKind::Regular)).unwrap_err(), Errno::EEXIST);
        assert_eq!(root.rmdir(b"d").unwrap_err(), Errno::ENOTEMPTY);
        assert_eq!(root.unlink(b"d").unwrap_err(), Errno::EISDIR);
        assert_eq!(root.link(b"x", &d).unwrap_err(), Errno::EPERM);
        let e = mkdir(&root, "e");
        d.rename(b"f", &e, b"h", RenameFlags::default()).unwrap();
        root.rename(b"e", &d, b"e", RenameFlags::default()).unwrap();
        assert_eq!(root.getattr().unwrap().nlink, 4);
        assert_eq!(d.getattr().unwrap().nlink, 3);
        let no = RenameFlags { noreplace: true, exchange: false };
        assert_eq!(d.rename(b"s", &d, b"l", no).unwrap_err(), Errno::EEXIST);
        let ex = RenameFlags { noreplace: false, exchange: true };
        d.rename(b"e", &root, b"lost+found", ex).unwrap();
        assert_eq!(walk(fs, "lost+found/h").unwrap().meta().ino, f.meta().ino);
        d.rename(b"e", &root, b"lost+found", ex).unwrap();
        d.rename(b"s", &d, b"l", RenameFlags::default()).unwrap();
        assert_eq!(walk(fs, "d/l").unwrap().readlink().unwrap(), b"target");
        let t = root.tmpfile(&new(NewKind::Regular)).unwrap();
        write(&t, 0, &pattern(3, 9000));
        root.link(b"named", &t).unwrap();
        let lost = root.tmpfile(&new(NewKind::Regular)).unwrap();
        write(&lost, 0, &pattern(3, 9000));
        d.unlink(b"g").unwrap();
        d.unlink(b"p").unwrap();
        assert_eq!(f.getattr().unwrap().nlink, 1);
        let g = file(&d, "gone");
        write(&g, 0, &pattern(4, 100_000));
        d.unlink(b"gone").unwrap();
        assert_eq!(read(&g), pattern(4, 100_000));
        assert_eq!(d.link(b"back", &g).unwrap_err(), Errno::ENOENT);
    });
}

#[test]
fn big_directories() {
    on_each(64, |fs, root| {
        let d = mkdir(&root, "d");
        let name = |i: usize| format!("{i}-{}", "n".repeat(i % 200));
        let count = 4000;
        for i in 0..count {
            file(&d, &name(i));
        }
        let mut listed: Vec<String> = names(&d).into_iter().map(|n| n.0).collect();
        listed.sort();
        let mut want: Vec<String> = (0..count).map(name).collect();
        want.sort();
        assert!(listed == want, "{} {}", listed.len(), want.len());
        for i in (0..count).step_by(2) {
            d.unlink(name(i).as_bytes()).unwrap();
        }
        for i in 0..count {
            assert_eq!(walk(fs, &format!("d/{}", name(i))).is_ok(), i % 2 == 1);
        }
        let e = mkdir(&root, "e");
        for i in 0..300 {
            mkdir(&e, &format!("dir{i}"));
        }
        for i in 0..300 {
            e.rename(format!("dir{i}").as_bytes(), &d, format!("dir{i}").as_bytes(), RenameFlags::default()).unwrap();
        }
        root.rmdir(b"e").unwrap();
    });
}

#[test]
fn sizes_holes_and_space() {
    on_each(64, |_, root| {
        let f = file(&root, "f");
        let data = pattern(9, 300_000);
        write(&f, 0, &data);
        let cut = |n| f.setattr(&SetAttr { size: Some(n), ..SetAttr::default() }).unwrap();
        cut(100_001);
        cut(200_000);
        let mut want = data[..100_001].to_vec();
        want.resize(200_000, 0);
        assert!(read(&f) == want);
        f.fallocate(linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_KEEP_SIZE, 10_000, 50_000).unwrap();
        want[10_000..60_000].fill(0);
        assert!(read(&f) == want);
        f.fsync(false).unwrap();
        let hole = f.seek_data(0, true).unwrap();
        assert!((10_000..16_384).contains(&hole), "{hole}");
        let next = f.seek_data(hole, false).unwrap();
        assert!((50_000..=60_000).contains(&next), "{next}");
        f.fallocate(linux::FALLOC_FL_ZERO_RANGE, 70_000, 1000).unwrap();
        want[70_000..71_000].fill(0);
        assert!(read(&f) == want);
        f.fallocate(0, 150_000, 500_000).unwrap();
        want.resize(650_000, 0);
        assert!(read(&f) == want);
        f.fallocate(linux::FALLOC_FL_KEEP_SIZE, 650_000, 500_000).unwrap();
        assert_eq!(f.len(), 650_000);
        write(&f, 400_000, b"in the middle of unwritten space");
        want[400_000..400_032].copy_from_slice(b"in the middle of unwritten space");
        f.fsync(true).unwrap();
        assert!(read(&f) == want);
        assert_eq!(f.fallocate(0x40, 0, 4096).unwrap_err(), Errno::EOPNOTSUPP);
        let g = file(&root, "g");
        for i in (0..400u64).rev() {
            write(&g, i * 8192, &pattern(i, 100));
            if i % 40 == 0 {
                g.fsync(false).unwrap();
            }
        }
        for i in 0..400u64 {
            let mut b = vec![0; 100];
            g.read_at(i * 8192, &mut platform::SliceSink::new(&mut b)).unwrap();
            assert_eq!(b, pattern(i, 100));
        }
        let big = file(&root, "big");
        write(&big, 5 << 30, b"beyond 4 GiB");
        big.fsync(false).unwrap();
        assert_eq!(big.len(), (5 << 30) + 12);
    });
}

#[test]
fn attributes() {
    on_each(16, |fs, root| {
        let f = file(&root, "f");
        let at = Timespec { sec: 15_000_000_000, nsec: 987_654_321 };
        let set =
            SetAttr { mode: Some(0o4755), uid: Some(123_456), mtime: Some(SetTime::At(at)), ..SetAttr::default() };
        f.setattr(&set).unwrap();
        let a = walk(fs, "f").unwrap().getattr().unwrap();
        assert_eq!((a.mode, a.uid, a.mtime), (0o4755, 123_456, at));
        for i in 0..12 {
            f.set_xattr(format!("user.name{i}").as_bytes(), Some(&pattern(i, 40)), 0).unwrap();
        }
        assert_eq!(f.set_xattr(b"user.name1", Some(b""), 1).unwrap_err(), Errno::EEXIST);
        assert_eq!(f.set_xattr(b"user.nameX", Some(b""), 2).unwrap_err(), Errno::ENODATA);
        assert_eq!(f.set_xattr(b"user.huge", Some(&[1; 4000]), 0).unwrap_err(), Errno::ENOSPC);
        for i in 0..12 {
            assert_eq!(f.get_xattr(format!("user.name{i}").as_bytes()).unwrap(), pattern(i, 40));
        }
        for i in 0..11 {
            f.set_xattr(format!("user.name{i}").as_bytes(), None, 0).unwrap();
        }
        f.set_xattr(b"trusted.t", Some(b"value"), 0).unwrap();
        assert_eq!(f.list_xattr().unwrap().split(|b| *b == 0).filter(|n| !n.is_empty()).count(), 2);
    });
}

#[test]
fn a_full_disk_is_an_error_and_no_more() {
    on_each(8, |fs, root| {
        let free = fs.statfs().unwrap().bfree;
        let mut n = 0;
        let mut buf = Vec::new();
        'full: loop {
            let name = format!("file{n}");
            let f = match root.create(name.as_bytes(), &new(NewKind::Regular)) {
                Ok(f) => f,
                Err(e) => {
                    assert_eq!(e, Errno::ENOSPC);
                    break;
                }
            };
            n += 1;
            buf = pattern(n, 300_000);
            let mut at = 0;
            while at < buf.len() {
                match f.write_at(Some(at as u64), &mut platform::SliceSource::new(&buf[at..])) {
                    Ok((_, k)) => at += k,
                    Err(e) => {
                        assert_eq!(e, Errno::ENOSPC);
                        break 'full;
                    }
                }
            }
        }
        fs.sync().unwrap();
        assert!(read(&walk(fs, "file0").unwrap()) == pattern(1, 300_000));
        drop(buf);
        for i in 0..2000 {
            match root.create(format!("more{i}").as_bytes(), &new(NewKind::Dir)) {
                Ok(_) => {}
                Err(e) => {
                    assert_eq!(e, Errno::ENOSPC);
                    break;
                }
            }
        }
        for (name, kind) in names(&root) {
            match kind {
                FileType::Dir if name != "lost+found" => root.rmdir(name.as_bytes()).unwrap(),
                FileType::Regular => root.unlink(name.as_bytes()).unwrap(),
                _ => {}
            }
        }
        fs.sync().unwrap();
        let now = fs.statfs().unwrap().bfree;
        assert!(now + 16 >= free, "{now} of {free}");
        let f = file(&root, "again");
        write(&f, 0, &pattern(5, 1_000_000));
    });
}

#[test]
fn many_threads() {
    on_each(64, |_, root| {
        std::thread::scope(|s| {
            for t in 0..4u64 {
                let root = root.clone();
                s.spawn(move || {
                    let d = mkdir(&root, &format!("thread{t}"));
                    for i in 0..150u64 {
                        let f = file(&d, &format!("f{i}"));
                        let data = pattern(t * 1000 + i, (i as usize * 731) % 60_000);
                        if !data.is_empty() {
                            write(&f, 0, &data);
                        }
                        if i % 10 == 0 {
                            f.fsync(false).unwrap();
                        }
                        if i % 3 == 0 {
                            d.unlink(format!("f{i}").as_bytes()).unwrap();
                        } else if i % 7 == 0 {
                            let to = format!("r{i}");
                            d.rename(format!("f{i}").as_bytes(), &d, to.as_bytes(), RenameFlags::default()).unwrap();
                        }
                        assert!(read(&f) == data);
                    }
                });
            }
        });
    });
}
