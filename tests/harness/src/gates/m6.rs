//! m6: threads as C libraries make them: mutexes of every kind, condition variables, cancellation, many threads, exits.
//!
//! Its negative control does not tell the next locker that a robust mutex's owner was killed.

use super::programs::{checked, control, on_each};
use crate::gate::{Case, Gate, Options};

/// The gate.
pub const GATE: Gate = Gate {
    name: "m6",
    title: "threads: create, join, detach, mutexes of every kind, condition variables, TLS, cancellation, 500 at once",
    cases,
};

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["futex", "threads"], |_, _| Ok(()));
    for &smp in &o.smp {
        cases.push(Case::new(format!("glibc smp{smp}"), move |c| super::debian::pthreads(c, smp)).berth());
    }
    cases.push(checked(4, &["futex", "threads"]));
    cases.push(control(
        "robust lists not walked",
        4,
        "berth.sabotage=robust",
        &["threads -t20 robust_between_processes"],
        "threads.robust_between_processes",
    ));
    cases
}
