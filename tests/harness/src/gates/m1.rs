//! m1: from power-on to a busybox shell, on each machine that is promised; and what a bad initial root does.
//!
//! Its negative control takes the initial root's programs away: the prompt must then fail to come.

use std::time::Duration;

use crate::cpio::Entry;
use crate::error::{Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{BOOT_LIMIT, COMMAND_LIMIT};
use crate::vm::VmConfig;

/// The gate.
pub const GATE: Gate =
    Gate { name: "m1", title: "from power-on to a shell on every promised machine; bad initial roots", cases };

/// Machines beside the default one: name, CPUs, MiB, GIC version, EL2.
const MACHINES: &[(&str, u32, u32, u8, bool)] = &[
    ("gicv2 smp1 256M", 1, 256, 2, false),
    ("gicv2 smp4", 4, 512, 2, false),
    ("gicv2 smp8 1G", 8, 1024, 2, false),
    ("gicv3 smp8 8G", 8, 8192, 3, false),
    ("el2 gicv3 smp4", 4, 512, 3, true),
    ("el2 gicv2 smp2", 2, 512, 2, true),
];

fn cases(options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &options.smp {
        cases.push(Case::new(format!("gicv3 smp{smp}"), move |c| to_shell(c, |v| v.smp = smp)));
    }
    for &(name, smp, mem, gic, el2) in MACHINES {
        cases.push(Case::new(name, move |c| to_shell(c, |v| *v = VmConfig { smp, mem, gic, el2, ..v.clone() })));
    }
    cases.push(Case::new("smallest: 32M", |c| to_shell(c, |v| (v.smp, v.mem) = (1, 32))).berth());
    cases.push(Case::new("cpu max", |c| to_shell(c, |v| (v.smp, v.cpu) = (4, "max,pauth-impdef=on".into()))));
    cases.push(Case::new("old cpu stops with a message", old_cpu).berth());
    cases.push(Case::new("maxcpus=1", |c| to_shell(c, |v| v.append.push_str(" maxcpus=1"))));
    cases.push(Case::new("plain cpio", |c| {
        let plain = c.options.paths.build.join("initrd.cpio");
        to_shell(c, |v| v.initrd = Some(plain.clone()))
    }));
    cases.push(Case::new("two archives, the second plain", two_archives));
    cases.push(Case::new("init= and what follows --", init_arguments).berth());
    cases.push(Case::new("no initrd", |c| refused(c, None)).berth());
    cases.push(Case::new("initrd of garbage", |c| refused(c, Some(garbage()))).berth());
    cases.push(Case::new("initrd empty of files", |c| refused(c, Some(crate::cpio::archive(&[])))).berth());
    for (name, part) in [("cut in half", 2), ("cut at a tenth", 10), ("cut at its end", 1)] {
        cases.push(
            Case::new(format!("initrd {name}"), move |c| {
                let whole = std::fs::read(&c.options.paths.initrd)?;
                let keep = if part == 1 { whole.len() - 9 } else { whole.len() / part };
                refused(c, Some(whole[..keep].to_vec()))
            })
            .berth(),
        );
    }
    cases.push(Case::new("plain initrd cut in half", plain_cut).berth());
    cases.push(
        Case::new("control: no programs", |c| {
            let initrd = c.dir.join("bare.cpio");
            std::fs::write(&initrd, crate::cpio::archive(&[Entry::Dir("bin", 0o755)]))?;
            to_shell(c, |v| v.initrd = Some(initrd.clone()))
        })
        .control("boot.prompt"),
    );
    cases
}

/// Boot, use the shell, see that the machine is the one that was asked for, switch off.
fn to_shell(c: &mut Context<'_>, change: impl Fn(&mut VmConfig)) -> Outcome {
    let mut config = c.config(4);
    change(&mut config);
    let linux = c.options.linux;
    let mut sh = c.boot(&config)?;
    let out = sh.ok("echo $((6*7)); uname -s -m")?;
    check(out == "42\nLinux aarch64", "shell.output", || format!("{out:?}"))?;
    let want = if config.append.contains("maxcpus=1") { 1 } else { config.smp };
    let cpus = sh.ok("nproc")?;
    check(cpus == want.to_string(), "boot.cpus", || format!("nproc says {cpus}, not {want}"))?;
    let total = sh.ok("awk '/^MemTotal/ { print $2 }' /proc/meminfo")?;
    let total: u64 = total.parse().unwrap_or(0);
    let given = u64::from(config.mem) * 1024;
    // Linux keeps struct pages and its image from the total; Berth may too, but nine tenths must be there.
    let least = if linux { given * 3 / 4 } else { given * 9 / 10 - 4096 };
    check(total >= least && total <= given, "boot.memory", || format!("MemTotal is {total} of {given} KiB"))?;
    let out =
        sh.ok("ls / | sort | grep -c -e ^bin$ -e ^etc$ -e ^proc$; ps | grep -c init; echo a b c | awk '{ print $2 }'")?;
    check(out.starts_with("3\n") && out.ends_with("\nb"), "shell.tools", || format!("{out:?}"))?;
    sh.poweroff()
}

/// The machine must say what is wrong with its initial root and switch itself off.
fn refused(c: &mut Context<'_>, initrd: Option<Vec<u8>>) -> Outcome {
    let mut config = c.config(1);
    config.initrd = match initrd {
        None => None,
        Some(bytes) => {
            let file = c.dir.join("bad-initrd");
            std::fs::write(&file, bytes)?;
            Some(file)
        }
    };
    let mut vm = c.start(&config)?;
    // It may say so in a panic's words: that is a clear message too. What counts is the message and the end.
    vm.console.forbid(false);
    let status = vm.wait_exit(BOOT_LIMIT);
    let console = vm.console.all();
    check(status.is_some(), "refused.off", || format!("still on after {} s", BOOT_LIMIT.as_secs()))?;
    let says = console.lines().any(|l| {
        let l = l.to_lowercase();
        ["init", "cpio", "root"].iter().any(|w| l.contains(w))
            && ["no ", "not ", "bad", "truncated", "corrupt", "cannot", "missing", "invalid", "fail"]
                .iter()
                .any(|w| l.contains(w))
    });
    check(says, "refused.message", || "no line says what is wrong with the initial root".into())?;
    check(!console.contains(crate::shell::PROMPT), "refused.prompt", || "a shell all the same".into())
}

fn plain_cut(c: &mut Context<'_>) -> Outcome {
    let whole = std::fs::read(c.options.paths.build.join("initrd.cpio"))?;
    refused(c, Some(whole[..whole.len() / 2].to_vec()))
}

fn garbage() -> Vec<u8> {
    // A fixed sequence (xorshift) that starts like nothing known.
    let mut x: u32 = 0x9e37_79b9;
    (0..300_000)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        })
        .collect()
}

fn two_archives(c: &mut Context<'_>) -> Outcome {
    let mut config = c.config(1);
    config.initrd = Some(c.overlay(&[
        Entry::Dir("etc/second", 0o750),
        Entry::File("etc/second/file", 0o640, b"from the second archive\n"),
        Entry::File("etc/hostname", 0o644, b"berth\nreplaced\n"),
        Entry::Link("etc/second/link", "file"),
    ])?);
    let mut sh = c.boot(&config)?;
    let out = sh.ok("cat /etc/second/link; stat -c %a /etc/second /etc/second/file; tail -1 /etc/hostname")?;
    check(out == "from the second archive\n750\n640\nreplaced", "initrd.second", || format!("{out:?}"))?;
    sh.poweroff()
}

fn init_arguments(c: &mut Context<'_>) -> Outcome {
    let script = b"#!/bin/sh\necho \"init is $0 with $# [$1] [$2]\"\n/bin/busybox mount -t proc proc /proc\necho \"says $(cat /proc/cmdline)\"\nexec /bin/busybox poweroff -f\n";
    let mut config = c.config(1);
    config.initrd = Some(c.overlay(&[Entry::File("own-init", 0o755, script)])?);
    config.append.push_str(" init=/own-init -- first second");
    let mut vm = c.start(&config)?;
    vm.expect("init.started", "init is /own-init with 2 [first] [second]", BOOT_LIMIT)?;
    vm.expect("init.cmdline", "init=/own-init -- first second", COMMAND_LIMIT)?;
    let status = vm.wait_exit(Duration::from_secs(60));
    check(status.is_some(), "poweroff", || "still on".into())
}

fn old_cpu(c: &mut Context<'_>) -> Outcome {
    let mut config = c.config(1);
    config.cpu = "cortex-a53".into();
    let mut vm = c.start(&config)?;
    vm.console.forbid(false);
    let seen = vm.expect("oldcpu.message", "CPU", Duration::from_secs(30));
    seen.map(|_| ())
}
