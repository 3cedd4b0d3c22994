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
    p.stacks[0].udp_send(&hop, from, to, data, 64).unwrap();
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
    assert_eq!(p.stacks[0].udp_send(&hop, a, b, &vec![0; 65_508], 64), Err(Errno::EMSGSIZE));
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
