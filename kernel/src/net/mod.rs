//! The network in the kernel: one [`net::Stack`], threads that drive it, sockets as files.
//!
//! The crate `net` is the stack; this module gives it a clock and a thread for its deadlines, makes files of its sockets
//! ([`file`]), and answers the ioctls of ifconfig and route ([`ioctl`]). Loopback is up from boot.
//!
//! **Deadlines.** One thread sleeps until the earliest; whoever brings an earlier one wakes it. Whatever runs in the stack
//! runs in threads: this one, callers of system calls, and those of the network devices.

pub mod file;
pub mod ioctl;

use crate::task::Thread;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use net::config::NetIf;
use net::{Limits, NetDevice, PlatformEnv, Sabotage, Stack};
use platform::ParkOptions;
use sync::{Once, WaitQueue};

static STACK: Once<Arc<Stack>> = Once::new();
/// The earliest deadline that the thread was told of.
static NEXT: AtomicU64 = AtomicU64::new(u64::MAX);
static TICKER: WaitQueue = WaitQueue::new();

/// Some deadline is now at `at`. Called with locks of the stack held.
fn earlier(at: u64) {
    if NEXT.fetch_min(at, Ordering::AcqRel) > at {
        TICKER.wake();
    }
}

/// The stack. `None` before [`init`].
pub fn stack() -> Option<&'static Arc<Stack>> {
    STACK.get()
}

extern "C" fn ticker(_: usize) {
    let Some(stack) = stack() else { crate::sched::exit_current() };
    loop {
        let at = NEXT.load(Ordering::Acquire);
        let options = ParkOptions { interruptible: false, deadline_ns: (at != u64::MAX).then_some(at) };
        let changed = || (NEXT.load(Ordering::Acquire) != at).then_some(());
        if platform::monotonic_ns() < at && TICKER.wait_until(options, changed).is_ok() {
            continue;
        }
        NEXT.store(u64::MAX, Ordering::Release);
        if let Some(next) = stack.run_timers() {
            earlier(next);
        }
    }
}

/// Gives the stack an interface for `device`, named after its number: eth0, eth1… It is down until configured.
pub fn add_device(device: &'static dyn NetDevice) -> abi::Result<Arc<NetIf>> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let stack = stack().ok_or(abi::Errno::ENODEV)?;
    let name = alloc::format!("eth{}", COUNT.fetch_add(1, Ordering::Relaxed));
    stack.add_interface(&name, Arc::new(device))
}

/// Makes the stack, with loopback up. Once, at boot.
pub fn init() {
    // A quarter of memory for connections' buffers.
    let buffers = crate::mm::frames::total() * 4096 / 4;
    let ways = [
        ("arp", Sabotage::ARP),
        ("checksum", Sabotage::CHECKSUM),
        ("acks", Sabotage::ACKS),
        ("path-mtu", Sabotage::PATH_MTU),
        ("cookies", Sabotage::COOKIES),
    ];
    let sabotage = ways.into_iter().filter(|w| crate::machine::sabotaged(w.0)).map(|w| w.1).collect();
    let limits = Limits { buffers, sabotage, ..Limits::default() };
    let _ = STACK.set(Stack::new(Arc::new(PlatformEnv(earlier)), limits));
    let started = Thread::new_kernel("net", ticker, 0).map(crate::sched::spawn);
    if !matches!(started, Some(Ok(()))) {
        crate::error!("no memory for the network's thread");
    }
}
