//! Duplicate address detection.

use super::{Faults, Pair, ip};
use crate::dad::Dad;

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
