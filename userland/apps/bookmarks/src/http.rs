//! Requests and answers: accepting, reading what is sent within limits, and who answers which path.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::accounts::{self, User};
use crate::db::Db;
use crate::fault::{Fault, Outcome, bad};
use crate::{api, form, pages, store};

/// Connections at once. httpd is the only client.
const CONNECTIONS: usize = 512;
/// Of a form or of JSON.
const SMALL_BODY: usize = 128 * 1024;
/// Of an upload.
const LARGE_BODY: usize = 8 << 20;
/// Uploads in memory at once.
static UPLOADS: Semaphore = Semaphore::const_new(4);
/// The session's cookie.
const COOKIE: &str = "session";

/// The application.
pub struct App {
    /// Its database.
    pub db: Arc<Db>,
    files: PathBuf,
}

/// What is sent back.
pub type Answer = Response<Full<Bytes>>;

/// A request whose body has been read.
pub struct Asked {
    /// How.
    pub method: Method,
    /// What, without the query.
    pub path: String,
    /// The query's pairs.
    pub query: Vec<(String, String)>,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Whose it is.
    pub user: Option<User>,
    /// The session's secret.
    pub secret: Option<String>,
}

impl Asked {
    /// Who is logged in.
    pub fn user(&self) -> Outcome<&User> {
        self.user.as_ref().ok_or(Fault::LoginNeeded)
    }

    /// The pairs of the form that was sent.
    pub fn form(&self) -> Vec<(String, String)> {
        form::pairs(&String::from_utf8_lossy(&self.body))
    }

    /// Which bookmarks are asked for.
    pub fn list_query(&self) -> store::Query {
        let value = |name| form::value(&self.query, name);
        store::Query {
            words: value("q"),
            tag: value("tag"),
            starred: !value("starred").is_empty(),
            before: value("before").parse().ok(),
        }
    }

    fn header(&self, name: HeaderName) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }

    /// A browser says where a form came from; one of another site must not act in the user's name. (The cookie is also
    /// `SameSite=Lax`.)
    fn is_from_elsewhere(&self) -> bool {
        let origin = self.header(header::ORIGIN);
        let host = self.header(header::HOST);
        !origin.is_empty() && origin.split_once("://").is_none_or(|(_, o)| !o.eq_ignore_ascii_case(host))
    }
}

/// An answer with a body.
pub fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// Go there, with GET.
pub fn see(to: &str) -> Answer {
    let mut answer = reply(StatusCode::SEE_OTHER, "text/plain", "");
    if let Ok(to) = HeaderValue::from_str(to) {
        answer.headers_mut().insert(header::LOCATION, to);
    }
    answer
}

/// Gives the browser a session, or takes it with an empty secret.
pub fn with_session(mut answer: Answer, secret: &str, tls: bool) -> Answer {
    let age = if secret.is_empty() { 0 } else { accounts::SESSION };
    let secure = if tls { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={secret}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{secure}");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    answer
}

impl App {
    /// The application over `db`, with uploads in `files`.
    pub fn new(db: Arc<Db>, files: PathBuf) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self { db, files }))
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let path = request.uri().path().to_owned();
        let machine = path.starts_with("/api/");
        let head = request.method() == Method::HEAD;
        let mut answer = match self.answer(request).await {
            Ok(answer) => answer,
            Err(Fault::LoginNeeded) if !machine => see("/login"),
            Err(fault) => {
                let (status, why) = fault.answer();
                if machine { api::failed(status, why) } else { pages::failed(status, why) }
            }
        };
        let set = [
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            // Not `no-referrer`: browsers then send `Origin: null` with the forms of this very site, which are refused.
            (header::REFERRER_POLICY, "same-origin"),
            (
                header::CONTENT_SECURITY_POLICY,
                "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            ),
        ];
        for (name, value) in set {
            answer.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        if !answer.headers().contains_key(header::CACHE_CONTROL) {
            answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        if head {
            *answer.body_mut() = Full::default();
        }
        Ok(answer)
    }

    async fn answer(&self, request: Request<Incoming>) -> Outcome<Answer> {
        let (head, body) = request.into_parts();
        let upload = head.uri.path().ends_with("/files") || head.uri.path().contains("/files/");
        let writes = matches!(head.method, Method::POST | Method::PUT);
        let mut asked = Asked {
            method: if head.method == Method::HEAD { Method::GET } else { head.method },
            path: head.uri.path().to_owned(),
            query: form::pairs(head.uri.query().unwrap_or("")),
            headers: head.headers,
            body: Bytes::new(),
            user: None,
            secret: None,
        };
        match asked.path.as_str() {
            "/healthz" => {
                self.db.read(|c| Ok(c.query_row("select 1 from users limit 1", [], |_| Ok(())).or_else(none)?))?;
                return Ok(reply(StatusCode::OK, "text/plain", "ok\n"));
            }
            "/style.css" => {
                let mut answer = reply(StatusCode::OK, "text/css; charset=utf-8", pages::STYLE);
                answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
                return Ok(answer);
            }
            _ => {}
        }
        asked.secret = secret(&asked.headers);
        if let Some(secret) = &asked.secret {
            asked.user = accounts::user(&self.db, secret)?;
        }
        let mut _place = None;
        if writes {
            if upload {
                asked.user()?;
                _place = UPLOADS.acquire().await.ok();
            }
            asked.body = read_body(body, if upload { LARGE_BODY } else { SMALL_BODY }).await?;
        }
        if asked.path.starts_with("/api/") {
            return api::answer(self, &asked).await;
        }
        if asked.method == Method::POST && asked.is_from_elsewhere() {
            return Err(Fault::Refused(StatusCode::FORBIDDEN, "This form came from another site."));
        }
        pages::answer(self, &asked).await
    }

    /// Keeps an uploaded file: first its bytes, then the row that names them.
    pub async fn keep_file(&self, user: i64, bookmark: i64, name: &str, bytes: Bytes) -> Outcome<i64> {
        if bytes.is_empty() {
            return bad("The file is empty.");
        }
        self.db.read(|c| store::get(c, user, bookmark).map(drop))?;
        let mut unique = [0; 16];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut unique)
            .map_err(|_| Fault::Lost("no random numbers".into()))?;
        let (stored, name, size) = (accounts::hex(&unique), store::clean_name(name), bytes.len());
        let (dir, to) = (self.files.clone(), stored.clone());
        tokio::task::spawn_blocking(move || store::keep(&dir, &to, &bytes))
            .await
            .map_err(|e| Fault::Lost(e.to_string()))??;
        self.db.write(move |c| store::add_file(c, user, bookmark, &name, size, &stored)).await
    }

    /// An uploaded file as a download.
    pub async fn send_file(&self, user: i64, id: i64) -> Outcome<Answer> {
        let file = self.db.read(|c| store::file(c, user, id))?;
        let path = self.files.join(&file.stored);
        let bytes = tokio::task::spawn_blocking(move || std::fs::read(path))
            .await
            .map_err(|e| Fault::Lost(e.to_string()))??;
        let mut answer = reply(StatusCode::OK, "application/octet-stream", bytes);
        let disposition = format!("attachment; filename*=UTF-8''{}", form::encode(&file.name));
        if let Ok(value) = HeaderValue::from_str(&disposition) {
            answer.headers_mut().insert(header::CONTENT_DISPOSITION, value);
        }
        Ok(answer)
    }

    /// Removes a bookmark and its files.
    pub async fn remove(&self, user: i64, id: i64) -> Outcome<()> {
        let stored = self.db.write(move |c| store::remove(c, user, id)).await?;
        for name in stored {
            // A file that stays is only room.
            let _ = std::fs::remove_file(self.files.join(name));
        }
        Ok(())
    }
}

fn none(e: rusqlite::Error) -> Result<(), rusqlite::Error> {
    if matches!(e, rusqlite::Error::QueryReturnedNoRows) { Ok(()) } else { Err(e) }
}

/// The session's secret: a bearer token or the cookie.
fn secret(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    if let Some(token) = text(header::AUTHORIZATION).and_then(|v| v.strip_prefix("Bearer ")) {
        return Some(token.trim().to_owned());
    }
    let cookies = text(header::COOKIE)?.split(';');
    cookies.filter_map(|c| c.trim().split_once('=')).find(|(n, _)| *n == COOKIE).map(|(_, v)| v.to_owned())
}

/// Did the client speak TLS with the server in front?
pub fn over_tls(asked: &Asked) -> bool {
    asked.header(HeaderName::from_static("x-forwarded-proto")) == "https"
}

async fn read_body(mut body: Incoming, limit: usize) -> Outcome<Bytes> {
    let read = timeout(Duration::from_secs(120), Limited::new(&mut body, limit).collect()).await;
    match read {
        Ok(Ok(all)) => Ok(all.to_bytes()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            // Some of the rest is read, so that the client comes to see the answer: closing with bytes unread takes it back.
            let mut rest = Limited::new(body, 4 * LARGE_BODY);
            let all = async { while matches!(rest.frame().await, Some(Ok(_))) {} };
            let _ = timeout(Duration::from_secs(2), all).await;
            Err(Fault::Refused(StatusCode::PAYLOAD_TOO_LARGE, "That is too much at once."))
        }
        Ok(Err(_)) => bad("The request broke off."),
        Err(_) => Err(Fault::Refused(StatusCode::REQUEST_TIMEOUT, "The request took too long.")),
    }
}

/// Serves until SIGTERM, then lets requests finish.
pub async fn serve(app: Arc<App>, address: SocketAddr) -> Result<(), String> {
    let listener = listen(address).map_err(|e| format!("cannot listen on {address}: {e}"))?;
    let mut term = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut int = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let (end, ending) = watch::channel(false);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    eprintln!("bookmarks: listening on {address}");
    // Whoever started this may want to know, see sd_notify(3).
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(e) = std::os::unix::net::UnixDatagram::unbound().and_then(|s| s.send_to(b"READY=1", &path))
    {
        eprintln!("bookmarks: {}: {e}", path.display());
    }
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            accepted = accept(&listener, &places) => {
                let Some((stream, place)) = accepted else { continue };
                let (app, ending) = (app.clone(), ending.clone());
                tokio::spawn(async move {
                    connection(app, stream, ending).await;
                    drop(place);
                });
            }
        }
    }
    eprintln!("bookmarks: ending");
    // Nobody listening is no error.
    let _ = end.send(true);
    let _ = timeout(Duration::from_secs(10), places.acquire_many(CONNECTIONS as u32)).await;
    Ok(())
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(512)?;
    TcpListener::from_std(socket.into())
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(_) => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            None
        }
    }
}

async fn connection(app: Arc<App>, stream: TcpStream, mut ending: watch::Receiver<bool>) {
    // Answers are written whole.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| app.clone().handle(request));
    let mut conn = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(60))
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // The client's doing; nothing of ours.
        _ = conn.as_mut() => return,
        _ = ending.wait_for(|e| *e) => {}
    }
    conn.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout_at(Instant::now() + Duration::from_secs(10), conn).await;
}
