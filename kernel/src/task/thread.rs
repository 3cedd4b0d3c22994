//! Threads.
//!
//! A [`Thread`] lives in an `Arc`; the scheduler owns one reference while it exists, its process's list of threads and
//! the table of numbers one each until it exits. [`ThreadContext`] is the first field: the vectors and the scheduler find
//! the thread through it.
//!
//! Ownership: atomics may be read by all; fields in [`Owned`] are the thread's own; cells are touched by the thread
//! itself only (or before it first runs); `pending` is under the process's signal lock.

use super::cred::Credentials;
use super::ids::Pid;
use super::owned::Owned;
use super::process::Process;
use super::signal::pending::Pending;
use super::signal::state::SignalState;
use crate::arch::context::{NOTIFY, TRACE, ThreadContext};
use crate::arch::trap::TrapFrame;
use crate::file::table::OwnTable;
use crate::file::{FileTable, FsContext};
use crate::mm::AddressSpace;
use crate::mm::stack::KernelStack;
use crate::sched::SchedState;
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use sync::Once;

/// What a call interrupted by a stop or a handled-by-nobody signal goes on with (`restart_syscall`).
#[derive(Clone, Copy, Debug, Default)]
pub enum Restart {
    /// Nothing.
    #[default]
    None,
    /// A sleep until `deadline` on the monotonic clock; the rest is written to `rem`.
    Sleep {
        /// When it ends, in nanoseconds.
        deadline: u64,
        /// Where the remaining time goes (0: nowhere).
        rem: u64,
    },
    /// A futex wait with a deadline.
    Futex {
        /// The word.
        addr: u64,
        /// What it must hold.
        value: u32,
        /// Which wakers count.
        bitset: u32,
        /// Within the process only.
        private: bool,
        /// When it ends, in nanoseconds, on the monotonic clock.
        deadline: u64,
    },
}

/// Work that a thread does on its next way to user mode.
pub type Work = fn(&mut TrapFrame);

/// A thread.
#[repr(C)]
pub struct Thread {
    /// CPU state; first.
    pub arch: ThreadContext,
    /// Scheduler state.
    pub sched: SchedState,
    /// What it belongs to. Kernel threads belong to the kernel's process, number 0.
    pub process: Arc<Process>,
    tid: AtomicU32,
    kstack: Option<KernelStack>,
    /// Blocked signals. Written by the thread itself, under the signal lock.
    pub(super) blocked: AtomicU64,
    pending: UnsafeCell<Pending>,
    files: Owned<Option<OwnTable>>,
    fs: Owned<Option<Arc<FsContext>>>,
    creds: Owned<Arc<Credentials>>,
    mm: Owned<Option<Arc<AddressSpace>>>,
    name: [AtomicU8; 16],
    /// Where to write 0 and wake a futex at exit (0: nowhere).
    pub(super) clear_child_tid: Cell<u64>,
    /// Where the thread writes its number as its first act.
    pub(super) set_child_tid: Cell<u64>,
    /// The head of the robust futex list (0: none).
    pub(super) robust_list: Cell<u64>,
    /// The alternate signal stack: base, size, `SS_*` flags.
    pub(super) altstack: Cell<(u64, u64, u32)>,
    /// The mask to put back once a handler was set up or none ran (sigsuspend, ppoll).
    pub(super) saved_mask: Cell<Option<u64>>,
    /// What it waits for in sigtimedwait: unblocked for the time, but never dropped as ignored. Written by the thread itself.
    pub(super) awaited: AtomicU64,
    /// For `restart_syscall`.
    pub restart: Cell<Restart>,
    pub(super) work: Cell<Option<Work>>,
    /// Signalled when this thread, a vfork child, lets go of its parent's memory.
    pub(super) vfork: Cell<Option<Arc<super::fork::VforkDone>>>,
    /// The signal to send to this thread when its parent dies (0: none).
    pub(super) pdeathsig: AtomicU32,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub(super) no_new_privs: Cell<bool>,
    /// `PR_SET_TIMERSLACK`, in nanoseconds.
    pub timer_slack: AtomicU64,
    /// When it was made, on the monotonic clock.
    pub start_ns: u64,
    /// Faults taken, for rusage.
    pub faults: AtomicU64,
}

// SAFETY: cells and `pending` follow the module's ownership rule.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

impl core::fmt::Debug for Thread {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Thread({} of {})", self.tid(), self.process.pid)
    }
}

/// What a new thread is made of.
pub(super) struct Parts {
    pub arch: ThreadContext,
    pub sched: SchedState,
    pub process: Arc<Process>,
    pub tid: Pid,
    pub kstack: Option<KernelStack>,
    pub files: Option<Arc<FileTable>>,
    pub fs: Option<Arc<FsContext>>,
    pub creds: Arc<Credentials>,
    pub mm: Option<Arc<AddressSpace>>,
    pub name: [u8; 16],
    pub blocked: u64,
}

/// What kernel threads share.
struct Kernel {
    creds: Arc<Credentials>,
    process: Arc<Process>,
}

static KERNEL: Once<Kernel> = Once::new();

/// Made on first use, by the boot CPU.
fn kernel() -> &'static Kernel {
    if let Some(k) = KERNEL.get() {
        return k;
    }
    let kernel = Kernel { creds: Arc::new(Credentials::root()), process: Process::kernel() };
    let Ok(k) = KERNEL.set(kernel) else { panic!("the kernel's process was made twice") };
    k
}

/// `name` as the fixed-size array that threads keep, cut to 15 bytes.
pub fn name_bytes(name: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    let n = name.len().min(15);
    out[..n].copy_from_slice(&name[..n]);
    out
}

impl Thread {
    pub(super) fn make(p: Parts) -> Thread {
        Thread {
            arch: p.arch,
            sched: p.sched,
            process: p.process,
            tid: AtomicU32::new(p.tid.0),
            kstack: p.kstack,
            blocked: AtomicU64::new(p.blocked),
            pending: UnsafeCell::new(Pending::new()),
            files: Owned::new(p.files.map(OwnTable::of)),
            fs: Owned::new(p.fs),
            creds: Owned::new(p.creds),
            mm: Owned::new(p.mm),
            name: p.name.map(AtomicU8::new),
            clear_child_tid: Cell::new(0),
            set_child_tid: Cell::new(0),
            robust_list: Cell::new(0),
            altstack: Cell::new((0, 0, super::signal::SS_DISABLE)),
            saved_mask: Cell::new(None),
            awaited: AtomicU64::new(0),
            restart: Cell::new(Restart::None),
            work: Cell::new(None),
            vfork: Cell::new(None),
            pdeathsig: AtomicU32::new(0),
            no_new_privs: Cell::new(false),
            timer_slack: AtomicU64::new(50_000),
            start_ns: crate::arch::time::now_ns(),
            faults: AtomicU64::new(0),
        }
    }

    fn kernel(arch: ThreadContext, kstack: Option<KernelStack>, name: &[u8]) -> Arc<Thread> {
        let n = kernel();
        Arc::new(Thread::make(Parts {
            arch,
            sched: SchedState::new(),
            process: n.process.clone(),
            tid: Pid(0),
            kstack,
            files: None,
            fs: None,
            creds: n.creds.clone(),
            mm: None,
            name: name_bytes(name),
            blocked: u64::MAX,
        }))
    }

    /// A kernel thread that will run `entry(arg)` once it is given to [`crate::sched::spawn`]. It has number 0 and is in
    /// no table. `None` when memory is exhausted.
    pub fn new_kernel(name: &str, entry: extern "C" fn(usize), arg: usize) -> Option<Arc<Thread>> {
        let kstack = KernelStack::new()?;
        // SAFETY: a fresh stack that the new thread will own.
        let arch = unsafe { ThreadContext::new_kernel(kstack.top(), entry, arg) };
        Some(Self::kernel(arch, Some(kstack), name.as_bytes()))
    }

    /// CPU `cpu`'s idle thread. The boot CPU's goes on on the boot stack.
    pub(super) fn new_idle(cpu: usize) -> Arc<Thread> {
        let kstack = if cpu == 0 {
            None
        } else {
            match KernelStack::new() {
                Some(s) => Some(s),
                None => panic!("no memory for cpu{cpu}'s stack"),
            }
        };
        Self::kernel(ThreadContext::boot(), kstack, b"idle")
    }

    /// Top of its kernel stack (0 for the boot stack).
    pub fn stack_top(&self) -> usize {
        self.kstack.as_ref().map_or(0, KernelStack::top)
    }

    /// Its number.
    #[inline]
    pub fn tid(&self) -> Pid {
        Pid(self.tid.load(Ordering::Relaxed))
    }

    /// Changes its number; under the tree's lock.
    pub(super) fn set_tid(&self, tid: Pid) {
        self.tid.store(tid.0, Ordering::Relaxed);
    }

    /// Whether it runs user code.
    pub fn is_user(&self) -> bool {
        self.process.pid.0 != 0
    }

    fn is_current(&self) -> bool {
        core::ptr::eq(self, crate::sched::current())
    }

    /// Its file table. The thread's own call.
    #[inline]
    pub fn files(&self) -> &Arc<FileTable> {
        debug_assert!(self.is_current());
        // SAFETY: the owner; it is replaced in system calls that hold no such reference.
        match unsafe { self.files.own() } {
            Some(x) => x.table(),
            None => panic!("this thread has no files"),
        }
    }

    /// Its directories. The thread's own call.
    #[inline]
    pub fn fs(&self) -> &Arc<FsContext> {
        debug_assert!(self.is_current());
        // SAFETY: the owner; it is replaced in system calls that hold no such reference.
        match unsafe { self.fs.own() } {
            Some(x) => x,
            None => panic!("this thread has no directories"),
        }
    }

    /// Its credentials. The thread's own call.
    #[inline]
    pub fn creds(&self) -> &Arc<Credentials> {
        debug_assert!(self.is_current());
        // SAFETY: as for `files`.
        unsafe { self.creds.own() }
    }

    /// Its address space. The thread's own call; panics in kernel threads.
    #[inline]
    pub fn mm(&self) -> &Arc<AddressSpace> {
        debug_assert!(self.is_current());
        // SAFETY: as for `files`.
        match unsafe { self.mm.own() } {
            Some(mm) => mm,
            None => panic!("a kernel thread has no address space"),
        }
    }

    /// Its address space, if it (still) has one. The thread's own call.
    pub fn try_mm(&self) -> Option<&Arc<AddressSpace>> {
        // SAFETY: as for `files`.
        unsafe { self.mm.own() }.as_ref()
    }

    /// A reference to another thread's file table.
    pub fn files_of(&self) -> Option<Arc<FileTable>> {
        self.files.look(|own| own.as_ref().map(|own| own.table().clone()))
    }

    /// A reference to another thread's directories.
    pub fn fs_of(&self) -> Option<Arc<FsContext>> {
        self.fs.copy()
    }

    /// A reference to another thread's credentials.
    pub fn creds_of(&self) -> Arc<Credentials> {
        self.creds.copy()
    }

    /// A reference to another thread's address space. The caller drops it where it may sleep.
    pub fn mm_of(&self) -> Option<Arc<AddressSpace>> {
        self.mm.copy()
    }

    /// Replaces its own file table; if nobody else has the former, everything in it is closed. May sleep.
    pub fn set_files(&self, files: Option<Arc<FileTable>>) {
        debug_assert!(self.is_current());
        // SAFETY: the owner; callers hold no reference from `files()` across this.
        drop(unsafe { self.files.replace(files.map(OwnTable::of)) });
    }

    /// Replaces its own directories; returns the former.
    pub fn set_fs(&self, fs: Option<Arc<FsContext>>) -> Option<Arc<FsContext>> {
        debug_assert!(self.is_current());
        // SAFETY: as for `set_files`.
        unsafe { self.fs.replace(fs) }
    }

    /// Replaces its own credentials.
    pub fn set_creds(&self, creds: Credentials) {
        debug_assert!(self.is_current());
        // SAFETY: as for `set_files`.
        let old = unsafe { self.creds.replace(Arc::new(creds)) };
        // SAFETY: as above; read only.
        let now = unsafe { self.creds.own() };
        if old.uid != now.uid && self.is_user() {
            super::tree::TREE.lock().recount(old.uid, now.uid);
        }
    }

    /// Replaces its own address space and loads the new one (or none); returns the former.
    pub(super) fn set_mm(&self, mm: Option<Arc<AddressSpace>>) -> Option<Arc<AddressSpace>> {
        debug_assert!(self.is_current());
        let raw = mm.as_ref().map_or(core::ptr::null_mut(), |m| Arc::as_ptr(m).cast_mut());
        // SAFETY: as for `set_files`.
        let old = unsafe { self.mm.replace(mm) };
        self.sched.mm.store(raw, Ordering::Relaxed);
        crate::sched::reload_mm();
        old
    }

    /// Gives a thread that nobody knows yet its address space.
    pub(super) fn init_mm(&self, mm: Arc<AddressSpace>) {
        self.sched.mm.store(Arc::as_ptr(&mm).cast_mut(), Ordering::Relaxed);
        // SAFETY: nobody else has the thread.
        drop(unsafe { self.mm.replace(Some(mm)) });
    }

    /// Its name, without the padding.
    pub fn name(&self) -> arrayvec::ArrayVec<u8, 16> {
        self.name.iter().map(|b| b.load(Ordering::Relaxed)).take_while(|&b| b != 0).collect()
    }

    /// Its name for messages.
    pub fn name_str(&self) -> arrayvec::ArrayString<16> {
        let mut s = arrayvec::ArrayString::new();
        for b in self.name() {
            let _ = s.try_push(if b.is_ascii_graphic() || b == b' ' { b as char } else { '?' });
        }
        s
    }

    /// Renames it; cut to 15 bytes.
    pub fn set_name(&self, name: &[u8]) {
        for (to, from) in self.name.iter().zip(name_bytes(name)) {
            to.store(from, Ordering::Relaxed);
        }
    }

    /// The signals that it blocks.
    #[inline]
    pub fn blocked(&self) -> u64 {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Its own pending signals, for whoever holds its process's signal lock.
    pub(super) fn pending<'a>(&'a self, guard: &'a mut SignalState) -> &'a mut Pending {
        assert!(core::ptr::eq(guard, self.process.signals.as_ptr()), "the wrong process's signal lock");
        // SAFETY: the lock that guards it is held, and borrowed exclusively.
        unsafe { &mut *self.pending.get() }
    }

    /// `set_tid_address`. The thread's own call.
    pub fn set_clear_child_tid(&self, addr: u64) {
        self.clear_child_tid.set(addr);
    }

    /// `set_robust_list`. The thread's own call.
    pub fn set_robust_list(&self, head: u64) {
        self.robust_list.set(head);
    }

    /// Its robust list's head. The thread's own call.
    pub fn robust_list(&self) -> u64 {
        self.robust_list.get()
    }

    /// The mask that comes back when the signal that ends the call has been dealt with. The thread's own call.
    pub fn set_saved_mask(&self, mask: u64) {
        self.saved_mask.set(Some(mask));
    }

    /// Sets the alternate signal stack. The thread's own call.
    pub fn set_altstack(&self, sp: u64, size: u64, flags: u32) {
        self.altstack.set((sp, size, flags));
    }

    /// Where its number is cleared at its end. The thread's own call.
    pub fn clear_child_tid(&self) -> u64 {
        self.clear_child_tid.get()
    }

    /// `PR_SET_PDEATHSIG`.
    pub fn set_pdeathsig(&self, signo: u32) {
        self.pdeathsig.store(signo, Ordering::Relaxed);
    }

    /// The signal that it gets when its parent dies.
    pub fn pdeathsig(&self) -> u32 {
        self.pdeathsig.load(Ordering::Relaxed)
    }

    /// `PR_SET_NO_NEW_PRIVS`. The thread's own call.
    pub fn set_no_new_privs(&self) {
        self.no_new_privs.set(true);
    }

    /// Whether exec gives it nothing new. The thread's own call.
    pub fn no_new_privs(&self) -> bool {
        self.no_new_privs.get()
    }

    /// Something to do before it goes to user mode.
    pub(super) fn set_work(&self, work: Work) {
        self.work.set(Some(work));
        self.arch.flags.fetch_or(NOTIFY, Ordering::Relaxed);
    }

    /// Turns the system-call trace on or off.
    pub fn set_traced(&self, on: bool) {
        if on {
            self.arch.flags.fetch_or(TRACE, Ordering::Relaxed);
        } else {
            self.arch.flags.fetch_and(!TRACE, Ordering::Relaxed);
        }
    }

    /// `EPERM` unless capability `n` is effective. The thread's own call.
    pub fn require(&self, n: u32) -> Result<()> {
        if self.creds().has(n) { Ok(()) } else { Err(Errno::EPERM) }
    }
}
