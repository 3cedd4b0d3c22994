//! Processes by file: pidfd_open, pidfd_send_signal, pidfd_getfd.

use super::{SysResult, efault};
use crate::arch::uaccess::{UserAddr, copy_from_user};
use crate::file::pidfd::PidFd;
use crate::file::synth;
use crate::sched::current;
use crate::task::cred::cap;
use crate::task::ids::Pid;
use crate::task::signal::send::{may_signal, send_to_process};
use crate::task::signal::{self, SigInfo, code, info};
use crate::task::{Process, find, find_thread, rlimit};
use abi::{Errno, Result, linux};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use vfs::OpenFile;

crate::syscalls! {
    plain {
        424 pidfd_send_signal(pidfd: Fd, signo: Sig, info: Ptr, flags: Hex) = pidfd_send_signal;
        434 pidfd_open(pid: Pid, flags: Hex) = pidfd_open;
        438 pidfd_getfd(pidfd: Fd, fd: Fd, flags: Hex) = pidfd_getfd;
    }
    frame {}
}

/// A descriptor for `process`, close-on-exec. `EMFILE`, `ENOMEM`.
pub fn install(process: Arc<Process>, nonblock: bool) -> Result<i32> {
    let me = current();
    let flags = linux::O_RDWR | if nonblock { linux::O_NONBLOCK } else { 0 };
    let file = OpenFile::anonymous(PidFd::new(process), flags);
    me.files().insert(file, true, 0, me.process.rlimit(rlimit::kind::NOFILE))
}

fn pidfd_open(pid: i32, flags: u32) -> SysResult {
    if flags & !linux::O_NONBLOCK != 0 {
        return Err(Errno::EINVAL);
    }
    let pid = Pid::from_arg(pid).ok_or(Errno::EINVAL)?;
    let Some(process) = find(pid) else {
        // A thread that leads no process.
        return Err(if find_thread(pid).is_some() { Errno::EINVAL } else { Errno::ESRCH });
    };
    install(process, flags & linux::O_NONBLOCK != 0).map(|fd| fd as usize)
}

fn pidfd_send_signal(pidfd: i32, signo: i32, at: UserAddr, flags: u32) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let file = current().files().get_io(pidfd)?;
    // A directory of /proc stands for its process as well.
    let target = match file.inode().and_then(|i| synth::process_of(&**i)) {
        Some(process) => process,
        None => PidFd::process_of(&file)?,
    };
    let own = Arc::ptr_eq(&target, &current().process);
    if !(0..=signal::SIGMAX as i32).contains(&signo) {
        return Err(Errno::EINVAL);
    }
    let i = if at.is_null() {
        SigInfo::user(signo as u32, code::USER)
    } else {
        let mut bytes = [0u8; info::SIZE];
        copy_from_user(&mut bytes, at).map_err(efault)?;
        if bytes[..4] != signo.to_le_bytes() {
            return Err(Errno::EINVAL);
        }
        let i = SigInfo::from_bytes(signo as u32, &bytes);
        if !own && (i.code >= 0 || i.code == code::TKILL) {
            return Err(Errno::EPERM);
        }
        i
    };
    if target.is_collected() {
        return Err(Errno::ESRCH);
    }
    if !may_signal(&target, signo as u32) {
        return Err(Errno::EPERM);
    }
    if signo != 0 {
        send_to_process(&target, i)?;
    }
    Ok(0)
}

/// Whether the caller may look into `target` (ptrace(2), "access mode checking").
fn may_inspect(target: &Process) -> Result<()> {
    let me = current();
    let mine = me.creds();
    if core::ptr::eq(&raw const *me.process, target) || mine.has(cap::SYS_PTRACE) {
        return Ok(());
    }
    let theirs = target.any_thread().ok_or(Errno::ESRCH)?.creds_of();
    let same = [theirs.uid, theirs.euid, theirs.suid].iter().all(|&u| u == mine.fsuid)
        && [theirs.gid, theirs.egid, theirs.sgid].iter().all(|&g| g == mine.fsgid);
    if same && target.dumpable.load(Ordering::Relaxed) == 1 { Ok(()) } else { Err(Errno::EPERM) }
}

fn pidfd_getfd(pidfd: i32, fd: i32, flags: u32) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let me = current();
    let target = PidFd::process_of(&*me.files().get_io(pidfd)?)?;
    may_inspect(&target)?;
    let table = target.any_thread().and_then(|t| t.files_of()).ok_or(Errno::ESRCH)?;
    let file = table.get(fd)?;
    drop(table);
    me.files().insert(file, true, 0, me.process.rlimit(rlimit::kind::NOFILE)).map(|fd| fd as usize)
}
