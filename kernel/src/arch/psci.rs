//! PSCI (Arm DEN 0022): starting CPUs, power-off, reset, over the conduit that firmware names.

use core::sync::atomic::{AtomicU8, Ordering};

const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const CPU_ON: u64 = 0xc400_0003;

const NONE: u8 = 0;
const HVC: u8 = 1;
const SMC: u8 = 2;

static CONDUIT: AtomicU8 = AtomicU8::new(NONE);

/// How PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// To a hypervisor.
    Hvc,
    /// To secure firmware.
    Smc,
}

/// Why a CPU did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciError {
    /// Firmware names no conduit.
    NoConduit,
    /// The call returned this error code.
    Refused(i64),
}

/// Sets the conduit; once, on the boot CPU.
pub fn init(conduit: Option<Conduit>) {
    CONDUIT.store(
        match conduit {
            None => NONE,
            Some(Conduit::Hvc) => HVC,
            Some(Conduit::Smc) => SMC,
        },
        Ordering::Relaxed,
    );
}

fn call(function: u64, a: u64, b: u64, c: u64) -> Result<u64, PsciError> {
    let mut x0 = function;
    // SAFETY: SMCCC calls preserve x18-x30 and change x0-x17 at most; the functions used do not touch our memory.
    unsafe {
        match CONDUIT.load(Ordering::Relaxed) {
            HVC => core::arch::asm!("hvc #0", inout("x0") x0, in("x1") a, in("x2") b, in("x3") c, clobber_abi("C")),
            SMC => core::arch::asm!("smc #0", inout("x0") x0, in("x1") a, in("x2") b, in("x3") c, clobber_abi("C")),
            _ => return Err(PsciError::NoConduit),
        }
    }
    if (x0 as i64) < 0 { Err(PsciError::Refused(x0 as i64)) } else { Ok(x0) }
}

/// Starts the CPU `mpidr` at physical address `entry` with `context` in X0.
pub fn cpu_on(mpidr: u64, entry: u64, context: u64) -> Result<(), PsciError> {
    call(CPU_ON, mpidr, entry, context).map(|_| ())
}

/// Powers the machine off. Returns only if firmware cannot.
pub fn system_off() {
    let _ = call(SYSTEM_OFF, 0, 0, 0);
}

/// Resets the machine. Returns only if firmware cannot.
pub fn system_reset() {
    let _ = call(SYSTEM_RESET, 0, 0, 0);
}
