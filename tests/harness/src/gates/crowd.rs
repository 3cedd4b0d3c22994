//! Ten thousand clients that hold a connection to the web server and say nothing, as cases of n4: they come over a cable from a
//! host that the harness plays, each is still served when it speaks, others are served meanwhile, what one costs is bounded,
//! and when they are gone so is what they cost.

use std::time::{Duration, Instant};

use crate::cpio::{Entry, overlay};
use crate::error::{Failure, Outcome, check};
use crate::gate::Context;
use crate::net::until;
use crate::shell::Shell;
use crate::station::{Conn, MACHINE_FOUR, Station};

/// For a hang, not a measure.
const LIMIT: Duration = Duration::from_secs(120);
/// Looks without one more connection until the clients speak up.
const STUCK: u32 = 10;
/// How many come.
const CROWD: usize = 10_000;
/// What one may cost, in bytes: the kernel's connection and the server's task.
const EACH: usize = 20 << 10;
/// What may be kept when they are gone, in KiB: the server's heap, which an allocator keeps, and records of closed connections.
const KEPT: i64 = 48 << 10;

fn available(sh: &mut Shell) -> Outcome<i64> {
    let text = sh.ok("awk '/^MemAvailable/ {print $2}' /proc/meminfo")?;
    text.trim().parse().map_err(|_| Failure::new("harness.number", text))
}

/// How many the server has open. It may have no time to say so: it is asked until `end`.
fn open(sh: &mut Shell, end: Instant) -> Outcome<usize> {
    let ask = "wget -q -O - http://127.0.0.1:9100/metrics 2>/dev/null | sed -n 's/^httpd_connections_open //p'";
    loop {
        let text = sh.run(ask, LIMIT)?.output;
        if let Ok(n) = text.trim().parse() {
            return Ok(n);
        }
        check(Instant::now() < end, "n4.crowd_metrics", || text.clone())?;
    }
}

/// Waits until the server has accepted all of them; who shook hands need not have been accepted yet.
fn accepted(sh: &mut Shell, station: &Station, all: &[Conn]) -> Outcome {
    let end = Instant::now() + LIMIT;
    let (mut most, mut rounds) = (0, 0);
    loop {
        let count = open(sh, end)?;
        if count > CROWD {
            return Ok(());
        }
        let alive = station.alive(all);
        if alive != CROWD || Instant::now() >= end {
            let counters = sh.run("cat /proc/net/netstat", LIMIT)?.output;
            let why = format!("{alive} of {CROWD} are left, the server has {count} open\n{counters}");
            return Err(Failure::new("n4.crowd_stays", why));
        }
        // A third segment that found no room was dropped, and a cookie's is not asked for again.
        rounds = if count > most { 0 } else { rounds + 1 };
        most = most.max(count);
        if rounds == STUCK {
            rounds = 0;
            station.nudge(all);
        }
    }
}

/// The case. The server admits `admitted` connections: fewer than come, for the control.
pub fn crowd(c: &mut Context<'_>, smp: u32, admitted: usize) -> Outcome {
    let mut station = Station::new()?;
    let mut config = c.config(smp);
    let httpd = format!(
        "log = \"\"\nmetrics = \"127.0.0.1:9100\"\n[[listen]]\naddress = \"[::]:80\"\n[[route]]\npath = \"/\"\nfiles = \"/etc/www\"\n\
         [limits]\nconnections = {admitted}\nidle_seconds = 9999\n"
    );
    let entries = [
        Entry::Dir("etc/www", 0o755),
        Entry::File("etc/www/healthz", 0o644, b"well\n"),
        Entry::File("etc/network", 0o644, b"eth0 10.5.0.2/24 gateway 10.5.0.1\n"),
        Entry::File("etc/httpd.toml", 0o644, httpd.as_bytes()),
        Entry::File("etc/svc/httpd", 0o644, b"exec = /usr/sbin/httpd\nready = notify\nopen-files = 30000\n"),
    ];
    config.initrd = Some(overlay(&c.options.paths.host_initrd()?, &entries, c.dir.join("initrd.cpio"))?);
    station.attach(&mut config);
    let mut sh = c.boot(&config)?;
    until(&mut sh, "n4.crowd_boot", "wget -q -O - http://127.0.0.1/healthz", "well")?;
    let first = station.connect("n4.crowd_first", MACHINE_FOUR.into(), 80, LIMIT)?;
    station.ask("n4.crowd_first", first, "/healthz", LIMIT)?;
    let before = available(&mut sh)?;
    let begun = Instant::now();
    let all = station.connect_many("n4.crowd_comes", MACHINE_FOUR.into(), 80, CROWD, LIMIT)?;
    let took = begun.elapsed();
    accepted(&mut sh, &station, &all)?;
    let each = (before - available(&mut sh)?).max(0) as usize * 1024 / CROWD;
    println!("     {CROWD} connections in {:.1} s, {each} bytes of the machine's memory each", took.as_secs_f32());
    check(each < EACH, "n4.crowd_memory", || format!("{each} bytes each"))?;
    // Somebody new, the first, and some of those who said nothing.
    let late = station.connect("n4.crowd_others", MACHINE_FOUR.into(), 80, LIMIT)?;
    station.ask("n4.crowd_others", late, "/healthz", LIMIT)?;
    station.ask("n4.crowd_first", first, "/healthz", LIMIT)?;
    for conn in all.iter().step_by(CROWD / 50) {
        station.ask("n4.crowd_served", *conn, "/healthz", LIMIT)?;
    }
    for conn in all {
        station.drop_conn(conn);
    }
    let end = Instant::now() + LIMIT;
    while open(&mut sh, end)? > 10 {
        check(Instant::now() < end, "n4.crowd_goes", || "connections stay open".into())?;
    }
    station.ask("n4.crowd_others", late, "/healthz", LIMIT)?;
    let kept = before - available(&mut sh)?;
    println!("     {kept} KiB less memory than before when they are gone");
    check(kept < KEPT, "n4.crowd_memory_back", || format!("{kept} KiB"))?;
    sh.poweroff()
}
