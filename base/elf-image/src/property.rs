//! The `.note.gnu.property` note (Linux Extensions to gABI; ELF for the Arm 64-bit Architecture, "Program Property").
//!
//! A note header (name length, description length, type), the name `GNU\0`, then properties: type, length, data, padded
//! to eight bytes, in rising order of type. As on Linux a note that breaks these rules makes the file `ENOEXEC`.

use crate::ElfError;
use crate::file::{File, u32_at};

const NT_GNU_PROPERTY_TYPE_0: u32 = 5;
const GNU_PROPERTY_AARCH64_FEATURE_1_AND: u32 = 0xc000_0000;
const FEATURE_1_BTI: u32 = 1;
/// Longest note that is looked at, as on Linux.
const MAX_NOTE: u64 = 1024;
/// Header and name.
const NOTE_HEAD: usize = 16;

/// Whether the note of `len` bytes at `offset` asks for guarded pages.
pub(crate) fn wants_bti<R: FnMut(u64, &mut [u8]) -> bool>(
    offset: u64,
    len: u64,
    file: &mut File<'_, R>,
) -> Result<bool, ElfError> {
    if len > MAX_NOTE {
        return Err(ElfError::NotExec);
    }
    let mut buffer = [0_u8; MAX_NOTE as usize];
    let note = &mut buffer[..len as usize];
    if !file.read(offset, note) {
        return Err(ElfError::Invalid);
    }
    let Some((head, rest)) = note.split_at_checked(NOTE_HEAD) else { return Err(ElfError::NotExec) };
    if u32_at(head, 8) != NT_GNU_PROPERTY_TYPE_0 || u32_at(head, 0) != 4 || !head.ends_with(b"GNU\0") {
        return Err(ElfError::NotExec);
    }
    let mut rest = rest.get(..u32_at(head, 4) as usize).ok_or(ElfError::NotExec)?;
    let (mut bti, mut last) = (false, None);
    while !rest.is_empty() {
        let (property, behind) = rest.split_at_checked(8).ok_or(ElfError::NotExec)?;
        let (kind, size) = (u32_at(property, 0), u32_at(property, 4) as usize);
        let data = behind.get(..size).ok_or(ElfError::NotExec)?;
        if last.is_some_and(|last| kind <= last) {
            return Err(ElfError::NotExec);
        }
        last = Some(kind);
        if kind == GNU_PROPERTY_AARCH64_FEATURE_1_AND {
            if size != 4 {
                return Err(ElfError::NotExec);
            }
            bti = u32_at(data, 0) & FEATURE_1_BTI != 0;
        }
        rest = behind.get(size.next_multiple_of(8)..).ok_or(ElfError::NotExec)?;
    }
    Ok(bti)
}
