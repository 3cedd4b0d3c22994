//! User memory: an allegation until a checked copy has proved it.
//!
//! Addresses from user space are [`UserAddr`]; nothing dereferences one except the routines in `uaccess.S`, which use
//! unprivileged loads and stores, so that EL0's own permissions apply whatever the address is. A fault on a valid mapping
//! is resolved like any user fault (the copy may sleep); any other ends the copy and is reported as [`Fault`].
//!
//! Atomicity: single `u32`/`u64` accesses are single-copy atomic when aligned. Context: thread, may sleep; with preemption
//! disabled the copies do not resolve faults and just fail.

use crate::arch::mmu::USER_END;
pub use platform::bytes::Fault;

core::arch::global_asm!(include_str!("uaccess.S"), options(raw));

unsafe extern "C" {
    fn uaccess_from(dst: *mut u8, src: u64, len: usize) -> usize;
    fn uaccess_to(dst: u64, src: *const u8, len: usize) -> usize;
    fn uaccess_clear(dst: u64, len: usize) -> usize;
    fn uaccess_strncpy(dst: *mut u8, src: u64, len: usize) -> isize;
    fn uaccess_cas32(addr: u64, old: u32, new: u32, observed: *mut u32) -> u64;
    fn uaccess_load8(addr: u64, out: *mut u8) -> u64;
    fn uaccess_load32(addr: u64, out: *mut u32) -> u64;
    fn uaccess_load64(addr: u64, out: *mut u64) -> u64;
    fn uaccess_store8(addr: u64, value: u8) -> u64;
    fn uaccess_store32(addr: u64, value: u32) -> u64;
    fn uaccess_store64(addr: u64, value: u64) -> u64;
    static __ex_table_start: ExEntry;
    static __ex_table_end: ExEntry;
}

/// An address that user space gave.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct UserAddr(pub u64);

impl UserAddr {
    /// Whether it is the null pointer.
    pub fn is_null(self) -> bool {
        self.0 == 0
    }

    /// `bytes` further on; wraps, since the copies check.
    #[must_use]
    pub fn offset(self, bytes: u64) -> UserAddr {
        UserAddr(self.0.wrapping_add(bytes))
    }
}

impl core::fmt::Debug for UserAddr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "user:{:#x}", self.0)
    }
}

/// Plain data that may cross the boundary: any bit pattern is valid, and there is no padding.
pub use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How much of `addr..addr+len` lies in user space; an address outside is left to fault by itself... except that the
/// unprivileged instructions fault on kernel addresses anyway; this is the cheap early answer.
#[inline(always)]
fn check(addr: UserAddr, len: usize) -> Result<(), Fault> {
    match addr.0.checked_add(len as u64) {
        Some(end) if end <= USER_END => Ok(()),
        _ => Err(Fault),
    }
}

/// Copies `len` bytes in; returns how many could be read (less than `len` where the range runs into a fault).
///
/// # Safety
/// `dst..dst+len` is writable.
#[inline]
pub unsafe fn copy_from_user_raw(dst: *mut u8, src: UserAddr, len: usize) -> usize {
    let len_ok = (USER_END.saturating_sub(src.0) as usize).min(len);
    // SAFETY: by contract; the user side is checked by the hardware.
    len_ok - unsafe { uaccess_from(dst, src.0, len_ok) }
}

/// Copies `len` bytes out; returns how many could be written.
///
/// # Safety
/// `src..src+len` is readable.
#[inline]
pub unsafe fn copy_to_user_raw(dst: UserAddr, src: *const u8, len: usize) -> usize {
    let len_ok = (USER_END.saturating_sub(dst.0) as usize).min(len);
    // SAFETY: as above.
    len_ok - unsafe { uaccess_to(dst.0, src, len_ok) }
}

/// Fills `dst` from user space, whole or not at all (what was copied before a fault is undefined).
#[inline]
pub fn copy_from_user(dst: &mut [u8], src: UserAddr) -> Result<(), Fault> {
    check(src, dst.len())?;
    // SAFETY: a slice is writable.
    if unsafe { uaccess_from(dst.as_mut_ptr(), src.0, dst.len()) } == 0 { Ok(()) } else { Err(Fault) }
}

/// Copies all of `src` to user space.
#[inline]
pub fn copy_to_user(dst: UserAddr, src: &[u8]) -> Result<(), Fault> {
    check(dst, src.len())?;
    // SAFETY: a slice is readable.
    if unsafe { uaccess_to(dst.0, src.as_ptr(), src.len()) } == 0 { Ok(()) } else { Err(Fault) }
}

/// Reads a structure.
#[inline]
pub fn read_user<T: FromBytes + IntoBytes>(src: UserAddr) -> Result<T, Fault> {
    let mut v = T::new_zeroed();
    copy_from_user(v.as_mut_bytes(), src)?;
    Ok(v)
}

/// Writes a structure.
#[inline]
pub fn write_user<T: IntoBytes + Immutable>(dst: UserAddr, v: &T) -> Result<(), Fault> {
    copy_to_user(dst, v.as_bytes())
}

/// Writes zeroes.
pub fn clear_user(dst: UserAddr, len: usize) -> Result<(), Fault> {
    check(dst, len)?;
    // SAFETY: only user memory is touched.
    if unsafe { uaccess_clear(dst.0, len) } == 0 { Ok(()) } else { Err(Fault) }
}

/// Copies a NUL-terminated string into `dst`; returns its length without the NUL, or `dst.len()` if no NUL was found in as
/// many bytes.
pub fn strncpy_from_user(dst: &mut [u8], src: UserAddr) -> Result<usize, Fault> {
    if src.0 >= USER_END {
        return Err(Fault);
    }
    // SAFETY: a slice is writable.
    let n = unsafe { uaccess_strncpy(dst.as_mut_ptr(), src.0, dst.len()) };
    usize::try_from(n).map_err(|_| Fault)
}

macro_rules! single {
    ($get:ident, $put:ident, $load:ident, $store:ident, $T:ty) => {
        /// Reads one naturally sized value.
        #[inline]
        pub fn $get(addr: UserAddr) -> Result<$T, Fault> {
            check(addr, size_of::<$T>())?;
            let mut v: $T = 0;
            // SAFETY: only user memory and `v` are touched.
            if unsafe { $load(addr.0, &mut v) } == 0 { Ok(v) } else { Err(Fault) }
        }

        /// Writes one naturally sized value.
        #[inline]
        #[allow(dead_code)] // the family is whole
        pub fn $put(addr: UserAddr, value: $T) -> Result<(), Fault> {
            check(addr, size_of::<$T>())?;
            // SAFETY: only user memory is touched.
            if unsafe { $store(addr.0, value) } == 0 { Ok(()) } else { Err(Fault) }
        }
    };
}
single!(get_user_u8, put_user_u8, uaccess_load8, uaccess_store8, u8);
single!(get_user_u32, put_user_u32, uaccess_load32, uaccess_store32, u32);
single!(get_user_u64, put_user_u64, uaccess_load64, uaccess_store64, u64);

/// Compare-and-swap on an aligned user word; returns what was there. Sequentially consistent.
pub fn cmpxchg_user_u32(addr: UserAddr, old: u32, new: u32) -> Result<u32, Fault> {
    check(addr, 4)?;
    if addr.0 & 3 != 0 {
        return Err(Fault);
    }
    let mut observed = 0;
    // The swap runs with EL1's permissions on a user page: a kernel-only page cannot be there (user tables hold none).
    // SAFETY: the address is below USER_END.
    if unsafe { uaccess_cas32(addr.0, old, new, &mut observed) } == 0 { Ok(observed) } else { Err(Fault) }
}

#[repr(C)]
struct ExEntry {
    insn: i32,
    fixup: i32,
}

/// Where to continue after a fault at `pc`, if it is one of the copies' instructions.
pub fn fixup(pc: u64) -> Option<u64> {
    let (start, end) = (&raw const __ex_table_start, &raw const __ex_table_end);
    let count = (end as usize - start as usize) / size_of::<ExEntry>();
    // SAFETY: the linker script bounds the table.
    let table = unsafe { core::slice::from_raw_parts(start, count) };
    let at = |field: &i32| (core::ptr::from_ref(field) as u64).wrapping_add_signed(*field as i64);
    debug_assert!(table.is_sorted_by_key(|e| at(&e.insn)), "the assembly lists them in order");
    let entry = table.get(table.partition_point(|e| at(&e.insn) < pc))?;
    (at(&entry.insn) == pc).then(|| at(&entry.fixup))
}
