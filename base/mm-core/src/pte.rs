//! AArch64 stage 1 descriptors (Arm ARM D8.3), 4 KiB granule, 48-bit output addresses.
//!
//! Two forms: a [`Pte`] maps a page or a block or is empty, a table descriptor points to the next level. Bits 55-58 are left
//! to software; two are used:
//! - `SPECIAL`: the frame is not counted (the shared zero page, device memory).
//! - `BUSY` (with the valid bit clear): some CPU is replacing the entry, break-before-make (Arm ARM D8.14.1) is under way. Others
//!   wait for the new value.
//!
//! The access flag is always set: Berth does not sample it, and a fault for it would cost more than it tells. Dirty
//! tracking is by write protection, so hardware management of the flags (FEAT_HAFDBS) is not turned on either.

/// Memory types, by index into MAIR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemType {
    /// Device-nGnRE.
    Device = 0,
    /// Normal, write-back.
    Normal = 1,
    /// Normal, non-cacheable.
    NonCacheable = 2,
}

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attrs {
    /// Reachable from EL0 (and global if not).
    pub user: bool,
    /// Writable.
    pub write: bool,
    /// Executable: at EL0 if `user`, at EL1 if not; never at both.
    pub exec: bool,
    /// Memory type.
    pub mem: MemType,
}

impl Attrs {
    /// Kernel data: read and write.
    pub const KERNEL_DATA: Attrs = Attrs { user: false, write: true, exec: false, mem: MemType::Normal };
    /// Kernel constants.
    pub const KERNEL_RODATA: Attrs = Attrs { user: false, write: false, exec: false, mem: MemType::Normal };
    /// Kernel code.
    pub const KERNEL_TEXT: Attrs = Attrs { user: false, write: false, exec: true, mem: MemType::Normal };
    /// Device registers, for the kernel.
    pub const KERNEL_DEVICE: Attrs = Attrs { user: false, write: true, exec: false, mem: MemType::Device };
}

const VALID: u64 = 1;
const TABLE: u64 = 1 << 1;
const AP_USER: u64 = 1 << 6;
const AP_RO: u64 = 1 << 7;
const SH_INNER: u64 = 3 << 8;
const AF: u64 = 1 << 10;
const NG: u64 = 1 << 11;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const SPECIAL: u64 = 1 << 55;
const BUSY: u64 = 1 << 56;
/// Memory type and shareability.
const MEMORY: u64 = 7 << 2 | SH_INNER;
const ADDR: u64 = 0x0000_ffff_ffff_f000;

/// A descriptor that maps memory, or an invalid one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pte(pub u64);

impl Pte {
    /// Maps nothing.
    pub const NONE: Pte = Pte(0);
    /// Being replaced.
    pub const BUSY: Pte = Pte(BUSY);

    const fn flags(attrs: Attrs) -> u64 {
        let mut bits = VALID | AF | (attrs.mem as u64) << 2;
        if !matches!(attrs.mem, MemType::Device) {
            bits |= SH_INNER;
        }
        if !attrs.write {
            bits |= AP_RO;
        }
        if attrs.user {
            bits |= AP_USER | NG | PXN;
            if !attrs.exec {
                bits |= UXN;
            }
        } else {
            bits |= UXN;
            if !attrs.exec {
                bits |= PXN;
            }
        }
        bits
    }

    /// A page (level 3).
    #[inline]
    pub const fn page(pa: u64, attrs: Attrs) -> Pte {
        Pte(pa & ADDR | Self::flags(attrs) | TABLE)
    }

    /// A block (level 1 or 2).
    #[inline]
    pub const fn block(pa: u64, attrs: Attrs) -> Pte {
        Pte(pa & ADDR | Self::flags(attrs))
    }

    /// A user page that nobody may touch (`PROT_NONE`) but that keeps its frame: valid, not for EL0, not global.
    #[inline]
    pub const fn inaccessible(self) -> Pte {
        Pte(self.0 & !AP_USER | AP_RO | NG | UXN | PXN)
    }

    /// The same page with the permissions of `attrs` (not its memory type).
    #[inline]
    pub const fn with_attrs(self, attrs: Attrs) -> Pte {
        Pte(self.0 & (ADDR | SPECIAL | TABLE | MEMORY) | Self::flags(attrs) & !MEMORY)
    }

    /// The same, its frame not counted.
    #[inline]
    pub const fn special(self) -> Pte {
        Pte(self.0 | SPECIAL)
    }

    /// Whether its frame is not counted.
    #[inline]
    pub const fn is_special(self) -> bool {
        self.0 & SPECIAL != 0
    }

    /// Without the right to write.
    #[inline]
    pub const fn read_only(self) -> Pte {
        Pte(self.0 | AP_RO)
    }

    /// With the right to write (it must not be executable).
    #[inline]
    pub const fn writable(self) -> Pte {
        Pte(self.0 & !AP_RO)
    }

    /// Whether the hardware uses it.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Whether nothing was ever put here.
    #[inline]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether some CPU is replacing it.
    #[inline]
    pub const fn is_busy(self) -> bool {
        self.0 & (BUSY | VALID) == BUSY
    }

    /// Whether EL0 may reach it.
    #[inline]
    pub const fn is_user(self) -> bool {
        self.0 & (VALID | AP_USER) == VALID | AP_USER
    }

    /// Whether it may be written.
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 & (VALID | AP_RO) == VALID
    }

    /// Whether EL0 may execute it. The hardware looks at UXN alone; the access permission bounds it as well.
    #[inline]
    pub const fn user_exec(self) -> bool {
        self.0 & (VALID | UXN) == VALID
    }

    /// Whether EL1 may execute it.
    #[inline]
    pub const fn kernel_exec(self) -> bool {
        self.0 & (VALID | PXN) == VALID
    }

    /// The physical address.
    #[inline]
    pub const fn addr(self) -> u64 {
        self.0 & ADDR
    }

    /// The frame's number.
    #[inline]
    pub const fn frame(self) -> u32 {
        ((self.0 & ADDR) >> 12) as u32
    }

    /// Whether this is a table descriptor, at levels 0 to 2.
    #[inline]
    pub const fn is_table(self) -> bool {
        self.0 & (VALID | TABLE) == VALID | TABLE
    }

    /// A table descriptor.
    #[inline]
    pub const fn table(pa: u64) -> Pte {
        Pte(pa & ADDR | VALID | TABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_manual() {
        let rw = Attrs { user: true, write: true, exec: false, mem: MemType::Normal };
        assert_eq!(Pte::page(0x4000_1000, rw).0, 0x0060_0000_4000_1f47);
        let rx = Attrs { user: true, write: false, exec: true, mem: MemType::Normal };
        assert_eq!(Pte::page(0x4000_1000, rx).0, 0x0020_0000_4000_1fc7);
        assert_eq!(Pte::block(0x4000_0000, Attrs::KERNEL_DATA).0, 0x0060_0000_4000_0705);
        assert_eq!(Pte::page(0x900_0000, Attrs::KERNEL_DEVICE).0, 0x0060_0000_0900_0403);
        assert_eq!(Pte::page(0x4000_0000, Attrs::KERNEL_TEXT).0, 0x0040_0000_4000_0787);
    }

    #[test]
    fn inaccessible_pages_keep_their_frame() {
        let rx = Attrs { user: true, write: false, exec: true, mem: MemType::Normal };
        let p = Pte::page(0x1234_5000, rx).special().inaccessible();
        assert!(!p.is_user() && !p.is_writable() && !p.user_exec() && !p.kernel_exec());
        assert!(p.is_valid() && p.is_special());
        assert_eq!(p.with_attrs(rx), Pte::page(0x1234_5000, rx).special());
    }

    #[test]
    fn busy_is_neither_none_nor_valid() {
        assert!(Pte::BUSY.is_busy() && !Pte::BUSY.is_none() && !Pte::BUSY.is_valid());
    }
}
