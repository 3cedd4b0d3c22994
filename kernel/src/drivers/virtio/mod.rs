//! virtio devices (virtio 1.2).
//!
//! Transports come from the crate `virtio-drivers` ([`Transport`]: MMIO now, PCIe with its series), queues from `virtq`;
//! drivers are generic over the transport and know nothing of where their device sits. [`probe`] looks into every MMIO
//! window that firmware described: an empty one is normal, a device without a driver is named and left alone, a
//! broken one is reported and left out.
//!
//! **Interrupts.** A window has one; its handler finds the device by interrupt number in [`DEVICES`], which is filled once
//! before the interrupt is enabled. The interrupt is acknowledged *before* the used rings are looked at, so that what comes
//! later raises it again (the line may be edge-triggered).

pub mod blk;
pub mod net;
pub mod rng;

use crate::arch::gic;
use crate::machine;
use alloc::boxed::Box;
use alloc::vec::Vec;
use boot_formats::platform::Device;
use core::ptr::NonNull;
use sync::{IrqLock, LockClass, Once};
use virtio_drivers::transport::mmio::{MmioError, MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceStatus, DeviceType, DeviceTypeError, Transport};
use virtq::Virtqueue;

/// Ranks behind a device's queue lock.
static TRANSPORT_CLASS: LockClass = LockClass::new("virtio transport", sync::rank::PAGE_TABLE + 40);

/// Feature bits that no single device type owns.
pub mod feature {
    /// Descriptors may stand in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say when they want to be notified.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The device follows version 1 of the standard.
    pub const VERSION_1: u64 = 1 << 32;
}

/// A device that takes interrupts.
pub trait Interrupt: Send + Sync {
    /// The device raised its interrupt. Called with interrupts masked.
    fn interrupt(&self);
}

struct Wired {
    intid: u32,
    device: &'static dyn Interrupt,
}

static DEVICES: Once<Vec<Wired>> = Once::new();

fn interrupt(intid: u32) {
    for wired in DEVICES.get().into_iter().flatten().filter(|w| w.intid == intid) {
        wired.device.interrupt();
    }
}

/// A transport behind a lock: notifying and acknowledging come from all CPUs.
pub struct Port<T> {
    transport: IrqLock<T>,
}

impl<T: Transport> Port<T> {
    fn new(transport: T) -> Self {
        Port { transport: IrqLock::new(&TRANSPORT_CLASS, transport) }
    }

    /// Resets the device and negotiates: of `wanted` what the device offers. `None` if the device does not agree.
    fn begin(&self, wanted: u64) -> Option<u64> {
        let mut t = self.transport.lock();
        t.set_status(DeviceStatus::empty());
        t.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        let offered = t.read_device_features();
        let agreed = offered & wanted;
        t.write_driver_features(agreed);
        if agreed & feature::VERSION_1 != 0 {
            t.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK);
            if !t.get_status().contains(DeviceStatus::FEATURES_OK) {
                t.set_status(DeviceStatus::FAILED);
                return None;
            }
        }
        t.set_guest_page_size(4096);
        Some(agreed)
    }

    /// The device may work from now on.
    fn finish(&self) {
        self.transport.lock().finish_init();
    }

    /// Makes queue `index` with at most `most` entries. The memory stays with the device for ever.
    fn queue(&self, index: u16, most: u16, event_idx: bool) -> Result<Virtqueue, &'static str> {
        let mut t = self.transport.lock();
        let offered = t.max_queue_size(index).min(u32::from(most));
        if offered == 0 || t.queue_used(index) {
            return Err("no such queue");
        }
        let size = 1 << offered.ilog2();
        let order = Virtqueue::bytes(size).div_ceil(4096).next_power_of_two().ilog2() as usize;
        let frame = crate::mm::frames::alloc(order).ok_or("no memory")?;
        let memory = NonNull::new(frame.ptr()).ok_or("no memory")?;
        // SAFETY: the block was just allocated, is at least this long, page-aligned, ours, and is never freed.
        let queue = unsafe {
            memory.as_ptr().write_bytes(0, 4096 << order);
            Virtqueue::new(memory, size, event_idx)
        };
        let [desc, driver, device] = queue.offsets().map(|offset| frame.pa() + offset as u64);
        t.queue_set(index, u32::from(size), desc, driver, device);
        Ok(queue)
    }

    /// Tells the device to look at queue `index`.
    fn notify(&self, index: u16) {
        self.transport.lock().notify(index);
    }

    /// Acknowledges the interrupt; true if the device's configuration changed.
    fn acknowledge(&self) -> bool {
        use virtio_drivers::transport::InterruptStatus;
        self.transport.lock().ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT)
    }

    /// Whether the device says that it has failed.
    fn needs_reset(&self) -> bool {
        self.transport.lock().get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET)
    }

    /// Stops the device. True if it confirms: it then uses no memory any more.
    fn reset(&self) -> bool {
        let mut t = self.transport.lock();
        t.set_status(DeviceStatus::empty());
        (0..1000).any(|_| t.get_status() == DeviceStatus::empty())
    }

    /// The configuration's 32-bit word at `offset`; 0 where there is none.
    fn config32(&self, offset: usize) -> u32 {
        self.transport.lock().read_config_space(offset).unwrap_or(0)
    }

    /// As `config32` for 16 bits.
    fn config16(&self, offset: usize) -> u16 {
        self.transport.lock().read_config_space(offset).unwrap_or(0)
    }

    /// As `config32` for 64 bits that are read as one (the generation is checked a bounded number of times).
    fn config64(&self, offset: usize) -> u64 {
        let t = self.transport.lock();
        let half = |at| t.read_config_space::<u32>(at).unwrap_or(0);
        let mut value = 0;
        for _ in 0..16 {
            let before = t.read_config_generation();
            value = u64::from(half(offset)) | u64::from(half(offset + 4)) << 32;
            if t.read_config_generation() == before {
                break;
            }
        }
        value
    }
}

/// Maps windows; neighbours share a page.
struct Mapper {
    page: u64,
    at: usize,
}

impl Mapper {
    fn map(&mut self, device: &Device) -> Option<usize> {
        let base = device.region.base;
        if base & !0xfff != self.page || (base & 0xfff) + device.region.size > 4096 {
            self.at = crate::mm::ioremap(base & !0xfff, (device.region.size + (base & 0xfff)) as usize)?;
            self.page = base & !0xfff;
        }
        Some(self.at + (base & 0xfff) as usize)
    }
}

/// The MMIO device in a window, if there is one.
fn transport(mapper: &mut Mapper, device: &Device) -> Option<MmioTransport<'static>> {
    let base = device.region.base;
    let Some(header) = mapper.map(device).and_then(|at| NonNull::new(at as *mut VirtIOHeader)) else {
        crate::warn!("virtio at {base:#x}: no memory to map it");
        return None;
    };
    // SAFETY: a device mapping of a window that firmware says is virtio's, for ever.
    match unsafe { MmioTransport::new(header, device.region.size as usize) } {
        Ok(transport) => Some(transport),
        Err(MmioError::InvalidDeviceID(DeviceTypeError::InvalidDeviceType(0))) => None,
        Err(e) => {
            crate::warn!("virtio at {base:#x}: {e}");
            None
        }
    }
}

/// Finds the machine's virtio devices and starts their drivers. Once, at boot, with interrupts on; does not sleep.
pub fn probe() {
    let mut wired = Vec::new();
    let mut mapper = Mapper { page: u64::MAX, at: 0 };
    for device in &machine::platform().virtio_mmio {
        let Some(transport) = transport(&mut mapper, device) else { continue };
        let base = device.region.base;
        let Some(line) = device.interrupt else {
            crate::warn!("virtio at {base:#x}: no interrupt; left out");
            continue;
        };
        let started = match transport.device_type() {
            DeviceType::Block => blk::start(transport),
            DeviceType::Network => net::start(transport),
            DeviceType::EntropySource => rng::start(transport),
            other => {
                crate::info!("virtio at {base:#x}: no driver for {other:?}");
                continue;
            }
        };
        match started {
            Ok(device) => wired.push((Wired { intid: line.intid, device }, line.edge)),
            Err(why) => crate::warn!("virtio at {base:#x}: {why}; left out"),
        }
    }
    let lines: Vec<(u32, bool)> = wired.iter().map(|(w, edge)| (w.intid, *edge)).collect();
    let _ = DEVICES.set(wired.into_iter().map(|(w, _)| w).collect());
    for (intid, edge) in lines {
        if let Err(why) = gic::register(intid, edge, interrupt) {
            crate::warn!("virtio interrupt {intid}: {why}");
        }
    }
    // What was asked for before the interrupts were on has raised its line already; look once.
    for wired in DEVICES.get().into_iter().flatten() {
        let irq = crate::arch::irq_save();
        wired.device.interrupt();
        crate::arch::irq_restore(irq);
    }
}

/// A value that lives for ever.
fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}
