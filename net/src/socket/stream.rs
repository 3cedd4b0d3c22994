//! TCP sockets.

use super::options::level;
use super::{
    CLASS, Caller, Common, RecvMsg, SendMsg, SockAddr, Socket, family, give, kind, msg, ready, take_into, wait,
};
use crate::Stack;
use crate::flow::{Flow, State, Status};
use crate::listen::Listener;
use crate::packet::TCP;
use crate::pool::Buffer;
use crate::ports::{Lease, Want};
use crate::tcp::TcpOptions;
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use platform::{ReadSink, WriteSource};
use sync::{SpinLock, WaitQueue};

/// How much is copied from or to a program at a time.
const CHUNK: usize = crate::pool::SIZE;

enum Role {
    Idle,
    Flow(Arc<Flow>),
    Listener(Arc<Listener>),
}

struct Inner {
    common: Common,
    role: Role,
    lease: Option<Arc<Lease>>,
    bound: Option<(IpAddr, u16)>,
    /// The outcome of a connect that did not wait was told.
    connected: bool,
    write_closed: bool,
}

/// A TCP socket.
pub struct Stream {
    stack: Arc<Stack>,
    family: u16,
    inner: SpinLock<Inner>,
    readable: Arc<WaitQueue>,
    writable: Arc<WaitQueue>,
}

impl Stream {
    /// An unconnected socket.
    pub fn new(stack: &Arc<Stack>, family: u16) -> Arc<Stream> {
        let queues = [Arc::new(WaitQueue::new()), Arc::new(WaitQueue::new())];
        Self::make(stack, family, Common::default(), Role::Idle, queues)
    }

    fn make(stack: &Arc<Stack>, family: u16, common: Common, role: Role, queues: [Arc<WaitQueue>; 2]) -> Arc<Stream> {
        let connected = matches!(role, Role::Flow(_));
        let inner = Inner { common, role, lease: None, bound: None, connected, write_closed: false };
        let [readable, writable] = queues;
        Arc::new(Stream { stack: stack.clone(), family, inner: SpinLock::new(&CLASS, inner), readable, writable })
    }

    fn flow(&self) -> Result<Arc<Flow>> {
        match &self.inner.lock().role {
            Role::Flow(f) => Ok(f.clone()),
            _ => Err(Errno::ENOTCONN),
        }
    }

    fn options(&self, common: &Common) -> TcpOptions {
        TcpOptions { queues: Some([self.readable.clone(), self.writable.clone()]), ..common.tcp() }
    }

    /// Claims a port if that has not happened.
    fn claim(&self, addr: IpAddr, port: u16, who: &Caller) -> Result<()> {
        let common = {
            let inner = self.inner.lock();
            if inner.lease.is_some() {
                return Err(Errno::EINVAL);
            }
            inner.common.clone()
        };
        let lease = self.stack.bind(Want {
            proto: TCP,
            addr,
            port,
            v6only: common.v6only || self.family == family::INET,
            reuse_addr: common.reuse_addr,
            reuse_port: common.reuse_port,
            uid: who.cred.uid,
        })?;
        let mut inner = self.inner.lock();
        inner.bound = Some((addr, lease.port()));
        inner.lease = Some(Arc::new(lease));
        Ok(())
    }

    /// What a connect that is under way has come to. `EAGAIN`: nothing yet.
    fn outcome(flow: &Flow) -> Result<()> {
        let status = flow.status();
        if status.is_connecting() && !status.error {
            return Err(Errno::EAGAIN);
        }
        flow.take_error().map_or(Ok(()), Err)
    }

    fn info(status: &Status) -> Vec<u8> {
        let state = state_number(status.state);
        let mut b = alloc::vec![0; 104];
        b[0] = state;
        let mut put = |at: usize, v: u32| b[at..at + 4].copy_from_slice(&v.to_ne_bytes());
        put(16, 1460);
        put(20, 1460);
        put(24, u32::from(status.unsent > 0));
        b
    }
}

/// The state as Linux counts it (`TCP_ESTABLISHED` = 1 …).
pub fn state_number(s: State) -> u8 {
    match s {
        State::Established => 1,
        State::SynSent => 2,
        State::SynReceived => 3,
        State::FinWait1 => 4,
        State::FinWait2 => 5,
        State::TimeWait => 6,
        State::Closed => 7,
        State::CloseWait => 8,
        State::LastAck => 9,
        State::Listen => 10,
        State::Closing => 11,
    }
}

impl Socket for Stream {
    fn family(&self) -> u16 {
        self.family
    }
    fn kind(&self) -> u32 {
        kind::STREAM
    }
    fn protocol(&self) -> u32 {
        TCP.into()
    }

    fn bind(&self, addr: &SockAddr, who: &Caller) -> Result<()> {
        let (ip, port) = match addr {
            // Linux takes AF_UNSPEC with the unspecified address for AF_INET.
            SockAddr::Unspecified if self.family == family::INET => SockAddr::any(self.family).to_inet(self.family)?,
            a => a.to_inet(self.family)?,
        };
        if port != 0 && port < 1024 && !who.privileged {
            return Err(Errno::EACCES);
        }
        if !ip.is_unspecified() && !self.stack.config().is_local(ip) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if !matches!(self.inner.lock().role, Role::Idle) {
            return Err(Errno::EINVAL);
        }
        self.claim(ip, port, who)
    }

    fn connect(&self, addr: &SockAddr, who: &Caller) -> Result<()> {
        let flow = {
            let mut inner = self.inner.lock();
            match &inner.role {
                Role::Listener(_) => return Err(Errno::EISCONN),
                Role::Flow(f) if *addr == SockAddr::Unspecified => {
                    let f = f.clone();
                    inner.role = Role::Idle;
                    inner.connected = false;
                    drop(inner);
                    f.close(&self.stack, true);
                    return Ok(());
                }
                Role::Flow(_) if inner.connected => return Err(Errno::EISCONN),
                Role::Flow(f) => Some(f.clone()),
                Role::Idle => None,
            }
        };
        let nonblock = who.nonblock;
        let (flow, begun) = match flow {
            Some(f) => (f, false),
            None => {
                let mut remote = addr.to_inet(self.family)?;
                if remote.0.is_unspecified() {
                    // To no address is to this host (as Linux).
                    remote.0 = if remote.0.is_ipv4() {
                        IpAddr::from([127, 0, 0, 1])
                    } else {
                        IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16])
                    };
                }
                let (common, bound) = {
                    let inner = self.inner.lock();
                    (inner.common.clone(), inner.bound)
                };
                let mut options = self.options(&common);
                if let SockAddr::Inet(_, _, scope) = addr
                    && options.bound == 0
                {
                    options.bound = *scope;
                }
                let f = self.stack.connect(bound, remote, &options)?;
                self.inner.lock().role = Role::Flow(f.clone());
                (f, true)
            }
        };
        // Through loopback it may be done by now. Programs that do not wait are told of a beginning nevertheless, and of the
        // outcome, good or bad, by readiness and SO_ERROR: so it is on Linux, and some rely on it.
        if begun && nonblock {
            return Err(Errno::EINPROGRESS);
        }
        let timeout = self.inner.lock().common.snd_timeout;
        let r = wait(&self.writable, nonblock, timeout, || match Self::outcome(&flow) {
            // It has failed, and SO_ERROR told why: so much is said once, and the next call begins anew (as Linux).
            Ok(()) if flow.status().state == State::Closed => Err(Errno::ECONNABORTED),
            r => r,
        });
        let mut inner = self.inner.lock();
        match r {
            Ok(()) => inner.connected = true,
            // A wait with a limit ends as one that was not wanted.
            Err(Errno::EAGAIN) => return Err(if begun { Errno::EINPROGRESS } else { Errno::EALREADY }),
            Err(Errno::ERESTARTSYS | Errno::EINTR) => return Err(Errno::EINTR),
            // It may try again.
            Err(_) => inner.role = Role::Idle,
        }
        r
    }

    fn listen(&self, backlog: usize, who: &Caller) -> Result<()> {
        {
            let inner = self.inner.lock();
            match &inner.role {
                Role::Listener(l) => {
                    l.set_backlog(backlog);
                    return Ok(());
                }
                Role::Flow(_) => return Err(Errno::EINVAL),
                Role::Idle => {}
            }
        }
        if self.inner.lock().lease.is_none() {
            self.claim(SockAddr::any(self.family).to_inet(self.family)?.0, 0, who)?;
        }
        let (common, lease, bound) = {
            let inner = self.inner.lock();
            (inner.common.clone(), inner.lease.clone(), inner.bound)
        };
        let (Some(lease), Some(bound)) = (lease, bound) else { return Err(Errno::EINVAL) };
        let v6only = common.v6only || self.family == family::INET;
        let l = self.stack.listen(bound.0, &lease, v6only, backlog, &self.options(&common))?;
        self.inner.lock().role = Role::Listener(l);
        Ok(())
    }

    fn accept(&self, who: &Caller) -> Result<Arc<dyn Socket>> {
        let (l, common) = {
            let inner = self.inner.lock();
            match &inner.role {
                Role::Listener(l) => (l.clone(), inner.common.clone()),
                _ => return Err(Errno::EINVAL),
            }
        };
        let flow = wait(&l.readable, who.nonblock, common.rcv_timeout, || l.accept())?;
        let queues = [flow.readable.clone(), flow.writable.clone()];
        let common = Common { rcv_timeout: common.rcv_timeout, ..common };
        Ok(Self::make(&self.stack, self.family, common, Role::Flow(flow), queues))
    }

    fn local(&self) -> SockAddr {
        let inner = self.inner.lock();
        match (&inner.role, inner.bound) {
            (Role::Flow(f), _) => SockAddr::inet(self.family, f.tuple.local),
            (_, Some(b)) => SockAddr::inet(self.family, b),
            _ => SockAddr::any(self.family),
        }
    }

    fn peer(&self) -> Result<SockAddr> {
        let flow = self.flow()?;
        if matches!(flow.status().state, State::SynSent | State::Closed) {
            return Err(Errno::ENOTCONN);
        }
        Ok(SockAddr::inet(self.family, flow.tuple.remote))
    }

    fn send(&self, source: &mut dyn WriteSource, message: &mut SendMsg, who: &Caller) -> Result<usize> {
        let Ok(flow) = self.flow() else { return Err(Errno::EPIPE) };
        if message.flags & msg::OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let timeout = self.inner.lock().common.snd_timeout;
        let nonblock = who.nonblock || message.flags & msg::DONTWAIT != 0;
        let mut done = 0;
        if source.remaining() == 0 {
            return Ok(0);
        }
        let more = message.flags & msg::MORE != 0;
        let mut buf = Buffer::new(source.remaining().min(CHUNK));
        loop {
            // Bytes are taken only when there is room: what was taken cannot be given back.
            let room = || {
                if self.inner.lock().write_closed {
                    return Err(Errno::EPIPE);
                }
                let s = flow.status();
                if s.room > 0
                    || s.error
                    || !(s.is_connecting() || matches!(s.state, State::Established | State::CloseWait))
                {
                    Ok(s.room)
                } else {
                    Err(Errno::EAGAIN)
                }
            };
            let stop = |e: Errno| if done > 0 { Ok(done) } else { Err(e) };
            let room = match wait(&flow.writable, nonblock, timeout, room) {
                Ok(r) => r,
                Err(e) => return stop(e),
            };
            let most = room.min(buf.len()).max(1);
            let bytes = match take_into(source, &mut buf[..most]) {
                Ok(n) => &buf[..n],
                Err(e) => return stop(e),
            };
            let mut at = 0;
            while at < bytes.len() {
                // Another thread may have filled it meanwhile: bytes in hand wait whatever the flags say.
                match wait(&flow.writable, false, None, || {
                    flow.send_of(&self.stack, &bytes[at..], bytes.len() - at + source.remaining(), more)
                }) {
                    Ok(n) => at += n,
                    Err(e) if done + at > 0 => {
                        let _ = e;
                        return Ok(done + at);
                    }
                    Err(e) => return Err(e),
                }
            }
            done += at;
            if source.remaining() == 0 || bytes.is_empty() {
                return Ok(done);
            }
        }
    }

    fn recv(&self, sink: &mut dyn ReadSink, message: &mut RecvMsg, who: &Caller) -> Result<usize> {
        let flow = self.flow()?;
        if message.flags & msg::OOB != 0 {
            return Err(Errno::EINVAL);
        }
        if message.flags & msg::ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        let timeout = self.inner.lock().common.rcv_timeout;
        let nonblock = who.nonblock || message.flags & msg::DONTWAIT != 0;
        let peek = message.flags & msg::PEEK != 0;
        let discard = message.flags & msg::TRUNC != 0;
        let mut done = 0;
        let mut buf = Buffer::default();
        while sink.remaining() > 0 {
            let want = sink.remaining().min(CHUNK);
            if buf.len() < want {
                buf = Buffer::new(want);
            }
            let more = done == 0 || (message.flags & msg::WAITALL != 0 && !peek);
            let r = wait(&flow.readable, nonblock || !more, timeout, || flow.recv(&self.stack, &mut buf[..want], peek));
            match r {
                Ok(0) => break,
                Ok(n) => {
                    let put = if discard {
                        sink.put_zeroes(0).map(|_| n).map_err(|_| Errno::EFAULT)
                    } else {
                        give(sink, &buf[..n])
                    };
                    match put {
                        Ok(_) => done += n,
                        Err(e) if done == 0 => return Err(e),
                        Err(_) => break,
                    }
                    if peek || discard {
                        break;
                    }
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn shutdown(&self, read: bool, write: bool) -> Result<()> {
        let role = {
            let inner = self.inner.lock();
            match &inner.role {
                Role::Idle => return Err(Errno::ENOTCONN),
                Role::Flow(f) => Ok(f.clone()),
                Role::Listener(l) => Err(l.clone()),
            }
        };
        match role {
            Ok(flow) => {
                if flow.status().state == State::Closed {
                    return Err(Errno::ENOTCONN);
                }
                if read {
                    flow.shutdown_read();
                }
                if write {
                    self.inner.lock().write_closed = true;
                    flow.shutdown_write(&self.stack)?;
                }
            }
            Err(l) if read => {
                l.close(&self.stack);
                self.inner.lock().role = Role::Idle;
                // Who polls or accepts learns that nobody will come.
                self.readable.wake_all();
                self.writable.wake_all();
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn set_option(&self, level: u32, name: u32, value: &[u8], who: &Caller) -> Result<()> {
        let mut inner = self.inner.lock();
        if level == level::IPV6 && name == 26 && inner.bound.is_some() {
            return Err(Errno::EINVAL);
        }
        if level == level::SOCKET && name == 25 {
            inner.common.bound = self.stack.device_option(value)?;
        } else {
            inner.common.set(level, name, value, who)?;
        }
        let options = inner.common.tcp();
        match &inner.role {
            Role::Flow(f) => {
                let f = f.clone();
                drop(inner);
                f.set_options(&self.stack, &options);
            }
            Role::Listener(l) => l.set_options(&options),
            Role::Idle => {}
        }
        Ok(())
    }

    fn option(&self, level: u32, name: u32) -> Result<Vec<u8>> {
        let number = |n: u32| Ok(n.to_ne_bytes().to_vec());
        match (level, name) {
            (level::SOCKET, 3) => number(kind::STREAM),
            (level::SOCKET, 38) => number(TCP.into()),
            (level::SOCKET, 39) => number(self.family.into()),
            (level::SOCKET, 30) => number(u32::from(matches!(self.inner.lock().role, Role::Listener(_)))),
            (level::SOCKET, 4) => {
                let Ok(flow) = self.flow() else { return number(0) };
                match Self::outcome(&flow) {
                    Ok(()) | Err(Errno::EAGAIN) => number(0),
                    Err(e) => number(e.raw() as u32),
                }
            }
            (level::TCP, 11) => Ok(match self.flow() {
                Ok(f) => Self::info(&f.status()),
                Err(_) => alloc::vec![if matches!(self.inner.lock().role, Role::Listener(_)) { 10 } else { 7 }],
            }),
            _ => self.inner.lock().common.get(level, name),
        }
    }

    fn ready(&self) -> u32 {
        let (flow, write_closed) = {
            let inner = self.inner.lock();
            match &inner.role {
                Role::Idle => return ready::OUT | ready::HUP,
                Role::Listener(l) => return if l.queued().0 > 0 { ready::IN } else { 0 },
                Role::Flow(f) => (f.clone(), inner.write_closed),
            }
        };
        let s = flow.status();
        let mut now = 0;
        if s.ended && write_closed {
            now |= ready::HUP;
        }
        if s.readable > 0 || s.ended {
            now |= ready::IN;
        }
        if s.ended
            || matches!(s.state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed)
        {
            now |= ready::RDHUP;
        }
        let sends = matches!(s.state, State::Established | State::CloseWait);
        if (sends && s.room >= s.capacity / 3) || !(sends || s.is_connecting()) {
            now |= ready::OUT;
        }
        if s.error {
            now |= ready::ERR | ready::IN | ready::OUT;
        }
        if matches!(s.state, State::Closed | State::TimeWait | State::LastAck | State::Closing) {
            now |= ready::HUP | ready::IN;
        }
        now
    }

    fn queues(&self) -> [Arc<WaitQueue>; 2] {
        [self.readable.clone(), self.writable.clone()]
    }

    fn pending(&self) -> (usize, usize) {
        self.flow().map_or((0, 0), |f| {
            let s = f.status();
            (s.readable, s.unsent)
        })
    }

    fn close(&self, who: &Caller) {
        let (role, linger) = {
            let mut inner = self.inner.lock();
            inner.lease = None;
            (core::mem::replace(&mut inner.role, Role::Idle), inner.common.linger)
        };
        match role {
            Role::Idle => {}
            Role::Listener(l) => l.close(&self.stack),
            Role::Flow(flow) => {
                flow.close(&self.stack, linger == Some(0));
                if let Some(seconds) = linger.filter(|s| *s > 0 && !who.nonblock) {
                    let gone = || match flow.status() {
                        s if s.unsent == 0 || s.state == State::Closed => Ok(()),
                        _ => Err(Errno::EAGAIN),
                    };
                    let _ = wait(&flow.writable, false, Some(u64::from(seconds) * 1_000_000_000), gone);
                }
            }
        }
    }
}
