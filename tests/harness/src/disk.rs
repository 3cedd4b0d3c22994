//! Disks of machines under test: images, what the device was asked for, and what a power cut leaves.
//!
//! Killing the emulator is not a power cut: whatever the guest wrote sits in the host's memory and survives. So disks
//! that are to be cut go through the emulator's write log (`blklogwrites`, in the format of Linux' dm-log-writes), which
//! has every write and flush in the order in which the device saw them; [`Log::after_cut`] builds from it the worst that a
//! device with a volatile cache may keep: what was flushed, and nothing else.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Outcome};
use crate::vm::VmConfig;

const SECTOR: usize = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// A disk image of a machine under test.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The image.
    pub image: PathBuf,
    /// The write log, where there is one.
    pub log: Option<PathBuf>,
}

impl Disk {
    /// A new disk of `bytes` zeroes.
    pub fn new(dir: &Path, name: &str, bytes: u64) -> Outcome<Self> {
        let image = dir.join(name);
        File::create(&image)?.set_len(bytes)?;
        Ok(Self { image, log: None })
    }

    /// A new disk that holds `content`.
    pub fn with(dir: &Path, name: &str, content: &[u8]) -> Outcome<Self> {
        let image = dir.join(name);
        std::fs::write(&image, content)?;
        Ok(Self { image, log: None })
    }

    /// The same with a fresh write log beside it.
    pub fn logged(mut self) -> Outcome<Self> {
        let log = self.image.with_extension("log");
        File::create(&log)?;
        self.log = Some(log);
        Ok(self)
    }

    /// Puts it into a machine as the next disk; `device` is more of the device's properties, such as `,num-queues=2`.
    pub fn attach(&self, config: &mut VmConfig, id: &str, device: &str) {
        self.attach_to(&mut config.extra, id, device);
    }

    /// The same for the emulator's arguments.
    pub fn attach_to(&self, extra: &mut Vec<String>, id: &str, device: &str) {
        let mut block = |text: String| extra.extend(["-blockdev".to_owned(), text]);
        block(format!("driver=file,filename={},node-name={id}-file,discard=unmap", self.image.display()));
        let node = match &self.log {
            None => format!("{id}-file"),
            Some(log) => {
                block(format!("driver=file,filename={},node-name={id}-log", log.display()));
                block(format!(
                    "driver=blklogwrites,node-name={id},file={id}-file,log={id}-log,log-sector-size={SECTOR}"
                ));
                id.to_owned()
            }
        };
        extra.extend(["-device".to_owned(), format!("virtio-blk-device,drive={node}{device}")]);
    }
}

/// One thing that the device was asked for.
#[derive(Debug, Clone)]
pub struct Entry {
    /// First sector.
    pub sector: u64,
    /// How many sectors.
    pub sectors: u64,
    /// It is, or ends with, a flush.
    pub flush: bool,
    /// Durable by itself.
    pub fua: bool,
    /// A discard.
    pub discard: bool,
    /// What was written; empty for zeroes and discards.
    pub data: Vec<u8>,
    /// Where it ends in the log file.
    pub end: u64,
}

/// What a device was asked for, in order.
#[derive(Debug)]
pub struct Log {
    /// The entries.
    pub entries: Vec<Entry>,
}

impl Log {
    /// Reads the log of `disk`.
    pub fn read(disk: &Disk) -> Outcome<Self> {
        let bad = |why: &str| Failure::new("harness.log", why.to_owned());
        let bytes = std::fs::read(disk.log.as_ref().ok_or_else(|| bad("the disk has no log"))?)?;
        let word = |at: usize| bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or([0; 8])));
        // The emulator writes the header with the first flush.
        if word(0) != MAGIC && word(0) != 0 {
            return Err(bad("not a write log"));
        }
        // The count in the header is behind when the emulator was killed: read as far as entries make sense.
        let (mut at, mut entries) = (SECTOR, Vec::new());
        while at + SECTOR <= bytes.len() {
            let (sector, sectors, flags) = (word(at), word(at + 8), word(at + 16));
            if (sectors == 0 && flags == 0) || flags > 31 {
                break;
            }
            at += SECTOR;
            let len = if flags & DISCARD == 0 { sectors as usize * SECTOR } else { 0 };
            let Some(data) = bytes.get(at..at + len) else { break };
            at += len;
            let (flush, fua, discard) = (flags & FLUSH != 0, flags & FUA != 0, flags & DISCARD != 0);
            entries.push(Entry { sector, sectors, flush, fua, discard, data: data.to_vec(), end: at as u64 });
        }
        Ok(Self { entries })
    }

    /// How many flushes there were.
    pub fn flushes(&self) -> usize {
        self.entries.iter().filter(|e| e.flush).count()
    }

    /// The disk that `before` becomes by what was durable at the end, and by nothing else.
    pub fn after_cut(&self, before: &[u8]) -> Vec<u8> {
        self.cut(before, self.entries.len(), usize::MAX, || false)
    }

    /// The disk that `before` becomes by a cut after the first `until` entries: all that was durable there, and each piece of
    /// `piece` bytes of the rest for which `keep` says so.
    pub fn cut(&self, before: &[u8], until: usize, piece: usize, mut keep: impl FnMut() -> bool) -> Vec<u8> {
        let mut image = before.to_vec();
        let entries = self.entries.get(..until).unwrap_or(&self.entries);
        let flushed = entries.iter().rposition(|e| e.flush).map_or(0, |at| at + 1);
        for (at, e) in entries.iter().enumerate() {
            let start = e.sector as usize * SECTOR;
            let end = start + e.sectors as usize * SECTOR;
            let durable = at < flushed || e.fua;
            let Some(place) = image.get_mut(start..end) else { continue };
            for (n, to) in place.chunks_mut(piece).enumerate() {
                if !durable && !keep() {
                    continue;
                }
                match e.data.get(n.saturating_mul(piece)..) {
                    Some(data) if !e.discard => to.copy_from_slice(&data[..to.len()]),
                    _ => to.fill(0),
                }
            }
        }
        image
    }
}
