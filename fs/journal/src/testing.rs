//! For tests on the host: disks made by mke2fs, and what the host's tools say of them.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // a test that cannot go on stops

use crate::{BufferCache, Checksums, Extent, Journal, Map, Options};
use block::{BlockDevice, Geometry, MemDisk, Op, Request, Stats};
use std::path::PathBuf;
use std::prelude::v1::*;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::{eprintln, format, println, vec};

/// A path for a file of this test run; removed when dropped.
#[derive(Debug)]
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// A path that nothing else uses.
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Scratch(std::env::temp_dir().join(format!("berth-journal-{}-{n}-{name}", std::process::id())))
    }

    /// A file with this content.
    pub fn with(name: &str, bytes: &[u8]) -> Self {
        let s = Self::new(name);
        std::fs::write(&s.0, bytes).unwrap();
        s
    }

    /// The file's content.
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }

    /// The path.
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

/// What a tool said.
pub fn text(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

/// An ext4 file system in memory.
#[derive(Clone, Debug)]
pub struct Image {
    /// The disk.
    pub bytes: Vec<u8>,
    /// Bytes of a block.
    pub block_size: usize,
    /// The journal.
    pub map: Map,
    /// The file system's UUID.
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

    /// The file system in the file `s`.
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

    /// A disk with this content.
    pub fn disk(&self) -> Arc<MemDisk> {
        Arc::new(MemDisk::from_image("image", &self.bytes).unwrap())
    }

    /// The same file system with other content.
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
        let o = tool("e2fsck", &["-y", "-E", "journal_only", s.path()]).unwrap();
        (self.with(s.bytes()), o)
    }

    /// What e2fsprogs' replay alone makes of the journal (`e2fsck` also finishes orphans).
    pub fn replayed_by_debugfs(&self) -> (Image, Output) {
        let s = Scratch::with("debugfs", &self.bytes);
        let o = tool("debugfs", &["-w", "-R", "journal_run", s.path()]).unwrap();
        (self.with(s.bytes()), o)
    }

    /// What our recovery makes of it.
    pub fn recovered(&self) -> Result<(Image, crate::Report), crate::Refusal> {
        let disk = VecDisk::new(self.bytes.clone());
        let report = crate::recover(&disk, self.block_size, &self.map, &self.uuid)?;
        Ok((self.with(disk.into_bytes()), report))
    }

    /// `e2fsck -fn`.
    pub fn check(&self) -> Output {
        let s = Scratch::with("check", &self.bytes);
        tool("e2fsck", &["-fn", s.path()]).unwrap()
    }

    /// One block's content.
    pub fn block(&self, block: u64) -> &[u8] {
        let at = block as usize * self.block_size;
        &self.bytes[at..at + self.block_size]
    }
}

/// A disk that is a vector: quicker than [`MemDisk`] where thousands are needed for a moment each.
#[derive(Debug)]
pub struct VecDisk {
    bytes: Mutex<Vec<u8>>,
    stats: Stats,
}

impl VecDisk {
    /// A disk with this content.
    pub fn new(bytes: Vec<u8>) -> Self {
        VecDisk { bytes: Mutex::new(bytes), stats: Stats::new() }
    }

    /// Its content.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_inner().unwrap()
    }

    fn perform(&self, request: &Request) -> abi::Result<()> {
        self.geometry().check(request)?;
        let mut bytes = self.bytes.lock().unwrap();
        let mut at = request.sector as usize * 512;
        if matches!(request.op, Op::Discard | Op::WriteZeroes) {
            bytes[at..at + request.count as usize * 512].fill(0);
        }
        for s in &request.segments {
            let piece = &mut bytes[at..at + s.len as usize];
            if request.op == Op::Read {
                s.page.bytes_mut(s.offset as usize, s.len as usize).copy_from(platform::SharedBytes::from(&*piece));
            } else {
                s.page.bytes(s.offset as usize, s.len as usize).copy_to(piece);
            }
            at += s.len as usize;
        }
        Ok(())
    }
}

impl BlockDevice for VecDisk {
    fn name(&self) -> &'static str {
        "vector"
    }

    fn geometry(&self) -> Geometry {
        Geometry::simple(self.bytes.lock().unwrap().len() as u64 / 512)
    }

    fn submit(&self, request: Request) {
        let result = self.perform(&request);
        request.finish(result);
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

/// Journal options.
pub fn options(checksums: Checksums, wide: bool) -> Options {
    Options { wide, checksums, ..Options::default() }
}

/// Opens the journal of `image`, which is on `device`.
pub fn open(device: Arc<dyn BlockDevice>, image: &Image, options: Options) -> (Arc<BufferCache>, Arc<Journal>) {
    let cache = BufferCache::new(device, image.block_size).unwrap();
    let (journal, _) = Journal::load(cache.clone(), image.map.clone(), &image.uuid, options).unwrap();
    (cache, journal)
}

/// A small generator whose runs can be repeated.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
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
