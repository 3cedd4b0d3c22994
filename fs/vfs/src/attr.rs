//! What an inode is: type, owner, mode, times.
//!
//! The few fields that every path walk reads live in [`Meta`], in atomics that each inode embeds, so that a permission
//! check costs a few loads. The rest is gathered by `getattr` into an [`Attr`].

use abi::Timespec;
use core::sync::atomic::{AtomicU32, Ordering};

/// The type of a file; the discriminants are `DT_*`, and `S_IF*` >> 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileType {
    /// A named pipe.
    Fifo = 1,
    /// A character device.
    Char = 2,
    /// A directory.
    Dir = 4,
    /// A block device.
    Block = 6,
    /// A regular file.
    Regular = 8,
    /// A symbolic link.
    Symlink = 10,
    /// A socket.
    Socket = 12,
}

impl FileType {
    /// The type bits of a mode (`S_IFMT`), if they name one.
    pub fn from_mode(mode: u32) -> Option<FileType> {
        Some(match (mode >> 12) & 0xf {
            1 => FileType::Fifo,
            2 => FileType::Char,
            4 => FileType::Dir,
            6 => FileType::Block,
            8 => FileType::Regular,
            10 => FileType::Symlink,
            12 => FileType::Socket,
            _ => return None,
        })
    }

    /// As the type bits of `st_mode`.
    pub const fn mode_bits(self) -> u32 {
        (self as u32) << 12
    }
}

/// Set user id on execution.
pub const S_ISUID: u32 = 0o4000;
/// Set group id on execution; on directories, inherit the group.
pub const S_ISGID: u32 = 0o2000;
/// On directories, only owners delete.
pub const S_ISVTX: u32 = 0o1000;

/// The part of an inode that path walks read.
#[derive(Debug)]
pub struct Meta {
    /// The device number of its file system.
    pub dev: u64,
    /// The inode number.
    pub ino: u64,
    /// The type, which never changes.
    pub kind: FileType,
    mode: AtomicU32,
    uid: AtomicU32,
    gid: AtomicU32,
    flags: AtomicU32,
}

impl Meta {
    /// `mode` holds permission bits only.
    pub fn new(dev: u64, ino: u64, kind: FileType, mode: u32, uid: u32, gid: u32) -> Self {
        let [mode, uid, gid, flags] = [mode & 0o7777, uid, gid, 0].map(AtomicU32::new);
        Meta { dev, ino, kind, mode, uid, gid, flags }
    }

    /// The permission bits, set-id and sticky bits included.
    #[inline]
    pub fn mode(&self) -> u32 {
        self.mode.load(Ordering::Relaxed)
    }

    /// The owner.
    #[inline]
    pub fn uid(&self) -> u32 {
        self.uid.load(Ordering::Relaxed)
    }

    /// The group.
    #[inline]
    pub fn gid(&self) -> u32 {
        self.gid.load(Ordering::Relaxed)
    }

    /// The flags ([`crate::flags`]) that the VFS acts on.
    #[inline]
    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Takes over the flags that the VFS acts on, of those that the file system knows.
    pub fn set_flags(&self, flags: u32) {
        self.flags.store(flags & crate::flags::SHOWN, Ordering::Relaxed);
    }

    /// Takes over mode and owner from `set`.
    pub fn apply(&self, set: &SetAttr) {
        if let Some(m) = set.mode {
            self.mode.store(m & 0o7777, Ordering::Relaxed);
        }
        if let Some(u) = set.uid {
            self.uid.store(u, Ordering::Relaxed);
        }
        if let Some(g) = set.gid {
            self.gid.store(g, Ordering::Relaxed);
        }
    }
}

/// What `stat` and `statx` report.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Device of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub kind: FileType,
    /// Permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// For device files: which device (`dev_t` as user space sees it).
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// The preferred size of transfers.
    pub blksize: u32,
    /// Allocated 512-byte units.
    pub blocks: u64,
    /// Last read.
    pub atime: Timespec,
    /// Last change of content.
    pub mtime: Timespec,
    /// Last change of anything.
    pub ctime: Timespec,
    /// Creation.
    pub btime: Timespec,
    /// Flags ([`crate::flags`]).
    pub flags: u32,
}

impl Attr {
    /// The attributes that `meta` knows; one name, no content, no times.
    pub fn of(meta: &Meta) -> Attr {
        let zero = Timespec { sec: 0, nsec: 0 };
        Attr {
            dev: meta.dev,
            ino: meta.ino,
            kind: meta.kind,
            mode: meta.mode(),
            nlink: 1,
            uid: meta.uid(),
            gid: meta.gid(),
            rdev: 0,
            size: 0,
            blksize: 4096,
            blocks: 0,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: zero,
            flags: meta.flags(),
        }
    }

    /// `st_mode`: type and permission bits.
    pub fn st_mode(&self) -> u32 {
        self.kind.mode_bits() | self.mode
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the change.
    Now,
    /// This one.
    At(Timespec),
}

/// Changes of attributes; `None` leaves one alone. The status-change time follows by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length: cut or extended with a hole.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
}

/// What kind of inode to create.
#[derive(Clone, Copy, Debug)]
pub enum NewKind<'a> {
    /// An empty regular file.
    Regular,
    /// An empty directory.
    Dir,
    /// A symbolic link to this text.
    Symlink(&'a [u8]),
    /// A device, named pipe or socket, with its device number.
    Special(FileType, u64),
}

impl NewKind<'_> {
    /// The type that results.
    pub fn file_type(&self) -> FileType {
        match self {
            NewKind::Regular => FileType::Regular,
            NewKind::Dir => FileType::Dir,
            NewKind::Symlink(_) => FileType::Symlink,
            NewKind::Special(t, _) => *t,
        }
    }
}

/// An inode to create. Umask and group inheritance are already applied.
#[derive(Clone, Copy, Debug)]
pub struct NewInode<'a> {
    /// What.
    pub kind: NewKind<'a>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What `statfs` reports of a file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statfs {
    /// Its magic number.
    pub magic: u64,
    /// The size of a block in bytes.
    pub bsize: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for anyone.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// An identity.
    pub fsid: u64,
    /// The longest name.
    pub namelen: u64,
}
