//! d1: disks made by `mke2fs` are mounted on /data and take the whole surface of files; what Berth leaves is clean for
//! `e2fsck -fn` and readable for debugfs; a full disk is an error and no more; what was synced survives a cut.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::disk::{Disk, Log};
use crate::error::{Failure, Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{COMMAND_LIMIT, Shell};

/// The gate.
pub const GATE: Gate = Gate {
    name: "d1",
    title: "datafs on /data: the file surface, many and large files, full disks, cuts; e2fsck and debugfs judge",
    cases,
};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(300);

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &o.smp {
        cases.push(Case::new(format!("surface smp{smp}"), move |c| surface(c, smp)).berth());
        cases.push(Case::new(format!("suite smp{smp}"), move |c| suite(c, smp)).berth());
        cases.push(Case::new(format!("full disk smp{smp}"), move |c| full(c, smp)).berth());
        cases.push(Case::new(format!("remount smp{smp}"), move |c| remount(c, smp)).berth());
        cases.push(Case::new(format!("cut smp{smp}"), move |c| cut(c, smp, "")).berth());
    }
    cases.push(Case::new("100 000 files", many).berth());
    cases.push(Case::new("refused disks", refused).berth());
    cases.push(Case::new("a directory within itself", directory_loop).berth());
    cases.push(
        Case::new("control: flushes not sent", |c| cut(c, 1, "berth.sabotage=flush"))
            .berth()
            .control("d1.synced_survives"),
    );
    cases
}

fn tool(name: &str, args: &[&str], image: &Path) -> Outcome<(bool, String)> {
    let at = Path::new("/usr/sbin").join(name);
    let program = if at.exists() { at } else { name.into() };
    let out = Command::new(program).args(args).arg(image).output()?;
    let text = [out.stdout, out.stderr].concat();
    Ok((out.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

fn formatted(c: &Context<'_>, mib: u64, args: &[&str]) -> Outcome<Disk> {
    let disk = Disk::new(&c.dir, "data", mib * MIB)?;
    let all = [&["-q", "-F", "-t", "ext4"], args].concat();
    let (ok, text) = tool("mke2fs", &all, &disk.image)?;
    if ok { Ok(disk) } else { Err(Failure::new("harness.mke2fs", text)) }
}

fn clean(disk: &Disk, id: &'static str) -> Outcome {
    let (ok, text) = tool("e2fsck", &["-f", "-n"], &disk.image)?;
    check(ok, id, || text)
}

fn mounted(c: &mut Context<'_>, smp: u32, disk: &Disk, words: &str) -> Outcome<Shell> {
    let mut config = c.config(smp);
    if !words.is_empty() {
        config.append.push(' ');
        config.append.push_str(words);
    }
    disk.attach(&mut config, "d", "");
    let mut sh = c.boot(&config)?;
    let mounts = sh.ok("cat /proc/mounts")?;
    check(mounts.contains("/dev/vda /data ext4 rw"), "d1.mounted", || mounts.clone())?;
    Ok(sh)
}

/// Commands, each of which must succeed in /data.
const SURFACE: &[&str] = &[
    "cd /data && test \"$(cat from-host/hello)\" = 'made on the host'",
    "mkdir -p a/b/c && echo one > a/one && ln a/one a/b/two && ln -s ../one a/b/soft && test \"$(cat a/b/soft)\" = one",
    "test $(stat -c %h a/one) = 2 && rm a/one && test \"$(cat a/b/two)\" = one && ! cat a/b/soft 2>/dev/null",
    "echo new > n && echo old > o && mv n o && test \"$(cat o)\" = new && ! test -e n",
    "! rmdir a 2>/dev/null && rmdir a/b/c && ! mkdir a/b 2>/dev/null",
    "exec 3> open && rm open && echo gone >&3 && exec 3>&- && ! test -e open",
    "exec 3<> keep && rm keep && echo text >&3 && dd if=/proc/self/fd/3 2>/dev/null | grep -q text; exec 3>&-",
    "cp /bin/busybox prog && cmp prog /bin/busybox && ln -s prog echo && ./echo it runs | grep -q 'it runs'",
    "dd if=/dev/urandom of=rnd bs=64k count=100 2>/dev/null && cp rnd rnd2 && cmp rnd rnd2 && sha256sum rnd > sums",
    "dd if=/bin/busybox of=huge bs=1M seek=5000 count=1 2>/dev/null && test $(stat -c %s huge) -gt 5000000000",
    "test $(du -k huge | cut -f1) -lt 2000 && dd if=huge bs=1M skip=5000 2>/dev/null | cmp -n 1048576 - /bin/busybox",
    "truncate -s 100000 rnd && test $(stat -c %s rnd) = 100000 && cmp -n 100000 rnd rnd2",
    "mkfifo pipe && mknod dev c 1 3 && echo nothing > dev && test -p pipe",
    "chown 1234:56789 prog && chmod 4711 prog && test \"$(stat -c %a:%u:%g prog)\" = 4711:1234:56789",
    "touch -d '2100-01-02 03:04:05' o && test \"$(stat -c %Y o)\" -gt 4000000000",
    "test \"$(ls -a a/b | tr '\\n' ' ')\" = '. .. soft two '",
    "cd / && sync && umount /data && mount -t ext4 -o noatime /dev/vda /data && cd /data && sha256sum -c sums || cmp rnd2 rnd",
];

fn surface(c: &mut Context<'_>, smp: u32) -> Outcome {
    let source = c.dir.join("source/from-host");
    std::fs::create_dir_all(&source)?;
    std::fs::write(source.join("hello"), "made on the host\n")?;
    let from = c.dir.join("source").display().to_string();
    let disk = formatted(c, 512, &["-d", &from])?;
    let mut sh = mounted(c, smp, &disk, "")?;
    for command in SURFACE.iter().take(SURFACE.len() - 1) {
        let done = sh.run(command, COMMAND_LIMIT)?;
        check(done.status == 0, "d1.surface", || format!("{command}: {done:?}"))?;
    }
    sh.ok("cd / && sha256sum /data/rnd2 > /tmp/sum && umount /data && mount -t ext4 -o noatime /dev/vda /data")?;
    sh.ok("sha256sum -c /tmp/sum")?;
    // Processes side by side.
    let work = "for t in 1 2 3 4; do (mkdir /data/t$t; for i in $(seq 1 100); do echo $t.$i > /data/t$t/f$i; \
                mv /data/t$t/f$i /data/t$t/g$i; done) & done; wait; cat /data/t?/g* | wc -l";
    let done = sh.run(work, LONG)?;
    check(done.output.trim().ends_with("400"), "d1.parallel", || format!("{done:?}"))?;
    sh.ok("umount /data")?;
    sh.poweroff()?;
    clean(&disk, "d1.clean_after_surface")?;
    for (request, want) in [("cat /a/b/two", "one"), ("cat /o", "new"), ("cat /t3/g77", "3.77"), ("stat /prog", "1234")]
    {
        let (_, text) = tool("debugfs", &["-R", request], &disk.image)?;
        check(text.contains(want), "d1.read_on_the_host", || format!("{request}: {text}"))?;
    }
    Ok(())
}

/// The suite of gate `files`, which runs on tmpfs there, on /data.
fn suite(c: &mut Context<'_>, smp: u32) -> Outcome {
    let disk = formatted(c, 64, &[])?;
    let mut sh = mounted(c, smp, &disk, "")?;
    sh.ok("chmod 1777 /data; export T_DIR=/data")?;
    sh.program("fs", LONG)?;
    sh.program("attrs", LONG)?;
    sh.ok("cd /; umount /data")?;
    sh.poweroff()?;
    clean(&disk, "d1.clean_after_suite")
}

/// Commands about read-only and back; each must succeed.
const REMOUNT: &[&str] = &[
    "echo text > /data/f && exec 3>> /data/f && ! mount -o remount,ro /data 2>/tmp/why && grep -qi busy /tmp/why",
    "exec 3>&- && mount -o remount,ro /data && grep -q '^/dev/vda /data ext4 ro' /proc/mounts",
    "! echo x 2>/dev/null > /data/x && ! mkdir /data/x 2>/dev/null && ! rm -f /data/f 2>/dev/null",
    "test \"$(cat /data/f)\" = text && mount -o remount,rw /data && echo more >> /data/f && sync",
    "exec 3< /data/f && rm /data/f && ! mount -o remount,ro /data 2>/dev/null && exec 3<&-",
    "mkdir -p /mnt/b && mount -o bind /data /mnt/b && mount -o remount,bind,ro /mnt/b && ! touch /mnt/b/x 2>/dev/null",
    "touch /data/x && mount -o remount,ro /data && mount -o remount,bind,rw /mnt/b && ! touch /mnt/b/y 2>/dev/null",
    "umount /mnt/b && umount /data && mount -t ext4 -o ro,noatime /dev/vda /data && ! touch /data/y 2>/dev/null",
    "mount -o remount,rw,sync /data && grep -q '/data ext4 rw,noatime,sync' /proc/mounts && echo kept > /data/y",
    "! blkdiscard /dev/vda 2>/tmp/why && grep -qi busy /tmp/why && mount -o remount,ro /data",
];

/// Writing ends and begins again; a machine that is killed while its disk is mounted read-only leaves it clean.
fn remount(c: &mut Context<'_>, smp: u32) -> Outcome {
    let disk = formatted(c, 64, &[])?;
    let mut sh = mounted(c, smp, &disk, "")?;
    for command in REMOUNT {
        let done = sh.run(command, COMMAND_LIMIT)?;
        check(done.status == 0, "d1.remount", || format!("{command}: {done:?}"))?;
    }
    drop(sh);
    clean(&disk, "d1.clean_while_read_only")?;
    let (_, text) = tool("debugfs", &["-R", "cat /y"], &disk.image)?;
    check(text.contains("kept"), "d1.read_on_the_host", || text.clone())
}

fn full(c: &mut Context<'_>, smp: u32) -> Outcome {
    let disk = formatted(c, 24, &[])?;
    let mut sh = mounted(c, smp, &disk, "")?;
    let before = sh.ok("df -k /data | tail -n 1 | awk '{print $4}'")?;
    for round in 0..2 {
        let done = sh.run("dd if=/dev/zero of=/data/fill bs=64k; sync", LONG)?;
        check(done.output.contains("No space left"), "d1.enospc", || format!("round {round}: {done:?}"))?;
        let small = sh.run("for i in $(seq 1 3000); do echo $i > /data/s$i || break; done", LONG)?;
        check(small.output.contains("No space left"), "d1.enospc_names", || format!("round {round}: {small:?}"))?;
        sh.ok("rm /data/fill; rm -f /data/s*; sync; echo fits > /data/again; test \"$(cat /data/again)\" = fits")?;
    }
    let after = sh.ok("rm /data/again; sync; df -k /data | tail -n 1 | awk '{print $4}'")?;
    let number = |s: &str| s.trim().parse::<i64>().unwrap_or(-1);
    let lost = number(&before) - number(&after);
    // Directory blocks stay.
    check((0..300).contains(&lost), "d1.space_comes_back", || format!("{before} before, {after} after"))?;
    sh.ok("umount /data")?;
    sh.poweroff()?;
    clean(&disk, "d1.clean_after_full")
}

fn many(c: &mut Context<'_>) -> Outcome {
    let disk = formatted(c, 600, &["-N", "120000"])?;
    let mut sh = mounted(c, 4, &disk, "")?;
    let done = sh.run("mkdir /data/m && cd /data/m && seq 1 100000 | xargs touch && ls | wc -l", 2 * LONG)?;
    check(done.output.trim().ends_with("100000"), "d1.many", || format!("{done:?}"))?;
    sh.ok("test -e 77777 && ! test -e 100001 && rm 500 99999 && mv 77777 moved && cd / && umount /data")?;
    sh.poweroff()?;
    clean(&disk, "d1.clean_after_many")?;
    let (_, text) = tool("debugfs", &["-R", "stat /m/moved"], &disk.image)?;
    check(text.contains("regular"), "d1.many_on_the_host", || text.clone())
}

/// What a sync acknowledged is there after a cut that keeps only what was flushed; and the disk is clean after recovery.
fn cut(c: &mut Context<'_>, smp: u32, words: &str) -> Outcome {
    let disk = formatted(c, 64, &[])?;
    let before = std::fs::read(&disk.image)?;
    let mut disk = disk.logged()?;
    let mut sh = mounted(c, smp, &disk, words)?;
    sh.ok("mkdir /data/d; for i in 1 2 3 4 5 6 7 8 9; do echo kept$i > /data/d/f$i; done; sync")?;
    sh.ok("dd if=/bin/busybox of=/data/prog bs=64k conv=fsync 2>/dev/null; mv /data/d/f9 /data/d/g9; sync")?;
    sh.ok("for i in $(seq 1 200); do echo lost > /data/d/late$i; done; rm /data/d/f1")?;
    drop(sh);
    std::fs::write(&disk.image, Log::read(&disk)?.after_cut(&before))?;
    disk.log = None;
    let copy = c.dir.join("copy");
    std::fs::copy(&disk.image, &copy)?;
    let (_, text) = tool("debugfs", &["-R", "ls /d"], &copy)?;
    let mut sh = mounted(c, smp, &disk, "")?;
    let done = sh.run("cat /data/d/g9 /data/d/f2 && cmp /data/prog /bin/busybox", COMMAND_LIMIT)?;
    check(done.status == 0 && done.output.contains("kept9"), "d1.synced_survives", || format!("{done:?}\n{text}"))?;
    sh.ok("umount /data")?;
    sh.poweroff()?;
    clean(&disk, "d1.clean_after_cut")
}

/// A damaged disk on which a directory leads back to the one above it: walking comes to an end, the rest works.
fn directory_loop(c: &mut Context<'_>) -> Outcome {
    let disk = formatted(c, 64, &[])?;
    for request in ["mkdir a", "mkdir a/b", "ln a a/b/up", "ln / a/b/top"] {
        tool("debugfs", &["-w", "-R", request], &disk.image)?;
    }
    let mut sh = mounted(c, 2, &disk, "")?;
    for place in ["/data/a/b", "/data/a/b/up/b", "/data/a/b/top/a"] {
        let done = sh.run(&format!("ls {place}"), COMMAND_LIMIT)?;
        check(done.status != 0 && done.output.contains("loop"), "d1.loop_is_told", || format!("{done:?}"))?;
    }
    let done = sh.run("find /data | wc -l; du -s /data; mv /data/a /data/a/b/up/x", COMMAND_LIMIT)?;
    check(done.status != 0, "d1.loop_ends", || format!("{done:?}"))?;
    sh.ok("echo fine > /data/a/b/file && cat /data/a/b/file && rm /data/a/b/file && umount /data")?;
    sh.poweroff()
}

/// Disks that must not be mounted, or not for writing, and what is said about them.
fn refused(c: &mut Context<'_>) -> Outcome {
    let disk = formatted(c, 64, &["-O", "inline_data"])?;
    let mut config = c.config(1);
    disk.attach(&mut config, "d", "");
    let mut sh = c.boot(&config)?;
    let done = sh.run("mount -t ext4 /dev/vda /data; dmesg | grep datafs", COMMAND_LIMIT)?;
    check(done.output.contains("inline_data"), "d1.refused_by_name", || format!("{done:?}"))?;
    sh.ok("! grep -q /data /proc/mounts")?;
    sh.poweroff()?;
    let disk = formatted(c, 64, &["-O", "quota"])?;
    let mut config = c.config(1);
    disk.attach(&mut config, "d", "");
    let mut sh = c.boot(&config)?;
    let done = sh.run("grep /data /proc/mounts; echo x > /data/x", COMMAND_LIMIT)?;
    check(done.output.contains(" ro") && done.status != 0, "d1.read_only_features", || format!("{done:?}"))?;
    sh.poweroff()
}
