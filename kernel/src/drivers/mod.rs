//! Device drivers.

pub mod pl011;
pub mod pl031;
