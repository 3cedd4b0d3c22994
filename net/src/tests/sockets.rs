//! Sockets as programs use them, over loopback in real time.

use crate::socket::{self, Caller, Cred, RecvMsg, SendMsg, SockAddr, Socket, family, kind, msg, ready};
use crate::unix::Unix;
use crate::{Limits, PlatformEnv, Stack};
use abi::{Errno, Result};
use platform::{SliceSink, SliceSource};
use std::sync::Arc;

const WHO: Caller = Caller { cred: Cred { pid: 7, uid: 1, gid: 2 }, privileged: true, admin: true, nonblock: false };
const NOW: Caller = Caller { nonblock: true, ..WHO };

fn stack() -> Arc<Stack> {
    Stack::new(Arc::new(PlatformEnv(|_| ())), Limits::default())
}
fn send(s: &dyn Socket, b: &[u8]) -> Result<usize> {
    s.send(&mut SliceSource::new(b), &mut SendMsg::default(), &NOW)
}
fn recv(s: &dyn Socket, n: usize) -> Result<Vec<u8>> {
    let mut b = vec![0; n];
    let got = s.recv(&mut SliceSink::new(&mut b), &mut RecvMsg::default(), &NOW)?;
    b.truncate(got);
    Ok(b)
}
fn at(addr: &str, port: u16) -> SockAddr {
    SockAddr::Inet(addr.parse().unwrap(), port, 0)
}

#[test]
fn tcp_over_loopback() {
    let st = stack();
    for (f, addr) in [(family::INET, "127.0.0.1"), (family::INET6, "::1"), (family::INET6, "::ffff:127.0.0.1")] {
        let l = socket::create(&st, f, kind::STREAM, 0, &WHO).unwrap();
        l.bind(&SockAddr::any(f), &WHO).unwrap();
        l.listen(5, &WHO).unwrap();
        let SockAddr::Inet(_, port, _) = l.local() else { panic!() };
        assert_eq!((l.ready(), l.accept(&NOW).err()), (0, Some(Errno::EAGAIN)));
        let c = socket::create(&st, f, kind::STREAM, 0, &WHO).unwrap();
        assert_eq!(send(&*c, b"x"), Err(Errno::EPIPE));
        assert_eq!(c.peer(), Err(Errno::ENOTCONN));
        assert_eq!(c.connect(&at(addr, port), &NOW), Err(Errno::EINPROGRESS));
        assert_eq!(c.connect(&at(addr, port), &NOW), Ok(()));
        assert_eq!(c.connect(&at(addr, port), &NOW), Err(Errno::EISCONN));
        assert_eq!(l.ready(), ready::IN);
        let s = l.accept(&NOW).unwrap();
        assert_eq!((s.peer(), c.peer().is_ok()), (Ok(c.local()), true));
        assert_eq!(recv(&*s, 10), Err(Errno::EAGAIN));
        assert_eq!(send(&*c, b"hello"), Ok(5));
        assert_eq!(s.ready() & (ready::IN | ready::OUT), ready::IN | ready::OUT);
        assert_eq!(s.pending().0, 5);
        assert_eq!(recv(&*s, 10).unwrap(), b"hello");
        c.shutdown(false, true).unwrap();
        assert_eq!(send(&*c, b"x"), Err(Errno::EPIPE));
        assert_eq!(recv(&*s, 10).unwrap(), b"");
        assert_eq!(send(&*s, b"bye"), Ok(3));
        s.close(&WHO);
        assert_eq!(recv(&*c, 10).unwrap(), b"bye");
        assert_eq!(recv(&*c, 10).unwrap(), b"");
        c.close(&WHO);
        l.close(&WHO);
        let c = socket::create(&st, f, kind::STREAM, 0, &WHO).unwrap();
        // Who does not wait is told later, however soon the answer comes.
        assert_eq!(c.connect(&at(addr, port), &NOW), Err(Errno::EINPROGRESS));
        assert_eq!(c.ready() & ready::ERR, ready::ERR);
        assert_eq!(c.option(1, 4).unwrap(), (Errno::ECONNREFUSED.raw() as u32).to_ne_bytes());
    }
}

#[test]
fn a_blocking_reader_is_woken() {
    let st = stack();
    let l = socket::create(&st, family::INET, kind::STREAM, 0, &WHO).unwrap();
    l.bind(&at("127.0.0.1", 0), &WHO).unwrap();
    l.listen(5, &WHO).unwrap();
    let to = l.local();
    let (timers, done) = (st.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let stop = done.clone();
    let ticker = std::thread::spawn(move || {
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            timers.run_timers();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    let server = std::thread::spawn(move || {
        let s = l.accept(&WHO).unwrap();
        let mut sum = 0u64;
        let mut n = 0;
        loop {
            let mut b = vec![0; 5000];
            let got = s.recv(&mut SliceSink::new(&mut b), &mut RecvMsg::default(), &WHO).unwrap();
            if got == 0 {
                return (n, sum);
            }
            n += got;
            sum += b[..got].iter().map(|x| u64::from(*x)).sum::<u64>();
        }
    });
    let c = socket::create(&st, family::INET, kind::STREAM, 0, &WHO).unwrap();
    c.connect(&to, &WHO).unwrap();
    let data: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
    assert_eq!(c.send(&mut SliceSource::new(&data), &mut SendMsg::default(), &WHO), Ok(data.len()));
    c.close(&WHO);
    assert_eq!(server.join().unwrap(), (data.len(), data.iter().map(|x| u64::from(*x)).sum()));
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    ticker.join().unwrap();
}

#[test]
fn udp_connected_and_not() {
    let st = stack();
    let a = socket::create(&st, family::INET, kind::DGRAM, 0, &WHO).unwrap();
    let b = socket::create(&st, family::INET, kind::DGRAM, 0, &WHO).unwrap();
    a.bind(&at("127.0.0.1", 0), &WHO).unwrap();
    assert_eq!(send(&*b, b"x"), Err(Errno::EDESTADDRREQ));
    b.connect(&a.local(), &WHO).unwrap();
    assert_eq!(send(&*b, b"first"), Ok(5));
    assert_eq!(send(&*b, b""), Ok(0));
    let mut buf = [0; 3];
    let mut m = RecvMsg { flags: msg::TRUNC, ..RecvMsg::default() };
    assert_eq!(a.recv(&mut SliceSink::new(&mut buf), &mut m, &NOW), Ok(5));
    assert_eq!((m.out, m.from, &buf), (msg::TRUNC, Some(b.local()), b"fir"));
    assert_eq!(recv(&*a, 9).unwrap(), b"");
    a.close(&WHO);
    assert_eq!(send(&*b, b"x"), Ok(1));
    assert_eq!(b.ready() & ready::ERR, ready::ERR);
    assert_eq!(send(&*b, b"x"), Err(Errno::ECONNREFUSED));
}

#[test]
fn unix_streams_carry_bytes_files_and_credentials() {
    let [a, b] = Unix::pair(kind::STREAM, WHO.cred).unwrap();
    b.set_option(1, 16, &1u32.to_ne_bytes(), &WHO).unwrap();
    assert_eq!(send(&*a, b"plain"), Ok(5));
    let file: Arc<u32> = Arc::new(42);
    let mut m = SendMsg { files: vec![file.clone()], ..SendMsg::default() };
    assert_eq!(a.send(&mut SliceSource::new(b"with"), &mut m, &NOW), Ok(4));
    assert_eq!(send(&*a, b"after"), Ok(5));
    let mut got = Vec::new();
    let mut files = Vec::new();
    while got.len() < 14 {
        let mut buf = [0; 100];
        let mut m = RecvMsg::default();
        let n = b.recv(&mut SliceSink::new(&mut buf), &mut m, &NOW).unwrap();
        assert_eq!(m.cred, Some(WHO.cred));
        got.extend(&buf[..n]);
        files.extend(m.files);
    }
    assert_eq!((got.as_slice(), files.len()), (&b"plainwithafter"[..], 1));
    assert_eq!(files[0].downcast_ref::<u32>(), Some(&42));
    files.clear();
    // What is not received is dropped with the socket.
    let mut m = SendMsg { files: vec![file.clone()], ..SendMsg::default() };
    a.send(&mut SliceSource::new(b"x"), &mut m, &NOW).unwrap();
    assert_eq!(Arc::strong_count(&file), 2);
    b.close(&WHO);
    assert_eq!(Arc::strong_count(&file), 1);
    assert_eq!(send(&*a, b"x"), Err(Errno::EPIPE));
    assert_eq!(recv(&*a, 1), Err(Errno::ECONNRESET));
    assert_eq!(recv(&*a, 1).unwrap(), b"");
}

#[test]
fn unix_names_backlog_and_full_inboxes() {
    let addr = SockAddr::Unix(b"\0berth test".to_vec());
    let l = Unix::new(kind::STREAM, WHO.cred).unwrap();
    assert_eq!(l.listen(1, &WHO), Err(Errno::EINVAL));
    l.bind(&addr, &WHO).unwrap();
    l.listen(1, &WHO).unwrap();
    let twice = Unix::new(kind::STREAM, WHO.cred).unwrap();
    assert_eq!(twice.bind(&addr, &WHO), Err(Errno::EADDRINUSE));
    let make = || Unix::new(kind::STREAM, WHO.cred).unwrap();
    let all: Vec<_> = (0..3).map(|_| make()).collect();
    assert_eq!(all[0].connect(&addr, &NOW), Ok(()));
    assert_eq!(all[1].connect(&addr, &NOW), Ok(()));
    assert_eq!(all[2].connect(&addr, &NOW), Err(Errno::EAGAIN));
    let s = l.accept(&NOW).unwrap();
    assert_eq!((s.local(), all[0].peer()), (addr.clone(), Ok(addr.clone())));
    let mut sent = 0;
    loop {
        match send(&*s, &[7; 10_000]) {
            Ok(n) => sent += n,
            Err(e) => break assert_eq!(e, Errno::EAGAIN),
        }
    }
    assert!(s.ready() & ready::OUT == 0 && sent > 150_000);
    let mut got = 0;
    while let Ok(b) = recv(&*all[0], 9999) {
        got += b.len();
    }
    assert_eq!((got, s.ready() & ready::OUT), (sent, ready::OUT));
    l.close(&WHO);
    assert_eq!(make().connect(&addr, &NOW), Err(Errno::ECONNREFUSED));
    assert_eq!(recv(&*all[1], 1).unwrap(), b"");
}

#[test]
fn unix_datagrams_and_packets_keep_their_bounds() {
    for k in [kind::DGRAM, kind::SEQPACKET] {
        let [a, b] = Unix::pair(k, WHO.cred).unwrap();
        for m in [&b"one"[..], b"", b"three"] {
            assert_eq!(send(&*a, m), Ok(m.len()));
        }
        assert_eq!(recv(&*b, 2).unwrap(), b"on");
        assert_eq!(recv(&*b, 9).unwrap(), b"");
        assert_eq!(recv(&*b, 9).unwrap(), b"three");
        assert_eq!(recv(&*b, 9), Err(Errno::EAGAIN));
        a.close(&WHO);
    }
    let to = Unix::new(kind::DGRAM, WHO.cred).unwrap();
    to.bind(&SockAddr::Unix(b"\0dgram".to_vec()), &WHO).unwrap();
    let from = Unix::new(kind::DGRAM, WHO.cred).unwrap();
    from.bind(&SockAddr::Unix(Vec::new()), &WHO).unwrap();
    let mut m = SendMsg { to: Some(to.local()), ..SendMsg::default() };
    assert_eq!(from.send(&mut SliceSource::new(b"hi"), &mut m, &NOW), Ok(2));
    let mut m = RecvMsg::default();
    let mut buf = [0; 9];
    assert_eq!(to.recv(&mut SliceSink::new(&mut buf), &mut m, &NOW), Ok(2));
    assert_eq!(m.from, Some(from.local()));
}
