//! An Ethernet cable between two machines, held by the harness: it can lose, double, reorder and damage frames, refuse large
//! ones as a narrow router does, and be cut.
//!
//! Each machine's emulator sends its frames as datagrams to a socket of the harness (`-netdev dgram` over socket files), whose
//! thread decides what becomes of them and passes them to the other machine. What happens is chosen by a generator
//! with a given seed, per direction and frame, so that no clock has a part in it; only a frame that is held back to be
//! reordered goes out after a while if nothing else comes.

use std::collections::VecDeque;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::Outcome;
use crate::frames::checksum;
use crate::vm::VmConfig;

/// What happens to frames, each in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Lost.
    pub loss: u64,
    /// Passed on twice.
    pub duplicate: u64,
    /// Overtaken by up to four later ones.
    pub reorder: u64,
    /// One bit flipped behind the Ethernet header, in IP packets: ARP has no checksum that could tell.
    pub corrupt: u64,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    cut: AtomicBool,
    /// IPv4 packets beyond this many bytes are refused with "fragmentation needed"; 0: none.
    narrow: AtomicUsize,
    taken: AtomicU64,
    idle: AtomicU64,
    passed: AtomicU64,
    harmed: AtomicU64,
    refused: AtomicU64,
}

/// The cable. Dropping it takes it away.
pub struct Wire {
    dir: PathBuf,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

/// A held frame goes out after this long at the latest.
const HOLD: Duration = Duration::from_millis(20);

fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Wire {
    /// A cable with two loose ends.
    pub fn new(faults: Faults, seed: u64) -> Outcome<Self> {
        // Socket files have short names: the case's own directory may lie too deep.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("wire-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let state = Arc::new(State::default());
        let mut threads = Vec::new();
        for side in 0..2 {
            let socket = UnixDatagram::bind(dir.join(format!("{side}h")))?;
            socket.set_read_timeout(Some(HOLD))?;
            // A machine that is gone takes nothing any more.
            socket.set_write_timeout(Some(Duration::from_secs(1)))?;
            let there = dir.join(format!("{}q", 1 - side));
            let back = dir.join(format!("{side}q"));
            let lane = Lane {
                socket,
                there,
                back,
                faults,
                seed: seed * 2 + side,
                state: state.clone(),
                held: VecDeque::new(),
            };
            threads.push(std::thread::spawn(move || lane.run()));
        }
        Ok(Self { dir, state, threads })
    }

    /// Puts an end (0 or 1) into a machine, as the network device `n0` with the address 52:54:00:00:00:01 or 02.
    pub fn attach(&self, config: &mut VmConfig, side: usize) {
        let at = |end: &str| self.dir.join(format!("{side}{end}")).display().to_string();
        config.extra.extend([
            "-netdev".into(),
            format!("dgram,id=n0,local.type=unix,local.path={},remote.type=unix,remote.path={}", at("q"), at("h")),
            "-device".into(),
            format!("virtio-net-device,netdev=n0,mac=52:54:00:00:00:{:02x}", side + 1),
        ]);
    }

    /// Cuts it, or mends it.
    pub fn cut(&self, cut: bool) {
        self.state.cut.store(cut, Ordering::SeqCst);
    }

    /// From now on IPv4 packets of more than `mtu` bytes do not fit, and their senders are told.
    pub fn narrow(&self, mtu: usize) {
        self.state.narrow.store(mtu, Ordering::SeqCst);
    }

    /// Frames passed on, frames that something happened to, and packets refused as too large.
    pub fn counts(&self) -> (u64, u64, u64) {
        let s = &self.state;
        (s.passed.load(Ordering::SeqCst), s.harmed.load(Ordering::SeqCst), s.refused.load(Ordering::SeqCst))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// One direction.
struct Lane {
    socket: UnixDatagram,
    there: PathBuf,
    back: PathBuf,
    faults: Faults,
    seed: u64,
    state: Arc<State>,
    /// Frames that let others overtake them, and how many still may.
    held: VecDeque<(u64, Vec<u8>)>,
}

impl Lane {
    fn run(mut self) {
        let mut buf = vec![0; 70_000];
        while !self.state.stop.load(Ordering::SeqCst) {
            match self.socket.recv(&mut buf) {
                Ok(n) => {
                    let frame = buf[..n].to_vec();
                    self.frame(frame);
                    self.state.taken.fetch_add(1, Ordering::SeqCst);
                }
                Err(_) => {
                    self.release(true);
                    self.state.idle.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }

    fn pass(&self, to: &Path, frame: &[u8]) {
        // Fails while the other machine is not there: a cable that ends nowhere.
        if self.socket.send_to(frame, to).is_ok() {
            self.state.passed.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn release(&mut self, all: bool) {
        for h in &mut self.held {
            h.0 = h.0.saturating_sub(1);
        }
        while self.held.front().is_some_and(|h| all || h.0 == 0) {
            if let Some((_, frame)) = self.held.pop_front() {
                self.pass(&self.there, &frame);
            }
        }
    }

    fn chance(&mut self, thousandths: u64) -> bool {
        let hit = next(&mut self.seed) % 1000 < thousandths;
        if hit {
            self.state.harmed.fetch_add(1, Ordering::SeqCst);
        }
        hit
    }

    fn frame(&mut self, mut frame: Vec<u8>) {
        if self.state.cut.load(Ordering::SeqCst) {
            return;
        }
        let narrow = self.state.narrow.load(Ordering::SeqCst);
        if narrow > 0 && frame.len() > narrow + 14 && frame[12..14] == [8, 0] {
            self.state.refused.fetch_add(1, Ordering::SeqCst);
            self.pass(&self.back, &too_large(&frame, narrow));
            return;
        }
        let faults = self.faults;
        if self.chance(faults.loss) {
            return;
        }
        let ip = frame.len() > 14 && matches!(frame[12..14], [8, 0] | [0x86, 0xdd]);
        if ip && self.chance(faults.corrupt) {
            let bit = next(&mut self.seed) as usize % ((frame.len() - 14) * 8);
            frame[14 + bit / 8] ^= 1 << (bit % 8);
        }
        if self.chance(faults.duplicate) {
            self.pass(&self.there, &frame);
        }
        if self.chance(faults.reorder) {
            let overtaken = 1 + next(&mut self.seed) % 4;
            self.held.push_back((overtaken + 1, frame));
        } else {
            self.pass(&self.there, &frame);
        }
        self.release(false);
    }
}

/// What a router answers that cannot pass `frame` on (RFC 1191).
fn too_large(frame: &[u8], mtu: usize) -> Vec<u8> {
    let ip = &frame[14..];
    let quote = &ip[..28.min(ip.len())];
    let mut icmp = vec![3, 4, 0, 0, 0, 0, (mtu >> 8) as u8, mtu as u8];
    icmp.extend(quote);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let mut answer = Vec::new();
    answer.extend(&frame[6..12]);
    answer.extend(&frame[..6]);
    answer.extend([8, 0]);
    let mut header = vec![0x45, 0, 0, (20 + icmp.len()) as u8, 0, 0, 0, 0, 64, 1, 0, 0];
    header.extend(&ip[16..20]);
    header.extend(&ip[12..16]);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    answer.extend(header);
    answer.extend(icmp);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_frames_cross_it_and_some_do_not() -> Outcome {
        let w = Wire::new(Faults { loss: 200, duplicate: 200, reorder: 200, corrupt: 0 }, 1)?;
        let a = UnixDatagram::bind(w.dir.join("0q"))?;
        let b = UnixDatagram::bind(w.dir.join("1q"))?;
        // A socket's queue holds only some frames: whoever waited at one end would keep the lane from emptying the other.
        a.set_nonblocking(true)?;
        b.set_nonblocking(true)?;
        let mut got = Vec::new();
        let mut buf = [0; 100];
        let mut sent = 0;
        // Until every frame was looked at, and both lanes were idle (and so let out what they held) since.
        let mut idle = None;
        loop {
            if sent < 100 && a.send_to(&[sent; 60], w.dir.join("0h")).is_ok() {
                sent += 1;
            }
            if w.state.taken.load(Ordering::SeqCst) == 100 {
                let now = w.state.idle.load(Ordering::SeqCst);
                if now > *idle.get_or_insert(now) + 3 && got.len() as u64 == w.counts().0 {
                    break;
                }
            }
            match b.recv(&mut buf) {
                Ok(60) => got.push(buf[0]),
                Ok(n) => panic!("a frame of {n} bytes"),
                Err(_) => std::thread::yield_now(),
            }
        }
        let doubled = got.windows(2).any(|w| w[0] == w[1]);
        let overtaken = got.windows(2).any(|w| w[0] > w[1]);
        got.sort_unstable();
        got.dedup();
        assert!(got.len() < 100 && got.len() > 50 && doubled && overtaken, "{got:?}");
        Ok(())
    }

    #[test]
    fn refusals_are_well_formed() {
        let mut frame = vec![1; 12];
        frame.extend([8, 0]);
        frame.extend([0x45; 1400]);
        let a = too_large(&frame, 1280);
        assert_eq!(checksum(&a[14..34]), [0, 0]);
        assert_eq!(checksum(&a[34..]), [0, 0]);
        assert_eq!((a.len(), a[34], a[35], &a[40..42]), (14 + 20 + 36, 3, 4, &[5, 0][..]));
    }
}
