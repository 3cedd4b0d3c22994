//! n2: TCP to its ends, with loss, reordering, duplication and damage between two machines; a thousand connections at once;
//! UDP; unix sockets. The programs at both ends compare every byte.

use super::n1::quiet;
use super::storm::storm;
use crate::error::{Outcome, check};
use crate::gate::{Case, Context, Gate, Options};
use crate::net::{HostServer, configured, echo_server, host_client, many_files, peer, until, user_network};
use crate::shell::Shell;
use crate::wire::{Faults, Wire};

/// The gate.
pub const GATE: Gate = Gate {
    name: "n2",
    title: "TCP under loss, reordering, duplication and damage; backlog, resets, keep-alive; 1000 connections; UDP; unix",
    cases,
};

const BAD: Faults = Faults { loss: 20, duplicate: 20, reorder: 30, corrupt: 10 };
const THOUSAND: usize = 1000;

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = super::programs::on_each(&o.smp, &["net"], |_, _| Ok(()));
    cases.push(super::programs::checked(4, &["net"]));
    for &smp in &o.smp {
        cases.push(Case::new(format!("bad cable smp{smp}"), move |c| cable(c, smp, BAD, "")));
        cases.push(Case::new(format!("a thousand connections smp{smp}"), move |c| thousand(c, smp)));
        cases.push(Case::new(format!("a silent peer and a narrow path smp{smp}"), move |c| silence(c, smp, "")));
        cases.push(Case::new(format!("an open network smp{smp}"), move |c| storm(c, smp, "", None)).berth());
    }
    let damage = Faults { corrupt: 100, ..Faults::default() };
    cases.push(
        Case::new("control: checksums not looked at", move |c| cable(c, 1, damage, "berth.sabotage=checksum"))
            .control("netpeer.client"),
    );
    cases.push(
        Case::new("control: acknowledgements not sent", |c| cable(c, 1, Faults::default(), "berth.sabotage=acks"))
            .control("netpeer.client"),
    );
    cases.push(
        Case::new("control: path MTU not kept", |c| silence(c, 1, "berth.sabotage=path-mtu")).control("netpeer.client"),
    );
    cases.push(
        Case::new("control: no cookies under a flood", |c| storm(c, 1, "berth.sabotage=cookies", Some(12)))
            .control("n2.flood_new"),
    );
    cases
}

/// Two machines with addresses on a cable.
fn joined(c: &mut Context<'_>, smp: u32, wire: &Wire, words: &str) -> Outcome<[Shell; 2]> {
    let mut ends = Vec::new();
    for side in 0..2 {
        let mut config = c.config(smp);
        config.append.push_str(&format!(" {words}"));
        wire.attach(&mut config, side);
        let mut sh = c.boot(&config)?;
        quiet(&mut sh)?;
        let n = side + 1;
        sh.ok(&format!("ip addr add 10.5.0.{n}/24 dev eth0; ip addr add fd05::{n}/64 dev eth0; ip link set eth0 up"))?;
        echo_server(&mut sh, 7)?;
        crate::net::addresses_checked(&mut sh)?;
        ends.push(sh);
    }
    ends.try_into().map_err(|_| crate::error::Failure::new("harness", "two machines"))
}

fn cable(c: &mut Context<'_>, smp: u32, faults: Faults, words: &str) -> Outcome {
    let wire = Wire::new(faults, 7)?;
    let [mut a, mut b] = joined(c, smp, &wire, words)?;
    let limit = if words.is_empty() { 300 } else { 60 };
    for sh in [&mut a, &mut b] {
        sh.ok(&format!("export LIMIT={limit}"))?;
    }
    let exchange = |a: &mut Shell, b: &mut Shell| {
        peer(b, "client 10.5.0.1 7 20 100000")?;
        peer(a, "client fd05::2 7 10 100000")?;
        peer(b, "udp 10.5.0.1 7 60")?;
        peer(a, "udp fd05::2 7 60")
    };
    if let Err(mut f) = exchange(&mut a, &mut b) {
        // How both ends see what is stuck.
        for sh in [&mut a, &mut b] {
            f.detail.push('\n');
            f.detail.push_str(&sh.run("netstat -tn; cat /proc/net/dev", crate::shell::COMMAND_LIMIT)?.output);
        }
        return Err(f);
    }
    let (passed, harmed, _) = wire.counts();
    check(harmed > passed / 50, "n2.faults_happened", || format!("{harmed} of {passed} frames"))?;
    a.poweroff()?;
    b.poweroff()
}

fn thousand(c: &mut Context<'_>, smp: u32) -> Outcome {
    many_files();
    let mut config = c.config(smp);
    let port = user_network(&mut config, "")?;
    let mut sh = c.boot(&config)?;
    configured(&mut sh, "n2.dhcp")?;
    echo_server(&mut sh, 22)?;
    host_client(port, THOUSAND)?;
    let server = HostServer::start()?;
    sh.ok("ulimit -n 4096")?;
    peer(&mut sh, &format!("client 10.0.2.2 {} {THOUSAND} 4000", server.port))?;
    check(server.most() == THOUSAND, "n2.thousand_at_once", || format!("{} at once", server.most()))?;
    // Nothing is left but records.
    until(&mut sh, "n2.connections_end", "netstat -tn | grep -c ESTABLISHED || true", "0")?;
    sh.poweroff()
}

/// A peer that falls silent is noticed by keep-alive; a path that turns narrow is learned.
fn silence(c: &mut Context<'_>, smp: u32, words: &str) -> Outcome {
    let wire = Wire::new(Faults::default(), 9)?;
    let [a, mut b] = joined(c, smp, &wire, words)?;
    wire.narrow(1000);
    b.ok(&format!("export LIMIT={}", if words.is_empty() { 300 } else { 30 }))?;
    peer(&mut b, "client 10.5.0.1 7 3 200000")?;
    let (_, _, refused) = wire.counts();
    check(refused > 0, "n2.path_was_narrow", || "no packet was too large".into())?;
    wire.narrow(0);
    b.ok("/usr/lib/berth-tests/netpeer keepalive 10.5.0.1 7 >/tmp/ka.out 2>&1 & true")?;
    until(&mut b, "n2.keepalive_keeps", "cat /tmp/ka.out", "connected")?;
    wire.cut(true);
    let end = until(&mut b, "n2.keepalive", "cat /tmp/ka.out", "passed")?;
    check(end.contains("1 passed, 0 failed"), "n2.keepalive", || end.clone())?;
    a.poweroff()?;
    b.poweroff()
}
