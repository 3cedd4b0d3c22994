//! Datagrams.

use super::{Faults, Pair, ip};
use crate::udp::{Endpoint, Queue};
use abi::Errno;
use std::net::IpAddr;
use std::sync::Arc;

fn endpoint(p: &Pair, i: usize, local: (IpAddr, u16), remote: Option<(IpAddr, u16)>) -> Arc<Endpoint> {
    let queue = Arc::new(Queue::new(200_000));
    let e = Arc::new(Endpoint { local, remote, v6only: false, bound: 0, queue });
    p.stacks[i].udp.insert(e.clone());
    e
}

fn send(p: &Pair, from: (IpAddr, u16), to: (IpAddr, u16), data: &[u8]) {
    let hop = p.stacks[0].config().route(to.0, 0).unwrap();
    p.stacks[0].udp_send(&hop, from, to, data, 64, 0).unwrap();
    p.run(5);
}

#[test]
fn datagrams_of_all_sizes_arrive_whole() {
    let p = Pair::new(1, Faults::default());
    let a = (ip("10.0.0.1"), 1000);
    let b = (ip("10.0.0.2"), 53);
    let e = endpoint(&p, 1, (ip("0.0.0.0"), 53), None);
    for len in [0, 1, 1472, 1473, 40_000, 65_507] {
        let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
        send(&p, a, b, &data);
        let d = e.queue.pop(false).unwrap();
        assert!(d.data == data && d.from == a && d.to == b.0, "{len}");
    }
    let hop = p.stacks[0].config().route(b.0, 0).unwrap();
    assert_eq!(p.stacks[0].udp_send(&hop, a, b, &vec![0; 65_508], 64, 0), Err(Errno::EMSGSIZE));
}

#[test]
fn a_full_queue_drops_and_counts() {
    let p = Pair::new(2, Faults::default());
    let e = endpoint(&p, 1, (ip("0.0.0.0"), 53), None);
    for _ in 0..400 {
        send(&p, (ip("10.0.0.1"), 1), (ip("10.0.0.2"), 53), &[0; 1000]);
    }
    assert!(e.queue.drops() > 200 && e.queue.len() <= 200_000);
}

#[test]
fn a_closed_port_refuses_the_connected() {
    let p = Pair::new(3, Faults::default());
    let a = (ip("10.0.0.1"), 1000);
    let e = endpoint(&p, 0, a, Some((ip("10.0.0.2"), 9)));
    send(&p, a, (ip("10.0.0.2"), 9), b"x");
    assert_eq!(e.queue.pop(false).err(), Some(Errno::ECONNREFUSED));
    assert_eq!(e.queue.pop(false).err(), Some(Errno::EAGAIN));
}

#[test]
fn the_most_specific_endpoint_gets_it() {
    let p = Pair::new(4, Faults::default());
    let from = (ip("10.0.0.1"), 1000);
    let to = (ip("10.0.0.2"), 53);
    let any = endpoint(&p, 1, (ip("0.0.0.0"), 53), None);
    let bound = endpoint(&p, 1, to, None);
    let connected = endpoint(&p, 1, to, Some(from));
    for (n, e) in [connected, bound, any].iter().enumerate() {
        send(&p, from, to, &[n as u8]);
        assert_eq!(e.queue.pop(false).unwrap().data, [n as u8]);
        p.stacks[1].udp.remove(e);
    }
}

#[test]
fn groups_are_reached_in_so_many_hops() {
    use crate::socket::{self, Caller, Cred, SendMsg, SockAddr, family, kind};
    const WHO: Caller = Caller { cred: Cred { pid: 1, uid: 0, gid: 0 }, privileged: true, admin: true, nonblock: true };
    const SIX: u32 = 41;
    const FOUR: u32 = 0;
    let p = Pair::new(1, Faults::default());
    p.run(1500);
    let e = endpoint(&p, 1, (ip("::"), 5353), None);
    let s = socket::create(&p.stacks[0], family::INET6, kind::DGRAM, 0, &WHO).unwrap();
    let arrives = |to: &str| {
        let mut m = SendMsg { to: Some(SockAddr::Inet(ip(to), 5353, 0)), ..SendMsg::default() };
        s.send(&mut platform::SliceSource::new(b"x"), &mut m, &WHO).unwrap();
        p.run(5);
        let d = e.queue.pop(false).unwrap();
        (d.ttl, d.tos)
    };
    assert_eq!((arrives("ff02::fb"), arrives("::ffff:224.0.0.251"), arrives("fd00::2")), ((1, 0), (1, 0), (64, 0)));
    let number = |n: i32| n.to_ne_bytes();
    s.set_option(SIX, 18, &number(9), &WHO).unwrap();
    s.set_option(FOUR, 33, &number(7), &WHO).unwrap();
    s.set_option(SIX, 67, &number(0x20), &WHO).unwrap();
    assert_eq!((arrives("ff02::fb"), arrives("::ffff:224.0.0.251"), arrives("fd00::2")), ((9, 32), (7, 32), (64, 32)));
    assert_eq!(s.set_option(SIX, 18, &number(256), &WHO), Err(Errno::EINVAL));
    assert_eq!(s.set_option(SIX, 18, &number(-2), &WHO), Err(Errno::EINVAL));
    s.set_option(SIX, 18, &number(-1), &WHO).unwrap();
    assert_eq!((arrives("ff02::fb").0, s.option(SIX, 18).unwrap()), (1, number(1).to_vec()));
    // An interface that does not exist is not taken.
    s.set_option(SIX, 17, &number(99), &WHO).unwrap();
    let mut m = SendMsg { to: Some(SockAddr::Inet(ip("ff02::fb"), 5353, 0)), ..SendMsg::default() };
    assert_eq!(s.send(&mut platform::SliceSource::new(b"x"), &mut m, &WHO), Err(Errno::ENODEV));
}
