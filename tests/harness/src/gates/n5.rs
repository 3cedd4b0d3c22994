//! n5: the application on the hosting machine: several clients at once over HTTPS, its data in sqlite on an ext4 disk. What was
//! answered with 201 is there after a restart of the service, after a reboot, and after a power cut in mid-load; a ledger on
//! this side of the wire says what that is.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::disk::{Disk, Log};
use crate::error::{Failure, Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::Shell;
use crate::ssh::forward;
use crate::web::{curl, expect, noise, wait_for};

/// The gate.
pub const GATE: Gate = Gate {
    name: "n5",
    title: "the application: concurrent clients over HTTPS, reboot, power cut, a ledger of every 2xx",
    cases,
};

const MIB: u64 = 1 << 20;
/// For a hang, not a measure.
const LONG: Duration = Duration::from_secs(240);
/// Clients at once.
const CLIENTS: usize = 6;
/// Bookmarks of each before the plug is pulled.
const EACH: usize = 12;

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &o.smp {
        cases.push(Case::new(format!("use and reboot smp{smp}"), move |c| whole(c, smp)).berth());
        cases.push(Case::new(format!("power cut smp{smp}"), move |c| power_cut(c, smp, "")).berth());
    }
    let control = |c: &mut Context<'_>| power_cut(c, 1, "berth.sabotage=flush");
    cases.push(Case::new("control: flushes not sent", control).berth().control("n5.acknowledged"));
    cases
}

fn formatted(c: &Context<'_>) -> Outcome<Disk> {
    let disk = Disk::new(&c.dir, "data", 128 * MIB)?;
    let out = Command::new("/usr/sbin/mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk.image).output()?;
    check(out.status.success(), "harness.mke2fs", || String::from_utf8_lossy(&out.stderr).into_owned())?;
    Ok(disk)
}

fn clean(disk: &Disk) -> Outcome {
    let out = Command::new("/usr/sbin/e2fsck").args(["-f", "-n"]).arg(&disk.image).output()?;
    check(out.status.success(), "n5.e2fsck", || String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The hosting machine with the application reachable at the returned address.
fn boot(c: &mut Context<'_>, smp: u32, disk: &Disk, words: &str) -> Outcome<(Shell, SocketAddrV4)> {
    let mut config = c.config(smp);
    config.append = format!("{} {words}", config.append);
    config.initrd = Some(c.options.paths.host_initrd()?);
    let at = forward(&mut config, &[443])?.first().copied().ok_or_else(|| Failure::new("harness.ports", "none"))?;
    disk.attach(&mut config, "d", "");
    let mut sh = c.boot(&config)?;
    let mounts = sh.ok("cat /proc/mounts")?;
    check(mounts.contains("/dev/vda /data ext4 rw"), "n5.mounted", || mounts.clone())?;
    wait_for("n5.answers", &format!("https://{at}/healthz"))?;
    Ok((sh, at))
}

/// Makes the first account; the result is its token, as a header.
fn register(at: SocketAddrV4) -> Outcome<String> {
    let url = format!("https://{at}/api/register");
    let body = r#"{"name":"gate","password":"a long enough one"}"#;
    let got = expect("n5.register", &["-d", body, &url], |g| g.status() == 201)?.text();
    let token = got.split('"').nth(3).unwrap_or("").to_owned();
    Ok(format!("Authorization: Bearer {token}"))
}

/// Adds bookmark `name`; true if the application says that it has it.
fn add(at: SocketAddrV4, token: &str, name: &str) -> Outcome<bool> {
    let body =
        format!("{{\"url\":\"https://example.org/{name}\",\"title\":\"word{name} of the ledger\",\"tags\":\"gate\"}}");
    let got = curl(&["-H", token, "-d", &body, &format!("https://{at}/api/bookmarks")])?;
    Ok(got.exit == 0 && got.status() == 201)
}

/// What the database has, as the application's tables say it.
fn kept(sh: &mut Shell, what: &str) -> Outcome<BTreeSet<String>> {
    let db = "/data/bookmarks/bookmarks.db";
    let sound = sh.run(&format!("sqlite3 {db} 'pragma integrity_check'"), LONG)?;
    check(sound.output.trim() == "ok", what, || format!("integrity_check: {sound:?}"))?;
    let done = sh.run(&format!("sqlite3 {db} 'select substr(url, 21) from bookmarks'"), LONG)?;
    check(done.status == 0, what, || format!("{done:?}"))?;
    Ok(done.output.split_whitespace().map(str::to_owned).collect())
}

fn all_there(ledger: &BTreeSet<String>, kept: &BTreeSet<String>, what: &str) -> Outcome {
    let lost: Vec<_> = ledger.difference(kept).collect();
    check(lost.is_empty(), what, || format!("{} of {} acknowledged ones are gone: {lost:?}", lost.len(), ledger.len()))
}

/// Clients at once, until each has added `EACH` and `go_on` says no more; the ledger of what was acknowledged.
fn load(
    at: SocketAddrV4,
    token: &str,
    acknowledged: &AtomicU32,
    go_on: impl Fn(usize) -> bool + Sync,
) -> Vec<Outcome<BTreeSet<String>>> {
    let client = |n: usize| -> Outcome<BTreeSet<String>> {
        let mut mine = BTreeSet::new();
        let mut i = 0;
        while go_on(i) {
            let name = format!("c{n}n{i}");
            if add(at, token, &name)? {
                mine.insert(name);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            i += 1;
        }
        Ok(mine)
    };
    std::thread::scope(|scope| {
        let client = &client;
        let clients: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || client(n))).collect();
        clients.into_iter().map(|c| c.join().unwrap_or_else(|_| Err(Failure::new("harness.client", "died")))).collect()
    })
}

fn whole(c: &mut Context<'_>, smp: u32) -> Outcome {
    let disk = formatted(c)?;
    let (mut sh, at) = boot(c, smp, &disk, "")?;
    let base = format!("https://{at}");
    let token = register(at)?;
    expect("n5.closed", &["-d", r#"{"name":"x","password":"12345678"}"#, &format!("{base}/api/register")], |g| {
        g.status() == 403
    })?;
    let ledger: BTreeSet<String> = load(at, &token, &AtomicU32::new(0), |i| i < EACH)
        .into_iter()
        .collect::<Outcome<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    check(ledger.len() == CLIENTS * EACH, "n5.concurrent", || format!("{} were acknowledged", ledger.len()))?;
    use_it(&base, &token)?;
    // A file goes up and comes down.
    let upload = noise(7, 300_000);
    let file = c.dir.join("upload");
    std::fs::write(&file, &upload)?;
    let put = ["-H", &token, "-T", &file.display().to_string(), &format!("{base}/api/bookmarks/1/files/a.bin")];
    expect("n5.upload", &put, |g| g.status() == 201)?;
    sh.ok("svc restart bookmarks")?;
    wait_for("n5.restart", &format!("{base}/healthz"))?;
    all_there(&ledger, &kept(&mut sh, "n5.after_restart")?, "n5.after_restart")?;
    sh.poweroff()?;
    clean(&disk)?;
    let (mut sh, at) = boot(c, smp, &disk, "")?;
    all_there(&ledger, &kept(&mut sh, "n5.after_reboot")?, "n5.after_reboot")?;
    let base = format!("https://{at}");
    expect("n5.download", &["-H", &token, &format!("{base}/api/files/1")], |g| g.body == upload)?;
    use_it(&base, &token)?;
    sh.poweroff()?;
    clean(&disk)
}

/// What a person and a program do: log in by the form, look, search.
fn use_it(base: &str, token: &str) -> Outcome {
    expect("n5.wrong_password", &["-d", "name=gate&password=not this one", &format!("{base}/login")], |g| {
        g.status() == 403
    })?;
    let form = ["-d", "name=gate&password=a long enough one", "-o", "/dev/null", "-D", "-"];
    let head = expect("n5.login", &[&form[..], &[&format!("{base}/login")]].concat(), |g| g.status() == 303)?.text();
    let cookie = head
        .lines()
        .find_map(|l| {
            l.to_ascii_lowercase().starts_with("set-cookie: ").then(|| l[12..].split(';').next().unwrap_or(""))
        })
        .unwrap_or("")
        .to_owned();
    let cookie = format!("Cookie: {cookie}");
    expect("n5.page", &["-H", &cookie, &format!("{base}/")], |g| {
        g.status() == 200 && g.text().contains("<ol class=\"list\">") && g.text().contains("of the ledger")
    })?;
    expect("n5.search", &["-H", token, &format!("{base}/api/bookmarks?q=wordc1n3")], |g| {
        g.text().matches("\"url\"").count() == 1 && g.text().contains("https://example.org/c1n3\"")
    })?;
    expect("n5.stranger", &[&format!("{base}/api/bookmarks")], |g| g.status() == 401).map(drop)
}

/// The plug is pulled while clients write: what they were told is there is there.
fn power_cut(c: &mut Context<'_>, smp: u32, words: &str) -> Outcome {
    let disk = formatted(c)?;
    let before = std::fs::read(&disk.image)?;
    let mut disk = disk.logged()?;
    let (sh, at) = boot(c, smp, &disk, words)?;
    let token = register(at)?;
    let (acknowledged, over) = (AtomicU32::new(0), AtomicBool::new(false));
    let wanted = (CLIENTS * EACH) as u32;
    let ledgers = std::thread::scope(|scope| {
        let (acknowledged, over, token) = (&acknowledged, &over, &token);
        let load = scope.spawn(move || load(at, token, acknowledged, |_| !over.load(Ordering::Relaxed)));
        let until = Instant::now() + LONG;
        while acknowledged.load(Ordering::Relaxed) < wanted && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        // The clients are still at it; what was under way may or may not be there.
        drop(sh);
        over.store(true, Ordering::Relaxed);
        load.join().unwrap_or_default()
    });
    let ledger: BTreeSet<String> = ledgers.into_iter().collect::<Outcome<Vec<_>>>()?.into_iter().flatten().collect();
    check(ledger.len() >= wanted as usize, "n5.commits", || format!("only {} within {LONG:?}", ledger.len()))?;
    std::fs::write(&disk.image, Log::read(&disk)?.after_cut(&before))?;
    disk.log = None;
    let (mut sh, at) = boot(c, smp, &disk, "")?;
    all_there(&ledger, &kept(&mut sh, "n5.acknowledged")?, "n5.acknowledged")?;
    expect("n5.session", &["-H", &token, &format!("https://{at}/api/bookmarks")], |g| g.status() == 200)?;
    sh.poweroff()?;
    clean(&disk)
}
