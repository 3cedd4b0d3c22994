//! d4, the machine's half: the plug is pulled at random points under work of four processes, two of them sqlite. Every
//! commit that had been acknowledged on the console is there afterwards, sqlite finds its databases whole, and `e2fsck -fn`
//! the disks clean. (The other half is the crash matrices of `fs/journal` and `fs/datafs`, on the host.)
//!
//! One run gives many cuts: the write log has all that the device saw, in order, and for each acknowledgement the harness
//! notes how long the log was when the line came. A cut at a place of the log keeps what had been flushed there and any
//! part of the rest, and must hold all that was acknowledged when the log was shorter than that.

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
    cases
}

/// A generator whose runs can be repeated (splitmix64).
struct Rng(u64);

impl Rng {
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

/// Starts the work and notes acknowledgements until there are enough; then the machine is killed.
fn work(mut sh: Shell, disk: &Disk) -> Outcome<Vec<Ack>> {
    for (db, pragma) in [("S", "journal_mode=delete"), ("W", "journal_mode=wal")] {
        sh.ok(&format!("sqlite3 /data/{db}.db 'pragma {pragma}; create table t(a integer, b text)'"))?;
    }
    sh.ok("sync")?;
    for db in ["S", "W"] {
        let sql =
            format!("insert into t values(%d,hex(randomblob(%d)));select \\047ack {db} %d %d;\\047;\\n\",i,i%700,i,i");
        sh.ok(&format!(
            "(awk 'BEGIN{{print \"pragma synchronous=extra;\";for(i=1;;i++)printf \"{sql}}}' | sqlite3 /data/{db}.db &)"
        ))?;
    }
    sh.vm.send(b"/usr/lib/berth-tests/ledger work /data 2\n")?;
    let path = disk.log.as_ref().ok_or_else(|| Failure::new("harness.log", "the disk has no log"))?;
    let (mut acks, end) = (Vec::new(), Instant::now() + LONG);
    while acks.len() < ACKNOWLEDGED {
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

/// What the machine found on one disk: for each `who` the number.
fn examine(sh: &mut Shell, device: &str) -> Outcome<BTreeMap<String, u64>> {
    sh.ok(&format!("mount -t ext4 {device} /mnt"))?;
    let mut text = sh.ok("/usr/lib/berth-tests/ledger check /mnt")?;
    for db in ["S", "W"] {
        let count = "select max(a) from t where (select count(*) from t) = (select max(a) from t)";
        let out =
            sh.run(&format!("echo {db} $(sqlite3 /mnt/{db}.db 'pragma integrity_check; {count}')"), COMMAND_LIMIT)?;
        text.push_str(&format!("\n{}", out.output.trim()));
    }
    sh.ok("umount /mnt")?;
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

fn cuts(c: &mut Context<'_>, smp: u32, words: &str) -> Outcome {
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |d| d.as_nanos() as u64);
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(seed);
    let mut rng = Rng(seed);
    let disk = Disk::new(&c.dir, "data", SIZE * MIB)?;
    let out = Command::new("/usr/sbin/mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk.image).output()?;
    check(out.status.success(), "harness.mke2fs", || String::from_utf8_lossy(&out.stderr).into_owned())?;
    let before = std::fs::read(&disk.image)?;
    let disk = disk.logged()?;
    let sh = boot(c, smp, std::slice::from_ref(&disk), words)?;
    let acks = work(sh, &disk)?;

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
        // e2fsck's own recovery of the same.
        let judged = Disk::with(&c.dir, "judged", &image)?;
        let (status, text) = e2fsck(&["-f", "-p"], &judged.image)?;
        check(matches!(status, 0 | 1), "d4.e2fsck_recovers", || format!("SEED={seed} cut {n} at {at}: {text}"))?;
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
        let found = examine(&mut sh, &format!("/dev/{name}"))?;
        for (who, number) in want {
            let has = found.get(who).copied().unwrap_or(0);
            check(has >= *number, "d4.acknowledged", || {
                format!("SEED={seed} cut {n}: {who} had acknowledged {number}, found is {has}; {found:?}")
            })?;
        }
    }
    sh.poweroff()?;
    for disk in &disks {
        let (status, text) = e2fsck(&["-f", "-n"], &disk.image)?;
        check(status == 0, "d4.clean", || format!("SEED={seed}: {text}"))?;
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
