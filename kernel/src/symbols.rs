//! Names for addresses in back-traces: a table that the build places in the image after linking (scripts/ksyms).
//!
//! Section `.ksyms`: count (u32), then `count` pairs (offset from the image's start, offset of the name), sorted, then the
//! names, each ended by a NUL. An image without the table just prints numbers.

unsafe extern "C" {
    static __ksyms_start: u8;
    static __ksyms_end: u8;
}

fn table() -> &'static [u8] {
    let (start, end) = (&raw const __ksyms_start, &raw const __ksyms_end);
    // SAFETY: the linker script bounds the section.
    unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) }
}

fn word(t: &[u8], index: usize) -> Option<u32> {
    let b = t.get(index * 4..index * 4 + 4)?;
    Some(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// The function that holds `pc`, and how far into it `pc` is.
pub fn lookup(pc: u64) -> Option<(&'static str, u64)> {
    let t = table();
    let count = word(t, 0)? as usize;
    let offset = crate::arch::boot::link_address(pc) as u32;
    let (mut low, mut high) = (0, count);
    while low < high {
        let mid = usize::midpoint(low, high);
        if word(t, 1 + 2 * mid)? <= offset {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    let at = low.checked_sub(1)?;
    let start = word(t, 1 + 2 * at)?;
    let names = t.get((1 + 2 * count) * 4..)?;
    let name = names.get(word(t, 2 + 2 * at)? as usize..)?;
    let end = name.iter().position(|&b| b == 0)?;
    Some((core::str::from_utf8(&name[..end]).ok()?, (offset - start) as u64))
}
