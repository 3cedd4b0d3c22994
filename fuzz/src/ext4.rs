//! The ext4 driver under libFuzzer: an input says which base image is mounted how, which of its bytes are changed, and what is
//! then done with it. Errors are fine; a panic, an overflow, an endless loop, or an error on an image that nobody changed
//! is a finding.
//!
//! An input is: a byte for image and options, a byte for the number of changes, five bytes for each (which piece of 64 bytes
//! of those that are not zero, where in it, how), and a byte or a few for each operation. The images are made by mke2fs
//! and the driver itself at the start, so the repository holds none; `FUZZ_SEEDS=DIR` writes a few inputs to begin with and
//! ends.
#![no_main]

use abi::{Errno, linux};
use block::testing::OverlayDisk;
use datafs::{DataFs, OnError, Options};
use libfuzzer_sys::fuzz_target;
use pagecache::{Limits, PageCache};
use platform::{SliceSink, SliceSource};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use vfs::{FileSystem, FileType, Inode, NewInode, NewKind, RenameFlags, SetAttr};

/// A file system with some of everything, and where its bytes are that differ from zero.
struct Base {
    image: Arc<Vec<u8>>,
    live: Vec<u32>,
}

const SHAPES: [&[&str]; 4] = [
    &["-b", "1024", "-O", "^metadata_csum"],
    &["-b", "1024", "-O", "^metadata_csum"],
    &["-b", "4096", "-O", "^metadata_csum,^has_journal,^64bit"],
    &["-b", "1024"],
];

fn new(kind: NewKind<'_>) -> NewInode<'_> {
    NewInode { kind, mode: 0o644, uid: 1000, gid: 100 }
}

fn cache() -> Arc<PageCache> {
    PageCache::new(Limits { background: 1 << 30, hard: 1 << 30, expire_ns: 30_000_000_000 })
}

/// `cut`: as it is with a journal to replay.
fn make(args: &[&str], cut: bool) -> Base {
    let path = std::env::temp_dir().join(format!("fuzz-{}", std::process::id()));
    std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let mut tool = Command::new("/usr/sbin/mke2fs");
    let out = tool.args(["-q", "-F", "-t", "ext4", "-N", "512"]).args(args).arg(&path).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let empty = Arc::new(std::fs::read(&path).unwrap());
    let _ = std::fs::remove_file(&path);
    let disk = Arc::new(OverlayDisk::new(empty));
    let fs = DataFs::mount(disk.clone(), cache(), Options::default(), 1).unwrap_or_else(|r| panic!("{}", r.why));
    let root = fs.root().unwrap();
    let dir = root.create(b"dir", &new(NewKind::Dir)).unwrap();
    for i in 0..90 {
        dir.create(format!("some-file-name-that-is-long-{i}").as_bytes(), &new(NewKind::Regular)).unwrap();
    }
    let f = root.create(b"holes", &new(NewKind::Regular)).unwrap();
    for i in (0..120u64).rev() {
        f.write_at(Some(i * 8192), &mut SliceSource::new(b"data")).unwrap();
        if i % 20 == 0 {
            f.fsync(false).unwrap();
        }
    }
    f.set_xattr(b"user.a", Some(&[1; 60]), 0).unwrap();
    f.set_xattr(b"user.big", Some(&[2; 700]), 0).unwrap();
    root.create(b"link", &new(NewKind::Symlink(&[b'z'; 300]))).unwrap();
    root.create(b"fast", &new(NewKind::Symlink(b"dir"))).unwrap();
    fs.sync().unwrap();
    dir.unlink(b"some-file-name-that-is-long-3").unwrap();
    f.fallocate(0, 2_000_000, 50_000).unwrap();
    f.fsync(false).unwrap();
    let image = cut.then(|| disk.to_image());
    drop((dir, f, root, fs));
    let image = image.unwrap_or_else(|| disk.to_image());
    let live = (0..image.len() / 64).filter(|i| image[i * 64..(i + 1) * 64].iter().any(|b| *b != 0));
    Base { live: live.map(|i| i as u32).collect(), image: Arc::new(image) }
}

fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| SHAPES.iter().enumerate().map(|(n, args)| make(args, n == 1)).collect())
}

/// The input, byte by byte; zeroes behind its end.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn wide(&mut self) -> u64 {
        u64::from(self.next()) << 8 | u64::from(self.next())
    }

    /// An offset or a length: small, or near something that matters.
    fn place(&mut self) -> u64 {
        let n = self.wide();
        [n, n << 6, n << 12, (1 << 20) + n, (u64::from(u32::MAX) << 10) - n, n << 24][(n % 6) as usize]
    }
}

fn damage(disk: &OverlayDisk, base: &Base, input: &mut Bytes<'_>) -> usize {
    let n = usize::from(input.next() % 17);
    for _ in 0..n {
        let piece = base.live[input.wide() as usize % base.live.len()] as usize * 64;
        let (within, how, value) = (usize::from(input.next() % 64), input.next(), input.next());
        let sector = (piece + within) / 512;
        let mut bytes = disk.read(sector * 512, 512);
        let byte = &mut bytes[(piece + within) % 512];
        *byte = match how % 4 {
            0 => *byte ^ (1 << (value % 8)),
            1 => value,
            2 => byte.wrapping_add(1),
            _ => byte.wrapping_sub(value),
        };
        disk.put(sector as u64, &bytes);
    }
    n
}

/// Reads names, attributes and some content of everything, as far as a budget goes.
fn walk(root: &Arc<dyn Inode>) {
    let (mut todo, mut budget) = (vec![root.clone()], 200);
    while let Some(dir) = todo.pop() {
        let mut found = Vec::new();
        let _ = dir.readdir(2, &mut |e| {
            found.push((e.name.to_vec(), e.kind));
            found.len() < 150
        });
        for (name, kind) in found {
            if budget == 0 {
                return;
            }
            budget -= 1;
            let Ok(inode) = dir.lookup(&name) else { continue };
            let _ = (inode.getattr(), inode.list_xattr(), inode.get_xattr(b"user.a"), inode.readlink());
            let mut buf = [0; 3000];
            let _ = inode.read_at(inode.len() / 2, &mut SliceSink::new(&mut buf));
            let _ = inode.extents(0..u64::MAX, 20);
            if kind == FileType::Dir {
                todo.push(inode);
            }
        }
    }
}

/// The errors that an image nobody damaged may give.
fn expected(e: Errno) -> bool {
    !matches!(e, Errno::EUCLEAN | Errno::EIO | Errno::ESTALE | Errno::EBADMSG)
}

struct Run<'a> {
    fs: &'a DataFs,
    root: Arc<dyn Inode>,
    open: Vec<Arc<dyn Inode>>,
    whole: bool,
}

impl Run<'_> {
    fn note<T>(&self, result: abi::Result<T>) -> Option<T> {
        match result {
            Ok(v) => Some(v),
            Err(e) => {
                assert!(!self.whole || expected(e), "{e} on an image that is whole");
                None
            }
        }
    }

    fn dir(&self, n: u8) -> Arc<dyn Inode> {
        if n & 1 == 0 { self.root.clone() } else { self.root.lookup(b"dir").unwrap_or_else(|_| self.root.clone()) }
    }

    fn name(n: u8) -> Vec<u8> {
        match n % 8 {
            0 => b"holes".to_vec(),
            1 => b"link".to_vec(),
            2 => b"dir".to_vec(),
            3 => format!("some-file-name-that-is-long-{}", n / 3).into_bytes(),
            _ => vec![b'a' + n % 26; 1 + usize::from(n) % 250],
        }
    }

    fn file(&self, n: u8) -> Option<Arc<dyn Inode>> {
        self.open.get(usize::from(n) % self.open.len().max(1)).cloned()
    }

    fn names(&mut self, op: u8, input: &mut Bytes<'_>) {
        let (a, b) = (input.next(), input.next());
        let (dir, name) = (self.dir(a), Self::name(b));
        let made = match op {
            0 => self.note(dir.create(&name, &new(NewKind::Regular))),
            1 => self.note(dir.create(&name, &new(NewKind::Dir))),
            2 => self.note(dir.create(&name, &new(NewKind::Symlink(&vec![b'l'; usize::from(a) * 3 + 1])))),
            3 => self.note(dir.lookup(&name)),
            4 => self.note(dir.unlink(&name)).and(None),
            5 => self.note(dir.rmdir(&name)).and(None),
            6 => self.file(a).and_then(|f| self.note(dir.link(&name, &f))).and(None),
            7 => self.note(dir.tmpfile(&new(NewKind::Regular))),
            _ => {
                let flags = RenameFlags { noreplace: a & 2 != 0, exchange: a & 6 == 4 };
                let to = self.dir(a >> 1);
                // The VFS lets no directory into itself.
                let into_itself = to.meta().ino != self.root.meta().ino && name == b"dir";
                let new = Self::name(input.next());
                if into_itself || new == b"dir" { None } else { self.note(dir.rename(&name, &to, &new, flags)).and(None) }
            }
        };
        if self.open.len() < 12 {
            self.open.extend(made);
        }
    }

    fn content(&mut self, op: u8, input: &mut Bytes<'_>) {
        let Some(f) = self.file(input.next()) else { return };
        if f.meta().kind != FileType::Regular && op < 6 {
            return;
        }
        match op {
            0 => {
                let (at, n) = (input.place(), input.wide() as usize % 20_000);
                let _ = self.note(f.write_at(Some(at), &mut SliceSource::new(&vec![7; n])));
            }
            1 => {
                let (at, mut buf) = (input.place(), vec![0; 9000]);
                let _ = self.note(f.read_at(at, &mut SliceSink::new(&mut buf)));
            }
            2 => {
                let size = Some(input.place());
                let _ = self.note(f.setattr(&SetAttr { size, ..SetAttr::default() }));
            }
            3 => {
                let mode = u32::from(input.next()) & (linux::FALLOC_FL_KEEP_SIZE | linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_ZERO_RANGE | 0x28);
                let (at, len) = (input.place(), input.place() % (8 << 20));
                let _ = self.note(f.fallocate(mode, at, len));
            }
            4 => {
                let (at, hole) = (input.place(), input.next() & 1 == 0);
                let _ = self.note(f.seek_data(at, hole));
            }
            5 => {
                let _ = self.note(f.fsync(input.next() & 1 == 0));
            }
            6 => {
                let name = [b"user.".as_slice(), &vec![b'x'; 1 + usize::from(input.next() % 40)]].concat();
                let value = vec![3; input.wide() as usize % 1200];
                let _ = self.note(f.set_xattr(&name, (value.len() % 7 != 0).then_some(&value), 0));
            }
            _ => {
                let flags = f.file_flags().unwrap_or(0) ^ [0x10, 0x20, 8, 0x80][usize::from(input.next() % 4)];
                let _ = self.note(f.set_file_flags(flags));
            }
        }
    }

    fn whole_fs(&mut self, op: u8) {
        match op {
            0 => drop(self.note(self.fs.sync())),
            1 => drop(self.note(self.fs.commit())),
            2 => drop(self.note(self.fs.remount("ro"))),
            3 => drop(self.note(self.fs.remount("rw"))),
            4 => drop(self.fs.trim(0..u64::MAX, 0)),
            5 => drop(self.note(self.fs.statfs())),
            6 => self.open.clear(),
            _ => walk(&self.root),
        }
    }
}

fn run(input: &[u8]) {
    let mut input = Bytes(input);
    let what = input.next();
    let base = &bases()[usize::from(what & 3)];
    let disk = Arc::new(OverlayDisk::new(base.image.clone()));
    let changes = damage(&disk, base, &mut input);
    let on_error = if what & 4 == 0 { OnError::RemountReadOnly } else { OnError::Continue };
    // FUZZ_LOG= shows what the driver has to say.
    let log: fn(&str) = if std::env::var_os("FUZZ_LOG").is_some() { |m| eprintln!("{m}") } else { |_| () };
    let options = Options { log, on_error, read_only: what & 24 == 24, sync: what & 96 == 96, ..Options::default() };
    let fs = match DataFs::mount(disk, cache(), options, 1) {
        Ok(fs) => fs,
        Err(refused) => {
            assert!(changes > 0 && !refused.why.is_empty(), "{}", refused.why);
            return;
        }
    };
    let Ok(root) = fs.root() else { return };
    if what & 128 != 0 {
        walk(&root);
    }
    let mut run = Run { fs: &fs, root, open: Vec::new(), whole: changes == 0 };
    for _ in 0..40 {
        if input.0.is_empty() {
            break;
        }
        let op = input.next();
        match op % 4 {
            0 | 1 => run.names((op >> 2) % 9, &mut input),
            2 => run.content((op >> 2) % 8, &mut input),
            _ => run.whole_fs((op >> 2) % 8),
        }
    }
    assert!(changes > 0 || !fs.saw_errors(), "damage found in an image that is whole");
    drop(run);
    drop(fs);
}

/// A few inputs that show libFuzzer the form: each kind of operation, without damage and with one change here and there.
fn seeds(dir: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (state >> 56) as u8
    };
    for n in 0..64u8 {
        let changes = if n < 16 { 0 } else { 1 + n % 5 };
        let mut bytes = vec![n & 3 | (noise() & 0xfc), changes];
        bytes.extend((0..usize::from(changes) * 5).map(|_| noise()));
        bytes.extend((0..60 + usize::from(n)).map(|_| noise()));
        std::fs::write(format!("{dir}/seed-{n}"), bytes).unwrap();
    }
}

fuzz_target!(init: {
    if let Ok(dir) = std::env::var("FUZZ_SEEDS") {
        seeds(&dir);
        std::process::exit(0);
    }
    bases();
}, |input: &[u8]| run(input));
