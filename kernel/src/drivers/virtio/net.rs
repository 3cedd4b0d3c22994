//! virtio-net (virtio 1.2, section 5.1): the driver; the stack behind it is the crate `net`.
//!
//! # Ideas
//! **In.** Every receive queue is kept full of page-sized buffers and has a thread. While frames come the thread polls, with
//! interrupts off; when there is nothing left it asks for the next interrupt and sleeps. So an idle device costs one interrupt a
//! frame and a busy one next to none. With `MRG_RXBUF` a frame may lie in several buffers; it is then put together in
//! a buffer of the thread's, else the stack reads it where the device put it.
//!
//! **Out.** Packets are sent from the memory that the stack built them in, each with its header before it. A CPU sends by the
//! queue of its number. What has been sent is taken back when something else is sent, and by the receiving thread; only when
//! the ring is full does the device have to interrupt for it. What does not fit waits in a bounded backlog, beyond
//! which frames are dropped and counted.
//!
//! **Offloads.** Checksums of what is sent, if the device completes them; for what is received the device's word that a
//! checksum is right, or never was on a wire. Large segments are not exchanged (`docs/limits.md`).
//!
//! **A device that lies.** A used element that names nothing, a length beyond the buffer, a frame of more buffers than it can
//! have: the device is reset and not used again, with a line in the log. If it does not confirm the reset, the memory it may
//! still write stays its own.
//!
//! # Locking
//! A receive queue belongs to its thread (a sleeping lock that nobody else takes). Each transmit queue has a spin lock, taken
//! by threads only. The interrupt handler takes neither: it notes what happened and wakes the threads.

use super::{Interrupt, Port, feature, leak};
use crate::mm::frames::{self, Frame};
use crate::task::Thread;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use net::config::NetIf;
use net::{Features, NetDevice, Packet, RxMeta, Stack};
use platform::ParkOptions;
use smallvec::SmallVec;
use sync::{LockClass, Mutex, Once, SpinLock, WaitQueue};
use virtio_drivers::transport::mmio::MmioTransport;
use virtq::{Buffer, Virtqueue};

static RX_CLASS: LockClass = LockClass::new("virtio-net receive queue", sync::rank::PAGE_CACHE + 90);
static TX_CLASS: LockClass = LockClass::new("virtio-net transmit queue", sync::rank::SPIN + 95);

/// Feature bits (5.1.3).
mod bit {
    pub const CSUM: u64 = 1;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const MQ: u64 = 1 << 22;
    /// Header and data may share a descriptor (6.3, for devices of before version 1).
    pub const ANY_LAYOUT: u64 = 1 << 27;
}

/// Configuration fields (5.1.4).
mod config {
    pub const STATUS: usize = 6;
    pub const PAIRS: usize = 8;
    pub const MTU: usize = 10;
}

/// Header flags (5.1.6).
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const PAGE: usize = 4096;
/// Entries of a queue.
const DEPTH: u16 = 256;
/// Queue pairs that are used at most.
const MAX_PAIRS: u16 = 8;
/// Frames between two looks at other work.
const BUDGET: usize = 64;
/// Packets that wait for others of which their sender said that they follow.
const HELD: usize = 32;
/// Packets that wait behind a full ring.
const BACKLOG: usize = 1024;
const ETHERNET: usize = 14;
/// An idle queue is looked at so often even without an interrupt.
const WATCH_NS: u64 = 1_000_000_000;

struct Rx {
    queue: Virtqueue,
    buffers: Vec<Frame>,
    /// Where frames of several buffers are put together.
    whole: Vec<u8>,
}

/// Frames that the device has delivered, each in one buffer, and the buffers' tokens.
#[derive(Default)]
struct Plain<'a> {
    frames: Vec<(&'a [u8], RxMeta)>,
    tokens: SmallVec<[u16; BUDGET]>,
}

struct Tx {
    queue: Virtqueue,
    slots: Vec<Option<Packet>>,
    free: Vec<u16>,
    backlog: VecDeque<Packet>,
}

struct Pair {
    rx: Mutex<Rx>,
    tx: SpinLock<Tx>,
    /// The device raised its interrupt since the thread looked last.
    raised: AtomicBool,
    idle: WaitQueue,
    /// Polling rounds that found frames, and interrupts.
    polls: AtomicU64,
    wakes: AtomicU64,
}

/// A virtio-net device.
pub struct VirtioNet {
    port: Port<MmioTransport<'static>>,
    pairs: Vec<Pair>,
    features: u64,
    mac: [u8; 6],
    mtu: usize,
    header: usize,
    link: AtomicBool,
    changed: AtomicBool,
    dead: AtomicBool,
    netif: Once<Arc<NetIf>>,
}

/// Starts the driver on `transport` and gives the stack an interface.
pub fn start(transport: MmioTransport<'static>) -> Result<&'static dyn Interrupt, &'static str> {
    let stack = crate::net::stack().ok_or("no network stack")?;
    let port = Port::new(transport);
    let wanted = bit::CSUM
        | bit::GUEST_CSUM
        | bit::MTU
        | bit::MAC
        | bit::MRG_RXBUF
        | bit::STATUS
        | bit::CTRL_VQ
        | bit::MQ
        | bit::ANY_LAYOUT
        | feature::EVENT_IDX
        | feature::VERSION_1;
    let features = port.begin(wanted).ok_or("refuses its own features")?;
    let has = |bit| features & bit != 0;
    let several = has(bit::MQ) && has(bit::CTRL_VQ);
    let offered = if several { port.config16(config::PAIRS).clamp(1, 0x8000) } else { 1 };
    let count = offered.min(MAX_PAIRS).min(crate::arch::percpu::listed() as u16);
    let header = if has(feature::VERSION_1) || has(bit::MRG_RXBUF) { 12 } else { 10 };
    let mut pairs = Vec::new();
    for index in 0..count {
        pairs.push(pair(&port, index, has(feature::EVENT_IDX))?);
    }
    let mut control = if count > 1 { Some(port.queue(2 * offered, 4, false)?) } else { None };
    // A frame must fit one buffer where it cannot have several.
    let most = if has(bit::MRG_RXBUF) { 65535 } else { PAGE - header - ETHERNET };
    let mtu = if has(bit::MTU) { usize::from(port.config16(config::MTU)) } else { 1500 };
    if mtu < 68 {
        return Err("impossible MTU");
    }
    let device = leak(VirtioNet {
        mac: if has(bit::MAC) { mac(&port) } else { random_mac() },
        mtu: mtu.min(most),
        header,
        link: AtomicBool::new(true),
        changed: AtomicBool::new(false),
        dead: AtomicBool::new(false),
        netif: Once::new(),
        pairs,
        features,
        port,
    });
    device.read_link();
    device.port.finish();
    if let Some(queue) = control.as_mut()
        && !device.use_pairs(queue, 2 * offered, count)
    {
        device.port.reset();
        return Err("refuses to use several queues");
    }
    let netif = crate::net::add_device(device).map_err(|_| "no interface for it")?;
    let _ = device.netif.set(netif.clone());
    report(device, &netif);
    for index in 0..device.pairs.len() {
        device.spawn(index)?;
    }
    let _ = stack;
    Ok(device)
}

fn pair(port: &Port<MmioTransport<'static>>, index: u16, event_idx: bool) -> Result<Pair, &'static str> {
    let rx = port.queue(2 * index, DEPTH, event_idx)?;
    let mut tx = port.queue(2 * index + 1, DEPTH, event_idx)?;
    let mut buffers = Vec::new();
    for _ in 0..rx.size() {
        buffers.push(frames::alloc(0).ok_or("no memory")?);
    }
    tx.disarm();
    let size = tx.size();
    let tx =
        Tx { queue: tx, slots: (0..size).map(|_| None).collect(), free: (0..size).collect(), backlog: VecDeque::new() };
    Ok(Pair {
        rx: Mutex::new(&RX_CLASS, Rx { queue: rx, buffers, whole: Vec::new() }),
        tx: SpinLock::new(&TX_CLASS, tx),
        raised: AtomicBool::new(true),
        idle: WaitQueue::new(),
        polls: AtomicU64::new(0),
        wakes: AtomicU64::new(0),
    })
}

fn mac(port: &Port<MmioTransport<'static>>) -> [u8; 6] {
    let [a, b, c] = [0, 2, 4].map(|at| port.config16(at).to_le_bytes());
    [a[0], a[1], b[0], b[1], c[0], c[1]]
}

/// A locally administered address.
fn random_mac() -> [u8; 6] {
    let r = platform::random_u64().to_le_bytes();
    [r[0] & 0xfc | 2, r[1], r[2], r[3], r[4], r[5]]
}

fn report(device: &VirtioNet, netif: &NetIf) {
    let m = device.mac;
    crate::info!(
        "{}: virtio-net, {:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}, mtu {}, {} queue pairs{}{}{}",
        netif.name,
        m[0],
        m[1],
        m[2],
        m[3],
        m[4],
        m[5],
        device.mtu,
        device.pairs.len(),
        if device.features & bit::MRG_RXBUF != 0 { ", mergeable buffers" } else { "" },
        if device.features & bit::CSUM != 0 { ", checksum offload" } else { "" },
        if device.link_up() { "" } else { ", link down" },
    );
}

struct Worker {
    device: &'static VirtioNet,
    pair: &'static Pair,
    index: u16,
}

extern "C" fn worker(arg: usize) {
    // SAFETY: `spawn` passed a leaked `Worker`.
    let w = unsafe { &*(arg as *const Worker) };
    w.device.serve(w.pair, w.index);
    crate::sched::exit_current()
}

impl VirtioNet {
    fn spawn(&'static self, index: usize) -> Result<(), &'static str> {
        let pair = self.pairs.get(index).ok_or("no such queue")?;
        let w: &'static Worker = leak(Worker { device: self, pair, index: index as u16 });
        let thread = Thread::new_kernel("net-rx", worker, core::ptr::from_ref(w) as usize).ok_or("no memory")?;
        crate::sched::spawn(thread).map_err(|_| "no thread for it")
    }

    fn name(&self) -> &str {
        self.netif.get().map_or("virtio-net", |n| &n.name)
    }

    /// Tells the device to use `count` pairs (5.1.6.5.5). Polls for the answer: at boot only.
    fn use_pairs(&self, queue: &mut Virtqueue, index: u16, count: u16) -> bool {
        let Some(frame) = frames::alloc(0) else { return false };
        let [low, high] = count.to_le_bytes();
        // SAFETY: the frame was just allocated and is never freed.
        unsafe {
            frame.ptr().cast::<[u8; 5]>().write([4, 0, low, high, 0xff]);
            let at = |offset, len, writable| Buffer { addr: frame.pa() + offset, len, writable };
            let chain = [at(0, 2, false), at(2, 2, false), at(4, 1, true)];
            if !queue.add(0, chain.into_iter()) {
                return false;
            }
        }
        if queue.publish() {
            self.port.notify(index);
        }
        let end = platform::monotonic_ns() + 1_000_000_000;
        while platform::monotonic_ns() < end {
            if let Ok(Some(_)) = queue.pop() {
                // SAFETY: as above; the device has answered.
                return unsafe { frame.ptr().add(4).read_volatile() } == 0;
            }
            core::hint::spin_loop();
        }
        false
    }

    fn read_link(&self) -> bool {
        let up = self.features & bit::STATUS == 0 || self.port.config16(config::STATUS) & 1 != 0;
        self.link.swap(up, Ordering::AcqRel) != up
    }

    /// Ends the device: it broke a rule.
    fn kill(&self, why: &str) {
        if self.dead.swap(true, Ordering::AcqRel) {
            return;
        }
        crate::warn!("{}: {why}; not used any more", self.name());
        self.link.store(false, Ordering::Release);
        let confirmed = self.port.reset();
        for pair in &self.pairs {
            let lost = {
                let mut tx = pair.tx.lock();
                tx.backlog.clear();
                tx.slots.iter_mut().filter_map(Option::take).collect::<Vec<_>>()
            };
            if !confirmed {
                // The device may still read them.
                core::mem::forget(lost);
            }
        }
    }

    /// The thread of a pair.
    fn serve(&'static self, pair: &'static Pair, index: u16) {
        let (Some(stack), Some(netif)) = (crate::net::stack(), self.netif.get()) else { return };
        let mut rx = pair.rx.lock();
        for token in 0..rx.buffers.len() as u16 {
            self.give(&mut rx, token);
        }
        if rx.queue.publish() {
            self.port.notify(2 * index);
        }
        loop {
            if self.changed.swap(false, Ordering::AcqRel) {
                self.config_changed(stack, netif);
            }
            let got = match self.poll(&mut rx, stack, netif) {
                Ok(got) => got,
                Err(why) => self.kill_and_none(why),
            };
            if self.dead.load(Ordering::Acquire) {
                return;
            }
            if got > 0 {
                pair.polls.fetch_add(1, Ordering::Relaxed);
                if rx.queue.publish() {
                    self.port.notify(2 * index);
                }
            }
            self.reap(pair, index);
            if got > 0 || rx.queue.arm() {
                continue;
            }
            let deadline_ns = Some(platform::monotonic_ns() + WATCH_NS);
            let options = ParkOptions { interruptible: false, deadline_ns };
            let _ = pair.idle.wait_until(options, || pair.raised.swap(false, Ordering::AcqRel).then_some(()));
            rx.queue.disarm();
            pair.wakes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn kill_and_none(&self, why: &str) -> usize {
        self.kill(why);
        0
    }

    /// Gives buffer `token` to the device.
    fn give(&self, rx: &mut Rx, token: u16) {
        let Some(addr) = rx.buffers.get(usize::from(token)).map(|f| f.pa()) else { return };
        // A device of before version 1 may want the header by itself.
        let split = self.features & (feature::VERSION_1 | bit::ANY_LAYOUT | bit::MRG_RXBUF) == 0;
        let whole = Buffer { addr, len: PAGE as u32, writable: true };
        let header = Buffer { len: self.header as u32, ..whole };
        let rest = Buffer { addr: addr + u64::from(header.len), len: whole.len - header.len, writable: true };
        let chain: SmallVec<[Buffer; 2]> =
            if split { SmallVec::from_slice(&[header, rest]) } else { SmallVec::from_slice(&[whole]) };
        // SAFETY: the frame is this driver's for ever, and not looked at until the token comes back.
        unsafe { rx.queue.add(token, chain.into_iter()) };
    }

    /// The next buffer that the device has filled: its token and what it says it wrote.
    fn filled(rx: &mut Rx) -> Result<Option<(u16, usize)>, &'static str> {
        let Some(used) = rx.queue.pop().map_err(|_| "broke its receive queue")? else { return Ok(None) };
        let len = used.len as usize;
        if len > PAGE || usize::from(used.token) >= rx.buffers.len() {
            return Err("says that it wrote more than there is room for");
        }
        Ok(Some((used.token, len)))
    }

    /// Takes in up to [`BUDGET`] frames; how many. The error says how the device broke the rules.
    fn poll(&self, rx: &mut Rx, stack: &Stack, netif: &Arc<NetIf>) -> Result<usize, &'static str> {
        let mut got = 0;
        let mut plain = Plain::default();
        while got < BUDGET {
            let Some((token, len)) = Self::filled(rx)? else { break };
            got += 1;
            let Some(buffer) = rx.buffers.get(usize::from(token)).copied() else { break };
            if len < self.header {
                return Err("delivers frames without a header");
            }
            // SAFETY: the device has given the buffer back; `len` is at most its size. Nobody else uses it until `give`, which
            // comes after the last use of these bytes.
            let bytes = unsafe { core::slice::from_raw_parts(buffer.ptr().cast_const(), len) };
            let (header, first) = bytes.split_at(self.header);
            let meta = RxMeta { csum_ok: header[0] & (NEEDS_CSUM | DATA_VALID) != 0 };
            let parts =
                if self.features & bit::MRG_RXBUF != 0 { u16::from_le_bytes([header[10], header[11]]) } else { 1 };
            let partial = (header[0] & NEEDS_CSUM != 0)
                .then(|| [8, 6].map(|at| usize::from(u16::from_le_bytes([header[at], header[at + 1]]))));
            if parts <= 1 && partial.is_none() {
                plain.frames.push((first, meta));
                plain.tokens.push(token);
                continue;
            }
            self.take_in(rx, &mut plain, stack, netif);
            let mut whole = core::mem::take(&mut rx.whole);
            whole.clear();
            whole.extend_from_slice(first);
            self.give(rx, token);
            for _ in 1..parts {
                let Some((token, len)) = Self::filled(rx)? else { return Err("left a frame unfinished") };
                if whole.len() + len > 65536 + 64 {
                    return Err("delivers frames of impossible length");
                }
                if let Some(buffer) = rx.buffers.get(usize::from(token)) {
                    // SAFETY: as above.
                    whole.extend_from_slice(unsafe { core::slice::from_raw_parts(buffer.ptr().cast_const(), len) });
                }
                self.give(rx, token);
            }
            if let Some([at, from]) = partial {
                net::packet::complete_checksum(&mut whole, from, at);
            }
            stack.receive(netif, &whole, meta);
            rx.whole = whole;
        }
        self.take_in(rx, &mut plain, stack, netif);
        Ok(got)
    }

    /// Hands over frames that lie in one buffer each, all together, and gives the buffers back.
    fn take_in(&self, rx: &mut Rx, plain: &mut Plain<'_>, stack: &Stack, netif: &Arc<NetIf>) {
        if plain.frames.is_empty() {
            return;
        }
        stack.receive_all(netif, &plain.frames);
        plain.frames.clear();
        for token in plain.tokens.drain(..) {
            self.give(rx, token);
        }
    }

    /// Takes back what was sent, and sends what waited.
    fn reap(&self, pair: &Pair, index: u16) {
        let mut done: SmallVec<[Packet; 32]> = SmallVec::new();
        let mut tx = pair.tx.lock();
        let broken = self.take_back(&mut tx, &mut done);
        let kick = !broken && self.send_backlog(&mut tx);
        drop(tx);
        if kick {
            self.port.notify(2 * index + 1);
        }
        if broken {
            self.kill("broke its transmit queue");
        }
    }

    /// Frees the slots of packets that were sent. True if the device broke a rule.
    fn take_back(&self, tx: &mut Tx, done: &mut SmallVec<[Packet; 32]>) -> bool {
        if self.dead.load(Ordering::Acquire) {
            return false;
        }
        loop {
            match tx.queue.pop() {
                Ok(Some(used)) => {
                    let Some(packet) = tx.slots.get_mut(usize::from(used.token)).and_then(Option::take) else {
                        return true;
                    };
                    tx.free.push(used.token);
                    done.push(packet);
                }
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Moves waiting packets into the ring, asking for an interrupt while some remain. True if the device is to be told.
    fn send_backlog(&self, tx: &mut Tx) -> bool {
        if self.dead.load(Ordering::Acquire) {
            tx.backlog.clear();
            return false;
        }
        while let Some(packet) = tx.backlog.pop_front() {
            if let Err(packet) = self.put(tx, packet) {
                tx.backlog.push_front(packet);
                break;
            }
        }
        let kick = tx.queue.publish();
        if tx.backlog.is_empty() {
            tx.queue.disarm();
        } else if tx.queue.arm() {
            // Something was sent meanwhile: the thread looks again.
            self.wake();
        }
        kick
    }

    /// Puts a packet, its header before it, into the ring.
    fn put(&self, tx: &mut Tx, mut packet: Packet) -> Result<(), Packet> {
        // One descriptor a packet; a device that wants the header by itself takes two.
        let split = self.features & (feature::VERSION_1 | bit::ANY_LAYOUT) == 0;
        if tx.queue.free() < 2 {
            return Err(packet);
        }
        let Some(slot) = tx.free.pop() else { return Err(packet) };
        let mut header = [0u8; 12];
        if let Some((from, at)) = packet.csum {
            header[0] = NEEDS_CSUM;
            header[6..8].copy_from_slice(&from.to_le_bytes());
            header[8..10].copy_from_slice(&at.to_le_bytes());
        }
        if !packet.push(&header[..self.header]) {
            tx.free.push(slot);
            return Ok(());
        }
        let bytes = packet.bytes();
        let addr = crate::mm::ptr_to_phys(bytes.as_ptr());
        let all = Buffer { addr, len: bytes.len() as u32, writable: false };
        let head = Buffer { len: self.header as u32, ..all };
        let rest = Buffer { addr: addr + u64::from(head.len), len: all.len - head.len, writable: false };
        // SAFETY: the packet's memory is of the heap (physically contiguous), and stays in its slot until the token comes
        // back or the device was reset.
        unsafe {
            if split {
                tx.queue.add(slot, [head, rest].into_iter());
            } else {
                tx.queue.add(slot, [all].into_iter());
            }
        }
        if let Some(place) = tx.slots.get_mut(usize::from(slot)) {
            *place = Some(packet);
        }
        Ok(())
    }

    fn wake(&self) {
        for pair in &self.pairs {
            pair.raised.store(true, Ordering::Release);
            pair.idle.wake_all();
        }
    }

    fn config_changed(&self, stack: &Stack, netif: &Arc<NetIf>) {
        if self.port.needs_reset() {
            return self.kill("says that it has failed");
        }
        if self.read_link() {
            let up = self.link_up();
            crate::info!("{}: link {}", netif.name, if up { "up" } else { "down" });
            stack.link_changed(netif.index, up);
        }
    }
}

impl NetDevice for VirtioNet {
    fn transmit(&self, frame: Packet) -> bool {
        if self.dead.load(Ordering::Acquire) || !self.link_up() {
            return false;
        }
        let index = frame.cpu.unwrap_or_else(platform::cpu_id) % self.pairs.len();
        let Some(pair) = self.pairs.get(index) else { return false };
        if frame.more {
            // Whoever sends the last one, or flushes, puts all of them into the ring.
            let mut tx = pair.tx.lock();
            if tx.backlog.len() < HELD {
                tx.backlog.push_back(frame);
                return true;
            }
        }
        let mut done: SmallVec<[Packet; 32]> = SmallVec::new();
        let mut tx = pair.tx.lock();
        let broken = self.take_back(&mut tx, &mut done);
        let room = tx.backlog.len() < BACKLOG;
        if room {
            tx.backlog.push_back(frame);
        }
        let kick = !broken && self.send_backlog(&mut tx);
        drop(tx);
        if kick {
            self.port.notify(2 * index as u16 + 1);
        }
        if broken {
            self.kill("broke its transmit queue");
        }
        room && !broken
    }

    fn flush(&self) {
        for (index, pair) in self.pairs.iter().enumerate() {
            if !pair.tx.lock().backlog.is_empty() {
                self.reap(pair, index as u16);
            }
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn features(&self) -> Features {
        if self.features & bit::CSUM != 0 { Features::TX_CSUM } else { Features::empty() }
    }

    fn link_up(&self) -> bool {
        self.link.load(Ordering::Acquire)
    }
}

impl Interrupt for VirtioNet {
    fn interrupt(&self) {
        if self.port.acknowledge() {
            self.changed.store(true, Ordering::Release);
        }
        self.wake();
    }
}
