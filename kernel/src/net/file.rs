//! Sockets as files.

use crate::arch::uaccess::{self, UserAddr};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use net::socket::{Caller, Cred, RecvMsg, SendMsg, Socket};
use platform::{ReadSink, WriteSource};
use vfs::{Attr, File, FileType, Io, Meta, OpenFile, PollEvents, Poller};

const FIONREAD: u32 = 0x541b;
const TIOCOUTQ: u32 = 0x5411;
/// The device number that sockets show in `stat`.
const SOCKET_DEV: u64 = 9;
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;

/// A socket behind a descriptor.
pub struct SocketFile {
    /// The socket.
    pub socket: Arc<dyn Socket>,
    meta: Meta,
}

/// The calling process, as sockets judge it.
pub fn caller(nonblock: bool) -> Caller {
    let me = crate::sched::current();
    let creds = me.creds();
    let cred = Cred { pid: me.process.pid.0, uid: creds.euid, gid: creds.egid };
    let privileged = creds.has(NET_BIND_SERVICE) && creds.has(NET_RAW);
    Caller { cred, privileged, admin: creds.has(NET_ADMIN), nonblock }
}

impl SocketFile {
    /// A file for `socket`.
    pub fn new(socket: Arc<dyn Socket>) -> Arc<SocketFile> {
        static INO: AtomicU64 = AtomicU64::new(1);
        let ino = INO.fetch_add(1, Ordering::Relaxed);
        let creds = crate::sched::current().creds();
        let meta = Meta::new(SOCKET_DEV, ino, FileType::Socket, 0o777, creds.fsuid, creds.fsgid);
        Arc::new(SocketFile { socket, meta })
    }
}

/// Raises SIGPIPE for a write that found the other side gone, unless told not to.
pub fn broken<T>(socket: &dyn Socket, quiet: bool, r: Result<T>) -> Result<T> {
    let stream = socket.kind() != net::socket::kind::DGRAM && socket.kind() != net::socket::kind::RAW;
    if matches!(r, Err(Errno::EPIPE)) && stream && !quiet {
        crate::task::signal::sigpipe();
    }
    r
}

impl File for SocketFile {
    fn read(&self, io: Io, sink: &mut dyn ReadSink) -> Result<usize> {
        self.socket.recv(sink, &mut RecvMsg::default(), &caller(io.nonblock))
    }

    fn write(&self, io: Io, source: &mut dyn WriteSource) -> Result<usize> {
        let r = self.socket.send(source, &mut SendMsg::default(), &caller(io.nonblock));
        broken(&*self.socket, false, r)
    }

    fn ioctl(&self, _file: &OpenFile, cmd: u32, arg: u64) -> Result<i64> {
        let (readable, unsent) = self.socket.pending();
        let n = match cmd {
            FIONREAD => readable,
            TIOCOUTQ => unsent,
            _ => return super::ioctl::ioctl(cmd, UserAddr(arg)),
        };
        uaccess::put_user_u32(UserAddr(arg), n as u32).map_err(|_| Errno::EFAULT)?;
        Ok(0)
    }

    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        if let Some(p) = poller {
            for queue in self.socket.queues() {
                p.register(&queue);
            }
        }
        PollEvents(self.socket.ready())
    }

    fn getattr(&self) -> Result<Attr> {
        Ok(Attr { nlink: 1, blksize: 4096, ..Attr::of(&self.meta) })
    }

    fn name(&self) -> Vec<u8> {
        alloc::format!("socket:[{}]", self.meta.ino).into_bytes()
    }

    fn release(&self, file: &OpenFile) {
        self.socket.close(&Caller { nonblock: file.nonblock(), ..Caller::default() });
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // One that never became a descriptor (an accept whose address could not be copied).
        self.socket.close(&Caller { nonblock: true, ..Caller::default() });
    }
}

/// The socket behind a descriptor. `EBADF`, `ENOTSOCK`.
pub fn socket_of(fd: i32) -> Result<(Arc<OpenFile>, Arc<dyn Socket>)> {
    let file = crate::sched::current().files().get(fd)?;
    if file.is_path_only() {
        return Err(Errno::EBADF);
    }
    let socket = file.object_as::<SocketFile>().ok_or(Errno::ENOTSOCK)?.socket.clone();
    Ok((file, socket))
}
