//! ioctl_tty(2).

use super::{SIGWINCH, Tty, pty::Master};
use crate::arch::uaccess::{self, UserAddr};
use crate::task::job;
use abi::{Errno, Result};
use alloc::sync::Arc;
use tty_core::{Events, FlowAction, FlushQueue, TERMIO_SIZE, TERMIOS_SIZE, TERMIOS2_SIZE, Termios, Winsize};

/// Request numbers (asm-generic/ioctls.h).
mod request {
    pub const TCGETS: u32 = 0x5401;
    pub const TCSETS: u32 = 0x5402;
    pub const TCSETSF: u32 = 0x5404;
    pub const TCGETA: u32 = 0x5405;
    pub const TCSETA: u32 = 0x5406;
    pub const TCSETAF: u32 = 0x5408;
    pub const TCSBRK: u32 = 0x5409;
    pub const TCXONC: u32 = 0x540a;
    pub const TCFLSH: u32 = 0x540b;
    pub const TIOCEXCL: u32 = 0x540c;
    pub const TIOCNXCL: u32 = 0x540d;
    pub const TIOCSCTTY: u32 = 0x540e;
    pub const TIOCGPGRP: u32 = 0x540f;
    pub const TIOCSPGRP: u32 = 0x5410;
    pub const TIOCOUTQ: u32 = 0x5411;
    pub const TIOCSTI: u32 = 0x5412;
    pub const TIOCGWINSZ: u32 = 0x5413;
    pub const TIOCSWINSZ: u32 = 0x5414;
    pub const FIONREAD: u32 = 0x541b;
    pub const TIOCPKT: u32 = 0x5420;
    pub const TIOCNOTTY: u32 = 0x5422;
    pub const TCSBRKP: u32 = 0x5425;
    pub const TIOCGSID: u32 = 0x5429;
    pub const TCGETS2: u32 = 0x802c_542a;
    pub const TCSETS2: u32 = 0x402c_542b;
    pub const TCSETSF2: u32 = 0x402c_542d;
    pub const TIOCGPTN: u32 = 0x8004_5430;
    pub const TIOCSPTLCK: u32 = 0x4004_5431;
    pub const TIOCSIG: u32 = 0x4004_5436;
    pub const TIOCGPKT: u32 = 0x8004_5438;
    pub const TIOCGPTLCK: u32 = 0x8004_5439;
    pub const TIOCGEXCL: u32 = 0x8004_5440;
}
use request::*;

fn fault<T>(r: core::result::Result<T, uaccess::Fault>) -> Result<T> {
    r.map_err(|_| Errno::EFAULT)
}

fn put_u32(arg: UserAddr, v: u32) -> Result<usize> {
    fault(uaccess::put_user_u32(arg, v)).map(|()| 0)
}

/// An ioctl on the program side. `ENOTTY` for unknown requests.
pub fn slave(tty: &Arc<Tty>, cmd: u32, arg: u64) -> Result<usize> {
    let user = UserAddr(arg);
    match cmd {
        TCGETS | TCGETS2 | TCGETA => get_termios(tty, cmd, user),
        TCSETS..=TCSETSF | TCSETA..=TCSETAF | TCSETS2..=TCSETSF2 => set_termios(tty, cmd, user),
        TCSBRK | TCSBRKP => Ok(0),
        TCXONC => flow(tty, FlowAction::from_arg(arg)?),
        TCFLSH => flush(tty, FlushQueue::from_arg(arg)?),
        TIOCEXCL | TIOCNXCL => {
            tty.state.lock().exclusive.set(cmd == TIOCEXCL);
            Ok(0)
        }
        TIOCGEXCL => put_u32(user, u32::from(tty.state.lock().exclusive.get())),
        TIOCGWINSZ => {
            let w = tty.state.lock().winsize;
            fault(uaccess::copy_to_user(user, &w.to_bytes())).map(|()| 0)
        }
        TIOCSWINSZ => set_winsize(tty, user),
        FIONREAD => put_u32(user, tty.state.lock().discipline.inq() as u32),
        TIOCOUTQ => put_u32(user, tty.state.lock().discipline.echo_pending() as u32),
        TIOCSCTTY | TIOCNOTTY | TIOCGPGRP | TIOCSPGRP | TIOCGSID => session(tty, cmd, arg),
        TIOCSTI => {
            if !job::is_privileged() {
                return Err(Errno::EPERM);
            }
            let byte = fault(uaccess::get_user_u8(user))?;
            tty.input(&[byte]);
            Ok(0)
        }
        _ => Err(Errno::ENOTTY),
    }
}

fn get_termios(tty: &Tty, cmd: u32, user: UserAddr) -> Result<usize> {
    let t = *tty.state.lock().discipline.termios();
    let r = match cmd {
        TCGETS => uaccess::copy_to_user(user, &t.to_termios()),
        TCGETS2 => uaccess::copy_to_user(user, &t.to_termios2()),
        _ => uaccess::copy_to_user(user, &t.to_termio()),
    };
    fault(r).map(|()| 0)
}

fn set_termios(tty: &Arc<Tty>, cmd: u32, user: UserAddr) -> Result<usize> {
    tty.check_job(false)?;
    let old = *tty.state.lock().discipline.termios();
    let new: Termios = match cmd {
        TCSETS..=TCSETSF => {
            let mut b = [0; TERMIOS_SIZE];
            fault(uaccess::copy_from_user(&mut b, user))?;
            old.with_termios(&b)
        }
        TCSETS2..=TCSETSF2 => {
            let mut b = [0; TERMIOS2_SIZE];
            fault(uaccess::copy_from_user(&mut b, user))?;
            old.with_termios2(&b)
        }
        _ => {
            let mut b = [0; TERMIO_SIZE];
            fault(uaccess::copy_from_user(&mut b, user))?;
            old.with_termio(&b)
        }
    };
    let flush_first = matches!(cmd, TCSETSF | TCSETAF | TCSETSF2);
    tty.with(|s| {
        let super::State { discipline, device, pending, packet, .. } = s;
        let mut events = Events::empty();
        if flush_first {
            pending.clear();
            if let Ok(queue) = FlushQueue::from_arg(0) {
                events |= discipline.flush(queue, device);
            }
        }
        let new = if tty.is_pty { new.for_pty() } else { new };
        events |= discipline.set_termios(new, device);
        events |= packet.note_termios(&old, &new);
        ((), events)
    });
    tty.waiters.wake();
    Ok(0)
}

fn flow(tty: &Arc<Tty>, action: FlowAction) -> Result<usize> {
    tty.check_job(false)?;
    tty.with(|s| {
        let super::State { discipline, device, .. } = s;
        ((), discipline.flow(action, device))
    });
    Ok(0)
}

fn flush(tty: &Arc<Tty>, queue: FlushQueue) -> Result<usize> {
    tty.check_job(false)?;
    tty.with(|s| {
        let super::State { discipline, device, .. } = s;
        ((), discipline.flush(queue, device))
    });
    Ok(0)
}

fn set_winsize(tty: &Arc<Tty>, user: UserAddr) -> Result<usize> {
    let mut b = [0; 8];
    fault(uaccess::copy_from_user(&mut b, user))?;
    let (changed, foreground) = {
        let mut s = tty.state.lock();
        let changed = s.winsize.set(Winsize::from_bytes(b));
        (changed, s.foreground)
    };
    if changed && foreground != 0 {
        job::signal_group(foreground, SIGWINCH);
    }
    Ok(0)
}

/// Sessions and foreground groups.
fn session(tty: &Arc<Tty>, cmd: u32, arg: u64) -> Result<usize> {
    let me = job::current();
    let controlling = job::controlling_tty().is_some_and(|t| Arc::ptr_eq(&t, tty));
    match cmd {
        TIOCSCTTY => {
            if controlling && me.is_leader {
                return Ok(0);
            }
            if !me.is_leader || job::controlling_tty().is_some() {
                return Err(Errno::EPERM);
            }
            let mut s = tty.state.lock();
            if s.session != 0 && !(arg == 1 && job::is_privileged()) {
                return Err(Errno::EPERM);
            }
            s.session = me.session;
            s.foreground = me.group;
            drop(s);
            job::set_controlling_tty(Some(tty.clone()));
            Ok(0)
        }
        _ if !controlling => Err(Errno::ENOTTY),
        TIOCNOTTY => {
            if me.is_leader {
                tty.session_ended(me.session);
            }
            job::set_controlling_tty(None);
            Ok(0)
        }
        TIOCGPGRP => put_u32(UserAddr(arg), tty.state.lock().foreground),
        TIOCGSID => put_u32(UserAddr(arg), tty.state.lock().session),
        _ => {
            tty.check_job(false)?;
            let group = fault(uaccess::get_user_u32(UserAddr(arg)))?;
            if (group as i32) < 0 {
                return Err(Errno::EINVAL);
            }
            match job::session_of_group(group) {
                None => Err(Errno::ESRCH),
                Some(s) if s != me.session => Err(Errno::EPERM),
                Some(_) => {
                    tty.state.lock().foreground = group;
                    Ok(0)
                }
            }
        }
    }
}

/// An ioctl on a pty's master side.
pub fn master(m: &Master, cmd: u32, arg: u64) -> Result<usize> {
    let user = UserAddr(arg);
    match cmd {
        TIOCGPTN => put_u32(user, m.slave.index),
        TIOCSPTLCK => {
            m.set_locked(fault(uaccess::get_user_u32(user))? != 0);
            Ok(0)
        }
        TIOCGPTLCK => put_u32(user, u32::from(m.is_locked())),
        TIOCPKT => {
            m.set_packet_mode(fault(uaccess::get_user_u32(user))? != 0);
            Ok(0)
        }
        TIOCGPKT => put_u32(user, u32::from(m.packet_mode())),
        TIOCSIG => m.signal(arg).map(|()| 0),
        TIOCGPGRP => put_u32(user, m.slave.state.lock().foreground),
        TIOCGSID => put_u32(user, m.slave.state.lock().session),
        TCGETS | TCGETS2 | TCGETA => get_termios(&m.slave, cmd, user),
        TIOCGWINSZ | TIOCSWINSZ | TCFLSH | TCXONC => slave(&m.slave, cmd, arg),
        TCSETS..=TCSETSF | TCSETS2..=TCSETSF2 => set_termios(&m.slave, cmd, user),
        _ => Err(Errno::ENOTTY),
    }
}
