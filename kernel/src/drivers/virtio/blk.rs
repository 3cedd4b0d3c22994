//! virtio-blk (virtio 1.2, section 5.2).
//!
//! The device is [`block::Hardware`]: a [`block::Queue`] in front of it splits, merges and counts, so what is here is how one
//! transfer becomes a descriptor chain and how its answer is judged.
//!
//! **In flight.** Each transfer in the device has a slot: a page with the request's header, its status byte and room for
//! 252 descriptors. Short chains go into the ring directly; longer ones stand in the slot's page and cost one entry, so
//! that large requests do not crowd out small ones. Slots are made when first needed and kept.
//!
//! **Several queues** (`VIRTIO_BLK_F_MQ`): a CPU uses the queue of its number.
//!
//! **A device that lies.** An answer that names nothing in flight, a status byte that was not written, a read that says it
//! wrote less than was asked: the request, or in the first case everything, ends with `EIO`, and a line in the log says
//! why. The device is then reset; if it does not confirm that, the pages it may still write are never freed. A device that
//! does not answer at all for [`timeout_ns`] is treated the same. Nothing waits for ever and nothing panics.
//!
//! **Locking.** Each queue under its own interrupt-safe lock (behind the block queue's, before the transport's). Notifying the
//! device, an exit to the hypervisor, happens outside of it.
//!
//! Not done: `VIRTIO_BLK_F_LIFETIME`, secure erase, zoned devices (no cloud has them), resetting a failed device back to
//! life (a file system could not trust what is on it).

use super::{Interrupt, Port, feature, leak};
use crate::arch::time::now_ns;
use crate::drivers::disk;
use abi::Errno;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::{Geometry, Hardware, Op, Queue, Refused, SECTOR_SIZE, Transfer};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use platform::{PAGE_SIZE, Page, SharedBytes};
use smallvec::SmallVec;
use sync::{IrqLock, LockClass, Once};
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::mmio::MmioTransport;
use virtq::{Buffer, DESCRIPTOR, Used, Virtqueue};

/// Behind the block queue's, which is held while a transfer is started.
static CLASS: LockClass = LockClass::new("virtio-blk queue", sync::rank::PAGE_TABLE + 30);

/// Feature bits (5.2.3).
mod bit {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Configuration fields (5.2.4).
mod config {
    pub const CAPACITY: usize = 0;
    pub const SIZE_MAX: usize = 8;
    pub const SEG_MAX: usize = 12;
    pub const BLK_SIZE: usize = 20;
    /// `physical_block_exp` in the low byte.
    pub const TOPOLOGY: usize = 24;
    pub const NUM_QUEUES: usize = 34;
    pub const MAX_DISCARD_SECTORS: usize = 36;
    pub const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    /// `write_zeroes_may_unmap` in the low byte.
    pub const MAY_UNMAP: usize = 56;
}

/// Request types (5.2.6).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Where things are in a slot's page.
const HEADER: usize = 0;
const RANGE: usize = 16;
const STATUS: usize = 32;
const TABLE: usize = 64;
const TABLE_ENTRIES: usize = (PAGE_SIZE - TABLE) / DESCRIPTOR;
/// What the status byte holds before the device has written it.
const UNWRITTEN: u8 = 0xff;
/// Chains up to this length go into the ring itself.
const DIRECT: usize = 4;
/// The most transfers in flight in one queue.
const DEPTH: u16 = 256;
/// The most queues that are used.
const MAX_QUEUES: usize = 16;

struct Slot {
    page: Page,
    transfer: Option<Box<Transfer>>,
}

struct Ring {
    queue: Virtqueue,
    slots: Vec<Slot>,
    free: Vec<u16>,
    dead: bool,
}

/// A virtio-blk device.
pub struct VirtioBlk<T> {
    port: Port<T>,
    rings: Vec<IrqLock<Ring>>,
    geometry: Geometry,
    sectors: AtomicU64,
    indirect: bool,
    may_unmap: bool,
    gone: AtomicBool,
    /// When the transfer began that the watch last found the oldest, and in how many rounds.
    stuck_since: AtomicU64,
    stuck_rounds: AtomicU64,
    name: Once<Arc<str>>,
}

type Disk = Queue<VirtioBlk<MmioTransport<'static>>>;

/// How long a transfer may take before the device counts as gone: `berth.disk_timeout=SECONDS`, 120 unless told.
fn timeout_ns() -> u64 {
    crate::machine::option_number("berth.disk_timeout").map_or(120, |s| s.max(1) as u64) * 1_000_000_000
}

struct Wired(Arc<Disk>);

impl Interrupt for Wired {
    fn interrupt(&self) {
        let hardware = self.0.hardware();
        if hardware.port.acknowledge() {
            hardware.config_changed(&self.0);
        }
        hardware.reap(&self.0);
    }
}

impl disk::Watched for Disk {
    fn watch(&self) {
        let hardware = self.hardware();
        if hardware.lost_interrupt() {
            let lost = hardware.reap(self);
            crate::info!("{}: {lost} answers came without an interrupt", hardware.name());
        }
        if hardware.stuck_rounds() * disk::WATCH_NS >= timeout_ns() {
            hardware.kill(self, "does not answer");
        }
    }
}

/// Starts the driver on `transport` and registers the disk.
pub fn start(transport: MmioTransport<'static>) -> Result<&'static dyn Interrupt, &'static str> {
    let port = Port::new(transport);
    let wanted = bit::SIZE_MAX
        | bit::SEG_MAX
        | bit::RO
        | bit::BLK_SIZE
        | bit::FLUSH
        | bit::TOPOLOGY
        | bit::CONFIG_WCE
        | bit::MQ
        | bit::DISCARD
        | bit::WRITE_ZEROES
        | feature::INDIRECT_DESC
        | feature::EVENT_IDX
        | feature::VERSION_1;
    let features = port.begin(wanted).ok_or("refuses its own features")?;
    let indirect = features & feature::INDIRECT_DESC != 0;
    let queues = if features & bit::MQ != 0 { usize::from(port.config16(config::NUM_QUEUES)) } else { 1 };
    let mut rings = Vec::new();
    for index in 0..queues.clamp(1, crate::arch::percpu::listed().min(MAX_QUEUES)) {
        let queue = port.queue(index as u16, DEPTH, features & feature::EVENT_IDX != 0)?;
        // One slot from the start: without memory for a second one, transfers go one by one.
        let slots = Vec::from([Slot { page: Page::zeroed().ok_or("no memory")?, transfer: None }]);
        rings.push(IrqLock::new(&CLASS, Ring { queue, slots, free: Vec::from([0]), dead: false }));
    }
    let ring_size = rings.first_mut().map_or(0, |r| r.get_mut().queue.size());
    let geometry = geometry(&port, features, if indirect { TABLE_ENTRIES } else { ring_size as usize })?;
    let device = VirtioBlk {
        sectors: AtomicU64::new(geometry.sectors),
        may_unmap: features & bit::WRITE_ZEROES != 0 && port.config32(config::MAY_UNMAP) & 0xff != 0,
        port,
        rings,
        geometry,
        indirect,
        gone: AtomicBool::new(false),
        stuck_since: AtomicU64::new(0),
        stuck_rounds: AtomicU64::new(0),
        name: Once::new(),
    };
    device.port.finish();
    let disk = disk::register(|name| {
        let _ = device.name.set(name.into());
        Arc::new(Queue::new(name, device))
    });
    crate::info!(
        "{}: virtio-blk, {} sectors of 512 bytes, block {}, {} queues of {ring_size}{}{}",
        disk.hardware().name(),
        geometry.sectors,
        geometry.logical_block,
        disk.hardware().rings.len(),
        if geometry.read_only { ", read-only" } else { "" },
        if geometry.flush { "" } else { ", no volatile cache" },
    );
    Ok(leak(Wired(disk)))
}

fn geometry<T: Transport>(port: &Port<T>, features: u64, descriptors: usize) -> Result<Geometry, &'static str> {
    let has = |bit| features & bit != 0;
    let block = if has(bit::BLK_SIZE) { port.config32(config::BLK_SIZE) } else { 512 };
    if !block.is_power_of_two() || !(512..=65536).contains(&block) {
        return Err("impossible block size");
    }
    let exponent = if has(bit::TOPOLOGY) { port.config32(config::TOPOLOGY) & 0xff } else { 0 };
    let segments = if has(bit::SEG_MAX) { port.config32(config::SEG_MAX).max(1) } else { 1 };
    // Two descriptors of each chain are the header and the status byte.
    let segments = segments.min(descriptors as u32 - 2);
    let size_max = if has(bit::SIZE_MAX) { port.config32(config::SIZE_MAX) } else { 1 << 20 };
    if size_max < block.max(SECTOR_SIZE as u32) {
        return Err("impossible segment size");
    }
    let sectors = port.config64(config::CAPACITY);
    let limit = |bit, at| if has(bit) { port.config32(at) } else { 0 };
    let (discard, zeroes) =
        (limit(bit::DISCARD, config::MAX_DISCARD_SECTORS), limit(bit::WRITE_ZEROES, config::MAX_WRITE_ZEROES_SECTORS));
    let whole = block >> block::SECTOR_SHIFT;
    Ok(Geometry {
        sectors: sectors / u64::from(whole) * u64::from(whole),
        logical_block: block,
        physical_block: block.checked_shl(exponent.min(16)).unwrap_or(block),
        max_segments: segments,
        max_segment_bytes: size_max.min(1 << 20),
        max_bytes: (segments * PAGE_SIZE as u32).min(1 << 20).max(block),
        read_only: has(bit::RO),
        // A device without FLUSH writes through. (A gate pretends that, to see that flushes matter.)
        flush: has(bit::FLUSH) && !crate::machine::sabotaged("flush"),
        fua: false,
        discard: discard >= whole,
        write_zeroes: zeroes >= whole,
        max_discard_sectors: discard,
        max_zeroes_sectors: zeroes,
    })
}

/// The buffers of a transfer's chain, in order.
type Chain = SmallVec<[Buffer; 8]>;

impl<T: Transport + Send> VirtioBlk<T> {
    fn name(&self) -> &str {
        self.name.get().map_or("?", |n| n)
    }

    fn chain(&self, slot: &Page, transfer: &Transfer) -> Chain {
        let page = (slot.raw() as u64) << 12;
        let (code, range_flags) = match transfer.op {
            Op::Read => (kind::IN, None),
            Op::Write { .. } => (kind::OUT, None),
            Op::Flush => (kind::FLUSH, None),
            Op::Discard => (kind::DISCARD, Some(0u32)),
            Op::WriteZeroes => (kind::WRITE_ZEROES, Some(u32::from(self.may_unmap))),
        };
        let mut header = [0u8; STATUS + 1];
        header[..4].copy_from_slice(&code.to_le_bytes());
        if transfer.op.has_data() {
            header[8..16].copy_from_slice(&transfer.sector.to_le_bytes());
        }
        header[STATUS] = UNWRITTEN;
        let mut chain = Chain::new();
        chain.push(Buffer { addr: page + HEADER as u64, len: 16, writable: false });
        if let Some(flags) = range_flags {
            header[RANGE..RANGE + 8].copy_from_slice(&transfer.sector.to_le_bytes());
            header[RANGE + 8..RANGE + 12].copy_from_slice(&(transfer.sectors as u32).to_le_bytes());
            header[RANGE + 12..RANGE + 16].copy_from_slice(&flags.to_le_bytes());
            chain.push(Buffer { addr: page + RANGE as u64, len: 16, writable: false });
        }
        for segment in transfer.requests.iter().flat_map(|r| &r.segments) {
            self.add_segment(&mut chain, segment, transfer.op == Op::Read);
        }
        chain.push(Buffer { addr: page + STATUS as u64, len: 1, writable: true });
        slot.bytes_mut(0, header.len()).copy_from(SharedBytes::from(&header[..]));
        chain
    }

    /// Adds `segment`, to the last buffer if it goes on where that ends.
    fn add_segment(&self, chain: &mut Chain, segment: &block::Segment, writable: bool) {
        let addr = ((segment.page.raw() as u64) << 12) + u64::from(segment.offset);
        if chain.len() > 1
            && let Some(last) = chain.last_mut()
            && last.addr + u64::from(last.len) == addr
            && last.len + segment.len <= self.geometry.max_segment_bytes
        {
            last.len += segment.len;
            return;
        }
        chain.push(Buffer { addr, len: segment.len, writable });
    }

    /// Puts `transfer` into `ring`, if there is room.
    fn put(&self, ring: &mut Ring, transfer: Box<Transfer>) -> Result<(), Box<Transfer>> {
        let slot = match ring.free.pop() {
            Some(slot) => slot,
            None if ring.slots.len() < ring.queue.size() as usize => {
                let Some(page) = Page::uninit() else { return Err(transfer) };
                ring.slots.push(Slot { page, transfer: None });
                ring.slots.len() as u16 - 1
            }
            None => return Err(transfer),
        };
        let page = &ring.slots[slot as usize].page;
        let chain = self.chain(page, &transfer);
        let added = if self.indirect && chain.len() > DIRECT {
            let count = chain.len();
            let table = (page.raw() as u64 * PAGE_SIZE as u64) + TABLE as u64;
            for (i, buffer) in chain.iter().enumerate() {
                let [low, high] = buffer.indirect(i, count);
                let mut bytes = [0; DESCRIPTOR];
                bytes[..8].copy_from_slice(&low.to_ne_bytes());
                bytes[8..].copy_from_slice(&high.to_ne_bytes());
                page.bytes_mut(TABLE + i * DESCRIPTOR, DESCRIPTOR).copy_from(SharedBytes::from(&bytes[..]));
            }
            // SAFETY: the slot's page and the segments' pages live until the token comes back or the device is reset
            // (`kill`): the slot keeps the transfer, and the transfer its pages.
            unsafe { ring.queue.add_indirect(slot, table, (count * DESCRIPTOR) as u32) }
        } else {
            // SAFETY: as above.
            unsafe { ring.queue.add(slot, chain.iter().copied()) }
        };
        if !added {
            ring.free.push(slot);
            return Err(transfer);
        }
        ring.slots[slot as usize].transfer = Some(transfer);
        Ok(())
    }

    /// Ends what the device has answered; returns how many.
    fn reap(&self, disk: &Queue<Self>) -> usize {
        let mut total = 0;
        for ring in &self.rings {
            loop {
                let mut done: SmallVec<[(Box<Transfer>, u8, u32); 16]> = SmallVec::new();
                let mut broken = false;
                {
                    let mut ring = ring.lock();
                    if ring.dead {
                        break;
                    }
                    while done.len() < 16 {
                        match ring.queue.pop() {
                            Ok(Some(used)) => match answered(&mut ring, used) {
                                Some(answer) => done.push(answer),
                                None => broken = true,
                            },
                            Ok(None) if ring.queue.arm() => {}
                            Ok(None) => break,
                            Err(_) => broken = true,
                        }
                        if broken {
                            break;
                        }
                    }
                }
                total += done.len();
                let more = done.len() == 16;
                for (transfer, status, len) in done {
                    let result = self.judge(&transfer, status, len);
                    disk.completed(transfer, result);
                }
                if broken {
                    self.kill(disk, "answered a request that it was not asked");
                }
                if !more || broken {
                    break;
                }
            }
        }
        if total > 0 {
            disk.run();
        }
        total
    }

    fn judge(&self, transfer: &Transfer, status: u8, len: u32) -> abi::Result<()> {
        let wanted = if transfer.op == Op::Read { transfer.sectors << block::SECTOR_SHIFT } else { 0 };
        let (error, why) = match status {
            0 if u64::from(len) > wanted => return Ok(()),
            // Old devices count no status byte, or nothing at all for writes.
            0 if u64::from(len) == wanted => return Ok(()),
            0 => (Errno::EIO, "read less than asked for"),
            1 => (Errno::EIO, "device error"),
            2 => return Err(Errno::EOPNOTSUPP),
            _ => (Errno::EIO, "no valid status"),
        };
        // Whoever retries for ever must not fill the log.
        if may_log() {
            crate::warn!(
                "{}: {why}: {:?} of {} sectors at {} (status {status}, {len} bytes)",
                self.name(),
                transfer.op,
                transfer.sectors,
                transfer.sector
            );
        }
        Err(error)
    }

    /// Whether an answer has been there for a while and nobody takes it. One that just came has its interrupt on the way,
    /// perhaps to a CPU that the hypervisor does not run at the moment, so the same one must be there a second later.
    fn lost_interrupt(&self) -> bool {
        let waiting = || -> SmallVec<[Option<u16>; 4]> {
            self.rings
                .iter()
                .map(|ring| Some(ring.lock()).filter(|r| !r.dead).and_then(|r| r.queue.waiting()))
                .collect()
        };
        let before = waiting();
        if before.iter().all(Option::is_none) {
            return false;
        }
        let deadline = platform::monotonic_ns() + 1_000_000_000;
        platform::park(platform::ParkOptions { interruptible: false, deadline_ns: Some(deadline) });
        before.iter().zip(waiting()).any(|(b, a)| b.is_some() && *b == a)
    }

    /// In how many rounds of the watch, one after the other, the same transfer was the oldest. Rounds, not the time that has
    /// passed: when the hypervisor pauses the machine for an hour, the clock goes on and the disk is not to blame.
    fn stuck_rounds(&self) -> u64 {
        let oldest = self.oldest().unwrap_or(0);
        if oldest == 0 || self.stuck_since.swap(oldest, Ordering::Relaxed) != oldest {
            self.stuck_rounds.store(0, Ordering::Relaxed);
            return 0;
        }
        self.stuck_rounds.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// When the oldest transfer in flight began.
    fn oldest(&self) -> Option<u64> {
        let began = |ring: &IrqLock<Ring>| {
            let ring = ring.lock();
            ring.slots.iter().filter_map(|s| s.transfer.as_ref().map(|t| t.began)).min()
        };
        self.rings.iter().filter_map(began).min()
    }

    /// Gives the device up: resets it, and ends all it held with `EIO`.
    fn kill(&self, disk: &Queue<Self>, why: &str) {
        if self.gone.swap(true, Ordering::AcqRel) {
            return;
        }
        crate::error!("{}: {why}; given up, all its requests fail from now on", self.name());
        for ring in &self.rings {
            ring.lock().dead = true;
        }
        let quiet = self.port.reset();
        if !quiet {
            crate::error!("{}: does not confirm its reset; its memory is not used again", self.name());
        }
        for ring in &self.rings {
            let held: Vec<Box<Transfer>> = ring.lock().slots.iter_mut().filter_map(|s| s.transfer.take()).collect();
            for transfer in held {
                if !quiet {
                    transfer.requests.iter().flat_map(|r| &r.segments).for_each(|s| core::mem::forget(s.page.clone()));
                }
                disk.completed(transfer, Err(Errno::EIO));
            }
        }
        disk.run();
    }

    fn config_changed(&self, disk: &Queue<Self>) {
        if self.port.needs_reset() {
            return self.kill(disk, "says that it has failed");
        }
        let whole = u64::from(self.geometry.logical_block >> block::SECTOR_SHIFT);
        let sectors = self.port.config64(config::CAPACITY) / whole * whole;
        let old = self.sectors.swap(sectors, Ordering::AcqRel);
        if old != sectors {
            crate::info!("{}: capacity changed from {old} to {sectors} sectors", self.name());
        }
    }
}

/// At most ten lines a second about failed requests.
fn may_log() -> bool {
    static SECOND: AtomicU64 = AtomicU64::new(0);
    static LINES: AtomicU64 = AtomicU64::new(0);
    let second = now_ns() / 1_000_000_000;
    if SECOND.swap(second, Ordering::Relaxed) != second {
        LINES.store(0, Ordering::Relaxed);
    }
    LINES.fetch_add(1, Ordering::Relaxed) < 10
}

/// Takes the transfer that `used` answers out of its slot, with its status byte. `None` if the slot is empty.
fn answered(ring: &mut Ring, used: Used) -> Option<(Box<Transfer>, u8, u32)> {
    let slot = ring.slots.get_mut(used.token as usize)?;
    let transfer = slot.transfer.take()?;
    let mut status = [0];
    slot.page.bytes(STATUS, 1).copy_to(&mut status);
    ring.free.push(used.token);
    Some((transfer, status[0], used.len))
}

impl<T: Transport + Send> Hardware for VirtioBlk<T> {
    fn geometry(&self) -> Geometry {
        Geometry { sectors: self.sectors.load(Ordering::Acquire), ..self.geometry }
    }

    fn start(&self, transfer: Box<Transfer>) -> Result<(), Refused> {
        let mut ring = self.rings[platform::cpu_id() % self.rings.len()].lock();
        if ring.dead || self.gone.load(Ordering::Acquire) {
            return Err(Refused::Gone(transfer));
        }
        self.put(&mut ring, transfer).map_err(Refused::Full)
    }

    fn kick(&self) {
        for (index, ring) in self.rings.iter().enumerate() {
            let kick = {
                let mut ring = ring.lock();
                !ring.dead && ring.queue.publish()
            };
            if kick {
                self.port.notify(index as u16);
            }
        }
    }
}
