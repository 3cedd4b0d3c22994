//! Process 1: its start, and what its end means.

use super::exec;
use super::thread::Thread;
use crate::arch::trap::TrapFrame;
use crate::machine;
use alloc::vec::Vec;
use boot_formats::cmdline::ForInit;

/// What is tried where the command line names nothing.
const CANDIDATES: [&[u8]; 4] = [b"/init", b"/sbin/init", b"/etc/init", b"/bin/sh"];

/// Makes process 1 and turns the calling thread, the boot CPU's, into its idle thread.
pub fn start() -> ! {
    super::register_with_mm();
    if let Err(e) = super::fork::first_process(become_init) {
        stop_errno("no memory for the first process", e);
    }
    crate::sched::idle::run()
}

/// Descriptors 0, 1 and 2. A machine without a console starts init without them.
fn open_console(me: &Thread) {
    let how = vfs::OpenHow { flags: abi::linux::O_RDWR | abi::linux::O_NOCTTY, mode: 0, resolve: 0 };
    match vfs::OpenFile::open(me.fs(), &vfs::Cred::ROOT, vfs::At::Cwd, b"/dev/console", how) {
        Ok(file) => {
            for _ in 0..3 {
                let _ = me.files().insert(file.clone(), false, 0, 3);
            }
        }
        Err(e) => crate::warn!("no /dev/console for init: {}", e.name()),
    }
}

/// What the command line has for init: arguments, and variables of its environment (`name=value`).
fn for_init() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut args, mut env) = (Vec::new(), Vec::from([b"HOME=/".to_vec(), b"TERM=linux".to_vec()]));
    for word in machine::cmdline().for_init() {
        match word {
            ForInit::Argument(word) => args.push(word.to_vec()),
            ForInit::Environment(name, value) => {
                let variable = [name, b"=", value].concat();
                env.retain(|old| !old.starts_with(&variable[..=name.len()]));
                env.push(variable);
            }
        }
    }
    (args, env)
}

fn become_init(frame: &mut TrapFrame) {
    let me = crate::sched::current();
    match crate::file::init_root() {
        Ok(fs) => drop(me.set_fs(Some(fs))),
        Err(e) => stop_errno("no root file system", e),
    }
    open_console(me);
    let (args, env) = for_init();
    let named = machine::option("init").filter(|v| !v.is_empty()).or_else(|| machine::option("rdinit"));
    if let Some(path) = named {
        match run(frame, path, &args, &env) {
            Ok(()) => return,
            Err(e) => crate::error!("init={}: {}", core::str::from_utf8(path).unwrap_or("?"), e.name()),
        }
    }
    for path in CANDIDATES {
        match run(frame, path, &args, &env) {
            Ok(()) => {
                crate::info!("running {} as process 1", core::str::from_utf8(path).unwrap_or("?"));
                return;
            }
            Err(abi::Errno::ENOENT) => {}
            Err(e) => crate::error!("{}: {}", core::str::from_utf8(path).unwrap_or("?"), e.name()),
        }
    }
    crate::start::stop("no init found in the initial root; pass init=PATH or a root with /init");
}

#[inline(never)]
fn run(frame: &mut TrapFrame, path: &[u8], args: &[Vec<u8>], env: &[Vec<u8>]) -> abi::Result<()> {
    let mut argv = crate::exec::Strings::new();
    argv.push(path)?;
    for a in args {
        argv.push(a)?;
    }
    let mut envp = crate::exec::Strings::new();
    for variable in env {
        envp.push(variable)?;
    }
    exec::exec(frame, exec::Target::Path(path), argv, envp)
}

/// Process 1 has exited: nothing can go on. Says so, and does what `panic=` asks for.
pub fn died(status: i32) -> ! {
    let (code, value) = super::exit::wait_code(status);
    let how = if code == super::signal::code::CLD_EXITED { "exited with status" } else { "was killed by signal" };
    panic!("init (process 1) {how} {value}: the system cannot go on");
}

fn stop_errno(why: &str, e: abi::Errno) -> ! {
    crate::error!("{why}: {}", e.name());
    crate::start::stop(why)
}
