//! What a signal says: `siginfo_t` in its AArch64 layout.

use crate::task::ids::Pid;

/// Size of `siginfo_t`.
pub const SIZE: usize = 128;

/// `si_code` values.
pub mod code {
    #![allow(missing_docs, dead_code)] // the list is whole
    pub const USER: i32 = 0;
    pub const KERNEL: i32 = 0x80;
    pub const QUEUE: i32 = -1;
    pub const TIMER: i32 = -2;
    pub const TKILL: i32 = -6;
    pub const CLD_EXITED: i32 = 1;
    pub const CLD_KILLED: i32 = 2;
    pub const CLD_DUMPED: i32 = 3;
    pub const CLD_STOPPED: i32 = 5;
    pub const CLD_CONTINUED: i32 = 6;
}

/// The part of `siginfo_t` that depends on the signal's origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Nothing more.
    None,
    /// From a process, perhaps with a value.
    Sender {
        /// Who sent it.
        pid: Pid,
        /// The sender's real user.
        uid: u32,
        /// `si_value`.
        value: u64,
    },
    /// A child changed state.
    Child {
        /// The child.
        pid: Pid,
        /// Its real user.
        uid: u32,
        /// Exit code or signal.
        status: i32,
        /// Its CPU time, in clock ticks.
        ticks: u64,
    },
    /// A fault at an address.
    Fault {
        /// `si_addr`.
        addr: u64,
    },
    /// A POSIX timer expired.
    Timer {
        /// Its number.
        id: i32,
        /// Expirations that could not be signalled one by one.
        overrun: i32,
        /// `si_value`.
        value: u64,
    },
}

/// A signal with what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigInfo {
    /// The signal, 1 to 64.
    pub signo: u32,
    /// `si_errno`.
    pub errno: i32,
    /// `si_code`.
    pub code: i32,
    /// The rest.
    pub detail: Detail,
}

impl SigInfo {
    /// From the kernel itself.
    pub fn kernel(signo: u32) -> Self {
        SigInfo { signo, errno: 0, code: code::KERNEL, detail: Detail::None }
    }

    /// As `kill` by the calling thread's process sends it.
    pub fn user(signo: u32, code: i32) -> Self {
        let me = crate::sched::current();
        let detail = Detail::Sender { pid: me.process.pid, uid: me.creds().uid, value: 0 };
        SigInfo { signo, errno: 0, code, detail }
    }

    /// A fault.
    pub fn fault(signo: u32, code: i32, addr: u64) -> Self {
        SigInfo { signo, errno: 0, code, detail: Detail::Fault { addr } }
    }

    /// The bytes that user space sees.
    pub fn to_bytes(self) -> [u8; SIZE] {
        let mut b = [0; SIZE];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.signo.to_le_bytes());
        put(4, &self.errno.to_le_bytes());
        put(8, &self.code.to_le_bytes());
        match self.detail {
            Detail::None => {}
            Detail::Sender { pid, uid, value } => {
                put(16, &pid.0.to_le_bytes());
                put(20, &uid.to_le_bytes());
                put(24, &value.to_le_bytes());
            }
            Detail::Child { pid, uid, status, ticks } => {
                put(16, &pid.0.to_le_bytes());
                put(20, &uid.to_le_bytes());
                put(24, &status.to_le_bytes());
                put(32, &ticks.to_le_bytes());
            }
            Detail::Fault { addr } => put(16, &addr.to_le_bytes()),
            Detail::Timer { id, overrun, value } => {
                put(16, &id.to_le_bytes());
                put(20, &overrun.to_le_bytes());
                put(24, &value.to_le_bytes());
            }
        }
        b
    }

    /// What a program queues with `rt_sigqueueinfo`: code and the fields of a sender.
    pub fn from_bytes(signo: u32, b: &[u8; SIZE]) -> Self {
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let value = word(24) as u64 | (word(28) as u64) << 32;
        SigInfo {
            signo,
            errno: word(4) as i32,
            code: word(8) as i32,
            detail: Detail::Sender { pid: Pid(word(16)), uid: word(20), value },
        }
    }
}
