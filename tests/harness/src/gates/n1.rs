//! n1: the machine finds its place in a network and speaks with its neighbours: DHCP, static addresses, ARP and NDP, echo both
//! ways, names, IPv4 and IPv6, loopback; a cable pulled and put back; other shapes of the device.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use crate::cpio::{Entry, overlay};
use crate::error::{Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::net::{HostServer, configured, peer, until, user_network};
use crate::shell::Shell;
use crate::wire::{Faults, Wire};

/// The gate.
pub const GATE: Gate = Gate {
    name: "n1",
    title: "DHCP, static addresses, ARP and NDP, echo both ways, names, IPv4 and IPv6, loopback, link state",
    cases,
};

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &smp in &o.smp {
        cases.push(Case::new(format!("user network smp{smp}"), move |c| user(c, smp)));
        cases.push(Case::new(format!("two machines smp{smp}"), move |c| two(c, smp, "")));
        cases.push(Case::new(format!("configured by files smp{smp}"), move |c| by_files(c, smp)).berth());
        let names = move |c: &mut Context<'_>| super::storm::advertised(c, smp);
        cases.push(Case::new(format!("name servers by advertisement and DHCPv6 smp{smp}"), names).berth());
    }
    cases.push(Case::new("cable pulled and put back", cable));
    for (name, globals, device) in [
        ("modern", true, ""),
        ("no mergeable buffers, no event index", false, ",mrg_rxbuf=off,event_idx=off,indirect_desc=off"),
        ("of before version 1, header apart", false, ",mrg_rxbuf=off,any_layout=off"),
        ("short queue, small packets", true, ",rx_queue_size=256,tx_queue_size=256,host_mtu=1280"),
        ("several queues offered", true, ",mq=on"),
    ] {
        cases.push(Case::new(format!("device: {name}"), move |c| shape(c, globals, device)));
    }
    cases.push(Case::new("control: ARP unanswered", |c| two(c, 1, "berth.sabotage=arp")).control("n1.ping"));
    cases
}

fn ping(sh: &mut Shell, what: &'static str, command: &str) -> Outcome {
    let line = format!("for i in 1 2 3 4 5; do {command} && break; done");
    let done = sh.run(&line, crate::net::EXCHANGE_LIMIT)?;
    check(done.output.contains(" 0% packet loss"), what, || format!("{command}: {}", done.output))
}

/// The emulator's network: a foreign DHCP server, router and IPv6 advertiser.
fn user(c: &mut Context<'_>, smp: u32) -> Outcome {
    let mut config = c.config(smp);
    user_network(&mut config, "")?;
    let mut sh = c.boot(&config)?;
    let seen = configured(&mut sh, "n1.dhcp")?;
    check(seen.contains("inet 10.0.2.15/24"), "n1.dhcp", || seen.clone())?;
    let names = sh.ok("cat /etc/resolv.conf")?;
    check(names.contains("nameserver 10.0.2.3"), "n1.resolv_conf", || names.clone())?;
    ping(&mut sh, "n1.ping_gateway", "ping -c 2 -W 5 10.0.2.2")?;
    ping(&mut sh, "n1.ping_loopback", "ping -c 2 -W 5 127.0.0.1")?;
    ping(&mut sh, "n1.ping_loopback", "ping -c 2 -W 5 ::1")?;
    until(&mut sh, "n1.slaac", "ip addr show eth0", "inet6 fec0::")?;
    crate::net::addresses_checked(&mut sh)?;
    ping(&mut sh, "n1.ping_router", "ping -c 2 -W 5 fec0::2")?;
    let routes = sh.ok("ip route; ip -6 route; route -n; cat /proc/net/route")?;
    check(routes.contains("default via 10.0.2.2 dev eth0"), "n1.route", || routes.clone())?;
    check(routes.contains("default via fe80::2 dev eth0"), "n1.route", || routes.clone())?;
    let counted = sh.ok("cat /proc/net/dev; ifconfig eth0")?;
    check(counted.contains("RX packets:") && !counted.contains("RX packets:0"), "n1.counters", || counted.clone())?;
    // A neighbour's address was learned and is shown.
    let neighbours = sh.ok("ip neigh; cat /proc/net/arp; arp -n")?;
    check(neighbours.contains("10.0.2.2 dev eth0 lladdr 52:55:0a:00:02:02"), "n1.arp", || neighbours.clone())?;
    sh.poweroff()
}

/// A machine at an end of `wire`, its DHCP client stopped.
fn machine(c: &mut Context<'_>, smp: u32, wire: &Wire, side: usize, words: &str) -> Outcome<Shell> {
    let mut config = c.config(smp);
    config.append.push_str(&format!(" {words}"));
    wire.attach(&mut config, side);
    let mut sh = c.boot(&config)?;
    quiet(&mut sh)?;
    Ok(sh)
}

/// Ends what configures the network at boot.
pub fn quiet(sh: &mut Shell) -> Outcome {
    until(sh, "n1.dhcp_runs", "pidof udhcpc || echo none", "")?;
    sh.run(
        "until killall udhcpc 2>/dev/null; do sleep 0.2; done; while pidof udhcpc >/dev/null; do sleep 0.1; done",
        crate::net::EXCHANGE_LIMIT,
    )?;
    Ok(())
}

/// Two machines on a cable: one is given an address by hand and serves addresses and names to the other.
fn two(c: &mut Context<'_>, smp: u32, words: &str) -> Outcome {
    let wire = Wire::new(Faults::default(), 1)?;
    let mut a = machine(c, smp, &wire, 0, words)?;
    let mut b = machine(c, smp, &wire, 1, words)?;
    a.ok("ifconfig eth0 10.5.0.1 netmask 255.255.255.0 up && ip -6 addr add fd05::1/64 dev eth0")?;
    b.ok("ip addr add 10.5.0.2/24 dev eth0 && ip link set eth0 up && ip addr add fd05::2/64 dev eth0")?;
    ping(&mut b, "n1.ping", "ping -c 2 -W 2 10.5.0.1")?;
    ping(&mut a, "n1.ping", "ping -c 2 -W 2 10.5.0.2")?;
    crate::net::addresses_checked(&mut a)?;
    crate::net::addresses_checked(&mut b)?;
    ping(&mut b, "n1.ping_six", "ping -c 2 -W 5 fd05::1")?;
    ping(&mut a, "n1.ping_six", "ping -c 2 -W 5 fd05::2")?;
    ping(&mut a, "n1.ping_link_local", "ping -c 2 -W 5 -I eth0 fe80::5054:ff:fe00:2")?;
    ping(&mut b, "n1.ping_large", "ping -c 2 -W 5 -s 8000 10.5.0.1")?;
    ping(&mut b, "n1.ping_large", "ping -c 2 -W 5 -s 8000 fd05::1")?;
    let known = b.ok("ip neigh")?;
    check(known.contains("10.5.0.1 dev eth0 lladdr 52:54:00:00:00:01 REACHABLE"), "n1.arp", || known.clone())?;
    check(known.contains("fd05::1 dev eth0 lladdr 52:54:00:00:00:01 REACHABLE"), "n1.ndp", || known.clone())?;
    // What another has is not used.
    // The other machine may be too slow to object within the second that it has: then once more.
    let add = "ip -6 addr del fd05::1/64 dev eth0 2>/dev/null; ip -6 addr add fd05::1/64 dev eth0 2>/dev/null; sleep 2; \
               ip -6 addr show dev eth0";
    until(&mut b, "n1.dad", add, "fd05::1/64 scope global tentative dadfailed")?;
    ping(&mut b, "n1.dad_other", "ping -c 2 -W 5 fd05::1")?;
    b.ok("ip addr del fd05::1/64 dev eth0")?;
    // Nobody has that address.
    peer(&mut b, "unreachable 10.5.0.77 80")?;
    peer(&mut b, "unreachable fd05::77 80")?;
    peer(&mut b, "refused 10.5.0.1 80")?;
    peer(&mut b, "refused fd05::1 80")?;

    // The other one forgets its address and gets one, with everything that belongs to it.
    a.ok(
        "printf 'start 10.5.0.100\\nend 10.5.0.110\\ninterface eth0\\nlease_file /tmp/leases\\npidfile /tmp/pid\\noption subnet 255.255.255.0\\n\
         option router 10.5.0.1\\noption dns 10.5.0.1\\noption domain berth.test\\n' >/tmp/udhcpd.conf; : >/tmp/leases; udhcpd /tmp/udhcpd.conf"
    )?;
    a.ok("printf 'files.berth.test 10.5.0.1\\n' >/tmp/dnsd.conf; dnsd -c /tmp/dnsd.conf -d")?;
    b.ok("ip addr del 10.5.0.2/24 dev eth0")?;
    let lease = b.ok("udhcpc -i eth0 -n -q -t 30 -T 2 2>&1")?;
    let got = b.ok("ip addr show eth0; ip route; cat /etc/resolv.conf")?;
    check(got.contains("inet 10.5.0.10"), "n1.dhcp", || format!("{lease}\n{got}"))?;
    check(got.contains("default via 10.5.0.1") && got.contains("search berth.test"), "n1.dhcp", || got.clone())?;
    ping(&mut b, "n1.names", "ping -4 -c 1 -W 5 files.berth.test")?;
    ping(&mut b, "n1.names", "ping -4 -c 1 -W 5 files")?;
    let none = b.run("nslookup nothing.berth.test", crate::shell::COMMAND_LIMIT)?;
    check(none.output.contains("NXDOMAIN") || none.output.contains("can't"), "n1.names", || format!("{none:?}"))?;
    a.poweroff()?;
    b.poweroff()
}

/// A hosting machine whose address, name, name server and time server are in files; the other machine is all of those. Its
/// clock is years ahead.
fn by_files(c: &mut Context<'_>, smp: u32) -> Outcome {
    let wire = Wire::new(Faults::default(), 3)?;
    let mut a = machine(c, smp, &wire, 0, "")?;
    a.ok("ifconfig eth0 10.5.0.1 netmask 255.255.255.0 up && date -s '2031-02-03 04:05'")?;
    a.ok("printf 'clock.berth.test 10.5.0.1\\n' >/tmp/dnsd.conf; dnsd -c /tmp/dnsd.conf -d")?;
    a.ok("ntpd -l")?;
    let mut config = c.config(smp);
    let files: [(&str, &[u8]); 3] = [
        ("etc/network", b"eth0 10.5.0.2/24 gateway 10.5.0.1 dns 10.5.0.1\n"),
        ("etc/hostname", b"harbour\n"),
        ("etc/ntp.conf", b"server 10.5.0.1\n"),
    ];
    let entries = files.map(|(path, text)| Entry::File(path, 0o644, text));
    config.initrd = Some(overlay(&c.options.paths.host_initrd()?, &entries, c.dir.join("initrd.cpio"))?);
    wire.attach(&mut config, 1);
    let mut b = c.boot(&config)?;
    until(&mut b, "n1.static", "ip route; ip addr show eth0", "default via 10.5.0.1")?;
    // Written last.
    until(&mut b, "n1.static", "cat /etc/resolv.conf", "nameserver 10.5.0.1")?;
    let seen = b.ok("hostname; ip addr show eth0; cat /etc/resolv.conf")?;
    let right = ["harbour\n", "inet 10.5.0.2/24", "nameserver 10.5.0.1"].iter().all(|want| seen.contains(want));
    check(right, "n1.static", || seen.clone())?;
    ping(&mut b, "n1.names", "ping -4 -c 1 -W 5 clock.berth.test")?;
    // Its own clock says otherwise at first.
    until(&mut b, "n1.ntp", "date +%Y-%m; svc log -n 5 ntp", "2031-02")?;
    let goes_on = b.ok("svc status ntp")?;
    check(goes_on.contains(" up pid") && !goes_on.contains("restarts"), "n1.ntp", || goes_on.clone())?;
    a.poweroff()?;
    b.poweroff()
}

fn set_link(at: &std::path::Path, up: bool) -> Outcome {
    let mut s = UnixStream::connect(at)?;
    let mut answers = BufReader::new(s.try_clone()?);
    let mut line = String::new();
    answers.read_line(&mut line)?;
    for command in [
        r#"{"execute":"qmp_capabilities"}"#.to_owned(),
        format!(r#"{{"execute":"set_link","arguments":{{"name":"n0","up":{up}}}}}"#),
    ] {
        s.write_all(format!("{command}\n").as_bytes())?;
        line.clear();
        answers.read_line(&mut line)?;
        check(line.contains("return"), "harness.qmp", || line.clone())?;
    }
    Ok(())
}

/// The monitor takes the link down and up again.
fn cable(c: &mut Context<'_>) -> Outcome {
    let mut config = c.config(2);
    user_network(&mut config, "")?;
    let monitor = std::env::temp_dir().join(format!("qmp-{}", std::process::id()));
    config.extra.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", monitor.display())]);
    let mut sh = c.boot(&config)?;
    configured(&mut sh, "n1.dhcp")?;
    let done = (|| {
        set_link(&monitor, false)?;
        until(&mut sh, "n1.link_down", "ip link show eth0; dmesg | tail -3", "eth0: link down")?;
        let shown = sh.ok("ip link show eth0; ifconfig eth0")?;
        check(!shown.contains("LOWER_UP") && !shown.contains("RUNNING"), "n1.link_down", || shown.clone())?;
        let lost = sh.run("ping -c 1 -W 1 10.0.2.2", crate::shell::COMMAND_LIMIT)?;
        check(lost.status != 0, "n1.link_down", || format!("{lost:?}"))?;
        set_link(&monitor, true)?;
        until(&mut sh, "n1.link_up", "ip link show eth0", "LOWER_UP")?;
        ping(&mut sh, "n1.link_up", "ping -c 2 -W 5 10.0.2.2")?;
        // Once more in the middle of a transfer, which goes on when the cable is back.
        let server = HostServer::start()?;
        let received = "awk '/eth0/ {print \"at\", $2 + 0}' /proc/net/dev";
        sh.ok(&format!("netpeer client 10.0.2.2 {} 1 30000000 >/tmp/transfer 2>&1 & true", server.port))?;
        let count = |sh: &mut Shell| -> Outcome<u64> {
            let seen = sh.ok(received)?;
            Ok(seen.trim_start_matches("at ").parse().unwrap_or(0))
        };
        let before = count(&mut sh)?;
        while count(&mut sh)? < before + 1_000_000 {
            let ended = sh.ok("cat /tmp/transfer")?;
            check(ended.is_empty(), "n1.transfer_begins", || ended.clone())?;
        }
        set_link(&monitor, false)?;
        until(&mut sh, "n1.link_down", "ip link show eth0", "NO-CARRIER")?;
        sh.ok("sleep 2")?;
        let cut = sh.ok("cat /tmp/transfer")?;
        check(cut.is_empty(), "n1.transfer_waits", || cut.clone())?;
        set_link(&monitor, true)?;
        until(&mut sh, "n1.transfer_goes_on", "cat /tmp/transfer", "1 passed, 0 failed").map(drop)
    })();
    let _ = std::fs::remove_file(&monitor);
    done?;
    sh.poweroff()
}

/// The same exchange over other shapes of the device.
fn shape(c: &mut Context<'_>, modern: bool, device: &str) -> Outcome {
    let mut config = c.config(2);
    if modern {
        config.extra.extend(["-global", "virtio-mmio.force-legacy=false"].map(str::to_owned));
    }
    user_network(&mut config, device)?;
    let mut sh = c.boot(&config)?;
    configured(&mut sh, "n1.dhcp")?;
    let server = HostServer::start()?;
    peer(&mut sh, &format!("client 10.0.2.2 {} 10 200000", server.port))?;
    sh.poweroff()
}
