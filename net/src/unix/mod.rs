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

mod inbox;
mod socket;

use crate::socket::{Caller, Common, Cred, RecvMsg, SendMsg, SockAddr, kind, msg, wait};
use abi::{Errno, Result};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use inbox::{Inbox, LIMIT, OVERHEAD, Record};
use sync::{LockClass, SpinLock, WaitQueue};

static NAMES_CLASS: LockClass = LockClass::new("unix names", 505);
static CLASS: LockClass = LockClass::new("unix socket", 510);
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
        let inbox = Arc::new(Inbox::new(Arc::new(WaitQueue::new())));
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
