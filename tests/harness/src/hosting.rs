//! The hosting rows of `harness bench`: the hosting machine's own programs under Linux and under Berth, with the load outside.
//!
//! The emulator's user network stands between, on one thread of the host: slow, and the same for both. Loads are bounded in
//! time and number. The machine has no data disk, so that no row waits for one; what it serves is in memory.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cpio::{Entry, overlay};
use crate::error::{Failure, Outcome, check};
use crate::paths::Paths;
use crate::ssh::{Ssh, free_ports};
use crate::vm::{Vm, VmConfig};
use crate::web::curl;

/// How long a row's load lasts.
const LOAD: Duration = Duration::from_millis(800);
/// For a hang, not a measure.
const LIMIT: Duration = Duration::from_secs(3);
const BOOT: Duration = Duration::from_secs(120);

/// The modules first, where there are such; then the machine's own first process.
const INIT: &str = "#!/bin/busybox sh
for m in /lib/modules/*.ko; do [ ! -f $m ] || /bin/busybox insmod $m; done
/bin/busybox ifconfig lo 127.0.0.1 up
exec /sbin/init
";
const HTTPD: &str = "log = \"\"
[[listen]]
address = \"[::]:80\"
[[listen]]
address = \"[::]:443\"
tls = true
[[certificate]]
chain = \"/data/tls/cert.pem\"
key = \"/data/tls/key.pem\"
self_signed = true
[[route]]
path = \"/static/\"
files = \"/srv/bench\"
[[route]]
path = \"/\"
proxy = \"127.0.0.1:8000\"
";
const SERVICE: &str = "exec = /usr/lib/berth-tests/netbench serve\n";
const NETWORK: &str = "eth0 10.0.2.15/24 gateway 10.0.2.2\n";

/// All rows, by what their names begin with.
pub const ROWS: &[&str] = &[
    "ssh-login",
    "https-answer",
    "memory-hosting",
    "tcp-in",
    "tcp-out",
    "udp-echo",
    "http-1k-1",
    "http-1k-16",
    "http-1k-256",
    "http-100k-1",
    "http-100k-16",
    "http-100k-256",
    "http-1k-1-new",
    "http-1k-16-new",
    "http-1k-256-new",
    "http-100k-16-new",
    "tls-handshakes",
    "app-mixed",
];

/// A row: name, value, unit.
pub type Row = (String, f64, &'static str);

struct Machine {
    ssh: Ssh,
    http: SocketAddrV4,
    https: SocketAddrV4,
    sink: SocketAddrV4,
    source: SocketAddrV4,
    echo: SocketAddrV4,
}

/// Boots the hosting machine with `config`'s kernel and CPUs and measures; `wanted` chooses rows by name.
pub fn measure(
    paths: &Paths,
    mut config: VmConfig,
    linux: bool,
    dir: &std::path::Path,
    wanted: &dyn Fn(&str) -> bool,
) -> Outcome<Vec<Row>> {
    let ports = free_ports(6)?;
    let [ssh, http, https, sink, source, echo] = ports[..] else {
        return Err(Failure::new("harness.ports", "six are needed"));
    };
    let ssh = Ssh::new(dir, ssh, "key")?;
    let mut base = std::fs::read(paths.host_initrd()?)?;
    if linux {
        base.extend(std::fs::read(paths.build.join("linux/modules.cpio.gz")).unwrap_or_default());
    }
    let whole = dir.join("base.cpio");
    std::fs::write(&whole, base)?;
    let program = std::fs::read(paths.build.join("tests/netbench"))?;
    let content = vec![b'x'; 100 << 10];
    let entries = [
        Entry::File("bench-init", 0o755, INIT.as_bytes()),
        Entry::File("etc/httpd.toml", 0o644, HTTPD.as_bytes()),
        Entry::File("etc/network", 0o644, NETWORK.as_bytes()),
        Entry::File("etc/svc/netbench", 0o644, SERVICE.as_bytes()),
        Entry::Dir("usr/lib/berth-tests", 0o755),
        Entry::File("usr/lib/berth-tests/netbench", 0o755, &program),
        Entry::Dir("srv", 0o755),
        Entry::Dir("srv/bench", 0o755),
        Entry::File("srv/bench/1k", 0o644, &content[..1 << 10]),
        Entry::File("srv/bench/100k", 0o644, &content),
    ];
    config.initrd = Some(overlay(&whole, &entries, dir.join("initrd.cpio"))?);
    config.append.push_str(&format!(" berth.data=none {}", ssh.parameter()?));
    let mut net = "user,id=n0".to_owned();
    for (at, port) in [(ssh.at, 22), (http, 80), (https, 443), (sink, 9), (source, 19)] {
        net.push_str(&format!(",hostfwd=tcp:{}:{}-:{port}", at.ip(), at.port()));
    }
    net.push_str(&format!(",hostfwd=udp:{}:{}-:7", echo.ip(), echo.port()));
    config.extra.extend(["-netdev".into(), net, "-device".into(), "virtio-net-device,netdev=n0".into()]);
    config.extra.extend(["-device".into(), "virtio-rng-device".into()]);
    let vm = Vm::start(&config, dir)?;
    let mut m = Machine { ssh, http, https, sink, source, echo };
    m.rows(&vm, wanted).map_err(|f| Failure::new(f.what, format!("{}\n{}", f.detail, vm.console.tail(25))))
}

impl Machine {
    fn rows(&mut self, vm: &Vm, wanted: &dyn Fn(&str) -> bool) -> Outcome<Vec<Row>> {
        let mut rows = Vec::new();
        self.boot(vm, &mut rows)?;
        let mut row = |name: &str, unit: &'static str, take: &mut dyn FnMut() -> Outcome<f64>| -> Outcome {
            if wanted(name) {
                rows.push((name.to_owned(), take()?, unit));
            }
            Ok(())
        };
        row("tcp-in", "MB/s", &mut || incoming(self.sink))?;
        row("tcp-out", "MB/s", &mut || outgoing(self.source))?;
        row("udp-echo", "/s", &mut || datagrams(self.echo))?;
        for size in ["1k", "100k"] {
            for clients in [1, 16, 256] {
                let path = format!("/static/{size}");
                row(&format!("http-{size}-{clients}"), "/s", &mut || self.http(&path, clients, true))?;
            }
        }
        for clients in [1, 16, 256] {
            row(&format!("http-1k-{clients}-new"), "/s", &mut || self.http("/static/1k", clients, false))?;
        }
        row("http-100k-16-new", "/s", &mut || self.http("/static/100k", 16, false))?;
        row("tls-handshakes", "/s", &mut || handshakes(self.https))?;
        if wanted("app-mixed") {
            let (rate, worst) = self.application()?;
            rows.push(("app-mixed".into(), rate, "/s"));
            rows.push(("app-mixed-p99".into(), worst, "ms"));
        }
        Ok(rows)
    }

    /// Times from power-on, and the memory that is in use then.
    fn boot(&mut self, vm: &Vm, rows: &mut Vec<Row>) -> Outcome {
        let since = |name: &str| (name.to_owned(), vm.started.elapsed().as_secs_f64() * 1e3, "ms");
        let until = Instant::now() + BOOT;
        let waiting = |what: &str| check(Instant::now() < until, what, || format!("not within {BOOT:?}"));
        let https = self.https;
        let answers = std::thread::spawn(move || {
            let url = format!("https://{https}/static/1k");
            while Instant::now() < until && curl(&[&url, "--max-time", "2"])?.status() != 200 {}
            Ok::<_, Failure>(Instant::now())
        });
        // The emulator accepts at once: what counts is the daemon's first word.
        while !greets(self.ssh.at) {
            waiting("bench.sshd")?;
        }
        self.ssh.wait_for_login(BOOT)?;
        rows.push(since("ssh-login"));
        let first = answers.join().map_err(|_| Failure::new("harness.thread", "died"))??;
        waiting("bench.https")?;
        rows.push(("https-answer".into(), first.duration_since(vm.started).as_secs_f64() * 1e3, "ms"));
        let info = self.ssh.ok("cat /proc/meminfo", "bench.meminfo", BOOT)?;
        let of = |name: &str| {
            let line = info.lines().find(|l| l.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        };
        if let (Some(total), Some(free)) = (of("MemTotal:"), of("MemFree:")) {
            rows.push(("memory-hosting".into(), (total - free) / 1024.0, "MiB"));
        }
        Ok(())
    }

    /// Answers a second to `clients` at once.
    fn http(&self, path: &str, clients: usize, keep: bool) -> Outcome<f64> {
        let last = if keep { "" } else { "Connection: close\r\n" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n{last}\r\n");
        let (done, _) = load(self.http, clients, keep, &|_, _| request.clone())?;
        Ok(done)
    }

    /// The application: of five requests four read and one writes. Requests a second, and milliseconds that 99 % stay below.
    fn application(&self) -> Outcome<(f64, f64)> {
        let url = format!("http://{}/api/register", self.http);
        let got = curl(&["-d", r#"{"name":"bench","password":"a long enough one"}"#, &url])?;
        check(got.status() == 201, "bench.register", || got.text())?;
        let token = got.text().split('"').nth(3).unwrap_or("").to_owned();
        let head = format!("Host: bench\r\nAuthorization: Bearer {token}\r\n");
        let one = |client: usize, n: u64| {
            if n.is_multiple_of(5) {
                let body = format!(
                    "{{\"url\":\"https://example.org/{client}/{n}\",\"title\":\"number {n} of {client}\",\"tags\":\"a b\"}}"
                );
                format!("POST /api/bookmarks HTTP/1.1\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len())
            } else {
                let query = ["", "?tag=a", "?q=number", "?before=20"][(n % 4) as usize];
                format!("GET /api/bookmarks{query} HTTP/1.1\r\n{head}\r\n")
            }
        };
        let (rate, mut times) = load(self.http, 8, true, &one)?;
        times.sort_unstable();
        let at = times.get(times.len() * 99 / 100).copied().unwrap_or_default();
        Ok((rate, at.as_secs_f64() * 1e3))
    }
}

fn connect(to: SocketAddrV4) -> Outcome<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Whether somebody speaks first there, soon.
fn greets(to: SocketAddrV4) -> bool {
    let Ok(mut stream) = connect(to) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
    let heard = stream.read(&mut [0; 4]).is_ok_and(|n| n > 0);
    if !heard {
        std::thread::sleep(Duration::from_millis(5));
    }
    heard
}

/// Reads an answer; false when the server closed instead.
fn answer(from: &mut BufReader<TcpStream>) -> Outcome<bool> {
    use std::io::BufRead;
    let mut line = String::new();
    let mut length = 0;
    let mut status = 0;
    loop {
        line.clear();
        if from.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        if status == 0 {
            status = line.split(' ').nth(1).and_then(|w| w.parse().ok()).unwrap_or(1);
        } else if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().unwrap_or(0);
        } else if line.trim().is_empty() {
            break;
        }
    }
    check((200..300).contains(&status), "bench.http_status", || status.to_string())?;
    std::io::copy(&mut from.by_ref().take(length), &mut std::io::sink())?;
    Ok(true)
}

/// Requests a second of `clients` at once, each asking when it has its answer; and how long each request took.
fn load(
    to: SocketAddrV4,
    clients: usize,
    keep: bool,
    request: &(dyn Fn(usize, u64) -> String + Sync),
) -> Outcome<(f64, Vec<Duration>)> {
    let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let ready = AtomicU64::new(0);
    let times = Mutex::new(Vec::new());
    let client = |who: usize| -> Outcome {
        let mut stream = if keep { Some(BufReader::new(connect(to)?)) } else { None };
        ready.fetch_add(1, Ordering::SeqCst);
        let mut mine = Vec::new();
        let mut n = 0;
        while !over.load(Ordering::Relaxed) {
            let from = Instant::now();
            let asked = stream.take().map_or_else(|| connect(to).map(BufReader::new), Ok).and_then(|mut s| {
                s.get_mut().write_all(request(who, n).as_bytes())?;
                check(answer(&mut s)?, "bench.http_answer", || "closed".into())?;
                Ok(s)
            });
            n += 1;
            match asked {
                Ok(s) => stream = keep.then_some(s),
                // The emulator loses connections now and then when many begin at once: such a one has no answer to count.
                Err(e) if e.what == "harness.io" && keep => break,
                Err(e) if e.what == "harness.io" => continue,
                Err(e) => return Err(e),
            }
            if begun.load(Ordering::Relaxed) && !over.load(Ordering::Relaxed) {
                mine.push(from.elapsed());
            }
        }
        times.lock().map_err(|_| Failure::new("harness.lock", "poisoned"))?.append(&mut mine);
        Ok(())
    };
    let took = std::thread::scope(|scope| {
        let client = &client;
        let all: Vec<_> = (0..clients).map(|who| scope.spawn(move || client(who))).collect();
        let until = Instant::now() + LIMIT;
        while ready.load(Ordering::SeqCst) < clients as u64 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(LOAD / 4);
        begun.store(true, Ordering::Relaxed);
        let from = Instant::now();
        std::thread::sleep(LOAD);
        over.store(true, Ordering::Relaxed);
        let took = from.elapsed();
        let mut result = Ok(took);
        for t in all {
            if let Err(e) = t.join().map_err(|_| Failure::new("harness.thread", "died")).and_then(|r| r) {
                result = Err(e);
            }
        }
        result
    })?;
    let times = times.into_inner().map_err(|_| Failure::new("harness.lock", "poisoned"))?;
    Ok((per_second(times.len(), took), times))
}

fn per_second(count: usize, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took.as_secs_f64()
}

fn megabytes(bytes: usize, since: Instant) -> f64 {
    per_second(bytes, since.elapsed()) / 1e6
}

/// Into the machine: what is sent until the end counts when the machine has taken it.
fn incoming(to: SocketAddrV4) -> Outcome<f64> {
    let mut s = connect(to)?;
    let block = vec![7; 64 << 10];
    let mut sent = 0;
    let mut from = Instant::now();
    let warm = from + LOAD / 4;
    let mut counting = false;
    while from.elapsed() < LOAD || !counting {
        s.write_all(&block)?;
        sent += block.len();
        if !counting && Instant::now() > warm {
            (counting, from, sent) = (true, Instant::now(), 0);
        }
    }
    Ok(megabytes(sent, from))
}

fn outgoing(from: SocketAddrV4) -> Outcome<f64> {
    let mut s = connect(from)?;
    let mut block = vec![0; 64 << 10];
    let warm = Instant::now() + LOAD / 4;
    while Instant::now() < warm {
        check(s.read(&mut block)? > 0, "bench.source", || "ended".into())?;
    }
    let begin = Instant::now();
    let mut got = 0;
    while begin.elapsed() < LOAD {
        got += s.read(&mut block)?;
    }
    Ok(megabytes(got, begin))
}

/// Datagrams echoed a second, 32 on their way at a time.
fn datagrams(to: SocketAddrV4) -> Outcome<f64> {
    // The emulator answers its own host at 127.0.0.1, wherever that asked from.
    let s = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    s.connect(to)?;
    s.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buf = [0; 64];
    for _ in 0..32 {
        s.send(&buf)?;
    }
    let begin = Instant::now();
    let mut echoed = 0;
    while begin.elapsed() < LOAD {
        // What was lost is made up for.
        if s.recv(&mut buf).is_ok() {
            echoed += 1;
        }
        s.send(&buf)?;
    }
    Ok(per_second(echoed, begin.elapsed()))
}

/// Full TLS handshakes a second, one after the other.
fn handshakes(to: SocketAddrV4) -> Outcome<f64> {
    let out = Command::new("openssl")
        .args(["s_time", "-new", "-time", "2", "-connect", &to.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Failure::new("harness.openssl", e.to_string()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    // "123 connections in 3 real seconds, 0 bytes read per connection": whole seconds, and the last one is counted in.
    let line = text.lines().find(|l| l.contains("real seconds"));
    let number = |at: usize| line.and_then(|l| l.split_whitespace().nth(at)).and_then(|w| w.parse::<f64>().ok());
    match (number(0), number(3)) {
        (Some(n), Some(seconds)) if seconds > 0.0 => Ok(n / seconds),
        _ => Err(Failure::new("bench.handshakes", format!("{text}{}", String::from_utf8_lossy(&out.stderr)))),
    }
}
