//! The crash matrix of the journal alone: generated workloads on a disk that records, cut everywhere, with any subset of
//! what was not flushed.
//!
//! Operations are numbered, and each writes its number into a counter block within its handle. So the recovered counter
//! says which state must be there, to the last byte: all operations to that number and none after, and at least all that
//! were acknowledged. Blocks go to and fro between metadata and data, which is written past the journal: neither recovery
//! nor a checkpoint may write over data.
//!
//! `CUTS` sets how many cuts are tried (the gate's number is 10 000), `SEED` repeats a run.

use super::support::*;
use crate::{BufferCache, Checksums, Journal, Options};
use block::testing::{Event, OverlayDisk, Recording, RecordingDisk};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    Free,
    /// Freed in this transaction.
    Freed(u64),
    Meta(u64),
    Data(u64),
}

/// The content of `block` as operation `op` left it.
fn content(op: u64, block: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(op << 20 ^ block);
    let mut v: Vec<u8> = (0..len / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
    if rng.below(8) == 0 {
        v[..4].copy_from_slice(&[0xC0, 0x3B, 0x39, 0x98]);
    }
    v
}

struct Work {
    image: Image,
    disk: Arc<RecordingDisk>,
    cache: Arc<BufferCache>,
    journal: Arc<Journal>,
    rng: Rng,
    now: Vec<Owner>,
    /// For each playground block: `(operation, owner since)`.
    history: Vec<Vec<(u64, Owner)>>,
}

impl Work {
    fn new(mut image: Image, seed: u64, options: Options) -> Work {
        image.set_needs_recovery();
        let mut rng = Rng(seed);
        let disk = Arc::new(RecordingDisk::new(image.bytes.clone(), if rng.below(2) == 0 { 512 } else { 1024 }));
        let (cache, journal) = open(disk.clone(), &image, options);
        disk.start();
        let n = image.free.len() - 1;
        Work { image, disk, cache, journal, rng, now: vec![Owner::Free; n], history: vec![Vec::new(); n] }
    }

    fn set(&mut self, i: usize, op: u64, owner: Owner) {
        self.now[i] = owner;
        self.history[i].push((op, owner));
    }

    fn step(&mut self, op: u64) {
        let size = self.image.block_size;
        let picks: Vec<usize> =
            (0..=self.rng.below(7)).map(|_| self.rng.below(self.now.len() as u64) as usize).collect();
        let committed = self.journal.committed_tid();
        let mut todo = Vec::new();
        for i in picks {
            let block = self.image.free[1 + i];
            if todo.iter().any(|(j, _)| *j == i) {
                continue;
            }
            let usable = match self.now[i] {
                Owner::Free => true,
                Owner::Freed(tid) => tid <= committed,
                _ => false,
            };
            // As a file system does it: data first, then the transaction that refers to it.
            if usable && self.rng.below(2) == 0 {
                block::write_at(&*self.disk, block * size as u64, &content(op, block, size)).unwrap();
                todo.push((i, Owner::Data(op)));
            } else {
                todo.push((i, Owner::Meta(op)));
            }
        }
        let h = self.journal.start(8).unwrap();
        let counter = self.cache.read(self.image.free[0]).unwrap();
        h.write(&counter).unwrap()[..8].copy_from_slice(&op.to_le_bytes());
        for (i, to) in todo {
            let block = self.image.free[1 + i];
            let to = match (self.now[i], to) {
                (_, Owner::Data(_)) => to,
                (Owner::Meta(_), _) if self.rng.below(3) == 0 => {
                    h.forget(block).unwrap();
                    Owner::Freed(h.tid())
                }
                (Owner::Data(_), _) => Owner::Freed(h.tid()),
                (Owner::Meta(_), _) => {
                    let b = self.cache.read(block).unwrap();
                    h.write(&b).unwrap().copy_from_slice(&content(op, block, size));
                    to
                }
                _ => {
                    let b = h.create(block).unwrap();
                    h.write(&b).unwrap().copy_from_slice(&content(op, block, size));
                    to
                }
            };
            self.set(i, op, to);
        }
        let tid = h.tid();
        drop((h, counter));
        match self.rng.below(60) {
            0..=24 => {
                self.journal.sync(tid).unwrap();
                self.disk.mark(op);
            }
            25 => {
                self.journal.checkpoint().unwrap();
                self.disk.mark(op);
            }
            26..=29 => {
                self.journal.background();
                self.cache.shrink(20);
            }
            _ => {}
        }
    }
}

struct Done {
    image: Image,
    recording: Recording,
    history: Vec<Vec<(u64, Owner)>>,
    ops: u64,
}

fn run(image: Image, seed: u64, ops: u64, options: Options) -> Done {
    let mut w = Work::new(image, seed, options);
    for op in 1..=ops {
        w.step(op);
    }
    if w.rng.below(2) == 0 {
        w.journal.close().unwrap();
        w.disk.mark(ops);
    }
    Done { recording: w.disk.recording(), history: w.history, image: w.image, ops }
}

impl Done {
    /// Checks one recovered disk against the model.
    fn check(&self, after: &OverlayDisk, acked: u64) -> Result<(), String> {
        let size = self.image.block_size;
        let read = |block: u64| after.read(block as usize * size, size);
        let counter = u64::from_le_bytes(read(self.image.free[0])[..8].try_into().unwrap());
        if !(acked..=self.ops).contains(&counter) {
            return Err(format!("operation {counter} recovered, {acked} acknowledged"));
        }
        for (i, history) in self.history.iter().enumerate() {
            let block = self.image.free[1 + i];
            let owner = history.iter().rev().find(|(op, _)| *op <= counter).map_or(Owner::Free, |h| h.1);
            if let Owner::Meta(op) | Owner::Data(op) = owner
                && read(block) != content(op, block, size)
            {
                return Err(format!("block {block} is not as {owner:?} left it (state {counter})"));
            }
        }
        Ok(())
    }
}

/// Tries about `cuts` cuts of generated workloads. The first state that is wrong is the error.
fn matrix(cuts: u64, seed: u64, options: Options) -> Result<String, String> {
    let Some(image) = Image::make(2560, 1024, "") else { return Ok("no e2fsprogs".into()) };
    let (mut tried, mut judged, mut round) = (0, 0, 0);
    while tried < cuts {
        let done = run(image.clone(), seed.wrapping_add(round), 400, options);
        let mut rng = Rng(!seed.wrapping_add(round));
        let mut cursor = done.recording.cursor();
        let mut acked = 0;
        for cut in 0..=done.recording.events().len() {
            cursor.seek(cut);
            if let Some(Event::Mark(op)) = cut.checked_sub(1).map(|c| &done.recording.events()[c]) {
                acked = *op;
            }
            // Nothing of what was not flushed, all of it, and random parts.
            let tries = if cursor.volatile_blocks() == 0 { 1 } else { 4 };
            for subset in 0..tries {
                let share = rng.below(100);
                let disk = cursor.disk(|_, _| match subset {
                    0 => false,
                    1 => true,
                    _ => rng.below(100) < share,
                });
                let what = format!("SEED={seed} round {round} cut {cut} subset {subset}");
                let ours = disk.fork();
                crate::recover(&ours, image.block_size, &image.map, &image.uuid).map_err(|e| format!("{what}: {e}"))?;
                done.check(&ours, acked).map_err(|e| format!("{what}: {e}"))?;
                tried += 1;
                if rng.below(100) == 0 {
                    judge(&image.with(disk.to_image()), &image.with(ours.to_image()))
                        .map_err(|e| format!("{what}: {e}"))?;
                    judged += 1;
                }
            }
            if tried >= cuts {
                break;
            }
        }
        round += 1;
        // A long run that was interrupted goes on from the last of these.
        if cuts > 100_000 && round.is_multiple_of(8) {
            println!(
                "journal crash matrix: {tried} cuts; the rest: CUTS={} SEED={}",
                cuts.saturating_sub(tried),
                seed.wrapping_add(round)
            );
        }
    }
    Ok(format!("{tried} cuts of {round} workloads, {judged} also recovered and checked by e2fsck"))
}

#[test]
fn matrix_every_cut_recovers_to_a_state_that_was() {
    let cuts = std::env::var("CUTS").ok().and_then(|s| s.parse().ok()).unwrap_or(10_000);
    match matrix(cuts, seed("journal crash matrix"), options(Checksums::V3, true)) {
        Ok(what) => println!("journal crash matrix: {what}"),
        Err(what) => panic!("{what}"),
    }
}

/// The negative control: without flushes the same matrix must find a broken state.
#[test]
fn matrix_without_barriers_finds_losses() {
    let options = Options { barrier: false, ..options(Checksums::V3, true) };
    if Image::make(2560, 1024, "").is_some() {
        assert!(matrix(3000, 1, options).is_err());
    }
}

/// e2fsck recovers the same, and finds nothing to mend in what we recovered.
fn judge(cut: &Image, ours: &Image) -> Result<(), String> {
    let (theirs, o) = cut.recovered_by_e2fsck();
    if theirs.essence() != ours.essence() {
        return Err(format!("e2fsck recovers something else: {}", text(&o)));
    }
    let mut ours = ours.clone();
    ours.set_needs_recovery();
    let o = ours.check();
    if o.status.success() { Ok(()) } else { Err(text(&o)) }
}
