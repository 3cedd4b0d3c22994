//! The process's side of execve: finding the file, following scripts, set-id bits, and turning the process into the
//! program. Loading itself is [`crate::exec`].
//!
//! Until the new address space is complete nothing has changed and errors go back to the caller. From
//! [`become_program`] on there is no way back: what fails then kills the process.

use super::cred::{Credentials, cap};
use super::exit;
use super::process::Regions;
use super::rlimit::kind;
use super::signal::state::Ending;
use super::signal::{SS_DISABLE, send};
use super::thread::Thread;
use super::tree::TREE;
use crate::arch::trap::TrapFrame;
use crate::exec::{Image, Program, Request, Strings, prepare, read_full};
use crate::mm::Mappable;
use abi::{Errno, Result};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use platform::{ParkOptions, SliceSink};
use vfs::{At, FileType, Lookup, MountFlags, OpenFile, OpenHow, Path, Walk};

/// How many scripts may name each other (Linux: 5).
const MAX_SCRIPTS: usize = 5;

/// What to execute.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A path from the working directory.
    Path(&'a [u8]),
    /// A path from a directory (`None`: the working directory), or with an empty path the file itself.
    At {
        /// The directory's, or the file's, descriptor.
        dir: Option<&'a Arc<OpenFile>>,
        /// The path.
        path: &'a [u8],
        /// Follow a link in the last component.
        follow: bool,
        /// The text to show as the path.
        shown: &'a [u8],
    },
}

impl<'a> Target<'a> {
    fn shown(&self) -> &'a [u8] {
        match *self {
            Target::Path(p) => p,
            Target::At { shown, .. } => shown,
        }
    }
}

/// The file that a process runs, for `/proc/PID/exe`.
pub type ExeRef = Path;

struct File {
    open: Arc<OpenFile>,
    object: Arc<dyn Mappable>,
}

impl Image for File {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.open.pread(offset, &mut SliceSink::new(buf))
    }

    fn object(&self) -> Arc<dyn Mappable> {
        self.object.clone()
    }
}

/// Opens a file for execution. `EACCES` if it may not be executed.
fn open(me: &Thread, target: Target<'_>) -> Result<(File, Path)> {
    let creds = me.creds();
    let cred = creds.file_cred();
    let place = match target {
        Target::Path(path) => Walk::resolve(me.fs(), &cred, At::Cwd, path, Lookup::FOLLOW)?,
        Target::At { dir, path, follow, .. } => {
            let how = Lookup { follow, empty: dir.is_some(), ..Lookup::FOLLOW };
            let at = match dir {
                None => At::Cwd,
                Some(d) => At::Dir(d.path().ok_or(Errno::EACCES)?),
            };
            Walk::resolve(me.fs(), &cred, at, path, how)?
        }
    };
    let kind = place.dentry.kind();
    if kind == FileType::Symlink {
        return Err(Errno::ELOOP);
    }
    if kind != FileType::Regular || place.mount.flags().has(MountFlags::NOEXEC) {
        return Err(Errno::EACCES);
    }
    vfs::perm::check(&cred, place.inode().meta(), vfs::perm::MAY_EXEC)?;
    // Reading the program is the kernel's business: it needs no read permission.
    let how = OpenHow { flags: abi::linux::O_RDONLY, mode: 0, resolve: 0 };
    let open = OpenFile::open_path(&vfs::Cred::ROOT, place.clone(), how)?;
    let object = match open.mapping()? {
        vfs::Mapping::Object(o) => o,
        vfs::Mapping::Anonymous => return Err(Errno::EACCES),
    };
    Ok((File { open, object }, place))
}

/// What is left of a chain of scripts: the program, and its arguments.
struct Found {
    file: File,
    place: Path,
    argv: Strings,
}

fn find(me: &Thread, target: Target<'_>, argv: Strings) -> Result<Found> {
    let (mut file, mut place) = open(me, target)?;
    let mut argv = argv;
    let mut shown: Vec<u8> = target.shown().to_vec();
    for _ in 0..MAX_SCRIPTS {
        let mut head = [0u8; elf_image::script::MAX_LINE];
        let n = read_full(&file, 0, &mut head)?;
        let Some(script) = elf_image::script::parse(&head[..n]) else {
            return Ok(Found { file, place, argv });
        };
        let mut longer = Strings::new();
        longer.push(script.interpreter)?;
        if let Some(argument) = script.argument {
            longer.push(argument)?;
        }
        longer.push(&shown)?;
        for a in argv.iter().skip(1) {
            longer.push(a)?;
        }
        argv = longer;
        shown = script.interpreter.to_vec();
        (file, place) = open(me, Target::Path(&shown))?;
    }
    Err(Errno::ELOOP)
}

/// The credentials that the program runs with, and whether they are more than its caller's.
fn credentials(me: &Thread, place: &Path) -> (Credentials, bool) {
    let mut c = (**me.creds()).clone();
    let meta = place.inode().meta();
    let mode = meta.mode();
    if !place.mount.flags().has(MountFlags::NOSUID) && !me.no_new_privs.get() {
        if mode & vfs::attr::S_ISUID != 0 {
            c.euid = meta.uid();
        }
        if mode & (vfs::attr::S_ISGID | 0o10) == vfs::attr::S_ISGID | 0o10 {
            c.egid = meta.gid();
        }
    }
    let secure = c.euid != c.uid || c.egid != c.gid;
    c.suid = c.euid;
    c.fsuid = c.euid;
    c.sgid = c.egid;
    c.fsgid = c.egid;
    // capabilities(7): a root program gets all that the bounding set leaves, others nothing.
    if c.euid == 0 || c.uid == 0 {
        c.permitted = c.bounding | c.inheritable;
        c.effective = if c.euid == 0 { c.permitted } else { 0 };
    } else {
        c.permitted = 0;
        c.effective = 0;
    }
    c.keep_caps = false;
    (c, secure)
}

/// Limits that the new address space obeys.
pub fn mm_limits(me: &Thread) -> crate::mm::Limits {
    let get = |k| usize::try_from(me.process.rlimit(k)).unwrap_or(usize::MAX);
    crate::mm::Limits {
        address_space: get(kind::AS),
        data: get(kind::DATA),
        stack: get(kind::STACK),
        locked: if me.creds().has(cap::IPC_LOCK) { usize::MAX } else { get(kind::MEMLOCK) },
    }
}

/// Executes a program in place of the calling one. On success `frame` starts it. Errors as execve(2). May sleep.
pub fn exec(frame: &mut TrapFrame, target: Target<'_>, argv: Strings, envp: Strings) -> Result<()> {
    let me = crate::sched::current();
    let mut argv = argv;
    if argv.count() == 0 {
        // As Linux since 5.18: programs rely on argv[0].
        argv.push(b"")?;
    }
    let found = find(me, target, argv)?;
    let (creds, secure) = credentials(me, &found.place);
    let limits = mm_limits(me);
    let mut open_interpreter = |path: &[u8]| -> Result<Box<dyn Image>> {
        let (file, _) = open(me, Target::Path(path))?;
        Ok(Box::new(file))
    };
    let mut request = Request {
        image: &found.file,
        argv: &found.argv,
        envp: &envp,
        path: target.shown(),
        ids: [creds.uid, creds.euid, creds.gid, creds.egid],
        secure,
        wx_allowed: is_marked(&found.place, target.shown()),
        limits,
        open: &mut open_interpreter,
    };
    let program = prepare(&mut request)?;
    let name = base_name(target.shown());
    become_alone(me)?;
    become_program(me, frame, program, creds, secure, found.place, name)
}

/// Whether the program's file is marked as one that needs memory both writable and executable: the extended attribute
/// `security.berth.wx`, which only the privileged can set, is `1`. Each start of such a program is logged.
fn is_marked(place: &Path, path: &[u8]) -> bool {
    let marked = place.inode().get_xattr(b"security.berth.wx").is_ok_and(|value| value == b"1");
    if marked {
        crate::notice!("wx: {} is marked, it may write and execute the same memory", path.escape_ascii());
    }
    marked
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&c| c == b'/').next().unwrap_or(path)
}

/// Ends the other threads of the process and takes over the process's number. `EAGAIN` if the process is ending anyway.
fn become_alone(me: &Thread) -> Result<()> {
    let p = &me.process;
    {
        let mut s = p.signals.lock();
        if s.ending.is_some() {
            return Err(Errno::EAGAIN);
        }
        if s.threads.len() == 1 {
            drop(s);
            take_leader(me);
            return Ok(());
        }
        s.ending = Some(Ending::Exec(core::ptr::from_ref(me) as usize));
        for t in &s.threads {
            if !core::ptr::eq(&raw const **t, me) {
                send::kick(t);
            }
        }
    }
    let alone = || {
        let s = p.signals.lock();
        (s.threads.len() == 1 || matches!(s.ending, Some(Ending::Exit(_)))).then_some(())
    };
    while p.child_wait.wait_until(ParkOptions::default(), alone).is_err() {}
    let mut s = p.signals.lock();
    if matches!(s.ending, Some(Ending::Exit(_))) {
        return Err(Errno::EAGAIN);
    }
    s.ending = None;
    drop(s);
    take_leader(me);
    Ok(())
}

/// The thread that is left has the process's number from now on.
fn take_leader(me: &Thread) {
    let (old, pid) = (me.tid(), me.process.pid);
    if old != pid {
        let mut tree = TREE.lock();
        let replaced = tree.rename_thread(old, pid);
        me.set_tid(pid);
        drop(tree);
        drop(replaced);
    }
}

/// The point of no return.
fn become_program(
    me: &Thread,
    frame: &mut TrapFrame,
    program: Program,
    creds: Credentials,
    secure: bool,
    place: Path,
    name: &[u8],
) -> Result<()> {
    let p = &me.process;
    // The old memory's last duties: what a joiner or a vfork parent waits for.
    let robust = me.robust_list.take();
    if robust != 0 {
        crate::futex::exit_robust_list(crate::arch::uaccess::UserAddr(robust), me.tid().0);
    }
    let last = crate::futex::LastWord::clear(crate::arch::uaccess::UserAddr(me.clear_child_tid.take()));
    drop(me.set_mm(Some(program.space.clone())));
    last.wake();
    exit::release_vfork(me);
    own_files(me);
    me.files().close_on_exec();
    p.signals.lock().reset_for_exec();
    me.altstack.set((0, 0, SS_DISABLE));
    me.restart.set(super::thread::Restart::None);
    super::timers::exec(p);
    p.did_exec.store(true, Ordering::Relaxed);
    p.dumpable.store(u32::from(!secure), Ordering::Relaxed);
    me.pdeathsig.store(if secure { 0 } else { me.pdeathsig.load(Ordering::Relaxed) }, Ordering::Relaxed);
    me.set_creds(creds);
    me.set_name(name);
    if super::trace::wanted(name) {
        me.set_traced(true);
    }
    let old = (*p.exe.lock()).replace(place);
    drop(old);
    *p.regions.lock() = Regions { args: program.args, env: program.env, aux: program.aux };
    me.arch.reset_fp();
    me.arch.set_tls(0, true);
    *frame = TrapFrame { pc: program.entry, sp: program.sp, syscallno: u64::MAX, ..TrapFrame::default() };
    if program.finish().is_err() {
        exit::exit_group(super::signal::number::SIGKILL as i32);
    }
    Ok(())
}

/// The descriptors that the program gets are its own, even if it shared them before.
fn own_files(me: &Thread) {
    if me.files().is_shared()
        && let Ok(copy) = me.files().fork()
    {
        me.set_files(Some(copy));
    }
}
