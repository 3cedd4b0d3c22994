//! Futexes; the bodies are in [`crate::futex`].

use super::SysResult;
use crate::arch::uaccess::UserAddr;

crate::syscalls! {
    plain {
        98 futex(addr: Ptr, op: Hex, value: Int, timeout: Ptr, addr2: Ptr, value3: Int) = futex;
        449 futex_waitv(words: Ptr, count: Int, flags: Hex, timeout: Ptr, clock: Int) = futex_waitv;
    }
    frame {}
}

fn futex(addr: u64, op: u64, value: u64, timeout: u64, addr2: u64, value3: u64) -> SysResult {
    crate::futex::sys_futex([addr, op, value, timeout, addr2, value3]).map(|n| n as usize)
}

fn futex_waitv(words: UserAddr, count: u32, flags: u32, timeout: UserAddr, clock: i32) -> SysResult {
    crate::futex::several::sys_futex_waitv(words, count, flags, timeout, clock)
}
