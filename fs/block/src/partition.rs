//! Partitions: parts of a disk as devices of their own.
//!
//! [`read_table`] reads a GUID partition table (UEFI 2.10, chapter 5) or, where there is none, a master boot record with its
//! chain of logical partitions. Tables are foreign bytes: nothing in them is believed before it was checked against the
//! disk's size, every loop is bounded, and an entry that makes no sense is left out. A GPT whose first copy is damaged is
//! read from the copy at the disk's end.
//!
//! A GPT whose entries overlap is taken as it is, as Linux does: whoever writes such tables means it.

use crate::device::{BlockDevice, Geometry};
use crate::request::{Op, Request};
use crate::stats::{Kind, Stats};
use crate::{SECTOR_SHIFT, io};
use abi::{Errno, Result};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One partition as the table tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number: N of `/dev/vdaN`, from 1. Logical partitions of an MBR start at 5.
    pub number: u32,
    /// First sector of 512 bytes.
    pub start: u64,
    /// How many.
    pub sectors: u64,
    /// The partition type: a GPT's GUID as it stands on disk, or an MBR's type in the first byte.
    pub kind: [u8; 16],
    /// The partition's own GUID (GPT), or zeroes.
    pub guid: [u8; 16],
    /// Its name (GPT), or empty.
    pub name: String,
}

/// The most partitions that are looked at.
pub const MAX_PARTITIONS: usize = 128;
/// The most bytes of a GPT's entries that are read.
const MAX_ENTRY_BYTES: usize = 128 * 1024;

/// What kind of table [`read_table`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// None.
    None,
    /// A master boot record.
    Mbr,
    /// A GUID partition table.
    Gpt,
    /// A GUID partition table whose first copy is damaged.
    GptBackup,
}

fn le16(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn le32(b: &[u8], at: usize) -> u32 {
    u32::from(le16(b, at)) | u32::from(le16(b, at + 2)) << 16
}

fn le64(b: &[u8], at: usize) -> u64 {
    u64::from(le32(b, at)) | u64::from(le32(b, at + 4)) << 32
}

fn guid(b: &[u8], at: usize) -> [u8; 16] {
    let mut out = [0; 16];
    if let Some(b) = b.get(at..at + 16) {
        out.copy_from_slice(b);
    }
    out
}

/// The partitions of `device`. An error only where the device cannot be read; no table, or a broken one, is an empty list.
/// May sleep.
pub fn read_table(device: &dyn BlockDevice) -> Result<(Table, Vec<Entry>)> {
    let geometry = device.geometry();
    let block = u64::from(geometry.logical_block);
    let blocks = geometry.bytes() / block.max(1);
    let mut mbr = [0; 512];
    if blocks < 2 {
        return Ok((Table::None, Vec::new()));
    }
    io::read_at(device, 0, &mut mbr)?;
    let signed = le16(&mbr, 510) == 0xaa55;
    let protective = signed && (0..4).any(|i| mbr[446 + 16 * i + 4] == 0xee);
    if protective {
        for (lba, table) in [(1, Table::Gpt), (blocks - 1, Table::GptBackup)] {
            if let Some(entries) = read_gpt(device, lba, block, blocks)? {
                return Ok((table, entries));
            }
        }
        return Ok((Table::None, Vec::new()));
    }
    if !signed || !is_mbr(&mbr, geometry.sectors) {
        return Ok((Table::None, Vec::new()));
    }
    Ok((Table::Mbr, read_mbr(device, &mbr, geometry.sectors)?))
}

fn read_gpt(device: &dyn BlockDevice, lba: u64, block: u64, blocks: u64) -> Result<Option<Vec<Entry>>> {
    let mut header = [0; 512];
    match io::read_at(device, lba * block, &mut header) {
        Err(Errno::ENOMEM) => return Err(Errno::ENOMEM),
        Err(_) => return Ok(None),
        Ok(()) => {}
    }
    let size = le32(&header, 12) as usize;
    if &header[..8] != b"EFI PART" || !(92..=512).contains(&size) || le64(&header, 24) != lba {
        return Ok(None);
    }
    let stated = le32(&header, 16);
    header[16..20].fill(0);
    if crc32(&header[..size]) != stated {
        return Ok(None);
    }
    let (first, last) = (le64(&header, 40), le64(&header, 48));
    let (at, count, each) = (le64(&header, 72), le32(&header, 80) as usize, le32(&header, 84) as usize);
    let sane = first <= last && last < blocks && at < blocks && (128..=4096).contains(&each) && each.is_power_of_two();
    let Some(bytes) = count.checked_mul(each).filter(|n| sane && *n <= MAX_ENTRY_BYTES) else { return Ok(None) };
    let mut table = alloc::vec![0; bytes];
    if io::read_at(device, at * block, &mut table).is_err() || crc32(&table) != le32(&header, 88) {
        return Ok(None);
    }
    let scale = block >> SECTOR_SHIFT;
    let entry = |(index, e): (usize, &[u8])| {
        let (start, end) = (le64(e, 32), le64(e, 40));
        let used = guid(e, 0) != [0; 16] && start >= first && start <= end && end <= last;
        used.then(|| Entry {
            number: index as u32 + 1,
            start: start * scale,
            sectors: (end - start + 1) * scale,
            kind: guid(e, 0),
            guid: guid(e, 16),
            name: utf16_name(&e[56..128]),
        })
    };
    Ok(Some(table.chunks_exact(each).enumerate().take(MAX_PARTITIONS).filter_map(entry).collect()))
}

fn utf16_name(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|u| u16::from_le_bytes([u[0], u[1]])).take_while(|u| *u != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// A boot sector of a file system has the same signature; a table has sane flags and at least one entry that fits.
fn is_mbr(mbr: &[u8; 512], sectors: u64) -> bool {
    let entries = || (0..4).map(|i| &mbr[446 + 16 * i..462 + 16 * i]);
    entries().all(|e| e[0] & 0x7f == 0)
        && entries().any(|e| e[4] != 0 && le32(e, 12) != 0 && u64::from(le32(e, 8)) < sectors && le32(e, 8) != 0)
}

fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

fn mbr_entry(e: &[u8], number: u32, base: u64, sectors: u64) -> Option<Entry> {
    let start = base + u64::from(le32(e, 8));
    let len = u64::from(le32(e, 12));
    if e[4] == 0 || len == 0 || start == 0 || start >= sectors {
        return None;
    }
    let mut kind = [0; 16];
    kind[0] = e[4];
    // A table that promises more than the disk has is cut to it: reading what is there is better than nothing.
    Some(Entry { number, start, sectors: len.min(sectors - start), kind, guid: [0; 16], name: String::new() })
}

fn read_mbr(device: &dyn BlockDevice, mbr: &[u8; 512], sectors: u64) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut extended = None;
    for i in 0..4 {
        let e = &mbr[446 + 16 * i..462 + 16 * i];
        let Some(entry) = mbr_entry(e, i as u32 + 1, 0, sectors) else { continue };
        if is_extended(e[4]) {
            extended = extended.or(Some((entry.start, entry.start + entry.sectors)));
        } else {
            found.push(entry);
        }
    }
    let Some((base, end)) = extended else { return Ok(found) };
    let mut at = base;
    for number in 5..5 + MAX_PARTITIONS as u32 {
        let mut link = [0; 512];
        if at >= end || io::read_at(device, at << SECTOR_SHIFT, &mut link).is_err() || le16(&link, 510) != 0xaa55 {
            break;
        }
        let (own, next) = (&link[446..462], &link[462..478]);
        if !is_extended(own[4]) {
            found.extend(mbr_entry(own, number, at, end));
        }
        let offset = u64::from(le32(next, 8));
        // Links only lead forwards here; a chain that turns back would be a loop.
        if !is_extended(next[4]) || base + offset <= at {
            break;
        }
        at = base + offset;
    }
    Ok(found)
}

/// CRC-32 of IEEE 802.3, reflected. Tables of partitions are small: bit by bit will do.
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// A part of a disk as a device. Requests go to the disk with their sector moved; so [`crate::Complete::complete`] sees the
/// sector as the disk counts it.
pub struct Partition {
    disk: Arc<dyn BlockDevice>,
    name: String,
    number: u32,
    start: u64,
    sectors: u64,
    stats: Stats,
}

impl Partition {
    /// `entry` of `disk`, under the name Linux gives: `vda1`, and `nvme0n1p1` where the disk's name ends in a digit.
    pub fn new(disk: Arc<dyn BlockDevice>, entry: &Entry) -> Self {
        let separator = if disk.name().ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        let name = format!("{}{separator}{}", disk.name(), entry.number);
        Partition { disk, name, number: entry.number, start: entry.start, sectors: entry.sectors, stats: Stats::new() }
    }

    /// Its number in the table, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its first sector on the disk.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Moves `request` to the disk, or ends it.
    fn moved(&self, mut request: Request) -> Option<Request> {
        if let Err(e) = self.geometry().check(&request) {
            request.finish(Err(e));
            return None;
        }
        self.stats.passed(Kind::from(request.op), request.sectors());
        if request.op != Op::Flush {
            request.sector += self.start;
        }
        Some(request)
    }
}

impl BlockDevice for Partition {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        let disk = self.disk.geometry();
        // The disk may have shrunk below the partition.
        Geometry { sectors: self.sectors.min(disk.sectors.saturating_sub(self.start)), ..disk }
    }

    fn submit(&self, request: Request) {
        if let Some(request) = self.moved(request) {
            self.disk.submit(request);
        }
    }

    fn submit_batch(&self, requests: &mut Vec<Request>) {
        let mut moved = requests.drain(..).filter_map(|r| self.moved(r)).collect();
        self.disk.submit_batch(&mut moved);
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemDisk, read_at, write_at};
    use proptest::prelude::*;
    use std::vec;

    fn gpt(sectors: u64, parts: &[(u64, u64)]) -> Vec<u8> {
        let mut image = vec![0u8; sectors as usize * 512];
        image[450] = 0xee;
        image[454] = 1;
        image[458..462].copy_from_slice(&(sectors as u32 - 1).to_le_bytes());
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        let mut table = vec![0u8; 128 * 128];
        for (i, (start, end)) in parts.iter().enumerate() {
            let e = &mut table[i * 128..][..128];
            e[..32].fill(i as u8 + 1);
            e[32..40].copy_from_slice(&start.to_le_bytes());
            e[40..48].copy_from_slice(&end.to_le_bytes());
            e[56] = b'a' + i as u8;
        }
        for (own, at) in [(1u64, 2u64), (sectors - 1, sectors - 33)] {
            let mut h = vec![0u8; 92];
            h[..8].copy_from_slice(b"EFI PART");
            h[12..16].copy_from_slice(&92u32.to_le_bytes());
            h[24..32].copy_from_slice(&own.to_le_bytes());
            h[40..48].copy_from_slice(&34u64.to_le_bytes());
            h[48..56].copy_from_slice(&(sectors - 34).to_le_bytes());
            h[72..80].copy_from_slice(&at.to_le_bytes());
            h[80..84].copy_from_slice(&128u32.to_le_bytes());
            h[84..88].copy_from_slice(&128u32.to_le_bytes());
            h[88..92].copy_from_slice(&crc32(&table).to_le_bytes());
            let crc = crc32(&h);
            h[16..20].copy_from_slice(&crc.to_le_bytes());
            image[own as usize * 512..][..92].copy_from_slice(&h);
            image[at as usize * 512..][..table.len()].copy_from_slice(&table);
        }
        image
    }

    fn table(image: &[u8]) -> (Table, Vec<(u32, u64, u64)>) {
        let disk = MemDisk::from_image("vda", image).unwrap();
        let (kind, entries) = read_table(&disk).unwrap();
        (kind, entries.iter().map(|e| (e.number, e.start, e.sectors)).collect())
    }

    #[test]
    fn gpt_from_either_end() {
        let mut image = gpt(2048, &[(40, 99), (100, 1999), (1000, 5000)]);
        let expected = vec![(1, 40, 60), (2, 100, 1900)];
        assert_eq!(table(&image), (Table::Gpt, expected.clone()));
        image[512 + 50] ^= 1;
        assert_eq!(table(&image), (Table::GptBackup, expected));
        image[2047 * 512] ^= 1;
        assert_eq!(table(&image), (Table::None, vec![]));
    }

    fn put(sector: &mut [u8], slot: usize, kind: u8, start: u32, len: u32) {
        let e = &mut sector[446 + slot * 16..][..16];
        e[4] = kind;
        e[8..12].copy_from_slice(&start.to_le_bytes());
        e[12..16].copy_from_slice(&len.to_le_bytes());
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    }

    #[test]
    fn mbr_with_logical_partitions_and_a_loop() {
        let mut image = vec![0u8; 4096 * 512];
        put(&mut image, 0, 0x83, 64, 100);
        put(&mut image, 1, 0x05, 1000, 3000);
        put(&mut image, 2, 0x83, 3000, 9000);
        put(&mut image[1000 * 512..], 0, 0x83, 8, 100);
        put(&mut image[1000 * 512..], 1, 0x05, 500, 200);
        put(&mut image[1500 * 512..], 0, 0x82, 8, 50);
        put(&mut image[1500 * 512..], 1, 0x05, 0, 200);
        let expected = vec![(1, 64, 100), (3, 3000, 1096), (5, 1008, 100), (6, 1508, 50)];
        assert_eq!(table(&image), (Table::Mbr, expected));
    }

    #[test]
    fn a_file_systems_boot_sector_is_no_table() {
        let mut image = vec![0u8; 64 * 512];
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        image[446..510].fill(0x20);
        assert_eq!(table(&image), (Table::None, vec![]));
    }

    #[test]
    fn a_partition_keeps_to_itself() {
        let disk: Arc<dyn BlockDevice> = Arc::new(MemDisk::new("vda", 1024));
        let entry = Entry { number: 3, start: 100, sectors: 10, kind: [0; 16], guid: [0; 16], name: String::new() };
        let part = Partition::new(disk.clone(), &entry);
        assert_eq!(part.name(), "vda3");
        write_at(&part, 512, &[7; 512]).unwrap();
        let mut back = [0; 512];
        read_at(&*disk, 101 * 512, &mut back).unwrap();
        assert_eq!(back, [7; 512]);
        assert_eq!(write_at(&part, 10 * 512, &[7; 512]), Err(Errno::EIO));
        crate::flush(&part).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// Bytes changed anywhere in a table give an error or entries inside the disk, never a panic or a loop.
        #[test]
        fn changed_tables_stay_inside(changes in proptest::collection::vec((0usize..3 * 512, any::<u8>()), 1..20), fix in any::<bool>()) {
            let mut image = gpt(256, &[(40, 99), (100, 199)]);
            for (at, byte) in changes {
                image[at] = byte;
            }
            if fix {
                image[512 + 16..512 + 20].fill(0);
                let size = (le32(&image[512..], 12) as usize).min(512);
                let crc = crc32(&image[512..512 + size]);
                image[512 + 16..512 + 20].copy_from_slice(&crc.to_le_bytes());
            }
            for (_, start, sectors) in table(&image).1 {
                prop_assert!(start + sectors <= 256 && sectors > 0);
            }
        }

        #[test]
        fn any_boot_record_stays_inside(mut sector in proptest::collection::vec(any::<u8>(), 512)) {
            for i in 0..4 {
                sector[446 + i * 16] &= 0x80;
            }
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            let image: Vec<u8> = sector.iter().copied().cycle().take(512 * 64).collect();
            for (_, start, sectors) in table(&image).1 {
                prop_assert!(start + sectors <= 64 && sectors > 0);
            }
        }
    }
}
