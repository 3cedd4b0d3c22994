//! Runs of bits in a bitmap of words, bit 0 of word 0 first. A set bit is in use.

/// The first bit from `from` on, before `end`, that is set (or clear); `end` if there is none.
pub(crate) fn next(map: &[u64], from: usize, end: usize, set: bool) -> usize {
    let mut at = from;
    while at < end {
        let Some(&w) = map.get(at / 64) else { return end };
        let w = if set { w } else { !w };
        let rest = w >> (at % 64);
        if rest != 0 {
            return (at + rest.trailing_zeros() as usize).min(end);
        }
        at = (at / 64 + 1) * 64;
    }
    end
}

/// Sets or clears `len` bits from `from` on.
pub(crate) fn fill(map: &mut [u64], from: usize, len: usize, set: bool) {
    let (mut at, end) = (from, from + len);
    while at < end {
        let n = (64 - at % 64).min(end - at);
        let mask = if n == 64 { u64::MAX } else { ((1u64 << n) - 1) << (at % 64) };
        if let Some(w) = map.get_mut(at / 64) {
            *w = if set { *w | mask } else { *w & !mask };
        }
        at += n;
    }
}

/// Whether all of `len` bits from `from` on are set (or clear).
pub(crate) fn all(map: &[u64], from: usize, len: usize, set: bool) -> bool {
    next(map, from, from + len, !set) == from + len
}

/// The first run of at least `want` clear bits from `from` on, or else the longest: `(start, len)`, cut to `want`.
pub(crate) fn find_run(map: &[u64], from: usize, end: usize, want: usize) -> (usize, usize) {
    let mut best = (0, 0);
    let mut at = from;
    while at < end {
        let start = next(map, at, end, false);
        if start >= end {
            break;
        }
        let stop = next(map, start, end, true);
        let len = stop - start;
        if len >= want {
            return (start, want);
        }
        if len > best.1 {
            best = (start, len);
        }
        at = stop;
    }
    best
}

/// The same operations on bytes of a bitmap as it lies on disk.
pub(crate) mod bytes {
    /// The bit at `i`.
    pub(crate) fn get(map: &[u8], i: usize) -> bool {
        map.get(i / 8).is_none_or(|b| b & (1 << (i % 8)) != 0)
    }

    /// Sets or clears `len` bits.
    pub(crate) fn fill(map: &mut [u8], from: usize, len: usize, set: bool) {
        let (mut at, end) = (from, from + len);
        while at < end {
            if at % 8 == 0 && end - at >= 8 {
                let n = (end - at) / 8;
                if let Some(s) = map.get_mut(at / 8..at / 8 + n) {
                    s.fill(if set { 0xff } else { 0 });
                }
                at += n * 8;
                continue;
            }
            if let Some(b) = map.get_mut(at / 8) {
                *b = if set { *b | (1 << (at % 8)) } else { *b & !(1 << (at % 8)) };
            }
            at += 1;
        }
    }

    /// Whether all of `len` bits are set (or clear).
    pub(crate) fn all(map: &[u8], from: usize, len: usize, set: bool) -> bool {
        (from..from + len).all(|i| get(map, i) == set)
    }

    /// The first clear bit from `from` on, before `end`.
    pub(crate) fn first_clear(map: &[u8], from: usize, end: usize) -> Option<usize> {
        let mut at = from;
        while at < end {
            if at.is_multiple_of(8) && map.get(at / 8) == Some(&0xff) {
                at += 8;
                continue;
            }
            if !get(map, at) {
                return Some(at);
            }
            at += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found() {
        let mut m = vec![0u64; 4];
        fill(&mut m, 0, 256, true);
        fill(&mut m, 10, 5, false);
        fill(&mut m, 60, 100, false);
        assert_eq!(find_run(&m, 0, 256, 3), (10, 3));
        assert_eq!(find_run(&m, 0, 256, 50), (60, 50));
        assert_eq!(find_run(&m, 0, 256, 500), (60, 100));
        assert_eq!(find_run(&m, 100, 130, 500), (100, 30));
        assert!(all(&m, 60, 100, false) && !all(&m, 59, 100, false));
        let mut b = vec![0u8; 8];
        bytes::fill(&mut b, 3, 30, true);
        assert!(bytes::all(&b, 3, 30, true) && bytes::first_clear(&b, 3, 64) == Some(33));
    }
}
