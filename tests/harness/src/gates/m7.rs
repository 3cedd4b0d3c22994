//! m7: waiting for events: poll, select, epoll, and the files that stand for events, over pipes, sockets and terminals.
//!
//! Its negative control takes epoll's edges for levels.

use super::programs::{checked, control, on_each};
use crate::gate::{Case, Gate, Options};

/// The gate.
pub const GATE: Gate = Gate {
    name: "m7",
    title: "poll, select, epoll in all its modes, eventfd, timerfd, signalfd, inotify, pidfd, waited for together; System V IPC, splice",
    cases,
};

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["ipc", "events", "polls", "sysv", "splice"], |_, _| Ok(()));
    cases.push(checked(4, &["ipc", "events", "polls", "sysv", "splice"]));
    cases.push(control(
        "edges taken for levels",
        4,
        "berth.sabotage=edges",
        &["ipc -t20 epoll_levels_edges_oneshot"],
        "ipc.epoll_levels_edges_oneshot",
    ));
    cases
}
