//! base: the page cache and the base image as root. EROFS images of the initial root's files, as mkfs.erofs makes them, from RAM and from a
//! disk, with tmpfs where a system writes; and a file of 1 GiB read again and again by a machine of 128 MiB.
//!
//! The judge of the content is the host: md5sum over the tree that the image was made from. The negative control damages
//! the image, and the sums must then differ.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::disk::Disk;
use crate::error::{Failure, Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{COMMAND_LIMIT, Shell};
use crate::vm::VmConfig;

/// The gate.
pub const GATE: Gate = Gate {
    name: "base",
    title: "an EROFS image as root, from RAM or a disk; the page cache, files larger than memory",
    cases,
};

/// What mkfs.erofs is told for most images: big clusters, best compression.
const PACKED: &[&str] = &["-zlz4hc,12", "-C65536"];
/// The other layouts that it makes.
const LAYOUTS: [&[&str]; 4] = [&[], &["-zlz4"], &["-zlz4hc", "-C16384", "-Elegacy-compress"], &["--chunksize=4096"]];
/// Where the host has e2fsprogs, whoever runs this.
const HOST_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";
const SUMS: &str = "find bin lib sbin usr etc/init* -type f | sort | xargs md5sum";
const BIG: u64 = 1 << 30;
const READ_LIMIT: Duration = Duration::from_secs(400);

fn cases(options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &options.smp {
        cases.push(Case::new(format!("image in RAM smp{smp}"), move |c| from_ram(c, smp)).berth());
        cases.push(Case::new(format!("image on a disk smp{smp}"), move |c| from_disk(c, smp)).berth());
        cases.push(Case::new(format!("page cache smp{smp}"), move |c| cached(c, smp)).berth());
        cases.push(Case::new(format!("memory runs short smp{smp}"), move |c| short(c, smp)).berth());
    }
    cases.push(Case::new("each layout that mkfs.erofs makes", layouts).berth());
    cases.push(Case::new("1 GiB read again and again in 128 MiB", again_and_again).berth());
    cases.push(Case::new("no such disk, and no image on it", refused).berth());
    cases.push(Case::new("control: a damaged image", damaged).control("base.sums"));
    cases
}

fn tool(command: &mut Command) -> Outcome<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|e| Failure::new("harness.tool", format!("{name}: {e}")))?;
    check(output.status.success(), "harness.tool", || format!("{name}: {}", output.status))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The initial root's files, unpacked into the case's directory.
fn tree(c: &Context<'_>) -> Outcome<PathBuf> {
    let dir = c.dir.join("tree");
    std::fs::create_dir_all(&dir)?;
    let archive = File::open(c.options.paths.build.join("initrd.cpio"))?;
    tool(Command::new("cpio").args(["-idmu", "--quiet", "--no-preserve-owner"]).current_dir(&dir).stdin(archive))?;
    Ok(dir)
}

fn image(c: &Context<'_>, name: &str, tree: &Path, options: &[&str]) -> Outcome<PathBuf> {
    let file = c.dir.join(name);
    let _ = std::fs::remove_file(&file);
    tool(Command::new("mkfs.erofs").args(["--quiet", "-T0", "--all-root"]).args(options).arg(&file).arg(tree))?;
    Ok(file)
}

fn host_sums(tree: &Path) -> Outcome<String> {
    let out = tool(Command::new("sh").args(["-c", SUMS]).env("LC_ALL", "C").current_dir(tree))?;
    Ok(out.trim_end().to_owned())
}

/// The sums of the tree at `at` in the guest must be `want`.
fn compare(sh: &mut Shell, at: &str, want: &str) -> Outcome {
    let got = sh.run(&format!("(cd {at}; {SUMS})"), COMMAND_LIMIT)?;
    let differs = || {
        let line = got.output.lines().zip(want.lines()).find(|(a, b)| a != b);
        format!("{at}: first difference {line:?}, {} lines of {}", got.output.lines().count(), want.lines().count())
    };
    check(got.output == want, "base.sums", differs)
}

fn add_disk(config: &mut VmConfig, image: &Path) {
    let id = format!("disk{}", config.extra.len());
    let drive = format!("file={},if=none,id={id},format=raw,readonly=on", image.display());
    config.extra.extend(["-drive".into(), drive, "-device".into(), format!("virtio-blk-device,drive={id}")]);
}

/// What must hold of a root that is an image.
fn is_root(sh: &mut Shell, source: &str) -> Outcome {
    let mounts = sh.ok("mount | head -1")?;
    check(mounts == format!("{source} on / type erofs (ro)"), "base.mount", || mounts.clone())?;
    let refused = sh.run("touch /bin/new", COMMAND_LIMIT)?;
    check(refused.output.contains("Read-only file system"), "base.read_only", || format!("{refused:?}"))?;
    let places = "for d in tmp run var etc root home; do echo $d > /$d/written && cat /$d/written; done | tr '\\n' ' '";
    let written = sh.ok(places)?;
    check(written.trim() == "tmp run var etc root home", "base.writable", || written.clone())?;
    let modes = sh.ok("stat -c '%a' /tmp /root /etc /etc/shadow | tr '\\n' ' '")?;
    check(modes.trim() == "1777 700 755 600", "base.modes", || modes.clone())
}

fn from_ram(c: &mut Context<'_>, smp: u32) -> Outcome {
    let tree = tree(c)?;
    let want = host_sums(&tree)?;
    let mut config = c.config(smp);
    config.initrd = Some(image(c, "base.erofs", &tree, PACKED)?);
    let mut sh = c.boot(&config)?;
    compare(&mut sh, "/", &want)?;
    is_root(&mut sh, "/dev/ram0")?;
    // Once more from an empty cache.
    sh.ok("echo 3 > /proc/sys/vm/drop_caches")?;
    compare(&mut sh, "/", &want)?;
    sh.poweroff()
}

fn from_disk(c: &mut Context<'_>, smp: u32) -> Outcome {
    let tree = tree(c)?;
    let want = host_sums(&tree)?;
    let mut config = c.config(smp);
    config.initrd = None;
    config.append.push_str(" root=/dev/vda");
    add_disk(&mut config, &image(c, "base.erofs", &tree, PACKED)?);
    let mut sh = c.boot(&config)?;
    compare(&mut sh, "/", &want)?;
    is_root(&mut sh, "/dev/vda")?;
    sh.ok("echo 3 > /proc/sys/vm/drop_caches")?;
    // Many readers of the same files at once, from an empty cache.
    let readers = "for i in 1 2 3 4 5 6; do (cd /; find bin lib usr -type f | sort | xargs cat | md5sum) & done | sort -u | wc -l";
    let different = sh.ok(readers)?;
    check(different.trim() == "1", "base.readers", || different.clone())?;
    sh.poweroff()
}

fn layouts(c: &mut Context<'_>) -> Outcome {
    let tree = tree(c)?;
    let want = host_sums(&tree)?;
    let mut config = c.config(2);
    for (n, options) in LAYOUTS.iter().enumerate() {
        let file = image(c, &format!("layout{n}"), &tree, options)?;
        add_disk(&mut config, &file);
    }
    let mut sh = c.boot(&config)?;
    for disk in ["vda", "vdb", "vdc", "vdd"] {
        sh.ok(&format!("mount -t erofs /dev/{disk} /mnt"))?;
        compare(&mut sh, "/mnt", &want)?;
        sh.ok("umount /mnt")?;
    }
    let left = sh.ok("echo 3 > /proc/sys/vm/drop_caches; awk '/^Cached/ { print $2 }' /proc/meminfo")?;
    check(left == "0", "base.dropped", || format!("{left} KiB cached of file systems that are gone"))?;
    sh.poweroff()
}

/// A file of [`BIG`] bytes that differ here and there, in an image of a few MiB: equal chunks are stored once.
fn big_file(tree: &Path) -> Outcome {
    let file = File::create(tree.join("big"))?;
    file.set_len(BIG)?;
    for n in 0..64u64 {
        let bytes: Vec<u8> = (0..8192u64).map(|i| (i * i + n * 7 + (i >> 5)) as u8).collect();
        file.write_all_at(&bytes, n << 24)?;
    }
    Ok(())
}

fn again_and_again(c: &mut Context<'_>) -> Outcome {
    let tree = tree(c)?;
    big_file(&tree)?;
    // Summing is slow under emulation: all is read, the last quarter is compared.
    const LAST: &str = "dd if=big bs=1M skip=768 2>/dev/null | md5sum";
    let want = tool(Command::new("sh").args(["-c", LAST]).current_dir(&tree))?;
    let mut config = c.config(2);
    config.mem = 128;
    config.initrd = Some(image(c, "big.erofs", &tree, &["--chunksize=4096"])?);
    std::fs::remove_file(tree.join("big"))?;
    let mut sh = c.boot(&config)?;
    for _ in 0..2 {
        let read = sh.run("cat /big > /dev/null && echo read", READ_LIMIT)?;
        check(read.output == "read", "base.again", || format!("{read:?}"))?;
    }
    let sum = sh.run(&format!("cd /; {LAST}"), READ_LIMIT)?;
    check(sum.output == want.trim_end(), "base.big_sum", || format!("{sum:?}"))?;
    let cached = sh.ok("awk '/^Cached/ { print $2 }' /proc/meminfo")?;
    let cached: u64 = cached.parse().unwrap_or(0);
    check(cached > 40 << 10, "base.cache_is_used", || format!("{cached} KiB cached"))?;
    let killed = sh.run("dmesg | grep -c -i 'out of memory'", COMMAND_LIMIT)?;
    check(killed.output == "0", "base.nobody_killed", || format!("{killed:?}"))?;
    // What programs need comes out of the cache.
    let took = sh.run("dd if=/dev/zero of=/tmp/mine bs=1M count=40 2>/dev/null && md5sum /tmp/mine", READ_LIMIT)?;
    check(took.status == 0 && took.output.starts_with("ec8bb3b24d5b0f1b"), "base.gives_way", || format!("{took:?}"))?;
    sh.poweroff()
}

/// What programs see of the cache, on tmpfs and on a disk; then writes of twice the memory of the machine.
fn cached(c: &mut Context<'_>, smp: u32) -> Outcome {
    let disk = Disk::new(&c.dir, "data", 600 << 20)?;
    tool(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&disk.image).env("PATH", HOST_PATH))?;
    let mut config = c.config(smp);
    config.mem = 96;
    disk.attach(&mut config, "d", "");
    let mut sh = c.boot(&config)?;
    let mounted = sh.ok("mount | grep -c '^/dev/vda on /data type ext4'")?;
    check(mounted == "1", "base.data", || mounted.clone())?;
    sh.ok("export T_DIR=/tmp")?;
    sh.program("cache", READ_LIMIT)?;
    sh.ok("export T_DIR=/data")?;
    sh.program("cache", READ_LIMIT)?;
    let wrote =
        sh.run("dd if=/dev/zero of=/data/zeroes bs=1M count=200 2>/dev/null && md5sum </data/zeroes", READ_LIMIT)?;
    check(wrote.output.contains("3566de3a97906edb98d004d6b947ae9b"), "base.write", || format!("{wrote:?}"))?;
    let killed = sh.run("dmesg | grep -c -i 'out of memory'", COMMAND_LIMIT)?;
    check(killed.output == "0", "base.nobody_killed", || format!("{killed:?}"))?;
    sh.ok("umount /data")?;
    sh.poweroff()?;
    tool(Command::new("e2fsck").arg("-fn").arg(&disk.image).env("PATH", HOST_PATH)).map(drop)
}

/// Files, mappings and programs that want several times the memory of the machine; then somebody who takes all of it.
fn short(c: &mut Context<'_>, smp: u32) -> Outcome {
    let disk = Disk::new(&c.dir, "data", 600 << 20)?;
    tool(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&disk.image).env("PATH", HOST_PATH))?;
    let mut config = c.config(smp);
    config.mem = 80;
    disk.attach(&mut config, "d", "");
    let mut sh = c.boot(&config)?;
    for (test, victims) in [("all_at_once", "0"), ("names_give_way", "0"), ("the_hog_is_chosen", "1")] {
        let ran = sh.run(&format!("/usr/lib/berth-tests/pressure {test}"), READ_LIMIT)?;
        check(ran.output.ends_with("1 passed, 0 failed"), "base.pressure", || ran.output.clone())?;
        let killed = sh.run("dmesg | grep -c -i 'out of memory'", COMMAND_LIMIT)?;
        check(killed.output == victims, "base.victims", || format!("{test}: {killed:?}"))?;
    }
    sh.ok("umount /data")?;
    sh.poweroff()?;
    tool(Command::new("e2fsck").arg("-fn").arg(&disk.image).env("PATH", HOST_PATH)).map(drop)
}

/// Boots that must end with a message.
fn refused(c: &mut Context<'_>) -> Outcome {
    for (with_disk, message) in [(false, "no disk root=/dev/vda"), (true, "not an EROFS image")] {
        let mut config = c.config(1);
        config.initrd = None;
        config.append.push_str(" root=/dev/vda");
        if with_disk {
            let empty = c.dir.join("empty");
            File::create(&empty)?.set_len(1 << 20)?;
            add_disk(&mut config, &empty);
        }
        let mut vm = c.start(&config)?;
        vm.console.forbid(false);
        vm.expect("base.message", message, COMMAND_LIMIT)?;
        check(vm.wait_exit(COMMAND_LIMIT).is_some(), "base.off", || "still on".into())?;
    }
    Ok(())
}

fn damaged(c: &mut Context<'_>) -> Outcome {
    let tree = tree(c)?;
    let want = host_sums(&tree)?;
    let file = image(c, "base.erofs", &tree, &[])?;
    // A byte in the middle of the largest test program, which nothing needs to boot.
    let mut bytes = std::fs::read(&file)?;
    let program = std::fs::read(tree.join("usr/lib/berth-tests/bench"))?;
    let probe = &program[8192..8192 + 4096];
    let at = bytes.windows(4096).step_by(4096).position(|w| w == probe).map(|n| n * 4096);
    let at = at.ok_or_else(|| Failure::new("harness.image", "the program is not in the image as it is"))?;
    bytes[at + 100] ^= 0x40;
    std::fs::write(&file, bytes)?;
    let mut config = c.config(1);
    config.initrd = Some(file);
    let mut sh = c.boot(&config)?;
    compare(&mut sh, "/", &want)?;
    sh.poweroff()
}
