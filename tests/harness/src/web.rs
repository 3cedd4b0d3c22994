//! curl against a web server under test, and connections that no well-behaved client would make.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::error::{Failure, Outcome, check};

/// For a hang, not a measure.
pub const LIMIT: Duration = Duration::from_secs(90);

/// What curl got.
#[derive(Debug, Clone, Default)]
pub struct Got {
    /// curl's exit status.
    pub exit: i32,
    /// The body.
    pub body: Vec<u8>,
    /// What `-w` printed: status, protocol, new connections, size.
    pub said: String,
}

impl Got {
    /// The HTTP status, 0 if there was none.
    pub fn status(&self) -> u32 {
        self.said.split(' ').next().and_then(|w| w.parse().ok()).unwrap_or(0)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn short(&self) -> String {
        let text = self.text();
        format!("curl {}, {:?}, {:?}", self.exit, self.said, text.chars().take(300).collect::<String>())
    }
}

/// Ask once. Certificates are not verified: the machine made its own.
pub fn curl(args: &[&str]) -> Outcome<Got> {
    let limit = LIMIT.as_secs().to_string();
    let format = "%{stderr}%{http_code} %{http_version} %{num_connects} %{size_download}\n";
    let out = Command::new("curl")
        .args(["-q", "-sS", "-k", "--noproxy", "*", "--max-time", &limit, "-w", format])
        .args(args)
        .output()
        .map_err(|e| Failure::new("harness.curl", e.to_string()))?;
    // Its own complaints stand between.
    let errors = String::from_utf8_lossy(&out.stderr);
    let (said, complaints): (Vec<&str>, Vec<&str>) =
        errors.lines().partition(|l| l.starts_with(|c: char| c.is_ascii_digit()));
    let said = said.into_iter().chain(complaints).collect::<Vec<_>>().join("\n");
    Ok(Got { exit: out.status.code().unwrap_or(-1), body: out.stdout, said })
}

/// Ask, and have `holds` be true of what came, as the assertion `what`.
pub fn expect(what: &str, args: &[&str], holds: impl FnOnce(&Got) -> bool) -> Outcome<Got> {
    let got = curl(args)?;
    check(holds(&got), what, || format!("curl {}: {}", args.join(" "), got.short()))?;
    Ok(got)
}

/// Ask until the answer's status is 200: a server that was just started may not listen yet.
pub fn wait_for(what: &str, url: &str) -> Outcome {
    let until = Instant::now() + LIMIT;
    loop {
        let got = curl(&[url, "--max-time", "10"])?;
        if got.status() == 200 {
            return Ok(());
        }
        check(Instant::now() < until, what, || format!("{url}: {}", got.short()))?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A connection of one's own.
pub fn connect(to: SocketAddrV4) -> Outcome<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::V4(to), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Sends `bytes` and no more, and reads to the end; the assertion `what` is that the server ends the connection. A server that closes
/// early may reset it: what came until then is the result.
pub fn throw(what: &str, to: SocketAddrV4, bytes: &[u8]) -> Outcome<Vec<u8>> {
    let mut stream = connect(to)?;
    // It may have closed already.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e) if is_timeout(&e) => {
            Err(Failure::new(what, format!("{} bytes were neither refused nor dropped", bytes.len())))
        }
        _ => Ok(answer),
    }
}

/// Did the time limit of a stream end this?
pub fn is_timeout(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Bytes that look like nothing, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}
