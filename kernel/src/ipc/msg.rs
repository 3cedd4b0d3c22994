//! Message queues (msgget(2), msgsnd(2), msgrcv(2), msgctl(2)).
//!
//! # Ideas
//! A queue is a list of messages under a spin lock; texts are copied from user memory before it is taken and to user memory
//! after. Senders that find no room and receivers that find no message of their type sleep on the queue's two wait queues
//! and look again when woken.
//!
//! # What was not done
//! The order among sleeping senders is that of their waking, not that of their coming.

use super::{
    Charge, IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, OBJECT, Object, Perm, READ, Table, UserPerm, WRITE,
    give, me, now,
};
use crate::arch::uaccess::{UserAddr, copy_from_user, copy_to_user, get_user_u64, put_user_u64, read_user};
use crate::file::procfs::{Out, full};
use crate::sched::current;
use crate::syscall::{SysResult, efault};
use abi::{Errno, Result};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt::Write;
use platform::ParkOptions;
use sync::{SpinLock, WaitQueue};
use zerocopy::{FromBytes, Immutable, IntoBytes};

crate::syscalls! {
    plain {
        186 msgget(key: Hex, flags: Hex) = msgget;
        187 msgctl(id: Int, command: Int, buf: Ptr) = msgctl;
        188 msgrcv(id: Int, msg: Ptr, size: Size, kind: Off, flags: Hex) = msgrcv;
        189 msgsnd(id: Int, msg: Ptr, size: Size, flags: Hex) = msgsnd;
    }
    frame {}
}

const MSG_STAT: u32 = 11;
const MSG_INFO: u32 = 12;
const MSG_STAT_ANY: u32 = 13;
const MSG_NOERROR: u32 = 0o10000;
const MSG_EXCEPT: u32 = 0o20000;
const MSG_COPY: u32 = 0o40000;
/// The most queues.
pub const MSGMNI: usize = 32000;
/// The longest text.
pub const MSGMAX: usize = 8192;
/// How much text a queue takes.
pub const MSGMNB: usize = 16384;

const INTERRUPTIBLE: ParkOptions = ParkOptions { interruptible: true, deadline_ns: None };

struct Message {
    kind: i64,
    text: Vec<u8>,
    _charge: Charge,
}

#[derive(Default)]
struct State {
    perm: Perm,
    gone: bool,
    messages: VecDeque<Message>,
    bytes: usize,
    limit: usize,
    stime: i64,
    rtime: i64,
    ctime: i64,
    lspid: u32,
    lrpid: u32,
}

struct Queue {
    state: SpinLock<State>,
    readable: WaitQueue,
    writable: WaitQueue,
    _charge: Charge,
}

static QUEUES: Table<Queue> = Table::new(MSGMNI);

impl Object for Queue {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }

    fn set_id(&self, id: u32) {
        self.state.lock().perm.id = id;
    }
}

fn msgget(key: u32, flags: u32) -> SysResult {
    let make = || {
        let charge = Charge::new(size_of::<Queue>()).ok_or(Errno::ENOSPC)?;
        let state = State { perm: Perm::new(key, flags), limit: MSGMNB, ctime: now(), ..State::default() };
        let state = SpinLock::new(&OBJECT, state);
        Ok(Queue { state, readable: WaitQueue::new(), writable: WaitQueue::new(), _charge: charge })
    };
    QUEUES.get(key, flags, |_| Ok(()), make)
}

fn msgsnd(id: i32, msg: UserAddr, size: usize, flags: u32) -> SysResult {
    let kind = get_user_u64(msg).map_err(efault)? as i64;
    if size > MSGMAX || id < 0 || kind < 1 {
        return Err(Errno::EINVAL);
    }
    let beyond = if flags & IPC_NOWAIT != 0 { Errno::EAGAIN } else { Errno::ENOMEM };
    let charge = Charge::new(size_of::<Message>() + size).ok_or(beyond)?;
    let mut text = Vec::new();
    text.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
    text.resize(size, 0);
    copy_from_user(&mut text, msg.offset(8)).map_err(efault)?;
    let queue = QUEUES.find(id)?;
    let mut message = Some(Message { kind, text, _charge: charge });
    let mut put = || {
        let mut s = queue.state.lock();
        if let Err(e) = s.perm.check(WRITE) {
            return Some(Err(e));
        }
        if s.gone {
            return Some(Err(Errno::EIDRM));
        }
        if s.bytes + size > s.limit || s.messages.len() + 1 > s.limit {
            return if flags & IPC_NOWAIT != 0 { Some(Err(Errno::EAGAIN)) } else { None };
        }
        if s.messages.try_reserve(1).is_err() {
            return Some(Err(Errno::ENOMEM));
        }
        s.messages.extend(message.take());
        s.bytes += size;
        s.stime = now();
        s.lspid = me();
        Some(Ok(0))
    };
    let done = match put() {
        Some(done) => done,
        None => queue.writable.wait_until(INTERRUPTIBLE, put).unwrap_or(Err(Errno::ERESTARTNOHAND)),
    };
    if done.is_ok() {
        queue.readable.wake_all();
    }
    done
}

/// Which message a receiver wants: the first, the first of a type or of all others, or of the lowest types up to one.
fn wanted(messages: &VecDeque<Message>, kind: i64, flags: u32) -> Option<usize> {
    if flags & MSG_COPY != 0 {
        return usize::try_from(kind).ok().filter(|&n| n < messages.len());
    }
    match kind {
        0 => (!messages.is_empty()).then_some(0),
        1.. => messages.iter().position(|m| (m.kind == kind) != (flags & MSG_EXCEPT != 0)),
        _ => {
            let most = kind.checked_neg().unwrap_or(i64::MAX);
            let fits = messages.iter().enumerate().filter(|(_, m)| m.kind <= most);
            fits.min_by_key(|&(i, m)| (m.kind, i)).map(|(i, _)| i)
        }
    }
}

fn msgrcv(id: i32, msg: UserAddr, size: usize, kind: i64, flags: u32) -> SysResult {
    if id < 0 || size > isize::MAX as usize {
        return Err(Errno::EINVAL);
    }
    if flags & MSG_COPY != 0 && (flags & MSG_EXCEPT != 0 || flags & IPC_NOWAIT == 0) {
        return Err(Errno::EINVAL);
    }
    let queue = QUEUES.find(id)?;
    let mut copy = Vec::new();
    if flags & MSG_COPY != 0 {
        copy.try_reserve_exact(size.min(MSGMAX)).map_err(|_| Errno::ENOMEM)?;
    }
    let mut take = || {
        let mut s = queue.state.lock();
        if let Err(e) = s.perm.check(READ) {
            return Some(Err(e));
        }
        if s.gone {
            return Some(Err(Errno::EIDRM));
        }
        let Some(at) = wanted(&s.messages, kind, flags) else {
            return if flags & IPC_NOWAIT != 0 { Some(Err(Errno::ENOMSG)) } else { None };
        };
        if s.messages[at].text.len() > size && flags & MSG_NOERROR == 0 {
            return Some(Err(Errno::E2BIG));
        }
        if flags & MSG_COPY != 0 {
            let m = &s.messages[at];
            let mut text = core::mem::take(&mut copy);
            text.extend_from_slice(&m.text[..m.text.len().min(size)]);
            return Some(Ok(Message { kind: m.kind, text, _charge: Charge::default() }));
        }
        let taken = s.messages.remove(at)?;
        s.bytes -= taken.text.len();
        s.rtime = now();
        s.lrpid = me();
        Some(Ok(taken))
    };
    let taken = match take() {
        Some(taken) => taken?,
        None => queue.readable.wait_until(INTERRUPTIBLE, take).unwrap_or(Err(Errno::ERESTARTNOHAND))?,
    };
    if flags & MSG_COPY == 0 {
        queue.writable.wake_all();
    }
    let n = taken.text.len().min(size);
    put_user_u64(msg, taken.kind as u64).map_err(efault)?;
    copy_to_user(msg.offset(8), &taken.text[..n]).map_err(efault)?;
    Ok(n)
}

/// `struct msqid64_ds`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct UserQueue {
    perm: UserPerm,
    times: [i64; 3],
    bytes: u64,
    count: u64,
    limit: u64,
    lspid: u32,
    lrpid: u32,
    unused: [u64; 2],
}

fn stat(queue: &Queue) -> UserQueue {
    let s = queue.state.lock();
    UserQueue {
        perm: s.perm.to_user(),
        times: [s.stime, s.rtime, s.ctime],
        bytes: s.bytes as u64,
        count: s.messages.len() as u64,
        limit: s.limit as u64,
        lspid: s.lspid,
        lrpid: s.lrpid,
        unused: [0; 2],
    }
}

fn msgctl(id: i32, command: u32, buf: UserAddr) -> SysResult {
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        IPC_INFO | MSG_INFO => {
            let (mut pool, mut map, mut tql) = (MSGMNI * MSGMNB / 1024, MSGMNB, MSGMNB);
            if command == MSG_INFO {
                (pool, map, tql) = (0, 0, 0);
                for queue in QUEUES.iter() {
                    let s = queue.state.lock();
                    pool += 1;
                    map += s.messages.len();
                    tql += s.bytes;
                }
            }
            let sizes = [MSGMAX, MSGMNB, MSGMNI, 16].map(|n| n as u32);
            give(buf, &[pool as u32, map as u32, sizes[0], sizes[1], sizes[2], sizes[3], tql as u32, 0xffff])?;
            Ok(QUEUES.highest())
        }
        MSG_STAT | MSG_STAT_ANY => {
            let (queue, id) = QUEUES.at(id)?;
            if command == MSG_STAT {
                queue.perm().check(READ)?;
            }
            give(buf, &stat(&queue))?;
            Ok(id as usize)
        }
        IPC_STAT => {
            let queue = QUEUES.find(id)?;
            queue.perm().check(READ)?;
            give(buf, &stat(&queue)).map(|()| 0)
        }
        IPC_SET => {
            let from: UserQueue = read_user(buf).map_err(efault)?;
            let queue = QUEUES.find(id)?;
            queue.perm().check_owner()?;
            let more = from.limit as usize > MSGMNB;
            if more && !current().creds().has(crate::task::cred::cap::SYS_RESOURCE) {
                return Err(Errno::EPERM);
            }
            let mut s = queue.state.lock();
            s.perm.set(&from.perm)?;
            s.limit = from.limit as usize;
            s.ctime = now();
            drop(s);
            queue.writable.wake_all();
            queue.readable.wake_all();
            Ok(0)
        }
        IPC_RMID => {
            let queue = QUEUES.find(id)?;
            queue.perm().check_owner()?;
            let rest = {
                let mut s = queue.state.lock();
                s.gone = true;
                core::mem::take(&mut s.messages)
            };
            drop(rest);
            QUEUES.remove(&queue);
            queue.writable.wake_all();
            queue.readable.wake_all();
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `/proc/sysvipc/msg`.
pub fn list(out: &mut Vec<u8>) -> Result<()> {
    let mut out = Out(out);
    out.write_str(
        "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n",
    )
    .map_err(full)?;
    for queue in QUEUES.iter() {
        let u = stat(&queue);
        let p = queue.perm();
        let [stime, rtime, ctime] = u.times;
        writeln!(
            out,
            "{:10} {:10}  {:4o}  {:10} {:10} {:5} {:5} {:5} {:5} {:5} {:5} {stime:10} {rtime:10} {ctime:10}",
            p.key as i32, p.id, p.mode, u.bytes, u.count, u.lspid, u.lrpid, p.uid, p.gid, p.cuid, p.cgid
        )
        .map_err(full)?;
    }
    Ok(())
}
