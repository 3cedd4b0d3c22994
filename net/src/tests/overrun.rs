//! A peer that sends more than it was told there is room for.

use super::{Faults, Pair, ip};
use crate::flow::{Flow, State};
use crate::packet::{self, ACK, SYN, Tuple, be16};
use crate::tcp::{TcpOptions, bare};
use crate::{RxMeta, Stack};

const RING: usize = 65536;
/// Maximum segment size, and window scaling by 7.
const OPTIONS: [u8; 8] = [2, 4, 5, 180, 3, 3, 7, 1];

/// A frame for stack 0 with a segment.
fn frame(t: &Tuple, seq: u32, ack: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let options: &[u8] = if flags & SYN != 0 { &OPTIONS } else { &[] };
    let head = bare(t, seq, ack, flags, 1000, options).unwrap();
    let segment = [&head.bytes()[20..], data].concat();
    let (mut p, at) = packet::build_ip(t.local.0, t.remote.0, packet::TCP, 64, 0, segment.len()).unwrap();
    p.bytes_mut()[at..].copy_from_slice(&segment);
    let mut all = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    all.extend(p.bytes());
    all
}

fn put(p: &Pair, frames: &[Vec<u8>]) {
    let all: Vec<_> = frames.iter().map(|f| (&f[..], RxMeta { csum_ok: true })).collect();
    p.stacks[0].receive_all(&p.ifs[0], &all);
}

/// The next segment that stack 0 sends, which stack 1 does not get: its header.
fn sent(p: &Pair) -> packet::Tcp {
    for _ in 0..100 {
        let frame = p.world.wire.lock().unwrap().pop_first();
        match frame {
            Some((_, (1, f))) if be16(&f, 12) == Some(0x800) && f[23] == packet::TCP => {
                return packet::parse_tcp(&f[34..]).unwrap();
            }
            Some((_, (to, f))) => p.stacks[to].receive(&p.ifs[to], &f, RxMeta::default()),
            None => assert!(p.step(u64::MAX)),
        }
    }
    panic!("nothing was sent");
}

fn options() -> TcpOptions {
    TcpOptions { rcvbuf: Some(RING), ..TcpOptions::default() }
}

/// Where a peer might put 1000 bytes that it may not send, counted from the ring's beginning.
const BEYOND: [usize; 5] = [RING - 999, RING, RING + 1000, 2 * RING - 1200, 4 * RING];

fn byte(i: usize) -> u8 {
    (i * 7 + i / 251) as u8
}

/// All that fits the ring, to be followed by what does not.
fn within(t: &Tuple, first: u32, ack: u32) -> Vec<Vec<u8>> {
    let data: Vec<u8> = (0..RING).map(byte).collect();
    let piece = |(i, d): (usize, &[u8])| frame(t, first.wrapping_add(i as u32 * 1024), ack, ACK, d);
    data.chunks(1024).enumerate().map(piece).collect()
}

fn reads_all(stack: &Stack, f: &Flow) {
    let mut got = vec![0; 2 * RING];
    let mut n = 0;
    while let Ok(more) = f.recv(stack, &mut got[n..], false) {
        n += more;
    }
    assert_eq!(n, RING);
    assert!(got[..n].iter().enumerate().all(|(i, b)| *b == byte(i)));
}

#[test]
fn an_outgoing_connection_takes_what_its_ring_holds() {
    for batched in [true, false] {
        for beyond in BEYOND {
            let p = Pair::new(1, Faults::default());
            let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &options()).unwrap();
            let syn = sent(&p);
            assert_eq!(syn.flags, SYN);
            let (t, isn, ack) = (c.tuple.flipped(), u32::MAX - 20_000, syn.seq.wrapping_add(1));
            let first = isn.wrapping_add(1);
            let late = frame(&t, first.wrapping_add(beyond as u32), ack, ACK, &[0xee; 1000]);
            let answer = frame(&t, isn, ack, SYN | ACK, &[]);
            let mut all = vec![answer, late.clone()];
            all.extend(within(&t, first, ack));
            all.extend([late.clone(), late]);
            if batched {
                put(&p, &all);
            } else {
                for f in all.chunks(1) {
                    put(&p, f);
                }
            }
            assert_eq!(c.status().state, State::Established);
            reads_all(&p.stacks[0], &c);
        }
    }
}

#[test]
fn an_accepted_connection_takes_what_its_ring_holds() {
    for batched in [true, false] {
        for beyond in BEYOND {
            let p = Pair::new(1, Faults::default());
            // Who is there is known before.
            p.stacks[1].connect(None, (ip("10.0.0.1"), 9), &options()).unwrap();
            p.run(10);
            let (l, _lease) = super::tcp::listen_with(&p.stacks[0], "0.0.0.0", 80, 8, &options());
            let t = Tuple { local: (ip("10.0.0.2"), 4000), remote: (ip("10.0.0.1"), 80) };
            let isn = 7_000_000;
            put(&p, &[frame(&t, isn, 0, SYN, &[])]);
            let answer = sent(&p);
            assert_eq!(answer.flags, SYN | ACK);
            let (first, ack) = (isn + 1, answer.seq.wrapping_add(1));
            let late = frame(&t, first.wrapping_add(beyond as u32), ack, ACK, &[0xee; 1000]);
            let mut all = vec![frame(&t, first, ack, ACK, &[]), late.clone()];
            all.extend(within(&t, first, ack));
            all.extend([late.clone(), late]);
            if batched {
                put(&p, &all);
            } else {
                for f in all.chunks(1) {
                    put(&p, f);
                }
            }
            reads_all(&p.stacks[0], &l.accept().unwrap());
        }
    }
}

/// Both began at the same time: the peer's SYN comes without an acknowledgement.
#[test]
fn a_simultaneous_open_knows_where_the_stream_begins() {
    let p = Pair::new(1, Faults::default());
    let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &options()).unwrap();
    let syn = sent(&p);
    let (t, isn, ack) = (c.tuple.flipped(), 3_000_000_000, syn.seq.wrapping_add(1));
    put(&p, &[frame(&t, isn, 0, SYN, &[])]);
    let first = isn + 1;
    let late = frame(&t, first + RING as u32, ack, ACK, &[0xee; 1000]);
    let mut all = vec![frame(&t, first, ack, ACK, &[]), late.clone()];
    all.extend(within(&t, first, ack));
    put(&p, &all);
    assert_eq!(c.status().state, State::Established);
    reads_all(&p.stacks[0], &c);
}
