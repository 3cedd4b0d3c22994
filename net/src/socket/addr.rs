//! Socket addresses and their bytes (`struct sockaddr_*`).

use super::family;
use abi::{Errno, Result};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A socket address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SockAddr {
    /// `AF_UNSPEC`
    Unspecified,
    /// `AF_INET`, or `AF_INET6` if the address is one; with the scope (interface) of link-local ones.
    Inet(IpAddr, u16, u32),
    /// `AF_UNIX`: nothing (unnamed), a zero and a name (abstract), or a path.
    Unix(Vec<u8>),
    /// `AF_PACKET`: EtherType, interface, link-layer address.
    Packet(u16, u32, [u8; 6]),
    /// `AF_NETLINK`: port number, groups.
    Netlink(u32, u32),
}

impl SockAddr {
    /// Reads an address. `EINVAL`, `EAFNOSUPPORT`.
    pub fn parse(b: &[u8]) -> Result<SockAddr> {
        let family = u16::from_ne_bytes(b.get(..2).and_then(|f| f.try_into().ok()).ok_or(Errno::EINVAL)?);
        let be16 = |at: usize| crate::packet::be16(b, at).ok_or(Errno::EINVAL);
        let ne32 = |at: usize| Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?));
        match family {
            family::UNSPEC => Ok(SockAddr::Unspecified),
            family::INET if b.len() >= 16 => {
                Ok(SockAddr::Inet(crate::packet::v4(b, 4).ok_or(Errno::EINVAL)?.into(), be16(2)?, 0))
            }
            family::INET6 if b.len() >= 24 => {
                let addr = crate::packet::v6(b, 8).ok_or(Errno::EINVAL)?;
                Ok(SockAddr::Inet(addr.into(), be16(2)?, ne32(24).unwrap_or(0)))
            }
            family::UNIX => {
                let name = &b[2..];
                if name.len() > 108 {
                    return Err(Errno::EINVAL);
                }
                // A path ends at its zero; an abstract name has all of the length.
                let len = if name.first() == Some(&0) {
                    name.len()
                } else {
                    name.iter().position(|c| *c == 0).unwrap_or(name.len())
                };
                Ok(SockAddr::Unix(name[..len].to_vec()))
            }
            family::PACKET if b.len() >= 12 => {
                let mut mac = [0; 6];
                if let Some(m) = b.get(12..18) {
                    mac.copy_from_slice(m);
                }
                Ok(SockAddr::Packet(be16(2)?, ne32(4).ok_or(Errno::EINVAL)?, mac))
            }
            family::NETLINK if b.len() >= 12 => {
                Ok(SockAddr::Netlink(ne32(4).ok_or(Errno::EINVAL)?, ne32(8).ok_or(Errno::EINVAL)?))
            }
            family::INET | family::INET6 | family::PACKET | family::NETLINK => Err(Errno::EINVAL),
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(28);
        match self {
            SockAddr::Unspecified => b.extend([0; 2]),
            SockAddr::Inet(IpAddr::V4(a), port, _) => {
                b.extend(family::INET.to_ne_bytes());
                b.extend(port.to_be_bytes());
                b.extend(a.octets());
                b.extend([0; 8]);
            }
            SockAddr::Inet(IpAddr::V6(a), port, scope) => {
                b.extend(family::INET6.to_ne_bytes());
                b.extend(port.to_be_bytes());
                b.extend([0; 4]);
                b.extend(a.octets());
                b.extend(scope.to_ne_bytes());
            }
            SockAddr::Unix(name) => {
                b.extend(family::UNIX.to_ne_bytes());
                b.extend(name);
                if name.first().is_some_and(|c| *c != 0) {
                    b.push(0);
                }
            }
            SockAddr::Netlink(port, groups) => {
                b.extend(family::NETLINK.to_ne_bytes());
                b.extend([0; 2]);
                b.extend(port.to_ne_bytes());
                b.extend(groups.to_ne_bytes());
            }
            SockAddr::Packet(ethertype, index, mac) => {
                b.extend(family::PACKET.to_ne_bytes());
                b.extend(ethertype.to_be_bytes());
                b.extend(index.to_ne_bytes());
                b.extend(1u16.to_ne_bytes());
                b.extend([0, 6]);
                b.extend(mac);
                b.extend([0; 2]);
            }
        }
        b
    }

    /// An internet address as a socket of `family` shows it: IPv4 is mapped into IPv6.
    pub fn inet(family: u16, (addr, port): (IpAddr, u16)) -> SockAddr {
        match addr {
            IpAddr::V4(a) if family == family::INET6 => SockAddr::Inet(a.to_ipv6_mapped().into(), port, 0),
            a => SockAddr::Inet(a, port, 0),
        }
    }

    /// The nothing of a family.
    pub fn any(family: u16) -> SockAddr {
        match family {
            family::INET6 => SockAddr::Inet(Ipv6Addr::UNSPECIFIED.into(), 0, 0),
            _ => SockAddr::Inet(Ipv4Addr::UNSPECIFIED.into(), 0, 0),
        }
    }

    /// The internet address in it, for a socket of `family`: mapped IPv4 comes out as IPv4. `EAFNOSUPPORT`.
    pub fn to_inet(&self, family: u16) -> Result<(IpAddr, u16)> {
        match self {
            SockAddr::Inet(IpAddr::V4(a), port, _) if family == family::INET => Ok(((*a).into(), *port)),
            SockAddr::Inet(IpAddr::V6(a), port, _) if family == family::INET6 => {
                Ok((a.to_ipv4_mapped().map_or(IpAddr::V6(*a), IpAddr::V4), *port))
            }
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }
}
