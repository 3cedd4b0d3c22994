//! Who a thread is: user and group numbers, supplementary groups (credentials(7)). Each change makes a new set of
//! credentials and gives it to the calling thread alone; the C library makes all threads of a process call.

use super::{SysResult, efault};
use crate::arch::uaccess::{UserAddr, copy_from_user, put_user_u32};
use crate::sched::current;
use crate::task::cred::{Credentials, cap};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use zerocopy::IntoBytes;

crate::syscalls! {
    plain {
        143 setregid(rgid: Int, egid: Int) = setregid;
        144 setgid(gid: Int) = setgid;
        145 setreuid(ruid: Int, euid: Int) = setreuid;
        146 setuid(uid: Int) = setuid;
        147 setresuid(ruid: Int, euid: Int, suid: Int) = setresuid;
        148 getresuid(ruid: Ptr, euid: Ptr, suid: Ptr) = getresuid;
        149 setresgid(rgid: Int, egid: Int, sgid: Int) = setresgid;
        150 getresgid(rgid: Ptr, egid: Ptr, sgid: Ptr) = getresgid;
        151 setfsuid(uid: Int) = setfsuid;
        152 setfsgid(gid: Int) = setfsgid;
        158 getgroups(count: Int, list: Ptr) = getgroups;
        159 setgroups(count: Int, list: Ptr) = setgroups;
    }
    frame {}
    short {
        174 getuid() = getuid;
        175 geteuid() = geteuid;
        176 getgid() = getgid;
        177 getegid() = getegid;
    }
}

fn getuid() -> SysResult {
    Ok(current().creds().uid as usize)
}

fn geteuid() -> SysResult {
    Ok(current().creds().euid as usize)
}

fn getgid() -> SysResult {
    Ok(current().creds().gid as usize)
}

fn getegid() -> SysResult {
    Ok(current().creds().egid as usize)
}

/// Applies `change` to a copy of the credentials; capabilities follow.
fn change(change: impl FnOnce(&mut Credentials) -> Result<()>) -> SysResult {
    let me = current();
    let old = me.creds().clone();
    let mut new = (*old).clone();
    change(&mut new)?;
    new.fix_caps(&old);
    me.set_creds(new);
    Ok(0)
}

/// A number that a call leaves alone.
const KEEP: u32 = u32::MAX;

fn allowed(privileged: bool, wanted: u32, have: &[u32]) -> Result<()> {
    if wanted == KEEP || privileged || have.contains(&wanted) { Ok(()) } else { Err(Errno::EPERM) }
}

fn setuid(uid: u32) -> SysResult {
    if uid == KEEP {
        return Err(Errno::EINVAL);
    }
    change(|c| {
        if c.has(cap::SETUID) {
            c.uid = uid;
            c.suid = uid;
        } else if uid != c.uid && uid != c.suid {
            return Err(Errno::EPERM);
        }
        c.euid = uid;
        c.fsuid = uid;
        Ok(())
    })
}

fn setgid(gid: u32) -> SysResult {
    if gid == KEEP {
        return Err(Errno::EINVAL);
    }
    change(|c| {
        if c.has(cap::SETGID) {
            c.gid = gid;
            c.sgid = gid;
        } else if gid != c.gid && gid != c.sgid {
            return Err(Errno::EPERM);
        }
        c.egid = gid;
        c.fsgid = gid;
        Ok(())
    })
}

fn setreuid(ruid: u32, euid: u32) -> SysResult {
    change(|c| {
        let p = c.has(cap::SETUID);
        allowed(p, ruid, &[c.uid, c.euid])?;
        allowed(p, euid, &[c.uid, c.euid, c.suid])?;
        let old = c.uid;
        if ruid != KEEP {
            c.uid = ruid;
        }
        if euid != KEEP {
            c.euid = euid;
        }
        if ruid != KEEP || euid != KEEP && euid != old {
            c.suid = c.euid;
        }
        c.fsuid = c.euid;
        Ok(())
    })
}

fn setregid(rgid: u32, egid: u32) -> SysResult {
    change(|c| {
        let p = c.has(cap::SETGID);
        allowed(p, rgid, &[c.gid, c.egid])?;
        allowed(p, egid, &[c.gid, c.egid, c.sgid])?;
        let old = c.gid;
        if rgid != KEEP {
            c.gid = rgid;
        }
        if egid != KEEP {
            c.egid = egid;
        }
        if rgid != KEEP || egid != KEEP && egid != old {
            c.sgid = c.egid;
        }
        c.fsgid = c.egid;
        Ok(())
    })
}

fn setresuid(ruid: u32, euid: u32, suid: u32) -> SysResult {
    change(|c| {
        let p = c.has(cap::SETUID);
        for wanted in [ruid, euid, suid] {
            allowed(p, wanted, &[c.uid, c.euid, c.suid])?;
        }
        for (to, wanted) in [(&mut c.uid, ruid), (&mut c.euid, euid), (&mut c.suid, suid)] {
            if wanted != KEEP {
                *to = wanted;
            }
        }
        c.fsuid = c.euid;
        Ok(())
    })
}

fn setresgid(rgid: u32, egid: u32, sgid: u32) -> SysResult {
    change(|c| {
        let p = c.has(cap::SETGID);
        for wanted in [rgid, egid, sgid] {
            allowed(p, wanted, &[c.gid, c.egid, c.sgid])?;
        }
        for (to, wanted) in [(&mut c.gid, rgid), (&mut c.egid, egid), (&mut c.sgid, sgid)] {
            if wanted != KEEP {
                *to = wanted;
            }
        }
        c.fsgid = c.egid;
        Ok(())
    })
}

fn put_three(addrs: [UserAddr; 3], values: [u32; 3]) -> SysResult {
    for (a, v) in addrs.into_iter().zip(values) {
        put_user_u32(a, v).map_err(efault)?;
    }
    Ok(0)
}

fn getresuid(r: UserAddr, e: UserAddr, s: UserAddr) -> SysResult {
    let c = current().creds();
    put_three([r, e, s], [c.uid, c.euid, c.suid])
}

fn getresgid(r: UserAddr, e: UserAddr, s: UserAddr) -> SysResult {
    let c = current().creds();
    put_three([r, e, s], [c.gid, c.egid, c.sgid])
}

fn setfsuid(uid: u32) -> SysResult {
    let old = current().creds().fsuid;
    change(|c| {
        if c.has(cap::SETUID) || [c.uid, c.euid, c.suid, c.fsuid].contains(&uid) {
            c.fsuid = uid;
        }
        Ok(())
    })?;
    Ok(old as usize)
}

fn setfsgid(gid: u32) -> SysResult {
    let old = current().creds().fsgid;
    change(|c| {
        if c.has(cap::SETGID) || [c.gid, c.egid, c.sgid, c.fsgid].contains(&gid) {
            c.fsgid = gid;
        }
        Ok(())
    })?;
    Ok(old as usize)
}

/// The most supplementary groups (`NGROUPS_MAX`).
const NGROUPS_MAX: usize = 65_536;

fn getgroups(count: i32, list: UserAddr) -> SysResult {
    let groups = current().creds().groups.clone();
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    if count == 0 {
        return Ok(groups.len());
    }
    if count < groups.len() {
        return Err(Errno::EINVAL);
    }
    crate::arch::uaccess::copy_to_user(list, groups.as_bytes()).map_err(efault)?;
    Ok(groups.len())
}

fn setgroups(count: i32, list: UserAddr) -> SysResult {
    current().require(cap::SETGID)?;
    let count = usize::try_from(count).ok().filter(|&n| n <= NGROUPS_MAX).ok_or(Errno::EINVAL)?;
    let mut groups: Vec<u32> = Vec::new();
    groups.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    groups.resize(count, 0);
    copy_from_user(groups.as_mut_bytes(), list).map_err(efault)?;
    groups.sort_unstable();
    change(|c| {
        c.groups = Arc::new(groups);
        Ok(())
    })
}
