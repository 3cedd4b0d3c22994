//! `/proc` (proc(5)): what the kernel tells about itself and its processes.
//!
//! Everything is generated when a file is opened ([`super::synth`]); a process directory holds a reference to the process,
//! so that it stays readable while open, and answers `ESRCH` or nothing once the process is gone. `/proc/berth` has what
//! Berth's own tests and tools read: per-CPU counters, frames, CPU identities, the verdict on page tables.

mod berth;
mod disks;
mod memory;
mod netinfo;
mod process;
mod sysctl;
mod system;

use super::synth::{Directory, Node, SynthFs};
use crate::task::ids::Pid;
use crate::task::process as processes;
use abi::{Errno, Result};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use vfs::FileType;

/// A directory with fixed entries.
pub(super) struct Fixed(pub &'static [Entry]);

pub(super) use system::line;
pub(crate) use system::{Out, full};

/// One of them: name, type, and what makes the node.
pub(super) type Entry = (&'static str, FileType, fn() -> Node);

impl Directory for Fixed {
    fn lookup(&self, name: &[u8]) -> Result<Node> {
        self.0.iter().find(|e| e.0.as_bytes() == name).map(|e| (e.2)()).ok_or(Errno::ENOENT)
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        self.0.iter().map(|e| (e.0.as_bytes().to_vec(), e.1)).collect()
    }
}

/// A directory with the entries of both.
pub(super) struct Two(pub &'static [Entry], pub &'static [Entry]);

impl Directory for Two {
    fn lookup(&self, name: &[u8]) -> Result<Node> {
        Fixed(self.0).lookup(name).or_else(|_| Fixed(self.1).lookup(name))
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        let mut all = Fixed(self.0).list();
        all.extend(Fixed(self.1).list());
        all
    }
}

struct Root;

fn parse_pid(name: &[u8]) -> Option<Pid> {
    if name.first() == Some(&b'0') {
        return None;
    }
    core::str::from_utf8(name).ok()?.parse().ok().map(Pid)
}

impl Directory for Root {
    fn lookup(&self, name: &[u8]) -> Result<Node> {
        if let Some(pid) = parse_pid(name) {
            if let Some(p) = processes::find(pid) {
                return Ok(process::directory(&p, None));
            }
            let t = processes::find_thread(pid).ok_or(Errno::ENOENT)?;
            return Ok(process::directory(&t.process.clone(), Some(t)));
        }
        match name {
            b"self" => Ok(Node::link(|| Ok(format!("{}", crate::sched::current().process.pid).into_bytes()))),
            b"thread-self" => Ok(Node::link(|| {
                let t = crate::sched::current();
                Ok(format!("{}/task/{}", t.process.pid, t.tid()).into_bytes())
            })),
            _ => Fixed(system::ENTRIES).lookup(name),
        }
    }

    fn list(&self) -> Vec<(Vec<u8>, FileType)> {
        let mut all = Fixed(system::ENTRIES).list();
        all.push((b"self".to_vec(), FileType::Symlink));
        all.push((b"thread-self".to_vec(), FileType::Symlink));
        let mut from = 1;
        while let Some(p) = processes::next_from(from) {
            all.push((format!("{}", p.pid).into_bytes(), FileType::Dir));
            from = p.pid.0 + 1;
        }
        all
    }
}

/// The file system of `/proc`.
pub fn new() -> Arc<SynthFs> {
    SynthFs::new("proc", 0x9fa0, Node::dir(Arc::new(Root)))
}
