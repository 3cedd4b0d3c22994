//! Stopping and continuing processes: job control.
//!
//! A stopping signal marks the process; each thread comes to rest in [`rest`] on its way to user mode. When the last has
//! come to rest the parent is told. SIGCONT (and SIGKILL) clear the mark and wake them.

use super::info::{Detail, SigInfo, code};
use super::number::*;
use super::state::{IGNORE, SignalState};
use super::{SA_NOCLDSTOP, send};
use crate::task::process::Process;
use crate::task::thread::Thread;
use crate::task::tree::TREE;
use platform::ParkOptions;

/// Starts a stop by `signo`. The process's signal lock is held.
pub fn begin(s: &mut SignalState, signo: u32) {
    if s.stopped.is_none() && s.ending.is_none() {
        s.stopped = Some(signo);
        s.at_rest = 0;
        s.stop_told = false;
        for t in &s.threads {
            send::kick(t);
        }
    }
}

/// Ends a stop. The process's signal lock is held. The parent is told later, by the first thread that goes on.
pub fn resume(p: &Process, s: &mut SignalState, continued: bool) {
    let told = s.stop_told;
    s.stopped = None;
    s.at_rest = 0;
    s.stop_told = false;
    if continued && told {
        p.continued.store(true, core::sync::atomic::Ordering::Relaxed);
    }
    for t in &s.threads {
        send::kick(t);
    }
}

/// The calling thread rests while its process is stopped. No lock held.
pub fn rest(me: &Thread) {
    let p = &me.process;
    let tell = {
        let mut s = p.signals.lock();
        let Some(signo) = s.stopped else { return };
        s.at_rest += 1;
        let all = s.at_rest >= s.threads.len() && !s.stop_told;
        s.stop_told |= all;
        all.then_some(signo)
    };
    if let Some(signo) = tell {
        tell_parent(p, code::CLD_STOPPED, signo);
    }
    loop {
        {
            let s = p.signals.lock();
            if s.stopped.is_none() || s.ending.is_some() {
                break;
            }
        }
        crate::sched::park(ParkOptions::default());
    }
}

/// Tells the parent that `p` was stopped by, or continued by, `signo`.
pub fn tell_parent(p: &Process, what: i32, signo: u32) {
    let uid = p.any_thread().map_or(0, |t| t.creds_of().uid);
    let mut tree = TREE.lock();
    let links = p.links.get_mut(&mut tree);
    links.uid = uid;
    if what == code::CLD_STOPPED {
        links.stop_report = Some(signo);
        links.continue_report = false;
    } else {
        links.stop_report = None;
        links.continue_report = true;
    }
    let Some(parent) = links.parent.clone() else { return };
    let detail = Detail::Child { pid: p.pid, uid, status: signo as i32, ticks: 0 };
    notify(&parent, SigInfo { signo: SIGCHLD, errno: 0, code: what, detail });
    drop(tree);
    parent.child_wait.wake_all();
}

fn notify(parent: &Process, info: SigInfo) {
    let mut s = parent.signals.lock();
    let action = s.action(SIGCHLD);
    if action.handler != IGNORE && action.flags & SA_NOCLDSTOP == 0 {
        let _ = send::post(parent, &mut s, None, info);
    }
}
