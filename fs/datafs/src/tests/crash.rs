//! The crash matrix: generated workloads on a disk that records, cut at every write and flush, with any subset of what was
//! not flushed; then recovered, by us and (a sample) by e2fsck.
//!
//! After each cut:
//! - the names, types and link texts are those after some operation (operations are atomic and in order), and not
//!   before the last that a sync acknowledged;
//! - a file that was fsynced and not changed since has exactly its content, under its name;
//! - every word of any file is zero or one that was written to that very file;
//! - for a sample: `e2fsck -fn` finds nothing after our mount, e2fsck's own replay gives the same bytes as ours, and
//!   e2fsck finds no more to do after it than the orphans that a mount would have finished.
//!
//! `CUTS` sets how many cuts are tried, `SEED` repeats a run.

use super::host::{cache, names, new, read, walk};
use crate::{DataFs, Options};
use abi::Errno;
use block::BlockDevice;
use block::testing::{Event, OverlayDisk, Recording, RecordingDisk};
use journal::testing::{Image, Rng, seed, text, tool};
use platform::SliceSource;
use std::collections::BTreeMap;
use std::sync::Arc;
use vfs::{FileSystem, FileType, Inode, NewKind, RenameFlags, SetAttr};

/// What stands under a path.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Dir,
    File(u32),
    Link(u64),
}

type Tree = BTreeMap<String, Node>;

#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    /// `(operation, content)` of fsyncs that returned, and the operations that changed the file.
    synced: Vec<(u64, Arc<Vec<u8>>)>,
    changed: Vec<u64>,
}

/// One thread's work, all of it below one directory.
struct Work {
    /// Its directory, and its number.
    base: String,
    thread: u64,
    disk: Arc<RecordingDisk>,
    fs: Arc<DataFs>,
    rng: Rng,
    op: u64,
    tree: Tree,
    files: BTreeMap<u32, Content>,
    /// The tree after each operation.
    states: Vec<Tree>,
    next: u32,
    log: Vec<String>,
}

const STARTED: u64 = 0;
const SYNCED: u64 = 1;
const FSYNCED: u64 = 2;

fn link_text(op: u64) -> Vec<u8> {
    format!("{op:->width$}", width = if op.is_multiple_of(3) { 300 } else { 20 }).into_bytes()
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Work {
    fn new(disk: &Arc<RecordingDisk>, fs: &Arc<DataFs>, base: &str, thread: u64, seed: u64) -> Work {
        let tree = if base.is_empty() { Tree::from([("lost+found".to_string(), Node::Dir)]) } else { Tree::new() };
        Work {
            base: base.into(),
            thread,
            disk: disk.clone(),
            fs: fs.clone(),
            rng: Rng(seed),
            op: 0,
            states: vec![tree.clone()],
            tree,
            files: BTreeMap::new(),
            next: (thread as u32) << 20 | 1,
            log: Vec::new(),
        }
    }

    /// Notes that something of kind `kind` happened to the present operation.
    fn mark(&self, kind: u64) {
        self.disk.mark(self.op << 4 | self.thread << 2 | kind);
    }

    fn walk(&self, path: &str) -> Arc<dyn Inode> {
        walk(&self.fs, &format!("{}/{path}", self.base)).unwrap()
    }

    fn pick(&mut self, want: impl Fn(&Node) -> bool) -> Option<String> {
        let all: Vec<&String> =
            self.tree.iter().filter(|(p, n)| *p != "lost+found" && want(n)).map(|(p, _)| p).collect();
        (!all.is_empty()).then(|| all[self.rng.below(all.len() as u64) as usize].clone())
    }

    /// A path that may or may not be taken, in a directory that exists.
    fn place(&mut self) -> String {
        let dir = if self.rng.below(2) == 0 { None } else { self.pick(|n| *n == Node::Dir) };
        let name = format!("n{}", self.rng.below(12));
        dir.map_or(name.clone(), |d| format!("{d}/{name}"))
    }

    fn file(&mut self) -> Option<(String, u32, Arc<dyn Inode>)> {
        let path = self.pick(|n| matches!(n, Node::File(_)))?;
        let Node::File(id) = self.tree[&path] else { return None };
        Some((path.clone(), id, self.walk(&path)))
    }

    fn say(&mut self, what: String) {
        self.log.push(format!("{}: {what}", self.op));
    }

    fn dir_of(&self, path: &str) -> Arc<dyn Inode> {
        self.walk(split(path).0)
    }

    fn changed(&mut self, id: u32) -> &mut Content {
        let op = self.op;
        let f = self.files.entry(id).or_default();
        f.changed.push(op);
        f
    }

    fn step(&mut self) {
        self.op += 1;
        self.mark(STARTED);
        let what = self.rng.below(100);
        let r = match what {
            0..22 => self.create(),
            22..45 => self.write(),
            45..52 => self.truncate(),
            52..62 => self.unlink(),
            62..70 => self.rename(),
            70..74 => self.link(),
            74..79 => self.mkdir(),
            79..82 => self.symlink(),
            82..95 => self.fsync(),
            95..98 => self.sync(),
            _ => self.fs.vol.flush_inodes().and_then(|()| self.fs.vol.store.commit_all()),
        };
        match r {
            Ok(()) | Err(Errno::ENOSPC) => {}
            Err(e) => panic!("operation {} ({what}): {e}", self.op),
        }
        self.states.push(self.tree.clone());
    }

    fn create(&mut self) -> abi::Result<()> {
        let path = self.place();
        if self.tree.contains_key(&path) {
            return Ok(());
        }
        self.dir_of(&path).create(split(&path).1.as_bytes(), &new(NewKind::Regular))?;
        let id = self.next;
        self.next += 1;
        self.say(format!("create {path} = {id}"));
        self.changed(id);
        self.tree.insert(path, Node::File(id));
        Ok(())
    }

    fn write(&mut self) -> abi::Result<()> {
        let Some((_, id, inode)) = self.file() else { return Ok(()) };
        let len = self.files.entry(id).or_default().bytes.len() as u64;
        let at = if self.rng.below(2) == 0 { len } else { self.rng.below(40_000) / 8 * 8 };
        let words = 1 + if self.rng.below(4) == 0 { self.rng.below(3000) } else { self.rng.below(200) };
        let word = (u64::from(id) << 32 | self.op).to_le_bytes();
        self.say(format!("write {id} at {at} {words} words"));
        let data: Vec<u8> = word.iter().copied().cycle().take(words as usize * 8).collect();
        let f = self.changed(id);
        let done = match inode.write_at(Some(at), &mut SliceSource::new(&data)) {
            Ok((_, n)) => n,
            Err(e) => return Err(e),
        };
        let end = at as usize + done;
        if f.bytes.len() < end {
            f.bytes.resize(end, 0);
        }
        f.bytes[at as usize..end].copy_from_slice(&data[..done]);
        Ok(())
    }

    fn truncate(&mut self) -> abi::Result<()> {
        let Some((_, id, inode)) = self.file() else { return Ok(()) };
        let size = self.rng.below(50_000) / 8 * 8;
        self.say(format!("truncate {id} to {size}"));
        let f = self.changed(id);
        inode.setattr(&SetAttr { size: Some(size), ..SetAttr::default() })?;
        f.bytes.resize(size as usize, 0);
        Ok(())
    }

    fn unlink(&mut self) -> abi::Result<()> {
        let Some(path) = self.pick(|_| true) else { return Ok(()) };
        let (dir, name) = (self.dir_of(&path), split(&path).1.as_bytes());
        self.say(format!("unlink {path} {:?}", self.tree[&path]));
        if self.tree[&path] == Node::Dir {
            let full = self.tree.keys().any(|p| p.starts_with(&format!("{path}/")));
            match dir.rmdir(name) {
                Err(Errno::ENOTEMPTY) if full => return Ok(()),
                other => other?,
            }
        } else {
            if let Node::File(id) = self.tree[&path] {
                self.changed(id);
            }
            dir.unlink(name)?;
        }
        self.tree.remove(&path);
        Ok(())
    }

    fn rename(&mut self) -> abi::Result<()> {
        let (Some(from), to) = (self.pick(|n| *n != Node::Dir), self.place()) else { return Ok(()) };
        if self.tree.get(&to) == Some(&Node::Dir) || from == to {
            return Ok(());
        }
        if self.tree.get(&to).is_some_and(|n| matches!(n, Node::File(_)) && *n == self.tree[&from]) {
            return Ok(());
        }
        for path in [&from, &to] {
            if let Some(Node::File(id)) = self.tree.get(path) {
                self.files.entry(*id).or_default().changed.push(self.op);
            }
        }
        let (dir, new_dir) = (self.dir_of(&from), self.dir_of(&to));
        self.say(format!("rename {from} {to}"));
        dir.rename(split(&from).1.as_bytes(), &new_dir, split(&to).1.as_bytes(), RenameFlags::default())?;
        if let Some(n) = self.tree.remove(&from) {
            self.tree.insert(to, n);
        }
        Ok(())
    }

    fn link(&mut self) -> abi::Result<()> {
        let Some((_, id, inode)) = self.file() else { return Ok(()) };
        let to = self.place();
        if self.tree.contains_key(&to) {
            return Ok(());
        }
        self.dir_of(&to).link(split(&to).1.as_bytes(), &inode)?;
        self.say(format!("link {id} {to}"));
        self.tree.insert(to, Node::File(id));
        Ok(())
    }

    fn mkdir(&mut self) -> abi::Result<()> {
        let path = self.place();
        if self.tree.contains_key(&path) || path.split('/').count() > 4 {
            return Ok(());
        }
        self.say(format!("mkdir {path}"));
        self.dir_of(&path).create(split(&path).1.as_bytes(), &new(NewKind::Dir))?;
        self.tree.insert(path, Node::Dir);
        Ok(())
    }

    fn symlink(&mut self) -> abi::Result<()> {
        let path = self.place();
        if self.tree.contains_key(&path) {
            return Ok(());
        }
        self.dir_of(&path).create(split(&path).1.as_bytes(), &new(NewKind::Symlink(&link_text(self.op))))?;
        self.tree.insert(path, Node::Link(self.op));
        Ok(())
    }

    fn fsync(&mut self) -> abi::Result<()> {
        let Some((_, id, inode)) = self.file() else { return Ok(()) };
        self.say(format!("fsync {id}"));
        inode.fsync(self.rng.below(2) == 0)?;
        self.mark(FSYNCED);
        let f = self.files.entry(id).or_default();
        f.synced.push((self.op, Arc::new(f.bytes.clone())));
        Ok(())
    }

    fn sync(&mut self) -> abi::Result<()> {
        self.say("sync".into());
        self.fs.sync()?;
        self.mark(SYNCED);
        Ok(())
    }
}

fn options() -> Options {
    Options { log: |_| (), ..Options::default() }
}

fn mount(disk: Arc<dyn BlockDevice>, options: Options) -> Result<Arc<DataFs>, String> {
    DataFs::mount(disk, cache(), options, 42).map_err(|r| format!("mount: {:?} {}", r.errno, r.why))
}

/// What one workload did.
struct Done {
    recording: Recording,
    workers: Vec<Work>,
}

/// Runs `ops` operations, by four threads or by one.
fn run(image: &Image, seed: u64, ops: u64, threads: u64, options: Options) -> Done {
    let block = if seed.is_multiple_of(2) { 512 } else { 1024 };
    let disk = Arc::new(RecordingDisk::new(image.bytes.clone(), block));
    let fs = mount(disk.clone(), options).unwrap();
    let root = fs.root().unwrap();
    let bases: Vec<String> = (0..threads).map(|t| if threads == 1 { String::new() } else { format!("t{t}") }).collect();
    for base in bases.iter().filter(|b| !b.is_empty()) {
        root.create(base.as_bytes(), &new(NewKind::Dir)).unwrap();
    }
    fs.sync().unwrap();
    disk.start();
    let mut workers: Vec<Work> =
        bases.iter().zip(0..).map(|(b, t)| Work::new(&disk, &fs, b, t, seed ^ t << 32)).collect();
    std::thread::scope(|scope| {
        for w in &mut workers {
            scope.spawn(move || (0..ops / threads).for_each(|_| w.step()));
        }
    });
    Done { recording: disk.recording(), workers }
}

/// The names under `dir`, with the content of files.
fn collect(dir: &Arc<dyn Inode>, at: &str, out: &mut BTreeMap<String, (FileType, Vec<u8>)>) -> Result<(), String> {
    for (name, kind) in names(dir) {
        let path = if at.is_empty() { name.clone() } else { format!("{at}/{name}") };
        let inode = dir.lookup(name.as_bytes()).map_err(|e| format!("{path}: {e}"))?;
        let content = match kind {
            FileType::Regular => read(&inode),
            FileType::Symlink => inode.readlink().map_err(|e| format!("{path}: {e}"))?,
            _ => Vec::new(),
        };
        if kind == FileType::Dir {
            collect(&inode, &path, out)?;
        }
        out.insert(path, (kind, content));
    }
    Ok(())
}

fn same_names(tree: &Tree, found: &BTreeMap<String, (FileType, Vec<u8>)>) -> bool {
    tree.len() == found.len()
        && tree.iter().zip(found).all(|((p, n), (q, (kind, content)))| {
            p == q
                && match n {
                    Node::Dir => *kind == FileType::Dir,
                    Node::File(_) => *kind == FileType::Regular,
                    Node::Link(op) => *kind == FileType::Symlink && *content == link_text(*op),
                }
        })
}

type Found = BTreeMap<String, (FileType, Vec<u8>)>;

impl Done {
    /// Mounts a disk as a cut left it and checks it.
    fn check(&self, disk: &Arc<OverlayDisk>, cut: usize) -> Result<(), String> {
        let fs = mount(disk.clone(), options())?;
        let mut found = BTreeMap::new();
        collect(&fs.root().map_err(|e| e.to_string())?, "", &mut found)?;
        if fs.saw_errors() {
            return Err("damage was seen".into());
        }
        drop(fs);
        let marks: Vec<u64> = self.recording.marks_before(cut).collect();
        for w in &self.workers {
            let below = format!("{}/", w.base);
            let own = |(path, what): (&String, &(FileType, Vec<u8>))| {
                let path = if w.base.is_empty() { path } else { path.strip_prefix(&below)? };
                Some((path.to_string(), what.clone()))
            };
            let own: Found = found.iter().filter_map(own).collect();
            w.check(&own, &marks).map_err(|e| w.story(&marks, &e))?;
        }
        Ok(())
    }
}

impl Work {
    /// The operations that `marks` have of this kind.
    fn marked<'a>(&'a self, marks: &'a [u64], kind: u64) -> impl DoubleEndedIterator<Item = u64> + 'a {
        marks.iter().filter(move |m| **m & 15 == self.thread << 2 | kind).map(|m| m >> 4)
    }

    /// Checks what was found in this thread's directory.
    fn check(&self, found: &Found, marks: &[u64]) -> Result<(), String> {
        let started = self.marked(marks, STARTED).next_back().unwrap_or(0);
        let synced = self.marked(marks, SYNCED).next_back().unwrap_or(0);
        let fsynced: Vec<u64> = self.marked(marks, FSYNCED).collect();
        // Names alone may fit several states (a file that was replaced by another); contents must fit one of them too.
        let fits = (synced..=started)
            .filter(|op| self.states.get(*op as usize).is_some_and(|tree| same_names(tree, found)))
            .map(|op| self.check_files(op, found, &fsynced, started));
        let mut verdict = Err(format!("no state of {synced}..={started} has these names: {:?}", found.keys()));
        for fit in fits {
            verdict = if verdict.is_ok() { verdict } else { fit };
        }
        verdict?;
        // A file that was fsynced, and whose names were not touched since, is there.
        for (id, f) in &self.files {
            let Some((op, _)) = self.promised(f, &fsynced, started) else { continue };
            let was = &self.states[op as usize];
            for (path, _) in was.iter().filter(|(_, n)| **n == Node::File(*id)) {
                if !found.contains_key(path) {
                    return Err(format!("{path} was fsynced by operation {op} and is gone"));
                }
            }
        }
        Ok(())
    }

    /// An error with what led to it.
    fn story(&self, marks: &[u64], error: &str) -> String {
        let started = self.marked(marks, STARTED).next_back().unwrap_or(0);
        let op =
            |line: &&String| line.split(':').next().and_then(|n| n.parse().ok()).is_some_and(|n: u64| n <= started);
        let lines: Vec<&str> = self.log.iter().filter(op).map(String::as_str).collect();
        format!("{:?}: {error}\n{}", self.base, lines[lines.len().saturating_sub(40)..].join("\n"))
    }

    /// The last fsync of the file that had returned, if no operation that began has changed the file since.
    fn promised<'a>(&self, f: &'a Content, fsynced: &[u64], started: u64) -> Option<(u64, &'a Arc<Vec<u8>>)> {
        let (op, content) = f.synced.iter().rev().find(|(op, _)| fsynced.contains(op))?;
        let later = f.changed.iter().any(|c| *c > *op && *c <= started);
        (!later).then_some((*op, content))
    }

    /// Whether the files are as the state after operation `op` has them.
    fn check_files(&self, op: u64, found: &Found, fsynced: &[u64], started: u64) -> Result<(), String> {
        for (path, node) in &self.states[op as usize] {
            if let (Node::File(id), Some((_, content))) = (node, found.get(path)) {
                self.check_file(path, *id, content, fsynced, started)?;
            }
        }
        Ok(())
    }

    fn check_file(&self, path: &str, id: u32, content: &[u8], fsynced: &[u64], started: u64) -> Result<(), String> {
        let f = &self.files[&id];
        if let Some((op, want)) = self.promised(f, fsynced, started)
            && content != **want
        {
            let at = content.iter().zip(want.iter()).position(|(a, b)| a != b);
            return Err(format!(
                "{path} (file {id}) is not as operation {op} had fsynced it: {} bytes for {}, differs at {at:?}",
                content.len(),
                want.len()
            ));
        }
        for (i, word) in content.chunks(8).enumerate() {
            let word = word.iter().rev().fold(0u64, |w, b| w << 8 | u64::from(*b));
            if word != 0 && word >> 32 != u64::from(id) {
                return Err(format!("{path} (file {id}) has {word:#x} at {}", i * 8));
            }
        }
        Ok(())
    }
}

/// What e2fsck says of a cut, and of what we made of it.
fn judge(cut: &Image, mounted: Vec<u8>) -> Result<(), String> {
    let ours = cut.with(mounted);
    // Our mount left its journal open (with nothing in it but the orphans' end), as a power cut after it would.
    let (ours, _) = ours.recovered().map_err(|e| e.to_string())?;
    let (settled, o) = ours.recovered_by_e2fsck();
    let o2 = settled.check();
    if !o2.status.success() {
        return Err(format!("after our mount: {}{}", text(&o), text(&o2)));
    }
    let (replayed, _) = cut.recovered().map_err(|e| e.to_string())?;
    let (theirs, o) = cut.replayed_by_debugfs();
    if replayed.essence() != theirs.essence() {
        return Err(format!("debugfs replays something else: {}", text(&o)));
    }
    let s = journal::testing::Scratch::with("preen", &cut.bytes);
    let o = tool("e2fsck", &["-fp", s.path()]).ok_or("no e2fsck")?;
    if !matches!(o.status.code(), Some(0 | 1)) {
        return Err(format!("e2fsck's recovery leaves: {}", text(&o)));
    }
    Ok(())
}

fn matrix(cuts: u64, seed: u64, options: Options) -> Result<String, String> {
    let (mut tried, mut judged, mut round) = (0, 0, 0u64);
    while tried < cuts {
        let block_size = if (seed + round).is_multiple_of(3) { 4096 } else { 1024 };
        let kib = if block_size == 4096 { 10 * 1024 } else { 3072 };
        let Some(image) = Image::make(kib, block_size, "") else { return Ok("no e2fsprogs".into()) };
        // Every other workload is that of four threads (whose interleaving no seed repeats).
        let threads = if round.is_multiple_of(2) { 1 } else { 4 };
        let done = run(&image, seed.wrapping_add(round), 300, threads, options);
        let mut rng = Rng(!seed.wrapping_add(round));
        let mut cursor = done.recording.cursor();
        let events = done.recording.events();
        for cut in 0..=events.len() {
            if cut > 0 && matches!(events[cut - 1], Event::Mark(m) if m & 3 == STARTED) {
                continue;
            }
            cursor.seek(cut);
            // Nothing of what was not flushed, all of it, and random parts.
            let tries = if cursor.volatile_blocks() == 0 { 1 } else { 4 };
            for subset in 0..tries {
                let share = rng.below(100);
                let disk = Arc::new(cursor.disk(|_, _| match subset {
                    0 => false,
                    1 => true,
                    _ => rng.below(100) < share,
                }));
                let what = format!("SEED={seed} round {round} cut {cut} subset {subset}");
                let sample = rng.below(100) == 0;
                let as_cut = sample.then(|| image.with(disk.to_image()));
                done.check(&disk, cut).map_err(|e| format!("{what}: {e}"))?;
                tried += 1;
                if let Some(as_cut) = as_cut {
                    judge(&as_cut, disk.to_image()).map_err(|e| format!("{what}: {e}"))?;
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
                "datafs crash matrix: {tried} cuts; the rest: CUTS={} SEED={}",
                cuts.saturating_sub(tried),
                seed.wrapping_add(round)
            );
        }
    }
    Ok(format!("{tried} cuts of {round} workloads, {judged} also recovered and checked by e2fsck"))
}

#[test]
fn matrix_every_cut_leaves_a_sound_file_system() {
    let cuts = std::env::var("CUTS").ok().and_then(|s| s.parse().ok()).unwrap_or(10_000);
    match matrix(cuts, seed("datafs crash matrix"), options()) {
        Ok(what) => println!("datafs crash matrix: {what}"),
        Err(what) => panic!("{what}"),
    }
}

/// The negative control: without flushes the same matrix must find a loss.
#[test]
fn matrix_without_barriers_finds_losses() {
    if Image::make(3072, 1024, "").is_some() {
        let lost = matrix(5000, 1, Options { barrier: false, ..options() }).unwrap_err();
        println!("without barriers: {}", lost.lines().next().unwrap_or(""));
    }
}
