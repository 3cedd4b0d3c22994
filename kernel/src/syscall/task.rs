//! Processes and threads: clone, exec, exit, wait, numbers, groups of processes, limits.

use super::{SysResult, efault};
use crate::arch::trap::TrapFrame;
use crate::arch::uaccess::{
    UserAddr, copy_from_user, get_user_u64, put_user_u32, read_user, strncpy_from_user, write_user,
};
use crate::exec::Strings;
use crate::file::pidfd::PidFd;
use crate::sched::current;
use crate::task::cred::cap;
use crate::task::exec::Target;
use crate::task::fork::{self, CloneArgs, flag};
use crate::task::ids::Pid;
use crate::task::tree::TREE;
use crate::task::wait::{self, Which, option};
use crate::task::{exit, job, rlimit};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

crate::syscalls! {
    plain {
        93 exit(status: Int) = exit_call;
        94 exit_group(status: Int) = exit_group;
        95 waitid(which: Int, id: Pid, info: Ptr, options: Hex, usage: Ptr) = waitid;
        96 set_tid_address(addr: Ptr) = set_tid_address;
        97 unshare(flags: Hex) = unshare;
        99 set_robust_list(head: Ptr, len: Size) = set_robust_list;
        100 get_robust_list(tid: Pid, head: Ptr, len: Ptr) = get_robust_list;
        154 setpgid(pid: Pid, group: Pid) = setpgid;
        155 getpgid(pid: Pid) = getpgid;
        156 getsid(pid: Pid) = getsid;
        157 setsid() = setsid;
        163 getrlimit(kind: Int, limit: Ptr) = getrlimit;
        164 setrlimit(kind: Int, limit: Ptr) = setrlimit;
        260 wait4(pid: Pid, status: Ptr, options: Hex, usage: Ptr) = wait4;
        261 prlimit64(pid: Pid, kind: Int, new: Ptr, old: Ptr) = prlimit64;
    }
    frame {
        220 clone(flags: Hex, sp: Ptr, parent_tid: Ptr, tls: Ptr, child_tid: Ptr) = clone;
        221 execve(path: Path, argv: Ptr, envp: Ptr) = execve;
        281 execveat(dir: Fd, path: Path, argv: Ptr, envp: Ptr, flags: Hex) = execveat;
        435 clone3(args: Ptr, size: Size) = clone3;
    }
    short {
        172 getpid() = getpid;
        173 getppid() = getppid;
        178 gettid() = gettid;
    }
}

fn clone(frame: &mut TrapFrame, flags: u64, sp: u64, parent_tid: u64, tls: u64, child_tid: u64) -> SysResult {
    // Both are written where `parent_tid` points.
    if flags & flag::PIDFD != 0 && flags & flag::PARENT_SETTID != 0 {
        return Err(Errno::EINVAL);
    }
    let args = CloneArgs {
        flags: flags & !flag::CSIGNAL & 0xffff_ffff,
        sp,
        parent_tid,
        child_tid,
        pidfd: parent_tid,
        tls,
        exit_signal: (flags & flag::CSIGNAL) as u32,
    };
    fork::clone(frame, &args).map(Pid::ret)
}

/// `struct clone_args`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes)]
struct Clone3 {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn clone3(frame: &mut TrapFrame, args: UserAddr, size: usize) -> SysResult {
    const KNOWN: usize = size_of::<Clone3>();
    if size < 64 {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    let mut a = Clone3::new_zeroed();
    copy_from_user(&mut a.as_mut_bytes()[..size.min(KNOWN)], args).map_err(efault)?;
    for at in (KNOWN..size).step_by(8) {
        if get_user_u64(args.offset(at as u64)).map_err(efault)? != 0 {
            return Err(Errno::E2BIG);
        }
    }
    let stack_ok = (a.stack == 0) == (a.stack_size == 0);
    // clone ignores CLONE_DETACHED (musl sets it for threads); clone3 refuses it.
    let refused = flag::CSIGNAL | flag::DETACHED;
    if a.set_tid_size != 0 || !stack_ok || a.flags & refused != 0 || a.exit_signal > 64 {
        return Err(Errno::EINVAL);
    }
    let args = CloneArgs {
        flags: a.flags,
        sp: a.stack.wrapping_add(a.stack_size),
        parent_tid: a.parent_tid,
        child_tid: a.child_tid,
        pidfd: a.pidfd,
        tls: a.tls,
        exit_signal: a.exit_signal as u32,
    };
    fork::clone(frame, &args).map(Pid::ret)
}

/// Longest path, its NUL included.
const PATH_MAX: usize = 4096;
/// Longest single argument, its NUL included.
const STRING_MAX: usize = crate::exec::stack::MAX_STRING;

/// A path from user memory.
pub fn user_path(addr: UserAddr) -> Result<Vec<u8>> {
    let mut small = [0u8; 256];
    let n = strncpy_from_user(&mut small, addr).map_err(efault)?;
    if n < small.len() {
        return Ok(small[..n].to_vec());
    }
    let mut buf = alloc::vec![0u8; PATH_MAX];
    let n = strncpy_from_user(&mut buf, addr).map_err(efault)?;
    if n == buf.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    buf.truncate(n);
    Ok(buf)
}

/// A NULL-ended array of strings from user memory; a null array is empty. `total` is what both arrays may take.
fn user_strings(array: UserAddr, total: &mut usize) -> Result<Strings> {
    let mut out = Strings::new();
    if array.is_null() {
        return Ok(out);
    }
    let mut buf = [0u8; 512];
    for i in 0.. {
        let p = get_user_u64(array.offset(i * 8)).map_err(efault)?;
        if p == 0 {
            break;
        }
        let mut n = strncpy_from_user(&mut buf, UserAddr(p)).map_err(efault)?;
        if n < buf.len() {
            out.push(&buf[..n])?;
        } else {
            n = long_string(&mut out, UserAddr(p))?;
        }
        *total = total.checked_sub(n + 9).ok_or(Errno::E2BIG)?;
    }
    Ok(out)
}

/// Adds a string that is too long for the stack; its length.
fn long_string(out: &mut Strings, addr: UserAddr) -> Result<usize> {
    let mut long = Vec::new();
    long.try_reserve_exact(STRING_MAX).map_err(|_| Errno::ENOMEM)?;
    long.resize(STRING_MAX, 0);
    let n = strncpy_from_user(&mut long, addr).map_err(efault)?;
    if n == long.len() {
        return Err(Errno::E2BIG);
    }
    out.push(&long[..n])?;
    Ok(n)
}

fn user_vectors(argv: UserAddr, envp: UserAddr) -> Result<(Strings, Strings)> {
    let stack = usize::try_from(current().process.rlimit(rlimit::kind::STACK)).unwrap_or(usize::MAX);
    let mut total = (stack / 4).clamp(128 * 1024, 6 << 20);
    Ok((user_strings(argv, &mut total)?, user_strings(envp, &mut total)?))
}

fn execve(frame: &mut TrapFrame, path: UserAddr, argv: UserAddr, envp: UserAddr) -> SysResult {
    let path = user_path(path)?;
    let (argv, envp) = user_vectors(argv, envp)?;
    crate::task::exec::exec(frame, Target::Path(&path), argv, envp)?;
    Ok(0)
}

const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: i32 = 0x100;
const AT_EMPTY_PATH: i32 = 0x1000;

fn execveat(frame: &mut TrapFrame, dir: i32, path: UserAddr, argv: UserAddr, envp: UserAddr, flags: i32) -> SysResult {
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let path = user_path(path)?;
    let (argv, envp) = user_vectors(argv, envp)?;
    if path.is_empty() && flags & AT_EMPTY_PATH == 0 {
        return Err(Errno::ENOENT);
    }
    let absolute = path.first() == Some(&b'/');
    let file = if dir == AT_FDCWD || absolute { None } else { Some(current().files().get(dir)?) };
    let shown = match (&file, path.is_empty()) {
        (None, _) => path.clone(),
        (Some(_), true) => alloc::format!("/dev/fd/{dir}").into_bytes(),
        (Some(_), false) => [alloc::format!("/dev/fd/{dir}/").as_bytes(), &path].concat(),
    };
    let target =
        Target::At { dir: file.as_ref(), path: &path, follow: flags & AT_SYMLINK_NOFOLLOW == 0, shown: &shown };
    crate::task::exec::exec(frame, target, argv, envp)?;
    Ok(0)
}

fn exit_call(status: i32) -> SysResult {
    exit::exit_thread((status & 0xff) << 8)
}

fn exit_group(status: i32) -> SysResult {
    exit::exit_group((status & 0xff) << 8);
    Ok(0)
}

fn wait4(pid: i32, status: UserAddr, options: u32, usage: UserAddr) -> SysResult {
    let known =
        option::WNOHANG | option::WUNTRACED | option::WCONTINUED | option::WNOTHREAD | option::WALL | option::WCLONE;
    if options & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let which = match pid {
        -1 => Which::Any,
        0 => Which::Group(Pid(job::current().group)),
        i32::MIN => return Err(Errno::ESRCH),
        p if p < 0 => Which::Group(Pid(p.unsigned_abs())),
        p => Which::Pid(Pid(p as u32)),
    };
    let Some(report) = wait::wait(which, options | option::WEXITED)? else { return Ok(0) };
    if !status.is_null() {
        put_user_u32(status, report.status as u32).map_err(efault)?;
    }
    if !usage.is_null() {
        write_user(usage, &super::misc::rusage(report.usage)).map_err(efault)?;
    }
    Ok(report.pid.ret())
}

fn waitid(which: i32, id: i32, info: UserAddr, options: u32, usage: UserAddr) -> SysResult {
    let known = option::WNOHANG
        | option::WNOWAIT
        | option::WEXITED
        | option::WUNTRACED
        | option::WCONTINUED
        | option::WNOTHREAD
        | option::WALL
        | option::WCLONE;
    if options & !known != 0 || options & (option::WEXITED | option::WUNTRACED | option::WCONTINUED) == 0 {
        return Err(Errno::EINVAL);
    }
    let polls = options & option::WNOHANG != 0;
    let mut nonblock = false;
    let which = match which {
        0 => Which::Any,
        1 => Which::Pid(Pid::from_arg(id).ok_or(Errno::EINVAL)?),
        2 if id == 0 => Which::Group(Pid(job::current().group)),
        2 => Which::Group(Pid::from_arg(id).ok_or(Errno::EINVAL)?),
        3 => {
            let file = current().files().get_io(id)?;
            let target = PidFd::process_of(&file)?;
            if target.is_collected() {
                return Err(Errno::ECHILD);
            }
            nonblock = file.flags() & abi::linux::O_NONBLOCK != 0;
            Which::Pid(target.pid)
        }
        _ => return Err(Errno::EINVAL),
    };
    let options = if nonblock { options | option::WNOHANG } else { options };
    let report = wait::wait(which, options)?;
    if report.is_none() && nonblock && !polls {
        return Err(Errno::EAGAIN);
    }
    let mut bytes = [0u8; 128];
    if let Some(r) = &report {
        use crate::task::signal::{Detail, SigInfo, code, number};
        let (what, value) = match r.status {
            0xffff => (code::CLD_CONTINUED, number::SIGCONT as i32),
            s if s & 0xff == 0x7f => (code::CLD_STOPPED, s >> 8),
            s => exit::wait_code(s),
        };
        let detail = Detail::Child { pid: r.pid, uid: r.uid, status: value, ticks: 0 };
        bytes = SigInfo { signo: number::SIGCHLD, errno: 0, code: what, detail }.to_bytes();
        if !usage.is_null() {
            write_user(usage, &super::misc::rusage(r.usage)).map_err(efault)?;
        }
    }
    if !info.is_null() {
        // Linux writes the first fields only.
        crate::arch::uaccess::copy_to_user(info, &bytes[..32]).map_err(efault)?;
    }
    Ok(0)
}

fn set_tid_address(addr: u64) -> SysResult {
    let me = current();
    me.set_clear_child_tid(addr);
    Ok(me.tid().ret())
}

/// unshare(2): file table and directories. What a thread alone has needs nothing; namespaces there are none.
fn unshare(flags: u64) -> SysResult {
    let own = flag::THREAD | flag::SIGHAND | flag::VM;
    if flags & !(own | flag::FS | flag::FILES | flag::SYSVSEM) != 0 {
        return Err(Errno::EINVAL);
    }
    let me = current();
    if flags & own != 0 && me.process.threads().len() > 1 {
        return Err(Errno::EINVAL);
    }
    if flags & flag::FILES != 0 && me.files().is_shared() {
        let files = me.files().fork()?;
        me.set_files(Some(files));
    }
    if flags & flag::FS != 0 {
        let fs = Arc::new(me.fs().fork());
        drop(me.set_fs(Some(fs)));
    }
    Ok(0)
}

fn set_robust_list(head: u64, len: usize) -> SysResult {
    if len != 24 {
        return Err(Errno::EINVAL);
    }
    current().set_robust_list(head);
    Ok(0)
}

fn get_robust_list(tid: i32, head: UserAddr, len: UserAddr) -> SysResult {
    let me = current();
    if tid != 0 && tid as u32 != me.tid().0 {
        // Another thread's list is its own cell; Linux asks for ptrace rights, which nobody has here.
        return Err(if crate::task::find_thread(Pid(tid as u32)).is_some() { Errno::EPERM } else { Errno::ESRCH });
    }
    write_user(len, &24u64).map_err(efault)?;
    write_user(head, &me.robust_list()).map_err(efault)?;
    Ok(0)
}

fn getpid() -> SysResult {
    Ok(current().process.pid.ret())
}

fn gettid() -> SysResult {
    Ok(current().tid().ret())
}

fn getppid() -> SysResult {
    Ok(current().process.ppid().ret())
}

fn setpgid(pid: i32, group: i32) -> SysResult {
    job::set_group(pid, group)?;
    Ok(0)
}

fn getpgid(pid: i32) -> SysResult {
    Ok(job::place_of(pid)?.0.ret())
}

fn getsid(pid: i32) -> SysResult {
    Ok(job::place_of(pid)?.1.ret())
}

fn setsid() -> SysResult {
    job::new_session().map(Pid::ret)
}

/// `struct rlimit64`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct RLimit {
    soft: u64,
    hard: u64,
}

fn getrlimit(kind: u32, limit: UserAddr) -> SysResult {
    prlimit64(0, kind, UserAddr(0), limit)
}

fn setrlimit(kind: u32, limit: UserAddr) -> SysResult {
    prlimit64(0, kind, limit, UserAddr(0))
}

fn prlimit64(pid: i32, kind: u32, new: UserAddr, old: UserAddr) -> SysResult {
    let me = current();
    let kind = kind as usize;
    if kind >= rlimit::COUNT {
        return Err(Errno::EINVAL);
    }
    let target = match Pid::from_arg(pid) {
        None if pid == 0 => me.process.clone(),
        None => return Err(Errno::ESRCH),
        Some(p) => TREE.lock().process(p).cloned().ok_or(Errno::ESRCH)?,
    };
    if !Arc::ptr_eq(&target, &me.process) && !me.creds().has(cap::SYS_RESOURCE) {
        let theirs = target.any_thread().ok_or(Errno::ESRCH)?.creds_of();
        if [theirs.uid, theirs.euid, theirs.suid].iter().any(|&u| u != me.creds().uid) {
            return Err(Errno::EPERM);
        }
    }
    let wanted: Option<RLimit> = if new.is_null() { None } else { Some(read_user(new).map_err(efault)?) };
    let was = RLimit { soft: target.limits.soft(kind), hard: target.limits.hard(kind) };
    if let Some(w) = wanted {
        target.limits.set(kind, w.soft, w.hard, me.creds().has(cap::SYS_RESOURCE))?;
        if Arc::ptr_eq(&target, &me.process) {
            me.mm().set_limits(crate::task::exec::mm_limits(me));
        }
    }
    if !old.is_null() {
        write_user(old, &was).map_err(efault)?;
    }
    Ok(0)
}
