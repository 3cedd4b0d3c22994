//! Duplicate address detection.

use super::{Faults, Pair, ip};
use crate::dad::Dad;
use crate::flow::State;
use crate::tcp::TcpOptions;
use abi::Errno;

const ADDR: &str = "fd77::9";

fn state(p: &Pair, side: usize, addr: &str) -> Option<Dad> {
    let config = p.stacks[side].config();
    config.interface(p.ifs[side].index).unwrap().dad_of(ip(addr))
}

fn add(p: &Pair, side: usize) {
    p.stacks[side].add_address(p.ifs[side].index, ip(ADDR), 64).unwrap();
}

#[test]
fn a_free_address_is_ours_after_a_second() {
    let p = Pair::new(1, Faults::default());
    // Those that were there when the interface came up are checked as well.
    let own = "fe80::ff:fe00:1";
    assert!(matches!(state(&p, 0, own), Some(Dad::Tentative(_))));
    add(&p, 0);
    assert!(matches!(state(&p, 0, ADDR), Some(Dad::Tentative(_))));
    assert!(!p.stacks[0].config().is_local(ip(ADDR)));
    assert_ne!(p.stacks[0].config().route(ip("fd77::1"), 0).map(|h| h.source), Ok(ip(ADDR)));
    p.run(900);
    assert!(!p.stacks[0].config().is_local(ip(ADDR)));
    p.run(200);
    assert_eq!((state(&p, 0, ADDR), state(&p, 0, own)), (None, None));
    assert!(p.stacks[0].config().is_local(ip(ADDR)));
    assert_eq!(p.stacks[0].config().route(ip("fd77::1"), 0).unwrap().source, ip(ADDR));
}

#[test]
fn an_address_that_another_has_is_not_used() {
    let p = Pair::new(1, Faults::default());
    add(&p, 0);
    p.run(1500);
    add(&p, 1);
    p.run(1500);
    assert_eq!((state(&p, 0, ADDR), state(&p, 1, ADDR)), (None, Some(Dad::Failed)));
    assert!(!p.stacks[1].config().is_local(ip(ADDR)));
    // Taken away and given again when the other is gone, it is free.
    p.stacks[0].remove_address(p.ifs[0].index, ip(ADDR)).unwrap();
    p.stacks[1].remove_address(p.ifs[1].index, ip(ADDR)).unwrap();
    add(&p, 1);
    p.run(1500);
    assert!(p.stacks[1].config().is_local(ip(ADDR)));
}

#[test]
fn of_two_that_want_it_at_the_same_time_neither_gets_it() {
    let p = Pair::new(1, Faults::default());
    add(&p, 0);
    add(&p, 1);
    p.run(1500);
    assert_eq!((state(&p, 0, ADDR), state(&p, 1, ADDR)), (Some(Dad::Failed), Some(Dad::Failed)));
}

#[test]
fn a_question_while_tentative_is_not_answered() {
    let p = Pair::new(1, Faults::default());
    p.run(1500);
    p.stacks[1].add_address_checked(p.ifs[1].index, ip("fd77::1"), 64, false).unwrap();
    add(&p, 0);
    // An ordinary solicitation neither gets an answer nor ends the check.
    let (mut echo, at) = crate::packet::build_ip(ip("fd77::1"), ip(ADDR), crate::packet::ICMPV6, 64, 0, 8).unwrap();
    echo.bytes_mut()[at] = 128;
    p.stacks[1].output(echo).unwrap();
    p.run(500);
    assert!(p.stacks[1].neighbours.list(p.world.now()).iter().all(|n| n.addr != ip(ADDR) || n.mac.is_none()));
    p.run(1000);
    assert!(p.stacks[0].config().is_local(ip(ADDR)));
}

#[test]
fn nothing_is_sent_from_no_address() {
    let p = Pair::new(1, Faults::default());
    p.stacks[0].remove_address(p.ifs[0].index, ip("fd00::1")).unwrap();
    let options = TcpOptions { bound: p.ifs[0].index, ..TcpOptions::default() };
    let connect = || p.stacks[0].connect(None, (ip("fe80::ff:fe00:2"), 80), &options);
    assert_eq!(p.stacks[0].config().route(ip("ff02::1"), 0).err(), Some(Errno::EADDRNOTAVAIL));
    assert!(matches!(connect(), Err(Errno::EADDRNOTAVAIL)));
    p.run(1100);
    assert_eq!(p.stacks[0].config().route(ip("ff02::1"), 0).unwrap().source, ip("fe80::ff:fe00:1"));
    let c = connect().unwrap();
    p.run(100);
    assert_eq!(c.take_error(), Some(Errno::ECONNREFUSED));
    // Of IPv4 something may be sent before there is an address.
    p.stacks[0].remove_address(p.ifs[0].index, ip("10.0.0.1")).unwrap();
    assert_eq!(p.stacks[0].config().route(ip("255.255.255.255"), 0).unwrap().source, ip("0.0.0.0"));
}

#[test]
fn a_connection_waits_while_its_address_is_checked_again() {
    let p = Pair::new(1, Faults::default());
    add(&p, 0);
    p.stacks[1].add_address_checked(p.ifs[1].index, ip("fd77::1"), 64, false).unwrap();
    p.run(1500);
    let (l, _lease) = super::tcp::listen_with(&p.stacks[1], "::", 80, 8, &TcpOptions::default());
    let c = p.stacks[0].connect(None, (ip("fd77::1"), 80), &TcpOptions::default()).unwrap();
    assert_eq!(c.tuple.local.0, ip(ADDR));
    p.run(100);
    let s = l.accept().unwrap();
    p.stacks[0].set_up(p.ifs[0].index, false).unwrap();
    p.stacks[0].set_up(p.ifs[0].index, true).unwrap();
    c.send(&p.stacks[0], b"early").unwrap();
    p.run(900);
    assert_eq!((c.status().state, s.status().readable), (State::Established, 0));
    assert!(p.run_until(30, || s.status().readable == 5));
    // Another has it now.
    p.stacks[0].set_up(p.ifs[0].index, false).unwrap();
    p.stacks[1].add_address_checked(p.ifs[1].index, ip(ADDR), 64, false).unwrap();
    p.stacks[0].set_up(p.ifs[0].index, true).unwrap();
    p.run(1500);
    assert_eq!(state(&p, 0, ADDR), Some(Dad::Failed));
    let before = p.world.sent();
    c.send(&p.stacks[0], b"never").unwrap();
    p.run(20_000);
    assert!(p.world.sent() < before + 10, "{}", p.world.sent() - before);
    assert_eq!(s.status().readable, 5);
}

#[test]
fn routers_are_asked_for_again_after_down_and_up() {
    use crate::packet;
    let p = Pair::new(1, Faults::default());
    p.run(1500);
    let (router, all) = (ip("fe80::99"), ip("ff02::1"));
    let (mut m, at) = packet::build_ip(router, all, packet::ICMPV6, 255, 0, 16).unwrap();
    let b = &mut m.bytes_mut()[at..];
    (b[0], b[6]) = (134, 7);
    let sum = packet::checksum(router, all, packet::ICMPV6, b);
    b[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x86, 0xdd];
    frame.extend(m.bytes());
    let has_route = || p.stacks[0].config().routes.iter().any(|r| r.gateway == Some(router));
    let advertise = || p.stacks[0].receive(&p.ifs[0], &frame, crate::RxMeta::default());
    advertise();
    assert!(has_route());
    p.run(10_000);
    p.stacks[0].set_up(p.ifs[0].index, false).unwrap();
    assert!(!has_route());
    p.stacks[0].set_up(p.ifs[0].index, true).unwrap();
    let asked = || p.world.wire.lock().unwrap().values().any(|(to, f)| *to == 1 && f.get(54) == Some(&133));
    assert!(p.run_until(3, asked));
    advertise();
    assert!(has_route());
}
