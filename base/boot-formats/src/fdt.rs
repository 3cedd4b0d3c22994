//! The flattened device tree (Devicetree Specification 0.4, chapter 5), read in place without allocation.
//!
//! Every offset and length is checked against the blob; a damaged tree reads as one that ends early, and depth and token
//! counts are bounded by the blob's length, so nothing loops.

/// Why a blob is no device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdtError {
    /// Shorter than a header, or than its own size.
    Truncated,
    /// The magic number is wrong.
    BadMagic,
    /// A version that readers of version 17 cannot read.
    BadVersion,
    /// A block lies outside the blob.
    BadLayout,
}

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;

/// The deepest nesting that is looked at.
pub const MAX_DEPTH: usize = 16;

/// A device tree.
#[derive(Clone, Copy, Debug)]
pub struct Fdt<'a> {
    blob: &'a [u8],
    structure: &'a [u8],
    strings: &'a [u8],
    reserve_at: usize,
}

fn be32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn be64(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// The bytes up to the first NUL.
fn c_str(b: &[u8]) -> Option<&[u8]> {
    Some(&b[..b.iter().position(|&c| c == 0)?])
}

impl<'a> Fdt<'a> {
    /// Checks the header of the tree at the start of `bytes` (which may be longer than it).
    pub fn new(bytes: &'a [u8]) -> Result<Self, FdtError> {
        let word = |i: usize| be32(bytes, i * 4).ok_or(FdtError::Truncated);
        if word(0)? != MAGIC {
            return Err(FdtError::BadMagic);
        }
        let total = word(1)? as usize;
        let (structure_at, strings_at, reserve_at) = (word(2)? as usize, word(3)? as usize, word(4)? as usize);
        let (version, compatible) = (word(5)?, word(6)?);
        let (strings_len, structure_len) = (word(8)? as usize, word(9)? as usize);
        if version < 17 || compatible > 17 {
            return Err(FdtError::BadVersion);
        }
        let blob = bytes.get(..total).ok_or(FdtError::Truncated)?;
        let part =
            |at: usize, len: usize| at.checked_add(len).and_then(|end| blob.get(at..end)).ok_or(FdtError::BadLayout);
        Ok(Fdt {
            blob,
            structure: part(structure_at, structure_len)?,
            strings: part(strings_at, strings_len)?,
            reserve_at,
        })
    }

    /// The blob's length.
    pub fn total_size(&self) -> usize {
        self.blob.len()
    }

    /// The memory reservation block: (address, length).
    pub fn reservations(&self) -> impl Iterator<Item = (u64, u64)> + 'a {
        let (blob, mut at) = (self.blob, self.reserve_at);
        core::iter::from_fn(move || {
            let pair = (be64(blob, at)?, be64(blob, at.checked_add(8)?)?);
            at = at.checked_add(16)?;
            (pair != (0, 0)).then_some(pair)
        })
    }

    /// Every node, in the tree's order, the root first.
    pub fn nodes(&self) -> Nodes<'a> {
        Nodes { fdt: *self, at: 0, depth: 0, cells: [(2, 1); MAX_DEPTH + 1] }
    }

    /// The first node for which `want` holds.
    pub fn find(&self, mut want: impl FnMut(&Node<'a>) -> bool) -> Option<Node<'a>> {
        self.nodes().find(|n| want(n))
    }

    /// The node at an absolute path (`/a/b@1`).
    pub fn path(&self, path: &[u8]) -> Option<Node<'a>> {
        let mut parts = path.split(|&c| c == b'/').filter(|p| !p.is_empty());
        let mut wanted = parts.next();
        let mut depth = 1;
        for n in self.nodes() {
            let w = wanted?;
            if n.depth < depth && n.depth > 0 && depth > 1 {
                return None;
            }
            if n.depth == depth && (n.name == w || n.base_name() == w) {
                wanted = parts.next();
                depth += 1;
                if wanted.is_none() {
                    return Some(n);
                }
            }
        }
        None
    }

    /// The node with this phandle.
    pub fn by_phandle(&self, phandle: u32) -> Option<Node<'a>> {
        self.find(|n| n.u32(b"phandle") == Some(phandle))
    }
}

/// An iterator over nodes.
#[derive(Debug)]
pub struct Nodes<'a> {
    fdt: Fdt<'a>,
    at: usize,
    depth: usize,
    /// `#address-cells` and `#size-cells` that hold for children at each depth.
    cells: [(u32, u32); MAX_DEPTH + 1],
}

/// One node.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    fdt: Fdt<'a>,
    /// Its name with the unit address; empty for the root.
    pub name: &'a [u8],
    /// How deep it lies; the root is 0.
    pub depth: usize,
    body: usize,
    cells: (u32, u32),
}

fn aligned(at: usize) -> usize {
    at.saturating_add(3) & !3
}

/// A token of the structure block with the place after it.
enum Token<'a> {
    Begin(&'a [u8]),
    End,
    Prop(&'a [u8], &'a [u8]),
}

fn token<'a>(fdt: &Fdt<'a>, at: &mut usize) -> Option<Token<'a>> {
    loop {
        let t = be32(fdt.structure, *at)?;
        *at += 4;
        match t {
            BEGIN_NODE => {
                let name = c_str(fdt.structure.get(*at..)?)?;
                *at = aligned(*at + name.len() + 1);
                return Some(Token::Begin(name));
            }
            END_NODE => return Some(Token::End),
            PROP => {
                let len = be32(fdt.structure, *at)? as usize;
                let name = c_str(fdt.strings.get(be32(fdt.structure, *at + 4)? as usize..)?)?;
                let start = *at + 8;
                let value = fdt.structure.get(start..start.checked_add(len)?)?;
                *at = aligned(start + len);
                return Some(Token::Prop(name, value));
            }
            NOP => {}
            _ => return None,
        }
    }
}

impl<'a> Iterator for Nodes<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        loop {
            match token(&self.fdt, &mut self.at)? {
                Token::Begin(name) => {
                    let depth = self.depth;
                    self.depth += 1;
                    if depth >= MAX_DEPTH {
                        continue;
                    }
                    let cells = if depth == 0 { (2, 1) } else { self.cells[depth - 1] };
                    let node = Node { fdt: self.fdt, name, depth, body: self.at, cells };
                    self.cells[depth] =
                        (node.u32(b"#address-cells").unwrap_or(2), node.u32(b"#size-cells").unwrap_or(1));
                    return Some(node);
                }
                Token::End => self.depth = self.depth.checked_sub(1)?,
                Token::Prop(..) => {}
            }
        }
    }
}

impl<'a> Node<'a> {
    /// Its name without the unit address.
    pub fn base_name(&self) -> &'a [u8] {
        self.name.split(|&c| c == b'@').next().unwrap_or(self.name)
    }

    /// Its properties.
    pub fn properties(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + 'a {
        let (fdt, mut at) = (self.fdt, self.body);
        core::iter::from_fn(move || match token(&fdt, &mut at)? {
            Token::Prop(name, value) => Some((name, value)),
            _ => None,
        })
    }

    /// A property's value.
    pub fn property(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.properties().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// A property of one cell.
    pub fn u32(&self, name: &[u8]) -> Option<u32> {
        be32(self.property(name)?, 0)
    }

    /// A property of one or two cells, as a number.
    pub fn number(&self, name: &[u8]) -> Option<u64> {
        let v = self.property(name)?;
        if v.len() >= 8 { be64(v, 0) } else { be32(v, 0).map(u64::from) }
    }

    /// A property that is a string.
    pub fn string(&self, name: &[u8]) -> Option<&'a [u8]> {
        c_str(self.property(name)?)
    }

    /// Whether it is marked as unusable.
    pub fn is_disabled(&self) -> bool {
        self.string(b"status").is_some_and(|s| s != b"okay" && s != b"ok")
    }

    /// Whether `name` is among its `compatible` strings.
    pub fn is_compatible(&self, name: &[u8]) -> bool {
        self.property(b"compatible").is_some_and(|v| v.split(|&c| c == 0).any(|s| s == name))
    }

    /// The `reg` property: (address, size), by the parent's cell counts.
    pub fn reg(&self) -> impl Iterator<Item = (u64, u64)> + 'a {
        let (address_cells, size_cells) = (self.cells.0 as usize, self.cells.1 as usize);
        let value = self.property(b"reg").unwrap_or(&[]);
        let entry = if address_cells <= 2 && size_cells <= 2 { (address_cells + size_cells) * 4 } else { 0 };
        let number = move |b: &[u8]| b.iter().fold(0u64, |n, &c| n << 8 | c as u64);
        value
            .chunks_exact(entry.max(1))
            .filter(move |_| entry != 0)
            .map(move |c| (number(&c[..address_cells * 4]), number(&c[address_cells * 4..])))
    }

    /// Interrupt `index` for a GIC parent: (INTID, edge-triggered).
    pub fn gic_interrupt(&self, index: usize) -> Option<(u32, bool)> {
        let v = self.property(b"interrupts")?;
        let at = index.checked_mul(12)?;
        let (kind, number, flags) = (be32(v, at)?, be32(v, at + 4)?, be32(v, at + 8)?);
        let base = match kind {
            0 => 32,
            1 => 16,
            _ => return None,
        };
        Some((number.checked_add(base)?, flags & 3 != 0))
    }
}
