//! Conversations whose path turns narrow in their middle.

use super::{Faults, Pair, ip};
use crate::flow::Flow;
use crate::packet::{self, Packet, put16, put32};
use crate::ports::Want;
use crate::tcp::TcpOptions;
use abi::Errno;
use proptest::prelude::*;
use std::sync::Arc;

/// What a router answers that cannot pass `frame` on (RFC 1191, RFC 4443).
pub fn too_large(frame: &[u8], mtu: usize) -> Vec<u8> {
    let p = &frame[14..];
    let ip = packet::parse_ip(p).unwrap();
    let quote = &p[..p.len().min(if ip.dst.is_ipv4() { 28 } else { 1232 })];
    let proto = if ip.dst.is_ipv4() { packet::ICMP } else { packet::ICMPV6 };
    let (mut m, at): (Packet, usize) = packet::build_ip(ip.dst, ip.src, proto, 64, 0, 8 + quote.len()).unwrap();
    let b = &mut m.bytes_mut()[at..];
    b[8..].copy_from_slice(quote);
    let sum = if ip.dst.is_ipv4() {
        (b[0], b[1]) = (3, 4);
        put16(b, 6, mtu as u16);
        !packet::fold(packet::sum(b, 0))
    } else {
        b[0] = 2;
        put32(b, 4, mtu as u32);
        packet::checksum(ip.dst, ip.src, proto, b)
    };
    put16(b, 2, sum);
    let mut out = frame[6..12].to_vec();
    out.extend(&frame[..6]);
    out.extend(&frame[12..14]);
    out.extend(m.bytes());
    out
}

fn byte(i: usize) -> u8 {
    (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]
}

/// A server that gives back what it got, 16 KiB at a time, and reads nothing before it has; and a client that sends `len`
/// bytes as fast as it can and compares.
struct Echo {
    client: Arc<Flow>,
    server: Option<Arc<Flow>>,
    len: usize,
    sent: usize,
    got: usize,
    pending: Vec<u8>,
    closed: bool,
    done: bool,
}

impl Echo {
    fn step(&mut self, p: &Pair) -> Result<(), Errno> {
        let mut buf = [0; 16384];
        let [a, b] = &p.stacks;
        while self.sent < self.len {
            let part: Vec<u8> = (self.sent..(self.sent + 16384).min(self.len)).map(byte).collect();
            match self.client.send(a, &part) {
                Ok(n) => self.sent += n,
                Err(Errno::EAGAIN) => break,
                Err(e) => return Err(e),
            }
            if self.sent == self.len {
                self.client.shutdown_write(a)?;
            }
        }
        while !self.done {
            match self.client.recv(a, &mut buf, false) {
                Ok(0) => self.done = true,
                Ok(n) => {
                    assert!(buf[..n].iter().enumerate().all(|(i, x)| *x == byte(self.got + i)), "at {}", self.got);
                    self.got += n;
                }
                Err(Errno::EAGAIN) => break,
                Err(e) => return Err(e),
            }
        }
        let Some(s) = self.server.clone() else { return Ok(()) };
        while !self.closed {
            if self.pending.is_empty() {
                match s.recv(b, &mut buf, false) {
                    Ok(0) => {
                        self.closed = true;
                        s.close(b, false);
                    }
                    Ok(n) => self.pending.extend(&buf[..n]),
                    Err(Errno::EAGAIN) => break,
                    Err(e) => return Err(e),
                }
            } else {
                match s.send(b, &self.pending) {
                    Ok(n) => drop(self.pending.drain(..n)),
                    Err(Errno::EAGAIN) => break,
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

/// Echoes of `len` bytes each over a path that takes only `mtu` bytes after `after` frames; how many seconds it took.
fn talk(seed: u64, faults: Faults, v6: bool, count: usize, len: usize, after: u64, mtu: usize) -> Result<u64, Errno> {
    let p = Pair::new(seed, Faults::default());
    let [any, to] = if v6 { ["::", "fd00::2"] } else { ["0.0.0.0", "10.0.0.2"] };
    let want = Want {
        proto: packet::TCP,
        addr: ip(any),
        port: 7,
        v6only: false,
        reuse_addr: false,
        reuse_port: false,
        uid: 0,
    };
    let lease = p.stacks[1].bind(want).unwrap();
    let l = p.stacks[1].listen(ip(any), &lease, false, 64, &TcpOptions::default()).unwrap();
    let mut all: Vec<Echo> = (0..count)
        .map(|_| {
            let client = p.stacks[0].connect(None, (ip(to), 7), &TcpOptions::default()).unwrap();
            Echo { client, server: None, len, sent: 0, got: 0, pending: Vec::new(), closed: false, done: false }
        })
        .collect();
    p.run(100);
    for e in &mut all {
        e.server = l.accept().ok();
        assert!(e.server.is_some());
    }
    // Pair them: the listener's order need not be the clients'.
    let mut servers: Vec<_> = all.iter_mut().filter_map(|e| e.server.take()).collect();
    for e in &mut all {
        let at = servers.iter().position(|s| s.tuple == e.client.tuple.flipped()).unwrap();
        e.server = Some(servers.remove(at));
    }
    *p.world.faults.lock().unwrap() = faults;
    let begin = p.world.now();
    let sent = p.world.sent();
    let mut failed = None;
    let finished = p.run_until(4000, || {
        if mtu > 0 && p.world.sent() >= sent + after {
            p.world.faults.lock().unwrap().narrow = mtu;
        }
        for e in &mut all {
            if let Err(x) = e.step(&p) {
                failed = Some(x);
                return true;
            }
        }
        all.iter().all(|e| e.done)
    });
    if let Some(e) = failed {
        return Err(e);
    }
    let stand: Vec<_> =
        all.iter().map(|e| (e.sent, e.got, e.client.status(), e.server.as_ref().unwrap().status())).collect();
    assert!(finished && all.iter().all(|e| e.got == len), "stands still: {stand:#?}");
    Ok((p.world.now() - begin) / 1_000_000_000)
}

proptest! {
    #![proptest_config(super::config(24))]
    /// Both directions are full when the path turns narrow: everything arrives all the same. (Of two ends that had filled
    /// each other's windows neither heard the other's acknowledgements.)
    #[test]
    fn a_path_that_turns_narrow_stops_nobody(
        seed: u64, v6: bool, loss in 0u64..60, reorder in 0u64..100, duplicate in 0u64..30, corrupt in 0u64..10,
        delay_us in 10u64..4000, after in 0u64..600,
    ) {
        let faults = Faults { loss, duplicate, corrupt, reorder, delay_us, ..Faults::default() };
        let took = talk(seed, faults, v6, 3, 200_000, after, if v6 { 1280 } else { 1000 });
        prop_assert!(took.is_ok_and(|t| t < 900), "{took:?}");
    }

    /// Nothing is lost but what was too large: what goes wrong is over with the first time-outs.
    #[test]
    fn a_narrow_path_alone_costs_little(seed: u64, v6: bool, delay_us in 10u64..4000, after in 0u64..600) {
        let faults = Faults { delay_us, ..Faults::default() };
        let took = talk(seed, faults, v6, 3, 200_000, after, if v6 { 1280 } else { 1000 });
        prop_assert!(took.is_ok_and(|t| t < 15), "{took:?}");
    }
}
