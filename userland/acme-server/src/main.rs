//! `acme-server LISTEN ROOT VALIDATE`: a certificate authority for tests. It listens on LISTEN with TLS, writes the root that its own
//! and all its certificates come from to the file ROOT, and asks for HTTP-01 challenges at the address VALIDATE, whatever
//! the name: there is no DNS in a test.
//!
//! It is as strict as RFC 8555 asks: every request but two is a JWS with ES256, a nonce is good for one request, the address
//! in a request's header is its own, only an account's key speaks for it, a certificate is given for exactly the names
//! whose challenges were met. And the first nonce it is sent it calls bad, which clients must survive. It keeps everything in
//! memory, for ever.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair};
use rustls_pki_types::{CertificateSigningRequestDer, PrivateKeyDer};
use serde_json::{Value, json};

type Any = Box<dyn std::error::Error + Send + Sync>;
/// An answer: status, place of what was made, body.
type Answer = (u16, Option<String>, Body);

enum Body {
    Json(Value),
    Pem(String),
}

#[derive(Default)]
struct State {
    serial: u64,
    nonces: BTreeSet<String>,
    refused_one: bool,
    /// Accounts' keys, by the account's address.
    accounts: BTreeMap<String, Value>,
    orders: BTreeMap<u64, Order>,
}

struct Order {
    account: String,
    names: Vec<String>,
    token: String,
    /// For each name: none yet, met, or not met.
    met: Vec<Option<bool>>,
    certificate: Option<String>,
}

struct Server {
    base: String,
    validate: String,
    issuer: Issuer<'static, KeyPair>,
    root: String,
    state: Mutex<State>,
}

/// A request that was refused: status, ACME's name for why, detail.
struct Refusal(u16, &'static str, String);

fn refuse<T>(kind: &'static str, detail: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(400, kind, detail.into()))
}

fn main() -> Result<(), Any> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [listen, root, validate] = &words[..] else { return Err("usage: acme-server LISTEN ROOT VALIDATE".into()) };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(listen, root, validate))
}

async fn serve(listen: &str, root_file: &str, validate: &str) -> Result<(), Any> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "root of a test");
    let key = KeyPair::generate()?;
    let root = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let own_key = KeyPair::generate()?;
    let own = CertificateParams::new(vec![address.ip().to_string()])?.signed_by(&own_key, &issuer)?;
    let own_key = PrivateKeyDer::try_from(own_key.serialize_der())?;
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], own_key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    std::fs::write(root_file, &root)?;
    println!("acme-server: https://{address}/directory");
    let base = format!("https://{address}");
    let server = Arc::new(Server { base, validate: validate.to_owned(), issuer, root, state: Mutex::default() });
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, server) = (acceptor.clone(), server.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| answer(server.clone(), request));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let post = head.method == Method::POST;
    let (of, to) = (server.clone(), path.clone());
    // Validation asks another server and waits.
    let done = tokio::task::spawn_blocking(move || of.route(post, &to, &body)).await;
    let (status, place, body) = match done.unwrap_or_else(|e| Err(Refusal(500, "serverInternal", e.to_string()))) {
        Ok(answer) => answer,
        Err(Refusal(status, kind, detail)) => {
            println!("acme-server: {path}: {kind}: {detail}");
            let problem =
                json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": status});
            (status, None, Body::Json(problem))
        }
    };
    let (kind, text) = match body {
        Body::Json(v) if status >= 400 => ("application/problem+json", v.to_string()),
        Body::Json(v) => ("application/json", v.to_string()),
        Body::Pem(text) => ("application/pem-certificate-chain", text),
    };
    let mut response = Response::builder()
        .status(status)
        .header("Content-Type", kind)
        .header("Cache-Control", "no-store")
        .header("Replay-Nonce", server.nonce());
    if let Some(place) = place {
        response = response.header("Location", place);
    }
    Ok(response.body(Full::from(text)).unwrap_or_default())
}

/// Who sent a request, and what.
struct Message {
    /// The account's address; for a new account the key that it shall have.
    account: Result<String, Value>,
    payload: Value,
}

impl Server {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nonce(&self) -> String {
        let mut state = self.state();
        state.serial += 1;
        let nonce = BASE64.encode(format!("nonce {}", state.serial));
        state.nonces.insert(nonce.clone());
        nonce
    }

    fn route(&self, post: bool, path: &str, body: &[u8]) -> Result<Answer, Refusal> {
        let at = |what: &str| format!("{}/{what}", self.base);
        let (kind, number) =
            path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), "0"));
        if !post {
            return match kind {
                "directory" => {
                    let all = json!({"newNonce": at("nonce"), "newAccount": at("account"), "newOrder": at("new-order"),
                        "revokeCert": at("revoke"), "keyChange": at("key")});
                    Ok((200, None, Body::Json(all)))
                }
                "nonce" => Ok((200, None, Body::Json(json!({})))),
                _ => Err(Refusal(405, "malformed", "POST-as-GET is asked for".into())),
            };
        }
        let message = self.verified(path, body)?;
        let (number, index) = number.split_once('/').unwrap_or((number, "0"));
        let number = number.parse().unwrap_or(0);
        match (kind, message.account) {
            ("account", Err(key)) => {
                let place = at(&format!("account/{}", thumbprint(&key)));
                self.state().accounts.insert(place.clone(), key);
                Ok((201, Some(place), Body::Json(json!({"status": "valid"}))))
            }
            (_, Err(_)) => refuse("malformed", "only a new account brings its key"),
            ("new-order", Ok(account)) => self.new_order(account, &message.payload),
            ("order", Ok(account)) => self.order(&account, number, None),
            ("finalize", Ok(account)) => self.finalize(&account, number, &message.payload),
            ("authorization", Ok(account)) => self.authorization(&account, number, index.parse().unwrap_or(0), false),
            ("challenge", Ok(account)) => self.authorization(&account, number, index.parse().unwrap_or(0), true),
            ("certificate", Ok(account)) => {
                let state = self.state();
                let order = state.orders.get(&number).filter(|o| o.account == account);
                match order.and_then(|o| o.certificate.clone()) {
                    Some(pem) => Ok((200, None, Body::Pem(pem))),
                    None => Err(Refusal(404, "malformed", "no such certificate".into())),
                }
            }
            _ => Err(Refusal(404, "malformed", format!("{path} is nothing"))),
        }
    }

    /// Takes a JWS apart and believes it only if everything about it is right.
    fn verified(&self, path: &str, body: &[u8]) -> Result<Message, Refusal> {
        let Ok(jws) = serde_json::from_slice::<Value>(body) else { return refuse("malformed", "no JSON") };
        let part = |name: &str| jws[name].as_str().unwrap_or_default();
        let decoded = |name: &str| BASE64.decode(part(name)).unwrap_or_default();
        let Ok(head) = serde_json::from_slice::<Value>(&decoded("protected")) else {
            return refuse("malformed", "no protected header");
        };
        if head["alg"] != "ES256" {
            return refuse("badSignatureAlgorithm", head["alg"].to_string());
        }
        if head["url"] != format!("{}{path}", self.base) {
            return refuse("unauthorized", format!("{} is not {path}", head["url"]));
        }
        let mut state = self.state();
        let known = state.nonces.remove(head["nonce"].as_str().unwrap_or_default());
        if !known || !std::mem::replace(&mut state.refused_one, true) {
            return refuse("badNonce", "this nonce is not good (any more)");
        }
        let (account, key) = match (head["kid"].as_str(), &head["jwk"]) {
            (Some(kid), Value::Null) => match state.accounts.get(kid) {
                Some(key) => (Ok(kid.to_owned()), key.clone()),
                None => return refuse("accountDoesNotExist", kid),
            },
            (None, key @ Value::Object(_)) => (Err(key.clone()), key.clone()),
            _ => return refuse("malformed", "either kid or jwk"),
        };
        drop(state);
        let coordinate = |name: &str| BASE64.decode(key[name].as_str().unwrap_or_default()).unwrap_or_default();
        let point = [&[4][..], &coordinate("x"), &coordinate("y")].concat();
        let signed = format!("{}.{}", part("protected"), part("payload"));
        let verifier = ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, point);
        if verifier.verify(signed.as_bytes(), &decoded("signature")).is_err() {
            return refuse("malformed", "the signature is wrong");
        }
        Ok(Message { account, payload: serde_json::from_slice(&decoded("payload")).unwrap_or(Value::Null) })
    }

    fn new_order(&self, account: String, payload: &Value) -> Result<Answer, Refusal> {
        let identifiers = payload["identifiers"].as_array().cloned().unwrap_or_default();
        let names: Vec<String> = identifiers
            .iter()
            .filter(|i| i["type"] == "dns")
            .filter_map(|i| i["value"].as_str().map(str::to_owned))
            .collect();
        if names.is_empty() || names.len() != identifiers.len() {
            return refuse("rejectedIdentifier", "names of DNS alone, and at least one");
        }
        let mut state = self.state();
        state.serial += 1;
        let number = state.serial;
        let token = BASE64.encode(format!("token of order {number}, long enough"));
        let met = vec![None; names.len()];
        let order = Order { account: account.clone(), names, token, met, certificate: None };
        state.orders.insert(number, order);
        drop(state);
        self.order(&account, number, Some(201))
    }

    fn order(&self, account: &str, number: u64, made: Option<u16>) -> Result<Answer, Refusal> {
        let state = self.state();
        let Some(o) = state.orders.get(&number).filter(|o| o.account == account) else {
            return Err(Refusal(404, "malformed", "no such order".into()));
        };
        let at = |what: &str| format!("{}/{what}/{number}", self.base);
        let status = match () {
            () if o.certificate.is_some() => "valid",
            () if o.met.contains(&Some(false)) => "invalid",
            () if o.met.iter().all(|m| *m == Some(true)) => "ready",
            () => "pending",
        };
        let names: Vec<Value> = o.names.iter().map(|n| json!({"type": "dns", "value": n})).collect();
        let authorizations: Vec<String> = (0..o.names.len()).map(|i| format!("{}/{i}", at("authorization"))).collect();
        let mut body = json!({"status": status, "identifiers": names, "authorizations": authorizations,
            "finalize": at("finalize")});
        if o.certificate.is_some() {
            body["certificate"] = json!(at("certificate"));
        }
        Ok((made.unwrap_or(200), Some(at("order")), Body::Json(body)))
    }

    /// A name's authorization, or its challenge, which is then looked at.
    fn authorization(&self, account: &str, number: u64, index: usize, begin: bool) -> Result<Answer, Refusal> {
        let mut state = self.state();
        let key = state.accounts.get(account).cloned().unwrap_or_default();
        let Some(o) = state.orders.get_mut(&number).filter(|o| o.account == account && index < o.names.len()) else {
            return Err(Refusal(404, "malformed", "no such authorization".into()));
        };
        let (name, token) = (o.names[index].clone(), o.token.clone());
        if begin && o.met[index].is_none() {
            let want = format!("{token}.{}", thumbprint(&key));
            // Nobody else's requests are answered meanwhile; they are the same client's.
            let got = fetch(&self.validate, &name, &token);
            println!("acme-server: {name}: {got:?}");
            o.met[index] = Some(got.is_ok_and(|g| g.trim_end() == want));
        }
        let status = o.met[index].map_or("pending", |met| if met { "valid" } else { "invalid" });
        let url = format!("{}/challenge/{number}/{index}", self.base);
        let challenge = json!({"type": "http-01", "url": url, "token": token, "status": status});
        let body = if begin {
            challenge
        } else {
            json!({"status": status, "identifier": {"type": "dns", "value": name}, "challenges": [challenge]})
        };
        Ok((200, None, Body::Json(body)))
    }

    fn finalize(&self, account: &str, number: u64, payload: &Value) -> Result<Answer, Refusal> {
        let csr = BASE64.decode(payload["csr"].as_str().unwrap_or_default()).unwrap_or_default();
        let Ok(csr) = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr)) else {
            return refuse("badCSR", "it cannot be read");
        };
        let mut wanted: Vec<String> = Vec::new();
        for name in &csr.params.subject_alt_names {
            let rcgen::SanType::DnsName(name) = name else { return refuse("badCSR", "a name that is none of DNS") };
            wanted.push(name.to_string());
        }
        let mut state = self.state();
        let Some(o) = state.orders.get_mut(&number).filter(|o| o.account == account) else {
            return Err(Refusal(404, "malformed", "no such order".into()));
        };
        if !o.met.iter().all(|m| *m == Some(true)) {
            return Err(Refusal(403, "orderNotReady", "its challenges are not met".into()));
        }
        let mut names = o.names.clone();
        names.sort();
        wanted.sort();
        if names != wanted {
            return refuse("badCSR", format!("{wanted:?} instead of {names:?}"));
        }
        match csr.signed_by(&self.issuer) {
            Ok(certificate) => o.certificate = Some(format!("{}{}", certificate.pem(), self.root)),
            Err(e) => return refuse("badCSR", e.to_string()),
        }
        drop(state);
        self.order(account, number, None)
    }
}

/// RFC 7638: the digest of a key's needed members, sorted and without blanks.
fn thumbprint(key: &Value) -> String {
    let text = format!(r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#, key["crv"], key["kty"], key["x"], key["y"]);
    BASE64.encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()))
}

/// What the server of `name` answers to the challenge.
fn fetch(server: &str, name: &str, token: &str) -> Result<String, String> {
    let failed = |e: std::io::Error| e.to_string();
    let mut stream = TcpStream::connect(server).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(failed)?;
    let request =
        format!("GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.take(65536).read_to_string(&mut answer).map_err(failed)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(answer.lines().next().unwrap_or("no answer").to_owned()),
    }
}
