//! The crash matrix with several threads: a workload on a disk that records, cut anywhere, with any subset of what was not
//! flushed. Each cut is recovered by mounting and, on its own copy, by e2fsck.
//!
//! Files carry numbers, and each byte of file `n` is that of `pattern(n)` or zero, wherever it was written: so one with
//! another's data is seen. A file whose fsync has returned is never written again, only renamed: it must be there, whole.
//!
//! Every cut is judged by e2fsck, so one of two hundred of `CUTS` is tried; `SEED` repeats a run.

use super::host::*;
use crate::DataFs;
use block::testing::RecordingDisk;
use block::{BlockDevice, MemDisk};
use platform::{SliceSink, SliceSource};
use std::process::Command;
use std::sync::Arc;
use vfs::{FileSystem, FileType, Inode, NewKind, RenameFlags, SetAttr};

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

const LEN: usize = 40_000;

/// One thread's share of the work: files whose numbers are `first`, `first + 1`, …
fn work(disk: &RecordingDisk, root: &Arc<dyn Inode>, first: u64, seed: u64, steps: u64) {
    let mut rng = Rng(seed);
    let dir = mkdir(root, &format!("d{first}"));
    let mut loose: Vec<u64> = Vec::new();
    for n in first..first + steps {
        let name = format!("f{n}");
        let data = pattern(n, LEN);
        let f = file(&dir, &name);
        let len = 1 + rng.below(LEN as u64) as usize;
        let piece = 1 + rng.below(20_000) as usize;
        for (i, part) in data[..len].chunks(piece).enumerate() {
            f.write_at(Some((i * piece) as u64), &mut SliceSource::new(part)).unwrap();
        }
        match rng.below(8) {
            0..=3 => {
                f.fsync(rng.below(2) == 0).unwrap();
                disk.mark((n << 20) | len as u64);
                if rng.below(3) == 0 {
                    let to = if rng.below(2) == 0 { root } else { &dir };
                    dir.rename(name.as_bytes(), to, format!("g{n}").as_bytes(), RenameFlags::default()).unwrap();
                }
            }
            4 => {
                root.link(format!("l{n}").as_bytes(), &f).unwrap();
                loose.push(n);
            }
            5 => {
                f.setattr(&SetAttr { size: Some(rng.below(len as u64 + 1)), ..SetAttr::default() }).unwrap();
                loose.push(n);
            }
            _ => loose.push(n),
        }
        if rng.below(4) == 0
            && let Some(old) = loose.pop()
        {
            let g = dir.lookup(format!("f{old}").as_bytes()).unwrap();
            dir.unlink(format!("f{old}").as_bytes()).unwrap();
            drop(g);
        }
        if rng.below(9) == 0 {
            let sub = mkdir(&dir, &format!("s{n}"));
            sub.create(b"link", &new(NewKind::Symlink(b"to somewhere"))).unwrap();
            if rng.below(2) == 0 {
                sub.unlink(b"link").unwrap();
                dir.rmdir(format!("s{n}").as_bytes()).unwrap();
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix(['f', 'g', 'l'])?.parse().ok()
}

/// All files with their numbers and contents.
fn contents(dir: &Arc<dyn Inode>, out: &mut Vec<(u64, Vec<u8>)>) {
    for (name, kind) in names(dir) {
        let inode = dir.lookup(name.as_bytes()).unwrap();
        match kind {
            FileType::Dir => contents(&inode, out),
            FileType::Regular => {
                let mut buf = vec![0; inode.len() as usize];
                inode.read_at(0, &mut SliceSink::new(&mut buf)).unwrap();
                out.push((number(&name).unwrap(), buf));
            }
            _ => {}
        }
    }
}

fn judge(image: Vec<u8>, marks: &[u64], dir: &Dir, what: &str) {
    let path = dir.path("cut");
    std::fs::write(&path, &image).unwrap();
    let out = Command::new("/usr/sbin/e2fsck").arg("-p").arg(&path).output().unwrap();
    assert!(matches!(out.status.code(), Some(0 | 1)), "{what}: e2fsck -p: {}", String::from_utf8_lossy(&out.stdout));
    fsck(&path);
    let theirs = std::fs::read(&path).unwrap();
    for (who, image) in [("ours", image), ("e2fsck's", theirs)] {
        let disk = Arc::new(MemDisk::from_image("cut", &image).unwrap());
        let fs = mount_with(&disk, crate::Options::default());
        let mut files = Vec::new();
        contents(&fs.root().unwrap(), &mut files);
        for (n, data) in &files {
            let want = pattern(*n, LEN);
            let ok = data.iter().zip(&want).all(|(a, b)| *a == 0 || a == b);
            assert!(ok, "{what}, {who} recovery: file {n} has bytes of another");
        }
        for mark in marks {
            let (n, len) = (mark >> 20, (mark & 0xf_ffff) as usize);
            let whole = files.iter().any(|(m, data)| *m == n && *data == pattern(n, LEN)[..len]);
            assert!(whole, "{what}, {who} recovery: file {n} of {len} bytes was synced and is lost");
        }
        assert!(!fs.saw_errors(), "{what}, {who}");
        unmount(fs);
        std::fs::write(&path, disk.to_image()).unwrap();
        fsck(&path);
    }
}

fn matrix(args: &[&str], seed: u64, threads: u64, cuts: u64) {
    let dir = Dir::new();
    let image = std::fs::read(mke2fs(&dir, 8, args)).unwrap();
    let disk = Arc::new(RecordingDisk::new(image, 1024));
    let device: Arc<dyn BlockDevice> = disk.clone();
    let fs = DataFs::mount(device, cache(), options(), 42).map_err(|r| r.why).unwrap();
    disk.start();
    let root = fs.root().unwrap();
    std::thread::scope(|s| {
        for t in 0..threads {
            let (disk, root) = (&disk, &root);
            s.spawn(move || work(disk, root, 1 + t * 1000, seed * 31 + t, 60 / threads));
        }
    });
    drop(root);
    unmount(fs);
    let recording = disk.recording();
    let mut rng = Rng(seed);
    let mut at: Vec<usize> = (0..cuts).map(|_| rng.below(recording.events().len() as u64 + 1) as usize).collect();
    at.sort_unstable();
    let mut cursor = recording.cursor();
    for cut in at {
        cursor.seek(cut);
        let marks: Vec<u64> = recording.marks_before(cut).collect();
        let odds = rng.below(5);
        let image = cursor.image(|_, _| rng.below(4) < odds);
        judge(image, &marks, &dir, &format!("seed {seed}, {threads} threads, cut {cut}, odds {odds}"));
    }
}

#[test]
fn cuts_of_many_threads() {
    let cuts = env("CUTS", 10_000) / 400;
    matrix(&["-b", "1024", "-J", "size=1"], env("SEED", 2), 2, cuts);
    matrix(&["-b", "4096"], env("SEED", 3), 3, cuts);
}
