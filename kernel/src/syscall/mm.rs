//! Memory calls: brk, mmap and its family, madvise, mlock, membarrier. Decoding only; the work is in [`crate::mm`].

use super::{SysResult, efault};
use crate::arch::uaccess::{UserAddr, copy_to_user};
use crate::mm::advise::Advice;
use crate::mm::map::RemapFlags;
use crate::mm::membarrier;
use crate::mm::object::SharedAnon;
use crate::mm::{
    AddressSpace, Backing, MapRequest, Mappable, Mapped, PAGE_SIZE, Place, Prot, TASK_SIZE, VmFlags, current,
};
use crate::sched;
use crate::task::cred::cap;
use abi::{Errno, linux};
use alloc::sync::Arc;
use vfs::MountFlags;
use vfs::file::Mapping;

crate::syscalls! {
    plain {
        214 brk(addr: Ptr) = brk;
        215 munmap(addr: Ptr, len: Size) = munmap;
        216 mremap(addr: Ptr, old_len: Size, new_len: Size, flags: Hex, new_addr: Ptr) = mremap;
        222 mmap(addr: Ptr, len: Size, prot: Hex, flags: Hex, fd: Fd, offset: Off) = mmap;
        226 mprotect(addr: Ptr, len: Size, prot: Hex) = mprotect;
        227 msync(addr: Ptr, len: Size, flags: Hex) = msync;
        228 mlock(addr: Ptr, len: Size) = mlock;
        229 munlock(addr: Ptr, len: Size) = munlock;
        230 mlockall(flags: Hex) = mlockall;
        231 munlockall() = munlockall;
        232 mincore(addr: Ptr, len: Size, vec: Ptr) = mincore;
        233 madvise(addr: Ptr, len: Size, advice: Int) = madvise;
        283 membarrier(command: Int, flags: Hex, cpu: Int) = sys_membarrier;
        284 mlock2(addr: Ptr, len: Size, flags: Hex) = mlock2;
    }
    frame {}
}

/// The caller's address space.
fn space() -> abi::Result<&'static AddressSpace> {
    current().ok_or(Errno::EFAULT)
}

/// brk(2): never an error; the end of the heap as it is.
pub fn brk(addr: usize) -> SysResult {
    Ok(space()?.brk(addr))
}

fn prot_of(prot: u32) -> abi::Result<Prot> {
    // PROT_BTI and PROT_MTE need CPUs that have them; GROWSDOWN and GROWSUP are for stacks that need no help.
    const GROWS: u32 = linux::PROT_GROWSDOWN | linux::PROT_GROWSUP;
    if prot & !(GROWS | linux::PROT_READ | linux::PROT_WRITE | linux::PROT_EXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Prot::from_bits_truncate(prot as u8))
}

/// mmap(2).
pub fn mmap(addr: usize, len: usize, prot: u32, flags: u32, fd: i32, offset: u64) -> SysResult {
    if !offset.is_multiple_of(PAGE_SIZE as u64) || len == 0 {
        return Err(Errno::EINVAL);
    }
    // Unknown protection bits are ignored here, as Linux does.
    let prot = Prot::from_bits_truncate(prot as u8);
    let place = if flags & linux::MAP_FIXED_NOREPLACE != 0 {
        Place::FixedFree(addr)
    } else if flags & linux::MAP_FIXED != 0 {
        Place::Fixed(addr)
    } else {
        Place::Any(addr)
    };
    let mut vm = VmFlags::empty();
    let shared = match flags & linux::MAP_TYPE {
        linux::MAP_PRIVATE => false,
        linux::MAP_SHARED => true,
        linux::MAP_SHARED_VALIDATE => {
            const KNOWN: u32 = linux::MAP_TYPE
                | linux::MAP_FIXED
                | linux::MAP_FIXED_NOREPLACE
                | linux::MAP_ANONYMOUS
                | linux::MAP_DENYWRITE
                | linux::MAP_EXECUTABLE
                | linux::MAP_LOCKED
                | linux::MAP_NORESERVE
                | linux::MAP_POPULATE
                | linux::MAP_NONBLOCK
                | linux::MAP_STACK;
            if flags & !KNOWN != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            true
        }
        _ => return Err(Errno::EINVAL),
    };
    vm.set(VmFlags::SHARED, shared);
    vm.set(VmFlags::NORESERVE, flags & linux::MAP_NORESERVE != 0);
    vm.set(VmFlags::LOCKED, flags & linux::MAP_LOCKED != 0);
    vm.set(VmFlags::GROWSDOWN, flags & linux::MAP_GROWSDOWN != 0);
    let pages = mm_core::page_up(len).ok_or(Errno::ENOMEM)? as u64 / PAGE_SIZE as u64;
    if offset.checked_add(pages * PAGE_SIZE as u64).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    let file = if flags & linux::MAP_ANONYMOUS == 0 { file_mapping(fd, shared, prot, &mut vm)? } else { None };
    let backing = match file {
        Some(object) => Backing::Object { object: Mapped::new(object), offset },
        None if shared => Backing::Object { object: Mapped::new(Arc::new(SharedAnon::new(pages))), offset: 0 },
        None => Backing::Anon,
    };
    let populate = flags & linux::MAP_POPULATE != 0 && flags & linux::MAP_NONBLOCK == 0;
    space()?.map(MapRequest { place, len, prot, flags: vm, backing, populate })
}

/// What mapping `fd` maps (`None`: anonymous memory), with the flags that its access mode calls for.
fn file_mapping(fd: i32, shared: bool, prot: Prot, vm: &mut VmFlags) -> abi::Result<Option<Arc<dyn Mappable>>> {
    let file = sched::current().files().get_io(fd)?;
    if !file.readable() || shared && prot.contains(Prot::WRITE) && !file.writable() {
        return Err(Errno::EACCES);
    }
    if shared && file.writable() && file.inode().is_some_and(|i| i.meta().has(vfs::flags::APPEND)) {
        return Err(Errno::EACCES);
    }
    if file.path().is_some_and(|p| p.mount.flags().has(MountFlags::NOEXEC)) {
        if prot.contains(Prot::EXEC) {
            return Err(Errno::EPERM);
        }
        *vm |= VmFlags::NOEXEC;
    }
    vm.set(VmFlags::NOWRITE, shared && !file.writable());
    Ok(match file.mapping()? {
        Mapping::Object(object) => Some(object),
        Mapping::Anonymous => None,
    })
}

/// munmap(2).
pub fn munmap(addr: usize, len: usize) -> SysResult {
    space()?.unmap(addr, len).map(|()| 0)
}

/// mprotect(2).
pub fn mprotect(addr: usize, len: usize, prot: u32) -> SysResult {
    space()?.protect(addr, len, prot_of(prot)?).map(|()| 0)
}

/// mremap(2).
pub fn mremap(addr: usize, old_len: usize, new_len: usize, flags: u32, new_addr: usize) -> SysResult {
    const KNOWN: u32 = linux::MREMAP_MAYMOVE | linux::MREMAP_FIXED | linux::MREMAP_DONTUNMAP;
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let flags = RemapFlags {
        may_move: flags & linux::MREMAP_MAYMOVE != 0,
        fixed: (flags & linux::MREMAP_FIXED != 0).then_some(new_addr),
        keep_old: flags & linux::MREMAP_DONTUNMAP != 0,
    };
    space()?.remap(addr, old_len, new_len, flags)
}

/// madvise(2).
pub fn madvise(addr: usize, len: usize, advice: i32) -> SysResult {
    let advice = match advice as u32 {
        // NORMAL, RANDOM, SEQUENTIAL
        0..=2 => Advice::Nothing,
        linux::MADV_WILLNEED => Advice::WillNeed,
        // A page given up by FREE may go at once.
        linux::MADV_DONTNEED | linux::MADV_FREE | linux::MADV_DONTNEED_LOCKED => Advice::DontNeed,
        linux::MADV_DONTFORK => Advice::Set(VmFlags::DONTFORK),
        linux::MADV_DOFORK => Advice::Clear(VmFlags::DONTFORK),
        linux::MADV_WIPEONFORK => Advice::Set(VmFlags::WIPEONFORK),
        linux::MADV_KEEPONFORK => Advice::Clear(VmFlags::WIPEONFORK),
        linux::MADV_DONTDUMP => Advice::Set(VmFlags::DONTDUMP),
        linux::MADV_DODUMP => Advice::Clear(VmFlags::DONTDUMP),
        linux::MADV_POPULATE_READ => Advice::PopulateRead,
        linux::MADV_POPULATE_WRITE => Advice::PopulateWrite,
        linux::MADV_MERGEABLE
        | linux::MADV_UNMERGEABLE
        | linux::MADV_HUGEPAGE
        | linux::MADV_NOHUGEPAGE
        | linux::MADV_COLD
        | linux::MADV_PAGEOUT => Advice::Nothing,
        _ => return Err(Errno::EINVAL),
    };
    space()?.advise(addr, len, advice).map(|()| 0)
}

/// msync(2).
pub fn msync(addr: usize, len: usize, flags: u32) -> SysResult {
    const BOTH: u32 = linux::MS_ASYNC | linux::MS_SYNC;
    if flags & !(BOTH | linux::MS_INVALIDATE) != 0 || flags & BOTH == BOTH {
        return Err(Errno::EINVAL);
    }
    space()?.msync(addr, len, flags & linux::MS_SYNC != 0).map(|()| 0)
}

/// mincore(2).
pub fn mincore(addr: usize, len: usize, vec: UserAddr) -> SysResult {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let pages = mm_core::page_up(len).filter(|&l| l <= TASK_SIZE).ok_or(Errno::ENOMEM)? / PAGE_SIZE;
    let mut buf = [0; 256];
    let mut done = 0;
    while done < pages {
        let n = (pages - done).min(buf.len());
        space()?.mincore(addr + done * PAGE_SIZE, &mut buf[..n])?;
        copy_to_user(vec.offset(done as u64), &buf[..n]).map_err(efault)?;
        done += n;
    }
    Ok(0)
}

/// Whether the caller may exceed `RLIMIT_MEMLOCK` (CAP_IPC_LOCK).
fn may_exceed() -> bool {
    sched::current().creds().has(cap::IPC_LOCK)
}

/// mlock(2).
pub fn mlock(addr: usize, len: usize) -> SysResult {
    space()?.lock_pages(addr, len, true, false, may_exceed()).map(|()| 0)
}

/// mlock2(2).
pub fn mlock2(addr: usize, len: usize, flags: u32) -> SysResult {
    if flags & !linux::MLOCK_ONFAULT != 0 {
        return Err(Errno::EINVAL);
    }
    space()?.lock_pages(addr, len, true, flags != 0, may_exceed()).map(|()| 0)
}

/// munlock(2).
pub fn munlock(addr: usize, len: usize) -> SysResult {
    space()?.lock_pages(addr, len, false, false, true).map(|()| 0)
}

/// mlockall(2).
pub fn mlockall(flags: u32) -> SysResult {
    let (now, future, on_fault) =
        (flags & linux::MCL_CURRENT != 0, flags & linux::MCL_FUTURE != 0, flags & linux::MCL_ONFAULT != 0);
    if flags == 0 || flags > 7 || !now && !future {
        return Err(Errno::EINVAL);
    }
    space()?.lock_all(now, future, on_fault, may_exceed()).map(|()| 0)
}

/// munlockall(2).
pub fn munlockall() -> SysResult {
    space()?.lock_all(false, false, false, true).map(|()| 0)
}

/// membarrier(2): the expedited private barrier (and its registration) and the global one, both by an interrupt to every
/// other CPU, which is a full barrier there.
pub fn sys_membarrier(command: i32, flags: u32, _cpu: i32) -> SysResult {
    const GLOBAL: i32 = 1;
    const GLOBAL_EXPEDITED: i32 = 1 << 1;
    const REGISTER_GLOBAL: i32 = 1 << 2;
    const PRIVATE: i32 = 1 << 3;
    const REGISTER_PRIVATE: i32 = 1 << 4;
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        0 => Ok((GLOBAL | GLOBAL_EXPEDITED | REGISTER_GLOBAL | PRIVATE | REGISTER_PRIVATE) as usize),
        REGISTER_GLOBAL | REGISTER_PRIVATE => {
            space()?.register_membarrier();
            Ok(0)
        }
        PRIVATE if !space()?.membarrier_registered() => Err(Errno::EPERM),
        GLOBAL | GLOBAL_EXPEDITED | PRIVATE => {
            membarrier::barrier_everywhere();
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}
