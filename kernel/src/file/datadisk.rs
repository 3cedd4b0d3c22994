//! Disks that keep what is written: mounting datafs (ext4), and the threads behind it.
//!
//! A device is mounted once at a time. Each mount has a thread that commits and checkpoints; it holds no reference that
//! would keep the file system mounted, and ends when that is gone. Metadata in memory is given back when memory is short.

use crate::drivers::claims::Claim;
use crate::task::Thread;
use abi::{Errno, Result};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::BlockDevice;
use datafs::{DataFs, Footprint, Keeper, Options, Shrinker};
use platform::ParkOptions;
use smallvec::SmallVec;
use sync::{LockClass, Once, SpinLock, rank};
use vfs::{FileSystem, MountFlags};

static SHRINKERS: LockClass = LockClass::new("metadata shrinkers", rank::SPIN + 90);

static METADATA: SpinLock<Vec<Shrinker>> = SpinLock::new(&SHRINKERS, Vec::new());

/// Mounts the ext4 file system on `device`, whose number is `rdev`; says in the log why it does not. `EBUSY` if it is mounted
/// already.
pub fn mount(device: Arc<dyn BlockDevice>, rdev: u64, flags: u32, options: &str) -> Result<Arc<dyn FileSystem>> {
    let log: fn(&str) = |m| crate::warn!("{m}");
    let mut with = Options { log, ..Options::default() }.parse(options)?;
    with.read_only |= flags & MountFlags::RDONLY != 0;
    let claim = Claim::take(rdev)?;
    let name = alloc::string::String::from(device.name());
    let fs = DataFs::mount(device, crate::mm::reclaim::page_cache().clone(), with, rdev).map_err(|refused| {
        crate::warn!("datafs: {name}: {}", refused.why);
        refused.errno
    })?;
    fs.hold(Box::new(claim));
    remember(fs.shrinker());
    // A read-only one may be remounted.
    keep(fs.keeper())?;
    Ok(fs)
}

fn remember(shrinker: Shrinker) {
    static REGISTERED: Once<()> = Once::new();
    {
        let mut all = METADATA.lock();
        all.retain(|s| s.shrink(0).is_some());
        all.push(shrinker);
    }
    if REGISTERED.set(()).is_ok() {
        crate::mm::oom::register_shrinker(shrink);
    }
}

/// The file systems whose metadata can be looked at now. Allocates nothing for a few.
fn shrinkers() -> SmallVec<[Shrinker; 8]> {
    METADATA.try_lock().map(|all| all.iter().take(8).cloned().collect()).unwrap_or_default()
}

/// Called where memory is short, whatever locks the caller has.
fn shrink(pages: usize) -> usize {
    shrinkers().iter().filter_map(|s| s.shrink(pages)).sum()
}

/// Gives back one of `share` blocks of metadata in memory, if nobody needs them; how many that were. Context: thread that
/// holds no spin lock.
pub fn shrink_share(share: usize) -> usize {
    let part = |s: &Shrinker| {
        let blocks = s.footprint()?.blocks.div_ceil(1024);
        s.shrink(blocks / share)
    };
    shrinkers().iter().filter_map(part).sum()
}

/// Gives back all metadata that nobody needs, after writing what the journals keep for that. Context: thread that holds no
/// locks; may sleep for I/O.
pub fn shrink_all() {
    let _ = shrinkers().iter().filter_map(Shrinker::relieve).count();
    shrink_share(1);
}

/// Memory used for metadata of all mounted disks. Context: thread that holds no spin lock.
pub fn footprint() -> Footprint {
    shrinkers()
        .iter()
        .filter_map(Shrinker::footprint)
        .fold(Footprint::default(), |sum, f| Footprint { blocks: sum.blocks + f.blocks, inodes: sum.inodes + f.inodes })
}

fn keep(keeper: Keeper) -> Result<()> {
    let arg = Box::into_raw(Box::new(keeper)) as usize;
    let started = Thread::new_kernel("datafs", run, arg).map(crate::sched::spawn);
    if matches!(started, Some(Ok(()))) { Ok(()) } else { Err(Errno::ENOMEM) }
}

extern "C" fn run(arg: usize) {
    // SAFETY: `keep` made the pointer from a box and passed it on once.
    let keeper = unsafe { Box::from_raw(arg as *mut Keeper) };
    while let Some(deadline) = keeper.round() {
        // A second at most, so that an unmounted file system's thread ends soon.
        let deadline = deadline.min(platform::monotonic_ns() + 1_000_000_000);
        let _ = platform::park(ParkOptions { deadline_ns: Some(deadline), ..ParkOptions::default() });
    }
    drop(keeper);
    crate::sched::exit_current()
}
