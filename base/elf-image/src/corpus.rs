//! Malformed programs as code, each with what execve(2) must say of it; a few that must start, so that a test which
//! refuses everything is caught.
//!
//! All are made from the same small image, whose code is `exit_group(0)`, by changing one thing. The example `malformed`
//! writes them to files for a running kernel.
//!
//! Held against Linux 6.1: what must run runs there too. Of what is refused here Linux takes those on which the crate's
//! documentation calls itself stricter (class, byte order, last page, 33 segments), kills the process where it notices
//! too late for an error, and gives other errors where a path is empty or cannot be read.

mod cases;
mod image;

pub use cases::cases;
pub use image::{Image, Phdr};

use crate::ElfError;
use alloc::vec::Vec;

/// What must come of executing a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It starts and exits with 0.
    Runs,
    /// [`parse`](crate::parse) and execve(2) refuse it so.
    Refused(ElfError),
    /// [`parse`](crate::parse) takes it; execve(2) may refuse it, or the program may die of a signal.
    MayDie,
}

impl Verdict {
    /// What execve(2) gives, as a test program reads it: `0` runs, an errno's name, or `any`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Runs => "0",
            Self::Refused(ElfError::NotExec) => "ENOEXEC",
            Self::Refused(ElfError::Invalid) => "EINVAL",
            Self::MayDie => "any",
        }
    }
}

/// One program.
#[derive(Clone, Debug)]
pub struct Case {
    /// A file name that says what is wrong.
    pub name: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
    /// What must come of it.
    pub verdict: Verdict,
}
