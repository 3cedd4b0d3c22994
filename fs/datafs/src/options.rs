//! Mount options.

use abi::{Errno, Result};
use alloc::string::String;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What happens after an inconsistency was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Nothing is written any more.
    RemountReadOnly,
    /// The call fails, the rest goes on.
    Continue,
}

/// How a file system is mounted.
#[derive(Clone, Copy)]
pub struct Options {
    /// Nothing is written (but the journal is replayed).
    pub read_only: bool,
    /// Every change is durable when its call returns.
    pub sync: bool,
    /// Every change of names is durable when its call returns.
    pub dirsync: bool,
    /// Access times are not kept.
    pub noatime: bool,
    /// Nor are those of directories.
    pub nodiratime: bool,
    /// Access times are kept exactly, not just after changes.
    pub strictatime: bool,
    /// After an inconsistency.
    pub on_error: OnError,
    /// Seconds after which a change is durable by itself.
    pub commit_seconds: u32,
    /// The device is told of freed blocks.
    pub discard: bool,
    /// Write barriers (cache flushes) at commits.
    pub barrier: bool,
    /// Where messages go.
    pub log: fn(&str),
}

impl core::fmt::Debug for Options {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            read_only: false,
            sync: false,
            dirsync: false,
            noatime: false,
            nodiratime: false,
            strictatime: false,
            on_error: OnError::RemountReadOnly,
            commit_seconds: 5,
            discard: false,
            barrier: true,
            log: |_| {},
        }
    }
}

impl Options {
    /// Takes a comma-separated list, as the last argument of `mount(2)`. `EINVAL` for what is not known or makes no sense.
    pub fn parse(mut self, text: &str) -> Result<Options> {
        for word in text.split(',').filter(|w| !w.is_empty()) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match (key, value) {
                ("ro", "") => self.read_only = true,
                ("rw", "") => self.read_only = false,
                ("sync", "") => self.sync = true,
                ("async", "") => self.sync = false,
                ("dirsync", "") => self.dirsync = true,
                ("nodirsync", "") => self.dirsync = false,
                ("noatime", "") => self.noatime = true,
                ("nodiratime", "") => self.nodiratime = true,
                ("diratime", "") => self.nodiratime = false,
                ("relatime" | "atime", "") => (self.noatime, self.strictatime) = (false, false),
                ("strictatime", "") => (self.noatime, self.strictatime) = (false, true),
                ("errors", "remount-ro") => self.on_error = OnError::RemountReadOnly,
                ("errors", "continue") => self.on_error = OnError::Continue,
                ("commit", n) => {
                    self.commit_seconds = match n.parse() {
                        Ok(0) => 5,
                        Ok(n @ 1..=3600) => n,
                        _ => return Err(Errno::EINVAL),
                    }
                }
                ("discard", "") => self.discard = true,
                ("nodiscard", "") => self.discard = false,
                ("barrier", "" | "1") => self.barrier = true,
                ("nobarrier", "") | ("barrier", "0") => self.barrier = false,
                // The only ways that there are; and defaults that mean nothing here.
                ("data", "ordered") | ("delalloc" | "user_xattr" | "defaults" | "lazytime", "") => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(self)
    }

    /// As `/proc/mounts` shows them: each preceded by a comma, only what differs from the default.
    pub fn shown(&self) -> String {
        let mut out = String::new();
        let mut add = |yes: bool, text: &str| {
            if yes {
                out.push(',');
                out.push_str(text);
            }
        };
        add(self.sync, "sync");
        add(self.dirsync, "dirsync");
        add(self.on_error == OnError::Continue, "errors=continue");
        add(self.discard, "discard");
        add(!self.barrier, "nobarrier");
        if self.commit_seconds != 5 {
            add(true, &alloc::format!("commit={}", self.commit_seconds));
        }
        out
    }
}

/// The options of a mounted file system, as far as a remount changes them.
#[derive(Debug)]
pub(crate) struct Live {
    sync: AtomicBool,
    dirsync: AtomicBool,
    noatime: AtomicBool,
    nodiratime: AtomicBool,
    strictatime: AtomicBool,
    goes_on: AtomicBool,
    discard: AtomicBool,
    commit_seconds: AtomicU32,
    fixed: Options,
}

impl Live {
    /// Those of a mount.
    pub fn new(options: Options) -> Self {
        let live = Live {
            sync: AtomicBool::default(),
            dirsync: AtomicBool::default(),
            noatime: AtomicBool::default(),
            nodiratime: AtomicBool::default(),
            strictatime: AtomicBool::default(),
            goes_on: AtomicBool::default(),
            discard: AtomicBool::default(),
            commit_seconds: AtomicU32::default(),
            fixed: options,
        };
        live.set(&options);
        live
    }

    /// Takes over what can be changed.
    pub fn set(&self, o: &Options) {
        self.sync.store(o.sync, Ordering::Relaxed);
        self.dirsync.store(o.dirsync, Ordering::Relaxed);
        self.noatime.store(o.noatime, Ordering::Relaxed);
        self.nodiratime.store(o.nodiratime, Ordering::Relaxed);
        self.strictatime.store(o.strictatime, Ordering::Relaxed);
        self.goes_on.store(o.on_error == OnError::Continue, Ordering::Relaxed);
        self.discard.store(o.discard, Ordering::Relaxed);
        self.commit_seconds.store(o.commit_seconds, Ordering::Relaxed);
    }

    /// All of them as they are now.
    pub fn now(&self) -> Options {
        Options {
            sync: self.sync(),
            dirsync: self.dirsync(),
            noatime: self.noatime(),
            nodiratime: self.nodiratime(),
            strictatime: self.strictatime(),
            on_error: if self.goes_on() { OnError::Continue } else { OnError::RemountReadOnly },
            discard: self.discard(),
            commit_seconds: self.commit_seconds(),
            ..self.fixed
        }
    }

    /// Every change is durable when its call returns.
    pub fn sync(&self) -> bool {
        self.sync.load(Ordering::Relaxed)
    }

    /// Access times are not kept.
    pub fn noatime(&self) -> bool {
        self.noatime.load(Ordering::Relaxed)
    }

    /// Every change of names is durable when its call returns.
    pub fn dirsync(&self) -> bool {
        self.dirsync.load(Ordering::Relaxed)
    }

    /// Access times of directories are not kept.
    pub fn nodiratime(&self) -> bool {
        self.nodiratime.load(Ordering::Relaxed)
    }

    /// Access times are kept exactly.
    pub fn strictatime(&self) -> bool {
        self.strictatime.load(Ordering::Relaxed)
    }

    /// Writing goes on after an inconsistency.
    pub fn goes_on(&self) -> bool {
        self.goes_on.load(Ordering::Relaxed)
    }

    /// The device is told of freed blocks.
    pub fn discard(&self) -> bool {
        self.discard.load(Ordering::Relaxed)
    }

    /// Seconds after which a change is durable by itself.
    pub fn commit_seconds(&self) -> u32 {
        self.commit_seconds.load(Ordering::Relaxed)
    }

    /// Where messages go.
    pub fn log(&self, message: &str) {
        (self.fixed.log)(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_or_refused() {
        let o = Options::default().parse("rw,noatime,errors=continue,commit=30,discard").unwrap();
        assert!(o.noatime && o.discard && o.commit_seconds == 30 && !o.read_only);
        assert_eq!(o.shown(), ",errors=continue,discard,commit=30");
        for bad in ["data=journal", "commit=x", "commit=9999", "foo", "errors=panic"] {
            assert!(Options::default().parse(bad).is_err(), "{bad}");
        }
    }
}
