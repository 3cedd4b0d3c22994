//! `/sys` (sysfs(5)), as far as programs ask it for CPUs: C libraries, nproc, lscpu, thread pools.
//!
//! One socket with one cluster of as many cores as there are CPUs: what the device tree does not tell is not made up
//! further.

use super::procfs::{Entry, Fixed, line};
use super::synth::{Directory, Node, SynthFs};
use crate::arch::{percpu, smp};
use abi::{Errno, Result};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use vfs::FileType;
use vfs::FileType::{Dir, Regular};

const ROOT: &[Entry] = &[("devices", Dir, || Node::dir(Arc::new(Fixed(DEVICES))))];
const DEVICES: &[Entry] = &[("system", Dir, || Node::dir(Arc::new(Fixed(SYSTEM))))];
const SYSTEM: &[Entry] = &[("cpu", Dir, || Node::dir(Arc::new(Cpus)))];

/// The numbers for which `want` holds, as Linux writes lists of CPUs: `0-2,5`.
fn list(out: &mut Vec<u8>, want: impl Fn(usize) -> bool) -> Result<()> {
    let mut text = alloc::string::String::new();
    let mut cpu = 0;
    while cpu < percpu::listed() {
        if !want(cpu) {
            cpu += 1;
            continue;
        }
        let first = cpu;
        while cpu < percpu::listed() && want(cpu) {
            cpu += 1;
        }
        let comma = if text.is_empty() { "" } else { "," };
        text += &if cpu - first > 1 { format!("{comma}{first}-{}", cpu - 1) } else { format!("{comma}{first}") };
    }
    line(out, text.as_bytes())
}

const CPUS: &[Entry] = &[
    ("kernel_max", Regular, || Node::text(|o| line(o, format!("{}", percpu::MAX_CPUS - 1).as_bytes()))),
    ("offline", Regular, || Node::text(|o| list(o, |c| !smp::is_online(c)))),
    ("online", Regular, || Node::text(|o| list(o, smp::is_online))),
    ("possible", Regular, || Node::text(|o| list(o, |_| true))),
    ("present", Regular, || Node::text(|o| list(o, |_| true))),
];

/// `/sys/devices/system/cpu`.
struct Cpus;

impl Directory for Cpus {
    fn lookup(&self, name: &[u8]) -> Result<Node> {
        let number = name.strip_prefix(b"cpu").and_then(|n| core::str::from_utf8(n).ok());
        match number.and_then(|n| n.parse().ok()) {
            Some(cpu) if cpu < percpu::listed() => Ok(Node::dir(Arc::new(Cpu(cpu)))),
            _ => Fixed(CPUS).lookup(name),
        }
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        let mut all = Fixed(CPUS).list();
        all.extend((0..percpu::listed()).map(|c| (format!("cpu{c}").into_bytes(), Dir)));
        all
    }
}

/// `/sys/devices/system/cpu/cpuN`.
struct Cpu(usize);

impl Directory for Cpu {
    fn lookup(&self, name: &[u8]) -> Result<Node> {
        let cpu = self.0;
        match name {
            b"online" => Ok(Node::text(move |o| line(o, if smp::is_online(cpu) { b"1" } else { b"0" }))),
            b"topology" if smp::is_online(cpu) => Ok(Node::dir(Arc::new(Topology(cpu)))),
            _ => Err(Errno::ENOENT),
        }
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        let mut all = alloc::vec![(b"online".to_vec(), Regular)];
        if smp::is_online(self.0) {
            all.push((b"topology".to_vec(), Dir));
        }
        all
    }
}

/// `/sys/devices/system/cpu/cpuN/topology`.
struct Topology(usize);

const TOPOLOGY: [&str; 4] = ["core_id", "core_siblings_list", "physical_package_id", "thread_siblings_list"];

impl Directory for Topology {
    fn lookup(&self, name: &[u8]) -> Result<Node> {
        let cpu = self.0;
        match name {
            b"core_id" | b"thread_siblings_list" => Ok(Node::text(move |o| line(o, format!("{cpu}").as_bytes()))),
            b"physical_package_id" => Ok(Node::text(|o| line(o, b"0"))),
            b"core_siblings_list" => Ok(Node::text(|o| list(o, smp::is_online))),
            _ => Err(Errno::ENOENT),
        }
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        TOPOLOGY.iter().map(|n| (n.as_bytes().to_vec(), Regular)).collect()
    }
}

/// The file system of `/sys`.
pub fn new() -> Arc<SynthFs> {
    SynthFs::new("sysfs", 0x6265_6572, Node::dir(Arc::new(Fixed(ROOT))))
}
