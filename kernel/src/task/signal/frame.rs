//! Signal frames: Linux's AArch64 layout, which debuggers, unwinders and language runtimes know.
//!
//! From low to high addresses: `struct rt_sigframe` = `siginfo_t` (128 bytes) and `ucontext_t` (4560 bytes, most of it room
//! for extension records), then a frame record {x29, x30} for unwinders. Only the records that are used are written:
//! `fpsimd_context` and the terminator.

use super::info::SigInfo;
use super::state::Action;
use super::{SA_ONSTACK, SA_RESTORER, SA_SIGINFO, SS_AUTODISARM, SS_DISABLE, SS_ONSTACK};
use crate::arch::context::FpState;
use crate::arch::trap::{PSTATE_USER_MASK, TrapFrame};
use crate::arch::uaccess::{UserAddr, copy_from_user, copy_to_user, get_user_u64};
use crate::task::thread::Thread;
use platform::bytes::Fault;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// `sizeof(struct rt_sigframe)`.
const FRAME_SIZE: u64 = 128 + 4560;
const FPSIMD_MAGIC: u32 = 0x4650_8001;
const FPSIMD_SIZE: u32 = 528;
/// Where V0 lies in the frame that [`push`] writes.
const FP_AT: u64 = 592 + 16;

/// `stack_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct StackT {
    /// Base address.
    pub sp: u64,
    /// `SS_*`.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
    /// Length in bytes.
    pub size: u64,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct UContext {
    flags: u64,
    link: u64,
    stack: StackT,
    sigmask: u64,
    unused: [u8; 120],
    pad: u64,
    fault_address: u64,
    regs: [u64; 31],
    sp: u64,
    pc: u64,
    pstate: u64,
    pad2: u64,
}

/// The written part of the frame, up to the FP registers, which are copied from where they are kept; the terminator
/// follows them.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Frame {
    info: [u8; 128],
    uc: UContext,
    fp_magic: u32,
    fp_size: u32,
    fpsr: u32,
    fpcr: u32,
}

const _: () = assert!(core::mem::offset_of!(Frame, uc.fault_address) == 128 + 176);
const _: () = assert!(core::mem::offset_of!(Frame, fp_magic) == 128 + 176 + 288);
const _: () = assert!(size_of::<Frame>() == FP_AT as usize);

/// Whether `sp` lies on the alternate stack.
fn on_altstack(me: &Thread, sp: u64) -> bool {
    let (base, size, flags) = me.altstack.get();
    flags & SS_AUTODISARM == 0 && size != 0 && sp > base && sp - base <= size
}

/// What `sigaltstack` reports.
pub fn altstack_now(me: &Thread, sp: u64) -> StackT {
    let (base, size, flags) = me.altstack.get();
    let state = if size == 0 {
        SS_DISABLE
    } else if on_altstack(me, sp) {
        SS_ONSTACK
    } else {
        0
    };
    StackT { sp: base, flags: state | flags & SS_AUTODISARM, pad: 0, size }
}

/// Builds the handler's frame on the user's stack and points `frame` at the handler. `mask` is what sigreturn restores.
pub fn push(me: &Thread, frame: &mut TrapFrame, info: SigInfo, action: Action, mask: u64) -> Result<(), Fault> {
    let mut sp = frame.sp;
    if action.flags & SA_ONSTACK != 0 && !on_altstack(me, sp) {
        let (base, size, _) = me.altstack.get();
        if size != 0 {
            sp = base + size;
        }
    }
    let record = sp.wrapping_sub(16) & !15;
    let at = record.wrapping_sub(FRAME_SIZE) & !15;
    // Running off an alternate stack must not overwrite what lies below it.
    if on_altstack(me, sp) && !on_altstack(me, at) {
        return Err(Fault);
    }
    let fault_address = match info.detail {
        super::Detail::Fault { addr } => addr,
        _ => 0,
    };
    let fp = me.arch.fp_state();
    let image = Frame {
        info: info.to_bytes(),
        uc: UContext {
            flags: 0,
            link: 0,
            stack: altstack_now(me, frame.sp),
            sigmask: mask,
            unused: [0; 120],
            pad: 0,
            fault_address,
            regs: frame.x,
            sp: frame.sp,
            pc: frame.pc,
            pstate: frame.pstate,
            pad2: 0,
        },
        fp_magic: FPSIMD_MAGIC,
        fp_size: FPSIMD_SIZE,
        fpsr: fp.fpsr,
        fpcr: fp.fpcr,
    };
    copy_to_user(UserAddr(at), image.as_bytes())?;
    copy_to_user(UserAddr(at + FP_AT), fp.v.as_bytes())?;
    copy_to_user(UserAddr(at + FP_AT + 512), [0u64; 2].as_bytes())?;
    copy_to_user(UserAddr(record), [frame.x[29], frame.x[30]].as_bytes())?;
    let (_, _, flags) = me.altstack.get();
    if flags & SS_AUTODISARM != 0 && action.flags & SA_ONSTACK != 0 {
        me.altstack.set((0, 0, SS_DISABLE));
    }
    frame.x[0] = info.signo as u64;
    if action.flags & SA_SIGINFO != 0 {
        frame.x[1] = at;
        frame.x[2] = at + 128;
    }
    frame.x[29] = record;
    frame.x[30] = if action.flags & SA_RESTORER != 0 { action.restorer } else { me.mm().sigreturn_address() };
    frame.sp = at;
    frame.pc = action.handler;
    // The handler starts as an indirect call's target, where the CPU checks those.
    frame.pstate &= PSTATE_USER_MASK & !(3 << 10);
    Ok(())
}

/// Takes the frame that `frame.sp` points to back; returns the mask to restore. On failure nothing is promised: the
/// caller kills the thread with SIGSEGV.
pub fn pop(me: &Thread, frame: &mut TrapFrame) -> Result<u64, Fault> {
    let at = UserAddr(frame.sp);
    if at.0 & 15 != 0 {
        return Err(Fault);
    }
    let mut uc = UContext::new_zeroed();
    copy_from_user(uc.as_mut_bytes(), at.offset(128))?;
    let record = find_fp(at.offset(592))?;
    me.arch.fp_fill(|fp| read_fp(record, fp))?;
    frame.x = uc.regs;
    frame.sp = uc.sp;
    frame.pc = uc.pc;
    frame.pstate = uc.pstate & PSTATE_USER_MASK;
    frame.syscallno = u64::MAX;
    let size = if uc.stack.flags & SS_DISABLE != 0 { 0 } else { uc.stack.size };
    me.altstack.set((uc.stack.sp, size, uc.stack.flags & SS_AUTODISARM));
    Ok(uc.sigmask)
}

/// Walks the extension records for the FP state's, which must be there.
fn find_fp(records: UserAddr) -> Result<UserAddr, Fault> {
    let mut offset = 0u64;
    while offset < 4096 {
        let head = get_user_u64(records.offset(offset))?;
        let (magic, size) = (head as u32, (head >> 32) as u32);
        if magic == FPSIMD_MAGIC && size == FPSIMD_SIZE {
            return Ok(records.offset(offset));
        }
        if size < 16 || size % 16 != 0 || magic == 0 {
            return Err(Fault);
        }
        offset += size as u64;
    }
    Err(Fault)
}

fn read_fp(record: UserAddr, fp: &mut FpState) -> Result<(), Fault> {
    let status = get_user_u64(record.offset(8))?;
    (fp.fpsr, fp.fpcr) = (status as u32, (status >> 32) as u32);
    copy_from_user(fp.v.as_mut_bytes(), record.offset(16))
}
