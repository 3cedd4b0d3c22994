//! Flags of files, where files lie, and free space that the device is told of.

use super::host::*;
use abi::Errno;
use block::MemDisk;
use std::sync::Arc;
use vfs::FileSystem;
use vfs::flags::{APPEND, DIRSYNC, IMMUTABLE, NOATIME, NODUMP, SYNC};

const EXTENTS: u32 = 0x8_0000;

#[test]
fn flags_are_kept_and_shown_to_others() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &[]);
    let disk = disk(&image);
    let fs = mount(&disk);
    let root = fs.root().unwrap();
    let f = file(&root, "f");
    write(&f, 0, b"x");
    assert_eq!(f.file_flags().unwrap(), EXTENTS);
    f.set_file_flags(EXTENTS | IMMUTABLE | NOATIME).unwrap();
    assert_eq!(f.write_at(None, &mut platform::SliceSource::new(b"y")).unwrap_err(), Errno::EPERM);
    // Extents cannot be taken away, encryption and verity not be had, other bits do not exist.
    for bad in [IMMUTABLE, EXTENTS | 0x800, EXTENTS | 0x10_0000, EXTENTS | 0x4000, 0x8000_0000] {
        assert_eq!(f.set_file_flags(bad).unwrap_err(), Errno::EOPNOTSUPP, "{bad:x}");
    }
    let d = mkdir(&root, "d");
    d.set_file_flags(d.file_flags().unwrap() | APPEND | NODUMP | DIRSYNC | SYNC).unwrap();
    let (inner, below) = (file(&d, "inner"), mkdir(&d, "below"));
    assert_eq!(inner.file_flags().unwrap(), EXTENTS | NODUMP | SYNC);
    assert_eq!(below.file_flags().unwrap() & !EXTENTS, NODUMP | SYNC | DIRSYNC);
    drop((f, d, inner, below, root));
    check(fs, &disk, &image);
    assert!(debugfs(&image, "stat f").contains("Flags: 0x80090"));
    assert!(
        debugfs(&image, "stat d").contains("Flags: 0x10068") || debugfs(&image, "stat d").contains("Flags: 0x90068")
    );
    debugfs_write(&image, "sif f flags 0x80020\n");
    let disk = super::host::disk(&image);
    let fs = mount(&disk);
    let f = walk(&fs, "f").unwrap();
    assert!(f.meta().has(APPEND) && !f.meta().has(IMMUTABLE) && f.getattr().unwrap().flags == APPEND);
    drop(f);
    check(fs, &disk, &image);
}

/// What S and D ask for: after each call, a copy of the disk taken at once has it.
#[test]
fn what_is_marked_synchronous_is_durable_at_once() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &[]);
    let disk = disk(&image);
    let fs = mount(&disk);
    let root = fs.root().unwrap();
    let (plain, d) = (mkdir(&root, "plain"), mkdir(&root, "d"));
    d.set_file_flags(d.file_flags().unwrap() | DIRSYNC).unwrap();
    let f = file(&root, "f");
    f.set_file_flags(EXTENTS | SYNC).unwrap();
    fs.commit().unwrap();
    let look = |path: &str| {
        let copy = Arc::new(MemDisk::from_image("copy", &disk.to_image()).unwrap());
        let fs = mount(&copy);
        let found = walk(&fs, path).map(|i| read(&i).len());
        unmount(fs);
        found
    };
    file(&plain, "late");
    assert_eq!(look("plain/late"), Err(Errno::ENOENT));
    file(&d, "early");
    assert!(look("d/early").is_ok() && look("plain/late").is_ok());
    d.rename(b"early", &d, b"moved", vfs::RenameFlags::default()).unwrap();
    assert!(look("d/moved").is_ok() && look("d/early").is_err());
    d.unlink(b"moved").unwrap();
    assert!(look("d/moved").is_err());
    write(&f, 0, &[7; 5000]);
    assert_eq!(look("f"), Ok(5000));
    f.setattr(&vfs::SetAttr { size: Some(10), ..Default::default() }).unwrap();
    assert_eq!(look("f"), Ok(10));
    drop((plain, d, f, root));
    check(fs, &disk, &image);
}

#[test]
fn extents_say_where_a_file_is() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &["-b", "4096"]);
    let disk = disk(&image);
    let fs = mount(&disk);
    let f = file(&fs.root().unwrap(), "f");
    write(&f, 0, &pattern(1, 10_000));
    write(&f, 1 << 20, &pattern(2, 4096));
    let delayed = f.extents(0..u64::MAX, 10).unwrap();
    assert_eq!(
        delayed.iter().map(|e| (e.logical, e.len, e.delayed)).collect::<Vec<_>>(),
        [(0, 12288, true), (1 << 20, 4096, true)]
    );
    f.fsync(false).unwrap();
    f.fallocate(abi::linux::FALLOC_FL_KEEP_SIZE, 2 << 20, 8192).unwrap();
    let all = f.extents(0..u64::MAX, 10).unwrap();
    assert_eq!(
        all.iter().map(|e| (e.logical, e.len, e.unwritten)).collect::<Vec<_>>(),
        [(0, 12288, false), (1 << 20, 4096, false), (2 << 20, 8192, true)]
    );
    assert_eq!(f.extents(0..u64::MAX, 2).unwrap(), all[..2]);
    assert_eq!(
        f.extents(4096..1 << 20, 10).unwrap()[0],
        vfs::FileExtent { logical: 4096, physical: all[0].physical + 4096, len: 8192, ..all[0] }
    );
    let link = fs.root().unwrap().create(b"l", &new(vfs::NewKind::Symlink(b"text, not blocks"))).unwrap();
    assert_eq!(link.extents(0..u64::MAX, 10).unwrap_err(), Errno::EOPNOTSUPP);
    drop(link);
    let bytes = disk.to_image();
    let at = all[1].physical as usize;
    assert_eq!(bytes[at..at + 4096], pattern(2, 4096));
    drop(f);
    check(fs, &disk, &image);
}

#[test]
fn what_is_free_is_discarded_and_nothing_else() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &["-b", "4096"]);
    let disk = disk(&image);
    let fs = mount(&disk);
    let root = fs.root().unwrap();
    let (keep, gone) = (file(&root, "keep"), file(&root, "gone"));
    write(&keep, 0, &pattern(1, 1 << 20));
    write(&gone, 0, &pattern(2, 1 << 20));
    fs.sync().unwrap();
    let at = gone.extents(0..u64::MAX, 1).unwrap()[0].physical as usize;
    assert_ne!(disk.to_image()[at..at + 4096], [0; 4096]);
    drop(gone);
    root.unlink(b"gone").unwrap();
    // Not before the removal is durable.
    fs.trim(0..u64::MAX, 0).unwrap();
    assert_ne!(disk.to_image()[at..at + 4096], [0; 4096]);
    fs.sync().unwrap();
    let free = fs.statfs().unwrap().bfree * 4096;
    assert_eq!(fs.trim(0..u64::MAX, 0).unwrap(), free);
    assert_eq!(disk.to_image()[at..at + 4096], [0; 4096]);
    assert_eq!(fs.trim(0..u64::MAX, 64 << 20).unwrap(), 0);
    assert_eq!(fs.trim(1 << 40..u64::MAX, 0).unwrap_err(), Errno::EINVAL);
    assert_eq!(read(&keep), pattern(1, 1 << 20));
    drop((keep, root));
    check(fs, &disk, &image);
}
