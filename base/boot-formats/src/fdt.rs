//! A reader for flattened device trees (Devicetree Specification 0.4, chapter 5) that needs no memory of its own.
//!
//! **Idea.** [`Fdt::new`] walks the whole structure block once and refuses a blob that is not well formed: tokens out
//! of place, names without end, properties or string offsets that leave their block, nesting beyond [`MAX_DEPTH`],
//! a missing end. After that every reader may rely on the shape; they still read through checked accessors, so a
//! mistake in the check would show as a missing node, never as a panic or an endless loop.
//!
//! **Inheritance.** `reg` is laid out by the *parent's* `#address-cells` and `#size-cells`, and `interrupts` belongs to
//! an inherited `interrupt-parent`. A [`Node`] carries these three numbers, taken from its parents while walking down.
//! Addresses below a bus are the bus's own; [`Walk::translate`] takes them up through each parent's `ranges`.
//!
//! **Cost.** A property is found by a linear search in its node, a child by skipping the nodes before it. [`Walk`] sees
//! the tree once, front to back; code that wants many things should use it and not many searches.
//!
//! Not done: versions before 16 (older than arm64), writing, overlays, `dma-ranges`, interrupt maps of PCI hosts.

mod node;
mod walk;

pub use node::{Children, Interrupt, InterruptKind, Node, Property, Reg, RegIter};
pub use walk::Walk;
pub(crate) use walk::pairs_for_children;

/// Deepest nesting of nodes that is accepted. Real trees have about 6.
pub const MAX_DEPTH: usize = 32;

/// The first word of every blob, big endian.
pub const MAGIC: u32 = 0xd00d_feed;
/// Length in bytes of the version 17 header.
pub const HEADER_LEN: usize = 40;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Why a blob was refused. Offsets count from the start of the structure block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdtError {
    /// Shorter than a header, or than the `totalsize` in it.
    Truncated,
    /// The first word is not [`MAGIC`].
    BadMagic(u32),
    /// Neither version 16 nor 17, nor compatible with them.
    BadVersion(u32),
    /// A block's offset or size in the header leaves the blob, or is misaligned.
    BadHeader,
    /// The memory reservation block has no terminating entry.
    ReservationsUnterminated,
    /// A token that is unknown or out of place.
    BadToken(usize),
    /// A node's name that has no end or is not UTF-8.
    BadName(usize),
    /// A property whose value or name lies outside its block.
    BadProperty(usize),
    /// Nodes nested deeper than [`MAX_DEPTH`].
    TooDeep(usize),
}

impl core::fmt::Display for FdtError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated => write!(f, "device tree: truncated"),
            Self::BadMagic(magic) => write!(f, "device tree: bad magic {magic:#010x}"),
            Self::BadVersion(version) => write!(f, "device tree: version {version} is not readable"),
            Self::BadHeader => write!(f, "device tree: header points outside the blob"),
            Self::ReservationsUnterminated => write!(f, "device tree: memory reservations have no end"),
            Self::BadToken(at) => write!(f, "device tree: bad token at structure offset {at:#x}"),
            Self::BadName(at) => write!(f, "device tree: bad node name at structure offset {at:#x}"),
            Self::BadProperty(at) => write!(f, "device tree: bad property at structure offset {at:#x}"),
            Self::TooDeep(at) => write!(f, "device tree: nested too deep at structure offset {at:#x}"),
        }
    }
}

impl core::error::Error for FdtError {}

/// A well-formed device tree blob.
#[derive(Clone, Copy)]
pub struct Fdt<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    reservations: &'a [u8],
    total_size: usize,
    boot_cpu: u32,
}

/// One range of the memory reservation block; all of it is to be left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Physical address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(word.try_into().ok()?))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(word.try_into().ok()?))
}

/// The `totalsize` that a blob's header claims, for a caller that has mapped only the header so far and must map the
/// rest before [`Fdt::new`]. Checks the magic and that the size can hold a header; nothing else.
pub fn claimed_size(header: &[u8]) -> Result<usize, FdtError> {
    let magic = be32(header, 0).ok_or(FdtError::Truncated)?;
    if magic != MAGIC {
        return Err(FdtError::BadMagic(magic));
    }
    let size = be32(header, 4).ok_or(FdtError::Truncated)? as usize;
    if size < HEADER_LEN { Err(FdtError::BadHeader) } else { Ok(size) }
}

impl<'a> Fdt<'a> {
    /// Checks the blob at the start of `bytes` from end to end. `bytes` may be longer than the blob.
    pub fn new(bytes: &'a [u8]) -> Result<Self, FdtError> {
        let total_size = claimed_size(bytes)?;
        let blob = bytes.get(..total_size).ok_or(FdtError::Truncated)?;
        let field = |index: usize| be32(blob, index * 4).map(|v| v as usize).ok_or(FdtError::Truncated);
        let (structure_at, strings_at, reservations_at) = (field(2)?, field(3)?, field(4)?);
        let (version, compatible) = (field(5)?, field(6)?);
        if version < 16 || compatible > 17 {
            return Err(FdtError::BadVersion(version as u32));
        }
        if structure_at % 4 != 0 || reservations_at % 8 != 0 {
            return Err(FdtError::BadHeader);
        }
        let block =
            |at: usize, len: usize| at.checked_add(len).and_then(|end| blob.get(at..end)).ok_or(FdtError::BadHeader);
        let to_end = |at: usize| blob.get(at..).ok_or(FdtError::BadHeader);
        let structure = if version >= 17 { block(structure_at, field(9)?)? } else { to_end(structure_at)? };
        // What follows the last NUL cannot hold a name; without it, every name that starts inside also ends inside.
        let strings = block(strings_at, field(8)?)?;
        let names_end = strings.iter().rposition(|byte| *byte == 0).map_or(0, |last| last + 1);
        let fdt = Self {
            structure,
            strings: &strings[..names_end],
            reservations: to_end(reservations_at)?,
            total_size,
            boot_cpu: field(7)? as u32,
        };
        if !fdt.reservations_end() {
            return Err(FdtError::ReservationsUnterminated);
        }
        fdt.check_structure()?;
        Ok(fdt)
    }

    /// Length of the whole blob in bytes, as its header says.
    pub fn total_size(&self) -> usize {
        self.total_size
    }

    /// `boot_cpuid_phys` of the header.
    pub fn boot_cpu(&self) -> u32 {
        self.boot_cpu
    }

    /// The ranges of the memory reservation block (`/memreserve/`).
    pub fn reservations(&self) -> impl Iterator<Item = Reservation> + use<'a> {
        let block = self.reservations;
        (0..block.len() / 16)
            .map_while(move |i| Some(Reservation { address: be64(block, i * 16)?, size: be64(block, i * 16 + 8)? }))
            .take_while(|r| r.address != 0 || r.size != 0)
    }

    fn reservations_end(&self) -> bool {
        self.reservations.chunks_exact(16).any(|entry| entry.iter().all(|byte| *byte == 0))
    }

    /// The root node.
    pub fn root(&self) -> Node<'a> {
        // A checked tree has a root; were it not so, this node would be empty.
        let mut at = 0;
        while self.token(at) == Some(NOP) {
            at += 4;
        }
        Node::read(*self, at, node::Inherited::ROOT).unwrap_or(Node::empty(*self))
    }

    /// All nodes in the order of the blob: parents before children.
    pub fn walk(&self) -> Walk<'a> {
        Walk::new(self.root())
    }

    /// The first node compatible with any of `names`.
    pub fn find_compatible(&self, names: &[&str]) -> Option<Node<'a>> {
        self.walk().find(|node| node.is_compatible(names))
    }

    /// The node that `phandle` names.
    pub fn find_phandle(&self, phandle: u32) -> Option<Node<'a>> {
        self.walk().find(|node| node.phandle() == Some(phandle))
    }

    /// The node at an absolute path (`/soc/uart@9000000`), or one that starts with an alias (`serial0/child`). As in
    /// Linux and libfdt a component without `@` also matches a node whose name continues with a unit address.
    pub fn find_path(&self, path: &str) -> Option<Node<'a>> {
        if let Some(rest) = path.strip_prefix('/') {
            return self.descend(rest);
        }
        let (alias, rest) = path.split_once('/').unwrap_or((path, ""));
        let target = self.root().child("aliases")?.property(alias)?.as_str()?.strip_prefix('/')?;
        rest.split('/').filter(|c| !c.is_empty()).try_fold(self.descend(target)?, |node, c| node.child(c))
    }

    fn descend(&self, path: &str) -> Option<Node<'a>> {
        path.split('/').filter(|c| !c.is_empty()).try_fold(self.root(), |node, c| node.child(c))
    }

    fn token(&self, at: usize) -> Option<u32> {
        be32(self.structure, at)
    }

    /// The NUL-terminated string in the structure block at `at`, and the offset of the next token.
    fn name_at(&self, at: usize) -> Option<(&'a [u8], usize)> {
        let rest = self.structure.get(at..)?;
        let len = rest.iter().position(|byte| *byte == 0)?;
        Some((&rest[..len], (at + len + 1).next_multiple_of(4)))
    }

    /// The property whose token is at `at`, and the offset of the next token.
    fn property_at(&self, at: usize) -> Option<(Property<'a>, usize)> {
        let len = be32(self.structure, at.checked_add(4)?)? as usize;
        let name = self.strings.get(be32(self.structure, at.checked_add(8)?)? as usize..).filter(|s| !s.is_empty())?;
        let start = at.checked_add(12)?;
        let value = self.structure.get(start..start.checked_add(len)?)?;
        Some((Property::new(name, value), (start + len).next_multiple_of(4)))
    }

    fn check_structure(&self) -> Result<(), FdtError> {
        let (mut at, mut depth, mut seen_root) = (0, 0_usize, false);
        loop {
            let token = self.token(at).ok_or(FdtError::Truncated)?;
            at = match token {
                NOP => at + 4,
                BEGIN_NODE if depth > 0 || !seen_root => {
                    seen_root = true;
                    depth += 1;
                    if depth > MAX_DEPTH {
                        return Err(FdtError::TooDeep(at));
                    }
                    let (name, next) = self.name_at(at + 4).ok_or(FdtError::BadName(at))?;
                    core::str::from_utf8(name).map_err(|_| FdtError::BadName(at))?;
                    next
                }
                END_NODE if depth > 0 => {
                    depth -= 1;
                    at + 4
                }
                PROP if depth > 0 => self.property_at(at).ok_or(FdtError::BadProperty(at))?.1,
                END if depth == 0 && seen_root => return Ok(()),
                _ => return Err(FdtError::BadToken(at)),
            };
        }
    }
}

impl core::fmt::Debug for Fdt<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Fdt").field("total_size", &self.total_size).finish_non_exhaustive()
    }
}
