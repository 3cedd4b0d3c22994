//! The same scripts on the model and on a real Linux pty.
//!
//! The transcripts in the table were taken from Linux (6.18). `model_*` runs everywhere; the `linux_*` tests need a host
//! with /dev/ptmx and are run with `--ignored`: they check the table itself and compare random scripts.

#![allow(clippy::unwrap_used, clippy::needless_raw_string_hashes)]

mod common;

use common::Flag::{I, L, O};
use common::{Model, Step, Terminal, run, with};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self as rt, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tty_core::{ControlChar, InputFlags as IF, LocalFlags as LF, OutputFlags as OF, Termios};

/// A pty of the host.
struct Linux {
    master: OwnedFd,
    slave: OwnedFd,
}

const CHARS: [(ControlChar, SpecialCodeIndex); 15] = [
    (ControlChar::Intr, SpecialCodeIndex::VINTR),
    (ControlChar::Quit, SpecialCodeIndex::VQUIT),
    (ControlChar::Erase, SpecialCodeIndex::VERASE),
    (ControlChar::Kill, SpecialCodeIndex::VKILL),
    (ControlChar::Eof, SpecialCodeIndex::VEOF),
    (ControlChar::Time, SpecialCodeIndex::VTIME),
    (ControlChar::Min, SpecialCodeIndex::VMIN),
    (ControlChar::Start, SpecialCodeIndex::VSTART),
    (ControlChar::Stop, SpecialCodeIndex::VSTOP),
    (ControlChar::Susp, SpecialCodeIndex::VSUSP),
    (ControlChar::Eol, SpecialCodeIndex::VEOL),
    (ControlChar::Reprint, SpecialCodeIndex::VREPRINT),
    (ControlChar::Werase, SpecialCodeIndex::VWERASE),
    (ControlChar::Lnext, SpecialCodeIndex::VLNEXT),
    (ControlChar::Eol2, SpecialCodeIndex::VEOL2),
];

impl Linux {
    fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
        Linux { master, slave }
    }

    /// Lets the kernel's worker move what is on its way: poll waits for it where there is nothing to read yet.
    fn settle(&self) {
        for fd in [self.slave.as_fd(), self.master.as_fd()] {
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        }
        std::thread::sleep(Duration::from_micros(1500));
    }
}

impl Terminal for Linux {
    fn set(&mut self, termios: &Termios) {
        let mut t = tcgetattr(&self.slave).unwrap();
        t.input_modes = rt::InputModes::from_bits_retain(termios.iflag.bits());
        t.output_modes = rt::OutputModes::from_bits_retain(termios.oflag.bits());
        t.local_modes = rt::LocalModes::from_bits_retain(termios.lflag.bits());
        for (ours, theirs) in CHARS {
            t.special_codes[theirs] = termios.char(ours);
        }
        tcsetattr(&self.slave, OptionalActions::Now, &t).unwrap();
    }

    fn type_in(&mut self, bytes: &[u8]) {
        rustix::io::write(&self.master, bytes).unwrap();
        self.settle();
    }

    fn write(&mut self, bytes: &[u8]) {
        let _ = rustix::io::write(&self.slave, bytes);
    }

    fn read(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let n = rustix::io::read(&self.slave, &mut bytes[..]).ok()?;
        bytes.truncate(n);
        Some(bytes)
    }

    fn inq(&mut self) -> usize {
        rustix::io::ioctl_fionread(&self.slave).unwrap() as usize
    }

    fn screen(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            self.settle();
            match rustix::io::read(&self.master, &mut bytes) {
                Ok(n) if n > 0 => all.extend_from_slice(&bytes[..n]),
                _ => return all,
            }
        }
    }
}

fn typed(bytes: &[u8]) -> Step {
    Step::Type(bytes.to_vec())
}

fn written(bytes: &[u8]) -> Step {
    Step::Write(bytes.to_vec())
}

fn chars(mut t: Termios, list: &[(ControlChar, u8)]) -> Termios {
    for &(which, value) in list {
        t.cc[which as usize] = value;
    }
    t
}

/// Names, scripts, and what Linux does.
fn table() -> Vec<(&'static str, Vec<Step>, &'static str)> {
    use Step::{Inq, Read, Set};
    let raw = with(&[], &[L(LF::ICANON), L(LF::ECHO), L(LF::ISIG), I(IF::ICRNL), I(IF::IXON)]);
    let utf8 = with(&[I(IF::IUTF8)], &[]);
    include!("table.in")
}

#[test]
fn model_matches_what_linux_did() {
    for (name, script, expected) in table() {
        assert_eq!(run(&mut Model::new(), &script), expected, "{name}");
    }
}

#[test]
#[ignore = "needs a Linux host with ptys"]
fn linux_still_does_so() {
    let mut wrong = 0;
    for (name, script, expected) in table() {
        let got = run(&mut Linux::new(), &script);
        if got != expected {
            wrong += 1;
            println!("{name}:\n  got  {got}\n  have {expected}");
        }
    }
    assert_eq!(wrong, 0);
}

fn settings() -> impl Strategy<Value = Termios> {
    let iflags = IF::ISTRIP | IF::INLCR | IF::IGNCR | IF::ICRNL | IF::IUCLC | IF::IUTF8 | IF::PARMRK | IF::IXANY;
    let oflags = OF::OPOST | OF::OLCUC | OF::ONLCR | OF::OCRNL | OF::ONOCR | OF::ONLRET | OF::XTABS;
    let lflags = LF::ISIG
        | LF::ICANON
        | LF::ECHO
        | LF::ECHOE
        | LF::ECHOK
        | LF::ECHONL
        | LF::NOFLSH
        | LF::ECHOCTL
        | LF::ECHOPRT
        | LF::ECHOKE
        | LF::IEXTEN;
    // Three of four times a usual setting with a few bits changed.
    (any::<[u32; 3]>(), any::<[u32; 3]>(), any::<bool>(), 0u8..3, proptest::option::of(b'e'..b'g')).prop_map(
        move |(a, b, ixon, min, eol)| {
            let mut t = Termios::pty();
            let flip = |mask: u32, i: usize| a[i] & b[i] & mask;
            t.iflag ^= IF::from_bits_retain(flip(iflags.bits(), 0));
            t.iflag.set(IF::IXON, ixon);
            t.oflag ^= OF::from_bits_retain(flip(oflags.bits(), 1));
            t.lflag ^= LF::from_bits_retain(flip(lflags.bits(), 2));
            chars(t, &[(ControlChar::Min, min), (ControlChar::Eol, eol.unwrap_or(0))])
        },
    )
}

fn keys() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![
        6 => b"abe_ Zz".to_vec().prop_map_into_byte(),
        3 => b"\n\r\t\x08".to_vec().prop_map_into_byte(),
        5 => b"\x7f\x15\x17\x16\x12\x04".to_vec().prop_map_into_byte(),
        1 => b"\x03\x1a\x1c\x13\x11\x11".to_vec().prop_map_into_byte(),
        // No zero byte: Linux loses one that is last on a change from raw to canonical, the model keeps it.
        2 => b"\xc3\xa4\xff\xbf\x1b".to_vec().prop_map_into_byte(),
    ];
    proptest::collection::vec(key, 1..14)
}

/// A strategy for one of the bytes of a list.
trait OneOf {
    fn prop_map_into_byte(self) -> proptest::sample::Select<u8>;
}

impl OneOf for Vec<u8> {
    fn prop_map_into_byte(self) -> proptest::sample::Select<u8> {
        proptest::sample::select(self)
    }
}

fn script() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => settings().prop_map(Step::Set),
        5 => keys().prop_map(Step::Type),
        2 => keys().prop_map(Step::Write),
        3 => (1usize..9).prop_map(Step::Read),
        1 => Just(Step::Inq),
    ];
    (settings(), proptest::collection::vec(step, 1..8)).prop_map(|(first, mut steps)| {
        // Linux post-processes echo when it is sent, the model when it is typed: a change of `c_oflag` while echo waits
        // is the one difference.
        for step in &mut steps {
            if let Step::Set(t) = step {
                t.oflag = first.oflag;
            }
        }
        steps.insert(0, Step::Set(first));
        steps.push(Step::Read(100));
        steps
    })
}

#[test]
#[ignore = "needs a Linux host with ptys"]
fn linux_and_model_agree_on_random_scripts() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(script in script())| {
        let [model, linux] = [run(&mut Model::new(), &script), run(&mut Linux::new(), &script)];
        prop_assert_eq!(model, linux);
    });
}
