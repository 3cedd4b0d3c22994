//! Berth beside Linux: disks go back and forth between the two, with journals that the other must replay; and the suites
//! of files that Berth passes hold on Linux' own tmpfs and ext4.
//!
//! It needs `build/linux` (`make linux`); where that is not, there are no cases.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::disk::Disk;
use crate::error::{Failure, Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{COMMAND_LIMIT, Shell};

/// The gate.
pub const GATE: Gate = Gate {
    name: "linux",
    title: "disks between Berth and Linux, journals replayed by the other; the file suites on Linux itself",
    cases,
};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(240);

fn cases(o: &Options) -> Vec<Case> {
    if !o.paths.linux().exists() {
        println!("linux: build/linux is not there (`make linux`): no cases");
        return Vec::new();
    }
    let mut cases: Vec<Case> =
        o.smp.iter().map(|&smp| Case::new(format!("exchange smp{smp}"), move |c| exchange(c, smp)).berth()).collect();
    cases.push(Case::new("suites", suites).berth());
    cases.push(Case::new("control: a journal not replayed", ignored).berth().control("linux.berth_reads"));
    cases
}

fn tool(name: &str, args: &[&str], image: &Path) -> Outcome<(bool, String)> {
    let out = Command::new(Path::new("/usr/sbin").join(name)).args(args).arg(image).output()?;
    let text = [out.stdout, out.stderr].concat();
    Ok((out.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

fn formatted(c: &Context<'_>) -> Outcome<Disk> {
    let disk = Disk::new(&c.dir, "data", 96 * MIB)?;
    let (ok, text) = tool("mke2fs", &["-q", "-F", "-t", "ext4"], &disk.image)?;
    if ok { Ok(disk) } else { Err(Failure::new("harness.mke2fs", text)) }
}

fn clean(disk: &Disk) -> Outcome {
    let (ok, text) = tool("e2fsck", &["-f", "-n"], &disk.image)?;
    check(ok, "linux.clean", || text)
}

/// The journal holds what the other side must replay; on a copy, e2fsck does so and finds nothing else to do.
fn dirty(c: &Context<'_>, disk: &Disk) -> Outcome {
    let (_, text) = tool("dumpe2fs", &["-h"], &disk.image)?;
    check(text.contains("needs_recovery"), "linux.journal_is_dirty", || text.clone())?;
    let copy = Disk { image: c.dir.join("copy"), log: None };
    std::fs::copy(&disk.image, &copy.image)?;
    let (ok, text) = tool("e2fsck", &["-y", "-E", "journal_only"], &copy.image)?;
    check(ok, "linux.e2fsck_replays", || text)?;
    clean(&copy)
}

fn berth(c: &mut Context<'_>, smp: u32, disk: &Disk) -> Outcome<Shell> {
    let mut config = c.config(smp);
    disk.attach(&mut config, "d", "");
    c.boot(&config)
}

fn linux(c: &mut Context<'_>, disk: &Disk) -> Outcome<Shell> {
    let mut config = c.config(2);
    config.kernel = c.options.paths.linux();
    config.initrd = Some(c.options.paths.linux_initrd()?);
    "console=ttyAMA0 mitigations=off kpti=off quiet loglevel=1".clone_into(&mut config.append);
    disk.attach(&mut config, "d", "");
    c.boot(&config)
}

/// Files of all kinds, among them a large directory that was thinned out.
const TREE: &str = "cd /data && mkdir -p a/b/c big && \
    seq 1 900 | while read i; do echo content $i > big/a-rather-long-name-for-the-file-with-number-$i; done && \
    rm big/*7* && dd if=/dev/urandom of=random bs=64k count=20 2>/dev/null && \
    dd if=/bin/busybox of=sparse bs=64k seek=50 count=3 2>/dev/null && truncate -s 10M hole && \
    fallocate -l 300000 reserved && printf begin | dd of=reserved conv=notrunc 2>/dev/null && \
    ln random a/hard && ln -s ../random a/soft && ln -s $(seq -s / 1 90) a/long && mkfifo a/pipe && mknod a/dev c 1 3 && \
    echo deep > a/b/c/file && chown 1234:56789 random && chmod 4750 sparse && touch -d '2100-01-02 03:04:05' a/b/c/file";

/// Changes of everything that is there.
const CHANGES: &str = "cd /data && for f in big/*1; do echo more by $W >> $f; done && rm -f big/*3* && mkdir new-$W && \
    seq 1 200 | while read i; do echo $W $i > new-$W/$i; done && mv a/b a/was-b-$W && mkdir a/b && \
    dd if=/dev/urandom of=sparse bs=4k seek=333 count=5 conv=notrunc 2>/dev/null && truncate -s 600001 random && \
    dd if=/dev/urandom of=hole bs=1k seek=777 count=3 conv=notrunc 2>/dev/null && rm -f a/long && echo $W >> reserved";

/// What each file holds and is.
const FACTS: &str = "find . -type f ! -name '.sum*' -exec sha256sum {} + | sort -k 2; \
    find . ! -name '.sum*' -exec stat -c '%n %f %s %h %u %g %Y %t %T' {} + | sort; \
    find . -type l | sort | while read l; do readlink $l; done";

fn work(sh: &mut Shell, commands: &str, who: &str) -> Outcome {
    let done = sh.run(&format!("W={who}; {commands}; echo status $?"), LONG)?;
    check(done.output.contains("status 0"), "linux.work", || format!("{who}: {done:?}"))?;
    // The list lies in the root, whose times it must not change afterwards. sync(2) also writes the metadata to its place; the
    // last line, after it, is in the journal alone.
    let list = format!("cd /data && : > .sum-late && touch .sums && ({FACTS}) > .sums; sync; wc -l < .sums");
    let done = sh.run(&format!("{list}; echo late > .sum-late; fsync .sum-late; cd /"), LONG)?;
    check(done.output.trim().parse().is_ok_and(|n: u32| n > 1000), "linux.work", || format!("{who}: {done:?}"))
}

fn compare(sh: &mut Shell, id: &'static str) -> Outcome {
    let found = format!(
        "grep -q ' /data ' /proc/mounts && cd /data && ({FACTS}) > /tmp/sums && diff .sums /tmp/sums > /tmp/diff && \
         grep -q late .sum-late; \
         echo status $?; head -n 20 /tmp/diff; cd /"
    );
    let done = sh.run(&found, LONG)?;
    check(done.output.contains("status 0"), id, || format!("{done:?}"))
}

fn exchange(c: &mut Context<'_>, smp: u32) -> Outcome {
    let disk = formatted(c)?;
    let mut sh = berth(c, smp, &disk)?;
    work(&mut sh, TREE, "berth")?;
    sh.ok("umount /data")?;
    sh.poweroff()?;
    clean(&disk)?;

    let mut sh = linux(c, &disk)?;
    compare(&mut sh, "linux.linux_reads")?;
    work(&mut sh, CHANGES, "linux")?;
    drop(sh);
    dirty(c, &disk)?;

    let mut sh = berth(c, smp, &disk)?;
    compare(&mut sh, "linux.berth_reads")?;
    work(&mut sh, CHANGES, "berth")?;
    drop(sh);
    dirty(c, &disk)?;

    let mut sh = linux(c, &disk)?;
    compare(&mut sh, "linux.linux_replays")?;
    sh.run("umount /data", COMMAND_LIMIT)?;
    sh.poweroff()?;
    clean(&disk)
}

/// Linux' journal is declared done, as a driver that knows no journals would treat it: Berth finds an older disk.
fn ignored(c: &mut Context<'_>) -> Outcome {
    let disk = formatted(c)?;
    let mut sh = linux(c, &disk)?;
    work(&mut sh, TREE, "linux")?;
    drop(sh);
    dirty(c, &disk)?;
    tool("debugfs", &["-w", "-R", "feature -needs_recovery"], &disk.image)?;
    let mut sh = berth(c, 1, &disk)?;
    compare(&mut sh, "linux.berth_reads")
}

/// The programs that judge Berth's file systems judge Linux'.
fn suites(c: &mut Context<'_>) -> Outcome {
    let disk = formatted(c)?;
    let mut sh = linux(c, &disk)?;
    sh.ok("grep -q '/data ext4' /proc/mounts && chmod 1777 /data")?;
    for place in ["/tmp", "/data"] {
        for program in ["fs", "attrs"] {
            sh.ok(&format!("export T_DIR={place}"))?;
            sh.program(program, LONG).map_err(|f| Failure::new("linux.suite", format!("{program} in {place}: {f}")))?;
        }
    }
    sh.run("umount /data", COMMAND_LIMIT)?;
    sh.poweroff()?;
    clean(&disk)
}
