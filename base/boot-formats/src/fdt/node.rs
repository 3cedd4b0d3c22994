//! Nodes and properties: values that borrow from the blob and know what they inherited.

use super::{BEGIN_NODE, END_NODE, Fdt, NOP, PROP, be32, be64};

/// What a node takes from its parents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    /// The parent's `#address-cells`: how this node's `reg` is laid out.
    pub address_cells: u32,
    /// The parent's `#size-cells`.
    pub size_cells: u32,
    /// The nearest `interrupt-parent` above.
    pub interrupt_parent: Option<u32>,
}

impl Inherited {
    /// The defaults of the specification (2.3.5) for a tree that says nothing.
    pub const ROOT: Self = Self { address_cells: 2, size_cells: 1, interrupt_parent: None };
}

/// One node of the tree.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    fdt: Fdt<'a>,
    name: &'a str,
    /// Offset of the first token behind the name.
    body: usize,
    inherited: Inherited,
}

impl PartialEq for Node<'_> {
    /// Two nodes of the same blob are equal if they are the same node.
    fn eq(&self, other: &Self) -> bool {
        self.body == other.body
    }
}

impl core::fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Node").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<'a> Node<'a> {
    /// The node whose `BEGIN_NODE` token is at `at`.
    pub(super) fn read(fdt: Fdt<'a>, at: usize, inherited: Inherited) -> Option<Self> {
        if fdt.token(at)? != BEGIN_NODE {
            return None;
        }
        let (name, body) = fdt.name_at(at + 4)?;
        Some(Self { fdt, name: core::str::from_utf8(name).ok()?, body, inherited })
    }

    pub(super) fn empty(fdt: Fdt<'a>) -> Self {
        Self { fdt, name: "", body: usize::MAX, inherited: Inherited::ROOT }
    }

    pub(super) fn fdt(&self) -> &Fdt<'a> {
        &self.fdt
    }

    /// Full name with unit address (`cpu@1`); empty for the root.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The name before the `@`.
    pub fn base_name(&self) -> &'a str {
        self.name.split('@').next().unwrap_or(self.name)
    }

    /// The properties, in the order of the blob.
    pub fn properties(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let (fdt, mut at) = (self.fdt, self.body);
        core::iter::from_fn(move || {
            while fdt.token(at)? == NOP {
                at += 4;
            }
            if fdt.token(at)? != PROP {
                return None;
            }
            let (property, next) = fdt.property_at(at)?;
            at = next;
            Some(property)
        })
    }

    /// The first property of that name.
    pub fn property(&self, name: &str) -> Option<Property<'a>> {
        self.properties().find(|property| property.is_named(name))
    }

    /// Offset of the first token behind the properties.
    pub(super) fn after_properties(&self) -> usize {
        let (fdt, mut at) = (self.fdt, self.body);
        loop {
            match fdt.token(at) {
                Some(NOP) => at += 4,
                Some(PROP) => match fdt.property_at(at) {
                    Some((_, next)) => at = next,
                    None => return at,
                },
                _ => return at,
            }
        }
    }

    /// What this node's children inherit. One pass over the properties.
    pub(super) fn for_children(&self) -> Inherited {
        let mut given = Inherited { interrupt_parent: self.inherited.interrupt_parent, ..Inherited::ROOT };
        for property in self.properties() {
            let Some(value) = property.as_u32() else { continue };
            if property.is_named("#address-cells") {
                given.address_cells = value;
            } else if property.is_named("#size-cells") {
                given.size_cells = value;
            } else if property.is_named("interrupt-parent") {
                given.interrupt_parent = Some(value);
            }
        }
        given
    }

    /// The nodes directly below.
    pub fn children(&self) -> Children<'a> {
        Children { fdt: self.fdt, at: self.after_properties(), inherited: self.for_children() }
    }

    /// The child of that name; a name without `@` also matches one with a unit address.
    pub fn child(&self, name: &str) -> Option<Node<'a>> {
        let bare = !name.contains('@');
        self.children().find(|node| node.name == name || (bare && node.base_name() == name))
    }

    /// Whether `compatible` lists any of `names`.
    pub fn is_compatible(&self, names: &[&str]) -> bool {
        self.property("compatible").is_some_and(|list| list.strings().any(|have| names.contains(&have)))
    }

    /// Whether the device may be used: `status` is absent, `okay` or `ok`.
    pub fn is_available(&self) -> bool {
        self.property("status").is_none_or(|status| matches!(status.as_str(), Some("okay" | "ok")))
    }

    /// The handle by which other nodes refer to this one.
    pub fn phandle(&self) -> Option<u32> {
        self.property("phandle").or_else(|| self.property("linux,phandle"))?.as_u32()
    }

    /// The `(address, size)` pairs of `reg`, as the parent's cells lay them out; empty if those are not representable
    /// in 64 bits (PCI addresses have three cells). Addresses are those of the parent bus.
    pub fn reg(&self) -> RegIter<'a> {
        let value = self.property("reg").map_or(&[][..], |property| property.value);
        RegIter::new(value, self.inherited.address_cells, self.inherited.size_cells)
    }

    /// Handle of the controller that `interrupts` speaks to: this node's own `interrupt-parent`, or the nearest above.
    pub fn interrupt_parent(&self) -> Option<u32> {
        self.property("interrupt-parent").and_then(|p| p.as_u32()).or(self.inherited.interrupt_parent)
    }

    /// The `index`th interrupt, if it goes to the GIC `controller`, whose `#interrupt-cells` is `cells` (3 or more).
    /// `interrupts-extended` comes before `interrupts`, as the specification wants; of it only entries for the same
    /// controller can be stepped over, for the width of others is unknown here.
    pub fn gic_interrupt(&self, index: usize, controller: u32, cells: u32) -> Option<Interrupt> {
        let cells = usize::try_from(cells).ok().filter(|c| (3..=8).contains(c))?;
        if let Some(extended) = self.property("interrupts-extended") {
            let stride = (cells + 1) * 4;
            let entries = extended.value.chunks_exact(stride).take(index.checked_add(1)?);
            let entry = entries.take_while(|e| be32(e, 0) == Some(controller)).nth(index)?;
            return Interrupt::decode(&entry[4..]);
        }
        if self.interrupt_parent()? != controller {
            return None;
        }
        Interrupt::decode(self.property("interrupts")?.value.chunks_exact(cells * 4).nth(index)?)
    }
}

/// The children of a node.
#[derive(Clone)]
pub struct Children<'a> {
    fdt: Fdt<'a>,
    at: usize,
    inherited: Inherited,
}

impl<'a> Iterator for Children<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        let mut depth = 0_usize;
        let mut found = None;
        loop {
            match self.fdt.token(self.at)? {
                NOP => self.at += 4,
                PROP => self.at = self.fdt.property_at(self.at)?.1,
                BEGIN_NODE => {
                    if depth == 0 {
                        found = Node::read(self.fdt, self.at, self.inherited);
                    }
                    depth += 1;
                    self.at = self.fdt.name_at(self.at + 4)?.1;
                }
                END_NODE if depth > 0 => {
                    depth -= 1;
                    self.at += 4;
                    if depth == 0 {
                        return found;
                    }
                }
                _ => return None,
            }
        }
    }
}

/// A property: a name and uninterpreted bytes.
#[derive(Clone, Copy)]
pub struct Property<'a> {
    /// The strings block from the name's first byte on.
    name: &'a [u8],
    /// The value, big endian where it holds numbers.
    pub value: &'a [u8],
}

impl<'a> Property<'a> {
    pub(super) fn new(name: &'a [u8], value: &'a [u8]) -> Self {
        Self { name, value }
    }

    /// Whether this is the property called `name`.
    pub fn is_named(&self, name: &str) -> bool {
        self.name.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The name; empty if it is not UTF-8.
    pub fn name(&self) -> &'a str {
        let len = self.name.iter().position(|byte| *byte == 0).unwrap_or(0);
        core::str::from_utf8(&self.name[..len]).unwrap_or("")
    }

    /// The value as one 32-bit cell.
    pub fn as_u32(&self) -> Option<u32> {
        if self.value.len() == 4 { be32(self.value, 0) } else { None }
    }

    /// The value as an unsigned number of one or two cells.
    pub fn as_u64(&self) -> Option<u64> {
        match self.value.len() {
            4 => be32(self.value, 0).map(u64::from),
            8 => be64(self.value, 0),
            _ => None,
        }
    }

    /// The value as text: up to its first NUL, if that is UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        core::str::from_utf8(self.as_text()).ok()
    }

    /// The bytes before the first NUL, or all.
    pub fn as_text(&self) -> &'a [u8] {
        let len = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        &self.value[..len]
    }

    /// The value as a list of NUL-terminated strings; those that are not UTF-8 are left out.
    pub fn strings(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.value.split(|byte| *byte == 0).filter_map(|s| core::str::from_utf8(s).ok()).filter(|s| !s.is_empty())
    }
}

/// One pair of `reg` or the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg {
    /// Address on the parent bus.
    pub address: u64,
    /// Length in bytes; 0 where `#size-cells` is 0.
    pub size: u64,
}

/// The pairs of a `reg` property.
#[derive(Clone)]
pub struct RegIter<'a> {
    value: &'a [u8],
    address_cells: usize,
    size_cells: usize,
}

/// A number of up to two cells.
pub(super) fn cells(bytes: &[u8], at: usize, cells: usize) -> Option<u64> {
    match cells {
        0 => Some(0),
        1 => be32(bytes, at).map(u64::from),
        2 => be64(bytes, at),
        _ => None,
    }
}

impl<'a> RegIter<'a> {
    pub(super) fn new(value: &'a [u8], address_cells: u32, size_cells: u32) -> Self {
        let readable = (1..=2).contains(&address_cells) && size_cells <= 2;
        let value = if readable { value } else { &[] };
        Self { value, address_cells: address_cells as usize, size_cells: size_cells as usize }
    }
}

impl Iterator for RegIter<'_> {
    type Item = Reg;

    fn next(&mut self) -> Option<Reg> {
        let stride = (self.address_cells + self.size_cells) * 4;
        let (entry, rest) = self.value.split_at_checked(stride).filter(|_| stride > 0)?;
        self.value = rest;
        let address = cells(entry, 0, self.address_cells)?;
        Some(Reg { address, size: cells(entry, self.address_cells * 4, self.size_cells)? })
    }
}

/// Shared or private peripheral interrupt (first cell of a GIC interrupt specifier).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptKind {
    /// Shared peripheral interrupt: INTID 32 and up (extended SPIs: 4096 and up).
    Spi,
    /// Private to each CPU: INTID 16 to 31 (extended PPIs: 1056 and up).
    Ppi,
}

/// A GIC interrupt specifier, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// The interrupt's number as the GIC counts (INTID).
    pub intid: u32,
    /// Shared or private.
    pub kind: InterruptKind,
    /// Edge triggered, else level.
    pub edge: bool,
    /// Active low or falling (the GIC itself knows only high and rising).
    pub active_low: bool,
}

impl Interrupt {
    /// Decodes `<type number flags …>` as `arm,gic.yaml` and `arm,gic-v3.yaml` of Linux's bindings define it.
    fn decode(specifier: &[u8]) -> Option<Self> {
        let (class, number, flags) = (be32(specifier, 0)?, be32(specifier, 4)?, be32(specifier, 8)?);
        let (kind, first, count) = match class {
            0 => (InterruptKind::Spi, 32, 988),
            1 => (InterruptKind::Ppi, 16, 16),
            2 => (InterruptKind::Spi, 4096, 1024),
            3 => (InterruptKind::Ppi, 1056, 64),
            _ => return None,
        };
        if number >= count {
            return None;
        }
        Some(Self { intid: first + number, kind, edge: flags & 3 != 0, active_low: flags & 0xa != 0 })
    }
}
