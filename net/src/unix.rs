//! Unix sockets (unix(7)): streams, datagrams, sequences of packets; names, passed files, credentials.
//!
//! # Ideas
//! Each socket owns what it receives into ([`Inbox`]); a connection is two sockets that hold each other's inbox. A send
//! puts a record into the peer's, a receive takes from its own and wakes writers. Files travel in records, opaque
//! ([`Passed`]); a record that is discarded drops them.
//!
//! Names are abstract bytes, or the device and inode of a socket file that the caller has made or looked up: this module
//! knows no file systems.
//!
//! # Locking
//! The table of names (505), then one socket (510), then one inbox (515). No two sockets or inboxes at once. Records are
//! dropped outside of all of them: the last reference to a passed file may sleep.
//!
//! # What was not done
//! Cycles of sockets that are only in each other's inboxes are never freed (Linux collects them); the number of files in
//! one message is bounded (253). `SO_PEEK_OFF`, `MSG_OOB`.

use crate::socket::{
    Caller, Common, Cred, Passed, RecvMsg, SendMsg, SockAddr, Socket, family, give, kind, msg, ready, take, wait,
};
use abi::{Errno, Result};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use platform::{ReadSink, WriteSource};
use sync::{LockClass, SpinLock, WaitQueue};

static NAMES_CLASS: LockClass = LockClass::new("unix names", 505);
static CLASS: LockClass = LockClass::new("unix socket", 510);
static INBOX: LockClass = LockClass::new("unix inbox", 515);
/// Bytes that an inbox holds.
const LIMIT: usize = 212_992;
/// What each record costs of that.
const OVERHEAD: usize = 64;
/// Most files in a message (`SCM_MAX_FD`).
pub const MAX_FILES: usize = 253;
const CHUNK: usize = 32 << 10;

/// What a socket can be found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Bytes.
    Abstract(Vec<u8>),
    /// A socket file: device and inode.
    File(u64, u64),
}

static NAMES: SpinLock<BTreeMap<Name, Weak<Unix>>> = SpinLock::new(&NAMES_CLASS, BTreeMap::new());

struct Record {
    data: Vec<u8>,
    at: usize,
    files: Vec<Passed>,
    cred: Cred,
    from: Vec<u8>,
}

#[derive(Default)]
struct InboxInner {
    records: VecDeque<Record>,
    bytes: usize,
    /// Nobody will send any more.
    ended: bool,
    /// Nobody will receive any more.
    refused: bool,
    error: Option<Errno>,
    /// The peer's writers' queue.
    writer: Option<Arc<WaitQueue>>,
}

struct Inbox {
    inner: SpinLock<InboxInner>,
    readable: Arc<WaitQueue>,
    room: WaitQueue,
}

impl Inbox {
    fn woken_writers(&self, inner: &InboxInner) -> Option<Arc<WaitQueue>> {
        inner.writer.clone()
    }

    /// Puts a record in. Gives it back when there is no room. `EPIPE`.
    fn push(&self, record: Record, merge: bool) -> Result<core::result::Result<(), Record>> {
        let mut inner = self.inner.lock();
        if inner.refused {
            drop(inner);
            return Err(Errno::EPIPE);
        }
        let size = record.data.len() + OVERHEAD;
        // A stream's chunk, for which some room was seen, may go over the limit: it cannot be given back to its sender.
        let needs = if merge { OVERHEAD } else { size };
        if inner.bytes > 0 && inner.bytes + needs > LIMIT {
            return Ok(Err(record));
        }
        match inner.records.back_mut() {
            Some(last)
                if merge
                    && last.files.is_empty()
                    && record.files.is_empty()
                    && last.cred == record.cred
                    && last.data.len() + record.data.len() <= 4096 =>
            {
                last.data.extend_from_slice(&record.data);
                inner.bytes += record.data.len();
            }
            _ => {
                inner.bytes += size;
                inner.records.push_back(record);
            }
        }
        drop(inner);
        self.readable.wake();
        Ok(Ok(()))
    }

    /// No more will be sent here; `error` tells the receiver why.
    fn end(&self, error: Option<Errno>) {
        let mut inner = self.inner.lock();
        inner.ended = true;
        if error.is_some() {
            inner.error = error;
        }
        drop(inner);
        self.readable.wake_all();
    }

    /// No more will be received; what was not is given back for dropping.
    fn refuse(&self) -> VecDeque<Record> {
        let mut inner = self.inner.lock();
        inner.refused = true;
        inner.bytes = 0;
        let rest = core::mem::take(&mut inner.records);
        let writer = self.woken_writers(&inner);
        drop(inner);
        self.readable.wake_all();
        self.room.wake_all();
        if let Some(w) = writer {
            w.wake_all();
        }
        rest
    }
}

enum State {
    Idle,
    Listening {
        waiting: VecDeque<Arc<Unix>>,
        backlog: usize,
    },
    Connected {
        peer: Weak<Unix>,
        inbox: Arc<Inbox>,
        cred: Cred,
    },
    /// For datagrams: where sends go without an address.
    Directed(Arc<Unix>),
}

struct Inner {
    common: Common,
    state: State,
    name: Option<Name>,
    path: Vec<u8>,
    cred: Cred,
    write_closed: bool,
    closed: bool,
}

/// A unix socket.
pub struct Unix {
    kind: u32,
    me: Weak<Unix>,
    inner: SpinLock<Inner>,
    inbox: Arc<Inbox>,
    /// Where this socket's writers wait, and those who wait for room in a listener.
    writable: Arc<WaitQueue>,
}

impl Unix {
    /// An unconnected socket. `ESOCKTNOSUPPORT`.
    pub fn new(kind: u32, cred: Cred) -> Result<Arc<Unix>> {
        if !matches!(kind, kind::STREAM | kind::DGRAM | kind::SEQPACKET) {
            return Err(Errno::ESOCKTNOSUPPORT);
        }
        let inner = Inner {
            common: Common::default(),
            state: State::Idle,
            name: None,
            path: Vec::new(),
            cred,
            write_closed: false,
            closed: false,
        };
        let inbox = Arc::new(Inbox {
            inner: SpinLock::new(&INBOX, InboxInner::default()),
            readable: Arc::new(WaitQueue::new()),
            room: WaitQueue::new(),
        });
        let writable = Arc::new(WaitQueue::new());
        Ok(Arc::new_cyclic(|me| Unix { kind, me: me.clone(), inner: SpinLock::new(&CLASS, inner), inbox, writable }))
    }

    /// Two connected sockets (socketpair(2)).
    pub fn pair(kind: u32, cred: Cred) -> Result<[Arc<Unix>; 2]> {
        let (a, b) = (Unix::new(kind, cred)?, Unix::new(kind, cred)?);
        a.join(&b, cred);
        b.join(&a, cred);
        Ok([a, b])
    }

    /// Makes `peer` this socket's other end.
    fn join(&self, peer: &Arc<Unix>, cred: Cred) {
        peer.inbox.inner.lock().writer = Some(self.writable.clone());
        self.inner.lock().state = State::Connected { peer: Arc::downgrade(peer), inbox: peer.inbox.clone(), cred };
    }

    /// Binds to a socket file that the caller has made, known to others as `path`. `EINVAL` if it has a name.
    pub fn bind_file(&self, dev: u64, ino: u64, path: &[u8]) -> Result<()> {
        self.enter(Name::File(dev, ino), path.to_vec())
    }

    /// Whether it has a name.
    pub fn is_bound(&self) -> bool {
        self.inner.lock().name.is_some()
    }

    fn enter(&self, name: Name, path: Vec<u8>) -> Result<()> {
        let mut names = NAMES.lock();
        let mut inner = self.inner.lock();
        if inner.name.is_some() {
            return Err(Errno::EINVAL);
        }
        if names.get(&name).is_some_and(|w| w.strong_count() > 0) {
            return Err(Errno::EADDRINUSE);
        }
        names.insert(name.clone(), self.me.clone());
        inner.name = Some(name);
        inner.path = path;
        Ok(())
    }

    /// The socket of a name. `ECONNREFUSED`.
    fn find(name: &Name) -> Result<Arc<Unix>> {
        NAMES.lock().get(name).and_then(Weak::upgrade).ok_or(Errno::ECONNREFUSED)
    }

    /// Connects to the socket of a socket file.
    pub fn connect_file(&self, dev: u64, ino: u64, who: &Caller) -> Result<()> {
        self.connect_to(&Self::find(&Name::File(dev, ino))?, who)
    }

    fn connect_to(&self, to: &Arc<Unix>, who: &Caller) -> Result<()> {
        if to.kind != self.kind {
            return Err(Errno::EPROTOTYPE);
        }
        if self.kind == kind::DGRAM {
            let old = core::mem::replace(&mut self.inner.lock().state, State::Directed(to.clone()));
            drop(old);
            return Ok(());
        }
        match self.inner.lock().state {
            State::Idle => {}
            State::Listening { .. } => return Err(Errno::EINVAL),
            _ => return Err(Errno::EISCONN),
        }
        let server = Unix::new(self.kind, who.cred)?;
        {
            let listener = to.inner.lock();
            let (path, cred) = (listener.path.clone(), listener.cred);
            drop(listener);
            let mut s = server.inner.lock();
            (s.path, s.cred) = (path, cred);
        }
        let timeout = self.inner.lock().common.snd_timeout;
        let cred = wait(&to.writable, who.nonblock, timeout, || {
            let mut l = to.inner.lock();
            let cred = l.cred;
            match &mut l.state {
                State::Listening { waiting, backlog } if waiting.len() <= *backlog => {
                    waiting.push_back(server.clone());
                    Ok(cred)
                }
                State::Listening { .. } => Err(Errno::EAGAIN),
                _ => Err(Errno::ECONNREFUSED),
            }
        })?;
        if let Some(me) = self.me.upgrade() {
            server.join(&me, who.cred);
        }
        self.join(&server, cred);
        to.inbox.readable.wake();
        Ok(())
    }

    /// Where a message goes: the inbox, and for datagrams the socket. `ENOTCONN`, `ECONNREFUSED`, `EISCONN`.
    fn target(&self, message: &SendMsg) -> Result<Arc<Inbox>> {
        let named = match &message.to {
            Some(SockAddr::Unix(name)) if self.kind == kind::DGRAM => Some(match (message.file, name.split_first()) {
                (Some((dev, ino)), _) => Name::File(dev, ino),
                (None, Some((0, rest))) => Name::Abstract(rest.to_vec()),
                _ => return Err(Errno::ECONNREFUSED),
            }),
            Some(_) if self.kind == kind::STREAM => {
                let connected = matches!(self.inner.lock().state, State::Connected { .. });
                return Err(if connected { Errno::EISCONN } else { Errno::EOPNOTSUPP });
            }
            _ => None,
        };
        if let Some(name) = named {
            let to = Self::find(&name)?;
            return if to.kind == self.kind { Ok(to.inbox.clone()) } else { Err(Errno::EPROTOTYPE) };
        }
        match &self.inner.lock().state {
            State::Connected { inbox, .. } => Ok(inbox.clone()),
            State::Directed(to) => Ok(to.inbox.clone()),
            _ => Err(Errno::ENOTCONN),
        }
    }

    /// Sends one record, waiting for room.
    fn post(&self, inbox: &Inbox, record: Record, nonblock: bool) -> Result<()> {
        let timeout = self.inner.lock().common.snd_timeout;
        let mut held = Some(record);
        let merge = self.kind == kind::STREAM;
        let broken = if self.kind == kind::DGRAM { Errno::ECONNREFUSED } else { Errno::EPIPE };
        wait(&inbox.room, nonblock, timeout, || {
            let Some(r) = held.take() else { return Ok(()) };
            match inbox.push(r, merge) {
                Ok(Ok(())) => Ok(()),
                Ok(Err(r)) => {
                    held = Some(r);
                    Err(Errno::EAGAIN)
                }
                Err(_) => Err(broken),
            }
        })
    }

    /// Takes bytes and what goes with them out of the first records.
    fn collect(&self, want: usize, peek: bool, message: &mut RecvMsg, buf: &mut Vec<u8>) -> Result<usize> {
        let mut inner = self.inbox.inner.lock();
        if inner.records.is_empty() {
            return match inner.error.take() {
                Some(e) => Err(e),
                None if inner.ended || inner.refused => Ok(0),
                None => Err(Errno::EAGAIN),
            };
        }
        let stream = self.kind == kind::STREAM;
        let mut whole = 0;
        let mut empty = Vec::new();
        let mut at = 0;
        while let Some(r) = inner.records.get_mut(at) {
            // A stream's read ends before other credentials, and behind files.
            if message.cred.is_some_and(|c| c != r.cred) || (at > 0 && !r.files.is_empty()) {
                break;
            }
            message.cred = Some(r.cred);
            if !r.from.is_empty() {
                message.from = Some(SockAddr::Unix(r.from.clone()));
            }
            let n = (r.data.len() - r.at).min(want - buf.len());
            buf.extend_from_slice(&r.data[r.at..r.at + n]);
            whole = r.data.len();
            let files = if peek { r.files.clone() } else { core::mem::take(&mut r.files) };
            let stop = !files.is_empty() || !stream;
            message.files.extend(files);
            if peek {
                at += 1;
            } else {
                r.at += n;
                let used = if stream && r.at < r.data.len() { n } else { r.data.len() - r.at + n + OVERHEAD };
                let done = !stream || r.at == r.data.len();
                inner.bytes = inner.bytes.saturating_sub(used);
                if done {
                    empty.extend(inner.records.pop_front());
                }
            }
            if stop || buf.len() == want {
                break;
            }
        }
        let writer = self.inbox.woken_writers(&inner).filter(|_| inner.bytes <= LIMIT / 2);
        drop(inner);
        drop(empty);
        if !peek {
            self.inbox.room.wake_all();
            if let Some(w) = writer {
                w.wake_all();
            }
        }
        if !stream && whole > buf.len() {
            message.out |= msg::TRUNC;
        }
        Ok(if !stream && message.flags & msg::TRUNC != 0 { whole } else { buf.len() })
    }
}

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
        let Some(peer) = peer else {
            return now | ready::OUT | if self.kind == kind::DGRAM { 0 } else { ready::HUP };
        };
        let other = peer.inner.lock();
        if ended {
            now |= ready::RDHUP;
        }
        if ended && (write_closed || other.refused) {
            now |= ready::HUP;
        }
        if other.bytes <= LIMIT / 2 || other.refused {
            now |= ready::OUT;
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
                let reset = !unread.is_empty() && self.kind == kind::STREAM;
                inbox.end(reset.then_some(Errno::ECONNRESET));
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

/// All named sockets, for `/proc/net/unix`: name, type, state (1 idle or datagram, 3 connected; listening is flagged).
pub fn list() -> Vec<(Vec<u8>, u32, bool, bool)> {
    let all: Vec<_> = NAMES.lock().values().filter_map(Weak::upgrade).collect();
    let mut out = Vec::new();
    for u in all {
        let inner = u.inner.lock();
        let (listening, connected) =
            (matches!(inner.state, State::Listening { .. }), matches!(inner.state, State::Connected { .. }));
        out.push((inner.path.clone(), u.kind, listening, connected));
    }
    out
}
