//! Journals that e2fsprogs wrote: both recoveries must read the same from them.
//!
//! What debugfs writes is not always a journal that is valid to its end, and then both must stop at the same place:
//! - its estimate of a transaction's length leaves the revoke block out, so the next transaction overwrites the commit block
//!   (unless the journal is opened anew in between, which finds the true end);
//! - without `metadata_csum`, `jo -c` turns on the checksum of whole transactions, and debugfs includes revoke blocks in it.
//!   Linux and e2fsck do not, so for them such a transaction is damaged.

use super::support::*;
use crate::Refusal;

/// Writes `count` random transactions with debugfs and returns the dirty image.
fn dirty(image: &Image, open: &str, count: u64, rng: &mut Rng) -> Image {
    let s = Scratch::with("foreign", &image.bytes);
    let mut script = format!("{open}\n");
    let mut files = Vec::new();
    for n in 0..count {
        let blocks = 1 + rng.below(90) as usize;
        let mut data = Vec::new();
        let mut list: Vec<String> = Vec::new();
        let from = rng.below(image.free.len() as u64 - blocks as u64) as usize;
        for b in &image.free[from..from + blocks] {
            list.push(b.to_string());
            let mut content = vec![rng.next() as u8; image.block_size];
            if rng.below(4) == 0 {
                content[..4].copy_from_slice(&[0xC0, 0x3B, 0x39, 0x98]);
            }
            data.extend(content);
        }
        let file = Scratch::with("data", &data);
        let revoked: Vec<String> = (0..rng.below(5))
            .map(|_| image.free[rng.below(image.free.len() as u64) as usize])
            .filter(|b| !list.contains(&b.to_string()))
            .map(|b| b.to_string())
            .collect();
        let revoke = if revoked.is_empty() { String::new() } else { format!("-r {} ", revoked.join(",")) };
        let commit = if n + 1 == count && rng.below(2) == 0 { "-c " } else { "" };
        script += &format!("jw -b {} {revoke}{commit}{}\n", list.join(","), file.path());
        files.push(file);
        if rng.below(2) == 0 {
            script += &format!("jc\n{open}\n");
        }
    }
    script += "jc\n";
    let commands = Scratch::with("script", script.as_bytes());
    let o = tool("debugfs", &["-w", "-f", commands.path(), s.path()]).unwrap();
    assert!(o.status.success(), "{}", text(&o));
    image.with(s.bytes())
}

#[test]
fn both_recoveries_read_what_debugfs_wrote() {
    let mut rng = Rng(seed("foreign"));
    for (block_size, features) in [(1024, ""), (4096, ""), (1024, "^metadata_csum,^64bit")] {
        let Some(image) = Image::make(24 * 1024, block_size, features) else { return };
        let rounds = std::env::var("ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        for open in ["jo", "jo -c -v 2", "jo -c -v 3"].into_iter().cycle().take(3 * rounds) {
            let state = rng.0;
            let dirty = dirty(&image, open, 1 + rng.below(5), &mut rng);
            let (ours, report) = dirty.recovered().unwrap();
            let (theirs, o) = dirty.recovered_by_e2fsck();
            assert!(ours.essence() == theirs.essence(), "{open} {block_size} Rng({state}): {report:?} {}", text(&o));
            // e2fsck finds the journal that we left empty, and the file system sound.
            let mut left = ours.clone();
            left.set_needs_recovery();
            let (again, o) = left.recovered_by_e2fsck();
            assert!(again.essence() == ours.essence(), "{}", text(&o));
            assert!(again.check().status.success(), "{}", text(&again.check()));
        }
    }
}

#[test]
fn a_journal_of_another_file_system_is_refused() {
    let (Some(one), Some(other)) = (Image::make(8192, 1024, ""), Image::make(8192, 1024, "")) else { return };
    let dirty = dirty(&other, "jo -c -v 3", 2, &mut Rng(1));
    let mut mixed = one.clone();
    for i in 0..dirty.map.len() {
        let (from, to) = (dirty.map.find(i).unwrap().0 as usize * 1024, one.map.find(i).unwrap().0 as usize * 1024);
        mixed.bytes[to..to + 1024].copy_from_slice(&dirty.bytes[from..from + 1024]);
    }
    assert_eq!(mixed.recovered().err(), Some(Refusal::Foreign));
}
