//! Images, and the tools that make and judge them.

use crate::{DataFs, Options};
use block::{BlockDevice, MemDisk};
use pagecache::{Limits, PageCache};
use platform::{SliceSink, SliceSource};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vfs::{FileType, Inode, NewInode, NewKind};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory that is removed at the end.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Dir {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("datafs-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tool(name: &str) -> Command {
    let mut c = Command::new(format!("/usr/sbin/{name}"));
    c.env("LC_ALL", "C");
    c
}

/// `mke2fs -t ext4` with more arguments, on a file of `mib` MiB.
pub fn mke2fs(dir: &Dir, mib: u64, args: &[&str]) -> PathBuf {
    let path = dir.path("image");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(mib << 20).unwrap();
    let out =
        tool("mke2fs").args(["-q", "-F", "-t", "ext4", "-E", "root_owner=0:0"]).args(args).arg(&path).output().unwrap();
    assert!(out.status.success(), "mke2fs: {}", String::from_utf8_lossy(&out.stderr));
    path
}

pub fn debugfs(image: &PathBuf, request: &str) -> String {
    let out = tool("debugfs").args(["-R", request]).arg(image).output().unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

pub fn debugfs_write(image: &PathBuf, script: &str) {
    let file = image.with_extension("script");
    std::fs::write(&file, script).unwrap();
    let out = tool("debugfs").arg("-w").arg("-f").arg(&file).arg(image).output().unwrap();
    assert!(out.status.success(), "debugfs: {}", String::from_utf8_lossy(&out.stderr));
}

/// `e2fsck -fn` must find nothing.
pub fn fsck(image: &PathBuf) {
    let out = tool("e2fsck").args(["-f", "-n"]).arg(image).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "e2fsck -fn:\n{}", &text[..text.len().min(4000)]);
}

/// The disk of an image file, in memory.
pub fn disk(image: &PathBuf) -> Arc<MemDisk> {
    Arc::new(MemDisk::from_image("test", &std::fs::read(image).unwrap()).unwrap())
}

pub fn cache() -> Arc<PageCache> {
    PageCache::new(Limits { background: 1 << 30, hard: 1 << 30, expire_ns: 30_000_000_000 })
}

pub fn options() -> Options {
    Options { log: |m| eprintln!("log: {m}"), ..Options::default() }
}

pub fn mount(disk: &Arc<MemDisk>) -> Arc<DataFs> {
    mount_with(disk, options())
}

pub fn mount_with(disk: &Arc<MemDisk>, options: Options) -> Arc<DataFs> {
    let device: Arc<dyn BlockDevice> = disk.clone();
    match DataFs::mount(device, cache(), options, 42) {
        Ok(f) => f,
        Err(r) => panic!("mount: {:?} {}", r.errno, r.why),
    }
}

/// Unmounts, writes the image out and has it checked.
pub fn check(fs: Arc<DataFs>, disk: &Arc<MemDisk>, image: &PathBuf) {
    assert!(!fs.saw_errors());
    unmount(fs);
    std::fs::write(image, disk.to_image()).unwrap();
    fsck(image);
}

pub fn unmount(fs: Arc<DataFs>) {
    vfs::FileSystem::sync(&*fs).unwrap();
    assert_eq!(Arc::strong_count(&fs), 1);
    drop(fs);
}

pub fn walk(fs: &DataFs, path: &str) -> abi::Result<Arc<dyn Inode>> {
    let mut at = vfs::FileSystem::root(fs)?;
    for part in path.split('/').filter(|p| !p.is_empty()) {
        at = at.lookup(part.as_bytes())?;
    }
    Ok(at)
}

pub fn read(inode: &Arc<dyn Inode>) -> Vec<u8> {
    let mut buf = vec![0; inode.len() as usize];
    let n = inode.read_at(0, &mut SliceSink::new(&mut buf)).unwrap();
    assert_eq!(n, buf.len());
    buf
}

pub fn write(inode: &Arc<dyn Inode>, offset: u64, data: &[u8]) {
    let (_, n) = inode.write_at(Some(offset), &mut SliceSource::new(data)).unwrap();
    assert_eq!(n, data.len());
}

pub fn new(kind: NewKind<'_>) -> NewInode<'_> {
    NewInode { kind, mode: 0o644, uid: 1000, gid: 100 }
}

pub fn file(dir: &Arc<dyn Inode>, name: &str) -> Arc<dyn Inode> {
    dir.create(name.as_bytes(), &new(NewKind::Regular)).unwrap()
}

pub fn mkdir(dir: &Arc<dyn Inode>, name: &str) -> Arc<dyn Inode> {
    dir.create(name.as_bytes(), &new(NewKind::Dir)).unwrap()
}

pub fn names(dir: &Arc<dyn Inode>) -> Vec<(String, FileType)> {
    let mut out = Vec::new();
    let mut at = 2;
    // A few at a time, as getdents does.
    loop {
        let before = out.len();
        let mut n = 0;
        dir.readdir(at, &mut |e| {
            n += 1;
            if n > 7 {
                return false;
            }
            out.push((String::from_utf8_lossy(e.name).into_owned(), e.kind));
            at = e.next;
            true
        })
        .unwrap();
        if out.len() == before {
            return out;
        }
    }
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            s as u8
        })
        .collect()
}
