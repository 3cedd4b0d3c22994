//! Scheduling: policies, nice values, affinity, QoS classes. The rules are in [`crate::sched::policy`]; here targets are
//! found, credentials looked at, and structures copied.

use super::{SysResult, efault};
use crate::arch::uaccess::{UserAddr, copy_from_user, copy_to_user, get_user_u32, put_user_u32, write_user};
use crate::sched::policy::{self, ATTR_SIZE, Attr, Authority};
use crate::sched::{current, current_arc, yield_if_wanted};
use crate::task::Thread;
use crate::task::cred::cap;
use crate::task::ids::Pid;
use crate::task::rlimit::kind as limit;
use crate::task::tree::TREE;
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use alloc::vec::Vec;

crate::syscalls! {
    plain {
        118 sched_setparam(pid: Pid, param: Ptr) = sched_setparam;
        119 sched_setscheduler(pid: Pid, policy: Int, param: Ptr) = sched_setscheduler;
        120 sched_getscheduler(pid: Pid) = sched_getscheduler;
        121 sched_getparam(pid: Pid, param: Ptr) = sched_getparam;
        122 sched_setaffinity(pid: Pid, len: Size, mask: Ptr) = sched_setaffinity;
        123 sched_getaffinity(pid: Pid, len: Size, mask: Ptr) = sched_getaffinity;
        125 sched_get_priority_max(policy: Int) = sched_get_priority_max;
        126 sched_get_priority_min(policy: Int) = sched_get_priority_min;
        127 sched_rr_get_interval(pid: Pid, interval: Ptr) = sched_rr_get_interval;
        140 setpriority(which: Int, who: Pid, nice: Int) = setpriority;
        141 getpriority(which: Int, who: Pid) = getpriority;
        274 sched_setattr(pid: Pid, attr: Ptr, flags: Hex) = sched_setattr;
        275 sched_getattr(pid: Pid, attr: Ptr, size: Size, flags: Hex) = sched_getattr;
        1024 qos_get(pid: Pid) = qos_get;
        1025 qos_set(pid: Pid, class: Int) = qos_set;
    }
    frame {}
    short {
        124 sched_yield() = sched_yield;
    }
}

/// The thread numbered `pid`, the caller for 0. `EINVAL` for a negative number, `ESRCH` if there is none.
fn target(pid: i32) -> Result<Arc<Thread>> {
    match Pid::from_arg(pid) {
        Some(p) => TREE.lock().thread(p).cloned().ok_or(Errno::ESRCH),
        None if pid == 0 => Ok(current_arc()),
        None => Err(Errno::EINVAL),
    }
}

/// The same for the two calls that know no wrong number: nobody has it.
fn target_of_affinity(pid: i32) -> Result<Arc<Thread>> {
    if pid < 0 { Err(Errno::ESRCH) } else { target(pid) }
}

fn authority(t: &Thread) -> Authority {
    let mine = current().creds();
    let owner = core::ptr::eq(t, current()) || {
        let theirs = t.creds_of();
        mine.euid == theirs.uid || mine.euid == theirs.euid
    };
    let limits = &t.process.limits;
    Authority {
        owner,
        sys_nice: mine.has(cap::SYS_NICE),
        rtprio_limit: limits.soft(limit::RTPRIO),
        nice_limit: limits.soft(limit::NICE),
    }
}

fn param(addr: UserAddr) -> Result<i32> {
    if addr.is_null() {
        return Err(Errno::EINVAL);
    }
    Ok(get_user_u32(addr).map_err(efault)? as i32)
}

fn sched_setparam(pid: i32, addr: UserAddr) -> SysResult {
    let priority = param(addr)?;
    let t = target(pid)?;
    policy::set_param(&t, priority, &authority(&t))?;
    Ok(0)
}

fn sched_setscheduler(pid: i32, kind: i32, addr: UserAddr) -> SysResult {
    if kind < 0 {
        return Err(Errno::EINVAL);
    }
    let priority = param(addr)?;
    let t = target(pid)?;
    policy::set_scheduler(&t, kind as u32, priority, &authority(&t))?;
    Ok(0)
}

fn sched_getscheduler(pid: i32) -> SysResult {
    Ok(policy::get_scheduler(&*target(pid)?) as usize)
}

fn sched_getparam(pid: i32, addr: UserAddr) -> SysResult {
    if addr.is_null() {
        return Err(Errno::EINVAL);
    }
    let priority = policy::get_priority(&*target(pid)?);
    put_user_u32(addr, priority).map_err(efault)?;
    Ok(0)
}

fn sched_setaffinity(pid: i32, len: usize, addr: UserAddr) -> SysResult {
    let mut bytes = [0u8; 32];
    let len = len.min(bytes.len());
    copy_from_user(&mut bytes[..len], addr).map_err(efault)?;
    let t = target_of_affinity(pid)?;
    policy::set_affinity(&t, &policy::mask_from_bytes(&bytes[..len]), &authority(&t))?;
    Ok(0)
}

fn sched_getaffinity(pid: i32, len: usize, addr: UserAddr) -> SysResult {
    let need = policy::mask_bytes();
    if len < need || !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let mask = policy::affinity(&*target_of_affinity(pid)?);
    let mut bytes = [0u8; 32];
    for (to, word) in bytes.chunks_exact_mut(8).zip(mask.words()) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    copy_to_user(addr, &bytes[..need]).map_err(efault)?;
    Ok(need)
}

fn sched_yield() -> SysResult {
    yield_if_wanted();
    Ok(0)
}

fn sched_get_priority_max(kind: i32) -> SysResult {
    policy::priority_max(kind as u32)
}

fn sched_get_priority_min(kind: i32) -> SysResult {
    policy::priority_min(kind as u32)
}

fn sched_rr_get_interval(pid: i32, addr: UserAddr) -> SysResult {
    let ns = policy::rr_interval_ns(&*target(pid)?);
    write_user(addr, &[(ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i64]).map_err(efault)?;
    Ok(0)
}

fn sched_setattr(pid: i32, addr: UserAddr, flags: u32) -> SysResult {
    if addr.is_null() || pid < 0 || flags != 0 {
        return Err(Errno::EINVAL);
    }
    let mut size = get_user_u32(addr).map_err(efault)? as usize;
    if size == 0 {
        size = ATTR_SIZE;
    }
    if !(ATTR_SIZE..=4096).contains(&size) {
        put_user_u32(addr, ATTR_SIZE as u32).map_err(efault)?;
        return Err(Errno::E2BIG);
    }
    let mut bytes = [0u8; ATTR_SIZE];
    copy_from_user(&mut bytes, addr).map_err(efault)?;
    for at in (ATTR_SIZE..size & !3).step_by(4) {
        if get_user_u32(addr.offset(at as u64)).map_err(efault)? != 0 {
            put_user_u32(addr, ATTR_SIZE as u32).map_err(efault)?;
            return Err(Errno::E2BIG);
        }
    }
    let t = target(pid)?;
    policy::set_attr(&t, &Attr::from_bytes(&bytes), &authority(&t))?;
    Ok(0)
}

fn sched_getattr(pid: i32, addr: UserAddr, size: u32, flags: u32) -> SysResult {
    if addr.is_null() || pid < 0 || !(ATTR_SIZE..=4096).contains(&(size as usize)) || flags != 0 {
        return Err(Errno::EINVAL);
    }
    let attr = policy::get_attr(&*target(pid)?);
    copy_to_user(addr, &attr.to_bytes()).map_err(efault)?;
    Ok(0)
}

/// The threads that `setpriority(2)` names. `ESRCH` if there are none.
fn priority_targets(which: i32, who: i32) -> Result<Vec<Arc<Thread>>> {
    let me = current();
    let mut found = Vec::new();
    match which as u32 {
        linux::PRIO_PROCESS => found.push(target(who).map_err(|_| Errno::ESRCH)?),
        linux::PRIO_PGRP => {
            let tree = TREE.lock();
            let group = match Pid::from_arg(who) {
                Some(p) => tree.group(p).cloned(),
                None if who == 0 => me.process.links.get(&tree).group.clone(),
                None => None,
            };
            for p in group.iter().flat_map(|g| g.members(&tree)) {
                found.extend(p.signals.lock().threads.iter().cloned());
            }
        }
        linux::PRIO_USER => {
            let uid = if who == 0 { me.creds().uid } else { who as u32 };
            let tree = TREE.lock();
            for p in tree.processes_from(1) {
                found.extend(p.signals.lock().threads.iter().cloned());
            }
            drop(tree);
            // Credentials have a lock of a lower rank.
            found.retain(|t| t.creds_of().uid == uid);
        }
        _ => return Err(Errno::EINVAL),
    }
    if found.is_empty() { Err(Errno::ESRCH) } else { Ok(found) }
}

fn setpriority(which: i32, who: i32, nice: i32) -> SysResult {
    let mut result = Ok(0);
    for t in priority_targets(which, who)? {
        if let Err(e) = policy::set_nice(&t, nice, &authority(&t)) {
            result = Err(e);
        }
    }
    result
}

/// The call gives 20 - nice, so that no value looks like an error.
fn getpriority(which: i32, who: i32) -> SysResult {
    let best = priority_targets(which, who)?.iter().map(|t| t.sched.nice()).min();
    Ok((20 - best.unwrap_or(0)) as usize)
}

fn qos_get(pid: i32) -> SysResult {
    Ok(policy::get_qos(&*target(pid)?) as usize)
}

/// `EINVAL`: no such class; `EPERM`: raising without `CAP_SYS_NICE`, or another's thread; `EAGAIN`: the class is full.
fn qos_set(pid: i32, class: i64) -> SysResult {
    let t = target(pid)?;
    policy::set_qos(&t, class as u64, &authority(&t))?;
    Ok(0)
}
