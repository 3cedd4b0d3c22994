//! The system calls of unix sockets.

use super::inbox::{LIMIT, OVERHEAD, Record};
use super::{CHUNK, MAX_FILES, NAMES, Name, State, Unix};
use crate::socket::{Caller, Cred, RecvMsg, SendMsg, SockAddr, Socket, family, give, kind, msg, ready, take, wait};
use abi::{Errno, Result};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use platform::{ReadSink, WriteSource};
use sync::WaitQueue;

impl Socket for Unix {
    fn family(&self) -> u16 {
        family::UNIX
    }
    fn kind(&self) -> u32 {
        self.kind
    }
    fn protocol(&self) -> u32 {
        0
    }

    fn bind(&self, addr: &SockAddr, _who: &Caller) -> Result<()> {
        let SockAddr::Unix(name) = addr else { return Err(Errno::EINVAL) };
        match name.split_first() {
            Some((0, rest)) => self.enter(Name::Abstract(rest.to_vec()), name.clone()),
            // A path is the caller's matter; see `bind_file`.
            Some(_) => Err(Errno::EINVAL),
            None => {
                // Autobind: five hexadecimal digits.
                for _ in 0..1000 {
                    let text = alloc::format!("{:05x}", platform::random_u64() & 0xf_ffff);
                    let path = [&[0], text.as_bytes()].concat();
                    match self.enter(Name::Abstract(text.into_bytes()), path) {
                        Err(Errno::EADDRINUSE) => {}
                        done => return done,
                    }
                }
                Err(Errno::EADDRINUSE)
            }
        }
    }

    fn connect(&self, addr: &SockAddr, who: &Caller) -> Result<()> {
        match addr {
            SockAddr::Unspecified if self.kind == kind::DGRAM => {
                let old = core::mem::replace(&mut self.inner.lock().state, State::Idle);
                drop(old);
                Ok(())
            }
            SockAddr::Unix(name) => match name.split_first() {
                Some((0, rest)) => self.connect_to(&Self::find(&Name::Abstract(rest.to_vec()))?, who),
                _ => Err(Errno::ECONNREFUSED),
            },
            _ => Err(Errno::EINVAL),
        }
    }

    fn listen(&self, backlog: usize, who: &Caller) -> Result<()> {
        if self.kind == kind::DGRAM {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut inner = self.inner.lock();
        if inner.name.is_none() {
            return Err(Errno::EINVAL);
        }
        inner.cred = who.cred;
        match &mut inner.state {
            State::Listening { backlog: b, .. } => *b = backlog,
            State::Idle => inner.state = State::Listening { waiting: VecDeque::new(), backlog },
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn accept(&self, who: &Caller) -> Result<Arc<dyn Socket>> {
        if self.kind == kind::DGRAM {
            return Err(Errno::EOPNOTSUPP);
        }
        let timeout = self.inner.lock().common.rcv_timeout;
        let s = wait(&self.inbox.readable, who.nonblock, timeout, || match &mut self.inner.lock().state {
            State::Listening { waiting, .. } => waiting.pop_front().ok_or(Errno::EAGAIN),
            _ => Err(Errno::EINVAL),
        })?;
        self.writable.wake_all();
        Ok(s)
    }

    fn local(&self) -> SockAddr {
        SockAddr::Unix(self.inner.lock().path.clone())
    }

    fn peer(&self) -> Result<SockAddr> {
        let peer = match &self.inner.lock().state {
            State::Connected { peer, .. } => peer.upgrade(),
            State::Directed(to) => Some(to.clone()),
            _ => return Err(Errno::ENOTCONN),
        };
        let path = peer.map(|p| p.inner.lock().path.clone());
        Ok(SockAddr::Unix(path.unwrap_or_default()))
    }

    fn send(&self, source: &mut dyn WriteSource, message: &mut SendMsg, who: &Caller) -> Result<usize> {
        if message.flags & msg::OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if message.files.len() > MAX_FILES {
            return Err(Errno::EINVAL);
        }
        let inbox = self.target(message)?;
        if self.inner.lock().write_closed {
            return Err(Errno::EPIPE);
        }
        let nonblock = who.nonblock || message.flags & msg::DONTWAIT != 0;
        let cred = message.cred.unwrap_or(who.cred);
        let stream = self.kind == kind::STREAM;
        let from = if stream { Vec::new() } else { self.inner.lock().path.clone() };
        let total = source.remaining();
        if !stream && total > LIMIT - OVERHEAD {
            return Err(Errno::EMSGSIZE);
        }
        let mut done = 0;
        loop {
            if stream && total > 0 {
                // Bytes are taken only when there is room.
                let timeout = self.inner.lock().common.snd_timeout;
                let room = || {
                    let i = inbox.inner.lock();
                    if i.bytes + OVERHEAD < LIMIT || i.refused { Ok(()) } else { Err(Errno::EAGAIN) }
                };
                if let Err(e) = wait(&inbox.room, nonblock, timeout, room) {
                    return if done > 0 { Ok(done) } else { Err(e) };
                }
            }
            let data = match take(source, if stream { CHUNK } else { total }) {
                Ok(d) => d,
                Err(_) if done > 0 => return Ok(done),
                Err(e) => return Err(e),
            };
            let n = data.len();
            if stream && n == 0 {
                return Ok(done);
            }
            let files = core::mem::take(&mut message.files);
            let record = Record { data, at: 0, files, cred, from: from.clone() };
            match self.post(&inbox, record, nonblock && !stream) {
                Ok(()) => done += n,
                Err(_) if done > 0 => return Ok(done),
                Err(e) => return Err(e),
            }
            if !stream || source.remaining() == 0 {
                return Ok(done);
            }
        }
    }

    fn recv(&self, sink: &mut dyn ReadSink, message: &mut RecvMsg, who: &Caller) -> Result<usize> {
        if message.flags & msg::OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.kind != kind::DGRAM && !matches!(self.inner.lock().state, State::Connected { .. }) {
            return Err(if self.kind == kind::STREAM { Errno::EINVAL } else { Errno::ENOTCONN });
        }
        let nonblock = who.nonblock || message.flags & msg::DONTWAIT != 0;
        let peek = message.flags & msg::PEEK != 0;
        let (timeout, pass_cred) = {
            let inner = self.inner.lock();
            (inner.common.rcv_timeout, inner.common.pass_cred)
        };
        let stream = self.kind == kind::STREAM;
        if stream && sink.remaining() == 0 {
            return Ok(0);
        }
        let mut done = 0;
        loop {
            let want = if stream { sink.remaining().min(CHUNK) } else { sink.remaining().min(LIMIT) };
            let mut buf = Vec::new();
            let more = done == 0 || (message.flags & msg::WAITALL != 0 && stream && !peek);
            let got =
                wait(&self.inbox.readable, nonblock || !more, timeout, || self.collect(want, peek, message, &mut buf));
            match got {
                Ok(n) => {
                    give(sink, &buf)?;
                    done += n;
                    if n == 0 || !stream || peek || sink.remaining() == 0 || !message.files.is_empty() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        if !pass_cred {
            message.cred = None;
        }
        Ok(done)
    }

    fn shutdown(&self, read: bool, write: bool) -> Result<()> {
        let inbox = {
            let mut inner = self.inner.lock();
            let State::Connected { inbox, .. } = &inner.state else { return Err(Errno::ENOTCONN) };
            let inbox = inbox.clone();
            inner.write_closed |= write;
            inbox
        };
        if write {
            inbox.end(None);
        }
        if read {
            let mut i = self.inbox.inner.lock();
            i.ended = true;
            i.refused = true;
            drop(i);
            self.inbox.readable.wake_all();
            self.inbox.room.wake_all();
        }
        self.writable.wake_all();
        Ok(())
    }

    fn set_option(&self, level: u32, name: u32, value: &[u8], who: &Caller) -> Result<()> {
        if level != 1 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.inner.lock().common.set(level, name, value, who)
    }

    fn option(&self, level: u32, name: u32) -> Result<Vec<u8>> {
        let number = |n: u32| Ok(n.to_ne_bytes().to_vec());
        let inner = self.inner.lock();
        match (level, name) {
            (1, 3) => number(self.kind),
            (1, 38) => number(0),
            (1, 39) => number(family::UNIX.into()),
            (1, 30) => number(u32::from(matches!(inner.state, State::Listening { .. }))),
            (1, 4) => {
                let e = self.inbox.inner.lock().error.take();
                number(e.map_or(0, |e| e.raw() as u32))
            }
            (1, 17) => {
                let c = match &inner.state {
                    State::Connected { cred, .. } => *cred,
                    _ => Cred { pid: 0, uid: u32::MAX, gid: u32::MAX },
                };
                Ok([c.pid, c.uid, c.gid].map(u32::to_ne_bytes).concat())
            }
            (1, 7 | 8) => number(inner.common.sndbuf.unwrap_or(LIMIT) as u32),
            (1, _) => inner.common.get(level, name),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn ready(&self) -> u32 {
        let (peer, listening, write_closed) = {
            let inner = self.inner.lock();
            match &inner.state {
                State::Listening { waiting, .. } => (None, Some(!waiting.is_empty()), false),
                State::Connected { inbox, .. } => (Some(inbox.clone()), None, inner.write_closed),
                _ => (None, None, inner.write_closed),
            }
        };
        if let Some(some) = listening {
            return if some { ready::IN } else { 0 };
        }
        let mut now = 0;
        let ended = {
            let own = self.inbox.inner.lock();
            if !own.records.is_empty() || own.ended || own.error.is_some() {
                now |= ready::IN;
            }
            if own.error.is_some() {
                now |= ready::ERR;
            }
            own.ended
        };
        if ended {
            now |= ready::RDHUP;
        }
        let Some(peer) = peer else {
            return now | ready::OUT | ready::WRBAND | if self.kind == kind::DGRAM { 0 } else { ready::HUP };
        };
        let other = peer.inner.lock();
        // A datagram socket outlives its peer: it may be connected to another.
        let left = other.refused && self.kind != kind::DGRAM;
        if ended && (write_closed || left) {
            now |= ready::HUP;
        }
        if other.bytes <= LIMIT / 2 || other.refused {
            now |= ready::OUT | ready::WRBAND;
        }
        now
    }

    fn queues(&self) -> [Arc<WaitQueue>; 2] {
        [self.inbox.readable.clone(), self.writable.clone()]
    }

    fn pending(&self) -> (usize, usize) {
        let inner = self.inbox.inner.lock();
        let own = match self.kind {
            kind::STREAM => inner.records.iter().map(|r| r.data.len() - r.at).sum(),
            _ => inner.records.front().map_or(0, |r| r.data.len()),
        };
        (own, 0)
    }

    fn close(&self, _who: &Caller) {
        let name = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            inner.name.take()
        };
        if let Some(name) = name {
            let mut names = NAMES.lock();
            // A new socket may have taken the name of one that is gone.
            if names.get(&name).is_some_and(|w| core::ptr::eq(w.as_ptr(), self)) {
                names.remove(&name);
            }
        }
        let state = core::mem::replace(&mut self.inner.lock().state, State::Idle);
        let unread = self.inbox.refuse();
        match state {
            State::Connected { inbox, .. } => {
                if self.kind != kind::DGRAM {
                    let reset = !unread.is_empty() && self.kind == kind::STREAM;
                    inbox.end(reset.then_some(Errno::ECONNRESET));
                }
                inbox.room.wake_all();
            }
            State::Listening { waiting, .. } => {
                for s in waiting {
                    s.close(&Caller::default());
                }
                self.writable.wake_all();
            }
            State::Idle | State::Directed(_) => {}
        }
        drop(unread);
    }
}
