//! Debian's unmodified OpenSSH server: commands, a terminal, an unprivileged user, files.

use std::process::Stdio;

use super::{LIMIT, bash, config, enter};
use crate::cpio::Entry;
use crate::error::{Failure, Outcome, check};
use crate::gate::Context;
use crate::net::configured;
use crate::ssh::{Running, Ssh, forward};

pub(super) fn run(c: &mut Context<'_>, smp: u32) -> Outcome {
    let mut ssh = Ssh::new(&c.dir, std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0), "key")?;
    let key = std::fs::read(c.dir.join("key.pub"))?;
    let mut config = config(c, smp, &[Entry::File("key.pub", 0o644, &key)])?;
    ssh.at = forward(&mut config, &[22])?.first().copied().ok_or_else(|| Failure::new("harness.ports", "none"))?;
    let mut sh = enter(c, &config)?;
    configured(&mut sh, "debian.network")?;
    sh.ok("mkdir -p /data/run/sshd && echo user:x:1000:1000::/home/user:/bin/bash >>/data/etc/passwd")?;
    for home in ["root", "home/user"] {
        sh.ok(&format!(
            "mkdir -p /data/{home}/.ssh; cp /key.pub /data/{home}/.ssh/authorized_keys; chmod 700 /data/{home}/.ssh"
        ))?;
    }
    sh.ok("chown -R 1000:1000 /data/home/user")?;
    bash(&mut sh, "ssh-keygen -q -t ed25519 -N \"\" -f /etc/ssh/ssh_host_ed25519_key")?;
    let started = bash(&mut sh, "/usr/sbin/sshd -E /tmp/sshd.log -o UsePAM=no -o LogLevel=DEBUG1 && echo started")?;
    check(started.contains("started"), "debian.sshd", || started.clone())?;
    ssh.wait_for_login(LIMIT)?;

    for status in [0, 3, 255] {
        let ended = ssh.run(&format!("echo out; echo err >&2; exit {status}"), LIMIT)?;
        let right = ended.status == status && ended.text() == "out" && ended.err.trim() == "err";
        check(right, "debian.ssh_status", || format!("wanted {status}: {ended:?}"))?;
    }
    let mut session = ssh.start(&["-tt"], "", Stdio::piped())?;
    let mut input = session.child.stdin.take().ok_or_else(|| Failure::new("harness.pipe", "no input"))?;
    let mut step = |text: &str, want: &str| -> Outcome {
        std::io::Write::write_all(&mut input, text.as_bytes())?;
        session.expect(want, "debian.ssh_terminal", LIMIT)
    };
    step("tty; echo first-$((6*7))\n", "first-42")?;
    step(
        "bash -c 'trap \"echo resumed-\\$((3+3))\" CONT; echo before-$((1+1)); while :; do sleep 0.1; done'\n",
        "before-2",
    )?;
    step("\x1a", "Stopped")?;
    // What says that it goes on is the program itself, which has the terminal by then.
    step("fg\n", "resumed-6")?;
    step("\x03", "^C")?;
    step("echo status-$?\n", "status-130")?;
    step("sleep 1000 & kill %1; wait %1; echo killed-$?\n", "killed-143")?;
    step("exit 5\n", "exit")?;
    drop(input);
    let ended = session.wait(LIMIT)?;
    check(ended.status == 5, "debian.ssh_terminal", || format!("{ended:?}"))?;

    unprivileged(c, &ssh)?;
    files(c, &mut ssh)?;
    let log = sh.ok("cat /tmp/sshd.log")?;
    // Who is not yet known talks to a process without rights.
    let separated = log.contains("permanently_set_uid: 101/65534 [preauth]");
    let fatal: Vec<&str> = log.lines().filter(|l| l.contains("fatal")).collect();
    check(separated && fatal.is_empty(), "debian.privilege_separation", || format!("{separated}, {fatal:?}"))?;
    sh.poweroff()
}

/// A user who is not root has a process of the server's that is his own, and one that watches it.
fn unprivileged(c: &Context<'_>, ssh: &Ssh) -> Outcome {
    let mut command = ssh.command("ssh");
    command.args([
        "-l",
        "user",
        &ssh.at.ip().to_string(),
        "id -un; ps -eo user:20,args | grep 'sshd: user' | grep -v grep",
    ]);
    let ended = Running::start(&mut command, &c.dir, "user")?.wait(LIMIT)?;
    let said = ended.text();
    let right = said.starts_with("user\n") && said.contains("root ") && said.matches("sshd: user").count() == 2;
    check(ended.status == 0 && right, "debian.ssh_user", || format!("{ended:?}"))
}

/// A file there by scp, back by sftp.
fn files(c: &Context<'_>, ssh: &mut Ssh) -> Outcome {
    let bytes = crate::web::noise(7, 300_000);
    let (from, back, batch) = (c.dir.join("from"), c.dir.join("back"), c.dir.join("batch"));
    std::fs::write(&from, &bytes)?;
    let mut scp = ssh.command("scp");
    scp.args(["-q"]).arg(&from).arg(format!("{}:/root/there", ssh.host()));
    let ended = Running::start(&mut scp, &c.dir, "scp")?.wait(LIMIT)?;
    check(ended.status == 0, "debian.scp", || format!("{ended:?}"))?;
    std::fs::write(
        &batch,
        format!("rename /root/there /root/moved\nget /root/moved {}\nls -l /root\n", back.display()),
    )?;
    let mut sftp = ssh.command("sftp");
    sftp.arg("-b").arg(&batch).arg(ssh.host());
    let ended = Running::start(&mut sftp, &c.dir, "sftp")?.wait(LIMIT)?;
    check(ended.status == 0 && ended.text().contains("moved"), "debian.sftp", || format!("{ended:?}"))?;
    check(std::fs::read(&back)? == bytes, "debian.sftp", || "the file came back different".into())
}
