//! A disk that is a file of the host.

use crate::SECTOR_SHIFT;
use crate::device::{BlockDevice, Geometry};
use crate::request::{Op, Request};
use crate::stats::{Kind, Stats};
use abi::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::vec;

/// A disk that is a file.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    geometry: Geometry,
    stats: Stats,
}

impl FileDisk {
    /// The disk that `path` holds.
    pub fn open(path: &Path, writable: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(writable).open(path)?;
        let sectors = file.metadata()?.len() >> SECTOR_SHIFT;
        let geometry =
            Geometry { read_only: !writable, discard: false, write_zeroes: false, ..Geometry::simple(sectors) };
        Ok(FileDisk { file, geometry, stats: Stats::new() })
    }

    fn perform(&self, request: &Request) -> io::Result<()> {
        let mut at = request.sector << SECTOR_SHIFT;
        for s in &request.segments {
            let mut buf = vec![0; s.len as usize];
            if request.op == Op::Read {
                self.file.read_exact_at(&mut buf, at)?;
                s.page.bytes_mut(s.offset as usize, buf.len()).copy_from(platform::SharedBytes::from(&buf[..]));
            } else {
                s.page.bytes(s.offset as usize, buf.len()).copy_to(&mut buf);
                self.file.write_all_at(&buf, at)?;
            }
            at += u64::from(s.len);
        }
        Ok(())
    }
}

impl BlockDevice for FileDisk {
    fn name(&self) -> &'static str {
        "file"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&self, request: Request) {
        let began = self.stats.begin();
        let result = self.geometry.check(&request).and_then(|()| self.perform(&request).map_err(|_| Errno::EIO));
        self.stats.end(Kind::from(request.op), request.sectors(), began, result.is_ok());
        request.finish(result);
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}
