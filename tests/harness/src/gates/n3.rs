//! n3: ssh into the machine with Debian's OpenSSH client: commands with their exit statuses, a terminal, several sessions,
//! scp and sftp, forwarded ports both ways, wrong keys refused, two hundred logins in a row, half-open connections, and
//! daemons killed while others work. The host key and the data outlive a reboot.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::error::{Failure, Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::Shell;
use crate::ssh::{Running, Ssh, forward, free_ports, own_address};

/// The gate.
pub const GATE: Gate =
    Gate { name: "n3", title: "ssh: OpenSSH's client, terminals, copies, forwarding, endurance", cases };

/// For a hang, not a measure.
const LIMIT: Duration = Duration::from_secs(120);
/// Logins one after the other.
const LOGINS: u32 = 200;
/// Connections that say nothing.
const HALF_OPEN: usize = 40;

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, smp: u32, body: fn(&mut Machine) -> Outcome| {
        let body = move |c: &mut Context<'_>| {
            Machine::boot(c, smp, None).and_then(|mut m| body(&mut m).and_then(|()| m.off()))
        };
        cases.push(Case::new(format!("{name} smp{smp}"), body).berth());
    };
    for &smp in &o.smp {
        add("sessions", smp, sessions);
        add("files", smp, files);
        add("forwarding", smp, forwarding);
        add("refused", smp, refused);
        add("endurance", smp, endurance);
        add("killed", smp, killed);
    }
    cases.push(Case::new("data disk: keys and host key outlive a reboot", reboot).berth());
    let other_key = |c: &mut Context<'_>| Machine::boot(c, 1, Some("berth.sshkey=ssh-ed25519,AAAA"))?.off();
    cases.push(Case::new("control: the machine knows another key", other_key).berth().control("n3.login"));
    cases
}

/// A machine with the hosting root, and a key for it.
struct Machine {
    sh: Shell,
    ssh: Ssh,
    dir: std::path::PathBuf,
}

impl Machine {
    /// Boot it and wait for the first login. `key` stands in for the parameter that lets the key in.
    fn boot(c: &mut Context<'_>, smp: u32, key: Option<&str>) -> Outcome<Self> {
        let ports = free_ports(1)?;
        let ssh = Ssh::new(&c.dir, ports[0], "key")?;
        let key = key.map_or_else(|| ssh.parameter(), |k| Ok(k.to_owned()))?;
        Self::start(c, smp, &key, ssh, None)
    }

    fn start(c: &mut Context<'_>, smp: u32, words: &str, mut ssh: Ssh, disk: Option<&Disk>) -> Outcome<Self> {
        let mut config = c.config(smp);
        config.append = format!("{} {words}", config.append);
        config.initrd = Some(c.options.paths.host_initrd()?);
        ssh.at = forward(&mut config, &[22])?.first().copied().ok_or_else(|| Failure::new("harness.ports", "none"))?;
        if let Some(disk) = disk {
            disk.attach(&mut config, "d", "");
        }
        let sh = c.boot(&config)?;
        // A port of its own for every boot must not look like another host's key.
        ssh.wait_for_login(LIMIT)?;
        Ok(Self { sh, ssh, dir: c.dir.clone() })
    }

    fn off(self) -> Outcome {
        self.sh.poweroff()
    }
}

// --- sessions -------------------------------------------------------------------------------------------------------

fn sessions(m: &mut Machine) -> Outcome {
    for status in [0, 1, 5, 127, 254] {
        let ended = m.ssh.run(&format!("echo out; echo err >&2; exit {status}"), LIMIT)?;
        let right = ended.status == status && ended.text() == "out" && ended.err.trim() == "err";
        check(right, "n3.exit_status", || format!("wanted {status}: {ended:?}"))?;
    }
    let killed = m.ssh.run("kill -9 $$", LIMIT)?;
    check(killed.status != 0 && killed.status != -2, "n3.exit_signal", || format!("{killed:?}"))?;
    let who = m.ssh.ok("echo $USER $HOME $(id -u) $(pwd); tty", "n3.environment", LIMIT);
    check(who.is_err(), "n3.no_terminal", || "a command without -t has a terminal".into())?;
    let who = m.ssh.ok("echo $USER $HOME $(id -u) $(pwd)", "n3.environment", LIMIT)?;
    check(who == "root /root 0 /root", "n3.environment", || who.clone())?;
    terminal(m)?;
    several(m)
}

/// A shell on a terminal, with job control, interrupted and left by its exit.
fn terminal(m: &mut Machine) -> Outcome {
    let mut session = m.ssh.start(&["-tt"], "", Stdio::piped())?;
    let mut input = session.child.stdin.take().ok_or_else(|| Failure::new("harness.pipe", "no input"))?;
    let mut step = |text: &str, want: &str, what: &str| -> Outcome {
        input.write_all(text.as_bytes())?;
        session.expect(want, what, LIMIT)
    };
    // What is typed is echoed, so what is waited for is put together by the shell.
    step("tty; echo first-$((6*7))\n", "first-42", "n3.terminal")?;
    // The program itself says that it runs: before that the terminal may still be the shell's.
    step("sh -c 'echo before-$((1+1)); exec sleep 1000'\n", "before-2", "n3.terminal")?;
    step("\x03", "^C", "n3.interrupt")?;
    step("echo after-$((1+2))\n", "after-3", "n3.interrupt")?;
    step("sleep 1000 &\njobs\n", "Running", "n3.jobs")?;
    step("kill %1; wait; echo jobs-$((2+2))\n", "jobs-4", "n3.jobs")?;
    // Whether this is echoed depends on when it arrives: before or after the shell has left the terminal to the loop.
    step("while read l; do echo got-$l; done\nhello\n", "got-hello", "n3.canonical")?;
    step("\x04echo eof-$((2+3))\n", "eof-5", "n3.canonical")?;
    input.write_all(b"exit 9\n")?;
    let printed = session.so_far();
    check(printed.contains("/dev/pts/"), "n3.terminal", || printed.clone())?;
    let ended = session.wait(LIMIT)?;
    check(ended.status == 9, "n3.terminal_status", || format!("{ended:?}"))?;
    let sized = m.ssh.start(&["-tt"], "stty rows 33 cols 99; stty size", Stdio::null())?.wait(LIMIT)?;
    check(sized.text() == "33 99", "n3.terminal_size", || format!("{sized:?}"))
}

/// Sessions beside each other, each with its own data both ways.
fn several(m: &mut Machine) -> Outcome {
    let mut running = Vec::new();
    for n in 0..6u8 {
        let (path, data) = (m.dir.join(format!("in{n}")), noise(u64::from(n) + 1, 512 << 10));
        std::fs::write(&path, &data)?;
        running.push((m.ssh.start(&[], "cat", std::fs::File::open(&path)?.into())?, data));
    }
    for (session, data) in running {
        let ended = session.wait(LIMIT)?;
        check(ended.status == 0 && ended.out == data, "n3.several", || {
            format!("status {}, {} of {} bytes, {}", ended.status, ended.out.len(), data.len(), ended.err)
        })?;
    }
    Ok(())
}

/// Bytes that look like noise and are the same every time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

// --- files ----------------------------------------------------------------------------------------------------------

fn files(m: &mut Machine) -> Outcome {
    let (there, back) = (m.dir.join("there"), m.dir.join("back"));
    let data = noise(99, 3 << 20);
    std::fs::write(&there, &data)?;
    let host = m.ssh.host();
    let same = |what: &str| -> Outcome {
        let got = std::fs::read(&back).unwrap_or_default();
        let _ = std::fs::remove_file(&back);
        check(got == data, what, || format!("{} of {} bytes, or other ones", got.len(), data.len()))
    };
    // scp of today speaks sftp; -O is what it spoke before.
    for (option, what) in [("-s", "n3.scp"), ("-O", "n3.scp_old")] {
        let copy = |m: &Machine, from: &str, to: &str| -> Outcome {
            let mut command = m.ssh.command("scp");
            let ended = Running::start(command.args([option, from, to]), &m.dir, "scp")?.wait(LIMIT)?;
            check(ended.status == 0, what, || format!("{ended:?}"))
        };
        copy(m, &there.display().to_string(), &format!("{host}:/tmp/copy"))?;
        let sum = m.ssh.ok("wc -c </tmp/copy", what, LIMIT)?;
        check(sum == data.len().to_string(), what, || sum.clone())?;
        copy(m, &format!("{host}:/tmp/copy"), &back.display().to_string())?;
        same(what)?;
        m.ssh.ok("rm /tmp/copy", what, LIMIT)?;
    }
    let batch = m.dir.join("batch");
    let commands = format!(
        "mkdir /tmp/d\nput {} /tmp/d/a\nrename /tmp/d/a /tmp/d/b\nchmod 600 /tmp/d/b\nls -l /tmp/d\nget /tmp/d/b {}\nrm /tmp/d/b\nrmdir /tmp/d\n",
        there.display(),
        back.display()
    );
    std::fs::write(&batch, commands)?;
    let mut command = m.ssh.command("sftp");
    let ended = Running::start(command.arg("-b").arg(&batch).arg(&host), &m.dir, "sftp")?.wait(LIMIT)?;
    check(ended.status == 0 && ended.text().contains("-rw-------"), "n3.sftp", || format!("{ended:?}"))?;
    same("n3.sftp")?;
    let gone = m.ssh.run("test -e /tmp/d", LIMIT)?;
    check(gone.status == 1, "n3.sftp", || format!("{gone:?}"))
}

// --- forwarding -----------------------------------------------------------------------------------------------------

fn forwarding(m: &mut Machine) -> Outcome {
    // Ours to theirs.
    m.sh.ok(
        "(nc -ll -p 7000 -e /bin/cat </dev/null >/dev/null 2>&1 &) ; until nc -z 127.0.0.1 7000; do sleep 0.2; done",
    )?;
    let ours = free_ports(1)?[0];
    let local = format!("{}:{}:127.0.0.1:7000", ours.ip(), ours.port());
    let tunnel =
        m.ssh.start(&["-o", "ExitOnForwardFailure=yes", "-L", &local], "echo open; sleep 1000", Stdio::null())?;
    tunnel.expect("open", "n3.forward_local", LIMIT)?;
    for n in 1..4 {
        echo(ours, &noise(n, 200 << 10))?;
    }
    drop(tunnel);
    // Theirs to ours: what they send arrives here, and the answer there.
    let listener = TcpListener::bind((own_address(), 0))?;
    let port = listener.local_addr()?.port();
    let remote = format!("7100:{}:{port}", own_address());
    let tunnel =
        m.ssh.start(&["-o", "ExitOnForwardFailure=yes", "-R", &remote], "echo open; sleep 1000", Stdio::null())?;
    tunnel.expect("open", "n3.forward_remote", LIMIT)?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let answered = listener.accept().and_then(|(mut stream, _)| {
            stream.set_read_timeout(Some(LIMIT))?;
            let mut got = [0; 6];
            stream.read_exact(&mut got)?;
            stream.write_all(b"answer\n")?;
            Ok(got)
        });
        let _ = sender.send(answered);
    });
    let answer = m.ssh.ok("(echo hello; sleep 1) | nc 127.0.0.1 7100", "n3.forward_remote", LIMIT)?;
    let got = receiver.recv_timeout(LIMIT).map_err(|e| Failure::new("n3.forward_remote", e.to_string()))?;
    check(answer == "answer" && got.is_ok_and(|g| &g == b"hello\n"), "n3.forward_remote", || answer.clone())
}

/// Send `data`, get it back.
fn echo(at: SocketAddrV4, data: &[u8]) -> Outcome {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let (mut writer, copy) = (stream.try_clone()?, data.to_vec());
    let sending = std::thread::spawn(move || writer.write_all(&copy));
    let mut got = vec![0; data.len()];
    let read = stream.read_exact(&mut got);
    let sent = sending.join().is_ok_and(|r| r.is_ok());
    check(read.is_ok() && sent && got == data, "n3.forward_local", || format!("{read:?}, sent {sent}"))
}

// --- refusal --------------------------------------------------------------------------------------------------------

fn refused(m: &mut Machine) -> Outcome {
    let mut stranger = Ssh::new(&m.dir, m.ssh.at, "stranger")?;
    let denied = |ended: &crate::ssh::Ended| ended.status == 255 && ended.err.contains("Permission denied");
    let ended = stranger.run("echo in", LIMIT)?;
    check(denied(&ended), "n3.wrong_key", || format!("{ended:?}"))?;
    // The right key opens no other account, and no account without a password is open to one.
    for args in [
        ["-l", "user"],
        ["-l", "nobody"],
        ["-l", "nonesuch"],
        ["-o", "PreferredAuthentications=none,password,keyboard-interactive"],
    ] {
        let ended = m.ssh.start(&args, "echo in", Stdio::null())?.wait(LIMIT)?;
        check(denied(&ended), "n3.refused", || format!("{args:?}: {ended:?}"))?;
    }
    m.ssh.ok("true", "n3.right_key_after_wrong_ones", LIMIT)?;
    Ok(())
}

// --- endurance ------------------------------------------------------------------------------------------------------

fn endurance(m: &mut Machine) -> Outcome {
    let daemons = "ps | grep -c '[d]ropbear'";
    let memory = "awk '/^MemAvailable/ {print $2}' /proc/meminfo";
    m.ssh.ok("true", "n3.login", LIMIT)?;
    let before: i64 = number(&m.sh.ok(memory)?)?;
    let start = Instant::now();
    for n in 0..LOGINS {
        let ended = m.ssh.run("exit 7", LIMIT)?;
        check(ended.status == 7, "n3.in_a_row", || format!("number {n}: {ended:?}"))?;
    }
    let each = start.elapsed().as_millis() / u128::from(LOGINS);
    println!("     {LOGINS} logins in a row, {each} ms each");
    let held = half_open(m, daemons)?;
    m.ssh.ok("true", "n3.login_beside_half_open", LIMIT)?;
    drop(held);
    until_equal(m, daemons, "1", "n3.half_open_end")?;
    let after: i64 = number(&m.sh.ok(memory)?)?;
    check(before - after < 8 << 10, "n3.memory", || format!("{before} KiB free before, {after} after"))
}

/// Connections that say nothing, or nonsense, and stay.
fn half_open(m: &mut Machine, daemons: &str) -> Outcome<Vec<TcpStream>> {
    let mut held = Vec::new();
    for n in 0..HALF_OPEN {
        let mut stream = TcpStream::connect(m.ssh.at)?;
        if n % 4 == 0 {
            stream.write_all(b"SSH-2.0-")?;
        }
        held.push(stream);
    }
    // One for each and the listener, or as many as it admits: in any case more than a few.
    m.sh.ok(&format!("until [ $({daemons}) -gt 20 ]; do sleep 0.2; done"))?;
    Ok(held)
}

fn number(text: &str) -> Outcome<i64> {
    text.trim().parse().map_err(|_| Failure::new("harness.number", text))
}

/// Wait until `command` on the console prints `want`.
fn until_equal(m: &mut Machine, command: &str, want: &str, what: &'static str) -> Outcome {
    let start = Instant::now();
    loop {
        let got = m.sh.run(command, LIMIT)?.output;
        if got.trim() == want {
            return Ok(());
        }
        check(start.elapsed() < LIMIT, what, || format!("{command}: {got:?}, wanted {want:?}"))?;
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// A session's daemon is killed in the middle of its work; then the daemon that listens.
fn killed(m: &mut Machine) -> Outcome {
    let victim = m.ssh.start(&[], "echo pid:$PPID:; exec sleep 1000", Stdio::null())?;
    let mut other = m.ssh.start(&[], "cat", Stdio::piped())?;
    victim.expect(":\n", "n3.killed", LIMIT)?;
    let printed = victim.so_far();
    let pid = number(printed.split(':').nth(1).unwrap_or_default())?;
    m.sh.ok(&format!("kill -9 {pid}"))?;
    let ended = victim.wait(LIMIT)?;
    check(ended.status == 255, "n3.killed_session_ends", || format!("{ended:?}"))?;
    let mut input = other.child.stdin.take().ok_or_else(|| Failure::new("harness.pipe", "no input"))?;
    input.write_all(b"still here\n")?;
    other.expect("still here", "n3.others_go_on", LIMIT)?;
    m.ssh.ok("true", "n3.login_after_kill", LIMIT)?;
    // The listener: sessions go on, and process 1 starts another.
    m.sh.ok("kill -9 $(svc status sshd | sed -n 's/.* pid \\([0-9]*\\) .*/\\1/p')")?;
    m.ssh.wait_for_login(LIMIT)?;
    input.write_all(b"and still\n")?;
    other.expect("and still", "n3.sessions_outlive_listener", LIMIT)?;
    drop(input);
    let ended = other.wait(LIMIT)?;
    check(ended.status == 0, "n3.others_go_on", || format!("{ended:?}"))?;
    let status = m.sh.ok("svc status sshd")?;
    check(status.contains("1 restarts") && status.contains("signal 9"), "n3.reported", || status.clone())
}

// --- reboot ---------------------------------------------------------------------------------------------------------

/// The key is put on the data disk once; after a reboot without the kernel parameter it still opens, and the host is the
/// same.
fn reboot(c: &mut Context<'_>) -> Outcome {
    let disk = Disk::new(&c.dir, "data", 64 << 20)?;
    let ssh = Ssh::new(&c.dir, free_ports(1)?[0], "key")?;
    let key = ssh.parameter()?;
    let mut m = Machine::start(c, 1, &key, ssh, Some(&disk))?;
    let print = "dropbearkey -y -f /etc/dropbear/dropbear_ed25519_host_key | sed -n 's/^Fingerprint: //p'";
    let first = m.ssh.ok(print, "n3.host_key", LIMIT)?;
    m.ssh.ok("cp /root/.ssh/authorized_keys /data/ssh/ && echo kept >/data/file && sync", "n3.data", LIMIT)?;
    let ssh = m.ssh.clone();
    m.off()?;
    clean(&disk.image)?;
    let mut m = Machine::start(c, 4, "berth.nothing", ssh, Some(&disk))?;
    let second = m.ssh.ok(&format!("cat /data/file; {print}"), "n3.host_key", LIMIT)?;
    check(!first.is_empty() && second == format!("kept\n{first}"), "n3.host_key", || format!("{first}, {second}"))?;
    m.off()?;
    clean(&disk.image)
}

fn clean(image: &Path) -> Outcome {
    let out = std::process::Command::new("/usr/sbin/e2fsck").args(["-f", "-n"]).arg(image).output()?;
    check(out.status.success(), "n3.e2fsck", || String::from_utf8_lossy(&out.stdout).into_owned())
}
