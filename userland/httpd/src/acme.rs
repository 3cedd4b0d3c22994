//! `httpd --acme`: certificates by ACME (RFC 8555), proved by HTTP-01. A program of its own beside the server, with root's rights
//! to write keys: it fetches what is due, puts it into the certificate's two files, where the server notices it, and sleeps.
//!
//! A certificate is due if its file is missing, made by the machine itself, or has less than a third of its time left. What
//! fails is tried again after a minute, then two, to six hours: authorities count failures. The account's key is made once
//! and kept in `state`. A challenge's answer is a file in `challenges`, from where the server answers it on port 80, whatever
//! the routes say.
//!
//! instant-acme speaks the protocol; what is here is when, where to and where from.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::Request;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, HttpClient,
    Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::config::{Acme, Certificate, Config};
use crate::der;
use crate::tls::store;

/// How often it looks whether something is due.
const LOOK: Duration = Duration::from_secs(6 * 3600);
/// After a failure; doubled with each, to `LOOK`.
const AGAIN: Duration = Duration::from_secs(60);
/// For one certificate, from the order to the file.
const PATIENCE: Duration = Duration::from_secs(600);

/// The program. It returns at once if the configuration has no `[acme]`, and otherwise never.
pub fn run(config: &Config) -> Result<(), String> {
    let Some(acme) = &config.acme else {
        eprintln!("httpd: there is no [acme] in the configuration, so there is nothing to fetch");
        return Ok(());
    };
    for dir in [&acme.state, &acme.challenges] {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| format!("cannot start: {e}"))?.block_on(keep(acme, &config.certificate))
}

async fn keep(acme: &Acme, all: &[Certificate]) -> Result<(), String> {
    let mut pause = AGAIN;
    let mut said = false;
    loop {
        let mut failed = false;
        for c in all.iter().filter(|c| c.acme && due(&c.chain)) {
            let done = tokio::time::timeout(PATIENCE, obtain(acme, c)).await;
            match done.unwrap_or_else(|_| Err("it took too long".into())) {
                Ok(()) => println!("httpd: {} is for {} from now on", c.chain.display(), c.hosts.join(", ")),
                Err(why) => {
                    failed = true;
                    println!("httpd: no certificate for {}: {why}; again in {} s", c.hosts.join(", "), pause.as_secs());
                }
            }
        }
        if !failed && !said {
            said = true;
            println!("httpd: nothing more is due");
        }
        tokio::time::sleep(if failed { pause } else { LOOK }).await;
        pause = if failed { (pause * 2).min(LOOK) } else { AGAIN };
    }
}

/// Whether the certificate in `chain` has to be fetched.
fn due(chain: &Path) -> bool {
    let Ok(Ok(first)) =
        CertificateDer::pem_file_iter(chain).map(|mut all| all.next().ok_or(()).and_then(|c| c.map_err(drop)))
    else {
        return true;
    };
    let Some(about) = der::about(&first) else { return true };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    about.own || about.until - now < (about.until - about.from) / 3
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn obtain(acme: &Acme, c: &Certificate) -> Result<(), String> {
    order(acme, c).await.map_err(|e| {
        let mut text = e.to_string();
        let mut source = e.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    })
}

async fn order(acme: &Acme, c: &Certificate) -> Result<(), Failed> {
    let account = account(acme).await?;
    let names: Vec<Identifier> = c.hosts.iter().map(|h| Identifier::Dns(h.clone())).collect();
    let mut order = account.new_order(&NewOrder::new(&names)).await?;
    let mut answers = Answers(Vec::new());
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let mut challenge = authorization.challenge(ChallengeType::Http01).ok_or("the authority offers no HTTP-01")?;
        let token = challenge.token.clone();
        // It becomes a file's name.
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return Err("the authority's token is none".into());
        }
        let file = acme.challenges.join(token);
        std::fs::write(&file, challenge.key_authorization().as_str())?;
        answers.0.push(file);
        challenge.set_ready().await?;
    }
    let status = order.poll_ready(&RetryPolicy::default()).await?;
    if status != OrderStatus::Ready {
        return Err(format!("the authority did not find its challenge answered: the order is {status:?}").into());
    }
    let key = key(&c.key)?;
    let mut params = rcgen::CertificateParams::new(c.hosts.clone())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    let chain = order.poll_certificate(&RetryPolicy::default()).await?;
    // Something that is no certificate must not take the place of one.
    let first =
        CertificateDer::pem_slice_iter(chain.as_bytes()).next().ok_or("the authority sent no certificate")??;
    der::about(&first).ok_or("the authority's certificate cannot be read")?;
    store(&c.chain, chain.as_bytes(), 0o644)?;
    Ok(())
}

/// The key in `file`, or a new one, stored there, if there is none that can be used. It outlives certificates: files that are
/// replaced one after the other would not fit together if the machine stopped between them.
fn key(file: &Path) -> Result<rcgen::KeyPair, Failed> {
    if let Some(key) = std::fs::read_to_string(file).ok().and_then(|pem| rcgen::KeyPair::from_pem(&pem).ok()) {
        return Ok(key);
    }
    let key = rcgen::KeyPair::generate()?;
    store(file, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// Files that answer challenges; they go when the order is over.
struct Answers(Vec<PathBuf>);

impl Drop for Answers {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The account, made at its first use.
async fn account(acme: &Acme) -> Result<Account, Failed> {
    let builder =
        || -> Result<_, Failed> { Ok(Account::builder_with_http(Box::new(Http::new(acme.root.as_deref())?))) };
    let file = acme.state.join("account.json");
    if let Ok(text) = std::fs::read(&file) {
        let kept: Kept = serde_json::from_slice(&text)?;
        // Another authority knows another account.
        if kept.directory == acme.directory {
            return Ok(builder()?.from_credentials(kept.credentials).await?);
        }
    }
    if !acme.agree {
        return Err("say `agree = true` in [acme] if you agree to the authority's terms of service".into());
    }
    let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder()?.create(&new, acme.directory.clone(), None).await?;
    let kept = Kept { directory: acme.directory.clone(), credentials };
    store(&file, &serde_json::to_vec(&kept)?, 0o600)?;
    Ok(account)
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    directory: String,
    credentials: AccountCredentials,
}

/// HTTPS, and nothing else, to servers that the public authorities vouch for, or the one in `root`.
struct Http(Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>);

impl Http {
    fn new(root: Option<&Path>) -> Result<Self, Failed> {
        let mut roots = RootCertStore::empty();
        match root {
            Some(file) => {
                for one in CertificateDer::pem_file_iter(file).map_err(|e| format!("{}: {e}", file.display()))? {
                    roots.add(one?)?;
                }
            }
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let answer = self.0.request(request);
        Box::pin(
            async move { answer.await.map(BytesResponse::from).map_err(|e| instant_acme::Error::Other(Box::new(e))) },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_broken_or_made_here_is_due() {
        let dir = std::env::temp_dir().join(format!("httpd-acme-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let chain = dir.join("cert.pem");
        assert!(due(&chain));
        std::fs::write(&chain, "garbage").unwrap();
        assert!(due(&chain));
        let key = rcgen::KeyPair::generate().unwrap();
        let mut root = rcgen::CertificateParams::new(Vec::new()).unwrap();
        root.distinguished_name.push(rcgen::DnType::CommonName, "root");
        let mut params = rcgen::CertificateParams::new(vec!["example.org".into()]).unwrap();
        std::fs::write(&chain, params.self_signed(&key).unwrap().pem()).unwrap();
        assert!(due(&chain));
        let issuer = rcgen::Issuer::new(root, rcgen::KeyPair::generate().unwrap());
        std::fs::write(&chain, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        assert!(!due(&chain));
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2010, 1, 1);
        std::fs::write(&chain, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        assert!(due(&chain));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_key_is_made_once_and_survives() {
        let dir = std::env::temp_dir().join(format!("httpd-acme-key-{}", std::process::id()));
        let file = dir.join("key.pem");
        let made = key(&file).unwrap().serialize_pem();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), made);
        assert_eq!(key(&file).unwrap().serialize_pem(), made);
        // What is no key is replaced.
        std::fs::write(&file, "garbage").unwrap();
        let other = key(&file).unwrap().serialize_pem();
        assert_ne!(other, made);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), other);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
