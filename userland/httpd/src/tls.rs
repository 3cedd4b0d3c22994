//! Certificates: from files, noticed when they change, and one made by the machine itself where there is none yet.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Certificate;
use crate::metrics::{COUNTERS, count};
use crate::privilege::{Files, Reader, Stamp};

/// The certificates of a server, the first one for whoever asks for none of the others.
#[derive(Debug)]
pub struct Store {
    entries: Vec<Entry>,
    reader: Reader,
}

#[derive(Debug)]
struct Entry {
    from: Certificate,
    current: RwLock<(Arc<CertifiedKey>, Stamp)>,
}

impl Store {
    /// Loads all of them; makes those that may be made. Changed ones will be read by `reader`.
    pub fn load(from: &[Certificate], reader: Reader) -> Result<Arc<Self>, String> {
        let mut entries = Vec::new();
        for (index, c) in from.iter().enumerate() {
            // A key without a certificate is what a power cut leaves between the two; it is used.
            // One to be fetched needs a server first, which answers the challenge.
            if (c.self_signed || c.acme) && !c.chain.exists() {
                make(c)?;
            }
            let current = RwLock::new((load(c, &reader.read(index, c)?)?, reader.stamp(index, c)));
            entries.push(Entry { from: c.clone(), current });
        }
        Ok(Arc::new(Self { entries, reader }))
    }

    /// Loads again what changed. What cannot be loaded keeps its predecessor, and is said once.
    pub fn refresh(&self) {
        for (index, e) in self.entries.iter().enumerate() {
            let now = self.reader.stamp(index, &e.from);
            let old = e.current.read().unwrap_or_else(PoisonError::into_inner).1;
            if now == old {
                continue;
            }
            let loaded = self.reader.read(index, &e.from).and_then(|files| load(&e.from, &files));
            let mut current = e.current.write().unwrap_or_else(PoisonError::into_inner);
            current.1 = now;
            match loaded {
                Ok(key) => {
                    current.0 = key;
                    count(&COUNTERS.certificates_reloaded);
                    eprintln!("httpd: {} was loaded again", e.from.chain.display());
                }
                Err(why) => {
                    count(&COUNTERS.certificates_refused);
                    eprintln!("httpd: {why}; the certificate before it stays in use");
                }
            }
        }
    }

    /// The configuration of TLS over these certificates.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<rustls::ServerConfig>, String> {
        let explain = |e: rustls::Error| format!("TLS: {e}");
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(explain)?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = ring::Ticketer::new().map_err(explain)?;
        // An answer begins with a full record anyway; fewer, larger writes.
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Store {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        let fits = |e: &&Entry| name.is_some_and(|n| e.from.hosts.iter().any(|h| host_fits(h, n)));
        let entry = self.entries.iter().find(fits).or(self.entries.first())?;
        Some(entry.current.read().unwrap_or_else(PoisonError::into_inner).0.clone())
    }
}

/// Is `name` the host `pattern`, or below it where the pattern begins with `*.`?
fn host_fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
        None => pattern.eq_ignore_ascii_case(name),
    }
}

fn load(c: &Certificate, files: &Files) -> Result<Arc<CertifiedKey>, String> {
    let bad = |file: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&files.chain).collect::<Result<_, _>>().map_err(|e| bad(&c.chain, &e))?;
    if chain.is_empty() {
        return Err(bad(&c.chain, &"there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|e| bad(&c.key, &e))?;
    let key = ring::sign::any_supported_type(&key).map_err(|e| bad(&c.key, &e))?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(Arc::new(pair)),
        Err(e) => Err(bad(&c.key, &format!("it does not fit {}: {e}", c.chain.display()))),
    }
}

/// Makes a self-signed certificate and says so.
fn make(c: &Certificate) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: cannot make a certificate: {e}", c.chain.display());
    let mut names = c.hosts.clone();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for name in [host.as_str(), "localhost", "127.0.0.1", "::1"] {
        if !name.is_empty() && !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    let old = c.key.exists();
    let key = if old {
        let pem = std::fs::read_to_string(&c.key).map_err(|e| failed(&e))?;
        rcgen::KeyPair::from_pem(&pem).map_err(|e| failed(&e))?
    } else {
        rcgen::KeyPair::generate().map_err(|e| failed(&e))?
    };
    let mut params = rcgen::CertificateParams::new(names).map_err(|e| failed(&e))?;
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("{host} (self-signed)"));
    // The machine's clock may not be set yet.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 12, 31);
    let certificate = params.self_signed(&key).map_err(|e| failed(&e))?;
    if !old {
        store(&c.key, key.serialize_pem().as_bytes(), 0o600).map_err(|e| failed(&e))?;
    }
    store(&c.chain, certificate.pem().as_bytes(), 0o644).map_err(|e| failed(&e))?;
    eprintln!(
        "httpd: made a self-signed certificate, {}: browsers will ask whether to trust it; put your own in its place",
        c.chain.display()
    );
    Ok(())
}

/// Writes a file whole or not at all, and durably.
pub fn store(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidFilename.into());
    };
    std::fs::create_dir_all(dir)?;
    let mut new = name.to_owned();
    new.push(".new");
    let new = path.with_file_name(new);
    // Left over from an end in mid-write.
    let _ = std::fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    // A name without a directory is in the current one.
    std::fs::File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_and_reloaded_and_a_broken_one_is_not() {
        let dir = std::env::temp_dir().join(format!("httpd-tls-{}", std::process::id()));
        let c = Certificate {
            chain: dir.join("cert.pem"),
            key: dir.join("key.pem"),
            self_signed: true,
            hosts: vec!["example.org".into()],
            acme: false,
        };
        let store = Store::load(std::slice::from_ref(&c), Reader::Direct).unwrap();
        let first = store.entries[0].current.read().unwrap().0.clone();
        std::fs::write(&c.chain, "garbage").unwrap();
        store.refresh();
        assert_eq!(store.entries[0].current.read().unwrap().0.cert, first.cert);
        std::fs::remove_file(&c.chain).unwrap();
        std::fs::remove_file(&c.key).unwrap();
        make(&c).unwrap();
        store.refresh();
        assert_ne!(store.entries[0].current.read().unwrap().0.cert, first.cert);
        // The power was cut after the key and before the certificate.
        let key = std::fs::read(&c.key).unwrap();
        std::fs::remove_file(&c.chain).unwrap();
        assert!(Store::load(std::slice::from_ref(&c), Reader::Direct).is_ok());
        assert_eq!(std::fs::read(&c.key).unwrap(), key);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn hosts_fit_whole_or_by_a_star() {
        assert!(host_fits("Example.org", "example.ORG") && host_fits("*.example.org", "a.example.org"));
        assert!(!host_fits("*.example.org", "example.org") && !host_fits("*.example.org", "a.b.example.org"));
    }
}
