//! Extended attributes: those of an inode behind it, and shared ones in an area of their own.
//!
//! Behind the inode: a header of 12 bytes (a name filter, the number of shared ones), the numbers of the shared ones, then
//! entries. An entry: length of the name, number of its prefix, length of the value; the name without the prefix; the value;
//! up to a multiple of 4.

use crate::device::Device;
use crate::layout::{CORRUPT, RawInode, Super, le16, le32};
use abi::{Errno, Result};
use alloc::vec::Vec;

const HEADER: usize = 12;
const ENTRY: usize = 4;
/// The largest attribute (a value of 64 KiB and a name).
const MAX: u64 = (64 << 10) + 256 + 4;

fn prefix(number: u8) -> Result<&'static [u8]> {
    Ok(match number {
        0 => b"",
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        _ => return Err(CORRUPT),
    })
}

/// Calls `each` with every attribute's name and value until it gives something.
fn walk<R>(
    device: &Device,
    sb: &Super,
    inode: &RawInode,
    mut each: impl FnMut(&[u8], &[u8]) -> Option<R>,
) -> Result<Option<R>> {
    if inode.xattr_len == 0 {
        return Ok(None);
    }
    let area = device.read_vec(inode.xattr_at, inode.xattr_len as usize)?;
    let shared = usize::from(*area.get(4).ok_or(CORRUPT)?);
    let mut at = HEADER + 4 * shared;
    if at > area.len() {
        return Err(CORRUPT);
    }
    while at + ENTRY <= area.len() {
        let (name, value, len) = parse(&area[at..])?;
        if let Some(r) = each(&name, value) {
            return Ok(Some(r));
        }
        at += len;
    }
    for n in 0..shared {
        let place = sb.xattr_start + u64::from(le32(&area, HEADER + 4 * n)) * 4;
        let len = MAX.min(device.bytes.saturating_sub(place));
        let head = device.read_vec(place, ENTRY)?;
        let full = (ENTRY + usize::from(head[0]) + usize::from(le16(&head, 2))).min(len as usize);
        let bytes = device.read_vec(place, full)?;
        let (name, value, _) = parse(&bytes)?;
        if let Some(r) = each(&name, value) {
            return Ok(Some(r));
        }
    }
    Ok(None)
}

/// The entry at the start of `bytes`: its name in full, its value, and how long it is with padding.
fn parse(bytes: &[u8]) -> Result<(Vec<u8>, &[u8], usize)> {
    if bytes.len() < ENTRY {
        return Err(CORRUPT);
    }
    let name_end = ENTRY + usize::from(bytes[0]);
    let end = name_end + usize::from(le16(bytes, 2));
    let name = bytes.get(ENTRY..name_end).ok_or(CORRUPT)?;
    let value = bytes.get(name_end..end).ok_or(CORRUPT)?;
    Ok(([prefix(bytes[1])?, name].concat(), value, end.next_multiple_of(4)))
}

/// The value of the attribute `name`.
pub(crate) fn get(device: &Device, sb: &Super, inode: &RawInode, name: &[u8]) -> Result<Vec<u8>> {
    walk(device, sb, inode, |n, v| (n == name).then(|| v.to_vec()))?.ok_or(Errno::ENODATA)
}

/// The names of all, each followed by a NUL.
pub(crate) fn list(device: &Device, sb: &Super, inode: &RawInode) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    walk(device, sb, inode, |n, _| {
        out.extend_from_slice(n);
        out.push(0);
        None::<()>
    })?;
    Ok(out)
}
