//! d2: what fsync, fdatasync, O_SYNC, O_DSYNC, RWF_DSYNC, sync, syncfs, msync and an unmount promise is on stable media when
//! they return, judged by what the device was told to keep; and a write that fails is heard of by everyone who should.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::programs::PROGRAM_LIMIT;
use crate::disk::{Disk, Log};
use crate::error::{Failure, Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::Shell;

/// The gate.
pub const GATE: Gate = Gate {
    name: "d2",
    title: "fsync and its kin mean stable media; a failed write reaches every fsync that should hear of it",
    cases,
};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(180);
/// Ways to write a file durably, as the test program calls them.
const CALLS: &[&str] =
    &["fsync", "fdatasync", "osync", "odsync", "rwf_dsync", "sync", "syncfs", "msync", "append", "range", "rename"];

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &o.smp {
        cases.push(Case::new(format!("stable media smp{smp}"), move |c| stable(c, smp, "")).berth());
        cases.push(Case::new(format!("write errors smp{smp}"), move |c| errors(c, smp)).berth());
        cases.push(Case::new(format!("journal errors smp{smp}"), move |c| journal(c, smp)).berth());
    }
    cases.push(
        Case::new("control: flushes not sent", |c| stable(c, 1, "berth.sabotage=flush")).berth().control("d2.stable"),
    );
    cases
}

fn tool(name: &str, args: &[&str], image: &Path) -> Outcome<(i32, String)> {
    let at = Path::new("/usr/sbin").join(name);
    let program = if at.exists() { at } else { name.into() };
    let out = Command::new(program).args(args).arg(image).output()?;
    let text = [out.stdout, out.stderr].concat();
    Ok((out.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
}

fn formatted(c: &Context<'_>, mib: u64, args: &[&str]) -> Outcome<Disk> {
    let disk = Disk::new(&c.dir, "data", mib * MIB)?;
    let all = [&["-q", "-F", "-t", "ext4", "-b", "4096"], args].concat();
    let (status, text) = tool("mke2fs", &all, &disk.image)?;
    if status == 0 { Ok(disk) } else { Err(Failure::new("harness.mke2fs", text)) }
}

fn mounted(c: &mut Context<'_>, smp: u32, words: &str, attach: impl Fn(&mut Vec<String>)) -> Outcome<Shell> {
    let mut config = c.config(smp);
    if !words.is_empty() {
        config.append.push(' ');
        config.append.push_str(words);
    }
    attach(&mut config.extra);
    let mut sh = c.boot(&config)?;
    let mounts = sh.ok("cat /proc/mounts")?;
    check(mounts.contains("/dev/vda /data ext4 rw"), "d2.mounted", || mounts.clone())?;
    Ok(sh)
}

/// What `durable put CALL` writes.
fn content(call: &str) -> Vec<u8> {
    let call: String = call.chars().take(10).collect();
    (0..3 * 4096 / 16).flat_map(|n| format!("{call:<10}{n:05}\n").into_bytes()).collect()
}

/// Whether the disk that a cut now would leave has `file` as `call` wrote it, after e2fsck's recovery.
fn survives(c: &Context<'_>, disk: &Disk, before: &[u8], file: &str, call: &str) -> Outcome {
    let log = Log::read(disk)?;
    let cut = c.dir.join("cut");
    std::fs::write(&cut, log.after_cut(before))?;
    let (status, text) = tool("e2fsck", &["-f", "-p"], &cut)?;
    check(matches!(status, 0 | 1), "d2.recovers", || format!("{call}: {text}"))?;
    let out = c.dir.join("out");
    let (_, said) = tool("debugfs", &["-R", &format!("dump {file} {}", out.display())], &cut)?;
    let found = std::fs::read(&out).unwrap_or_default();
    let _ = std::fs::remove_file(&out);
    check(found == content(call), "d2.stable", || {
        format!(
            "{call}: {} bytes of {file} survive a cut behind it; {} flushes so far\n{said}",
            found.len(),
            log.flushes()
        )
    })
}

fn stable(c: &mut Context<'_>, smp: u32, words: &str) -> Outcome {
    let disk = formatted(c, 32, &[])?;
    let before = std::fs::read(&disk.image)?;
    let disk = disk.logged()?;
    let attach = |extra: &mut Vec<String>| disk.attach_to(extra, "d", "");
    let mut sh = mounted(c, smp, words, attach)?;
    let mut flushes = Log::read(&disk)?.flushes();
    for call in CALLS {
        // Once for a file that did not exist, once over what was there.
        for turn in 0..2 {
            sh.ok(&format!("/usr/lib/berth-tests/durable put {call} /data/{call}"))?;
            survives(c, &disk, &before, &format!("/{call}"), call)?;
            let now = Log::read(&disk)?.flushes();
            // Without it what was checked would hold for another reason.
            check(now > flushes || !words.is_empty(), "d2.flushed", || {
                format!("{call}, turn {turn}: no flush was sent")
            })?;
            flushes = now;
        }
    }
    // A mount with `sync` makes each call durable; an unmount, what no call asked for.
    sh.ok("mount -o remount,sync /data && /usr/lib/berth-tests/durable put nothing /data/always")?;
    survives(c, &disk, &before, "/always", "nothing")?;
    sh.ok("mount -o remount,async /data && /usr/lib/berth-tests/durable put nothing /data/late && umount /data")?;
    survives(c, &disk, &before, "/late", "nothing")?;
    // So does switching the machine off.
    sh.ok("mount -t ext4 /dev/vda /data && /usr/lib/berth-tests/durable put nothing /data/last")?;
    sh.poweroff()?;
    survives(c, &disk, &before, "/last", "nothing")
}

/// The disk, with writes of one sector that fail.
fn failing(extra: &mut Vec<String>, disk: &Disk, sector: u64) {
    let mut block = |text: String| extra.extend(["-blockdev".to_owned(), text]);
    block(format!("driver=file,filename={},node-name=f", disk.image.display()));
    block(format!(
        "driver=blkdebug,node-name=d,image=f,inject-error.0.event=none,inject-error.0.iotype=write,inject-error.0.sector={sector}"
    ));
    extra.extend(["-device", "virtio-blk-device,drive=d,werror=report,rerror=report"].map(str::to_owned));
}

/// The first block of a range that debugfs printed, and the number of `after` blocks later.
fn block_of(disk: &Disk, request: &str, after: usize) -> Outcome<u64> {
    let (_, text) = tool("debugfs", &["-R", request], &disk.image)?;
    let blocks: Vec<u64> = text.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    blocks.get(after).copied().ok_or_else(|| Failure::new("harness.debugfs", format!("{request}: {text}")))
}

fn errors(c: &mut Context<'_>, smp: u32) -> Outcome {
    let source = c.dir.join("source");
    std::fs::create_dir_all(&source)?;
    std::fs::write(source.join("victim"), vec![b'v'; 64 << 10])?;
    let disk = formatted(c, 32, &["-d", &source.display().to_string()])?;
    let sector = block_of(&disk, "blocks /victim", 0)? * 8;
    let mut sh = mounted(c, smp, "", |extra| failing(extra, &disk, sector))?;
    sh.program("durable", PROGRAM_LIMIT)?;
    let log = sh.ok("dmesg | grep 'vda: device error'")?;
    check(log.contains(&sector.to_string()), "d2.errors_are_logged", || log.clone())?;
    sh.ok("umount /data")?;
    sh.poweroff()?;
    let (status, text) = tool("e2fsck", &["-f", "-n"], &disk.image)?;
    check(status == 0, "d2.clean_after_errors", || text)
}

/// The journal cannot be written: whoever waits hears of it, nothing is written any more, and what had been acknowledged is
/// on the disk.
fn journal(c: &mut Context<'_>, smp: u32) -> Outcome {
    let disk = formatted(c, 32, &[])?;
    let sector = block_of(&disk, "blocks <8>", 100)? * 8;
    let mut sh = mounted(c, smp, "", |extra| failing(extra, &disk, sector))?;
    let done = sh.run("/usr/lib/berth-tests/durable journal /data", LONG)?;
    check(done.status == 0 && !done.output.contains("FAIL"), "d2.journal_error", || done.output.clone())?;
    let count = done.output.lines().find_map(|l| l.strip_prefix("acknowledged ")?.trim().parse().ok()).unwrap_or(0u32);
    check(count > 0, "d2.journal_works_at_first", || done.output.clone())?;
    let log = sh.ok("dmesg | grep -i 'journal'; cat /proc/mounts")?;
    check(log.contains(" ext4 ro"), "d2.read_only_after_journal_error", || log.clone())?;
    sh.ok("umount /data")?;
    sh.poweroff()?;
    let (status, text) = tool("e2fsck", &["-f", "-y"], &disk.image)?;
    check(matches!(status, 0 | 1), "d2.recovers_after_journal_error", || text)?;
    let (_, names) = tool("debugfs", &["-R", "ls -p /"], &disk.image)?;
    let missing = (0..count).find(|n| !names.contains(&format!("/j{n}/")));
    check(missing.is_none(), "d2.acknowledged_before_journal_error", || format!("{count} were, but not {missing:?}"))
}
