//! Builds archives for tests.

/// A `newc` archive under construction.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    ino: u32,
}

impl Cpio {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    #[allow(clippy::too_many_arguments, reason = "the format has that many")]
    fn entry(
        &mut self,
        magic: &str,
        ino: u32,
        mode: u32,
        nlink: u32,
        rdev: (u32, u32),
        name: &str,
        data: &[u8],
    ) -> &mut Self {
        let sum = if magic == "070702" { data.iter().map(|byte| u32::from(*byte)).sum() } else { 0 };
        let (size, name_len) = (data.len() as u32, name.len() as u32 + 1);
        let numbers = [ino, mode, 0, 0, nlink, 1, size, 8, 1, rdev.0, rdev.1, name_len, sum];
        self.bytes.extend(magic.as_bytes());
        for number in numbers {
            self.bytes.extend(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend(data);
        self.pad(4);
        self
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn next(&mut self) -> u32 {
        self.ino += 1;
        self.ino + 1000
    }

    pub fn dir(&mut self, name: &str) -> &mut Self {
        let ino = self.next();
        self.entry("070701", ino, 0o4_0755, 2, (0, 0), name, b"")
    }

    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> &mut Self {
        let ino = self.next();
        self.entry("070701", ino, 0o10_0000 | mode, 1, (0, 0), name, data)
    }

    pub fn summed(&mut self, name: &str, data: &[u8]) -> &mut Self {
        let ino = self.next();
        self.entry("070702", ino, 0o10_0644, 1, (0, 0), name, data)
    }

    pub fn hard(&mut self, ino: u32, nlink: u32, name: &str, data: &[u8]) -> &mut Self {
        self.entry("070701", ino, 0o10_0644, nlink, (0, 0), name, data)
    }

    pub fn link(&mut self, name: &str, target: &[u8]) -> &mut Self {
        let ino = self.next();
        self.entry("070701", ino, 0o12_0777, 1, (0, 0), name, target)
    }

    pub fn device(&mut self, name: &str, mode: u32, rdev: (u32, u32)) -> &mut Self {
        let ino = self.next();
        self.entry("070701", ino, mode, 1, rdev, name, b"")
    }

    pub fn finish(&mut self) -> Vec<u8> {
        self.entry("070701", 0, 0, 1, (0, 0), "TRAILER!!!", b"");
        self.pad(512);
        self.bytes.clone()
    }
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    gzip_with(data, false)
}

/// With all optional fields of the header, or none.
pub fn gzip_with(data: &[u8], all: bool) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, if all { 0x1e } else { 0 }, 0, 0, 0, 0, 0, 3];
    if all {
        out.extend(b"\x05\0extra");
        out.extend(b"name\0comment\0");
        let sum = crc32(&out);
        out.extend(&sum.to_le_bytes()[..2]);
    }
    out.extend(miniz_oxide::deflate::compress_to_vec(data, 6));
    out.extend(crc32(data).to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}
