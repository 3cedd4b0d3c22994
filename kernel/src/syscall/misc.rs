//! Everything about the system and the process that fits nowhere else.

use super::{SysResult, efault};
use crate::arch::uaccess::{
    UserAddr, copy_from_user, copy_to_user, put_user_u32, read_user, strncpy_from_user, write_user,
};
use crate::sched::current;
use crate::task::cred::{FULL, cap};
use crate::task::ids::Pid;
use crate::task::process::Usage;
use crate::task::tree::TREE;
use crate::task::{find_thread, signal};
use abi::{Errno, Result};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use sync::{LockClass, SpinLock};
use zerocopy::{FromBytes, Immutable, IntoBytes};

crate::syscalls! {
    plain {
        90 capget(header: Ptr, data: Ptr) = capget;
        91 capset(header: Ptr, data: Ptr) = capset;
        92 personality(persona: Hex) = personality;
        116 syslog(kind: Int, buf: Ptr, len: Int) = syslog;
        142 reboot(magic: Hex, magic2: Hex, command: Hex, arg: Ptr) = reboot;
        153 times(buf: Ptr) = times;
        160 uname(buf: Ptr) = uname;
        161 sethostname(name: Str, len: Size) = sethostname;
        162 setdomainname(name: Str, len: Size) = setdomainname;
        165 getrusage(who: Int, usage: Ptr) = getrusage;
        167 prctl(option: Int, a: Hex, b: Hex, c: Hex, d: Hex) = prctl;
        168 getcpu(cpu: Ptr, node: Ptr, cache: Ptr) = getcpu;
        179 sysinfo(info: Ptr) = sysinfo;
        277 seccomp(op: Int, flags: Hex, args: Ptr) = seccomp;
        278 getrandom(buf: Ptr, len: Size, flags: Hex) = getrandom;
    }
    frame {}
}

/// `uname -r`: a number that programs compare, then who we are.
pub const RELEASE: &str = "6.6.0-berth";
/// `uname -v`.
pub const VERSION: &str = concat!("#1 SMP PREEMPT Berth ", env!("CARGO_PKG_VERSION"));
const FIELD: usize = 65;

static NAMES_CLASS: LockClass = LockClass::new("host name", sync::rank::SPIN + 62);

struct Names {
    host: [u8; FIELD],
    domain: [u8; FIELD],
}

static NAMES: SpinLock<Names> = SpinLock::new(&NAMES_CLASS, Names { host: field(b"berth"), domain: field(b"(none)") });

const fn field(s: &[u8]) -> [u8; FIELD] {
    let mut out = [0; FIELD];
    let mut i = 0;
    while i < s.len() && i < FIELD - 1 {
        out[i] = s[i];
        i += 1;
    }
    out
}

fn uname(buf: UserAddr) -> SysResult {
    let mut out = [0u8; FIELD * 6];
    {
        let names = NAMES.lock();
        let parts = [
            field(b"Linux"),
            names.host,
            field(RELEASE.as_bytes()),
            field(VERSION.as_bytes()),
            field(b"aarch64"),
            names.domain,
        ];
        for (to, from) in out.chunks_exact_mut(FIELD).zip(parts) {
            to.copy_from_slice(&from);
        }
    }
    copy_to_user(buf, &out).map_err(efault)?;
    Ok(0)
}

/// The host's name.
pub fn host_name() -> Vec<u8> {
    NAMES.lock().host.iter().copied().take_while(|&b| b != 0).collect()
}

/// The NIS domain's name.
pub fn domain_name() -> Vec<u8> {
    NAMES.lock().domain.iter().copied().take_while(|&b| b != 0).collect()
}

fn read_name(addr: UserAddr, len: usize) -> Result<[u8; FIELD]> {
    current().require(cap::SYS_ADMIN)?;
    if len >= FIELD {
        return Err(Errno::EINVAL);
    }
    let mut name = [0u8; FIELD];
    copy_from_user(&mut name[..len], addr).map_err(efault)?;
    Ok(name)
}

fn sethostname(name: UserAddr, len: usize) -> SysResult {
    NAMES.lock().host = read_name(name, len)?;
    Ok(0)
}

fn setdomainname(name: UserAddr, len: usize) -> SysResult {
    NAMES.lock().domain = read_name(name, len)?;
    Ok(0)
}

/// `struct rusage`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct Rusage {
    user: [i64; 2],
    system: [i64; 2],
    max_rss: i64,
    unused: [i64; 3],
    minor_faults: i64,
    rest: [i64; 9],
}

/// `struct rusage` for what was used.
pub fn rusage(u: Usage) -> Rusage {
    let time = |ns: u64| [(ns / 1_000_000_000) as i64, (ns / 1000 % 1_000_000) as i64];
    Rusage { user: time(u.user_ns), system: time(u.system_ns), minor_faults: u.faults as i64, ..Rusage::default() }
}

fn usage_of(times: (u64, u64), faults: u64) -> Rusage {
    rusage(Usage { user_ns: times.0, system_ns: times.1, faults })
}

fn getrusage(who: i32, usage: UserAddr) -> SysResult {
    let me = current();
    let p = &me.process;
    let mut u = match who {
        0 => usage_of(p.cpu_times(), p.faults()),
        -1 => rusage(p.times.children()),
        1 => usage_of(crate::sched::account::thread_times(me), me.faults.load(Ordering::Relaxed)),
        _ => return Err(Errno::EINVAL),
    };
    if who != -1 {
        u.max_rss = (me.mm().peak_rss() * 4) as i64;
    }
    write_user(usage, &u).map_err(efault)?;
    Ok(0)
}

/// Nanoseconds in a clock tick of `times` (100 Hz).
const TICK_NS: u64 = 10_000_000;

fn times(buf: UserAddr) -> SysResult {
    let p = &current().process;
    if !buf.is_null() {
        let (user, system) = p.cpu_times();
        let c = p.times.children();
        let values = [user, system, c.user_ns, c.system_ns].map(|ns| ns / TICK_NS);
        write_user(buf, &values).map_err(efault)?;
    }
    Ok((crate::arch::time::now_ns() / TICK_NS) as usize)
}

/// `struct sysinfo`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct SysInfo {
    uptime: i64,
    loads: [u64; 3],
    total: u64,
    free: u64,
    shared: u64,
    buffers: u64,
    swap: [u64; 2],
    procs: u16,
    pad: [u16; 3],
    high: [u64; 2],
    unit: u32,
    pad2: u32,
}

fn sysinfo(info: UserAddr) -> SysResult {
    let m = crate::mm::info();
    let s = SysInfo {
        uptime: (crate::arch::time::now_ns() / 1_000_000_000) as i64,
        loads: crate::sched::account::load_average_scaled(),
        total: m.total as u64 * 4096,
        free: m.free as u64 * 4096,
        shared: 0,
        buffers: 0,
        swap: [0; 2],
        procs: TREE.lock().thread_count().min(u16::MAX as usize) as u16,
        pad: [0; 3],
        high: [0; 2],
        unit: 1,
        pad2: 0,
    };
    write_user(info, &s).map_err(efault)?;
    Ok(0)
}

fn getrandom(buf: UserAddr, len: usize, flags: u32) -> SysResult {
    if flags & !7 != 0 || flags & 6 == 6 {
        return Err(Errno::EINVAL);
    }
    let len = len.min(i32::MAX as usize);
    let mut chunk = [0u8; 256];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(chunk.len());
        crate::random::fill(&mut chunk[..n]);
        if copy_to_user(buf.offset(done as u64), &chunk[..n]).is_err() {
            return if done > 0 { Ok(done) } else { Err(Errno::EFAULT) };
        }
        done += n;
        if done < len && current().arch.flags.load(Ordering::Relaxed) & crate::arch::context::SIGNAL_PENDING != 0 {
            break;
        }
    }
    chunk.fill(0);
    Ok(done)
}

fn getcpu(cpu: UserAddr, node: UserAddr, _cache: u64) -> SysResult {
    if !cpu.is_null() {
        put_user_u32(cpu, crate::arch::percpu::id() as u32).map_err(efault)?;
    }
    if !node.is_null() {
        put_user_u32(node, 0).map_err(efault)?;
    }
    Ok(0)
}

fn seccomp(_op: u32, _flags: u32, _args: u64) -> SysResult {
    Err(Errno::EINVAL)
}

fn personality(persona: u32) -> SysResult {
    let p = &current().process.personality;
    let old = p.load(Ordering::Relaxed);
    if persona != u32::MAX {
        p.store(persona, Ordering::Relaxed);
    }
    Ok(old as usize)
}

/// Header of `capget`: version and thread.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct CapHeader {
    version: u32,
    pid: i32,
}

const CAP_VERSION_3: u32 = 0x2008_0522;
const CAP_VERSION_2: u32 = 0x2007_1026;

/// Checks the header; tells the version that we speak where it is another.
fn cap_header(addr: UserAddr) -> Result<CapHeader> {
    let h: CapHeader = read_user(addr).map_err(efault)?;
    if h.version != CAP_VERSION_3 && h.version != CAP_VERSION_2 {
        put_user_u32(addr, CAP_VERSION_3).map_err(efault)?;
        return Err(Errno::EINVAL);
    }
    Ok(h)
}

fn capget(header: UserAddr, data: UserAddr) -> SysResult {
    let h = match cap_header(header) {
        Err(Errno::EINVAL) if data.is_null() => return Ok(0),
        h => h?,
    };
    let me = current();
    let creds = match Pid::from_arg(h.pid) {
        None if h.pid < 0 => return Err(Errno::EINVAL),
        None => me.creds().clone(),
        Some(p) if p == me.tid() => me.creds().clone(),
        Some(p) => find_thread(p).ok_or(Errno::ESRCH)?.creds_of(),
    };
    let (e, p, i) = (creds.effective, creds.permitted, creds.inheritable);
    let words = [e as u32, p as u32, i as u32, (e >> 32) as u32, (p >> 32) as u32, (i >> 32) as u32];
    write_user(data, &words).map_err(efault)?;
    Ok(0)
}

fn capset(header: UserAddr, data: UserAddr) -> SysResult {
    let h = cap_header(header)?;
    let me = current();
    if h.pid != 0 && h.pid as u32 != me.tid().0 {
        return Err(Errno::EPERM);
    }
    let w: [u32; 6] = read_user(data).map_err(efault)?;
    let wide = |low: u32, high: u32| (low as u64 | (high as u64) << 32) & FULL;
    let (effective, permitted, inheritable) = (wide(w[0], w[3]), wide(w[1], w[4]), wide(w[2], w[5]));
    let mut c = (**me.creds()).clone();
    if permitted & !c.permitted != 0 || effective & !permitted != 0 {
        return Err(Errno::EPERM);
    }
    c.effective = effective;
    c.permitted = permitted;
    c.inheritable = inheritable;
    me.set_creds(c);
    Ok(0)
}

fn reboot(magic: u32, magic2: u32, command: u32, _arg: u64) -> SysResult {
    const MAGIC: u32 = 0xfee1_dead;
    const MAGIC2: [u32; 4] = [672_274_793, 85_072_278, 369_367_448, 537_993_216];
    current().require(cap::SYS_BOOT)?;
    if magic != MAGIC || !MAGIC2.contains(&magic2) {
        return Err(Errno::EINVAL);
    }
    match command {
        0x0123_4567 => {
            let _ = vfs::mount::sync_all();
            crate::notice!("restarting");
            crate::arch::psci::system_reset();
            Err(Errno::EIO)
        }
        0x4321_fedc | 0xcdef_0123 => {
            let _ = vfs::mount::sync_all();
            crate::notice!("powering off");
            crate::arch::psci::system_off();
            Err(Errno::EIO)
        }
        // Ctrl-Alt-Del goes nowhere here.
        0 | 0x89ab_cdef => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

fn syslog(kind: i32, buf: UserAddr, len: i32) -> SysResult {
    const SIZE: usize = 64 * 1024;
    if kind != 3 && kind != 10 {
        current().require(cap::SYSLOG)?;
    }
    match kind {
        // open, close, clear, console off, console on
        0 | 1 | 5 | 6 | 7 => Ok(0),
        2..=4 => {
            let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?.min(SIZE);
            let mut all = alloc::vec![0u8; SIZE];
            let (_, n) = crate::log::read(0, &mut all);
            let from = n.saturating_sub(len);
            copy_to_user(buf, &all[from..n]).map_err(efault)?;
            Ok(n - from)
        }
        8 if (1..=8).contains(&len) => {
            crate::log::set_console_level(len as u8);
            Ok(0)
        }
        9 => Ok(0),
        10 => Ok(SIZE),
        _ => Err(Errno::EINVAL),
    }
}

/// Options of prctl(2).
mod pr {
    pub const SET_PDEATHSIG: i32 = 1;
    pub const GET_PDEATHSIG: i32 = 2;
    pub const GET_DUMPABLE: i32 = 3;
    pub const SET_DUMPABLE: i32 = 4;
    pub const GET_KEEPCAPS: i32 = 7;
    pub const SET_KEEPCAPS: i32 = 8;
    pub const SET_NAME: i32 = 15;
    pub const GET_NAME: i32 = 16;
    pub const GET_SECCOMP: i32 = 21;
    pub const CAPBSET_READ: i32 = 23;
    pub const CAPBSET_DROP: i32 = 24;
    pub const SET_TIMERSLACK: i32 = 29;
    pub const GET_TIMERSLACK: i32 = 30;
    pub const SET_CHILD_SUBREAPER: i32 = 36;
    pub const GET_CHILD_SUBREAPER: i32 = 37;
    pub const SET_NO_NEW_PRIVS: i32 = 38;
    pub const GET_NO_NEW_PRIVS: i32 = 39;
    pub const GET_TID_ADDRESS: i32 = 40;
    pub const SET_THP_DISABLE: i32 = 41;
    pub const GET_THP_DISABLE: i32 = 42;
}

fn prctl(option: i32, a: u64, b: u64, c: u64, d: u64) -> SysResult {
    let me = current();
    match option {
        pr::SET_PDEATHSIG if a <= signal::SIGMAX as u64 => {
            me.set_pdeathsig(a as u32);
            Ok(0)
        }
        pr::GET_PDEATHSIG => {
            put_user_u32(UserAddr(a), me.pdeathsig()).map_err(efault)?;
            Ok(0)
        }
        pr::GET_DUMPABLE => Ok(me.process.dumpable.load(Ordering::Relaxed) as usize),
        pr::SET_DUMPABLE if a <= 1 => {
            me.process.dumpable.store(a as u32, Ordering::Relaxed);
            Ok(0)
        }
        pr::SET_NAME => {
            let mut name = [0u8; 16];
            let n = strncpy_from_user(&mut name[..15], UserAddr(a)).map_err(efault)?;
            me.set_name(&name[..n]);
            Ok(0)
        }
        pr::GET_NAME => {
            let mut out = [0u8; 16];
            let name = me.name();
            out[..name.len()].copy_from_slice(&name);
            copy_to_user(UserAddr(a), &out).map_err(efault)?;
            Ok(0)
        }
        pr::GET_SECCOMP => Ok(0),
        pr::SET_TIMERSLACK => {
            me.sched.slack_ns.store(if a == 0 { u64::MAX } else { a }, Ordering::Relaxed);
            me.timer_slack.store(if a == 0 { 50_000 } else { a }, Ordering::Relaxed);
            Ok(0)
        }
        pr::GET_TIMERSLACK => Ok(me.timer_slack.load(Ordering::Relaxed) as usize),
        pr::SET_CHILD_SUBREAPER => {
            me.process.subreaper.store(a != 0, Ordering::Relaxed);
            Ok(0)
        }
        pr::GET_CHILD_SUBREAPER => {
            put_user_u32(UserAddr(a), u32::from(me.process.subreaper.load(Ordering::Relaxed))).map_err(efault)?;
            Ok(0)
        }
        pr::SET_NO_NEW_PRIVS if a == 1 && b | c | d == 0 => {
            me.set_no_new_privs();
            Ok(0)
        }
        pr::GET_NO_NEW_PRIVS if a | b | c | d == 0 => Ok(usize::from(me.no_new_privs())),
        pr::GET_TID_ADDRESS => {
            write_user(UserAddr(a), &me.clear_child_tid()).map_err(efault)?;
            Ok(0)
        }
        pr::SET_THP_DISABLE => Ok(0),
        pr::GET_THP_DISABLE => Ok(1),
        _ => prctl_caps(option, a),
    }
}

fn prctl_caps(option: i32, a: u64) -> SysResult {
    let me = current();
    let known = a <= cap::LAST as u64;
    match option {
        pr::GET_KEEPCAPS => Ok(usize::from(me.creds().keep_caps)),
        pr::SET_KEEPCAPS if a <= 1 => {
            let mut c = (**me.creds()).clone();
            c.keep_caps = a == 1;
            me.set_creds(c);
            Ok(0)
        }
        pr::CAPBSET_READ if known => Ok(usize::from(me.creds().bounding & 1 << a != 0)),
        pr::CAPBSET_DROP if known => {
            me.require(cap::SETPCAP)?;
            let mut c = (**me.creds()).clone();
            c.bounding &= !(1 << a);
            me.set_creds(c);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}
