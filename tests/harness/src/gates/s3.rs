//! s3: a change of an address space holds on every CPU when the call returns; the reschedule chain loses nothing.

use super::programs::{control, on_each};
use crate::gate::{Case, Gate, Options};

/// The gate.
pub const GATE: Gate = Gate {
    name: "s3",
    title: "munmap, mprotect, madvise, fork: no CPU still reaches the old page; the reschedule chain agrees",
    cases,
};

fn cases(o: &Options) -> Vec<Case> {
    // An emulator stops all its CPUs for each invalidation: with another machine beside it that takes ten times as long.
    let cases = on_each(&o.smp, &["tlb", "smp resched_chain"], |_, _| Ok(()));
    let mut cases: Vec<Case> = cases.into_iter().map(Case::alone).collect();
    // The chain's own control is in s2.
    cases.push(control(
        "other CPUs are not told",
        4,
        "berth.sabotage=local-flush",
        &["tlb -t20 unmapped_everywhere"],
        "tlb.unmapped_everywhere",
    ));
    cases
}
