//! Gates over what programs use: hostile calls, files, terminals, exhaustion. Each is a test program that also
//! passes on Linux.

use super::programs::{checked, on_each};
use crate::error::{Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::shell::{COMMAND_LIMIT, Shell};

/// Every call with bad pointers, lengths and flags.
pub const HOSTILE: Gate = Gate {
    name: "hostile",
    title: "every system call with bad pointers, lengths and flags: documented errors, nothing lost",
    cases: hostile,
};
/// tmpfs, pipes, descriptors.
pub const FILES: Gate =
    Gate { name: "files", title: "the POSIX file surface on tmpfs, pipes, descriptors, /proc and /dev", cases: files };
/// Terminals and job control.
pub const TTY: Gate =
    Gate { name: "tty", title: "line discipline, ptys, job control in the shell on the serial console", cases: tty };
/// A fork bomb, a memory hog, full tables.
pub const EXHAUST: Gate = Gate {
    name: "exhaust",
    title: "fork bomb, memory hog, full descriptor tables: errors or the OOM killer, never the kernel",
    cases: exhaust,
};

fn hostile(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["hostile"], still_well);
    cases.push(checked(4, &["hostile"]));
    cases
}

fn files(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["fs", "attrs"], |_, _| Ok(()));
    cases.push(checked(4, &["fs"]));
    cases
}

fn exhaust(o: &Options) -> Vec<Case> {
    on_each(&o.smp, &["exhaust"], still_well)
}

/// After hostile programs the machine must still do ordinary work.
fn still_well(sh: &mut Shell, _: &Context<'_>) -> Outcome {
    let out = sh.ok(
        "ls -l /bin | wc -l; dd if=/dev/zero bs=64k count=64 2>/dev/null | md5sum; (echo b; echo a) | sort | head -1",
    )?;
    check(out.contains("b5cfa9d6c8febd618f91ac2843d50a1c") && out.ends_with("\na"), "machine.well", || out.clone())
}

fn tty(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["tty"], |_, _| Ok(()));
    for &smp in &o.smp {
        cases.push(Case::new(format!("the console's shell smp{smp}"), move |c| job_control(c, smp)));
    }
    cases
}

/// What a person does at the prompt: edit a line, interrupt, stop, background, foreground, end of file.
fn job_control(c: &mut Context<'_>, smp: u32) -> Outcome {
    let config = c.config(smp);
    let mut vm = c.start(&config)?;
    let prompt = crate::shell::PROMPT;
    vm.expect("tty.prompt", prompt, crate::shell::BOOT_LIMIT)?;
    // Each step: what is typed, what must come, in order.
    let steps: &[(&str, &[u8], &[&str])] = &[
        ("tty.erase", b"echo abX\x7fc\n", &["\nabc", prompt]),
        ("tty.kill", b"false nonsense\x15echo k$((40+2))\n", &["\nk42", prompt]),
        ("tty.interrupt", b"sleep 1000; echo not$((3+4))\n", &["\n"]),
        ("tty.interrupt", b"\x03", &[prompt]),
        ("tty.status", b"echo st$?\n", &["\nst130", prompt]),
        ("tty.stop", b"sleep 1000\n", &["\n"]),
        ("tty.stop", b"\x1a", &["Stopped", prompt]),
        ("tty.jobs", b"jobs; echo j$((1+1))\n", &["sleep 1000", "\nj2", prompt]),
        ("tty.background", b"bg; echo b$((1+1))\n", &["\nb2", prompt]),
        ("tty.running", b"jobs; echo r$((1+1))\n", &["Running", "\nr2", prompt]),
        ("tty.foreground", b"fg\n", &["sleep 1000"]),
        ("tty.foreground", b"\x03", &[prompt]),
        ("tty.heredoc", b"cat >/tmp/typed; echo c$((1+1))\n", &["\n"]),
        ("tty.eof", b"one\ntwo\n\x04", &["\nc2", prompt]),
        ("tty.typed", b"wc -c </tmp/typed\n", &["\n8", prompt]),
        ("tty.background", b"(sleep 0; echo done-in-$((1+1)) ) & wait; echo w$((1+1))\n", &["done-in-2", "w2", prompt]),
        ("tty.pipeline", b"yes | head -100000 | tail -1; echo p$((1+1))\n", &["\ny", "\np2", prompt]),
        ("tty.pipeline", b"yes >/dev/null | cat | sleep 1000\n", &["\n"]),
        ("tty.pipeline", b"\x03", &[prompt]),
        ("tty.gone", b"sleep 0; ps | grep -c '[s]leep 1000'\n", &["\n0", prompt]),
    ];
    for (what, keys, wanted) in steps {
        if keys.len() == 1 || *what == "tty.eof" {
            // A key for a running program: let the program start. It shows by the shell's echo of the line, and by being
            // the terminal's foreground group, which nothing prints: so a moment's patience.
            std::thread::sleep(std::time::Duration::from_millis(700));
        }
        vm.send(keys)?;
        for text in *wanted {
            vm.expect(what, text, COMMAND_LIMIT)?;
        }
    }
    check(!vm.console.all().contains("not7"), "tty.interrupt", || "an interrupted list went on".into())?;
    // The end of the login shell brings a new one.
    vm.send(b"exit\n")?;
    vm.expect("tty.respawn", prompt, COMMAND_LIMIT)?;
    vm.take_shell()?.poweroff()
}
