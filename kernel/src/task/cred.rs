//! Credentials: immutable once made, shared by reference, replaced as a whole.
//!
//! Each thread has its own reference, as in Linux (the C library changes all threads of a process together). The
//! capability model is the simple one: the effective set is full for effective user 0 and empty for others, unless a
//! program narrows it with `capset`.

use alloc::sync::Arc;
use alloc::vec::Vec;

/// Capability numbers, from `linux/capability.h`.
pub mod cap {
    #![allow(missing_docs, dead_code)] // the list is whole
    pub const CHOWN: u32 = 0;
    pub const DAC_OVERRIDE: u32 = 1;
    pub const DAC_READ_SEARCH: u32 = 2;
    pub const FOWNER: u32 = 3;
    pub const FSETID: u32 = 4;
    pub const KILL: u32 = 5;
    pub const SETGID: u32 = 6;
    pub const SETUID: u32 = 7;
    pub const SETPCAP: u32 = 8;
    pub const NET_BIND_SERVICE: u32 = 10;
    pub const NET_ADMIN: u32 = 12;
    pub const NET_RAW: u32 = 13;
    pub const IPC_LOCK: u32 = 14;
    pub const SYS_MODULE: u32 = 16;
    pub const SYS_CHROOT: u32 = 18;
    pub const SYS_PTRACE: u32 = 19;
    pub const SYS_ADMIN: u32 = 21;
    pub const SYS_BOOT: u32 = 22;
    pub const SYS_NICE: u32 = 23;
    pub const SYS_RESOURCE: u32 = 24;
    pub const SYS_TIME: u32 = 25;
    pub const SYS_TTY_CONFIG: u32 = 26;
    pub const MKNOD: u32 = 27;
    pub const SYSLOG: u32 = 34;
    /// The last one that exists.
    pub const LAST: u32 = 40;
}

/// Every capability.
pub const FULL: u64 = (1 << (cap::LAST + 1)) - 1;

/// Who a thread acts for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective user.
    pub euid: u32,
    /// Effective group.
    pub egid: u32,
    /// Saved user.
    pub suid: u32,
    /// Saved group.
    pub sgid: u32,
    /// User for file access.
    pub fsuid: u32,
    /// Group for file access.
    pub fsgid: u32,
    /// Supplementary groups, sorted.
    pub groups: Arc<Vec<u32>>,
    /// Permitted capabilities.
    pub permitted: u64,
    /// Effective capabilities.
    pub effective: u64,
    /// Inheritable capabilities.
    pub inheritable: u64,
    /// What exec can at most give.
    pub bounding: u64,
    /// `SECBIT_KEEP_CAPS`.
    pub keep_caps: bool,
}

impl Credentials {
    /// The superuser.
    pub fn root() -> Self {
        Credentials {
            uid: 0,
            gid: 0,
            euid: 0,
            egid: 0,
            suid: 0,
            sgid: 0,
            fsuid: 0,
            fsgid: 0,
            groups: Arc::new(Vec::new()),
            permitted: FULL,
            effective: FULL,
            inheritable: 0,
            bounding: FULL,
            keep_caps: false,
        }
    }

    /// Whether capability `n` is effective.
    #[inline]
    pub fn has(&self, n: u32) -> bool {
        self.effective & (1 << n) != 0
    }

    /// As the file systems judge by.
    pub fn file_cred(&self) -> vfs::Cred<'_> {
        vfs::Cred { uid: self.fsuid, gid: self.fsgid, groups: &self.groups, caps: self.effective }
    }

    /// Adjusts capabilities after user numbers changed from `old` (capabilities(7), "Effect of user ID changes").
    pub fn fix_caps(&mut self, old: &Credentials) {
        let had_root = [old.uid, old.euid, old.suid].contains(&0);
        let has_root = [self.uid, self.euid, self.suid].contains(&0);
        if had_root && !has_root && !self.keep_caps {
            self.permitted = 0;
            self.effective = 0;
        }
        if old.euid == 0 && self.euid != 0 {
            self.effective = 0;
        }
        if old.euid != 0 && self.euid == 0 {
            self.effective = self.permitted;
        }
    }
}
