//! Committing: from the running transaction to a commit block on the medium. One thread at a time does it (the flag
//! `committing` in the journal's state).

use crate::buffer::Buffer;
use crate::checkpoint::LogInner;
use crate::format::{Tag, escape};
use crate::handle::{Lists, OrderedData};
use crate::io::Writer;
use crate::journal::{Journal, Log};
use abi::{Errno, Result};
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use block::Priority;
use core::mem::take;
use core::sync::atomic::Ordering;
use platform::ParkOptions;

/// A block's committed version.
pub(crate) struct Version {
    pub buffer: Arc<Buffer>,
    pub data: Arc<Vec<u8>>,
}

/// A transaction that nobody can change any more.
struct Frozen {
    versions: Vec<Version>,
    /// Buffers whose blocks the transaction freed after it had changed them.
    freed: Vec<Arc<Buffer>>,
    revoked: BTreeSet<u64>,
    ordered: Vec<Arc<dyn OrderedData>>,
}

impl Journal {
    /// Commits the running transaction, if there is one. The caller has set `committing`. An error aborts the journal.
    pub(crate) fn commit_running(&self) {
        let Some(log) = &self.log else { return };
        let transaction = {
            let mut s = self.state.lock();
            let Some(t) = s.running.clone() else { return };
            s.locked = true;
            t
        };
        let drained = || (self.state.lock().updates == 0).then_some(());
        while self.drained.wait_until(ParkOptions::default(), drained).is_err() {}
        let lists = take(&mut *transaction.lists.lock());
        let frozen = freeze(lists);
        {
            let mut s = self.state.lock();
            s.running = None;
            s.locked = false;
            s.reserved = 0;
        }
        self.unlocked.wake_all();
        match self.write_transaction(log, frozen) {
            Ok(()) => {
                self.state.lock().committed = transaction.tid;
                self.committed.store(transaction.tid, Ordering::Release);
            }
            Err(e) => self.abort(e),
        }
    }

    fn write_transaction(&self, log: &Log, frozen: Frozen) -> Result<()> {
        for data in &frozen.ordered {
            data.write_and_wait()?;
        }
        if self.is_dead() {
            return Err(Errno::EIO);
        }
        if frozen.versions.is_empty() && frozen.revoked.is_empty() {
            return Ok(());
        }
        let mut inner = log.inner.lock();
        self.write_log(log, &mut inner, &frozen)?;
        let Frozen { versions, freed, revoked, .. } = frozen;
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.counters.logged.fetch_add(versions.len() as u64, Ordering::Relaxed);
        self.counters.revoked.fetch_add(revoked.len() as u64, Ordering::Relaxed);
        inner.committed(versions, &revoked);
        drop(inner);
        drop(freed);
        Ok(())
    }

    /// Writes the transaction into the log, durably.
    fn write_log(&self, log: &Log, inner: &mut LogInner, frozen: &Frozen) -> Result<()> {
        let layout = &log.layout;
        let revoked: Vec<u64> = frozen.revoked.iter().copied().collect();
        let descriptors = frozen.versions.len().div_ceil(layout.tags_per_block());
        let revokes = revoked.len().div_ceil(layout.revokes_per_block());
        let need = frozen.versions.len() + descriptors + revokes + 1;
        let need = u32::try_from(need).map_err(|_| Errno::ENOSPC)?;
        self.make_room(log, inner, need)?;
        let device = &**self.cache.device();
        let sequence = inner.sequence;
        let mut out =
            Cursor { log, at: inner.head, writer: Writer::new(device, layout.block_size).priority(Priority::Urgent) };
        let mut block = vec![0; layout.block_size];
        for chunk in revoked.chunks(layout.revokes_per_block()) {
            layout.put_revoke(&mut block, sequence, chunk);
            out.put(&block)?;
        }
        for chunk in frozen.versions.chunks(layout.tags_per_block()) {
            out.descriptor_and_copies(sequence, chunk, &mut block)?;
        }
        let Cursor { at, writer, .. } = out;
        writer.finish()?;
        if log.barrier {
            self.flush_counted(device)?;
        }
        layout.put_commit(&mut block, sequence, platform::realtime_ns());
        let (home, _) = log.map.find(at).ok_or(Errno::EIO)?;
        let offset = home * layout.block_size as u64;
        if log.barrier {
            block::write_fua_at(device, offset, &block)?;
        } else {
            block::write_at(device, offset, &block)?;
        }
        inner.advance(log, need, log.next(at));
        Ok(())
    }

    /// A flush that [`Journal::sync`] can count on: it is counted as sent before it is, and as done after.
    fn flush_counted(&self, device: &dyn block::BlockDevice) -> Result<()> {
        let sent = {
            let mut s = self.state.lock();
            s.flushes_sent += 1;
            s.flushes_sent
        };
        block::flush(device)?;
        self.state.lock().flushes_done = sent;
        Ok(())
    }
}

/// Takes references to the content that is to be committed. No handle is open, so nobody changes it; readers may hold it.
fn freeze(lists: Lists) -> Frozen {
    let Lists { buffers, revoked, ordered } = lists;
    let mut frozen = Frozen { versions: Vec::with_capacity(buffers.len()), freed: Vec::new(), revoked, ordered };
    for buffer in buffers {
        let content = buffer.content.read_nested();
        let (forgotten, data) = (content.forgotten, content.data.clone());
        drop(content);
        if forgotten {
            frozen.freed.push(buffer);
        } else {
            frozen.versions.push(Version { buffer, data });
        }
    }
    frozen
}

/// A place in the log that moves on with each block.
struct Cursor<'a> {
    log: &'a Log,
    at: u32,
    writer: Writer<'a>,
}

impl Cursor<'_> {
    fn put(&mut self, block: &[u8]) -> Result<()> {
        let (home, _) = self.log.map.find(self.at).ok_or(Errno::EIO)?;
        self.writer.put(home, block)?;
        self.at = self.log.next(self.at);
        Ok(())
    }

    fn descriptor_and_copies(&mut self, sequence: u32, versions: &[Version], block: &mut [u8]) -> Result<()> {
        let layout = &self.log.layout;
        let mut tags = Vec::with_capacity(versions.len());
        for v in versions {
            let escaped = v.data.first_chunk::<4>() == Some(&crate::format::MAGIC.to_be_bytes());
            let checksum = if escaped {
                block.copy_from_slice(&v.data);
                escape(block);
                layout.data_checksum(sequence, block)
            } else {
                layout.data_checksum(sequence, &v.data)
            };
            tags.push(Tag { block: v.buffer.block(), escaped, checksum });
        }
        layout.put_descriptor(block, sequence, &tags);
        self.put(block)?;
        for (v, tag) in versions.iter().zip(&tags) {
            if tag.escaped {
                block.copy_from_slice(&v.data);
                escape(block);
                self.put(block)?;
            } else {
                self.put(&v.data)?;
            }
        }
        Ok(())
    }
}
