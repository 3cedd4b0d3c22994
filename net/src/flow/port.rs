//! A connection's smoltcp interface has this for its device: one segment comes in, any number goes out into a list.

use crate::packet::Packet;
use alloc::vec::Vec;
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// What smoltcp sees of the world.
pub(super) struct Port<'a> {
    pub(super) rx: Option<&'a [u8]>,
    pub(super) out: &'a mut Vec<Packet>,
    pub(super) mtu: usize,
}
pub(super) struct Rx<'a>(&'a [u8]);
pub(super) struct Tx<'a>(&'a mut Vec<Packet>);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}
impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // smoltcp writes all of the payload.
        let mut p = Packet::unset(len);
        let r = f(p.bytes_mut());
        self.0.push(p);
        r
    }
}
impl Device for Port<'_> {
    type RxToken<'b>
        = Rx<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Tx<'b>
    where
        Self: 'b;
    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        Some((Rx(self.rx.take()?), Tx(self.out)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(self.out))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = self.mtu;
        caps.checksum = ChecksumCapabilities::ignored();
        caps.checksum.ipv4 = smoltcp::phy::Checksum::Tx;
        caps
    }
}
