//! virtio-rng (virtio 1.2, section 5.4): feeds the kernel's random number generator.
//!
//! The driver asks for 64 bytes at boot and again whenever it is poked ([`refill`], every few minutes); what comes is mixed in,
//! never trusted alone, so a device that lies about the length or gives zeroes does no harm.

use super::{Interrupt, Port, feature, leak};
use crate::random;
use core::sync::atomic::{AtomicBool, Ordering};
use platform::Page;
use sync::{IrqLock, LockClass, Once};
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::mmio::MmioTransport;
use virtq::{Buffer, Virtqueue};

static CLASS: LockClass = LockClass::new("virtio-rng", sync::rank::PAGE_TABLE + 30);
/// How many bytes are asked for at once.
const WANT: usize = 64;

struct Rng<T> {
    port: Port<T>,
    queue: IrqLock<Virtqueue>,
    page: Page,
    asked: AtomicBool,
}

/// The one that [`refill`] asks.
static RNG: Once<&'static Rng<MmioTransport<'static>>> = Once::new();

/// Starts the driver on `transport`.
pub fn start(transport: MmioTransport<'static>) -> Result<&'static dyn Interrupt, &'static str> {
    let port = Port::new(transport);
    port.begin(feature::VERSION_1).ok_or("refuses its own features")?;
    let queue = port.queue(0, 8, false)?;
    let page = Page::zeroed().ok_or("no memory")?;
    let rng = leak(Rng { port, queue: IrqLock::new(&CLASS, queue), page, asked: AtomicBool::new(false) });
    rng.port.finish();
    let _ = RNG.set(rng);
    crate::info!("virtio-rng: feeds the random number generator");
    rng.ask();
    Ok(rng)
}

/// Asks the device for more, if there is one and it has answered so far. Context: any.
pub fn refill() {
    if let Some(rng) = RNG.get() {
        rng.ask();
    }
}

impl<T: Transport> Rng<T> {
    fn ask(&self) {
        if self.asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let buffer = Buffer { addr: (self.page.raw() as u64) << 12, len: WANT as u32, writable: true };
        let mut queue = self.queue.lock();
        // SAFETY: the page is this driver's for ever, and asked for once at a time.
        let added = unsafe { queue.add(0, [buffer].into_iter()) };
        let kick = added && queue.publish();
        drop(queue);
        if kick {
            self.port.notify(0);
        }
    }
}

impl<T: Transport + Send> Interrupt for Rng<T> {
    fn interrupt(&self) {
        self.port.acknowledge();
        let popped = self.queue.lock().pop();
        match popped {
            Ok(Some(used)) => {
                let mut seed = [0; WANT];
                let n = (used.len as usize).min(WANT);
                self.page.bytes(0, n).copy_to(&mut seed);
                self.page.bytes_mut(0, WANT).fill(0);
                random::add_entropy(&seed[..n]);
                self.asked.store(false, Ordering::Release);
            }
            Ok(None) => {}
            // It is never asked again: `asked` stays set.
            Err(_) => {
                crate::warn!("virtio-rng: broke its queue; not used any more");
                self.port.reset();
            }
        }
    }
}
