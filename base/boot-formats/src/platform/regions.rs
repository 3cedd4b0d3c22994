//! Sorted lists of disjoint ranges.

use super::Region;
use arrayvec::ArrayVec;

/// Adds a range to a sorted list of disjoint ones, merging it with those it touches. Empty ranges are dropped. An
/// error means that there is no room, and leaves the list unchanged.
pub(super) fn insert<const N: usize>(list: &mut ArrayVec<Region, N>, new: Region) -> Result<(), NoRoom> {
    if new.size == 0 {
        return Ok(());
    }
    let first = list.iter().position(|old| old.end() >= new.base).unwrap_or(list.len());
    let count = list[first..].iter().take_while(|old| old.base <= new.end()).count();
    if count == 0 {
        return list.try_insert(first, new).map_err(|_| NoRoom);
    }
    let base = list[first].base.min(new.base);
    let end = list[first + count - 1].end().max(new.end());
    list[first] = Region::new(base, end - base);
    list.drain(first + 1..first + count);
    Ok(())
}

/// The list is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;
