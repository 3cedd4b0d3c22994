//! Damaged images: whatever bits are flipped, there is an error or a file system, never a panic or an endless loop.

use super::host::*;
use crate::{DataFs, OnError, Options};
use block::{BlockDevice, MemDisk};
use std::sync::Arc;
use vfs::{FileSystem, FileType, NewKind, RenameFlags, SetAttr};

fn base(args: &[&str]) -> Vec<u8> {
    let dir = Dir::new();
    let image = mke2fs(&dir, 8, args);
    let disk = disk(&image);
    let fs = mount(&disk);
    let root = fs.root().unwrap();
    let d = mkdir(&root, "dir");
    for i in 0..400 {
        file(&d, &format!("some-file-name-{i}"));
    }
    let f = file(&root, "holes");
    for i in (0..400u64).rev() {
        write(&f, i * 8192, b"data");
        if i % 50 == 0 {
            f.fsync(false).unwrap();
        }
    }
    f.set_xattr(b"user.a", Some(&[1; 200]), 0).unwrap();
    root.create(b"link", &new(NewKind::Symlink(&[b'z'; 300]))).unwrap();
    drop((f, d, root));
    unmount(fs);
    disk.to_image()
}

/// Walks and reads everything, with a budget, then changes a little. Errors do not matter.
fn use_all(fs: &DataFs) {
    let Ok(root) = fs.root() else { return };
    let mut todo = vec![root.clone()];
    let mut budget = 1500;
    while let Some(dir) = todo.pop() {
        let mut found = Vec::new();
        let _ = dir.readdir(2, &mut |e| {
            found.push((e.name.to_vec(), e.kind));
            found.len() < 2000
        });
        for (name, kind) in found {
            if budget == 0 {
                break;
            }
            budget -= 1;
            let Ok(inode) = dir.lookup(&name) else { continue };
            let _ = inode.getattr();
            let _ = inode.list_xattr();
            let _ = inode.get_xattr(b"user.a");
            let mut buf = vec![0; 5000];
            let _ = inode.read_at(inode.len() / 2, &mut platform::SliceSink::new(&mut buf));
            let _ = inode.readlink();
            let _ = inode.seek_data(0, true);
            if kind == FileType::Dir {
                todo.push(inode);
            }
        }
    }
    if let Ok(f) = root.create(b"new", &new(NewKind::Regular)) {
        let _ = f.write_at(Some(5000), &mut platform::SliceSource::new(&vec![7; 20_000]));
        let _ = f.set_xattr(b"user.b", Some(b"x"), 0);
        let _ = f.fsync(false);
    }
    let _ = root.create(b"newdir", &new(NewKind::Dir));
    if let Ok(h) = root.lookup(b"holes") {
        let _ = h.write_at(Some(100_000), &mut platform::SliceSource::new(&vec![9; 50_000]));
        let _ = h.fsync(true);
        let _ = h.setattr(&SetAttr { size: Some(1000), ..SetAttr::default() });
    }
    if let Ok(d) = root.lookup(b"dir") {
        for i in 0..60 {
            let _ = d.create(format!("another-file-name-{i}").as_bytes(), &new(NewKind::Regular));
            let _ = d.unlink(format!("some-file-name-{i}").as_bytes());
        }
        let _ = d.rename(b"some-file-name-70", &root, b"moved", RenameFlags::default());
    }
    let _ = root.unlink(b"link");
    let _ = root.unlink(b"holes");
    let _ = fs.sync();
}

/// The blocks that hold metadata: what differs from zero in the front, and everything that looks like a structure.
fn damage(image: &mut [u8], seed: u64, flips: usize) {
    let noise = pattern(seed + 77, flips * 8);
    let live: Vec<usize> =
        (0..image.len() / 64).filter(|i| image[i * 64..(i + 1) * 64].iter().any(|b| *b != 0)).collect();
    for w in noise.chunks_exact(8) {
        let r = u64::from_le_bytes(w.try_into().unwrap());
        let at = if r % 5 == 0 {
            1024 + (r >> 8) as usize % 1024
        } else {
            live[(r >> 8) as usize % live.len()] * 64 + (r >> 40) as usize % 64
        };
        match r % 3 {
            0 => image[at] ^= 1 << ((r >> 60) & 7),
            1 => image[at] = 0xff,
            _ => image[at] = (r >> 50) as u8,
        }
    }
}

fn fuzz(args: &[&str], rounds: u64) {
    let good = base(args);
    let mut mounted = 0;
    for seed in 0..rounds {
        let mut image = good.clone();
        damage(&mut image, seed, 1 + (seed % 20) as usize);
        let disk: Arc<dyn BlockDevice> = Arc::new(MemDisk::from_image("t", &image).unwrap());
        let on_error = if seed % 3 == 0 { OnError::Continue } else { OnError::RemountReadOnly };
        let Ok(fs) = DataFs::mount(disk, cache(), Options { on_error, ..Options::default() }, 1) else { continue };
        mounted += 1;
        use_all(&fs);
        drop(fs);
    }
    assert!(mounted > rounds / 10, "hardly one of {rounds} was mounted");
}

#[test]
fn flipped_bits_with_checksums() {
    fuzz(&["-b", "1024"], 120);
}

#[test]
fn flipped_bits_without_checksums() {
    fuzz(&["-b", "1024", "-O", "^metadata_csum"], 250);
    fuzz(&["-b", "4096", "-O", "^metadata_csum,^has_journal"], 120);
}
