//! Static files.
//!
//! A path is decoded once, split, and walked below the directory without following a symbolic link: in one system call
//! (`openat2` with `RESOLVE_BENEATH`) where the kernel has it, else segment by segment. So nothing outside the directory
//! can be named, whatever is in the path. Names that begin with a dot are not there, except `.well-known`.
//!
//! Small files are kept in memory for a second, since the same few are asked for again and again; a change is seen at most
//! that much later.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tokio::time::Instant;

use crate::body::{Answer, Content, Part, read};
use crate::handle::error;
use crate::metrics::{COUNTERS, count};

/// Files up to this size are read at once and kept.
const SMALL: u64 = 64 * 1024;
/// How long.
const FRESH: Duration = Duration::from_secs(1);
/// Bytes of files kept.
const ROOM: usize = 8 << 20;

/// A directory whose files are served.
pub struct Files {
    root: OwnedFd,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    files: HashMap<String, (Instant, Arc<Small>)>,
    bytes: usize,
}

struct Small {
    meta: Meta,
    bytes: Bytes,
}

#[derive(Clone)]
struct Meta {
    size: u64,
    modified: SystemTime,
    etag: HeaderValue,
    modified_text: HeaderValue,
    kind: &'static str,
}

/// What a path leads to.
enum Found {
    Small(Arc<Small>),
    Large(Meta, OwnedFd),
    Directory,
}

impl Files {
    /// The files below `dir`.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| format!("files = {:?}: {e}", dir.display()))?;
        Ok(Self { root, kept: Mutex::default() })
    }

    /// The answer to `request` for `path`, which is relative to the directory and still encoded.
    pub fn answer<B>(&self, request: &Request<B>, path: &str) -> Response<Answer> {
        let head = request.method() == Method::HEAD;
        if request.method() != Method::GET && !head {
            let mut answer = error(StatusCode::METHOD_NOT_ALLOWED);
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match self.find(path) {
            Ok(Found::Small(s)) => respond(request.headers(), head, &s.meta, |from, len| {
                let from = from as usize;
                Ok(Content::Bytes(s.bytes.slice(from..from + len as usize)))
            }),
            Ok(Found::Large(meta, file)) => {
                respond(request.headers(), head, &meta, |from, len| Ok(Content::File(Part::new(file, from, len))))
            }
            // A path in a relative link would lead elsewhere without the slash.
            Ok(Found::Directory) => moved(request.uri()),
            Err(status) => error(status),
        }
    }

    fn find(&self, path: &str) -> Result<Found, StatusCode> {
        if let Some((at, small)) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).files.get(path)
            && at.elapsed() < FRESH
        {
            return Ok(Found::Small(small.clone()));
        }
        let mut segments = segments(path).ok_or(StatusCode::NOT_FOUND)?;
        if path.is_empty() || path.ends_with('/') {
            segments.push("index.html".into());
        }
        let file = open_below(&self.root, &segments).map_err(status_of)?;
        let stat = rustix::fs::fstat(&file).map_err(status_of)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(Found::Directory),
            FileType::RegularFile => {}
            _ => return Err(StatusCode::NOT_FOUND),
        }
        let meta = Meta::new(&stat, segments.last().map_or("", String::as_str));
        if meta.size > SMALL {
            return Ok(Found::Large(meta, file));
        }
        let bytes = read(&file, 0, meta.size as usize).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        let small = Arc::new(Small { meta, bytes: bytes.into() });
        self.keep(path, &small);
        Ok(Found::Small(small))
    }

    fn keep(&self, path: &str, small: &Arc<Small>) {
        let cost = |path: &str, s: &Small| s.bytes.len() + path.len() + 256;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + cost(path, small) > ROOM {
            // Rare, and what is asked for often is back at once.
            *kept = Kept::default();
        }
        kept.bytes += cost(path, small);
        if let Some((_, old)) = kept.files.insert(path.to_owned(), (Instant::now(), small.clone())) {
            kept.bytes -= cost(path, &old);
        }
    }
}

impl Meta {
    fn new(stat: &rustix::fs::Stat, name: &str) -> Self {
        let (secs, nanos) = (stat.st_mtime.max(0) as u64, stat.st_mtime_nsec);
        let etag = format!("\"{:x}-{:x}\"", secs * 1_000_000_000 + nanos, stat.st_size);
        // Whole seconds, as HTTP's dates are.
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let text = |s: String| HeaderValue::from_str(&s).unwrap_or(HeaderValue::from_static(""));
        Self {
            size: stat.st_size.max(0) as u64,
            modified,
            etag: text(etag),
            modified_text: text(httpdate::fmt_http_date(modified)),
            kind: kind_of(name),
        }
    }
}

fn status_of(e: Errno) -> StatusCode {
    match e {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::XDEV => StatusCode::NOT_FOUND,
        Errno::ACCESS | Errno::PERM => StatusCode::FORBIDDEN,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The decoded segments of a path; none if it tries to leave, hides something, or cannot be a file's name.
fn segments(path: &str) -> Option<Vec<String>> {
    let mut out = Vec::new();
    for segment in path.split('/').filter(|s| !s.is_empty()) {
        let name = String::from_utf8(decode(segment)?).ok()?;
        if name.contains(['/', '\0']) || (name.starts_with('.') && name != ".well-known") {
            return None;
        }
        out.push(name);
    }
    Some(out)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        out.push((digit(bytes.next())? * 16 + digit(bytes.next())?) as u8);
    }
    Some(out)
}

fn open_below(root: &OwnedFd, segments: &[String]) -> Result<OwnedFd, Errno> {
    static WHOLE_PATHS: AtomicBool = AtomicBool::new(true);
    // Not to wait for the other end of a FIFO; a regular file does not care.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if segments.is_empty() {
        return Err(Errno::NOENT);
    }
    if WHOLE_PATHS.load(Ordering::Relaxed) {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(root, segments.join("/"), flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS) => WHOLE_PATHS.store(false, Ordering::Relaxed),
            done => return done,
        }
    }
    let mut at: Option<OwnedFd> = None;
    for (n, name) in segments.iter().enumerate() {
        let dir = at.as_ref().unwrap_or(root).as_fd();
        let flags = if n + 1 == segments.len() {
            flags
        } else {
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
        };
        at = Some(rustix::fs::openat(dir, name.as_str(), flags, Mode::empty())?);
    }
    at.ok_or(Errno::NOENT)
}

fn moved(uri: &hyper::Uri) -> Response<Answer> {
    let query = uri.query().map_or_else(String::new, |q| format!("?{q}"));
    // One slash at the front: two would name a host.
    let to = format!("/{}/{query}", uri.path().trim_start_matches('/'));
    let mut answer = error(StatusCode::MOVED_PERMANENTLY);
    if let Ok(to) = HeaderValue::from_str(&to) {
        answer.headers_mut().insert(header::LOCATION, to);
    }
    answer
}

/// The answer for a file: whole, in part, or not at all because the client has it already (RFC 9110, 13 and 14).
fn respond(
    asked: &HeaderMap,
    head: bool,
    meta: &Meta,
    content: impl FnOnce(u64, u64) -> io::Result<Content>,
) -> Response<Answer> {
    let mut answer = Response::new(Answer::bytes(Bytes::new()));
    let headers = answer.headers_mut();
    headers.insert(header::ETAG, meta.etag.clone());
    headers.insert(header::LAST_MODIFIED, meta.modified_text.clone());
    if is_known(asked, meta) {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        return answer;
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(meta.kind));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let (mut from, mut len) = (0, meta.size);
    match range(asked, meta) {
        Range::Whole => {}
        Range::None => {
            count(&COUNTERS.refused);
            let mut refused = error(StatusCode::RANGE_NOT_SATISFIABLE);
            if let Ok(v) = HeaderValue::from_str(&format!("bytes */{}", meta.size)) {
                refused.headers_mut().insert(header::CONTENT_RANGE, v);
            }
            return refused;
        }
        Range::Part(first, last) => {
            (from, len) = (first, last - first + 1);
            if let Ok(v) = HeaderValue::from_str(&format!("bytes {first}-{last}/{}", meta.size)) {
                headers.insert(header::CONTENT_RANGE, v);
            }
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
    }
    if head {
        answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(len));
        return answer;
    }
    match content(from, len) {
        Ok(content) => answer.map(|_| Answer::new(content)),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn is_known(asked: &HeaderMap, meta: &Meta) -> bool {
    if let Some(tags) = asked.get(header::IF_NONE_MATCH) {
        let (tags, own) = (tags.to_str().unwrap_or(""), meta.etag.to_str().unwrap_or(""));
        return tags.split(',').map(str::trim).any(|t| t == "*" || t.trim_start_matches("W/") == own);
    }
    let since = asked.get(header::IF_MODIFIED_SINCE).and_then(|v| httpdate::parse_http_date(v.to_str().ok()?).ok());
    since.is_some_and(|since| meta.modified <= since)
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part(u64, u64),
    None,
}

/// The range that is asked for. Several at once, or something that is none, get the whole, as the standard allows.
fn range(asked: &HeaderMap, meta: &Meta) -> Range {
    let Some(text) = asked.get(header::RANGE).and_then(|v| v.to_str().ok()?.strip_prefix("bytes=")) else {
        return Range::Whole;
    };
    if let Some(only_if) = asked.get(header::IF_RANGE)
        && *only_if != meta.etag
        && *only_if != meta.modified_text
    {
        return Range::Whole;
    }
    let Some((first, last)) = text.trim().split_once('-') else { return Range::Whole };
    let part = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.min(meta.size.saturating_sub(1))),
        (Ok(first), Err(_)) if last.is_empty() => (first, meta.size.saturating_sub(1)),
        (Err(_), Ok(0)) if first.is_empty() => return Range::None,
        (Err(_), Ok(n)) if first.is_empty() => (meta.size.saturating_sub(n), meta.size.saturating_sub(1)),
        _ => return Range::Whole,
    };
    if part.0 >= meta.size { Range::None } else { Range::Part(part.0, part.1) }
}

fn kind_of(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map_or("", |(_, e)| e).to_ascii_lowercase();
    match ending.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "md" | "log" => "text/plain; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "json" | "map" => "application/json",
        "wasm" => "application/wasm",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "mp3" => "audio/mpeg",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below() {
        assert_eq!(segments("a/b%20c/").unwrap(), ["a", "b c"]);
        assert_eq!(segments(".well-known/x").unwrap(), [".well-known", "x"]);
        for bad in ["..", "a/../b", "%2e%2e/x", "a%2fb", "a%00", "%", "%zz", ".git/config", "%ff"] {
            assert!(segments(bad).is_none(), "{bad}");
        }
    }

    fn meta(size: u64) -> Meta {
        Meta {
            size,
            modified: SystemTime::UNIX_EPOCH,
            etag: HeaderValue::from_static("\"1\""),
            modified_text: HeaderValue::from_static("then"),
            kind: "",
        }
    }

    #[test]
    fn ranges_are_those_of_the_standard() {
        let ask = |text: &str, size| {
            let mut h = HeaderMap::new();
            h.insert(header::RANGE, HeaderValue::from_str(text).unwrap());
            range(&h, &meta(size))
        };
        assert_eq!(ask("bytes=0-0", 10), Range::Part(0, 0));
        assert_eq!(ask("bytes=2-", 10), Range::Part(2, 9));
        assert_eq!(ask("bytes=2-99", 10), Range::Part(2, 9));
        assert_eq!(ask("bytes=-3", 10), Range::Part(7, 9));
        assert_eq!(ask("bytes=-30", 10), Range::Part(0, 9));
        assert_eq!(ask("bytes=10-", 10), Range::None);
        assert_eq!(ask("bytes=-0", 10), Range::None);
        assert_eq!(ask("bytes=0-", 0), Range::None);
        for whole in ["bytes=5-2", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "bytes=-"] {
            assert_eq!(ask(whole, 10), Range::Whole, "{whole}");
        }
    }

    #[test]
    fn files_are_found_and_links_are_not_followed() {
        let dir = std::env::temp_dir().join(format!("httpd-files-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        std::fs::write(dir.join("sub/index.html"), "hello").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("out")).unwrap();
        let files = Files::open(&dir).unwrap();
        let get =
            |path: &str| files.answer(&Request::builder().uri(format!("/{path}")).body(()).unwrap(), path).status();
        assert_eq!(get("sub/"), 200);
        assert_eq!(get("sub"), 301);
        assert_eq!(get("out"), 404);
        assert_eq!(get(""), 404);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
