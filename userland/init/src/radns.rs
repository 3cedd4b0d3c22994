//! `radns INTERFACE PROGRAM`: name servers from router advertisements (RFC 8106), which the kernel's own handling of them leaves
//! to programs.
//!
//! It asks routers (a solicitation, three times at most), listens for what they say from then on, and runs PROGRAM whenever
//! that has changed, with `interface`, `dns`, `search` and `other` in its environment; `other=yes` means that a DHCPv6 server has
//! more to say. Only messages that no router has forwarded count (hop limit 255, link-local source, this interface), and
//! nothing of them is passed on but addresses and names that are well formed. Servers whose lifetime ends are dropped.

use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

/// How often it asks, and how long it waits for an answer (RFC 4861, section 10).
const SOLICITATIONS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(4);
/// The most servers, or domains, that are taken from one message.
const MOST: usize = 8;

/// What a router said about names.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Said {
    /// Name servers.
    pub servers: Vec<Ipv6Addr>,
    /// Domains to search.
    pub domains: Vec<String>,
    /// A DHCPv6 server has more to say.
    pub other: bool,
    /// How long it holds, in seconds.
    pub lifetime: u32,
}

/// Reads a router advertisement, ICMPv6 header included; None if it is none or broken.
pub fn parse(message: &[u8]) -> Option<Said> {
    const ADVERTISEMENT: u8 = 134;
    const MANAGED_OR_OTHER: u8 = 0xc0;
    let (head, mut options) = message.split_at_checked(16)?;
    if head.first() != Some(&ADVERTISEMENT) || head.get(1) != Some(&0) {
        return None;
    }
    let mut said = Said { other: head.get(5)? & MANAGED_OR_OTHER != 0, ..Said::default() };
    while let [kind, units, ..] = *options {
        let (option, rest) = options.split_at_checked(usize::from(units) * 8)?;
        let body = option.get(8..)?;
        let lifetime = option.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
        match kind {
            25 if lifetime > 0 => {
                let addresses = body.chunks_exact(16).filter_map(|b| <[u8; 16]>::try_from(b).ok()).map(Ipv6Addr::from);
                let usable = |a: &Ipv6Addr| !a.is_unspecified() && !a.is_multicast() && !a.is_loopback();
                said.servers.extend(addresses.filter(usable).take(MOST));
                said.lifetime = said.lifetime.max(lifetime);
            }
            31 if lifetime > 0 => said.domains.extend(domains(body)),
            _ => {}
        }
        options = rest;
    }
    said.servers.truncate(MOST);
    said.domains.truncate(MOST);
    Some(said)
}

/// Names as in DNS, one after the other, without compression; the list ends at the first that is broken.
fn domains(mut bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while bytes.first().is_some_and(|n| *n != 0) && found.len() < MOST {
        let mut name = String::new();
        loop {
            let Some((&length, rest)) = bytes.split_first() else { return found };
            let Some((label, rest)) = rest.split_at_checked(usize::from(length)) else { return found };
            bytes = rest;
            if length == 0 {
                break;
            }
            let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_".contains(b);
            if length > 63 || name.len() > 253 || !label.iter().all(plain) {
                return found;
            }
            let dot = if name.is_empty() { "" } else { "." };
            let _ = write!(name, "{dot}{}", String::from_utf8_lossy(label));
        }
        found.push(name);
    }
    found
}

/// The program; it returns only if it cannot work at all.
pub fn run(interface: &str, program: &str) -> Result<(), String> {
    let failed = |what: &'static str| move |e: rustix::io::Errno| format!("radns: {what}: {e}");
    let socket =
        rustix::net::socket_with(AddressFamily::INET6, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMPV6))
            .map_err(failed("socket"))?;
    let index = rustix::net::netdevice::name_to_index(&socket, interface).map_err(failed("interface"))?;
    // Routers take it for a neighbour's by that alone.
    sockopt::set_ipv6_multicast_hops(&socket, 255).map_err(failed("hop limit"))?;
    sockopt::set_ipv6_unicast_hops(&socket, Some(255)).map_err(failed("hop limit"))?;
    sockopt::set_ipv6_multicast_if(&socket, index).map_err(failed("interface"))?;
    let mut last = Said::default();
    let mut until: Option<Instant> = None;
    let mut asked = 0;
    loop {
        if asked < SOLICITATIONS {
            asked += 1;
            solicit(&socket, index);
        }
        let left = until.map(|at| at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let wait = if asked < SOLICITATIONS { Some(left.map_or(PATIENCE, |l| l.min(PATIENCE))) } else { left };
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, wait).map_err(failed("time limit"))?;
        let said = receive(&socket, index);
        if said.is_none() && until.is_some_and(|at| Instant::now() >= at) {
            until = None;
            tell(interface, program, &Said::default());
            last = Said::default();
        }
        let Some(said) = said else { continue };
        asked = SOLICITATIONS;
        if !said.servers.is_empty() {
            until = Some(Instant::now() + Duration::from_secs(u64::from(said.lifetime)));
        }
        // The lifetime alone is no news; nor is a router that knows of no names after one that does.
        let news = (&said.servers, &said.domains, said.other) != (&last.servers, &last.domains, last.other);
        if news && (!said.servers.is_empty() || last.servers.is_empty()) {
            tell(interface, program, &said);
            last = said;
        }
    }
}

/// Ask all routers. Without an address of its own the interface cannot yet; it will be asked again.
fn solicit(socket: &OwnedFd, index: u32) {
    const SOLICITATION: [u8; 8] = [133, 0, 0, 0, 0, 0, 0, 0];
    let routers = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2), 0, 0, index);
    let _ = rustix::net::sendto(socket, &SOLICITATION, SendFlags::empty(), &routers);
}

fn receive(socket: &OwnedFd, index: u32) -> Option<Said> {
    let mut message = [0; 1500];
    let (length, _, from) = match rustix::net::recvfrom(socket, &mut message[..], RecvFlags::empty()) {
        Ok(got) => got,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return None,
        Err(_) => {
            // An interface that is gone for the moment must not keep a CPU busy.
            std::thread::sleep(Duration::from_secs(1));
            return None;
        }
    };
    let from = SocketAddrV6::try_from(from?).ok()?;
    if !from.ip().is_unicast_link_local() || (from.scope_id() != index && from.scope_id() != 0) {
        return None;
    }
    parse(message.get(..length)?)
}

fn tell(interface: &str, program: &str, said: &Said) {
    let server = |a: &Ipv6Addr| if a.is_unicast_link_local() { format!("{a}%{interface}") } else { a.to_string() };
    let servers: Vec<String> = said.servers.iter().map(server).collect();
    let told = Command::new(program)
        .env("interface", interface)
        .env("dns", servers.join(" "))
        .env("search", said.domains.join(" "))
        .env("other", if said.other { "yes" } else { "no" })
        .stdin(Stdio::null())
        .status();
    if let Err(e) = told {
        eprintln!("radns: {program}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advertisement(flags: u8, options: &[u8]) -> Vec<u8> {
        let mut m = vec![134, 0, 0, 0, 64, flags, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        m.extend_from_slice(options);
        m
    }

    #[test]
    fn servers_and_domains_are_read() {
        let server = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x53);
        let mut options = vec![1, 1, 0, 1, 2, 3, 4, 5, 25, 3, 0, 0, 0, 0, 2, 88];
        options.extend(server.octets());
        options
            .extend([31, 3, 0, 0, 0, 0, 2, 88, 4, b'h', b'o', b'm', b'e', 4, b't', b'e', b's', b't', 0, 0, 0, 0, 0, 0]);
        let said = parse(&advertisement(0x40, &options)).expect("it is right");
        assert_eq!((said.servers, said.domains), (vec![server], vec!["home.test".to_owned()]));
        assert_eq!((said.other, said.lifetime), (true, 600));
    }

    #[test]
    fn broken_ones_are_refused_or_say_nothing() {
        assert_eq!(parse(&[134, 0, 0]), None);
        assert_eq!(parse(&[135; 16]), None);
        for options in [&[25, 0, 0, 0][..], &[25, 9, 0, 0, 0, 0, 0, 1], &[25]] {
            let said = parse(&advertisement(0, options));
            assert!(said.is_none_or(|s| s.servers.is_empty()), "{options:?}");
        }
        // A lifetime of nothing, an address that is none, names that are no names.
        let mut unusable = vec![25, 3, 0, 0, 0, 0, 0, 0];
        unusable.extend([0xfe; 16]);
        unusable.extend([25, 3, 0, 0, 0, 0, 0, 9]);
        unusable.extend([0xff; 16]);
        unusable.extend([31, 2, 0, 0, 0, 0, 0, 9, 3, b'$', b'(', b')', 0, 0, 0, 0]);
        unusable.extend([31, 2, 0, 0, 0, 0, 0, 9, 60, b'a', b'a', b'a', b'a', b'a', b'a', b'a']);
        let said = parse(&advertisement(0, &unusable)).expect("a message");
        assert_eq!((said.servers.len(), said.domains.len()), (0, 0));
        for seed in 0..2000u32 {
            let noise: Vec<u8> =
                (0..seed % 97).map(|n| (seed.wrapping_mul(2_654_435_761).rotate_left(n) >> 7) as u8).collect();
            let _ = parse(&advertisement(0, &noise));
        }
    }
}
