//! s4: all CPUs at once do everything that takes and gives back memory; afterwards all of it is back.

use super::programs::{checked, control, on_each};
use crate::gate::{Case, Gate, Options};

/// The gate.
pub const GATE: Gate = Gate {
    name: "s4",
    title: "memory, pipes, fork and exec, files, mappings and sockets on all CPUs at once; nothing is left afterwards",
    cases,
};

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["stress"], |_, _| Ok(()));
    // Its run-time checks would report a wrong lock order.
    cases.push(checked(4, &["stress"]));
    cases.push(control(
        "a frame is lost with each process",
        1,
        "berth.sabotage=leak-frame",
        &["stress"],
        "stress.all_at_once",
    ));
    cases
}
