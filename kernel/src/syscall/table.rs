//! The system calls as data: number, name, arguments, handler.
//!
//! Each family file declares its part with [`syscalls!`](crate::syscalls); [`TABLE`] collects the parts. From it come
//! the dispatch array (a bounds check, a load and a call, by the vectors), the trace decoder and `docs/syscalls.md`. Two
//! entries with one number do not compile.
//!
//! A call is one of three modes. *Plain* ones take typed arguments; not all of the user's registers are in the frame
//! then. *Frame* ones also take the frame, which is complete. *Short* ones run with interrupts masked, as the exception
//! left them: they touch no user memory, take no lock that others hold for long, and do not sleep.

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

/// A handler after argument decoding was put in front of it: takes the six argument registers and the frame, and returns
/// what X0 is to be.
pub type Handler = extern "C" fn(u64, u64, u64, u64, u64, u64, &mut TrapFrame) -> u64;

/// How the vectors call a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Mode {
    /// With interrupts on.
    Plain = 0,
    /// With interrupts on and all of the user's registers in the frame, from which they are loaded afterwards.
    Frame = 1,
    /// With interrupts masked.
    Short = 2,
}

/// A place of the dispatch array. The vectors know the layout.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    handler: Handler,
    mode: Mode,
}

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
    /// How.
    pub mode: Mode,
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
     frame { $($fnr:literal $fname:ident($($farg:ident: $fkind:ident),*) = $fh:path;)* }
     $(short { $($snr:literal $sname:ident() = $sh:path;)* })?) => {
        /// This family's part of the system-call table.
        pub const CALLS: &[$crate::syscall::table::Call] = &[
            $($crate::syscall_entry!($n $name Plain $h, [] $($arg: $kind),*),)*
            $($crate::syscall_entry!($fnr $fname Frame $fh, [with] $($farg: $fkind),*),)*
            $($($crate::syscall_entry!($snr $sname Short $sh, []),)*)?
        ];
    };
}

/// One entry of [`syscalls!`].
#[macro_export]
macro_rules! syscall_entry {
    ($n:literal $name:ident $mode:ident $h:path, [$($with:ident)?] $($arg:ident: $kind:ident),*) => {
        $crate::syscall::table::Call {
            number: $n,
            name: stringify!($name),
            args: &[$((stringify!($arg), $crate::syscall::table::Kind::$kind)),*],
            mode: $crate::syscall::table::Mode::$mode,
            handler: {
                #[allow(unused_variables, clippy::many_single_char_names, reason = "a call takes what it needs")]
                extern "C" fn raw(
                    a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, frame: &mut $crate::arch::trap::TrapFrame,
                ) -> u64 {
                    $crate::syscall::to_user($crate::syscall_decode!($h, [$($with frame)?] [a b c d e f] $($arg)*))
                }
                raw
            },
        }
    };
}

/// Calls a handler with as many of the registers as it has arguments.
#[macro_export]
macro_rules! syscall_decode {
    (@ $x:ident) => { $crate::syscall::table::Arg::from_reg($x) };
    ($h:path, [$($w:ident $g:ident)?] [$a:ident $b:ident $c:ident $d:ident $e:ident $f:ident]) => { $h($($g)?) };
    ($h:path, [$($w:ident $g:ident)?] [$a:ident $b:ident $c:ident $d:ident $e:ident $f:ident] $p:ident) => {
        $h($($g,)? $crate::syscall_decode!(@ $a))
    };
    ($h:path, [$($w:ident $g:ident)?] [$a:ident $b:ident $c:ident $d:ident $e:ident $f:ident] $p:ident $q:ident) => {
        $h($($g,)? $crate::syscall_decode!(@ $a), $crate::syscall_decode!(@ $b))
    };
    ($h:path, [$($w:ident $g:ident)?] [$a:ident $b:ident $c:ident $d:ident $e:ident $f:ident] $p:ident $q:ident $r:ident) => {
        $h($($g,)? $crate::syscall_decode!(@ $a), $crate::syscall_decode!(@ $b), $crate::syscall_decode!(@ $c))
    };
    ($h:path, [$($w:ident $g:ident)?] [$a:ident $b:ident $c:ident $d:ident $e:ident $f:ident]
     $p:ident $q:ident $r:ident $s:ident) => {
        $h($($g,)? $crate::syscall_decode!(@ $a), $crate::syscall_decode!(@ $b), $crate::syscall_decode!(@ $c),
            $crate::syscall_decode!(@ $d))
    };
    ($h:path, [$($w:ident $g:ident)?] [$a:ident $b:ident $c:ident $d:ident $e:ident $f:ident]
     $p:ident $q:ident $r:ident $s:ident $t:ident) => {
        $h($($g,)? $crate::syscall_decode!(@ $a), $crate::syscall_decode!(@ $b), $crate::syscall_decode!(@ $c),
            $crate::syscall_decode!(@ $d), $crate::syscall_decode!(@ $e))
    };
    ($h:path, [$($w:ident $g:ident)?] [$a:ident $b:ident $c:ident $d:ident $e:ident $f:ident]
     $p:ident $q:ident $r:ident $s:ident $t:ident $u:ident) => {
        $h($($g,)? $crate::syscall_decode!(@ $a), $crate::syscall_decode!(@ $b), $crate::syscall_decode!(@ $c),
            $crate::syscall_decode!(@ $d), $crate::syscall_decode!(@ $e), $crate::syscall_decode!(@ $f))
    };
}

/// The families.
pub const TABLE: &[&[Call]] = &[
    super::identity::CALLS,
    super::task::CALLS,
    super::signal::CALLS,
    super::futex::CALLS,
    super::time::CALLS,
    super::adjtime::CALLS,
    super::misc::CALLS,
    super::mm::CALLS,
    super::sched::CALLS,
    super::poll::CALLS,
    super::pidfd::CALLS,
    super::net::CALLS,
    super::splice::CALLS,
    crate::ipc::sem::CALLS,
    crate::ipc::msg::CALLS,
    crate::ipc::shm::CALLS,
    super::file::CALLS,
];

/// One more than the highest number that the dispatch array has a place for.
pub const LIMIT: usize = 1028;

#[expect(clippy::large_stack_arrays, reason = "made by the compiler")]
const fn build() -> [Entry; LIMIT] {
    let mut entries = [Entry { handler: super::unknown, mode: Mode::Plain }; LIMIT];
    let mut taken = [false; LIMIT];
    let mut i = 0;
    while i < TABLE.len() {
        let mut j = 0;
        while j < TABLE[i].len() {
            let call = &TABLE[i][j];
            assert!(!taken[call.number], "two calls have one number");
            taken[call.number] = true;
            entries[call.number] = Entry { handler: call.handler, mode: call.mode };
            j += 1;
        }
        i += 1;
    }
    // What the vectors take a number without a place for.
    assert!(!taken[UNKNOWN], "a call has the number that none may have");
    entries
}

/// A number that no call has.
pub const UNKNOWN: usize = LIMIT - 1;

/// The handlers by number.
pub static ENTRIES: [Entry; LIMIT] = build();

/// The handler of a number.
pub fn handler(number: u64) -> Handler {
    ENTRIES.get(number as usize).unwrap_or(&ENTRIES[UNKNOWN]).handler
}

/// The call with this number.
pub fn find(number: u64) -> Option<&'static Call> {
    TABLE.iter().flat_map(|part| part.iter()).find(|c| c.number as u64 == number)
}
