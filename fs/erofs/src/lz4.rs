//! The LZ4 block format, unpacking only (the format: lz4's doc/lz4_Block_format.md).
//!
//! Own code because a cluster may be unpacked in part: EROFS asks for the first bytes of one, or has padding behind its end,
//! where a decoder for whole blocks (lz4_flex) reports an error. Safe code; it copies by slices, so that it costs no more
//! than a check per sequence.

use alloc::vec::Vec;

/// The input is not LZ4, or ends before the output is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A length that goes on in further bytes.
fn extended(input: &[u8], at: &mut usize, mut len: usize) -> Result<usize, Malformed> {
    if len == 15 {
        loop {
            let b = *input.get(*at).ok_or(Malformed)?;
            *at += 1;
            len = len.checked_add(usize::from(b)).ok_or(Malformed)?;
            if b != 255 {
                break;
            }
        }
    }
    Ok(len)
}

/// Unpacks `input` into `out` (which is cleared) until there are `want` bytes; what follows is ignored. The capacity of `out`
/// must be reserved by the caller, or is grown.
pub fn unpack(input: &[u8], out: &mut Vec<u8>, want: usize) -> Result<(), Malformed> {
    out.clear();
    let mut at = 0;
    loop {
        let token = *input.get(at).ok_or(Malformed)?;
        at += 1;
        let literals = extended(input, &mut at, usize::from(token >> 4))?;
        let take = literals.min(want - out.len());
        let end = at.checked_add(take).ok_or(Malformed)?;
        out.extend_from_slice(input.get(at..end).ok_or(Malformed)?);
        if out.len() == want {
            return Ok(());
        }
        at = end;
        let low = usize::from(*input.get(at).ok_or(Malformed)?);
        let high = usize::from(*input.get(at + 1).ok_or(Malformed)?);
        at += 2;
        let offset = low | high << 8;
        if offset == 0 || offset > out.len() {
            return Err(Malformed);
        }
        let len = extended(input, &mut at, usize::from(token & 15))?.saturating_add(4);
        copy_match(out, offset, len.min(want - out.len()));
        if out.len() == want {
            return Ok(());
        }
    }
}

/// Repeats `len` bytes that stand `offset` before the end; they may overlap what they produce.
fn copy_match(out: &mut Vec<u8>, offset: usize, len: usize) {
    let start = out.len() - offset;
    if offset >= len {
        out.extend_from_within(start..start + len);
        return;
    }
    let mut left = len;
    while left > 0 {
        // What is there doubles with each round.
        let n = left.min(out.len() - start);
        out.extend_from_within(start..start + n);
        left -= n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literals_and_matches() {
        // "abc", then 9 bytes from 3 back, then "xyz".
        let packed = [0x35, b'a', b'b', b'c', 3, 0, 0x30, b'x', b'y', b'z'];
        let mut out = Vec::new();
        assert_eq!(unpack(&packed, &mut out, 15), Ok(()));
        assert_eq!(out, b"abcabcabcabcxyz");
        assert_eq!(unpack(&packed, &mut out, 5), Ok(()));
        assert_eq!(out, b"abcab");
        assert_eq!(unpack(&packed, &mut out, 16), Err(Malformed));
    }

    #[test]
    fn an_offset_before_the_start_is_refused() {
        assert_eq!(unpack(&[0x14, b'a', 2, 0], &mut Vec::new(), 100), Err(Malformed));
        assert_eq!(unpack(&[0x14, b'a', 0, 0], &mut Vec::new(), 100), Err(Malformed));
    }

    proptest! {
        #[test]
        fn any_input_ends(input in proptest::collection::vec(any::<u8>(), 0..200), want in 1usize..5000) {
            let mut out = Vec::new();
            if unpack(&input, &mut out, want).is_ok() {
                prop_assert_eq!(out.len(), want);
            }
            prop_assert!(out.len() <= want);
        }
    }
}
