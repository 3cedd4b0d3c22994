//! Foreign bytes at every layer: nothing panics, and the stack still works afterwards.

use super::{Faults, Pair, ip};
use crate::RxMeta;
use crate::packet;
use crate::tcp::{TcpOptions, bare};
use proptest::prelude::*;

fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    f.extend(ethertype.to_be_bytes());
    f.extend(payload);
    f
}

/// A valid IP packet around arbitrary transport bytes.
fn wrap(v6: bool, proto: u8, t: &[u8], fix_sum: bool) -> Vec<u8> {
    let (a, b) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
    let Some((mut p, at)) = packet::build_ip(ip(a), ip(b), proto, 255, 0, t.len()) else { return Vec::new() };
    p.bytes_mut()[at..].copy_from_slice(t);
    if let Some(o) = packet::csum_offset(proto).filter(|o| fix_sum && t.len() >= o + 2) {
        let s = &mut p.bytes_mut()[at..];
        s[o..o + 2].fill(0);
        let sum = if proto == packet::ICMP {
            !packet::fold(packet::sum(s, 0))
        } else {
            packet::checksum(ip(a), ip(b), proto, s)
        };
        s[o..o + 2].copy_from_slice(&sum.to_be_bytes());
    }
    p.bytes().to_vec()
}

proptest! {
    #![proptest_config(super::config(400))]
    #[test]
    fn random_frames(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20)) {
        let p = Pair::new(1, Faults::default());
        for f in &frames {
            p.stacks[1].receive(&p.ifs[1], f, RxMeta::default());
            for t in [0x0800, 0x0806, 0x86dd] {
                p.stacks[1].receive(&p.ifs[1], &frame(t, f), RxMeta { csum_ok: true });
            }
        }
        p.run(100_000);
    }

    #[test]
    fn random_transports(parts in prop::collection::vec((any::<bool>(), prop::sample::select(vec![1u8, 6, 17, 58, 0, 43, 44, 60, 2]),
        prop::collection::vec(any::<u8>(), 0..120)), 1..20))
    {
        let p = Pair::new(2, Faults::default());
        for (v6, proto, t) in &parts {
            p.stacks[1].receive(&p.ifs[1], &frame(if *v6 { 0x86dd } else { 0x0800 }, &wrap(*v6, *proto, t, true)), RxMeta::default());
        }
        p.run(100_000);
    }

    /// Random segments into a listener and a live connection, with the right tuple.
    #[test]
    fn random_segments(segs in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u8>(), any::<u16>(), any::<bool>(),
        prop::collection::vec(any::<u8>(), 0..10)), 1..40))
    {
        let p = Pair::new(3, Faults::default());
        let lease = p.stacks[1].bind(crate::ports::Want { proto: 6, addr: ip("0.0.0.0"), port: 80, v6only: false,
            reuse_addr: false, reuse_port: false, uid: 0 }).unwrap();
        let l = p.stacks[1].listen(ip("0.0.0.0"), &lease, false, 4, &TcpOptions::default()).unwrap();
        let c = p.stacks[0].connect(None, (ip("10.0.0.2"), 80), &TcpOptions::default()).unwrap();
        p.run(20);
        let _s = l.accept().unwrap();
        for (seq, ack, flags, window, live, options) in segs {
            let mut t = c.tuple;
            if !live {
                t.local.1 ^= 1 + (seq as u16 & 7);
            }
            let mut o = options;
            o.resize(o.len().next_multiple_of(4), 0);
            let _ = p.stacks[0].output(bare(&t, seq, ack, flags, window, &o).unwrap());
            p.run(1);
        }
        p.run(100_000);
    }

    /// One bit of each good frame flipped.
    #[test]
    fn flipped_bits(at in 0usize..400, len in 0usize..40) {
        let p = Pair::new(4, Faults::default());
        for proto in [1u8, 6, 17, 58] {
            let mut f = frame(0x0800, &wrap(false, proto, &vec![8; 20 + len], true));
            let i = at % (f.len() * 8);
            f[i / 8] ^= 1 << (i % 8);
            p.stacks[1].receive(&p.ifs[1], &f, RxMeta::default());
            let cut = at % f.len();
            p.stacks[1].receive(&p.ifs[1], &f[..cut], RxMeta::default());
        }
        p.run(10);
    }
}
