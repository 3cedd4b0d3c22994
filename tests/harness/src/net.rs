//! What the network gates share: machines with the emulator's user network, the host's end of conversations, and waiting for
//! addresses.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Failure, Outcome, check};
use crate::shell::{COMMAND_LIMIT, Shell};
use crate::vm::VmConfig;

/// How long an exchange may take: a limit for a hang, not a measure.
pub const EXCHANGE_LIMIT: Duration = Duration::from_secs(300);

/// Gives a machine the emulator's user network (DHCP, DNS, IPv6 router), with a port of this host forwarded to its port 22;
/// which.
pub fn user_network(config: &mut VmConfig, device: &str) -> Outcome<u16> {
    // Free a moment ago; should somebody take it until the emulator binds it, that says so and the case fails clearly.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    config.extra.extend([
        "-netdev".into(),
        format!("user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:22"),
        "-device".into(),
        format!("virtio-net-device,netdev=n0{device}"),
    ]);
    Ok(port)
}

/// Waits until `command` prints `text`; what it printed then.
pub fn until(sh: &mut Shell, what: &str, command: &str, text: &str) -> Outcome<String> {
    let line = format!(
        "for i in $(seq 120); do x=$({command}); case \"$x\" in *'{text}'*) break;; esac; sleep 0.5; done; echo \"$x\""
    );
    let seen = sh.run(&line, EXCHANGE_LIMIT)?.output;
    check(seen.contains(text), what, || format!("{command}: no {text:?} in\n{seen}"))?;
    Ok(seen)
}

/// Waits until no address of the machine is tentative any more.
pub fn addresses_checked(sh: &mut Shell) -> Outcome {
    until(sh, "net.tentative", "ip -6 addr show | grep -q tentative || echo ours", "ours").map(|_| ())
}

/// Waits until the machine has got its address from the user network, of which the default route comes last.
pub fn configured(sh: &mut Shell, what: &str) -> Outcome<String> {
    until(sh, what, "ip route; ip addr show eth0", "default via 10.0.2.2")
}

/// Starts the echo server in the machine.
pub fn echo_server(sh: &mut Shell, port: u16) -> Outcome {
    sh.ok(&format!("ulimit -n 4096; /usr/lib/berth-tests/netpeer echo {port} >/tmp/echo.out 2>&1 & true"))?;
    until(sh, "net.echo_server", "cat /tmp/echo.out", "ready").map(|_| ())
}

fn content(connection: usize) -> Vec<u8> {
    (0..4096usize).map(|i| (i.wrapping_mul(31) ^ connection.wrapping_mul(7) ^ i >> 8) as u8).collect()
}

/// `count` connections from this host to `port`, all open at once; each sends 4 KiB, closes its half and wants the same back.
pub fn host_client(port: u16, count: usize) -> Outcome {
    const WHAT: &str = "n2.host_to_guest";
    let fail = |n: usize, e: std::io::Error| Failure::new(WHAT, format!("connection {n} of {count}: {e}"));
    let mut all = Vec::new();
    for n in 0..count {
        let mut s = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|e| fail(n, e))?;
        s.set_read_timeout(Some(EXCHANGE_LIMIT))?;
        // The emulator's own listener has no backlog: the next one waits until this one is through.
        let mut first = [0];
        s.write_all(b"+").and_then(|()| s.read_exact(&mut first)).map_err(|e| fail(n, e))?;
        all.push(s);
    }
    for (n, s) in all.iter_mut().enumerate() {
        s.write_all(&content(n)).and_then(|()| s.shutdown(std::net::Shutdown::Write)).map_err(|e| fail(n, e))?;
    }
    for (n, s) in all.iter_mut().enumerate() {
        let mut got = Vec::new();
        s.read_to_end(&mut got).map_err(|e| fail(n, e))?;
        check(got == content(n), WHAT, || format!("connection {n}: {} bytes, or wrong ones", got.len()))?;
    }
    Ok(())
}

/// An echo server on this host.
pub struct HostServer {
    /// Its port.
    pub port: u16,
    most: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Echo {
    stream: TcpStream,
    waiting: Vec<u8>,
    ended: bool,
}

impl Echo {
    /// Moves what can be moved; false when the connection is over.
    fn step(&mut self, moved: &mut bool) -> bool {
        let mut buf = [0; 16384];
        if !self.ended && self.waiting.len() < 65536 {
            match self.stream.read(&mut buf) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    self.waiting.extend(&buf[..n]);
                    *moved = true;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
        if !self.waiting.is_empty() {
            match self.stream.write(&self.waiting) {
                Ok(n) => {
                    self.waiting.drain(..n);
                    *moved = true;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
        !(self.ended && self.waiting.is_empty())
    }
}

impl HostServer {
    /// Starts it on a free port.
    pub fn start() -> Outcome<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (end, seen) = (stop.clone(), most.clone());
        let thread = std::thread::spawn(move || {
            let mut all: Vec<Echo> = Vec::new();
            while !end.load(Ordering::SeqCst) {
                let mut moved = false;
                while let Ok((stream, _)) = listener.accept() {
                    if stream.set_nonblocking(true).is_ok() {
                        all.push(Echo { stream, waiting: Vec::new(), ended: false });
                    }
                    moved = true;
                }
                seen.fetch_max(all.len(), Ordering::SeqCst);
                all.retain_mut(|e| e.step(&mut moved));
                if !moved {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Ok(Self { port, most, stop, thread: Some(thread) })
    }

    /// How many connections were open at once at most.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

impl Drop for HostServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

/// Lets this process and its emulators have as many files as the system allows.
pub fn many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is refused the case with a thousand connections says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Runs the far end's program in the machine.
pub fn peer(sh: &mut Shell, arguments: &str) -> Outcome<String> {
    sh.program(&format!("netpeer {arguments}"), EXCHANGE_LIMIT + COMMAND_LIMIT)
}
