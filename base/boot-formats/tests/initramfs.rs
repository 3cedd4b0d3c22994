//! What must hold of the cpio, gzip and initramfs readers.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]
mod support;

use boot_formats::cpio::{CpioErrorKind, Entries, FileType, Header, Parser, PushError, Sink};
use boot_formats::gzip::{Decoder, GzipErrorKind, PushError as GzipPushError, Workspace};
use boot_formats::initramfs::{Format, UnpackError, Unpacker, sniff, unpack};
use proptest::prelude::*;
use support::archive::{Cpio, gzip, gzip_with};

/// What a sink was told.
#[derive(Default, Debug, PartialEq, Eq, Clone)]
struct Tree {
    files: Vec<(Header, Vec<u8>, Vec<u8>)>,
    open: bool,
    archives: usize,
    refuse_after: Option<usize>,
}

impl Sink for Tree {
    type Error = &'static str;
    fn begin_entry(&mut self, header: &Header, name: &[u8]) -> Result<(), Self::Error> {
        assert!(!self.open && !name.is_empty() && !name.contains(&0));
        if self.refuse_after == Some(self.files.len()) {
            return Err("full");
        }
        self.open = true;
        self.files.push((*header, name.into(), vec![]));
        Ok(())
    }
    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        assert!(self.open && !bytes.is_empty());
        self.files.last_mut().unwrap().2.extend(bytes);
        Ok(())
    }
    fn end_entry(&mut self) -> Result<(), Self::Error> {
        assert!(self.open);
        self.open = false;
        Ok(())
    }
    fn end_archive(&mut self) -> Result<(), Self::Error> {
        assert!(!self.open);
        self.archives += 1;
        Ok(())
    }
}

fn sample() -> Cpio {
    let mut a = Cpio::new();
    a.dir("dev").file("init", 0o755, b"#!/bin/sh\n").link("bin/sh", b"busybox").device("dev/null", 0o2_0666, (1, 3));
    a.hard(7, 2, "a", b"").hard(7, 2, "b", b"shared").file("empty", 0o644, b"").file("big", 0o600, &[0x5a; 5000]);
    a
}

fn in_pieces(image: &[u8], sizes: &mut dyn FnMut() -> usize) -> (Tree, Result<u64, UnpackError<&'static str>>) {
    let mut workspace = Workspace::new().unwrap();
    let mut unpacker = Unpacker::new(&mut workspace, 1 << 20);
    let mut tree = Tree::default();
    let mut rest = image;
    while !rest.is_empty() {
        let (piece, next) = rest.split_at(sizes().clamp(1, rest.len()));
        if let Err(error) = unpacker.push(piece, &mut tree) {
            return (tree, Err(error));
        }
        rest = next;
    }
    let result = unpacker.finish();
    (tree, result)
}

fn whole(image: &[u8]) -> (Tree, Result<u64, UnpackError<&'static str>>) {
    in_pieces(image, &mut || usize::MAX)
}

#[test]
fn an_archive_is_read_whole() {
    let image = sample().finish();
    let entries: Vec<_> = Entries::new(&image).map(Result::unwrap).collect();
    let names: Vec<_> = entries.iter().map(|e| core::str::from_utf8(e.name).unwrap()).collect();
    assert_eq!(names, ["dev", "init", "bin/sh", "dev/null", "a", "b", "empty", "big"]);
    let types: Vec<_> = entries.iter().map(|e| e.header.file_type()).take(4).collect();
    assert_eq!(types, [FileType::Directory, FileType::Regular, FileType::Symlink, FileType::CharDevice]);
    assert_eq!((entries[1].data, entries[1].header.permissions()), (&b"#!/bin/sh\n"[..], 0o755));
    assert_eq!((entries[2].data, entries[3].header.rdev), (&b"busybox"[..], (1, 3)));
    assert_eq!(entries[4].header.link_key(), entries[5].header.link_key());
    assert!(entries[4].header.link_key().is_some() && entries[1].header.link_key().is_none());
    let (tree, result) = whole(&image);
    assert_eq!((tree.archives, result), (1, Ok(1)));
    let as_entries: Vec<_> = entries.iter().map(|e| (e.header, e.name.to_vec(), e.data.to_vec())).collect();
    assert_eq!(tree.files, as_entries);
}

#[test]
fn archives_follow_one_another_plain_and_compressed() {
    let (plain, packed) = (sample().finish(), gzip(&sample().finish()));
    for parts in [[&plain, &plain], [&plain, &packed], [&packed, &plain], [&packed, &packed]] {
        for zeros in [0, 1, 4, 511] {
            let mut image = vec![0; zeros];
            for part in parts {
                image.extend_from_slice(part);
                image.resize(image.len() + zeros, 0);
            }
            let (tree, result) = whole(&image);
            assert_eq!((tree.archives, tree.files.len(), result), (2, 16, Ok(2)));
            let mut n = 0;
            let again = in_pieces(&image, &mut || {
                n = n % 7 + 1;
                n
            });
            assert_eq!(again, (tree, result));
        }
    }
}

#[test]
fn an_archive_may_span_gzip_members() {
    let plain = sample().finish();
    for cut in [1, 110, 500, plain.len() - 1] {
        let image = [gzip(&plain[..cut]), gzip(&plain[cut..])].concat();
        assert_eq!(whole(&image), whole(&plain));
    }
}

#[test]
fn every_truncation_is_told() {
    let plain = sample().finish();
    // What follows the trailer is padding that may be missing.
    let end = plain.len() - plain.iter().rev().take_while(|byte| **byte == 0).count() + 4;
    for len in 1..end - 4 {
        let (_, result) = whole(&plain[..len]);
        assert!(
            matches!(result, Err(UnpackError::Cpio(e)) if e.kind == CpioErrorKind::Truncated && e.at == len as u64),
            "{len} {result:?}"
        );
        let last = Entries::new(&plain[..len]).last().unwrap();
        assert_eq!(last.unwrap_err().kind, CpioErrorKind::Truncated, "{len}");
    }
    assert_eq!(whole(&[]).1, Err(UnpackError::Empty));
    assert_eq!(whole(&[0; 512]).1, Err(UnpackError::Empty));
    let packed = gzip(&plain);
    for len in 1..packed.len() {
        let (_, result) = whole(&packed[..len]);
        assert!(
            matches!(result, Err(UnpackError::Gzip(e)) if e.kind == GzipErrorKind::Truncated && e.at == len as u64),
            "{len} {result:?}"
        );
    }
}

#[test]
fn broken_headers_are_told_with_their_place() {
    let good = sample().finish();
    let second = Cpio::new().dir("dev").len();
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        let slice = Entries::new(&image).find_map(Result::err).map(|e| (e.at, e.kind));
        let Err(UnpackError::Cpio(e)) = whole(&image).1 else { panic!("accepted") };
        assert_eq!(slice, Some((e.at, e.kind)));
        (e.at as usize, e.kind)
    };
    assert_eq!(with(0, b"070707"), (0, CpioErrorKind::OldFormat));
    assert_eq!(with(second, b"x"), (second, CpioErrorKind::BadMagic));
    assert_eq!(with(second + 6, b"0000000g"), (second, CpioErrorKind::BadNumber));
    assert_eq!(with(second + 94, b"00000000"), (second, CpioErrorKind::BadNameLength(0)));
    assert_eq!(with(second + 94, b"ffffffff"), (second, CpioErrorKind::BadNameLength(u32::MAX)));
    assert_eq!(with(second + 94, b"00000004"), (second, CpioErrorKind::NameUnterminated));
    assert_eq!(with(second + 110, b"\0"), (second, CpioErrorKind::BadNameLength(5)));
    assert!(matches!(whole(b"BZh9").1, Err(UnpackError::Unknown { at: 0, format: Format::Compressed("bzip2") })));
    let mut junk = good.clone();
    junk.extend(b"junk");
    let at = good.len() as u64;
    assert_eq!(whole(&junk).1, Err(UnpackError::Unknown { at, format: Format::Unknown }));
}

#[test]
fn checksums_of_the_crc_variant_are_verified() {
    let image = Cpio::new().summed("f", b"abc").finish();
    assert_eq!(whole(&image).0.files[0].2, b"abc");
    let mut bad = image.clone();
    bad[112] ^= 1;
    assert!(matches!(whole(&bad).1, Err(UnpackError::Cpio(e)) if e.kind == CpioErrorKind::BadChecksum && e.at == 0));
    assert!(matches!(Entries::new(&bad).next(), Some(Err(e)) if e.kind == CpioErrorKind::BadChecksum && e.at == 0));
}

#[test]
fn a_sink_that_refuses_ends_it() {
    let mut parser = Parser::new();
    let mut tree = Tree { refuse_after: Some(2), ..Tree::default() };
    let image = sample().finish();
    assert_eq!(parser.push(&image, &mut tree), Err(PushError::Sink("full")));
    assert!(parser.push(&image, &mut tree).is_err());
    assert_eq!(
        unpack(
            &gzip(&image),
            &mut Workspace::new().unwrap(),
            1 << 20,
            &mut Tree { refuse_after: Some(0), ..Tree::default() }
        ),
        Err(UnpackError::Sink("full"))
    );
}

fn gunzip(bytes: &[u8], limit: u64, step: usize) -> (Vec<u8>, Result<(), GzipErrorKind>) {
    let mut workspace = Workspace::new().unwrap();
    let mut decoder = Decoder::new(&mut workspace, limit);
    let mut out = vec![];
    for piece in bytes.chunks(step) {
        let sink = &mut |bytes: &[u8]| -> Result<(), ()> {
            out.extend_from_slice(bytes);
            Ok(())
        };
        match decoder.push(piece, sink) {
            Err(GzipPushError::Gzip(e)) => return (out, Err(e.kind)),
            Err(GzipPushError::Sink(())) => unreachable!(),
            Ok(n) => assert_eq!(n, piece.len()),
        }
    }
    let end = decoder.finish().map_err(|e| e.kind);
    (out, end)
}

#[test]
fn gzip_headers_with_all_options_are_read() {
    let data = b"hello hello hello".repeat(5000);
    let packed = gzip_with(&data, true);
    for step in [1, 2, 3, 1000, usize::MAX] {
        assert_eq!(gunzip(&packed, 1 << 20, step), (data.clone(), Ok(())));
    }
    let mut bad = packed.clone();
    bad[9] ^= 1;
    assert_eq!(gunzip(&bad, 1 << 20, 64).1, Err(GzipErrorKind::BadHeaderChecksum));
    bad[3] |= 0x80;
    assert_eq!(gunzip(&bad, 1 << 20, 64).1, Err(GzipErrorKind::BadHeader));
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let bomb = gzip(&vec![0; 4 << 20]);
    let (out, result) = gunzip(&bomb, 100_000, usize::MAX);
    assert_eq!(result, Err(GzipErrorKind::TooLong));
    assert!(out.len() <= 100_000);
}

#[test]
fn wrong_sums_and_lengths_are_told() {
    let good = gzip(b"some data");
    let n = good.len();
    for (at, want) in
        [(n - 8, GzipErrorKind::BadChecksum), (n - 1, GzipErrorKind::BadLength), (1, GzipErrorKind::BadHeader)]
    {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert_eq!(gunzip(&bad, 1 << 20, 5).1, Err(want));
    }
}

#[test]
fn images_are_told_by_their_magic() {
    let mut erofs = vec![0; 4096];
    erofs[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
    assert_eq!(sniff(&erofs), Format::Erofs);
    assert_eq!(sniff(&sample().finish()), Format::Cpio);
    assert_eq!(sniff(&gzip(b"")), Format::Gzip);
    assert_eq!(sniff(&[0x28, 0xb5, 0x2f, 0xfd]), Format::Compressed("zstd"));
    assert_eq!((sniff(b""), sniff(b"0"), sniff(&[0; 2000])), (Format::Unknown, Format::Unknown, Format::Unknown));
}

#[test]
fn mutated_images_never_panic_and_pieces_make_no_difference() {
    let plain = sample().finish();
    let images = [gzip(&plain), plain];
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let start = std::time::Instant::now();
    while start.elapsed().as_millis() < 2000 {
        let mut image = images[(random >> 40) as usize % 2].clone();
        for _ in 0..=random % 3 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (random >> 33) as usize % image.len();
            image[at] =
                if random & 8 == 0 { image[at] ^ (1 << ((random >> 8) & 7)) } else { b"0f7\0"[random as usize & 3] };
        }
        let (tree, result) = whole(&image);
        let mut n = random as usize;
        let pieces = in_pieces(&image, &mut || {
            n = n.wrapping_mul(0x9e37_79b9).wrapping_add(1) % 700;
            n
        });
        // Where broken compressed data was noticed may differ with the pieces; that it was may not.
        assert_eq!(result.is_ok(), pieces.1.is_ok());
        if result.is_ok() {
            assert_eq!(tree.files, pieces.0.files);
        }
        let _ = Entries::new(&image).count();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_never_panic(start in prop_oneof![Just(&b""[..]), Just(&b"070701"[..]), Just(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0][..])], bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let image = [start, &bytes].concat();
        let _ = (whole(&image), Entries::new(&image).count(), sniff(&image));
    }

    #[test]
    fn what_goes_in_comes_out(files in proptest::collection::vec(("[a-z/]{1,40}", proptest::collection::vec(any::<u8>(), 0..3000)), 0..8), step in 1..900_usize, packed in any::<bool>()) {
        let mut a = Cpio::new();
        for (name, data) in &files {
            a.file(name, 0o644, data);
        }
        let image = if packed { gzip(&a.finish()) } else { a.finish() };
        let (tree, result) = in_pieces(&image, &mut || step);
        prop_assert_eq!(result, Ok(1));
        let got: Vec<_> = tree.files.into_iter().map(|(_, name, data)| (String::from_utf8(name).unwrap(), data)).collect();
        prop_assert_eq!(got, files);
    }
}
