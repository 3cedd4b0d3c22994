//! Extended attributes: entries from the front, values from the back, either in what an inode leaves free or in a block.
//! In a block the entries are sorted by name index, length and name.

use crate::crc::crc32c;
use crate::layout::{part, put_u16, put_u32, u16_at, u32_at};
use abi::{Errno, Result};
use alloc::vec::Vec;

/// The magic number of both.
pub const MAGIC: u32 = 0xea02_0000;
/// The length of an entry before its name.
pub const ENTRY: usize = 16;
/// The length of a block's header.
pub const BLOCK_HEADER: usize = 32;
/// The length of the header in an inode.
pub const INODE_HEADER: usize = 4;
const CHECKSUM_AT: usize = 16;

/// The prefixes that are kept as numbers.
const PREFIXES: &[(u8, &[u8])] = &[(1, b"user."), (4, b"trusted."), (6, b"security."), (7, b"system.")];
const ACLS: [u8; 2] = [2, 3];

/// The number and the rest of a full name. `EOPNOTSUPP` for prefixes that the format does not have, and for ACLs, which
/// nothing here enforces.
pub fn split_name(name: &[u8]) -> Result<(u8, &[u8])> {
    if name.starts_with(b"system.posix_acl_") {
        return Err(Errno::EOPNOTSUPP);
    }
    for (index, prefix) in PREFIXES {
        if let Some(rest) = name.strip_prefix(*prefix) {
            return if rest.is_empty() { Err(Errno::EINVAL) } else { Ok((*index, rest)) };
        }
    }
    Err(Errno::EOPNOTSUPP)
}

/// One attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The prefix's number.
    pub index: u8,
    /// The rest of the name.
    pub name: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

impl Attr {
    /// The whole name; `None` for kinds that are not shown.
    pub fn full_name(&self) -> Option<Vec<u8>> {
        if ACLS.contains(&self.index) {
            return None;
        }
        let (_, prefix) = PREFIXES.iter().find(|p| p.0 == self.index)?;
        Some([prefix, &self.name[..]].concat())
    }

    /// The space that it takes.
    pub fn space(&self) -> usize {
        ((ENTRY + self.name.len() + 3) & !3) + ((self.value.len() + 3) & !3)
    }

    fn hash(&self) -> u32 {
        let mut h = 0u32;
        for &b in &self.name {
            h = (h << 5) ^ (h >> 27) ^ u32::from(b);
        }
        for word in self.value.chunks(4) {
            let mut w = [0; 4];
            w[..word.len()].copy_from_slice(word);
            h = (h << 16) ^ (h >> 16) ^ u32::from_le_bytes(w);
        }
        h
    }
}

/// Reads the entries of `area`, which begins with the first; values are counted from `area[base..]`'s start where `area`
/// stands in `whole`.
fn decode(whole: &[u8], first: usize, base: usize) -> Result<Vec<Attr>> {
    let mut out = Vec::new();
    let mut at = first;
    while u32_at(whole, at) != 0 {
        let head = part(whole, at, ENTRY).ok_or(Errno::EUCLEAN)?;
        let (name_len, index) = (usize::from(head[0]), head[1]);
        let (offset, inum, size) = (usize::from(u16_at(head, 2)), u32_at(head, 4), u32_at(head, 8) as usize);
        let name = part(whole, at + ENTRY, name_len).ok_or(Errno::EUCLEAN)?;
        at += (ENTRY + name_len + 3) & !3;
        if inum != 0 || at + 4 > whole.len() {
            return Err(Errno::EUCLEAN);
        }
        let value = if size == 0 { &[][..] } else { part(whole, base + offset, size).ok_or(Errno::EUCLEAN)? };
        out.push(Attr { index, name: name.to_vec(), value: value.to_vec() });
    }
    Ok(out)
}

/// The attributes in the free part of an inode (behind its fields).
pub fn from_inode(free: &[u8]) -> Result<Vec<Attr>> {
    if free.len() < INODE_HEADER + 4 || u32_at(free, 0) != MAGIC {
        return Ok(Vec::new());
    }
    decode(free, INODE_HEADER, INODE_HEADER)
}

/// The attributes in a block.
pub fn from_block(block: &[u8]) -> Result<Vec<Attr>> {
    if u32_at(block, 0) != MAGIC || u32_at(block, 8) != 1 {
        return Err(Errno::EUCLEAN);
    }
    decode(block, BLOCK_HEADER, 0)
}

/// How many inodes share the block.
pub fn refcount(block: &[u8]) -> u32 {
    u32_at(block, 4)
}

/// Changes how many inodes share the block.
pub fn set_refcount(block: &mut [u8], n: u32) {
    put_u32(block, 4, n);
}

/// Whether `attrs` fit behind a header of `header` bytes in `len`, with the empty entry that ends them.
pub fn fits(attrs: &[Attr], header: usize, len: usize) -> bool {
    header + 4 + attrs.iter().map(Attr::space).sum::<usize>() <= len
}

fn encode(whole: &mut [u8], first: usize, base: usize, attrs: &[Attr]) {
    let mut at = first;
    let mut end = whole.len();
    for a in attrs {
        let padded = (a.value.len() + 3) & !3;
        end -= padded;
        whole[end..end + a.value.len()].copy_from_slice(&a.value);
        whole[at] = a.name.len() as u8;
        whole[at + 1] = a.index;
        put_u16(whole, at + 2, if a.value.is_empty() { 0 } else { (end - base) as u16 });
        put_u32(whole, at + 4, 0);
        put_u32(whole, at + 8, a.value.len() as u32);
        put_u32(whole, at + 12, a.hash());
        whole[at + ENTRY..at + ENTRY + a.name.len()].copy_from_slice(&a.name);
        at += (ENTRY + a.name.len() + 3) & !3;
    }
}

/// Writes `attrs`, which must fit, into the free part of an inode.
pub fn to_inode(free: &mut [u8], attrs: &[Attr]) {
    free.fill(0);
    if !attrs.is_empty() {
        put_u32(free, 0, MAGIC);
        encode(free, INODE_HEADER, INODE_HEADER, attrs);
    }
}

/// Writes `attrs`, which must fit, into a block of one owner. The checksum is left to [`store_checksum`].
pub fn to_block(block: &mut [u8], attrs: &mut [Attr]) {
    attrs.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
    block.fill(0);
    put_u32(block, 0, MAGIC);
    put_u32(block, 4, 1);
    put_u32(block, 8, 1);
    encode(block, BLOCK_HEADER, 0, attrs);
    let hash = attrs.iter().fold(0u32, |h, a| (h << 16) ^ (h >> 16) ^ a.hash());
    put_u32(block, 12, hash);
}

/// What the checksum of the block with this number should be.
pub fn checksum(seed: u32, number: u64, block: &[u8]) -> u32 {
    let crc = crc32c(seed, &number.to_le_bytes());
    let crc = crc32c(crc, &block[..CHECKSUM_AT]);
    crc32c(crc32c(crc, &[0; 4]), &block[CHECKSUM_AT + 4..])
}

/// The checksum as it stands in the block.
pub fn stored_checksum(block: &[u8]) -> u32 {
    u32_at(block, CHECKSUM_AT)
}

/// Puts the checksum in.
pub fn store_checksum(seed: u32, number: u64, block: &mut [u8]) {
    let crc = checksum(seed, number, block);
    put_u32(block, CHECKSUM_AT, crc);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_written() {
        let a = |index, name: &[u8], value: &[u8]| Attr { index, name: name.to_vec(), value: value.to_vec() };
        let mut v = vec![a(1, b"x", b"12345"), a(1, b"a_longer_name", b""), a(6, b"capability", &[9; 20])];
        let mut free = vec![0; 96];
        assert!(!fits(&v, INODE_HEADER, 96));
        to_inode(&mut free, &v[..2]);
        assert_eq!(from_inode(&free).unwrap(), &v[..2]);
        let mut block = vec![0; 1024];
        to_block(&mut block, &mut v);
        assert_eq!(from_block(&block).unwrap(), v);
        block[BLOCK_HEADER + 2] = 255;
        block[BLOCK_HEADER + 3] = 255;
        assert!(from_block(&block).is_err());
    }
}
