//! What this CPU can do, and what user space is told of it.

use crate::arch::trap::TrapFrame;
use sync::Once;

/// Features that the kernel or programs use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// `AT_HWCAP`.
    pub hwcap: u64,
    /// `AT_HWCAP2`.
    pub hwcap2: u64,
    /// FEAT_RNG: RNDR.
    pub rndr: bool,
    /// 16-bit ASIDs.
    pub asid16: bool,
}

static FEATURES: Once<Features> = Once::new();

fn field(reg: u64, low: u32) -> u64 {
    (reg >> low) & 0xf
}

/// A signed identification field: 0xf means absent.
fn present(reg: u64, low: u32) -> bool {
    field(reg, low) != 0xf
}

/// Whether the CPU has what the kernel is compiled for (LSE atomics and PAN, Armv8.1; CRC32).
pub fn meets_minimum() -> bool {
    let isar0 = crate::read_sysreg!("id_aa64isar0_el1");
    let mmfr1 = crate::read_sysreg!("id_aa64mmfr1_el1");
    field(isar0, 20) >= 2 && field(mmfr1, 20) >= 1 && field(isar0, 16) >= 1
}

/// FEAT_E0PD: user accesses to kernel addresses fault in constant time. Asked on each CPU.
pub fn has_e0pd() -> bool {
    field(crate::read_sysreg!("id_aa64mmfr2_el1"), 60) >= 1
}

/// Reads the identification registers; once, on the boot CPU.
pub fn init() {
    let isar0 = crate::read_sysreg!("id_aa64isar0_el1");
    let isar1 = crate::read_sysreg!("id_aa64isar1_el1");
    let pfr0 = crate::read_sysreg!("id_aa64pfr0_el1");
    let mmfr0 = crate::read_sysreg!("id_aa64mmfr0_el1");
    let mmfr2 = crate::read_sysreg!("id_aa64mmfr2_el1");
    // Bit numbers: Linux Documentation/arch/arm64/elf_hwcaps.rst
    let mut cap = 0u64;
    let mut set = |on: bool, bit: u32| cap |= (on as u64) << bit;
    set(present(pfr0, 16), 0); // FP
    set(present(pfr0, 20), 1); // ASIMD
    set(true, 2); // EVTSTRM: arch::time::event_stream
    set(field(isar0, 4) >= 1, 3); // AES
    set(field(isar0, 4) >= 2, 4); // PMULL
    set(field(isar0, 8) >= 1, 5); // SHA1
    set(field(isar0, 12) >= 1, 6); // SHA2
    set(field(isar0, 16) >= 1, 7); // CRC32
    set(field(isar0, 20) >= 2, 8); // ATOMICS
    set(present(pfr0, 16) && field(pfr0, 16) >= 1, 9); // FPHP
    set(present(pfr0, 20) && field(pfr0, 20) >= 1, 10); // ASIMDHP
    set(true, 11); // CPUID: reads of ID registers are emulated
    set(field(isar0, 28) >= 1, 12); // ASIMDRDM
    set(field(isar1, 12) >= 1, 13); // JSCVT
    set(field(isar1, 16) >= 1, 14); // FCMA
    set(field(isar1, 20) >= 1, 15); // LRCPC
    set(field(isar1, 0) >= 1, 16); // DCPOP
    set(field(isar0, 32) >= 1, 17); // SHA3
    set(field(isar0, 44) >= 1, 20); // ASIMDDP
    set(field(isar0, 12) >= 2, 21); // SHA512
    set(field(mmfr2, 32) >= 1, 25); // USCAT
    set(field(isar0, 52) >= 1, 27); // FLAGM
    let _ = FEATURES.set(Features { hwcap: cap, hwcap2: 0, rndr: field(isar0, 60) >= 1, asid16: field(mmfr0, 4) == 2 });
}

/// The features (all off before [`init`]).
pub fn features() -> Features {
    FEATURES.get().copied().unwrap_or_default()
}

/// A hardware random number, if the CPU has FEAT_RNG and it delivers.
pub fn rndr() -> Option<u64> {
    if !features().rndr {
        return None;
    }
    let (value, ok): (u64, u64);
    // SAFETY: RNDR exists (checked); it sets NZCV to say whether it delivered.
    unsafe {
        core::arch::asm!("mrs {}, S3_3_C2_C4_0", "cset {}, ne", out(reg) value, out(reg) ok, options(nomem, nostack));
    }
    (ok != 0).then_some(value)
}

/// Emulates a user-space read of an identification register (Linux: cpu-feature-registers.rst): feature fields that
/// the kernel does not vouch for read as zero. False if the instruction is something else.
///
/// CPUs with FEAT_IDST report such a read as a trapped system register (`esr` says which); older ones only as an
/// undefined instruction, which is then read from `frame.pc`. Interrupts are on; may sleep.
pub fn emulate_id_read(esr: u64, frame: &mut TrapFrame) -> bool {
    const SYSREG: u64 = 0x18;
    // As the instruction encodes it (Arm ARM C5.2, MRS): o0 at 19, op1 at 16, CRn at 12, CRm at 8, op2 at 5, Rt at 0.
    let code = if esr >> 26 == SYSREG {
        let iss = esr & 0x1ff_ffff;
        if iss & 1 == 0 || iss >> 20 & 3 != 3 {
            return false;
        }
        let (op2, op1, crn, rt, crm) = (iss >> 17 & 7, iss >> 14 & 7, iss >> 10 & 15, iss >> 5 & 31, iss >> 1 & 15);
        1 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | rt
    } else {
        match super::uaccess::get_user_u32(super::uaccess::UserAddr(frame.pc)) {
            Ok(i) if i >> 20 == 0xd53 => u64::from(i & 0xf_ffff),
            _ => return false,
        }
    };
    // op0 = 3, op1 = 0, CRn = 0.
    if code >> 12 != 1 << 7 {
        return false;
    }
    let (crm, op2, rt) = (code >> 8 & 15, code >> 5 & 7, code & 31);
    let value = match (crm, op2) {
        (0, 0) => crate::read_sysreg!("midr_el1"),
        (0, 5) => 0x8000_0000,
        (0, 6) => crate::read_sysreg!("revidr_el1"),
        (4, 0) => crate::read_sysreg!("id_aa64pfr0_el1") & 0x00ff_0000,
        (6, 0) => crate::read_sysreg!("id_aa64isar0_el1") & 0x00f0_ffff_f0ff_fff0,
        (6, 1) => crate::read_sysreg!("id_aa64isar1_el1") & 0x00ff_f00f,
        (7, 2) => crate::read_sysreg!("id_aa64mmfr2_el1") & (0xf << 32),
        (1..=7, _) => 0,
        _ => return false,
    };
    if rt != 31 {
        frame.x[rt as usize] = value;
    }
    frame.pc += 4;
    true
}
