//! Listeners: accepting, TLS, the two protocols, and the end.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;
use crate::conn::{Guard, Moving};
use crate::handle::{Peer, Server};
use crate::metrics::{COUNTERS, count};
use crate::{log, metrics};

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: i32 = 1024;
/// How often changed certificates are looked for.
const REFRESH: Duration = Duration::from_secs(2);
/// What a connection gets to end by itself once it was told to.
const GRACE: Duration = Duration::from_millis(200);

/// The bound ports, from before the server has become who it serves as.
#[derive(Debug)]
pub struct Sockets {
    listeners: Vec<std::net::TcpListener>,
    metrics: Option<std::net::TcpListener>,
    /// Where readiness is said (sd_notify(3)): whoever started this may let root alone send there.
    notify: Option<UnixDatagram>,
}

impl Sockets {
    /// Binds all of them before any is served: a port in use ends the program at once.
    pub fn bind(config: &Config) -> Result<Self, String> {
        let listeners = config.listen.iter().map(|l| bind(l.address)).collect::<Result<_, _>>()?;
        let metrics = config.metrics.map(bind).transpose()?;
        let notify = std::env::var_os("NOTIFY_SOCKET").and_then(|path| {
            let socket = UnixDatagram::unbound().and_then(|s| s.connect(&path).map(|()| s));
            socket.map_err(|e| eprintln!("httpd: {}: {e}", path.display())).ok()
        });
        Ok(Self { listeners, metrics, notify })
    }
}

/// Serves until SIGTERM or SIGINT, then lets what is under way finish.
pub async fn serve(server: Arc<Server>, sockets: Sockets) -> Result<(), String> {
    let acceptor = match &server.certificates {
        Some(store) => Some(TlsAcceptor::from(store.server_config()?)),
        None => None,
    };
    let watched = |l| TcpListener::from_std(l).map_err(|e| format!("cannot wait for connections: {e}"));
    if let Some(listener) = sockets.metrics {
        tokio::spawn(serve_metrics(watched(listener)?));
    }
    for (l, listener) in server.config.listen.iter().zip(sockets.listeners) {
        eprintln!("httpd: listening on {} ({})", l.address, if l.tls { "HTTPS" } else { "HTTP" });
        tokio::spawn(accept(watched(listener)?, server.clone(), if l.tls { acceptor.clone() } else { None }));
    }
    if let Some(Err(e)) = sockets.notify.map(|s| s.send(b"READY=1")) {
        eprintln!("httpd: cannot say that it is ready: {e}");
    }
    wait_for_end(&server).await?;
    eprintln!("httpd: ending");
    server.slots.drain();
    let end = Instant::now() + Duration::from_secs(server.config.limits.drain_seconds);
    while server.slots.open() > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn wait_for_end(server: &Server) -> Result<(), String> {
    let handler = |kind| signal(kind).map_err(|e| format!("signals: {e}"));
    let (mut term, mut int, mut hup) =
        (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?, handler(SignalKind::hangup())?);
    let mut refresh = tokio::time::interval(REFRESH);
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            _ = hup.recv() => {
                log::reopen();
                if let Some(store) = &server.certificates { store.refresh(); }
            }
            _ = refresh.tick(), if server.certificates.is_some() => {
                if let Some(store) = &server.certificates { store.refresh(); }
            }
        }
    }
}

fn bind(address: SocketAddr) -> Result<std::net::TcpListener, String> {
    use socket2::{Domain, Socket, Type};
    let open = || -> io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(|e| format!("cannot listen on {address}: {e}"))
}

async fn accept(listener: TcpListener, server: Arc<Server>, tls: Option<TlsAcceptor>) {
    loop {
        server.slots.room().await;
        if server.slots.draining.load(Ordering::Acquire) {
            return;
        }
        match listener.accept().await {
            Ok((stream, peer)) => {
                let guard = server.slots.enter();
                tokio::spawn(connection(stream, peer, server.clone(), tls.clone(), guard));
            }
            Err(e) if is_the_connections_own(&e) => {}
            Err(e) => {
                // Out of descriptors or memory: somebody makes way, and time passes.
                eprintln!("httpd: accept: {e}");
                server.slots.evict();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn is_the_connections_own(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(e.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

async fn connection(stream: TcpStream, peer: SocketAddr, server: Arc<Server>, tls: Option<TlsAcceptor>, guard: Guard) {
    // Answers are written whole; waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = tls else {
        // Most of what a connection costs is what reads requests: it is made when there is something to read.
        if speaks(&stream, &server, &guard).await {
            Box::pin(serve_plain(stream, peer, server, guard)).await;
        }
        return;
    };
    Box::pin(serve_tls(stream, peer, server, acceptor, guard)).await;
}

/// Waits for a client's first byte, or its end; false if it took too long or has to make way.
async fn speaks(stream: &TcpStream, server: &Server, guard: &Guard) -> bool {
    let mut first = [0];
    tokio::select! {
        // `readable` alone may say so when there is nothing.
        byte = timeout(server.config.limits.idle(), stream.peek(&mut first)) => matches!(byte, Ok(Ok(1))),
        () = guard.0.kicked.notified() => false,
    }
}

async fn serve_plain(stream: TcpStream, address: SocketAddr, server: Arc<Server>, guard: Guard) {
    let stream = Moving::new(stream, server.config.limits.stall());
    speak_http1(stream, Peer { address, tls: false }, server, guard).await;
}

async fn serve_tls(stream: TcpStream, address: SocketAddr, server: Arc<Server>, acceptor: TlsAcceptor, guard: Guard) {
    let handshake = timeout(server.config.limits.handshake(), handshake(stream, acceptor));
    let stream = tokio::select! {
        done = handshake => done.ok().flatten(),
        () = guard.0.kicked.notified() => None,
    };
    let Some(stream) = stream else { return };
    let peer = Peer { address, tls: true };
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = Moving::new(stream, server.config.limits.stall());
    if h2 {
        speak_http2(stream, peer, server, guard).await;
    } else {
        speak_http1(stream, peer, server, guard).await;
    }
}

async fn handshake(stream: TcpStream, acceptor: TlsAcceptor) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    const HANDSHAKE: u8 = 0x16;
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1) if first[0] == HANDSHAKE => {}
        Ok(1) if first[0].is_ascii_uppercase() => {
            count(&COUNTERS.plain_on_tls);
            refuse_plain(stream).await;
            return None;
        }
        Ok(1) => {
            count(&COUNTERS.handshakes_failed);
            return None;
        }
        _ => return None,
    }
    match acceptor.accept(stream).await {
        Ok(stream) => {
            count(&COUNTERS.handshakes);
            Some(stream)
        }
        Err(_) => {
            count(&COUNTERS.handshakes_failed);
            None
        }
    }
}

/// A client that speaks plain HTTP gets an answer in plain HTTP.
async fn refuse_plain(mut stream: TcpStream) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 58\r\n\
        Connection: close\r\n\r\nThis port speaks HTTPS. Ask again with https:// in front.\n";
    // The request is read, some of it, since closing with bytes unread would take the answer back.
    let mut sink = [0; 4096];
    let _ = stream.read(&mut sink).await;
    if stream.write_all(ANSWER).await.is_ok() && stream.shutdown().await.is_ok() {
        let _ =
            timeout(Duration::from_secs(1), async { while matches!(stream.read(&mut sink).await, Ok(n) if n > 0) {} })
                .await;
    }
}

/// Runs a connection of either protocol until it ends, is told to, or has been idle for too long.
macro_rules! drive {
    ($conn:expr, $server:expr, $guard:expr) => {{
        let mut conn = pin!($conn);
        let slot = $guard.0.clone();
        let idle = $server.config.limits.idle();
        let mut tick = pin!(tokio::time::sleep(idle));
        let mut kicked = pin!(slot.kicked.notified());
        let mut ending = false;
        loop {
            tokio::select! {
                biased;
                done = conn.as_mut() => {
                    if done.is_err() { count(&COUNTERS.protocol_errors); }
                    break;
                }
                () = kicked.as_mut(), if !ending => {
                    ending = true;
                    conn.as_mut().graceful_shutdown();
                    tick.as_mut().reset(Instant::now() + GRACE);
                }
                () = tick.as_mut() => {
                    let idle_for = slot.idle_for();
                    if ending && idle_for.is_some() {
                        break;
                    }
                    if !ending && idle_for.is_some_and(|t| t >= idle) {
                        ending = true;
                        conn.as_mut().graceful_shutdown();
                    }
                    tick.as_mut().reset(Instant::now() + if ending { GRACE } else { idle });
                }
            }
        }
    }};
}

async fn speak_http1<S>(stream: S, peer: Peer, server: Arc<Server>, guard: Guard)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = &server.config.limits;
    let service = service_fn(|request| server.clone().handle(request, peer, guard.0.clone()));
    let conn = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle())
        .max_buf_size(limits.header_bytes)
        .max_headers(100)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    drive!(conn, server, guard);
}

async fn speak_http2<S>(stream: S, peer: Peer, server: Arc<Server>, guard: Guard)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = &server.config.limits;
    let (of, slot) = (server.clone(), guard.0.clone());
    let service = service_fn(move |request| of.clone().handle(request, peer, slot.clone()));
    let conn = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes as u32)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(256 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    drive!(conn, server, guard);
}

/// The metrics page, on a listener of its own: `/metrics`, and `/healthz` for whoever watches the service.
async fn serve_metrics(listener: TcpListener) {
    use hyper::{Request, Response, StatusCode, body::Incoming};
    let places = Arc::new(tokio::sync::Semaphore::new(16));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(|request: Request<Incoming>| async move {
                let (status, text) = match request.uri().path() {
                    "/metrics" => (StatusCode::OK, metrics::page()),
                    "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
                    _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
                };
                let mut answer = Response::new(crate::body::Answer::bytes(text));
                *answer.status_mut() = status;
                answer.headers_mut().insert(
                    hyper::header::CONTENT_TYPE,
                    hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
                );
                Ok::<_, std::convert::Infallible>(answer)
            });
            let conn = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whatever becomes of it, the next one comes.
            let _ = timeout(Duration::from_secs(30), conn).await;
        });
    }
}
