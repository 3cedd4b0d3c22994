//! Who the server is. Started by root, it binds its ports, opens its log and reads its keys, and then becomes a user of its
//! own for good (`user` in the configuration; `httpd`, or else `nobody`, without it), before the first byte of a client is
//! read and while there is one thread.
//!
//! Keys stay readable for root alone, and a changed one is taken all the same: a second process, [`keeper`], stays root, takes
//! nothing but the number of a certificate over a socket pair, and answers with its two files, whose names it was started
//! with. It is no larger than that, since it is what an intruder could ask.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::process::{Gid, Uid};

use crate::config::Certificate;

/// The largest chain or key that is read, in bytes.
const LARGEST: u64 = 1 << 20;
/// For the keeper to answer: it reads two small files.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who it becomes where the configuration says nothing: the first that exists.
const USERS: [&str; 2] = ["httpd", "nobody"];

/// A user as /etc/passwd has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
}

/// Who the server is to become; None if it stays who it is: not root, or told to remain root.
pub fn wanted(user: Option<&str>) -> Result<Option<User>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = match user {
        Some(name) => find(name, &passwd).ok_or_else(|| format!("user = {name:?}: no such user"))?,
        None => USERS
            .iter()
            .find_map(|name| find(name, &passwd))
            .ok_or("it will not serve as root: say whom to become with `user = \"…\"`")?,
    };
    Ok((found.uid != 0).then_some(found))
}

fn find(name: &str, passwd: &str) -> Option<User> {
    let fields = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.first() == Some(&name))?;
    Some(User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
}

/// Become `user`, without a way back. Only while there is one thread: the kernel keeps identities per thread.
pub fn drop_to(user: User) -> Result<(), String> {
    let failed = |what: &'static str| move |e: rustix::io::Errno| format!("{what}: {e}");
    rustix::thread::set_thread_groups(&[]).map_err(failed("setgroups"))?;
    rustix::thread::set_thread_gid(Gid::from_raw(user.gid)).map_err(failed("setgid"))?;
    rustix::thread::set_thread_uid(Uid::from_raw(user.uid)).map_err(failed("setuid"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("no_new_privs"))?;
    if rustix::thread::set_thread_uid(Uid::ROOT).is_ok() {
        return Err("it could become root again".into());
    }
    Ok(())
}

/// The two files of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The chain, in PEM.
    pub chain: Vec<u8>,
    /// The private key, in PEM.
    pub key: Vec<u8>,
}

/// How the files of certificates are read.
#[derive(Debug)]
pub enum Reader {
    /// By this process itself.
    Direct,
    /// By a process that has remained root.
    Keeper(Mutex<UnixStream>),
}

/// When the two files were written: another pair means that they changed.
pub type Stamp = [Option<SystemTime>; 2];

/// What a keeper is asked for.
const CONTENT: u8 = 0;
const TIMES: u8 = 1;

impl Reader {
    /// When the files of certificate number `index`, which is `c`, were written.
    pub fn stamp(&self, index: usize, c: &Certificate) -> Stamp {
        let times = [&c.chain, &c.key].map(|f| f.metadata().and_then(|m| m.modified()));
        let hidden = |e: &std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
        if let Self::Keeper(_) = self
            && times.iter().any(|t| t.as_ref().err().is_some_and(hidden))
        {
            let time = |bytes: Result<Vec<u8>, String>| {
                let nanos = u64::from_le_bytes(bytes.ok()?.try_into().ok()?);
                Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos))
            };
            return self.ask(index, TIMES).map_or([None; 2], |answer| answer.map(time));
        }
        times.map(Result::ok)
    }

    fn ask(&self, index: usize, what: u8) -> Result<[Result<Vec<u8>, String>; 2], String> {
        let Self::Keeper(stream) = self else { return Err("nobody to ask".into()) };
        let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = |e: std::io::Error| format!("the process that reads keys: {e}");
        let [low, high] = u16::try_from(index).map_err(|e| e.to_string())?.to_le_bytes();
        stream.write_all(&[low, high, what]).map_err(gone)?;
        Ok([receive(&mut stream).map_err(gone)?, receive(&mut stream).map_err(gone)?])
    }

    /// The files of certificate number `index`, which is `c`.
    pub fn read(&self, index: usize, c: &Certificate) -> Result<Files, String> {
        match self {
            Self::Direct => Ok(Files { chain: read_file(&c.chain)?, key: read_file(&c.key)? }),
            Self::Keeper(_) => {
                let [chain, key] = self.ask(index, CONTENT).map_err(|e| format!("{}: {e}", c.key.display()))?;
                Ok(Files { chain: chain?, key: key? })
            }
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("{}: larger than {LARGEST} bytes", path.display()));
    }
    Ok(bytes)
}

/// One file as [`send`] sent it; the inner error is the other side's.
fn receive(stream: &mut UnixStream) -> std::io::Result<Result<Vec<u8>, String>> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [good, length @ ..] = head;
    let mut bytes = vec![0; u32::from_le_bytes(length).min(LARGEST as u32) as usize];
    stream.read_exact(&mut bytes)?;
    Ok(if good == 1 { Ok(bytes) } else { Err(String::from_utf8_lossy(&bytes).into_owned()) })
}

fn send(stream: &mut UnixStream, file: Result<Vec<u8>, String>) -> std::io::Result<()> {
    let (good, bytes) = match file {
        Ok(bytes) => (1, bytes),
        Err(why) => (0, why.into_bytes()),
    };
    let mut message = vec![good];
    message.extend((bytes.len() as u32).to_le_bytes());
    message.extend(bytes);
    stream.write_all(&message)
}

/// Start the process that goes on reading the files of `certificates` after this one has stopped being root.
pub fn start_keeper(certificates: &[Certificate]) -> Result<Reader, String> {
    let failed = |e: std::io::Error| format!("the process that reads keys: {e}");
    let (here, there) = UnixStream::pair().map_err(failed)?;
    here.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    here.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let files = certificates.iter().flat_map(|c| [&c.chain, &c.key]);
    Command::new("/proc/self/exe")
        .arg0("httpd-keys")
        .arg("--keys")
        .args(files)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(there)))
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed)?;
    Ok(Reader::Keeper(Mutex::new(here)))
}

/// The life of that process: `files` are pairs of chain and key; standard input is the socket. It ends with its parent.
pub fn keeper(files: &[String]) -> Result<(), String> {
    let failed = |e: std::io::Error| e.to_string();
    let _ = rustix::thread::set_name(c"httpd-keys");
    let input = rustix::io::dup(rustix::stdio::stdin()).map_err(|e| e.to_string())?;
    let mut stream = UnixStream::from(input);
    serve_files(&mut stream, files).map_err(failed)
}

fn serve_files(stream: &mut UnixStream, files: &[String]) -> std::io::Result<()> {
    let mut request = [0; 3];
    while stream.read_exact(&mut request).is_ok() {
        let [low, high, what] = request;
        let at = usize::from(u16::from_le_bytes([low, high])) * 2;
        for path in [at, at + 1].map(|n| files.get(n)) {
            let path = path.map(PathBuf::from).ok_or_else(|| "no such certificate".to_owned());
            send(stream, path.and_then(|path| if what == TIMES { time(&path) } else { read_file(&path) }))?;
        }
    }
    Ok(())
}

/// When a file was written, in nanoseconds since the epoch.
fn time(path: &Path) -> Result<Vec<u8>, String> {
    let at = path.metadata().and_then(|m| m.modified()).map_err(|e| e.to_string())?;
    let nanos = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    Ok(nanos.to_le_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found() {
        let passwd = "root:x:0:0::/:/bin/sh\nhttpd:x:101:102::/:/bin/false\nbad:x:y:1::/:";
        assert_eq!(find("httpd", passwd), Some(User { uid: 101, gid: 102 }));
        assert_eq!((find("bad", passwd), find("none", passwd)), (None, None));
    }

    #[test]
    fn a_keeper_hands_out_its_files_and_no_others() {
        let dir = std::env::temp_dir().join(format!("httpd-keeper-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let [chain, key] = ["c", "k"].map(|n| dir.join(n));
        std::fs::write(&chain, "chain").unwrap();
        let (here, mut there) = UnixStream::pair().unwrap();
        let files = [&chain, &key].map(|p| p.display().to_string());
        let keeper = std::thread::spawn(move || serve_files(&mut there, &files));
        let c = Certificate { chain, key, self_signed: false, hosts: Vec::new(), acme: false };
        let reader = Reader::Keeper(Mutex::new(here));
        assert!(reader.read(0, &c).unwrap_err().contains("/k: "));
        std::fs::write(&c.key, "key").unwrap();
        assert_eq!(reader.read(0, &c), Ok(Files { chain: b"chain".into(), key: b"key".into() }));
        assert!(reader.read(1, &c).unwrap_err().contains("no such"));
        let times = reader.ask(0, TIMES).unwrap();
        assert_eq!((times[0].as_ref().unwrap().len(), reader.stamp(0, &c)), (8, Reader::Direct.stamp(0, &c)));
        drop(reader);
        keeper.join().unwrap().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
