extern crate std;

use super::{BUFFER, BadData, Inflate, SLACK, Status, WINDOW, boxed};
use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// Decodes `data` in pieces of `piece` bytes.
fn inflate(data: &[u8], piece: usize) -> Result<Option<Vec<u8>>, BadData> {
    let (mut inflate, mut out) = (Inflate::new().unwrap(), boxed::<u8, BUFFER>().unwrap());
    let (mut at, mut result) = (0, Vec::new());
    for mut part in data.chunks(piece.max(1)) {
        loop {
            let start = at;
            let (status, used) = inflate.run(part, &mut out, &mut at)?;
            part = &part[used..];
            result.extend_from_slice(&out[start..at]);
            if at + SLACK > BUFFER {
                out.copy_within(at - WINDOW..at, 0);
                at = WINDOW;
            }
            match status {
                Status::Done => return Ok(Some(result)),
                Status::NeedsInput => break,
                Status::Full => {}
            }
        }
    }
    Ok(None)
}

fn round_trip(data: &[u8], level: u8) {
    let packed = compress_to_vec(data, level);
    for piece in [usize::MAX, 1000, 7, 1] {
        let found = inflate(&packed, piece).unwrap().unwrap();
        assert!(found == data, "level {level}, pieces of {piece}: {} bytes for {}", found.len(), data.len());
    }
}

/// Bytes that are like text: some runs, some repetitions near and far.
fn text(len: usize, mut seed: u64) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    while out.len() < len {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (kind, n) = (seed >> 60, (seed >> 40) as usize % 300 + 1);
        match kind {
            0..6 => out.extend((0..n % 20).map(|i| (seed >> (i % 50)) as u8)),
            6..8 => out.extend(std::iter::repeat_n((seed >> 33) as u8, n)),
            _ => {
                let back = ((seed >> 20) as usize % 40_000 + 1).min(out.len());
                let from = out.len() - back;
                for i in 0..n.min(back) {
                    out.push(out[from + i]);
                }
            }
        }
    }
    out.truncate(len);
    out
}

#[test]
fn what_was_packed_comes_out() {
    for len in [0, 1, 2, 100, 32_768, 98_303, 98_304, 300_000] {
        for level in [0, 1, 6, 9] {
            round_trip(&text(len, len as u64), level);
        }
    }
    round_trip(&vec![7; 500_000], 6);
    round_trip(&(0..200_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_le_bytes()).collect::<Vec<_>>(), 6);
}

#[test]
fn a_stream_that_ends_early_is_not_done() {
    let packed = compress_to_vec(&text(5000, 3), 6);
    for end in 0..packed.len() {
        assert!(!matches!(inflate(&packed[..end], 64), Ok(Some(_))), "{end} of {}", packed.len());
    }
}

proptest! {
    #[test]
    fn anything_is_an_error_or_what_another_decoder_says(mut data: Vec<u8>, packed: bool, at: usize, to: u8) {
        if packed {
            data = compress_to_vec(&text(data.len() * 50, at as u64), 6);
            if let Some(len) = std::num::NonZero::new(data.len()) {
                data[at % len] = to;
            }
        }
        let mine = inflate(&data, 100);
        prop_assert_eq!(&mine, &inflate(&data, usize::MAX));
        // The other takes some incomplete sets of codes.
        if let (Ok(Some(mine)), Ok(other)) = (&mine, decompress_to_vec_with_limit(&data, 1 << 24)) {
            prop_assert_eq!(mine, &other);
        }
        if matches!(mine, Ok(Some(_))) {
            prop_assert!(decompress_to_vec_with_limit(&data, 1 << 24).is_ok());
        }
    }
}
