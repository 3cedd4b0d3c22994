//! sqlite, in WAL mode with `synchronous=FULL`.
//!
//! One thread has the writing connection. It takes what waits, runs all of it in one transaction (each piece in a savepoint
//! of its own, so that one that fails takes nobody with it) and answers after the commit: ten writers at once cost one sync
//! of the disk, and an answer always means that the data is durable. Readers have connections of their own and run on the
//! thread that asks; WAL lets them see the last commit without waiting for a writer.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::StatusCode;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use crate::fault::{Fault, Outcome};
use crate::schema;

/// Writes that may wait; beyond, clients are asked to come again.
const QUEUE: usize = 512;
/// Writes in one transaction.
const BATCH: usize = 64;
/// Reading connections that are kept.
const READERS: usize = 8;

/// Told whether the transaction was committed.
type Done = Box<dyn FnOnce(Result<(), String>) + Send>;
type Job = Box<dyn FnOnce(&Connection) -> Done + Send>;

/// The database.
pub struct Db {
    path: PathBuf,
    readers: Mutex<Vec<Connection>>,
    writer: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Db {
    /// Opens or makes it, and brings its tables up to date.
    pub fn open(path: &Path) -> Result<Arc<Self>, String> {
        let say = |e: rusqlite::Error| format!("{}: {e}", path.display());
        let c = Connection::open(path).map_err(say)?;
        c.busy_timeout(Duration::from_secs(10)).map_err(say)?;
        c.execute_batch(
            "pragma journal_mode = wal; pragma synchronous = full; pragma foreign_keys = on; pragma wal_autocheckpoint = 1000;",
        )
        .map_err(say)?;
        c.set_prepared_statement_cache_capacity(64);
        schema::migrate(&c).map_err(|why| format!("{}: {why}", path.display()))?;
        let (writer, jobs) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("writer".into())
            .spawn(move || write_all(&c, &jobs))
            .map_err(|e| format!("cannot start the writing thread: {e}"))?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            readers: Mutex::default(),
            writer: Some(writer),
            thread: Some(thread),
        }))
    }

    /// Runs `f` with a reading connection. Queries here take less than a thread would to hand them over.
    pub fn read<T>(&self, f: impl FnOnce(&Connection) -> Outcome<T>) -> Outcome<T> {
        let kept = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let c = match kept {
            Some(c) => c,
            None => self.reader()?,
        };
        let result = f(&c);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS {
            readers.push(c);
        }
        result
    }

    fn reader(&self) -> Outcome<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let c = Connection::open_with_flags(&self.path, flags)?;
        c.busy_timeout(Duration::from_secs(10))?;
        c.execute_batch("pragma query_only = on")?;
        c.set_prepared_statement_cache_capacity(64);
        Ok(c)
    }

    /// Runs `f` in a transaction; the result comes when it is durable.
    pub async fn write<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Connection) -> Outcome<T> + Send + 'static,
    ) -> Outcome<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |c| {
            let result = in_savepoint(c, f);
            Box::new(move |committed| {
                // The client may have gone.
                let _ = answer.send(match committed {
                    Ok(()) => result,
                    Err(why) => Err(Fault::Lost(why)),
                });
            })
        });
        let lost = || Fault::Lost("the writing thread has ended".into());
        match self.writer.as_ref().ok_or_else(lost)?.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Err(Fault::Refused(StatusCode::SERVICE_UNAVAILABLE, "Too busy; try again."));
            }
            Err(TrySendError::Disconnected(_)) => return Err(lost()),
        }
        answered.await.map_err(|_| lost())?
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        // The thread ends when nobody can send any more; then its connection closes and the log is folded in.
        self.writer = None;
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn in_savepoint<T>(c: &Connection, f: impl FnOnce(&Connection) -> Outcome<T>) -> Outcome<T> {
    c.prepare_cached("savepoint one")?.execute([])?;
    let result = f(c);
    if result.is_err() {
        c.prepare_cached("rollback to one")?.execute([])?;
    }
    c.prepare_cached("release one")?.execute([])?;
    result
}

fn write_all(c: &Connection, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let begun = c.prepare_cached("begin immediate").and_then(|mut s| s.execute([]));
        let mut waiting: Vec<Done> = vec![first(c)];
        while waiting.len() < BATCH
            && let Ok(job) = jobs.try_recv()
        {
            waiting.push(job(c));
        }
        let committed = begun.and_then(|_| c.prepare_cached("commit")?.execute([]));
        if committed.is_err() {
            // It may be over already: sqlite rolls back by itself on some errors.
            let _ = c.execute_batch("rollback");
        }
        let committed = committed.map(drop).map_err(|e| e.to_string());
        for done in waiting {
            done(committed.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_takes_nobody_with_it() {
        let dir = std::env::temp_dir().join(format!("bookmarks-db-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let db = Db::open(&dir.join("a.db")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let add = |id: i64| {
            db.write(move |c| Ok(c.execute("insert into users values (?, ?, '', 0, 0)", (id, format!("u{id}")))?))
        };
        runtime.block_on(async {
            let (a, b, c) = tokio::join!(add(1), add(1), add(2));
            assert!(a.is_ok() && b.is_err() && c.is_ok());
        });
        let n: i64 = db.read(|c| Ok(c.query_row("select count(*) from users", [], |r| r.get(0))?)).unwrap();
        assert_eq!(n, 2);
        assert!(db.read(|c| Ok(c.execute("delete from users", [])?)).is_err());
        drop(db);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
