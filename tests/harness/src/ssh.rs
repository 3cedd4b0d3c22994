//! Debian's OpenSSH client against a machine under test, and the way to the machine's ports.
//!
//! The emulator forwards ports of this machine to the guest's. Each harness takes a loopback address of its own, made from
//! its process number, so that harnesses beside each other do not meet, and ports that are nobody's ephemeral ones.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Failure, Outcome, check};
use crate::vm::VmConfig;

/// This harness' own loopback address.
pub fn own_address() -> Ipv4Addr {
    if cfg!(target_os = "linux") {
        let [_, b, c, d] = std::process::id().to_be_bytes();
        // 127.0.x.y is left to others.
        Ipv4Addr::new(127, 0x40 | (b & 0x3f), c, d)
    } else {
        Ipv4Addr::LOCALHOST
    }
}

/// Ports of this machine that nobody uses. None is given twice, so that it stays free until its user takes it.
pub fn free_ports(count: usize) -> Outcome<Vec<SocketAddrV4>> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below the ephemeral ports of Linux and of macOS.
    let (first, span) = (12_000, 18_000);
    let offset = if cfg!(target_os = "linux") { 0 } else { std::process::id() % span };
    let mut ports = Vec::new();
    for _ in 0..span {
        let next = (offset + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % span;
        let at = SocketAddrV4::new(own_address(), first + next as u16);
        if TcpListener::bind(at).is_ok() {
            ports.push(at);
        }
        if ports.len() == count {
            return Ok(ports);
        }
    }
    Err(Failure::new("harness.ports", format!("no {count} free ports at {}", own_address())))
}

/// Give the machine a network card, with ports of this machine forwarded to `ports` of its own; these are returned.
pub fn forward(config: &mut VmConfig, ports: &[u16]) -> Outcome<Vec<SocketAddrV4>> {
    let ours = free_ports(ports.len())?;
    let mut net = "user,id=n0".to_owned();
    for (our, port) in ours.iter().zip(ports) {
        net.push_str(&format!(",hostfwd=tcp:{}:{}-:{port}", our.ip(), our.port()));
    }
    let device = "virtio-net-device,netdev=n0".to_owned();
    config.extra.extend(["-netdev".to_owned(), net, "-device".to_owned(), device]);
    Ok(ours)
}

/// How a program of this machine ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit status, -1 for a signal, -2 if it did not end in time and was killed.
    pub status: i32,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// Standard output as text, without blanks at its ends.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).replace('\r', "").trim().to_owned()
    }
}

/// A program that runs, with its output in files.
pub struct Running {
    /// The process. Its standard input is a pipe unless it was given a file.
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// Start `command` with output to files `dir/name.*`.
    pub fn start(command: &mut Command, dir: &Path, name: &str) -> Outcome<Self> {
        let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let child = command.stdout(File::create(&out)?).stderr(File::create(&err)?).spawn().map_err(|e| {
            Failure::new("harness.program", format!("{}: {e}", command.get_program().to_string_lossy()))
        })?;
        Ok(Self { child, out, err })
    }

    /// Wait for its end, for at most `limit`.
    pub fn wait(mut self, limit: Duration) -> Outcome<Ended> {
        drop(self.child.stdin.take());
        let until = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status.code().unwrap_or(-1);
            }
            if Instant::now() >= until {
                self.kill();
                break -2;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let err = String::from_utf8_lossy(&std::fs::read(&self.err)?).into_owned();
        Ok(Ended { status, out: std::fs::read(&self.out)?, err })
    }

    /// What it has printed so far.
    pub fn so_far(&self) -> String {
        std::fs::read(&self.out).map(|b| String::from_utf8_lossy(&b).replace('\r', "")).unwrap_or_default()
    }

    /// Wait until it has printed `text`.
    pub fn expect(&self, text: &str, what: &str, limit: Duration) -> Outcome {
        let until = Instant::now() + limit;
        while !self.so_far().contains(text) {
            check(Instant::now() < until, what, || {
                let err = std::fs::read_to_string(&self.err).unwrap_or_default();
                format!("no {text:?} within {limit:?} in {:?}, {err:?}", self.so_far())
            })?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A key, and the machine it opens.
#[derive(Debug, Clone)]
pub struct Ssh {
    /// The forwarded port.
    pub at: SocketAddrV4,
    dir: PathBuf,
    key: PathBuf,
    serial: u32,
}

impl Ssh {
    /// A new key in `dir` for the machine at `at`.
    pub fn new(dir: &Path, at: SocketAddrV4, name: &str) -> Outcome<Self> {
        let key = dir.join(name);
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&key).output()?;
        check(made.status.success(), "harness.ssh-keygen", || String::from_utf8_lossy(&made.stderr).into_owned())?;
        Ok(Self { at, dir: dir.to_owned(), key, serial: 0 })
    }

    /// The kernel parameter that lets this key in.
    pub fn parameter(&self) -> Outcome<String> {
        let public = std::fs::read_to_string(self.key.with_extension("pub"))?;
        let words: Vec<&str> = public.split_whitespace().take(2).collect();
        Ok(format!("berth.sshkey={}", words.join(",")))
    }

    /// `ssh`, `scp` or `sftp` with the options that make it independent of who runs the harness.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let known = self.dir.join("known_hosts");
        command.args(["-F", "/dev/null", "-i"]).arg(&self.key).stdin(Stdio::null());
        for option in [
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
            "StrictHostKeyChecking=accept-new",
            "GlobalKnownHostsFile=/dev/null",
            "ConnectTimeout=60",
            "LogLevel=ERROR",
            &format!("UserKnownHostsFile={}", known.display()),
            &format!("Port={}", self.at.port()),
        ] {
            command.args(["-o", option]);
        }
        command
    }

    /// `root@` the machine's address.
    pub fn host(&self) -> String {
        format!("root@{}", self.at.ip())
    }

    /// Start `ssh ARGS… root@machine COMMAND`.
    pub fn start(&mut self, args: &[&str], remote: &str, input: Stdio) -> Outcome<Running> {
        self.serial += 1;
        let mut command = self.command("ssh");
        command.args(args).arg(self.host()).stdin(input);
        if !remote.is_empty() {
            command.arg(remote);
        }
        Running::start(&mut command, &self.dir, &format!("ssh{}", self.serial))
    }

    /// Run `remote` there and wait for its end.
    pub fn run(&mut self, remote: &str, limit: Duration) -> Outcome<Ended> {
        self.start(&[], remote, Stdio::null())?.wait(limit)
    }

    /// Run `remote` there: it must end with 0. What it printed.
    pub fn ok(&mut self, remote: &str, what: &str, limit: Duration) -> Outcome<String> {
        let ended = self.run(remote, limit)?;
        check(ended.status == 0, what, || format!("{remote}: {ended:?}"))?;
        Ok(ended.text())
    }

    /// Wait until the daemon lets this key in. That it is not there yet is waited for; that it says no is not.
    pub fn wait_for_login(&mut self, limit: Duration) -> Outcome {
        let until = Instant::now() + limit;
        loop {
            let ended = self.run("exit 0", Duration::from_secs(70))?;
            if ended.status == 0 {
                return Ok(());
            }
            let refused = ended.err.contains("Permission denied");
            check(!refused && Instant::now() < until, "n3.login", || format!("{ended:?}"))?;
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
