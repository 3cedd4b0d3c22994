//! `/proc/diskstats`, `/proc/partitions`, `/proc/devices`: what there is and what it has done.

use super::system::{Out, full};
use crate::drivers::disk;
use abi::Result;
use alloc::vec::Vec;
use block::Kind;
use core::fmt::Write;

/// Linux's Documentation/admin-guide/iostats.rst: seventeen numbers per device, times in milliseconds.
pub(super) fn diskstats(o: &mut Vec<u8>) -> Result<()> {
    for node in disk::all() {
        let s = node.device.stats().snapshot();
        let mut out = Out(o);
        write!(out, "{:4} {:7} {}", disk::MAJOR, node.minor, node.device.name()).map_err(full)?;
        let ms = |ns: u64| ns / 1_000_000;
        for kind in [Kind::Read, Kind::Write] {
            let k = kind as usize;
            write!(out, " {} {} {} {}", s.requests[k], s.merges[k], s.sectors[k], ms(s.ns[k])).map_err(full)?;
        }
        write!(out, " {} {} {}", s.in_flight, ms(s.busy_ns), ms(s.weighted_ns)).map_err(full)?;
        let k = Kind::Discard as usize;
        write!(out, " {} {} {} {}", s.requests[k], s.merges[k], s.sectors[k], ms(s.ns[k])).map_err(full)?;
        let k = Kind::Flush as usize;
        writeln!(out, " {} {}", s.requests[k], ms(s.ns[k])).map_err(full)?;
    }
    Ok(())
}

/// Names and sizes in KiB.
pub(super) fn partitions(o: &mut Vec<u8>) -> Result<()> {
    let mut out = Out(o);
    writeln!(out, "major minor  #blocks  name\n").map_err(full)?;
    for node in disk::all() {
        let kib = node.device.geometry().bytes() / 1024;
        writeln!(out, "{:4} {:8} {:10} {}", disk::MAJOR, node.minor, kib, node.device.name()).map_err(full)?;
    }
    Ok(())
}

/// Major numbers in use.
pub(super) fn devices(o: &mut Vec<u8>) -> Result<()> {
    let text = "Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n136 pts\n204 ttyAMA\n\nBlock devices:\n";
    writeln!(Out(o), "{text}{:3} virtblk", disk::MAJOR).map_err(full)
}

/// What `/proc/berth/disks` tells beyond that: the deepest queue seen, and failures.
pub(super) fn berth(o: &mut Vec<u8>) -> Result<()> {
    for node in disk::all().into_iter().filter(|n| n.whole) {
        let s = node.device.stats().snapshot();
        let g = node.device.geometry();
        writeln!(
            Out(o),
            "{} sectors {} block {} segments {} bytes {} flush {} discard {} zeroes {} max_in_flight {} errors {}",
            node.device.name(),
            g.sectors,
            g.logical_block,
            g.max_segments,
            g.max_bytes,
            u8::from(g.flush),
            u8::from(g.discard),
            u8::from(g.write_zeroes),
            s.max_in_flight,
            s.errors
        )
        .map_err(full)?;
    }
    Ok(())
}
