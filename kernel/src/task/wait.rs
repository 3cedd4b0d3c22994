//! Waiting for children: wait4 and waitid.
//!
//! A waiter scans the process's children under the tree's lock; if none has news it sleeps on the process's `child_wait`
//! and scans again when woken. Any thread of a process may collect any of its children.

use super::exit;
use super::ids::Pid;
use super::process::{Process, Usage};
use super::tree::{TREE, Tree};
use abi::{Errno, Result};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use platform::ParkOptions;

/// Which children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Any.
    Any,
    /// This one.
    Pid(Pid),
    /// Those of this group.
    Group(Pid),
}

/// `W*` flags (wait4(2), waitid(2)).
#[allow(missing_docs)]
pub mod option {
    pub const WNOHANG: u32 = 1;
    pub const WUNTRACED: u32 = 2;
    pub const WEXITED: u32 = 4;
    pub const WCONTINUED: u32 = 8;
    pub const WNOWAIT: u32 = 0x0100_0000;
    pub const WNOTHREAD: u32 = 0x2000_0000;
    pub const WALL: u32 = 0x4000_0000;
    pub const WCLONE: u32 = 0x8000_0000;
}
use option::*;

/// What a wait found.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The child.
    pub pid: Pid,
    /// Its real user.
    pub uid: u32,
    /// The status word of wait4.
    pub status: i32,
    /// What the child and its collected children used.
    pub usage: Usage,
}

fn matches(tree: &Tree, c: &Process, which: Which, options: u32) -> bool {
    let chosen = match which {
        Which::Any => true,
        Which::Pid(p) => c.pid == p,
        Which::Group(g) => c.links.get(tree).group.as_ref().is_some_and(|x| x.id == g),
    };
    let clone_child = c.exit_signal.load(Ordering::Relaxed) != super::signal::number::SIGCHLD;
    chosen && (options & WALL != 0 || clone_child == (options & WCLONE != 0))
}

enum Scan {
    Found(Report, Option<Arc<Process>>),
    Nothing,
    NoChild,
}

fn scan(me: &Process, which: Which, options: u32) -> Scan {
    let mut tree = TREE.lock();
    let mut any = false;
    let mut found = None;
    for c in &me.links.get(&tree).children {
        if !matches(&tree, c, which, options) {
            continue;
        }
        any = true;
        let links = c.links.get(&tree);
        let status = if let Some(status) = links.zombie {
            (options & WEXITED != 0).then_some(status)
        } else if let Some(signo) = links.stop_report {
            (options & WUNTRACED != 0).then_some((signo as i32) << 8 | 0x7f)
        } else if links.continue_report {
            (options & WCONTINUED != 0).then_some(0xffff)
        } else {
            None
        };
        if let Some(status) = status {
            found = Some((c.clone(), status, links.is_zombie()));
            break;
        }
    }
    let Some((child, status, zombie)) = found else {
        return if any { Scan::Nothing } else { Scan::NoChild };
    };
    let uid = child.links.get(&tree).uid;
    let report = Report { pid: child.pid, uid, status, usage: child.times.total() };
    if options & WNOWAIT != 0 {
        drop(tree);
        return Scan::Found(report, Some(child));
    }
    if zombie {
        let last = exit::reap(&mut tree, &child);
        drop(tree);
        drop(last);
    } else {
        let links = child.links.get_mut(&mut tree);
        links.stop_report = None;
        links.continue_report = false;
        drop(tree);
    }
    Scan::Found(report, Some(child))
}

/// Waits for news of a child. `None` with WNOHANG and no news. `ECHILD`, `ERESTARTSYS`. May sleep.
pub fn wait(which: Which, options: u32) -> Result<Option<Report>> {
    let me = crate::sched::current();
    let p = &me.process;
    let look = || match scan(p, which, options) {
        Scan::Found(report, child) => {
            drop(child);
            Some(Ok(Some(report)))
        }
        Scan::NoChild => Some(Err(Errno::ECHILD)),
        Scan::Nothing if options & WNOHANG != 0 => Some(Ok(None)),
        Scan::Nothing => None,
    };
    if let Some(done) = look() {
        return done;
    }
    let sleep = ParkOptions { interruptible: true, deadline_ns: None };
    p.child_wait.wait_until(sleep, look).unwrap_or(Err(Errno::ERESTARTSYS))
}
