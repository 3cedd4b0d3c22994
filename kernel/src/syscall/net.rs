//! The socket calls (socket(2) and its family).
//!
//! Handlers copy addresses, options and control messages; what they mean is the crate `net`'s. A unix socket's path is
//! looked up here, and its socket file made here: the crate knows no file systems.

use super::{SysResult, efault};
use crate::arch::uaccess::{
    self, UserAddr, copy_from_user, copy_to_user, get_user_u32, put_user_u32, read_user, write_user,
};
use crate::file::user::{UserSink, UserSource, Vectors};
use crate::net::file::{SocketFile, broken, caller, socket_of};
use crate::sched::current;
use abi::{Errno, Result, Timespec, linux};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use net::socket::{Caller, Cred, RecvMsg, SendMsg, SockAddr, Socket, family, msg};
use net::unix::Unix;
use platform::{ReadSink, WriteSource};
use vfs::{At, FileType, Lookup, OpenFile, Walk, namei};

crate::syscalls! {
    plain {
        198 socket(family: Int, type: Hex, protocol: Int) = socket;
        199 socketpair(family: Int, type: Hex, protocol: Int, fds: Ptr) = socketpair;
        200 bind(fd: Fd, addr: Ptr, len: Int) = bind;
        201 listen(fd: Fd, backlog: Int) = listen;
        202 accept(fd: Fd, addr: Ptr, len: Ptr) = accept;
        203 connect(fd: Fd, addr: Ptr, len: Int) = connect;
        204 getsockname(fd: Fd, addr: Ptr, len: Ptr) = getsockname;
        205 getpeername(fd: Fd, addr: Ptr, len: Ptr) = getpeername;
        206 sendto(fd: Fd, buf: Ptr, count: Size, flags: Hex, addr: Ptr, len: Int) = sendto;
        207 recvfrom(fd: Fd, buf: Ptr, count: Size, flags: Hex, addr: Ptr, len: Ptr) = recvfrom;
        208 setsockopt(fd: Fd, level: Int, name: Int, value: Ptr, len: Int) = setsockopt;
        209 getsockopt(fd: Fd, level: Int, name: Int, value: Ptr, len: Ptr) = getsockopt;
        210 shutdown(fd: Fd, how: Int) = shutdown;
        211 sendmsg(fd: Fd, msg: Ptr, flags: Hex) = sendmsg;
        212 recvmsg(fd: Fd, msg: Ptr, flags: Hex) = recvmsg;
        242 accept4(fd: Fd, addr: Ptr, len: Ptr, flags: Hex) = accept4;
        243 recvmmsg(fd: Fd, msgs: Ptr, count: Int, flags: Hex, timeout: Ptr) = recvmmsg;
        269 sendmmsg(fd: Fd, msgs: Ptr, count: Int, flags: Hex) = sendmmsg;
    }
    frame {}
}

const RLIMIT_NOFILE: usize = 7;
const TYPE_FLAGS: u32 = linux::O_CLOEXEC | linux::O_NONBLOCK;
/// Bytes of control messages that a call takes at most.
const CONTROL_MAX: usize = 20480;
const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;
const SCM_CREDENTIALS: u32 = 2;

/// Gives a socket a descriptor.
fn install(socket: Arc<dyn Socket>, flags: u32) -> Result<i32> {
    let me = current();
    let file = OpenFile::anonymous(SocketFile::new(socket), linux::O_RDWR | flags & linux::O_NONBLOCK);
    me.files().insert(file, flags & linux::O_CLOEXEC != 0, 0, me.process.rlimit(RLIMIT_NOFILE))
}

fn socket(family: u32, kind: u32, protocol: u32) -> SysResult {
    let flags = kind & TYPE_FLAGS;
    let kind = kind & !TYPE_FLAGS;
    let who = caller(false);
    let socket: Arc<dyn Socket> = if family == u32::from(family::UNIX) {
        if protocol > 1 {
            return Err(Errno::EPROTONOSUPPORT);
        }
        // SOCK_RAW means SOCK_DGRAM here.
        Unix::new(if kind == 3 { 2 } else { kind }, who.cred)?
    } else {
        let stack = crate::net::stack().ok_or(Errno::EAFNOSUPPORT)?;
        net::socket::create(stack, u16::try_from(family).map_err(|_| Errno::EAFNOSUPPORT)?, kind, protocol, &who)?
    };
    install(socket, flags).map(|fd| fd as usize)
}

fn socketpair(family: u32, kind: u32, protocol: u32, fds: UserAddr) -> SysResult {
    if family != u32::from(family::UNIX) {
        return Err(if family == 2 || family == 10 { Errno::EOPNOTSUPP } else { Errno::EAFNOSUPPORT });
    }
    if protocol > 1 {
        return Err(Errno::EPROTONOSUPPORT);
    }
    let flags = kind & TYPE_FLAGS;
    let [a, b] = Unix::pair(kind & !TYPE_FLAGS, caller(false).cred)?;
    let first = install(a, flags)?;
    let files = current().files();
    let second = install(b, flags).inspect_err(|_| {
        let _ = files.close(first);
    })?;
    if write_user(fds, &[first, second]).is_err() {
        let _ = files.close(first);
        let _ = files.close(second);
        return Err(Errno::EFAULT);
    }
    Ok(0)
}

/// Reads a socket address. `EINVAL`, `EFAULT`.
fn read_addr(addr: UserAddr, len: u32) -> Result<SockAddr> {
    if len as i32 <= 0 || len > 128 {
        return Err(Errno::EINVAL);
    }
    let mut buf = [0; 128];
    copy_from_user(&mut buf[..len as usize], addr).map_err(efault)?;
    SockAddr::parse(&buf[..len as usize])
}

/// Gives a socket address out, cut to what there is room for. `EFAULT`, `EINVAL`.
fn write_addr(addr: &SockAddr, to: UserAddr, len: UserAddr) -> Result<()> {
    if to.is_null() {
        return Ok(());
    }
    let room = get_user_u32(len).map_err(efault)?;
    if (room as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let bytes = addr.bytes();
    copy_to_user(to, &bytes[..bytes.len().min(room as usize)]).map_err(efault)?;
    put_user_u32(len, bytes.len() as u32).map_err(efault)
}

/// The path in a unix address, if it is one.
fn path_of(addr: &SockAddr) -> Option<&[u8]> {
    match addr {
        SockAddr::Unix(name) if name.first().is_some_and(|c| *c != 0) => Some(name),
        _ => None,
    }
}

/// The socket file at a path. `ECONNREFUSED` if it is none, errors of the walk.
fn socket_file(path: &[u8]) -> Result<(u64, u64)> {
    let me = current();
    let cred = me.creds().file_cred();
    let found = Walk::resolve(me.fs(), &cred, At::Cwd, path, Lookup::FOLLOW)?;
    let meta = found.inode().meta();
    vfs::perm::check(&cred, meta, vfs::perm::MAY_WRITE)?;
    if meta.kind != FileType::Socket {
        return Err(Errno::ECONNREFUSED);
    }
    Ok((meta.dev, meta.ino))
}

fn unix(socket: &Arc<dyn Socket>) -> Option<&Unix> {
    let any: &dyn Any = &**socket;
    any.downcast_ref()
}

fn bind(fd: i32, addr: UserAddr, len: u32) -> SysResult {
    let (_, socket) = socket_of(fd)?;
    let addr = read_addr(addr, len)?;
    if let (Some(u), Some(path)) = (unix(&socket), path_of(&addr)) {
        if u.is_bound() {
            return Err(Errno::EINVAL);
        }
        let me = current();
        let cred = me.creds().file_cred();
        let made = namei::mknod(me.fs(), &cred, At::Cwd, path, 0o140_777, 0);
        made.map_err(|e| if e == Errno::EEXIST { Errno::EADDRINUSE } else { e })?;
        let found = Walk::resolve(me.fs(), &cred, At::Cwd, path, Lookup::FOLLOW)?;
        let meta = found.inode().meta();
        return u.bind_file(meta.dev, meta.ino, path).map(|()| 0);
    }
    socket.bind(&addr, &caller(false)).map(|()| 0)
}

fn listen(fd: i32, backlog: i32) -> SysResult {
    let (_, socket) = socket_of(fd)?;
    // net.core.somaxconn
    let backlog = (backlog as u32).min(4096) as usize;
    socket.listen(backlog, &caller(false)).map(|()| 0)
}

fn accept(fd: i32, addr: UserAddr, len: UserAddr) -> SysResult {
    accept4(fd, addr, len, 0)
}

fn accept4(fd: i32, addr: UserAddr, len: UserAddr, flags: u32) -> SysResult {
    if flags & !TYPE_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let (file, socket) = socket_of(fd)?;
    let accepted = socket.accept(&caller(file.nonblock()))?;
    let peer = accepted.peer().unwrap_or(SockAddr::Unix(Vec::new()));
    let new = install(accepted, flags)?;
    if let Err(e) = write_addr(&peer, addr, len) {
        let _ = current().files().close(new);
        return Err(e);
    }
    Ok(new as usize)
}

fn connect(fd: i32, addr: UserAddr, len: u32) -> SysResult {
    let (file, socket) = socket_of(fd)?;
    let addr = read_addr(addr, len)?;
    let who = caller(file.nonblock());
    if let (Some(u), Some(path)) = (unix(&socket), path_of(&addr)) {
        let (dev, ino) = socket_file(path)?;
        return u.connect_file(dev, ino, &who).map(|()| 0);
    }
    socket.connect(&addr, &who).map(|()| 0)
}

fn getsockname(fd: i32, addr: UserAddr, len: UserAddr) -> SysResult {
    let (_, socket) = socket_of(fd)?;
    write_addr(&socket.local(), addr, len).map(|()| 0)
}

fn getpeername(fd: i32, addr: UserAddr, len: UserAddr) -> SysResult {
    let (_, socket) = socket_of(fd)?;
    write_addr(&socket.peer()?, addr, len).map(|()| 0)
}

/// Sends with the destination resolved.
fn send(file: &OpenFile, socket: &Arc<dyn Socket>, source: &mut dyn WriteSource, mut m: SendMsg) -> SysResult {
    if unix(socket).is_some()
        && let Some(path) = m.to.as_ref().and_then(path_of)
    {
        m.file = Some(socket_file(path)?);
    }
    let quiet = m.flags & msg::NOSIGNAL != 0;
    let r = socket.send(source, &mut m, &caller(file.nonblock()));
    broken(&**socket, quiet, r)
}

fn sendto(fd: i32, buf: UserAddr, count: usize, flags: u32, addr: UserAddr, len: u32) -> SysResult {
    let (file, socket) = socket_of(fd)?;
    let to = if addr.is_null() || len == 0 { None } else { Some(read_addr(addr, len)?) };
    let mut source = UserSource::new(buf, count)?;
    send(&file, &socket, &mut source, SendMsg { flags, to, ..SendMsg::default() })
}

fn recvfrom(fd: i32, buf: UserAddr, count: usize, flags: u32, addr: UserAddr, len: UserAddr) -> SysResult {
    let (file, socket) = socket_of(fd)?;
    let mut sink = UserSink::new(buf, count)?;
    let mut m = RecvMsg { flags, ..RecvMsg::default() };
    let n = socket.recv(&mut sink, &mut m, &caller(file.nonblock()))?;
    match &m.from {
        Some(from) => write_addr(from, addr, len)?,
        None if !addr.is_null() && !len.is_null() => put_user_u32(len, 0).map_err(efault)?,
        None => {}
    }
    Ok(n)
}

fn setsockopt(fd: i32, level: u32, name: u32, value: UserAddr, len: i32) -> SysResult {
    let (_, socket) = socket_of(fd)?;
    if len < 0 {
        return Err(Errno::EINVAL);
    }
    let mut buf = [0; 256];
    let n = (len as usize).min(buf.len());
    copy_from_user(&mut buf[..n], value).map_err(efault)?;
    socket.set_option(level, name, &buf[..n], &caller(false)).map(|()| 0)
}

fn getsockopt(fd: i32, level: u32, name: u32, value: UserAddr, len: UserAddr) -> SysResult {
    let (_, socket) = socket_of(fd)?;
    let room = get_user_u32(len).map_err(efault)?;
    if (room as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let bytes = socket.option(level, name)?;
    let n = bytes.len().min(room as usize);
    copy_to_user(value, &bytes[..n]).map_err(efault)?;
    put_user_u32(len, n as u32).map_err(efault)?;
    Ok(0)
}

fn shutdown(fd: i32, how: i32) -> SysResult {
    let (_, socket) = socket_of(fd)?;
    let (read, write) = match how {
        0 => (true, false),
        1 => (false, true),
        2 => (true, true),
        _ => return Err(Errno::EINVAL),
    };
    socket.shutdown(read, write).map(|()| 0)
}

/// `struct msghdr`: name, its length, vectors, their count, control, its length, flags.
type Header = [u64; 7];

fn header(at: UserAddr) -> Result<Header> {
    read_user(at).map_err(efault)
}

/// Takes files and credentials out of control messages. `EINVAL`, `EBADF`, `EPERM`, `EFAULT`.
fn read_control(h: &Header, m: &mut SendMsg, who: &Caller) -> Result<()> {
    let len = h[5] as usize;
    if len > CONTROL_MAX {
        return Err(Errno::ENOBUFS);
    }
    let mut buf = alloc::vec![0; len];
    copy_from_user(&mut buf, UserAddr(h[4])).map_err(efault)?;
    let mut rest = &buf[..];
    let word = |b: &[u8], at: usize| b.get(at..at + 4).and_then(|w| w.try_into().ok()).map_or(0, u32::from_ne_bytes);
    while rest.len() >= 16 {
        let size = word(rest, 0) as usize;
        if size < 16 || size > rest.len() {
            return Err(Errno::EINVAL);
        }
        let data = &rest[16..size];
        if word(rest, 8) == SOL_SOCKET {
            match word(rest, 12) {
                SCM_RIGHTS => {
                    for fd in data.chunks_exact(4) {
                        let file = current().files().get(word(fd, 0) as i32)?;
                        m.files.push(file);
                    }
                }
                SCM_CREDENTIALS if data.len() >= 12 => {
                    let cred = Cred { pid: word(data, 0), uid: word(data, 4), gid: word(data, 8) };
                    if cred != who.cred && !who.privileged {
                        return Err(Errno::EPERM);
                    }
                    m.cred = Some(cred);
                }
                _ => return Err(Errno::EINVAL),
            }
        }
        rest = rest.get(size.next_multiple_of(8)..).unwrap_or(&[]);
    }
    Ok(())
}

fn send_header(file: &OpenFile, socket: &Arc<dyn Socket>, at: UserAddr, flags: u32) -> SysResult {
    let h = header(at)?;
    let mut m = SendMsg { flags, ..SendMsg::default() };
    if h[0] != 0 && h[1] as u32 != 0 {
        m.to = Some(read_addr(UserAddr(h[0]), h[1] as u32)?);
    }
    if h[4] != 0 && h[5] != 0 {
        read_control(&h, &mut m, &caller(false))?;
    }
    let mut source = Vectors::read(UserAddr(h[2]), h[3] as usize).map_err(too_many)?;
    send(file, socket, &mut source, m)
}

/// A message with too many vectors is `EMSGSIZE`.
fn too_many(e: Errno) -> Errno {
    if e == Errno::EINVAL { Errno::EMSGSIZE } else { e }
}

fn sendmsg(fd: i32, at: UserAddr, flags: u32) -> SysResult {
    let (file, socket) = socket_of(fd)?;
    send_header(&file, &socket, at, flags)
}

/// Control messages on their way to the caller.
struct Control {
    bytes: Vec<u8>,
    room: usize,
    cut: bool,
}

impl Control {
    fn push(&mut self, level: u32, kind: u32, data: &[u8]) {
        let len = 16 + data.len();
        if self.bytes.len() + len > self.room {
            self.cut = true;
            return;
        }
        self.bytes.extend((len as u64).to_ne_bytes());
        self.bytes.extend(level.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(data);
        let padded = self.bytes.len().next_multiple_of(8).min(self.room);
        self.bytes.resize(padded.max(self.bytes.len()), 0);
    }

    /// Gives descriptors to files that came, as many as there is room for.
    fn push_files(&mut self, files: Vec<net::socket::Passed>, cloexec: bool) {
        let me = current();
        let most = (self.room - self.bytes.len()).saturating_sub(16) / 4;
        self.cut |= files.len() > most;
        let mut fds = Vec::new();
        for file in files.into_iter().take(most) {
            let Ok(file) = file.downcast::<OpenFile>() else { continue };
            match me.files().insert(file, cloexec, 0, me.process.rlimit(RLIMIT_NOFILE)) {
                Ok(fd) => fds.extend(fd.to_ne_bytes()),
                Err(_) => self.cut = true,
            }
        }
        if !fds.is_empty() {
            self.push(SOL_SOCKET, SCM_RIGHTS, &fds);
        }
    }
}

fn recv_header(file: &OpenFile, socket: &Arc<dyn Socket>, at: UserAddr, flags: u32) -> SysResult {
    let h = header(at)?;
    let mut m = RecvMsg { flags, ..RecvMsg::default() };
    let mut sink = Vectors::read(UserAddr(h[2]), h[3] as usize).map_err(too_many)?;
    let n = socket.recv(&mut sink as &mut dyn ReadSink, &mut m, &caller(file.nonblock()))?;
    if h[0] != 0 {
        let len = match &m.from {
            Some(from) => {
                let bytes = from.bytes();
                let room = (h[1] as u32 as usize).min(bytes.len());
                copy_to_user(UserAddr(h[0]), &bytes[..room]).map_err(efault)?;
                bytes.len()
            }
            None => 0,
        };
        put_user_u32(at.offset(8), len as u32).map_err(efault)?;
    }
    let room = if h[4] == 0 { 0 } else { (h[5] as usize).min(CONTROL_MAX) };
    let mut control = Control { bytes: Vec::new(), room, cut: false };
    if let Some(c) = m.cred {
        control.push(SOL_SOCKET, SCM_CREDENTIALS, &[c.pid, c.uid, c.gid].map(u32::to_ne_bytes).concat());
    }
    for (level, kind, data) in &m.control {
        control.push(*level, *kind, data);
    }
    if !m.files.is_empty() {
        control.push_files(core::mem::take(&mut m.files), flags & msg::CMSG_CLOEXEC != 0);
    }
    copy_to_user(UserAddr(h[4]), &control.bytes).map_err(efault)?;
    let out = m.out | if control.cut { msg::CTRUNC } else { 0 } | flags & msg::CMSG_CLOEXEC;
    uaccess::put_user_u64(at.offset(40), control.bytes.len() as u64).map_err(efault)?;
    put_user_u32(at.offset(48), out).map_err(efault)?;
    Ok(n)
}

fn recvmsg(fd: i32, at: UserAddr, flags: u32) -> SysResult {
    let (file, socket) = socket_of(fd)?;
    recv_header(&file, &socket, at, flags)
}

/// Bytes of a `struct mmsghdr`.
const MMSG: u64 = 64;

fn sendmmsg(fd: i32, msgs: UserAddr, count: u32, flags: u32) -> SysResult {
    let (file, socket) = socket_of(fd)?;
    for i in 0..count.min(1024) {
        let at = msgs.offset(u64::from(i) * MMSG);
        match send_header(&file, &socket, at, flags) {
            Ok(n) => put_user_u32(at.offset(56), n as u32).map_err(efault)?,
            Err(e) if i == 0 => return Err(e),
            Err(_) => return Ok(i as usize),
        }
    }
    Ok(count.min(1024) as usize)
}

fn recvmmsg(fd: i32, msgs: UserAddr, count: u32, flags: u32, timeout: UserAddr) -> SysResult {
    let (file, socket) = socket_of(fd)?;
    let deadline = if timeout.is_null() {
        None
    } else {
        let pair: [i64; 2] = read_user(timeout).map_err(efault)?;
        let limit = Timespec { sec: pair[0], nsec: pair[1] }.to_ns()?;
        Some(platform::monotonic_ns().saturating_add(limit))
    };
    let mut flags = flags;
    for i in 0..count.min(1024) {
        let at = msgs.offset(u64::from(i) * MMSG);
        match recv_header(&file, &socket, at, flags & !msg::WAITFORONE) {
            Ok(n) => put_user_u32(at.offset(56), n as u32).map_err(efault)?,
            Err(e) if i == 0 => return Err(e),
            Err(_) => return Ok(i as usize),
        }
        if flags & msg::WAITFORONE != 0 {
            flags |= msg::DONTWAIT;
        }
        if deadline.is_some_and(|d| platform::monotonic_ns() >= d) {
            return Ok(i as usize + 1);
        }
    }
    Ok(count.min(1024) as usize)
}
