//! rtnetlink: what programs see and change, and arbitrary bytes.

use super::{Faults, Pair, ip};
use crate::netlink::Netlink;
use crate::socket::{Caller, Cred, RecvMsg, SendMsg, Socket};
use abi::{Errno, Result};
use platform::{SliceSink, SliceSource};
use proptest::prelude::*;

const ROOT: Caller = Caller { cred: Cred { pid: 7, uid: 0, gid: 0 }, privileged: true, admin: true, nonblock: true };

fn message(kind: u16, flags: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut m = vec![0; 4];
    m.extend(kind.to_ne_bytes());
    m.extend((flags | 1).to_ne_bytes());
    m.extend(9u32.to_ne_bytes());
    m.extend([0; 4]);
    m.extend(fixed);
    for (kind, data) in attributes {
        m.extend((data.len() as u16 + 4).to_ne_bytes());
        m.extend(kind.to_ne_bytes());
        m.extend(*data);
        m.resize(m.len().next_multiple_of(4), 0);
    }
    let len = m.len() as u32;
    m[..4].copy_from_slice(&len.to_ne_bytes());
    m
}

fn recv(s: &Netlink) -> Result<Vec<u8>> {
    let mut b = vec![0; 8192];
    let n = s.recv(&mut SliceSink::new(&mut b), &mut RecvMsg::default(), &ROOT)?;
    b.truncate(n);
    Ok(b)
}

/// Sends a request; the code of its acknowledgement.
fn ask(s: &Netlink, who: &Caller, m: &[u8]) -> i32 {
    s.send(&mut SliceSource::new(m), &mut SendMsg::default(), who).unwrap();
    let a = recv(s).unwrap();
    assert_eq!((a[4], a[8]), (2, 9));
    i32::from_ne_bytes(a[16..20].try_into().unwrap())
}

#[test]
fn addresses_and_routes() {
    let p = Pair::new(1, Faults::default());
    let st = &p.stacks[0];
    let s = Netlink::new(st, 3);
    let index = p.ifs[0].index;
    let i = index.to_ne_bytes();
    let addr =
        |kind, flags: u16| message(kind, flags | 4, &[2, 24, 0, 0, i[0], i[1], i[2], i[3]], &[(2, &[10, 7, 0, 1])]);
    let user = Caller { admin: false, ..ROOT };
    assert_eq!(ask(&s, &user, &addr(20, 0x600)), -Errno::EPERM.raw());
    assert_eq!(ask(&s, &ROOT, &addr(20, 0x600)), 0);
    assert_eq!(ask(&s, &ROOT, &addr(20, 0x600)), -Errno::EEXIST.raw());
    assert!(st.config().is_local(ip("10.7.0.1")));
    let route = |kind, flags: u16| {
        message(kind, flags | 4, &[2, 16, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0], &[(1, &[10, 8, 0, 0]), (5, &[10, 7, 0, 9])])
    };
    assert_eq!(ask(&s, &ROOT, &route(24, 0x600)), 0);
    assert_eq!(ask(&s, &ROOT, &route(24, 0x600)), -Errno::EEXIST.raw());
    assert_eq!(st.config().route(ip("10.8.3.4"), 0).unwrap().next, ip("10.7.0.9"));
    assert_eq!(ask(&s, &ROOT, &route(25, 0)), 0);
    assert_eq!(ask(&s, &ROOT, &route(25, 0)), -Errno::ESRCH.raw());
    assert_eq!(ask(&s, &ROOT, &addr(21, 0)), 0);
    assert_eq!(ask(&s, &ROOT, &addr(21, 0)), -Errno::EADDRNOTAVAIL.raw());
    assert!(st.config().route(ip("10.7.0.9"), 0).is_err());

    // A dump: the interfaces, then the end.
    let dump = message(18, 0x300, &[0; 16], &[]);
    s.send(&mut SliceSource::new(&dump), &mut SendMsg::default(), &user).unwrap();
    let all = recv(&s).unwrap();
    let text = String::from_utf8_lossy(&all).into_owned();
    assert!(text.contains("lo\0") && text.contains("eth0\0"));
    let end = &all[all.len() - 20..];
    assert_eq!((end[0], end[4], end[6]), (20, 3, 2));
    assert_eq!(recv(&s), Err(Errno::EAGAIN));
}

#[test]
fn neighbours_by_hand() {
    let p = Pair::new(1, Faults::default());
    let s = Netlink::new(&p.stacks[0], 3);
    let i = p.ifs[0].index.to_ne_bytes();
    let fixed = [2, 0, 0, 0, i[0], i[1], i[2], i[3], 0x80, 0, 0, 0];
    let m = |kind, to: &[u8]| message(kind, 0x404, &fixed, &[(1, to), (2, &[2, 0, 0, 0, 0, 2])]);
    assert_eq!(ask(&s, &ROOT, &m(28, &[10, 0, 0, 2])), 0);
    assert_eq!(p.stacks[0].neighbours.list(0)[0].mac, Some([2, 0, 0, 0, 0, 2]));
    assert_eq!(ask(&s, &ROOT, &m(29, &[10, 0, 0, 2])), 0);
    assert_eq!(ask(&s, &ROOT, &m(29, &[10, 0, 0, 2])), -Errno::ENOENT.raw());
    assert_eq!(ask(&s, &ROOT, &m(28, &[10, 0])), -Errno::EINVAL.raw());
}

#[test]
fn groups_are_told_of_changes() {
    let p = Pair::new(1, Faults::default());
    let st = &p.stacks[0];
    let index = p.ifs[0].index;
    let (all, some) = (Netlink::new(st, 3), Netlink::new(st, 3));
    // Links, neighbours, and addresses and routes of both families; the other only joins IPv4's addresses, by number.
    all.bind(&crate::socket::SockAddr::Netlink(0, 0x555), &ROOT).unwrap();
    some.set_option(270, 1, &5u32.to_ne_bytes(), &ROOT).unwrap();
    assert_eq!(some.set_option(270, 1, &0u32.to_ne_bytes(), &ROOT), Err(Errno::EINVAL));
    let kinds = |s: &Netlink| {
        let mut seen = Vec::new();
        while let Ok(m) = recv(s) {
            seen.push((u16::from_ne_bytes([m[4], m[5]]), m[16]));
        }
        seen
    };
    st.add_address(index, ip("10.7.0.1"), 24).unwrap();
    assert_eq!(kinds(&all), [(20, 2), (24, 2)]);
    assert_eq!(kinds(&some), [(20, 2)]);
    st.remove_address(index, ip("10.7.0.1")).unwrap();
    assert_eq!(kinds(&all), [(21, 2), (25, 2)]);
    p.run(1500);
    // The link-local address turned out to be ours.
    assert_eq!(kinds(&all), [(20, 10)]);
    // Tentative first, with its route, and then ours.
    st.add_address(index, ip("fd07::1"), 64).unwrap();
    assert_eq!(kinds(&all), [(20, 10), (24, 10)]);
    p.run(1500);
    assert_eq!(kinds(&all), [(20, 10)]);
    let other = ip("10.0.0.2");
    st.set_neighbour_address(&p.ifs[0], other, [2, 0, 0, 0, 0, 9], true).unwrap();
    let told = recv(&all).unwrap();
    assert_eq!((told[4], told[24]), (28, 0x80), "permanent from the beginning");
    st.remove_neighbour(index, other).unwrap();
    assert_eq!(kinds(&all), [(29, 2)]);
    // The link went: neighbours that were not set for ever go with it, and one that never answered goes by itself.
    st.set_neighbour_address(&p.ifs[0], other, [2, 0, 0, 0, 0, 9], false).unwrap();
    st.link_changed(index, false);
    assert_eq!(kinds(&all), [(28, 2), (29, 2), (16, 0)]);
    st.link_changed(index, true);
    kinds(&all);
    st.connect(None, (ip("10.0.0.77"), 9), &crate::tcp::TcpOptions::default()).unwrap();
    p.run(5000);
    assert_eq!(kinds(&all).iter().filter(|k| k.0 == 29).count(), 1);
    st.set_up(index, false).unwrap();
    assert_eq!(kinds(&all).first(), Some(&(16, 0)));
    some.set_option(270, 2, &5u32.to_ne_bytes(), &ROOT).unwrap();
    kinds(&some);
    st.add_address(index, ip("10.7.0.1"), 24).unwrap();
    assert_eq!(kinds(&some), []);
}

proptest! {
    #![proptest_config(super::config(300))]
    #[test]
    fn arbitrary_requests(all in prop::collection::vec((16u16..40, any::<u16>(), prop::collection::vec(any::<u8>(), 0..60)), 1..20)) {
        let p = Pair::new(1, Faults::default());
        let s = Netlink::new(&p.stacks[0], 3);
        for (kind, flags, bytes) in &all {
            let m = message(*kind, *flags, bytes, &[]);
            let _ = s.send(&mut SliceSource::new(&m), &mut SendMsg::default(), &ROOT);
            let cut = &m[..m.len() - m.len() / 3];
            let _ = s.send(&mut SliceSource::new(cut), &mut SendMsg::default(), &ROOT);
            while recv(&s).is_ok() {}
        }
        p.run(100);
    }
}
