//! Job control as terminals see it: groups and sessions by number, and the calling process's place among them.

use super::ids::Pid;
use super::process::Process;
use super::signal::{SigInfo, bit, kill_pgrp, send_to_process};
use super::tree::{ProcessGroup, TREE};
use crate::tty::Tty;
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

/// The calling process.
#[derive(Clone, Copy, Debug)]
pub struct Me {
    /// Process group.
    pub group: u32,
    /// Session.
    pub session: u32,
    /// Whether it leads the session.
    pub is_leader: bool,
}

fn my_group() -> Option<Arc<ProcessGroup>> {
    crate::sched::current().process.group()
}

/// The calling process.
pub fn current() -> Me {
    match my_group() {
        Some(g) => {
            let pid = crate::sched::current().process.pid;
            Me { group: g.id.0, session: g.session.id.0, is_leader: g.session.id == pid }
        }
        None => Me { group: 0, session: 0, is_leader: false },
    }
}

/// Its session's terminal.
pub fn controlling_tty() -> Option<Arc<Tty>> {
    my_group()?.session.terminal()
}

/// Sets its session's terminal.
pub fn set_controlling_tty(tty: Option<Arc<Tty>>) {
    if let Some(g) = my_group() {
        drop(g.session.set_terminal(tty));
    }
}

/// Signals a group. Context: any, with at most object locks held.
pub fn signal_group(group: u32, signal: u32) {
    kill_pgrp(Pid(group), SigInfo::kernel(signal));
}

/// Signals a session's leader. Context: as [`signal_group`].
pub fn signal_leader(session: u32, signal: u32) {
    let leader = TREE.lock().process(Pid(session)).cloned();
    if let Some(p) = leader {
        let _ = send_to_process(&p, SigInfo::kernel(signal));
    }
}

/// Whether the calling thread ignores or blocks a signal.
pub fn is_ignored_or_blocked(signal: u32) -> bool {
    let me = crate::sched::current();
    me.blocked() & bit(signal) != 0 || me.process.signals.lock().ignores(signal)
}

/// Whether a group is orphaned.
pub fn is_orphaned(group: u32) -> bool {
    let tree = TREE.lock();
    tree.group(Pid(group)).is_none_or(|g| g.is_orphaned(&tree, None))
}

/// The session that a group belongs to.
pub fn session_of_group(group: u32) -> Option<u32> {
    TREE.lock().group(Pid(group)).map(|g| g.session.id.0)
}

/// Whether the caller may act on terminals of others (CAP_SYS_ADMIN).
pub fn is_privileged() -> bool {
    crate::sched::current().creds().has(super::cred::cap::SYS_ADMIN)
}

/// setsid(2): a new session and group, led by the caller. `EPERM` if it leads a group already.
pub fn new_session() -> Result<Pid> {
    let p = &crate::sched::current().process;
    let mut tree = TREE.lock();
    if tree.group(p.pid).is_some() {
        return Err(Errno::EPERM);
    }
    let group = tree.new_group(p.pid, None);
    let old = tree.leave_group(p);
    tree.join_group(p, &group);
    drop(tree);
    drop(old);
    Ok(p.pid)
}

fn may_move(target: &Arc<Process>, me: &Arc<Process>, tree: &super::tree::Tree) -> Result<()> {
    let links = target.links.get(tree);
    let mine = me.links.get(tree).group.as_ref().map(|g| g.session.id);
    if !Arc::ptr_eq(target, me) {
        if !links.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, me)) {
            return Err(Errno::ESRCH);
        }
        if links.group.as_ref().map(|g| g.session.id) != mine {
            return Err(Errno::EPERM);
        }
        if target.did_exec.load(Ordering::Relaxed) {
            return Err(Errno::EACCES);
        }
    }
    if links.is_zombie() {
        return Err(Errno::ESRCH);
    }
    if links.group.as_ref().is_some_and(|g| g.session.id == target.pid) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// setpgid(2): moves process `pid` (0: the caller) to group `group` (0: one of its own).
pub fn set_group(pid: i32, group: i32) -> Result<()> {
    if group < 0 || pid < 0 {
        return Err(Errno::EINVAL);
    }
    let me = crate::sched::current().process.clone();
    let mut tree = TREE.lock();
    let target = match Pid::from_arg(pid) {
        None => me.clone(),
        Some(p) => tree.process(p).cloned().ok_or(Errno::ESRCH)?,
    };
    may_move(&target, &me, &tree)?;
    let id = Pid::from_arg(group).unwrap_or(target.pid);
    let Some(old) = target.links.get(&tree).group.clone() else { return Err(Errno::ESRCH) };
    if old.id == id {
        return Ok(());
    }
    let to = match tree.group(id).cloned() {
        Some(g) if g.session.id == old.session.id => g,
        None if id == target.pid => tree.new_group(id, Some(old.session.clone())),
        _ => return Err(Errno::EPERM),
    };
    let left = tree.leave_group(&target);
    tree.join_group(&target, &to);
    drop(tree);
    drop((left, old));
    Ok(())
}

/// Group and session of process `pid` (0: the caller). `ESRCH`.
pub fn place_of(pid: i32) -> Result<(Pid, Pid)> {
    if pid < 0 {
        return Err(Errno::ESRCH);
    }
    let tree = TREE.lock();
    let p = match Pid::from_arg(pid) {
        None => &crate::sched::current().process,
        Some(p) => match tree.thread(p) {
            Some(t) => &t.process,
            None => tree.process(p).ok_or(Errno::ESRCH)?,
        },
    };
    let g = p.links.get(&tree).group.as_ref().ok_or(Errno::ESRCH)?;
    Ok((g.id, g.session.id))
}
