//! Generated trees: directories and files whose content the kernel makes up when asked (`/proc`, `/dev/pts`).
//!
//! A tree is made of [`Node`]s: a directory looks its children up and lists them, a file writes its text when opened and
//! whenever it is read from its start again (so a reader sees one consistent text, however slowly it reads). Inode numbers are hashes of the path, so they are
//! stable. Nothing is cached: names come and go by themselves.

use crate::task::Process;
use crate::tty::pty::Access;
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};
use platform::{ReadSink, SharedBytes, SharedBytesMut, WriteSource};
use sync::{LockClass, SpinLock, rank};
use vfs::{
    Attr, DirEntry, File, FileSystem, FileType, Inode, Io, Link, Mappable, Meta, Path, PollEvents, Poller, SetAttr,
    Statfs,
};

/// What a node is.
pub enum Kind {
    /// A directory.
    Dir(Arc<dyn Directory>),
    /// A file whose text is made at open, and that may take writes.
    File(Arc<dyn Text>),
    /// A symbolic link.
    Link(Arc<dyn LinkTo>),
    /// A device.
    Device(u64),
    /// A pty's slave, whose owner and permissions are kept with the pair.
    Slave(u32, Arc<Access>),
}

/// A directory's content.
pub trait Directory: Send + Sync {
    /// The child `name`. `ENOENT`.
    fn lookup(&self, name: &[u8]) -> Result<Node>;
    /// Every child's name and type.
    fn list(&self) -> Vec<(Vec<u8>, FileType)>;
    /// The process that this is the directory of, in /proc.
    fn process(&self) -> Option<Arc<Process>> {
        None
    }
}

/// The process whose directory in /proc `inode` is.
pub fn process_of(inode: &dyn Inode) -> Option<Arc<Process>> {
    let any: &dyn Any = inode;
    match &any.downcast_ref::<SynthInode>()?.kind {
        Kind::Dir(d) => d.process(),
        _ => None,
    }
}

/// A file's content.
pub trait Text: Send + Sync {
    /// Appends the text.
    fn read(&self, out: &mut Vec<u8>) -> Result<()>;
    /// Takes what one write brings. `EPERM` by default... as a file without write permission has it.
    fn write(&self, text: &[u8]) -> Result<()> {
        let _ = text;
        Err(Errno::EPERM)
    }
    /// Whether it is a list of mounts, which polls as an error and urgent once for each change (proc(5)).
    fn lists_mounts(&self) -> bool {
        false
    }
}

/// The text of a list of mounts.
pub struct Mounts<F>(pub F);

impl<F: Fn(&mut Vec<u8>) -> Result<()> + Send + Sync> Text for Mounts<F> {
    fn read(&self, out: &mut Vec<u8>) -> Result<()> {
        self.0(out)
    }
    fn lists_mounts(&self) -> bool {
        true
    }
}

impl<F: Fn(&mut Vec<u8>) -> Result<()> + Send + Sync> Text for F {
    fn read(&self, out: &mut Vec<u8>) -> Result<()> {
        self(out)
    }
}

/// Where a link leads.
pub trait LinkTo: Send + Sync {
    /// As text.
    fn text(&self) -> Result<Vec<u8>>;
    /// As a place, where it leads to one whatever its text says.
    fn place(&self) -> Result<Option<Path>> {
        Ok(None)
    }
}

impl<F: Fn() -> Result<Vec<u8>> + Send + Sync> LinkTo for F {
    fn text(&self) -> Result<Vec<u8>> {
        self()
    }
}

/// A node before it has an inode.
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
}

impl Node {
    /// A directory everyone may list.
    pub fn dir(d: Arc<dyn Directory>) -> Node {
        Node { kind: Kind::Dir(d), mode: 0o555, owner: (0, 0) }
    }

    /// A file everyone may read.
    pub fn text(f: impl Fn(&mut Vec<u8>) -> Result<()> + Send + Sync + 'static) -> Node {
        Node { kind: Kind::File(Arc::new(f)), mode: 0o444, owner: (0, 0) }
    }

    /// A link with this text.
    pub fn link(f: impl Fn() -> Result<Vec<u8>> + Send + Sync + 'static) -> Node {
        Node { kind: Kind::Link(Arc::new(f)), mode: 0o777, owner: (0, 0) }
    }

    /// The same, owned by someone.
    #[must_use]
    pub fn owned_by(mut self, uid: u32, gid: u32) -> Node {
        self.owner = (uid, gid);
        self
    }

    /// The same with other permission bits.
    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> Node {
        self.mode = mode;
        self
    }

    fn file_type(&self) -> FileType {
        match self.kind {
            Kind::Dir(_) => FileType::Dir,
            Kind::File(_) => FileType::Regular,
            Kind::Link(_) => FileType::Symlink,
            Kind::Device(_) | Kind::Slave(..) => FileType::Char,
        }
    }
}

struct SynthInode {
    meta: Meta,
    kind: Kind,
}

fn hash(parent: u64, name: &[u8]) -> u64 {
    let h = name.iter().fold(parent ^ 0xcbf2_9ce4_8422_2325, |h, &b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
    (h >> 8) | 1 << 40
}

impl SynthInode {
    fn make(node: Node, dev: u64, ino: u64) -> Arc<dyn Inode> {
        let meta = Meta::new(dev, ino, node.file_type(), node.mode, node.owner.0, node.owner.1);
        Arc::new(SynthInode { meta, kind: node.kind })
    }
}

impl Mappable for SynthInode {}

impl Inode for SynthInode {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    /// As in Linux's /proc: what is not there cannot be made.
    fn create(&self, _: &[u8], _: &vfs::NewInode<'_>) -> Result<Arc<dyn Inode>> {
        Err(Errno::ENOENT)
    }

    fn getattr(&self) -> Result<Attr> {
        let mut a = Attr::of(&self.meta);
        let now = abi::Timespec::from_ns(platform::realtime_ns());
        (a.atime, a.mtime, a.ctime, a.btime) = (now, now, now, now);
        match &self.kind {
            Kind::Dir(_) => a.nlink = 2,
            Kind::Device(rdev) => a.rdev = *rdev,
            Kind::Slave(index, _) => a.rdev = super::devfs::pts_dev(*index),
            Kind::Link(l) => a.size = l.text().map_or(0, |t| t.len() as u64),
            Kind::File(_) => {}
        }
        Ok(a)
    }

    fn setattr(&self, set: &SetAttr) -> Result<()> {
        match (&self.kind, set.size) {
            // O_TRUNC before a write means nothing here.
            (Kind::File(_), Some(_)) => Ok(()),
            (Kind::Device(_), None) => {
                self.meta.apply(set);
                Ok(())
            }
            (Kind::Slave(_, access), None) => {
                self.meta.apply(set);
                let now = Attr::of(&self.meta);
                access.uid.store(now.uid, Ordering::Relaxed);
                access.gid.store(now.gid, Ordering::Relaxed);
                access.mode.store(now.mode & 0o7777, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(Errno::EPERM),
        }
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let Kind::Dir(d) = &self.kind else { return Err(Errno::ENOTDIR) };
        Ok(SynthInode::make(d.lookup(name)?, self.meta.dev, hash(self.meta.ino, name)))
    }

    fn readdir(&self, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let Kind::Dir(d) = &self.kind else { return Err(Errno::ENOTDIR) };
        for (i, (name, kind)) in d.list().iter().enumerate().skip(cookie.saturating_sub(2) as usize) {
            let entry = DirEntry { ino: hash(self.meta.ino, name), kind: *kind, name, next: i as u64 + 3 };
            if !emit(entry) {
                break;
            }
        }
        Ok(())
    }

    fn readlink(&self) -> Result<Vec<u8>> {
        match &self.kind {
            Kind::Link(l) => l.text(),
            _ => Err(Errno::EINVAL),
        }
    }

    fn follow(&self) -> Result<Link> {
        let Kind::Link(l) = &self.kind else { return Err(Errno::EINVAL) };
        match l.place()? {
            Some(p) => Ok(Link::Jump(p)),
            None => l.text().map(Link::Text),
        }
    }

    fn open(&self, flags: u32) -> Result<Option<Arc<dyn File>>> {
        match &self.kind {
            Kind::File(text) => {
                let mut content = Vec::new();
                if flags & abi::linux::O_ACCMODE != abi::linux::O_WRONLY {
                    text.read(&mut content)?;
                }
                let content = SpinLock::new(&CONTENT, (Arc::new(content), true));
                let seen = AtomicU64::new(vfs::mount::generation());
                // What not everybody may read stays what it was when the opener was found to be allowed.
                let again = Attr::of(&self.meta).mode & 0o004 != 0;
                Ok(Some(Arc::new(OpenText { content, seen, again, text: text.clone() })))
            }
            _ => Ok(None),
        }
    }
}

static CONTENT: LockClass = LockClass::new("generated text", rank::SPIN + 97);

/// A generated text, as it was at open; who reads from the start again, gets it anew, as programs expect that keep such a
/// file open.
struct OpenText {
    /// The text, and whether nobody has read its start.
    content: SpinLock<(Arc<Vec<u8>>, bool)>,
    /// The [`vfs::mount::generation`] that poll has told of.
    seen: AtomicU64,
    /// It may be made anew.
    again: bool,
    text: Arc<dyn Text>,
}

impl OpenText {
    /// The text for a read at `offset`.
    fn content(&self, offset: u64) -> Result<Arc<Vec<u8>>> {
        let (now, fresh) = {
            let mut c = self.content.lock();
            let fresh = c.1;
            c.1 &= offset > 0;
            (c.0.clone(), fresh)
        };
        if offset > 0 || fresh || !self.again {
            return Ok(now);
        }
        let mut text = Vec::new();
        self.text.read(&mut text)?;
        let text = Arc::new(text);
        let old = core::mem::replace(&mut self.content.lock().0, text.clone());
        drop(old);
        Ok(text)
    }
}

impl File for OpenText {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        let content = self.content(io.offset)?;
        let at = usize::try_from(io.offset).unwrap_or(usize::MAX).min(content.len());
        let rest = &content[at..];
        let n = rest.len().min(sink.remaining());
        if n == 0 {
            return Ok(0);
        }
        sink.put(SharedBytes::from(&rest[..n])).map_err(|_| Errno::EFAULT)
    }

    fn write(&self, _: Io, source: &mut dyn WriteSource) -> Result<usize> {
        let mut chunk = [0u8; 512];
        let n = source.get(SharedBytesMut::from(&mut chunk[..])).map_err(|_| Errno::EFAULT)?;
        self.text.write(&chunk[..n])?;
        Ok(n)
    }

    fn positioned(&self) -> bool {
        true
    }

    fn size(&self) -> Result<u64> {
        Ok(self.content.lock().0.len() as u64)
    }

    fn can_poll(&self) -> bool {
        self.text.lists_mounts()
    }

    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        let always = PollEvents::IN.and(PollEvents::OUT.when(!self.text.lists_mounts()));
        if !self.text.lists_mounts() {
            return always;
        }
        if let Some(p) = poller {
            p.register(vfs::mount::watchers());
        }
        let now = vfs::mount::generation();
        let news = self.seen.swap(now, Ordering::AcqRel) != now;
        always.and(PollEvents::PRI.and(PollEvents::ERR).when(news))
    }
}

/// A generated file system.
pub struct SynthFs {
    name: &'static str,
    magic: u64,
    root: Arc<dyn Inode>,
}

impl SynthFs {
    /// One named `name` with the magic number `magic`, below `root`.
    pub fn new(name: &'static str, magic: u64, root: Node) -> Arc<SynthFs> {
        let dev = vfs::mount::anonymous_dev();
        Arc::new(SynthFs { name, magic, root: SynthInode::make(root, dev, 1) })
    }
}

impl FileSystem for SynthFs {
    fn name(&self) -> &'static str {
        self.name
    }
    fn root(&self) -> Result<Arc<dyn Inode>> {
        Ok(self.root.clone())
    }
    fn statfs(&self) -> Result<Statfs> {
        Ok(Statfs { magic: self.magic, bsize: 4096, namelen: 255, ..Statfs::default() })
    }
    fn cache_names(&self) -> bool {
        false
    }
}

struct Pts;

impl Directory for Pts {
    fn lookup(&self, name: &[u8]) -> Result<Node> {
        let text = core::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        if text == "ptmx" {
            let rdev = super::devfs::makedev(5, 2);
            return Ok(Node { kind: Kind::Device(rdev), mode: 0o666, owner: (0, 0) });
        }
        let index: u32 = text.parse().map_err(|_| Errno::ENOENT)?;
        let access = crate::tty::pty::access(index).ok_or(Errno::ENOENT)?;
        let [uid, gid, mode] = [&access.uid, &access.gid, &access.mode].map(|v| v.load(Ordering::Relaxed));
        Ok(Node { kind: Kind::Slave(index, access), mode, owner: (uid, gid) })
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        let mut all: Vec<_> =
            crate::tty::pty::list().into_iter().map(|i| (alloc::format!("{i}").into_bytes(), FileType::Char)).collect();
        all.push((b"ptmx".to_vec(), FileType::Char));
        all
    }
}

/// The file system of `/dev/pts`.
pub fn devpts() -> Arc<SynthFs> {
    SynthFs::new("devpts", 0x1cd1, Node::dir(Arc::new(Pts)).with_mode(0o755))
}
