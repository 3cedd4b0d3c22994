//! Ethernet frames put together by hand: right ones, and ones that nobody should send.
//!
//! A frame's fields are set before its checksums are made, so what is damaged here on purpose is damaged in one way only; what
//! `damage` does comes after the sums, as on a bad line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// TCP's flags.
pub mod flag {
    /// No more comes from the sender.
    pub const FIN: u8 = 1;
    /// The first segment.
    pub const SYN: u8 = 2;
    /// The connection is no more.
    pub const RST: u8 = 4;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// Who sends a packet to whom.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The sender's Ethernet address.
    pub from_mac: Mac,
    /// The receiver's.
    pub to_mac: Mac,
    /// The sender's address, of the same family as the receiver's.
    pub from: IpAddr,
    /// The receiver's address.
    pub to: IpAddr,
}

/// A generator of numbers, the same for the same seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.bits() as u8).collect()
    }

    /// One of `list`, which is not empty.
    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A frame with a payload of any kind.
pub fn ethernet(from: Mac, to: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// A packet of IPv4 or IPv6 with `payload` of `protocol`, whose checksum over pseudo header and payload is put at `sum_at`.
pub fn packet(ends: &Ends, protocol: u8, mut payload: Vec<u8>, sum_at: Option<usize>) -> Vec<u8> {
    if let Some(at) = sum_at {
        let sum = pseudo_checksum(ends, protocol, &payload);
        payload[at..at + 2].copy_from_slice(&sum);
    }
    match (ends.from, ends.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
            ip[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
            ip.extend(from.octets());
            ip.extend(to.octets());
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum);
            ip.extend(payload);
            ethernet(ends.from_mac, ends.to_mac, 0x0800, &ip)
        }
        _ => {
            let mut ip = vec![0x60, 0, 0, 0, 0, 0, protocol, 255];
            ip[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            ip.extend(six(ends.from).octets());
            ip.extend(six(ends.to).octets());
            ip.extend(payload);
            ethernet(ends.from_mac, ends.to_mac, 0x86dd, &ip)
        }
    }
}

fn six(a: IpAddr) -> Ipv6Addr {
    match a {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    }
}

/// ICMP of version 4 is summed without addresses, everything else with them.
fn pseudo_checksum(ends: &Ends, protocol: u8, payload: &[u8]) -> [u8; 2] {
    let mut bytes = Vec::new();
    match (ends.from, ends.to) {
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == 1 => {}
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([from.octets(), to.octets()].concat());
            bytes.extend([0, protocol]);
            bytes.extend((payload.len() as u16).to_be_bytes());
        }
        (from, to) => {
            bytes.extend([six(from).octets(), six(to).octets()].concat());
            bytes.extend((payload.len() as u32).to_be_bytes());
            bytes.extend([0, 0, 0, protocol]);
        }
    }
    bytes.extend(payload);
    checksum(&bytes)
}

/// A TCP segment's own fields.
#[derive(Debug, Clone, Copy, Default)]
pub struct Segment<'a> {
    /// From this port.
    pub from: u16,
    /// To this one.
    pub to: u16,
    /// Number of its first byte.
    pub seq: u32,
    /// Number of the next byte that is expected.
    pub ack: u32,
    /// See `flag`.
    pub flags: u8,
    /// Options, a multiple of four bytes.
    pub options: &'a [u8],
    /// What it carries.
    pub data: &'a [u8],
}

/// A TCP segment in a packet.
pub fn tcp(ends: &Ends, s: &Segment<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(s.from.to_be_bytes());
    bytes.extend(s.to.to_be_bytes());
    bytes.extend(s.seq.to_be_bytes());
    bytes.extend(s.ack.to_be_bytes());
    bytes.extend([((5 + s.options.len() / 4) << 4) as u8, s.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    bytes.extend(s.options);
    bytes.extend(s.data);
    packet(ends, 6, bytes, Some(16))
}

/// A datagram in a packet.
pub fn udp(ends: &Ends, from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for half in [from, to, 8 + data.len() as u16, 0] {
        bytes.extend(half.to_be_bytes());
    }
    bytes.extend(data);
    packet(ends, 17, bytes, Some(6))
}

/// An ICMP or ICMPv6 message in a packet, after the family of `ends`.
pub fn icmp(ends: &Ends, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let protocol = if ends.to.is_ipv4() { 1 } else { 58 };
    packet(ends, protocol, [&[kind, code, 0, 0], rest].concat(), Some(2))
}

/// An ARP packet: `operation` 1 asks, 2 answers.
pub fn arp(to_mac: Mac, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    bytes.extend(sender.0);
    bytes.extend(sender.1.octets());
    bytes.extend(target.0);
    bytes.extend(target.1.octets());
    ethernet(sender.0, to_mac, 0x0806, &bytes)
}

/// What a bad line, a bad card or a bad neighbour makes of a frame: bytes replaced, the end missing, or more than there should be.
pub fn damage(mut frame: Vec<u8>, random: &mut Random) -> Vec<u8> {
    for _ in 0..random.below(4) {
        let at = 12 + random.below(frame.len().saturating_sub(12).max(1));
        if let Some(byte) = frame.get_mut(at) {
            *byte = random.bits() as u8;
        }
    }
    match random.below(8) {
        0..3 => frame.truncate(1 + random.below(frame.len())),
        3 => {
            let more = random.of(&[1, 7, 100, 1400, 4000]);
            frame.extend(random.bytes(more));
        }
        _ => {}
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_right() {
        let four = Ends {
            from_mac: [2; 6],
            to_mac: [4; 6],
            from: IpAddr::V4(Ipv4Addr::new(10, 5, 0, 1)),
            to: IpAddr::V4(Ipv4Addr::new(10, 5, 0, 2)),
        };
        let frame = udp(&four, 1, 2, b"odd");
        assert_eq!(checksum(&frame[14..34]), [0, 0]);
        assert_eq!(pseudo_checksum(&four, 17, &frame[34..]), [0, 0]);
        let ping = icmp(&four, 8, 0, &[0, 1, 0, 1]);
        assert_eq!(checksum(&ping[34..]), [0, 0]);
        let sixes = Ends { from: IpAddr::V6(Ipv6Addr::LOCALHOST), to: IpAddr::V6(Ipv6Addr::LOCALHOST), ..four };
        let frame = tcp(&sixes, &Segment { from: 1, to: 2, flags: flag::SYN, data: b"x", ..Segment::default() });
        assert_eq!(pseudo_checksum(&sixes, 6, &frame[54..]), [0, 0]);
        assert_eq!(frame.len(), 14 + 40 + 20 + 1);
    }

    #[test]
    fn damage_is_the_same_every_time() {
        let whole = vec![7; 100];
        let all = |seed: u64| (0..50).map(|n| damage(whole.clone(), &mut Random(seed + n))).collect::<Vec<_>>();
        assert_eq!(all(5), all(5));
        assert!(all(5).iter().all(|f| !f.is_empty()));
    }
}
