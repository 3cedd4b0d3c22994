//! d4, the machine's half: the plug is pulled at random points under work of four processes, two of them sqlite. Every
//! commit that had been acknowledged on the console is there afterwards, sqlite finds its databases whole, and `e2fsck -fn`
//! the disks clean. (The other half is the crash matrices of `fs/journal` and `fs/datafs`, on the host.)
//!
//! One run gives many cuts: the write log has all that the device saw, in order, and for each acknowledgement the harness
//! notes how long the log was when the line came. A cut at a place of the log keeps what had been flushed there and any
//! part of the rest, and must hold all that was acknowledged when the log was shorter than that.
//!
//! The other case ages one disk: the machine is killed twenty times at random moments of the same work, each time what had not
//! been flushed is lost in part, and each time Berth recovers the disk and goes on with it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::disk::{Disk, Log};
use crate::error::{Failure, Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{COMMAND_LIMIT, Shell, explain};

/// The gate.
pub const GATE: Gate = Gate {
    name: "d4",
    title: "the plug pulled under sqlite and file work: whatever was acknowledged is there, everything is whole",
    cases,
};

const MIB: u64 = 1 << 20;
/// MiB of the disk.
const SIZE: u64 = 48;
const LONG: Duration = Duration::from_secs(180);
/// Cuts of one run, beside the machine's own end.
const CUTS: usize = 20;
/// Acknowledgements before the plug is pulled.
const ACKNOWLEDGED: usize = 400;
/// How often the machine with the aging disk is killed.
const KILLS: usize = 20;
/// What a cut keeps or loses as one.
const PIECE: usize = 1024;

fn cases(o: &Options) -> Vec<Case> {
    let mut cases: Vec<Case> =
        o.smp.iter().map(|&smp| Case::new(format!("smp{smp}"), move |c| cuts(c, smp, "")).berth()).collect();
    cases.push(
        Case::new("control: flushes not sent", |c| cuts(c, 4, "berth.sabotage=flush"))
            .berth()
            .control("d4.acknowledged"),
    );
    cases.push(Case::new("smp4: killed twenty times", |c| kills(c, 4, KILLS, "")).berth());
    cases.push(
        Case::new("control: fsync that does nothing", |c| kills(c, 4, 3, "berth.sabotage=fsync"))
            .berth()
            .control("d4.acknowledged"),
    );
    cases
}

/// A generator whose runs can be repeated (splitmix64).
struct Rng(u64);

impl Rng {
    /// One that starts with `SEED`, or with the time; and with what it starts.
    fn new() -> (Self, u64) {
        let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |d| d.as_nanos() as u64);
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(seed);
        (Self(seed), seed)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n.max(1)
    }
}

/// One acknowledgement: whose, its number, and how long the log was when it was seen.
struct Ack {
    who: String,
    number: u64,
    log: u64,
}

/// Reads `ack WHO NUMBER NUMBER;` from a line; the number stands there twice because lines of several writers may mix.
fn ack(line: &str) -> Option<(String, u64)> {
    let words: Vec<&str> = line.trim().strip_prefix("ack ")?.strip_suffix(';')?.split(' ').collect();
    let (numbers, who) = words.split_last_chunk::<2>().map(|(who, numbers)| (numbers, who))?;
    let number = numbers[0].parse().ok()?;
    (numbers[0] == numbers[1] && !who.is_empty()).then(|| (who.join(" "), number))
}

fn e2fsck(args: &[&str], image: &Path) -> Outcome<(i32, String)> {
    let out = Command::new("/usr/sbin/e2fsck").args(args).arg(image).output()?;
    Ok((out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stdout).into_owned()))
}

/// A disk with an empty file system, as Debian makes it.
fn formatted(c: &Context<'_>) -> Outcome<Disk> {
    let disk = Disk::new(&c.dir, "data", SIZE * MIB)?;
    let out = Command::new("/usr/sbin/mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk.image).output()?;
    check(out.status.success(), "harness.mke2fs", || String::from_utf8_lossy(&out.stderr).into_owned())?;
    Ok(disk)
}

fn boot(c: &mut Context<'_>, smp: u32, disks: &[Disk], words: &str) -> Outcome<Shell> {
    let mut config = c.config(smp);
    if !words.is_empty() {
        config.append.push(' ');
        config.append.push_str(words);
    }
    config.initrd = Some(c.options.paths.data_initrd()?);
    for (n, disk) in disks.iter().enumerate() {
        disk.attach(&mut config, &format!("d{n}"), "");
    }
    c.boot(&config)
}

/// Starts the work in `dir` and notes acknowledgements until there are `enough`; then the machine is killed.
fn work(mut sh: Shell, disk: &Disk, dir: &str, enough: usize) -> Outcome<Vec<Ack>> {
    for (db, pragma) in [("S", "journal_mode=delete"), ("W", "journal_mode=wal")] {
        sh.ok(&format!("sqlite3 {dir}/{db}.db 'pragma {pragma}; create table t(a integer, b text)'"))?;
    }
    sh.ok("sync")?;
    for db in ["S", "W"] {
        let sql =
            format!("insert into t values(%d,hex(randomblob(%d)));select \\047ack {db} %d %d;\\047;\\n\",i,i%700,i,i");
        sh.ok(&format!(
            "(awk 'BEGIN{{print \"pragma synchronous=extra;\";for(i=1;;i++)printf \"{sql}}}' | sqlite3 {dir}/{db}.db &)"
        ))?;
    }
    sh.vm.send(format!("/usr/lib/berth-tests/ledger work {dir} 2\n").as_bytes())?;
    let path = disk.log.as_ref().ok_or_else(|| Failure::new("harness.log", "the disk has no log"))?;
    let (mut acks, end) = (Vec::new(), Instant::now() + LONG);
    while acks.len() < enough {
        let left = end.saturating_duration_since(Instant::now());
        let line =
            sh.vm.console.expect("\n", left).map_err(|m| explain("d4.acknowledgements", "more of them", &m, LONG))?;
        check(!line.before.contains("FAIL"), "d4.work", || line.before.clone())?;
        if let Some((who, number)) = ack(&line.before) {
            acks.push(Ack { who, number, log: std::fs::metadata(path)?.len() });
        }
    }
    Ok(acks)
}

/// What must be found: for each `who` the least number.
fn promised(acks: &[Ack], log: u64) -> BTreeMap<String, u64> {
    let mut least = BTreeMap::new();
    for a in acks.iter().filter(|a| a.log <= log) {
        // A file is replaced every 16th entry of its worker.
        let who = if a.who.starts_with('F') { format!("{} {}", a.who, a.number / 2 % 8) } else { a.who.clone() };
        let n = least.entry(who).or_insert(0);
        *n = a.number.max(*n);
    }
    least
}

/// What the machine found in one directory: for each `who` the number.
fn examine(sh: &mut Shell, dir: &str) -> Outcome<BTreeMap<String, u64>> {
    let mut text = sh.ok(&format!("/usr/lib/berth-tests/ledger check {dir}"))?;
    for db in ["S", "W"] {
        let count = "select max(a) from t where (select count(*) from t) = (select max(a) from t)";
        let out =
            sh.run(&format!("echo {db} $(sqlite3 {dir}/{db}.db 'pragma integrity_check; {count}')"), COMMAND_LIMIT)?;
        text.push_str(&format!("\n{}", out.output.trim()));
    }
    let bad: Vec<&str> = text.lines().filter(|l| l.starts_with("BAD")).collect();
    check(bad.is_empty(), "d4.nothing_foreign", || bad.join("\n"))?;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        if let Some((who, number)) = line.trim().rsplit_once(' ')
            && let Ok(number) = number.parse()
        {
            found.insert(who.trim_end_matches(" ok").to_owned(), number);
        }
    }
    for db in ["S", "W"] {
        let whole = text.lines().any(|l| l.trim() == format!("{db} ok") || l.starts_with(&format!("{db} ok ")));
        check(whole, "d4.database_is_whole", || text.clone())?;
    }
    Ok(found)
}

/// Whether all of `least` was `found`; `when` says which cut it was.
fn judge(least: &BTreeMap<String, u64>, found: &BTreeMap<String, u64>, when: &str) -> Outcome {
    for (who, number) in least {
        let has = found.get(who).copied().unwrap_or(0);
        check(has >= *number, "d4.acknowledged", || {
            format!("{when}: {who} had acknowledged {number}, found is {has}; {found:?}")
        })?;
    }
    Ok(())
}

/// e2fsck's own recovery of what a cut left, in a copy.
fn judged_by_e2fsck(c: &Context<'_>, image: &[u8], when: &str) -> Outcome {
    let judged = Disk::with(&c.dir, "judged", image)?;
    let (status, text) = e2fsck(&["-f", "-p"], &judged.image)?;
    check(matches!(status, 0 | 1), "d4.e2fsck_recovers", || format!("{when}: {text}"))
}

fn cuts(c: &mut Context<'_>, smp: u32, words: &str) -> Outcome {
    let (mut rng, seed) = Rng::new();
    let disk = formatted(c)?;
    let before = std::fs::read(&disk.image)?;
    let disk = disk.logged()?;
    let sh = boot(c, smp, std::slice::from_ref(&disk), words)?;
    let acks = work(sh, &disk, "/data", ACKNOWLEDGED)?;

    // The machine is gone. The disks that cuts at random places leave; the last is the machine's own end, with everything.
    let log = Log::read(&disk)?;
    let first = log.entries.iter().position(|e| e.end >= acks[0].log).unwrap_or(0);
    let mut disks = Vec::new();
    let mut least = Vec::new();
    for n in 0..=CUTS {
        let at =
            if n == CUTS { log.entries.len() } else { first + rng.below((log.entries.len() - first) as u64) as usize };
        // The control keeps nothing: what it loses must be the acknowledged, not the journal's middle.
        let share = if !words.is_empty() {
            0
        } else if n == CUTS {
            100
        } else {
            rng.below(101)
        };
        let image = log.cut(&before, at, PIECE, || rng.below(100) < share);
        least.push(promised(&acks, log.entries.get(..at).and_then(|e| e.last()).map_or(0, |e| e.end)));
        judged_by_e2fsck(c, &image, &format!("SEED={seed} cut {n} at {at}"))?;
        disks.push(Disk::with(&c.dir, &format!("cut{n}"), &image)?);
    }
    // The machine's names for disks follow no order of ours: they are told by their sizes.
    for (n, disk) in disks.iter().enumerate() {
        std::fs::OpenOptions::new().write(true).open(&disk.image)?.set_len((SIZE + n as u64) * MIB)?;
    }
    let mut sh = boot(c, smp, &disks, "")?;
    let names = sh.ok("umount /data; mkdir -p /mnt; cat /proc/partitions")?;
    for (n, want) in least.iter().enumerate() {
        let size = ((SIZE + n as u64) * 1024).to_string();
        let mut lines = names.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
        let name = lines.find(|l| l.get(2) == Some(&size.as_str())).and_then(|l| l.get(3).copied());
        let name = name.ok_or_else(|| Failure::new("harness.disk", format!("no disk of {size} KiB: {names}")))?;
        sh.ok(&format!("mount -t ext4 /dev/{name} /mnt"))?;
        let found = examine(&mut sh, "/mnt")?;
        sh.ok("umount /mnt")?;
        judge(want, &found, &format!("SEED={seed} cut {n}"))?;
    }
    sh.poweroff()?;
    for disk in &disks {
        let (status, text) = e2fsck(&["-f", "-n"], &disk.image)?;
        check(status == 0, "d4.clean", || format!("SEED={seed}: {text}"))?;
    }
    Ok(())
}

/// One disk through `times` kills. The work of each life has a directory of its own, which the next life judges, and the last
/// life judges all of them.
fn kills(c: &mut Context<'_>, smp: u32, times: usize, words: &str) -> Outcome {
    let (mut rng, seed) = Rng::new();
    let mut content = std::fs::read(&formatted(c)?.image)?;
    let mut lives: Vec<BTreeMap<String, u64>> = Vec::new();
    for life in 0..=times {
        let disk = Disk::with(&c.dir, "data", &content)?.logged()?;
        let mut sh = boot(c, smp, std::slice::from_ref(&disk), words)?;
        let from = if life == times { 0 } else { life.saturating_sub(1) };
        for (n, least) in lives.iter().enumerate().skip(from) {
            let found = examine(&mut sh, &format!("/data/{n}"))?;
            judge(least, &found, &format!("SEED={seed} life {n} seen in life {life}"))?;
        }
        if life == times {
            sh.poweroff()?;
            let (status, text) = e2fsck(&["-f", "-n"], &disk.image)?;
            check(status == 0, "d4.clean", || format!("SEED={seed}: {text}"))?;
            break;
        }
        if !words.is_empty() {
            // The control must lose whole files: a commit by time would keep names while their content waits.
            sh.ok("mount -o remount,commit=300 /data && grep ' /data .*commit=300' /proc/mounts")?;
        }
        let dir = format!("/data/{life}");
        sh.ok(&format!("mkdir {dir}"))?;
        let enough = 20 + if words.is_empty() { rng.below(60) as usize } else { 0 };
        let acks = work(sh, &disk, &dir, enough)?;

        let log = Log::read(&disk)?;
        let share = rng.below(101);
        content = log.cut(&content, log.entries.len(), PIECE, || rng.below(100) < share);
        lives.push(promised(&acks, u64::MAX));
        judged_by_e2fsck(c, &content, &format!("SEED={seed} life {life}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_read() {
        assert_eq!(ack("ack F 1 17 17;\r"), Some(("F 1".into(), 17)));
        assert_eq!(ack("ack S 5 5;"), Some(("S".into(), 5)));
        assert_eq!(ack("ack S 5 51;"), None);
        assert_eq!(ack("ack Sack W 5 5;"), Some(("Sack W".into(), 5)));
        assert_eq!(ack("ack 5 5;"), None);
    }
}
