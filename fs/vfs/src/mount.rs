//! Mounts: trees on directories of other trees.
//!
//! One table maps (mount, dentry) to the mount that covers that directory; a dentry counts the mounts on it, so walks
//! consult the table only at mount points. The table also lists all mounts in the order of mounting, for `/proc/mounts`.
//! A mount is busy while anything but the table refers to it: open files and working directories hold their [`Path`]s.

use crate::dcache;
use crate::dentry::Dentry;
use crate::inode::FileSystem;
use abi::{Errno, Result};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use sync::{LockClass, Mutex, Once, SpinLock, WaitQueue, rank};

static RENAME: LockClass = LockClass::new("rename", rank::RENAME);
static TABLE_CLASS: LockClass = LockClass::new("mount table", rank::SPIN + 15);
static CHANGE: LockClass = LockClass::new("mount changes", rank::RENAME - 10);

static NEXT_SB: AtomicU64 = AtomicU64::new(1);
static NEXT_MOUNT: AtomicU32 = AtomicU32::new(1);
static NEXT_ANON_DEV: AtomicU64 = AtomicU64::new(1);

/// A device number for a file system without a device, as `st_dev` shows it.
pub fn anonymous_dev() -> u64 {
    make_dev(0, NEXT_ANON_DEV.fetch_add(1, Ordering::Relaxed) as u32)
}

/// A `dev_t` as user space sees it.
pub const fn make_dev(major: u32, minor: u32) -> u64 {
    let (ma, mi) = (major as u64, minor as u64);
    (mi & 0xff) | ((ma & 0xfff) << 8) | ((mi & !0xff) << 12) | ((ma & !0xfff) << 32)
}

/// The major number of a `dev_t`.
pub const fn dev_major(dev: u64) -> u32 {
    (((dev >> 8) & 0xfff) | ((dev >> 32) & !0xfff)) as u32
}

/// The minor number of a `dev_t`.
pub const fn dev_minor(dev: u64) -> u32 {
    ((dev & 0xff) | ((dev >> 12) & 0xffff_ff00)) as u32
}

/// `MS_*` flags that a mount keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountFlags(pub u32);

impl MountFlags {
    /// No writing.
    pub const RDONLY: u32 = 1;
    /// Set-id bits are ignored.
    pub const NOSUID: u32 = 2;
    /// Device files do not open.
    pub const NODEV: u32 = 4;
    /// Programs do not run.
    pub const NOEXEC: u32 = 8;
    /// Access times are not kept.
    pub const NOATIME: u32 = 1024;
    /// Nor those of directories.
    pub const NODIRATIME: u32 = 2048;
    /// Access times are kept roughly.
    pub const RELATIME: u32 = 1 << 21;
    /// What is kept of the flags of `mount(2)`.
    pub const KEPT: u32 =
        Self::RDONLY | Self::NOSUID | Self::NODEV | Self::NOEXEC | Self::NOATIME | Self::NODIRATIME | Self::RELATIME;

    /// Whether all of `flags` are set.
    #[inline]
    pub fn has(self, flags: u32) -> bool {
        self.0 & flags == flags
    }
}

/// The flags of `mount(2)` about access times that a mount keeps; a remount without any keeps what is.
pub const ATIME_FLAGS: u32 = MountFlags::NOATIME | MountFlags::NODIRATIME | MountFlags::RELATIME;
const STRICTATIME: u32 = 1 << 24;

/// A file system in use.
pub struct Superblock {
    /// The file system.
    pub fs: Arc<dyn FileSystem>,
    /// Its root.
    pub root: Arc<Dentry>,
    pub(crate) id: u64,
    pub(crate) cached: bool,
    /// Held over renames between directories.
    pub(crate) rename: Mutex<()>,
    /// Nothing is written, through whatever mount.
    read_only: AtomicBool,
    /// Regular files that are open for writing.
    writers: AtomicUsize,
}

impl core::fmt::Debug for Superblock {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "superblock {} ({})", self.id, self.fs.name())
    }
}

impl Superblock {
    /// Takes `fs` into use.
    pub fn new(fs: Arc<dyn FileSystem>) -> Result<Arc<Superblock>> {
        let root = fs.root()?;
        Ok(Self::of(fs, root))
    }

    pub(crate) fn of(fs: Arc<dyn FileSystem>, root: Arc<dyn crate::Inode>) -> Arc<Superblock> {
        let id = NEXT_SB.fetch_add(1, Ordering::Relaxed);
        let root = Dentry::new(id, None, Arc::from(&b"/"[..]), root);
        let cached = fs.cache_names();
        let rename = Mutex::new(&RENAME, ());
        let (read_only, writers) = (AtomicBool::new(false), AtomicUsize::new(0));
        Arc::new(Superblock { fs, root, id, cached, rename, read_only, writers })
    }
}

impl Drop for Superblock {
    fn drop(&mut self) {
        dcache::purge(self.id);
        // Nobody is left to hear of an error: unmounting syncs first and reports it.
        let _ = self.fs.sync();
    }
}

#[derive(Clone, Debug)]
struct Place {
    mount: Arc<Mount>,
    dentry: Arc<Dentry>,
}

/// A tree at its place.
///
/// Aligned so that an `Arc`'s counts, which each open and close writes, have a line of the cache to themselves.
#[repr(align(64))]
pub struct Mount {
    id: u32,
    /// Whose tree.
    pub sb: Arc<Superblock>,
    /// The top of what is mounted: the superblock's root, or for bind mounts any dentry.
    pub root: Arc<Dentry>,
    flags: AtomicU32,
    source: String,
    /// Regular files that are open for writing through it.
    writers: AtomicUsize,
    at: SpinLock<Option<Place>>,
}

static AT: LockClass = LockClass::new("mount place", rank::SPIN + 17);

impl core::fmt::Debug for Mount {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "mount {} of {:?}", self.id, self.sb)
    }
}

impl Mount {
    fn make(sb: Arc<Superblock>, root: Arc<Dentry>, flags: u32, source: &str) -> Arc<Mount> {
        Arc::new(Mount {
            id: NEXT_MOUNT.fetch_add(1, Ordering::Relaxed),
            sb,
            root,
            flags: AtomicU32::new(flags & MountFlags::KEPT),
            source: String::from(source),
            writers: AtomicUsize::new(0),
            at: SpinLock::new(&AT, None),
        })
    }

    /// Its identity (`mnt_id`).
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its flags.
    #[inline]
    pub fn flags(&self) -> MountFlags {
        MountFlags(self.flags.load(Ordering::Relaxed))
    }

    /// Whether nothing can be written through it.
    #[inline]
    pub fn read_only(&self) -> bool {
        self.flags().has(MountFlags::RDONLY) || self.sb.read_only.load(Ordering::Relaxed)
    }

    /// One more regular file is open for writing. `EROFS` if that may not be any more: the caller checked before, but a
    /// remount may have come between.
    pub(crate) fn begin_write(&self) -> Result<()> {
        self.writers.fetch_add(1, Ordering::SeqCst);
        self.sb.writers.fetch_add(1, Ordering::SeqCst);
        let late =
            self.flags.load(Ordering::SeqCst) & MountFlags::RDONLY != 0 || self.sb.read_only.load(Ordering::SeqCst);
        if late {
            self.end_write();
            return Err(Errno::EROFS);
        }
        Ok(())
    }

    /// One less.
    pub(crate) fn end_write(&self) {
        self.sb.writers.fetch_sub(1, Ordering::SeqCst);
        self.writers.fetch_sub(1, Ordering::SeqCst);
    }

    /// What was mounted, as the caller of `mount` named it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where it stands; `None` for the first root.
    pub fn mountpoint(&self) -> Option<Path> {
        self.at.lock().as_ref().map(|p| Path { mount: p.mount.clone(), dentry: p.dentry.clone() })
    }
}

/// A place in the tree of mounts: a dentry, seen through a mount.
#[derive(Clone)]
pub struct Path {
    /// Through which mount.
    pub mount: Arc<Mount>,
    /// Which name.
    pub dentry: Arc<Dentry>,
}

impl core::fmt::Debug for Path {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.render(None)))
    }
}

impl Path {
    /// The root of a mount.
    pub fn root_of(mount: &Arc<Mount>) -> Path {
        Path { mount: mount.clone(), dentry: mount.root.clone() }
    }

    /// The inode.
    #[inline]
    pub fn inode(&self) -> &Arc<dyn crate::Inode> {
        self.dentry.inode()
    }

    /// Whether both are the same place.
    #[inline]
    pub fn same(&self, other: &Path) -> bool {
        Arc::ptr_eq(&self.dentry, &other.dentry) && Arc::ptr_eq(&self.mount, &other.mount)
    }

    /// Steps to the mount that covers this directory, if one does, and on to the one that covers that.
    #[inline]
    pub(crate) fn cross_down(&mut self) {
        while self.dentry.is_mountpoint() {
            let Some(m) = covering(self) else { return };
            *self = Path { dentry: m.root.clone(), mount: m };
        }
    }

    /// The directory above, across mounts; itself at `root` and at the top.
    pub fn parent(&self, root: &Path) -> Path {
        let mut at = self.clone();
        loop {
            if at.same(root) {
                return at;
            }
            if Arc::ptr_eq(&at.dentry, &at.mount.root) {
                match at.mount.mountpoint() {
                    Some(p) => at = p,
                    None => return at,
                }
                continue;
            }
            let Some(parent) = at.dentry.parent() else { return at };
            let mut up = Path { mount: at.mount, dentry: parent };
            up.cross_down();
            return up;
        }
    }

    /// The path name as seen from `root` (`None`: from the very top), and whether it is beneath it at all.
    fn names(&self, root: Option<&Path>) -> (Vec<u8>, bool) {
        let mut parts: Vec<Arc<[u8]>> = Vec::new();
        let mut at = self.clone();
        let mut reached = root.is_none();
        loop {
            if root.is_some_and(|r| at.same(r)) {
                reached = true;
                break;
            }
            if Arc::ptr_eq(&at.dentry, &at.mount.root) {
                match at.mount.mountpoint() {
                    Some(p) => at = p,
                    None => break,
                }
                continue;
            }
            let Some(parent) = at.dentry.parent() else { break };
            parts.push(at.dentry.name());
            at.dentry = parent;
        }
        let mut out = Vec::with_capacity(64);
        for p in parts.iter().rev() {
            out.push(b'/');
            out.extend_from_slice(p);
        }
        if out.is_empty() {
            out.push(b'/');
        }
        (out, reached)
    }

    /// The path name as seen from `root`; ` (deleted)` follows if the name is gone.
    pub fn render(&self, root: Option<&Path>) -> Vec<u8> {
        let (mut out, _) = self.names(root);
        if self.dentry.is_dead() {
            out.extend_from_slice(b" (deleted)");
        }
        out
    }

    /// For `getcwd`: `ENOENT` if the directory was removed; `(unreachable)` in front if it is not beneath `root`.
    pub fn render_cwd(&self, root: &Path) -> Result<Vec<u8>> {
        if self.dentry.is_dead() {
            return Err(Errno::ENOENT);
        }
        let (name, reached) = self.names(Some(root));
        if reached {
            return Ok(name);
        }
        let mut out = b"(unreachable)".to_vec();
        out.extend_from_slice(&name);
        Ok(out)
    }

    /// Whether it lies at or beneath `root`.
    pub fn is_beneath(&self, root: &Path) -> bool {
        self.names(Some(root)).1
    }
}

/// All mounts, in order of mounting.
static TABLE: SpinLock<Vec<Arc<Mount>>> = SpinLock::new(&TABLE_CLASS, Vec::new());
/// Serialises changes of the table, which look at more than one entry.
static CHANGES: Mutex<()> = Mutex::new(&CHANGE, ());

/// How often the table or a mount's flags changed.
static GENERATION: AtomicU64 = AtomicU64::new(0);
static WATCHERS: Once<Arc<WaitQueue>> = Once::new();

/// How often mounts have changed: `/proc/PID/mounts` polls by that.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// The queue that is woken when [`generation`] moves.
pub fn watchers() -> &'static Arc<WaitQueue> {
    loop {
        if let Some(q) = WATCHERS.get() {
            return q;
        }
        // Who loses sees the winner's on its next look.
        let _ = WATCHERS.set(Arc::new(WaitQueue::new()));
    }
}

/// To be called after a change, without the table's locks.
fn changed() {
    GENERATION.fetch_add(1, Ordering::AcqRel);
    if let Some(q) = WATCHERS.get() {
        q.wake_all();
    }
}

/// The mount on `path`.
fn covering(path: &Path) -> Option<Arc<Mount>> {
    let table = TABLE.lock();
    // The latest on top. Tables are short (a dozen), and only mount points come here.
    table
        .iter()
        .rev()
        .find(|m| {
            let at = m.at.lock();
            at.as_ref().is_some_and(|p| Arc::ptr_eq(&p.dentry, &path.dentry) && Arc::ptr_eq(&p.mount, &path.mount))
        })
        .cloned()
}

/// Mounts `sb` as the first root of everything.
pub fn mount_root(sb: Arc<Superblock>, flags: u32, source: &str) -> Path {
    let root = sb.root.clone();
    let m = Mount::make(sb, root, flags, source);
    TABLE.lock().push(m.clone());
    Path::root_of(&m)
}

/// A mount that stands nowhere and is not listed: for files that have no name anywhere (`memfd_create`).
pub fn unattached(sb: Arc<Superblock>) -> Path {
    let root = sb.root.clone();
    Path::root_of(&Mount::make(sb, root, 0, "none"))
}

fn attach(m: Arc<Mount>, at: &Path) -> Result<()> {
    let changes = CHANGES.lock();
    let mut at = at.clone();
    at.cross_down();
    let kinds = (m.root.kind() == crate::FileType::Dir, at.dentry.kind() == crate::FileType::Dir);
    if kinds.0 != kinds.1 {
        return Err(Errno::ENOTDIR);
    }
    if at.dentry.is_dead() {
        return Err(Errno::ENOENT);
    }
    *m.at.lock() = Some(Place { mount: at.mount, dentry: at.dentry.clone() });
    let mut table = TABLE.lock();
    table.push(m);
    at.dentry.mounts.fetch_add(1, Ordering::Relaxed);
    drop(table);
    drop(changes);
    changed();
    Ok(())
}

/// Mounts `sb` on the directory `at`.
pub fn mount(sb: Arc<Superblock>, at: &Path, flags: u32, source: &str) -> Result<()> {
    let flags = if sb.fs.read_only() { flags | MountFlags::RDONLY } else { flags };
    let root = sb.root.clone();
    attach(Mount::make(sb, root, flags, source), at)
}

/// `MS_BIND`: makes the tree at `what` appear at `at` too; with `recursive` (`MS_REC`) with the mounts beneath it.
pub fn bind(what: &Path, at: &Path, recursive: bool) -> Result<()> {
    let below: Vec<Arc<Mount>> = if recursive { beneath(what) } else { Vec::new() };
    let m = Mount::make(what.mount.sb.clone(), what.dentry.clone(), what.mount.flags().0, &what.mount.source);
    attach(m.clone(), at)?;
    let mut copies = alloc::vec![(what.mount.clone(), m)];
    for old in below {
        let Some(place) = old.mountpoint() else { continue };
        let Some((_, parent)) = copies.iter().find(|(o, _)| Arc::ptr_eq(o, &place.mount)) else { continue };
        let copy = Mount::make(old.sb.clone(), old.root.clone(), old.flags().0, &old.source);
        attach(copy.clone(), &Path { mount: parent.clone(), dentry: place.dentry })?;
        copies.push((old, copy));
    }
    Ok(())
}

/// The mounts at places beneath `top`, in order of mounting.
fn beneath(top: &Path) -> Vec<Arc<Mount>> {
    all().into_iter().filter(|m| m.mountpoint().is_some_and(|p| !p.same(top) && p.is_beneath(top))).collect()
}

/// `MS_REMOUNT`: changes the flags of the mount whose root is `at`, and the options of its file system by `words`; whether that
/// is read-only holds for all its mounts. It becomes so after everything is durable; `EBUSY` while a file is open for
/// writing. `EROFS` if it cannot be written.
pub fn remount(at: &Path, flags: u32, words: &str) -> Result<()> {
    if !Arc::ptr_eq(&at.dentry, &at.mount.root) {
        return Err(Errno::EINVAL);
    }
    let changes = CHANGES.lock();
    let sb = &at.mount.sb;
    let read_only = flags & MountFlags::RDONLY != 0;
    let done = if read_only { end_writing(sb, words) } else { begin_writing(sb, words) };
    if done.is_ok() {
        let old = if flags & (ATIME_FLAGS | STRICTATIME) == 0 { at.mount.flags().0 & ATIME_FLAGS } else { 0 };
        at.mount.flags.store(flags & MountFlags::KEPT | old, Ordering::SeqCst);
    }
    drop(changes);
    changed();
    done
}

fn begin_writing(sb: &Superblock, words: &str) -> Result<()> {
    sb.fs.remount(&[words, ",rw"].concat())?;
    if sb.fs.read_only() {
        return Err(Errno::EROFS);
    }
    sb.read_only.store(false, Ordering::SeqCst);
    Ok(())
}

/// Nobody begins to write from the flag on, so what the count says then stays true.
fn end_writing(sb: &Superblock, words: &str) -> Result<()> {
    let before = sb.read_only.swap(true, Ordering::SeqCst);
    let busy = if sb.writers.load(Ordering::SeqCst) > 0 { Err(Errno::EBUSY) } else { Ok(()) };
    let done = busy.and_then(|()| sb.fs.sync()).and_then(|()| sb.fs.remount(&[words, ",ro"].concat()));
    if done.is_err() {
        sb.read_only.store(before, Ordering::SeqCst);
    }
    done
}

/// `MS_REMOUNT | MS_BIND`: changes the flags of one mount, whatever others there are of its file system. `EBUSY` if it is to
/// become read-only and a file is open for writing through it.
pub fn remount_bind(at: &Path, flags: u32) -> Result<()> {
    if !Arc::ptr_eq(&at.dentry, &at.mount.root) {
        return Err(Errno::EINVAL);
    }
    let changes = CHANGES.lock();
    let m = &at.mount;
    let before = m.flags.swap(flags & MountFlags::KEPT, Ordering::SeqCst);
    let busy = flags & !before & MountFlags::RDONLY != 0 && m.writers.load(Ordering::SeqCst) > 0;
    if busy {
        m.flags.store(before, Ordering::SeqCst);
    }
    drop(changes);
    changed();
    if busy { Err(Errno::EBUSY) } else { Ok(()) }
}

/// `MS_MOVE`: takes the mount at `from` to `to`.
pub fn move_mount(from: &Path, to: &Path) -> Result<()> {
    if !Arc::ptr_eq(&from.dentry, &from.mount.root) || from.mount.mountpoint().is_none() {
        return Err(Errno::EINVAL);
    }
    if to.is_beneath(from) {
        return Err(Errno::ELOOP);
    }
    let m = from.mount.clone();
    let old = m.at.lock().take();
    if let Some(p) = &old {
        p.dentry.mounts.fetch_sub(1, Ordering::Relaxed);
    }
    TABLE.lock().retain(|x| !Arc::ptr_eq(x, &m));
    attach(m, to)
}

/// Unmounts the mount whose root is `at`. `EBUSY` while mounts or (unless `lazy`, `MNT_DETACH`) open files or working
/// directories are in it; `EINVAL` if nothing is mounted there. `at` is consumed, as it counts as a user.
pub fn unmount(at: Path, lazy: bool) -> Result<()> {
    if !Arc::ptr_eq(&at.dentry, &at.mount.root) || at.mount.mountpoint().is_none() {
        return Err(Errno::EINVAL);
    }
    let mount = at.mount.clone();
    drop(at);
    let changes = CHANGES.lock();
    let mut table = TABLE.lock();
    let inner = |x: &Arc<Mount>| x.at.lock().as_ref().is_some_and(|p| Arc::ptr_eq(&p.mount, &mount));
    let mut doomed: Vec<Arc<Mount>> = alloc::vec![mount.clone()];
    if table.iter().any(inner) {
        if !lazy {
            return Err(Errno::EBUSY);
        }
        loop {
            let more = table.iter().find(|x| {
                let at = x.at.lock();
                !doomed.iter().any(|d| Arc::ptr_eq(d, x))
                    && at.as_ref().is_some_and(|p| doomed.iter().any(|d| Arc::ptr_eq(d, &p.mount)))
            });
            match more.cloned() {
                Some(m) => doomed.push(m),
                None => break,
            }
        }
    }
    // References: the table's, `mount`, and the one in `doomed`.
    if !lazy && Arc::strong_count(&mount) > 3 {
        return Err(Errno::EBUSY);
    }
    table.retain(|x| !doomed.iter().any(|d| Arc::ptr_eq(d, x)));
    drop(table);
    let mut places = Vec::new();
    for d in &doomed {
        let place = d.at.lock().take();
        if let Some(p) = place {
            p.dentry.mounts.fetch_sub(1, Ordering::Relaxed);
            places.push(p);
        }
    }
    drop(changes);
    changed();
    // It is unmounted whatever comes of this: who must know of errors calls fsync or syncfs before. The log has them.
    let _ = mount.sb.fs.sync();
    drop(places);
    drop(doomed);
    Ok(())
}

/// `pivot_root`: `new_root` becomes the root mount, and the old root mount moves to `put_old`. The caller then moves
/// processes' roots with [`crate::FsContext::replace`].
pub fn pivot_root(root: &Path, new_root: &Path, put_old: &Path) -> Result<()> {
    let is_root = |p: &Path| Arc::ptr_eq(&p.dentry, &p.mount.root);
    if !is_root(new_root) || !is_root(root) || new_root.mount.mountpoint().is_none() || !put_old.is_beneath(new_root) {
        return Err(Errno::EINVAL);
    }
    if Arc::ptr_eq(&new_root.mount, &root.mount) || Arc::ptr_eq(&put_old.mount, &root.mount) {
        return Err(Errno::EBUSY);
    }
    let changes = CHANGES.lock();
    let former = new_root.mount.at.lock().take();
    if let Some(p) = &former {
        p.dentry.mounts.fetch_sub(1, Ordering::Relaxed);
    }
    let above = root.mount.at.lock().take();
    put_old.dentry.mounts.fetch_add(1, Ordering::Relaxed);
    *root.mount.at.lock() = Some(Place { mount: put_old.mount.clone(), dentry: put_old.dentry.clone() });
    *new_root.mount.at.lock() = above;
    drop(changes);
    changed();
    drop(former);
    Ok(())
}

/// All mounts, in order of mounting.
pub fn all() -> Vec<Arc<Mount>> {
    TABLE.lock().clone()
}

/// Syncs every mounted file system; returns the first error.
pub fn sync_all() -> Result<()> {
    let mut result = Ok(());
    for m in all() {
        result = result.and(m.sb.fs.sync());
    }
    result
}
