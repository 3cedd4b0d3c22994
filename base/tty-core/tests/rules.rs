//! What a pty of the host cannot show: timing, faults, back-pressure, packet mode, layouts; and what must always hold.

#![allow(clippy::unwrap_used)]

mod common;

use common::Flag::{I, L};
use common::{Model, Terminal, with};
use proptest::prelude::*;
use tty_core::*;

const TENTH: u64 = 100_000_000;

fn raw() -> Termios {
    with(
        &[],
        &[L(LocalFlags::ICANON), L(LocalFlags::ECHO), L(LocalFlags::ISIG), I(InputFlags::ICRNL), I(InputFlags::IXON)],
    )
}

fn model(termios: Termios) -> Model {
    let mut m = Model::new();
    m.set(&termios);
    m
}

fn timed(min: u8, time: u8) -> Model {
    let mut t = raw();
    t.cc[ControlChar::Min as usize] = min;
    t.cc[ControlChar::Time as usize] = time;
    model(t)
}

#[test]
fn min_zero_waits_time_for_the_first_byte() {
    let mut m = timed(0, 5);
    let mut chunk = [0; 8];
    let mut request = ReadRequest::new(&m.tty, 8, 1000);
    let wait = ReadStep::Wait { deadline: Some(1000 + 5 * TENTH) };
    assert_eq!(request.step(&mut m.tty, &mut chunk, 1000), wait);
    assert_eq!(request.step(&mut m.tty, &mut chunk, 1000 + 5 * TENTH), ReadStep::Done);
    assert_eq!(request.copied(), 0);

    let mut request = ReadRequest::new(&m.tty, 8, 0);
    m.type_in(b"ab");
    assert_eq!(request.step(&mut m.tty, &mut chunk, 1), ReadStep::Copied(2));
    assert_eq!(request.step(&mut m.tty, &mut chunk, 1), ReadStep::Done);
}

#[test]
fn min_and_time_bound_the_gap_between_bytes() {
    let mut m = timed(3, 2);
    let mut chunk = [0; 8];
    let mut request = ReadRequest::new(&m.tty, 8, 0);
    assert_eq!(request.step(&mut m.tty, &mut chunk, 99 * TENTH), ReadStep::Wait { deadline: None });
    m.type_in(b"a");
    assert_eq!(request.step(&mut m.tty, &mut chunk, 100 * TENTH), ReadStep::Copied(1));
    let wait = ReadStep::Wait { deadline: Some(102 * TENTH) };
    assert_eq!(request.step(&mut m.tty, &mut chunk, 101 * TENTH), wait);
    m.type_in(b"b");
    assert_eq!(request.step(&mut m.tty, &mut chunk, 101 * TENTH), ReadStep::Copied(1));
    assert_eq!(request.step(&mut m.tty, &mut chunk, 103 * TENTH), ReadStep::Done);
    assert_eq!(request.copied(), 2);
}

#[test]
fn min_alone_waits_for_as_much_but_no_more_than_asked() {
    let mut m = timed(5, 0);
    let mut chunk = [0; 8];
    m.type_in(b"abcd");
    assert!(!m.tty.poll_readable());
    let mut request = ReadRequest::new(&m.tty, 3, 0);
    assert_eq!(request.step(&mut m.tty, &mut chunk, 0), ReadStep::Copied(3));
    assert_eq!(request.step(&mut m.tty, &mut chunk, 0), ReadStep::Done);
    m.type_in(b"efgh");
    assert!(m.tty.poll_readable());
    let mut request = ReadRequest::new(&m.tty, 8, 0);
    assert_eq!(request.step(&mut m.tty, &mut chunk, 0), ReadStep::Copied(5));
    assert_eq!(request.step(&mut m.tty, &mut chunk, 0), ReadStep::Done);
}

#[test]
fn hang_up_ends_a_read_and_restarts_output() {
    let mut m = Model::new();
    let mut request = ReadRequest::new(&m.tty, 8, 0);
    m.type_in(b"abc\x13");
    assert!(m.tty.is_stopped());
    let count = m.tty.hang_ups();
    let events = m.tty.hang_up(Termios::default(), &mut m.out);
    assert!(events.contains(Events::HANG_UP | Events::READABLE | Events::WRITABLE));
    assert_eq!(request.step(&mut m.tty, &mut [0; 8], 0), ReadStep::Done);
    assert_ne!(m.tty.hang_ups(), count);
    assert!(!m.tty.is_stopped());
    m.type_in(b"\n");
    assert_eq!(m.read(9), Some(b"\n".to_vec()));
}

#[test]
fn signal_characters_raise_signals_and_flush() {
    for (byte, signal) in [(3, Events::SIG_INT), (0x1c, Events::SIG_QUIT), (0x1a, Events::SIG_TSTP)] {
        let mut m = Model::new();
        m.type_in(b"a line\n");
        let received = m.tty.input(&[byte], &mut m.out);
        assert!(received.events.contains(signal | Events::INPUT_FLUSHED | Events::OUTPUT_FLUSHED));
        assert_eq!(m.tty.inq(), 0);
    }
}

#[test]
fn faults_follow_the_flags() {
    let fault = |on: &[InputFlags], what| {
        let mut t = raw();
        for &flag in on {
            t.iflag |= flag;
        }
        let mut m = model(t);
        let events = m.tty.input_fault(what, &mut m.out);
        (m.read(9), events)
    };
    let bytes = |list: &[u8]| Some(list.to_vec());
    assert_eq!(fault(&[], LineFault::Break).0, bytes(&[0]));
    assert_eq!(fault(&[InputFlags::IGNBRK, InputFlags::BRKINT], LineFault::Break).0, None);
    let (read, events) = fault(&[InputFlags::BRKINT], LineFault::Break);
    assert_eq!((read, events.contains(Events::SIG_INT)), (None, true));
    assert_eq!(fault(&[InputFlags::PARMRK], LineFault::Break).0, bytes(&[0xff, 0, 0]));
    assert_eq!(fault(&[], LineFault::Parity(b'x')).0, bytes(b"x"));
    assert_eq!(fault(&[InputFlags::INPCK], LineFault::Parity(b'x')).0, bytes(&[0]));
    assert_eq!(fault(&[InputFlags::INPCK, InputFlags::IGNPAR], LineFault::Parity(b'x')).0, None);
    let marked = fault(&[InputFlags::INPCK, InputFlags::PARMRK], LineFault::Parity(b'x')).0;
    assert_eq!(marked, bytes(&[0xff, 0, b'x']));
    assert_eq!(fault(&[], LineFault::Overrun).0, None);
}

#[test]
fn raw_input_is_refused_when_full_and_taken_again() {
    let mut m = model(raw());
    let received = m.tty.input(&[b'x'; 5000], &mut m.out);
    assert_eq!(received.taken, INPUT_CAPACITY - 1);
    assert_eq!(m.tty.input_room(), 0);
    assert_eq!(m.read(10).map(|b| b.len()), Some(10));
    assert_eq!(m.tty.input_room(), 10);
    assert_eq!(m.tty.input(&[b'x'; 5000], &mut m.out).taken, 10);
}

#[test]
fn unread_lines_hold_input_back() {
    let mut m = Model::new();
    let received = m.tty.input(&b"line\n".repeat(1000), &mut m.out);
    assert_eq!(received.taken, INPUT_CAPACITY - 1);
    assert_eq!(m.read(100), Some(b"line\n".to_vec()));
    assert_eq!(m.tty.input_room(), 5);
}

#[test]
fn imaxbel_rings_for_a_full_line() {
    let mut m = model(with(&[I(InputFlags::IMAXBEL)], &[]));
    assert_eq!(m.tty.input(&[b'x'; 4095], &mut m.out).taken, 4095);
    m.screen();
    assert_eq!(m.tty.input(b"yz\x7f\n", &mut m.out).taken, 4);
    assert_eq!(m.screen(), b"\x07\x07\x08 \x08\r\n");
    let line = m.read(5000).unwrap();
    assert_eq!((line.len(), &line[4093..]), (4095, &b"x\n"[..]));
}

#[test]
fn output_stops_where_there_is_no_room() {
    let mut tty = LineDiscipline::new(Termios::pty()).unwrap();
    let mut out = Ring::new(4).unwrap();
    assert_eq!(tty.write(b"abc\ndef", &mut out), 3, "the newline needs two places");
    assert_eq!(out.front(), b"abc");
    assert!(tty.writable(&out));
    out.consume(3);
    assert_eq!(tty.write(b"\ndef", &mut out), 3);
}

#[test]
fn echo_waits_for_room_and_goes_before_output() {
    let mut tty = LineDiscipline::new(Termios::pty()).unwrap();
    let mut out = Ring::new(2).unwrap();
    tty.input(b"abc", &mut out);
    assert_eq!(tty.echo_pending(), 1);
    assert_eq!(tty.write(b"x", &mut out), 0);
    out.consume(2);
    assert_eq!(tty.write(b"xy", &mut out), 1);
    let mut got = [0; 2];
    out.pop(&mut got);
    assert_eq!(&got, b"cx");
}

#[test]
fn a_program_that_stopped_output_must_restart_it() {
    let mut m = Model::new();
    assert_eq!(m.tty.flow(FlowAction::StopOutput, &mut m.out), Events::STOPPED);
    m.type_in(b"\x11");
    assert!(m.tty.is_stopped());
    assert_eq!(m.tty.write(b"x", &mut m.out), 0);
    assert!(m.tty.flow(FlowAction::StartOutput, &mut m.out).contains(Events::STARTED | Events::WRITABLE));
    assert_eq!(m.tty.write(b"x", &mut m.out), 1);
    m.screen();
    m.tty.flow(FlowAction::SendStop, &mut m.out);
    m.tty.flow(FlowAction::SendStart, &mut m.out);
    assert_eq!(m.screen(), b"\x13\x11");
    assert!(FlowAction::from_arg(4).is_err() && FlushQueue::from_arg(u64::MAX).is_err());
}

#[test]
fn flushes_drop_what_they_name() {
    let mut m = Model::new();
    m.type_in(b"line\nhalf");
    assert!(m.tty.flush(FlushQueue::Output, &mut m.out).contains(Events::OUTPUT_FLUSHED));
    assert!(m.screen().is_empty());
    assert_eq!(m.tty.inq(), 5);
    assert!(m.tty.flush(FlushQueue::Input, &mut m.out).contains(Events::INPUT_FLUSHED));
    m.type_in(b"\n");
    assert_eq!(m.read(9), Some(b"\n".to_vec()));
}

#[test]
fn a_flush_spares_what_the_master_has() {
    let mut out = PtyOutput::new(8192).unwrap();
    out.push(&[b'x'; 6000]);
    out.flush();
    assert_eq!(out.len(), PtyOutput::DELIVERED);
}

#[test]
fn packet_mode_reports_news_once() {
    let mut m = Model::new();
    let mut packet = PacketMode::default();
    let stop = m.tty.input(b"\x13", &mut m.out).events;
    assert_eq!(packet.note(stop, &m.tty), Events::empty(), "off");
    packet.set(true);
    assert_eq!(packet.take(), None);
    let start = m.tty.input(b"\x11", &mut m.out).events;
    assert_eq!(packet.note(start, &m.tty), Events::MASTER_STATUS);
    assert_eq!(packet.take(), Some(PacketStatus::START.bits()));
    assert_eq!(packet.take(), None);
    let interrupt = m.tty.input(b"\x03", &mut m.out).events;
    packet.note(interrupt, &m.tty);
    assert_eq!(packet.take(), Some((PacketStatus::FLUSHREAD | PacketStatus::FLUSHWRITE).bits()));
    packet.note_termios(&Termios::pty(), &raw());
    assert_eq!(packet.take(), Some(PacketStatus::NOSTOP.bits()));
    packet.note_termios(&raw(), &Termios::pty());
    assert_eq!(packet.take(), Some(PacketStatus::DOSTOP.bits()));
}

#[test]
fn job_control_stops_the_background_only() {
    let front = JobContext { controlling: true, foreground: true, signal_ignored: false, orphaned: false };
    let back = JobContext { foreground: false, ..front };
    let eio = JobAction::Fail(abi::Errno::EIO);
    assert_eq!(background_access(true, front), JobAction::Proceed);
    assert_eq!(background_access(true, back), JobAction::Signal);
    assert_eq!(background_access(true, JobContext { controlling: false, ..back }), JobAction::Proceed);
    assert_eq!(background_access(true, JobContext { orphaned: true, ..back }), eio);
    assert_eq!(background_access(true, JobContext { signal_ignored: true, ..back }), eio);
    assert_eq!(background_access(false, JobContext { signal_ignored: true, ..back }), JobAction::Proceed);
}

#[test]
fn settings_have_linux_layout() {
    let t = Termios::default();
    let bytes = t.to_termios2();
    assert_eq!(bytes.len(), 44);
    assert_eq!(bytes[..16], [0, 5, 0, 0, 5, 0, 0, 0, 0xbf, 4, 0, 0, 0x3b, 0x8a, 0, 0]);
    assert_eq!(bytes[17..34], [3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0]);
    assert_eq!(bytes[36..], [0, 0x96, 0, 0, 0, 0x96, 0, 0]);
    let mut fast = t.to_termios();
    fast[8..12].copy_from_slice(&(0x1002u32 | 0x30).to_le_bytes());
    assert_eq!(t.with_termios(&fast).ospeed, 115_200);
    let mut odd = bytes;
    odd[8..12].copy_from_slice(&(0x1000u32 | 0x30).to_le_bytes());
    odd[40..].copy_from_slice(&12345u32.to_le_bytes());
    let odd = t.with_termios2(&odd);
    assert_eq!((odd.ispeed, odd.ospeed), (12345, 12345));
    assert_eq!(odd.with_termios(&odd.to_termios()), odd);
    assert_eq!(t.with_termio(&t.to_termio()), t);
    let size = Winsize { rows: 24, cols: 80, xpixel: 1, ypixel: 2 };
    assert_eq!(Winsize::from_bytes(size.to_bytes()), size);
    assert!(Winsize::default().set(size));
}

#[test]
fn exclusive_mode_refuses_opens() {
    let mut mode = ExclusiveMode::default();
    assert!(mode.check_open(false).is_ok());
    mode.set(true);
    assert_eq!(mode.check_open(false), Err(abi::Errno::EBUSY));
    assert!(mode.check_open(true).is_ok());
}

fn any_termios() -> impl Strategy<Value = Termios> {
    any::<([u32; 4], [u8; NCCS])>().prop_map(|([i, o, c, l], cc)| {
        let mut bytes = [0; TERMIOS_SIZE];
        for (slot, word) in bytes.chunks_exact_mut(4).zip([i, o, c, l]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes[17..].copy_from_slice(&cc);
        Termios::default().with_termios(&bytes)
    })
}

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..300),
        1 => (any::<u8>(), 3000usize..6000).prop_map(|(byte, n)| vec![byte; n]),
    ]
}

#[derive(Clone, Debug)]
enum Act {
    Set(Termios),
    Input(Vec<u8>),
    Fault(u8, u8),
    Write(Vec<u8>),
    Read(usize),
    Flush(u64),
    Flow(u64),
    Drain(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => any_termios().prop_map(Act::Set),
        6 => some_bytes().prop_map(Act::Input),
        2 => any::<(u8, u8)>().prop_map(|(a, b)| Act::Fault(a, b)),
        3 => some_bytes().prop_map(Act::Write),
        4 => (0usize..5000).prop_map(Act::Read),
        1 => (0u64..4).prop_map(Act::Flush),
        1 => (0u64..5).prop_map(Act::Flow),
        3 => (0usize..600).prop_map(Act::Drain),
    ]
}

/// Does `act`; a write or input may take less than offered, never more than there is room for.
fn perform(m: &mut Model, act: Act) {
    match act {
        Act::Set(t) => m.set(&t),
        Act::Input(bytes) => {
            let sure = m.tty.input_room().min(bytes.len());
            let taken = m.tty.input(&bytes, &mut m.out).taken;
            assert!(taken >= sure.min(1) && taken <= bytes.len());
        }
        Act::Fault(kind, byte) => {
            let fault = match kind % 3 {
                0 => LineFault::Break,
                1 => LineFault::Parity(byte),
                _ => LineFault::Overrun,
            };
            m.tty.input_fault(fault, &mut m.out);
        }
        Act::Write(bytes) => assert!(m.tty.write(&bytes, &mut m.out) <= bytes.len()),
        Act::Read(n) => {
            let inq = m.tty.inq();
            let got = m.read(n).map_or(0, |bytes| bytes.len());
            assert!(got <= n.min(inq));
        }
        Act::Flush(arg) => {
            if let Ok(queue) = FlushQueue::from_arg(arg) {
                m.tty.flush(queue, &mut m.out);
            }
        }
        Act::Flow(arg) => {
            if let Ok(action) = FlowAction::from_arg(arg) {
                m.tty.flow(action, &mut m.out);
            }
        }
        Act::Drain(n) => {
            m.out.consume(n);
            m.tty.flush_echo(&mut m.out);
        }
    }
    assert!(m.tty.input_held() <= INPUT_CAPACITY);
    assert!(m.tty.inq() <= m.tty.input_held());
    assert!(m.tty.is_canonical() || m.tty.inq() == m.tty.input_held());
}

/// Reads without blocking until nothing comes; ends of file count for nothing.
fn drain(m: &mut Model) -> Vec<u8> {
    let mut all = Vec::new();
    while m.tty.input_available() {
        all.extend(m.read(97).unwrap_or_default());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics_and_bounds_hold(acts in proptest::collection::vec(act(), 1..40)) {
        let mut m = Model { out: Ring::new(500).unwrap(), ..Model::new() };
        for act in acts {
            perform(&mut m, act);
        }
        drain(&mut m);
    }

    #[test]
    fn raw_mode_passes_every_byte(
        pieces in proptest::collection::vec((some_bytes(), 1usize..6000), 1..12),
        canonical_between in any::<bool>(),
    ) {
        let mut m = model(raw());
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for (bytes, reads) in pieces {
            let taken = m.tty.input(&bytes, &mut m.out).taken;
            sent.extend_from_slice(&bytes[..taken]);
            if canonical_between {
                m.set(&Termios::pty());
                m.set(&raw());
            }
            got.extend(m.read(reads).unwrap_or_default());
        }
        got.extend(drain(&mut m));
        prop_assert_eq!(sent, got);
    }

    #[test]
    fn what_was_raw_is_one_line_then(bytes in proptest::collection::vec(any::<u8>(), 1..4095)) {
        let mut m = model(raw());
        m.type_in(&bytes);
        m.set(&Termios::pty());
        prop_assert_eq!(m.tty.inq(), bytes.len());
        prop_assert_eq!(m.read(5000), Some(bytes));
        prop_assert!(!m.tty.input_available());
    }

    #[test]
    fn plain_lines_arrive_whole(lines in proptest::collection::vec("[ -~]{0,60}", 1..30)) {
        let mut m = Model::new();
        for line in &lines {
            m.type_in(format!("{line}\r").as_bytes());
        }
        for line in &lines {
            prop_assert_eq!(m.read(4096), Some(format!("{line}\n").into_bytes()));
        }
    }

    #[test]
    fn output_in_pieces_equals_output_at_once(termios in any_termios(), bytes in some_bytes(), room in 8usize..40) {
        let mut whole = model(termios);
        whole.write(&bytes);
        let mut out = Ring::new(room).unwrap();
        let mut tty = LineDiscipline::new(termios).unwrap();
        let (mut sent, mut taken) = (Vec::new(), 0);
        while taken < bytes.len() {
            taken += tty.write(&bytes[taken..], &mut out);
            let mut piece = vec![0; out.len()];
            out.pop(&mut piece);
            sent.extend(piece);
        }
        prop_assert_eq!(sent, whole.screen());
    }
}
