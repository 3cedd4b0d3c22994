//! Sockets as programs see them (socket(7), ip(7), tcp(7), udp(7), unix(7)): one trait, [`Socket`], and its kinds.
//!
//! Errors are those of Linux. Calls that wait do so by the socket's queues, are ended by signals with `ERESTARTSYS`
//! (`EINTR` where a time-out is set), and return `EAGAIN` when they must not wait or have waited long enough.
//!
//! A socket's state is an [`sync::SpinLock`] of rank 500 that is never held while anything waits or a packet is sent.

pub mod addr;
mod dgram;
mod options;
mod stream;

pub use addr::SockAddr;
pub use dgram::Datagrams;
pub use options::{Common, msg};
pub use stream::{Stream, state_number};

use crate::Stack;
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use platform::{ParkOptions, ReadSink, WriteSource};
use sync::WaitQueue;

/// Address families.
pub mod family {
    /// `AF_UNSPEC`
    pub const UNSPEC: u16 = 0;
    /// `AF_UNIX`
    pub const UNIX: u16 = 1;
    /// `AF_INET`
    pub const INET: u16 = 2;
    /// `AF_INET6`
    pub const INET6: u16 = 10;
    /// `AF_NETLINK`
    pub const NETLINK: u16 = 16;
    /// `AF_PACKET`
    pub const PACKET: u16 = 17;
}

/// Socket types.
pub mod kind {
    /// `SOCK_STREAM`
    pub const STREAM: u32 = 1;
    /// `SOCK_DGRAM`
    pub const DGRAM: u32 = 2;
    /// `SOCK_RAW`
    pub const RAW: u32 = 3;
    /// `SOCK_SEQPACKET`
    pub const SEQPACKET: u32 = 5;
}

/// Something that travels with bytes (an open file).
pub type Passed = Arc<dyn Any + Send + Sync>;

/// Who a process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cred {
    /// Process.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The circumstances of a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// Who calls.
    pub cred: Cred,
    /// May use ports below 1024, raw sockets and other privileges (`CAP_NET_*`).
    pub privileged: bool,
    /// May change the configuration (`CAP_NET_ADMIN`).
    pub admin: bool,
    /// Return `EAGAIN` instead of waiting.
    pub nonblock: bool,
}

/// What goes with a message that is sent.
#[derive(Default)]
pub struct SendMsg {
    /// `MSG_*`.
    pub flags: u32,
    /// To whom.
    pub to: Option<SockAddr>,
    /// Files.
    pub files: Vec<Passed>,
    /// Credentials given explicitly.
    pub cred: Option<Cred>,
    /// The socket file that `to` names (device and inode), which whoever knows the file systems has looked up.
    pub file: Option<(u64, u64)>,
}

/// What came with a message.
#[derive(Default)]
pub struct RecvMsg {
    /// `MSG_*` asked for.
    pub flags: u32,
    /// `MSG_*` to report.
    pub out: u32,
    /// From whom.
    pub from: Option<SockAddr>,
    /// Files.
    pub files: Vec<Passed>,
    /// Sender's credentials.
    pub cred: Option<Cred>,
    /// Control messages of other kinds: level, type, data.
    pub control: Vec<(u32, u32, Vec<u8>)>,
}

/// A socket.
pub trait Socket: Any + Send + Sync {
    /// Its family.
    fn family(&self) -> u16;
    /// Its type.
    fn kind(&self) -> u32;
    /// Its protocol.
    fn protocol(&self) -> u32;
    /// bind(2)
    fn bind(&self, addr: &SockAddr, who: &Caller) -> Result<()>;
    /// connect(2)
    fn connect(&self, addr: &SockAddr, who: &Caller) -> Result<()>;
    /// listen(2)
    fn listen(&self, _backlog: usize, _who: &Caller) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }
    /// accept(2)
    fn accept(&self, _who: &Caller) -> Result<Arc<dyn Socket>> {
        Err(Errno::EOPNOTSUPP)
    }
    /// getsockname(2)
    fn local(&self) -> SockAddr;
    /// getpeername(2)
    fn peer(&self) -> Result<SockAddr>;
    /// sendmsg(2)
    fn send(&self, source: &mut dyn WriteSource, message: &mut SendMsg, who: &Caller) -> Result<usize>;
    /// recvmsg(2)
    fn recv(&self, sink: &mut dyn ReadSink, message: &mut RecvMsg, who: &Caller) -> Result<usize>;
    /// shutdown(2); `read`, `write`: which halves.
    fn shutdown(&self, read: bool, write: bool) -> Result<()>;
    /// setsockopt(2)
    fn set_option(&self, level: u32, name: u32, value: &[u8], who: &Caller) -> Result<()>;
    /// getsockopt(2)
    fn option(&self, level: u32, name: u32) -> Result<Vec<u8>>;
    /// What poll(2) says.
    fn ready(&self) -> u32;
    /// The queues that are woken when [`Socket::ready`] changes.
    fn queues(&self) -> [Arc<WaitQueue>; 2];
    /// Bytes that can be read (`FIONREAD`), and bytes not sent (`TIOCOUTQ`).
    fn pending(&self) -> (usize, usize);
    /// The last descriptor is gone.
    fn close(&self, who: &Caller);
}

/// The lock of a socket's options and of what it has become.
pub(crate) static CLASS: sync::LockClass = sync::LockClass::new("socket", 500);

/// poll(2)'s bits.
pub mod ready {
    /// `POLLIN | POLLRDNORM`
    pub const IN: u32 = 0x41;
    /// `POLLOUT | POLLWRNORM`
    pub const OUT: u32 = 0x104;
    /// `POLLWRBAND`, which datagram and unix sockets say with [`OUT`].
    pub const WRBAND: u32 = 0x200;
    /// `POLLERR`
    pub const ERR: u32 = 8;
    /// `POLLHUP`
    pub const HUP: u32 = 0x10;
    /// `POLLRDHUP`
    pub const RDHUP: u32 = 0x2000;
}

/// Makes a socket of the internet families or of packets. `EPROTONOSUPPORT`, `ESOCKTNOSUPPORT`, `EAFNOSUPPORT`, `EPERM`.
pub fn create(stack: &Arc<Stack>, family: u16, kind: u32, protocol: u32, who: &Caller) -> Result<Arc<dyn Socket>> {
    use crate::packet::{ICMP, ICMPV6, TCP, UDP};
    if family == family::PACKET {
        if !who.privileged {
            return Err(Errno::EPERM);
        }
        return match kind {
            kind::RAW | kind::DGRAM => Ok(Arc::new(Datagrams::new(stack, family, kind, protocol))),
            _ => Err(Errno::ESOCKTNOSUPPORT),
        };
    }
    if family == family::NETLINK {
        return crate::netlink::create(stack, kind, protocol);
    }
    if family != family::INET && family != family::INET6 {
        return Err(Errno::EAFNOSUPPORT);
    }
    let echo = if family == family::INET { ICMP } else { ICMPV6 };
    match (kind, protocol) {
        (kind::STREAM, p) if p == 0 || p == TCP.into() => Ok(Stream::new(stack, family)),
        (kind::DGRAM, p) if p == 0 || p == UDP.into() => Ok(Arc::new(Datagrams::new(stack, family, kind, UDP.into()))),
        (kind::DGRAM, p) if p == echo.into() => Ok(Arc::new(Datagrams::new(stack, family, kind, p))),
        (kind::RAW, 1..=255) if who.privileged => Ok(Arc::new(Datagrams::new(stack, family, kind, protocol))),
        (kind::RAW, 1..=255) => Err(Errno::EPERM),
        (kind::STREAM | kind::DGRAM | kind::RAW, _) => Err(Errno::EPROTONOSUPPORT),
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

/// Repeats `attempt` until it gives something else than `EAGAIN`, waiting on `queue` between.
pub(crate) fn wait<R>(
    queue: &WaitQueue,
    nonblock: bool,
    timeout: Option<u64>,
    mut attempt: impl FnMut() -> Result<R>,
) -> Result<R> {
    match attempt() {
        Err(Errno::EAGAIN) if !nonblock => {}
        done => return done,
    }
    let options =
        ParkOptions { interruptible: true, deadline_ns: timeout.map(|t| platform::monotonic_ns().saturating_add(t)) };
    let again = || match attempt() {
        Err(Errno::EAGAIN) => None,
        done => Some(done),
    };
    match queue.wait_until(options, again) {
        Ok(done) => done,
        Err(platform::Wake::TimedOut) => Err(Errno::EAGAIN),
        Err(_) if timeout.is_some() => Err(Errno::EINTR),
        Err(_) => Err(Errno::ERESTARTSYS),
    }
}

/// Takes up to `most` bytes from `source`. `EFAULT`, `ENOMEM`.
pub(crate) fn take(source: &mut dyn WriteSource, most: usize) -> Result<Vec<u8>> {
    let len = source.remaining().min(most);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Errno::ENOBUFS)?;
    bytes.resize(len, 0);
    let done = take_into(source, &mut bytes)?;
    bytes.truncate(done);
    Ok(bytes)
}

/// Fills `bytes` from `source`; how many there were. `EFAULT`.
pub(crate) fn take_into(source: &mut dyn WriteSource, bytes: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match source.get((&mut bytes[done..]).into()) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(_) if done == 0 => return Err(Errno::EFAULT),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Gives bytes to `sink`; how many it took. `EFAULT`.
pub(crate) fn give(sink: &mut dyn ReadSink, bytes: &[u8]) -> Result<usize> {
    let len = bytes.len().min(sink.remaining());
    let mut done = 0;
    while done < len {
        match sink.put(bytes[done..len].into()) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(_) => return Err(Errno::EFAULT),
        }
    }
    Ok(done)
}
