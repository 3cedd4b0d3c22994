//! Acting on signals, on the way to user mode.
//!
//! Also where interrupted system calls are decided: a call that returned one of the restart codes is made again, or ends
//! with `EINTR`, depending on what signal, if any, is delivered (signal(7), "Interruption of system calls").

use super::info::{SigInfo, code};
use super::number::*;
use super::state::{Action, DEFAULT, Ending, IGNORE};
use super::{DefaultAction, SA_RESTART, default_of, frame as user_frame, send, stop};
use crate::arch::context::{NOTIFY, SIGNAL_PENDING};
use crate::arch::trap::TrapFrame;
use crate::machine::Sabotage;
use crate::task::thread::{Restart, Thread};
use crate::task::tree::TREE;
use abi::Errno;
use core::sync::atomic::Ordering;

/// The number of `restart_syscall`.
const NR_RESTART_SYSCALL: u64 = 128;
const NO_SYSCALL: u64 = u64::MAX;

enum Next {
    Exit(i32),
    Rest,
    Signal(SigInfo, Action),
    Nothing,
}

/// Does what the thread's flags ask for, before it goes (back) to user mode. Interrupts are on, no lock is held.
pub fn deliver(frame: &mut TrapFrame) {
    let me = crate::sched::current();
    me.arch.flags.fetch_and(!NOTIFY, Ordering::Relaxed);
    if let Some(work) = me.work.take() {
        work(frame);
    }
    loop {
        match next(me) {
            Next::Exit(status) => crate::task::exit::exit_thread(status),
            Next::Rest => stop::rest(me),
            Next::Signal(info, action) => {
                if act(me, frame, info, action) {
                    return;
                }
            }
            Next::Nothing => break,
        }
        if me.process.continued.swap(false, Ordering::Relaxed) {
            stop::tell_parent(&me.process, code::CLD_CONTINUED, SIGCONT);
        }
    }
    if me.process.continued.swap(false, Ordering::Relaxed) {
        stop::tell_parent(&me.process, code::CLD_CONTINUED, SIGCONT);
    }
    restart_without_handler(frame);
    if let Some(mask) = me.saved_mask.take() {
        super::set_blocked(me, mask);
    }
}

fn next(me: &Thread) -> Next {
    let mut s = me.process.signals.lock();
    match s.ending {
        Some(Ending::Exit(status)) => return Next::Exit(status),
        Some(Ending::Exec(by)) if by != core::ptr::from_ref(me) as usize => return Next::Exit(0),
        _ => {}
    }
    if s.stopped.is_some() {
        return Next::Rest;
    }
    match s.next_for(me) {
        Some((info, action)) => Next::Signal(info, action),
        None => {
            me.arch.flags.fetch_and(!SIGNAL_PENDING, Ordering::Relaxed);
            Next::Nothing
        }
    }
}

/// Acts on one signal; true if a handler's frame was set up.
fn act(me: &Thread, frame: &mut TrapFrame, info: SigInfo, action: Action) -> bool {
    match action.handler {
        IGNORE => false,
        DEFAULT => {
            act_by_default(me, frame, info);
            false
        }
        _ => {
            restart_before_handler(frame, action);
            handle(me, frame, info, action);
            true
        }
    }
}

fn act_by_default(me: &Thread, frame: &TrapFrame, info: SigInfo) {
    let what = default_of(info.signo);
    // Init takes only the signals that it handles.
    let unkillable = me.process.pid.0 == 1 && info.code != code::KERNEL && !is_fault(info);
    match what {
        DefaultAction::Ignore | DefaultAction::Continue => {}
        DefaultAction::Stop => {
            let orphaned = info.signo != SIGSTOP && {
                let tree = TREE.lock();
                me.process.links.get(&tree).group.as_ref().is_none_or(|g| g.is_orphaned(&tree, None))
            };
            if !orphaned && !unkillable {
                stop::begin(&mut me.process.signals.lock(), info.signo);
            }
        }
        DefaultAction::Terminate | DefaultAction::Core => {
            if unkillable {
                return;
            }
            if what == DefaultAction::Core {
                report_fatal(me, frame, info);
            }
            crate::task::exit::exit_group(info.signo as i32);
        }
    }
}

fn is_fault(info: SigInfo) -> bool {
    matches!(info.detail, super::Detail::Fault { .. })
}

fn report_fatal(me: &Thread, frame: &TrapFrame, info: SigInfo) {
    if let super::Detail::Fault { addr } = info.detail {
        crate::info!(
            "{}[{}]: signal {} code {} at {addr:#x}, pc {:#x} sp {:#x} lr {:#x}",
            me.name_str(),
            me.tid(),
            info.signo,
            info.code,
            frame.pc,
            frame.sp,
            frame.x[30]
        );
    }
}

fn handle(me: &Thread, frame: &mut TrapFrame, info: SigInfo, action: Action) {
    let mask = me.saved_mask.take().unwrap_or_else(|| me.blocked());
    frame.syscallno = NO_SYSCALL;
    if user_frame::push(me, frame, info, action, mask).is_err() {
        // No stack for the handler: the process dies of SIGSEGV, as on Linux.
        if info.signo == SIGSEGV {
            me.process.signals.lock().set_default(SIGSEGV);
        }
        send::force(SigInfo::kernel(SIGSEGV));
        return;
    }
    super::set_blocked(me, me.blocked() | action.mask_during(info.signo));
}

fn restart_code(frame: &TrapFrame) -> Option<Errno> {
    if frame.syscallno == NO_SYSCALL {
        return None;
    }
    let raw = (frame.x[0] as i64).wrapping_neg();
    if !(512..=516).contains(&raw) {
        return None;
    }
    Errno::from_raw(raw as i32)
}

fn again(frame: &mut TrapFrame) {
    frame.x[0] = frame.orig_x0;
    frame.pc -= 4;
    frame.syscallno = NO_SYSCALL;
}

fn interrupted(frame: &mut TrapFrame) {
    frame.x[0] = Errno::EINTR.to_return() as u64;
    frame.syscallno = NO_SYSCALL;
}

/// `berth.sabotage=restart`: `SA_RESTART` means nothing, which gate m5 must notice.
static NO_RESTART: Sabotage = Sabotage::new("restart");

fn restart_before_handler(frame: &mut TrapFrame, action: Action) {
    match restart_code(frame) {
        None => {}
        Some(Errno::ERESTARTNOINTR) => again(frame),
        Some(Errno::ERESTARTSYS) if action.flags & SA_RESTART != 0 && !NO_RESTART.on() => again(frame),
        Some(_) => interrupted(frame),
    }
}

fn restart_without_handler(frame: &mut TrapFrame) {
    match restart_code(frame) {
        None => {}
        Some(Errno::ERESTART_RESTARTBLOCK) => {
            frame.x[8] = NR_RESTART_SYSCALL;
            again(frame);
        }
        Some(_) => again(frame),
    }
}

/// What `restart_syscall` goes on with; used up.
pub fn take_restart(me: &Thread) -> Restart {
    me.restart.take()
}
