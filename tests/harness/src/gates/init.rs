//! init: process 1 of the hosting root. Services are started in order, started again with back-off when they end, reported,
//! logged within bounds and stopped within theirs; process 1 outlives its own panic; an empty data disk is formatted and one
//! that holds anything never; service files that are wrong are named and stand in nobody's way.

use std::time::{Duration, Instant};

use crate::cpio::{Entry, overlay};
use crate::disk::Disk;
use crate::error::{Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{COMMAND_LIMIT, Shell};

/// The gate.
pub const GATE: Gate =
    Gate { name: "init", title: "process 1: services, logs, first boot, the data disk, orderly end", cases };

const MIB: usize = 1 << 20;
/// For a hang, not a measure.
const LIMIT: Duration = Duration::from_secs(180);

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &o.smp {
        cases.push(Case::new(format!("services smp{smp}"), move |c| services(c, smp)).berth());
        cases.push(Case::new(format!("process 1 smp{smp}"), move |c| process_one(c, smp)).berth());
        cases.push(Case::new(format!("end smp{smp}"), move |c| end(c, smp)).berth());
    }
    cases.push(Case::new("data disk", data_disk).berth());
    let never = |c: &mut Context<'_>| {
        let mut sh = boot(c, 1, &[("crash", &CRASH.replace("always", "never"))], &[])?;
        restarts(&mut sh, Duration::from_secs(5))
    };
    cases
        .push(Case::new("control: a service that is not to be started again", never).berth().control("init.restarted"));
    cases
}

const CRASH: &str = "exec = /bin/sh -c 'echo $$ >>/run/crashes; exit 3'\nrestart = always\n";

/// Boot the hosting root with these files in /etc/svc, and these disks.
fn boot(c: &mut Context<'_>, smp: u32, files: &[(&str, &str)], disks: &[&Disk]) -> Outcome<Shell> {
    let mut config = c.config(smp);
    let paths: Vec<String> = files.iter().map(|(name, _)| format!("etc/svc/{name}")).collect();
    let entries: Vec<Entry<'_>> =
        paths.iter().zip(files).map(|(path, (_, text))| Entry::File(path, 0o644, text.as_bytes())).collect();
    config.initrd = Some(overlay(&c.options.paths.host_initrd()?, &entries, c.dir.join("initrd.cpio"))?);
    for (n, disk) in disks.iter().enumerate() {
        disk.attach(&mut config, &format!("d{n}"), "");
    }
    c.boot(&config)
}

/// Wait until `command` prints `want` somewhere.
fn until(sh: &mut Shell, command: &str, want: &str, what: &str) -> Outcome<String> {
    until_within(sh, command, want, what, LIMIT)
}

fn until_within(sh: &mut Shell, command: &str, want: &str, what: &str, limit: Duration) -> Outcome<String> {
    let start = Instant::now();
    loop {
        let got = sh.run(command, COMMAND_LIMIT)?.output;
        if got.contains(want) {
            return Ok(got);
        }
        check(start.elapsed() < limit, what, || format!("{command}: wanted {want:?} in {got:?}"))?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

// --- services -------------------------------------------------------------------------------------------------------

fn restarts(sh: &mut Shell, limit: Duration) -> Outcome {
    until_within(sh, "[ $(wc -l </run/crashes) -ge 4 ] && echo yes", "yes", "init.restarted", limit)?;
    Ok(())
}

fn services(c: &mut Context<'_>, smp: u32) -> Outcome {
    let files = [
        ("crash", CRASH),
        // A oneshot is up when it has ended, and takes its time for that; a daemon as soon as it runs.
        ("first", "type = oneshot\nexec = /bin/sh -c 'sleep 1; echo first >>/run/order'\n"),
        ("second", "type = oneshot\nafter = first\nexec = /bin/sh -c 'sleep 1; echo second >>/run/order'\n"),
        ("third", "after = second nowhere\nexec = /bin/sh -c 'echo third >>/run/order; exec sleep 100000'\n"),
        ("wrong", "exec = /bin/true\nrestrat = always\n"),
        ("absent", "exec = /bin/true\nif-exists = /nowhere\n"),
        ("missing", "exec = /nowhere/program\n"),
        (
            "user",
            "exec = /bin/sh -c 'echo uid $(id -u) gid $(id -g) files $(ulimit -n) KiB $(ulimit -v) processes $(sed -n \"s/^Max processes *\\([0-9]*\\) .*/\\1/p\" /proc/self/limits) in $(pwd) A=$A; touch /run/own/user/file; exec sleep 100000'\n\
             user = user\nenv = A=b c\ndirectory = /tmp\nopen-files = 77\nmemory = 64M\nprocesses = 50\nstate-directory = /run/own/user\n",
        ),
        // Ready when it says so, which it does when it is told to; what comes after it waits.
        (
            "slow",
            "ready = notify\nuser = user\nexec = /bin/sh -c 'until [ -e /run/go ]; do sleep 0.1; done; svc ready; exec sleep 100000'\n",
        ),
        ("patient", "after = slow\nexec = /bin/sh -c 'echo patient >>/run/order; exec sleep 100000'\n"),
        // Up when its health check passes.
        ("ill", "health = /usr/bin/test -e /run/go\nhealth-every = 1h\nexec = /bin/sleep 100000\n"),
        ("second-patient", "after = ill\nexec = /bin/sleep 100000\n"),
        ("never", "ready = notify\nready-timeout = 300ms\nexec = /bin/sleep 100000\n"),
        (
            "talker",
            "exec = /bin/sh -c 'i=0; while [ $i -lt 30000 ]; do echo line $i of what a service says; i=$((i+1)); done; exec sleep 100000'\n",
        ),
        // Healthy for as long as the file is there.
        (
            "sick",
            "exec = /bin/sh -c 'touch /run/well; exec sleep 100000'\nhealth = /usr/bin/test -e /run/well\nhealth-every = 300ms\n",
        ),
    ];
    let mut sh = boot(c, smp, &files, &[])?;
    restarts(&mut sh, LIMIT)?;
    let crash = sh.ok("svc status crash")?;
    check(crash.contains("restarts") && crash.contains("last end: status 3"), "init.crash_reported", || crash.clone())?;
    until(&mut sh, "cat /run/order", "first\nsecond\nthird", "init.order")?;
    let list = sh.ok("svc")?;
    check(!list.contains("wrong") && list.contains("left out: no /nowhere"), "init.list", || list.clone())?;
    let said = sh.ok("svc log -n 1000 init")?;
    for text in [
        "wrong: line 2: there is no setting `restrat`",
        "nowhere, which does not exist",
        "there is no /nowhere/program",
    ] {
        check(said.contains(text), "init.reported", || format!("no {text:?} in {said}"))?;
    }
    until(&mut sh, "svc log user", "uid 1000 gid 1000 files 77 KiB 65536 processes 50 in /tmp A=b c", "init.user")?;
    until(
        &mut sh,
        "stat -c '%a %U' /run/own/user; echo /run/own/user/*",
        "700 user\n/run/own/user/file",
        "init.state_directory",
    )?;
    readiness(&mut sh)?;
    until(&mut sh, "svc log talker", "line 29999 ", "init.log_complete")?;
    let bytes = sh.ok("cat /run/log/talker.log /run/log/talker.log.1 | wc -c")?;
    let bounded = bytes.trim().parse::<usize>().is_ok_and(|n| n > MIB && n <= 2 * MIB);
    check(bounded, "init.log_bounded", || bytes.clone())?;
    // Stopping and starting, by hand and for ill health.
    sh.ok("svc stop third && svc status third | grep -q stopped && svc start third")?;
    until(&mut sh, "svc status third", " up pid", "init.start")?;
    sh.ok("rm /run/well")?;
    until(&mut sh, "svc log -n 1000 init", "sick failed 3 health checks", "init.health")?;
    until(&mut sh, "ls /run", "well", "init.health_restart")?;
    let no = sh.run("svc stop nonesuch", COMMAND_LIMIT)?;
    check(no.status == 1 && no.output.contains("no service"), "init.unknown", || format!("{no:?}"))?;
    sh.ok("printf 'exec = /bin/sleep 100000\\n' >/data/svc/late && svc reload")?;
    until(&mut sh, "svc status late", " up pid", "init.reload")?;
    sh.poweroff()
}

/// A service counts as up when it says so, or when its health check passes, and not before; one that never does is restarted.
fn readiness(sh: &mut Shell) -> Outcome {
    let list = until(sh, "svc", "never", "init.list")?;
    for (name, state) in
        [("slow", "starting pid"), ("patient", "waiting"), ("ill", "starting pid"), ("second-patient", "waiting")]
    {
        let line = list.lines().find(|l| l.split(' ').next() == Some(name)).unwrap_or_default();
        check(line.contains(state), "init.not_ready", || list.clone())?;
    }
    sh.ok("touch /run/go")?;
    for name in ["slow", "patient", "ill", "second-patient"] {
        until(sh, &format!("svc status {name}"), " up pid", "init.ready")?;
    }
    until(sh, "svc log -n 1000 init", "never is not ready after 300ms and is restarted", "init.never_ready")?;
    until(sh, "svc status never", "restarts", "init.never_ready")?;
    // What a service says from now on is seen by who follows it.
    sh.ok("printf 'exec = /bin/sh -c \"while :; do echo tick; sleep 0.1; done\"\\n' >/data/svc/follow; svc reload")?;
    sh.ok("(svc logs -f follow >/tmp/followed 2>&1 & echo $! >/tmp/follower)")?;
    until(sh, "[ $(grep -c tick </tmp/followed) -ge 3 ] && echo yes", "yes", "init.follow")?;
    sh.ok("kill $(cat /tmp/follower); svc stop follow; rm /data/svc/follow; svc reload").map(drop)
}

// --- process 1 ------------------------------------------------------------------------------------------------------

/// Orphans are reaped, floods of requests and signals do no harm, and a panic is survived with every service in place.
fn process_one(c: &mut Context<'_>, smp: u32) -> Outcome {
    let steady = "exec = /bin/sh -c 'while :; do echo tick; sleep 0.1; done'\n";
    let mut sh = boot(c, smp, &[("steady", steady)], &[])?;
    sh.ok("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do (sh -c 'sleep 0.3 &' ); done")?;
    let left =
        "echo left $(ps | grep -c '[s]leep 0.3'), dead $(grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l)";
    until(&mut sh, left, "left 0, dead 0", "init.reaps")?;
    let pid = "svc status steady | sed -n 's/.*up pid \\([0-9]*\\) .*/\\1/p'";
    let before = sh.ok(pid)?;
    // This panic is meant.
    sh.vm.console.forbid(false);
    for ask in ["panic", "reexec"] {
        sh.run(&format!("svc {ask}"), COMMAND_LIMIT)?;
        until(&mut sh, "svc", "steady", "init.goes_on")?;
        let after = sh.ok(pid)?;
        check(!before.is_empty() && after == before, "init.services_go_on", || {
            format!("{ask}: {before:?}, then {after:?}")
        })?;
        let lines = sh.ok("wc -l </run/log/steady.log")?.trim().parse::<u32>().unwrap_or(0);
        let command = format!("[ $(wc -l </run/log/steady.log) -gt {} ] && echo more", lines + 3);
        until(&mut sh, &command, "more", "init.logs_go_on")?;
    }
    let one = sh.ok("cat /proc/1/cmdline | tr '\\0' ' '")?;
    check(one.contains("--resume"), "init.panicked", || one.clone())?;
    sh.ok("for i in 1 2 3 4 5 6 7 8 9 10; do kill -CHLD 1; kill -HUP 1; svc >/dev/null || exit 1; done")?;
    sh.ok("kill -9 $(svc status steady | sed -n 's/.*up pid \\([0-9]*\\) .*/\\1/p')")?;
    until(&mut sh, "svc status steady", "1 restarts", "init.restarts_after_panic")?;
    sh.poweroff()
}

// --- the end --------------------------------------------------------------------------------------------------------

/// A service that ignores SIGTERM is killed when its time is over; the machine ends with its disk in order.
fn end(c: &mut Context<'_>, smp: u32) -> Outcome {
    let stubborn = "exec = /bin/sh -c 'trap \"\" TERM HUP; while :; do echo x >>/data/busy; sleep 0.05; done'\nstop-timeout = 1s\n";
    let polite = "exec = /bin/sh -c 'trap \"sleep 0.5; echo bye >/data/bye; exit 0\" TERM; while :; do sleep 0.1; done'\nafter = stubborn\n";
    let disk = Disk::new(&c.dir, "data", 64 * MIB as u64)?;
    let mut sh = boot(c, smp, &[("stubborn", stubborn), ("polite", polite)], &[&disk])?;
    until(&mut sh, "svc status polite", " up pid", "init.start")?;
    // A stranger that no service accounts for.
    sh.ok("(setsid sh -c 'trap \"\" TERM HUP; while :; do echo y >>/data/stranger; sleep 0.05; done' </dev/null >/dev/null 2>&1 &)")?;
    until(&mut sh, "cat /data/stranger", "y", "init.stranger")?;
    sh.poweroff()?;
    let out = std::process::Command::new("/usr/sbin/e2fsck").args(["-f", "-n"]).arg(&disk.image).output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    check(out.status.success() && !text.contains("recovering journal"), "init.disk_in_order", || text.clone())?;
    let mut sh = boot(c, smp, &[], &[&disk])?;
    let kept = sh.ok("cat /data/bye; tail -n 1 /data/busy; ls /data/log")?;
    check(kept.starts_with("bye\nx") && kept.contains("init.log"), "init.orderly", || kept.clone())?;
    sh.poweroff()
}

// --- the data disk --------------------------------------------------------------------------------------------------

/// Disks that hold something are left as they are, to the last byte; an empty one behind them is formatted.
fn data_disk(c: &mut Context<'_>) -> Outcome {
    let size = 32 * MIB;
    let with = |at: usize, mark: &[u8]| {
        let mut bytes = vec![0; size];
        bytes[at..at + mark.len()].copy_from_slice(mark);
        bytes
    };
    let others = [
        with(0, b"XFSB"),
        with(510, b"\x55\xaa"),
        with(777_777, b"somebody's"),
        with(size - 700, b"EFI PART"),
        with(0x10040, b"_BHRfS_M"),
    ];
    let mut disks = Vec::new();
    for (n, content) in others.iter().enumerate() {
        disks.push(Disk::with(&c.dir, &format!("other{n}"), content)?);
    }
    let all: Vec<&Disk> = disks.iter().collect();
    let mut sh = boot(c, 1, &[], &all)?;
    let said = sh.ok("svc log -n 100 init; cat /proc/mounts; touch /data/in-memory")?;
    let right =
        said.matches("left as it is").count() == others.len() && !said.contains("/data ext4") && said.contains("xfs");
    check(right, "init.left_alone", || said.clone())?;
    sh.poweroff()?;
    let empty = Disk::new(&c.dir, "empty", size as u64)?;
    let mut both = all.clone();
    both.push(&empty);
    // Devices are numbered by the machine, not by their order here: the empty one may come first or last.
    let mut sh = boot(c, 1, &[], &both)?;
    let said = sh.ok("svc log -n 100 init; cat /proc/mounts; echo kept >/data/file; sync")?;
    check(said.contains("was empty: formatted (ext4)") && said.contains("/data ext4"), "init.formatted", || {
        said.clone()
    })?;
    sh.poweroff()?;
    for (disk, content) in disks.iter().zip(&others) {
        let same = std::fs::read(&disk.image)? == *content;
        check(same, "init.untouched", || format!("{} was written to", disk.image.display()))?;
    }
    let mut sh = boot(c, 4, &[], &both)?;
    let said = sh.ok("cat /data/file; svc log -n 100 init | grep -c formatted")?;
    check(said == "kept\n1", "init.not_again", || said.clone())?;
    sh.poweroff()
}
