//! A certificate from an authority, as cases of n4: httpd has the one that the machine made for itself, `httpd --acme` fetches
//! another from a certificate authority of the test's own (userland/acme-server) that asks for HTTP-01, and httpd serves that one
//! without a restart, which a client that knows the authority's root alone believes. It outlives a restart and is not fetched
//! twice.

use crate::cpio::{Entry, overlay};
use crate::error::{Outcome, check};
use crate::gate::Context;
use crate::net::until;
use crate::paths::Paths;
use crate::ssh::forward;
use crate::web::{curl, expect};

const HTTPD: &str = r#"log = ""
[[listen]]
address = "[::]:80"
[[listen]]
address = "[::]:443"
tls = true
[[certificate]]
chain = "/data/tls/cert.pem"
key = "/data/tls/key.pem"
acme = true
hosts = ["harbour.test", "www.harbour.test"]
[[route]]
path = "/"
files = "/etc/www"
[[route]]
host = "harbour.test"
redirect = "https://harbour.test"
[acme]
directory = "https://127.0.0.1:14000/directory"
root = "/run/root.pem"
agree = true
"#;

/// How many starts of `httpd --acme` came to their rest.
const ROUNDS: &str = "svc log acme | grep -c 'nothing more is due'";

/// The case. The authority looks for answers at `port`: another than httpd's, for the control.
pub fn fetched(c: &mut Context<'_>, smp: u32, port: u16) -> Outcome {
    let mut config = c.config(smp);
    let program = c.options.paths.build.join("userland/acme-server");
    Paths::need(&program, "userland")?;
    let program = std::fs::read(program)?;
    let service = format!("exec = /usr/sbin/acme-server 127.0.0.1:14000 /run/root.pem 127.0.0.1:{port}\n");
    let entries = [
        Entry::Dir("etc/www", 0o755),
        Entry::File("etc/www/index.html", 0o644, b"well\n"),
        Entry::File("usr/sbin/acme-server", 0o755, &program),
        Entry::File("etc/svc/authority", 0o644, service.as_bytes()),
        // The case starts it.
        Entry::File("etc/svc/acme", 0o644, b"exec = /usr/sbin/httpd --acme\nrestart = on-failure\nenabled = no\n"),
        Entry::Dir("data/etc", 0o755),
        Entry::File("data/etc/httpd.toml", 0o644, HTTPD.as_bytes()),
    ];
    config.initrd = Some(overlay(&c.options.paths.host_initrd()?, &entries, c.dir.join("initrd.cpio"))?);
    let at = forward(&mut config, &[443])?[0];
    let mut sh = c.boot(&config)?;
    until(&mut sh, "n4.acme_authority", "ls /run/root.pem; svc status httpd", " up pid")?;
    until(&mut sh, "n4.acme_authority", "svc log authority", "directory")?;
    // A client that believes the authority, and not the machine.
    let root = c.dir.join("root.pem");
    std::fs::write(&root, sh.ok("cat /run/root.pem")?)?;
    let root = root.display().to_string();
    let url = |name: &str| format!("https://{name}:{}/", at.port());
    let to = |name: &str| format!("{name}:{}:{}", at.port(), at.ip());
    let names = [to("harbour.test"), to("www.harbour.test")];
    let strict = ["--no-insecure", "--cacert", &root, "--resolve", &names[0], "--resolve", &names[1]];
    let ask = |name: &str| curl(&[&strict[..], &[&url(name)]].concat());
    let before = ask("www.harbour.test")?;
    check(before.exit == 60, "n4.acme_before", || format!("{before:?}"))?;
    sh.ok("svc start acme")?;
    let said = until(&mut sh, "n4.acme_ends", "svc log acme; svc log authority", "httpd: ")?;
    check(said.contains("httpd: /data/tls/cert.pem is for"), "n4.acme_fetches", || said.clone())?;
    until(&mut sh, "n4.acme_noticed", "svc log httpd", "was loaded again")?;
    expect("n4.acme_served", &[&strict[..], &[&url("www.harbour.test")]].concat(), |g| {
        g.exit == 0 && g.status() == 200 && g.text() == "well\n"
    })?;
    until(&mut sh, "n4.acme_rests", ROUNDS, "1")?;
    let modes = sh.ok("stat -c '%a %U' /data/tls/key.pem /data/acme/account.json; ls -A /run/acme")?;
    check(modes.trim() == "600 root\n600 root", "n4.acme_files", || modes.clone())?;
    // Nothing is due any more, and the other name is in it as well.
    sh.ok("svc restart acme")?;
    until(&mut sh, "n4.acme_rests", ROUNDS, "2")?;
    let log = sh.ok("svc log acme")?;
    check(log.matches("cert.pem is for").count() == 1, "n4.acme_once", || log.clone())?;
    sh.ok("svc stop httpd; svc start httpd")?;
    until(&mut sh, "n4.acme_kept", "wget -q -O - http://127.0.0.1/ 2>/dev/null", "well")?;
    expect("n4.acme_kept", &[&strict[..], &[&url("harbour.test")]].concat(), |g| g.exit == 0 && g.status() == 308)?;
    sh.poweroff()
}
