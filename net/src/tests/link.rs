//! Neighbours, echo, fragments.

use super::{Faults, Pair, ip};
use crate::packet::{self, Packet, put16};
use crate::raw::{Raw, Want};
use crate::udp::Queue;
use std::sync::Arc;

fn echo(p: &Pair, from: &str, to: &str, len: usize) -> bool {
    let v6 = to.contains(':');
    let queue = Arc::new(Queue::new(1 << 20));
    let raw = Arc::new(Raw { want: Want::Echo { v6, id: 77 }, remote: None, local: None, queue: queue.clone() });
    assert!(p.stacks[0].raw.insert(raw.clone()));
    let proto = if v6 { packet::ICMPV6 } else { packet::ICMP };
    let (mut m, at) = packet::build_ip(ip(from), ip(to), proto, 64, 0, 8 + len).unwrap();
    let b = &mut m.bytes_mut()[at..];
    b[0] = if v6 { 128 } else { 8 };
    put16(b, 4, 77);
    for (i, x) in b[8..].iter_mut().enumerate() {
        *x = i as u8;
    }
    let sum = if v6 { packet::checksum(ip(from), ip(to), proto, b) } else { !packet::fold(packet::sum(b, 0)) };
    put16(b, 2, sum);
    p.stacks[0].output(m).unwrap();
    p.run(10);
    p.stacks[0].raw.remove(&raw);
    queue
        .pop(false)
        .is_ok_and(|d| d.data.len() == 8 + len && d.data[8..].iter().enumerate().all(|(i, x)| *x == i as u8))
}

#[test]
fn echo_both_families_and_fragments() {
    let p = Pair::new(1, Faults::default());
    for len in [0, 56, 1472, 1473, 8000, 60_000] {
        assert!(echo(&p, "10.0.0.1", "10.0.0.2", len), "v4 {len}");
        assert!(echo(&p, "fd00::1", "fd00::2", len), "v6 {len}");
        assert!(echo(&p, "127.0.0.1", "127.0.0.1", len), "loopback {len}");
    }
    assert!(!echo(&p, "10.0.0.1", "10.0.0.99", 56));
}

#[test]
fn neighbours_are_learnt_by_asking_only() {
    let p = Pair::new(2, Faults::default());
    // Somebody announces a thousand addresses that nobody asked for.
    for i in 0..1000u32 {
        let mut a = Packet::new(28);
        let b = a.bytes_mut();
        b[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
        b[8] = 2;
        b[14..18].copy_from_slice(&(0x0a00_0000 + i).to_be_bytes());
        b[24..28].copy_from_slice(&[10, 0, 0, 9]);
        let mut frame = vec![0xff; 6];
        frame.extend([2, 9, 9, 9, 9, 9, 8, 6]);
        frame.extend(a.bytes());
        p.stacks[1].receive(&p.ifs[1], &frame, crate::RxMeta::default());
    }
    assert!(p.stacks[1].neighbours.list(0).is_empty());
    assert!(echo(&p, "10.0.0.1", "10.0.0.2", 1));
    assert_eq!(p.stacks[1].neighbours.list(0).len(), 1);
}

#[test]
fn a_burst_after_a_rest_does_not_forget_a_neighbour() {
    let p = Pair::new(3, Faults::default());
    let known = || p.stacks[0].neighbours.list(p.world.now())[0].mac.is_some();
    assert!(echo(&p, "10.0.0.1", "10.0.0.2", 1));
    p.run(120_000);
    p.world.faults.lock().unwrap().loss = 1000;
    for _ in 0..10 {
        assert!(!echo(&p, "10.0.0.1", "10.0.0.2", 1));
    }
    assert!(known());
    // Three requests, a second apart, are too many.
    for _ in 0..3 {
        p.run(1100);
        echo(&p, "10.0.0.1", "10.0.0.2", 1);
    }
    assert!(!known());
}
