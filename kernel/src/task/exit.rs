//! The end of threads and processes.
//!
//! A thread gives up its robust locks, its files and directories, and leaves its process's list; then it lets go of user
//! memory, and last it tells whoever waits for that: joiners and vfork parents. So after pthread_join the thread is in nobody's
//! count, and its joiner may be alone in the address space again (Linux wakes the joiner first). The last one out ends the process:
//! its children go to the nearest subreaper or to init, its group may become orphaned, and its parent is told.

use super::ids::Pid;
use super::process::Process;
use super::signal::number::*;
use super::signal::state::{Ending, IGNORE};
use super::signal::{self, Detail, SA_NOCLDWAIT, SigInfo, code, send};
use super::thread::Thread;
use super::tree::{TREE, Tree};
use crate::arch::uaccess::UserAddr;
use crate::futex::LastWord;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

/// Whether the thread is about to be ended: a fatal signal, exit_group, or exec by another thread.
pub fn must_die(me: &Thread) -> bool {
    let mut s = me.process.signals.lock();
    match s.ending {
        Some(Ending::Exit(_)) => true,
        Some(Ending::Exec(by)) => by != core::ptr::from_ref(me) as usize,
        None => me.pending(&mut s).set() & signal::bit(SIGKILL) != 0 || s.shared.set() & signal::bit(SIGKILL) != 0,
    }
}

/// Whether a process is on its way out.
pub fn is_ending(p: &Process) -> bool {
    let mut s = p.signals.lock();
    let kill = signal::bit(SIGKILL);
    if matches!(s.ending, Some(Ending::Exit(_))) || s.threads.is_empty() || s.shared.set() & kill != 0 {
        return true;
    }
    let threads = s.threads.clone();
    let pending = threads.iter().any(|t| t.pending(&mut s).set() & kill != 0);
    drop(s);
    pending
}

/// Lets go of a thread that was built but never entered.
pub(super) fn drop_unborn(thread: Arc<Thread>) {
    drop(thread);
}

/// Ends every thread of the calling thread's process; `status` is what wait reports. Returns to the caller, which then
/// ends like the others, in [`signal::deliver`].
pub fn exit_group(status: i32) {
    let me = crate::sched::current();
    let mut s = me.process.signals.lock();
    if !matches!(s.ending, Some(Ending::Exit(_))) {
        s.ending = Some(Ending::Exit(status));
    }
    for t in &s.threads {
        send::kick(t);
    }
}

/// Ends the calling thread. `status` counts if it is the last and no exit_group said otherwise.
pub fn exit_thread(status: i32) -> ! {
    let me = crate::sched::current();
    debug_assert!(me.is_user());
    let robust = me.robust_list.take();
    if robust != 0 && me.try_mm().is_some() {
        crate::futex::exit_robust_list(UserAddr(robust), me.tid().0);
    }
    me.set_files(None);
    drop(me.set_fs(None));
    let p = me.process.clone();
    let tid = me.tid();
    let (last, status) = leave_list(me, &p, status);
    let uid = me.creds().uid;
    let gone = TREE.lock().leave_thread(tid, uid);
    drop(gone);
    // Only now: nobody can find the thread any more and wait for it.
    crate::futex::pi::owner_exits(tid.0);
    release_memory(me);
    if last {
        exit_process(&p, status, uid);
    } else {
        // exec may wait for the others to go.
        p.child_wait.wake_all();
    }
    drop(p);
    crate::sched::exit_current()
}

/// Lets go of the thread's memory and tells who waits for that: the joiner's futex and the vfork parent.
fn release_memory(me: &Thread) {
    let clear = me.clear_child_tid.take();
    let last = me.try_mm().map(|_| LastWord::clear(UserAddr(clear)));
    drop(me.set_mm(None));
    if let Some(last) = last {
        last.wake();
    }
    release_vfork(me);
}

/// Tells a vfork parent that the memory is its own again.
pub(super) fn release_vfork(me: &Thread) {
    if let Some(done) = me.vfork.take() {
        done.complete();
    }
}

/// Leaves the process's list of threads. Whether it was the last, and the status of the whole.
fn leave_list(me: &Thread, p: &Process, status: i32) -> (bool, i32) {
    let mut s = p.signals.lock();
    let own = me.pending(&mut s);
    own.discard(u64::MAX);
    let at = s.threads.iter().position(|t| core::ptr::eq(&raw const **t, me));
    let gone = at.map(|i| s.threads.remove(i));
    let last = s.threads.is_empty();
    let status = match s.ending {
        Some(Ending::Exit(all)) => all,
        _ => status,
    };
    // Signals to the process that this thread would have taken find another taker.
    let left = s.shared.set();
    if left != 0 {
        for t in &s.threads {
            if left & !t.blocked() != 0 {
                send::kick(t);
            }
        }
    }
    let (user, system) = crate::sched::account::thread_times(me);
    p.times.dead_threads_ns[0].fetch_add(user, Ordering::Relaxed);
    p.times.dead_threads_ns[1].fetch_add(system, Ordering::Relaxed);
    p.times.dead_threads_faults.fetch_add(me.faults.load(Ordering::Relaxed), Ordering::Relaxed);
    drop(s);
    // Never the last reference: the scheduler has one.
    drop(gone);
    (last, status)
}

/// Things that must be done without the tree's lock.
#[derive(Default)]
struct After {
    wake: Vec<Arc<Process>>,
    reaped: Vec<Arc<Process>>,
}

fn exit_process(p: &Arc<Process>, status: i32, uid: u32) {
    if p.pid.0 == 1 {
        super::init::died(status);
    }
    super::timers::process_exit(p);
    if p.sem_undo.load(Ordering::Relaxed) {
        crate::ipc::sem::process_exits(p);
    }
    let exe = p.exe.lock().take();
    drop(exe);
    end_session(p);
    let ns = p.runtime_ns();
    let mut after = After::default();
    let mut tree = TREE.lock();
    reparent_children(&mut tree, p, &mut after);
    let links = p.links.get_mut(&mut tree);
    links.zombie = Some(status);
    links.uid = uid;
    orphan_groups(&tree, p);
    tell_parent(&mut tree, p, status, uid, ns, &mut after);
    drop(tree);
    p.wake_end_watchers();
    for parent in after.wake {
        parent.child_wait.wake_all();
    }
}

/// A session leader takes its terminal with it.
fn end_session(p: &Process) {
    let session = p.group().map(|g| g.session.clone());
    if let Some(session) = session
        && session.id == p.pid
        && let Some(tty) = session.set_terminal(None)
    {
        tty.session_ended(session.id.0);
    }
}

/// Where orphans go: the nearest living ancestor that is a subreaper, else init.
fn reaper(tree: &Tree, p: &Process) -> Option<Arc<Process>> {
    let mut at = p.links.get(tree).parent.clone();
    while let Some(a) = at {
        let links = a.links.get(tree);
        if (a.subreaper.load(Ordering::Relaxed) || a.pid.0 == 1) && !links.is_zombie() {
            return Some(a);
        }
        let parent = links.parent.clone();
        at = parent;
    }
    tree.process(Pid(1)).cloned()
}

fn reparent_children(tree: &mut Tree, p: &Process, after: &mut After) {
    if p.links.get(tree).children.is_empty() {
        return;
    }
    let Some(to) = reaper(tree, p) else { return };
    let children = p.links.get(tree).children.clone();
    for c in children {
        tree.orphan(&c);
        tree.adopt(&to, &c);
        c.exit_signal.store(SIGCHLD, Ordering::Relaxed);
        parent_died(tree, &c, p);
        let links = c.links.get(tree);
        let (zombie, uid) = (links.zombie, links.uid);
        if let Some(status) = zombie {
            // The new parent has not heard of it.
            tell_parent(tree, &c, status, uid, c.runtime_ns(), after);
        }
    }
}

/// `PR_SET_PDEATHSIG`, and the rule that a group which becomes orphaned with stopped members is woken (POSIX).
fn parent_died(tree: &Tree, child: &Process, dying: &Process) {
    let mut s = child.signals.lock();
    let wanted: Vec<Arc<Thread>> =
        s.threads.iter().filter(|t| t.pdeathsig.load(Ordering::Relaxed) != 0).cloned().collect();
    for t in wanted {
        let info = SigInfo { signo: t.pdeathsig.load(Ordering::Relaxed), ..SigInfo::kernel(SIGTERM) };
        let _ = send::post(child, &mut s, Some(&t), SigInfo { code: code::USER, ..info });
    }
    drop(s);
    let (Some(g), Some(mine)) = (&child.links.get(tree).group, &dying.links.get(tree).group) else { return };
    if g.id != mine.id && g.session.id == mine.session.id && g.is_orphaned(tree, None) {
        wake_orphaned(tree, g);
    }
}

/// The group of `p` may be orphaned by its end.
fn orphan_groups(tree: &Tree, p: &Process) {
    let links = p.links.get(tree);
    let (Some(g), Some(parent)) = (&links.group, &links.parent) else { return };
    let elsewhere =
        parent.links.get(tree).group.as_ref().is_some_and(|pg| pg.id != g.id && pg.session.id == g.session.id);
    if elsewhere && g.is_orphaned(tree, Some(p)) {
        wake_orphaned(tree, g);
    }
}

fn wake_orphaned(tree: &Tree, g: &super::tree::ProcessGroup) {
    let stopped = g.members(tree).iter().any(|m| m.signals.lock().stopped.is_some());
    if stopped {
        send::kill_group_locked(tree, g, SigInfo::kernel(SIGHUP));
        send::kill_group_locked(tree, g, SigInfo::kernel(SIGCONT));
    }
}

/// Sends the exit signal, and collects the child at once if its parent does not want to.
fn tell_parent(tree: &mut Tree, p: &Arc<Process>, status: i32, uid: u32, ns: u64, after: &mut After) {
    let Some(parent) = p.links.get(tree).parent.clone() else { return };
    let signo = p.exit_signal.load(Ordering::Relaxed);
    let mut auto_reap = false;
    if signo != 0 {
        let (what, value) = wait_code(status);
        let detail = Detail::Child { pid: p.pid, uid, status: value, ticks: ns / 10_000_000 };
        let mut s = parent.signals.lock();
        let action = s.action(signo);
        if signo == SIGCHLD && (action.handler == IGNORE || action.flags & SA_NOCLDWAIT != 0) {
            auto_reap = true;
        }
        if !(signo == SIGCHLD && action.handler == IGNORE) {
            let _ = send::post(&parent, &mut s, None, SigInfo { signo, errno: 0, code: what, detail });
        }
    }
    after.wake.push(parent);
    if auto_reap && let Some(last) = reap(tree, p) {
        after.reaped.push(last);
    }
}

/// `si_code` and `si_status` for a wait status.
pub fn wait_code(status: i32) -> (i32, i32) {
    match status & 0x7f {
        0 => (code::CLD_EXITED, (status >> 8) & 0xff),
        n if status & 0x80 != 0 => (code::CLD_DUMPED, n),
        n => (code::CLD_KILLED, n),
    }
}

/// Takes a zombie out of the tree. What comes back is dropped outside the lock.
#[must_use]
pub fn reap(tree: &mut Tree, p: &Process) -> Option<Arc<Process>> {
    if let Some(parent) = tree.orphan(p) {
        let (used, sum) = (p.times.total(), &parent.times);
        sum.children_ns[0].fetch_add(used.user_ns, Ordering::Relaxed);
        sum.children_ns[1].fetch_add(used.system_ns, Ordering::Relaxed);
        sum.children_faults.fetch_add(used.faults, Ordering::Relaxed);
    }
    // The group outlives this call where it has other members; else its memory goes here, which never sleeps.
    drop(tree.leave_group(p));
    tree.leave_process(p)
}
