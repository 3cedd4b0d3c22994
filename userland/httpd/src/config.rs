//! The configuration file: TOML, every key known, every value checked before anything is opened.
//!
//! ```toml
//! log = "/var/log/httpd.log"            # "-": standard output, "": none
//! user = "httpd"                        # whom it becomes, started by root
//! metrics = "127.0.0.1:9100"
//! [[listen]]
//! address = "[::]:443"
//! tls = true
//! [[certificate]]
//! chain = "/data/tls/cert.pem"
//! key = "/data/tls/key.pem"
//! self_signed = true                    # make one if there is none
//! [acme]
//! agree = true                          # to the terms of service; who they are is `directory`
//! [[route]]
//! path = "/static/"
//! files = "/srv/www"
//! [[route]]
//! proxy = "127.0.0.1:8000"
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the access log goes: a file, `-` for standard output, empty for nowhere.
    #[serde(default = "stdout")]
    pub log: String,
    /// Whom it becomes once its ports are bound, if root starts it: `httpd`, or else `nobody`, without this.
    pub user: Option<String>,
    /// Where the metrics page is served.
    pub metrics: Option<SocketAddr>,
    /// Where it listens.
    pub listen: Vec<Listen>,
    /// Certificates; the first is for clients that name no host, or an unknown one.
    #[serde(default)]
    pub certificate: Vec<Certificate>,
    /// How certificates with `acme = true` are fetched.
    pub acme: Option<Acme>,
    /// What is served where.
    pub route: Vec<Route>,
    /// What a client may cost.
    #[serde(default)]
    pub limits: Limits,
}

fn stdout() -> String {
    "-".to_owned()
}

/// A listener.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Address and port; `[::]` takes IPv4 as well.
    pub address: SocketAddr,
    /// Speak TLS.
    #[serde(default)]
    pub tls: bool,
}

/// A certificate and what it is for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The chain, in PEM.
    pub chain: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
    /// Make a self-signed certificate if there is none.
    #[serde(default)]
    pub self_signed: bool,
    /// Hosts that it is for; also the names in a self-signed one.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Fetch it by ACME, for those hosts. Until then a self-signed one is made, as by `self_signed`.
    #[serde(default)]
    pub acme: bool,
}

/// An authority that speaks ACME, and what it takes to ask it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Acme {
    /// Where the authority's directory is.
    pub directory: String,
    /// Agree to its terms of service.
    pub agree: bool,
    /// Whom it may write to, as `mailto:` addresses.
    pub contact: Vec<String>,
    /// The certificate that vouches for the authority's own server, in PEM, instead of the public ones.
    pub root: Option<PathBuf>,
    /// Where the account is kept.
    pub state: PathBuf,
    /// Where answers to challenges are, as files.
    pub challenges: PathBuf,
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            directory: "https://acme-v02.api.letsencrypt.org/directory".into(),
            agree: false,
            contact: Vec::new(),
            root: None,
            state: "/data/acme".into(),
            challenges: "/run/acme".into(),
        }
    }
}

/// What answers requests below a path.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Only for this host.
    pub host: Option<String>,
    /// Only below this path; the longest that fits wins.
    #[serde(default = "slash")]
    pub path: String,
    /// Serve files below this directory.
    pub files: Option<PathBuf>,
    /// Ask this server.
    pub proxy: Option<SocketAddr>,
    /// Send the client there; the rest of the path is appended.
    pub redirect: Option<String>,
}

fn slash() -> String {
    "/".to_owned()
}

/// What a client may cost.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at once; beyond, the one that is idle the longest makes way.
    pub connections: usize,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: u64,
    /// Streams at once in an HTTP/2 connection.
    pub streams: u32,
    /// For a TLS handshake.
    pub handshake_seconds: u64,
    /// For a request's head, and the longest rest between two requests.
    pub idle_seconds: u64,
    /// Reading a body or writing an answer without any progress.
    pub stall_seconds: u64,
    /// Least rate of a request's body, in bytes a second, once `stall_seconds` are over.
    pub body_rate: u64,
    /// For the server behind the proxy to begin its answer.
    pub proxy_seconds: u64,
    /// For requests to end after SIGTERM.
    pub drain_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            header_bytes: 16 * 1024,
            body_bytes: 64 << 20,
            streams: 64,
            handshake_seconds: 10,
            idle_seconds: 30,
            stall_seconds: 20,
            body_rate: 256,
            proxy_seconds: 60,
            drain_seconds: 10,
        }
    }
}

impl Limits {
    /// `handshake_seconds`.
    pub fn handshake(&self) -> Duration {
        Duration::from_secs(self.handshake_seconds)
    }
    /// `idle_seconds`.
    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }
    /// `stall_seconds`.
    pub fn stall(&self) -> Duration {
        Duration::from_secs(self.stall_seconds)
    }
    /// `proxy_seconds`.
    pub fn proxy(&self) -> Duration {
        Duration::from_secs(self.proxy_seconds)
    }
}

/// Reads and checks `path`.
pub fn read(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    parse(&text).map_err(|why| format!("{}: {why}", path.display()))
}

fn parse(text: &str) -> Result<Config, String> {
    let config: Config = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    check(&config)?;
    Ok(config)
}

fn check(c: &Config) -> Result<(), String> {
    if c.listen.is_empty() {
        return Err("there is no [[listen]]: nothing would be served".into());
    }
    if c.listen.iter().any(|l| l.tls) && c.certificate.is_empty() {
        return Err("a [[listen]] has tls = true, but there is no [[certificate]]".into());
    }
    for fetched in c.certificate.iter().filter(|x| x.acme) {
        let what = format!("[[certificate]] {}", fetched.chain.display());
        if fetched.hosts.is_empty() || fetched.hosts.iter().any(|h| h.starts_with("*.")) {
            return Err(format!("{what}: acme = true needs hosts, and none with a star"));
        }
        if c.acme.is_none() {
            return Err(format!("{what}: acme = true, but there is no [acme]"));
        }
    }
    for (at, r) in c.route.iter().enumerate() {
        let what = format!("[[route]] number {} (path {:?})", at + 1, r.path);
        if !r.path.starts_with('/') {
            return Err(format!("{what}: the path must begin with /"));
        }
        let kinds = [r.files.is_some(), r.proxy.is_some(), r.redirect.is_some()];
        if kinds.iter().filter(|k| **k).count() != 1 {
            return Err(format!("{what}: say exactly one of files, proxy, redirect"));
        }
        if let Some(dir) = &r.files
            && !dir.is_dir()
        {
            return Err(format!("{what}: files = {:?} is not a directory", dir.display()));
        }
    }
    let l = &c.limits;
    let numbers = [
        ("connections", l.connections as u64, 1, 1 << 20),
        ("header_bytes", l.header_bytes as u64, 8192, 1 << 20),
        ("streams", u64::from(l.streams), 1, 1 << 16),
        ("handshake_seconds", l.handshake_seconds, 1, 86_400),
        ("idle_seconds", l.idle_seconds, 1, 86_400),
        ("stall_seconds", l.stall_seconds, 1, 86_400),
        ("proxy_seconds", l.proxy_seconds, 1, 86_400),
        ("drain_seconds", l.drain_seconds, 0, 86_400),
    ];
    for (name, value, least, most) in numbers {
        if value < least || value > most {
            return Err(format!("[limits] {name} = {value}: must be from {least} to {most}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[listen]]\naddress = '[::]:80'\n[[route]]\nproxy = '127.0.0.1:8000'\n";

    #[test]
    fn a_small_file_is_enough() {
        let c = parse(GOOD).unwrap();
        assert_eq!((c.route[0].path.as_str(), c.log.as_str(), c.limits.idle_seconds), ("/", "-", 30));
    }

    #[test]
    fn errors_say_what_and_where() {
        let error = |text: &str| parse(text).unwrap_err();
        assert!(error("[[listen]]\naddress = 'x'\n").contains("line 2"));
        assert!(error(&format!("{GOOD}colour = 1\n")).contains("colour"));
        assert!(error(&GOOD.replace("]:80'", "]:80'\ntls = true")).contains("[[certificate]]"));
        assert!(error(&format!("{GOOD}files = '/'\n")).contains("exactly one"));
        assert!(error(&format!("{GOOD}path = 'x'\n")).contains("begin with /"));
        assert!(error(&format!("{GOOD}[limits]\nidle_seconds = 0\n")).contains("idle_seconds"));
    }
}
