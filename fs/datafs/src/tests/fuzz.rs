//! Damaged images: whatever bits are flipped, there is an error or a file system, never a panic or an endless loop.

use super::host::*;
use crate::{DataFs, OnError, Options};
use block::{BlockDevice, MemDisk};
use std::sync::Arc;
use vfs::{FileSystem, FileType, NewKind, RenameFlags, SetAttr};

/// A file system with some of everything: as it is after an unmount, and as a cut before that leaves it.
fn base(args: &[&str]) -> (Vec<u8>, Vec<u8>) {
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
    f.set_xattr(b"user.big", Some(&[2; 700]), 0).unwrap();
    root.create(b"link", &new(NewKind::Symlink(&[b'z'; 300]))).unwrap();
    fs.sync().unwrap();
    d.unlink(b"some-file-name-3").unwrap();
    f.fsync(false).unwrap();
    let cut = disk.to_image();
    drop((f, d, root));
    unmount(fs);
    (disk.to_image(), cut)
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
    let (good, _) = base(args);
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

/// Where the structures of each kind are: name and pieces as offset and length.
fn structures(image: &[u8], block: usize) -> Vec<(&'static str, Vec<(usize, usize)>)> {
    let fs = mount(&Arc::new(MemDisk::from_image("t", image).unwrap()));
    let at = |n: u64| n as usize * block;
    let groups = &fs.vol.groups;
    let bitmaps = groups.iter().flat_map(|g| [(at(g.block_bitmap), block), (at(g.inode_bitmap), block)]).collect();
    let dir = fs.vol.get(fs.root().unwrap().lookup(b"dir").unwrap().meta().ino as u32).unwrap();
    let core = dir.core.read();
    let n = core.f().size() >> fs.vol.geo.block_bits;
    let leaves: Vec<_> =
        (0..n).map(|n| (at(dir.owner().lookup(&core, n).unwrap().readable().unwrap()), block)).collect();
    let begins = |magic: &[u8]| -> Vec<(usize, usize)> {
        (1..image.len() / block).filter(|b| image[b * block..].starts_with(magic)).map(|b| (b * block, block)).collect()
    };
    let found = vec![
        ("superblock", vec![(1024, 1024)]),
        ("group descriptors", vec![(if block == 1024 { 2048 } else { block }, groups.len() * 64)]),
        ("bitmaps", bitmaps),
        ("inodes", vec![(at(groups[0].inode_table), 40 * 256)]),
        ("index root", vec![leaves[0]]),
        ("directory blocks", leaves[1..].to_vec()),
        ("extent blocks", begins(&[0x0a, 0xf3])),
        ("attribute block", begins(&[0, 0, 2, 0xea])),
        ("journal", begins(&[0xc0, 0x3b, 0x39, 0x98])),
    ];
    assert!(found.iter().all(|f| !f.1.is_empty()), "{found:?}");
    found
}

/// Flips bits and bytes of one kind of structure at a time: in the image, and in one whose journal must be replayed.
fn fuzz_structures(args: &[&str], block: usize, rounds: u64) {
    let (good, cut) = base(args);
    for (name, places) in structures(&good, block) {
        for seed in 0..rounds {
            let mut image = if seed % 3 == 0 { cut.clone() } else { good.clone() };
            let noise = pattern(seed * 31 + name.len() as u64, 8 * (1 + (seed % 4) as usize));
            for w in noise.chunks_exact(8) {
                let r = u64::from_le_bytes(w.try_into().unwrap());
                let (start, len) = places[(r >> 8) as usize % places.len()];
                // Structures begin with what matters most.
                let within = if r & 1 == 0 { len } else { len.min(64) };
                let at = start + (r >> 24) as usize % within;
                match (r >> 2) % 3 {
                    0 => image[at] ^= 1 << ((r >> 60) & 7),
                    1 => image[at] = if r & 16 == 0 { 0xff } else { 0 },
                    _ => image[at] = (r >> 50) as u8,
                }
            }
            let disk: Arc<dyn BlockDevice> = Arc::new(MemDisk::from_image("t", &image).unwrap());
            let on_error = if seed % 2 == 0 { OnError::Continue } else { OnError::RemountReadOnly };
            if let Ok(fs) = DataFs::mount(disk, cache(), Options { on_error, ..Options::default() }, 1) {
                use_all(&fs);
            }
        }
    }
}

#[test]
fn every_structure_may_be_damaged() {
    fuzz_structures(&["-b", "1024"], 1024, 14);
    fuzz_structures(&["-b", "1024", "-O", "^metadata_csum"], 1024, 40);
    fuzz_structures(&["-b", "4096", "-O", "^metadata_csum,^64bit"], 4096, 20);
}
