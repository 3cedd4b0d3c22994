//! Device drivers.

pub mod claims;
pub mod disk;
pub mod pl011;
pub mod pl031;
pub mod virtio;
