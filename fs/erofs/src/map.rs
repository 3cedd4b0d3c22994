//! Where the blocks of files lie that are not compressed.
//!
//! - Plain: from the block that the inode names, in a row.
//! - Inline: as plain, but the last partial block stands behind the inode and its attributes, within one block.
//! - Chunks: the inode gives the chunk's size (`format`: 5 bits of log2 in blocks; 0x20: 8-byte entries) and a table behind it
//!   gives each chunk's first block, all ones for a hole.

use crate::device::Device;
use crate::layout::{BLOCK, BLOCK_BITS, CORRUPT, DataLayout, RawInode, le16, le32};
use abi::Result;

/// A stretch of a file in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where in the image it stands; `None`: zeroes.
    pub(crate) at: Option<u64>,
    /// How many bytes from the asked offset on lie so.
    pub(crate) len: u64,
}

const CHUNK_INDEXES: u32 = 0x20;
const CHUNK_BITS: u32 = 0x1f;
const NO_BLOCK: u32 = u32::MAX;

/// Where the byte `offset`, below the file's size, stands.
pub(crate) fn map(device: &Device, inode: &RawInode, offset: u64) -> Result<Extent> {
    let left = inode.size - offset;
    match inode.layout {
        DataLayout::Plain => Ok(Extent { at: Some(u64::from(inode.union) * BLOCK + offset), len: left }),
        DataLayout::Inline => {
            let tail = inode.size / BLOCK * BLOCK;
            if offset < tail {
                return Ok(Extent { at: Some(u64::from(inode.union) * BLOCK + offset), len: tail - offset });
            }
            let at = inode.data_at();
            if at % BLOCK + (inode.size - tail) > BLOCK {
                return Err(CORRUPT);
            }
            Ok(Extent { at: Some(at + (offset - tail)), len: left })
        }
        DataLayout::Chunks => map_chunk(device, inode, offset),
        _ => Err(CORRUPT),
    }
}

fn map_chunk(device: &Device, inode: &RawInode, offset: u64) -> Result<Extent> {
    let format = inode.union & 0xffff;
    if format & !(CHUNK_BITS | CHUNK_INDEXES) != 0 {
        return Err(CORRUPT);
    }
    let bits = BLOCK_BITS + (format & CHUNK_BITS);
    let (chunk, within) = (offset >> bits, offset & ((1 << bits) - 1));
    let len = ((1u64 << bits) - within).min(inode.size - offset);
    let block = if format & CHUNK_INDEXES != 0 {
        let mut entry = [0; 8];
        device.read(inode.data_at().next_multiple_of(8) + chunk * 8, &mut entry)?;
        if le16(&entry, 2) != 0 {
            // Another device.
            return Err(CORRUPT);
        }
        le32(&entry, 4)
    } else {
        let mut entry = [0; 4];
        device.read(inode.data_at().next_multiple_of(4) + chunk * 4, &mut entry)?;
        le32(&entry, 0)
    };
    let at = (block != NO_BLOCK).then(|| u64::from(block) * BLOCK + within);
    Ok(Extent { at, len })
}
