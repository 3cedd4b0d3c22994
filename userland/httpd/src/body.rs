//! Bodies: answers that account for themselves, and requests' bodies that must keep coming.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use rustix::fd::OwnedFd;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use crate::handle::Record;
use crate::metrics::{COUNTERS, count};

/// How much of a file is read at a time.
const PIECE: u64 = 128 * 1024;

/// Why a body broke off.
#[derive(Debug)]
pub enum Broken {
    /// It is longer than allowed.
    TooLarge,
    /// It made no progress, or too little.
    Stalled,
    /// The connection that it came over failed.
    Peer(hyper::Error),
    /// The file that it comes from failed or shrank.
    File(io::Error),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLarge => f.write_str("the body is longer than allowed"),
            Self::Stalled => f.write_str("the body made no progress"),
            Self::Peer(e) => write!(f, "{e}"),
            Self::File(e) => write!(f, "{e}"),
        }
    }
}

impl std::error::Error for Broken {}

/// A sleep that is armed while nothing comes.
struct Patience {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, sleep: None }
    }

    /// True when `limit` has passed without a call of `moved`.
    fn over(&mut self, cx: &mut Context<'_>) -> bool {
        let limit = self.limit;
        self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx).is_ready()
    }

    fn moved(&mut self) {
        self.sleep = None;
    }
}

/// A request's body on its way to the server behind the proxy.
pub struct Upload {
    inner: Incoming,
    left: u64,
    received: u64,
    rate: u64,
    began: Instant,
    patience: Patience,
    /// It is too long; so many bytes more are read, so that the client comes to read the answer.
    swallow: Option<u64>,
}

/// What is read of a body that is refused. A connection that is closed with bytes unread takes its last answer back.
const SWALLOW: u64 = 4 << 20;

/// Reads and forgets some of a refused body, for a moment.
pub async fn swallow(body: Incoming) {
    use http_body_util::BodyExt as _;
    let mut body = http_body_util::Limited::new(body, SWALLOW as usize);
    let all = async { while matches!(body.frame().await, Some(Ok(_))) {} };
    // Whoever sends for longer does not see the answer.
    let _ = tokio::time::timeout(Duration::from_secs(2), all).await;
}

impl Upload {
    /// At most `limit` bytes, no longer than `stall` without any, and at least `rate` bytes a second after that.
    pub fn new(inner: Incoming, limit: u64, stall: Duration, rate: u64) -> Self {
        Self {
            inner,
            left: limit,
            received: 0,
            rate,
            began: Instant::now(),
            patience: Patience::new(stall),
            swallow: None,
        }
    }

    /// The end of a body that is too long: read on for a while.
    fn poll_swallow(&mut self, cx: &mut Context<'_>, mut left: u64) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Pending if self.patience.over(cx) => break,
                Poll::Pending => {
                    self.swallow = Some(left);
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => {
                    let size = frame.data_ref().map_or(0, |d| d.len() as u64);
                    if size >= left {
                        break;
                    }
                    left -= size;
                }
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(Some(Err(Broken::TooLarge)))
    }

    fn too_slow(&self) -> bool {
        let after = self.began.elapsed();
        after > self.patience.limit && self.received < self.rate.saturating_mul(after.as_secs())
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(left) = self.swallow {
            return self.poll_swallow(cx, left);
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending if self.patience.over(cx) => Poll::Ready(Some(Err(Broken::Stalled))),
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(e))) => Poll::Ready(Some(Err(Broken::Peer(e)))),
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.moved();
                let size = frame.data_ref().map_or(0, |d| d.len() as u64);
                self.received += size;
                if size > self.left {
                    return self.poll_swallow(cx, SWALLOW);
                }
                self.left -= size;
                if self.too_slow() {
                    return Poll::Ready(Some(Err(Broken::Stalled)));
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What an answer is made of.
pub enum Content {
    /// These bytes.
    Bytes(Bytes),
    /// A part of a file.
    File(Part),
    /// What another server says.
    Proxied(Proxied),
}

/// The answer of the server behind the proxy.
pub struct Proxied {
    inner: Incoming,
    patience: Patience,
    _place: OwnedSemaphorePermit,
}

impl Proxied {
    /// `inner`, which may stand still for `stall`.
    pub fn new(inner: Incoming, stall: Duration, place: OwnedSemaphorePermit) -> Self {
        Self { inner, patience: Patience::new(stall), _place: place }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending if self.patience.over(cx) => {
                count(&COUNTERS.proxy_errors);
                Poll::Ready(Some(Err(Broken::Stalled)))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(frame) => {
                self.patience.moved();
                Poll::Ready(frame.map(|f| f.map_err(Broken::Peer)))
            }
        }
    }
}

/// A part of a file, read piece by piece outside the threads that serve connections, one piece ahead of what is sent.
pub struct Part {
    file: Arc<OwnedFd>,
    offset: u64,
    left: u64,
    piece: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl Part {
    /// `len` bytes of `file` from `offset` on.
    pub fn new(file: OwnedFd, offset: u64, len: u64) -> Self {
        Self { file: Arc::new(file), offset, left: len, piece: None }
    }

    fn read_ahead(&mut self) {
        let want = self.left.min(PIECE);
        if want == 0 {
            self.piece = None;
            return;
        }
        let (file, offset) = (self.file.clone(), self.offset);
        self.piece = Some(tokio::task::spawn_blocking(move || read(&file, offset, want as usize)));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.piece.is_none() {
            self.read_ahead();
        }
        let Some(piece) = &mut self.piece else { return Poll::Ready(None) };
        let Poll::Ready(done) = Pin::new(piece).poll(cx) else { return Poll::Pending };
        match done.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Err(e) => {
                self.left = 0;
                Poll::Ready(Some(Err(Broken::File(e))))
            }
            Ok(bytes) => {
                self.left -= bytes.len() as u64;
                self.offset += bytes.len() as u64;
                self.read_ahead();
                Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
            }
        }
    }
}

/// `len` bytes of `file` at `offset`; less is an error, since the length is promised by then.
pub fn read(file: &OwnedFd, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match rustix::io::pread(file, &mut bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(bytes)
}

/// An answer's body.
pub struct Answer {
    content: Content,
    record: Option<Box<Record>>,
}

impl Answer {
    /// A body that nobody accounts for yet.
    pub fn new(content: Content) -> Self {
        Self { content, record: None }
    }

    /// These bytes.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::new(Content::Bytes(bytes.into()))
    }

    /// The answer is over when this body is dropped; `record` says so.
    pub fn recorded(mut self, record: Record) -> Self {
        self.record = Some(Box::new(record));
        self
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = match &mut self.content {
            Content::Bytes(b) if b.is_empty() => Poll::Ready(None),
            Content::Bytes(b) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(b))))),
            Content::File(part) => part.poll(cx),
            Content::Proxied(p) => p.poll(cx),
        };
        if let (Poll::Ready(Some(done)), Some(record)) = (&frame, &mut self.record) {
            match done {
                Ok(frame) => record.bytes += frame.data_ref().map_or(0, |d| d.len() as u64),
                Err(_) => record.broken = true,
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Bytes(b) => b.is_empty(),
            Content::File(part) => part.left == 0,
            Content::Proxied(p) => p.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(b) => SizeHint::with_exact(b.len() as u64),
            Content::File(part) => SizeHint::with_exact(part.left),
            Content::Proxied(p) => p.inner.size_hint(),
        }
    }
}
