//! The trace decoder: a traced call as one line in the log, in the manner of strace.
//!
//! Calls that sleep are shown when they return; exit and exec when they are made.

use super::table::{self, Kind};
use crate::arch::trap::TrapFrame;
use crate::arch::uaccess::{UserAddr, strncpy_from_user};
use abi::Errno;
use arrayvec::ArrayString;
use core::fmt::Write;

type Line = ArrayString<320>;

fn user_text(line: &mut Line, addr: u64) {
    let mut buf = [0u8; 64];
    if addr == 0 {
        let _ = line.write_str("NULL");
        return;
    }
    match strncpy_from_user(&mut buf, UserAddr(addr)) {
        Ok(n) => {
            let cut = n == buf.len();
            let _ = write!(line, "\"{}\"{}", buf[..n].escape_ascii(), if cut { "..." } else { "" });
        }
        Err(_) => {
            let _ = write!(line, "{addr:#x}!");
        }
    }
}

fn argument(line: &mut Line, kind: Kind, x: u64) {
    let _ = match kind {
        Kind::Path | Kind::Str => {
            user_text(line, x);
            Ok(())
        }
        Kind::Fd if x as u32 == (-100_i32) as u32 => line.write_str("AT_FDCWD"),
        Kind::Fd | Kind::Int | Kind::Pid | Kind::Sig => write!(line, "{}", x as i32),
        Kind::Size => write!(line, "{x}"),
        Kind::Off => write!(line, "{}", x as i64),
        Kind::Mode => write!(line, "{x:#o}"),
        Kind::Hex => write!(line, "{x:#x}"),
        Kind::Ptr if x == 0 => line.write_str("NULL"),
        Kind::Ptr => write!(line, "{x:#x}"),
    };
}

fn call_text(frame: &TrapFrame) -> Line {
    let mut line = Line::new();
    match table::find(frame.syscallno) {
        None => {
            let _ =
                write!(line, "syscall_{}({:#x}, {:#x}, {:#x})", frame.syscallno, frame.x[0], frame.x[1], frame.x[2]);
        }
        Some(call) => {
            let _ = write!(line, "{}(", call.name);
            for (i, &(_, kind)) in call.args.iter().enumerate() {
                if i > 0 {
                    let _ = line.write_str(", ");
                }
                argument(&mut line, kind, frame.x[i]);
            }
            let _ = line.write_str(")");
        }
    }
    line
}

const SHOWN_AT_ENTRY: [u64; 5] = [93, 94, 139, 221, 281];

/// Runs the call that the frame asks for, logs it, and leaves its result in the frame. The frame is complete; interrupts
/// are on, also for short calls.
pub extern "C" fn traced(frame: &mut TrapFrame) {
    let me = crate::sched::current();
    let text = call_text(frame);
    let number = frame.syscallno;
    if SHOWN_AT_ENTRY.contains(&number) {
        crate::info!("[{} {}] {text}", me.tid(), me.name_str());
    }
    let [a, b, c, d, e, f, ..] = frame.x;
    let result = table::handler(number)(a, b, c, d, e, f, frame);
    frame.x[0] = result;
    let who = (me.tid(), me.name_str());
    match Errno::from_raw((result as i64).wrapping_neg() as i32) {
        Some(e) if result as i64 == e.to_return() => {
            crate::info!("[{} {}] {text} = {} {}", who.0, who.1, result as i64, e.name());
        }
        _ if SHOWN_AT_ENTRY.contains(&number) => {}
        _ if result < 100_000 => crate::info!("[{} {}] {text} = {result}", who.0, who.1),
        _ => crate::info!("[{} {}] {text} = {result:#x}", who.0, who.1),
    }
}
