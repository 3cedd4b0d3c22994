//! `/proc/berth`: what Berth's own tests and tools read.

use super::super::synth::{Kind, Node, Text};
use super::Entry;
use super::system::{Out, full};
use crate::arch::percpu;
use crate::arch::smp::is_online;
use crate::task::{Pid, process, trace};
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use vfs::FileType::Regular;

pub(super) const ENTRIES: &[Entry] = &[
    ("counters", Regular, || Node::text(counters)),
    ("cpus", Regular, || Node::text(cpus)),
    ("disks", Regular, || Node::text(super::disks::berth)),
    ("memory", Regular, || Node::text(memory)),
    ("pagetables", Regular, || Node::text(pagetables)),
    ("trace", Regular, || Node { kind: Kind::File(Arc::new(Trace)), mode: 0o600, owner: (0, 0) }),
];

/// Whose system calls are logged: numbers of processes; writing `PID` or `-PID` switches.
struct Trace;

impl Text for Trace {
    fn read(&self, out: &mut Vec<u8>) -> Result<()> {
        let mut next = 0;
        while let Some(p) = process::next_from(next) {
            next = p.pid.0 + 1;
            if trace::traced(&p) {
                writeln!(Out(out), "{}", p.pid.0).map_err(full)?;
            }
        }
        Ok(())
    }

    fn write(&self, text: &[u8]) -> Result<()> {
        let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?.trim();
        let (off, number) = text.strip_prefix('-').map_or((false, text), |n| (true, n));
        trace::set(Pid(number.parse().map_err(|_| Errno::EINVAL)?), !off)
    }
}

/// `name cpu0 cpu1 …`.
fn counters(out: &mut Vec<u8>) -> Result<()> {
    let mut o = Out(out);
    for &(what, name) in percpu::COUNTERS {
        o.write_str(name).map_err(full)?;
        for cpu in 0..percpu::listed() {
            write!(o, " {}", percpu::counter(cpu, what)).map_err(full)?;
        }
        o.write_str("\n").map_err(full)?;
    }
    Ok(())
}

/// One line a CPU: what identifies it, by both ways, and its ticks.
fn cpus(out: &mut Vec<u8>) -> Result<()> {
    let mut o = Out(out);
    let answers = percpu::identity_check();
    for cpu in 0..percpu::listed() {
        let mpidr = percpu::of(cpu).mpidr.get();
        let state = if is_online(cpu) { "online" } else { "offline" };
        // A CPU that does not answer shows -1 for both.
        let answer = answers.iter().find(|a| a.0 == cpu);
        let (fast, fallback) = answer.map_or((-1, -1), |a| (a.1 as i64, a.2 as i64));
        let ticks = percpu::counter(cpu, percpu::Counter::Ticks);
        writeln!(o, "cpu {cpu} mpidr {mpidr:#x} {state} fast={fast} fallback={fallback} ticks={ticks}")
            .map_err(full)?;
    }
    Ok(())
}

/// Frames, exact: what is only cached is given back first.
fn memory(out: &mut Vec<u8>) -> Result<()> {
    crate::mm::drain();
    let m = crate::mm::info();
    writeln!(
        Out(out),
        "free_frames {}\ntotal_frames {}\nslab_frames {}\ntable_frames {}\nstack_frames {}",
        m.free,
        m.total,
        m.slab,
        m.tables,
        m.stacks
    )
    .map_err(full)?;
    // Objects of the heap by size: size, in use, frames.
    writeln!(Out(out), "heap_large {}", crate::mm::heap::large_frames()).map_err(full)?;
    for (size, used, slabs) in crate::mm::heap::classes() {
        writeln!(Out(out), "heap_{size} {used} {slabs}").map_err(full)?;
    }
    Ok(())
}

/// The walk of the live page tables: the kernel's and every process's.
fn pagetables(out: &mut Vec<u8>) -> Result<()> {
    let kernel = crate::mm::wx::check_kernel();
    let (mut leaves, mut bad) = (kernel.leaves, 0);
    let mut misplaced = kernel.misplaced;
    let mut from = 1;
    while let Some(p) = crate::task::process::next_from(from) {
        from = p.pid.0 + 1;
        if let Some(space) = p.mm() {
            let v = crate::mm::wx::check_user(&space);
            leaves += v.leaves;
            bad += v.violations;
            misplaced += v.misplaced;
        }
    }
    writeln!(
        Out(out),
        "kernel_wx {}\nuser_wx {bad}\nmisplaced {misplaced}\nexecutable {}\nleaves {leaves}",
        kernel.violations,
        kernel.executable
    )
    .map_err(full)
}
