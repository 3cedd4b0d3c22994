//! Futexes; the bodies are in [`crate::futex`].

use super::SysResult;

crate::syscalls! {
    plain {
        98 futex(addr: Ptr, op: Hex, value: Int, timeout: Ptr, addr2: Ptr, value3: Int) = futex;
    }
    frame {}
}

fn futex(addr: u64, op: u64, value: u64, timeout: u64, addr2: u64, value3: u64) -> SysResult {
    crate::futex::sys_futex([addr, op, value, timeout, addr2, value3]).map(|n| n as usize)
}
