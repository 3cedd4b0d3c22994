//! Disks made by mke2fs, and what the host's tools say of them.
#![allow(dead_code)]

use crate::{BufferCache, Checksums, Extent, Journal, Map, Options};
use block::{BlockDevice, MemDisk};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A path for a file of this test run; removed when dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Scratch(std::env::temp_dir().join(format!("berth-journal-{}-{n}-{name}", std::process::id())))
    }

    pub fn with(name: &str, bytes: &[u8]) -> Self {
        let s = Self::new(name);
        std::fs::write(&s.0, bytes).unwrap();
        s
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs a tool of e2fsprogs; `None` if it is not installed.
pub fn tool(name: &str, args: &[&str]) -> Option<Output> {
    let path =
        ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|d| format!("{d}/{name}")).find(|p| PathBuf::from(p).exists());
    let Some(path) = path else {
        eprintln!("{name} is not installed: this test proves nothing here");
        return None;
    };
    Some(Command::new(path).args(args).env("LC_ALL", "C").output().unwrap())
}

pub fn text(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

/// An ext4 file system in memory.
#[derive(Clone)]
pub struct Image {
    pub bytes: Vec<u8>,
    pub block_size: usize,
    pub map: Map,
    pub uuid: [u8; 16],
    /// Blocks that nothing uses: the tests' playground.
    pub free: Vec<u64>,
}

impl Image {
    /// A file system of `kib` KiB with a journal of 1024 blocks and a few files. `None` without e2fsprogs.
    pub fn make(kib: u32, block_size: usize, features: &str) -> Option<Image> {
        let s = Scratch::new("image");
        let f = std::fs::File::create(&s.0).unwrap();
        f.set_len(u64::from(kib) * 1024).unwrap();
        drop(f);
        let journal = format!("size={}", (block_size * 1024) >> 20);
        let size = block_size.to_string();
        let mut args =
            vec!["-q", "-F", "-t", "ext4", "-b", &size, "-J", &journal, "-E", "lazy_itable_init=0,nodiscard"];
        if !features.is_empty() {
            args.extend(["-O", features]);
        }
        args.push(s.path());
        let o = tool("mke2fs", &args)?;
        assert!(o.status.success(), "{}", text(&o));
        Some(Self::examine(&s, block_size))
    }

    pub fn examine(s: &Scratch, block_size: usize) -> Image {
        let out = |o: Output| String::from_utf8_lossy(&o.stdout).into_owned();
        let stat = out(tool("debugfs", &["-R", "stat <8>", s.path()]).unwrap());
        let extents = stat.split("EXTENTS:\n").nth(1).unwrap();
        let map = Map::new(extents.split(',').filter(|e| !e.contains("ETB")).map(|e| {
            let range = e.trim().rsplit(':').next().unwrap();
            let mut ends = range.split('-').map(|n| n.trim().parse::<u64>().unwrap());
            let first = ends.next().unwrap();
            Extent { physical: first, len: (ends.next().unwrap_or(first) - first + 1) as u32 }
        }));
        let bytes = s.bytes();
        let uuid = bytes[1024 + 0x68..1024 + 0x78].try_into().unwrap();
        let free = out(tool("debugfs", &["-R", "ffb 200", s.path()]).unwrap());
        let free = free.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        Image { bytes, block_size, map, uuid, free }
    }

    pub fn disk(&self) -> Arc<MemDisk> {
        Arc::new(MemDisk::from_image("image", &self.bytes).unwrap())
    }

    pub fn with(&self, bytes: Vec<u8>) -> Image {
        Image { bytes, ..self.clone() }
    }

    /// Says in the file system's superblock that its journal needs recovery, as a mount does; with the checksum.
    pub fn set_needs_recovery(&mut self) {
        let sb = &mut self.bytes[1024..2048];
        sb[0x60] |= 4;
        if sb[0x64 + 1] & 4 != 0 {
            let crc = crate::crc32c(!0, &sb[..0x3fc]);
            sb[0x3fc..].copy_from_slice(&crc.to_le_bytes());
        }
    }

    /// The bytes without what the two recoveries may differ in: the file system's superblock and the journal.
    pub fn essence(&self) -> Vec<u8> {
        let mut b = self.bytes.clone();
        b[1024..2048].fill(0);
        for i in 0..self.map.len() {
            let (at, _) = self.map.find(i).unwrap();
            let at = at as usize * self.block_size;
            b[at..at + self.block_size].fill(0);
        }
        b
    }

    /// What e2fsck makes of the journal, and nothing else of the file system.
    pub fn recovered_by_e2fsck(&self) -> (Image, Output) {
        let s = Scratch::with("e2fsck", &self.bytes);
        let o = tool("e2fsck", &["-fy", "-E", "journal_only", s.path()]).unwrap();
        (self.with(s.bytes()), o)
    }

    /// What our recovery makes of it.
    pub fn recovered(&self) -> Result<(Image, crate::Report), crate::Refusal> {
        let disk = self.disk();
        let report = crate::recover(&*disk, self.block_size, &self.map, &self.uuid)?;
        Ok((self.with(disk.to_image()), report))
    }

    /// `e2fsck -fn`.
    pub fn check(&self) -> Output {
        let s = Scratch::with("check", &self.bytes);
        tool("e2fsck", &["-fn", s.path()]).unwrap()
    }

    pub fn block(&self, block: u64) -> &[u8] {
        let at = block as usize * self.block_size;
        &self.bytes[at..at + self.block_size]
    }
}

pub fn options(checksums: Checksums, wide: bool) -> Options {
    Options { wide, checksums, ..Options::default() }
}

pub fn open(device: Arc<dyn BlockDevice>, image: &Image, options: Options) -> (Arc<BufferCache>, Arc<Journal>) {
    let cache = BufferCache::new(device, image.block_size).unwrap();
    let (journal, _) = Journal::load(cache.clone(), image.map.clone(), &image.uuid, options).unwrap();
    (cache, journal)
}

/// A small generator whose runs can be repeated.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The seed of a run: from the environment, or of this moment. It is printed.
pub fn seed(name: &str) -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| platform::realtime_ns() >> 10);
    println!("{name}: SEED={seed}");
    seed
}
