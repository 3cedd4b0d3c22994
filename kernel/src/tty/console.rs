//! The console terminal on the PL011.

use super::{Device, Tty};
use alloc::sync::Arc;
use sync::Once;
use tty_core::Termios;

static CONSOLE: Once<Arc<Tty>> = Once::new();

fn receive(bytes: &[u8]) {
    if let Some(tty) = CONSOLE.get() {
        tty.input(bytes);
    }
}

/// Makes the console's terminal and starts to listen; once, when there is a heap.
pub fn init() -> abi::Result<()> {
    let tty = Arc::new(Tty::new(0, Device::Console, Termios::default(), false)?);
    if CONSOLE.set(tty).is_err() {
        return Err(abi::Errno::EBUSY);
    }
    if let Some(interrupt) = crate::machine::platform().uart.and_then(|uart| uart.interrupt)
        && let Err(why) = crate::drivers::pl011::listen(interrupt.intid, receive)
    {
        crate::warn!("console input: {why}");
    }
    Ok(())
}

/// The console's terminal, if there is a heap yet.
pub fn get() -> Option<Arc<Tty>> {
    CONSOLE.get().cloned()
}
