//! Many connections.

use super::{Faults, Pair, ip};
use crate::Limits;
use crate::packet;
use crate::ports::Want;
use crate::tcp::TcpOptions;

/// Ten thousand connections: all are made, each carries a byte, and the number of steps of the world that a byte costs
/// is the same as with one connection (time is printed, never judged).
#[test]
fn ten_thousand_connections() {
    let p = Pair::with_limits(1, Faults::default(), Limits { buffers: 1 << 30, ..Limits::default() });
    let want = Want {
        proto: packet::TCP,
        addr: ip("0.0.0.0"),
        port: 80,
        v6only: false,
        reuse_addr: false,
        reuse_port: false,
        uid: 0,
    };
    let lease = p.stacks[1].bind(want).unwrap();
    let options = TcpOptions { rcvbuf: Some(4096), sndbuf: Some(4096), nodelay: true, ..TcpOptions::default() };
    let l = p.stacks[1].listen(ip("0.0.0.0"), &lease, false, 512, &options).unwrap();
    let mut pairs = Vec::new();
    let mut cost = Vec::new();
    for n in 0..10_000usize {
        let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &options).unwrap();
        p.run(0);
        pairs.push((c, l.accept().unwrap()));
        if n == 0 || n == 9_999 {
            let mut start = std::time::Instant::now();
            for i in 0..2000 {
                if i == 1000 {
                    // The first round has touched the memory.
                    start = std::time::Instant::now();
                }
                let (c, s) = &pairs[i % 1000 * 7919 % pairs.len()];
                assert_eq!(c.send(&p.stacks[0], b"x"), Ok(1));
                p.run(0);
                assert_eq!(s.recv(&p.stacks[1], &mut [0; 2], false), Ok(1));
            }
            cost.push(start.elapsed() / 1000);
        }
    }
    println!("a byte one way: {:?} with 1 connection, {:?} with 10000", cost[0], cost[1]);
    assert_eq!(p.stacks[1].tcp.counts().0, 10_000);
    drop(l);
    for (c, s) in pairs {
        c.close(&p.stacks[0], true);
        s.close(&p.stacks[1], true);
    }
    p.run(1000);
    assert_eq!(p.stacks[1].tcp.counts().0, 0);
    assert_eq!(p.stacks[0].buffered() + p.stacks[1].buffered(), 0);
}
