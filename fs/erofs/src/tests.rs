//! Images that mkfs.erofs makes, read and compared with the tree they were made from; and the same ones, damaged.
//! Where there is no mkfs.erofs (package erofs-utils), these tests say so and pass.
#![allow(clippy::unwrap_used)]

use crate::Erofs;
use block::{BlockDevice, MemDisk};
use pagecache::{Limits, PageCache, Shrink};
use platform::SliceSink;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use vfs::{FileSystem, FileType, Inode};

fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    (0..len)
        .map(|_| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 56) as u8
        })
        .collect()
}

/// Text that compresses by about 3.
fn text(len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let words = ["kernel ", "page ", "cache ", "inode ", "extent\n", "cluster ", "block ", "0123456789 "];
    let n = noise(len, 7);
    let mut i = 0;
    while out.len() < len {
        out.extend_from_slice(words[usize::from(n[i] % 8)].as_bytes());
        if n[i] > 200 {
            out.push(n[i + 1]);
        }
        i += 1;
    }
    out.truncate(len);
    out
}

fn mixed(len: usize) -> Vec<u8> {
    let mut out = text(len);
    for (i, chunk) in out.chunks_mut(30_000).enumerate() {
        if i % 3 == 1 {
            let n = chunk.len();
            chunk.copy_from_slice(&noise(n, i as u64));
        }
    }
    out
}

/// A tree with everything in it that a user may make.
fn make_tree(dir: &Path) {
    std::fs::create_dir_all(dir.join("sub/deeper")).unwrap();
    std::fs::create_dir(dir.join("empty")).unwrap();
    for (name, content) in [
        ("zero", Vec::new()),
        ("one", vec![b'x']),
        ("page", text(4096)),
        ("page+1", text(4097)),
        ("small", text(300)),
        ("text", text(700_001)),
        ("noise", noise(100_003, 3)),
        ("mixed", mixed(1_000_000)),
        ("zeroes", vec![0; 300_000]),
        ("sub/deeper/file", text(12_345)),
    ] {
        std::fs::write(dir.join(name), content).unwrap();
    }
    std::fs::create_dir(dir.join("many")).unwrap();
    for i in 0..700 {
        std::fs::write(dir.join(format!("many/a-file-with-a-name-{i}")), format!("{i}")).unwrap();
    }
    symlink("sub/deeper/file", dir.join("link")).unwrap();
    symlink("x".repeat(3000), dir.join("long-link")).unwrap();
    std::fs::hard_link(dir.join("text"), dir.join("sub/same-text")).unwrap();
    std::fs::set_permissions(dir.join("one"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    let _ = Command::new("mkfifo").arg(dir.join("fifo")).status();
    for (name, kind, major, minor) in [("null", "c", "1", "3"), ("disk", "b", "259", "70000")] {
        // Only root may.
        let _ = Command::new("mknod")
            .arg(dir.join(name))
            .args([kind, major, minor])
            .stderr(std::process::Stdio::null())
            .status();
    }
    for f in ["one", "small", "sub"] {
        for (k, v) in [("user.colour", "green"), ("user.shared", "by several files"), ("user.empty", "")] {
            let _ = Command::new("setfattr").args(["-n", k, "-v", v]).arg(dir.join(f)).status();
        }
    }
}

fn scratch() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("erofs-test-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        make_tree(&dir.join("tree"));
        dir
    })
}

fn image(name: &str, options: &[&str]) -> Option<Vec<u8>> {
    let out = scratch().join(name);
    let made = Command::new("mkfs.erofs")
        .args(["--quiet", "-T1700000000"])
        .args(options)
        .arg(&out)
        .arg(scratch().join("tree"))
        .output();
    match made {
        Err(_) => {
            eprintln!("no mkfs.erofs: not tested");
            None
        }
        Ok(o) => {
            assert!(o.status.success(), "mkfs.erofs {options:?}: {}", String::from_utf8_lossy(&o.stderr));
            let bytes = std::fs::read(&out).unwrap();
            let _ = std::fs::remove_file(out);
            Some(bytes)
        }
    }
}

fn mount(image: &[u8]) -> Result<(Arc<Erofs>, Arc<PageCache>), crate::layout::Refusal> {
    let pages = PageCache::new(Limits::for_memory(1 << 16));
    let disk: Arc<dyn BlockDevice> = Arc::new(MemDisk::from_image("ram0", image).unwrap());
    Ok((Erofs::mount(disk, &pages)?, pages))
}

fn content(inode: &Arc<dyn Inode>) -> abi::Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut buf = vec![0; 70_000];
    loop {
        let n = inode.read_at(all.len() as u64, &mut SliceSink::new(&mut buf))?;
        if n == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&buf[..n]);
        // A damaged image may promise 8 EiB of zeroes.
        if all.len() > 4 << 20 {
            return Ok(all);
        }
    }
}

fn entries(dir: &Arc<dyn Inode>) -> abi::Result<Vec<(Vec<u8>, u64)>> {
    let mut all = Vec::new();
    let mut cookie = 2;
    loop {
        // A few at a time, so that going on is tried as well.
        let mut n = 0;
        dir.readdir(cookie, &mut |e| {
            if n == 7 {
                return false;
            }
            n += 1;
            cookie = e.next;
            all.push((e.name.to_vec(), e.ino));
            true
        })?;
        if n == 0 || all.len() > 10_000 {
            return Ok(all);
        }
    }
}

fn compare(dir: &Path, inode: &Arc<dyn Inode>) {
    let found: BTreeMap<_, _> = entries(inode).unwrap().into_iter().collect();
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        count += 1;
        let name = entry.file_name().into_encoded_bytes();
        let path = entry.path();
        let child = inode.lookup(&name).unwrap();
        assert_eq!(found.get(&name), Some(&child.meta().ino), "{path:?}");
        let (want, attr) = (entry.metadata().unwrap(), child.getattr().unwrap());
        assert_eq!(attr.mode | attr.kind.mode_bits(), want.mode(), "{path:?}");
        assert_eq!((attr.uid, attr.gid), (want.uid(), want.gid()), "{path:?}");
        let kind = want.file_type();
        if kind.is_dir() {
            assert_eq!(attr.nlink as u64, want.nlink(), "{path:?}");
            compare(&path, &child);
        } else if kind.is_symlink() {
            let text = std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
            assert_eq!(child.readlink().unwrap(), text);
        } else if kind.is_file() {
            assert_eq!((attr.size, attr.nlink as u64), (want.len(), want.nlink()), "{path:?}");
            let (a, b) = (content(&child).unwrap(), std::fs::read(&path).unwrap());
            assert!(a == b, "{path:?} differs at {:?}", a.iter().zip(&b).position(|(x, y)| x != y));
        } else if kind.is_char_device() || kind.is_block_device() {
            assert_eq!(attr.rdev, want.rdev(), "{path:?}");
        }
    }
    assert_eq!(found.len(), count);
    assert_eq!(inode.lookup(b"no such name").map(|_| ()), Err(abi::Errno::ENOENT));
}

fn check(name: &str, options: &[&str]) {
    let Some(bytes) = image(name, options) else { return };
    let (fs, pages) = mount(&bytes).unwrap();
    let root = fs.root().unwrap();
    compare(&scratch().join("tree"), &root);
    // Again, from an emptied cache, backwards and in odd pieces.
    pages.shrink(Shrink { scan: usize::MAX, target: usize::MAX, unmap: true, all: true });
    for name in ["text", "mixed", "noise"] {
        let inode = root.lookup(name.as_bytes()).unwrap();
        let want = std::fs::read(scratch().join("tree").join(name)).unwrap();
        let mut at = want.len();
        while at > 0 {
            let from = at.saturating_sub(9_999);
            let mut buf = vec![0; at - from];
            assert_eq!(inode.read_at(from as u64, &mut SliceSink::new(&mut buf)), Ok(at - from));
            assert!(buf == want[from..at], "{name} differs in {from}..{at}");
            at = from;
            pages.shrink(Shrink { scan: usize::MAX, target: 16, unmap: true, all: false });
        }
    }
    drop(root);
    drop(fs);
    assert_eq!(pages.stats().cached, 0);
}

#[test]
fn uncompressed() {
    check("plain", &[]);
}

#[test]
fn extended_inodes() {
    check("extended", &["-Eforce-inode-extended"]);
}

#[test]
fn tails_apart_from_inodes() {
    check("noinline", &["-Enoinline_data"]);
}

#[test]
fn lz4() {
    check("lz4", &["-zlz4"]);
}

#[test]
fn lz4hc_with_big_clusters() {
    check("big", &["-zlz4hc,12", "-C65536"]);
}

#[test]
fn lz4_with_the_full_index() {
    check("legacy", &["-zlz4", "-Elegacy-compress"]);
    check("legacy-big", &["-zlz4hc", "-C16384", "-Elegacy-compress"]);
}

#[test]
fn chunks() {
    check("chunks", &["--chunksize=4096"]);
    check("chunks-64k", &["--chunksize=65536", "-Eforce-chunk-indexes"]);
}

#[test]
fn attributes() {
    let Some(bytes) = image("xattr", &["-x1"]) else { return };
    let (fs, _pages) = mount(&bytes).unwrap();
    let one = fs.root().unwrap().lookup(b"one").unwrap();
    let listed = Command::new("getfattr").arg("-d").arg(scratch().join("tree/one")).output();
    if !listed.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("colour")) {
        eprintln!("the host's files have no attributes: not tested");
        return;
    }
    assert_eq!(one.get_xattr(b"user.colour").unwrap(), b"green");
    assert_eq!(one.get_xattr(b"user.shared").unwrap(), b"by several files");
    assert_eq!(one.get_xattr(b"user.empty").unwrap(), b"");
    assert_eq!(one.get_xattr(b"user.none"), Err(abi::Errno::ENODATA));
    let names = one.list_xattr().unwrap();
    assert_eq!(names.split(|b| *b == 0).filter(|n| !n.is_empty()).count(), 3);
}

#[test]
fn what_is_lacking_is_refused_by_name() {
    let Some(bytes) = image("refuse", &[]) else { return };
    let with = |at: usize, bits: u8| {
        let mut b = bytes.clone();
        b[1024 + at] |= bits;
        // Without a checksum.
        b[1024 + 8] &= !1;
        mount(&b).map(|_| ()).unwrap_err()
    };
    assert_eq!(with(80, 0x20).to_string(), "the feature fragments or dedupe is not supported");
    assert_eq!(with(82, 0x80), crate::layout::Refusal::Unknown(0x80_0000));
    assert_eq!(with(12, 1), crate::layout::Refusal::BlockSize(13));
    assert_eq!(mount(&bytes[..8192]).map(|_| ()).unwrap_err(), crate::layout::Refusal::Truncated);
    assert_eq!(mount(&[0; 8192]).map(|_| ()).unwrap_err(), crate::layout::Refusal::NotErofs);
    let mut b = bytes.clone();
    b[1024 + 60] ^= 1;
    assert_eq!(mount(&b).map(|_| ()).unwrap_err(), crate::layout::Refusal::Checksum);
}

/// Looks at everything that can be reached, however wrong.
fn wander(inode: &Arc<dyn Inode>, depth: usize, budget: &mut usize) {
    if *budget == 0 || depth > 6 {
        return;
    }
    *budget -= 1;
    let _ = inode.getattr();
    let _ = inode.list_xattr();
    match inode.meta().kind {
        FileType::Dir => {
            for (name, _) in entries(inode).unwrap_or_default() {
                if let Ok(child) = inode.lookup(&name) {
                    wander(&child, depth + 1, budget);
                }
            }
        }
        FileType::Symlink => drop(inode.readlink()),
        _ => drop(content(inode)),
    }
}

fn damaged(kind: usize) -> Option<&'static Vec<u8>> {
    static IMAGES: [OnceLock<Option<Vec<u8>>>; 4] = [const { OnceLock::new() }; 4];
    let options: [&[&str]; 4] =
        [&["-x1"], &["-zlz4hc", "-C65536"], &["-zlz4", "-Elegacy-compress"], &["--chunksize=4096"]];
    IMAGES[kind].get_or_init(|| image(&format!("fuzz{kind}"), options[kind])).as_ref()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn damage_gives_errors_and_nothing_worse(
        kind in 0usize..4,
        flips in proptest::collection::vec((0usize..1 << 20, any::<u8>(), any::<bool>()), 1..60),
    ) {
        let Some(good) = damaged(kind) else { return Ok(()) };
        let mut bytes = good.clone();
        for (at, value, early) in flips {
            // Half of it where the superblock and the first inodes are.
            let span = if early { 16384.min(bytes.len()) } else { bytes.len() };
            bytes[at % span] = value;
        }
        bytes[1024 + 8] &= !1;
        if let Ok((fs, _pages)) = mount(&bytes) {
            wander(&fs.root().unwrap(), 0, &mut 200);
        }
    }
}
