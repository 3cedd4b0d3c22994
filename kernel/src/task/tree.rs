//! The tree of processes, and the table of numbers.
//!
//! # Ideas
//! One lock, [`TREE`], guards everything that relates processes to each other: who has which number, parents and
//! children, process groups and sessions, and what a parent's `wait` may collect. It is held for a few dozen
//! instructions by fork, exit and wait, so one lock serves; it masks interrupts and ranks before signal state, so that
//! terminals can signal a group from an interrupt.
//!
//! # Invariants
//! - A number is in use as long as its slot names a thread, process, group or session, or is reserved by a fork in
//!   progress. Numbers are given out in rising order and wrap at `pid_max`, so that a number is not used again soon.
//! - `p` is in `children` of its parent exactly while it has one; `links.parent` and the parent's list change together.
//! - A group holds its members, a member its group; a group without members leaves the table.
//!
//! # What can fail
//! Numbers can run out (`EAGAIN`).

use super::ids::{InTree, Pid};
use super::process::Process;
use super::thread::Thread;
use crate::tty::Tty;
use abi::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use sync::{IrqLock, LockClass};

static CLASS: LockClass = LockClass::new("process tree", sync::rank::OBJECT + 20);

/// The lock over the whole tree.
pub static TREE: IrqLock<Tree> = IrqLock::new(&CLASS, Tree::new());

/// `pid_max` until somebody sets it.
pub const DEFAULT_PID_MAX: u32 = 32_768;
/// The highest `pid_max` that can be set.
pub const PID_MAX_LIMIT: u32 = 4 << 20;
/// After a wrap, numbers start here: the low ones are for the first daemons.
const RESERVED: u32 = 300;
const CHUNK: usize = 4096 / size_of::<Slot>();

/// What a number stands for.
#[derive(Default)]
pub struct Slot {
    reserved: bool,
    thread: Option<Arc<Thread>>,
    process: Option<Arc<Process>>,
    group: Option<Arc<ProcessGroup>>,
    session: Option<Arc<Session>>,
}

impl Slot {
    fn is_free(&self) -> bool {
        !self.reserved
            && self.thread.is_none()
            && self.process.is_none()
            && self.group.is_none()
            && self.session.is_none()
    }
}

/// What [`TREE`] guards, besides the [`InTree`] fields of processes and groups.
pub struct Tree {
    chunks: Vec<Vec<Slot>>,
    last: u32,
    pid_max: u32,
    threads: usize,
    per_user: BTreeMap<u32, usize>,
}

/// A session: process groups that share a controlling terminal.
pub struct Session {
    /// Its number, the leader's.
    pub id: Pid,
    /// How many groups in the table belong to it.
    groups: InTree<usize>,
    terminal: InTree<Option<Arc<Tty>>>,
}

impl core::fmt::Debug for Session {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Session({})", self.id)
    }
}

impl Session {
    /// Its controlling terminal.
    pub fn terminal(&self) -> Option<Arc<Tty>> {
        self.terminal.get(&TREE.lock()).clone()
    }

    /// Sets or clears its controlling terminal; returns the former.
    pub fn set_terminal(&self, t: Option<Arc<Tty>>) -> Option<Arc<Tty>> {
        core::mem::replace(self.terminal.get_mut(&mut TREE.lock()), t)
    }
}

/// A process group.
pub struct ProcessGroup {
    /// Its number.
    pub id: Pid,
    /// The session it belongs to, for ever.
    pub session: Arc<Session>,
    members: InTree<Vec<Arc<Process>>>,
}

impl core::fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "ProcessGroup({} in {})", self.id, self.session.id)
    }
}

impl ProcessGroup {
    /// Its members, zombies included.
    pub fn members<'a>(&'a self, tree: &'a Tree) -> &'a [Arc<Process>] {
        self.members.get(tree)
    }

    /// Whether no member has a parent in the session but outside the group (POSIX: orphaned). `except` counts as gone.
    pub fn is_orphaned(&self, tree: &Tree, except: Option<&Process>) -> bool {
        !self.members(tree).iter().any(|m| {
            let links = m.links.get(tree);
            let skip = links.is_zombie() || except.is_some_and(|e| core::ptr::eq(e, &raw const **m));
            !skip
                && links.parent.as_ref().is_some_and(|p| {
                    p.pid.0 != 1
                        && p.links
                            .get(tree)
                            .group
                            .as_ref()
                            .is_some_and(|g| g.id != self.id && g.session.id == self.session.id)
                })
        })
    }
}

/// How a process is tied into the tree. See [`Process::links`].
#[derive(Default)]
pub struct Links {
    /// Who waits for it. `None` only for init and for what was reaped.
    pub parent: Option<Arc<Process>>,
    /// Its children, zombies included.
    pub children: Vec<Arc<Process>>,
    child_index: usize,
    /// Its process group; `None` once reaped, and for the kernel.
    pub group: Option<Arc<ProcessGroup>>,
    group_index: usize,
    /// The wait status, once it is a zombie.
    pub zombie: Option<i32>,
    /// Its real user at its end.
    pub uid: u32,
    /// A stop that no wait has seen, by the signal's number.
    pub stop_report: Option<u32>,
    /// A continuation that no wait has seen.
    pub continue_report: bool,
}

impl Links {
    /// Whether it exited and waits to be collected.
    pub fn is_zombie(&self) -> bool {
        self.zombie.is_some()
    }
}

impl Tree {
    const fn new() -> Self {
        Tree { chunks: Vec::new(), last: 0, pid_max: DEFAULT_PID_MAX, threads: 0, per_user: BTreeMap::new() }
    }

    fn slot(&self, pid: Pid) -> Option<&Slot> {
        self.chunks.get(pid.0 as usize / CHUNK)?.get(pid.0 as usize % CHUNK)
    }

    fn slot_mut(&mut self, pid: Pid) -> &mut Slot {
        let at = pid.0 as usize / CHUNK;
        if self.chunks.get(at).is_none_or(Vec::is_empty) {
            self.trim();
        }
        while self.chunks.len() <= at {
            self.chunks.push(Vec::new());
        }
        let chunk = &mut self.chunks[at];
        if chunk.is_empty() {
            chunk.reserve_exact(CHUNK);
            chunk.resize_with(CHUNK, Slot::default);
        }
        &mut chunk[pid.0 as usize % CHUNK]
    }

    /// Gives up chunks of which no number is in use.
    pub fn trim(&mut self) {
        for chunk in &mut self.chunks {
            if chunk.iter().all(Slot::is_free) {
                *chunk = Vec::new();
            }
        }
        while self.chunks.pop_if(|c| c.is_empty()).is_some() {}
        self.chunks.shrink_to_fit();
    }

    /// Reserves a number. `EAGAIN` if all are in use.
    pub fn reserve(&mut self) -> Result<Pid> {
        let mut pid = self.last;
        for _ in 0..self.pid_max {
            pid += 1;
            if pid >= self.pid_max {
                pid = RESERVED.min(self.pid_max - 1);
            }
            if self.slot(Pid(pid)).is_none_or(Slot::is_free) {
                self.slot_mut(Pid(pid)).reserved = true;
                self.last = pid;
                return Ok(Pid(pid));
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Gives up a reservation that came to nothing.
    pub fn unreserve(&mut self, pid: Pid) {
        self.slot_mut(pid).reserved = false;
    }

    /// `/proc/sys/kernel/pid_max`.
    pub fn pid_max(&self) -> u32 {
        self.pid_max
    }

    /// The last number given out.
    pub fn last_pid(&self) -> u32 {
        self.last
    }

    /// How many threads there are.
    pub fn thread_count(&self) -> usize {
        self.threads
    }

    /// How many threads user `uid` has.
    pub fn user_threads(&self, uid: u32) -> usize {
        self.per_user.get(&uid).copied().unwrap_or(0)
    }

    /// Moves one thread's count between users.
    pub fn recount(&mut self, from: u32, to: u32) {
        self.count_out(from);
        *self.per_user.entry(to).or_insert(0) += 1;
    }

    fn count_out(&mut self, uid: u32) {
        if let Some(n) = self.per_user.get_mut(&uid) {
            *n = n.saturating_sub(1);
        }
    }

    /// The thread with this number.
    pub fn thread(&self, tid: Pid) -> Option<&Arc<Thread>> {
        self.slot(tid)?.thread.as_ref()
    }

    /// The process with this number, zombies included.
    pub fn process(&self, pid: Pid) -> Option<&Arc<Process>> {
        self.slot(pid)?.process.as_ref()
    }

    /// The process group with this number.
    pub fn group(&self, id: Pid) -> Option<&Arc<ProcessGroup>> {
        self.slot(id)?.group.as_ref()
    }

    /// Processes in rising order of their numbers, from `from`.
    pub fn processes_from(&self, from: u32) -> impl Iterator<Item = &Arc<Process>> {
        let start = from as usize / CHUNK;
        self.chunks
            .iter()
            .skip(start)
            .flat_map(|c| c.iter())
            .filter_map(|s| s.process.as_ref())
            .skip_while(move |p| p.pid.0 < from)
    }

    /// Enters a thread under its reserved number. `uid` is charged.
    pub fn enter_thread(&mut self, thread: &Arc<Thread>, uid: u32) {
        let slot = self.slot_mut(thread.tid());
        slot.thread = Some(thread.clone());
        slot.reserved = false;
        self.threads += 1;
        *self.per_user.entry(uid).or_insert(0) += 1;
    }

    /// Takes a thread out. The caller drops what it gets outside the lock.
    #[must_use]
    pub fn leave_thread(&mut self, tid: Pid, uid: u32) -> Option<Arc<Thread>> {
        self.threads -= 1;
        self.count_out(uid);
        self.slot_mut(tid).thread.take()
    }

    /// Gives the number `to` to the thread that has `from` (exec by a thread that is not the leader).
    #[must_use]
    pub fn rename_thread(&mut self, from: Pid, to: Pid) -> Option<Arc<Thread>> {
        let thread = self.slot_mut(from).thread.take();
        core::mem::replace(&mut self.slot_mut(to).thread, thread)
    }

    /// Enters a process under its number, below `parent`, in `group`.
    pub fn enter_process(&mut self, p: &Arc<Process>, parent: Option<&Arc<Process>>, group: &Arc<ProcessGroup>) {
        self.slot_mut(p.pid).process = Some(p.clone());
        if let Some(parent) = parent {
            self.adopt(parent, p);
        }
        self.join_group(p, group);
    }

    /// Makes `parent` the parent of `child`, which has none.
    pub fn adopt(&mut self, parent: &Arc<Process>, child: &Arc<Process>) {
        let children = &mut parent.links.get_mut(self).children;
        let at = children.len();
        children.push(child.clone());
        let links = child.links.get_mut(self);
        links.child_index = at;
        links.parent = Some(parent.clone());
        child.ppid.store(parent.pid.0, Ordering::Relaxed);
    }

    /// Takes `child` from its parent; returns the parent. Drop it outside the lock. `ppid` stays: the child gets another
    /// parent under the same lock, or is gone.
    pub fn orphan(&mut self, child: &Process) -> Option<Arc<Process>> {
        let links = child.links.get_mut(self);
        let at = links.child_index;
        let parent = links.parent.take()?;
        let children = &mut parent.links.get_mut(self).children;
        let gone = children.swap_remove(at);
        let moved = children.get(at).cloned();
        if let Some(moved) = moved {
            moved.links.get_mut(self).child_index = at;
        }
        // Never the last reference: the slot holds one.
        drop(gone);
        Some(parent)
    }

    /// Puts `p`, which is in no group, into `group`.
    pub fn join_group(&mut self, p: &Arc<Process>, group: &Arc<ProcessGroup>) {
        let members = group.members.get_mut(self);
        let at = members.len();
        members.push(p.clone());
        let links = p.links.get_mut(self);
        links.group_index = at;
        links.group = Some(group.clone());
        let slot = self.slot_mut(group.id);
        if slot.group.is_none() {
            slot.group = Some(group.clone());
            let session = &group.session;
            *session.groups.get_mut(self) += 1;
            self.slot_mut(session.id).session = Some(session.clone());
        }
    }

    /// Takes `p` out of its group; a group without members, and a session without groups, leave the table.
    pub fn leave_group(&mut self, p: &Process) -> Option<Arc<ProcessGroup>> {
        let links = p.links.get_mut(self);
        let at = links.group_index;
        let group = links.group.take()?;
        let members = group.members.get_mut(self);
        drop(members.swap_remove(at));
        let empty = members.is_empty();
        let moved = members.get(at).cloned();
        if let Some(moved) = moved {
            moved.links.get_mut(self).group_index = at;
        }
        if empty {
            let g = self.slot_mut(group.id).group.take();
            drop(g);
            let left = group.session.groups.get_mut(self);
            *left -= 1;
            if *left == 0 {
                // Not the last reference: the group holds one.
                self.slot_mut(group.session.id).session = None;
            }
        }
        Some(group)
    }

    /// The last step of a process: its number is free again. Drop what comes back outside the lock.
    #[must_use]
    pub fn leave_process(&mut self, p: &Process) -> Option<Arc<Process>> {
        self.slot_mut(p.pid).process.take()
    }

    /// A new group (and with `session` `None` a new session) with the number `id`.
    pub fn new_group(&self, id: Pid, session: Option<Arc<Session>>) -> Arc<ProcessGroup> {
        let session =
            session.unwrap_or_else(|| Arc::new(Session { id, groups: InTree::new(0), terminal: InTree::new(None) }));
        Arc::new(ProcessGroup { id, session, members: InTree::new(Vec::new()) })
    }
}
