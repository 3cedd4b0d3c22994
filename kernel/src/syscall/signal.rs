//! Signals.

use super::{SysResult, efault};
use crate::arch::trap::TrapFrame;
use crate::arch::uaccess::{UserAddr, copy_to_user, get_user_u64, read_user, write_user};
use crate::sched::current;
use crate::task::ids::Pid;
use crate::task::signal::frame::{self, StackT};
use crate::task::signal::send::{may_signal, send_to_process, send_to_thread};
use crate::task::signal::state::Action;
use crate::task::signal::{
    KERNEL_ONLY, SS_AUTODISARM, SS_DISABLE, SS_ONSTACK, SigInfo, bit, code, info, is_valid, number, set_blocked,
};
use crate::task::tree::TREE;
use crate::task::{Process, Thread, find_thread, signal};
use abi::{Errno, Result, Timespec};
use alloc::sync::Arc;
use alloc::vec::Vec;
use platform::{ParkOptions, Wake};

crate::syscalls! {
    plain {
        129 kill(pid: Pid, signo: Sig) = kill;
        130 tkill(tid: Pid, signo: Sig) = tkill;
        131 tgkill(pid: Pid, tid: Pid, signo: Sig) = tgkill;
        133 rt_sigsuspend(mask: Ptr, size: Size) = rt_sigsuspend;
        134 rt_sigaction(signo: Sig, new: Ptr, old: Ptr, size: Size) = rt_sigaction;
        135 rt_sigprocmask(how: Int, new: Ptr, old: Ptr, size: Size) = rt_sigprocmask;
        136 rt_sigpending(set: Ptr, size: Size) = rt_sigpending;
        137 rt_sigtimedwait(set: Ptr, info: Ptr, timeout: Ptr, size: Size) = rt_sigtimedwait;
        138 rt_sigqueueinfo(pid: Pid, signo: Sig, info: Ptr) = rt_sigqueueinfo;
        240 rt_tgsigqueueinfo(pid: Pid, tid: Pid, signo: Sig, info: Ptr) = rt_tgsigqueueinfo;
    }
    frame {
        132 sigaltstack(new: Ptr, old: Ptr) = sigaltstack;
        139 rt_sigreturn() = rt_sigreturn;
    }
}

fn check_size(size: usize) -> Result<()> {
    if size == 8 { Ok(()) } else { Err(Errno::EINVAL) }
}

fn check_signal(signo: i32) -> Result<u32> {
    if is_valid(signo) { Ok(signo as u32) } else { Err(Errno::EINVAL) }
}

fn rt_sigaction(signo: i32, new: UserAddr, old: UserAddr, size: usize) -> SysResult {
    check_size(size)?;
    let signo = check_signal(signo)?;
    let wanted: Option<Action> = if new.is_null() { None } else { Some(read_user(new).map_err(efault)?) };
    if wanted.is_some() && bit(signo) & KERNEL_ONLY != 0 {
        return Err(Errno::EINVAL);
    }
    let me = current();
    let mut s = me.process.signals.lock();
    let was = s.action(signo);
    if let Some(mut a) = wanted {
        a.mask &= !KERNEL_ONLY;
        s.set_action(signo, a);
        if s.ignores(signo) {
            // POSIX: what is pending and now ignored is dropped.
            s.shared.discard(bit(signo));
            signal::send::discard_everywhere(&mut s, bit(signo));
        }
    }
    drop(s);
    if !old.is_null() {
        write_user(old, &was).map_err(efault)?;
    }
    Ok(0)
}

fn rt_sigprocmask(how: i32, new: UserAddr, old: UserAddr, size: usize) -> SysResult {
    check_size(size)?;
    let me = current();
    let was = me.blocked();
    if !new.is_null() {
        let set = get_user_u64(new).map_err(efault)?;
        let mask = match how {
            0 => was | set,
            1 => was & !set,
            2 => set,
            _ => return Err(Errno::EINVAL),
        };
        if mask & !KERNEL_ONLY != was {
            set_blocked(me, mask);
        }
    }
    if !old.is_null() {
        write_user(old, &was).map_err(efault)?;
    }
    Ok(0)
}

fn rt_sigpending(set: UserAddr, size: usize) -> SysResult {
    if size > 8 {
        return Err(Errno::EINVAL);
    }
    let me = current();
    let pending = signal::send::pending_of(me) & me.blocked();
    copy_to_user(set, &pending.to_le_bytes()[..size]).map_err(efault)?;
    Ok(0)
}

fn rt_sigsuspend(mask: UserAddr, size: usize) -> SysResult {
    check_size(size)?;
    let mask = get_user_u64(mask).map_err(efault)?;
    suspend_with(mask);
    Err(Errno::ERESTARTNOHAND)
}

/// Sleeps with another mask until a signal comes; delivery puts the former mask back.
fn suspend_with(mask: u64) {
    let me = current();
    let old = me.blocked();
    set_blocked(me, mask);
    me.set_saved_mask(old);
    while crate::sched::park(ParkOptions { interruptible: true, deadline_ns: None }) != Wake::Interrupted {}
}

fn rt_sigtimedwait(set: UserAddr, out: UserAddr, timeout: UserAddr, size: usize) -> SysResult {
    check_size(size)?;
    let set = get_user_u64(set).map_err(efault)? & !KERNEL_ONLY;
    let deadline = if timeout.is_null() {
        None
    } else {
        let t: [i64; 2] = read_user(timeout).map_err(efault)?;
        let ns = Timespec { sec: t[0], nsec: t[1] }.to_ns()?;
        Some(crate::arch::time::now_ns().saturating_add(ns))
    };
    let found = signal::send::wait_for(current(), set, deadline)?;
    if !out.is_null() {
        copy_to_user(out, &found.to_bytes()).map_err(efault)?;
    }
    Ok(found.signo as usize)
}

fn find_process(pid: Pid) -> Result<Arc<Process>> {
    let tree = TREE.lock();
    match tree.process(pid) {
        Some(p) => Ok(p.clone()),
        None => tree.thread(pid).map(|t| t.process.clone()).ok_or(Errno::ESRCH),
    }
}

fn kill_one(p: &Process, signo: u32, info: impl FnOnce() -> SigInfo) -> Result<()> {
    if !may_signal(p, signo) {
        return Err(Errno::EPERM);
    }
    if signo != 0 { send_to_process(p, info()) } else { Ok(()) }
}

fn kill(pid: i32, signo: i32) -> SysResult {
    if signo < 0 || signo > signal::SIGMAX as i32 {
        return Err(Errno::EINVAL);
    }
    let signo = signo as u32;
    let info = || SigInfo::user(signo, code::USER);
    if let Some(pid) = Pid::from_arg(pid) {
        kill_one(&*find_process(pid)?, signo, info)?;
        return Ok(0);
    }
    let me = &current().process;
    let targets: Vec<Arc<Process>> = {
        let tree = TREE.lock();
        match pid {
            -1 => tree.processes_from(2).filter(|p| !Arc::ptr_eq(p, me)).cloned().collect(),
            i32::MIN => return Err(Errno::ESRCH),
            _ => {
                let id = if pid == 0 {
                    me.links.get(&tree).group.as_ref().ok_or(Errno::ESRCH)?.id
                } else {
                    Pid(pid.unsigned_abs())
                };
                tree.group(id).ok_or(Errno::ESRCH)?.members(&tree).to_vec()
            }
        }
    };
    let mut result = Err(Errno::ESRCH);
    for p in &targets {
        match kill_one(p, signo, info) {
            Ok(()) => result = Ok(0),
            Err(e) if result.is_err() => result = Err(e),
            Err(_) => {}
        }
    }
    result
}

fn to_thread(pid: Option<Pid>, tid: i32, signo: i32, info: impl FnOnce(u32) -> SigInfo) -> SysResult {
    let tid = Pid::from_arg(tid).ok_or(Errno::EINVAL)?;
    if signo < 0 || signo > signal::SIGMAX as i32 {
        return Err(Errno::EINVAL);
    }
    let me = current();
    if tid == me.tid() && pid.is_none_or(|p| p == me.process.pid) {
        if signo != 0 {
            send_to_thread(me, info(signo as u32))?;
        }
        return Ok(0);
    }
    let t: Arc<Thread> = find_thread(tid).ok_or(Errno::ESRCH)?;
    if pid.is_some_and(|p| p != t.process.pid) {
        return Err(Errno::ESRCH);
    }
    if !may_signal(&t.process, signo as u32) {
        return Err(Errno::EPERM);
    }
    if signo != 0 {
        send_to_thread(&t, info(signo as u32))?;
    }
    Ok(0)
}

fn tkill(tid: i32, signo: i32) -> SysResult {
    to_thread(None, tid, signo, |n| SigInfo::user(n, code::TKILL))
}

fn tgkill(pid: i32, tid: i32, signo: i32) -> SysResult {
    let pid = Pid::from_arg(pid).ok_or(Errno::EINVAL)?;
    to_thread(Some(pid), tid, signo, |n| SigInfo::user(n, code::TKILL))
}

fn queued_info(signo: u32, addr: UserAddr, to_self: bool) -> Result<SigInfo> {
    let mut bytes = [0u8; info::SIZE];
    crate::arch::uaccess::copy_from_user(&mut bytes, addr).map_err(efault)?;
    let i = SigInfo::from_bytes(signo, &bytes);
    // Nobody pretends to be the kernel or kill() towards others.
    if (i.code >= 0 || i.code == code::TKILL) && !to_self {
        return Err(Errno::EPERM);
    }
    Ok(i)
}

fn rt_sigqueueinfo(pid: i32, signo: i32, info: UserAddr) -> SysResult {
    let pid = Pid::from_arg(pid).ok_or(Errno::ESRCH)?;
    let i = queued_info(signo as u32, info, pid == current().process.pid)?;
    // As in kill(2), 0 only asks.
    let signo = if signo == 0 { 0 } else { check_signal(signo)? };
    kill_one(&*find_process(pid)?, signo, || i)?;
    Ok(0)
}

fn rt_tgsigqueueinfo(pid: i32, tid: i32, signo: i32, info: UserAddr) -> SysResult {
    check_signal(signo)?;
    let pid = Pid::from_arg(pid).ok_or(Errno::EINVAL)?;
    let i = queued_info(signo as u32, info, pid == current().process.pid)?;
    to_thread(Some(pid), tid, signo, |_| i)
}

/// `MINSIGSTKSZ`
const MIN_STACK: u64 = 5120;

fn sigaltstack(f: &mut TrapFrame, new: UserAddr, old: UserAddr) -> SysResult {
    let me = current();
    let was = frame::altstack_now(me, f.sp);
    if !new.is_null() {
        let s: StackT = read_user(new).map_err(efault)?;
        if was.flags & SS_ONSTACK != 0 {
            return Err(Errno::EPERM);
        }
        match s.flags & !SS_AUTODISARM {
            SS_DISABLE => me.set_altstack(0, 0, SS_DISABLE),
            0 | SS_ONSTACK if s.size < MIN_STACK => return Err(Errno::ENOMEM),
            0 | SS_ONSTACK => me.set_altstack(s.sp, s.size, s.flags & SS_AUTODISARM),
            _ => return Err(Errno::EINVAL),
        }
    }
    if !old.is_null() {
        write_user(old, &was).map_err(efault)?;
    }
    Ok(0)
}

fn rt_sigreturn(f: &mut TrapFrame) -> SysResult {
    let me = current();
    match frame::pop(me, f) {
        Ok(mask) => set_blocked(me, mask),
        Err(_) => signal::send::force(SigInfo::kernel(number::SIGSEGV)),
    }
    Ok(f.x[0] as usize)
}
