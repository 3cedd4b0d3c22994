//! Processes as files (pidfd_open(2)).
//!
//! The file holds the process itself, so its number may be used again without this file meaning another. It is readable
//! for poll once every thread of the process is gone.

use super::anonymous_attr;
use crate::task::Process;
use abi::{Errno, Result};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use vfs::{Attr, File, OpenFile, PollEvents, Poller};

/// A process's file.
#[derive(Debug)]
pub struct PidFd {
    process: Arc<Process>,
}

impl PidFd {
    /// A file for `process`.
    pub fn new(process: Arc<Process>) -> Arc<PidFd> {
        Arc::new(PidFd { process })
    }

    /// The process that `file` stands for. `EBADF` for another kind of file.
    pub fn process_of(file: &OpenFile) -> Result<Arc<Process>> {
        file.object_as::<PidFd>().map(|p| p.process.clone()).ok_or(Errno::EBADF)
    }
}

impl File for PidFd {
    fn poll(&self, poller: Option<&mut dyn Poller>) -> PollEvents {
        if let Some(p) = poller {
            p.register(self.process.end_queue());
        }
        PollEvents::IN.when(self.process.has_ended())
    }

    fn getattr(&self) -> Result<Attr> {
        Ok(anonymous_attr())
    }

    fn name(&self) -> Vec<u8> {
        b"anon_inode:[pidfd]".to_vec()
    }

    fn fdinfo(&self) -> Vec<u8> {
        let pid = if self.process.is_collected() { -1 } else { self.process.pid.0 as i32 };
        format!("Pid:\t{pid}\nNSpid:\t{pid}\n").into_bytes()
    }
}
