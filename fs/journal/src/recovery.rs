//! Recovery: after a crash, the transactions that the log holds complete are copied home.
//!
//! Three passes over the log, each bounded by the journal's length whatever the log says of itself:
//! 1. *scan* finds the end: it walks from the tail as long as blocks carry the magic and the expected sequence. A
//!    transaction counts once its commit block is there and (with checksums) intact. The oldest kind of checksum, in
//!    file systems without `metadata_csum`, sums up the transaction's descriptor blocks and copies (not its revoke blocks).
//! 2. *revoke* collects the revoke records of those transactions: a copy is void if its block was revoked in the same or
//!    a later transaction.
//! 3. *replay* finds the last valid copy of each block, and only then writes: each block once, in ascending order, after
//!    its checksum was verified. So a log that is corrupt inside is refused before anything was changed, and a
//!    recovery that is cut short can be run again.
//!
//! Linux and e2fsck write every copy in the log's order, which gives the same result for a log that is intact. Where a copy
//! in the middle of the log is damaged they write the others and then fail; we refuse and leave the disk to e2fsck.
//!
//! Memory: 24 bytes for each block in the log and for each revoke record.

use crate::crc::crc32_be;
use crate::format::{Kind, Layout, Tag, commit_sums_up, commit_time, header, unescape};
use crate::io::{Writer, read_block};
use crate::map::Map;
use crate::superblock::{SIZE, Superblock};
use abi::Errno;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use block::BlockDevice;
use core::fmt;

/// Why a journal was not accepted. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The device failed, or memory ran out.
    Io(Errno),
    /// No journal superblock where it should be.
    NotAJournal,
    /// The first version of the journal format.
    Version,
    /// Incompatible features that are not understood, as bits.
    Features(u32),
    /// The journal holds fast commits.
    FastCommit,
    /// The superblock's checksum is wrong.
    Checksum,
    /// Lengths, block size or positions that cannot be.
    Geometry,
    /// The log is not empty and carries another file system's UUID.
    Foreign,
    /// A block inside the log, at this journal block, is damaged.
    Corrupt(u32),
    /// The log would write to this block, which is outside the device or inside the journal.
    Target(u64),
}

impl Refusal {
    /// What a mount that met it returns.
    pub fn errno(self) -> Errno {
        match self {
            Refusal::Io(e) => e,
            Refusal::NotAJournal | Refusal::Version | Refusal::Features(_) | Refusal::FastCommit => Errno::EINVAL,
            Refusal::Checksum | Refusal::Corrupt(_) => Errno::EBADMSG,
            Refusal::Geometry | Refusal::Foreign | Refusal::Target(_) => Errno::EUCLEAN,
        }
    }
}

impl From<Errno> for Refusal {
    fn from(e: Errno) -> Self {
        Refusal::Io(e)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Io(e) => write!(f, "journal: {e}"),
            Refusal::NotAJournal => write!(f, "journal: no superblock found"),
            Refusal::Version => write!(f, "journal: superblock of version 1 is not supported"),
            Refusal::Features(bits) => write!(f, "journal: unknown features {bits:#x}"),
            Refusal::FastCommit => write!(f, "journal: fast_commit is not supported"),
            Refusal::Checksum => write!(f, "journal: superblock checksum is wrong"),
            Refusal::Geometry => write!(f, "journal: impossible geometry"),
            Refusal::Foreign => write!(f, "journal: not empty, and of another file system (run e2fsck)"),
            Refusal::Corrupt(at) => write!(f, "journal: block {at} of the log is damaged (run e2fsck)"),
            Refusal::Target(b) => write!(f, "journal: names impossible block {b} (run e2fsck)"),
        }
    }
}

/// What recovery found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Complete transactions in the log.
    pub transactions: u32,
    /// Blocks written home.
    pub replayed: u32,
    /// Copies that a revoke record made void.
    pub revoked: u32,
    /// The error that the journal was aborted with (a Linux error number), or 0.
    pub errno: i32,
}

/// The state of a walk over the log.
struct Log<'a> {
    device: &'a dyn BlockDevice,
    map: &'a Map,
    layout: Layout,
    first: u32,
    len: u32,
    start: u32,
    sequence: u32,
    sums: bool,
}

/// One block of the log that is not a copy.
struct Item {
    kind: Kind,
    sequence: u32,
    at: u32,
}

impl<'a> Log<'a> {
    fn new(device: &'a dyn BlockDevice, map: &'a Map, sb: &Superblock) -> Self {
        Log {
            device,
            map,
            layout: sb.layout(),
            first: sb.first(),
            len: sb.len(),
            start: sb.start(),
            sequence: sb.sequence(),
            sums: sb.has_transaction_sums(),
        }
    }

    fn read(&self, at: u32, buf: &mut [u8]) -> Result<(), Refusal> {
        let (block, _) = self.map.find(at).ok_or(Refusal::Geometry)?;
        Ok(read_block(self.device, block, buf)?)
    }

    fn advance(&self, at: u32, by: u32) -> u32 {
        let size = self.len - self.first;
        self.first + ((at - self.first) + by % size) % size
    }

    /// Calls `f` with each descriptor, revoke and commit block from the tail on, as long as sequences fit. `f` says whether
    /// to go on. Ends after one round of the log at the latest.
    fn walk(&self, mut f: impl FnMut(&Item, &[u8]) -> Result<bool, Refusal>) -> Result<(), Refusal> {
        let mut buf = vec![0; self.layout.block_size];
        let (mut at, mut sequence, mut left) = (self.start, self.sequence, self.len - self.first);
        while left > 0 {
            self.read(at, &mut buf)?;
            let Some((kind, found)) = header(&buf) else { break };
            if found != sequence || !f(&Item { kind, sequence, at }, &buf)? {
                break;
            }
            let used = match kind {
                Kind::Descriptor => 1 + self.layout.tags(&buf).count() as u32,
                Kind::Commit => {
                    sequence = sequence.wrapping_add(1);
                    1
                }
                Kind::Revoke => 1,
                Kind::SuperV1 | Kind::SuperV2 => break,
            };
            at = self.advance(at, used);
            left = left.saturating_sub(used);
        }
        Ok(())
    }

    /// Continues the checksum of a transaction over the descriptor block `b`, which is at `at`, and the copies behind it.
    fn sum(&self, sum: u32, at: u32, b: &[u8]) -> Result<u32, Refusal> {
        let mut sum = crc32_be(sum, b);
        let mut copy = vec![0; b.len()];
        for i in 1..=self.layout.tags(b).count() as u32 {
            self.read(self.advance(at, i), &mut copy)?;
            sum = crc32_be(sum, &copy);
        }
        Ok(sum)
    }

    /// Pass 1: the sequence after the last complete transaction. A damaged descriptor or revoke block ends the log unless
    /// a commit block follows that is not older than the last: then it was part of a complete transaction.
    fn scan(&self) -> Result<u32, Refusal> {
        let mut end = self.sequence;
        let mut last_time = (0, 0);
        let mut damaged = None;
        let mut sum = !0;
        self.walk(|item, b| {
            match item.kind {
                Kind::Descriptor | Kind::Revoke => {
                    if !self.layout.tail_matches(b) {
                        damaged = damaged.or(Some(item.at));
                    }
                    if self.sums && item.kind == Kind::Descriptor {
                        sum = self.sum(sum, item.at, b)?;
                    }
                }
                Kind::Commit => {
                    let time = commit_time(b);
                    if let Some(at) = damaged {
                        return if time >= last_time { Err(Refusal::Corrupt(at)) } else { Ok(false) };
                    }
                    if !self.layout.commit_matches(b) || (self.sums && !commit_sums_up(b, sum)) {
                        return Ok(false);
                    }
                    sum = !0;
                    last_time = time;
                    end = item.sequence.wrapping_add(1);
                }
                Kind::SuperV1 | Kind::SuperV2 => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(end)
    }

    /// How many transactions after the tail `sequence` is.
    fn age(&self, sequence: u32) -> u32 {
        sequence.wrapping_sub(self.sequence)
    }

    /// Pass 2: block → age of the last transaction that revoked it.
    fn revokes(&self, end: u32) -> Result<BTreeMap<u64, u32>, Refusal> {
        let mut table = BTreeMap::new();
        self.walk(|item, b| {
            if item.sequence == end {
                return Ok(false);
            }
            if item.kind == Kind::Revoke {
                let blocks = self.layout.revokes(b).ok_or(Refusal::Corrupt(item.at))?;
                for block in blocks {
                    table.insert(block, self.age(item.sequence));
                }
            }
            Ok(true)
        })?;
        Ok(table)
    }

    /// Pass 3, its reading half: the last valid copy of each block, and how many were void.
    fn winners(&self, end: u32, revoked: &BTreeMap<u64, u32>) -> Result<(BTreeMap<u64, Copied>, u32), Refusal> {
        let device_blocks = self.device.geometry().bytes() / self.layout.block_size as u64;
        let mut copies = BTreeMap::new();
        let mut hits = 0;
        self.walk(|item, b| {
            if item.sequence == end {
                return Ok(false);
            }
            if item.kind == Kind::Descriptor {
                for (i, tag) in self.layout.tags(b).enumerate() {
                    if revoked.get(&tag.block).is_some_and(|age| self.age(item.sequence) <= *age) {
                        hits += 1;
                        continue;
                    }
                    if tag.block >= device_blocks || self.map.owns(tag.block) {
                        return Err(Refusal::Target(tag.block));
                    }
                    let at = self.advance(item.at, 1 + i as u32);
                    copies.insert(tag.block, Copied { tag, sequence: item.sequence, at });
                }
            }
            Ok(true)
        })?;
        Ok((copies, hits))
    }

    /// Checks the copies before anything is written.
    fn verify(&self, copies: &BTreeMap<u64, Copied>) -> Result<(), Refusal> {
        let mut buf = vec![0; self.layout.block_size];
        for c in copies.values() {
            self.read(c.at, &mut buf)?;
            if !self.layout.data_matches(&c.tag, c.sequence, &buf) {
                return Err(Refusal::Corrupt(c.at));
            }
        }
        Ok(())
    }

    /// Pass 3, its writing half.
    fn replay(&self, copies: &BTreeMap<u64, Copied>) -> Result<(), Refusal> {
        let mut buf = vec![0; self.layout.block_size];
        let mut writer = Writer::new(self.device, self.layout.block_size);
        for (block, c) in copies {
            self.read(c.at, &mut buf)?;
            if c.tag.escaped {
                unescape(&mut buf);
            }
            writer.put(*block, &buf)?;
        }
        writer.finish()?;
        Ok(block::flush(self.device)?)
    }
}

/// A block's copy in the log.
struct Copied {
    tag: Tag,
    sequence: u32,
    at: u32,
}

/// Reads the journal's superblock and checks it against the file system: `uuid` is its UUID. A log that is not empty must
/// carry it (or none); an empty one may carry another, since changing a file system's UUID leaves the journal's.
pub fn read_superblock(
    device: &dyn BlockDevice,
    block_size: usize,
    map: &Map,
    uuid: &[u8; 16],
) -> Result<Superblock, Refusal> {
    if !block_size.is_power_of_two() || !(1024..=65536).contains(&block_size) {
        return Err(Refusal::Geometry);
    }
    let (block, _) = map.find(0).ok_or(Refusal::Geometry)?;
    let mut buf = vec![0; SIZE.max(block_size)];
    read_block(device, block, &mut buf[..block_size])?;
    let sb = Superblock::parse(&buf, block_size, map.len())?;
    if sb.start() != 0 && sb.uuid() != *uuid && sb.uuid() != [0; 16] {
        return Err(Refusal::Foreign);
    }
    Ok(sb)
}

/// Writes the journal's superblock, durably.
pub(crate) fn write_superblock(
    device: &dyn BlockDevice,
    block_size: usize,
    map: &Map,
    sb: &mut Superblock,
) -> Result<(), Errno> {
    let (block, _) = map.find(0).ok_or(Errno::EIO)?;
    block::write_fua_at(device, block * block_size as u64, sb.bytes())
}

/// Recovers the file system on `device` if its journal, which `map` locates, is not empty, and marks the journal empty.
/// May sleep. Where it is refused, nothing was changed. Running it again after it was cut short is sound.
pub fn recover(device: &dyn BlockDevice, block_size: usize, map: &Map, uuid: &[u8; 16]) -> Result<Report, Refusal> {
    let mut sb = read_superblock(device, block_size, map, uuid)?;
    let mut report = Report { errno: sb.errno(), ..Report::default() };
    if sb.start() == 0 {
        return Ok(report);
    }
    let log = Log::new(device, map, &sb);
    let end = log.scan()?;
    let revoked = log.revokes(end)?;
    let (copies, hits) = log.winners(end, &revoked)?;
    log.verify(&copies)?;
    log.replay(&copies)?;
    report.transactions = log.age(end);
    report.replayed = copies.len() as u32;
    report.revoked = hits;
    // One sequence is left out, so that what an unfinished transaction left in the log never fits again.
    sb.set_tail(end.wrapping_add(1), 0);
    write_superblock(device, block_size, map, &mut sb)?;
    Ok(report)
}

/// All blocks that recovery would write, for tests and tools. Changes nothing.
pub fn pending(device: &dyn BlockDevice, block_size: usize, map: &Map, uuid: &[u8; 16]) -> Result<Vec<u64>, Refusal> {
    let sb = read_superblock(device, block_size, map, uuid)?;
    if sb.start() == 0 {
        return Ok(Vec::new());
    }
    let log = Log::new(device, map, &sb);
    let end = log.scan()?;
    let (copies, _) = log.winners(end, &log.revokes(end)?)?;
    Ok(copies.into_keys().collect())
}
