//! From a request to its answer: which route, within which limits, and what the access log says of it.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::time::Instant;

use crate::body::{Answer, swallow};
use crate::config::{Config, Route};
use crate::conn::{Busy, Slot, Slots};
use crate::files::Files;
use crate::metrics::{COUNTERS, answered, count};
use crate::privilege::Reader;
use crate::proxy::Proxy;
use crate::{log, tls};

/// Everything that requests are served from.
pub struct Server {
    /// The configuration.
    pub config: Config,
    /// The connections.
    pub slots: Arc<Slots>,
    /// The certificates, where there is TLS.
    pub certificates: Option<Arc<tls::Store>>,
    routes: Vec<(Route, Target)>,
    /// Answers to challenges of ACME.
    challenges: Option<Files>,
    proxy: Proxy,
    log: bool,
}

enum Target {
    Files(Files),
    Proxy(SocketAddr),
    Redirect(String),
}

/// Where an authority looks for the answer to its challenge (RFC 8555, 8.3).
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// It came over TLS.
    pub tls: bool,
}

impl Server {
    /// Loads certificates, opens directories and sorts the routes: those for a host first, longer paths before shorter.
    pub fn new(config: Config, reader: Reader) -> Result<Self, String> {
        let tls = config.listen.iter().any(|l| l.tls);
        let certificates = if tls { Some(tls::Store::load(&config.certificate, reader)?) } else { None };
        let mut routes = Vec::new();
        for r in &config.route {
            let target = match (&r.files, r.proxy, &r.redirect) {
                (Some(dir), _, _) => Target::Files(Files::open(dir)?),
                (_, Some(to), _) => Target::Proxy(to),
                (_, _, to) => Target::Redirect(to.clone().unwrap_or_default()),
            };
            routes.push((r.clone(), target));
        }
        routes.sort_by_key(|(r, _)| (r.host.is_none(), std::cmp::Reverse(r.path.len())));
        let slots = Slots::new(config.limits.connections);
        let challenges = match &config.acme {
            Some(acme) => {
                let dir = &acme.challenges;
                std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
                Some(Files::open(dir)?)
            }
            None => None,
        };
        Ok(Self { slots, certificates, routes, challenges, proxy: Proxy::new(), log: log::enabled(), config })
    }

    /// Answers a request. Never an error: what goes wrong is an answer too.
    pub async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Peer,
        slot: Arc<Slot>,
    ) -> Result<Response<Answer>, Infallible> {
        let busy = slot.begin();
        let mut record = Record::new(&self, &request, peer, busy);
        let http1 = request.version() < Version::HTTP_2;
        let mut response = self.answer(request, peer).await;
        if http1 && self.slots.draining.load(Ordering::Acquire) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        record.status = response.status();
        Ok(response.map(|body| body.recorded(record)))
    }

    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Answer> {
        let Some(host) = host(&request) else { return error(StatusCode::BAD_REQUEST) };
        if request.body().size_hint().lower() > self.config.limits.body_bytes {
            count(&COUNTERS.refused);
            // A client that waits for leave to send it gets none.
            if !request.headers().contains_key(header::EXPECT) {
                swallow(request.into_body()).await;
            }
            return error(StatusCode::PAYLOAD_TOO_LARGE);
        }
        let path = request.uri().path();
        // An asterisk (OPTIONS *) and CONNECT's authority are no paths.
        if !path.starts_with('/') || request.method() == Method::CONNECT || request.method() == Method::TRACE {
            return error(StatusCode::METHOD_NOT_ALLOWED);
        }
        if let Some((files, token)) = self.challenges.as_ref().zip(path.strip_prefix(CHALLENGES)) {
            return files.answer(&request, token);
        }
        let Some((route, target)) = self.routes.iter().find(|(r, _)| fits(r, &host, path)) else {
            return error(StatusCode::NOT_FOUND);
        };
        match target {
            Target::Files(files) => files.answer(&request, &path[route.path.len().min(path.len())..]),
            Target::Proxy(to) => self.proxy.ask(*to, request, peer, &self.config.limits).await,
            Target::Redirect(to) => redirect(to, request.uri(), &route.path),
        }
    }
}

/// The host that is asked for, without its port and in small letters. HTTP/1.1 must name one.
fn host(request: &Request<Incoming>) -> Option<String> {
    let authority = match (request.uri().authority(), request.headers().get(header::HOST)) {
        (Some(a), _) => a.as_str(),
        (None, Some(h)) => h.to_str().ok()?,
        (None, None) if request.version() <= Version::HTTP_10 => "",
        (None, None) => return None,
    };
    let authority = authority.rsplit('@').next().unwrap_or(authority);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    Some(host.to_ascii_lowercase())
}

fn fits(route: &Route, host: &str, path: &str) -> bool {
    let below = path.strip_prefix(route.path.as_str());
    route.host.as_ref().is_none_or(|h| h.eq_ignore_ascii_case(host))
        && below.is_some_and(|rest| rest.is_empty() || route.path.ends_with('/') || rest.starts_with('/'))
}

fn redirect(to: &str, uri: &Uri, prefix: &str) -> Response<Answer> {
    let rest = uri.path_and_query().map_or("", |p| p.as_str());
    let rest = rest.strip_prefix(prefix.trim_end_matches('/')).unwrap_or(rest);
    match HeaderValue::from_str(&format!("{}{rest}", to.trim_end_matches('/'))) {
        Ok(to) => {
            let mut answer = error(StatusCode::PERMANENT_REDIRECT);
            answer.headers_mut().insert(header::LOCATION, to);
            answer
        }
        Err(_) => error(StatusCode::BAD_REQUEST),
    }
}

/// An answer that says its status and no more.
pub fn error(status: StatusCode) -> Response<Answer> {
    let text = format!("{} {}\n", status.as_str(), status.canonical_reason().unwrap_or(""));
    let mut answer = Response::new(Answer::bytes(text));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::PAYLOAD_TOO_LARGE || status == StatusCode::REQUEST_TIMEOUT {
        // The rest of the body is not read.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// What becomes a line of the log and a count when the answer is over; until then its connection is busy.
pub struct Record {
    /// The answer's status.
    pub status: StatusCode,
    /// Bytes of the body so far.
    pub bytes: u64,
    /// The body broke off.
    pub broken: bool,
    began: Instant,
    line: Option<(SocketAddr, String)>,
    _busy: Busy,
}

impl Record {
    fn new(server: &Server, request: &Request<Incoming>, peer: Peer, busy: Busy) -> Self {
        let line = server.log.then(|| {
            let what = format!("{} {} {:?}", request.method(), request.uri().path(), request.version());
            (peer.address, what)
        });
        Self { status: StatusCode::OK, bytes: 0, broken: false, began: Instant::now(), line, _busy: busy }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        answered(self.status.as_u16(), took);
        COUNTERS.body_bytes.fetch_add(self.bytes, Ordering::Relaxed);
        if let Some((peer, what)) = self.line.take() {
            let mut line = String::with_capacity(128);
            let date = httpdate::fmt_http_date(SystemTime::now());
            let broken = if self.broken { " broken" } else { "" };
            // Writing into a string cannot fail. Paths and methods hold no spaces or controls: hyper refuses those.
            let _ = writeln!(
                line,
                "{} [{date}] \"{what}\" {} {} {:.6}{broken}",
                peer.ip().to_canonical(),
                self.status.as_u16(),
                self.bytes,
                took.as_secs_f64()
            );
            log::line(line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_fit_whole_segments_of_their_host() {
        let route = |host: Option<&str>, path: &str| Route {
            host: host.map(str::to_owned),
            path: path.into(),
            files: None,
            proxy: None,
            redirect: None,
        };
        let api = route(None, "/api");
        assert!(fits(&api, "h", "/api") && fits(&api, "h", "/api/x") && !fits(&api, "h", "/apix"));
        let there = route(Some("Example.org"), "/");
        assert!(fits(&there, "example.org", "/x") && !fits(&there, "other", "/x"));
    }

    #[test]
    fn a_redirect_keeps_the_rest() {
        let answer = redirect("https://example.org/", &Uri::from_static("/old/a?b=c"), "/old/");
        assert_eq!(answer.headers()[header::LOCATION], "https://example.org/a?b=c");
    }
}
