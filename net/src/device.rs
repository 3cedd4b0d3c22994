//! The seam to network devices.

use crate::packet::Packet;

bitflags::bitflags! {
    /// What a device does by itself.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u32 {
        /// Completes TCP and UDP checksums of packets it sends ([`Packet::csum`]).
        const TX_CSUM = 1;
        /// Speaks IP without a link layer (loopback, tunnels): no Ethernet header, no neighbours.
        const NO_LINK = 2;
    }
}

/// What the device knows of a frame that it received.
#[derive(Clone, Copy, Debug, Default)]
pub struct RxMeta {
    /// The transport checksum was verified, or the frame never left this host.
    pub csum_ok: bool,
}

/// A network device as the stack sees it. Received frames go to [`crate::Stack::receive`].
pub trait NetDevice: Send + Sync {
    /// Queues a frame for sending; false if it was dropped for want of room or a link: transports recover. Context:
    /// threads, no lock of the stack held; must not sleep.
    fn transmit(&self, frame: Packet) -> bool;
    /// Sends what was held back because more was to follow ([`Packet::more`]). Context: as [`NetDevice::transmit`].
    fn flush(&self) {}
    /// Its address.
    fn mac(&self) -> [u8; 6];
    /// The largest IP packet that it carries, in bytes.
    fn mtu(&self) -> usize;
    /// What it does by itself.
    fn features(&self) -> Features;
    /// Whether the link is up.
    fn link_up(&self) -> bool {
        true
    }
}

impl<T: NetDevice + ?Sized> NetDevice for &'static T {
    fn transmit(&self, frame: Packet) -> bool {
        (**self).transmit(frame)
    }
    fn flush(&self) {
        (**self).flush();
    }
    fn mac(&self) -> [u8; 6] {
        (**self).mac()
    }
    fn mtu(&self) -> usize {
        (**self).mtu()
    }
    fn features(&self) -> Features {
        (**self).features()
    }
    fn link_up(&self) -> bool {
        (**self).link_up()
    }
}
