//! The web server of a Berth machine: static files and reverse proxy over HTTP/1.1 and HTTP/2, with and without TLS.
//!
//! One process, one thread for each CPU. hyper speaks the protocols and rustls the encryption; what is here decides what a
//! client may cost. The rule behind all of it: **no client holds anything for longer than it makes progress**, and where
//! room runs out the connection that has been idle the longest makes way (see [`conn`]). So garbage, slow clients and
//! floods of idle connections cost themselves their connections, and others nothing.
//!
//! - [`config`]: the configuration file and its errors
//! - [`listen`]: listeners, accepting, TLS, and what is said to a client that forgot TLS
//! - [`conn`]: connections: who is idle, who makes way, progress on reading and writing
//! - [`handle`]: from request to answer: routes, limits, the access log
//! - [`files`], [`proxy`]: the two ways in which an answer comes about
//! - [`tls`]: certificates from files, reloaded when they change; the self-signed one of the first boot
//! - [`privilege`]: root until the ports are bound, a user of its own from then on
//! - [`acme`], [`der`]: another process, which fetches certificates (`httpd --acme`)
//! - [`metrics`], [`log`]: what it says about itself
//!
//! Not done: HTTP/3, compression, WebSocket through the proxy, rewriting of paths.
#![forbid(unsafe_code)]

mod acme;
mod body;
mod config;
mod conn;
mod der;
mod files;
mod handle;
mod listen;
mod log;
mod metrics;
mod privilege;
mod proxy;
mod tls;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str = "usage: httpd [--check | --acme] [CONFIG]   (/data/etc/httpd.toml, or else /etc/httpd.toml)";
/// Where the configuration is: the machine's own, or else the image's.
const CONFIGS: [&str; 2] = ["/data/etc/httpd.toml", "/etc/httpd.toml"];

fn main() -> ExitCode {
    let (mut check, mut fetch) = (false, false);
    let mut path = None;
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--keys", files)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return ended(privilege::keeper(files));
    }
    for word in words {
        match word.as_str() {
            "--check" => check = true,
            "--acme" => fetch = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--version" => {
                println!("httpd {}", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            _ if word.starts_with('-') || path.is_some() => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
            _ => path = Some(word),
        }
    }
    let [own, image] = CONFIGS;
    let path = path.unwrap_or_else(|| if Path::new(own).exists() { own } else { image }.to_owned());
    ended(config::read(path.as_ref()).and_then(|c| match (check, fetch) {
        (true, _) => Ok(()),
        (_, true) => acme::run(&c),
        _ => run(c),
    }))
}

fn ended(how: Result<(), String>) -> ExitCode {
    match how {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("httpd: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut config: config::Config) -> Result<(), String> {
    let admitted = connections_for(raise_descriptor_limit());
    if config.limits.connections > admitted {
        eprintln!(
            "httpd: the limit of open files admits {admitted} connections instead of {}",
            config.limits.connections
        );
        config.limits.connections = admitted;
    }
    let user = privilege::wanted(config.user.as_deref())?;
    log::open(&config.log, user)?;
    let sockets = listen::Sockets::bind(&config)?;
    let reader = match user {
        Some(_) if !config.certificate.is_empty() => privilege::start_keeper(&config.certificate)?,
        _ => privilege::Reader::Direct,
    };
    let server = Arc::new(handle::Server::new(config, reader)?);
    if let Some(user) = user {
        privilege::drop_to(user)?;
    }
    // From here on there are threads.
    log::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(1, usize::from))
        .max_blocking_threads(16)
        .thread_stack_size(512 * 1024)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start: {e}"))?;
    let outcome = runtime.block_on(listen::serve(server, sockets));
    // A file read that hangs on a device must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    log::flush();
    outcome
}

/// Raise the limit of descriptors as far as it goes; how many there may be.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// How many connections so many descriptors are enough for: each is one, and one more for the server behind it or the file
/// that it is sent. Beyond that an idle one makes way, which is better than to find out in accept(2), which says `EMFILE` even
/// where nobody waits.
fn connections_for(descriptors: u64) -> usize {
    /// Listeners, log, runtime, certificates, the metrics page.
    const OWN: u64 = 24;
    usize::try_from(descriptors.saturating_sub(OWN) / 2).unwrap_or(usize::MAX).max(4)
}

#[cfg(test)]
mod tests {
    #[test]
    fn descriptors_bound_connections() {
        assert_eq!([0, 50, 8192].map(super::connections_for), [4, 13, 4084]);
    }
}
