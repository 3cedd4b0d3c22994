//! ICMP and ICMPv6: echo, errors in both directions, and neighbour discovery's messages.
//!
//! Errors that this host sends are limited to 1000 a second in all (RFC 1812, 4.3.2.8), quote at most 576 bytes (1280 for
//! IPv6), and never answer errors, groups, or fragments but the first.

use crate::Stack;
use crate::input::Arrival;
use crate::packet::{self, be16, be32, put16};
use abi::Errno;
use core::net::IpAddr;
use core::sync::atomic::Ordering;

const ERRORS_PER_SECOND: u64 = 1000;

impl Stack {
    pub(crate) fn icmp_input(&self, a: &Arrival<'_>, group: bool) -> Option<()> {
        let m = a.payload();
        if m.len() < 8 || (!a.trusted && packet::fold(packet::sum(m, 0)) != 0xffff) {
            return None;
        }
        match m[0] {
            8 if !group => self.echo(a, 0),
            3 => {
                let next_mtu = (m[1] == 4).then(|| be16(m, 6)).flatten();
                let errno = match m[1] {
                    0 | 5 | 6 | 9 | 11 => Errno::ENETUNREACH,
                    2 => Errno::ENOPROTOOPT,
                    3 => Errno::ECONNREFUSED,
                    4 => Errno::EMSGSIZE,
                    _ => Errno::EHOSTUNREACH,
                };
                self.quoted(&m[8..], errno, matches!(m[1], 2 | 3), next_mtu.map(Into::into))
            }
            11 => self.quoted(&m[8..], Errno::EHOSTUNREACH, false, None),
            12 => self.quoted(&m[8..], Errno::EPROTO, true, None),
            _ => Some(()),
        }
    }

    pub(crate) fn icmpv6_input(&self, a: &Arrival<'_>, group: bool) -> Option<()> {
        let m = a.payload();
        if m.len() < 8 || !a.sum_ok() {
            return None;
        }
        match m[0] {
            128 if !group => self.echo(a, 129),
            1 => {
                let errno = match m[1] {
                    0 => Errno::ENETUNREACH,
                    1 => Errno::EACCES,
                    4 => Errno::ECONNREFUSED,
                    _ => Errno::EHOSTUNREACH,
                };
                self.quoted(&m[8..], errno, matches!(m[1], 1 | 4), None)
            }
            2 => self.quoted(&m[8..], Errno::EMSGSIZE, false, be32(m, 4).map(|n| n as usize)),
            3 => self.quoted(&m[8..], Errno::EHOSTUNREACH, false, None),
            4 => self.quoted(&m[8..], Errno::EPROTO, true, None),
            135 | 136 => {
                let IpAddr::V6(src) = a.ip.src else { return None };
                // Only from the link itself (RFC 4861, 7.1).
                if a.ip.ttl != 255 || m[1] != 0 {
                    return None;
                }
                self.nd_input(a.netif, src, m, a.mac)
            }
            134 if a.ip.ttl == 255 => self.router_advertisement(a, m),
            _ => Some(()),
        }
    }

    fn echo(&self, a: &Arrival<'_>, kind: u8) -> Option<()> {
        let m = a.payload();
        let (mut p, at) = packet::build_ip(a.ip.dst, a.ip.src, a.ip.proto, 64, a.ip.tos, m.len())?;
        let b = &mut p.bytes_mut()[at..];
        b.copy_from_slice(m);
        b[0] = kind;
        put16(b, 2, 0);
        let c = if kind == 0 {
            !packet::fold(packet::sum(b, 0))
        } else {
            packet::checksum(a.ip.dst, a.ip.src, a.ip.proto, b)
        };
        put16(b, 2, c);
        let _ = self.output(p);
        Some(())
    }

    /// An error message quotes a packet of ours.
    fn quoted(&self, quote: &[u8], errno: Errno, hard: bool, mtu: Option<usize>) -> Option<()> {
        let ip = packet::parse_quoted(quote)?;
        if !self.config().is_local(ip.src) {
            return None;
        }
        let payload = quote.get(ip.header..)?;
        if errno == Errno::EMSGSIZE
            && let Some(mtu) = mtu
        {
            self.path_mtu(&ip, payload, mtu);
        }
        self.transport_error(ip.src, ip.dst, ip.proto, payload, errno, hard);
        Some(())
    }

    /// Tells the sender of a packet from `src` to `dst` that it did not arrive.
    pub(crate) fn transport_error(&self, src: IpAddr, dst: IpAddr, proto: u8, t: &[u8], errno: Errno, hard: bool) {
        let (Some(from), Some(to)) = (be16(t, 0), be16(t, 2)) else { return };
        let tuple = crate::Tuple { local: (src, from), remote: (dst, to) };
        match proto {
            packet::TCP => {
                if let Some(flow) = self.tcp.flow(&tuple) {
                    // The quoted segment must be one that is under way, or a stranger could break connections.
                    flow.icmp_error(self, be32(t, 4), errno);
                }
            }
            packet::UDP => self.udp.error(&tuple, errno, hard),
            _ => {}
        }
    }

    fn may_send_error(&self, a: &Arrival<'_>) -> bool {
        let p = a.payload();
        let config = self.config();
        let is_error = match a.ip.proto {
            packet::ICMP => !matches!(p.first(), Some(0 | 8 | 13 | 14)),
            packet::ICMPV6 => p.first().is_none_or(|t| *t < 128),
            _ => false,
        };
        if is_error || a.ip.dst.is_multicast() || a.ip.src.is_unspecified() || config.is_broadcast(a.ip.dst, 0) {
            return false;
        }
        let second = self.env.now_ns() / 1_000_000_000;
        let count = self.errors.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
            if old >> 16 == second {
                (old & 0xffff < ERRORS_PER_SECOND).then_some(old + 1)
            } else {
                Some(second << 16 | 1)
            }
        });
        count.is_ok()
    }

    /// Says "destination unreachable" (`code` as ICMP counts: 2 protocol, 3 port) to who sent `a`.
    pub(crate) fn send_unreachable(&self, a: &Arrival<'_>, code: u8) {
        if !self.may_send_error(a) {
            return;
        }
        let v4 = a.ip.src.is_ipv4();
        let quote = &a.bytes[..a.bytes.len().min(if v4 { 548 } else { 1232 })];
        let proto = if v4 { packet::ICMP } else { packet::ICMPV6 };
        let Some((mut p, at)) = packet::build_ip(a.ip.dst, a.ip.src, proto, 64, 0, 8 + quote.len()) else { return };
        let b = &mut p.bytes_mut()[at..];
        b[8..].copy_from_slice(quote);
        if v4 {
            (b[0], b[1]) = (3, code);
            let c = !packet::fold(packet::sum(b, 0));
            put16(b, 2, c);
        } else {
            (b[0], b[1]) = if code == 3 { (1, 4) } else { (4, 1) };
            let c = packet::checksum(a.ip.dst, a.ip.src, proto, b);
            put16(b, 2, c);
        }
        let _ = self.output(p);
    }
}
