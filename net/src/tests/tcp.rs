//! TCP between two stacks.

use super::{Faults, Pair, ip};
use crate::flow::{Flow, State};
use crate::listen::{Listener, first_number, seed_for};
use crate::packet::{self, SYN, Tuple};
use crate::ports::{Lease, Want};
use crate::tcp::{KeepAlive, TcpOptions, bare};
use crate::{Limits, Stack};
use abi::Errno;
use proptest::prelude::*;
use std::sync::Arc;

fn want(addr: &str, port: u16) -> Want {
    Want { proto: packet::TCP, addr: ip(addr), port, v6only: false, reuse_addr: false, reuse_port: false, uid: 0 }
}

fn listen(s: &Stack, addr: &str, port: u16, backlog: usize) -> (Arc<Listener>, Lease) {
    listen_with(s, addr, port, backlog, &TcpOptions::default())
}

pub fn listen_with(s: &Stack, addr: &str, port: u16, backlog: usize, options: &TcpOptions) -> (Arc<Listener>, Lease) {
    let lease = s.bind(want(addr, port)).unwrap();
    let l = s.listen(ip(addr), &lease, false, backlog, options).unwrap();
    (l, lease)
}

/// A connection from stack 0 to stack 1.
fn connected(p: &Pair, options: &TcpOptions) -> (Arc<Flow>, Arc<Flow>) {
    let (l, lease) = listen(&p.stacks[1], "0.0.0.0", 80, 8);
    let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), options).unwrap();
    assert!(p.run_until(100, || l.queued().0 > 0 && c.status().state == State::Established));
    let s = l.accept().unwrap();
    p.stacks[1].tcp.remove_listener(&l);
    drop(lease);
    (c, s)
}

/// Sends `len` bytes from `a` to `b`, and leaves the connection open.
fn transfer_open(p: &Pair, a: (&Stack, &Flow), b: (&Stack, &Flow), len: usize) {
    let data: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
    let (mut sent, mut got) = (0, 0);
    let mut buf = vec![0; 32 << 10];
    let all = p.run_until(600, || {
        while sent < len {
            let Ok(n) = a.1.send_of(a.0, &data[sent..(sent + 32768).min(len)], (len - sent).min(65536), false) else {
                break;
            };
            sent += n;
        }
        while let Ok(n) = b.1.recv(b.0, &mut buf, false) {
            assert_eq!(buf[..n], data[got..got + n], "at {got}");
            got += n;
        }
        got == len && a.1.status().unsent == 0
    });
    assert!(all, "{got} of {len}, {:?} {:?}", a.1.status(), b.1.status());
}

/// Sends `len` bytes from `a` to `b` and checks them; who gets an error says so.
fn transfer(p: &Pair, a: (&Stack, &Flow), b: (&Stack, &Flow), len: usize, seconds: u64) -> Result<(), Errno> {
    let byte = |i: usize| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0];
    let data: Vec<u8> = (0..len).map(byte).collect();
    let (mut sent, mut got) = (0, 0);
    let mut failed = None;
    let mut buf = vec![0; 10_000];
    let mut ended = false;
    p.run_until(seconds, || {
        while sent < len {
            match a.1.send(a.0, &data[sent..(sent + 7000).min(len)]) {
                Ok(n) => sent += n,
                Err(Errno::EAGAIN) => break,
                Err(e) => {
                    failed = Some(e);
                    return true;
                }
            }
            if sent == len {
                a.1.shutdown_write(a.0).unwrap();
            }
        }
        loop {
            match b.1.recv(b.0, &mut buf, false) {
                Ok(0) => {
                    ended = true;
                    return true;
                }
                Ok(n) => {
                    assert_eq!(buf[..n], data[got..got + n], "at {got}");
                    got += n;
                }
                Err(Errno::EAGAIN) => return false,
                Err(e) => {
                    failed = Some(e);
                    return true;
                }
            }
        }
    });
    if let Some(e) = failed {
        return Err(e);
    }
    assert!(
        ended && got == len,
        "neither all bytes nor an error: {got} of {len}, {:?} {:?}",
        a.1.status(),
        b.1.status()
    );
    Ok(())
}

#[test]
fn first_numbers_are_those_of_smoltcp() {
    for seed in [0, 1, 0xdead_beef_0bad_cafe, u64::MAX] {
        let p = Pair::new(seed, Faults::default());
        // The handshake succeeds only if the listener's answer had smoltcp's number.
        let _ = connected(&p, &TcpOptions::default());
        let first = first_number(seed);
        assert_eq!(first_number(seed_for(first)), first);
    }
    for first in [0, 1, 0x1234_5678, 0xffff_0000, u32::MAX] {
        assert_eq!(first_number(seed_for(first)), first);
    }
}

#[test]
fn bytes_arrive_over_v4_and_v6_and_loopback() {
    let p = Pair::new(1, Faults::default());
    let (c, s) = connected(&p, &TcpOptions::default());
    transfer(&p, (&p.stacks[0], &c), (&p.stacks[1], &s), 300_000, 100).unwrap();
    transfer(&p, (&p.stacks[1], &s), (&p.stacks[0], &c), 300_000, 100).unwrap();
    for (s, addr, at) in [(1, "fd00::2", 0), (0, "::1", 0), (0, "127.0.0.1", 0), (0, "10.0.0.1", 0)] {
        let (l, _lease) = listen(&p.stacks[s], if addr.contains(':') { "::" } else { "0.0.0.0" }, 81, 8);
        let c = p.stacks[at].connect(None, (ip(addr), 81), &TcpOptions::default()).unwrap();
        assert!(p.run_until(10, || l.queued().0 > 0), "{addr}");
        let f = l.accept().unwrap();
        transfer(&p, (&p.stacks[at], &c), (&p.stacks[s], &f), 200_000, 100).unwrap();
        l.close(&p.stacks[s]);
    }
}

#[test]
fn rings_grow_with_what_goes_through_them() {
    let p = Pair::new(21, Faults { delay_us: 200, ..Faults::default() });
    let (c, s) = connected(&p, &TcpOptions::default());
    assert!(c.status().capacity <= 4096 && c.memory() < 48 << 10);
    // Both ways at once, so that nothing stands still for long.
    for _ in 0..3 {
        transfer_open(&p, (&p.stacks[0], &c), (&p.stacks[1], &s), 1_000_000);
        transfer_open(&p, (&p.stacks[1], &s), (&p.stacks[0], &c), 1_000_000);
    }
    for (f, stack) in [(&c, &p.stacks[0]), (&s, &p.stacks[1])] {
        assert!(f.status().capacity >= 256 << 10 && f.memory() >= 512 << 10, "{} {}", f.status().capacity, f.memory());
        assert_eq!(stack.buffered(), f.memory());
    }
    transfer(&p, (&p.stacks[0], &c), (&p.stacks[1], &s), 300_000, 100).unwrap();
    drop((c, s));
    // Sizes that were asked for stay.
    let options = TcpOptions { rcvbuf: Some(8192), sndbuf: Some(8192), ..TcpOptions::default() };
    let (c, s) = connected(&p, &options);
    let memory = c.memory();
    transfer_open(&p, (&p.stacks[1], &s), (&p.stacks[0], &c), 300_000);
    transfer_open(&p, (&p.stacks[0], &c), (&p.stacks[1], &s), 300_000);
    assert_eq!((c.status().capacity, c.memory()), (8192, memory));
}

#[test]
fn a_cork_holds_partial_segments_back() {
    let p = Pair::new(22, Faults { delay_us: 100, ..Faults::default() });
    let cork = TcpOptions { cork: true, nodelay: true, ..TcpOptions::default() };
    let (c, s) = connected(&p, &cork);
    let got = || s.status().readable;
    let send = |n: usize, more| assert_eq!(c.send_of(&p.stacks[0], &[3; 3000][..n], n, more), Ok(n));
    send(100, false);
    p.run(100);
    assert_eq!((got(), c.status().unsent), (0, 100));
    // Not longer than 200 ms.
    p.run(110);
    assert_eq!(got(), 100);
    // Whole segments go.
    send(2000, false);
    p.run(50);
    assert_eq!(got(), 1560);
    // Pulled.
    c.set_options(&p.stacks[0], &TcpOptions { nodelay: true, ..TcpOptions::default() });
    p.run(10);
    assert_eq!(got(), 2100);
    send(10, true);
    p.run(10);
    assert_eq!(got(), 2100);
    send(10, false);
    p.run(10);
    assert_eq!(got(), 2120);
    send(10, true);
    c.shutdown_write(&p.stacks[0]).unwrap();
    p.run(10);
    assert_eq!(got(), 2130);
    // A ring smaller than a segment does not wait for one.
    let (l, _lease) = listen(&p.stacks[0], "127.0.0.1", 81, 8);
    let c = p.stacks[0].connect(None, (ip("127.0.0.1"), 81), &cork).unwrap();
    p.run(10);
    let s = l.accept().unwrap();
    transfer(&p, (&p.stacks[0], &c), (&p.stacks[0], &s), 300_000, 10).unwrap();
}

#[test]
fn closing_ends_in_time_wait_and_then_nothing() {
    let p = Pair::new(2, Faults::default());
    let (c, s) = connected(&p, &TcpOptions::default());
    c.close(&p.stacks[0], false);
    p.run(10);
    assert_eq!(s.recv(&p.stacks[1], &mut [0; 4], false), Ok(0));
    s.close(&p.stacks[1], false);
    p.run(100);
    assert_eq!(p.stacks[0].tcp.counts(), (0, 1));
    assert_eq!(p.stacks[1].tcp.counts(), (0, 0));
    drop((c, s));
    assert_eq!(p.stacks[0].buffered(), 0);
    p.run(61_000);
    assert_eq!(p.stacks[0].tcp.counts(), (0, 0));
}

#[test]
fn half_close_lets_the_other_half_live() {
    let p = Pair::new(3, Faults::default());
    let (c, s) = connected(&p, &TcpOptions::default());
    c.shutdown_write(&p.stacks[0]).unwrap();
    p.run(50);
    assert_eq!(s.recv(&p.stacks[1], &mut [0; 4], false), Ok(0));
    transfer(&p, (&p.stacks[1], &s), (&p.stacks[0], &c), 100_000, 100).unwrap();
    assert_eq!(c.send(&p.stacks[0], b"x"), Err(Errno::EPIPE));
}

#[test]
fn nobody_listens_is_refused_and_nobody_there_times_out() {
    let p = Pair::new(4, Faults::default());
    let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 9), &TcpOptions::default()).unwrap();
    p.run(10);
    assert_eq!(c.take_error(), Some(Errno::ECONNREFUSED));
    let c = p.stacks[0].connect(None, (ip("10.0.0.77"), 9), &TcpOptions::default()).unwrap();
    p.run(5_000);
    assert_eq!(c.take_error(), Some(Errno::EHOSTUNREACH));
    assert!(matches!(
        p.stacks[0].connect(None, (ip("192.168.7.7"), 9), &TcpOptions::default()),
        Err(Errno::ENETUNREACH)
    ));
    let (_l, _lease) = listen(&p.stacks[1], "0.0.0.0", 80, 8);
    // The neighbour is known; then the link dies.
    let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &TcpOptions::default()).unwrap();
    p.run(10);
    c.close(&p.stacks[0], true);
    p.world.faults.lock().unwrap().loss = 1000;
    let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &TcpOptions::default()).unwrap();
    assert!(p.run_until(200, || c.status().state == State::Closed));
    assert!(matches!(c.take_error(), Some(Errno::ETIMEDOUT | Errno::EHOSTUNREACH)));
}

#[test]
fn unread_bytes_or_a_reset_are_told_by_rst() {
    let p = Pair::new(5, Faults::default());
    let (c, s) = connected(&p, &TcpOptions::default());
    s.send(&p.stacks[1], b"never read").unwrap();
    p.run(50);
    c.close(&p.stacks[0], false);
    p.run(50);
    assert_eq!(s.recv(&p.stacks[1], &mut [0; 4], false), Err(Errno::ECONNRESET));
    assert_eq!(s.recv(&p.stacks[1], &mut [0; 4], false), Ok(0));
    assert_eq!(s.send(&p.stacks[1], b"x"), Err(Errno::EPIPE));
}

#[test]
fn keepalive_finds_a_dead_peer_and_lets_a_live_one_be() {
    let p = Pair::new(6, Faults::default());
    let sec = 1_000_000_000;
    let keepalive = Some(KeepAlive { idle: 10 * sec, interval: 2 * sec, count: 3 });
    let (c, _s) = connected(&p, &TcpOptions { keepalive, ..TcpOptions::default() });
    p.run(120_000);
    assert_eq!(c.status().state, State::Established);
    p.world.faults.lock().unwrap().loss = 1000;
    p.run(40_000);
    assert_eq!(c.take_error(), Some(Errno::ETIMEDOUT));
}

#[test]
fn backlog_bounds_what_waits() {
    let p = Pair::new(7, Faults::default());
    let (l, _lease) = listen(&p.stacks[1], "0.0.0.0", 80, 4);
    let all: Vec<_> =
        (0..10).map(|_| p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &TcpOptions::default()).unwrap()).collect();
    p.run(500);
    assert_eq!(l.queued().0, 4);
    // Whoever is accepted makes room; those who wait try again.
    let mut accepted = Vec::new();
    assert!(p.run_until(120, || {
        accepted.extend(l.accept());
        accepted.len() == 10
    }));
    p.run(1000);
    assert!(all.iter().all(|c| c.status().state == State::Established));
}

#[test]
fn syn_flood_costs_bounded_memory_and_others_still_connect() {
    let p = Pair::new(8, Faults::default());
    let (l, _lease) = listen(&p.stacks[1], "0.0.0.0", 80, 16);
    // The neighbour is known before.
    p.stacks[0].connect(None, (ip("10.0.0.2"), 9), &TcpOptions::default()).unwrap();
    p.run(10);
    for i in 0..5000u32 {
        let from = (std::net::Ipv4Addr::from(0x0a00_0064 + i % 100).into(), 1000 + (i / 100) as u16);
        let t = Tuple { local: from, remote: (ip("10.0.0.2"), 80) };
        let syn = bare(&t, i.wrapping_mul(77), 0, SYN, 1000, &[]).unwrap();
        let _ = p.stacks[0].output(syn);
        p.run(0);
    }
    assert_eq!(l.queued(), (0, 16));
    let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &TcpOptions::default()).unwrap();
    assert!(p.run_until(10, || l.queued().0 == 1));
    let s = l.accept().unwrap();
    assert!(p.stacks[1].counters.cookies_ok.load(std::sync::atomic::Ordering::Relaxed) == 1);
    transfer(&p, (&p.stacks[0], &c), (&p.stacks[1], &s), 100_000, 100).unwrap();
}

#[test]
fn a_forged_cookie_is_refused() {
    let p = Pair::new(9, Faults::default());
    let (l, _lease) = listen(&p.stacks[1], "0.0.0.0", 80, 16);
    for ack in 0..2000u32 {
        let t = Tuple { local: (ip("10.0.0.1"), 4000), remote: (ip("10.0.0.2"), 80) };
        let _ = p.stacks[0].output(bare(&t, 5, ack << 20, packet::ACK, 1000, &[]).unwrap());
        p.run(1);
    }
    assert_eq!(l.queued(), (0, 0));
}

#[test]
fn ports_are_exclusive_unless_shared() {
    let p = Pair::new(10, Faults::default());
    let s = &p.stacks[0];
    let a = s.bind(want("0.0.0.0", 80)).unwrap();
    assert_eq!(s.bind(want("10.0.0.1", 80)).err(), Some(Errno::EADDRINUSE));
    assert_eq!(s.bind(want("::", 80)).err(), Some(Errno::EADDRINUSE));
    assert!(s.bind(Want { v6only: true, ..want("::", 80) }).is_ok());
    drop(a);
    let share = Want { reuse_port: true, ..want("0.0.0.0", 80) };
    let _b = s.bind(share).unwrap();
    let _c = s.bind(share).unwrap();
    assert!(s.bind(Want { uid: 7, ..share }).is_err());
    let any = s.bind(want("0.0.0.0", 0)).unwrap();
    assert!((32768..=60999).contains(&any.port()));
}

#[test]
fn a_handshake_without_memory_is_finished_later() {
    use std::sync::atomic::Ordering::Relaxed;
    let p = Pair::new(10, Faults::default());
    let (l, _lease) = listen(&p.stacks[1], "0.0.0.0", 80, 16);
    let all = Limits::default().buffers;
    p.stacks[1].buffered.fetch_add(all, Relaxed);
    let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &TcpOptions::default()).unwrap();
    p.run(500);
    assert_eq!((l.queued(), p.stacks[1].counters.listen_overflows.load(Relaxed)), ((0, 1), 1));
    p.stacks[1].buffered.fetch_sub(all, Relaxed);
    assert!(p.run_until(10, || l.queued().0 == 1));
    let s = l.accept().unwrap();
    transfer(&p, (&p.stacks[0], &c), (&p.stacks[1], &s), 10_000, 100).unwrap();
}

#[test]
fn buffers_count_against_a_limit() {
    let limits = Limits { buffers: 100_000, ..Limits::default() };
    let p = Pair::with_limits(11, Faults::default(), limits);
    let (_l, _lease) = listen(&p.stacks[1], "0.0.0.0", 80, 100);
    let options = TcpOptions { rcvbuf: Some(30_000), sndbuf: Some(30_000), ..TcpOptions::default() };
    let _a = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &options).unwrap();
    assert!(matches!(p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &options), Err(Errno::ENOBUFS)));
}

#[test]
fn a_narrow_path_is_learnt() {
    let p = Pair::new(12, Faults::default());
    let (c, s) = connected(&p, &TcpOptions::default());
    // A router says that it takes 600 bytes.
    let quote = bare(&c.tuple, 0, 0, packet::ACK, 0, &[]).unwrap();
    let router = (ip("10.0.0.2"), ip("10.0.0.1"));
    let (mut m, at) = packet::build_ip(router.0, router.1, packet::ICMP, 64, 0, 8 + 40).unwrap();
    let b = &mut m.bytes_mut()[at..];
    (b[0], b[1], b[6], b[7]) = (3, 4, 2, 88);
    b[8..].copy_from_slice(quote.bytes());
    let sum = !packet::fold(packet::sum(b, 0));
    b[2..4].copy_from_slice(&sum.to_be_bytes());
    p.stacks[1].output(m).unwrap();
    p.run(10);
    transfer(&p, (&p.stacks[0], &c), (&p.stacks[1], &s), 100_000, 100).unwrap();
}

proptest! {
    #![proptest_config(super::config(24))]
    /// Every byte arrives once, in order, or the connection says why.
    #[test]
    fn bytes_survive_a_bad_link(
        seed: u64, loss in 0u64..120, duplicate in 0u64..100, corrupt in 0u64..60, reorder in 0u64..200,
        delay_us in 0u64..20_000, len in 1usize..200_000,
    ) {
        let p = Pair::new(seed, Faults::default());
        let (c, s) = connected(&p, &TcpOptions::default());
        *p.world.faults.lock().unwrap() = Faults { loss, duplicate, corrupt, reorder, delay_us, ..Faults::default() };
        if let Err(e) = transfer(&p, (&p.stacks[0], &c), (&p.stacks[1], &s), len, 4000) {
            prop_assert!(matches!(e, Errno::ETIMEDOUT | Errno::ECONNRESET | Errno::EPIPE), "{e:?}");
        }
    }

    /// Whatever is lost, doubled or late around the moments when the rings are replaced.
    #[test]
    fn rings_grow_on_a_bad_link(
        seed: u64, loss in 0u64..30, duplicate in 0u64..50, reorder in 0u64..100, delay_us in 0u64..2000,
    ) {
        let p = Pair::new(seed, Faults::default());
        let (c, s) = connected(&p, &TcpOptions::default());
        *p.world.faults.lock().unwrap() = Faults { loss, duplicate, reorder, delay_us, ..Faults::default() };
        for _ in 0..4 {
            transfer_open(&p, (&p.stacks[0], &c), (&p.stacks[1], &s), 150_000);
            transfer_open(&p, (&p.stacks[1], &s), (&p.stacks[0], &c), 150_000);
        }
        prop_assert!(c.memory() > 128 << 10 && s.memory() > 128 << 10, "{} {}", c.memory(), s.memory());
    }

    #[test]
    fn handshakes_survive_a_bad_link(seed: u64, loss in 0u64..300, reorder in 0u64..300, duplicate in 0u64..300) {
        let p = Pair::new(seed, Faults { loss, reorder, duplicate, delay_us: 1000, ..Faults::default() });
        let (l, _lease) = listen(&p.stacks[1], "0.0.0.0", 80, 8);
        let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &TcpOptions::default()).unwrap();
        let done = || c.status().state != State::SynSent;
        prop_assert!(p.run_until(200, done));
        if c.status().state == State::Established {
            let accepted = p.run_until(200, || {
                let _ = c.send(&p.stacks[0], b"hello");
                l.queued().0 == 1
            });
            prop_assert!(accepted);
        } else {
            prop_assert!(c.take_error().is_some());
        }
    }
}

/// Both ends retransmit at once, having heard all of the other's bytes but none of its last acknowledgements: each must take
/// the other's acknowledgements although its retransmission has begun anew far behind them.
#[test]
fn both_ends_retransmitting_hear_each_other() {
    let p = Pair::new(1, Faults { delay_us: 300, ..Faults::default() });
    let (c, s) = connected(&p, &TcpOptions::default());
    // Congestion windows grow, so that what follows is sent in one go and no segment of it carries news.
    for (a, b, from, to) in [(0, 1, &c, &s), (1, 0, &s, &c)] {
        for _ in 0..10 {
            assert_eq!(from.send(&p.stacks[a], &[1; 5840]), Ok(5840));
            p.run(100);
            assert_eq!(to.recv(&p.stacks[b], &mut [0; 5840], false), Ok(5840));
        }
    }
    p.world.faults.lock().unwrap().no_acks = true;
    let data = [7u8; 5840];
    c.send(&p.stacks[0], &data).unwrap();
    s.send(&p.stacks[1], &data).unwrap();
    p.run(3500);
    assert_eq!((c.status().readable, s.status().readable), (5840, 5840));
    assert_eq!((c.status().unsent, s.status().unsent), (5840, 5840));
    p.world.faults.lock().unwrap().no_acks = false;
    p.run(60_000);
    assert_eq!((c.status().unsent, s.status().unsent), (0, 0));
}
