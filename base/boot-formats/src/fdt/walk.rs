//! Depth-first walk with the chain of buses above the current node.

use super::node::{Node, RegIter, cells};
use super::{BEGIN_NODE, END_NODE, MAX_DEPTH, NOP, PROP};
use arrayvec::ArrayVec;

/// A node whose children are being walked, with what they need from it.
#[derive(Clone)]
struct Level<'a> {
    inherited: super::node::Inherited,
    /// `ranges`: how addresses below become addresses above. Absent: they don't.
    ranges: Option<&'a [u8]>,
    /// `#address-cells` that the node itself lives under.
    parent_address_cells: u32,
    /// The node or one above it has a `status` that forbids its use.
    disabled: bool,
}

/// Every node of the tree, parents first. See [`super::Fdt::walk`].
#[derive(Clone)]
pub struct Walk<'a> {
    root: Node<'a>,
    at: usize,
    started: bool,
    stack: ArrayVec<Level<'a>, MAX_DEPTH>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(root: Node<'a>) -> Self {
        Self { at: root.after_properties(), root, started: false, stack: ArrayVec::new() }
    }

    /// How many nodes are above the node returned last: 0 for the root.
    pub fn depth(&self) -> usize {
        self.stack.len().saturating_sub(1)
    }

    /// Whether the node returned last and all above it may be used (see [`Node::is_available`]).
    pub fn is_available(&self) -> bool {
        self.stack.last().is_some_and(|level| !level.disabled)
    }

    /// Whether all nodes above the node returned last may be used.
    pub fn is_parent_available(&self) -> bool {
        self.stack.len().checked_sub(2).and_then(|i| self.stack.get(i)).is_none_or(|level| !level.disabled)
    }

    /// Takes an address in the `reg` of the node returned last to the address the CPU uses, through the `ranges` of
    /// each node above. `None` if a bus on the way doesn't map it, or not all of `size` bytes.
    pub fn translate(&self, address: u64, size: u64) -> Option<u64> {
        // Levels: [0] the root, …, the last is the node itself. The parent's bus comes first; the root has none above.
        let buses = self.stack.get(1..self.stack.len().saturating_sub(1)).unwrap_or(&[]);
        buses.iter().rev().try_fold(address, |address, bus| bus.translate(address, size))
    }

    fn push(&mut self, node: &Node<'a>, parent_address_cells: u32) {
        let disabled = self.stack.last().is_some_and(|level| level.disabled) || !node.is_available();
        let level = Level {
            inherited: node.for_children(),
            ranges: node.property("ranges").map(|ranges| ranges.value),
            parent_address_cells,
            disabled,
        };
        // A checked tree is never deeper than the stack. Were it, the walk would end here.
        if self.stack.try_push(level).is_err() {
            self.stack.clear();
        }
    }
}

impl Level<'_> {
    fn translate(&self, address: u64, size: u64) -> Option<u64> {
        let ranges = self.ranges?;
        if ranges.is_empty() {
            return Some(address);
        }
        let (child, parent, length) = (
            self.inherited.address_cells as usize,
            self.parent_address_cells as usize,
            self.inherited.size_cells as usize,
        );
        if !(1..=2).contains(&child) || !(1..=2).contains(&parent) || !(1..=2).contains(&length) {
            return None;
        }
        ranges.chunks_exact((child + parent + length) * 4).find_map(|range| {
            let from = cells(range, 0, child)?;
            let to = cells(range, child * 4, parent)?;
            let len = cells(range, (child + parent) * 4, length)?;
            let offset = address.checked_sub(from)?;
            let inside = offset < len && size <= len - offset;
            if inside { to.checked_add(offset) } else { None }
        })
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        let root = self.root;
        if !self.started {
            self.started = true;
            self.push(&root, super::node::Inherited::ROOT.address_cells);
            return Some(root);
        }
        let fdt = *root.fdt();
        loop {
            let above = self.stack.last()?.inherited;
            match fdt.token(self.at)? {
                NOP => self.at += 4,
                PROP => self.at = fdt.property_at(self.at)?.1,
                END_NODE => {
                    self.stack.pop();
                    self.at += 4;
                }
                BEGIN_NODE => {
                    let node = Node::read(fdt, self.at, above)?;
                    self.at = node.after_properties();
                    self.push(&node, above.address_cells);
                    return Some(node);
                }
                _ => return None,
            }
        }
    }
}

/// The `(address, size)` pairs of any property laid out like the `reg` of `node`'s children, as `reserved-memory` and
/// `/chosen` have them.
pub(crate) fn pairs_for_children<'a>(node: &Node<'a>, value: &'a [u8]) -> RegIter<'a> {
    let inherited = node.for_children();
    RegIter::new(value, inherited.address_cells, inherited.size_cells)
}
