//! `/proc/PID` and `/proc/PID/task/TID`.

use super::super::synth::{Directory, Kind, LinkTo, Node, Text};
use super::system::{Out, full, ticks};
use crate::file::FileTable;
use crate::task::ids::Pid;
use crate::task::process::Process;
use crate::task::thread::Thread;
use crate::task::tree::TREE;
use abi::{Errno, Result};
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::Ordering;
use vfs::FileType::{Dir, Regular, Symlink};
use vfs::{FileType, MountFlags, OpenFile, Path};

/// A process, or one of its threads.
#[derive(Clone)]
struct Subject {
    process: Arc<Process>,
    thread: Option<Arc<Thread>>,
}

/// The directory of a process (`thread` is `None`) or of one thread.
pub(super) fn directory(process: &Arc<Process>, thread: Option<Arc<Thread>>) -> Node {
    let subject = Subject { process: process.clone(), thread };
    let (uid, gid) = subject.owner();
    Node::dir(Arc::new(subject)).owned_by(uid, gid)
}

/// The files of a process directory: name, mode, text.
type Make = fn(&Subject, &mut Vec<u8>) -> Result<()>;
const TEXTS: &[(&str, u32, Make)] = &[
    ("cmdline", 0o444, |s, o| s.region(o, |r| r.args)),
    ("environ", 0o400, |s, o| s.region(o, |r| r.env)),
    ("limits", 0o444, Subject::limits),
    ("auxv", 0o400, |s, o| s.region(o, |r| r.aux)),
    ("cgroup", 0o444, |_, o| super::line(o, b"0::/")),
    ("maps", 0o444, |s, o| super::memory::maps(&s.process, o)),
    ("smaps", 0o444, |s, o| super::memory::smaps(&s.process, o)),
    ("smaps_rollup", 0o444, |s, o| super::memory::smaps_rollup(&s.process, o)),
    ("mounts", 0o444, |s, o| s.mounts(o, false)),
    ("mountinfo", 0o444, |s, o| s.mounts(o, true)),
    ("gid_map", 0o444, |_, o| super::line(o, b"         0          0 4294967295")),
    ("personality", 0o400, |s, o| {
        super::line(o, format!("{:08x}", s.process.personality.load(Ordering::Relaxed)).as_bytes())
    }),
    ("setgroups", 0o444, |_, o| super::line(o, b"allow")),
    ("stat", 0o444, Subject::stat),
    ("statm", 0o444, Subject::statm),
    ("status", 0o444, Subject::status),
    ("uid_map", 0o444, |_, o| super::line(o, b"         0          0 4294967295")),
];

const LINKS: [&str; 3] = ["cwd", "exe", "root"];

impl Directory for Subject {
    fn process(&self) -> Option<Arc<Process>> {
        self.thread.is_none().then(|| self.process.clone())
    }

    fn lookup(&self, name: &[u8]) -> Result<Node> {
        let (uid, gid) = self.owner();
        if let Some(&(_, mode, make)) = TEXTS.iter().find(|t| t.0.as_bytes() == name) {
            let s = self.clone();
            let read = move |out: &mut Vec<u8>| make(&s, out);
            let node = if name.starts_with(b"mount") {
                Node { kind: Kind::File(Arc::new(super::super::synth::Mounts(read))), mode, owner: (uid, gid) }
            } else {
                Node::text(read).with_mode(mode).owned_by(uid, gid)
            };
            return Ok(node);
        }
        if let Some(&which) = LINKS.iter().find(|l| l.as_bytes() == name) {
            let link = PlaceLink { subject: self.clone(), which };
            return Ok(Node { kind: Kind::Link(Arc::new(link)), mode: 0o777, owner: (uid, gid) });
        }
        let file = |text: Arc<dyn Text>| Node { kind: Kind::File(text), mode: 0o644, owner: (uid, gid) };
        match name {
            b"comm" => Ok(file(Arc::new(Comm(self.clone())))),
            b"oom_score_adj" => Ok(file(Arc::new(OomAdjust(self.process.clone())))),
            b"net" => Ok(Node::dir(Arc::new(super::Fixed(super::netinfo::ENTRIES)))),
            b"fdinfo" => Ok(Node::dir(Arc::new(DescriptorInfo(self.clone()))).with_mode(0o500).owned_by(uid, gid)),
            b"fd" => Ok(Node::dir(Arc::new(Descriptors(self.clone()))).with_mode(0o500).owned_by(uid, gid)),
            b"task" if self.thread.is_none() => Ok(Node::dir(Arc::new(Tasks(self.process.clone()))).owned_by(uid, gid)),
            _ => Err(Errno::ENOENT),
        }
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        let mut all: Vec<_> = TEXTS.iter().map(|t| (t.0.as_bytes().to_vec(), Regular)).collect();
        all.extend(LINKS.iter().map(|l| (l.as_bytes().to_vec(), Symlink)));
        all.extend([&b"comm"[..], b"oom_score_adj"].map(|n| (n.to_vec(), Regular)));
        all.extend([&b"fd"[..], b"fdinfo", b"net"].map(|n| (n.to_vec(), Dir)));
        if self.thread.is_none() {
            all.push((b"task".to_vec(), Dir));
        }
        all
    }
}

struct Tasks(Arc<Process>);

impl Directory for Tasks {
    fn lookup(&self, name: &[u8]) -> Result<Node> {
        let tid = super::parse_pid(name).ok_or(Errno::ENOENT)?;
        let t = self.0.threads().into_iter().find(|t| t.tid() == tid).ok_or(Errno::ENOENT)?;
        Ok(directory(&self.0, Some(t)))
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        self.0.threads().iter().map(|t| (format!("{}", t.tid()).into_bytes(), Dir)).collect()
    }
}

struct Descriptors(Subject);

impl Descriptors {
    fn table(&self) -> Option<Arc<FileTable>> {
        self.0.any_thread()?.files_of()
    }
}

impl Directory for Descriptors {
    fn lookup(&self, name: &[u8]) -> Result<Node> {
        let fd: i32 = core::str::from_utf8(name).ok().and_then(|s| s.parse().ok()).ok_or(Errno::ENOENT)?;
        let table = self.table().ok_or(Errno::ENOENT)?;
        table.get(fd).map_err(|_| Errno::ENOENT)?;
        let link = FdLink { table: Arc::downgrade(&table), fd };
        Ok(Node { kind: Kind::Link(Arc::new(link)), mode: 0o700, owner: self.0.owner() })
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        let fds = self.table().map(|t| t.list()).unwrap_or_default();
        fds.into_iter().map(|fd| (format!("{fd}").into_bytes(), Symlink)).collect()
    }
}

/// `/proc/PID/fdinfo`.
struct DescriptorInfo(Subject);

impl Directory for DescriptorInfo {
    fn lookup(&self, name: &[u8]) -> Result<Node> {
        let fd: i32 = core::str::from_utf8(name).ok().and_then(|s| s.parse().ok()).ok_or(Errno::ENOENT)?;
        let table = self.0.any_thread().and_then(|t| t.files_of()).ok_or(Errno::ENOENT)?;
        let file = table.get(fd).map_err(|_| Errno::ENOENT)?;
        let cloexec = table.cloexec(fd).unwrap_or(false);
        drop(table);
        let (uid, gid) = self.0.owner();
        let text = Node::text(move |out| {
            let flags = file.flags() | if cloexec { abi::linux::O_CLOEXEC } else { 0 };
            let mount = file.path().map_or(0, |p| p.mount.id());
            let ino = file.getattr().map_or(0, |a| a.ino);
            writeln!(Out(&mut *out), "pos:\t{}\nflags:\t0{flags:o}\nmnt_id:\t{mount}\nino:\t{ino}", file.position())
                .map_err(full)?;
            out.extend(file.object().map(|o| o.fdinfo()).unwrap_or_default());
            Ok(())
        });
        Ok(text.with_mode(0o400).owned_by(uid, gid))
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        let fds = self.0.any_thread().and_then(|t| t.files_of()).map(|t| t.list()).unwrap_or_default();
        fds.into_iter().map(|fd| (format!("{fd}").into_bytes(), Regular)).collect()
    }
}

/// A thread's name, which the process itself may change.
struct Comm(Subject);

impl Text for Comm {
    fn read(&self, out: &mut Vec<u8>) -> Result<()> {
        super::line(out, self.0.name().as_bytes())
    }

    fn write(&self, text: &[u8]) -> Result<()> {
        if !Arc::ptr_eq(&self.0.process, &crate::sched::current().process) {
            return Err(Errno::EINVAL);
        }
        let name = text.split(|&b| b == b'\n' || b == 0).next().unwrap_or_default();
        self.0.any_thread().ok_or(Errno::ESRCH)?.set_name(name);
        Ok(())
    }
}

/// How readily a process is ended when memory runs out.
struct OomAdjust(Arc<Process>);

impl Text for OomAdjust {
    fn read(&self, out: &mut Vec<u8>) -> Result<()> {
        super::line(out, format!("{}", self.0.oom_adjust.load(Ordering::Relaxed)).as_bytes())
    }

    fn write(&self, text: &[u8]) -> Result<()> {
        let to: i32 = core::str::from_utf8(text.trim_ascii()).ok().and_then(|t| t.parse().ok()).ok_or(Errno::EINVAL)?;
        if !(-1000..=1000).contains(&to) {
            return Err(Errno::EINVAL);
        }
        let privileged = crate::sched::current().creds().has(crate::task::cred::cap::SYS_RESOURCE);
        if to < self.0.oom_adjust.load(Ordering::Relaxed) && !privileged {
            return Err(Errno::EACCES);
        }
        self.0.oom_adjust.store(to, Ordering::Relaxed);
        Ok(())
    }
}

/// Opened with O_PATH it may stand in the very table that it leads to, so it does not keep the table.
struct FdLink {
    table: Weak<FileTable>,
    fd: i32,
}

impl FdLink {
    fn file(&self) -> Result<Arc<OpenFile>> {
        self.table.upgrade().and_then(|t| t.get(self.fd).ok()).ok_or(Errno::ENOENT)
    }
}

impl LinkTo for FdLink {
    fn text(&self) -> Result<Vec<u8>> {
        let file = self.file()?;
        Ok(file.display(Some(&crate::sched::current().fs().root())))
    }

    fn place(&self) -> Result<Option<Path>> {
        let file = self.file()?;
        if let Some(path) = file.path() {
            return Ok(Some(path.clone()));
        }
        let Some(object) = file.object() else { return Ok(None) };
        let root = crate::sched::current().fs().root();
        Ok(object.to_open_again().map(|inode| vfs::unnamed_path(&root, inode, &object.name())))
    }
}

struct PlaceLink {
    subject: Subject,
    which: &'static str,
}

impl PlaceLink {
    fn path(&self) -> Result<Path> {
        if self.which == "exe" {
            return self.subject.process.exe.lock().clone().ok_or(Errno::ENOENT);
        }
        let fs = self.subject.any_thread().and_then(|t| t.fs_of()).ok_or(Errno::ENOENT)?;
        Ok(if self.which == "cwd" { fs.cwd() } else { fs.root() })
    }
}

impl LinkTo for PlaceLink {
    fn text(&self) -> Result<Vec<u8>> {
        Ok(self.path()?.render(Some(&crate::sched::current().fs().root())))
    }

    fn place(&self) -> Result<Option<Path>> {
        self.path().map(Some)
    }
}

/// What the tree knows.
struct Place {
    ppid: Pid,
    group: u32,
    session: u32,
    terminal: i64,
    terminal_group: i64,
    zombie: bool,
}

impl Subject {
    fn any_thread(&self) -> Option<Arc<Thread>> {
        self.thread.clone().or_else(|| self.process.any_thread())
    }

    fn owner(&self) -> (u32, u32) {
        self.any_thread().map_or((0, 0), |t| {
            let c = t.creds_of();
            (c.euid, c.egid)
        })
    }

    fn id(&self) -> Pid {
        self.thread.as_ref().map_or(self.process.pid, |t| t.tid())
    }

    fn name(&self) -> String {
        self.any_thread().map_or(String::from("exited"), |t| String::from(t.name_str().as_str()))
    }

    fn place(&self) -> Place {
        let tree = TREE.lock();
        let links = self.process.links.get(&tree);
        let group = links.group.as_ref();
        let mut p = Place {
            ppid: links.parent.as_ref().map_or(Pid(0), |p| p.pid),
            group: group.map_or(0, |g| g.id.0),
            session: group.map_or(0, |g| g.session.id.0),
            terminal: 0,
            terminal_group: -1,
            zombie: links.is_zombie(),
        };
        let session = group.map(|g| g.session.clone());
        drop(tree);
        if let Some(tty) = session.and_then(|s| s.terminal()) {
            p.terminal = if tty.is_pty() {
                crate::file::devfs::pts_dev(tty.index) as i64
            } else {
                crate::file::devfs::makedev(204, 64) as i64
            };
            p.terminal_group = tty.foreground_group() as i64;
        }
        p
    }

    fn state(&self, zombie: bool) -> (char, &'static str) {
        if zombie {
            return ('Z', "zombie");
        }
        if self.process.signals.lock().stopped.is_some() {
            return ('T', "stopped");
        }
        let awake = match &self.thread {
            Some(t) => !t.sched.is_parked(),
            None => self.process.threads().iter().any(|t| !t.sched.is_parked()),
        };
        if awake { ('R', "running") } else { ('S', "sleeping") }
    }

    fn region(&self, out: &mut Vec<u8>, which: fn(&crate::task::process::Regions) -> (u64, u64)) -> Result<()> {
        let (start, end) = which(&self.process.regions.lock());
        let Some(space) = self.process.mm() else { return Ok(()) };
        let len = (end.saturating_sub(start) as usize).min(1 << 20);
        out.try_reserve(len).map_err(|_| Errno::ENOMEM)?;
        out.resize(len, 0);
        let n = space.peek(start as usize, out);
        out.truncate(n);
        Ok(())
    }

    fn stat(&self, out: &mut Vec<u8>) -> Result<()> {
        let p = self.place();
        let (state, _) = self.state(p.zombie);
        let threads = self.process.threads();
        let (vsize, rss) = self.process.mm().map_or((0, 0), |m| {
            let (anon, file) = m.rss();
            (m.sizes().0, anon + file)
        });
        let (user, system) = match &self.thread {
            Some(t) => crate::sched::account::thread_times(t),
            None => self.process.cpu_times(),
        };
        let children = self.process.times.children();
        let cpu = self.any_thread().map_or(0, |t| t.sched.last_cpu());
        let attr = self.any_thread().map(|t| crate::sched::policy::get_attr(&t)).unwrap_or_default();
        let nice = self.any_thread().map_or(0, |t| t.sched.nice());
        let prio = self.any_thread().map_or(20, |t| crate::sched::policy::shown_priority(&t));
        let (rt_priority, policy) = (attr.priority, attr.policy);
        let mut o = Out(out);
        write!(
            o,
            "{} ({}) {state} {} {} {} {} {} 4194304 {} 0 0 0 {} {} {} {} {prio} {nice} {} 0 {} {vsize} {rss} ",
            self.id(),
            self.name(),
            p.ppid,
            p.group,
            p.session,
            p.terminal,
            p.terminal_group,
            self.process.faults(),
            ticks(user),
            ticks(system),
            ticks(children.user_ns),
            ticks(children.system_ns),
            threads.len().max(1),
            ticks(self.process.start_ns),
        )
        .map_err(full)?;
        writeln!(
            o,
            "18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 {} {cpu} {rt_priority} {policy} 0 0 0 0 0 0 0 0 0 0 0",
            self.process.exit_signal.load(Ordering::Relaxed)
        )
        .map_err(full)
    }

    fn statm(&self, out: &mut Vec<u8>) -> Result<()> {
        let (size, anon, file, data) = self.process.mm().map_or((0, 0, 0, 0), |m| {
            let (anon, file) = m.rss();
            let (total, data, _) = m.sizes();
            (total / 4096, anon, file, data / 4096)
        });
        writeln!(Out(out), "{size} {} {file} 0 0 {data} 0", anon + file).map_err(full)
    }

    fn status(&self, out: &mut Vec<u8>) -> Result<()> {
        let p = self.place();
        let (state, word) = self.state(p.zombie);
        let mut o = Out(out);
        write!(
            o,
            "Name:\t{}\nUmask:\t{:04o}\nState:\t{state} ({word})\nTgid:\t{}\nNgid:\t0\nPid:\t{}\nPPid:\t{}\nTracerPid:\t0\n",
            self.name(),
            self.any_thread().and_then(|t| t.fs_of()).map_or(0, |f| f.umask()),
            self.process.pid,
            self.id(),
            p.ppid
        )
        .map_err(full)?;
        if let Some(t) = self.any_thread() {
            let c = t.creds_of();
            let files = t.files_of().map_or(0, |f| f.capacity());
            write!(
                o,
                "Uid:\t{}\t{}\t{}\t{}\nGid:\t{}\t{}\t{}\t{}\nFDSize:\t{files}\nGroups:\t",
                c.uid, c.euid, c.suid, c.fsuid, c.gid, c.egid, c.sgid, c.fsgid
            )
            .map_err(full)?;
            for g in c.groups.iter() {
                write!(o, "{g} ").map_err(full)?;
            }
            o.write_str("\n").map_err(full)?;
        }
        if let Some(m) = self.process.mm() {
            let (total, data, locked) = m.sizes();
            let (anon, file) = m.rss();
            write!(
                o,
                "VmPeak:\t{0:8} kB\nVmSize:\t{0:8} kB\nVmLck:\t{1:8} kB\nVmHWM:\t{2:8} kB\nVmRSS:\t{3:8} kB\n\
                 RssAnon:\t{4:8} kB\nRssFile:\t{5:8} kB\nVmData:\t{6:8} kB\n",
                total / 1024,
                locked / 1024,
                m.peak_rss() * 4,
                (anon + file) * 4,
                anon * 4,
                file * 4,
                data / 1024
            )
            .map_err(full)?;
        }
        let blocked = self.any_thread().map_or(0, |t| t.blocked());
        let (pending, ignored, caught) = self.process.signals_summary();
        writeln!(
            o,
            "Threads:\t{}\nShdPnd:\t{pending:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}",
            self.process.threads().len()
        )
        .map_err(full)
    }

    fn limits(&self, out: &mut Vec<u8>) -> Result<()> {
        const NAMES: [(&str, &str); 16] = [
            ("Max cpu time", "seconds"),
            ("Max file size", "bytes"),
            ("Max data size", "bytes"),
            ("Max stack size", "bytes"),
            ("Max core file size", "bytes"),
            ("Max resident set", "bytes"),
            ("Max processes", "processes"),
            ("Max open files", "files"),
            ("Max locked memory", "bytes"),
            ("Max address space", "bytes"),
            ("Max file locks", "locks"),
            ("Max pending signals", "signals"),
            ("Max msgqueue size", "bytes"),
            ("Max nice priority", ""),
            ("Max realtime priority", ""),
            ("Max realtime timeout", "us"),
        ];
        let show = |v: u64| if v == u64::MAX { String::from("unlimited") } else { format!("{v}") };
        let mut o = Out(out);
        writeln!(o, "{:<25} {:<20} {:<20} {:<10}", "Limit", "Soft Limit", "Hard Limit", "Units").map_err(full)?;
        for (i, (name, unit)) in NAMES.iter().enumerate() {
            let (soft, hard) = (show(self.process.limits.soft(i)), show(self.process.limits.hard(i)));
            writeln!(o, "{name:<25} {soft:<20} {hard:<20} {unit:<10}").map_err(full)?;
        }
        Ok(())
    }

    fn mounts(&self, out: &mut Vec<u8>, info: bool) -> Result<()> {
        let root = self.any_thread().and_then(|t| t.fs_of()).map(|f| f.root());
        for m in vfs::mount::all() {
            let place = match m.mountpoint() {
                Some(p) => p.render(root.as_ref()),
                None => b"/".to_vec(),
            };
            let place = String::from_utf8_lossy(&place);
            let fs = &m.sb.fs;
            let mut access = String::from(if m.read_only() || fs.read_only() { "ro" } else { "rw" });
            for (flag, word) in [
                (MountFlags::NOSUID, ",nosuid"),
                (MountFlags::NODEV, ",nodev"),
                (MountFlags::NOEXEC, ",noexec"),
                (MountFlags::NOATIME, ",noatime"),
            ] {
                access.push_str(if m.flags().has(flag) { word } else { "" });
            }
            let (name, options) = (fs.name(), fs.options());
            let mut o = Out(&mut *out);
            if info {
                writeln!(o, "{} 0 0:{} / {place} {access} - {name} {} {access}{options}", m.id(), m.id(), m.source())
            } else {
                writeln!(o, "{} {place} {name} {access}{options} 0 0", m.source())
            }
            .map_err(full)?;
        }
        Ok(())
    }
}
