//! The gates: what must be observable, each in a file of its own.

mod m1;

use crate::gate::Gate;

/// Every gate, in the order in which `all` runs them.
pub const ALL: &[Gate] = &[m1::GATE];
