//! Where the journal's blocks are on the device: the journal is a file, so a list of extents.

use alloc::vec::Vec;

/// A run of the journal's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block on the device.
    pub physical: u64,
    /// How many blocks.
    pub len: u32,
}

/// The journal's blocks in order.
#[derive(Clone, Debug, Default)]
pub struct Map {
    /// `(first journal block, extent)`, ascending.
    runs: Vec<(u32, Extent)>,
    len: u32,
}

impl Map {
    /// A journal that is made of `extents` in this order. More than `u32::MAX` blocks are cut off.
    pub fn new(extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut map = Map::default();
        for extent in extents {
            let len = extent.len.min(u32::MAX - map.len);
            if len > 0 {
                map.runs.push((map.len, Extent { len, ..extent }));
                map.len += len;
            }
        }
        map
    }

    /// How many blocks.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where journal block `block` is, and how many follow it without a gap (itself counted).
    pub fn find(&self, block: u32) -> Option<(u64, u32)> {
        let i = self.runs.partition_point(|r| r.0 <= block).checked_sub(1)?;
        let (first, extent) = self.runs[i];
        let inside = block - first;
        (inside < extent.len).then(|| (extent.physical + u64::from(inside), extent.len - inside))
    }

    /// Whether the journal owns block `physical` of the device.
    pub fn owns(&self, physical: u64) -> bool {
        self.runs.iter().any(|(_, e)| physical >= e.physical && physical - e.physical < u64::from(e.len))
    }
}
