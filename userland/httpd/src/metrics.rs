//! Counters, and the page that shows them in the Prometheus text format.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// Everything that is counted.
        pub struct Counters {
            $($(#[doc = $help])+ pub $name: AtomicU64,)+
        }
        /// The process's counters.
        pub static COUNTERS: Counters = Counters { $($name: AtomicU64::new(0),)+ };
        const LIST: &[(&str, &str, fn(&Counters) -> &AtomicU64)] =
            &[$((stringify!($name), concat!($($help),+), |c| &c.$name),)+];
    };
}

counters! {
    /// Connections accepted.
    connections,
    /// TLS handshakes that succeeded.
    handshakes,
    /// TLS handshakes that failed.
    handshakes_failed,
    /// Clients that spoke plain HTTP where TLS is spoken.
    plain_on_tls,
    /// Connections closed for room or descriptors, the longest idle first.
    evicted,
    /// Connections closed because their client made no progress.
    stalled,
    /// Connections that ended with an error of the protocol.
    protocol_errors,
    /// Requests refused because a limit was crossed.
    refused,
    /// Bytes of answers' bodies.
    body_bytes,
    /// Failures of a server behind the proxy.
    proxy_errors,
    /// Lines of the access log that were dropped because its file was too slow.
    log_dropped,
    /// Certificates loaded again after a change.
    certificates_reloaded,
    /// Certificates that changed into something unusable; the old one stays.
    certificates_refused,
}

/// Connections that are open.
pub static OPEN: AtomicI64 = AtomicI64::new(0);

/// Answers by class of their status: 1xx to 5xx.
static ANSWERS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

/// Upper bounds of the histogram's buckets, in microseconds.
const BOUNDS: [u64; 10] = [100, 500, 1000, 5000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 10_000_000];
static BUCKETS: [AtomicU64; BOUNDS.len() + 1] = [const { AtomicU64::new(0) }; BOUNDS.len() + 1];
static TOTAL_MICROS: AtomicU64 = AtomicU64::new(0);

/// Count one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// An answer with `status` was finished after `took`.
pub fn answered(status: u16, took: Duration) {
    let class = usize::from(status / 100).clamp(1, 5) - 1;
    ANSWERS[class].fetch_add(1, Relaxed);
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let bucket = BOUNDS.iter().position(|b| micros <= *b).unwrap_or(BOUNDS.len());
    BUCKETS[bucket].fetch_add(1, Relaxed);
    TOTAL_MICROS.fetch_add(micros, Relaxed);
}

/// The page.
pub fn page() -> String {
    let mut text = String::with_capacity(4096);
    for (name, help, get) in LIST {
        let value = get(&COUNTERS).load(Relaxed);
        let help = help.trim().trim_end_matches('.');
        // Writing into a string cannot fail.
        let _ = write!(
            text,
            "# HELP httpd_{name}_total {help}\n# TYPE httpd_{name}_total counter\nhttpd_{name}_total {value}\n"
        );
    }
    let _ = write!(
        text,
        "# HELP httpd_connections_open Connections that are open\n# TYPE httpd_connections_open gauge\nhttpd_connections_open {}\n",
        OPEN.load(Relaxed)
    );
    text.push_str("# HELP httpd_answers_total Answers by class of status\n# TYPE httpd_answers_total counter\n");
    for (at, n) in ANSWERS.iter().enumerate() {
        let _ = writeln!(text, "httpd_answers_total{{class=\"{}xx\"}} {}", at + 1, n.load(Relaxed));
    }
    text.push_str("# HELP httpd_answer_seconds Time from a request's head to the end of its answer\n# TYPE httpd_answer_seconds histogram\n");
    let mut sum = 0;
    for (at, n) in BUCKETS.iter().enumerate() {
        sum += n.load(Relaxed);
        let bound =
            BOUNDS.get(at).map_or_else(|| "+Inf".to_owned(), |b| Duration::from_micros(*b).as_secs_f64().to_string());
        let _ = writeln!(text, "httpd_answer_seconds_bucket{{le=\"{bound}\"}} {sum}");
    }
    let _ =
        writeln!(text, "httpd_answer_seconds_sum {}", Duration::from_micros(TOTAL_MICROS.load(Relaxed)).as_secs_f64());
    let _ = writeln!(text, "httpd_answer_seconds_count {sum}");
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_has_every_kind() {
        super::answered(204, std::time::Duration::from_millis(2));
        let page = super::page();
        assert!(page.contains("# TYPE httpd_connections_total counter\nhttpd_connections_total "), "{page}");
        assert!(page.contains("class=\"2xx\"} 1\n"), "{page}");
        assert!(page.contains("le=\"0.001\"} 0\n") && page.contains("le=\"0.005\"} 1\n"), "{page}");
        assert!(page.contains("le=\"+Inf\"} 1\n"), "{page}");
    }
}
