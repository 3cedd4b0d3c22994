//! Packets: their memory, checksums, and the headers of IP.
//!
//! Headers that arrive are foreign bytes: every parser returns `None` for what is truncated or contradicts itself, and
//! no length taken from a packet is used before it was compared with what is there.

use crate::pool::Buffer;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Room before the IP header for Ethernet's header and a device's own.
pub const HEADROOM: usize = 32;
/// Headers end before this in what [`Packet::unset`] gives.
const HEADERS: usize = HEADROOM + 40 + 60;
/// IP protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP of IPv6.
pub const ICMPV6: u8 = 58;

/// A packet that is to be sent: bytes with room in front of them.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    buf: Buffer,
    start: usize,
    /// The device is to put the checksum of everything from the first offset at the second after it (offsets from the
    /// packet's first byte); the pseudo header's sum is already there.
    pub csum: Option<(u16, u16)>,
    /// Others follow at once: the device need not look before [`crate::NetDevice::flush`] was called.
    pub more: bool,
    /// The CPU whose queue of the device it goes by, so that a burst stays in order when its sender migrates; `None`: the
    /// one that sends it.
    pub cpu: Option<usize>,
}

impl Packet {
    /// `len` zero bytes with [`HEADROOM`] before them.
    pub fn new(len: usize) -> Packet {
        let mut buf = Buffer::new(HEADROOM + len);
        buf.fill(0);
        Packet { buf, start: HEADROOM, csum: None, more: false, cpu: None }
    }

    /// As [`Packet::new`], for who writes all of the payload: there is anything in those bytes.
    pub(crate) fn unset(len: usize) -> Packet {
        let mut buf = Buffer::new(HEADROOM + len);
        // What a header leaves out must not be another's bytes.
        let headers = buf.len().min(HEADERS);
        buf[..headers].fill(0);
        Packet { buf, start: HEADROOM, csum: None, more: false, cpu: None }
    }

    /// A copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Packet {
        let mut p = Packet::new(bytes.len());
        p.bytes_mut().copy_from_slice(bytes);
        p
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.start..]
    }

    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf[self.start..]
    }

    /// Puts `header` before what is there; for headers of at most what is left of [`HEADROOM`], others are refused.
    #[must_use]
    pub fn push(&mut self, header: &[u8]) -> bool {
        let Some(start) = self.start.checked_sub(header.len()) else { return false };
        self.buf[start..self.start].copy_from_slice(header);
        self.start = start;
        if let Some((from, _)) = &mut self.csum {
            *from += header.len() as u16;
        }
        true
    }
}

/// The sum of 16-bit words, not folded.
pub fn sum(bytes: &[u8], mut acc: u64) -> u64 {
    let mut words = bytes.chunks_exact(16);
    if words.len() > 0 {
        // Sums of words in either byte order differ by the order of the sum's own bytes (RFC 1071, 2).
        let (mut low, mut high) = (0, 0);
        for w in &mut words {
            let at = |i: usize| {
                u64::from_le_bytes([w[i], w[i + 1], w[i + 2], w[i + 3], w[i + 4], w[i + 5], w[i + 6], w[i + 7]])
            };
            let (a, b) = (at(0), at(8));
            low += (a & 0xffff_ffff) + (b & 0xffff_ffff);
            high += (a >> 32) + (b >> 32);
        }
        acc += u64::from(fold(low + high).swap_bytes());
    }
    let mut words = words.remainder().chunks_exact(4);
    for w in &mut words {
        acc += u64::from(u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
    }
    match words.remainder() {
        [a] => acc + (u64::from(*a) << 8),
        [a, b] => acc + u64::from(u16::from_be_bytes([*a, *b])),
        [a, b, c] => acc + u64::from(u16::from_be_bytes([*a, *b])) + (u64::from(*c) << 8),
        _ => acc,
    }
}

/// Folds a sum to 16 bits.
pub fn fold(mut acc: u64) -> u16 {
    while acc >> 16 != 0 {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    acc as u16
}

/// The pseudo header's sum (RFC 793, RFC 8200).
pub fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u64 {
    let acc = u64::from(proto) + len as u64;
    match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum(&d.octets(), sum(&s.octets(), acc)),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum(&d.octets(), sum(&s.octets(), acc)),
        _ => acc,
    }
}

/// A transport's checksum, to be stored as it is.
pub fn checksum(src: IpAddr, dst: IpAddr, proto: u8, segment: &[u8]) -> u16 {
    !fold(sum(segment, pseudo(src, dst, proto, segment.len())))
}

/// Completes a checksum that a sender left to its device: of everything from `start`, stored `offset` after it, where
/// the pseudo header's sum stands. Offsets that lie outside change nothing.
pub fn complete_checksum(frame: &mut [u8], start: usize, offset: usize) {
    let Some(segment) = frame.get_mut(start..).filter(|s| offset + 2 <= s.len()) else { return };
    let c = !fold(sum(segment, 0));
    put16(segment, offset, if c == 0 { 0xffff } else { c });
}

/// Where a transport keeps its checksum.
pub fn csum_offset(proto: u8) -> Option<usize> {
    match proto {
        TCP => Some(16),
        UDP => Some(6),
        ICMPV6 | ICMP => Some(2),
        _ => None,
    }
}

pub(crate) fn be16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?))
}
pub(crate) fn be32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(b.get(at..at + 4)?.try_into().ok()?))
}
pub(crate) fn put16(b: &mut [u8], at: usize, v: u16) {
    b[at..at + 2].copy_from_slice(&v.to_be_bytes());
}
pub(crate) fn put32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_be_bytes());
}

/// A fragment's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Which packet it is of.
    pub id: u32,
    /// Where it begins.
    pub offset: usize,
    /// Whether others follow.
    pub more: bool,
}

/// An IP header, either version.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    /// From.
    pub src: IpAddr,
    /// To.
    pub dst: IpAddr,
    /// What follows.
    pub proto: u8,
    /// Hops left.
    pub ttl: u8,
    /// Type of service, traffic class.
    pub tos: u8,
    /// Where the payload begins.
    pub header: usize,
    /// Where it ends.
    pub total: usize,
    /// Set for a part of a packet.
    pub fragment: Option<Fragment>,
}

/// Reads the header of an IP packet, extension headers of IPv6 included.
pub fn parse_ip(b: &[u8]) -> Option<Ip> {
    match b.first()? >> 4 {
        4 => parse_v4(b),
        6 => parse_v6(b),
        _ => None,
    }
}

fn parse_v4(b: &[u8]) -> Option<Ip> {
    let header = usize::from(b[0] & 15) * 4;
    let total = usize::from(be16(b, 2)?);
    if header < 20 || total < header || total > b.len() || fold(sum(&b[..header], 0)) != 0xffff {
        return None;
    }
    let frag = be16(b, 6)?;
    let (more, offset) = (frag & 0x2000 != 0, usize::from(frag & 0x1fff) * 8);
    if offset + (total - header) > 65535 - 20 {
        return None;
    }
    let fragment = (more || offset > 0).then_some(Fragment { id: be16(b, 4)?.into(), offset, more });
    Some(Ip {
        src: v4(b, 12)?.into(),
        dst: v4(b, 16)?.into(),
        proto: b[9],
        ttl: b[8],
        tos: b[1],
        header,
        total,
        fragment,
    })
}

pub(crate) fn v4(b: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = b.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

pub(crate) fn v6(b: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = b.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

fn parse_v6(b: &[u8]) -> Option<Ip> {
    if b.len() < 40 {
        return None;
    }
    let total = 40 + usize::from(be16(b, 4)?);
    if total > b.len() {
        return None;
    }
    let (src, dst) = (v6(b, 8)?.into(), v6(b, 24)?.into());
    let tos = (be16(b, 0)? >> 4) as u8;
    let (mut proto, mut header, mut fragment) = (b[6], 40, None);
    // Extension headers (RFC 8200, 4): at most eight, so that a packet's cost is bounded.
    for _ in 0..8 {
        match proto {
            0 | 60 | 43 => {
                let len = 8 + usize::from(*b.get(header + 1)?) * 8;
                // A routing header with segments left is for routers that do not exist here.
                if proto == 43 && *b.get(header + 3)? != 0 {
                    return None;
                }
                proto = *b.get(header)?;
                header += len;
            }
            44 => {
                let word = be16(b, header + 2)?;
                let (offset, more) = (usize::from(word & 0xfff8), word & 1 != 0);
                let id = be32(b, header + 4)?;
                proto = *b.get(header)?;
                header += 8;
                // A fragment that is the whole is no fragment (RFC 6946).
                if more || offset > 0 {
                    fragment = Some(Fragment { id, offset, more });
                    break;
                }
            }
            _ => break,
        }
        if header > total {
            return None;
        }
    }
    (header <= total).then_some(Ip { src, dst, proto, ttl: b[7], tos, header, total, fragment })
}

/// An IP packet with room for `len` bytes of payload, its header filled in (`id`: IPv4's identification; 0 forbids
/// fragmentation). `None` when the addresses are of two families or it would be too long.
pub fn build_ip(src: IpAddr, dst: IpAddr, proto: u8, ttl: u8, tos: u8, len: usize) -> Option<(Packet, usize)> {
    match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let total = u16::try_from(20 + len).ok()?;
            let mut p = Packet::new(20 + len);
            let b = p.bytes_mut();
            (b[0], b[1], b[8], b[9]) = (0x45, tos, ttl, proto);
            put16(b, 2, total);
            put16(b, 6, 0x4000);
            b[12..16].copy_from_slice(&s.octets());
            b[16..20].copy_from_slice(&d.octets());
            finish_v4(b);
            Some((p, 20))
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let payload = u16::try_from(len).ok()?;
            let mut p = Packet::new(40 + len);
            let b = p.bytes_mut();
            (b[0], b[1], b[6], b[7]) = (0x60 | tos >> 4, tos << 4, proto, ttl);
            put16(b, 4, payload);
            b[8..24].copy_from_slice(&s.octets());
            b[24..40].copy_from_slice(&d.octets());
            Some((p, 40))
        }
        _ => None,
    }
}

/// Computes an IPv4 header's checksum (the header has no options).
pub fn finish_v4(b: &mut [u8]) {
    put16(b, 10, 0);
    let c = !fold(sum(&b[..20], 0));
    put16(b, 10, c);
}

/// A TCP header, as far as the code around smoltcp looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub flags: u8,
    /// Bytes of header.
    pub header: usize,
}

/// FIN.
pub const FIN: u8 = 1;
/// SYN.
pub const SYN: u8 = 2;
/// RST.
pub const RST: u8 = 4;
/// ACK.
pub const ACK: u8 = 16;

/// Reads a TCP header.
pub fn parse_tcp(b: &[u8]) -> Option<Tcp> {
    if b.len() < 20 {
        return None;
    }
    let header = usize::from(b[12] >> 4) * 4;
    if header < 20 || header > b.len() {
        return None;
    }
    Some(Tcp { src: be16(b, 0)?, dst: be16(b, 2)?, seq: be32(b, 4)?, ack: be32(b, 8)?, flags: b[13], header })
}

/// What a SYN offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOptions {
    /// Largest segment that its sender takes.
    pub mss: Option<u16>,
    /// Window scaling.
    pub scale: Option<u8>,
    /// Selective acknowledgement.
    pub sack: bool,
}

/// Reads a SYN's options; what cannot be read ends the list.
pub fn parse_syn_options(mut o: &[u8]) -> SynOptions {
    let mut found = SynOptions::default();
    while let [kind, rest @ ..] = o {
        match kind {
            0 => break,
            1 => o = rest,
            _ => {
                let Some(&len) = rest.first() else { break };
                let len = usize::from(len);
                if len < 2 || len > o.len() {
                    break;
                }
                match (kind, len) {
                    (2, 4) => found.mss = be16(o, 2),
                    (3, 3) => found.scale = Some(o[2].min(14)),
                    (4, 2) => found.sack = true,
                    _ => {}
                }
                o = &o[len..];
            }
        }
    }
    found
}

/// Which connection: addresses and ports, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Ours.
    pub local: (IpAddr, u16),
    /// Theirs.
    pub remote: (IpAddr, u16),
}

impl Tuple {
    /// As the other side sees it.
    #[must_use]
    pub fn flipped(&self) -> Tuple {
        Tuple { local: self.remote, remote: self.local }
    }

    /// As words to hash.
    pub(crate) fn words(&self) -> [u64; 5] {
        fn two(ip: IpAddr) -> [u64; 2] {
            match ip {
                IpAddr::V4(a) => [u32::from(a).into(), 4],
                IpAddr::V6(a) => [(u128::from(a) >> 64) as u64, u128::from(a) as u64],
            }
        }
        let ([a, b], [c, d]) = (two(self.local.0), two(self.remote.0));
        [a, b, c, d, u64::from(self.local.1) << 16 | u64::from(self.remote.1)]
    }
}

/// Reads the header of a packet that an error message quotes: it may be cut anywhere after the header.
pub fn parse_quoted(b: &[u8]) -> Option<Ip> {
    match b.first()? >> 4 {
        4 => {
            let header = usize::from(b[0] & 15) * 4;
            (header >= 20 && b.len() >= header).then_some(())?;
            let (src, dst) = (v4(b, 12)?.into(), v4(b, 16)?.into());
            Some(Ip { src, dst, proto: b[9], ttl: b[8], tos: b[1], header, total: b.len(), fragment: None })
        }
        6 => {
            let (src, dst) = (v6(b, 8)?.into(), v6(b, 24)?.into());
            Some(Ip { src, dst, proto: b[6], ttl: b[7], tos: 0, header: 40, total: b.len(), fragment: None })
        }
        _ => None,
    }
}
