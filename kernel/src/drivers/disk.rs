//! Disks and their partitions, whoever drives them: names, numbers, and the watch over them.
//!
//! Drivers [`register`] a disk at boot; [`scan`] reads the partition tables once threads can sleep. A disk has sixteen minor
//! numbers under one major, as Linux' virtio-blk: the whole disk first, then partitions 1 to 15. (Partitions from 16 on are
//! known by name but have no node.)
//!
//! **The watch** is a kernel thread that wakes every few seconds and lets each driver look for answers whose interrupt was
//! lost and for a device that has stopped answering; it also pokes the entropy device.
//!
//! Locking: the list is under one spin lock, held only to copy references.

use crate::task::Thread;
use abi::{Errno, Result};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::BlockDevice;
use block::partition::{self, Partition, Table};
use platform::ParkOptions;
use sync::{LockClass, SpinLock};

/// The major number of virtio disks (Linux takes a free one, in practice this).
pub const MAJOR: u64 = 254;
/// Minor numbers of each disk.
pub const MINORS: u32 = 16;
/// Letters `a` to `z`.
const MAX_DISKS: usize = 26;
/// How often the watch looks, in nanoseconds.
pub const WATCH_NS: u64 = 5_000_000_000;
/// The watch asks for entropy every so many rounds: five minutes.
const REFILL_ROUNDS: u64 = 60;

static CLASS: LockClass = LockClass::new("disks", sync::rank::SPIN + 97);
static DISKS: SpinLock<Vec<Disk>> = SpinLock::new(&CLASS, Vec::new());

/// What the watch asks of a driver.
pub trait Watched: Send + Sync {
    /// Looks after the device, every [`WATCH_NS`]. Context: thread.
    fn watch(&self);
}

struct Disk {
    device: Arc<dyn BlockDevice>,
    watched: Arc<dyn Watched>,
    partitions: Vec<Arc<Partition>>,
}

/// A disk or a partition, with its number.
#[derive(Clone)]
pub struct Node {
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// Its minor number under [`MAJOR`].
    pub minor: u32,
    /// Whether it is a whole disk.
    pub whole: bool,
}

/// Gives the next disk its name (`vda`, `vdb` …), lets `make` make it under that, and lists it. Context: boot.
pub fn register<D: BlockDevice + Watched + 'static>(make: impl FnOnce(&str) -> Arc<D>) -> Arc<D> {
    let index = DISKS.lock().len().min(MAX_DISKS - 1);
    let device = make(&format!("vd{}", char::from(b'a' + index as u8)));
    let entry = Disk { device: device.clone(), watched: device.clone(), partitions: Vec::new() };
    DISKS.lock().push(entry);
    device
}

/// Reads the partition tables of all disks and starts the watch. Once, by process 1. May sleep.
pub fn scan() {
    let disks: Vec<_> = DISKS.lock().iter().map(|d| d.device.clone()).collect();
    for device in &disks {
        if let Err(e) = rescan(&**device) {
            crate::warn!("{}: cannot read its partition table: {e}", device.name());
        }
    }
    if !disks.is_empty() {
        match Thread::new_kernel("diskwatch", watch, 0) {
            Some(t) if crate::sched::spawn(t.clone()).is_ok() => {}
            _ => crate::warn!("no memory for the thread that watches disks"),
        }
    }
}

extern "C" fn watch(_: usize) {
    let mut round = 0u64;
    loop {
        let now = crate::arch::time::now_ns();
        let _ = platform::park(ParkOptions { deadline_ns: Some(now + WATCH_NS), ..Default::default() });
        let watched: Vec<_> = DISKS.lock().iter().map(|d| d.watched.clone()).collect();
        watched.iter().for_each(|w| w.watch());
        round += 1;
        if round.is_multiple_of(REFILL_ROUNDS) {
            super::virtio::rng::refill();
        }
    }
}

/// Reads the partition table of the disk `device` again. `EBUSY` while a partition is in use, `EINVAL` for what is no
/// disk. May sleep.
pub fn rescan(device: &dyn BlockDevice) -> Result<()> {
    let (table, entries) = partition::read_table(device)?;
    if table == Table::GptBackup {
        crate::warn!("{}: its first partition table is damaged; the copy at its end is used", device.name());
    }
    let mut disks = DISKS.lock();
    let disk = disks.iter_mut().find(|d| d.device.name() == device.name()).ok_or(Errno::EINVAL)?;
    // A partition that is open or mounted has references beside ours.
    if disk.partitions.iter().any(|p| Arc::strong_count(p) > 1) {
        return Err(Errno::EBUSY);
    }
    let fresh = entries.iter().map(|e| Arc::new(Partition::new(disk.device.clone(), e))).collect();
    let old = core::mem::replace(&mut disk.partitions, fresh);
    let names: Vec<String> = disk.partitions.iter().map(|p| p.name().into()).collect();
    drop(disks);
    let gone = old.iter().map(|p| p.name()).filter(|n| !names.iter().any(|new| new == n));
    crate::file::root::update_nodes(gone);
    drop(old);
    if !names.is_empty() {
        crate::info!("{}: {table:?} partitions: {}", device.name(), names.join(" "));
    }
    Ok(())
}

/// All disks and partitions in the order of their numbers.
pub fn all() -> Vec<Node> {
    let mut nodes = Vec::new();
    for (index, disk) in DISKS.lock().iter().enumerate() {
        let first = index as u32 * MINORS;
        nodes.push(Node { device: disk.device.clone(), minor: first, whole: true });
        for p in &disk.partitions {
            if p.number() < MINORS {
                nodes.push(Node { device: p.clone(), minor: first + p.number(), whole: false });
            }
        }
    }
    nodes
}

/// The device with this minor number. `ENXIO`.
pub fn by_minor(minor: u32) -> Result<Node> {
    all().into_iter().find(|n| n.minor == minor).ok_or(Errno::ENXIO)
}

/// The device of this name, with or without `/dev/` before it: what `root=` and mount(2) say.
#[allow(dead_code, reason = "mount(2) of disks comes with their file systems")]
pub fn by_name(name: &[u8]) -> Option<Arc<dyn BlockDevice>> {
    let name = name.strip_prefix(b"/dev/").unwrap_or(name);
    all().into_iter().find(|n| n.device.name().as_bytes() == name).map(|n| n.device)
}

/// The device with the number `rdev` of a block special file. `ENXIO`.
pub fn by_rdev(rdev: u64) -> Result<Arc<dyn BlockDevice>> {
    use crate::file::devfs;
    if devfs::major(rdev) == MAJOR { by_minor(devfs::minor(rdev) as u32).map(|n| n.device) } else { Err(Errno::ENXIO) }
}
