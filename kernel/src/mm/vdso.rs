//! The vDSO in user spaces: two pages, mapped into every program at exec. The first holds clock data, read-only; the second
//! is the ELF object (`arch/vdso.S`), read-only and executable, which `AT_SYSINFO_EHDR` points to. It has the clock calls
//! that need no kernel, and the code that returns from signal handlers.
//!
//! The counter's origin and ratio are fixed at boot; the wall clock's words behind them change under a sequence count
//! ([`crate::clock`]).

use super::frames::{self, Frame};
use super::space::AddressSpace;
use super::{Backing, MapRequest, PAGE_SIZE, Place, Prot, VmFlags};
use crate::arch::{time, tlb};
use crate::clock::Shared;
use abi::{Errno, Result};
use core::sync::atomic::{AtomicU64, Ordering};
use mm_core::pte::MemType;
use sync::Once;

core::arch::global_asm!(include_str!("../arch/vdso.S"));

unsafe extern "C" {
    static vdso_start: u8;
    static vdso_end: u8;
    static vdso_sigreturn: u8;
}

/// The two frames, data first.
static FRAMES: Once<Frame> = Once::new();

/// What the code of `arch/vdso.S` reads.
#[repr(C)]
struct Data {
    origin: AtomicU64,
    ratio: AtomicU64,
    wall: Shared,
}

fn data(frame: Frame) -> &'static Data {
    // SAFETY: the data frame is never freed, and only reached as atomic words.
    unsafe { &*frame.ptr().cast() }
}

/// Makes the pages; once, when the clock runs.
pub fn init() {
    let Some(data) = frames::alloc(1) else { return };
    let code = Frame(data.0 + 1);
    let (start, end) = (&raw const vdso_start, &raw const vdso_end);
    let len = (end as usize - start as usize).min(PAGE_SIZE);
    // SAFETY: both frames are ours alone; the object lies in the image's constants.
    unsafe {
        data.clear();
        code.clear();
        core::ptr::copy_nonoverlapping(start, code.ptr(), len);
    }
    tlb::sync_icache(code.ptr() as u64, PAGE_SIZE);
    let (origin, ratio) = time::scale();
    let words = self::data(data);
    words.origin.store(origin, Ordering::Relaxed);
    words.ratio.store(ratio, Ordering::Relaxed);
    crate::clock::publish(&words.wall);
    let _ = FRAMES.set(data);
}

/// Where the wall clock is told to programs, once there is a vDSO.
pub fn wall_clock() -> Option<&'static Shared> {
    FRAMES.get().map(|&frame| &data(frame).wall)
}

impl AddressSpace {
    /// Maps the vDSO; the address of its ELF header. `ENOMEM`. May sleep.
    pub fn map_vdso(&self) -> Result<usize> {
        let data = *FRAMES.get().ok_or(Errno::ENOMEM)?;
        let fixed = VmFlags::VDSO | VmFlags::SHARED | VmFlags::NOWRITE;
        let request = |place, frame: Frame, len, prot, flags| MapRequest {
            place,
            len,
            prot,
            flags,
            backing: Backing::Phys { pa: frame.pa(), mem: MemType::Normal },
            populate: false,
        };
        let at = self.map(request(Place::Any(0), data, 2 * PAGE_SIZE, Prot::READ, fixed | VmFlags::NOEXEC))?;
        let code = at + PAGE_SIZE;
        self.map(request(Place::Fixed(code), Frame(data.0 + 1), PAGE_SIZE, Prot::READ | Prot::EXEC, fixed))?;
        self.vdso.store(code as u64, Ordering::Relaxed);
        Ok(code)
    }

    /// Where a signal handler returns to that gave no restorer; 0 in a space without a vDSO.
    pub fn sigreturn_address(&self) -> u64 {
        match self.vdso.load(Ordering::Relaxed) {
            0 => 0,
            base => base + (&raw const vdso_sigreturn as u64 - &raw const vdso_start as u64),
        }
    }
}
