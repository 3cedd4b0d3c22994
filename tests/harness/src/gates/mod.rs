//! The gates: what must be observable, each in a file of its own.

mod acme;
mod base;
mod busybox;
mod crowd;
mod d0;
mod d1;
mod d2;
mod d3;
mod d4;
mod debian;
mod init;
mod linux;
mod m1;
mod m2;
mod m3;
mod m4;
mod m5;
mod m6;
mod m7;
mod n1;
mod n2;
mod n3;
mod n4;
mod n5;
mod programs;
mod s0;
mod s1;
mod s2;
mod s3;
mod s4;
mod storm;
mod surface;

use crate::gate::Gate;

/// Every gate, in the order in which `all` runs them.
pub const ALL: &[Gate] = &[
    m1::GATE,
    m2::GATE,
    m3::GATE,
    m4::GATE,
    m5::GATE,
    m6::GATE,
    m7::GATE,
    s0::GATE,
    s1::GATE,
    s2::GATE,
    s3::GATE,
    s4::GATE,
    d0::GATE,
    d1::GATE,
    d2::GATE,
    d3::GATE,
    d4::GATE,
    linux::GATE,
    init::GATE,
    n1::GATE,
    n2::GATE,
    n3::GATE,
    n4::GATE,
    n5::GATE,
    surface::HOSTILE,
    surface::FILES,
    surface::TTY,
    surface::EXHAUST,
    base::GATE,
    busybox::GATE,
    debian::GATE,
];
