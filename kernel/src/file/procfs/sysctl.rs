//! Settings that programs read below `/proc/sys` and that are what they are here: limits that the code has, choices that
//! were made. Nothing is listed that Berth does not have, since programs take a file's being there for an answer.

use super::Entry;
use super::system::line;
use crate::file::inotify;
use crate::file::synth::Node;
use alloc::format;
use vfs::FileType::{Dir, Regular};

macro_rules! fixed {
    ($name:literal, $value:expr) => {
        ($name, Regular, || Node::text(|o| line(o, $value.as_bytes())))
    };
}

pub(super) const NET: &[Entry] = &[
    ("core", Dir, || Node::dir(alloc::sync::Arc::new(super::Fixed(CORE)))),
    ("ipv4", Dir, || Node::dir(alloc::sync::Arc::new(super::Fixed(IPV4)))),
];

/// `listen(2)`'s backlog is cut to this.
const CORE: &[Entry] = &[fixed!("somaxconn", "4096")];

const IPV4: &[Entry] = &[
    fixed!("ip_forward", "0"),
    fixed!("ip_local_port_range", "32768\t60999"),
    fixed!("ip_unprivileged_port_start", "1024"),
    fixed!("tcp_available_congestion_control", "reno"),
    fixed!("tcp_congestion_control", "reno"),
    fixed!("tcp_syncookies", "1"),
];

/// `threads-max` and the like: of [`super::system`]'s `/proc/sys/kernel`.
pub(super) const KERNEL: &[Entry] = &[
    ("domainname", Regular, || Node::text(|o| line(o, &crate::syscall::misc::domain_name()))),
    fixed!("dmesg_restrict", "1"),
    fixed!("msgmax", "8192"),
    fixed!("msgmnb", "16384"),
    fixed!("msgmni", "32000"),
    fixed!("randomize_va_space", "2"),
    fixed!("sched_rr_timeslice_ms", "100"),
    fixed!("sem", "32000\t1024000000\t500\t32000"),
    fixed!("shmall", "18446744073692774399"),
    fixed!("shmmax", "18446744073692774399"),
    fixed!("shmmni", "4096"),
    fixed!("tainted", "0"),
    ("threads-max", Regular, || Node::text(|o| line(o, format!("{}", crate::task::fork::max_threads()).as_bytes()))),
    fixed!("version", crate::syscall::misc::VERSION),
];

pub(super) const VM: &[Entry] =
    &[fixed!("mmap_min_addr", "65536"), fixed!("nr_hugepages", "0"), fixed!("overcommit_ratio", "50")];

const INOTIFY: &[Entry] = &[
    ("max_queued_events", Regular, || Node::text(|o| line(o, format!("{}", inotify::MAX_QUEUED).as_bytes()))),
    ("max_user_watches", Regular, || Node::text(|o| line(o, format!("{}", inotify::MAX_WATCHES).as_bytes()))),
];

pub(super) const FS: &[Entry] = &[
    ("inotify", Dir, || Node::dir(alloc::sync::Arc::new(super::Fixed(INOTIFY)))),
    // No limit but memory.
    fixed!("file-max", "9223372036854775807"),
    fixed!("pipe-max-size", "1048576"),
];
