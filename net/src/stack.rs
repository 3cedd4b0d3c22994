//! The stack as a whole.

use crate::config::{Config, IfConfig, IfCounters, LOOPBACK, NetIf, Shared};
use crate::env::Env;
use crate::hash::Key;
use crate::neigh::Neighbours;
use crate::packet::Packet;
use crate::ports::Ports;
use crate::raw::Raws;
use crate::reassembly::Reassembly;
use crate::slaac::Autoconf;
use crate::tcp::Tcp;
use crate::timers::{Target, Timers};
use crate::udp::Udp;
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use core::net::{Ipv4Addr, Ipv6Addr};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use sync::{LockClass, SpinLock};

static LANE: LockClass = LockClass::new("loopback lane", 570);
pub(crate) const LANES: usize = 16;

/// Bounds of the whole stack.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of connections' buffers in all. Beyond it new connections get `ENOBUFS`, or are not answered.
    pub buffers: usize,
    /// TIME_WAIT records; when full the oldest goes.
    pub time_wait: usize,
    /// First and last port that the stack chooses by itself.
    pub ephemeral: (u16, u16),
    /// What is broken on purpose, to see that tests notice.
    pub sabotage: Sabotage,
}

bitflags::bitflags! {
    /// Ways to break the stack on purpose.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Sabotage: u32 {
        /// ARP requests are not answered.
        const ARP = 1;
        /// Transport checksums are not looked at.
        const CHECKSUM = 2;
        /// Bare acknowledgements are not sent.
        const ACKS = 4;
        /// Larger segments than a path carries are sent all the same.
        const PATH_MTU = 8;
        /// A listener whose records of half-open connections are full answers nobody.
        const COOKIES = 16;
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { buffers: 256 << 20, time_wait: 16384, ephemeral: (32768, 60999), sabotage: Sabotage::empty() }
    }
}

/// Things that happened, each counted since boot.
#[derive(Debug, Default)]
pub struct Counters {
    /// Packets that could not be understood.
    pub malformed: AtomicU64,
    /// Transport checksums that were wrong.
    pub bad_checksum: AtomicU64,
    /// Packets for nobody.
    pub no_port: AtomicU64,
    /// Connections that were not taken because the accept queue or memory for buffers was full.
    pub listen_overflows: AtomicU64,
    /// SYN cookies sent.
    pub cookies_sent: AtomicU64,
    /// SYN cookies that came back right.
    pub cookies_ok: AtomicU64,
    /// RSTs sent for segments of no connection.
    pub resets_sent: AtomicU64,
    /// Datagrams dropped because their receiver's queue was full.
    pub queue_full: AtomicU64,
    /// Connections dropped after their retransmissions went unanswered.
    pub timeouts: AtomicU64,
    /// Packets dropped for want of a route or a neighbour.
    pub unreachable: AtomicU64,
}

pub(crate) struct Lane {
    pub queue: SpinLock<VecDeque<Packet>>,
    pub draining: AtomicBool,
}

/// A network stack: one in a machine, several in a test.
pub struct Stack {
    pub(crate) me: Weak<Stack>,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) shared: Shared,
    pub(crate) key: Key,
    /// Neighbours.
    pub neighbours: Neighbours,
    pub(crate) timers: Timers,
    pub(crate) lanes: [Lane; LANES],
    /// Bound ports.
    pub ports: Ports,
    /// Connections.
    pub tcp: Tcp,
    /// Datagram endpoints.
    pub udp: Udp,
    /// Raw endpoints.
    pub raw: Raws,
    pub(crate) reassembly: Reassembly,
    pub(crate) autoconf: Autoconf,
    /// Sockets that are told of changes.
    pub(crate) members: crate::netlink::Members,
    /// What happened.
    pub counters: Counters,
    /// Bounds.
    pub limits: Limits,
    /// Error messages: the current second, and (low 16 bits) how many went in it.
    pub(crate) errors: AtomicU64,
    /// Bytes of connections' buffers now.
    pub(crate) buffered: AtomicUsize,
}

impl Stack {
    pub(crate) fn sabotaged(&self, how: Sabotage) -> bool {
        self.limits.sabotage.contains(how)
    }

    /// A stack with its loopback interface up.
    pub fn new(env: Arc<dyn Env>, limits: Limits) -> Arc<Stack> {
        let key = Key(env.random(), env.random());
        let netif = NetIf {
            index: LOOPBACK,
            name: "lo".into(),
            device: None,
            mtu: AtomicUsize::new(0),
            counters: IfCounters::default(),
        };
        let addrs = alloc::vec![(Ipv4Addr::LOCALHOST.into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)];
        let lo = IfConfig { netif: Arc::new(netif), up: true, addrs, dad: alloc::vec![] };
        let config = Config { interfaces: alloc::vec![lo], routes: alloc::vec![] };
        Arc::new_cyclic(|me| Stack {
            me: me.clone(),
            shared: Shared::new(config),
            key,
            neighbours: Neighbours::new(key),
            timers: Timers::new(),
            lanes: core::array::from_fn(|_| Lane {
                queue: SpinLock::new(&LANE, VecDeque::new()),
                draining: AtomicBool::new(false),
            }),
            ports: Ports::new(key),
            tcp: Tcp::new(key),
            udp: Udp::new(),
            raw: Raws::new(),
            reassembly: Reassembly::new(),
            autoconf: Autoconf::new(),
            members: crate::netlink::Members::new(),
            counters: Counters::default(),
            limits,
            errors: AtomicU64::new(0),
            buffered: AtomicUsize::new(0),
            env,
        })
    }

    /// Runs what is due; when to call again. Context: thread.
    pub fn run_timers(&self) -> Option<u64> {
        let (due, next) = self.timers.due(self.env.now_ns());
        for target in due {
            match target {
                Target::Flow(flow) => {
                    if let Some(flow) = flow.upgrade() {
                        flow.timer(self);
                    }
                }
                Target::Listener(listener) => {
                    if let Some(listener) = listener.upgrade() {
                        listener.timer(self);
                    }
                }
                Target::Neighbour(netif, addr) => self.neighbour_timer(&netif, addr),
                Target::Dad(netif) => self.dad_timer(&netif),
                Target::Routers(netif, attempt) => self.solicit_routers(&netif, attempt),
                Target::Autoconf => self.autoconf_expire(),
                Target::TimeWait => self.tcp.expire(self),
                Target::Reassembly => self.reassembly.expire(self),
            }
        }
        next
    }
}
