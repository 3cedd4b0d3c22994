//! m2: address spaces, copy-on-write, and every frame back after a thousand rounds.

use super::programs::{checked, control, on_each};
use crate::gate::{Case, Gate, Options};

/// The gate.
pub const GATE: Gate = Gate {
    name: "m2",
    title: "own address spaces, no way into the kernel's, counted copy-on-write, no frame lost",
    cases,
};

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["mem"], |_, _| Ok(()));
    cases.push(checked(4, &["mem"]));
    cases.push(control("fork copies at once", 1, "berth.sabotage=eager-fork", &["mem cow_counted"], "mem.cow_counted"));
    cases.push(control(
        "a frame lost at exit",
        1,
        "berth.sabotage=leak-frame",
        &["mem frames_return"],
        "mem.frames_return",
    ));
    cases
}
