//! `/proc/PID/maps`, `smaps` and `smaps_rollup`: a process's mappings, and the pages present in each.

use super::system::{Out, full};
use crate::mm::{AreaInfo, Pages, Prot, VmFlags};
use crate::task::process::Process;
use abi::{Errno, Result};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// One line of `maps`.
fn area(o: &mut Out<'_>, a: &AreaInfo<'_>) -> core::fmt::Result {
    let flag = |on: bool, c: char| if on { c } else { '-' };
    let (dev, ino) = a.object.map_or((0, 0), |m| m.identity());
    write!(
        o,
        "{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {ino} ",
        a.range.start,
        a.range.end,
        flag(a.prot.contains(Prot::READ), 'r'),
        flag(a.prot.contains(Prot::WRITE), 'w'),
        flag(a.prot.contains(Prot::EXEC), 'x'),
        if a.flags.contains(VmFlags::SHARED) && !a.flags.contains(VmFlags::VDSO) { 's' } else { 'p' },
        a.offset,
        dev >> 8 & 0xfff,
        dev & 0xff
    )?;
    match (a.label, a.object) {
        (Some(label), _) => write!(o, "                 {label}")?,
        (None, Some(object)) => {
            o.write_str("                 ")?;
            o.write_str(&String::from_utf8_lossy(&object.name()))?;
        }
        (None, None) => {}
    }
    o.write_str("\n")
}

/// What `smaps` says below it.
fn pages(o: &mut Out<'_>, size: usize, p: &Pages) -> core::fmt::Result {
    let kib = |n: usize| n * 4;
    write!(
        o,
        "Size:           {:8} kB\nKernelPageSize:        4 kB\nMMUPageSize:           4 kB\nRss:            {:8} kB\n\
         Pss:            {:8} kB\nShared_Clean:   {:8} kB\nShared_Dirty:   {:8} kB\nPrivate_Clean:  {:8} kB\n\
         Private_Dirty:  {:8} kB\nReferenced:     {:8} kB\nAnonymous:      {:8} kB\n",
        size / 1024,
        kib(p.present()),
        p.proportional / 1024,
        kib(p.shared_clean),
        kib(p.shared_dirty),
        kib(p.private_clean),
        kib(p.private_dirty),
        kib(p.present()),
        kib(p.anonymous),
    )
}

fn flags(o: &mut Out<'_>, a: &AreaInfo<'_>) -> core::fmt::Result {
    let locked = a.flags.contains(VmFlags::LOCKED);
    write!(
        o,
        "Locked:         {:8} kB\nTHPeligible:           0\nVmFlags:",
        if locked { a.range.len() / 1024 } else { 0 }
    )?;
    for (on, word) in [
        (a.prot.contains(Prot::READ), " rd"),
        (a.prot.contains(Prot::WRITE), " wr"),
        (a.prot.contains(Prot::EXEC), " ex"),
        (a.flags.contains(VmFlags::SHARED), " sh"),
        (a.flags.contains(VmFlags::GROWSDOWN), " gd"),
        (locked, " lo"),
        (a.flags.contains(VmFlags::DONTFORK), " dc"),
        (a.flags.contains(VmFlags::DONTDUMP), " dd"),
        (a.flags.contains(VmFlags::NORESERVE), " nr"),
    ] {
        o.write_str(if on { word } else { "" })?;
    }
    o.write_str("\n")
}

/// Calls `each` for every mapping; none of a kernel thread or a dead process.
fn walk(p: &Process, mut each: impl FnMut(&AreaInfo<'_>) -> core::fmt::Result) -> Result<()> {
    let Some(space) = p.mm() else { return Ok(()) };
    let mut failed = false;
    space.for_each_area(|a| failed |= each(a).is_err());
    if failed { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// `/proc/PID/maps`
pub(super) fn maps(p: &Process, out: &mut Vec<u8>) -> Result<()> {
    walk(p, |a| area(&mut Out(&mut *out), a))
}

/// `/proc/PID/smaps`
pub(super) fn smaps(p: &Process, out: &mut Vec<u8>) -> Result<()> {
    walk(p, |a| {
        let mut o = Out(&mut *out);
        area(&mut o, a)?;
        pages(&mut o, a.range.len(), &a.pages())?;
        flags(&mut o, a)
    })
}

/// `/proc/PID/smaps_rollup`: the sums.
pub(super) fn smaps_rollup(p: &Process, out: &mut Vec<u8>) -> Result<()> {
    let (mut sum, mut size, mut ends) = (Pages::default(), 0, None);
    walk(p, |a| {
        sum.add(&a.pages());
        size += a.range.len();
        ends = Some((ends.map_or(a.range.start, |e: (usize, usize)| e.0), a.range.end));
        Ok(())
    })?;
    let Some((start, end)) = ends else { return Ok(()) };
    let mut o = Out(out);
    writeln!(o, "{start:08x}-{end:08x} ---p 00000000 00:00 0                          [rollup]").map_err(full)?;
    pages(&mut o, size, &sum).map_err(full)
}
