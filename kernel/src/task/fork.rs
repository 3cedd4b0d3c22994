//! Making threads and processes: fork, vfork, clone, clone3.
//!
//! Everything that can fail happens before the child is entered in the tree; entering it and giving it to the scheduler is
//! one step under the tree's and the child's signal lock, so nobody can see, signal or wait for a half-made child.

use super::cred::cap;
use super::exit;
use super::ids::Pid;
use super::process::Process;
use super::rlimit::kind;
use super::signal::{SIGMAX, SS_DISABLE};
use super::thread::{Parts, Thread};
use super::tree::{PID_MAX_LIMIT, ProcessGroup, TREE};
use crate::arch::context::{SIGNAL_PENDING, ThreadContext};
use crate::arch::trap::TrapFrame;
use crate::arch::uaccess::{self, UserAddr};
use crate::mm::AddressSpace;
use crate::mm::stack::KernelStack;
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use platform::ParkOptions;
use sync::WaitQueue;

/// `CLONE_*` flags (clone(2)).
#[allow(missing_docs)]
#[allow(dead_code)] // the list is whole
pub mod flag {
    pub const CSIGNAL: u64 = 0xff;
    pub const VM: u64 = 0x100;
    pub const FS: u64 = 0x200;
    pub const FILES: u64 = 0x400;
    pub const SIGHAND: u64 = 0x800;
    pub const PIDFD: u64 = 0x1000;
    pub const PTRACE: u64 = 0x2000;
    pub const VFORK: u64 = 0x4000;
    pub const PARENT: u64 = 0x8000;
    pub const THREAD: u64 = 0x1_0000;
    pub const NEWNS: u64 = 0x2_0000;
    pub const SYSVSEM: u64 = 0x4_0000;
    pub const SETTLS: u64 = 0x8_0000;
    pub const PARENT_SETTID: u64 = 0x10_0000;
    pub const CHILD_CLEARTID: u64 = 0x20_0000;
    pub const DETACHED: u64 = 0x40_0000;
    pub const UNTRACED: u64 = 0x80_0000;
    pub const CHILD_SETTID: u64 = 0x100_0000;
    pub const IO: u64 = 0x8000_0000;
    pub const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    /// Namespaces, cgroups: not supported.
    pub const UNSUPPORTED: u64 =
        NEWNS | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000 | 0x2_0000_0000;
}

/// What to make.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// `CLONE_*`, without the signal.
    pub flags: u64,
    /// The child's stack pointer; 0 for the parent's.
    pub sp: u64,
    /// `CLONE_PARENT_SETTID`: where the number is written in the parent.
    pub parent_tid: u64,
    /// `CLONE_CHILD_SETTID`, `CLONE_CHILD_CLEARTID`: where in the child.
    pub child_tid: u64,
    /// `CLONE_PIDFD`: where the descriptor of the child's file is written.
    pub pidfd: u64,
    /// `CLONE_SETTLS`.
    pub tls: u64,
    /// Sent to the parent at the end.
    pub exit_signal: u32,
}

/// Tells a vfork parent that its child has let go of the memory.
#[derive(Debug)]
pub struct VforkDone {
    done: AtomicBool,
    waiters: WaitQueue,
}

impl VforkDone {
    fn new() -> Self {
        VforkDone { done: AtomicBool::new(false), waiters: WaitQueue::new() }
    }

    pub(super) fn complete(&self) {
        self.done.store(true, Ordering::Release);
        self.waiters.wake_all();
    }

    /// Sleeps until the child is done, or this thread must die.
    fn wait(&self, me: &Thread) {
        let options = ParkOptions { interruptible: false, deadline_ns: None };
        let _ = self
            .waiters
            .wait_until(options, || (self.done.load(Ordering::Acquire) || exit::must_die(me)).then_some(()));
    }
}

fn check(a: &CloneArgs) -> Result<()> {
    let f = a.flags;
    let needs = |x: u64, y: u64| f & x != 0 && f & y == 0;
    if f & flag::UNSUPPORTED != 0
        || needs(flag::SIGHAND, flag::VM)
        || needs(flag::THREAD, flag::SIGHAND)
        || f & flag::SIGHAND != 0 && f & flag::CLEAR_SIGHAND != 0
        || f & flag::PIDFD != 0 && f & (flag::THREAD | flag::DETACHED) != 0
        || a.exit_signal > SIGMAX
    {
        return Err(Errno::EINVAL);
    }
    if f & flag::PARENT != 0 && crate::sched::current().process.pid.0 == 1 {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// Makes a child of the calling thread, as `a` says; returns its number. Errors as clone(2). May sleep.
pub fn clone(frame: &TrapFrame, a: &CloneArgs) -> Result<Pid> {
    check(a)?;
    let me = crate::sched::current();
    if me.arch.flags.load(Ordering::Relaxed) & SIGNAL_PENDING != 0 {
        return Err(Errno::ERESTARTNOINTR);
    }
    let tid = reserve(me)?;
    let made = build(me, frame, a, tid).and_then(|t| {
        let pidfd = give_pidfd(a, &t)?;
        enter(me, a, t).inspect_err(|_| {
            // Another thread may have closed it; then there is nothing to undo.
            let _ = pidfd.map(|fd| me.files().close(fd));
        })
    });
    let child = match made {
        Ok(child) => child,
        Err(e) => {
            TREE.lock().unreserve(tid);
            return Err(e);
        }
    };
    if let Some(done) = child {
        done.wait(me);
    }
    Ok(tid)
}

/// `CLONE_PIDFD`: a descriptor in the parent's table for the child's process.
fn give_pidfd(a: &CloneArgs, child: &Thread) -> Result<Option<i32>> {
    if a.flags & flag::PIDFD == 0 {
        return Ok(None);
    }
    let fd = crate::syscall::pidfd::install(child.process.clone(), false)?;
    if uaccess::put_user_u32(UserAddr(a.pidfd), fd as u32).is_err() {
        let _ = crate::sched::current().files().close(fd);
        return Err(Errno::EFAULT);
    }
    Ok(Some(fd))
}

fn reserve(me: &Thread) -> Result<Pid> {
    let creds = me.creds();
    let privileged = creds.uid == 0 || creds.has(cap::SYS_ADMIN) || creds.has(cap::SYS_RESOURCE);
    let limit = me.process.rlimit(kind::NPROC);
    let mut tree = TREE.lock();
    if !privileged && tree.user_threads(creds.uid) as u64 >= limit || tree.thread_count() >= max_threads() {
        return Err(Errno::EAGAIN);
    }
    tree.reserve()
}

/// A bound on threads that keeps their stacks within an eighth of memory.
pub fn max_threads() -> usize {
    let frames = crate::mm::frames::total();
    (frames / (8 * 4)).clamp(64, PID_MAX_LIMIT as usize)
}

/// Makes the thread (and its process), seen by nobody yet.
#[inline(never)]
fn build(me: &Thread, frame: &TrapFrame, a: &CloneArgs, tid: Pid) -> Result<Arc<Thread>> {
    let f = a.flags;
    let mm = if f & flag::VM != 0 { me.mm().clone() } else { AddressSpace::fork_from(me.mm())? };
    let kstack = KernelStack::new().ok_or(Errno::ENOMEM)?;
    let files = if f & flag::FILES != 0 { me.files().clone() } else { me.files().fork()? };
    let fs = if f & flag::FS != 0 { me.fs().clone() } else { Arc::new(me.fs().fork()) };
    let process = if f & flag::THREAD != 0 { me.process.clone() } else { new_process(me, a, tid) };
    let mut child_frame = *frame;
    child_frame.x[0] = 0;
    child_frame.syscallno = u64::MAX;
    if a.sp != 0 {
        child_frame.sp = a.sp;
    }
    // SAFETY: a fresh stack that the new thread owns.
    let arch = unsafe { ThreadContext::new_user(kstack.top(), &child_frame) };
    let thread = Thread::make(Parts {
        arch,
        sched: me.sched.inherit(),
        process,
        tid,
        kstack: Some(kstack),
        files: Some(files),
        fs: Some(fs),
        creds: me.creds().clone(),
        mm: None,
        name: super::thread::name_bytes(&me.name()),
        blocked: me.blocked(),
    });
    thread.arch.fp_set(me.arch.fp_state());
    let tls = if f & flag::SETTLS != 0 { a.tls } else { crate::read_sysreg!("tpidr_el0") };
    thread.arch.set_tls(tls, false);
    thread.init_mm(mm);
    let place = crate::sched::admission::admit()?;
    // SAFETY: nobody else knows the thread yet.
    unsafe { thread.sched.reserve(place) };
    if f & flag::CHILD_CLEARTID != 0 {
        thread.clear_child_tid.set(a.child_tid);
    }
    if f & (flag::VM | flag::VFORK) != flag::VM {
        thread.altstack.set(me.altstack.get());
    } else {
        thread.altstack.set((0, 0, SS_DISABLE));
    }
    thread.no_new_privs.set(me.no_new_privs.get());
    thread.timer_slack.store(me.timer_slack.load(Ordering::Relaxed), Ordering::Relaxed);
    if super::trace::follows(me) {
        thread.set_traced(true);
    }
    if f & flag::CHILD_SETTID != 0 {
        set_child_tid(&thread, a, tid);
    }
    if f & flag::PARENT_SETTID != 0 {
        let _ = uaccess::put_user_u32(UserAddr(a.parent_tid), tid.0);
    }
    Ok(Arc::new(thread))
}

/// Lets the child find its number in its own memory: at once if it shares ours, else as its first act.
fn set_child_tid(thread: &Thread, a: &CloneArgs, tid: Pid) {
    if a.flags & flag::VM != 0 {
        let _ = uaccess::put_user_u32(UserAddr(a.child_tid), tid.0);
    } else {
        thread.set_child_tid.set(a.child_tid);
        thread.set_work(|_| {
            let me = crate::sched::current();
            let _ = uaccess::put_user_u32(UserAddr(me.set_child_tid.get()), me.tid().0);
        });
    }
}

#[inline(never)]
fn new_process(me: &Thread, a: &CloneArgs, pid: Pid) -> Arc<Process> {
    let old = &me.process;
    let mut signals = old.signals.lock().inherit();
    if a.flags & flag::CLEAR_SIGHAND != 0 {
        signals.reset_for_exec();
    }
    signals.threads.reserve(1);
    let exit_signal = if a.flags & flag::PARENT != 0 { old.exit_signal.load(Ordering::Relaxed) } else { a.exit_signal };
    let p = Process::make(pid, signals, old.limits.inherit(), exit_signal);
    p.dumpable.store(old.dumpable.load(Ordering::Relaxed), Ordering::Relaxed);
    p.personality.store(old.personality.load(Ordering::Relaxed), Ordering::Relaxed);
    p.oom_adjust.store(old.oom_adjust.load(Ordering::Relaxed), Ordering::Relaxed);
    let exe = old.exe.lock().clone();
    *p.exe.lock() = exe;
    let regions = *old.regions.lock();
    *p.regions.lock() = regions;
    Arc::new(p)
}

/// Makes the child known and lets it run. Returns what a vfork parent waits for.
#[inline(never)]
fn enter(me: &Thread, a: &CloneArgs, thread: Arc<Thread>) -> Result<Option<Arc<VforkDone>>> {
    let f = a.flags;
    let vfork = (f & flag::VFORK != 0).then(|| Arc::new(VforkDone::new()));
    thread.vfork.set(vfork.clone());
    let uid = me.creds().uid;
    let process = thread.process.clone();
    let mut tree = TREE.lock();
    // A signal to the group that came meanwhile must reach the child too: it does if the fork is made again after it.
    if me.arch.flags.load(Ordering::Relaxed) & SIGNAL_PENDING != 0 {
        drop(tree);
        exit::drop_unborn(thread);
        return Err(Errno::ERESTARTNOINTR);
    }
    tree.enter_thread(&thread, uid);
    if f & flag::THREAD == 0 {
        let links = me.process.links.get(&tree);
        let parent = if f & flag::PARENT != 0 { links.parent.clone() } else { Some(me.process.clone()) };
        let group = links.group.clone();
        if let Some(group) = group {
            tree.enter_process(&process, parent.as_ref(), &group);
        }
    }
    let mut s = process.signals.lock();
    s.threads.push(thread.clone());
    // It has its place in the run queues: this cannot fail.
    let _ = crate::sched::spawn(thread);
    drop(s);
    drop(tree);
    Ok(vfork)
}

/// Makes process 1, which starts in the kernel with `work` and goes to user mode when that returns.
pub(super) fn first_process(work: super::thread::Work) -> Result<Arc<Thread>> {
    let tid = TREE.lock().reserve()?;
    let kstack = KernelStack::new().ok_or(Errno::ENOMEM)?;
    let limits = super::rlimit::Limits::initial(max_threads() as u64 / 2);
    let process = Arc::new(Process::make(tid, super::signal::state::SignalState::new(), limits, 17));
    // SAFETY: a fresh stack that the new thread owns.
    let arch = unsafe { ThreadContext::new_user(kstack.top(), &TrapFrame::default()) };
    let thread = Arc::new(Thread::make(Parts {
        arch,
        sched: crate::sched::SchedState::new(),
        process: process.clone(),
        tid,
        kstack: Some(kstack),
        files: Some(crate::file::FileTable::new()),
        fs: None,
        creds: Arc::new(super::cred::Credentials::root()),
        mm: None,
        name: super::thread::name_bytes(b"init"),
        blocked: 0,
    }));
    let place = crate::sched::admission::admit()?;
    // SAFETY: nobody else knows the thread yet.
    unsafe { thread.sched.reserve(place) };
    thread.set_work(work);
    let mut tree = TREE.lock();
    tree.enter_thread(&thread, 0);
    // As on Linux it leads neither a group nor a session until it asks for one.
    let group: Arc<ProcessGroup> = tree.new_group(Pid(0), None);
    tree.enter_process(&process, None, &group);
    let mut s = process.signals.lock();
    s.threads.push(thread.clone());
    let _ = crate::sched::spawn(thread.clone());
    drop(s);
    drop(tree);
    Ok(thread)
}
