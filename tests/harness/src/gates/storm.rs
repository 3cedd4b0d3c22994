//! What an open network brings to the hosting machine, as cases of n2: port scans, floods of SYNs, datagrams to nobody, and
//! packets of every layer that are cut short, damaged or lies. A connection from before goes on through all of it, new ones are
//! made after each, and in the end memory is where it was. The frames are the same at every run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::cpio::{Entry, overlay};
use crate::error::{Failure, Outcome, check};
use crate::frames::{Ends, Mac, Random, Segment, arp, damage, ethernet, flag, icmp, packet, tcp, udp};
use crate::gate::Context;
use crate::net::until;
use crate::shell::Shell;
use crate::station::{Conn, FOUR, MACHINE_FOUR, MACHINE_LINK, MACHINE_SIX, OURS, Station, THEIRS, to_machine};

/// For a hang, not a measure.
const LIMIT: Duration = Duration::from_secs(120);
/// Ports that are tried, of each version.
const PORTS: u16 = 2000;
/// SYNs from nowhere.
const SYNS: usize = 20_000;
/// Datagrams to ports where nobody is.
const DATAGRAMS: usize = 3000;
/// Packets that should not be.
const LIES: usize = 12_000;
/// What a machine may have less afterwards, in KiB: records of a flood, neighbours, pages of caches.
const MEMORY: i64 = 24 << 10;

/// The machine's web server, with room for connections that do nothing for long.
const HTTPD: &[u8] = b"log = \"\"\n[[listen]]\naddress = \"[::]:80\"\n[[route]]\npath = \"/\"\nfiles = \"/etc/www\"\n\
    [limits]\nidle_seconds = 9999\nheader_bytes = 8192\n";

struct Storm {
    station: Station,
    sh: Shell,
    /// A connection from before the storm.
    old: Conn,
    random: Random,
    /// How long a new connection may take.
    limit: Duration,
}

/// The case; `words` break the machine for a control, which waits `limit` for its connection after the flood and no longer.
pub fn storm(c: &mut Context<'_>, smp: u32, words: &str, limit: Option<u64>) -> Outcome {
    let mut station = Station::new()?;
    let mut config = c.config(smp);
    config.append.push_str(&format!(" {words}"));
    let entries = [
        Entry::Dir("etc/www", 0o755),
        Entry::File("etc/www/healthz", 0o644, b"well\n"),
        Entry::File("etc/network", 0o644, b"eth0 10.5.0.2/24 gateway 10.5.0.1\n"),
        Entry::File("etc/httpd.toml", 0o644, HTTPD),
    ];
    config.initrd = Some(overlay(&c.options.paths.host_initrd()?, &entries, c.dir.join("initrd.cpio"))?);
    station.attach(&mut config);
    let mut sh = c.boot(&config)?;
    sh.ok("ip -6 addr add fd05::2/64 dev eth0")?;
    until(&mut sh, "n2.storm_boot", "wget -q -O - http://127.0.0.1/healthz", "well")?;
    // The scan wants to find it.
    until(&mut sh, "n2.storm_boot", "cat /proc/net/tcp /proc/net/tcp6", ":0016 ")?;
    crate::net::addresses_checked(&mut sh)?;
    let old = station.connect("n2.storm_before", MACHINE_FOUR.into(), 80, LIMIT)?;
    let mut s = Storm { station, sh, old, random: Random(20), limit: LIMIT };
    s.well("before", &["n2.storm_before"; 3])?;
    let before = s.available()?;
    s.scan()?;
    s.well("scan", &["n2.scan_old", "n2.scan_new", "n2.scan_new_six"])?;
    s.flood()?;
    s.limit = limit.map_or(LIMIT, Duration::from_secs);
    s.well("flood", &["n2.flood_old", "n2.flood_new", "n2.flood_new_six"])?;
    s.limit = LIMIT;
    s.datagrams()?;
    s.well("datagrams", &["n2.datagrams_old", "n2.datagrams_new", "n2.datagrams_new_six"])?;
    s.lies()?;
    s.well("lies", &["n2.lies_old", "n2.lies_new", "n2.lies_new_six"])?;
    let after = s.available()?;
    check(before - after < MEMORY, "n2.storm_memory", || format!("{before} KiB before, {after} KiB after"))?;
    let neighbours = s.sh.ok("ip neigh | wc -l")?;
    let few = neighbours.trim().parse::<u32>().is_ok_and(|n| n <= 1024);
    check(few, "n2.storm_neighbours", || neighbours.clone())?;
    // They did come in, and were not lost on the way.
    let received = s.sh.ok("awk '/eth0/ {print $3}' /proc/net/dev")?;
    let sent = usize::from(PORTS) * 2 + SYNS + DATAGRAMS + LIES;
    let most = received.trim().parse::<usize>().is_ok_and(|n| n > sent * 9 / 10);
    check(most, "n2.storm_received", || format!("{received} of {sent} frames"))?;
    let services = s.sh.ok("svc")?;
    check(!services.contains("restarts"), "n2.storm_services", || services.clone())?;
    println!("     {received} frames received, {} KiB less memory than before", before - after);
    s.sh.poweroff()
}

/// A name server by advertisement, and others by DHCPv6 when the router says so, are asked from then on (a case of n1).
pub fn advertised(c: &mut Context<'_>, smp: u32) -> Outcome {
    use crate::station::Router;
    let station = Station::new()?;
    let mut config = c.config(smp);
    config.initrd = Some(c.options.paths.host_initrd()?);
    station.attach(&mut config);
    let first = Router {
        servers: vec![Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 0x53)],
        domain: Some("harbour.test"),
        ..Router::default()
    };
    station.route(first);
    let mut sh = c.boot(&config)?;
    let names = until(&mut sh, "n1.rdnss", "cat /etc/resolv.conf", "nameserver fd05::53")?;
    check(names.contains("search harbour.test"), "n1.dnssl", || names.clone())?;
    until(&mut sh, "n1.slaac", "ip -6 addr show eth0; ip -6 route", "fd05::5054:ff:fe00:2")?;
    until(&mut sh, "n1.router", "ip -6 route", "default via fe80::1")?;
    // Another router: it names nobody, and a server has more to say.
    drop(sh);
    station.route(Router {
        other: true,
        by_dhcp: vec![Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 0x54), Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 0x55)],
        ..Router::default()
    });
    let mut sh = c.boot(&config)?;
    let names =
        until(&mut sh, "n1.dhcp_six", "cat /etc/resolv.conf", "nameserver fd05:0000:0000:0000:0000:0000:0000:0054")?;
    check(names.contains("nameserver fd05:0000:0000:0000:0000:0000:0000:0055"), "n1.dhcp_six", || names.clone())?;
    let seen = station.seen();
    check(seen.solicitations > 0 && seen.requests > 0, "n1.dhcp_six", || format!("{seen:?}"))?;
    sh.poweroff()
}

impl Storm {
    /// The old connection is served, and a new one of each version.
    fn well(&mut self, after: &str, what: &[&str; 3]) -> Outcome {
        let told = |r: Outcome| r.map_err(|f| Failure::new(f.what, format!("after {after}: {}", f.detail)));
        told(self.station.ask(what[0], self.old, "/healthz", LIMIT))?;
        for (to, what) in [(IpAddr::V4(MACHINE_FOUR), what[1]), (IpAddr::V6(MACHINE_SIX), what[2])] {
            let conn = self.station.connect(what, to, 80, self.limit)?;
            told(self.station.ask(what, conn, "/healthz", LIMIT))?;
            self.station.drop_conn(conn);
        }
        Ok(())
    }

    fn available(&mut self) -> Outcome<i64> {
        let text = self.sh.ok("awk '/^MemAvailable/ {print $2}' /proc/meminfo")?;
        text.trim().parse().map_err(|_| Failure::new("harness.number", text))
    }

    /// Sends a frame, and now and then a request on the old connection.
    fn throw(&self, n: usize, frame: &[u8]) -> Outcome {
        check(self.station.throw(frame), "n2.takes_frames", || format!("frame {n} was not taken for a minute"))?;
        if n % 4000 == 3999 {
            self.station.ask("n2.goes_on", self.old, "/healthz", LIMIT)?;
        }
        Ok(())
    }

    /// Every port of the first, by SYNs that are never followed up: what is open shows, and nothing else.
    fn scan(&mut self) -> Outcome {
        for to in [IpAddr::V4(MACHINE_FOUR), IpAddr::V6(MACHINE_SIX)] {
            for port in 1..=PORTS {
                let seq = self.random.bits() as u32;
                let s = Segment { from: 40_000, to: port, seq, flags: flag::SYN, ..Segment::default() };
                self.throw(usize::from(port), &tcp(&to_machine(to), &s))?;
            }
        }
        self.station.until_seen("n2.scan_answers", LIMIT, |s| s.open.contains(&80) && s.refused.contains(&PORTS))?;
        let seen = self.station.seen();
        let open: Vec<u16> = seen.open.iter().copied().collect();
        check(open == [22, 80], "n2.scan_open", || format!("{open:?}"))?;
        let refused = seen.refused.len();
        check(refused > usize::from(PORTS) / 2 && !seen.refused.contains(&80), "n2.scan_refused", || {
            refused.to_string()
        })
    }

    fn flood(&mut self) -> Outcome {
        for n in 0..SYNS {
            let r = self.random.bits();
            // Most from far away, some from the same link, where the machine looks for them.
            let to = if n % 4 == 3 { IpAddr::V6(MACHINE_SIX) } else { IpAddr::V4(MACHINE_FOUR) };
            let from = match n % 8 {
                3 => IpAddr::V6(Ipv6Addr::from(0xfd05_u128 << 112 | u128::from(r | 256))),
                7 => IpAddr::V6(Ipv6Addr::from(0xfd0a_u128 << 112 | u128::from(r))),
                0 => IpAddr::V4(Ipv4Addr::new(10, 5, 0, 3 + (r % 250) as u8)),
                _ => IpAddr::V4(Ipv4Addr::from(0x0a09_0000 | (r as u32 & 0xffff))),
            };
            let ends = Ends { from_mac: OURS, to_mac: THEIRS, from, to };
            let from = (r >> 32) as u16 | 1024;
            let s = Segment {
                from,
                to: 80,
                seq: (r >> 16) as u32,
                flags: flag::SYN,
                options: &[2, 4, 5, 0xa0],
                ..Segment::default()
            };
            self.throw(n, &tcp(&ends, &s))?;
        }
        Ok(())
    }

    fn datagrams(&mut self) -> Outcome {
        let before = self.station.seen().unreachable;
        for n in 0..DATAGRAMS {
            let to = if n % 3 == 0 { IpAddr::V6(MACHINE_SIX) } else { IpAddr::V4(MACHINE_FOUR) };
            let length = self.random.below(1400);
            let data = self.random.bytes(length);
            self.throw(n, &udp(&to_machine(to), 1024 + n as u16, 20_000 + n as u16, &data))?;
        }
        self.station.until_seen("n2.unreachable", LIMIT, |s| s.unreachable > before)?;
        // Errors are limited in their rate, not sent for each.
        Ok(())
    }

    fn lies(&mut self) -> Outcome {
        for n in 0..LIES {
            let frame = self.lie(n);
            self.throw(n, &frame)?;
        }
        Ok(())
    }

    /// A sender that is not the station: what it says about itself must not hurt the station's connections.
    fn stranger(&mut self, six: bool) -> Ends {
        let r = self.random.bits();
        let mac: Mac = [0x52, 0x54, 0, 1, r as u8, (r >> 8) as u8];
        let odd = r >> 16 & 7;
        let (from, to) = if six {
            let from = match odd {
                0 => MACHINE_SIX,
                1 => Ipv6Addr::UNSPECIFIED,
                2 => Ipv6Addr::LOCALHOST,
                3 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
                _ => Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(r | 256)),
            };
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            (IpAddr::V6(from), IpAddr::V6(self.random.of(&[MACHINE_SIX, MACHINE_LINK, all])))
        } else {
            let from = match odd {
                0 => MACHINE_FOUR,
                1 => Ipv4Addr::UNSPECIFIED,
                2 => Ipv4Addr::LOCALHOST,
                3 => Ipv4Addr::BROADCAST,
                4 => Ipv4Addr::new(224, 0, 0, 1),
                _ => Ipv4Addr::new(10, 5, 0, 3 + (r >> 24) as u8 % 250),
            };
            let to = [
                MACHINE_FOUR,
                MACHINE_FOUR,
                Ipv4Addr::new(10, 5, 0, 255),
                Ipv4Addr::BROADCAST,
                Ipv4Addr::new(224, 0, 0, 1),
            ];
            (IpAddr::V4(from), IpAddr::V4(self.random.of(&to)))
        };
        Ends { from_mac: mac, to_mac: THEIRS, from, to }
    }

    fn lie(&mut self, n: usize) -> Vec<u8> {
        let six = self.random.below(2) == 0;
        let ends = self.stranger(six);
        let port = self.random.of(&[22, 80, 80, 7, 5353, 68, 546]);
        let other = self.random.bits() as u16;
        let length = self.random.below(200);
        let data = self.random.bytes(length);
        let whole = match n % 10 {
            0 => self.arp_lie(),
            1 => udp(&ends, other, port, &data),
            2 => {
                // Any flags, any options, any length of header, with a right sum.
                let mut bytes = self.random.bytes(20 + 4 * (n % 11));
                bytes[2..4].copy_from_slice(&port.to_be_bytes());
                packet(&ends, 6, bytes, Some(16))
            }
            3 => {
                let kind = if six { 128 + self.random.below(16) as u8 } else { self.random.below(20) as u8 };
                icmp(&ends, kind, (other % 4) as u8, &data)
            }
            4 => self.neighbour_lie(ends),
            5 => self.extension_lie(ends),
            6 => self.header_lie(ends, &data),
            7 => return self.aimed(n),
            8 => self.quote(),
            _ => ethernet(ends.from_mac, THEIRS, self.random.of(&[0x0800, 0x0806, 0x86dd, 0x8100, 0x0004]), &data),
        };
        // A third stays as it is, with right sums.
        if self.random.below(3) == 0 { whole } else { damage(whole, &mut self.random) }
    }

    fn arp_lie(&mut self) -> Vec<u8> {
        let r = self.random.bits();
        let mac: Mac = [r as u8, 1, 2, 3, 4, (r >> 8) as u8];
        // Anybody but the station, the machine itself included.
        let sender = self.random.of(&[
            MACHINE_FOUR,
            Ipv4Addr::new(10, 5, 0, 3 + (r >> 16) as u8 % 250),
            Ipv4Addr::BROADCAST,
            Ipv4Addr::UNSPECIFIED,
        ]);
        let target = self.random.of(&[MACHINE_FOUR, FOUR, Ipv4Addr::new(10, 5, 0, 99)]);
        let mut frame = arp(THEIRS, (r >> 24) as u16 % 4, (mac, sender), (THEIRS, target));
        // Kinds and lengths that are not ours.
        if self.random.below(2) == 0 {
            frame[14 + self.random.below(8)] = self.random.bits() as u8;
        }
        frame
    }

    /// Solicitations, advertisements and redirects with options that are too long, too short, empty or endless.
    fn neighbour_lie(&mut self, ends: Ends) -> Vec<u8> {
        let own = Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(self.random.bits() | 256));
        let ends = Ends { from: own.into(), to: MACHINE_LINK.into(), ..ends };
        let kind = self.random.of(&[133, 134, 135, 136, 137]);
        let mut body = match kind {
            133 => vec![0; 4],
            // No router for any time: the way out is not theirs to change.
            134 => [&[64, 0xc0, 0, 0][..], &self.random.bytes(8)].concat(),
            135 | 136 => [&[0x60, 0, 0, 0][..], &self.random.of(&[own, MACHINE_LINK]).octets()].concat(),
            _ => [&[0; 4][..], &own.octets(), &own.octets()].concat(),
        };
        for _ in 0..self.random.below(5) {
            let units = self.random.of(&[0, 1, 1, 2, 4, 255]);
            let more = usize::from(units) * 8;
            let mut option = self.random.bytes(more.clamp(2, 40));
            option[0] = self.random.of(&[1, 2, 3, 4, 5, 25, 31, 200]);
            option[1] = units;
            body.extend(option);
        }
        icmp(&ends, kind, 0, &body)
    }

    /// Chains of extension headers, fragments of what never becomes whole or overlaps.
    fn extension_lie(&mut self, ends: Ends) -> Vec<u8> {
        let next = [0, 43, 44, 51, 58, 59, 60, 6, 17, 41, 135];
        if ends.to.is_ipv4() {
            let length = self.random.below(1400);
            let mut frame = packet(&ends, self.random.of(&[1, 6, 17]), self.random.bytes(length), None);
            let piece = self.random.bits() as u16 & 0x3fff;
            frame[18..20].copy_from_slice(&[0, (piece & 3) as u8]);
            frame[20..22].copy_from_slice(&piece.to_be_bytes());
            frame[24..26].fill(0);
            let sum = crate::frames::checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum);
            return frame;
        }
        let mut bytes = Vec::new();
        let first = self.random.of(&next);
        for _ in 0..self.random.below(12) {
            let units = self.random.of(&[0, 0, 1, 2, 31, 255]);
            bytes.extend([self.random.of(&next), units]);
            let filled = self.random.of(&[6, 6, 14, 22]);
            bytes.extend(self.random.bytes(filled));
        }
        bytes.extend(self.random.bytes(24));
        packet(&ends, first, bytes, None)
    }

    /// Lengths, versions and options of IP that do not fit the rest; the sum is right.
    fn header_lie(&mut self, ends: Ends, data: &[u8]) -> Vec<u8> {
        let mut frame = udp(&ends, 5353, 5353, data);
        if ends.to.is_ipv4() {
            match self.random.below(5) {
                0 => frame[14] = 0x40 | self.random.below(16) as u8,
                1 => frame[16..18].copy_from_slice(&(self.random.bits() as u16).to_be_bytes()),
                2 => frame[22] = 0,
                3 => {
                    // Options: four to forty bytes of anything.
                    let options = 4 * (1 + self.random.below(10));
                    let bytes = self.random.bytes(options);
                    frame.splice(34..34, bytes);
                    frame[14] = 0x45 + (options / 4) as u8;
                }
                _ => frame[23] = self.random.bits() as u8,
            }
            let length = 14 + usize::from(frame[14] & 15) * 4;
            frame[24..26].fill(0);
            if let Some(header) = frame.get(14..length) {
                let sum = crate::frames::checksum(header);
                frame[24..26].copy_from_slice(&sum);
            }
        } else {
            let at = self.random.of(&[14, 18, 19, 20, 21]);
            frame[at] = self.random.bits() as u8;
        }
        frame
    }

    /// Segments that pretend to be of the old connection, with numbers that only a blind sender would take: out of the window.
    fn aimed(&mut self, n: usize) -> Vec<u8> {
        let Some((ends, s)) = self.station.spy(self.old) else { return vec![0; 60] };
        let far = 0x4000_0000 + (self.random.bits() as u32 & 0x3fff_ffff);
        let flags =
            self.random.of(&[flag::RST, flag::RST | flag::ACK, flag::SYN, flag::ACK, flag::FIN | flag::ACK, 0xff, 0]);
        let data = if n.is_multiple_of(2) { &b"HTTP"[..] } else { &[] };
        tcp(&ends, &Segment { seq: s.seq.wrapping_add(far), ack: s.ack.wrapping_sub(far), flags, data, ..s })
    }

    /// ICMP errors about the old connection, again with numbers that are not its own.
    fn quote(&mut self) -> Vec<u8> {
        let Some((ends, s)) = self.station.spy(self.old) else { return vec![0; 60] };
        let far = 0x4000_0000 + (self.random.bits() as u32 & 0x3fff_ffff);
        let theirs = Ends { from: ends.to, to: ends.from, ..ends };
        let said =
            Segment { from: s.to, to: s.from, seq: s.ack.wrapping_add(far), flags: flag::ACK, ..Segment::default() };
        let quoted = tcp(&theirs, &said);
        let (kind, code) = self.random.of(&[(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (11, 0), (12, 0), (4, 0), (5, 1)]);
        let mtu = self.random.of(&[0, 1, 68, 296, 576, 65535u16]).to_be_bytes();
        let rest = [&[0, 0][..], &mtu, &quoted[14..]].concat();
        icmp(&ends, kind, code, &rest)
    }
}
