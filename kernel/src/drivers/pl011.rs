//! The PL011 UART (Arm DDI 0183): the console.
//!
//! Output is polled: it must work from a panic. Input is by interrupt: bytes go to the registered receiver with interrupts
//! masked. Ownership: the transmitter under [`TX`]; a panic takes it by force.

use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use sync::{IrqLock, LockClass};

const DR: usize = 0x00;
const FR: usize = 0x18;
const LCRH: usize = 0x2c;
const CR: usize = 0x30;
const IFLS: usize = 0x34;
const IMSC: usize = 0x38;
const ICR: usize = 0x44;

const FR_TXFF: u32 = 1 << 5;
const FR_RXFE: u32 = 1 << 4;

static TX_CLASS: LockClass = LockClass::new("pl011", sync::rank::CONSOLE);
static TX: IrqLock<()> = IrqLock::new(&TX_CLASS, ());
static BASE: AtomicUsize = AtomicUsize::new(0);
static RECEIVER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Takes received bytes; called with interrupts masked.
pub type Receiver = fn(&[u8]);

fn read(offset: usize) -> u32 {
    // SAFETY: BASE is the device's mapping, set once.
    unsafe { ((BASE.load(Ordering::Relaxed) + offset) as *const u32).read_volatile() }
}

fn write(offset: usize, value: u32) {
    // SAFETY: as above.
    unsafe { ((BASE.load(Ordering::Relaxed) + offset) as *mut u32).write_volatile(value) }
}

/// Starts to use the UART whose registers are mapped at `base`.
///
/// # Safety
/// `base` is a device mapping of a PL011, for ever.
pub unsafe fn init(base: usize) {
    BASE.store(base, Ordering::Release);
    write(IMSC, 0);
    write(LCRH, 3 << 5 | 1 << 4);
    write(CR, 1 | 1 << 8 | 1 << 9);
}

/// Whether there is a console.
pub fn present() -> bool {
    BASE.load(Ordering::Relaxed) != 0
}

/// Delivers input to `receiver` from now on.
pub fn listen(intid: u32, receiver: Receiver) -> Result<(), &'static str> {
    RECEIVER.store(receiver as *mut (), Ordering::Release);
    write(IFLS, 0);
    write(ICR, 0x7ff);
    crate::arch::gic::register(intid, false, interrupt)?;
    write(IMSC, 1 << 4 | 1 << 6);
    Ok(())
}

fn interrupt(_intid: u32) {
    let receiver = RECEIVER.load(Ordering::Acquire);
    let mut buf = [0u8; 32];
    // First acknowledge, then drain: a byte that comes after the queue was seen empty must raise the line again.
    write(ICR, 1 << 4 | 1 << 6);
    loop {
        let mut n = 0;
        while n < buf.len() && read(FR) & FR_RXFE == 0 {
            buf[n] = read(DR) as u8;
            n += 1;
        }
        if n == 0 {
            break;
        }
        if !receiver.is_null() {
            // SAFETY: only `listen` stores here, and it stores a Receiver.
            let receiver: Receiver = unsafe { core::mem::transmute(receiver) };
            receiver(&buf[..n]);
        }
    }
}

fn put(byte: u8) {
    // A UART that never drains must not stop the kernel.
    for _ in 0..1_000_000 {
        if read(FR) & FR_TXFF == 0 {
            break;
        }
        core::hint::spin_loop();
    }
    write(DR, byte as u32);
}

/// Sends all of `bytes`. Any context.
pub fn write_bytes(bytes: &[u8]) {
    if present() {
        let _guard = TX.lock();
        bytes.iter().for_each(|&b| put(b));
    }
}

/// As [`write_bytes`], whoever holds the lock: for a panic.
pub fn write_bytes_forced(bytes: &[u8]) {
    if present() {
        bytes.iter().for_each(|&b| put(b));
    }
}
