//! Berth's network stack.
//!
//! # Ideas
//! smoltcp runs TCP, one small interface with one socket per connection ([`flow`]); everything around it is here: frames
//! and neighbours ([`neigh`]), addresses and routes ([`config`]), demultiplexing by hashed 4-tuple ([`tcp`]), listeners
//! with a bounded SYN queue and SYN cookies ([`listen`]), UDP and raw endpoints, loopback without Ethernet, and the
//! sockets that programs see ([`socket`], [`unix`]). A packet costs the same however many connections there are, and two CPUs that serve two connections share no lock but a short-held bucket of a table now and then.
//!
//! # Who owns what, and which lock guards it
//! | state | owner | lock (rank) |
//! | --- | --- | --- |
//! | interfaces, addresses, routes: an immutable [`config::Config`], a copy for each CPU | [`Stack`] | config (560), held to clone or replace the pointer; changes: 559 |
//! | neighbours and the packets that wait for them; CPUs' copies of answers | [`neigh::Neighbours`] | neighbours (565, 566) |
//! | what routers advertised, and until when | `slaac` | autoconfiguration (515) |
//! | a netlink socket's options; who joined groups | [`netlink`] | netlink socket (501); netlink members (502) |
//! | which ports are bound | [`ports::Ports`] | ports (520) |
//! | listeners by port | [`tcp::Tcp`] | listeners (525) |
//! | half-open and accepted connections | [`listen::Listener`] | listener (535) |
//! | connections by 4-tuple, TIME_WAIT records | [`tcp::Tcp`], 256 buckets | flow bucket (540) |
//! | one connection | [`flow::Flow`] | flow (545) |
//! | datagram endpoints by port; each one's queue | [`udp::Udp`]; [`udp::Endpoint`] | udp bucket (550); endpoint queue (555) |
//! | packets on their way through loopback | [`Stack`], 16 lanes | lane (570) |
//! | buffers kept for their next use | `pool`, 8 lanes | net buffers (598): packets may be dropped under a device's lock |
//! | deadlines | [`timers::Timers`], 16 buckets | net timers (575) |
//! | unix sockets and their names | [`unix`] | unix names (505), unix socket (510) |
//! | a socket's options and what it has become | [`socket`] | socket (500) |
//!
//! No lock is held while a packet is handed to a device, to loopback or to another flow. All of it runs in threads
//! (drivers hand packets over from a thread of theirs), so the locks do not mask interrupts.
//!
//! # Time and randomness
//! Come through [`Env`], so that tests run in virtual time.
//!
//! # What was not done
//! See `docs/limits.md`: no selective-acknowledgement sender and no CUBIC (smoltcp's needs floating point), no IGMP, no forwarding between interfaces.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod batch;
pub mod config;
pub mod dad;
pub mod device;
mod env;
pub mod flow;
mod hash;
mod icmp;
mod input;
pub mod listen;
pub mod neigh;
pub mod netlink;
mod output;
pub mod packet;
mod pool;
pub mod ports;
pub mod raw;
mod reassembly;
mod slaac;
pub mod socket;
mod stack;
pub mod tcp;
mod timers;
pub mod udp;
pub mod unix;

pub use device::{Features, NetDevice, RxMeta};
pub use env::{Env, PlatformEnv};
pub use packet::{Packet, Tuple};
pub use stack::{Counters, Limits, Sabotage, Stack};

#[cfg(test)]
mod tests;
