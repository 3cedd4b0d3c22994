//! The door for `svc`: a unix socket that only root may open, one line of request, a text in answer.
//!
//! Who connects is never waited for: connections are few, short and non-blocking, and one that has not asked within its
//! time is closed.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// Where the socket is.
pub const SOCKET: &str = "/run/svc/control";
/// The longest request.
const LONGEST: usize = 256;
/// How many may be connected at once.
const MOST: usize = 16;
/// How long one may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// One line for each service.
    List,
    /// All about one.
    Status(String),
    /// Start it.
    Start(String),
    /// Stop it.
    Stop(String),
    /// Stop and start it.
    Restart(String),
    /// Read the service files again.
    Reload,
    /// Switch the machine off.
    Poweroff,
    /// Start the machine again.
    Reboot,
    /// Replace process 1 by a new image of its program, services going on.
    Reexec,
    /// Make process 1 panic: a test of what then happens.
    Panic,
}

impl Request {
    /// Read a request's line.
    pub fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["list"] => Ok(Self::List),
            ["status", name] => Ok(Self::Status((*name).to_owned())),
            ["start", name] => Ok(Self::Start((*name).to_owned())),
            ["stop", name] => Ok(Self::Stop((*name).to_owned())),
            ["restart", name] => Ok(Self::Restart((*name).to_owned())),
            ["reload"] => Ok(Self::Reload),
            ["poweroff"] => Ok(Self::Poweroff),
            ["reboot"] => Ok(Self::Reboot),
            ["reexec"] => Ok(Self::Reexec),
            ["panic"] => Ok(Self::Panic),
            _ => Err(format!("{:?} is no request", line.trim())),
        }
    }
}

/// Somebody who is connected.
#[derive(Debug)]
pub struct Client {
    /// The connection.
    pub stream: UnixStream,
    request: Vec<u8>,
    until: Duration,
}

/// What came of listening to a client.
#[derive(Debug)]
pub enum Heard {
    /// Not yet a whole line.
    More,
    /// This was asked.
    Asked(Result<Request, String>),
    /// It is gone, or too slow, or talks too much.
    Gone,
}

impl Client {
    /// Take what it sent.
    pub fn hear(&mut self, now: Duration) -> Heard {
        let mut buffer = [0; LONGEST];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Heard::Gone,
            Ok(n) => self.request.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return Heard::Gone,
        }
        match self.request.iter().position(|b| *b == b'\n') {
            Some(end) => {
                Heard::Asked(Request::parse(&String::from_utf8_lossy(self.request.get(..end).unwrap_or_default())))
            }
            None if self.request.len() >= LONGEST || now >= self.until => Heard::Gone,
            None => Heard::More,
        }
    }

    /// Send the answer; what does not fit into the socket at once is not for process 1 to wait for.
    pub fn answer(mut self, answer: &Result<String, String>) {
        let text = match answer {
            Ok(text) => format!("ok\n{text}"),
            Err(why) => format!("error\n{why}\n"),
        };
        let _ = self.stream.write_all(text.as_bytes());
    }
}

/// The socket and who is connected to it.
#[derive(Debug, Default)]
pub struct Control {
    /// The socket, if it could be made.
    pub listener: Option<UnixListener>,
    /// Who is connected.
    pub clients: Vec<Client>,
}

impl Control {
    /// Make the socket at `path`.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: Some(listener), clients: Vec::new() })
    }

    /// Let in who waits.
    pub fn accept(&mut self, now: Duration) {
        let Some(listener) = &self.listener else { return };
        while self.clients.len() < MOST {
            let Ok((stream, _)) = listener.accept() else { return };
            if stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, request: Vec::new(), until: now + PATIENCE });
            }
        }
    }

    /// When the patience with somebody ends.
    pub fn deadline(&self) -> Option<Duration> {
        self.clients.iter().map(|c| c.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        assert_eq!(Request::parse("list\n"), Ok(Request::List));
        assert_eq!(Request::parse(" stop  a "), Ok(Request::Stop("a".into())));
        for wrong in ["", "stop", "stop a b", "dance"] {
            assert!(Request::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_client_is_heard_in_pieces_and_not_for_ever() {
        let (mut there, here) = UnixStream::pair().expect("a pair");
        here.set_nonblocking(true).expect("a socket");
        let mut client = Client { stream: here, request: Vec::new(), until: PATIENCE };
        there.write_all(b"sta").expect("room");
        assert!(matches!(client.hear(Duration::ZERO), Heard::More));
        there.write_all(b"rt x\n").expect("room");
        assert!(matches!(client.hear(Duration::ZERO), Heard::Asked(Ok(Request::Start(n))) if n == "x"));
        client.request.clear();
        assert!(matches!(client.hear(PATIENCE), Heard::Gone));
        there.write_all(&[b'a'; LONGEST]).expect("room");
        assert!(matches!(client.hear(Duration::ZERO), Heard::Gone));
    }
}
