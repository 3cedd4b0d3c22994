//! tmpfs through the VFS: against a model, and under concurrency.

use crate::{Limits, TmpFs};
use abi::{Errno, Result, linux};
use platform::{SliceSink, SliceSource};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use vfs::{
    At, Cred, FileType, FsContext, Lookup, OpenFile, OpenHow, Path, RenameFlags, SetAttr, Superblock, Walk, mount,
    namei,
};

const ROOT: Cred<'static> = Cred::ROOT;
const USER: Cred<'static> = Cred { uid: 1000, gid: 1000, groups: &[50], caps: 0 };

struct World {
    fs: FsContext,
    tmp: Arc<TmpFs>,
}

fn world_with(limits: Limits) -> World {
    let tmp = TmpFs::new(limits, 0o755).unwrap();
    let root = mount::mount_root(Superblock::new(tmp.clone()).unwrap(), 0, "tmpfs");
    let fs = FsContext::new(root);
    fs.set_umask(0);
    World { fs, tmp }
}

fn world() -> World {
    world_with(Limits::NONE)
}

impl World {
    fn open_as(&self, cred: &Cred<'_>, path: &str, flags: u32) -> Result<Arc<OpenFile>> {
        OpenFile::open(&self.fs, cred, At::Cwd, path.as_bytes(), OpenHow { flags, mode: 0o644, resolve: 0 })
    }
    fn open(&self, path: &str, flags: u32) -> Result<Arc<OpenFile>> {
        self.open_as(&ROOT, path, flags)
    }
    fn put(&self, path: &str, data: &[u8]) -> Result<()> {
        let f = self.open(path, linux::O_CREAT | linux::O_TRUNC | linux::O_WRONLY)?;
        assert_eq!(f.write(&mut SliceSource::new(data))?, data.len());
        Ok(())
    }
    fn get(&self, path: &str) -> Result<Vec<u8>> {
        read_all(&*self.open(path, linux::O_RDONLY)?)
    }
    fn mkdir(&self, path: &str) -> Result<()> {
        namei::mkdir(&self.fs, &ROOT, At::Cwd, path.as_bytes(), 0o755)
    }
    fn symlink(&self, text: &str, path: &str) -> Result<()> {
        namei::symlink(&self.fs, &ROOT, text.as_bytes(), At::Cwd, path.as_bytes())
    }
    fn unlink(&self, path: &str) -> Result<()> {
        namei::unlink(&self.fs, &ROOT, At::Cwd, path.as_bytes(), false)
    }
    fn rmdir(&self, path: &str) -> Result<()> {
        namei::unlink(&self.fs, &ROOT, At::Cwd, path.as_bytes(), true)
    }
    fn rename_how(&self, a: &str, b: &str, flags: RenameFlags) -> Result<()> {
        namei::rename(&self.fs, &ROOT, (At::Cwd, a.as_bytes()), (At::Cwd, b.as_bytes()), flags)
    }
    fn rename(&self, a: &str, b: &str) -> Result<()> {
        self.rename_how(a, b, RenameFlags::default())
    }
    fn link(&self, a: &str, b: &str) -> Result<()> {
        let source = self.at(a, Lookup::NOFOLLOW)?;
        namei::link(&self.fs, &ROOT, &source, At::Cwd, b.as_bytes())
    }
    fn at(&self, path: &str, how: Lookup) -> Result<Path> {
        Walk::resolve(&self.fs, &ROOT, At::Cwd, path.as_bytes(), how)
    }
    fn list(&self, path: &str) -> Result<Vec<String>> {
        let f = self.open(path, linux::O_RDONLY | linux::O_DIRECTORY)?;
        let mut names = vec![];
        f.readdir(&mut |e| {
            names.push(String::from_utf8_lossy(e.name).into_owned());
            true
        })?;
        names.retain(|n| n != "." && n != "..");
        names.sort();
        Ok(names)
    }
}

fn read_all(f: &OpenFile) -> Result<Vec<u8>> {
    let mut out = vec![];
    let mut buf = [0; 1000];
    loop {
        let n = f.read(&mut SliceSink::new(&mut buf))?;
        if n == 0 {
            return Ok(out);
        }
        out.extend_from_slice(&buf[..n]);
    }
}

#[test]
fn names_resolve_as_posix_says() {
    let w = world();
    w.mkdir("/a").unwrap();
    w.mkdir("a/b/").unwrap();
    w.put("/a/b/f", b"hello").unwrap();
    for p in ["/a/b/f", "a/b/f", "//a///b//f", "/a/./b/../b/f", "/../a/b/f", "/a/b/../../a/b/f"] {
        assert_eq!(w.get(p).unwrap(), b"hello", "{p}");
    }
    let err = |p: &str| w.at(p, Lookup::FOLLOW).map(drop).unwrap_err();
    assert_eq!(err(""), Errno::ENOENT);
    assert_eq!(err("/a/x"), Errno::ENOENT);
    assert_eq!(err("/a/x"), Errno::ENOENT);
    assert_eq!(err("/a/b/f/"), Errno::ENOTDIR);
    assert_eq!(err("/a/b/f/x"), Errno::ENOTDIR);
    assert_eq!(err("/a/x/y"), Errno::ENOENT);
    assert_eq!(err(&format!("/{}", "n".repeat(256))), Errno::ENAMETOOLONG);
    assert_eq!(err(&"x/".repeat(2048)), Errno::ENAMETOOLONG);
    assert!(w.put(&format!("/{}", "n".repeat(255)), b"").is_ok());
    w.symlink("a/b", "/l").unwrap();
    w.symlink("/l/f", "/lf").unwrap();
    assert_eq!(w.get("/l/f").unwrap(), b"hello");
    assert_eq!(w.get("/lf").unwrap(), b"hello");
    assert_eq!(w.at("/l", Lookup::NOFOLLOW).unwrap().dentry.kind(), FileType::Symlink);
    assert_eq!(w.at("/l/", Lookup::NOFOLLOW).unwrap().dentry.kind(), FileType::Dir);
    assert_eq!(err("/lf/"), Errno::ENOTDIR);
    w.symlink("loop2", "/loop1").unwrap();
    w.symlink("loop1", "/loop2").unwrap();
    assert_eq!(err("/loop1"), Errno::ELOOP);
    assert_eq!(w.open("/l", linux::O_NOFOLLOW).map(drop).unwrap_err(), Errno::ELOOP);
    assert_eq!(w.open("/l", linux::O_CREAT | linux::O_EXCL).map(drop).unwrap_err(), Errno::EEXIST);
    w.symlink("/a/new", "/dangling").unwrap();
    w.put("/dangling", b"through").unwrap();
    assert_eq!(w.get("/a/new").unwrap(), b"through");
    assert_eq!(w.open("/a", linux::O_WRONLY).map(drop).unwrap_err(), Errno::EISDIR);
    assert_eq!(w.open("/a/", linux::O_CREAT).map(drop).unwrap_err(), Errno::EISDIR);
    assert_eq!(w.open("/nodir/", linux::O_CREAT).map(drop).unwrap_err(), Errno::EISDIR);
    assert_eq!(w.mkdir("/a").unwrap_err(), Errno::EEXIST);
    assert_eq!(w.mkdir("/").unwrap_err(), Errno::EEXIST);
    assert_eq!(w.rmdir("/a").unwrap_err(), Errno::ENOTEMPTY);
    assert_eq!(w.rmdir("/a/.").unwrap_err(), Errno::EINVAL);
    assert_eq!(w.rmdir("/a/b/f").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(w.unlink("/a").unwrap_err(), Errno::EISDIR);
    assert_eq!(w.rename("/a", "/a/b/c").unwrap_err(), Errno::EINVAL);
    assert_eq!(w.rename("/a/b/f", "/a").unwrap_err(), Errno::ENOTEMPTY);
    assert_eq!(w.rename("/a/b", "/a").unwrap_err(), Errno::ENOTEMPTY);
}

#[test]
fn a_removed_file_lives_while_open_and_a_removed_directory_takes_nothing() {
    let w = world();
    w.put("/f", b"data").unwrap();
    let f = w.open("/f", linux::O_RDWR).unwrap();
    w.unlink("/f").unwrap();
    assert_eq!(w.get("/f").unwrap_err(), Errno::ENOENT);
    assert_eq!(read_all(&f).unwrap(), b"data");
    assert_eq!(f.getattr().unwrap().nlink, 0);
    assert_eq!(f.display(None), b"/f (deleted)");
    let used = w.tmp.used_pages();
    drop(f);
    assert_eq!(w.tmp.used_pages(), used - 1);
    w.mkdir("/d").unwrap();
    let d = w.at("/d", Lookup::DIRECTORY).unwrap();
    w.fs.set_cwd(d.clone());
    w.rmdir("/d").unwrap();
    assert_eq!(w.put("x", b"").unwrap_err(), Errno::ENOENT);
    assert_eq!(d.render_cwd(&w.fs.root()).unwrap_err(), Errno::ENOENT);
}

#[test]
fn permissions_are_checked() {
    let w = world();
    w.mkdir("/tmp").unwrap();
    let chmod = |p: &str, mode| {
        let at = w.at(p, Lookup::FOLLOW).unwrap();
        namei::setattr(&ROOT, &at, SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
    };
    assert_eq!(w.open_as(&USER, "/f", linux::O_CREAT).map(drop).unwrap_err(), Errno::EACCES);
    chmod("/tmp", 0o1777);
    w.open_as(&USER, "/tmp/mine", linux::O_CREAT | linux::O_RDWR).unwrap();
    w.put("/tmp/roots", b"x").unwrap();
    assert_eq!(w.open_as(&USER, "/tmp/roots", linux::O_RDWR).map(drop).unwrap_err(), Errno::EACCES);
    assert!(w.open_as(&USER, "/tmp/roots", linux::O_RDONLY).is_ok());
    let unlink = |p: &str| namei::unlink(&w.fs, &USER, At::Cwd, p.as_bytes(), false);
    assert_eq!(unlink("/tmp/roots").unwrap_err(), Errno::EPERM);
    assert!(unlink("/tmp/mine").is_ok());
    w.mkdir("/secret").unwrap();
    w.put("/secret/f", b"x").unwrap();
    chmod("/secret", 0o700);
    assert_eq!(w.open_as(&USER, "/secret/f", 0).map(drop).unwrap_err(), Errno::EACCES);
    chmod("/tmp", 0o3777);
    let at = w.at("/tmp", Lookup::FOLLOW).unwrap();
    namei::setattr(&ROOT, &at, SetAttr { gid: Some(50), ..SetAttr::default() }).unwrap();
    namei::mkdir(&w.fs, &USER, At::Cwd, b"/tmp/sub", 0o700).unwrap();
    let sub = w.at("/tmp/sub", Lookup::FOLLOW).unwrap().inode().getattr().unwrap();
    assert_eq!((sub.gid, sub.mode), (50, 0o2700));
}

#[test]
fn limits_give_enospc_and_everything_is_returned() {
    let w = world_with(Limits { pages: 4, inodes: 3 });
    w.put("/a", &[1; 8192]).unwrap();
    let f = w.open("/b", linux::O_CREAT | linux::O_RDWR).unwrap();
    assert_eq!(f.write(&mut SliceSource::new(&vec![2; 20000])).unwrap(), 8192);
    assert_eq!(f.write(&mut SliceSource::new(&[2; 10])).unwrap_err(), Errno::ENOSPC);
    assert_eq!(w.put("/c", b"").unwrap_err(), Errno::ENOSPC);
    assert_eq!(f.fallocate(0, 0, 40960).unwrap_err(), Errno::ENOSPC);
    f.truncate(1).unwrap();
    assert_eq!(w.tmp.used_pages(), 3);
    w.unlink("/a").unwrap();
    assert_eq!(w.tmp.used_pages(), 1);
    assert!(w.put("/c", b"x").is_ok());
}

#[test]
fn listings_survive_removal_and_see_what_stays_once() {
    let w = world();
    w.mkdir("/d").unwrap();
    for i in 0..500 {
        w.put(&format!("/d/{i}"), b"").unwrap();
    }
    let f = w.open("/d", linux::O_RDONLY).unwrap();
    let mut seen = vec![];
    loop {
        let mut batch = vec![];
        f.readdir(&mut |e| {
            if batch.len() == 7 {
                return false;
            }
            batch.push(String::from_utf8_lossy(e.name).into_owned());
            true
        })
        .unwrap();
        if batch.is_empty() {
            break;
        }
        for n in batch.iter().filter(|n| !n.starts_with('.') && n.parse::<u32>().unwrap() % 2 == 0) {
            w.unlink(&format!("/d/{n}")).unwrap();
        }
        seen.append(&mut batch);
    }
    assert_eq!(seen.len(), 502);
    assert_eq!(w.list("/d").unwrap().len(), 250);
}

#[test]
fn mounts_cover_and_uncover() {
    let w = world();
    w.mkdir("/m").unwrap();
    w.put("/m/under", b"u").unwrap();
    let other = TmpFs::new(Limits::NONE, 0o755).unwrap();
    let at = w.at("/m", Lookup::DIRECTORY).unwrap();
    mount::mount(Superblock::new(other).unwrap(), &at, 0, "other").unwrap();
    drop(at);
    assert_eq!(w.get("/m/under").unwrap_err(), Errno::ENOENT);
    w.put("/m/over", b"o").unwrap();
    assert_eq!(w.rename("/m/over", "/over").unwrap_err(), Errno::EXDEV);
    assert_eq!(w.rmdir("/m").unwrap_err(), Errno::EBUSY);
    let inside = w.at("/m/over", Lookup::FOLLOW).unwrap();
    assert_eq!(inside.render(None), b"/m/over");
    assert!(w.at("/m/..", Lookup::FOLLOW).unwrap().same(&w.fs.root()));
    assert_eq!(mount::unmount(w.at("/m", Lookup::FOLLOW).unwrap(), false).unwrap_err(), Errno::EBUSY);
    drop(inside);
    mount::remount(&w.at("/m", Lookup::FOLLOW).unwrap(), 1, "").unwrap();
    assert_eq!(w.put("/m/ro", b"").unwrap_err(), Errno::EROFS);
    w.mkdir("/b").unwrap();
    let (what, to) = (w.at("/m", Lookup::FOLLOW).unwrap(), w.at("/b", Lookup::FOLLOW).unwrap());
    mount::bind(&what, &to, false).unwrap();
    drop((what, to));
    assert_eq!(w.get("/b/over").unwrap(), b"o");
    mount::unmount(w.at("/b", Lookup::FOLLOW).unwrap(), false).unwrap();
    mount::unmount(w.at("/m", Lookup::FOLLOW).unwrap(), false).unwrap();
    assert_eq!(w.get("/m/under").unwrap(), b"u");
    assert_eq!(mount::unmount(w.at("/m", Lookup::FOLLOW).unwrap(), false).unwrap_err(), Errno::EINVAL);
}

#[test]
fn holes_are_found_and_punched() {
    let w = world();
    let f = w.open("/f", linux::O_CREAT | linux::O_RDWR).unwrap();
    f.pwrite(8192, &mut SliceSource::new(&[7; 4096])).unwrap();
    f.truncate(20480).unwrap();
    assert_eq!(f.seek(0, linux::SEEK_DATA).unwrap(), 8192);
    assert_eq!(f.seek(8192, linux::SEEK_HOLE).unwrap(), 12288);
    assert_eq!(f.seek(12288, linux::SEEK_DATA).unwrap_err(), Errno::ENXIO);
    f.fallocate(linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_KEEP_SIZE, 8200, 10).unwrap();
    let mut b = [0; 20];
    f.pread(8196, &mut SliceSink::new(&mut b)).unwrap();
    assert_eq!(b, [7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7]);
    f.fallocate(linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_KEEP_SIZE, 8192, 4096).unwrap();
    assert_eq!(f.getattr().unwrap().blocks, 0);
}

#[test]
fn the_tree_stays_whole_under_concurrent_renames() {
    let w = Arc::new(world());
    for d in 0..4 {
        w.mkdir(&format!("/{d}")).unwrap();
        w.put(&format!("/{d}/f{d}"), b"x").unwrap();
    }
    let workers: Vec<_> = (0..4u64)
        .map(|t| {
            let w = w.clone();
            std::thread::spawn(move || {
                let mut x = t * 7919 + 1;
                for _ in 0..2000 {
                    x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let (a, b, f) = ((x >> 33) % 4, (x >> 40) % 4, (x >> 50) % 4);
                    let _ = match (x >> 60) % 4 {
                        0 => w.rename(&format!("/{a}/f{f}"), &format!("/{b}/f{f}")),
                        1 => w.rename(&format!("/{a}"), &format!("/{b}/sub{a}")),
                        2 => w.rename(&format!("/{a}/sub{b}"), &format!("/{b}")),
                        _ => w.list(&format!("/{a}")).map(drop),
                    };
                }
            })
        })
        .collect();
    for t in workers {
        t.join().unwrap();
    }
    let mut files = 0;
    let mut todo = vec![String::from("/")];
    while let Some(d) = todo.pop() {
        for n in w.list(&d).unwrap() {
            let p = format!("{}/{n}", d.trim_end_matches('/'));
            match w.at(&p, Lookup::NOFOLLOW).unwrap().dentry.kind() {
                FileType::Dir => todo.push(p),
                _ => files += 1,
            }
        }
    }
    assert_eq!(files, 4);
    vfs::prune_dentries();
}

/// What the model knows: path to file content or directory.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    File(usize),
    Dir,
}

#[derive(Clone, Debug)]
enum Op {
    Put(usize, usize),
    Write(usize, usize, usize),
    Truncate(usize, usize),
    Mkdir(usize),
    Unlink(usize),
    Rmdir(usize),
    Rename(usize, usize),
    Link(usize, usize),
}

const PATHS: [&str; 8] = ["/a", "/b", "/d", "/d/a", "/d/b", "/d/e", "/d/e/f", "/g"];

fn op() -> impl Strategy<Value = Op> {
    let p = || 0..PATHS.len();
    prop_oneof![
        (p(), 0..9000usize).prop_map(|(a, n)| Op::Put(a, n)),
        (p(), 0..20000usize, 0..9000usize).prop_map(|(a, o, n)| Op::Write(a, o, n)),
        (p(), 0..20000usize).prop_map(|(a, n)| Op::Truncate(a, n)),
        p().prop_map(Op::Mkdir),
        p().prop_map(Op::Unlink),
        p().prop_map(Op::Rmdir),
        (p(), p()).prop_map(|(a, b)| Op::Rename(a, b)),
        (p(), p()).prop_map(|(a, b)| Op::Link(a, b)),
    ]
}

#[derive(Default)]
struct Model {
    names: BTreeMap<String, Node>,
    files: Vec<Vec<u8>>,
}

impl Model {
    fn parent_ok(&self, p: &str) -> bool {
        let parent = &p[..p.rfind('/').unwrap()];
        parent.is_empty() || self.names.get(parent) == Some(&Node::Dir)
    }
    fn empty(&self, p: &str) -> bool {
        !self.names.keys().any(|k| k.starts_with(&format!("{p}/")))
    }
    fn file(&self, p: &str) -> Option<usize> {
        match self.names.get(p) {
            Some(Node::File(i)) if self.parent_ok(p) => Some(*i),
            _ => None,
        }
    }
    /// Whether the operation must succeed; applies it if so.
    fn apply(&mut self, op: &Op) -> bool {
        let dir = |m: &Model, p: &str| m.names.get(p) == Some(&Node::Dir);
        match *op {
            Op::Put(p, n) => {
                let p = PATHS[p];
                if !self.parent_ok(p) || dir(self, p) {
                    return false;
                }
                let i = self.file(p).unwrap_or_else(|| {
                    self.files.push(vec![]);
                    self.files.len() - 1
                });
                self.files[i] = vec![n as u8; n];
                self.names.insert(p.into(), Node::File(i));
                true
            }
            Op::Write(p, o, n) => self.file(PATHS[p]).is_some_and(|i| {
                let f = &mut self.files[i];
                if n > 0 {
                    f.resize(f.len().max(o + n), 0);
                    f[o..o + n].fill(n as u8);
                }
                true
            }),
            Op::Truncate(p, n) => self.file(PATHS[p]).is_some_and(|i| {
                self.files[i].resize(n, 0);
                true
            }),
            Op::Mkdir(p) => {
                let ok = self.parent_ok(PATHS[p]) && !self.names.contains_key(PATHS[p]);
                if ok {
                    self.names.insert(PATHS[p].into(), Node::Dir);
                }
                ok
            }
            Op::Unlink(p) => self.file(PATHS[p]).is_some() && self.names.remove(PATHS[p]).is_some(),
            Op::Rmdir(p) => dir(self, PATHS[p]) && self.empty(PATHS[p]) && self.names.remove(PATHS[p]).is_some(),
            Op::Link(a, b) => match self.file(PATHS[a]) {
                Some(i) if self.parent_ok(PATHS[b]) && !self.names.contains_key(PATHS[b]) => {
                    self.names.insert(PATHS[b].into(), Node::File(i));
                    true
                }
                _ => false,
            },
            Op::Rename(a, b) => self.rename(PATHS[a], PATHS[b]),
        }
    }
    fn rename(&mut self, a: &str, b: &str) -> bool {
        let (Some(from), to) = (self.names.get(a).cloned(), self.names.get(b).cloned()) else { return false };
        if !self.parent_ok(b) || b.starts_with(&format!("{a}/")) {
            return false;
        }
        if a == b {
            return true;
        }
        match (&from, &to) {
            (Node::Dir, Some(Node::File(_))) | (Node::File(_), Some(Node::Dir)) => return false,
            (Node::Dir, Some(Node::Dir)) if !self.empty(b) => return false,
            (Node::File(x), Some(Node::File(y))) if x == y => return true,
            _ => {}
        }
        let moved: Vec<_> = self
            .names
            .iter()
            .filter(|(k, _)| *k == a || k.starts_with(&format!("{a}/")))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        for (k, v) in moved {
            self.names.remove(&k);
            self.names.insert(format!("{b}{}", &k[a.len()..]), v);
        }
        true
    }
}

fn run(w: &World, op: &Op) -> Result<()> {
    match *op {
        Op::Put(p, n) => w.put(PATHS[p], &vec![n as u8; n]),
        Op::Write(p, o, n) => {
            w.open(PATHS[p], linux::O_WRONLY)?.pwrite(o as u64, &mut SliceSource::new(&vec![n as u8; n])).map(drop)
        }
        Op::Truncate(p, n) => w.open(PATHS[p], linux::O_WRONLY)?.truncate(n as u64),
        Op::Mkdir(p) => w.mkdir(PATHS[p]),
        Op::Unlink(p) => w.unlink(PATHS[p]),
        Op::Rmdir(p) => w.rmdir(PATHS[p]),
        Op::Rename(a, b) => w.rename(PATHS[a], PATHS[b]),
        Op::Link(a, b) => w.link(PATHS[a], PATHS[b]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_model(ops in proptest::collection::vec(op(), 1..60)) {
        let w = world();
        let mut m = Model::default();
        for op in &ops {
            let expected = m.apply(op);
            let got = run(&w, op);
            prop_assert_eq!(got.is_ok(), expected, "{:?}: {:?}", op, got);
        }
        for (p, node) in &m.names {
            match node {
                Node::File(i) => prop_assert_eq!(&w.get(p).unwrap(), &m.files[*i]),
                Node::Dir => { w.list(p).unwrap(); }
            }
        }
        let inodes: std::collections::BTreeSet<_> = m.names.values().filter_map(|n| match n { Node::File(i) => Some(i), Node::Dir => None }).collect();
        let dirs = m.names.values().filter(|n| **n == Node::Dir).count();
        prop_assert_eq!(w.tmp.used_inodes(), (1 + dirs + inodes.len()) as u64);
    }
}
