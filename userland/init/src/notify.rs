//! Readiness as sd_notify(3) describes it: a service sends `READY=1` to the unix datagram socket that NOTIFY_SOCKET names.
//!
//! Every service that is waited for has a socket of its own, made anew for every start and open to its user alone, so that no
//! other service can speak for it and nobody's process number has to be believed. Other lines (`STATUS=` and so on) are read
//! and dropped. After process 1 has replaced itself the socket is made again under the same name.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Where the sockets are.
const DIRECTORY: &str = "/run/notify";
/// How many messages are read at once: process 1 has others to see to.
const BURST: usize = 16;

/// A service's socket.
#[derive(Debug)]
pub struct Notify {
    /// To be polled.
    pub socket: UnixDatagram,
    /// Its name.
    pub path: PathBuf,
}

impl Notify {
    /// Make the socket of the service `name`, which runs as `uid`.
    pub fn open(name: &str, uid: u32) -> std::io::Result<Self> {
        Self::open_in(Path::new(DIRECTORY), name, uid)
    }

    fn open_in(directory: &Path, name: &str, uid: u32) -> std::io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join(name);
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        std::os::unix::fs::chown(&path, Some(uid), None)?;
        Ok(Self { socket, path })
    }

    /// Take what came; true if the service said that it is ready.
    pub fn pump(&self) -> bool {
        let mut ready = false;
        let mut message = [0; 4096];
        for _ in 0..BURST {
            let Ok(n) = self.socket.recv(&mut message) else { break };
            let message = message.get(..n).unwrap_or_default();
            ready |= message.split(|b| *b == b'\n').any(|line| line == b"READY=1");
        }
        ready
    }
}

/// What a service says when it is ready: for programs that are scripts, `svc ready`.
pub fn ready() -> Result<(), String> {
    let path = std::env::var_os("NOTIFY_SOCKET").ok_or("nobody waits for this: NOTIFY_SOCKET is not set")?;
    let sent = UnixDatagram::unbound().and_then(|s| s.send_to(b"READY=1", &path));
    sent.map(drop).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_heard_and_other_words_are_not() {
        let dir = std::env::temp_dir().join(format!("init-notify-{}", std::process::id()));
        let notify = Notify::open_in(&dir, "x", rustix::process::getuid().as_raw()).expect("a socket");
        let say = |text: &[u8]| UnixDatagram::unbound().and_then(|s| s.send_to(text, &notify.path)).expect("room");
        assert!(!notify.pump());
        say(b"STATUS=READY=1\nREADY=0");
        assert!(!notify.pump());
        say(b"STATUS=well\nREADY=1\n");
        say(b"\xff");
        assert!(notify.pump());
        std::fs::remove_dir_all(&dir).expect("it is there");
    }
}
