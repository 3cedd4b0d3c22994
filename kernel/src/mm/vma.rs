//! One mapping's properties.

use super::{Mapped, PAGE_SIZE};
use alloc::sync::Arc;
use mm_core::pte::{Attrs, MemType};
use mm_core::vma::Area;

bitflags::bitflags! {
    /// What a program may do with a mapping (`PROT_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Prot: u8 {
        /// Load.
        const READ = 1;
        /// Store; means load too.
        const WRITE = 2;
        /// Execute; means load too.
        const EXEC = 4;
    }

    /// Properties of a mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct VmFlags: u16 {
        /// Writes are seen by all who map the object.
        const SHARED = 1 << 0;
        /// Extends down on faults below (the main stack).
        const GROWSDOWN = 1 << 1;
        /// Pages are present always (mlock).
        const LOCKED = 1 << 2;
        /// A fork's child does not get it.
        const DONTFORK = 1 << 3;
        /// A fork's child gets zeroes.
        const WIPEONFORK = 1 << 4;
        /// Not counted against overcommit.
        const NORESERVE = 1 << 5;
        /// May not be made writable (a shared mapping of a file opened for reading).
        const NOWRITE = 1 << 6;
        /// Left out of core dumps.
        const DONTDUMP = 1 << 7;
        /// May not be made executable (the file system is mounted noexec).
        const NOEXEC = 1 << 8;
        /// The kernel's own page (vDSO): no munmap accounting, named in maps.
        const VDSO = 1 << 9;
    }
}

/// What is behind a mapping.
#[derive(Clone)]
pub enum Backing {
    /// Zeroes until written.
    Anon,
    /// A file or other object, from this byte on.
    Object {
        /// The object.
        object: Mapped,
        /// Where in it the mapping starts, page-aligned.
        offset: u64,
    },
    /// Physical addresses, not counted (device windows, vDSO).
    Phys {
        /// The first.
        pa: u64,
        /// How it is accessed.
        mem: MemType,
    },
}

impl core::fmt::Debug for Backing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Backing::Anon => f.write_str("Anon"),
            Backing::Object { offset, .. } => write!(f, "Object+{offset:#x}"),
            Backing::Phys { pa, .. } => write!(f, "Phys {pa:#x}"),
        }
    }
}

/// A mapping.
#[derive(Clone, Debug)]
pub struct Vma {
    /// What the program may do.
    pub prot: Prot,
    /// How it behaves.
    pub flags: VmFlags,
    /// What is behind it.
    pub backing: Backing,
}

/// Free bytes kept below a stack.
pub const STACK_GUARD: usize = 256 * PAGE_SIZE;

impl Area for Vma {
    fn advanced(&self, bytes: usize) -> Self {
        let backing = match &self.backing {
            Backing::Anon => Backing::Anon,
            Backing::Object { object, offset } => {
                Backing::Object { object: object.clone(), offset: offset + bytes as u64 }
            }
            Backing::Phys { pa, mem } => Backing::Phys { pa: pa + bytes as u64, mem: *mem },
        };
        // What is cut off the lower end of a stack is the stack still; the upper part grows no more.
        Vma { prot: self.prot, flags: self.flags, backing }
    }

    fn joins(&self, next: &Self, len: usize) -> bool {
        self.prot == next.prot
            && self.flags == next.flags
            && !self.flags.contains(VmFlags::GROWSDOWN)
            && match (&self.backing, &next.backing) {
                (Backing::Anon, Backing::Anon) => true,
                (Backing::Object { object: a, offset: x }, Backing::Object { object: b, offset: y }) => {
                    Arc::ptr_eq(a.object(), b.object()) && x + len as u64 == *y
                }
                _ => false,
            }
    }

    fn guard(&self) -> usize {
        if self.flags.contains(VmFlags::GROWSDOWN) { STACK_GUARD } else { 0 }
    }
}

impl Vma {
    /// Whether writes stay in this space.
    #[inline]
    pub fn is_private(&self) -> bool {
        !self.flags.contains(VmFlags::SHARED)
    }

    /// Whether it counts against the commit limit and `RLIMIT_DATA`.
    #[inline]
    pub fn is_accounted(&self) -> bool {
        self.is_accounted_with(self.prot)
    }

    /// Whether it would if its permissions were `prot`.
    #[inline]
    pub fn is_accounted_with(&self, prot: Prot) -> bool {
        self.is_private()
            && prot.contains(Prot::WRITE)
            && !self.flags.contains(VmFlags::NORESERVE)
            && !matches!(self.backing, Backing::Phys { .. })
    }

    /// Entry attributes for what `prot` allows.
    #[inline]
    pub fn attrs(&self) -> Attrs {
        attrs_of(self.prot)
    }
}

/// Entry attributes for `prot`, in normal memory.
#[inline]
pub fn attrs_of(prot: Prot) -> Attrs {
    Attrs {
        user: !prot.is_empty(),
        write: prot.contains(Prot::WRITE),
        exec: prot.contains(Prot::EXEC),
        mem: MemType::Normal,
    }
}
