//! The reverse proxy: requests go on to another server over kept connections, answers come back as they are.
//!
//! Headers that speak of one connection are left behind in both directions (RFC 9110, 7.6.1), and the ones that say where a
//! request came from are set here, whatever the client claimed.

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri, Version};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::body::{Answer, Broken, Content, Proxied, Upload};
use crate::config::Limits;
use crate::handle::{Peer, error};
use crate::metrics::{COUNTERS, count};

/// Requests that may be with the servers behind the proxy at once; more wait.
const AT_ONCE: usize = 256;

/// Talks to the servers behind the proxy.
pub struct Proxy {
    client: Client<HttpConnector, Upload>,
    places: Arc<Semaphore>,
}

impl Proxy {
    /// A proxy without connections yet.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(15))
            .pool_max_idle_per_host(64)
            .build(connector);
        Self { client, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The answer of the server at `to`.
    pub async fn ask(
        &self,
        to: SocketAddr,
        request: Request<Incoming>,
        peer: Peer,
        limits: &Limits,
    ) -> Response<Answer> {
        let failed = |status, why: &dyn std::fmt::Display| {
            count(&COUNTERS.proxy_errors);
            eprintln!("httpd: {to}: {why}");
            error(status)
        };
        let Ok(Ok(place)) = timeout(limits.proxy(), self.places.clone().acquire_owned()).await else {
            return failed(StatusCode::SERVICE_UNAVAILABLE, &"too many requests wait for it");
        };
        let Some(request) = outward(to, request, peer, limits) else { return error(StatusCode::BAD_REQUEST) };
        match timeout(limits.proxy(), self.client.request(request)).await {
            Err(_) => failed(StatusCode::GATEWAY_TIMEOUT, &"no answer in time"),
            Ok(Err(e)) => match upload_error(&e) {
                Some(status) => {
                    count(&COUNTERS.refused);
                    error(status)
                }
                None => failed(StatusCode::BAD_GATEWAY, &e.source().map_or_else(|| e.to_string(), ToString::to_string)),
            },
            Ok(Ok(mut answer)) => {
                strip(answer.headers_mut());
                *answer.version_mut() = Version::HTTP_11;
                answer.map(|b| Answer::new(Content::Proxied(Proxied::new(b, limits.proxy(), place))))
            }
        }
    }
}

/// Was it the client's fault?
fn upload_error(e: &hyper_util::client::legacy::Error) -> Option<StatusCode> {
    let mut source = e.source();
    while let Some(e) = source {
        match e.downcast_ref::<Broken>() {
            Some(Broken::TooLarge) => return Some(StatusCode::PAYLOAD_TOO_LARGE),
            Some(Broken::Stalled) => return Some(StatusCode::REQUEST_TIMEOUT),
            Some(Broken::Peer(_)) => return Some(StatusCode::BAD_REQUEST),
            _ => source = e.source(),
        }
    }
    None
}

fn outward(to: SocketAddr, request: Request<Incoming>, peer: Peer, limits: &Limits) -> Option<Request<Upload>> {
    let (mut head, body) = request.into_parts();
    let host = head.headers.get(header::HOST).cloned().or_else(|| {
        let authority = head.uri.authority()?;
        HeaderValue::from_str(authority.as_str()).ok()
    });
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    head.uri = Uri::builder().scheme("http").authority(to.to_string()).path_and_query(path).build().ok()?;
    head.version = Version::HTTP_11;
    strip(&mut head.headers);
    head.headers.remove(header::EXPECT);
    let mut set = |name: &'static str, value: Option<HeaderValue>| {
        let name = HeaderName::from_static(name);
        match value {
            Some(v) => head.headers.insert(name, v),
            None => head.headers.remove(name),
        };
    };
    set("x-forwarded-for", HeaderValue::from_str(&peer.address.ip().to_canonical().to_string()).ok());
    set("x-forwarded-proto", Some(HeaderValue::from_static(if peer.tls { "https" } else { "http" })));
    set("x-forwarded-host", host.clone());
    set("forwarded", None);
    if let Some(host) = host {
        head.headers.insert(header::HOST, host);
    }
    // HTTP/2 may send cookies one by one; HTTP/1.1 has one line.
    let cookies: Vec<_> = head.headers.get_all(header::COOKIE).iter().cloned().collect();
    if cookies.len() > 1 {
        let joined = cookies.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
        head.headers.insert(header::COOKIE, HeaderValue::from_bytes(&joined).ok()?);
    }
    Some(Request::from_parts(head, Upload::new(body, limits.body_bytes, limits.stall(), limits.body_rate)))
}

/// Removes what speaks of one connection only.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|n| n.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_speaks_of_one_connection_stays_behind() {
        let mut h = HeaderMap::new();
        for (name, value) in [("connection", "close, X-Secret"), ("x-secret", "1"), ("te", "x"), ("accept", "*/*")] {
            h.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut h);
        assert_eq!(h.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
