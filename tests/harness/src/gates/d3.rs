//! d3: sqlite on /data: rollback journal and write-ahead log, several processes with locks that exclude, and databases that
//! keep every acknowledged commit over reboot, kill -9 and a power cut. sqlite's own `integrity_check` and e2fsck judge.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use crate::disk::{Disk, Log};
use crate::error::{Failure, Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{COMMAND_LIMIT, Shell, explain};

/// The gate.
pub const GATE: Gate = Gate {
    name: "d3",
    title: "sqlite on /data: both journals, several processes, reboot, kill -9 and power cut",
    cases,
};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(180);
/// How many commits are acknowledged before the plug is pulled.
const ACKNOWLEDGED: u32 = 40;

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &o.smp {
        cases.push(Case::new(format!("smp{smp}"), move |c| whole(c, smp, "")).berth());
        for journal in ["delete", "wal"] {
            let body = move |c: &mut Context<'_>| power_cut(c, smp, journal, "");
            cases.push(Case::new(format!("power cut, journal {journal}, smp{smp}"), body).berth());
        }
    }
    cases.push(
        Case::new("control: locks that lock nothing", |c| whole(c, 1, "berth.sabotage=locks"))
            .berth()
            .control("d3.second_writer_is_busy"),
    );
    cases.push(
        Case::new("control: flushes not sent", |c| power_cut(c, 1, "delete", "berth.sabotage=flush"))
            .berth()
            .control("d3.acknowledged"),
    );
    cases
}

fn formatted(c: &Context<'_>) -> Outcome<Disk> {
    let disk = Disk::new(&c.dir, "data", 128 * MIB)?;
    let out = Command::new("/usr/sbin/mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk.image).output()?;
    if out.status.success() {
        Ok(disk)
    } else {
        Err(Failure::new("harness.mke2fs", String::from_utf8_lossy(&out.stderr).into_owned()))
    }
}

fn clean(disk: &Disk) -> Outcome {
    let out = Command::new("/usr/sbin/e2fsck").args(["-f", "-n"]).arg(&disk.image).output()?;
    check(out.status.success(), "d3.e2fsck", || String::from_utf8_lossy(&out.stdout).into_owned())
}

fn boot(c: &mut Context<'_>, smp: u32, disk: &Disk, words: &str) -> Outcome<Shell> {
    let mut config = c.config(smp);
    if !words.is_empty() {
        let _ = write!(config.append, " {words}");
    }
    config.initrd = Some(c.options.paths.data_initrd()?);
    disk.attach(&mut config, "d", "");
    let mut sh = c.boot(&config)?;
    let mounts = sh.ok("cat /proc/mounts")?;
    check(mounts.contains("/dev/vda /data ext4 rw"), "d3.mounted", || mounts.clone())?;
    Ok(sh)
}

fn says(sh: &mut Shell, command: &str, want: &str, what: &'static str) -> Outcome {
    let done = sh.run(command, LONG)?;
    check(done.output.trim() == want, what, || format!("{command}: wanted {want:?}, got {done:?}"))
}

fn whole(c: &mut Context<'_>, smp: u32, words: &str) -> Outcome {
    let disk = formatted(c)?;
    let mut sh = boot(c, smp, &disk, words)?;
    for journal in ["delete", "wal"] {
        let db = format!("/data/{journal}.db");
        says(
            &mut sh,
            &format!("sqlite3 {db} 'pragma journal_mode={journal}; create table t(a)'"),
            journal,
            "d3.journal",
        )?;
        busy(&mut sh, &db)?;
        // Four writers at once, each of which waits for its turn.
        sh.ok(&format!(
            "(for w in 1 2 3 4; do (for i in 1 2 3 4 5 6 7 8 9 10; do \
             sqlite3 -cmd '.timeout 60000' {db} \"insert into t values($w*100+$i)\" || echo failed $w $i; done) & done; wait)"
        ))?;
        let count = format!("sqlite3 {db} 'select count(*), count(distinct a) from t; pragma integrity_check'");
        says(&mut sh, &count, "41|41\nok", "d3.writers_all_count")?;
        killed(&mut sh, &db)?;
    }
    sh.poweroff()?;
    clean(&disk)?;
    let mut sh = boot(c, smp, &disk, "")?;
    for journal in ["delete", "wal"] {
        let count = format!("sqlite3 /data/{journal}.db 'select count(*) >= 41 from t; pragma integrity_check'");
        says(&mut sh, &count, "1\nok", "d3.after_reboot")?;
    }
    sh.poweroff()
}

/// While one process holds the write lock a second gets SQLITE_BUSY.
fn busy(sh: &mut Shell, db: &str) -> Outcome {
    sh.ok(&format!("rm -f /tmp/in /tmp/out; mkfifo /tmp/in; (sqlite3 {db} </tmp/in >/tmp/out &) ; exec 5>/tmp/in"))?;
    sh.ok("echo \"begin immediate; insert into t values(0); select 'held';\" >&5; until grep -q held /tmp/out; do sleep 0.1; done")?;
    let second = sh.run(&format!("sqlite3 {db} 'insert into t values(-1)'"), COMMAND_LIMIT)?;
    let refused = second.status != 0 && second.output.contains("database is locked");
    check(refused, "d3.second_writer_is_busy", || format!("{second:?}"))?;
    sh.ok("echo 'commit;' >&5; exec 5>&-; while pidof sqlite3; do sleep 0.1; done")?;
    Ok(())
}

/// kill -9 in a stream of transactions: what was acknowledged is there, and the database is whole.
fn killed(sh: &mut Shell, db: &str) -> Outcome {
    sh.ok(&format!(
        "rm -f /tmp/acks; ( (i=1000; while :; do sqlite3 {db} \"begin; insert into t values($i); commit\" && echo $i >>/tmp/acks; \
         i=$((i+1)); done) & loop=$!; until [ -s /tmp/acks ] && [ $(wc -l </tmp/acks) -ge 15 ]; do sleep 0.1; done; \
         kill -9 $loop; killall -9 sqlite3; wait ) 2>/dev/null"
    ))?;
    // Its end is init's to wait for, and a child that was not yet sqlite3 goes on for one transaction.
    let lost = format!(
        "sqlite3 -cmd '.timeout 60000' {db} 'select a from t where a >= 1000' >/tmp/there; sort /tmp/there >/tmp/a; sort /tmp/acks >/tmp/b; \
         comm -13 /tmp/a /tmp/b; sqlite3 {db} 'pragma integrity_check'"
    );
    says(sh, &lost, "ok", "d3.killed")
}

/// Commits are acknowledged on the console, then the plug is pulled: all of them are there afterwards. In a rollback journal
/// the commit is the journal's removal, which sqlite makes durable itself only at `synchronous=extra` (its documentation of
/// that pragma).
fn power_cut(c: &mut Context<'_>, smp: u32, journal: &str, words: &str) -> Outcome {
    let disk = formatted(c)?;
    let before = std::fs::read(&disk.image)?;
    let mut disk = disk.logged()?;
    let mut sh = boot(c, smp, &disk, words)?;
    let create = format!("sqlite3 /data/a.db 'pragma journal_mode={journal}; create table t(a)'; sync");
    says(&mut sh, &create, journal, "d3.journal")?;
    sh.vm.send(
        b"i=1; while :; do sqlite3 /data/a.db \"pragma synchronous=extra; insert into t values($i)\" && echo \"ack:$i:\"; i=$((i+1)); done\n",
    )?;
    let last = format!("ack:{ACKNOWLEDGED}:");
    sh.vm.console.expect(&last, LONG).map_err(|missing| explain("d3.commits", &last, &missing, LONG))?;
    // What was acknowledged by now may be more; this is what the log must hold.
    drop(sh);
    std::fs::write(&disk.image, Log::read(&disk)?.after_cut(&before))?;
    disk.log = None;
    let mut sh = boot(c, smp, &disk, "")?;
    let count =
        format!("sqlite3 /data/a.db 'select count(*) from t where a <= {ACKNOWLEDGED}; pragma integrity_check'");
    says(&mut sh, &count, &format!("{ACKNOWLEDGED}\nok"), "d3.acknowledged")?;
    sh.poweroff()?;
    clean(&disk)
}
