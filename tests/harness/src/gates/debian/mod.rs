//! debian: a tree of Debian's own arm64 programs, unmodified, entered by chroot: its shell with pipelines and job control, its
//! Python with threads, processes and sqlite, redis; a WSGI application behind its nginx, used from this side of the wire while its
//! workers are killed; and its OpenSSH server with OpenSSH's client.
//!
//! Its negative control keeps the machine from starting a second process with that C library: the loader is not there.

mod sshd;
mod web;

use crate::cpio::Entry;
use crate::error::{Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::paths::Paths;
use crate::shell::Shell;
use crate::vm::VmConfig;
use std::time::Duration;

/// The gate.
pub const GATE: Gate = Gate {
    name: "debian",
    title: "an unmodified Debian tree: bash, coreutils, Python, sqlite, redis, WSGI behind nginx, OpenSSH's server",
    cases,
};

/// For a hang, not a measure.
const LIMIT: Duration = Duration::from_secs(120);
/// Test programs that were also built against the tree's C library.
const PROGRAMS: &[&str] = &["threads", "futex"];

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &o.smp {
        cases.push(Case::new(format!("programs smp{smp}"), move |c| programs(c, smp, "")).berth());
        cases.push(Case::new(format!("web smp{smp}"), move |c| web::run(c, smp)).berth());
        cases.push(Case::new(format!("sshd smp{smp}"), move |c| sshd::run(c, smp)).berth());
    }
    let hidden = |c: &mut Context<'_>| programs(c, 1, "mv /data/usr/lib/ld-linux-aarch64.so.1 /data/tmp/");
    cases.push(Case::new("control: no dynamic loader", hidden).control("debian.bash"));
    cases
}

/// A machine whose first disk is the tree; what is written to it is forgotten.
pub(super) fn config(c: &Context<'_>, smp: u32, files: &[Entry<'_>]) -> Outcome<VmConfig> {
    let tree = c.options.paths.build.join("ports/debian-tree/tree.img");
    Paths::need(&tree, "initrd")?;
    let mut config = c.config(smp);
    config.initrd = Some(c.overlay(files)?);
    let drive = format!("if=none,id=tree,format=raw,snapshot=on,file={}", tree.display());
    config.extra.extend(["-drive", &drive, "-device", "virtio-blk-device,drive=tree"].map(str::to_owned));
    Ok(config)
}

/// Boots it and makes the tree ready to be entered.
pub(super) fn enter(c: &mut Context<'_>, config: &VmConfig) -> Outcome<Shell> {
    let mut sh = c.boot(config)?;
    sh.ok("grep -q '/dev/vda /data ext4 rw' /proc/mounts")?;
    sh.ok("for d in proc sys dev dev/pts dev/shm run tmp; do mount -o bind /$d /data/$d || exit; done")?;
    Ok(sh)
}

/// Runs `script`, a line of bash, in the tree.
fn bash(sh: &mut Shell, script: &str) -> Outcome<String> {
    check(!script.contains('\''), "harness.command", || script.to_owned())?;
    Ok(sh.run(&format!("chroot /data /bin/bash -c '{script}'"), LIMIT)?.output)
}

/// The same, and what it prints must be `want`.
fn says(sh: &mut Shell, what: &str, script: &str, want: &str) -> Outcome {
    let said = bash(sh, script)?;
    check(said.trim() == want, what, || format!("{script}\n{said}\ninstead of\n{want}"))
}

/// m6: the thread tests linked against glibc.
pub(super) fn pthreads(c: &mut Context<'_>, smp: u32) -> Outcome {
    let mut files = Vec::new();
    for name in PROGRAMS {
        files.push((
            format!("usr/lib/berth-tests/{name}-glibc"),
            std::fs::read(c.options.paths.build.join("tests-glibc").join(name))?,
        ));
    }
    let entries: Vec<Entry<'_>> = files.iter().map(|(name, data)| Entry::File(name, 0o755, data)).collect();
    let config = config(c, smp, &entries)?;
    let mut sh = enter(c, &config)?;
    sh.ok("mkdir -p /data/tests /data/usr/lib/berth-tests && cp /usr/lib/berth-tests/*-glibc /data/tests/")?;
    sh.ok("cp /usr/lib/berth-tests/nop /data/usr/lib/berth-tests/")?;
    for name in PROGRAMS {
        // Where `program` looks; it enters the tree.
        let line = format!("printf \"#!/bin/sh\\nexec chroot /data /tests/{name}-glibc \\\"\\$@\\\"\\n\"");
        sh.ok(&format!("{line} >/usr/lib/berth-tests/{name}-glibc"))?;
        let said = sh.ok(&format!("chroot /data /bin/bash -c 'LD_TRACE_LOADED_OBJECTS=1 /tests/{name}-glibc'"))?;
        check(said.contains("/libc.so.6"), "m6.glibc", || said.clone())?;
        sh.program(&format!("{name}-glibc"), super::programs::PROGRAM_LIMIT)?;
    }
    sh.poweroff()
}

fn programs(c: &mut Context<'_>, smp: u32, first: &str) -> Outcome {
    let config = config(c, smp, &[Entry::File("threads.py", 0o644, include_bytes!("threads.py"))])?;
    let mut sh = enter(c, &config)?;
    if !first.is_empty() {
        sh.ok(first)?;
    }
    shell(&mut sh)?;
    job_control(&mut sh)?;
    python(&mut sh)?;
    redis(&mut sh)?;
    sh.poweroff()
}

fn shell(sh: &mut Shell) -> Outcome {
    says(sh, "debian.bash", "echo $((6 * 7)) ${BASH_VERSION%%.*}", "42 5")?;
    says(sh, "debian.pipeline", "seq 1 20000 | sort -rn | head -n 3 | tr \"\\n\" \" \" | tac | wc -w", "3")?;
    says(
        sh,
        "debian.pipestatus",
        "set -o pipefail; false | true | (exit 7) | cat; echo $? ${PIPESTATUS[@]}",
        "7 1 0 7 0",
    )?;
    says(
        sh,
        "debian.substitution",
        "paste -d: <(seq 3) <(seq 4 6) | tr \"\\n\" \" \"; [ $(cat <(yes | head -n 100000) <(seq 100000) | wc -l) = 200000 ] && echo same",
        "1:4 2:5 3:6 same",
    )?;
    says(
        sh,
        "debian.traps",
        "trap \"echo usr1\" USR1; kill -USR1 $$; (trap \"echo term; exit 3\" TERM; kill $BASHPID); echo $?",
        "usr1\nterm\n3",
    )?;
    says(
        sh,
        "debian.coproc",
        "coproc tr a-z A-Z; echo hello >&${COPROC[1]}; exec {COPROC[1]}>&-; cat <&${COPROC[0]}; wait",
        "HELLO",
    )?;
    says(
        sh,
        "debian.files",
        "cd /tmp; mkdir -p d/e; seq 1000 >d/e/f; cp -a d d2; ln -s f d2/e/l; mv d2 d3; sha256sum <d3/e/l | cut -c1-8; find d3 | sort | tr \"\\n\" \" \"; stat -c %s d3/e/f; rm -r d d3; ls",
        "67d4ff71\nd3 d3/e d3/e/f d3/e/l 3893",
    )?;
    says(
        sh,
        "debian.dd",
        "dd if=/dev/zero bs=64K count=64 2>/dev/null | sha1sum | cut -c1-10; timeout 0.1 sleep 100; echo $?",
        "2bccbd2f38\n124",
    )?;
    let ps = bash(sh, "sleep 1000 & ps -o pid,comm,stat --ppid $$; pgrep -c sleep; kill %1; nproc; free -m | wc -l")?;
    check(ps.contains("sleep") && ps.contains("\n1\n") && ps.ends_with("\n3"), "debian.procps", || ps.clone())
}

/// An interactive bash on a terminal: programs are stopped and go on, in the foreground and behind.
fn job_control(sh: &mut Shell) -> Outcome {
    let typed = "set -m; sleep 1000 & jobs; kill -STOP %1; wait -n 2>/dev/null; jobs; kill -CONT %1; jobs; kill %1; wait %1; echo $?";
    let said = bash(sh, &format!("{typed} 2>&1"))?;
    let words: Vec<&str> = said.lines().filter_map(|l| l.split_whitespace().nth(1)).collect();
    check(
        words.first() == Some(&"Running") && said.contains("Stopped") && said.trim_end().ends_with("143"),
        "debian.jobs",
        || said.clone(),
    )
}

fn python(sh: &mut Shell) -> Outcome {
    sh.ok("cp /threads.py /data/tmp/")?;
    let want = "threads held\nevents held\nprocesses held\nc_library held\nkilled held";
    says(sh, "debian.python", "python3 /tmp/threads.py 2>&1", want)?;
    says(
        sh,
        "debian.sqlite",
        "sqlite3 /var/lib/t.db \"PRAGMA journal_mode=WAL; CREATE TABLE t(x); WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<1000) INSERT INTO t SELECT x FROM n; SELECT sum(x) FROM t; PRAGMA integrity_check\"; python3 -c \"import sqlite3; print(sqlite3.connect(\\\"/var/lib/t.db\\\").execute(\\\"select count(*) from t\\\").fetchone()[0])\"",
        "wal\n500500\nok\n1000",
    )
}

/// redis with its file that is appended to, killed and started again.
fn redis(sh: &mut Shell) -> Outcome {
    let start = "mkdir -p /var/lib/redis; redis-server --daemonize yes --appendonly yes --appendfsync always --dir /var/lib/redis --save \"\" --pidfile /run/redis.pid --logfile /run/redis.log >/dev/null || exit; until redis-cli ping 2>/dev/null | grep -q PONG; do sleep 0.1; done";
    says(
        sh,
        "debian.redis",
        &format!(
            "{start}; redis-cli set k 41 | cat; redis-cli incr k | cat; redis-cli lpush l a b c | cat; redis-cli lrange l 0 -1 | tr \"\\n\" \" \""
        ),
        "OK\n42\n3\nc b a",
    )?;
    says(
        sh,
        "debian.redis_benchmark",
        "redis-benchmark -q -n 2000 -c 20 -t set,get | tr \"\\r\" \"\\n\" | grep -c requests.per.second",
        "2",
    )?;
    let again = format!(
        "kill -9 $(cat /run/redis.pid); while redis-cli ping >/dev/null 2>&1; do sleep 0.1; done; {start}; redis-cli get k | cat; redis-cli llen l | cat; redis-cli shutdown"
    );
    says(sh, "debian.redis_restart", &again, "42\n3")
}
