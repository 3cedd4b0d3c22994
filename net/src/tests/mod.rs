//! Two stacks, back to back, in virtual time.

mod dad;
mod fuzz;
mod link;
mod many;
mod narrow;
mod netlink;
mod overrun;
mod sockets;
mod tcp;
mod udp;

use crate::config::NetIf;
use crate::{Env, Features, Limits, NetDevice, Packet, RxMeta, Stack};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Arbitrary input, the same in every run.
pub fn config(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases,
        rng_seed: proptest::test_runner::RngSeed::Fixed(20_260_101),
        failure_persistence: None,
        ..Default::default()
    }
}

/// What the link does to frames, in thousandths, and how long it takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub loss: u64,
    pub duplicate: u64,
    pub corrupt: u64,
    pub reorder: u64,
    pub delay_us: u64,
    /// Frames too short to hold data are lost.
    pub no_acks: bool,
    /// Packets beyond this many bytes are refused as a router does that cannot pass them on; 0: none.
    pub narrow: usize,
}

/// Frames on their way, by when they arrive and a number: to which side, and their bytes.
type Wire = BTreeMap<(u64, u64), (usize, Vec<u8>)>;

pub struct World {
    now: AtomicU64,
    random: AtomicU64,
    wire: Mutex<Wire>,
    sent: AtomicU64,
    pub faults: Mutex<Faults>,
    deadlines: [AtomicU64; 2],
}

struct Side(Arc<World>, usize);

impl Env for Side {
    fn now_ns(&self) -> u64 {
        self.0.now.load(Ordering::Relaxed)
    }
    fn random(&self) -> u64 {
        self.0.rand()
    }
    fn timer(&self, at: u64) {
        self.0.deadlines[self.1].fetch_min(at, Ordering::Relaxed);
    }
}

impl World {
    pub fn rand(&self) -> u64 {
        let mut z = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn chance(&self, thousandths: u64) -> bool {
        self.rand() % 1000 < thousandths
    }
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
    /// How many frames were put on the link.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
    /// A frame for a side, after so many nanoseconds.
    fn put(&self, to: usize, after: u64, bytes: Vec<u8>) {
        let n = self.sent.fetch_add(1, Ordering::Relaxed);
        self.wire.lock().unwrap().insert((self.now() + after, n), (to, bytes));
    }
}

struct Card(Arc<World>, usize);

impl NetDevice for Card {
    fn transmit(&self, frame: Packet) -> bool {
        let w = &self.0;
        let f = *w.faults.lock().unwrap();
        let copies = 1 + usize::from(w.chance(f.duplicate));
        for _ in 0..copies {
            let bytes = frame.bytes();
            if f.narrow > 0 && bytes.len() > 14 + f.narrow && matches!(bytes[12..14], [8, 0] | [0x86, 0xdd]) {
                if !w.chance(f.loss) {
                    w.put(self.1, f.delay_us * 1000, narrow::too_large(bytes, f.narrow));
                }
                continue;
            }
            if w.chance(f.loss) || (f.no_acks && frame.bytes().len() <= 14 + 20 + 32) {
                continue;
            }
            let mut bytes = frame.bytes().to_vec();
            if w.chance(f.corrupt) {
                let bit = w.rand() as usize % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            let extra = if w.chance(f.reorder) { w.rand() % 5_000_000 } else { 0 };
            w.put(1 - self.1, f.delay_us * 1000 + extra, bytes);
        }
        true
    }
    fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, 0, self.1 as u8 + 1]
    }
    fn mtu(&self) -> usize {
        1500
    }
    fn features(&self) -> Features {
        Features::empty()
    }
}

pub struct Pair {
    pub world: Arc<World>,
    pub stacks: [Arc<Stack>; 2],
    pub ifs: [Arc<NetIf>; 2],
}

pub fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

impl Pair {
    pub fn new(seed: u64, faults: Faults) -> Pair {
        Self::with_limits(seed, faults, Limits::default())
    }

    pub fn with_limits(seed: u64, faults: Faults, limits: Limits) -> Pair {
        let world = Arc::new(World {
            now: AtomicU64::new(1_000_000_000),
            random: AtomicU64::new(seed),
            wire: Mutex::default(),
            sent: AtomicU64::new(0),
            faults: Mutex::new(faults),
            deadlines: [const { AtomicU64::new(u64::MAX) }; 2],
        });
        let stacks = [0, 1].map(|i| Stack::new(Arc::new(Side(world.clone(), i)), limits));
        let ifs = [0, 1].map(|i| {
            let s = &stacks[i];
            let netif = s.add_interface("eth0", Arc::new(Card(world.clone(), i))).unwrap();
            s.add_address(netif.index, ip(["10.0.0.1", "10.0.0.2"][i]), 24).unwrap();
            s.add_address_checked(netif.index, ip(["fd00::1", "fd00::2"][i]), 64, false).unwrap();
            s.set_up(netif.index, true).unwrap();
            netif
        });
        Pair { world, stacks, ifs }
    }

    /// Lets the next thing happen; false when nothing would before `until`.
    pub fn step(&self, until: u64) -> bool {
        let w = &self.world;
        let frame = w.wire.lock().unwrap().first_key_value().map(|(k, _)| k.0);
        let timer = w.deadlines.iter().map(|d| d.load(Ordering::Relaxed)).min().unwrap();
        let next = frame.unwrap_or(u64::MAX).min(timer);
        if next > until {
            w.now.fetch_max(until, Ordering::Relaxed);
            return false;
        }
        w.now.fetch_max(next, Ordering::Relaxed);
        if frame.is_some_and(|f| f <= timer) {
            let (_, (to, bytes)) = w.wire.lock().unwrap().pop_first().unwrap();
            self.stacks[to].receive(&self.ifs[to], &bytes, RxMeta::default());
        } else {
            for i in 0..2 {
                if w.deadlines[i].load(Ordering::Relaxed) <= next {
                    w.deadlines[i].store(u64::MAX, Ordering::Relaxed);
                    if let Some(at) = self.stacks[i].run_timers() {
                        w.deadlines[i].fetch_min(at, Ordering::Relaxed);
                    }
                }
            }
        }
        true
    }

    /// Lets `ms` milliseconds pass.
    pub fn run(&self, ms: u64) {
        let until = self.world.now() + ms * 1_000_000;
        while self.step(until) {}
    }

    /// Until `done` or so many seconds have passed.
    pub fn run_until(&self, seconds: u64, mut done: impl FnMut() -> bool) -> bool {
        let until = self.world.now() + seconds * 1_000_000_000;
        loop {
            if done() {
                return true;
            }
            if !self.step(until) {
                return done();
            }
        }
    }
}
