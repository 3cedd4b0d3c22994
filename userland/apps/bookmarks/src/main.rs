//! Bookmarks: links with notes, tags and files, for the users of one machine, with full-text search.
//!
//! A small web application as one would put it onto a Berth machine: Rust over sqlite, pages that work without scripts, a
//! JSON interface, its data in one directory. It speaks plain HTTP on a local address; httpd in front of it does TLS and
//! keeps hostile clients away.
//!
//! - [`db`]: sqlite: one thread that writes, batching what comes at once into one durable transaction; readers beside it
//! - [`schema`]: the tables, and how older databases become newer ones
//! - [`accounts`]: users, passwords, sessions and tokens
//! - [`store`]: bookmarks, tags, search, files
//! - [`http`]: requests and answers; [`pages`] makes HTML of them, [`api`] JSON; [`form`] reads what browsers send
//!
//! **The promise**: a request that was answered with a 2xx or a redirect has its data on stable media (WAL with
//! `synchronous=FULL`, and files synced before their row is written). The power may go at any time.
//!
//! Not done: sharing between users, import and export, changing a password.
#![forbid(unsafe_code)]

mod accounts;
mod api;
mod db;
mod fault;
mod form;
mod http;
mod pages;
mod schema;
mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: bookmarks [--data DIR] [--listen ADDRESS:PORT]   (/data/bookmarks, 127.0.0.1:8000)";

/// What the command line says.
struct Settings {
    data: PathBuf,
    listen: SocketAddr,
}

fn settings() -> Result<Settings, String> {
    let mut s = Settings { data: PathBuf::from("/data/bookmarks"), listen: SocketAddr::from(([127, 0, 0, 1], 8000)) };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(USAGE)?;
        match word.as_str() {
            "--data" => s.data = value.into(),
            "--listen" => s.listen = value.parse().map_err(|e| format!("--listen {value}: {e}"))?,
            _ => return Err(USAGE.into()),
        }
    }
    Ok(s)
}

fn run() -> Result<(), String> {
    let settings = settings()?;
    let files = settings.data.join("files");
    std::fs::create_dir_all(&files).map_err(|e| format!("{}: {e}", files.display()))?;
    let db = db::Db::open(&settings.data.join("bookmarks.db")).map_err(|e| format!("the database: {e}"))?;
    let app = http::App::new(db, files)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(1, usize::from))
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start: {e}"))?;
    let outcome = runtime.block_on(http::serve(app, settings.listen));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bookmarks: {why}");
            ExitCode::FAILURE
        }
    }
}
