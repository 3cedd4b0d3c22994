//! Directory blocks: a chain of entries that fills the block, with a checksum in a false entry at the end; and index
//! blocks, which look like a block with one empty entry to who does not know them.

use crate::crc::crc32c;
use crate::layout::{part, put_u16, put_u32, u16_at, u32_at};
use abi::{Errno, Result};
use vfs::FileType;

/// The length of an entry before its name.
pub const HEADER: usize = 8;
/// The length of the false entry that holds the checksum.
pub const TAIL: usize = 12;
const TAIL_TYPE: u8 = 0xde;

/// The space that an entry with a name of `len` bytes needs.
pub fn space(len: usize) -> usize {
    (HEADER + len + 3) & !3
}

/// A type as entries number them; 0 for none.
pub fn type_code(kind: FileType) -> u8 {
    match kind {
        FileType::Regular => 1,
        FileType::Dir => 2,
        FileType::Char => 3,
        FileType::Block => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
    }
}

/// The type that an entry names.
pub fn type_of(code: u8) -> Option<FileType> {
    Some(match code {
        1 => FileType::Regular,
        2 => FileType::Dir,
        3 => FileType::Char,
        4 => FileType::Block,
        5 => FileType::Fifo,
        6 => FileType::Socket,
        7 => FileType::Symlink,
        _ => return None,
    })
}

/// One entry, in use or not.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where it begins in the block.
    pub at: usize,
    /// How far it is to the next.
    pub rec_len: usize,
    /// The inode; 0 if it is not in use.
    pub ino: u32,
    /// The type's code.
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
}

/// The entry at `at`; `EUCLEAN` if it cannot be one in a chain that ends at `end`.
pub fn entry(block: &[u8], at: usize, end: usize) -> Result<Entry<'_>> {
    let ino = u32_at(block, at);
    let rec_len = usize::from(u16_at(block, at + 4));
    let (name_len, kind) = match part(block, at + 6, 2) {
        Some(&[n, k]) => (usize::from(n), k),
        _ => return Err(Errno::EUCLEAN),
    };
    let least = if ino == 0 { HEADER } else { space(name_len) };
    let name = part(block, at + HEADER, if ino == 0 { 0 } else { name_len }).ok_or(Errno::EUCLEAN)?;
    if rec_len < least || rec_len % 4 != 0 || rec_len > end.saturating_sub(at) || (ino != 0 && name_len == 0) {
        return Err(Errno::EUCLEAN);
    }
    Ok(Entry { at, rec_len, ino, kind, name })
}

/// The entries of a block, in order. `end` is where the chain ends (before a checksum). After an error nothing follows.
pub fn entries(block: &[u8], end: usize) -> impl Iterator<Item = Result<Entry<'_>>> {
    let mut at = 0;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let e = entry(block, at, end);
        at = e.as_ref().map_or(end, |e| e.at + e.rec_len);
        Some(e)
    })
}

/// Whether the whole chain is possible, with no inode beyond `max_ino`.
pub fn check(block: &[u8], end: usize, max_ino: u32) -> Result<()> {
    for e in entries(block, end) {
        if e?.ino > max_ino {
            return Err(Errno::EUCLEAN);
        }
    }
    Ok(())
}

/// The entry called `name`.
pub fn find<'a>(block: &'a [u8], end: usize, name: &[u8]) -> Result<Option<Entry<'a>>> {
    for e in entries(block, end) {
        let e = e?;
        if e.ino != 0 && e.name == name {
            return Ok(Some(e));
        }
    }
    Ok(None)
}

/// Writes an entry.
pub fn put(block: &mut [u8], at: usize, rec_len: usize, ino: u32, kind: u8, name: &[u8]) {
    put_u32(block, at, ino);
    put_u16(block, at + 4, rec_len as u16);
    if let Some(b) = block.get_mut(at + 6..at + HEADER + name.len()) {
        b[0] = name.len() as u8;
        b[1] = kind;
        b[2..].copy_from_slice(name);
    }
}

/// Room for an entry: behind the `used` bytes of the one at `at`, which has `rec_len`.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    at: usize,
    used: usize,
    rec_len: usize,
}

/// The first room for a name of `len` bytes.
pub fn room(block: &[u8], end: usize, len: usize) -> Result<Option<Room>> {
    let need = space(len);
    for e in entries(block, end) {
        let e = e?;
        let used = if e.ino == 0 { 0 } else { space(e.name.len()) };
        if e.rec_len - used >= need {
            return Ok(Some(Room { at: e.at, used, rec_len: e.rec_len }));
        }
    }
    Ok(None)
}

/// Puts an entry where [`room`] found some.
pub fn insert_at(block: &mut [u8], room: Room, ino: u32, kind: u8, name: &[u8]) {
    if room.used > 0 {
        put_u16(block, room.at + 4, room.used as u16);
    }
    put(block, room.at + room.used, room.rec_len - room.used, ino, kind, name);
}

/// Adds an entry where there is room; false if there is none.
pub fn insert(block: &mut [u8], end: usize, ino: u32, kind: u8, name: &[u8]) -> Result<bool> {
    let Some(room) = room(block, end, name.len())? else { return Ok(false) };
    insert_at(block, room, ino, kind, name);
    Ok(true)
}

/// Removes the entry at `at`: the one before takes its space, or it becomes one not in use.
pub fn remove(block: &mut [u8], end: usize, at: usize) -> Result<()> {
    let mut before: Option<(usize, usize)> = None;
    let mut this = None;
    for e in entries(block, end) {
        let e = e?;
        if e.at == at {
            this = Some(e.rec_len);
            break;
        }
        before = Some((e.at, e.rec_len));
    }
    let len = this.ok_or(Errno::EUCLEAN)?;
    match before {
        Some((prev, prev_len)) => put_u16(block, prev + 4, (prev_len + len) as u16),
        None => put_u32(block, at, 0),
    }
    Ok(())
}

/// Makes an empty block whose chain ends at `end`; with a tail if that is before the block's end.
pub fn clear(block: &mut [u8], end: usize) {
    block.fill(0);
    put(block, 0, end, 0, 0, b"");
    make_tail(block, end);
}

/// Writes the false entry that holds the checksum.
pub fn make_tail(block: &mut [u8], end: usize) {
    if end + TAIL == block.len() {
        put_u32(block, end, 0);
        put_u16(block, end + 4, TAIL as u16);
        if let Some(b) = block.get_mut(end + 6..end + 8) {
            b.copy_from_slice(&[0, TAIL_TYPE]);
        }
    }
}

/// Whether the tail is there.
pub fn has_tail(block: &[u8]) -> bool {
    let at = block.len() - TAIL;
    u32_at(block, at) == 0 && part(block, at + 4, 4) == Some(&[TAIL as u8, 0, 0, TAIL_TYPE])
}

/// What the checksum of a block with a tail should be.
pub fn checksum(seed: u32, block: &[u8]) -> u32 {
    crc32c(seed, &block[..block.len() - TAIL])
}

/// The checksum as it stands in the tail.
pub fn stored_checksum(block: &[u8]) -> u32 {
    u32_at(block, block.len() - 4)
}

/// Puts the checksum in.
pub fn store_checksum(seed: u32, block: &mut [u8]) {
    let crc = checksum(seed, block);
    let at = block.len() - 4;
    put_u32(block, at, crc);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_and_go() {
        let (mut b, end) = (vec![0; 1024], 1012);
        clear(&mut b, end);
        assert!(has_tail(&b));
        for i in 0..40u32 {
            assert!(insert(&mut b, end, i + 1, 1, format!("name{i}").as_bytes()).unwrap());
        }
        check(&b, end, 40).unwrap();
        assert!(check(&b, end, 39).is_err());
        for i in (0..40).step_by(3) {
            let at = find(&b, end, format!("name{i}").as_bytes()).unwrap().unwrap().at;
            remove(&mut b, end, at).unwrap();
        }
        assert!(find(&b, end, b"name3").unwrap().is_none());
        assert_eq!(find(&b, end, b"name4").unwrap().unwrap().ino, 5);
        let mut n = 100;
        while insert(&mut b, end, 7, 2, format!("{n}").as_bytes()).unwrap() {
            n += 1;
        }
        check(&b, end, 40).unwrap();
        assert!(n > 110);
    }

    #[test]
    fn broken_chains_are_refused() {
        let mut b = vec![0; 1024];
        clear(&mut b, 1012);
        for len in [0, 4, 10, 1016, 65535] {
            put_u16(&mut b, 4, len);
            assert!(check(&b, 1012, 10).is_err(), "{len}");
        }
    }
}
