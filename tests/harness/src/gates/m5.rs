//! m5: signals, as programs and shells need them: handlers, masks, stacks, restarts, groups, stops, waiting, timers.
//!
//! Its negative control ignores `SA_RESTART`.

use super::programs::{checked, control, on_each};
use crate::gate::{Case, Gate, Options};

/// The gate.
pub const GATE: Gate = Gate {
    name: "m5",
    title: "signals: handlers, masks, stacks, restart and EINTR in blocking calls, job control, wait, timers",
    cases,
};

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["signals", "wakes", "jobctl"], |_, _| Ok(()));
    cases.push(checked(4, &["signals", "wakes", "jobctl"]));
    cases.push(control(
        "SA_RESTART ignored",
        1,
        "berth.sabotage=restart",
        &["signals -t20 restart_and_eintr"],
        "signals.restart_and_eintr",
    ));
    cases
}
