//! The gates: what must be observable, each in a file of its own.

mod m1;
mod m2;
mod m3;
mod m4;
mod programs;

use crate::gate::Gate;

/// Every gate, in the order in which `all` runs them.
pub const ALL: &[Gate] = &[m1::GATE, m2::GATE, m3::GATE, m4::GATE];
