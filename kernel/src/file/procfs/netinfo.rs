//! `/proc/net`: interfaces, connections, routes, neighbours, as netstat, ifconfig, route and arp read them.

use super::super::synth::Node;
use super::Entry;
use super::system::{Out, full};
use abi::Result;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::net::IpAddr;
use core::sync::atomic::Ordering::Relaxed;
use net::Stack;
use net::config::LOOPBACK;
use net::socket::state_number;
use vfs::FileType::Regular;

pub(super) const ENTRIES: &[Entry] = &[
    ("arp", Regular, || Node::text(arp)),
    ("dev", Regular, || Node::text(dev)),
    ("netstat", Regular, || Node::text(netstat)),
    ("route", Regular, || Node::text(route)),
    ("tcp", Regular, || Node::text(|o| tcp(o, false))),
    ("tcp6", Regular, || Node::text(|o| tcp(o, true))),
    ("udp", Regular, || Node::text(|o| udp(o, false))),
    ("udp6", Regular, || Node::text(|o| udp(o, true))),
    ("unix", Regular, || Node::text(unix)),
];

fn stack() -> Option<&'static Arc<Stack>> {
    crate::net::stack()
}

fn dev(o: &mut Vec<u8>) -> Result<()> {
    let mut out = Out(o);
    out.write_str(
        "Inter-|   Receive                                                |  Transmit\n \
         face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n",
    )
    .map_err(full)?;
    let Some(stack) = stack() else { return Ok(()) };
    for i in &stack.config().interfaces {
        let c = &i.netif.counters;
        let (rx, tx) = (&c.rx, &c.tx);
        writeln!(
            out,
            "{:>6}: {:7} {:7} {:4} {:4}    0     0          0         0 {:8} {:7}    0 {:4}    0     0       0          0",
            i.netif.name,
            rx[1].load(Relaxed),
            rx[0].load(Relaxed),
            c.rx_errors.load(Relaxed),
            c.rx_dropped.load(Relaxed),
            tx[1].load(Relaxed),
            tx[0].load(Relaxed),
            c.tx_dropped.load(Relaxed),
        )
        .map_err(full)?;
    }
    Ok(())
}

/// Those of Linux's counters that are kept.
fn netstat(o: &mut Vec<u8>) -> Result<()> {
    let Some(stack) = stack() else { return Ok(()) };
    let c = &stack.counters;
    let [sent, ok, full_queues, timeouts] =
        [&c.cookies_sent, &c.cookies_ok, &c.listen_overflows, &c.timeouts].map(|n| n.load(Relaxed));
    writeln!(
        Out(o),
        "TcpExt: SyncookiesSent SyncookiesRecv ListenOverflows TCPAbortOnTimeout\nTcpExt: {sent} {ok} {full_queues} {timeouts}"
    )
    .map_err(full)
}

/// An address as the kernel's tables show it: words of memory in hexadecimal.
fn hex(a: IpAddr, v6: bool) -> String {
    let words = |b: &[u8]| {
        b.chunks_exact(4)
            .fold(String::new(), |text, w| text + &format!("{:08X}", u32::from_ne_bytes([w[0], w[1], w[2], w[3]])))
    };
    match a {
        IpAddr::V4(a) if v6 => words(&a.to_ipv6_mapped().octets()),
        IpAddr::V4(a) => words(&a.octets()),
        IpAddr::V6(a) => words(&a.octets()),
    }
}

const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

fn row(o: &mut Vec<u8>, n: usize, v6: bool, ends: [(IpAddr, u16); 2], state: u8, queues: (usize, usize)) -> Result<()> {
    let [(la, lp), (ra, rp)] = ends;
    writeln!(
        Out(o),
        "{n:4}: {}:{lp:04X} {}:{rp:04X} {state:02X} {:08X}:{:08X} 00:00000000 00000000     0        0 0 1 0000000000000000",
        hex(la, v6),
        hex(ra, v6),
        queues.0,
        queues.1,
    )
    .map_err(full)
}

fn nowhere(a: IpAddr) -> (IpAddr, u16) {
    (if a.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0u16; 8]) }, 0)
}

fn tcp(o: &mut Vec<u8>, v6: bool) -> Result<()> {
    Out(o).write_str(HEAD).map_err(full)?;
    let Some(stack) = stack() else { return Ok(()) };
    let mut n = 0;
    for l in stack.tcp.list_listeners().iter().filter(|l| l.local.0.is_ipv6() == v6) {
        row(o, n, v6, [l.local, nowhere(l.local.0)], 10, (0, l.queued().0))?;
        n += 1;
    }
    for f in stack.tcp.list().iter().filter(|f| f.tuple.local.0.is_ipv6() == v6) {
        let s = f.status();
        row(o, n, v6, [f.tuple.local, f.tuple.remote], state_number(s.state), (s.unsent, s.readable))?;
        n += 1;
    }
    for t in stack.tcp.list_waiting().iter().filter(|t| t.local.0.is_ipv6() == v6) {
        row(o, n, v6, [t.local, t.remote], 6, (0, 0))?;
        n += 1;
    }
    Ok(())
}

fn udp(o: &mut Vec<u8>, v6: bool) -> Result<()> {
    Out(o).write_str(HEAD).map_err(full)?;
    let Some(stack) = stack() else { return Ok(()) };
    for (n, e) in stack.udp.list().iter().filter(|e| e.local.0.is_ipv6() == v6).enumerate() {
        let state = if e.remote.is_some() { 1 } else { 7 };
        row(o, n, v6, [e.local, e.remote.unwrap_or(nowhere(e.local.0))], state, (0, e.queue.len()))?;
    }
    Ok(())
}

fn unix(o: &mut Vec<u8>) -> Result<()> {
    let mut out = Out(o);
    out.write_str("Num       RefCount Protocol Flags    Type St Inode Path\n").map_err(full)?;
    for (name, kind, listening, connected) in net::unix::list() {
        let flags = if listening { 0x10000 } else { 0 };
        let state = if connected { 3 } else { 1 };
        write!(out, "0000000000000000: 00000002 00000000 {flags:08X} {kind:04X} {state:02X} 1 ").map_err(full)?;
        let shown: Vec<u8> = name.iter().map(|c| if *c == 0 { b'@' } else { *c }).collect();
        out.0.extend(shown);
        out.write_str("\n").map_err(full)?;
    }
    Ok(())
}

fn route(o: &mut Vec<u8>) -> Result<()> {
    let mut out = Out(o);
    out.write_str("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n")
        .map_err(full)?;
    let Some(stack) = stack() else { return Ok(()) };
    let config = stack.config();
    for r in config.routes.iter().filter(|r| r.index != LOOPBACK) {
        let (IpAddr::V4(dst), Some(i)) = (r.dst, config.interface(r.index)) else { continue };
        let mask = u32::MAX.checked_shl(32 - u32::from(r.prefix)).unwrap_or(0);
        let net = u32::from(dst) & mask;
        let gateway = match r.gateway {
            Some(IpAddr::V4(g)) => u32::from(g),
            _ => 0,
        };
        let flags = 1 | if gateway != 0 { 2 } else { 0 } | if r.prefix == 32 { 4 } else { 0 };
        writeln!(
            out,
            "{}\t{:08X}\t{:08X}\t{flags:04X}\t0\t0\t{}\t{:08X}\t0\t0\t0",
            i.netif.name,
            net.swap_bytes(),
            gateway.swap_bytes(),
            r.metric,
            mask.swap_bytes()
        )
        .map_err(full)?;
    }
    Ok(())
}

fn arp(o: &mut Vec<u8>) -> Result<()> {
    let mut out = Out(o);
    out.write_str("IP address       HW type     Flags       HW address            Mask     Device\n").map_err(full)?;
    let Some(stack) = stack() else { return Ok(()) };
    let config = stack.config();
    for n in stack.neighbours.list(platform::monotonic_ns()).iter().filter(|n| n.addr.is_ipv4()) {
        let Some(i) = config.interface(n.index) else { continue };
        let m = n.mac.unwrap_or([0; 6]);
        writeln!(
            out,
            "{:<16} 0x1         0x{}         {:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}     *        {}",
            format!("{}", n.addr),
            if n.mac.is_some() { 2 } else { 0 },
            m[0],
            m[1],
            m[2],
            m[3],
            m[4],
            m[5],
            i.netif.name
        )
        .map_err(full)?;
    }
    Ok(())
}
