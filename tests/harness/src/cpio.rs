//! newc cpio archives, to lay files over an initial root: archives one behind the other are unpacked in order, as Linux
//! does, so a gate adds its own files to the common initial root without unpacking it.

use std::path::{Path, PathBuf};

/// What to put where.
pub enum Entry<'a> {
    /// A directory with its mode.
    Dir(&'a str, u32),
    /// A regular file with its mode and content.
    File(&'a str, u32, &'a [u8]),
    /// A symbolic link and where it points.
    Link(&'a str, &'a str),
}

/// The archive of `entries`, trailer included. Names have no leading slash.
pub fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, e) in entries.iter().enumerate() {
        let ino = i as u32 + 1;
        match e {
            Entry::Dir(name, mode) => member(&mut out, ino, 0o040_000 | mode, name, &[]),
            Entry::File(name, mode, data) => member(&mut out, ino, 0o100_000 | mode, name, data),
            Entry::Link(name, to) => member(&mut out, ino, 0o120_777, name, to.as_bytes()),
        }
    }
    member(&mut out, 0, 0, "TRAILER!!!", &[]);
    out
}

fn member(out: &mut Vec<u8>, ino: u32, mode: u32, name: &str, data: &[u8]) {
    let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let fields = [ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    out.extend_from_slice(b"070701");
    for f in fields {
        out.extend_from_slice(format!("{f:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Write `base` followed by an archive of `entries` to `to`.
pub fn overlay(base: &Path, entries: &[Entry<'_>], to: PathBuf) -> std::io::Result<PathBuf> {
    let mut bytes = std::fs::read(base)?;
    pad(&mut bytes);
    bytes.extend(archive(entries));
    std::fs::write(&to, bytes)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_aligned_and_end_with_the_trailer() {
        let a = archive(&[Entry::Dir("d", 0o755), Entry::File("d/f", 0o644, b"hello"), Entry::Link("l", "d/f")]);
        assert_eq!(a.len() % 4, 0);
        assert!(a.starts_with(b"070701"));
        assert!(crate::console::find(&a, b"TRAILER!!!\0").is_some());
        // header 110 + "d\0" = 112; the second header follows at once.
        assert_eq!(&a[112..118], b"070701");
    }
}
