//! The system calls as data: number, name, arguments, handler.
//!
//! Each family file declares its part with [`syscalls!`](crate::syscalls); [`TABLE`] collects the parts. From it come
//! the dispatch array (a bounds check, a load and a call), the trace decoder and `docs/syscalls.md`. Two entries with
//! one number do not compile.

use super::SysResult;
use crate::arch::trap::TrapFrame;
use crate::arch::uaccess::UserAddr;

/// What an argument is, for the tracer and the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file descriptor (or `AT_FDCWD`).
    Fd,
    /// A path in user memory.
    Path,
    /// Another string in user memory.
    Str,
    /// Any other user address.
    Ptr,
    /// A signed number.
    Int,
    /// Flags.
    Hex,
    /// A length.
    Size,
    /// A file offset.
    Off,
    /// A file mode, in octal.
    Mode,
    /// A process, thread or group number.
    Pid,
    /// A signal number.
    Sig,
}

/// A handler after argument decoding was put in front of it.
pub type Handler = fn(&mut TrapFrame) -> SysResult;

/// One system call.
#[derive(Debug)]
pub struct Call {
    /// Its number.
    pub number: usize,
    /// Its name.
    pub name: &'static str,
    /// Its arguments in register order.
    pub args: &'static [(&'static str, Kind)],
    /// What runs.
    pub handler: Handler,
}

/// A type that an argument register converts to.
pub trait Arg {
    /// The register's value as this type; the bits that the type does not have are ignored, as in C.
    fn from_reg(x: u64) -> Self;
}

macro_rules! arg_types {
    ($($T:ty)*) => { $(impl Arg for $T {
        #[inline(always)]
        fn from_reg(x: u64) -> Self {
            x as $T
        }
    })* };
}
arg_types!(i32 u32 i64 u64 usize);

impl Arg for UserAddr {
    #[inline(always)]
    fn from_reg(x: u64) -> Self {
        UserAddr(x)
    }
}

/// Declares a family's calls as `pub const CALLS`; see [`table`](crate::syscall::table).
#[macro_export]
macro_rules! syscalls {
    (plain { $($n:literal $name:ident($($arg:ident: $kind:ident),*) = $h:path;)* }
     frame { $($fnr:literal $fname:ident($($farg:ident: $fkind:ident),*) = $fh:path;)* }) => {
        /// This family's part of the system-call table.
        pub const CALLS: &[$crate::syscall::table::Call] = &[
            $($crate::syscall::table::Call {
                number: $n,
                name: stringify!($name),
                args: &[$((stringify!($arg), $crate::syscall::table::Kind::$kind)),*],
                handler: |f| $crate::syscall_decode!(f, $h, [] $($arg)*),
            },)*
            $($crate::syscall::table::Call {
                number: $fnr,
                name: stringify!($fname),
                args: &[$((stringify!($farg), $crate::syscall::table::Kind::$fkind)),*],
                handler: |f| $crate::syscall_decode!(f, $fh, [f] $($farg)*),
            },)*
        ];
    };
}

/// Calls a handler with its arguments from the frame.
#[macro_export]
macro_rules! syscall_decode {
    (@ $f:ident $i:literal) => { $crate::syscall::table::Arg::from_reg($f.x[$i]) };
    ($f:ident, $h:path, []) => {{ let _ = $f; $h() }};
    ($f:ident, $h:path, [] $a:ident) => { $h($crate::syscall_decode!(@ $f 0)) };
    ($f:ident, $h:path, [] $a:ident $b:ident) => {
        $h($crate::syscall_decode!(@ $f 0), $crate::syscall_decode!(@ $f 1))
    };
    ($f:ident, $h:path, [] $a:ident $b:ident $c:ident) => {
        $h($crate::syscall_decode!(@ $f 0), $crate::syscall_decode!(@ $f 1), $crate::syscall_decode!(@ $f 2))
    };
    ($f:ident, $h:path, [] $a:ident $b:ident $c:ident $d:ident) => {
        $h($crate::syscall_decode!(@ $f 0), $crate::syscall_decode!(@ $f 1), $crate::syscall_decode!(@ $f 2),
            $crate::syscall_decode!(@ $f 3))
    };
    ($f:ident, $h:path, [] $a:ident $b:ident $c:ident $d:ident $e:ident) => {
        $h($crate::syscall_decode!(@ $f 0), $crate::syscall_decode!(@ $f 1), $crate::syscall_decode!(@ $f 2),
            $crate::syscall_decode!(@ $f 3), $crate::syscall_decode!(@ $f 4))
    };
    ($f:ident, $h:path, [] $a:ident $b:ident $c:ident $d:ident $e:ident $g:ident) => {
        $h($crate::syscall_decode!(@ $f 0), $crate::syscall_decode!(@ $f 1), $crate::syscall_decode!(@ $f 2),
            $crate::syscall_decode!(@ $f 3), $crate::syscall_decode!(@ $f 4), $crate::syscall_decode!(@ $f 5))
    };
    ($f:ident, $h:path, [$g:ident] $($rest:ident)*) => {{
        let x = $f.x;
        let args = [x[0], x[1], x[2], x[3], x[4], x[5]];
        $crate::syscall_decode_frame!($f, args, $h, $($rest)*)
    }};
}

/// As [`syscall_decode!`] for handlers that also take the frame.
#[macro_export]
macro_rules! syscall_decode_frame {
    (@ $x:ident $i:literal) => { $crate::syscall::table::Arg::from_reg($x[$i]) };
    ($f:ident, $x:ident, $h:path,) => {{ let _ = $x; $h($f) }};
    ($f:ident, $x:ident, $h:path, $a:ident) => { $h($f, $crate::syscall_decode_frame!(@ $x 0)) };
    ($f:ident, $x:ident, $h:path, $a:ident $b:ident) => {
        $h($f, $crate::syscall_decode_frame!(@ $x 0), $crate::syscall_decode_frame!(@ $x 1))
    };
    ($f:ident, $x:ident, $h:path, $a:ident $b:ident $c:ident) => {
        $h($f, $crate::syscall_decode_frame!(@ $x 0), $crate::syscall_decode_frame!(@ $x 1),
            $crate::syscall_decode_frame!(@ $x 2))
    };
    ($f:ident, $x:ident, $h:path, $a:ident $b:ident $c:ident $d:ident) => {
        $h($f, $crate::syscall_decode_frame!(@ $x 0), $crate::syscall_decode_frame!(@ $x 1),
            $crate::syscall_decode_frame!(@ $x 2), $crate::syscall_decode_frame!(@ $x 3))
    };
    ($f:ident, $x:ident, $h:path, $a:ident $b:ident $c:ident $d:ident $e:ident) => {
        $h($f, $crate::syscall_decode_frame!(@ $x 0), $crate::syscall_decode_frame!(@ $x 1),
            $crate::syscall_decode_frame!(@ $x 2), $crate::syscall_decode_frame!(@ $x 3),
            $crate::syscall_decode_frame!(@ $x 4))
    };
}

/// The families.
pub const TABLE: &[&[Call]] = &[
    super::task::CALLS,
    super::signal::CALLS,
    super::futex::CALLS,
    super::time::CALLS,
    super::misc::CALLS,
    super::mm::CALLS,
    super::sched::CALLS,
    super::poll::CALLS,
    super::pidfd::CALLS,
    super::net::CALLS,
    super::file::CALLS,
];

/// One more than the highest number that the dispatch array has a place for.
pub const LIMIT: usize = 1028;

const fn build() -> [Handler; LIMIT] {
    let mut handlers: [Handler; LIMIT] = [super::unknown; LIMIT];
    let mut taken = [false; LIMIT];
    let mut i = 0;
    while i < TABLE.len() {
        let mut j = 0;
        while j < TABLE[i].len() {
            let call = &TABLE[i][j];
            assert!(!taken[call.number], "two calls have one number");
            taken[call.number] = true;
            handlers[call.number] = call.handler;
            j += 1;
        }
        i += 1;
    }
    handlers
}

/// The handlers by number.
pub static HANDLERS: [Handler; LIMIT] = build();

/// The call with this number.
pub fn find(number: u64) -> Option<&'static Call> {
    TABLE.iter().flat_map(|part| part.iter()).find(|c| c.number as u64 == number)
}
