//! The 110-byte header.

use super::{CpioErrorKind, MAX_NAME};

/// Length of a header in bytes: a magic of 6 and 13 numbers of 8 hexadecimal digits.
pub const HEADER_LEN: usize = 110;

/// An entry's header, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Inode number, meaningful within the archive (see [`Header::link_key`]).
    pub ino: u32,
    /// File type and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of links.
    pub nlink: u32,
    /// Last modification, seconds since 1970.
    pub mtime: u32,
    /// Length of the data in bytes.
    pub size: u32,
    /// Major and minor number of the device that the file was on.
    pub dev: (u32, u32),
    /// Major and minor number of the device that the file is.
    pub rdev: (u32, u32),
    /// Length of the name, with its NUL.
    pub(super) name_len: u32,
    /// Sum of the data's bytes, where the format has one.
    pub(super) checksum: Option<u32>,
}

/// What an entry is (`S_IFMT` of its mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link; its data is its target.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// None of these; Linux skips such entries.
    Unknown,
}

/// Names one file among the entries of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkKey {
    dev: (u32, u32),
    ino: u32,
    kind: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, CpioErrorKind> {
        let has_checksum = match &bytes[..6] {
            b"070701" => false,
            b"070702" => true,
            b"070707" => return Err(CpioErrorKind::OldFormat),
            _ => return Err(CpioErrorKind::BadMagic),
        };
        let mut numbers = [0_u32; 13];
        for (number, digits) in numbers.iter_mut().zip(bytes[6..].chunks_exact(8)) {
            *number = hex(digits).ok_or(CpioErrorKind::BadNumber)?;
        }
        let [ino, mode, uid, gid, nlink, mtime, size, dev_major, dev_minor, rdev_major, rdev_minor, name_len, sum] =
            numbers;
        if !(2..=MAX_NAME as u32).contains(&name_len) {
            return Err(CpioErrorKind::BadNameLength(name_len));
        }
        Ok(Self {
            ino,
            mode,
            uid,
            gid,
            nlink,
            mtime,
            size,
            dev: (dev_major, dev_minor),
            rdev: (rdev_major, rdev_minor),
            name_len,
            checksum: has_checksum.then_some(sum),
        })
    }

    /// What the entry is.
    pub const fn file_type(&self) -> FileType {
        match self.mode & 0o17_0000 {
            0o10_0000 => FileType::Regular,
            0o04_0000 => FileType::Directory,
            0o12_0000 => FileType::Symlink,
            0o02_0000 => FileType::CharDevice,
            0o06_0000 => FileType::BlockDevice,
            0o01_0000 => FileType::Fifo,
            0o14_0000 => FileType::Socket,
            _ => FileType::Unknown,
        }
    }

    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub const fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    /// Equal for entries of one archive that are the same file; `None` for what has one name.
    pub const fn link_key(&self) -> Option<LinkKey> {
        if self.nlink < 2 || matches!(self.file_type(), FileType::Directory) {
            return None;
        }
        Some(LinkKey { dev: self.dev, ino: self.ino, kind: self.mode & 0o17_0000 })
    }

    /// Whether the data means something: it is passed over for all but files and symbolic links.
    pub(super) const fn has_data(&self) -> bool {
        matches!(self.file_type(), FileType::Regular | FileType::Symlink)
    }

    /// Bytes between the header's start and the data: name and padding included.
    pub(super) const fn data_offset(&self) -> u64 {
        (HEADER_LEN as u64 + self.name_len as u64).next_multiple_of(4)
    }
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |number, digit| Some(number << 4 | char::from(*digit).to_digit(16)?))
}

/// The name in a field of `name_len` bytes: up to the first NUL, which must be there.
pub(super) fn name_of(field: &[u8]) -> Result<&[u8], CpioErrorKind> {
    if field.last() != Some(&0) {
        return Err(CpioErrorKind::NameUnterminated);
    }
    let len = field.iter().position(|byte| *byte == 0).unwrap_or(0);
    if len == 0 { Err(CpioErrorKind::BadNameLength(field.len() as u32)) } else { Ok(&field[..len]) }
}

/// The sum that `070702` archives carry.
pub(super) fn sum(start: u32, data: &[u8]) -> u32 {
    data.iter().fold(start, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}
