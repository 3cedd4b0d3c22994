//! A WSGI application with sqlite behind nginx: what was answered with 201 stays, whichever worker is killed meanwhile.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;

use super::{bash, config, enter};
use crate::cpio::Entry;
use crate::error::{Failure, Outcome, check};
use crate::gate::Context;
use crate::net::configured;
use crate::ssh::forward;
use crate::web::{curl, expect, wait_for};

const SITE: &[u8] = b"upstream app { server 127.0.0.1:8000 max_fails=0; }
server {
    listen 8080;
    access_log off;
    location / { proxy_pass http://app; proxy_http_version 1.0; }
    location /files/ { alias /usr/share/nginx/; }
}
";
/// Clients at once, and what each adds.
const CLIENTS: usize = 4;
const EACH: usize = 15;

pub(super) fn run(c: &mut Context<'_>, smp: u32) -> Outcome {
    let files = [Entry::File("app.py", 0o644, include_bytes!("app.py")), Entry::File("app.conf", 0o644, SITE)];
    let mut config = config(c, smp, &files)?;
    let at = forward(&mut config, &[8080])?.first().copied().ok_or_else(|| Failure::new("harness.ports", "none"))?;
    let mut sh = enter(c, &config)?;
    configured(&mut sh, "debian.network")?;
    sh.ok(
        "mkdir -p /data/srv && cp /app.py /data/srv/ && cp /app.conf /data/etc/nginx/conf.d/ && rm -f /data/etc/nginx/sites-enabled/default",
    )?;
    sh.ok("(chroot /data /usr/bin/python3 /srv/app.py >/tmp/app.log 2>&1 &)")?;
    sh.ok("chroot /data /usr/sbin/nginx")?;
    let url = |path: &str| format!("http://{at}{path}");
    wait_for("debian.web", &url("/pid"))?;
    expect("debian.static", &[&url("/files/html/index.html")], |g| g.status() == 200 && g.text().contains("nginx"))?;
    expect("debian.not_found", &[&url("/other")], |g| g.status() == 404 && g.text() == "\"/other\"")?;

    let ledger = Mutex::new(BTreeSet::new());
    let killed = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (ledger, notes) = (&ledger, url("/notes"));
            scope.spawn(move || {
                for n in 0..EACH {
                    let text = format!("note-{client}-{n}");
                    // A worker that dies in the middle makes nginx answer 502: then nothing was promised.
                    if curl(&["-d", &format!("text={text}"), &notes]).is_ok_and(|g| g.status() == 201) {
                        ledger.lock().unwrap_or_else(PoisonError::into_inner).insert(text);
                    }
                }
            });
        }
        // The application's worker that answers is killed in mid-load, then nginx's.
        for _ in 0..3 {
            bash(
                &mut sh,
                "p=$(pgrep -P $(pgrep -of app.py) | head -n 1); kill -9 $p; until grep -q \"replaced $p -9\" /tmp/app.log; do sleep 0.05; done",
            )?;
        }
        bash(&mut sh, "pkill -9 -f \"nginx: worker\"")
    });
    killed?;
    wait_for("debian.web_again", &url("/pid"))?;
    let ledger = ledger.into_inner().unwrap_or_else(PoisonError::into_inner);
    check(ledger.len() >= CLIENTS * EACH / 2, "debian.served", || format!("only {} answered", ledger.len()))?;
    let have = expect("debian.list", &[&url("/notes")], |g| g.status() == 200)?.text();
    let lost: Vec<&String> = ledger.iter().filter(|t| !have.contains(&format!("\"{t}\""))).collect();
    check(lost.is_empty(), "debian.acknowledged", || format!("{lost:?} of {have}"))?;
    let log = sh.ok("cat /tmp/app.log")?;
    check(log.matches("replaced").count() >= 3 && log.contains(" -9"), "debian.replaced", || log.clone())?;
    let sound = bash(&mut sh, "sqlite3 /var/lib/notes.db \"PRAGMA integrity_check\"")?;
    check(sound.trim() == "ok", "debian.integrity", || sound.clone())?;
    let stop = bash(&mut sh, "nginx -s quit; pkill -f app.py; while pgrep -x nginx; do sleep 0.1; done")?;
    check(!stop.contains("error"), "debian.quit", || stop.clone())?;
    sh.poweroff()
}
