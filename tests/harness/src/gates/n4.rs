//! n4: httpd over HTTP and HTTPS: keep-alive, HTTP/2, ranges, large bodies, a client that forgot TLS; and everything that a
//! client can do wrong, after each of which others are served as before and memory is where it was.

use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Failure, Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::Shell;
use crate::ssh::forward;
use crate::web::{LIMIT, connect, curl, expect, noise, throw, wait_for};

/// The gate.
pub const GATE: Gate =
    Gate { name: "n4", title: "httpd: HTTP, HTTPS, HTTP/2, proxy, bad input, idle and stuck clients", cases };

/// How many clients that do nothing.
const IDLE: usize = 1000;
/// Forwarded ports of each kind for them.
const DOORS: usize = 12;
/// Connections that the server under test allows.
const ALLOWED: u32 = 100;
/// What the server may use, in KiB, with as many connections.
const MEMORY: u32 = 64 * 1024;
/// The limits of the server under test.
const LIMITS: &str =
    "connections = 100\\nidle_seconds = 15\\nstall_seconds = 4\\nhandshake_seconds = 15\\nbody_bytes = 1000000\\n";
/// The same without any that concerns time.
const NO_TIME: &str = "connections = 100\\nidle_seconds = 9999\\nstall_seconds = 9999\\nhandshake_seconds = 9999\\n";

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &o.smp {
        cases.push(Case::new(format!("requests smp{smp}"), move |c| with(c, smp, LIMITS, true, requests)).berth());
        cases.push(Case::new(format!("garbage smp{smp}"), move |c| with(c, smp, LIMITS, true, garbage)).berth());
        let slow = move |c: &mut Context<'_>| with(c, smp, LIMITS, true, |m| slow_loris(m, LIMIT));
        cases.push(Case::new(format!("slow clients smp{smp}"), slow).berth());
        cases.push(
            Case::new(format!("stuck clients smp{smp}"), move |c| with(c, smp, LIMITS, true, never_reads)).berth(),
        );
        cases.push(Case::new(format!("idle clients smp{smp}"), move |c| with(c, smp, LIMITS, true, idle)).berth());
        let few = move |c: &mut Context<'_>| with(c, smp, LIMITS, true, few_descriptors);
        cases.push(Case::new(format!("no descriptors left smp{smp}"), few).berth());
        let acme = move |c: &mut Context<'_>| super::acme::fetched(c, smp, 80);
        cases.push(Case::new(format!("a certificate by ACME smp{smp}"), acme).berth());
        let crowd = move |c: &mut Context<'_>| super::crowd::crowd(c, smp, 11_000);
        cases.push(Case::new(format!("ten thousand idle clients smp{smp}"), crowd).berth());
    }
    let acme = |c: &mut Context<'_>| super::acme::fetched(c, 1, 81);
    cases.push(Case::new("control: the authority asks where nobody answers", acme).berth().control("n4.acme_fetches"));
    let crowd = |c: &mut Context<'_>| super::crowd::crowd(c, 1, 2000);
    cases.push(Case::new("control: room for fewer", crowd).berth().control("n4.crowd_stays"));
    let slow = |c: &mut Context<'_>| with(c, 1, NO_TIME, true, |m| slow_loris(m, Duration::from_secs(20)));
    cases.push(Case::new("control: no limits of time", slow).berth().control("n4.slow_loris"));
    let plain = |c: &mut Context<'_>| with(c, 1, LIMITS, false, requests);
    cases.push(Case::new("control: no TLS where it is due", plain).berth().control("n4.https"));
    cases
}

/// A machine whose httpd serves files and the application.
struct Machine {
    sh: Shell,
    http: SocketAddrV4,
    https: SocketAddrV4,
    metrics: SocketAddrV4,
    /// More ways to the same two: the emulator holds one or two connections at a time for each until it accepts them.
    doors: Vec<SocketAddrV4>,
}

impl Machine {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    fn secure(&self, path: &str) -> String {
        format!("https://{}{path}", self.https)
    }

    /// Others are served, over both.
    fn serves(&self, after: &str) -> Outcome {
        for url in [self.url("/f/"), self.secure("/f/")] {
            let got = curl(&[&url])?;
            check(got.status() == 200 && got.text() == "hello\n", "n4.others", || format!("after {after}: {got:?}"))?;
        }
        Ok(())
    }

    /// A value from the metrics page.
    fn metric(&self, name: &str) -> Outcome<u64> {
        let page = expect("n4.metrics", &[&format!("http://{}/metrics", self.metrics)], |g| g.status() == 200)?.text();
        let line = page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|v| v.parse().ok()).ok_or_else(|| Failure::new("n4.metrics", format!("no {name} in\n{page}")))
    }

    /// Wait until a value is as it should be.
    fn metric_becomes(&self, what: &str, name: &str, right: impl Fn(u64) -> bool) -> Outcome {
        let until = Instant::now() + LIMIT;
        loop {
            let value = self.metric(name)?;
            if right(value) {
                return Ok(());
            }
            check(Instant::now() < until, what, || format!("{name} stays at {value}"))?;
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn with(c: &mut Context<'_>, smp: u32, limits: &str, tls: bool, body: impl FnOnce(&mut Machine) -> Outcome) -> Outcome {
    allow_descriptors();
    let mut config = c.config(smp);
    config.initrd = Some(c.options.paths.host_initrd()?);
    let ports: Vec<u16> = [80, 443, 9100].into_iter().chain([80, 443].repeat(DOORS)).collect();
    let ports = forward(&mut config, &ports)?;
    let &[http, https, metrics, ref doors @ ..] = &ports[..] else {
        return Err(Failure::new("harness.ports", "too few"));
    };
    let mut sh = c.boot(&config)?;
    sh.ok(
        "mkdir -p /srv/www/sub /data/etc; cd /srv/www; echo hello >index.html; seq 1 300000 >big; cp big sub/big; cd /",
    )?;
    sh.ok("head -c 33554432 /dev/zero >/srv/www/huge")?;
    let lines = [
        format!(
            "metrics = \"0.0.0.0:9100\"\\n[[listen]]\\naddress = \"[::]:80\"\\n[[listen]]\\naddress = \"[::]:443\"\\ntls = {tls}\\n"
        ),
        "[[certificate]]\\nchain = \"/data/tls/cert.pem\"\\nkey = \"/data/tls/key.pem\"\\nself_signed = true\\n"
            .to_owned(),
        "[[route]]\\npath = \"/f/\"\\nfiles = \"/srv/www\"\\n[[route]]\\nproxy = \"127.0.0.1:8000\"\\n".to_owned(),
        format!("[limits]\\n{limits}"),
    ];
    for line in lines {
        sh.ok(&format!("printf '{line}' >>/data/etc/httpd.toml"))?;
    }
    sh.ok("httpd --check /data/etc/httpd.toml")?;
    sh.ok("svc restart httpd")?;
    let mut m = Machine { sh, http, https, metrics, doors: doors.to_vec() };
    wait_for("n4.starts", &m.url("/f/"))?;
    body(&mut m)?;
    m.sh.poweroff()
}

/// A thousand connections here, and as many in the emulator, which inherits this limit.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without it there are fewer idle clients.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

// --- requests -------------------------------------------------------------------------------------------------------

fn requests(m: &mut Machine) -> Outcome {
    let (http, https) = (m.url("/f/"), m.secure("/f/"));
    expect("n4.http", &[&http], |g| g.text() == "hello\n" && g.said.starts_with("200 1.1 "))?;
    expect("n4.https", &["--http1.1", &https], |g| g.text() == "hello\n" && g.said.starts_with("200 1.1 "))?;
    expect("n4.http2", &["--http2", &https], |g| g.text() == "hello\n" && g.said.starts_with("200 2 "))?;
    expect("n4.keep_alive", &[&http, &http, &http], |g| {
        let new: Vec<_> = g.said.lines().filter_map(|l| l.split(' ').nth(2)).collect();
        new == ["1", "0", "0"]
    })?;
    expect("n4.plain_on_tls", &[&https.replace("https:", "http:")], |g| {
        g.status() == 400 && g.text().contains("https://")
    })?;
    files(m)?;
    proxied(m)?;
    privileges(m)?;
    reload(m)
}

/// Whoever serves is no root and cannot become it; keys and data are closed to others.
fn privileges(m: &mut Machine) -> Outcome {
    let seen = m.sh.ok(
        "pid() { svc status $1 | sed -n 's/.* pid \\([0-9]*\\) .*/\\1/p'; }; for p in $(pid httpd) $(pid bookmarks) $(pidof httpd-keys); do grep -E '^(Uid|Gid):' /proc/$p/status | tr ':\\t\\n' '   '; echo; done",
    )?;
    let lines: Vec<String> = seen.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for (line, uid) in lines.iter().zip([101, 100]) {
        let want = format!("Uid {uid} {uid} {uid} {uid} Gid {uid} {uid} {uid} {uid}");
        check(line.starts_with(&want), "n4.not_root", || seen.clone())?;
    }
    check(lines.get(2).is_some_and(|l| l.starts_with("Uid 0 ")), "n4.keys_process", || seen.clone())?;
    // It says that it is ready although only root may: its socket is from before.
    let status = m.sh.ok("svc status httpd")?;
    check(status.contains(" up pid"), "n4.ready", || status.clone())?;
    let modes = m.sh.ok("stat -c '%a %U' /data/tls/key.pem /data/bookmarks")?;
    check(modes == "600 root\n700 bookmarks", "n4.closed_to_others", || modes.clone())
}

fn files(m: &Machine) -> Outcome {
    let big: Vec<u8> = (1..=300_000).fold(Vec::new(), |mut all, n| {
        all.extend_from_slice(format!("{n}\n").as_bytes());
        all
    });
    for url in [m.url("/f/big"), m.secure("/f/sub/big")] {
        expect("n4.big", &[&url], |g| g.status() == 200 && g.body == big)?;
        expect("n4.range", &["-r", "1000-99999", &url], |g| g.status() == 206 && g.body == big[1000..100_000])?;
        expect("n4.range", &["-r", "-7", &url], |g| g.status() == 206 && g.body == big[big.len() - 7..])?;
        expect("n4.range", &["-r", "99999999-", &url], |g| g.status() == 416)?;
        expect("n4.head", &["-I", &url], |g| {
            g.status() == 200 && g.text().to_lowercase().contains(&format!("content-length: {}", big.len()))
        })?;
    }
    let head = curl(&["-I", &m.url("/f/big")])?.text();
    let etag = head.lines().find_map(|l| l.strip_prefix("etag: ")).unwrap_or("").trim().to_owned();
    let known = format!("If-None-Match: {etag}");
    expect("n4.not_modified", &["-H", &known, &m.url("/f/big")], |g| g.status() == 304 && g.body.is_empty())?;
    expect("n4.directory", &[&m.url("/f/sub")], |g| g.status() == 301)?;
    for path in
        ["/f/../../etc/passwd", "/f/%2e%2e/%2e%2e/etc/passwd", "/f/..%2f..%2fetc/passwd", "/f//etc/passwd", "/f/none"]
    {
        expect("n4.stays_below", &["--path-as-is", &m.url(path)], |g| {
            g.status() == 404 && !g.text().contains("root:")
        })?;
    }
    expect("n4.method", &["-X", "DELETE", &m.url("/f/big")], |g| g.status() == 405).map(drop)
}

fn proxied(m: &Machine) -> Outcome {
    wait_for("n4.proxy", &m.secure("/healthz"))?;
    expect("n4.proxy", &[&m.secure("/api/bookmarks")], |g| g.status() == 401 && g.text().contains("error"))?;
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(1_500_000));
    let file = std::env::temp_dir().join(format!("berth-n4-{}-{}", std::process::id(), m.http.port()));
    std::fs::write(&file, large)?;
    let data = format!("@{}", file.display());
    let declared = expect("n4.body_limit", &["-d", &data, &m.secure("/api/login")], |g| g.status() == 413);
    let chunked = ["-H", "Transfer-Encoding: chunked", "-H", "Expect:", "--http1.1", "-d", &data];
    let chunked =
        expect("n4.body_limit_chunked", &[&chunked[..], &[&m.secure("/api/login")]].concat(), |g| g.status() == 413);
    std::fs::remove_file(&file)?;
    declared.and(chunked).map(drop)
}

/// Another certificate in the files is another certificate on the wire, without a restart.
fn reload(m: &mut Machine) -> Outcome {
    let shown = |m: &Machine| -> Outcome<String> {
        let got = curl(&["-w", "%{certs}", "-o", "/dev/null", &m.secure("/f/")])?;
        Ok(got.text())
    };
    let before = shown(m)?;
    check(before.contains("BEGIN CERTIFICATE"), "n4.certificate", || before.clone())?;
    m.sh.ok("sed -e 's,/data/tls/,/data/tls2/,; s/:80\"/:81\"/; s/:443\"/:444\"/; s/:9100/:9101/' /data/etc/httpd.toml >/tmp/other.toml")?;
    m.sh.ok("(httpd /tmp/other.toml & p=$!; until [ -s /data/tls2/cert.pem ]; do sleep 0.1; done; kill $p; wait $p)")?;
    m.sh.ok("mv /data/tls2/key.pem /data/tls/key.pem; mv /data/tls2/cert.pem /data/tls/cert.pem")?;
    m.metric_becomes("n4.reload", "httpd_certificates_reloaded_total", |n| n >= 1)?;
    let after = shown(m)?;
    check(after.contains("BEGIN CERTIFICATE") && after != before, "n4.reload", || after.clone())
}

// --- bad input ------------------------------------------------------------------------------------------------------

fn garbage(m: &mut Machine) -> Outcome {
    for seed in 1..=12 {
        let bytes = noise(seed, 16 << (seed % 10));
        throw("n4.garbage", m.http, &[&bytes[..], b"\r\n\r\n"].concat())?;
        throw("n4.tls_garbage", m.https, &bytes)?;
        // What begins as a handshake and is none; one that says it is longer than it is.
        throw("n4.tls_garbage", m.https, &[&[0x16, 3, 1, 0, 200][..], &bytes].concat())?;
        throw("n4.tls_garbage", m.https, &[&[0x16, 3, 3, 0x3f, 0xff, 1, 0, 0x3f, 0xfb][..], &bytes[..16]].concat())?;
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(5000));
    let wrong: [&[u8]; 8] = [
        b"GET /f/ HTTP/1.1\r\n\r\n",
        b"GET /f/ HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /api/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ];
    for bytes in wrong {
        let answer = throw("n4.wrong_request", m.http, bytes)?;
        let answer = String::from_utf8_lossy(&answer);
        check(!answer.starts_with("HTTP/1.1 2"), "n4.wrong_request", || {
            format!("{:?} was answered {answer:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]))
        })?;
    }
    let header = format!("X: {}", "a".repeat(40_000));
    for url in [m.url("/f/"), m.secure("/f/")] {
        expect("n4.header_limit", &["-H", &header, &url], |g| g.status() == 431)?;
    }
    m.serves("garbage")
}

/// Clients that send a byte now and then: they are cut off, and meanwhile others are served.
fn slow_loris(m: &mut Machine, limit: Duration) -> Outcome {
    let (http, https) = (m.http, m.https);
    let over = AtomicBool::new(false);
    let until = Instant::now() + limit;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..20)
            .map(|n| {
                let over = &over;
                scope.spawn(move || -> Outcome {
                    let mut stream = connect(if n % 2 == 0 { http } else { https })?;
                    stream.set_read_timeout(Some(Duration::from_millis(400)))?;
                    let head: &[u8] = if n % 2 == 0 { b"GET / HTTP/1.1\r\nHost: " } else { &[0x16, 3, 1, 2, 0] };
                    let mut sent = stream.write_all(head).is_ok();
                    while Instant::now() < until && !over.load(Ordering::Relaxed) {
                        match stream.read(&mut [0; 512]) {
                            Err(e) if crate::web::is_timeout(&e) => {}
                            Ok(n) if n > 0 => {}
                            _ => return Ok(()),
                        }
                        sent = sent && stream.write_all(b"a").is_ok();
                    }
                    Err(Failure::new("n4.slow_loris", format!("client {n} is still served after {limit:?}")))
                })
            })
            .collect();
        let served = m.serves("slow clients came");
        if served.is_err() {
            over.store(true, Ordering::Relaxed);
        }
        let ended = clients.into_iter().try_for_each(|c| c.join().unwrap_or(Ok(())));
        served.and(ended)
    })?;
    m.serves("slow clients")
}

/// A client that asks for much and reads nothing is cut off.
fn never_reads(m: &mut Machine) -> Outcome {
    let before = m.metric("httpd_stalled_total")?;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(m.http)?;
        stream.write_all(b"GET /f/huge HTTP/1.1\r\nHost: x\r\n\r\n")?;
        held.push(stream);
    }
    m.serves("clients that do not read came")?;
    m.metric_becomes("n4.never_reads", "httpd_stalled_total", |n| n >= before + 4)?;
    drop(held);
    m.serves("clients that do not read")
}

/// A thousand connections that do nothing: the limit holds, those who come later are served, memory is bounded.
fn idle(m: &mut Machine) -> Outcome {
    let mut held = Vec::new();
    for n in 0..IDLE {
        match connect(m.doors[n % m.doors.len()]) {
            Ok(stream) => held.push(stream),
            // This machine's limit, not the one under test.
            Err(_) if n > 200 => break,
            Err(e) => return Err(e),
        }
    }
    check(held.len() > ALLOWED as usize, "harness.descriptors", || format!("only {} connections", held.len()))?;
    m.serves("a thousand idle clients")?;
    m.metric_becomes("n4.idle_makes_way", "httpd_evicted_total", |n| n > 0)?;
    let open = m.metric("httpd_connections_open")?;
    check(open <= u64::from(ALLOWED) + 1, "n4.connection_limit", || format!("{open} connections are open"))?;
    let used = m.sh.ok("sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$(svc status httpd | sed -n 's/.* pid \\([0-9]*\\) .*/\\1/p')/status")?;
    let used: u32 = used.trim().parse().map_err(|_| Failure::new("n4.memory", used.clone()))?;
    check(used < MEMORY, "n4.memory", || format!("{used} KiB"))?;
    drop(held);
    m.metric_becomes("n4.idle_gone", "httpd_connections_open", |n| n < 10)?;
    m.serves("they left")
}

/// The server has fewer descriptors than its limit of connections wants: who comes is served all the same, since idle ones make
/// way, and it does not turn in circles meanwhile.
fn few_descriptors(m: &mut Machine) -> Outcome {
    m.sh.ok("sed 's/^open-files.*/open-files = 50/' /etc/svc/httpd >/data/svc/httpd; svc reload; svc restart httpd")?;
    wait_for("n4.starts", &m.url("/f/"))?;
    let pid = "$(svc status httpd | sed -n 's/.* pid \\([0-9]*\\) .*/\\1/p')";
    let limit = m.sh.ok(&format!("grep '^Max open files' /proc/{pid}/limits"))?;
    check(limit.contains(" 50 "), "n4.few_descriptors", || limit.clone())?;
    let mut held = Vec::new();
    for n in 0..90 {
        held.push(connect(m.doors[n % m.doors.len()])?);
    }
    m.serves("no descriptor was left")?;
    // In hundredths of a second, all threads together; what others on this host do makes it less, not more.
    let ticks = format!("awk '{{print $14 + $15}}' /proc/{pid}/stat");
    let number = |text: String| text.trim().parse::<u32>().map_err(|_| Failure::new("harness.number", text));
    let before = number(m.sh.ok(&ticks)?)?;
    m.sh.ok("sleep 3")?;
    let used = number(m.sh.ok(&ticks)?)? - before;
    check(used < 100, "n4.does_not_spin", || format!("{used} of 300 ticks"))?;
    drop(held);
    m.serves("they left")?;
    let restarts = m.sh.ok("svc status httpd")?;
    check(!restarts.contains("restarts"), "n4.not_restarted", || restarts.clone())
}
