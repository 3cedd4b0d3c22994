//! d0: a writable disk beside the base image; raw read, write and flush; a counter that survives reboot and power cut; and
//! devices that fail, lie still, or are smaller than their partition table says.

use std::time::Duration;

use super::programs::PROGRAM_LIMIT;
use crate::disk::{Disk, Log};
use crate::error::{Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{COMMAND_LIMIT, Shell};
use crate::vm::VmConfig;

/// The gate.
pub const GATE: Gate = Gate {
    name: "d0",
    title: "a raw disk: reads, writes and flushes; a counter over reboot and power cut; failing disks",
    cases,
};

const MIB: u64 = 1 << 20;

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &o.smp {
        cases.push(Case::new(format!("smp{smp}"), move |c| raw(c, smp, "", false)));
        cases.push(Case::new(format!("counter smp{smp}"), move |c| counter(c, smp, "")));
    }
    cases.push(Case::new("smp4 checked", |c| raw(c, 4, ",num-queues=2,queue-size=16", true)).berth());
    cases.push(Case::new("modern, small queue", modern));
    cases.push(Case::new("partitions", partitions));
    cases.push(Case::new("partitions come and go", partitioning));
    cases.push(Case::new("device errors", device_errors).berth());
    cases.push(Case::new("a device that stops answering", silent).berth());
    cases.push(
        Case::new("control: flushes not sent", |c| counter(c, 1, "berth.sabotage=flush"))
            .control("d0.counter_after_cut"),
    );
    cases
}

fn append(config: &mut VmConfig, words: &str) {
    if !words.is_empty() {
        config.append.push(' ');
        config.append.push_str(words);
    }
}

/// The test program.
fn raw(c: &mut Context<'_>, smp: u32, device: &str, checked: bool) -> Outcome {
    let mut config = c.config(smp);
    if let Some(kernel) = c.options.paths.checked_kernel().filter(|_| checked) {
        config.kernel = kernel;
    }
    Disk::new(&c.dir, "disk", 64 * MIB)?.attach(&mut config, "d", device);
    let mut sh = c.boot(&config)?;
    sh.program("disk", PROGRAM_LIMIT)?;
    sh.poweroff()
}

/// The same over the modern interface, with a queue so short that requests must wait for room.
fn modern(c: &mut Context<'_>) -> Outcome {
    let mut config = c.config(2);
    config.extra.extend(["-global", "virtio-mmio.force-legacy=false"].map(str::to_owned));
    Disk::new(&c.dir, "disk", 64 * MIB)?.attach(&mut config, "d", ",queue-size=4");
    let mut sh = c.boot(&config)?;
    sh.program("disk", PROGRAM_LIMIT)?;
    sh.poweroff()
}

/// Reads the counter, a decimal number at the disk's start (nothing there: 0).
fn read_counter(sh: &mut Shell) -> Outcome<u32> {
    let text = sh.ok("dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\0'")?;
    Ok(text.trim().parse().unwrap_or(0))
}

fn write_counter(sh: &mut Shell, n: u32, sync: bool) -> Outcome<String> {
    let conv = if sync { " conv=fsync" } else { "" };
    sh.ok(&format!("printf '%-512d' {n} | dd of=/dev/vda bs=512{conv}"))
}

/// Boot after boot the counter rises; the second boot ends by a cut, which must keep what was synced.
fn counter(c: &mut Context<'_>, smp: u32, words: &str) -> Outcome {
    let mut disk = Disk::new(&c.dir, "disk", 16 * MIB)?.logged()?;
    let machine = |c: &Context<'_>, disk: &Disk| {
        let mut config = c.config(smp);
        append(&mut config, words);
        disk.attach(&mut config, "d", "");
        config
    };
    let config = machine(c, &disk);
    let mut sh = c.boot(&config)?;
    let first = read_counter(&mut sh)?;
    check(first == 0, "d0.counter_starts", || format!("an empty disk reads {first}"))?;
    write_counter(&mut sh, 1, true)?;
    sh.poweroff()?;

    // Reboot: what an orderly end left. Then three more steps, the last not synced, and the plug is pulled.
    let before = std::fs::read(&disk.image)?;
    disk = disk.logged()?;
    let config = machine(c, &disk);
    let mut sh = c.boot(&config)?;
    let second = read_counter(&mut sh)?;
    check(second == 1, "d0.counter_after_reboot", || format!("1 was synced before the reboot, {second} read"))?;
    write_counter(&mut sh, 2, true)?;
    write_counter(&mut sh, 3, true)?;
    write_counter(&mut sh, 4, false)?;
    drop(sh);
    let log = Log::read(&disk)?;
    std::fs::write(&disk.image, log.after_cut(&before))?;

    disk.log = None;
    let config = machine(c, &disk);
    let mut sh = c.boot(&config)?;
    let third = read_counter(&mut sh)?;
    check(third == 3, "d0.counter_after_cut", || {
        format!("3 was synced before the cut, {third} read; the device saw {} flushes", log.flushes())
    })?;
    check(log.flushes() >= 2, "d0.flushes_reach_the_device", || format!("{} flushes", log.flushes()))?;
    sh.poweroff()
}

/// A boot record with two partitions, the second of which promises more than the disk has.
fn partitions(c: &mut Context<'_>) -> Outcome {
    let mut content = vec![0u8; 8 * MIB as usize];
    for (slot, start, sectors) in [(0, 2048u32, 4096u32), (1, 8192, 99_999)] {
        let at = 446 + 16 * slot;
        content[at + 4] = 0x83;
        content[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        content[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    }
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    let disk = Disk::with(&c.dir, "disk", &content)?;
    let mut config = c.config(2);
    disk.attach(&mut config, "d", "");
    let mut sh = c.boot(&config)?;
    let table = sh.ok("cat /proc/partitions; ls -l /dev/vda1 /dev/vda2")?;
    check(table.contains("2048 vda1\n") && table.contains("4096 vda2\n"), "d0.partitions", || table.clone())?;
    sh.ok("printf second | dd of=/dev/vda2 bs=1 seek=512 conv=fsync")?;
    let over = sh.run("dd if=/dev/zero of=/dev/vda1 bs=64k", COMMAND_LIMIT)?;
    check(over.status != 0 && over.output.contains("No space left"), "d0.partition_ends", || format!("{over:?}"))?;
    sh.poweroff()?;
    let after = std::fs::read(&disk.image)?;
    let at = 8192 * 512 + 512;
    check(&after[at..at + 6] == b"second", "d0.partition_offset", || "the bytes are not where they belong".into())?;
    check(after[..512] == content[..512], "d0.partition_inside", || "the boot record was written over".into())
}

/// Commands that partition the disk; each must succeed.
const PARTITIONING: &[&str] = &[
    "printf 'o\\nn\\np\\n1\\n\\n+2M\\nn\\np\\n2\\n\\n\\nw\\n' | fdisk /dev/vda > /tmp/out && test -b /dev/vda1 -a -b /dev/vda2",
    "grep -q ' vda2$' /proc/partitions && printf first | dd of=/dev/vda1 conv=fsync 2>/dev/null",
    // Somebody has a partition open.
    "exec 3< /dev/vda1 && ! blockdev --rereadpt /dev/vda 2>/tmp/why && grep -qi busy /tmp/why && exec 3<&-",
    "blockdev --rereadpt /dev/vda && test \"$(dd if=/dev/vda1 bs=5 count=1 2>/dev/null)\" = first",
    "printf 'd\\n2\\nw\\n' | fdisk /dev/vda > /tmp/out && test -b /dev/vda1 && ! test -e /dev/vda2",
    "! grep -q vda2 /proc/partitions && ! mount /dev/vda1 /mnt 2>/dev/null",
    "test $(blockdev --getss /dev/vda) = 512 && test $(blockdev --getsize64 /dev/vda1) -ge 2000000",
    "blkdiscard -o 1048576 -l 4096 /dev/vda1 && blockdev --flushbufs /dev/vda1",
    "dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync 2>/dev/null && blockdev --rereadpt /dev/vda && ! test -e /dev/vda1",
];

/// Partitions made and removed in the running machine: their nodes follow.
fn partitioning(c: &mut Context<'_>) -> Outcome {
    let disk = Disk::new(&c.dir, "disk", 8 * MIB)?;
    let mut config = c.config(2);
    disk.attach(&mut config, "d", "");
    let mut sh = c.boot(&config)?;
    for command in PARTITIONING {
        let done = sh.run(command, COMMAND_LIMIT)?;
        check(done.status == 0, "d0.partitioning", || format!("{command}: {done:?}"))?;
    }
    sh.poweroff()
}

/// A disk with a bad sector: `EIO` for it, nothing else; a line in the log.
fn device_errors(c: &mut Context<'_>) -> Outcome {
    let disk = Disk::new(&c.dir, "disk", 16 * MIB)?;
    let mut config = c.config(2);
    let node = format!("driver=file,filename={},node-name=f", disk.image.display());
    let bad = "driver=blkdebug,node-name=d,image=f,\
               inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.sector=4096,\
               inject-error.1.event=none,inject-error.1.iotype=write,inject-error.1.sector=8192,\
               inject-error.2.event=none,inject-error.2.iotype=flush,inject-error.2.once=on";
    for text in [node.as_str(), bad] {
        config.extra.extend(["-blockdev".to_owned(), text.to_owned()]);
    }
    config.extra.extend(["-device", "virtio-blk-device,drive=d,werror=report,rerror=report"].map(str::to_owned));
    let mut sh = c.boot(&config)?;
    for (command, works) in [
        ("dd if=/dev/vda of=/dev/null bs=512 skip=4096 count=1", false),
        ("dd if=/dev/vda of=/dev/null bs=512 skip=4095 count=1", true),
        ("dd if=/dev/vda of=/dev/null bs=1M", false),
        // The first flush fails, once.
        ("dd if=/dev/zero of=/dev/vda bs=512 seek=1 count=1 conv=fsync", false),
        ("dd if=/dev/zero of=/dev/vda bs=512 seek=1 count=1 conv=fsync", true),
        ("dd if=/dev/zero of=/dev/vda bs=512 seek=8192 count=1 conv=fsync", false),
        ("dd if=/dev/zero of=/dev/vda bs=512 seek=8191 count=1 conv=fsync", true),
    ] {
        let done = sh.run(command, COMMAND_LIMIT)?;
        let told = done.output.contains("I/O error");
        check((done.status == 0) == works && told != works, "d0.errors_are_told", || format!("{command}: {done:?}"))?;
    }
    let log = sh.ok("dmesg | grep 'vda: device error'")?;
    check(log.contains("4096") && log.contains("8192"), "d0.errors_are_logged", || log.clone())?;
    sh.poweroff()
}

/// A disk that takes minutes for a request: it is given up, whoever waits gets `EIO`, and the machine goes on.
fn silent(c: &mut Context<'_>) -> Outcome {
    let disk = Disk::new(&c.dir, "disk", 64 * MIB)?;
    let mut config = c.config(2);
    append(&mut config, "berth.disk_timeout=2");
    config
        .extra
        .extend(["-object", "throttle-group,id=slow,x-bps-total=65536,x-bps-total-max=4194304"].map(str::to_owned));
    let file = format!("driver=file,filename={},node-name=f", disk.image.display());
    for text in [file.as_str(), "driver=throttle,node-name=d,throttle-group=slow,file=f"] {
        config.extra.extend(["-blockdev".to_owned(), text.to_owned()]);
    }
    config.extra.extend(["-device", "virtio-blk-device,drive=d"].map(str::to_owned));
    let mut sh = c.boot(&config)?;
    let slow = sh.run(
        "for i in 1 2 3 4; do dd if=/dev/zero of=/dev/vda bs=1M count=16 seek=$i conv=fsync & done; wait; sync",
        Duration::from_secs(60),
    )?;
    check(slow.output.contains("I/O error"), "d0.silence_ends", || format!("{slow:?}"))?;
    let after = sh.run("dd if=/dev/vda of=/dev/null bs=4k count=1", COMMAND_LIMIT)?;
    check(after.output.contains("I/O error"), "d0.gone_stays_gone", || format!("{after:?}"))?;
    let log = sh.ok("dmesg | grep 'vda: does not answer'")?;
    check(!log.is_empty(), "d0.silence_is_logged", || log.clone())?;
    sh.poweroff()
}
