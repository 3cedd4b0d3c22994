//! Processes: what threads share.

use super::ids::{InTree, Pid};
use super::rlimit::Limits;
use super::signal::state::SignalState;
use super::thread::Thread;
use super::tree::{Links, ProcessGroup, TREE};
use crate::mm::AddressSpace;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use sync::{IrqLock, LockClass, SpinLock, WaitQueue};

static SIGNALS: LockClass = LockClass::new("signals", sync::rank::SIGNAL);
static EXE: LockClass = LockClass::new("executable", sync::rank::SPIN + 61);

/// CPU time and events of threads that are gone, and of children that were waited for.
#[derive(Debug, Default)]
pub struct Times {
    /// Run time of exited threads, in user mode and in the kernel, in nanoseconds.
    pub dead_threads_ns: [AtomicU64; 2],
    /// Faults of exited threads.
    pub dead_threads_faults: AtomicU64,
    /// Run time of collected children, likewise.
    pub children_ns: [AtomicU64; 2],
    /// Faults of collected children.
    pub children_faults: AtomicU64,
}

/// Where exec put arguments and environment in user memory (for `/proc/PID/cmdline`, `environ` and `auxv`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Regions {
    /// First byte of the arguments, and the one after the last.
    pub args: (u64, u64),
    /// The same of the environment.
    pub env: (u64, u64),
    /// The same of the auxiliary vector.
    pub aux: (u64, u64),
}

/// Both of a pair of counters.
pub fn load_both(pair: &[AtomicU64; 2]) -> [u64; 2] {
    pair.each_ref().map(|n| n.load(Ordering::Relaxed))
}

/// CPU time and faults of a process with its collected children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds in user mode.
    pub user_ns: u64,
    /// Nanoseconds in the kernel.
    pub system_ns: u64,
    /// Page faults.
    pub faults: u64,
}

impl Times {
    /// What the collected children used.
    pub fn children(&self) -> Usage {
        let [user_ns, system_ns] = load_both(&self.children_ns);
        Usage { user_ns, system_ns, faults: self.children_faults.load(Ordering::Relaxed) }
    }

    /// What a process whose threads are all gone used, with its collected children.
    pub fn total(&self) -> Usage {
        let [user, system] = load_both(&self.dead_threads_ns);
        let c = self.children();
        let faults = c.faults + self.dead_threads_faults.load(Ordering::Relaxed);
        Usage { user_ns: c.user_ns + user, system_ns: c.system_ns + system, faults }
    }
}

/// A process.
pub struct Process {
    /// Its number.
    pub pid: Pid,
    /// Its place in the tree.
    pub links: InTree<Links>,
    /// Its parent's number (0: none), as `links` says: written under the tree's lock, read without.
    pub(super) ppid: AtomicU32,
    /// Signals and the list of threads.
    pub signals: IrqLock<SignalState>,
    /// Woken when a child changes state, and when a thread leaves.
    pub child_wait: WaitQueue,
    /// Resource limits.
    pub limits: Limits,
    /// The signal that its parent gets at its end (0: none).
    pub exit_signal: AtomicU32,
    /// Run times.
    pub times: Times,
    /// When it was made.
    pub start_ns: u64,
    /// What it runs, for `/proc/PID/exe`.
    pub exe: SpinLock<Option<super::exec::ExeRef>>,
    /// Has called exec since fork (setpgid by the parent is then refused).
    pub did_exec: AtomicBool,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub subreaper: AtomicBool,
    /// `PR_SET_DUMPABLE`.
    pub dumpable: AtomicU32,
    /// `/proc/PID/oom_score_adj`.
    pub oom_adjust: AtomicI32,
    /// Where arguments and environment lie.
    pub regions: SpinLock<Regions>,
    /// `personality(2)`.
    pub personality: AtomicU32,
    /// It was continued and its parent does not know yet.
    pub continued: AtomicBool,
    /// Who watches it from files.
    pub(super) watchers: super::watch::Watchers,
    /// It has semaphore operations to be undone ([`crate::ipc::sem`]).
    pub sem_undo: AtomicBool,
    /// Interval timers.
    pub timers: super::timers::ProcessTimers,
}

impl core::fmt::Debug for Process {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Process({})", self.pid)
    }
}

impl Process {
    pub(super) fn make(pid: Pid, signals: SignalState, limits: Limits, exit_signal: u32) -> Process {
        Process {
            pid,
            links: InTree::new(Links::default()),
            ppid: AtomicU32::new(0),
            signals: IrqLock::new(&SIGNALS, signals),
            child_wait: WaitQueue::new(),
            limits,
            exit_signal: AtomicU32::new(exit_signal),
            times: Times::default(),
            start_ns: crate::arch::time::now_ns(),
            exe: SpinLock::new(&EXE, None),
            did_exec: AtomicBool::new(false),
            sem_undo: AtomicBool::new(false),
            subreaper: AtomicBool::new(false),
            dumpable: AtomicU32::new(1),
            oom_adjust: AtomicI32::new(0),
            regions: SpinLock::new(&EXE, Regions::default()),
            personality: AtomicU32::new(0),
            continued: AtomicBool::new(false),
            watchers: super::watch::Watchers::default(),
            timers: super::timers::ProcessTimers::new(),
        }
    }

    /// The process that kernel threads belong to. Not in the table.
    pub(super) fn kernel() -> Arc<Process> {
        Arc::new(Self::make(Pid(0), SignalState::new(), Limits::initial(u64::MAX), 0))
    }

    /// The soft limit of `kind` (see [`super::rlimit::kind`]).
    #[inline]
    pub fn rlimit(&self, kind: usize) -> u64 {
        self.limits.soft(kind)
    }

    /// The process's pending, ignored and caught signals, for /proc.
    pub fn signals_summary(&self) -> (u64, u64, u64) {
        let s = self.signals.lock();
        let (ignored, caught) = s.ignored_and_caught();
        (s.shared.set(), ignored, caught)
    }

    /// Its parent's number; 0 if it has none.
    #[inline]
    pub fn ppid(&self) -> Pid {
        Pid(self.ppid.load(Ordering::Relaxed))
    }

    /// Its process group; `None` for the kernel's and for a process that was collected.
    pub fn group(&self) -> Option<Arc<ProcessGroup>> {
        let tree = TREE.lock();
        self.links.get(&tree).group.clone()
    }

    /// Its threads (a snapshot). Empty once it is a zombie.
    pub fn threads(&self) -> Vec<Arc<Thread>> {
        self.signals.lock().threads.clone()
    }

    /// One of its threads, the oldest; `None` once it is a zombie.
    pub fn any_thread(&self) -> Option<Arc<Thread>> {
        self.signals.lock().threads.first().cloned()
    }

    /// Its address space, if it still has one. The caller drops it where it may sleep.
    pub fn mm(&self) -> Option<Arc<AddressSpace>> {
        self.any_thread()?.mm_of()
    }

    /// CPU time that it used so far in user mode and in the kernel, in nanoseconds.
    pub fn cpu_times(&self) -> (u64, u64) {
        let [user, system] = load_both(&self.times.dead_threads_ns);
        let guard = self.signals.lock();
        guard
            .threads
            .iter()
            .map(|t| crate::sched::account::thread_times(t))
            .fold((user, system), |sum, t| (sum.0 + t.0, sum.1 + t.1))
    }

    /// CPU time that it used so far, in nanoseconds.
    pub fn runtime_ns(&self) -> u64 {
        let dead: u64 = load_both(&self.times.dead_threads_ns).iter().sum();
        let guard = self.signals.lock();
        guard.threads.iter().map(|t| crate::sched::runtime_ns(t)).sum::<u64>() + dead
    }

    /// Faults that it took so far.
    pub fn faults(&self) -> u64 {
        let dead = self.times.dead_threads_faults.load(Ordering::Relaxed);
        let guard = self.signals.lock();
        guard.threads.iter().map(|t| t.faults.load(Ordering::Relaxed)).sum::<u64>() + dead
    }
}

/// The process with number `pid`, zombies included.
pub fn find(pid: Pid) -> Option<Arc<Process>> {
    TREE.lock().process(pid).cloned()
}

/// The thread with number `tid`.
pub fn find_thread(tid: Pid) -> Option<Arc<Thread>> {
    TREE.lock().thread(tid).cloned()
}

/// The first process with a number of at least `from`: how `/proc` is listed without holding anything.
pub fn next_from(from: u32) -> Option<Arc<Process>> {
    TREE.lock().processes_from(from).next().cloned()
}
